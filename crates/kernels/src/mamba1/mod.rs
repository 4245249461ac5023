//! Everything between the two outer projections of a Mamba layer (Gu and Dao, arXiv:2312.00752): causal depthwise
//! convolution of width 4 and SiLU, the projections that select step, B and C from its output, softplus of the step,
//! selective state-space scan, skip, gate.
//!
//! Every channel c has its own step and its own decay for each of its N states:
//! `s[c, n] = exp(dt[c] A[c, n]) s[c, n] + dt[c] B[n] x[c]`, `y[c] = sum_n s[c, n] C[n] + D[c] x[c]`. No product of
//! matrices does that, so the scan runs frame by frame, a block of neighbouring channels in the lanes of the vector
//! registers. [`forward`] keeps the states only between chunks of frames; [`backward`] finds those inside a chunk
//! again, one n at a time. [`step`] advances one frame; [`plain`] is the recurrence as written in the paper and the
//! oracle of the others. Laws: the chunk length never changes the result; forward equals a fold of steps, in outputs,
//! states and gradients; the number of threads cannot change a byte.

mod backward;
mod forward;
mod lanes;
pub mod plain;
mod scan_backward;
mod step;
mod tile;

pub use crate::causal_conv::{HISTORY, TAPS};
pub use crate::sequences::Sequences;
pub use backward::{Gradients, InitialGradient, backward};
pub use forward::{Forward, Saved, forward};
pub use step::step;

/// Sizes of a Mamba mixer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mamba1Config {
    /// Inner width (usually twice the model's).
    pub inner: usize,
    /// States per channel (N).
    pub state: usize,
    /// Width from which the steps of all channels are projected (R, usually a sixteenth of the model's).
    pub rank: usize,
    /// Frames between the states that the forward pass keeps for the backward pass; changes speed and memory, never
    /// the result.
    pub chunk: usize,
}

impl Mamba1Config {
    /// Width of the input projection: x and z, in this order.
    pub fn projected(&self) -> usize {
        2 * self.inner
    }

    /// Width of what is selected from x: the step's low-rank form, B and C, in this order.
    pub fn selected(&self) -> usize {
        self.rank + 2 * self.state
    }

    /// Values of one sequence's convolution history `[inner, 3]`, oldest frame first.
    pub fn conv_state_size(&self) -> usize {
        self.inner * HISTORY
    }

    /// Values of one sequence's state `[inner, state]`.
    pub fn ssm_state_size(&self) -> usize {
        self.inner * self.state
    }

    /// Panics unless all sizes are positive: a wrong size is a mistake in the program.
    pub(crate) fn check(&self) {
        let sizes = [self.inner, self.state, self.rank, self.chunk];
        assert!(sizes.iter().all(|size| *size > 0), "mamba1 sizes must be positive: {self:?}");
    }
}

/// The trained values of a mixer beside its matrices, row-major.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a, F> {
    /// `[inner, 4]`; the last tap multiplies the current frame.
    pub conv_weight: &'a [F],
    /// `[inner]`
    pub conv_bias: &'a [F],
    /// `[inner]`, added to dt before softplus.
    pub dt_bias: &'a [F],
    /// `[inner, state]`; the decay rate is -exp of it.
    pub a_log: &'a [F],
    /// `[inner]`, the skip from x to y.
    pub d_skip: &'a [F],
}

impl<F> Weights<'_, F> {
    pub(crate) fn check(&self, config: &Mamba1Config) {
        assert_eq!(self.conv_weight.len(), config.inner * TAPS, "mamba1 conv_weight");
        assert_eq!(self.conv_bias.len(), config.inner, "mamba1 conv_bias");
        assert_eq!(self.dt_bias.len(), config.inner, "mamba1 dt_bias");
        assert_eq!(self.a_log.len(), config.ssm_state_size(), "mamba1 a_log");
        assert_eq!(self.d_skip.len(), config.inner, "mamba1 d_skip");
    }
}

/// The matrices of a mixer, row-major.
#[derive(Clone, Copy, Debug)]
pub struct Projections<'a, F> {
    /// `[rank + 2 state, inner]`, from x to what is selected.
    pub x: &'a [F],
    /// `[inner, rank]`, from the low-rank form to the steps of all channels.
    pub dt: &'a [F],
}

impl<F> Projections<'_, F> {
    pub(crate) fn check(&self, config: &Mamba1Config) {
        assert_eq!(self.x.len(), config.selected() * config.inner, "mamba1 x projection");
        assert_eq!(self.dt.len(), config.inner * config.rank, "mamba1 dt projection");
    }
}

/// States of all sequences of a batch, at the start or at the end.
#[derive(Clone, Copy, Debug)]
pub struct States<'a, F> {
    /// `[batch, inner, 3]`: inputs of the convolution before its first frame, oldest first.
    pub conv: &'a [F],
    /// `[batch, inner, state]`
    pub ssm: &'a [F],
}

impl<F> States<'_, F> {
    pub(crate) fn check(&self, config: &Mamba1Config, batch: usize) {
        assert_eq!(self.conv.len(), batch * config.conv_state_size(), "mamba1 convolution state");
        assert_eq!(self.ssm.len(), batch * config.ssm_state_size(), "mamba1 state");
    }
}
