//! One frame for each sequence of a batch, states in place: decoding.
#![allow(unsafe_code)]

use super::gate::gate_row;
use super::{HISTORY, Mamba2Config, Weights};
use crate::causal_conv;
use crate::simd::{Isa, LANES, Portable, fold, fused, prefetch_at, simd_fn, softplus};
use crate::threads::Shared;
use rayon::prelude::*;

/// State values from which handing heads to other threads costs less than it gains.
const PARALLEL_SIZE: usize = 1 << 18;

/// Heads handed over at a time: few enough that a thread that was late is helped out.
const MOST_HEADS: usize = 2;

/// Values between the state in use and the state asked for, about as much as arrives meanwhile.
const AHEAD: usize = 512;

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
        ssm_state.par_chunks_mut(width * state).enumerate().with_max_len(MOST_HEADS).for_each(head_work);
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
    let (b_blocks, c_blocks) = (b.chunks_exact(LANES), c.chunks_exact(LANES));
    let (b_rest, c_rest) = (b_blocks.remainder(), c_blocks.remainder());
    for ((line, x), y) in memory.chunks_exact_mut(b.len()).zip(x).zip(y) {
        let input = dt * x;
        let mut lanes = [0.0f32; LANES];
        let mut blocks = line.chunks_exact_mut(LANES);
        for ((s, b), c) in blocks.by_ref().zip(b_blocks.clone()).zip(c_blocks.clone()) {
            prefetch_at(s.as_ptr().wrapping_add(AHEAD));
            for lane in 0..LANES {
                s[lane] = fused::<I>(decay, s[lane], input * b[lane]);
                lanes[lane] = fused::<I>(s[lane], c[lane], lanes[lane]);
            }
        }
        let mut rest = 0.0;
        for ((s, b), c) in blocks.into_remainder().iter_mut().zip(b_rest).zip(c_rest) {
            *s = fused::<I>(decay, *s, input * b);
            rest = fused::<I>(*s, *c, rest);
        }
        *y = fused::<I>(skip, *x, fold(lanes) + rest);
    }
}
