//! Networks: codec, language model, text encoder, tagger.

pub mod backbone;
pub mod bundle;
pub mod checkpoint;
pub mod clock;
pub mod codec;
pub mod composer;
pub mod device;
pub mod diffusion;
pub mod generate;
pub mod listen;
pub mod lm;
pub mod musicgen;
mod noise;
pub mod ops;
pub mod parameters;
pub mod published;
pub mod random;
pub mod sampler;
pub mod ssm;
pub mod stepper;
mod strand;
pub mod text;
pub mod tokens;
pub mod weights;
