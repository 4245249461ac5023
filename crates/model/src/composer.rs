//! The first half of a model: a sentence becomes frames of codes. The second half, a codec, makes sound of them.

use crate::generate::LanguageModel;
use crate::sampler::{Sampling, SamplingError};
use crate::text::TextEncoder;
use crate::tokens::CodecSpec;

/// Writes codes for a text.
pub trait Composer: Send + Sync {
    /// The codec whose tokens it writes, with as many levels as it writes.
    fn tokens(&self) -> CodecSpec;

    /// Settings that sound best with it.
    fn sampling(&self) -> Sampling;

    /// Begins a piece. The empty prompt leaves the text out. Same prompt, settings and seed, same frames.
    ///
    /// # Errors
    /// [`SamplingError`] for a setting out of range.
    fn compose(&self, prompt: &str, sampling: &Sampling, seed: u64) -> Result<Composition, SamplingError>;
}

/// A piece being written.
pub struct Composition {
    /// Beats a minute that it is played to; `None` without a beat or for a model without a clock.
    pub tempo: Option<f32>,
    /// States of the text as it was read, `[tokens, width]`; `None` without a text, or where nobody else may read them.
    pub text: Option<Vec<f32>>,
    /// Frames without end, each one code a level.
    pub frames: Box<dyn Iterator<Item = Vec<u16>> + Send>,
}

/// A language model of our own with the text encoder whose states it reads.
pub struct PromptedLm {
    language: LanguageModel,
    text: Box<dyn TextEncoder>,
}

/// The text encoder is not the one that the language model was trained with.
#[derive(Debug, thiserror::Error)]
#[error(
    "the language model reads text states of width {expected}, those of this text encoder have {found}; give the one that it was trained with"
)]
pub struct OtherTextEncoder {
    /// Of the language model.
    pub expected: usize,
    /// Of the encoder.
    pub found: usize,
}

impl PromptedLm {
    /// From its parts.
    ///
    /// # Errors
    /// [`OtherTextEncoder`] if the encoder's states have another width than the model reads.
    pub fn new(language: LanguageModel, text: Box<dyn TextEncoder>) -> Result<Self, OtherTextEncoder> {
        let (expected, found) = (language.file.model.text_width, text.width());
        if expected == found { Ok(Self { language, text }) } else { Err(OtherTextEncoder { expected, found }) }
    }
}

impl Composer for PromptedLm {
    fn tokens(&self) -> CodecSpec {
        CodecSpec { levels: self.language.file.model.codebooks, ..self.language.file.codec.clone() }
    }

    fn sampling(&self) -> Sampling {
        self.language.file.sampling.clone()
    }

    fn compose(&self, prompt: &str, sampling: &Sampling, seed: u64) -> Result<Composition, SamplingError> {
        let prompt = prompt.trim();
        let text = (!prompt.is_empty()).then(|| self.text.encode(&[prompt]).remove(0).states);
        let generator = self.language.generate(text.as_deref(), sampling, seed)?;
        Ok(Composition { tempo: generator.tempo(), text, frames: Box::new(generator) })
    }
}
