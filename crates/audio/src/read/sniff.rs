//! What a file is, from its bytes.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

/// Recognised content.
pub(super) enum Content {
    /// RIFF/WAVE, RF64 or BW64: read by our own parser.
    Wav,
    /// A packet format and the byte at which it starts.
    Packets(Kind, u64),
    /// None of them; what it looks like instead.
    Unknown(String),
}

/// Containers of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Flac,
    Ogg,
    Mpeg,
    Adts,
    Mp4,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Flac => "flac",
            Kind::Ogg => "ogg",
            Kind::Mpeg => "mp3",
            Kind::Adts => "aac",
            Kind::Mp4 => "m4a",
        }
    }
}

/// How far into a file (after its ID3 tags) a first frame of MPEG audio is looked for.
const SEARCH: usize = 128 * 1024;

/// Recognises a file that is positioned anywhere; leaves it anywhere.
pub(super) fn sniff(file: &mut File) -> std::io::Result<Content> {
    let mut start = 0;
    // ID3v2 tags stand before MPEG audio, and by mistake before other things. Some files carry several.
    loop {
        let head = read_at(file, start, 10)?;
        match id3_length(&head) {
            Some(length) => start += length,
            None => break,
        }
    }
    let head = read_at(file, start, SEARCH)?;
    let at = |offset: usize, magic: &[u8]| head.get(offset..offset + magic.len()) == Some(magic);
    if (at(0, b"RIFF") || at(0, b"RF64") || at(0, b"BW64")) && at(8, b"WAVE") {
        return Ok(if start == 0 { Content::Wav } else { Content::Unknown("a wav file behind an ID3 tag".into()) });
    }
    if at(0, b"fLaC") {
        return Ok(Content::Packets(Kind::Flac, start));
    }
    if at(0, b"OggS") {
        return Ok(Content::Packets(Kind::Ogg, start));
    }
    if at(4, b"ftyp") || at(4, b"moov") || at(4, b"mdat") {
        return Ok(Content::Packets(Kind::Mp4, start));
    }
    let known = describe(&head);
    if known.is_none() {
        if let Some(offset) = find_run(&head, adts_frame) {
            return Ok(Content::Packets(Kind::Adts, start + offset as u64));
        }
        if let Some(offset) = find_run(&head, mpeg_frame) {
            return Ok(Content::Packets(Kind::Mpeg, start + offset as u64));
        }
    }
    Ok(Content::Unknown(known.unwrap_or_else(|| {
        if start > 0 && head.is_empty() {
            "an ID3 tag with nothing behind it".into()
        } else if head.iter().all(|&byte| byte == 0) {
            "all zero bytes".into()
        } else if looks_like_text(&head) {
            "text".into()
        } else {
            let bytes: Vec<String> = head.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
            format!("it starts with {}", bytes.join(" "))
        }
    })))
}

/// Up to `length` bytes from `start`; fewer at the end of the file.
pub(super) fn read_at(file: &mut File, start: u64, length: usize) -> std::io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.by_ref().take(length as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whole length of the ID3v2 tag that starts here.
fn id3_length(head: &[u8]) -> Option<u64> {
    let head: &[u8; 10] = head.get(..10)?.try_into().ok()?;
    let size = &head[6..10];
    if &head[..3] != b"ID3" || head[3] == 0xff || head[4] == 0xff || size.iter().any(|&byte| byte > 127) {
        return None;
    }
    let body = size.iter().fold(0u64, |total, &byte| total << 7 | u64::from(byte));
    let footer = if head[5] & 0x10 != 0 { 10 } else { 0 };
    Some(10 + body + footer)
}

/// First offset at which three frames follow each other (or two and the end of the data).
fn find_run(bytes: &[u8], frame: fn(&[u8]) -> Option<(usize, u32)>) -> Option<usize> {
    (0..bytes.len().saturating_sub(4)).filter(|&offset| bytes[offset] == 0xff).find(|&offset| {
        let Some((mut position, first)) = frame(&bytes[offset..]).map(|(length, tag)| (offset + length, tag)) else {
            return false;
        };
        for seen in 1..3 {
            match bytes.get(position..).filter(|rest| rest.len() >= 4) {
                // The whole file is shorter than three frames.
                None => return seen >= 2 || (offset == 0 && position >= bytes.len()),
                Some(rest) => match frame(rest) {
                    Some((length, tag)) if tag == first => position += length,
                    _ => return false,
                },
            }
        }
        true
    })
}

/// Length of the MPEG audio frame (layers I to III) at the start of `bytes`, and the fields that stay the same
/// through a stream.
fn mpeg_frame(bytes: &[u8]) -> Option<(usize, u32)> {
    const V1: [[u32; 15]; 3] = [
        [0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448],
        [0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384],
        [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320],
    ];
    const V2: [[u32; 15]; 2] = [
        [0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256],
        [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160],
    ];
    let header: [u8; 4] = bytes.get(..4)?.try_into().ok()?;
    if header[0] != 0xff || header[1] & 0xe0 != 0xe0 {
        return None;
    }
    let (version, layer) = (header[1] >> 3 & 3, header[1] >> 1 & 3);
    let (rate_index, bitrate_index) = (usize::from(header[2] >> 2 & 3), usize::from(header[2] >> 4));
    if version == 1 || layer == 0 || rate_index == 3 || bitrate_index == 0 || bitrate_index == 15 {
        return None;
    }
    let layer = 4 - usize::from(layer);
    let rate = [44_100, 48_000, 32_000][rate_index] >> [2, 0, 1, 0][usize::from(version)];
    let kilobits = if version == 3 { V1[layer - 1][bitrate_index] } else { V2[usize::from(layer > 1)][bitrate_index] };
    let padding = u32::from(header[2] >> 1 & 1);
    let length = match (layer, version) {
        (1, _) => (12_000 * kilobits / rate + padding) * 4,
        (3, 0 | 2) => 72_000 * kilobits / rate + padding,
        _ => 144_000 * kilobits / rate + padding,
    };
    Some((length as usize, u32::from(header[1] & 0xfe) << 8 | u32::from(header[2] & 0x0c)))
}

/// The same for AAC frames in an ADTS stream.
fn adts_frame(bytes: &[u8]) -> Option<(usize, u32)> {
    let header: [u8; 6] = bytes.get(..6)?.try_into().ok()?;
    if header[0] != 0xff || header[1] & 0xf6 != 0xf0 || header[2] >> 2 & 15 > 12 {
        return None;
    }
    let length = usize::from(header[3] & 3) << 11 | usize::from(header[4]) << 3 | usize::from(header[5] >> 5);
    (length >= 7).then_some((length, u32::from(header[1]) << 8 | u32::from(header[2] & 0xfc)))
}

/// Names of well-known content that is no sound we read.
fn describe(head: &[u8]) -> Option<String> {
    const KNOWN: [(&[u8], &str); 24] = [
        (b"\x89PNG", "a PNG picture"),
        (b"\xff\xd8\xff", "a JPEG picture"),
        (b"GIF8", "a GIF picture"),
        (b"%PDF", "a PDF document"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\x1f\x8b", "gzip-compressed data"),
        (b"BZh", "bzip2-compressed data"),
        (b"\xfd7zXZ", "xz-compressed data"),
        (b"7z\xbc\xaf", "a 7z archive"),
        (b"Rar!", "a rar archive"),
        (b"!<arch>", "a Debian package or archive"),
        (b"\x7fELF", "a program"),
        (b"MZ", "a Windows program"),
        (b"MThd", "a MIDI score (render it first)"),
        (b"\x1a\x45\xdf\xa3", "Matroska or WebM"),
        (b"FORM", "AIFF or another IFF file"),
        (b"caff", "Apple Core Audio"),
        (b"wvpk", "WavPack"),
        (b"MAC ", "Monkey's Audio"),
        (b"\x30\x26\xb2\x75", "Windows Media"),
        (b"IMPM", "an Impulse Tracker module"),
        (b"Extended Module", "a FastTracker module"),
        (b".snd", "Sun audio"),
        (b"RIFF", "a RIFF file without sound"),
    ];
    KNOWN.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, name)| (*name).to_string())
}

fn looks_like_text(head: &[u8]) -> bool {
    let sample = &head[..head.len().min(512)];
    let text = match std::str::from_utf8(sample) {
        Ok(text) => text,
        // The cut may fall into a character.
        Err(error) if error.valid_up_to() + 4 > sample.len() => return !sample.is_empty(),
        Err(_) => return false,
    };
    !text.is_empty() && !text.chars().any(|c| c.is_control() && !c.is_whitespace())
}
