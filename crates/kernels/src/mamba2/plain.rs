//! The recurrence frame by frame, generic over f32 and f64: the oracle of the chunked and fused paths.

use super::{Mamba2Config, NORM_EPSILON, Sequences, States, Weights};
use crate::plain::{Convolution, number, silu, silu_slope, softplus, softplus_slope};
use num_traits::Float;

/// What the recurrence computes, and what its backward pass reads again.
#[derive(Debug)]
pub struct Trace<F> {
    /// `[batch, frames, inner]`
    pub output: Vec<F>,
    /// Final `[batch, channels, 3]`
    pub conv_state: Vec<F>,
    /// Final `[batch, heads, head width, state]`
    pub ssm_state: Vec<F>,
    /// Convolution before SiLU `[batch, frames, channels]`
    before: Vec<F>,
    /// Scan output `[batch, frames, inner]`
    scanned: Vec<F>,
    /// States before and after every frame `[batch, frames + 1, heads, head width, state]`
    states: Vec<F>,
}

/// Gradients, each shaped as its input.
#[derive(Debug)]
pub struct PlainGradients<F> {
    /// `[batch, frames, projected]`
    pub projected: Vec<F>,
    /// `[channels, 4]`
    pub conv_weight: Vec<F>,
    /// `[channels]`
    pub conv_bias: Vec<F>,
    /// `[heads]`
    pub dt_bias: Vec<F>,
    /// `[heads]`
    pub a_log: Vec<F>,
    /// `[heads]`
    pub d_skip: Vec<F>,
    /// `[inner]`
    pub norm: Vec<F>,
    /// Of the initial states: `[batch, channels, 3]`
    pub conv_state: Vec<F>,
    /// Of the initial states: `[batch, heads, head width, state]`
    pub ssm_state: Vec<F>,
}

/// Where things lie in one projected row and one convolution row.
struct Places {
    inner: usize,
    state: usize,
    width: usize,
    channels: usize,
    row: usize,
    heads_per_group: usize,
    groups: usize,
}

impl Places {
    fn new(config: &Mamba2Config) -> Self {
        Self {
            inner: config.inner,
            state: config.state,
            width: config.head_width(),
            channels: config.conv_channels(),
            row: config.projected(),
            heads_per_group: config.heads_per_group(),
            groups: config.groups,
        }
    }

    fn b(&self, head: usize) -> usize {
        self.inner + head / self.heads_per_group * self.state
    }

    fn c(&self, head: usize) -> usize {
        self.b(head) + self.groups * self.state
    }
}

fn convolution<'a, F: Float>(
    config: &Mamba2Config,
    sequences: Sequences<'a>,
    projected: &'a [F],
    weights: &Weights<'a, F>,
    initial: Option<States<'a, F>>,
) -> Convolution<'a, F> {
    Convolution {
        sequences,
        values: projected,
        row_width: config.projected(),
        column: config.inner,
        weight: weights.conv_weight,
        bias: weights.conv_bias,
        history: initial.map(|states| states.conv),
    }
}

/// Runs the recurrence; arguments as in [`super::forward`].
///
/// # Panics
/// If a length does not fit the configuration.
pub fn forward<F: Float>(
    config: &Mamba2Config,
    sequences: Sequences<'_>,
    projected: &[F],
    weights: &Weights<'_, F>,
    initial: Option<States<'_, F>>,
) -> Trace<F> {
    config.check();
    weights.check(config);
    sequences.check(projected.len(), config.projected());
    let p = Places::new(config);
    let (heads, size) = (config.heads, config.ssm_state_size());
    let (batch, frames) = (sequences.batch, sequences.frames);
    let mut trace = Trace {
        output: vec![F::zero(); batch * frames * p.inner],
        conv_state: Vec::new(),
        ssm_state: vec![F::zero(); batch * size],
        before: vec![F::zero(); batch * frames * p.channels],
        scanned: vec![F::zero(); batch * frames * p.inner],
        states: vec![F::zero(); batch * (frames + 1) * size],
    };
    let conv = convolution(config, sequences, projected, weights, initial);
    trace.conv_state = conv.final_history();
    for sequence in 0..batch {
        let first = sequence * (frames + 1) * size;
        if let Some(states) = &initial {
            trace.states[first..first + size].copy_from_slice(&states.ssm[sequence * size..(sequence + 1) * size]);
        }
        for frame in 0..frames {
            let row = &projected[(sequence * frames + frame) * p.row..][..p.row];
            let before = &mut trace.before[(sequence * frames + frame) * p.channels..][..p.channels];
            before.copy_from_slice(&conv.frame(sequence, frame));
            let active: Vec<F> = before.iter().map(|value| silu(*value)).collect();
            let scanned = &mut trace.scanned[(sequence * frames + frame) * p.inner..][..p.inner];
            let (old, new) = trace.states[first + frame * size..first + (frame + 2) * size].split_at_mut(size);
            for head in 0..heads {
                let raw = row[config.dt_column() + head] + weights.dt_bias[head];
                let dt = if frame < sequences.padding_of(sequence) { F::zero() } else { softplus(raw) };
                let decay = (dt * -weights.a_log[head].exp()).exp();
                for channel in 0..p.width {
                    let x = active[head * p.width + channel];
                    let mut y = weights.d_skip[head] * x;
                    for n in 0..p.state {
                        let at = (head * p.width + channel) * p.state + n;
                        new[at] = decay * old[at] + dt * x * active[p.b(head) + n];
                        y = y + new[at] * active[p.c(head) + n];
                    }
                    scanned[head * p.width + channel] = y;
                }
            }
            let output = &mut trace.output[(sequence * frames + frame) * p.inner..][..p.inner];
            let group_width = p.inner / p.groups;
            for group in 0..p.groups {
                let part = group * group_width..(group + 1) * group_width;
                let gated: Vec<F> = part.clone().map(|i| scanned[i] * silu(row[i])).collect();
                let scale = norm_scale(&gated);
                for (i, value) in part.zip(gated) {
                    output[i] = value * scale * weights.norm[i];
                }
            }
        }
        let last = first + frames * size;
        trace.ssm_state[sequence * size..(sequence + 1) * size].copy_from_slice(&trace.states[last..last + size]);
    }
    trace
}

/// 1 / sqrt(mean square + eps)
fn norm_scale<F: Float>(values: &[F]) -> F {
    let square = values.iter().fold(F::zero(), |sum, value| sum + *value * *value);
    F::one() / (square / number(values.len() as f64) + number(NORM_EPSILON)).sqrt()
}

/// Backward pass through time; `d_conv_state` and `d_ssm_state` are gradients of the final states.
///
/// # Panics
/// If a length does not fit the configuration.
#[allow(clippy::too_many_arguments)]
pub fn backward<F: Float>(
    config: &Mamba2Config,
    sequences: Sequences<'_>,
    projected: &[F],
    weights: &Weights<'_, F>,
    initial: Option<States<'_, F>>,
    trace: &Trace<F>,
    d_output: &[F],
    d_final: Option<States<'_, F>>,
) -> PlainGradients<F> {
    let p = Places::new(config);
    let (heads, size) = (config.heads, config.ssm_state_size());
    let (batch, frames) = (sequences.batch, sequences.frames);
    let zeros = |length: usize| vec![F::zero(); length];
    let mut out = PlainGradients {
        projected: zeros(projected.len()),
        conv_weight: Vec::new(),
        conv_bias: Vec::new(),
        dt_bias: zeros(heads),
        a_log: zeros(heads),
        d_skip: zeros(heads),
        norm: zeros(p.inner),
        conv_state: Vec::new(),
        ssm_state: zeros(batch * size),
    };
    let mut d_before = zeros(batch * frames * p.channels);
    for sequence in 0..batch {
        let mut d_state = match &d_final {
            Some(states) => states.ssm[sequence * size..(sequence + 1) * size].to_vec(),
            None => zeros(size),
        };
        for frame in (0..frames).rev() {
            let index = sequence * frames + frame;
            let row = &projected[index * p.row..][..p.row];
            let scanned = &trace.scanned[index * p.inner..][..p.inner];
            let d_out = &d_output[index * p.inner..][..p.inner];
            let mut d_y = zeros(p.inner);
            let group_width = p.inner / p.groups;
            for group in 0..p.groups {
                let part = group * group_width..(group + 1) * group_width;
                let gated: Vec<F> = part.clone().map(|i| scanned[i] * silu(row[i])).collect();
                let scale = norm_scale(&gated);
                let mut pull = F::zero();
                for (i, value) in part.clone().zip(&gated) {
                    pull = pull + d_out[i] * weights.norm[i] * *value;
                    out.norm[i] = out.norm[i] + d_out[i] * *value * scale;
                }
                pull = pull * scale * scale * scale / number(group_width as f64);
                for (i, value) in part.zip(&gated) {
                    let d_gated = d_out[i] * weights.norm[i] * scale - *value * pull;
                    d_y[i] = d_gated * silu(row[i]);
                    out.projected[index * p.row + i] = d_gated * scanned[i] * silu_slope(row[i]);
                }
            }
            let before = &trace.before[index * p.channels..][..p.channels];
            let active: Vec<F> = before.iter().map(|value| silu(*value)).collect();
            let mut d_active = zeros(p.channels);
            let states = &trace.states[(sequence * (frames + 1) + frame) * size..][..2 * size];
            let (old, new) = states.split_at(size);
            for head in 0..heads {
                let raw = row[config.dt_column() + head] + weights.dt_bias[head];
                let padded = frame < sequences.padding_of(sequence);
                let dt = if padded { F::zero() } else { softplus(raw) };
                let rate = -weights.a_log[head].exp();
                let decay = (dt * rate).exp();
                let (mut d_dt, mut d_decay) = (F::zero(), F::zero());
                for channel in 0..p.width {
                    let at = head * p.width + channel;
                    let (x, d_y) = (active[at], d_y[at]);
                    out.d_skip[head] = out.d_skip[head] + d_y * x;
                    let mut d_x = d_y * weights.d_skip[head];
                    for n in 0..p.state {
                        let (cell, b, c) = (at * p.state + n, active[p.b(head) + n], active[p.c(head) + n]);
                        d_active[p.c(head) + n] = d_active[p.c(head) + n] + d_y * new[cell];
                        let d_cell = d_state[cell] + d_y * c;
                        d_decay = d_decay + d_cell * old[cell];
                        d_dt = d_dt + d_cell * x * b;
                        d_x = d_x + d_cell * dt * b;
                        d_active[p.b(head) + n] = d_active[p.b(head) + n] + d_cell * dt * x;
                        d_state[cell] = d_cell * decay;
                    }
                    d_active[at] = d_active[at] + d_x;
                }
                d_dt = d_dt + d_decay * decay * rate;
                out.a_log[head] = out.a_log[head] + d_decay * decay * dt * rate;
                let d_raw = if padded { F::zero() } else { d_dt * softplus_slope(raw) };
                out.dt_bias[head] = out.dt_bias[head] + d_raw;
                out.projected[index * p.row + config.dt_column() + head] = d_raw;
            }
            for (channel, value) in d_active.into_iter().enumerate() {
                d_before[index * p.channels + channel] = value * silu_slope(before[channel]);
            }
        }
        out.ssm_state[sequence * size..(sequence + 1) * size].copy_from_slice(&d_state);
    }
    let conv = convolution(config, sequences, projected, weights, initial);
    let d_conv = conv.backward(&d_before, d_final.map(|states| states.conv), &mut out.projected);
    (out.conv_weight, out.conv_bias, out.conv_state) = (d_conv.weight, d_conv.bias, d_conv.history);
    out
}
