//! Codec tokens and the delay pattern that staggers their codebooks for the language model.
//!
//! Codes are row-major `[K codebooks, T frames]`. The id `cardinality` is the one special token:
//! start of sequence and delay filler at once; it is never a code and is never sampled.
//! Law: `revert(apply(x)) == x` for every pattern. Source: MusicGen (arXiv 2306.05284), section 2.2.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// What a codec's tokens mean: enough to check that two parts of the system agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodecSpec {
    /// Name of the codec, e.g. `house`.
    pub name: String,
    /// Sample rate of the audio in Hz.
    pub sample_rate: u32,
    /// Samples per frame.
    pub hop: u32,
    /// Codebooks per frame.
    pub levels: usize,
    /// Codes per codebook.
    pub cardinality: usize,
}

impl std::fmt::Display for CodecSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, sample_rate, hop, levels, cardinality } = self;
        write!(f, "{name} ({sample_rate} Hz, {hop} samples a frame, {levels} levels of {cardinality} codes)")
    }
}

impl CodecSpec {
    /// Frames per second of audio.
    pub fn frame_rate(&self) -> f64 {
        f64::from(self.sample_rate) / f64::from(self.hop)
    }

    /// Frames that cover `seconds` of audio, rounded up; at least one.
    pub fn frames_for(&self, seconds: f64) -> usize {
        ((seconds * self.frame_rate() - 1e-9).ceil().max(1.0)) as usize
    }

    /// Seconds that `frames` last.
    pub fn seconds_of(&self, frames: usize) -> f64 {
        frames as f64 / self.frame_rate()
    }

    /// The id that stands for "no code here": start of sequence and delay filler.
    pub fn special(&self) -> u16 {
        self.cardinality as u16
    }
}

/// A rule of token tables that an input broke.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TokenError {
    /// The number of codes is no multiple of the number of codebooks.
    #[error("{found} codes do not fill {levels} codebooks of {frames} frames")]
    Shape {
        /// Codebooks asked for.
        levels: usize,
        /// Frames asked for.
        frames: usize,
        /// Codes given.
        found: usize,
    },
    /// A code outside the codebook.
    #[error("code {found} in codebook {level}, frame {frame} is not below the cardinality {cardinality}")]
    Code {
        /// Codebook of the code.
        level: usize,
        /// Frame of the code.
        frame: usize,
        /// The code itself.
        found: u16,
        /// Codes per codebook.
        cardinality: usize,
    },
    /// More codebooks wanted than there are.
    #[error("{wanted} codebooks wanted, the tokens have {found}")]
    Levels {
        /// Codebooks wanted.
        wanted: usize,
        /// Codebooks present.
        found: usize,
    },
}

/// Codes of one clip together with the codec they belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodecTokens {
    /// The codec that made the codes (its `levels` equals the rows of `codes`).
    pub spec: CodecSpec,
    /// Codes, row-major `[K, T]`.
    pub codes: Vec<u16>,
    /// Frames T.
    pub frames: usize,
}

impl CodecTokens {
    /// Wraps row-major `[K, T]` codes. Errors when they do not fill the table or lie outside the codebook.
    pub fn new(spec: CodecSpec, codes: Vec<u16>, frames: usize) -> Result<Self, TokenError> {
        if codes.len() != spec.levels * frames {
            return Err(TokenError::Shape { levels: spec.levels, frames, found: codes.len() });
        }
        if let Some(at) = codes.iter().position(|&code| usize::from(code) >= spec.cardinality) {
            return Err(TokenError::Code {
                level: at / frames,
                frame: at % frames,
                found: codes[at],
                cardinality: spec.cardinality,
            });
        }
        Ok(Self { spec, codes, frames })
    }

    /// Collects frames of K codes each, as the generator yields them.
    pub fn from_frames<F: AsRef<[u16]>>(spec: CodecSpec, frames: &[F]) -> Result<Self, TokenError> {
        let mut codes = vec![0; spec.levels * frames.len()];
        for (t, frame) in frames.iter().enumerate() {
            let frame = frame.as_ref();
            if frame.len() != spec.levels {
                return Err(TokenError::Shape { levels: spec.levels, frames: 1, found: frame.len() });
            }
            for (k, &code) in frame.iter().enumerate() {
                codes[k * frames.len() + t] = code;
            }
        }
        Self::new(spec, codes, frames.len())
    }

    /// Codes of one codebook over time.
    pub fn row(&self, level: usize) -> &[u16] {
        &self.codes[level * self.frames..(level + 1) * self.frames]
    }

    /// The K codes of one frame.
    pub fn frame(&self, t: usize) -> Vec<u16> {
        (0..self.spec.levels).map(|k| self.codes[k * self.frames + t]).collect()
    }

    /// The same clip with only its first `levels` codebooks.
    pub fn first_levels(&self, levels: usize) -> Result<Self, TokenError> {
        if levels == 0 || levels > self.spec.levels {
            return Err(TokenError::Levels { wanted: levels, found: self.spec.levels });
        }
        let spec = CodecSpec { levels, ..self.spec.clone() };
        Ok(Self { spec, codes: self.codes[..levels * self.frames].to_vec(), frames: self.frames })
    }
}

/// How many columns each codebook lags behind the first: data, not code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DelayPattern {
    delays: Vec<usize>,
}

impl DelayPattern {
    /// One delay per codebook, in columns.
    pub fn new(delays: Vec<usize>) -> Self {
        Self { delays }
    }

    /// Codebook k lags by k columns.
    pub fn staircase(codebooks: usize) -> Self {
        Self::new((0..codebooks).collect())
    }

    /// Codebooks K.
    pub fn codebooks(&self) -> usize {
        self.delays.len()
    }

    /// Delay of one codebook in columns.
    pub fn delay(&self, codebook: usize) -> usize {
        self.delays[codebook]
    }

    /// The longest delay: columns beyond the number of frames.
    pub fn longest(&self) -> usize {
        self.delays.iter().copied().max().unwrap_or(0)
    }

    /// Columns of the staggered table for `frames` frames.
    pub fn columns(&self, frames: usize) -> usize {
        frames + self.longest()
    }

    /// The frame that the last of the latest columns completes; `columns` are as many as the longest delay and one more.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn frame(&self, columns: &VecDeque<Vec<u16>>) -> Vec<u16> {
        self.delays.iter().enumerate().map(|(k, &delay)| columns[delay][k]).collect()
    }

    /// Whether codebook k holds a code (and not the filler) in `column` when there are `frames` frames.
    pub fn holds_code(&self, codebook: usize, column: usize, frames: usize) -> bool {
        column >= self.delays[codebook] && column - self.delays[codebook] < frames
    }

    /// Staggers row-major `[K, T]` into `[K, T + longest]`; places without a code hold `special`.
    ///
    /// # Panics
    /// When `codes` is not `[K, frames]`.
    pub fn apply(&self, codes: &[u16], frames: usize, special: u16) -> Vec<u16> {
        assert_eq!(codes.len(), self.codebooks() * frames, "codes must be [K, T]");
        let columns = self.columns(frames);
        let mut out = vec![special; self.codebooks() * columns];
        for (k, &delay) in self.delays.iter().enumerate() {
            out[k * columns + delay..k * columns + delay + frames]
                .copy_from_slice(&codes[k * frames..(k + 1) * frames]);
        }
        out
    }

    /// The exact inverse of [`DelayPattern::apply`]: `[K, columns]` back to `[K, columns - longest]`.
    ///
    /// # Panics
    /// When `delayed` is not `[K, columns]` with at least `longest` columns.
    pub fn revert(&self, delayed: &[u16], columns: usize) -> Vec<u16> {
        assert_eq!(delayed.len(), self.codebooks() * columns, "delayed must be [K, columns]");
        let frames = columns.checked_sub(self.longest()).expect("at least `longest` columns");
        let mut out = Vec::with_capacity(self.codebooks() * frames);
        for (k, &delay) in self.delays.iter().enumerate() {
            out.extend_from_slice(&delayed[k * columns + delay..k * columns + delay + frames]);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(levels: usize) -> CodecSpec {
        CodecSpec { name: "house".into(), sample_rate: 44_100, hop: 2048, levels, cardinality: 1024 }
    }

    proptest! {
        #[test]
        fn revert_undoes_apply(
            delays in prop::collection::vec(0usize..7, 1..6),
            frames in 0usize..40,
            seed in any::<u64>(),
        ) {
            let codes: Vec<u16> = (0..delays.len() * frames)
                .map(|i| ((seed.wrapping_mul(i as u64 + 1) >> 20) % 1024) as u16)
                .collect();
            let pattern = DelayPattern::new(delays);
            let delayed = pattern.apply(&codes, frames, 1024);
            let columns = pattern.columns(frames);
            prop_assert_eq!(pattern.revert(&delayed, columns), codes);
            for k in 0..pattern.codebooks() {
                for column in 0..columns {
                    prop_assert_eq!(
                        delayed[k * columns + column] != 1024,
                        pattern.holds_code(k, column, frames)
                    );
                }
            }
        }
    }

    #[test]
    fn frames_and_rows_agree() {
        let tokens = CodecTokens::from_frames(spec(2), &[[1, 2], [3, 4], [5, 6]]).unwrap();
        assert_eq!(tokens.codes, [1, 3, 5, 2, 4, 6]);
        assert_eq!(tokens.row(1), [2, 4, 6]);
        assert_eq!(tokens.frame(2), [5, 6]);
        assert_eq!(tokens.first_levels(1).unwrap().codes, [1, 3, 5]);
        assert!(matches!(tokens.first_levels(3), Err(TokenError::Levels { wanted: 3, found: 2 })));
    }

    #[test]
    fn a_special_is_no_code() {
        let error = CodecTokens::new(spec(1), vec![3, 1024], 2).unwrap_err();
        assert_eq!(error, TokenError::Code { level: 0, frame: 1, found: 1024, cardinality: 1024 });
    }

    #[test]
    fn thirty_seconds_are_646_frames() {
        assert_eq!(spec(8).frames_for(30.0), 646);
    }
}
