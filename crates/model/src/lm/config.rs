//! Shapes of the language model and its fresh parameters.

use serde::{Deserialize, Serialize};

use crate::backbone::{BackboneKind, ChannelMixer, Part, SsmKind, StackConfig};
use crate::clock::{self, CYCLE_BEATS};
use crate::parameters::{Initialiser, Parameters, Role};
use crate::ssm::Mamba2Config;
use crate::tokens::DelayPattern;

/// How hidden states become logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Head {
    /// A table of its own per codebook.
    Free,
    /// The input embedding, after a learned square projection per codebook.
    Tied,
    /// A table of rank d_model / 4 per codebook.
    Factored,
    /// As in SSM-TTM's checkpoints: a table `[cardinality + 1, d_model]` per codebook without bias, of which the special
    /// token's row is never used.
    Published,
}

/// How the stack knows where in the sequence it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// A state-space layer needs no telling.
    #[default]
    None,
    /// Sinusoids added to the input, counted from the first text token (prefix) or the first column (cross).
    Sinusoidal,
}

/// Everything that decides the shapes of the model. Unknown keys are errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LmConfig {
    /// Codebooks modelled, counted from the codec's first (kappa).
    pub codebooks: usize,
    /// Delay of each codebook in columns; one entry per codebook.
    pub delays: Vec<usize>,
    /// Codes per codebook.
    pub cardinality: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Blocks.
    pub layers: usize,
    /// Which sublayers a block has.
    #[serde(default)]
    pub backbone: BackboneKind,
    /// The state-space layer.
    #[serde(default)]
    pub ssm: SsmKind,
    /// State entries per channel of a state-space layer.
    #[serde(default = "one_hundred_and_twenty_eight")]
    pub d_state: usize,
    /// Channels per head of a Mamba-2 layer.
    #[serde(default = "sixty_four")]
    pub head_dim: usize,
    /// Groups of heads of a Mamba-2 layer that share B and C.
    #[serde(default = "one")]
    pub groups: usize,
    /// Inner width of a state-space layer as a multiple of `d_model`.
    #[serde(default = "two")]
    pub expand: usize,
    /// Frames per chunk of the scan; changes speed, never results.
    #[serde(default = "sixty_four")]
    pub chunk: usize,
    /// Channels per attention head.
    #[serde(default = "sixty_four")]
    pub attention_head_dim: usize,
    /// The layer that mixes channels.
    #[serde(default)]
    pub channel_mixer: ChannelMixer,
    /// Width of the feed-forward layers as a multiple of `d_model`.
    #[serde(default = "two")]
    pub ff_multiple: usize,
    /// Blocks of channels of the EinFFT layers.
    #[serde(default = "four")]
    pub fft_blocks: usize,
    /// How the stack knows where it is.
    #[serde(default)]
    pub positions: Positions,
    /// An RMSNorm after the last block.
    #[serde(default = "yes")]
    pub final_norm: bool,
    /// Width of the text encoder's states.
    pub text_width: usize,
    /// Learned tokens that stand for "no caption"; with 0 it is one token of zero text states.
    #[serde(default = "one")]
    pub null_tokens: usize,
    /// How hidden states become logits.
    pub head: Head,
    /// Width of the codec's centroid vectors used by embeddings and heads; 0 uses none.
    #[serde(default)]
    pub codec_width: usize,
    /// A learned gate per codebook that raises the logit of the code just heard.
    #[serde(default)]
    pub same_again: bool,
    /// The model hears the beat clock ([`crate::clock`]) and draws a tempo from the text.
    #[serde(default)]
    pub beat_clock: bool,
    /// Lags in beats of the clock at which the model hears what it played: their codes are shown to every frame, and a
    /// learned gate per codebook and lag raises their logits. Music repeats; a small state forgets how it went.
    #[serde(default)]
    pub echo_beats: Vec<u16>,
    /// Every frame is told the mean of the text prefix, so that long clips do not forget what they are about.
    #[serde(default)]
    pub text_in_every_frame: bool,
}

fn one() -> usize {
    1
}
fn two() -> usize {
    2
}
fn four() -> usize {
    4
}
fn one_hundred_and_twenty_eight() -> usize {
    128
}
fn yes() -> bool {
    true
}
fn sixty_four() -> usize {
    64
}

/// Largest size of anything: codes and the special token must fit 16 bits, and products must not overflow.
const MOST: usize = 65_535;

/// A rule of [`LmConfig`] that was broken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LmConfigError {
    /// A size is zero.
    #[error("model.{0} must be at least 1")]
    Zero(&'static str),
    /// A size does not divide the one that it cuts up.
    #[error("model.{name} = {found} must divide {what} = {whole}")]
    Divide {
        /// Key.
        name: &'static str,
        /// Value found.
        found: usize,
        /// What is cut up.
        what: &'static str,
        /// Its size.
        whole: usize,
    },
    /// The number of delays is not the number of codebooks.
    #[error("model.delays has {found} entries, model.codebooks is {expected}")]
    Delays {
        /// Codebooks.
        expected: usize,
        /// Delays.
        found: usize,
    },
    /// Echoes need beats to count.
    #[error("model.echo_beats needs model.beat_clock = true")]
    EchoWithoutClock,
    /// A lag that the clock's cycle does not hold.
    #[error("model.echo_beats has {found}; give 1 to 15 beats")]
    EchoBeats {
        /// Lag in beats.
        found: u16,
    },
    /// A size is out of all proportion.
    #[error("model.{name} = {found} must be at most 65535")]
    Large {
        /// Key.
        name: &'static str,
        /// Value found.
        found: usize,
    },
    /// Vectors were given that the configuration does not ask for, or the other way round.
    #[error("model.codec_width = {codec_width} needs {expected} centroid values, {found} were given")]
    CodecVectors {
        /// Width asked for.
        codec_width: usize,
        /// Values needed: codebooks * cardinality * codec_width.
        expected: usize,
        /// Values given.
        found: usize,
    },
}

impl LmConfig {
    /// Checks the rules that types cannot.
    pub fn validate(&self) -> Result<(), LmConfigError> {
        let sizes = [
            ("codebooks", self.codebooks),
            ("cardinality", self.cardinality),
            ("d_model", self.d_model),
            ("layers", self.layers),
            ("d_state", self.d_state),
            ("head_dim", self.head_dim),
            ("expand", self.expand),
            ("chunk", self.chunk),
            ("ff_multiple", self.ff_multiple),
            ("text_width", self.text_width),
            ("groups", self.groups),
            ("attention_head_dim", self.attention_head_dim),
            ("fft_blocks", self.fft_blocks),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(LmConfigError::Zero(name));
        }
        let inner = self.expand.saturating_mul(self.d_model);
        let wide = self.ff_multiple.saturating_mul(self.d_model);
        let products = [
            ("codec_width", self.codec_width),
            ("null_tokens", self.null_tokens),
            ("expand * d_model", inner),
            ("ff_multiple * d_model", wide),
        ];
        let sizes = sizes.into_iter().chain(products);
        if let Some((name, found)) = sizes.into_iter().find(|(_, size)| *size > MOST) {
            return Err(LmConfigError::Large { name, found });
        }
        let parts = self.backbone.sublayers();
        let (attends, mixes) = (parts.iter().any(|p| p.attends()), parts.contains(&Part::ChannelMixer));
        let divisions = [
            (self.backbone.has_ssm(), "head_dim", self.head_dim, "expand * d_model", inner),
            (self.backbone.has_ssm(), "groups", self.groups, "expand * d_model / head_dim", inner / self.head_dim),
            (attends, "attention_head_dim", self.attention_head_dim, "d_model", self.d_model),
            (
                mixes && self.channel_mixer == ChannelMixer::EinFft,
                "fft_blocks",
                self.fft_blocks,
                "d_model",
                self.d_model,
            ),
            (self.positions == Positions::Sinusoidal, "positions (pairs of channels)", 2, "d_model", self.d_model),
        ];
        for (used, name, found, what, whole) in divisions {
            if used && !whole.is_multiple_of(found) {
                return Err(LmConfigError::Divide { name, found, what, whole });
            }
        }
        if !self.echo_beats.is_empty() && !self.beat_clock {
            return Err(LmConfigError::EchoWithoutClock);
        }
        if let Some(&beats) = self.echo_beats.iter().find(|beats| !(1..CYCLE_BEATS).contains(*beats)) {
            return Err(LmConfigError::EchoBeats { found: beats });
        }
        if self.delays.len() != self.codebooks {
            return Err(LmConfigError::Delays { expected: self.codebooks, found: self.delays.len() });
        }
        Ok(())
    }

    /// Sizes of the Mamba-2 layers.
    fn mixer(&self) -> Mamba2Config {
        Mamba2Config {
            d_model: self.d_model,
            d_state: self.d_state,
            expand: self.expand,
            head_dim: self.head_dim,
            groups: self.groups,
            chunk: self.chunk,
        }
    }

    /// Sizes of the stack.
    pub fn stack(&self) -> StackConfig {
        StackConfig {
            kind: self.backbone,
            layers: self.layers,
            ssm: self.ssm,
            mixer: self.mixer(),
            attention_head_dim: self.attention_head_dim,
            channel_mixer: self.channel_mixer,
            ff_width: self.ff_multiple * self.d_model,
            fft_blocks: self.fft_blocks,
            final_norm: self.final_norm,
        }
    }

    /// The delay pattern.
    pub fn pattern(&self) -> DelayPattern {
        DelayPattern::new(self.delays.clone())
    }

    /// The special token: start of sequence and delay filler.
    pub fn special(&self) -> u16 {
        self.cardinality as u16
    }

    fn head_rank(&self) -> usize {
        (self.d_model / 4).max(1)
    }

    /// Fresh parameters. `codec_vectors` is row-major `[codebooks, cardinality, codec_width]`, empty when
    /// `codec_width` is 0; each codebook is centred and scaled to unit mean square length.
    pub fn init(&self, codec_vectors: &[f32], draw: &mut Initialiser) -> Result<Parameters, LmConfigError> {
        self.validate()?;
        let expected =
            [self.cardinality, self.codec_width].iter().fold(self.codebooks, |n, &size| n.saturating_mul(size));
        if codec_vectors.len() != expected {
            return Err(LmConfigError::CodecVectors {
                codec_width: self.codec_width,
                expected,
                found: codec_vectors.len(),
            });
        }
        Ok(self.list(codec_vectors, draw))
    }

    /// The list without values, for a file to fill.
    pub fn blank(&self) -> Result<Parameters, LmConfigError> {
        self.validate()?;
        Ok(self.list(&[], &mut Initialiser::blank()))
    }

    fn list(&self, codec_vectors: &[f32], draw: &mut Initialiser) -> Parameters {
        let (width, codes) = (self.d_model, self.cardinality);
        let mut all = Parameters::new();
        all.push(
            "condition_linear.weight",
            &[width, self.text_width],
            Role::Decayed,
            draw.fan_in(width * self.text_width, self.text_width),
        );
        all.push("condition_linear.bias", &[width], Role::Free, vec![0.0; width]);
        all.push("condition_norm.weight", &[width], Role::Free, vec![1.0; width]);
        all.push("condition_norm.bias", &[width], Role::Free, vec![0.0; width]);
        if self.null_tokens > 0 {
            let null = draw.normal(self.null_tokens * width, 1.0);
            all.push("null_prefix", &[self.null_tokens, width], Role::Free, null);
        }
        // Zero: a model that starts from one without them is at first the same model.
        if self.text_in_every_frame {
            all.push("told.weight", &[width, width], Role::Decayed, draw.zeros(width * width));
        }
        if self.beat_clock {
            let (hands, classes) = (clock::FEATURES, clock::TEMPO_CLASSES);
            for lag in 0..self.echo_beats.len() {
                all.push(format!("echo.{lag}.weight"), &[width, width], Role::Decayed, draw.zeros(width * width));
            }
            all.push("clock.weight", &[width, hands], Role::Decayed, draw.zeros(width * hands));
            all.push("tempo_head.weight", &[classes, width], Role::Decayed, draw.zeros(classes * width));
            all.push("tempo_head.bias", &[classes], Role::Free, vec![0.0; classes]);
        }
        let deviation = if self.head == Head::Published { 1.0 } else { 0.5 / (width as f32).sqrt() };
        for k in 0..self.codebooks {
            all.push(
                format!("embedding.{k}.weight"),
                &[codes + 1, width],
                Role::Decayed,
                draw.normal((codes + 1) * width, deviation),
            );
            match self.head {
                Head::Free => all.push(
                    format!("lm_head.{k}.weight"),
                    &[codes, width],
                    Role::Decayed,
                    draw.normal(codes * width, deviation),
                ),
                Head::Published => all.push(
                    format!("lm_head.{k}.weight"),
                    &[codes + 1, width],
                    Role::Decayed,
                    draw.fan_in((codes + 1) * width, width),
                ),
                Head::Tied => {
                    // Decay would pull it to zero, not to the identity.
                    all.push(format!("lm_head.{k}.projection"), &[width, width], Role::Free, draw.identity(width));
                }
                Head::Factored => {
                    let rank = self.head_rank();
                    all.push(
                        format!("lm_head.{k}.codes"),
                        &[codes, rank],
                        Role::Decayed,
                        draw.normal(codes * rank, 0.5 / (rank as f32).sqrt()),
                    );
                    all.push(
                        format!("lm_head.{k}.directions"),
                        &[rank, width],
                        Role::Decayed,
                        draw.normal(rank * width, 1.0 / (width as f32).sqrt()),
                    );
                }
            }
            if self.head != Head::Published {
                all.push(format!("lm_head.{k}.bias"), &[codes], Role::Free, vec![0.0; codes]);
            }
            if self.codec_width > 0 {
                let size = codes.saturating_mul(self.codec_width);
                let vectors = match codec_vectors.is_empty() {
                    true => Vec::new(),
                    false => normalised(&codec_vectors[k * size..(k + 1) * size], self.codec_width),
                };
                all.push(format!("codec_vectors.{k}"), &[codes, self.codec_width], Role::Buffer, vectors);
                let map = &[self.codec_width, width];
                let count = self.codec_width * width;
                all.push(format!("codec_embedding.{k}"), map, Role::Decayed, draw.normal(count, deviation));
                all.push(format!("codec_head.{k}"), map, Role::Decayed, draw.zeros(count));
            }
            let lags = self.echo_beats.len();
            if lags > 0 {
                all.push(format!("echo_gate.{k}.weight"), &[lags, width], Role::Free, vec![0.0; lags * width]);
                all.push(format!("echo_gate.{k}.bias"), &[lags], Role::Free, vec![0.0; lags]);
            }
            if self.same_again {
                all.push(format!("same_again.{k}.weight"), &[1, width], Role::Free, vec![0.0; width]);
                all.push(format!("same_again.{k}.bias"), &[1], Role::Free, vec![0.0]);
            }
        }
        self.stack().init(draw, &mut all);
        all
    }
}

/// Centres the rows and scales them to a mean square length of one.
fn normalised(vectors: &[f32], width: usize) -> Vec<f32> {
    let rows = vectors.len() / width;
    let mut mean = vec![0.0_f64; width];
    for row in vectors.chunks_exact(width) {
        row.iter().zip(&mut mean).for_each(|(&value, sum)| *sum += f64::from(value) / rows as f64);
    }
    let mut out: Vec<f32> =
        vectors.iter().enumerate().map(|(i, &value)| (f64::from(value) - mean[i % width]) as f32).collect();
    let square: f64 = out.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>() / rows as f64;
    let scale = if square > 0.0 { (1.0 / square.sqrt()) as f32 } else { 0.0 };
    out.iter_mut().for_each(|value| *value *= scale);
    out
}
