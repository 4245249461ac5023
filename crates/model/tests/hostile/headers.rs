//! Changes of the JSON header of a safetensors file, with the lengths before and behind it made to fit.

use serde_json::{Map, Value, json};

use super::{Random, bytes};

/// Largest data that a changed header is given.
const MOST_DATA: u64 = 1 << 12;

const TYPES: &[&str] = &["F32", "F16", "BF16", "I8", "U16", "U32", "F64", "I64", "BOOL", "F4", "F8_E4M3", "C64"];
const WORDS: &[&[u8]] = &[
    b"\"dtype\":",
    b"\"shape\":[",
    b"\"data_offsets\":[0,8]",
    b"\"__metadata__\":{",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"null",
    b"-1",
    b"1e999",
    b"\"\\u0000\"",
    b"\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}",
];

/// Header and data of a file whose first length is true.
fn split(file: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = file.split_first_chunk::<8>()?;
    rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)
}

/// A file of these parts.
pub fn join(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// One change of a safetensors file.
pub fn change(file: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let parts = if random.one_in(5) { None } else { split(file) };
    let Some((header, data)) = parts else {
        return bytes::change(file, other, WORDS, random);
    };
    let (mut header, mut data) = (header.to_vec(), data.to_vec());
    let (other_header, other_data) = split(other).unwrap_or_default();
    match (random.below(8), serde_json::from_slice::<Value>(&header)) {
        (0, _) => bytes::change(&mut data, other_data, &[], random),
        (1, _) | (_, Err(_)) => bytes::change(&mut header, other_header, WORDS, random),
        (_, Ok(mut tree)) => {
            value(&mut tree, random);
            if !random.one_in(4) {
                data.resize(lay_out(&mut tree, random) as usize, 0);
            }
            header = tree.to_string().into_bytes();
        }
    }
    *file = join(&header, &data);
}

/// Gives all tensors their place, one behind the other, and returns where the last one ends.
fn lay_out(tree: &mut Value, random: &mut Random) -> u64 {
    let mut end = 0;
    for (_, tensor) in tree.as_object_mut().into_iter().flatten().filter(|(name, _)| *name != "__metadata__") {
        let width = match tensor["dtype"].as_str() {
            Some("F64" | "I64" | "C64") => 8,
            Some("F32" | "U32") => 4,
            Some("F16" | "BF16" | "U16") => 2,
            _ => 1,
        };
        let mut shape = tensor["shape"].as_array().into_iter().flatten().map(|size| size.as_u64().unwrap_or(1));
        let length = shape.try_fold(width as u64, u64::checked_mul).unwrap_or(MOST_DATA).min(MOST_DATA);
        if let Some(tensor) = tensor.as_object_mut() {
            tensor.insert("data_offsets".into(), json!([end, end + length]));
        }
        end += length;
    }
    if random.one_in(8) { end / 2 } else { end }
}

/// One change somewhere in a tree.
fn value(tree: &mut Value, random: &mut Random) {
    match tree {
        Value::Object(members) if !members.is_empty() && !random.one_in(8) => member(members, random),
        Value::Array(items) if !items.is_empty() && !random.one_in(6) => {
            let at = random.below(items.len());
            match random.below(6) {
                0 => drop(items.remove(at)),
                1 => items.insert(at, items[at].clone()),
                _ => value(&mut items[at], random),
            }
        }
        // A tree in a text: the header of a shard is one.
        Value::String(text) if text.starts_with('{') && !random.one_in(8) => {
            if let Ok(mut inner) = serde_json::from_str(text) {
                value(&mut inner, random);
                *text = inner.to_string();
            }
        }
        other => {
            *other = match random.below(8) {
                0 => json!(random.pick(TYPES)),
                1 => json!([]),
                2 => json!({}),
                3 => Value::Null,
                4 => json!(random.extreme() as f64),
                5 => json!(random.below(9)),
                6 => json!([random.extreme(), random.below(3)]),
                _ => json!(random.extreme()),
            }
        }
    }
}

fn member(members: &mut Map<String, Value>, random: &mut Random) {
    let keys: Vec<String> = members.keys().cloned().collect();
    let key = random.pick(&keys);
    match random.below(8) {
        0 => drop(members.remove(key)),
        1 => {
            let copy = members[key].clone();
            members.insert(format!("{key}.scale"), copy);
        }
        2 => {
            let copy = members[random.pick(&keys)].clone();
            members.insert(key.clone(), copy);
        }
        _ => value(&mut members[key], random),
    }
}
