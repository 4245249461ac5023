//! Which sublayers a stack is made of, and its fresh parameters.

use serde::{Deserialize, Serialize};

use crate::parameters::{Initialiser, Parameters, Role};
use crate::ssm::{Mamba1Config, Mamba2Config};

use super::attention::{CrossAttention, SelfAttention};
use super::channel_mixer::{EinFft, FeedForward};

/// The stacks compared by SSM-TTM (arXiv 2601.14786, architecture figure), and its older prefix Transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackboneKind {
    /// Text before the tokens; block = state-space layer, state-space layer.
    PrefixMamba,
    /// Text before the tokens; block = state-space layer, channel mixer.
    #[default]
    PrefixSimba,
    /// Block = state-space layer, cross-attention to the text, channel mixer.
    CrossSimba,
    /// Block = self-attention, cross-attention to the text, channel mixer.
    CrossTransformer,
    /// Text before the tokens; block = self-attention, channel mixer.
    PrefixTransformer,
}

impl BackboneKind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::PrefixMamba, Self::PrefixSimba, Self::CrossSimba, Self::CrossTransformer, Self::PrefixTransformer];

    /// The sublayers of a block, in order.
    pub fn sublayers(self) -> &'static [Part] {
        match self {
            Self::PrefixMamba => &[Part::Mixer, Part::SecondMixer],
            Self::PrefixSimba => &[Part::Mixer, Part::ChannelMixer],
            Self::CrossSimba => &[Part::Mixer, Part::CrossAttention, Part::ChannelMixer],
            Self::CrossTransformer => &[Part::SelfAttention, Part::CrossAttention, Part::ChannelMixer],
            Self::PrefixTransformer => &[Part::SelfAttention, Part::ChannelMixer],
        }
    }

    /// The text enters by cross-attention; it does not stand before the tokens.
    pub fn is_cross(self) -> bool {
        self.sublayers().contains(&Part::CrossAttention)
    }

    /// Some sublayer is a state-space layer.
    pub fn has_ssm(self) -> bool {
        self.sublayers().contains(&Part::Mixer)
    }
}

/// A sublayer's place in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// State-space layer.
    Mixer,
    /// The second state-space layer of a block.
    SecondMixer,
    /// Causal self-attention.
    SelfAttention,
    /// Attention to the text.
    CrossAttention,
    /// Feed-forward layer, or what stands in its place.
    ChannelMixer,
}

impl Part {
    /// Name in parameter names, as in the published checkpoints where there is one.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mixer => "mamba",
            Self::SecondMixer => "mamba_2",
            Self::SelfAttention => "self_attention",
            Self::CrossAttention => "cross_attention",
            Self::ChannelMixer => "ff",
        }
    }

    /// It has queries, keys and values.
    pub fn attends(self) -> bool {
        matches!(self, Self::SelfAttention | Self::CrossAttention)
    }
}

/// The state-space layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SsmKind {
    /// Mamba-2 (arXiv 2405.21060).
    #[default]
    Mamba2,
    /// Mamba-1 (arXiv 2312.00752): a decay of its own for every channel and state entry.
    Mamba1,
}

/// The layer that mixes channels of one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChannelMixer {
    /// Linear, GELU, linear.
    #[default]
    FeedForward,
    /// SiMBA's EinFFT (arXiv 2403.15360), with its Fourier transform over blocks of channels only: it stays causal.
    EinFft,
}

/// Sizes of a stack.
#[derive(Debug, Clone, PartialEq)]
pub struct StackConfig {
    /// Which sublayers a block has.
    pub kind: BackboneKind,
    /// Blocks.
    pub layers: usize,
    /// The state-space layer.
    pub ssm: SsmKind,
    /// Sizes of the state-space layers; its `d_model` is the width of the residual stream.
    pub mixer: Mamba2Config,
    /// Channels per attention head.
    pub attention_head_dim: usize,
    /// The layer that mixes channels.
    pub channel_mixer: ChannelMixer,
    /// Inner width of a feed-forward layer.
    pub ff_width: usize,
    /// Blocks of channels of an EinFFT layer.
    pub fft_blocks: usize,
    /// An RMSNorm after the last block.
    pub final_norm: bool,
}

impl StackConfig {
    /// Width of the residual stream.
    pub fn width(&self) -> usize {
        self.mixer.d_model
    }

    /// Sizes of the state-space layers where they are Mamba-1.
    pub fn mamba1(&self) -> Mamba1Config {
        Mamba1Config { d_model: self.width(), d_state: self.mixer.d_state, expand: self.mixer.expand }
    }

    /// Adds fresh parameters. What ends in the residual stream is scaled by 1/sqrt(number of residual additions).
    pub fn init(&self, draw: &mut Initialiser, into: &mut Parameters) {
        let (width, parts) = (self.width(), self.kind.sublayers());
        let residuals = parts.len() * self.layers;
        for i in 0..self.layers {
            for part in parts {
                let name = format!("backbone.{i}.{}", part.name());
                into.push(format!("{name}.norm.weight"), &[width], Role::Free, vec![1.0; width]);
                match part {
                    Part::Mixer | Part::SecondMixer => {
                        let name = format!("{name}.mamba");
                        match self.ssm {
                            SsmKind::Mamba2 => self.mixer.init(&name, residuals, draw, into),
                            SsmKind::Mamba1 => self.mamba1().init(&name, residuals, draw, into),
                        }
                    }
                    Part::SelfAttention => SelfAttention::init(width, &name, residuals, draw, into),
                    Part::CrossAttention => CrossAttention::init(width, &name, residuals, draw, into),
                    Part::ChannelMixer => match self.channel_mixer {
                        ChannelMixer::FeedForward => {
                            FeedForward::init(width, self.ff_width, &name, residuals, draw, into)
                        }
                        ChannelMixer::EinFft => EinFft::init(width, self.fft_blocks, &name, draw, into),
                    },
                }
            }
        }
        if self.final_norm {
            into.push("final_norm.weight", &[width], Role::Free, vec![1.0; width]);
        }
    }
}
