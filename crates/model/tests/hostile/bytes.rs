//! Changes that know nothing of what the bytes mean.

use std::ops::Range;

use super::Random;

/// A run of bytes, mostly a short one.
pub fn range(length: usize, random: &mut Random) -> Range<usize> {
    let start = random.below(length + 1);
    let most = 1 << random.below(9);
    start..start + random.below((length - start).min(most) + 1)
}

/// One change; `words` are what files of this kind are made of.
pub fn change(bytes: &mut Vec<u8>, other: &[u8], words: &[&[u8]], random: &mut Random) {
    let at = random.below(bytes.len());
    let run = range(bytes.len(), random);
    match random.below(12) {
        0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
        1 if !bytes.is_empty() => bytes[at] = random.number() as u8,
        2 if !bytes.is_empty() => bytes[at] = bytes[at].wrapping_add(random.below(9) as u8).wrapping_sub(4),
        3 | 4 => number(&mut bytes[run.start..], random),
        5 => drop(bytes.drain(run)),
        6 => {
            let copy = bytes[run].to_vec();
            bytes.splice(at..at, copy);
        }
        7 => {
            let fill = random.number() as u8;
            bytes.splice(at..at, vec![fill; run.len()]);
        }
        8 if !words.is_empty() => drop(bytes.splice(run, random.pick(words).iter().copied())),
        9 => {
            let piece = range(other.len(), random);
            bytes.splice(run, other[piece].iter().copied());
        }
        10 => decimal(bytes, at, random),
        11 if random.one_in(4) => bytes.truncate(at),
        _ => {
            let source = range(bytes.len(), random);
            let length = source.len().min(bytes.len() - at.min(bytes.len()));
            bytes.copy_within(source.start..source.start + length, at);
        }
    }
}

/// Writes an extreme number at the beginning, in either order.
fn number(bytes: &mut [u8], random: &mut Random) {
    let width = (1 << random.below(4)).min(bytes.len());
    let number = random.extreme();
    if random.one_in(3) {
        bytes[..width].copy_from_slice(&number.to_be_bytes()[8 - width..]);
    } else {
        bytes[..width].copy_from_slice(&number.to_le_bytes()[..width]);
    }
}

/// Puts an extreme number in the place of the first written one from `at` on.
fn decimal(bytes: &mut Vec<u8>, at: usize, random: &mut Random) {
    let digit = |byte: &u8| byte.is_ascii_digit();
    let Some(start) = bytes[at..].iter().position(digit).map(|skipped| at + skipped) else { return };
    let length = bytes[start..].iter().take_while(|byte| digit(byte)).count();
    bytes.splice(start..start + length, random.extreme().to_string().into_bytes());
}
