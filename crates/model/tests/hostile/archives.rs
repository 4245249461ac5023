//! Changes of the entries of an archive, which is then put together anew.

use super::{Random, bytes, pickles};
use crate::checkpoints::zip;

const NAMES: &[&str] =
    &["archive/data/0", "archive/data/1", "archive/byteorder", "archive/constants.pkl", "b/data.pkl", ""];

/// Names and content of all entries; `None` for an archive that is not whole.
pub fn entries(bytes: &[u8]) -> Option<Vec<(String, Vec<u8>)>> {
    let number = |at: usize, width: usize| -> Option<usize> {
        let digits = bytes.get(at..at.checked_add(width)?)?;
        Some(digits.iter().rev().fold(0, |number, &byte| number << 8 | usize::from(byte)))
    };
    let end = bytes.len().checked_sub(22)?;
    let mut at = number(end + 16, 4)?;
    let mut entries = Vec::new();
    for _ in 0..number(end + 10, 2)? {
        let (length, name_length) = (number(at + 24, 4)?, number(at + 28, 2)?);
        let name = std::str::from_utf8(bytes.get(at + 46..at + 46 + name_length)?).ok()?;
        let header = number(at + 42, 4)?;
        let start = header + 30 + number(header + 26, 2)? + number(header + 28, 2)?;
        entries.push((name.to_owned(), bytes.get(start..start + length)?.to_vec()));
        at += 46 + name_length + number(at + 30, 2)? + number(at + 32, 2)?;
    }
    Some(entries)
}

/// An archive of these entries.
pub fn join(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let entries: Vec<(&str, &[u8])> = entries.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    zip(&entries)
}

/// One change of an archive.
pub fn change(archive: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let parts = if random.one_in(4) { None } else { entries(archive).filter(|entries| !entries.is_empty()) };
    let Some(mut parts) = parts else {
        return bytes::change(archive, other, &[b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"], random);
    };
    let others = entries(other).unwrap_or_default();
    // Every other change goes into the pickle, which is first as a rule.
    let at = if random.one_in(2) { 0 } else { random.below(parts.len()) };
    match random.below(16) {
        0 => drop(parts.remove(at)),
        1 => parts.push((random.pick(NAMES).to_string(), parts[at].1.clone())),
        2 => parts[at].0 = random.pick(NAMES).to_string(),
        3 => parts[at].1.resize(random.below(64), 0),
        4 if !others.is_empty() => parts.push(random.pick(&others).clone()),
        _ => {
            let (name, content) = &mut parts[at];
            let of = |entry: &&(String, Vec<u8>)| entry.0.ends_with(".pkl") == name.ends_with(".pkl");
            let source = others.iter().find(of).map_or(&[][..], |(_, bytes)| bytes);
            if name.ends_with(".pkl") {
                pickles::change(content, source, random);
            } else {
                bytes::change(content, source, &[], random);
            }
        }
    }
    *archive = join(&parts);
}
