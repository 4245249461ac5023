//! EnCodec (Défossez et al., arXiv:2210.13438) as MusicGen uses it: 32 kHz, mono, layers that look both ways.
//!
//! A clip goes through as a whole: the long short-term memory in the middle has heard everything before.

mod config;
mod layers;

use std::path::Path;

use layers::Stack;
use mambo_kernels::linear::{Matrix, Panels, Start};
use rayon::prelude::*;

pub use config::{EncodecConfig, PadMode};

use super::{Codec, CodecStream, StreamCodec, first_largest};
use crate::published::{ConfigError, read_config};
use crate::tokens::{CodecSpec, CodecTokens};
use crate::weights::{Weights, WeightsError};

/// Why an EnCodec could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum EncodecError {
    /// The sizes.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The weights do not fit.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

/// One level: its rows, and what finds the nearest.
struct Level {
    /// `[codes, width]`
    rows: Vec<f32>,
    /// `[width, codes]`
    turned: Panels,
    /// Minus half the square of each row's length.
    offsets: Vec<f32>,
}

/// An EnCodec, ready to use.
pub struct Encodec {
    config: EncodecConfig,
    spec: CodecSpec,
    encoder: Stack,
    levels: Vec<Level>,
    decoder: Stack,
}

impl Encodec {
    /// Opens a folder as Hugging Face has it: `config.json` and `model.safetensors`.
    pub fn load(folder: &Path) -> Result<Self, EncodecError> {
        let config = read_config(folder, "an EnCodec", EncodecConfig::broken_rule)?;
        let weights = Weights::open(&folder.join("model.safetensors"))?;
        let codec = Self::read(config, &weights, "")?;
        weights.finish()?;
        Ok(codec)
    }

    /// Reads the tensors whose names begin with `prefix`, of a configuration that breaks no rule.
    ///
    /// # Errors
    /// [`WeightsError`] for tensors that are missing or of another shape.
    pub fn read(config: EncodecConfig, weights: &Weights, prefix: &str) -> Result<Self, WeightsError> {
        let (codes, width) = (config.codebook_size, config.hidden_size);
        let level = |index: usize| {
            let name = format!("{prefix}quantizer.layers.{index}.codebook.");
            let rows = weights.f32(&format!("{name}embed"), &[codes, width])?;
            // What training kept beside the rows.
            weights.ignore(&name);
            let turned = Panels::new(Matrix::new(&rows, codes, width).turned());
            let offsets = rows.chunks_exact(width).map(|row| -0.5 * row.iter().map(|v| v * v).sum::<f32>()).collect();
            Ok(Level { rows, turned, offsets })
        };
        Ok(Self {
            encoder: Stack::encoder(&config, weights, &format!("{prefix}encoder.layers"))?,
            levels: (0..config.levels()).map(level).collect::<Result<_, WeightsError>>()?,
            decoder: Stack::decoder(&config, weights, &format!("{prefix}decoder.layers"))?,
            spec: config.spec(),
            config,
        })
    }

    /// Its sizes.
    pub fn config(&self) -> &EncodecConfig {
        &self.config
    }

    /// What the encoder makes of mono samples, before quantisation: `[tokens, hidden_size]`.
    pub fn latents(&self, mono: &[f32]) -> Vec<f32> {
        self.encoder.forward(mono.to_vec())
    }

    /// What one level alone makes of what the levels before it left of latents, `[tokens, hidden_size]`: a code a token.
    ///
    /// # Panics
    /// If there is no such level or `rest` is not whole tokens.
    pub fn level_codes(&self, level: usize, rest: &[f32]) -> Vec<u16> {
        let (level, width) = (&self.levels[level], self.config.hidden_size);
        assert!(rest.len().is_multiple_of(width), "latents must be [tokens, {width}]");
        let tokens = rest.len() / width;
        let mut scores = vec![0.0; tokens * self.config.codebook_size];
        // |z - e|^2 is least where z e - |e|^2 / 2 is most.
        level.turned.multiply(Matrix::new(rest, tokens, width), &mut scores, Start::Row(&level.offsets));
        scores.par_chunks(self.config.codebook_size).map(first_largest).collect()
    }
}

impl Codec for Encodec {
    fn spec(&self) -> &CodecSpec {
        &self.spec
    }

    fn encode(&self, mono: &[f32]) -> CodecTokens {
        let width = self.config.hidden_size;
        let mut rest = self.latents(mono);
        let tokens = rest.len() / width;
        let mut codes = Vec::with_capacity(tokens * self.levels.len());
        for (index, level) in self.levels.iter().enumerate() {
            let chosen = self.level_codes(index, &rest);
            for (rest, code) in rest.chunks_exact_mut(width).zip(&chosen) {
                let row = &level.rows[usize::from(*code) * width..][..width];
                rest.iter_mut().zip(row).for_each(|(rest, value)| *rest -= value);
            }
            codes.extend(chosen);
        }
        CodecTokens::new(self.spec.clone(), codes, tokens).expect("codes are rows of the codebooks")
    }

    /// The seed changes nothing: this decoder draws no numbers.
    fn decode(&self, tokens: &CodecTokens, levels: usize, _seed: u64) -> Vec<f32> {
        assert!((1..=tokens.spec.levels.min(self.levels.len())).contains(&levels), "levels: {levels}");
        let width = self.config.hidden_size;
        let mut sums = vec![0.0; tokens.frames * width];
        for (k, level) in self.levels[..levels].iter().enumerate() {
            for (sum, code) in sums.chunks_exact_mut(width).zip(tokens.row(k)) {
                let row = &level.rows[usize::from(*code) * width..][..width];
                sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
        }
        self.decoder.forward(sums)
    }
}

impl StreamCodec for Encodec {
    /// The seed changes nothing: this decoder draws no numbers.
    fn stream(&self, levels: usize, _seed: u64) -> Box<dyn CodecStream + '_> {
        let most = self.levels.len();
        assert!((1..=most).contains(&levels), "levels must be 1 to {most}, found {levels}");
        Box::new(EncodecStream { codec: self, levels, frames: Vec::new() })
    }

    fn codebooks(&self) -> (Vec<f32>, usize) {
        (self.levels.iter().flat_map(|level| level.rows.iter().copied()).collect(), self.config.hidden_size)
    }
}

/// Frames of a clip, which is decoded when all are there.
struct EncodecStream<'a> {
    codec: &'a Encodec,
    levels: usize,
    frames: Vec<Vec<u16>>,
}

impl CodecStream for EncodecStream<'_> {
    fn push(&mut self, codes: &[u16]) -> Vec<f32> {
        self.frames.push(codes[..self.levels].to_vec());
        Vec::new()
    }

    fn finish(self: Box<Self>) -> Vec<f32> {
        let spec = CodecSpec { levels: self.levels, ..self.codec.spec.clone() };
        let tokens = CodecTokens::from_frames(spec, &self.frames).expect("codes of this codec");
        self.codec.decode(&tokens, self.levels, 0)
    }
}
