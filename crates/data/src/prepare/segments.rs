//! A file as overlapping windows of mono samples at the corpus loudness; ten hours need no more memory
//! than a minute.

use crate::augment::{MAX_OFFSET, MAX_SPEED};
use crate::error::DataError;
use mambo_audio::{AudioClip, AudioReader, CORPUS_LUFS, LoudnessMeter, Resampler};
use std::path::{Path, PathBuf};

/// Most that quiet music is raised, in dB, as when a codec is trained.
const MOST_GAIN: f64 = 30.0;

/// A file as mono samples at one rate, block by block.
struct MonoStream {
    reader: AudioReader,
    resampler: Option<Resampler>,
    rate: u32,
    ended: bool,
    path: PathBuf,
}

impl MonoStream {
    fn open(path: &Path, rate: u32) -> Result<Self, DataError> {
        Ok(Self { reader: AudioReader::open(path)?, resampler: None, rate, ended: false, path: path.to_path_buf() })
    }

    /// The next samples; `None` at the end.
    fn next(&mut self) -> Result<Option<Vec<f32>>, DataError> {
        if self.ended {
            return Ok(None);
        }
        let samples = match self.reader.next_block()? {
            Some(block) => {
                let mono = block.to_mono();
                if block.sample_rate == self.rate {
                    mono
                } else {
                    let resampler =
                        self.resampler.get_or_insert_with(|| Resampler::new(block.sample_rate, self.rate, 1));
                    resampler.push(&AudioClip::from_mono(mono, block.sample_rate)).to_mono()
                }
            }
            None => {
                self.ended = true;
                self.resampler.take().map(|resampler| resampler.finish().to_mono()).unwrap_or_default()
            }
        };
        if samples.iter().any(|sample| !sample.is_finite()) {
            return Err(DataError::format(&self.path, "finite samples", "a NaN or an infinity"));
        }
        Ok(Some(samples))
    }
}

/// The factor that brings a whole file to the corpus loudness.
fn level_gain(path: &Path, rate: u32) -> Result<f32, DataError> {
    let mut meter = LoudnessMeter::new(rate, 1);
    let mut stream = MonoStream::open(path, rate)?;
    while let Some(samples) = stream.next()? {
        meter.push(&AudioClip::from_mono(samples, rate));
    }
    let loudness = meter.measure().integrated_lufs;
    // Too quiet or too short to be measured: left as it is.
    Ok(if loudness.is_finite() { 10.0_f64.powf((CORPUS_LUFS - loudness).min(MOST_GAIN) / 20.0) as f32 } else { 1.0 })
}

/// Reads windows that begin every `frames` samples and reach far enough for any augmented version.
pub(super) struct SegmentReader {
    stream: MonoStream,
    gain: f32,
    frames: usize,
    reach: usize,
    buffer: Vec<f32>,
    started: bool,
}

impl SegmentReader {
    /// Opens a file to be read at `rate`; it is read once in full for its loudness.
    pub(super) fn open(path: &Path, rate: u32, frames: usize) -> Result<Self, DataError> {
        Ok(Self {
            gain: level_gain(path, rate)?,
            stream: MonoStream::open(path, rate)?,
            frames,
            reach: (frames as f64 * (MAX_SPEED + MAX_OFFSET)).ceil() as usize + 8,
            buffer: Vec::new(),
            started: false,
        })
    }

    /// The next window; shorter than wanted only at the end of the file.
    pub(super) fn next_window(&mut self) -> Result<Option<&[f32]>, DataError> {
        if self.started {
            self.buffer.drain(..self.frames.min(self.buffer.len()));
        }
        self.started = true;
        while self.buffer.len() < self.reach {
            let Some(samples) = self.stream.next()? else { break };
            self.buffer.extend(samples.iter().map(|sample| sample * self.gain));
        }
        Ok((!self.buffer.is_empty()).then(|| &self.buffer[..self.buffer.len().min(self.reach)]))
    }
}
