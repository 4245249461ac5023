//! One frame for each sequence of a batch, states in place: decoding.
#![allow(unsafe_code)]

use super::{Mamba1Config, Weights};
use crate::causal_conv;
use crate::simd::{Isa, dot, exp, fused, sigmoid, simd_fn, softplus};
use crate::threads::Shared;
use rayon::prelude::*;

/// State values from which handing channels to other threads costs less than it gains.
const PARALLEL_SIZE: usize = 1 << 16;
/// Channels a task handles.
const CHANNELS: usize = 64;

/// Advances `batch` sequences by one frame.
///
/// `projected` is `[batch, 2 inner]`. `x_projection` and `dt_projection` add the products of rows with the matrices of
/// [`super::Projections`] to their second argument, so that the caller chooses how these are stored: `[batch, inner]`
/// to `[batch, rank + 2 state]`, and `[batch, rank]` to `[batch, inner]`. `conv_state` `[batch, inner, 3]` and
/// `ssm_state` `[batch, inner, state]` are updated, `out` `[batch, inner]` is written.
///
/// # Panics
/// If a length does not fit the configuration.
#[allow(clippy::too_many_arguments)]
pub fn step(
    config: &Mamba1Config,
    batch: usize,
    projected: &[f32],
    weights: &Weights<'_, f32>,
    x_projection: impl Fn(&[f32], &mut [f32]),
    dt_projection: impl Fn(&[f32], &mut [f32]),
    conv_state: &mut [f32],
    ssm_state: &mut [f32],
    out: &mut [f32],
) {
    config.check();
    weights.check(config);
    let (inner, state, rank) = (config.inner, config.state, config.rank);
    assert_eq!(projected.len(), batch * config.projected(), "mamba1 projected input");
    assert_eq!(out.len(), batch * inner, "mamba1 output");
    assert_eq!(conv_state.len(), batch * config.conv_state_size(), "mamba1 convolution state");
    assert_eq!(ssm_state.len(), batch * config.ssm_state_size(), "mamba1 state");

    let mut x = vec![0.0f32; batch * inner];
    let rows = projected.chunks_exact(config.projected()).zip(conv_state.chunks_exact_mut(config.conv_state_size()));
    for (x, (row, history)) in x.chunks_exact_mut(inner).zip(rows) {
        causal_conv::step(&row[..inner], weights.conv_weight, weights.conv_bias, history, x);
    }
    let mut selected = vec![0.0f32; batch * config.selected()];
    x_projection(&x, &mut selected);
    let mut dt = weights.dt_bias.repeat(batch);
    dt_projection(&super::forward::low_rank(config, &selected), &mut dt);

    let parts = inner.div_ceil(CHANNELS);
    let (states, outputs) = (Shared::new(ssm_state), Shared::new(out));
    let advance_part = |task: usize| {
        let (sequence, first) = (task / parts, task % parts * CHANNELS);
        let width = CHANNELS.min(inner - first);
        let at = sequence * inner + first;
        let b = &selected[sequence * config.selected() + rank..][..state];
        let c = &selected[sequence * config.selected() + rank + state..][..state];
        let z = &projected[(2 * sequence + 1) * inner + first..][..width];
        // SAFETY (both): each run of channels of each sequence is one task.
        let memory = unsafe { states.part(at * state, width * state) };
        let y = unsafe { outputs.part(at, width) };
        let rates = &weights.a_log[first * state..][..width * state];
        let skip = &weights.d_skip[first..][..width];
        advance(rates, skip, &dt[at..][..width], &x[at..][..width], b, c, z, memory, y);
    };
    if batch * config.ssm_state_size() >= PARALLEL_SIZE {
        (0..batch * parts).into_par_iter().for_each(advance_part);
    } else {
        (0..batch * parts).for_each(advance_part);
    }
}

simd_fn! {
    /// `s = exp(dt A) s + dt x B`, `y = (s C + skip x) silu(z)` for some channels; `raw` is dt before softplus, `memory`
    /// `[channels, state]`.
    fn advance(a_log: &[f32], skip: &[f32], raw: &[f32], x: &[f32], b: &[f32], c: &[f32], z: &[f32], memory: &mut [f32], y: &mut [f32]) = advance_body
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn advance_body<I: Isa>(
    a_log: &[f32],
    skip: &[f32],
    raw: &[f32],
    x: &[f32],
    b: &[f32],
    c: &[f32],
    z: &[f32],
    memory: &mut [f32],
    y: &mut [f32],
) {
    let state = b.len();
    let c = &c[..state];
    for channel in 0..y.len() {
        let (a_log, line) = (&a_log[channel * state..][..state], &mut memory[channel * state..][..state]);
        let dt = softplus::<I>(raw[channel]);
        let input = dt * x[channel];
        for n in 0..state {
            let decay = exp::<I>(-dt * exp::<I>(a_log[n]));
            line[n] = fused::<I>(decay, line[n], input * b[n]);
        }
        let sum = fused::<I>(skip[channel], x[channel], dot::<I>(line, c));
        y[channel] = sum * z[channel] * sigmoid::<I>(z[channel]);
    }
}
