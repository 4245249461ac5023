//! Learning: the training loops and what they share.
//!
//! A loop is one page read top to bottom ([`lm`]); optimiser, checkpoints and tracking are plain parts
//! that know nothing of the network they serve. All randomness is reseeded from (seed, step), so a killed
//! run continues exactly as if it had never stopped.

pub mod bigram;
pub mod budget;
pub mod checkpoint;
pub mod codec;
pub mod config;
pub mod diffusion;
pub mod error;
pub mod lm;
pub mod optim;
pub mod run;
pub mod sequence;
pub mod tensorboard;
pub mod track;

pub use error::TrainError;
