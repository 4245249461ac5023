//! The codec that needs no training beyond k-means: the floor that a learned one must beat.
//!
//! Log-mel bands, principal components, residual k-means, Griffin-Lim. Same token rate and codebooks as the house
//! codec, so that the two can be compared level by level.

use mambo_audio::spectrum::{GriffinLim, MelFilterbank, Spectrogram, Stft, mel_filterbank};
use rayon::prelude::*;

use super::{Codec, ResidualQuantizer};
use crate::tokens::{CodecSpec, CodecTokens};

const WINDOW: usize = 2048;
const HOP: usize = 512;
const BANDS: usize = 160;
/// Added to a mel magnitude before the logarithm.
const FLOOR: f32 = 1e-3;

/// Log-mel, principal components, residual k-means, Griffin-Lim.
pub struct FloorCodec {
    spec: CodecSpec,
    bank: MelFilterbank,
    /// Mean of the features, `[width]`.
    mean: Vec<f32>,
    /// Orthonormal rows, `[latent, width]`.
    basis: Vec<f32>,
    quantizer: ResidualQuantizer,
}

impl FloorCodec {
    /// Values that describe one token at `hop` samples a token.
    pub fn width(hop: u32) -> usize {
        hop as usize / HOP * BANDS
    }

    /// Features `[T, width]` of mono samples: log-mel frames of a token side by side.
    pub fn features(sample_rate: u32, hop: u32, mono: &[f32]) -> Vec<f32> {
        Self::analyse(&bank(sample_rate), hop, mono)
    }

    /// A codec from the `mean` of the features, an orthonormal `basis` `[latent, width]` and a quantiser of that
    /// latent.
    ///
    /// # Panics
    /// When the shapes do not agree.
    pub fn new(spec: CodecSpec, mean: Vec<f32>, basis: Vec<f32>, quantizer: ResidualQuantizer) -> Self {
        assert_eq!(mean.len(), Self::width(spec.hop), "mean of the features");
        assert_eq!(basis.len(), mean.len() * quantizer.dimension(), "basis must be [latent, width]");
        Self { bank: bank(spec.sample_rate), spec, mean, basis, quantizer }
    }

    fn analyse(bank: &MelFilterbank, hop: u32, mono: &[f32]) -> Vec<f32> {
        let frames = mono.len().div_ceil(hop as usize) * (hop as usize / HOP);
        let mut magnitudes = Stft::new(WINDOW, HOP).magnitude(mono);
        magnitudes.data.resize(frames * magnitudes.bins, 0.0);
        magnitudes.frames = frames;
        bank.apply(&magnitudes).data.into_iter().map(|value| (value + FLOOR).ln()).collect()
    }
}

fn bank(sample_rate: u32) -> MelFilterbank {
    mel_filterbank(sample_rate, WINDOW, BANDS, 0.0, f64::from(sample_rate) / 2.0)
}

/// Latents `[T, latent]` of features under a mean and an orthonormal basis `[latent, width]`.
pub(crate) fn project(features: &[f32], mean: &[f32], basis: &[f32]) -> Vec<f32> {
    let latent = basis.len() / mean.len();
    let mut out = vec![0.0; features.len() / mean.len() * latent];
    out.par_chunks_mut(latent).zip(features.par_chunks(mean.len())).for_each(|(out, row)| {
        for (value, axis) in out.iter_mut().zip(basis.chunks_exact(mean.len())) {
            *value = row.iter().zip(mean).zip(axis).map(|((x, mean), a)| (x - mean) * a).sum();
        }
    });
    out
}

impl Codec for FloorCodec {
    fn spec(&self) -> &CodecSpec {
        &self.spec
    }

    fn encode(&self, mono: &[f32]) -> CodecTokens {
        let latents = project(&Self::analyse(&self.bank, self.spec.hop, mono), &self.mean, &self.basis);
        let frames = latents.len() / self.quantizer.dimension();
        CodecTokens::new(self.spec.clone(), self.quantizer.encode(&latents), frames)
            .expect("the quantiser yields codes of the codec")
    }

    fn decode(&self, tokens: &CodecTokens, levels: usize, seed: u64) -> Vec<f32> {
        let latents = self.quantizer.decode(&tokens.codes, tokens.frames, levels);
        let (width, latent) = (self.mean.len(), self.quantizer.dimension());
        let mut mels = vec![0.0; tokens.frames * width];
        mels.par_chunks_mut(width).zip(latents.par_chunks(latent)).for_each(|(out, row)| {
            out.copy_from_slice(&self.mean);
            for (value, axis) in row.iter().zip(self.basis.chunks_exact(width)) {
                for (out, axis) in out.iter_mut().zip(axis) {
                    *out += value * axis;
                }
            }
        });
        GriffinLim::new(WINDOW, HOP, 16, 0.99).invert(&self.spread(&mels), seed)
    }
}

impl FloorCodec {
    /// Magnitudes of log-mel bands: each bin is the mean of its bands' levels, weighted as the bands weigh it.
    fn spread(&self, mels: &[f32]) -> Spectrogram {
        let frames = mels.len() / BANDS;
        let mut out = Spectrogram::zeros(frames, WINDOW / 2 + 1);
        let mut shares = vec![0.0f32; out.bins];
        let areas: Vec<f32> = (0..BANDS).map(|band| self.bank.band(band).1.iter().sum::<f32>().max(1e-12)).collect();
        for band in 0..BANDS {
            let (first, weights) = self.bank.band(band);
            for (share, weight) in shares[first..].iter_mut().zip(weights) {
                *share += weight;
            }
        }
        let bins = out.bins;
        out.data.par_chunks_mut(bins).zip(mels.par_chunks(BANDS)).for_each(|(frame, mels)| {
            for (band, mel) in mels.iter().enumerate() {
                let level = (mel.min(8.0).exp() - FLOOR).max(0.0) / areas[band];
                let (first, weights) = self.bank.band(band);
                for ((value, weight), share) in frame[first..].iter_mut().zip(weights).zip(&shares[first..]) {
                    *value += level * weight / share.max(1e-12);
                }
            }
        });
        out
    }
}
