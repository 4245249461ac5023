//! EnCodec (Défossez et al., arXiv:2210.13438) as MusicGen uses it: 32 kHz, mono, layers that look both ways.
//!
//! Convolutions see a bounded stretch and go through in windows; the long short-term memory in the middle has heard
//! everything before, and goes on from one window to the next. So long files take constant memory.

mod config;
mod layers;

use std::path::Path;

use layers::{Running, Stack};
use mambo_kernels::linear::{Matrix, Panels, Start};
use rayon::prelude::*;

pub use config::{EncodecConfig, PadMode};

use super::{Codec, DecodeStream, EncodeStream, StreamCodec, decode_by_stream, encode_by_stream, first_largest};
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
        let weights = Weights::open_folder(folder)?;
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
        let mut running = self.encoder.start();
        let mut latents = running.push(mono);
        latents.extend(running.finish());
        latents
    }

    /// Codes of latents `[tokens, hidden_size]`, row-major `[tokens, levels]`.
    fn quantise(&self, mut rest: Vec<f32>) -> Vec<u16> {
        let (width, levels) = (self.config.hidden_size, self.levels.len());
        let tokens = rest.len() / width;
        let mut codes = vec![0; tokens * levels];
        for (k, level) in self.levels.iter().enumerate() {
            let chosen = self.level_codes(k, &rest);
            let slots = codes.iter_mut().skip(k).step_by(levels);
            for ((rest, code), slot) in rest.chunks_exact_mut(width).zip(chosen).zip(slots) {
                let row = &level.rows[usize::from(code) * width..][..width];
                rest.iter_mut().zip(row).for_each(|(rest, value)| *rest -= value);
                *slot = code;
            }
        }
        codes
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
        encode_by_stream(self, mono)
    }

    fn decode(&self, tokens: &CodecTokens, levels: usize, seed: u64) -> Vec<f32> {
        decode_by_stream(self.decoder(levels, seed), tokens)
    }
}

impl StreamCodec for Encodec {
    fn encoder(&self) -> Box<dyn EncodeStream + '_> {
        Box::new(EncodecEncoder { codec: self, running: self.encoder.start() })
    }

    /// The seed changes nothing: this decoder draws no numbers.
    fn decoder(&self, levels: usize, _seed: u64) -> Box<dyn DecodeStream + '_> {
        let most = self.levels.len();
        assert!((1..=most).contains(&levels), "levels must be 1 to {most}, found {levels}");
        Box::new(EncodecStream { codec: self, levels, running: self.decoder.start() })
    }

    fn codebooks(&self) -> (Vec<f32>, usize) {
        (self.levels.iter().flat_map(|level| level.rows.iter().copied()).collect(), self.config.hidden_size)
    }
}

struct EncodecEncoder<'a> {
    codec: &'a Encodec,
    running: Running<'a>,
}

impl EncodeStream for EncodecEncoder<'_> {
    fn push(&mut self, mono: &[f32]) -> Vec<u16> {
        self.codec.quantise(self.running.push(mono))
    }

    fn finish(self: Box<Self>) -> Vec<u16> {
        self.codec.quantise(self.running.finish())
    }
}

struct EncodecStream<'a> {
    codec: &'a Encodec,
    levels: usize,
    running: Running<'a>,
}

impl DecodeStream for EncodecStream<'_> {
    fn push(&mut self, codes: &[u16]) -> Vec<f32> {
        let width = self.codec.config.hidden_size;
        let mut sum = vec![0.0; width];
        for (level, code) in self.codec.levels[..self.levels].iter().zip(codes) {
            let row = &level.rows[usize::from(*code) * width..][..width];
            sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        self.running.push(&sum)
    }

    fn finish(self: Box<Self>) -> Vec<f32> {
        self.running.finish()
    }
}
