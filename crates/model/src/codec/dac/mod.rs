//! The Descript Audio Codec (Kumar et al., arXiv:2306.06546), whose first level the papers' language models speak.
//!
//! Convolutions down to one latent a token, residual quantisation in 8 dimensions, convolutions back up. Every output
//! depends on a bounded stretch of input, so long files go through in windows that give the same numbers as the whole.

mod config;
mod layers;
mod published;
mod quantizer;
mod stream;

use std::path::{Path, PathBuf};

use layers::{Decoder, Encoder};
use published::Published;
use quantizer::Quantizer;

pub use config::DacConfig;
use stream::DacStream;

use super::windowed::{Windowed, WindowedEncoder};
use super::{
    Codec, DecodeStream, EncodeStream, PaintStream, Refinable, StreamCodec, decode_by_stream, encode_by_stream,
};
use crate::checkpoint::CheckpointError;
use crate::clock::Metronome;
use crate::published::{ConfigError, read_config};
use crate::tokens::{CodecSpec, CodecTokens};
use crate::weights::{Weights, WeightsError};

/// Tokens encoded or decoded at a time: memory, and little else, grows with it.
const WINDOW: usize = 256;

/// Where weights come from, by the names of Hugging Face's layout.
trait Reader {
    /// The values of a tensor of this shape.
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, DacError>;
}

impl Reader for &Weights {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, DacError> {
        Ok(self.f32(name, shape)?)
    }
}

/// Why a DAC could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum DacError {
    /// The sizes.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The original checkpoint does not say its sizes.
    #[error("{path}: metadata.kwargs.{name} is missing or no size; expected the original weights of a DAC")]
    Metadata {
        /// File.
        path: PathBuf,
        /// What is missing.
        name: &'static str,
    },
    /// The original checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The weights do not fit.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

/// A DAC, ready to use.
pub struct Dac {
    config: DacConfig,
    spec: CodecSpec,
    encoder: Encoder,
    quantizer: Quantizer,
    decoder: Decoder,
}

impl Dac {
    /// Opens a folder as Hugging Face has it, `config.json` and `model.safetensors`, or the original `weights.pth`.
    pub fn load(path: &Path) -> Result<Self, DacError> {
        if path.is_file() {
            let (config, mut source) = Published::open(path)?;
            let codec = Self::read(config, &mut source)?;
            source.finish()?;
            return Ok(codec);
        }
        let config = read_config(path, "a DAC", DacConfig::broken_rule)?;
        let weights = Weights::open_folder(path)?;
        let codec = Self::read(config, &mut &weights)?;
        weights.finish()?;
        Ok(codec)
    }

    fn read(config: DacConfig, source: &mut dyn Reader) -> Result<Self, DacError> {
        Ok(Self {
            encoder: Encoder::read(source, &config)?,
            quantizer: Quantizer::read(source, &config)?,
            decoder: Decoder::read(source, &config)?,
            spec: config.spec(),
            config,
        })
    }

    /// Its sizes.
    pub fn config(&self) -> &DacConfig {
        &self.config
    }

    /// What the encoder makes of mono samples, before quantisation: `[tokens, latent]`.
    pub fn latents(&self, mono: &[f32]) -> Vec<f32> {
        let mut windows = self.encoder_windows();
        let mut latents = windows.push(mono, |samples| self.latents_of_window(samples));
        latents.extend(windows.finish(|samples| self.latents_of_window(samples)));
        latents
    }

    fn encoder_windows(&self) -> Windowed {
        Windowed::new([self.config.hop(), self.config.latent()], Encoder::reach(&self.config), WINDOW)
    }

    /// A last token that is not full is padded with silence.
    fn latents_of_window(&self, samples: &[f32]) -> Vec<f32> {
        let mut samples = samples.to_vec();
        samples.resize(samples.len().next_multiple_of(self.config.hop()), 0.0);
        self.encoder.forward(&samples)
    }

    /// Tokens of mono samples, and each level's projection before it chose, `[tokens, levels * codebook_dim]`: what the
    /// second stage of the papers restores.
    pub fn encode_with_projections(&self, mono: &[f32]) -> (CodecTokens, Vec<f32>) {
        let out = self.quantizer.encode(self.latents(mono));
        let frames: Vec<&[u16]> = out.codes.chunks_exact(self.spec.levels).collect();
        let tokens = CodecTokens::from_frames(self.spec.clone(), &frames);
        (tokens.expect("codes are rows of the codebooks"), out.projections)
    }

    /// The tokens nearest to projections `[tokens, levels * codebook_dim]` of the first `levels` levels.
    ///
    /// # Panics
    /// If the projections are not whole tokens.
    pub fn tokens_of(&self, projections: &[f32], levels: usize) -> CodecTokens {
        let row = levels * self.config.codebook_dim;
        assert!(projections.len().is_multiple_of(row), "projections must be [tokens, {row}]");
        let codes = self.quantizer.choose(projections, levels);
        let spec = CodecSpec { levels, ..self.spec.clone() };
        CodecTokens::new(spec, codes, projections.len() / row).expect("codes are rows of the codebooks")
    }

    /// What one level alone makes of what the levels before it left of latents, `[tokens, latent]`: a code a token, and the
    /// projections `[tokens, codebook_dim]` that it chose by.
    ///
    /// # Panics
    /// If there is no such level or `rest` is not whole tokens.
    pub fn level_codes(&self, level: usize, rest: &[f32]) -> (Vec<u16>, Vec<f32>) {
        assert!(rest.len().is_multiple_of(self.config.latent()), "latents must be [tokens, {}]", self.config.latent());
        let out = self.quantizer.at_level(level, rest);
        (out.codes, out.projections)
    }

    /// The row of a codebook, `[codebook_dim]`: what stands for a code where projections are wanted.
    pub fn codebook_row(&self, level: usize, code: u16) -> &[f32] {
        self.quantizer.row(level, code)
    }
}

impl Codec for Dac {
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

impl StreamCodec for Dac {
    fn encoder(&self) -> Box<dyn EncodeStream + '_> {
        Box::new(WindowedEncoder {
            windows: self.encoder_windows(),
            network: |samples: &[f32]| self.latents_of_window(samples),
            quantise: |latents: Vec<f32>| self.quantizer.encode(latents).codes,
        })
    }

    /// The seed changes nothing: this decoder draws no numbers.
    fn decoder(&self, levels: usize, _seed: u64) -> Box<dyn DecodeStream + '_> {
        Box::new(DacStream::new(self, levels))
    }

    fn codebooks(&self) -> (Vec<f32>, usize) {
        (self.quantizer.rows(), self.config.codebook_dim)
    }

    fn refinable(&self) -> Option<&dyn Refinable> {
        (self.spec.levels > 1).then_some(self)
    }
}

/// Outline and detail are what the levels projected before they chose, which the papers' second stage restores; of codes, the
/// rows that were chosen.
impl Refinable for Dac {
    fn outline_width(&self) -> usize {
        self.config.codebook_dim
    }

    fn detail_width(&self) -> usize {
        (self.spec.levels - 1) * self.config.codebook_dim
    }

    fn outline(&self, code: u16) -> Vec<f32> {
        self.codebook_row(0, code).to_vec()
    }

    fn detail(&self, codes: &[u16]) -> Vec<f32> {
        let rest = codes.iter().take(self.spec.levels).enumerate().skip(1);
        rest.flat_map(|(level, code)| self.codebook_row(level, *code).iter().copied()).collect()
    }

    fn painted(&self, _seed: u64, _metronome: &Metronome) -> Box<dyn PaintStream + '_> {
        Box::new(DacStream::new(self, self.spec.levels))
    }
}
