//! Text encoders: a sentence becomes one state a token, which conditions the language model. They are frozen;
//! their states are computed once and stored, never inside a training loop.

pub mod minilm;
pub mod t5;

use std::path::{Path, PathBuf};

pub use minilm::MiniLm;
pub use t5::T5;

use crate::musicgen::MusicGen;
use crate::published::{ConfigError, model_type};
use crate::weights::WeightsError;

/// Token states of one text.
#[derive(Debug, Clone, PartialEq)]
pub struct TextStates {
    /// Last-layer states of all tokens, those that open and close the text included; row-major `[L, width]`.
    pub states: Vec<f32>,
    /// Number of tokens L, at least 2.
    pub length: usize,
}

impl TextStates {
    /// Mean over the tokens, `[width]`: the embedding of the whole sentence.
    pub fn mean(&self) -> Vec<f32> {
        let width = self.states.len() / self.length.max(1);
        let mut mean = vec![0.0; width];
        for row in self.states.chunks_exact(width.max(1)) {
            for (sum, value) in mean.iter_mut().zip(row) {
                *sum += value;
            }
        }
        mean.iter_mut().for_each(|sum| *sum /= self.length as f32);
        mean
    }
}

/// A frozen network from text to token states.
pub trait TextEncoder: Send + Sync {
    /// Width of a token state.
    fn width(&self) -> usize;

    /// Most tokens a text can have; the rest of a longer one is not read.
    fn max_tokens(&self) -> usize;

    /// Name of the network, for people.
    fn name(&self) -> &'static str;

    /// Name and hash of the weights: stored beside states, and compared before states are used.
    fn identity(&self) -> &str;

    /// States of each text. A text's states do not depend on the others. The empty text is the null text.
    fn encode(&self, texts: &[&str]) -> Vec<TextStates>;
}

/// Opens the folder of a T5 or FLAN-T5 as Hugging Face has it, or of a MusicGen, which has a T5 in it, or of the sentence
/// encoder that comes with Mambo.
///
/// # Errors
/// [`TextError`], naming the file and what is wrong with it.
pub fn open(folder: &Path) -> Result<Box<dyn TextEncoder>, TextError> {
    Ok(match model_type(folder).as_deref() {
        Some("t5") => Box::new(T5::load(folder)?),
        Some("musicgen") => Box::new(MusicGen::load_text(folder)?),
        _ => Box::new(MiniLm::load(folder)?),
    })
}

/// Why a text encoder could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The weights do not fit.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The sizes.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The tokenizer cannot be read or is not of the expected kind.
    #[error("{path}: cannot use the tokenizer: {reason}; copy it again from the model folder", path = path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The tokenizer is not the one the weights were converted with.
    #[error("{path}: the weights belong to a tokenizer with SHA-256 {expected}, this one has {found}; copy both files from one place", path = path.display())]
    OtherTokenizer {
        /// The tokenizer.
        path: PathBuf,
        /// Hash that the weights name.
        expected: String,
        /// Hash of the file.
        found: String,
    },
}
