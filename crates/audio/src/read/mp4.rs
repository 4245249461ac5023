//! What an MP4 file says about the samples its encoder put in front and behind.
//!
//! The edit list of the sound track (ISO/IEC 14496-12, 8.6.6) names the part that is to be played.

use std::fs::File;

/// Which part of the decoded samples is the sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Part {
    /// Samples to drop at the start.
    pub(super) skip: u64,
    /// Samples to keep after these; all if `None`.
    pub(super) keep: Option<u64>,
}

/// Atoms of one level; more than any real file has are not looked at.
const MAX_ATOMS: usize = 4096;

struct Atom {
    kind: [u8; 4],
    start: u64,
    end: u64,
}

/// The edit list of a track, not yet in samples.
#[derive(Debug, Default)]
pub(super) struct EditList {
    list: Vec<u8>,
    movie_scale: u32,
    media_scale: u32,
}

impl EditList {
    /// The part it selects, in samples at `rate` Hz; everything if it selects nothing or several parts.
    pub(super) fn part(&self, rate: u32) -> Part {
        selected(&self.list, self.movie_scale, self.media_scale, rate)
    }
}

/// The length of the file that its outermost atoms add up to: more than there is if the last one is cut off.
pub(super) fn promised_length(file: &mut File) -> std::io::Result<u64> {
    let length = file.metadata()?.len();
    let last = atoms(file, 0, u64::MAX / 2)?.last().map_or(0, |atom| atom.end);
    Ok(last.max(length))
}

/// The edit list of the first sound track.
pub(super) fn edit_list(file: &mut File) -> std::io::Result<EditList> {
    let length = file.metadata()?.len();
    let Some(movie) = find(file, 0, length, b"moov")? else { return Ok(EditList::default()) };
    let movie_scale = match find(file, movie.start, movie.end, b"mvhd")? {
        Some(header) => time_scale(file, &header)?,
        None => 0,
    };
    for track in atoms(file, movie.start, movie.end)?.iter().filter(|atom| &atom.kind == b"trak") {
        let Some(media) = find(file, track.start, track.end, b"mdia")? else { continue };
        let Some(handler) = find(file, media.start, media.end, b"hdlr")? else { continue };
        if bytes(file, &handler, 12)?.get(8..12) != Some(b"soun") {
            continue;
        }
        let media_scale = match find(file, media.start, media.end, b"mdhd")? {
            Some(header) => time_scale(file, &header)?,
            None => 0,
        };
        let Some(edits) = find(file, track.start, track.end, b"edts")? else { break };
        let Some(list) = find(file, edits.start, edits.end, b"elst")? else { break };
        return Ok(EditList { list: bytes(file, &list, 4096)?, movie_scale, media_scale });
    }
    Ok(EditList::default())
}

fn selected(list: &[u8], movie_scale: u32, media_scale: u32, rate: u32) -> Part {
    let number = |at: usize| list.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes);
    let long = |at: usize| Some(u64::from(number(at)?) << 32 | u64::from(number(at + 4)?));
    let (Some(version), Some(count)) = (list.first(), number(4)) else { return Part::default() };
    let width = if *version == 1 { 20 } else { 12 };
    let mut chosen = None;
    for entry in 0..(count as usize).min(list.len() / width) {
        let at = 8 + entry * width;
        let (duration, start) = if *version == 1 {
            (long(at), long(at + 8).map(|time| time as i64))
        } else {
            (number(at).map(u64::from), number(at + 4).map(|time| i64::from(time as i32)))
        };
        let (Some(duration), Some(start)) = (duration, start) else { return Part::default() };
        // -1 is silence before the sound begins, which is not part of it.
        if start >= 0 && chosen.replace((duration, start as u64)).is_some() {
            // A real cut of several parts: leave the sound whole.
            return Part::default();
        }
    }
    let scale = |time: u64, scale: u32| {
        (u128::from(time) * u128::from(rate)).div_ceil(u128::from(scale.max(1))).min(u128::from(u64::MAX)) as u64
    };
    match chosen {
        Some((duration, start)) if media_scale > 0 => Part {
            skip: scale(start, media_scale),
            keep: (duration > 0 && movie_scale > 0).then(|| scale(duration, movie_scale)),
        },
        _ => Part::default(),
    }
}

/// The part named by iTunes' `iTunSMPB` tag: delay, padding and length as hexadecimal words.
pub(super) fn from_itunes_tag(text: &str) -> Option<Part> {
    let mut words = text.split_whitespace().skip(1);
    let delay = u64::from_str_radix(words.next()?, 16).ok()?;
    let _padding = words.next()?;
    let length = u64::from_str_radix(words.next()?, 16).ok()?;
    (delay < 1 << 20 && length > 0).then_some(Part { skip: delay, keep: Some(length) })
}

fn time_scale(file: &mut File, header: &Atom) -> std::io::Result<u32> {
    let head = bytes(file, header, 24)?;
    let at = if head.first() == Some(&1) { 20 } else { 12 };
    Ok(head.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes))
}

fn bytes(file: &mut File, atom: &Atom, most: u64) -> std::io::Result<Vec<u8>> {
    super::sniff::read_at(file, atom.start, (atom.end - atom.start).min(most) as usize)
}

fn find(file: &mut File, start: u64, end: u64, kind: &[u8; 4]) -> std::io::Result<Option<Atom>> {
    Ok(atoms(file, start, end)?.into_iter().find(|atom| &atom.kind == kind))
}

fn atoms(file: &mut File, start: u64, end: u64) -> std::io::Result<Vec<Atom>> {
    let mut found = Vec::new();
    let mut position = start;
    while position + 8 <= end && found.len() < MAX_ATOMS {
        let bytes = super::sniff::read_at(file, position, (end - position).min(16) as usize)?;
        if bytes.len() < 8 {
            break;
        }
        let mut head = [0; 16];
        head[..bytes.len()].copy_from_slice(&bytes);
        let [a, b, c, d, kind @ .., _, _, _, _, _, _, _, _] = head;
        let (header, size) = match u32::from_be_bytes([a, b, c, d]) {
            0 => (8, end - position),
            1 => {
                let mut long = [0; 8];
                long.copy_from_slice(&head[8..]);
                (16, u64::from_be_bytes(long))
            }
            size => (8, u64::from(size)),
        };
        if size < header || size > end - position {
            break;
        }
        found.push(Atom { kind, start: position + header, end: position + size });
        position += size;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_edit_is_a_part_and_two_are_a_cut() {
        let entry = |duration: u32, start: i32| [duration.to_be_bytes(), start.to_be_bytes(), [0, 1, 0, 0]].concat();
        let list = |entries: &[Vec<u8>]| {
            let mut bytes = vec![0, 0, 0, 0];
            bytes.extend((entries.len() as u32).to_be_bytes());
            bytes.extend(entries.concat());
            bytes
        };
        let part = selected(&list(&[entry(500, 1024)]), 1000, 44_100, 44_100);
        assert_eq!(part, Part { skip: 1024, keep: Some(22_050) });
        let part = selected(&list(&[entry(100, -1), entry(0, 2112)]), 1000, 44_100, 22_050);
        assert_eq!(part, Part { skip: 1056, keep: None });
        assert_eq!(selected(&list(&[entry(5, 0), entry(5, 9)]), 1000, 44_100, 44_100), Part::default());
        assert_eq!(selected(&[0, 0, 0, 0, 255, 255, 255, 255], 1000, 44_100, 44_100), Part::default());
    }

    #[test]
    fn itunes_tag() {
        let text = " 00000000 00000840 000001C0 00000000000ABCDE 00000000 00000000";
        assert_eq!(from_itunes_tag(text), Some(Part { skip: 0x840, keep: Some(0xABCDE) }));
        assert_eq!(from_itunes_tag("nonsense"), None);
    }
}
