//! Neural codecs: sound to tokens and back.

mod bands;
pub mod dac;
pub mod encodec;
mod floor;
mod flow;
mod house;
mod quantizer;
mod stream;
mod token_file;
pub(crate) mod windowed;

pub use bands::BandLayout;
pub use floor::FloorCodec;
pub use flow::{FlowNetwork, LEVEL_CHOICES, level_choice};
pub use house::{Decoding, HouseCodec, HouseConfig, HouseError, with_context};
pub use quantizer::ResidualQuantizer;
pub use stream::HouseStream;
pub use token_file::TokenFile;

use std::path::Path;

use crate::clock::Metronome;
use crate::musicgen::MusicGen;
use crate::published::model_type;
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

    /// The codec as a second stage sees it, if one can paint its levels.
    fn refinable(&self) -> Option<&dyn Refinable> {
        None
    }
}

/// A codec whose levels beyond the first a second stage can paint: the first level is the outline, what the others add to it
/// is the detail.
pub trait Refinable: StreamCodec {
    /// Values of a frame's outline.
    fn outline_width(&self) -> usize;

    /// Values of a frame's detail.
    fn detail_width(&self) -> usize;

    /// The outline of a first-level code.
    ///
    /// # Panics
    /// If it is no code of the codec.
    fn outline(&self, code: u16) -> Vec<f32>;

    /// The detail of a frame, from one code a level. Of fewer codes it is what is known so far: values that they say nothing about
    /// are missing at its end.
    ///
    /// # Panics
    /// If there is no code, or one is none of the codec.
    fn detail(&self, codes: &[u16]) -> Vec<f32>;

    /// A running decoder of first-level codes with painted detail. What it draws itself, if anything, comes back with every
    /// beat of the metronome.
    fn painted(&self, seed: u64, metronome: &Metronome) -> Box<dyn PaintStream + '_>;
}

/// Stages of a decoder whose windows change what is heard, and the frames where windows of each begin.
pub type Windows = Vec<(&'static str, Vec<usize>)>;

/// A running decoder of outlines and details.
pub trait PaintStream {
    /// As [`DecodeStream::opening`].
    fn opening(&self) -> usize;

    /// As [`DecodeStream::windows`].
    fn windows(&self, _frames: usize) -> Windows {
        Vec::new()
    }

    /// Takes a frame's first code and its detail, and returns the samples that are finished.
    fn push(&mut self, code: u16, detail: &[f32]) -> Vec<f32>;

    /// Decodes what is left.
    fn finish(self: Box<Self>) -> Vec<f32>;
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

    /// Frames that it takes before it sets to work on the first samples.
    fn opening(&self) -> usize {
        1
    }

    /// Where its windows begin in a clip of so many frames, for those stages where there may be seams.
    fn windows(&self, _frames: usize) -> Windows {
        Vec::new()
    }

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

/// Opens the folder of a house codec, of a DAC or EnCodec as Hugging Face has it, or of a MusicGen, which has an EnCodec in it,
/// or the original weights of a DAC.
pub fn open(path: &Path) -> Result<Box<dyn StreamCodec>, CodecError> {
    Ok(match model_type(path).as_deref() {
        Some("dac") => Box::new(Dac::load(path)?),
        Some("encodec") => Box::new(Encodec::load(path)?),
        Some("musicgen") => Box::new(MusicGen::load_codec(path)?),
        _ if path.is_file() => Box::new(Dac::load(path)?),
        _ => Box::new(HouseCodec::load(path)?),
    })
}

/// Seconds of sound that a codec is recognised by.
const FINGERPRINT_SECONDS: usize = 4;

/// A hash of what a codec's tokens mean, in hexadecimal: its codebooks and its tokens for a fixed sound. The decoder may be
/// trained further without making tokens useless.
pub fn fingerprint(codec: &dyn StreamCodec) -> String {
    let rate = codec.spec().sample_rate as usize;
    let mut state = 1_u32;
    let sound: Vec<f32> = (0..rate * FINGERPRINT_SECONDS)
        .map(|index| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let noise = (state >> 8) as f32 / (1 << 24) as f32 - 0.5;
            let seconds = index as f32 / rate as f32;
            // A rising tone over noise that comes and goes.
            let tone = (seconds * (200.0 + 300.0 * seconds) * std::f32::consts::TAU).sin();
            0.3 * tone + 0.4 * noise * (seconds * 3.0).fract()
        })
        .collect();
    let mut hasher = blake3::Hasher::new();
    hasher.update(format!("{:?}", codec.spec()).as_bytes());
    hasher.update(bytemuck::cast_slice(&codec.codebooks().0));
    hasher.update(bytemuck::cast_slice(&codec.encode(&sound).codes));
    hasher.finalize().to_hex().to_string()
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
pub(crate) fn decode_by_stream(mut stream: Box<dyn DecodeStream + '_>, tokens: &CodecTokens) -> Vec<f32> {
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
