//! MusicGen (Copet et al., arXiv:2306.05284) from a folder as Hugging Face has it: T5 reads the text, a Transformer writes
//! codes in the delay pattern, EnCodec makes sound of them. The papers' benchmark.

mod decoder;

use std::path::Path;

use mambo_kernels::linear::{self, Matrix};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

pub use decoder::{Decoder, DecoderConfig, DecoderState};

use crate::codec::encodec::{Encodec, EncodecConfig};
use crate::published::{ConfigError, read_config};
use crate::random;
use crate::sampler::{Sampling, SamplingError, blend};
use crate::text::TextError;
use crate::text::t5::{T5, T5Config};
use crate::tokens::DelayPattern;
use crate::weights::{Weights, WeightsError};

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

/// A MusicGen, ready to use.
pub struct MusicGen {
    text: T5,
    /// Text states to the decoder's width: weight `[width, text width]` and bias.
    bridge: Option<[Vec<f32>; 2]>,
    decoder: Decoder,
    codec: Encodec,
}

impl MusicGen {
    /// Opens a folder.
    pub fn load(folder: &Path) -> Result<Self, MusicGenError> {
        let config = read_config(folder, "a MusicGen", Config::broken_rule)?;
        let weights = Weights::open(&folder.join("model.safetensors"))?;
        let (from, to) = (config.text_encoder.d_model, config.decoder.hidden_size);
        let bridge = if from == to {
            None
        } else {
            Some([weights.f32("enc_to_dec_proj.weight", &[to, from])?, weights.f32("enc_to_dec_proj.bias", &[to])?])
        };
        let model = Self {
            text: T5::read(config.text_encoder, &weights, "text_encoder.", &folder.join("tokenizer.json"))?,
            bridge,
            decoder: Decoder::read(config.decoder, &weights, "decoder.")?,
            codec: Encodec::read(config.audio_encoder, &weights, "audio_encoder.")?,
        };
        weights.finish()?;
        Ok(model)
    }

    /// The codec.
    pub fn codec(&self) -> &Encodec {
        &self.codec
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
    pub fn generate(&self, text: &str, sampling: &Sampling, seed: u64) -> Result<Frames<'_>, SamplingError> {
        let text = text.trim();
        let ids = if text.is_empty() { Vec::new() } else { self.text.token_ids(text) };
        self.frames(&ids, sampling, seed)
    }

    /// As [`MusicGen::generate`] for token ids; none leave the text out.
    pub fn frames(&self, ids: &[u32], sampling: &Sampling, seed: u64) -> Result<Frames<'_>, SamplingError> {
        sampling.validate()?;
        // Weights of the stream that hears the text and of the one that does not.
        let streams: Vec<(f32, Vec<f32>)> = if ids.is_empty() {
            [(1.0, Vec::new())].into()
        } else {
            [(sampling.guidance, self.hear(ids)), (1.0 - sampling.guidance, Vec::new())].into()
        };
        let (weights, texts): (Vec<f32>, Vec<Vec<f32>>) = streams.into_iter().filter(|stream| stream.0 != 0.0).unzip();
        let texts: Vec<&[f32]> = texts.iter().map(Vec::as_slice).collect();
        let config = self.decoder.config();
        Ok(Frames {
            state: self.decoder.start(&texts),
            model: self,
            weights,
            sampling: sampling.clone(),
            rng: random::stream(seed, "sample", 0),
            columns: vec![vec![config.vocab_size as u16; config.num_codebooks]],
            pattern: DelayPattern::staircase(config.num_codebooks),
        })
    }
}

/// An endless iterator of frames, each one code a codebook.
pub struct Frames<'a> {
    model: &'a MusicGen,
    state: DecoderState,
    weights: Vec<f32>,
    sampling: Sampling,
    rng: ChaCha8Rng,
    /// The start column and those made so far, as far back as the pattern reaches.
    columns: Vec<Vec<u16>>,
    pattern: DelayPattern,
}

impl Iterator for Frames<'_> {
    type Item = Vec<u16>;

    fn next(&mut self) -> Option<Vec<u16>> {
        let config = self.model.decoder.config();
        let special = config.vocab_size as u16;
        loop {
            let last = self.columns.last().expect("begins with the start column");
            let mut logits = self.model.decoder.step(last, &mut self.state);
            blend(&mut logits, &self.weights);
            let made = self.state.columns() - 1;
            let drawn =
                logits.chunks_exact(config.vocab_size).take(config.num_codebooks).enumerate().map(|(k, logits)| {
                    // Drawn even where the filler is forced: the place in the stream of numbers depends on the column alone.
                    let code = self.sampling.draw(k, logits, &mut self.rng);
                    if made < self.pattern.delay(k) { special } else { code }
                });
            let column = drawn.collect();
            self.columns.push(column);
            let longest = self.pattern.longest();
            if self.columns.len() > longest + 1 {
                self.columns.drain(..self.columns.len() - longest - 1);
            }
            if made >= longest {
                return Some((0..config.num_codebooks).map(|k| self.columns[self.pattern.delay(k)][k]).collect());
            }
        }
    }
}
