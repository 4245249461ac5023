//! Judging: distances, structure, text agreement, copying, and the report that shows them.
//!
//! Every figure stands beside its floors (what needs no learning) and its ceiling (real music through the codec).
//! Distances over musicnn are our own proxies, not published metrics.

pub mod clip_set;
pub mod codec_report;
pub mod copying;
pub mod error;
pub mod files;
pub mod floors;
pub mod frechet;
pub mod generation;
pub mod judge;
pub mod kl;
pub mod prompts;
pub mod report;
pub mod resources;
pub mod rows;
pub mod seams;
pub mod spectrogram;
pub mod structure;
pub mod tags;

pub use clip_set::ClipSet;
pub use error::EvalError;
pub use judge::{Judge, Listening, MusicnnJudge};
pub use report::Report;
pub use rows::Rows;
pub use spectrogram::{spectrogram_bytes, spectrogram_png};
