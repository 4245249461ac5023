//! Corpus: a folder of music becomes captioned token shards.
//!
//! Music (fetched, added, rendered) -> [`manifest`] rows -> segments, captions, augmented versions
//! -> codec tokens and text states in [`shard`] files -> batches for training. Every step writes its
//! results beside their final names and renames them, so a killed run leaves whole files only, and
//! the same input always gives the same bytes.

pub mod add;
pub mod atomic;
pub mod augment;
pub mod batch;
pub mod caption;
pub mod credits;
pub mod error;
pub mod fetch;
pub mod manifest;
pub mod prepare;
pub mod probe;
pub mod progress;
pub mod render;
pub mod shard;
pub mod walk;

pub use error::DataError;
pub use manifest::{Attribution, Caption, CaptionSource, Manifest, Split, Track};
pub use progress::{Progress, Report};
