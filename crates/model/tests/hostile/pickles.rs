//! Changes of pickles by whole opcodes.

use std::ops::Range;

use super::{Random, bytes};

/// Pieces of pickles: what stands in sound ones, and what none may hold.
pub const WORDS: &[&[u8]] = &[
    b"(",
    b")",
    b"]",
    b"}",
    b"N",
    b"0",
    b"1",
    b"2",
    b"t",
    b"l",
    b"d",
    b"a",
    b"e",
    b"s",
    b"u",
    b"R",
    b"b",
    b"Q",
    b"o",
    b".",
    b"\x85",
    b"\x86",
    b"\x87",
    b"\x8f",
    b"\x90",
    b"\x91",
    b"\x93",
    b"\x94",
    b"\x81",
    b"\x92",
    b"\x97",
    b"\x98",
    b"\x88",
    b"\x89",
    b"K\x00",
    b"K\x01",
    b"K\x02",
    b"M\xff\xff",
    b"J\xff\xff\xff\xff",
    b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x8a\x00",
    b"\x8b\x01\x00\x00\x00\x02",
    b"G\x7f\xf0\x00\x00\x00\x00\x00\x00",
    b"\x80\x04",
    b"h\x00",
    b"h\x01",
    b"q\x00",
    b"q\x01",
    b"j\x00\x00\x00\x00",
    b"r\xff\xff\xff\xff",
    b"C\x01x",
    b"B\x00\x00\x00\x00",
    b"X\x00\x00\x00\x00",
    b"\x8c\x010",
    b"\x8c\x011",
    b"\x8c\x07storage",
    b"\x8c\x03cpu",
    b"\x8c\nstate_dict",
    b"\x8c\x08metadata",
    b"\x8c\x06kwargs",
    b"\x8c\x0cmusic_model.",
    b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x95\x00\x00\x00\x00\x00\x00\x00\x00",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_tensor_v3\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch\nFloatStorage\n",
    b"ctorch\nHalfStorage\n",
    b"ctorch\nDoubleStorage\n",
    b"ctorch\nBFloat16Storage\n",
    b"ctorch\nLongStorage\n",
    b"ctorch.storage\nUntypedStorage\n",
    b"ctorch\nfloat16\n",
    b"ctorch\nSize\n",
    b"ccollections\nOrderedDict\n",
    b"ccollections\nOrderedDict\n)R",
    b"cargparse\nNamespace\n)\x81",
    b"c_codecs\nencode\n",
    b"}\x8c\x01aK\x01s",
    b"(K\x00K\x01t",
    b"(\x8c\x07storagectorch\nFloatStorage\n\x8c\x010\x8c\x03cpuK\x06tQ",
    b"cos\nsystem\n",
    b"cbuiltins\neval\n",
    b"ios\nsystem\n",
    b"\x8c\x05posix\x8c\x06system\x93",
    b"Pevil\n",
    b"\x82\x07",
];

/// Where each opcode with what belongs to it begins and ends; what is none is a single byte.
pub fn opcodes(pickle: &[u8]) -> Vec<Range<usize>> {
    let mut places = Vec::new();
    let mut at = 0;
    while at < pickle.len() {
        let length = 1 + argument(pickle[at], &pickle[at + 1..]).min(pickle.len() - at - 1);
        places.push(at..at + length);
        at += length;
    }
    places
}

/// Bytes that belong to an opcode.
fn argument(opcode: u8, rest: &[u8]) -> usize {
    let counted = |width: usize| match rest.get(..width) {
        Some(bytes) => {
            bytes.iter().rev().fold(0, |number, &byte| number << 8 | usize::from(byte)).saturating_add(width)
        }
        None => rest.len(),
    };
    let lines = |count: usize| rest.split_inclusive(|&byte| byte == b'\n').take(count).map(<[u8]>::len).sum();
    match opcode {
        b'K' | b'h' | b'q' | 0x80 | 0x82 => 1,
        b'M' | 0x83 => 2,
        b'J' | b'j' | b'r' | 0x84 => 4,
        b'G' | 0x95 => 8,
        0x8a | 0x8c | b'C' | b'U' => counted(1),
        b'X' | b'B' | b'T' | 0x8b => counted(4),
        0x8d | 0x8e | 0x96 => counted(8),
        b'c' | b'i' => lines(2),
        b'P' | b'I' | b'F' | b'L' | b'S' | b'V' | b'g' | b'p' => lines(1),
        _ => 0,
    }
}

/// Some opcodes on end.
fn run(places: &[Range<usize>], random: &mut Random) -> Range<usize> {
    let chosen = bytes::range(places.len(), random);
    match places.get(chosen.clone()) {
        Some([first, .., last]) => first.start..last.end,
        Some([only]) => only.clone(),
        _ => 0..0,
    }
}

/// One change of a pickle.
pub fn change(pickle: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    if random.one_in(5) {
        return bytes::change(pickle, other, WORDS, random);
    }
    let places = opcodes(pickle);
    let at = places.get(random.below(places.len())).map_or(0..0, Range::clone);
    match random.below(7) {
        0 => drop(pickle.drain(at)),
        1 => drop(pickle.drain(run(&places, random))),
        2 => {
            let copy = pickle[run(&places, random)].to_vec();
            pickle.splice(at.start..at.start, copy);
        }
        3 => drop(pickle.splice(at.start..at.start, random.pick(WORDS).iter().copied())),
        4 => drop(pickle.splice(at, random.pick(WORDS).iter().copied())),
        5 if at.len() > 1 => {
            let mut changed = pickle[at.start + 1..at.end].to_vec();
            bytes::change(&mut changed, other, &[], random);
            pickle.splice(at.start + 1..at.end, changed);
        }
        _ => {
            let piece = run(&opcodes(other), random);
            pickle.splice(at.start..at.start, other[piece].iter().copied());
        }
    }
    if pickle.last() != Some(&b'.') && !random.one_in(8) {
        pickle.push(b'.');
    }
}
