//! Bringing open music to this machine.

pub mod debian;
mod mix;
mod package;
pub mod scores;
mod table;

pub(crate) use package::sha256_of;
pub use table::{Row, Song, rows, songs};
