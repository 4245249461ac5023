//! Networks: codec, language model, text encoder, tagger.

pub mod backbone;
pub mod bundle;
pub mod codec;
pub mod device;
pub mod lm;
pub mod ops;
pub mod parameters;
pub mod random;
pub mod ssm;
pub mod tokens;
pub mod sampler;
pub mod generate;
pub mod stepper;
pub mod listen;
pub mod text;
pub mod weights;
