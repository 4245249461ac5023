//! The recurrence frame by frame, generic over f32 and f64: the oracle of the fused path.

use super::{Mamba1Config, Projections, Sequences, States, Weights};
use crate::plain::{Convolution, silu, silu_slope, softplus, softplus_slope};
use num_traits::Float;

/// What the recurrence computes, and what its backward pass reads again.
#[derive(Debug)]
pub struct Trace<F> {
    /// `[batch, frames, inner]`
    pub output: Vec<F>,
    /// Final `[batch, inner, 3]`
    pub conv_state: Vec<F>,
    /// Final `[batch, inner, state]`
    pub ssm_state: Vec<F>,
    /// Convolution before SiLU `[batch, frames, inner]`
    before: Vec<F>,
    /// `[batch, frames, rank + 2 state]`
    selected: Vec<F>,
    /// Steps before softplus, with bias `[batch, frames, inner]`
    raw: Vec<F>,
    /// Scan output before the gate `[batch, frames, inner]`
    scanned: Vec<F>,
    /// States before and after every frame `[batch, frames + 1, inner, state]`
    states: Vec<F>,
}

/// Gradients, each shaped as its input.
#[derive(Debug)]
pub struct PlainGradients<F> {
    /// `[batch, frames, 2 inner]`
    pub projected: Vec<F>,
    /// `[inner, 4]`
    pub conv_weight: Vec<F>,
    /// `[inner]`
    pub conv_bias: Vec<F>,
    /// `[rank + 2 state, inner]`
    pub x_projection: Vec<F>,
    /// `[inner, rank]`
    pub dt_projection: Vec<F>,
    /// `[inner]`
    pub dt_bias: Vec<F>,
    /// `[inner, state]`
    pub a_log: Vec<F>,
    /// `[inner]`
    pub d_skip: Vec<F>,
    /// Of the initial states: `[batch, inner, 3]`
    pub conv_state: Vec<F>,
    /// Of the initial states: `[batch, inner, state]`
    pub ssm_state: Vec<F>,
}

fn convolution<'a, F: Float>(
    config: &Mamba1Config,
    sequences: Sequences<'a>,
    projected: &'a [F],
    weights: &Weights<'a, F>,
    initial: Option<States<'a, F>>,
) -> Convolution<'a, F> {
    Convolution {
        sequences,
        values: projected,
        row_width: config.projected(),
        column: 0,
        weight: weights.conv_weight,
        bias: weights.conv_bias,
        history: initial.map(|states| states.conv),
    }
}

/// `matrix x` for a row-major matrix.
fn product<F: Float>(matrix: &[F], x: &[F]) -> Vec<F> {
    let row = |row: &[F]| row.iter().zip(x).fold(F::zero(), |sum, (a, b)| sum + *a * *b);
    matrix.chunks_exact(x.len()).map(row).collect()
}

/// Adds the gradients of [`product`] for one x: `d_matrix += d x^T`, `d_x += matrix^T d`.
fn undo_product<F: Float>(matrix: &[F], x: &[F], d: &[F], d_matrix: &mut [F], d_x: &mut [F]) {
    for (row, &d) in d.iter().enumerate() {
        for (column, &x_value) in x.iter().enumerate() {
            let at = row * x.len() + column;
            d_matrix[at] = d_matrix[at] + d * x_value;
            d_x[column] = d_x[column] + d * matrix[at];
        }
    }
}

/// Runs the recurrence; arguments as in [`super::forward`].
///
/// # Panics
/// If a length does not fit the configuration.
pub fn forward<F: Float>(
    config: &Mamba1Config,
    sequences: Sequences<'_>,
    projected: &[F],
    weights: &Weights<'_, F>,
    projections: &Projections<'_, F>,
    initial: Option<States<'_, F>>,
) -> Trace<F> {
    config.check();
    weights.check(config);
    projections.check(config);
    sequences.check(projected.len(), config.projected());
    let (inner, state, rank) = (config.inner, config.state, config.rank);
    let size = config.ssm_state_size();
    let conv = convolution(config, sequences, projected, weights, initial);
    let mut trace = Trace {
        output: Vec::new(),
        conv_state: conv.final_history(),
        ssm_state: Vec::new(),
        before: Vec::new(),
        selected: Vec::new(),
        raw: Vec::new(),
        scanned: Vec::new(),
        states: Vec::new(),
    };
    for sequence in 0..sequences.batch {
        let mut s = match &initial {
            Some(states) => states.ssm[sequence * size..(sequence + 1) * size].to_vec(),
            None => vec![F::zero(); size],
        };
        trace.states.extend_from_slice(&s);
        for frame in 0..sequences.frames {
            let z = &projected[(2 * (sequence * sequences.frames + frame) + 1) * inner..][..inner];
            let before = conv.frame(sequence, frame);
            let x: Vec<F> = before.iter().map(|value| silu(*value)).collect();
            let selected = product(projections.x, &x);
            let (b, c) = selected[rank..].split_at(state);
            let steps = product(projections.dt, &selected[..rank]);
            let raw: Vec<F> = steps.iter().zip(weights.dt_bias).map(|(step, bias)| *step + *bias).collect();
            for channel in 0..inner {
                let padded = frame < sequences.padding_of(sequence);
                let dt = if padded { F::zero() } else { softplus(raw[channel]) };
                let mut y = weights.d_skip[channel] * x[channel];
                for n in 0..state {
                    let at = channel * state + n;
                    s[at] = (dt * -weights.a_log[at].exp()).exp() * s[at] + dt * b[n] * x[channel];
                    y = y + s[at] * c[n];
                }
                trace.scanned.push(y);
                trace.output.push(y * silu(z[channel]));
            }
            trace.states.extend_from_slice(&s);
            trace.before.extend(before);
            trace.selected.extend(selected);
            trace.raw.extend(raw);
        }
        trace.ssm_state.extend(s);
    }
    trace
}

/// Backward pass through time; `d_final` holds the gradients of the final states.
///
/// # Panics
/// If a length does not fit the configuration.
#[allow(clippy::too_many_arguments)]
pub fn backward<F: Float>(
    config: &Mamba1Config,
    sequences: Sequences<'_>,
    projected: &[F],
    weights: &Weights<'_, F>,
    projections: &Projections<'_, F>,
    initial: Option<States<'_, F>>,
    trace: &Trace<F>,
    d_output: &[F],
    d_final: Option<States<'_, F>>,
) -> PlainGradients<F> {
    let (inner, state, rank, selected_width) = (config.inner, config.state, config.rank, config.selected());
    let size = config.ssm_state_size();
    let frames = sequences.frames;
    let zeros = |length: usize| vec![F::zero(); length];
    let mut out = PlainGradients {
        projected: zeros(projected.len()),
        conv_weight: Vec::new(),
        conv_bias: Vec::new(),
        x_projection: zeros(projections.x.len()),
        dt_projection: zeros(projections.dt.len()),
        dt_bias: zeros(inner),
        a_log: zeros(size),
        d_skip: zeros(inner),
        conv_state: Vec::new(),
        ssm_state: Vec::new(),
    };
    let mut d_before = zeros(trace.before.len());
    for sequence in 0..sequences.batch {
        let mut d_s = match &d_final {
            Some(states) => states.ssm[sequence * size..(sequence + 1) * size].to_vec(),
            None => zeros(size),
        };
        for frame in (0..frames).rev() {
            let row = sequence * frames + frame;
            let part = row * inner..(row + 1) * inner;
            let (before, raw) = (&trace.before[part.clone()], &trace.raw[part.clone()]);
            let (scanned, d_out) = (&trace.scanned[part.clone()], &d_output[part.clone()]);
            let selected = &trace.selected[row * selected_width..][..selected_width];
            let (b, c) = selected[rank..].split_at(state);
            let states = &trace.states[(sequence * (frames + 1) + frame) * size..][..2 * size];
            let (old, new) = states.split_at(size);
            let x: Vec<F> = before.iter().map(|value| silu(*value)).collect();
            let (mut d_x, mut d_raw, mut d_selected) = (zeros(inner), zeros(inner), zeros(selected_width));
            for channel in 0..inner {
                let padded = frame < sequences.padding_of(sequence);
                let dt = if padded { F::zero() } else { softplus(raw[channel]) };
                let z_at = (2 * row + 1) * inner + channel;
                let d_y = d_out[channel] * silu(projected[z_at]);
                out.projected[z_at] = d_out[channel] * scanned[channel] * silu_slope(projected[z_at]);
                out.d_skip[channel] = out.d_skip[channel] + d_y * x[channel];
                d_x[channel] = d_y * weights.d_skip[channel];
                let mut d_dt = F::zero();
                for n in 0..state {
                    let at = channel * state + n;
                    let rate = -weights.a_log[at].exp();
                    let decay = (dt * rate).exp();
                    let d_cell = d_s[at] + d_y * c[n];
                    d_selected[rank + state + n] = d_selected[rank + state + n] + d_y * new[at];
                    d_selected[rank + n] = d_selected[rank + n] + d_cell * dt * x[channel];
                    d_x[channel] = d_x[channel] + d_cell * dt * b[n];
                    d_dt = d_dt + d_cell * (x[channel] * b[n] + old[at] * decay * rate);
                    out.a_log[at] = out.a_log[at] + d_cell * old[at] * decay * dt * rate;
                    d_s[at] = d_cell * decay;
                }
                d_raw[channel] = if padded { F::zero() } else { d_dt * softplus_slope(raw[channel]) };
                out.dt_bias[channel] = out.dt_bias[channel] + d_raw[channel];
            }
            let (low, d_low) = (&selected[..rank], &mut d_selected[..rank]);
            undo_product(projections.dt, low, &d_raw, &mut out.dt_projection, d_low);
            undo_product(projections.x, &x, &d_selected, &mut out.x_projection, &mut d_x);
            for (at, (d_x, before)) in part.zip(d_x.iter().zip(before)) {
                d_before[at] = *d_x * silu_slope(*before);
            }
        }
        out.ssm_state.extend(d_s);
    }
    let conv = convolution(config, sequences, projected, weights, initial);
    let d_conv = conv.backward(&d_before, d_final.map(|states| states.conv), &mut out.projected);
    (out.conv_weight, out.conv_bias, out.conv_state) = (d_conv.weight, d_conv.bias, d_conv.history);
    out
}
