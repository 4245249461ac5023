//! Everything between the two projections of a Mamba-2 layer (Dao and Gu, arXiv:2405.21060): causal depthwise
//! convolution of width 4 and SiLU, softplus of the step, state-space scan, skip, gated RMSNorm.
//!
//! [`forward`] and [`backward`] work in chunks (state-space duality); [`step`] advances one frame;
//! [`plain`] is the recurrence as written in the paper and the oracle of the others. Laws: the chunk length never
//! changes the result; forward equals a fold of steps, in outputs, states and gradients.

mod backward;
mod chunk;
mod forward;
mod gate;
pub mod plain;
mod step;

pub use crate::causal_conv::{HISTORY, TAPS};
pub use crate::sequences::Sequences;
pub use backward::{Gradients, InitialGradient, backward};
pub use forward::{Forward, forward};
pub use step::step;

use crate::causal_conv::Conv;

/// Added to the mean square in the gated norm.
pub const NORM_EPSILON: f64 = 1e-5;

/// Sizes of a Mamba-2 mixer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mamba2Config {
    /// Inner width (usually twice the model's); a multiple of `heads`.
    pub inner: usize,
    /// State size per channel.
    pub state: usize,
    /// Heads; a multiple of `groups`.
    pub heads: usize,
    /// Groups of heads that share B and C, and over which the gated norm runs.
    pub groups: usize,
    /// Frames handled at once; changes speed, never the result beyond rounding.
    pub chunk: usize,
}

impl Mamba2Config {
    /// Width of a head.
    pub fn head_width(&self) -> usize {
        self.inner / self.heads
    }

    /// Channels of the convolution: x, B and C.
    pub fn conv_channels(&self) -> usize {
        self.inner + 2 * self.groups * self.state
    }

    /// Width of the input projection: z, x, B, C and dt, in this order.
    pub fn projected(&self) -> usize {
        self.inner + self.conv_channels() + self.heads
    }

    /// Values of one sequence's convolution history `[channels, 3]`, oldest frame first.
    pub fn conv_state_size(&self) -> usize {
        self.conv_channels() * HISTORY
    }

    /// Values of one sequence's state `[heads, head width, state]`.
    pub fn ssm_state_size(&self) -> usize {
        self.inner * self.state
    }

    /// Column of the first dt in a projected row.
    pub(crate) fn dt_column(&self) -> usize {
        self.inner + self.conv_channels()
    }

    pub(crate) fn heads_per_group(&self) -> usize {
        self.heads / self.groups
    }

    /// Panics unless the sizes fit together: a wrong size is a mistake in the program.
    pub(crate) fn check(&self) {
        assert!(
            self.heads > 0 && self.groups > 0 && self.chunk > 0 && self.state > 0,
            "mamba2 sizes must be positive: {self:?}"
        );
        assert!(self.inner.is_multiple_of(self.heads), "mamba2: inner must be a multiple of heads: {self:?}");
        assert!(self.heads.is_multiple_of(self.groups), "mamba2: heads must be a multiple of groups: {self:?}");
    }
}

/// The trained values of a mixer, row-major.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a, F> {
    /// `[channels, 4]`; the last tap multiplies the current frame.
    pub conv_weight: &'a [F],
    /// `[channels]`
    pub conv_bias: &'a [F],
    /// `[heads]`, added to dt before softplus.
    pub dt_bias: &'a [F],
    /// `[heads]`; the decay rate is -exp of it.
    pub a_log: &'a [F],
    /// `[heads]`, the skip from x to y.
    pub d_skip: &'a [F],
    /// `[inner]`, the gain of the gated norm.
    pub norm: &'a [F],
}

impl<F> Weights<'_, F> {
    pub(crate) fn check(&self, config: &Mamba2Config) {
        assert_eq!(self.conv_weight.len(), config.conv_channels() * TAPS, "mamba2 conv_weight");
        assert_eq!(self.conv_bias.len(), config.conv_channels(), "mamba2 conv_bias");
        assert_eq!(self.dt_bias.len(), config.heads, "mamba2 dt_bias");
        assert_eq!(self.a_log.len(), config.heads, "mamba2 a_log");
        assert_eq!(self.d_skip.len(), config.heads, "mamba2 d_skip");
        assert_eq!(self.norm.len(), config.inner, "mamba2 norm");
    }
}

/// States of all sequences of a batch, at the start or at the end.
#[derive(Clone, Copy, Debug)]
pub struct States<'a, F> {
    /// `[batch, channels, 3]`: inputs of the convolution before its first frame, oldest first.
    pub conv: &'a [F],
    /// `[batch, heads, head width, state]`
    pub ssm: &'a [F],
}

impl<F> States<'_, F> {
    pub(crate) fn check(&self, config: &Mamba2Config, batch: usize) {
        assert_eq!(self.conv.len(), batch * config.conv_state_size(), "mamba2 convolution state");
        assert_eq!(self.ssm.len(), batch * config.ssm_state_size(), "mamba2 state");
    }
}

/// What the scan reads beside the weights.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) config: Mamba2Config,
    /// The convolution over x, B and C; its rows are the projected ones, whose other columns are z and dt.
    pub(crate) conv: Conv<'a>,
    /// `[batch, heads, head width, state]`
    pub(crate) initial: Option<&'a [f32]>,
}

impl<'a> Source<'a> {
    /// `taps` are the convolution's weights `[4, channels]`.
    pub(crate) fn new(
        config: &Mamba2Config,
        sequences: Sequences<'a>,
        projected: &'a [f32],
        initial: Option<States<'a, f32>>,
        taps: &'a [f32],
        bias: &'a [f32],
    ) -> Self {
        let conv = Conv {
            sequences,
            values: projected,
            row_width: config.projected(),
            column: config.inner,
            channels: config.conv_channels(),
            initial: initial.map(|states| states.conv),
            taps,
            bias,
        };
        Self { config: *config, conv, initial: initial.map(|states| states.ssm) }
    }
}

/// One piece of the scan that runs on one thread: some heads of one group of one sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) sequence: usize,
    pub(crate) group: usize,
    pub(crate) first_head: usize,
    pub(crate) heads: usize,
}

/// Splits the scan into pieces for the threads; returns them and the pieces per group.
///
/// Heads of a group share B, C and their products, which every piece computes anew: as much work as another head. Of all
/// even splits the one with the least work on the busiest thread is taken.
pub(crate) fn pieces(config: &Mamba2Config, batch: usize) -> (Vec<Piece>, usize) {
    let heads = config.heads_per_group();
    let threads = rayon::current_num_threads();
    let work = |parts: &usize| (batch * config.groups * parts).div_ceil(threads) * (heads / parts + 1);
    let parts = (1..=heads).filter(|&parts| heads.is_multiple_of(parts)).min_by_key(work).unwrap_or(1);
    let mut list = Vec::with_capacity(batch * config.groups * parts);
    for sequence in 0..batch {
        for group in 0..config.groups {
            for part in 0..parts {
                let count = heads / parts;
                list.push(Piece { sequence, group, first_head: group * heads + part * count, heads: count });
            }
        }
    }
    (list, parts)
}
