//! Networks that listen: taggers whose judgements become captions and evaluation figures.

pub mod musicnn;
pub mod tags;

pub use musicnn::{Musicnn, MusicnnOutput};
