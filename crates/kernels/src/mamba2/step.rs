//! One frame for each sequence of a batch, states in place: decoding.
#![allow(unsafe_code)]

use super::gate::gate_row;
use super::{HISTORY, Mamba2Config, Weights};
use crate::causal_conv;
use crate::simd::{Isa, Portable, dot, fused, simd_fn, softplus};
use crate::threads::Shared;
use rayon::prelude::*;

/// State values from which handing heads to other threads costs less than it gains.
const PARALLEL_SIZE: usize = 1 << 18;

/// Advances `batch` sequences by one frame.
///
/// `projected` `[batch, projected]`, `conv_state` `[batch, channels, 3]` and `ssm_state` `[batch, heads, head width,
/// state]` are updated, `out` `[batch, inner]` is written.
///
/// # Panics
/// If a length does not fit the configuration.
pub fn step(
    config: &Mamba2Config,
    batch: usize,
    projected: &[f32],
    weights: &Weights<'_, f32>,
    conv_state: &mut [f32],
    ssm_state: &mut [f32],
    out: &mut [f32],
) {
    config.check();
    weights.check(config);
    let (inner, state, width, channels) = (config.inner, config.state, config.head_width(), config.conv_channels());
    assert_eq!(projected.len(), batch * config.projected(), "mamba2 projected input");
    assert_eq!(out.len(), batch * inner, "mamba2 output");
    assert_eq!(conv_state.len(), batch * config.conv_state_size(), "mamba2 convolution state");
    assert_eq!(ssm_state.len(), batch * config.ssm_state_size(), "mamba2 state");

    let mut activated = vec![0.0f32; batch * channels];
    for sequence in 0..batch {
        let input = &projected[sequence * config.projected() + inner..][..channels];
        let history = &mut conv_state[sequence * channels * HISTORY..][..channels * HISTORY];
        causal_conv::step(
            input,
            weights.conv_weight,
            weights.conv_bias,
            history,
            &mut activated[sequence * channels..][..channels],
        );
    }
    let shared = Shared::new(&mut *out);
    let head_work = |(index, memory): (usize, &mut [f32])| {
        let (sequence, head) = (index / config.heads, index % config.heads);
        let values = &activated[sequence * channels..][..channels];
        let group = head / config.heads_per_group();
        let x = &values[head * width..][..width];
        let b = &values[inner + group * state..][..state];
        let c = &values[inner + (config.groups + group) * state..][..state];
        let dt = softplus::<Portable>(
            projected[sequence * config.projected() + config.dt_column() + head] + weights.dt_bias[head],
        );
        let decay = (dt * -weights.a_log[head].exp()).exp();
        // SAFETY: each head of each sequence is one task.
        let y = unsafe { shared.part(sequence * inner + head * width, width) };
        advance(decay, dt, weights.d_skip[head], x, b, c, memory, y);
    };
    if ssm_state.len() >= PARALLEL_SIZE {
        ssm_state.par_chunks_mut(width * state).enumerate().for_each(head_work);
    } else {
        ssm_state.chunks_mut(width * state).enumerate().for_each(head_work);
    }
    for sequence in 0..batch {
        let z = &projected[sequence * config.projected()..][..inner];
        gate_row(z, weights.norm, config.groups, &mut out[sequence * inner..][..inner]);
    }
}

simd_fn! {
    /// `S = decay S + dt x (outer) B`, `y = S C + skip x` for one head `[head width, state]`.
    fn advance(decay: f32, dt: f32, skip: f32, x: &[f32], b: &[f32], c: &[f32], memory: &mut [f32], y: &mut [f32]) = advance_body
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn advance_body<I: Isa>(
    decay: f32,
    dt: f32,
    skip: f32,
    x: &[f32],
    b: &[f32],
    c: &[f32],
    memory: &mut [f32],
    y: &mut [f32],
) {
    let state = b.len();
    let c = &c[..state];
    for (row, (x, y)) in x.iter().zip(y.iter_mut()).enumerate() {
        let line = &mut memory[row * state..][..state];
        let input = dt * x;
        for n in 0..state {
            line[n] = fused::<I>(decay, line[n], input * b[n]);
        }
        *y = fused::<I>(skip, *x, dot::<I>(line, c));
    }
}
