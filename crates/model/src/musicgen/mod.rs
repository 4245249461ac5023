//! MusicGen (Copet et al., arXiv:2306.05284) from a folder as Hugging Face has it: T5 reads the text, a Transformer writes
//! codes in the delay pattern, EnCodec makes sound of them. The papers' benchmark.

mod decoder;
mod frames;

use std::path::Path;
use std::sync::Arc;

use mambo_kernels::linear::{self, Matrix};
use serde::Deserialize;

pub use decoder::{Decoder, DecoderConfig, DecoderState};
pub use frames::Frames;

use crate::codec::Codec;
use crate::codec::encodec::{Encodec, EncodecConfig, EncodecError};
use crate::composer::{Composer, Composition};
use crate::published::{ConfigError, read_config};
use crate::sampler::{Sampling, SamplingError};
use crate::text::TextError;
use crate::text::t5::{T5, T5Config};
use crate::tokens::CodecSpec;
use crate::weights::{Weights, WeightsError};

/// How the names of the tensors of codec and text encoder begin.
const CODEC: &str = "audio_encoder.";
const TEXT: &str = "text_encoder.";
const TOKENIZER: &str = "tokenizer.json";

/// Why a MusicGen could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum MusicGenError {
    /// The sizes.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The text encoder.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The weights do not fit.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

/// `config.json`: a part for each network.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Config {
    text_encoder: T5Config,
    audio_encoder: EncodecConfig,
    decoder: DecoderConfig,
}

impl Config {
    fn broken_rule(&self) -> Option<&'static str> {
        let (books, codes) = (self.decoder.num_codebooks, self.decoder.vocab_size);
        let parts = [self.text_encoder.broken_rule(), self.audio_encoder.broken_rule(), self.decoder.broken_rule()];
        let differ = || {
            let (levels, size) = (self.audio_encoder.levels(), self.audio_encoder.codebook_size);
            (books != levels || codes != size)
                .then_some("decoder and audio_encoder differ in the number of codebooks or codes")
        };
        parts.into_iter().flatten().next().or_else(differ)
    }
}

/// Sizes and weights of a folder.
fn open<E: From<ConfigError> + From<WeightsError>>(folder: &Path) -> Result<(Config, Weights), E> {
    let config = read_config(folder, "a MusicGen", Config::broken_rule)?;
    Ok((config, Weights::open_folder(folder)?))
}

/// A MusicGen, ready to write codes.
pub struct MusicGen {
    text: T5,
    /// Text states to the decoder's width: weight `[width, text width]` and bias.
    bridge: Option<[Vec<f32>; 2]>,
    decoder: Arc<Decoder>,
    /// The codec that its codes belong to.
    spec: CodecSpec,
}

impl MusicGen {
    /// Opens a folder: the model, and the codec in it.
    pub fn load(folder: &Path) -> Result<(Self, Encodec), MusicGenError> {
        let (config, weights) = open::<MusicGenError>(folder)?;
        let (from, to) = (config.text_encoder.d_model, config.decoder.hidden_size);
        let bridge = if from == to {
            None
        } else {
            Some([weights.f32("enc_to_dec_proj.weight", &[to, from])?, weights.f32("enc_to_dec_proj.bias", &[to])?])
        };
        let codec = Encodec::read(config.audio_encoder, &weights, CODEC)?;
        let model = Self {
            text: T5::read(config.text_encoder, &weights, TEXT, &folder.join(TOKENIZER))?,
            bridge,
            decoder: Arc::new(Decoder::read(config.decoder, &weights, "decoder.")?),
            spec: codec.spec().clone(),
        };
        weights.finish()?;
        Ok((model, codec))
    }

    /// Opens the codec in a folder, and nothing else.
    pub fn load_codec(folder: &Path) -> Result<Encodec, EncodecError> {
        let (config, weights) = open::<EncodecError>(folder)?;
        Ok(Encodec::read(config.audio_encoder, &weights, CODEC)?)
    }

    /// Opens the text encoder in a folder, and nothing else.
    pub fn load_text(folder: &Path) -> Result<T5, TextError> {
        let (config, weights) = open::<TextError>(folder)?;
        T5::read(config.text_encoder, &weights, TEXT, &folder.join(TOKENIZER))
    }

    /// The text encoder.
    pub fn text(&self) -> &T5 {
        &self.text
    }

    /// The language model.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// What the decoder hears of token ids, `[tokens, width]`.
    pub fn hear(&self, ids: &[u32]) -> Vec<f32> {
        let states = self.text.network().forward(&[(ids, ids.len())]);
        let Some([weight, bias]) = &self.bridge else { return states };
        let (from, to) = (weight.len() / bias.len(), bias.len());
        linear::forward(Matrix::new(&states, ids.len(), from), Matrix::new(weight, to, from).turned(), Some(bias))
    }

    /// Frames of codes for a text, without end; an empty one leaves the text out.
    pub fn generate(&self, text: &str, sampling: &Sampling, seed: u64) -> Result<Frames, SamplingError> {
        let text = text.trim();
        let ids = if text.is_empty() { Vec::new() } else { self.text.token_ids(text) };
        self.frames(&ids, sampling, seed)
    }

    /// As [`MusicGen::generate`] for token ids; none leave the text out.
    pub fn frames(&self, ids: &[u32], sampling: &Sampling, seed: u64) -> Result<Frames, SamplingError> {
        sampling.validate()?;
        let heard = if ids.is_empty() { None } else { Some(self.hear(ids)) };
        Ok(Frames::new(self.decoder.clone(), heard, self.spec.frame_rate(), sampling, seed))
    }
}

impl Composer for MusicGen {
    fn tokens(&self) -> CodecSpec {
        self.spec.clone()
    }

    /// Those of the paper, section 4.1, with the guidance of section 4.2.
    fn sampling(&self) -> Sampling {
        Sampling { top_k: 250, top_p: 1.0, guidance: 3.0, ..Sampling::default() }
    }

    fn compose(&self, prompt: &str, sampling: &Sampling, seed: u64) -> Result<Composition, SamplingError> {
        Ok(Composition { tempo: None, text: None, frames: Box::new(self.generate(prompt, sampling, seed)?) })
    }
}
