//! Opus packets (RFC 6716, RFC 7845) to samples at 48 kHz.

use ropus::{OpusDecoder as StreamDecoder, OpusMSDecoder};
use symphonia::core::packet::Packet;

use super::{Fault, MAX_CHANNELS};

/// Every Opus stream can be decoded at this rate.
const RATE: u32 = 48_000;
/// Most samples a packet can hold per channel: 120 ms.
const MAX_FRAMES: usize = 5760;

enum Layout {
    /// One stream of one or two channels.
    Single(Box<StreamDecoder>),
    /// Several streams side by side (surround).
    Several(Box<OpusMSDecoder>),
}

/// Decoder of one logical Opus stream.
pub(super) struct OpusDecoder {
    layout: Layout,
    channels: usize,
    gain: f32,
    /// Samples still to drop at the start.
    skip: usize,
    buffer: Vec<f32>,
    integers: Vec<i16>,
}

impl OpusDecoder {
    /// A decoder for the stream with this identification header (RFC 7845, 5.1).
    pub(super) fn new(header: &[u8]) -> Result<Self, Fault> {
        let head: &[u8; 19] = header
            .get(..19)
            .and_then(|head| head.try_into().ok())
            .ok_or_else(|| Fault::Malformed("a short Opus header".into()))?;
        let channels = usize::from(head[9]);
        match channels {
            0 => return Err(Fault::NoChannels),
            count if count > MAX_CHANNELS => return Err(Fault::TooManyChannels(count)),
            _ => {}
        }
        let skip = usize::from(u16::from_le_bytes([head[10], head[11]]));
        let gain = f32::from(i16::from_le_bytes([head[16], head[17]])) / 256.0;
        let refused = |code: i32| Fault::Malformed(format!("an Opus header the decoder refuses ({code})"));
        let layout = if head[18] == 0 {
            if channels > 2 {
                return Err(Fault::Malformed(format!("{channels} Opus channels without a map")));
            }
            Layout::Single(Box::new(StreamDecoder::new(RATE as i32, channels as i32).map_err(refused)?))
        } else {
            let (Some(&streams), Some(&coupled), Some(map)) =
                (header.get(19), header.get(20), header.get(21..21 + channels))
            else {
                return Err(Fault::Malformed("an Opus header without its channel map".into()));
            };
            let sources = u16::from(streams) + u16::from(coupled);
            let valid = streams > 0
                && coupled <= streams
                && map.iter().all(|&source| source == 255 || u16::from(source) < sources);
            if !valid {
                return Err(Fault::Malformed("an Opus channel map that points nowhere".into()));
            }
            let decoder = OpusMSDecoder::new(RATE as i32, channels as i32, streams.into(), coupled.into(), map);
            Layout::Several(Box::new(decoder.map_err(refused)?))
        };
        Ok(Self {
            layout,
            channels,
            gain: 10f32.powf(gain / 20.0),
            skip,
            buffer: vec![0.0; MAX_FRAMES * channels],
            integers: Vec::new(),
        })
    }

    /// The rate and the samples of a packet, without those that only fill up the ends of the stream.
    pub(super) fn decode(&mut self, packet: &Packet) -> Result<(u32, Vec<Vec<f32>>), &'static str> {
        let data = &packet.data;
        if data.is_empty() {
            return Err("an empty Opus packet");
        }
        let decoded = match &mut self.layout {
            Layout::Single(decoder) => decoder.decode_float(Some(data), &mut self.buffer, MAX_FRAMES as i32, false),
            Layout::Several(decoder) => {
                self.integers.resize(MAX_FRAMES * self.channels, 0);
                let length = i32::try_from(data.len()).map_err(|_| "an Opus packet of gigabytes")?;
                let result = decoder.decode(Some(data), length, &mut self.integers, MAX_FRAMES as i32, false);
                for (sample, integer) in self.buffer.iter_mut().zip(&self.integers) {
                    *sample = f32::from(*integer) / 32_768.0;
                }
                result
            }
        };
        let frames = decoded
            .ok()
            .and_then(|frames| usize::try_from(frames).ok())
            .filter(|&frames| frames <= MAX_FRAMES)
            .ok_or("a damaged Opus packet")?;
        let start = self.skip.min(frames);
        self.skip -= start;
        let end = frames.saturating_sub(packet.trim_end.get() as usize).max(start);
        let kept = &self.buffer[start * self.channels..end * self.channels];
        let channels = (0..self.channels)
            .map(|channel| kept.iter().skip(channel).step_by(self.channels).map(|sample| sample * self.gain).collect())
            .collect();
        Ok((RATE, channels))
    }
}
