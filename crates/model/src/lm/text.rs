//! Captions of a batch as the language model reads them.

use super::LmConfig;

/// Captions of a batch, right-aligned: padding first, then the text (or the null tokens).
#[derive(Debug, Clone)]
pub struct TextBatch {
    pub(super) batch: usize,
    pub(super) length: usize,
    /// `[B, L, text_width]`, zero where there is no text.
    pub(super) states: Vec<f32>,
    /// `[B, L]`, 1 where a text token stands.
    pub(super) text: Vec<f32>,
    /// `[B, L, null_tokens]`, one-hot where a null token stands.
    pub(super) null: Vec<f32>,
}

impl TextBatch {
    /// One row-major `[tokens, text_width]` slice per clip; `None` or no tokens means "no caption".
    ///
    /// # Panics
    /// When a slice is no multiple of the text width.
    pub fn new(config: &LmConfig, captions: &[Option<&[f32]>]) -> Self {
        Self::padded(config, captions, 0)
    }

    /// The same with room for at least `length` text tokens; more room than needed never changes a result.
    pub fn padded(config: &LmConfig, captions: &[Option<&[f32]>], length: usize) -> Self {
        let (batch, width, nulls) = (captions.len(), config.text_width, config.null_tokens);
        let tokens = |caption: &Option<&[f32]>| match caption {
            Some(states) => {
                assert_eq!(states.len() % width, 0, "text states must be [tokens, {width}]");
                states.len() / width
            }
            None => 0,
        };
        let longest = captions.iter().map(tokens).max().unwrap_or(0);
        let length = longest.max(length).max(nulls).max(1);
        let mut states = vec![0.0; batch * length * width];
        let mut text = vec![0.0; batch * length];
        let mut null = vec![0.0; batch * length * nulls];
        for (b, caption) in captions.iter().enumerate() {
            match caption {
                Some(caption) if !caption.is_empty() => {
                    let end = (b + 1) * length;
                    let start = end - caption.len() / width;
                    states[start * width..end * width].copy_from_slice(caption);
                    text[start..end].fill(1.0);
                }
                // Without null tokens, "no caption" is a text of one token whose states are zero.
                _ if nulls == 0 => text[(b + 1) * length - 1] = 1.0,
                _ => {
                    for i in 0..nulls {
                        null[((b + 1) * length - nulls + i) * nulls + i] = 1.0;
                    }
                }
            }
        }
        Self { batch, length, states, text, null }
    }

    /// Where each clip's row begins when its first token stands at position 0: before it, by its padding.
    pub(super) fn first_positions(&self) -> Vec<i64> {
        self.padding().into_iter().map(|padding| -(padding as i64)).collect()
    }

    /// Places before the first token of each clip.
    pub(super) fn padding(&self) -> Vec<usize> {
        let nulls = self.null.len() / (self.batch * self.length);
        (0..self.batch)
            .map(|b| {
                let stands = |i: &usize| {
                    let at = b * self.length + i;
                    self.text[at] > 0.0 || self.null[at * nulls..(at + 1) * nulls].iter().any(|&v| v > 0.0)
                };
                (0..self.length).find(stands).unwrap_or(self.length)
            })
            .collect()
    }
}
