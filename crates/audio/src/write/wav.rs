//! WAV headers and samples. Files beyond 4 GiB become RF64 (EBU Tech 3306), for which room is kept.

use super::AudioFormat;
use super::samples::Quantiser;
use crate::AudioClip;

pub(super) struct WavEncoder {
    sample_rate: u32,
    channels: usize,
    /// Bytes of a sample.
    width: usize,
    /// `None` for floats.
    quantiser: Option<Quantiser>,
    written: u64,
}

impl WavEncoder {
    pub(super) fn new(format: AudioFormat, sample_rate: u32, channels: usize) -> Self {
        let (width, quantiser) = match format {
            AudioFormat::Wav24 => (3, Some(Quantiser::twenty_four())),
            AudioFormat::WavF32 => (4, None),
            AudioFormat::Wav16 | AudioFormat::Flac => (2, Some(Quantiser::sixteen())),
        };
        Self { sample_rate, channels, width, quantiser, written: 0 }
    }

    /// The header for that many frames, or for a stream of unknown length. Its own length is always the same.
    pub(super) fn header(&self, frames: Option<u64>) -> Vec<u8> {
        let float = self.quantiser.is_none();
        let block = self.channels * self.width;
        let data = frames.map(|frames| frames * block as u64);
        let mut format = Vec::new();
        // The plain form is defined for up to two channels and 16 bits, or floats.
        let extended = self.channels > 2 || self.width == 3;
        let tag: u16 = if float { 3 } else { 1 };
        let mut short = |value: u16| format.extend(value.to_le_bytes());
        short(if extended { 0xfffe } else { tag });
        short(self.channels as u16);
        let rate = self.sample_rate;
        let bytes_per_second = rate.saturating_mul(block as u32);
        for word in [rate, bytes_per_second] {
            short(word as u16);
            short((word >> 16) as u16);
        }
        short(block as u16);
        short(8 * self.width as u16);
        if extended {
            short(22);
            short(8 * self.width as u16);
            // Speaker positions: the usual ones up to eight channels, none named beyond.
            let mask: u32 = match self.channels {
                1 => 0x4,
                2 => 0x3,
                3 => 0x7,
                4 => 0x33,
                5 => 0x37,
                6 => 0x3f,
                7 => 0x13f,
                8 => 0x63f,
                _ => 0,
            };
            short(mask as u16);
            short((mask >> 16) as u16);
            short(tag);
            format.extend([0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xaa, 0, 0x38, 0x9b, 0x71]);
        } else if float {
            short(0);
        }
        let fact_length = if float { 12 } else { 0 };
        let rest = 4 + (8 + 28) + (8 + format.len() as u64) + fact_length + 8;
        let riff = data.map(|data| rest + data + (data & 1));
        let long = riff.is_some_and(|size| size > u64::from(u32::MAX - 1));
        let size32 = |size: Option<u64>| match size {
            Some(size) if !long => size as u32,
            _ => u32::MAX,
        };
        let mut header = Vec::new();
        header.extend(if long { b"RF64" } else { b"RIFF" });
        header.extend(size32(riff).to_le_bytes());
        header.extend(b"WAVE");
        header.extend(if long { b"ds64" } else { b"JUNK" });
        header.extend(28u32.to_le_bytes());
        if let (true, Some(riff), Some(data), Some(frames)) = (long, riff, data, frames) {
            for value in [riff, data, frames] {
                header.extend(value.to_le_bytes());
            }
            header.extend([0; 4]);
        } else {
            header.extend([0; 28]);
        }
        header.extend(b"fmt ");
        header.extend((format.len() as u32).to_le_bytes());
        header.extend(format);
        if float {
            header.extend(b"fact");
            header.extend(4u32.to_le_bytes());
            header.extend(size32(frames).to_le_bytes());
        }
        header.extend(b"data");
        header.extend(size32(data).to_le_bytes());
        header
    }

    pub(super) fn encode(&mut self, clip: &AudioClip, bytes: &mut Vec<u8>) {
        for frame in 0..clip.frames() {
            for channel in &clip.channels {
                let sample = channel[frame];
                match &mut self.quantiser {
                    None => bytes.extend(sample.to_le_bytes()),
                    Some(quantiser) => {
                        bytes.extend_from_slice(&quantiser.quantise(sample).to_le_bytes()[..self.width]);
                    }
                }
            }
        }
        self.written += bytes.len() as u64;
    }

    /// Chunks have even lengths.
    pub(super) fn pad(&self, bytes: &mut Vec<u8>) {
        if self.written % 2 == 1 {
            bytes.push(0);
        }
    }

    pub(super) fn clipped(&self) -> u64 {
        self.quantiser.as_ref().map_or(0, Quantiser::clipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_files_become_rf64() {
        let encoder = WavEncoder::new(AudioFormat::WavF32, 44_100, 2);
        let frames = 3_000_000_000u64;
        let (short, long, stream) = (encoder.header(Some(10)), encoder.header(Some(frames)), encoder.header(None));
        assert_eq!((short.len(), stream.len()), (long.len(), long.len()));
        assert_eq!((&short[..4], &long[..4]), (&b"RIFF"[..], &b"RF64"[..]));
        assert_eq!(&long[12..16], b"ds64");
        assert_eq!(long[28..36], (frames * 8).to_le_bytes());
        assert_eq!((&stream[4..8], &stream[stream.len() - 4..]), (&[255u8; 4][..], &[255u8; 4][..]));
    }
}
