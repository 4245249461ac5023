//! FLAC (RFC 9639): 16-bit frames of 4096 samples, and the stream header.

use flacenc::bitsink::ByteSink;
use flacenc::component::{BitRepr, StreamInfo};
use flacenc::config;
use flacenc::error::{Verified, Verify};
use flacenc::source::{Context, Fill, FrameBuf};

use super::samples::Quantiser;
use crate::AudioClip;

/// Samples of a frame.
const BLOCK: usize = 4096;
const BITS: usize = 16;

pub(super) struct FlacEncoder {
    config: Verified<config::Encoder>,
    info: StreamInfo,
    sample_rate: u32,
    channels: usize,
    quantiser: Quantiser,
    /// Interleaved samples that wait for a full frame.
    waiting: Vec<i32>,
    buffer: FrameBuf,
    /// Counts samples and sums them up to the MD5 digest in the header.
    context: Context,
    frame_count: usize,
    /// Shortest and longest frame in bytes.
    sizes: Option<(u32, u32)>,
}

impl FlacEncoder {
    pub(super) fn new(sample_rate: u32, channels: usize) -> Result<Self, String> {
        let refused = |error: &dyn std::fmt::Display| {
            format!("FLAC cannot hold {channels} channels at {sample_rate} Hz ({error})")
        };
        if channels > 8 {
            return Err(refused(&"at most 8 channels"));
        }
        let config = config::Encoder::default().into_verified().map_err(|(_, error)| error.to_string())?;
        Ok(Self {
            config,
            info: StreamInfo::new(sample_rate as usize, channels, BITS).map_err(|error| refused(&error))?,
            sample_rate,
            channels,
            quantiser: Quantiser::sixteen(),
            waiting: Vec::new(),
            buffer: FrameBuf::with_size(channels, BLOCK).map_err(|error| refused(&error))?,
            context: Context::new(BITS, channels),
            frame_count: 0,
            sizes: None,
        })
    }

    /// Marker and stream information. Before the end, the number of samples is 0, which means unknown.
    pub(super) fn header(&self) -> Vec<u8> {
        let (shortest, longest) = self.sizes.unwrap_or((0, 0));
        let mut header = b"fLaC".to_vec();
        // Last metadata block, type 0, 34 bytes.
        header.extend([0x80, 0, 0, 34]);
        header.extend((BLOCK as u16).to_be_bytes());
        header.extend((BLOCK as u16).to_be_bytes());
        header.extend(&shortest.to_be_bytes()[1..]);
        header.extend(&longest.to_be_bytes()[1..]);
        let packed = u64::from(self.sample_rate) << 44
            | (self.channels as u64 - 1) << 41
            | (BITS as u64 - 1) << 36
            | (self.context.total_samples() as u64 & ((1 << 36) - 1));
        header.extend(packed.to_be_bytes());
        header.extend(if self.frame_count == 0 { [0; 16] } else { self.context.md5_digest() });
        header
    }

    pub(super) fn encode(&mut self, clip: &AudioClip, bytes: &mut Vec<u8>) -> Result<(), String> {
        for frame in 0..clip.frames() {
            for channel in &clip.channels {
                self.waiting.push(self.quantiser.quantise(channel[frame]));
            }
            if self.waiting.len() == BLOCK * self.channels {
                self.flush(bytes)?;
            }
        }
        Ok(())
    }

    pub(super) fn finish(&mut self, bytes: &mut Vec<u8>) -> Result<(), String> {
        if self.waiting.is_empty() { Ok(()) } else { self.flush(bytes) }
    }

    pub(super) fn clipped(&self) -> u64 {
        self.quantiser.clipped()
    }

    fn flush(&mut self, bytes: &mut Vec<u8>) -> Result<(), String> {
        self.buffer.resize(self.waiting.len() / self.channels);
        self.buffer.fill_interleaved(&self.waiting).map_err(|error| error.to_string())?;
        self.context.fill_interleaved(&self.waiting).map_err(|error| error.to_string())?;
        let frame = flacenc::encode_fixed_size_frame(&self.config, &self.buffer, self.frame_count, &self.info)
            .map_err(|error| error.to_string())?;
        let mut sink = ByteSink::new();
        frame.write(&mut sink).map_err(|error| error.to_string())?;
        let coded = sink.into_inner();
        let length = coded.len() as u32;
        self.sizes = Some(self.sizes.map_or((length, length), |(low, high)| (low.min(length), high.max(length))));
        bytes.extend(coded);
        self.frame_count += 1;
        self.waiting.clear();
        Ok(())
    }
}
