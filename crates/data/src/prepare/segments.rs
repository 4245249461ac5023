//! A file as overlapping windows of mono samples, so that ten hours need no more memory than a minute.

use crate::augment::{MAX_OFFSET, MAX_SPEED};
use crate::error::DataError;
use mambo_audio::{AudioClip, AudioReader, Resampler};
use std::path::Path;

/// Reads windows that begin every `frames` samples and reach far enough for any augmented version.
pub(super) struct SegmentReader {
    reader: AudioReader,
    resampler: Option<Resampler>,
    rate: u32,
    frames: usize,
    reach: usize,
    buffer: Vec<f32>,
    ended: bool,
    started: bool,
    path: std::path::PathBuf,
}

impl SegmentReader {
    /// Opens a file to be read at `rate`.
    pub(super) fn open(path: &Path, rate: u32, frames: usize) -> Result<Self, DataError> {
        let reader = AudioReader::open(path)?;
        Ok(Self {
            reader,
            resampler: None,
            rate,
            frames,
            reach: (frames as f64 * (MAX_SPEED + MAX_OFFSET)).ceil() as usize + 8,
            buffer: Vec::new(),
            ended: false,
            started: false,
            path: path.to_path_buf(),
        })
    }

    /// The next window; shorter than wanted only at the end of the file.
    pub(super) fn next_window(&mut self) -> Result<Option<&[f32]>, DataError> {
        if self.started {
            self.buffer.drain(..self.frames.min(self.buffer.len()));
        }
        self.started = true;
        while self.buffer.len() < self.reach && !self.ended {
            self.read_block()?;
        }
        Ok((!self.buffer.is_empty()).then(|| &self.buffer[..self.buffer.len().min(self.reach)]))
    }

    fn read_block(&mut self) -> Result<(), DataError> {
        let Some(block) = self.reader.next_block()? else {
            self.ended = true;
            if let Some(resampler) = self.resampler.take() {
                self.keep(&resampler.finish().to_mono())?;
            }
            return Ok(());
        };
        let mono = AudioClip::from_mono(block.to_mono(), block.sample_rate);
        if mono.sample_rate == self.rate {
            return self.keep(&mono.channels[0]);
        }
        let resampler = match &mut self.resampler {
            Some(resampler) => resampler,
            None => self.resampler.insert(Resampler::new(mono.sample_rate, self.rate, 1)),
        };
        let converted = resampler.push(&mono).to_mono();
        self.keep(&converted)
    }

    fn keep(&mut self, samples: &[f32]) -> Result<(), DataError> {
        if samples.iter().any(|sample| !sample.is_finite()) {
            return Err(DataError::format(&self.path, "finite samples", "a NaN or an infinity"));
        }
        self.buffer.extend_from_slice(samples);
        Ok(())
    }
}
