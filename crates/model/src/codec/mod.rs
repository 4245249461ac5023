//! Neural codecs: sound to tokens and back.

mod bands;
pub mod dac;
pub mod encodec;
mod floor;
mod flow;
mod house;
mod quantizer;
mod stream;
mod windowed;

pub use bands::BandLayout;
pub use floor::FloorCodec;
pub use flow::{FlowConfig, FlowNetwork, LEVEL_CHOICES, level_choice};
pub use house::{Decoding, HouseCodec, HouseConfig, HouseError, with_context};
pub use quantizer::ResidualQuantizer;
pub use stream::HouseStream;

use std::path::Path;

use serde::Deserialize;

use crate::tokens::{CodecSpec, CodecTokens};
use dac::{Dac, DacError};
use encodec::{Encodec, EncodecError};

/// A codec for mono sound.
pub trait Codec: Send + Sync {
    /// What its tokens mean.
    fn spec(&self) -> &CodecSpec;

    /// Tokens of mono samples at the codec's rate; a last frame that is not full is padded with silence.
    fn encode(&self, mono: &[f32]) -> CodecTokens;

    /// Sound of the first `levels` codebooks: `frames * hop` samples. The same seed gives the same samples.
    ///
    /// # Panics
    /// When `levels` is 0 or more than the tokens have, or the tokens are another codec's.
    fn decode(&self, tokens: &CodecTokens, levels: usize, seed: u64) -> Vec<f32>;
}

/// A codec that a model folder can hold.
pub trait StreamCodec: Codec {
    /// A running encoder.
    fn encoder(&self) -> Box<dyn EncodeStream + '_>;

    /// A running decoder of the first `levels` codebooks. The same seed gives the same samples.
    ///
    /// # Panics
    /// When `levels` is 0 or more than the codec has.
    fn decoder(&self, levels: usize, seed: u64) -> Box<dyn DecodeStream + '_>;

    /// The rows of all codebooks, `[levels, codes, width]`, and their width: what codes mean, and where a language model's
    /// embeddings may begin.
    fn codebooks(&self) -> (Vec<f32>, usize);
}

/// A running encoder: mono samples in, codes out. How samples are pushed never changes a code.
pub trait EncodeStream {
    /// Takes samples and returns the codes of the frames that are finished, row-major `[frames, levels]`.
    fn push(&mut self, mono: &[f32]) -> Vec<u16>;

    /// Encodes what is left; a last frame that is not full is padded as [`Codec::encode`] does.
    fn finish(self: Box<Self>) -> Vec<u16>;
}

/// A running decoder: token frames in, samples out. How frames are pushed never changes a sample.
pub trait DecodeStream {
    /// Takes the codes of one frame and returns the samples that are finished.
    ///
    /// # Panics
    /// When the frame has fewer codes than the levels to decode.
    fn push(&mut self, codes: &[u16]) -> Vec<f32>;

    /// Decodes what is left.
    fn finish(self: Box<Self>) -> Vec<f32>;
}

/// Why a codec could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// A house codec.
    #[error(transparent)]
    House(#[from] HouseError),
    /// A DAC.
    #[error(transparent)]
    Dac(#[from] DacError),
    /// An EnCodec.
    #[error(transparent)]
    Encodec(#[from] EncodecError),
}

/// What `config.json` says it describes; house codecs say nothing.
#[derive(Deserialize)]
struct Kind {
    model_type: Option<String>,
}

/// Opens the folder of a house codec, of a DAC or EnCodec as Hugging Face has it, or the original weights of a DAC.
pub fn open(path: &Path) -> Result<Box<dyn StreamCodec>, CodecError> {
    let text = std::fs::read(path.join("config.json")).unwrap_or_default();
    let kind = serde_json::from_slice::<Kind>(&text).ok().and_then(|kind| kind.model_type);
    Ok(match kind.as_deref() {
        Some("dac") => Box::new(Dac::load(path)?),
        Some("encodec") => Box::new(Encodec::load(path)?),
        _ if path.is_file() => Box::new(Dac::load(path)?),
        _ => Box::new(HouseCodec::load(path)?),
    })
}

/// All tokens of some samples.
fn encode_by_stream(codec: &dyn StreamCodec, mono: &[f32]) -> CodecTokens {
    let mut stream = codec.encoder();
    let mut codes = stream.push(mono);
    codes.extend(stream.finish());
    let frames: Vec<&[u16]> = codes.chunks_exact(codec.spec().levels).collect();
    CodecTokens::from_frames(codec.spec().clone(), &frames).expect("codes are rows of the codebooks")
}

/// All samples of a stream.
fn decode_by_stream(mut stream: Box<dyn DecodeStream + '_>, tokens: &CodecTokens) -> Vec<f32> {
    let mut samples = Vec::with_capacity(tokens.frames * tokens.spec.hop as usize);
    for t in 0..tokens.frames {
        samples.extend(stream.push(&tokens.frame(t)));
    }
    samples.extend(stream.finish());
    samples
}

/// The place of the largest value; the first of equals.
fn first_largest(scores: &[f32]) -> u16 {
    let mut best = 0;
    for (place, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = place;
        }
    }
    best as u16
}
