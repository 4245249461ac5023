//! The spectra of a corpus in memory: what the codec is fitted to.

use std::path::Path;

use half::f16;
use half::slice::HalfFloatSliceExt;
use half::vec::HalfFloatVecExt;
use mambo_audio::{AudioClip, read_levelled, resample};
use mambo_data::{Manifest, Split};
use rayon::prelude::*;

use super::{CodecExperiment, CodecTrainError};

/// Log band magnitudes of one track at one speed, half precision.
pub struct TrackSpectrum {
    values: Vec<f16>,
    width: usize,
}

impl TrackSpectrum {
    /// Tokens in it.
    pub fn tokens(&self) -> usize {
        self.values.len() / self.width
    }

    /// Tokens `range` as f32, `[tokens, width]`.
    pub fn rows(&self, range: std::ops::Range<usize>) -> Vec<f32> {
        self.values[range.start * self.width..range.end * self.width].to_f32_vec()
    }
}

/// Runs `work` on the mono sound of every kept track of a split, at corpus loudness; in parallel, results in order.
fn each<T: Send>(
    manifest: &Path,
    tiers: &[String],
    split: Split,
    sample_rate: u32,
    work: impl Fn(Vec<f32>) -> T + Sync,
) -> Result<Vec<T>, CodecTrainError> {
    let manifest = Manifest::load(manifest)?;
    let tracks: Vec<_> = manifest.kept_in(split).filter(|t| tiers.is_empty() || tiers.contains(&t.tier)).collect();
    tracks.par_iter().map(|track| Ok(work(read_levelled(&manifest.audio_path(track), sample_rate)?))).collect()
}

/// Mono sounds of a split.
pub fn sounds(
    manifest: &Path,
    tiers: &[String],
    split: Split,
    sample_rate: u32,
) -> Result<Vec<Vec<f32>>, CodecTrainError> {
    each(manifest, tiers, split, sample_rate, |mono| mono)
}

/// Spectra of a split, each track at every one of `speeds`; tracks without a whole token are left out.
pub fn spectra(
    experiment: &CodecExperiment,
    split: Split,
    speeds: &[f64],
) -> Result<Vec<TrackSpectrum>, CodecTrainError> {
    let (spec, layout) = (&experiment.codec.spec, &experiment.codec.layout);
    let (hop, width) = (spec.hop as usize, experiment.codec.width());
    let tracks = each(&experiment.manifest, &experiment.tiers, split, spec.sample_rate, |mono| {
        let spectrum = |mono: &[f32]| {
            let tokens = mono.len() / hop;
            let logs = layout.analyse(&mono[..tokens * hop], tokens * experiment.codec.frames_per_token());
            TrackSpectrum { values: Vec::from_f32_slice(&logs), width }
        };
        speeds
            .iter()
            .map(|&speed| {
                if speed == 1.0 {
                    return spectrum(&mono);
                }
                let rate = (f64::from(spec.sample_rate) * speed).round() as u32;
                let clip = resample(&AudioClip::from_mono(mono.clone(), rate), spec.sample_rate);
                spectrum(&clip.to_mono())
            })
            .collect::<Vec<_>>()
    })?;
    Ok(tracks.into_iter().flatten().filter(|spectrum| spectrum.tokens() > 0).collect())
}
