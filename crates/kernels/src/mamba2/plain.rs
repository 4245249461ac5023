//! The recurrence frame by frame, generic over f32 and f64: the oracle of the chunked and fused paths.

use super::{HISTORY, Mamba2Config, NORM_EPSILON, Sequences, States, TAPS, Weights};
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

fn number<F: Float>(value: f64) -> F {
    F::from(value).expect("f32 and f64 hold any constant used here")
}

fn sigmoid<F: Float>(x: F) -> F {
    F::one() / (F::one() + (-x).exp())
}

fn silu<F: Float>(x: F) -> F {
    x * sigmoid(x)
}

fn silu_slope<F: Float>(x: F) -> F {
    let gate = sigmoid(x);
    gate * (F::one() + x * (F::one() - gate))
}

fn softplus<F: Float>(x: F) -> F {
    if x > number(20.0) { x } else { x.exp().ln_1p() }
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

/// Input of the convolution's tap `tap` at `frame`, from the sequence or its history.
#[allow(clippy::too_many_arguments)]
fn tap_value<F: Float>(
    p: &Places,
    sequences: &Sequences<'_>,
    projected: &[F],
    initial: Option<&States<'_, F>>,
    sequence: usize,
    frame: usize,
    tap: usize,
    channel: usize,
) -> F {
    let at = frame + tap;
    if at >= HISTORY && at - HISTORY < sequences.padding_of(sequence) {
        F::zero()
    } else if at >= HISTORY {
        projected[(sequence * sequences.frames + at - HISTORY) * p.row + p.inner + channel]
    } else {
        initial.map_or(F::zero(), |states| states.conv[(sequence * p.channels + channel) * HISTORY + at])
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
    sequences.check(config, projected.len());
    let p = Places::new(config);
    let (heads, size) = (config.heads, config.ssm_state_size());
    let (batch, frames) = (sequences.batch, sequences.frames);
    let mut trace = Trace {
        output: vec![F::zero(); batch * frames * p.inner],
        conv_state: vec![F::zero(); batch * config.conv_state_size()],
        ssm_state: vec![F::zero(); batch * size],
        before: vec![F::zero(); batch * frames * p.channels],
        scanned: vec![F::zero(); batch * frames * p.inner],
        states: vec![F::zero(); batch * (frames + 1) * size],
    };
    for sequence in 0..batch {
        let first = sequence * (frames + 1) * size;
        if let Some(states) = &initial {
            trace.states[first..first + size].copy_from_slice(&states.ssm[sequence * size..(sequence + 1) * size]);
        }
        for frame in 0..frames {
            let row = &projected[(sequence * frames + frame) * p.row..][..p.row];
            let before = &mut trace.before[(sequence * frames + frame) * p.channels..][..p.channels];
            for (channel, value) in before.iter_mut().enumerate() {
                *value = weights.conv_bias[channel];
                for tap in 0..TAPS {
                    *value = *value
                        + weights.conv_weight[channel * TAPS + tap]
                            * tap_value(&p, &sequences, projected, initial.as_ref(), sequence, frame, tap, channel);
                }
            }
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
        for channel in 0..p.channels {
            for row in 0..HISTORY {
                trace.conv_state[(sequence * p.channels + channel) * HISTORY + row] =
                    tap_value(&p, &sequences, projected, initial.as_ref(), sequence, frames, row, channel);
            }
        }
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
        conv_weight: zeros(p.channels * TAPS),
        conv_bias: zeros(p.channels),
        dt_bias: zeros(heads),
        a_log: zeros(heads),
        d_skip: zeros(heads),
        norm: zeros(p.inner),
        conv_state: zeros(batch * config.conv_state_size()),
        ssm_state: zeros(batch * size),
    };
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
                let d_raw = if padded {
                    F::zero()
                } else if raw > number(20.0) {
                    d_dt
                } else {
                    d_dt * sigmoid(raw)
                };
                out.dt_bias[head] = out.dt_bias[head] + d_raw;
                out.projected[index * p.row + config.dt_column() + head] = d_raw;
            }
            for channel in 0..p.channels {
                let d_before = d_active[channel] * silu_slope(before[channel]);
                out.conv_bias[channel] = out.conv_bias[channel] + d_before;
                for tap in 0..TAPS {
                    let weight = channel * TAPS + tap;
                    let value = tap_value(&p, &sequences, projected, initial.as_ref(), sequence, frame, tap, channel);
                    out.conv_weight[weight] = out.conv_weight[weight] + d_before * value;
                    add_tap(
                        &p,
                        &sequences,
                        &mut out.projected,
                        &mut out.conv_state,
                        sequence,
                        frame + tap,
                        channel,
                        d_before * weights.conv_weight[weight],
                    );
                }
            }
        }
        out.ssm_state[sequence * size..(sequence + 1) * size].copy_from_slice(&d_state);
        if let Some(states) = &d_final {
            for channel in 0..p.channels {
                for row in 0..HISTORY {
                    let value = states.conv[(sequence * p.channels + channel) * HISTORY + row];
                    add_tap(
                        &p,
                        &sequences,
                        &mut out.projected,
                        &mut out.conv_state,
                        sequence,
                        frames + row,
                        channel,
                        value,
                    );
                }
            }
        }
    }
    out
}

/// Adds the gradient of the convolution input three frames before `at`.
#[allow(clippy::too_many_arguments)]
fn add_tap<F: Float>(
    p: &Places,
    sequences: &Sequences<'_>,
    d_projected: &mut [F],
    d_history: &mut [F],
    sequence: usize,
    at: usize,
    channel: usize,
    value: F,
) {
    if at >= HISTORY && at - HISTORY < sequences.padding_of(sequence) {
        return;
    }
    let target = if at >= HISTORY {
        &mut d_projected[(sequence * sequences.frames + at - HISTORY) * p.row + p.inner + channel]
    } else {
        &mut d_history[(sequence * p.channels + channel) * HISTORY + at]
    };
    *target = *target + value;
}
