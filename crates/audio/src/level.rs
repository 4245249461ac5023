//! One loudness for the whole corpus, so that no model has to learn volumes.

use std::path::Path;

use crate::{AudioClip, AudioError, measure, read_mono};

/// Integrated loudness (EBU R128) of everything a model hears, in LUFS.
pub const CORPUS_LUFS: f64 = -16.0;

/// Most that quiet sound is raised, in dB: silence must not become noise.
const MOST_GAIN: f64 = 30.0;

/// Mono samples of a file at `sample_rate`, brought to [`CORPUS_LUFS`].
pub fn read_levelled(path: &Path, sample_rate: u32) -> Result<Vec<f32>, AudioError> {
    let mut mono = read_mono(path, sample_rate)?;
    level(&mut mono, sample_rate);
    Ok(mono)
}

/// Brings mono samples to [`CORPUS_LUFS`] by one gain; sound too quiet or short to be measured stays as it is.
pub fn level(mono: &mut Vec<f32>, sample_rate: u32) {
    let clip = AudioClip::from_mono(std::mem::take(mono), sample_rate);
    let loudness = measure(&clip).integrated_lufs;
    *mono = clip.channels.into_iter().next().unwrap_or_default();
    if loudness.is_finite() {
        let gain = 10f64.powf((CORPUS_LUFS - loudness).min(MOST_GAIN) / 20.0) as f32;
        for sample in mono {
            *sample *= gain;
        }
    }
}
