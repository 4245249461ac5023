//! WAV: RIFF, RF64 and BW64 files with integer, float, A-law and mu-law samples.
//!
//! After "Multimedia Programming Interface and Data Specifications 1.0" (1991), Microsoft's
//! WAVE_FORMAT_EXTENSIBLE, EBU Tech 3306 (RF64) and ITU-T G.711 (A-law, mu-law).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

use super::{Fault, MAX_CHANNELS, Opened, Source};

/// Frames in a block.
const BLOCK: usize = 32 * 1024;
/// Longest text chunk that is read.
const MAX_TEXT: u64 = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    /// Unsigned 8 bit.
    U8,
    /// Signed, this many bytes.
    Signed(usize),
    F32,
    F64,
    ALaw,
    MuLaw,
}

impl Encoding {
    fn bytes(self) -> usize {
        match self {
            Encoding::U8 | Encoding::ALaw | Encoding::MuLaw => 1,
            Encoding::Signed(bytes) => bytes,
            Encoding::F32 => 4,
            Encoding::F64 => 8,
        }
    }

    fn decode(self, bytes: &[u8]) -> f32 {
        match (self, bytes) {
            (Encoding::U8, &[a]) => (f32::from(a) - 128.0) / 128.0,
            (Encoding::Signed(_), &[a]) => f32::from(a as i8) / 128.0,
            (Encoding::Signed(_), &[a, b]) => f32::from(i16::from_le_bytes([a, b])) / 32_768.0,
            (Encoding::Signed(_), &[a, b, c]) => (i32::from_le_bytes([0, a, b, c]) >> 8) as f32 / 8_388_608.0,
            (Encoding::Signed(_), &[a, b, c, d]) => i32::from_le_bytes([a, b, c, d]) as f32 / 2_147_483_648.0,
            (Encoding::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (Encoding::F64, &[a, b, c, d, e, f, g, h]) => f64::from_le_bytes([a, b, c, d, e, f, g, h]) as f32,
            (Encoding::ALaw, &[a]) => a_law(a),
            (Encoding::MuLaw, &[a]) => mu_law(a),
            _ => 0.0,
        }
    }
}

fn a_law(byte: u8) -> f32 {
    let code = byte ^ 0x55;
    let (segment, step) = (u32::from(code >> 4 & 7), i32::from(code & 15));
    let magnitude = if segment == 0 { step * 2 + 1 } else { (step * 2 + 33) << (segment - 1) };
    // 12-bit magnitudes, in 16-bit samples eight times as large.
    let value = (magnitude * 8) as f32 / 32_768.0;
    if code & 0x80 != 0 { value } else { -value }
}

fn mu_law(byte: u8) -> f32 {
    let code = !byte;
    let (segment, step) = (u32::from(code >> 4 & 7), i32::from(code & 15));
    let magnitude = ((step * 2 + 33) << segment) - 33;
    let value = (magnitude * 4) as f32 / 32_768.0;
    if code & 0x80 != 0 { -value } else { value }
}

struct Format {
    encoding: Encoding,
    channels: usize,
    sample_rate: u32,
    /// Bytes of one sample of all channels.
    stride: usize,
}

struct WavSource {
    file: BufReader<File>,
    format: Format,
    /// Bytes of sound left in the file, and those the header promised beyond the end of the file.
    left: u64,
    promised_frames: Option<u64>,
}

/// Opens a file that starts with a RIFF header.
pub(super) fn open(file: File) -> Result<Opened, Fault> {
    let file_length = file.metadata()?.len();
    let mut file = BufReader::with_capacity(1 << 17, file);
    let mut riff = [0; 12];
    file.read_exact(&mut riff)?;
    let riff_size = u32::from_le_bytes([riff[4], riff[5], riff[6], riff[7]]);
    let mut position = 12u64;
    let mut format = None;
    let mut tags = BTreeMap::new();
    let mut long_data_size = None;
    let (data_start, data_size) = loop {
        let mut head = [0; 8];
        if file_length < position + 8 {
            return Err(Fault::Malformed(if format.is_some() {
                "it ends before any samples (no data chunk)".into()
            } else {
                "it ends inside its header".into()
            }));
        }
        file.seek(SeekFrom::Start(position))?;
        file.read_exact(&mut head)?;
        let size = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        let body = position + 8;
        let here = (file_length - body).min(u64::from(size));
        match &head[..4] {
            b"fmt " => format = Some(parse_format(&read_bytes(&mut file, here.min(64))?)?),
            b"ds64" => {
                let bytes = read_bytes(&mut file, here.min(28))?;
                long_data_size = bytes.get(8..16).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
            }
            b"LIST" if here <= MAX_TEXT => super::tags::from_riff_info(&read_bytes(&mut file, here)?, &mut tags),
            b"data" => break (body, size),
            _ => {}
        }
        position = body + u64::from(size) + u64::from(size & 1);
    };
    let format = format.ok_or_else(|| Fault::Malformed("no format chunk before the samples".into()))?;
    file.seek(SeekFrom::Start(data_start))?;
    let present = file_length - data_start;
    // Programs that write to a pipe cannot know the size and leave a huge one in both places.
    let unknown = |size: u32| size >= 0x7fff_f000;
    let promised = match data_size {
        u32::MAX if long_data_size.is_some() => long_data_size,
        size if unknown(size) && (unknown(riff_size) || riff_size == 0) && u64::from(size) > present => None,
        size => Some(u64::from(size)),
    };
    let stride = format.stride as u64;
    let left = promised.unwrap_or(present).min(present);
    Ok(Opened {
        format: "wav",
        sample_rate: format.sample_rate,
        channels: format.channels,
        tags,
        source: Box::new(WavSource {
            file,
            left: left - left % stride,
            promised_frames: promised.filter(|&size| size / stride > present / stride).map(|size| size / stride),
            format,
        }),
    })
}

fn read_bytes(file: &mut impl Read, length: u64) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    file.by_ref().take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn parse_format(bytes: &[u8]) -> Result<Format, Fault> {
    let short = |at: usize| {
        bytes
            .get(at..at + 2)
            .map(|b| u16::from_le_bytes([b[0], b[1]]))
            .ok_or_else(|| Fault::Malformed(format!("a format chunk of {} bytes", bytes.len())))
    };
    let mut tag = short(0)?;
    let channels = usize::from(short(2)?);
    let sample_rate = u32::from(short(4)?) | u32::from(short(6)?) << 16;
    let (block, bits) = (usize::from(short(12)?), usize::from(short(14)?));
    if tag == 0xfffe {
        // The first two bytes of the sub-format's GUID are the old tag.
        tag = short(24)?;
    }
    if channels == 0 {
        return Err(Fault::NoChannels);
    }
    if channels > MAX_CHANNELS {
        return Err(Fault::TooManyChannels(channels));
    }
    if !super::SAMPLE_RATES.contains(&sample_rate) {
        return Err(Fault::SampleRate(sample_rate));
    }
    // Samples of fewer bits stand at the top of a container of whole bytes (20 in 24, 24 in 32).
    let container = if block % channels == 0 && block / channels >= bits.div_ceil(8) && block / channels <= 8 {
        block / channels
    } else {
        bits.div_ceil(8)
    };
    let encoding = match (tag, container) {
        (1, 1) if bits > 0 => Encoding::U8,
        (1, 2..=4) if bits > 0 => Encoding::Signed(container),
        (3, 4) => Encoding::F32,
        (3, 8) => Encoding::F64,
        (6, 1) => Encoding::ALaw,
        (7, 1) => Encoding::MuLaw,
        (1 | 3, _) => return Err(Fault::Malformed(format!("samples of {bits} bits (format {tag})"))),
        (2 | 0x11, _) => return Err(Fault::Unsupported("ADPCM".into())),
        (0x55, _) => return Err(Fault::Unsupported("mp3 inside wav".into())),
        _ => return Err(Fault::Unsupported(format!("encoding {tag:#06x}"))),
    };
    Ok(Format { encoding, channels, sample_rate, stride: channels * encoding.bytes() })
}

impl Source for WavSource {
    fn next(&mut self) -> Result<Option<Vec<Vec<f32>>>, Fault> {
        let Format { encoding, channels, stride, .. } = self.format;
        if self.left == 0 {
            return match self.promised_frames {
                Some(promised) => Err(Fault::Truncated(Some(promised))),
                None => Ok(None),
            };
        }
        let wanted = self.left.min((BLOCK * stride) as u64);
        let bytes = read_bytes(&mut self.file, wanted)?;
        self.left -= wanted;
        if (bytes.len() as u64) < wanted {
            // The file shrank while it was read.
            self.left = 0;
            self.promised_frames.get_or_insert(wanted / stride as u64);
        }
        let width = encoding.bytes();
        let frames = bytes.len() / stride;
        Ok(Some(
            (0..channels)
                .map(|channel| {
                    bytes[..frames * stride]
                        .chunks_exact(stride)
                        .map(|frame| encoding.decode(&frame[channel * width..(channel + 1) * width]))
                        .collect()
                })
                .collect(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::{a_law, mu_law};

    #[test]
    fn companding_matches_the_recommendation() {
        // Decoder output values of G.711, tables 1a and 2a, scaled to 16 bit.
        for (code, value) in [(0xd5u8, 8), (0x55, -8), (0xaa, 32_256), (0x2a, -32_256), (0x80, 5504)] {
            assert_eq!(a_law(code) * 32_768.0, value as f32, "{code:#x}");
        }
        for (code, value) in [(0xffu8, 0), (0x80, 32_124), (0x00, -32_124), (0xf0, 120), (0x7f, 0)] {
            assert_eq!(mu_law(code) * 32_768.0, value as f32, "{code:#x}");
        }
    }
}
