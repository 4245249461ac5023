//! Generative models that turn noise into data step by step: the house codec's decoder, and the second stage, which paints the
//! levels of a codec that a language model left out.

mod network;
mod refiner;
mod sampler;
mod schedule;
mod stream;

pub use network::{Conditions, Denoiser, DenoiserConfig};
pub use refiner::{Heard, Moments, REFINER_FOLDER, Refiner, RefinerConfig, RefinerError, RefinerSampling, Statistics};
pub use sampler::{Solver, sample};
pub use schedule::{Objective, Schedule};
pub use stream::{RefinedCodec, RefinerStream};
