//! Sound in memory and in files: clips, reading, writing, resampling, loudness, spectra.
//!
//! Samples are f32 with full scale at 1.0; nothing here knows tensors or networks.

pub mod analysis;
pub mod clip;
mod error;
pub mod level;
pub mod leveller;
pub mod limiter;
pub mod loudness;
pub mod master;
pub mod read;
pub mod resample;
pub mod spectrum;
pub mod write;

pub use clip::AudioClip;
pub use error::AudioError;
pub use level::{CORPUS_LUFS, level, read_levelled};
pub use loudness::{Loudness, LoudnessMeter, measure};
pub use read::{AudioReader, MAX_CHANNELS, MonoReader, SAMPLE_RATES, read, read_mono};
pub use resample::{Resampler, resample, resampled_length};
pub use write::{AudioFormat, AudioWriter, write};
