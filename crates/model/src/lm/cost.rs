//! What a model costs, from its configuration alone: parameters, floating-point operations, memory.
//!
//! One multiply-add is two operations; only matrix products, convolutions and scans count, as is usual. A pass backwards
//! is twice a pass forwards. The formulas are those of the layers (Mamba-2: arXiv 2405.21060, section 6); the number of
//! parameters is that of the list that training uses.

use serde::Serialize;

use crate::backbone::{ChannelMixer, Part, SsmKind};
use crate::parameters::Role;

use super::{Head, LmConfig, LmConfigError};

const TAPS: usize = mambo_kernels::mamba2::TAPS;
/// Bytes of an f32.
const FLOAT: usize = 4;

/// Trained parameters by part of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct ParameterCounts {
    /// All of them.
    pub total: usize,
    /// State-space layers.
    pub state_space: usize,
    /// Self-attention.
    pub self_attention: usize,
    /// Attention to the text.
    pub cross_attention: usize,
    /// Feed-forward layers, or what stands in their place.
    pub channel_mixers: usize,
    /// Norms before sublayers and after the last.
    pub norms: usize,
    /// Tables of codes into the stack.
    pub embeddings: usize,
    /// Tables out of the stack.
    pub heads: usize,
    /// What reads text, and the null text.
    pub text: usize,
    /// Beat clock and echoes.
    pub clock: usize,
}

/// Floating-point operations of one place of the sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Flops {
    /// Everything together.
    pub total: u64,
    /// State-space layers.
    pub state_space: u64,
    /// Self-attention.
    pub self_attention: u64,
    /// Attention to the text.
    pub cross_attention: u64,
    /// Feed-forward layers, or what stands in their place.
    pub channel_mixers: u64,
    /// Tables out of the stack.
    pub heads: u64,
}

/// Bytes that training needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct TrainingMemory {
    /// Everything together.
    pub total: usize,
    /// Weights, the copy of them that a pass works on, gradients, and moments (and averages).
    pub parameters: usize,
    /// What the pass forwards keeps for the pass backwards.
    pub activations: usize,
    /// What the pass backwards holds at its widest place.
    pub backward: usize,
}

/// How a model is trained, as far as memory cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrainingShape {
    /// Clips in a pass.
    pub batch: usize,
    /// Columns of a clip.
    pub columns: usize,
    /// Text tokens of a clip.
    pub text: usize,
    /// Passes are added up before a step.
    pub accumulates: bool,
    /// A moving average of the weights is kept.
    pub averages: bool,
    /// Blocks are computed again in the pass backwards.
    pub checkpoints: bool,
}

impl LmConfig {
    /// Trained parameters by part.
    pub fn parameter_counts(&self) -> Result<ParameterCounts, LmConfigError> {
        let mut counts = ParameterCounts::default();
        for parameter in self.blank()?.list().iter().filter(|parameter| parameter.role != Role::Buffer) {
            let count = parameter.shape.iter().product::<usize>();
            counts.total += count;
            let name = parameter.name.as_str();
            let pieces: Vec<&str> = name.split('.').collect();
            let of = match (pieces[0], pieces.get(2).copied().unwrap_or_default()) {
                ("backbone", _) if pieces[3] == "norm" => &mut counts.norms,
                ("final_norm", _) => &mut counts.norms,
                ("backbone", "mamba" | "mamba_2") => &mut counts.state_space,
                ("backbone", "self_attention") => &mut counts.self_attention,
                ("backbone", "cross_attention") => &mut counts.cross_attention,
                ("backbone", _) => &mut counts.channel_mixers,
                ("embedding" | "codec_embedding", _) => &mut counts.embeddings,
                ("lm_head" | "codec_head" | "same_again", _) => &mut counts.heads,
                ("clock" | "tempo_head" | "echo" | "echo_gate", _) => &mut counts.clock,
                _ => &mut counts.text,
            };
            *of += count;
        }
        Ok(counts)
    }

    /// Operations of one place in a pass forwards over `places` of the sequence beside a text of `text` tokens: the mean
    /// over the sequence. The scan is counted in its chunked form, causal halves in full, self-attention by what its
    /// causal half needs.
    pub fn training_flops(&self, places: usize, text: usize) -> Flops {
        let scan = match self.ssm {
            SsmKind::Mamba1 => self.recurrence(),
            SsmKind::Mamba2 => self.chunked_scan(),
        };
        self.flops(text, (places as u64 / 2).max(1), scan)
    }

    /// Operations of one stream's column while decoding, with `places` before it: the scan as a recurrence.
    pub fn decoding_flops(&self, places: usize, text: usize) -> Flops {
        self.flops(text, places as u64, self.recurrence())
    }

    /// Decay, input and output of every state entry of every channel.
    fn recurrence(&self) -> u64 {
        6 * self.inner() * self.d_state as u64
    }

    fn inner(&self) -> u64 {
        (self.expand * self.d_model) as u64
    }

    /// Products inside a chunk, and of states with B and C.
    fn chunked_scan(&self) -> u64 {
        let (inner, state, chunk, groups) = (self.inner(), self.d_state as u64, self.chunk as u64, self.groups as u64);
        2 * chunk * state * groups + 2 * chunk * inner + 4 * state * inner
    }

    fn flops(&self, text: usize, seen: u64, scan: u64) -> Flops {
        let (width, layers, text) = (self.d_model as u64, self.layers as u64, text as u64);
        let (mixer, mamba1) = (self.stack().mixer, self.stack().mamba1());
        let (projections, convolution) = match self.ssm {
            SsmKind::Mamba1 => {
                let inner = mamba1.d_inner() as u64;
                let small = 2 * inner * (mamba1.selected() + mamba1.dt_rank()) as u64;
                (6 * width * inner + small, 2 * TAPS as u64 * inner)
            }
            SsmKind::Mamba2 => {
                let wide = (mixer.projected() + mixer.d_inner()) as u64;
                (2 * width * wide, 2 * (TAPS * mixer.conv_width()) as u64)
            }
        };
        let channel_mixer = match self.channel_mixer {
            ChannelMixer::FeedForward => 4 * width * self.ff_multiple as u64 * width,
            // Two complex layers of width/blocks squared a block, and two transforms over blocks.
            ChannelMixer::EinFft => 16 * width * width / self.fft_blocks as u64 + 8 * self.fft_blocks as u64 * width,
        };
        let head = match self.head {
            Head::Factored => 2 * (self.d_model / 4) as u64 * (width + self.cardinality as u64),
            _ => 2 * width * self.cardinality as u64,
        };
        let mut flops = Flops { heads: head * self.codebooks as u64, ..Flops::default() };
        for part in self.backbone.sublayers() {
            match part {
                Part::Mixer | Part::SecondMixer => flops.state_space += layers * (projections + convolution + scan),
                Part::SelfAttention => flops.self_attention += layers * (8 * width * width + 4 * width * seen),
                Part::CrossAttention => flops.cross_attention += layers * (4 * width * width + 4 * width * text),
                Part::ChannelMixer => flops.channel_mixers += layers * channel_mixer,
            }
        }
        flops.total =
            flops.state_space + flops.self_attention + flops.cross_attention + flops.channel_mixers + flops.heads;
        flops
    }

    /// Places of the sequence that the stack runs over for a clip.
    pub fn places(&self, columns: usize, text: usize) -> usize {
        if self.backbone.is_cross() { columns } else { columns + text }
    }

    /// Operations of training on one clip: forwards and backwards, text included.
    pub fn clip_flops(&self, columns: usize, text: usize) -> u64 {
        let (width, places) = (self.d_model as u64, self.places(columns, text));
        let stack = self.training_flops(places, text);
        let heads = stack.heads * columns as u64;
        let reading = 2 * (self.text_width * text) as u64 * width;
        // Keys and values of the text, once a clip.
        let keys = if self.backbone.is_cross() { 4 * width * width * (self.layers * text) as u64 } else { 0 };
        3 * ((stack.total - stack.heads) * places as u64 + heads + reading + keys)
    }

    /// Bytes of a stream's state with `places` frames decoded beside a text of `text` tokens.
    pub fn state_bytes(&self, places: usize, text: usize) -> usize {
        let (mixer, mamba1) = (self.stack().mixer.kernel(), self.stack().mamba1().kernel());
        let ssm = match self.ssm {
            SsmKind::Mamba1 => mamba1.conv_state_size() + mamba1.ssm_state_size(),
            SsmKind::Mamba2 => mixer.conv_state_size() + mixer.ssm_state_size(),
        };
        let of = |part: &Part| match part {
            Part::Mixer | Part::SecondMixer => ssm,
            Part::SelfAttention => 2 * self.d_model * self.places(places, text),
            Part::CrossAttention => 2 * self.d_model * text,
            Part::ChannelMixer => 0,
        };
        FLOAT * self.layers * self.backbone.sublayers().iter().map(of).sum::<usize>()
    }

    /// Bytes that training holds at its peak.
    pub fn training_memory(&self, shape: TrainingShape) -> Result<TrainingMemory, LmConfigError> {
        let count = self.parameter_counts()?.total;
        // Weights, bound copy, gradients, two moments.
        let copies = 5 + usize::from(shape.accumulates) + usize::from(shape.averages);
        let places = shape.batch * self.places(shape.columns, shape.text);
        let parts = self.backbone.sublayers();
        let block: usize = parts.iter().map(|part| self.kept_floats(*part)).sum();
        let logits = shape.batch * shape.columns * self.codebooks * self.cardinality;
        let kept = match shape.checkpoints {
            // What goes into every block, and one block's insides.
            true => places * (self.layers * self.d_model + block),
            false => places * self.layers * block,
        };
        // Widest gradient, its input's gradient, and what the operation works with.
        let widest = parts.iter().map(|part| self.widest_floats(*part)).max().unwrap_or(0);
        let memory = TrainingMemory {
            total: 0,
            parameters: FLOAT * count * copies,
            activations: FLOAT * (kept + logits),
            backward: FLOAT * (places * widest).max(logits),
        };
        Ok(TrainingMemory { total: memory.parameters + memory.activations + memory.backward, ..memory })
    }

    /// Floats a place that one sublayer keeps for its pass backwards: the residual stream before it, its norm, what its
    /// operations save, and its output before dropout.
    fn kept_floats(&self, part: Part) -> usize {
        let (width, mixer) = (self.d_model, self.stack().mixer);
        3 * width
            + match part {
                // Projection, x, selection, steps, states between chunks, gated output.
                Part::Mixer | Part::SecondMixer if self.ssm == SsmKind::Mamba1 => {
                    let (mamba1, kernel) = (self.stack().mamba1(), self.stack().mamba1().kernel());
                    5 * mamba1.d_inner() + mamba1.selected() + kernel.ssm_state_size() / kernel.chunk
                }
                // Projection, scan, states between chunks, gated output.
                Part::Mixer | Part::SecondMixer => {
                    mixer.projected() + 2 * mixer.d_inner() + mixer.kernel().ssm_state_size() / self.chunk
                }
                Part::SelfAttention => 4 * width,
                Part::CrossAttention => 2 * width,
                Part::ChannelMixer => match self.channel_mixer {
                    ChannelMixer::FeedForward => 2 * self.ff_multiple * width,
                    // Two complex layers of plain tensor operations, each with its products and bends.
                    ChannelMixer::EinFft => 24 * width,
                },
            }
    }

    fn widest_floats(&self, part: Part) -> usize {
        let (width, mixer) = (self.d_model, self.stack().mixer);
        match part {
            Part::Mixer | Part::SecondMixer if self.ssm == SsmKind::Mamba1 => 7 * mixer.d_inner(),
            Part::Mixer | Part::SecondMixer => mixer.projected() + 3 * mixer.d_inner(),
            Part::SelfAttention | Part::CrossAttention => 6 * width,
            Part::ChannelMixer => match self.channel_mixer {
                ChannelMixer::FeedForward => 3 * self.ff_multiple * width,
                ChannelMixer::EinFft => 8 * width,
            },
        }
    }
}
