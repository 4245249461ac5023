//! Neural codecs: sound to tokens and back.

mod bands;
pub mod dac;
pub mod encodec;
mod floor;
mod flow;
mod house;
mod quantizer;
mod stream;

pub use bands::BandLayout;
pub use floor::FloorCodec;
pub use flow::{FlowConfig, FlowNetwork, LEVEL_CHOICES, level_choice};
pub use house::{Decoding, HouseCodec, HouseConfig, HouseError, with_context};
pub use quantizer::ResidualQuantizer;
pub use stream::HouseStream;

use crate::tokens::{CodecSpec, CodecTokens};

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
