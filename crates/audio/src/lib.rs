//! Sound in memory and in files: clips, reading, writing, resampling, loudness, spectra.
//!
//! Samples are f32 with full scale at 1.0; nothing here knows tensors or networks.

pub mod analysis;
mod clip;
pub mod spectrum;

pub use clip::AudioClip;
