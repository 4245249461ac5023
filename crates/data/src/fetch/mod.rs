//! Bringing open music to this machine.

pub mod debian;
mod mix;
mod package;
mod table;

pub use table::{Row, rows};
