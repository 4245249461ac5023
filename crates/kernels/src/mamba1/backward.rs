//! Backward pass: scan, then the two products inside, then the convolution.

use super::forward::{Saved, convolution, forward, low_rank};
use super::lanes::{BLOCK, as_lanes};
use super::scan_backward::scan_backward;
use super::tile::{Scan, rates};
use super::{Mamba1Config, Projections, Sequences, States, Weights};
use crate::bf16_product::MatrixPrecision;
use crate::causal_conv::{Columns, tap_rows};
use crate::linear::{Matrix, Start};
use crate::threads::Shared;

/// Gradients of all inputs, each shaped as its input.
#[derive(Debug)]
pub struct Gradients {
    /// `[batch, frames, 2 inner]`
    pub projected: Vec<f32>,
    /// `[inner, 4]`
    pub conv_weight: Vec<f32>,
    /// `[inner]`
    pub conv_bias: Vec<f32>,
    /// `[rank + 2 state, inner]`
    pub x_projection: Vec<f32>,
    /// `[inner, rank]`
    pub dt_projection: Vec<f32>,
    /// `[inner]`
    pub dt_bias: Vec<f32>,
    /// `[inner, state]`
    pub a_log: Vec<f32>,
    /// `[inner]`
    pub d_skip: Vec<f32>,
    /// Of the initial states, if there were any.
    pub initial: Option<InitialGradient>,
}

/// Gradients of the initial states.
#[derive(Debug)]
pub struct InitialGradient {
    /// `[batch, inner, 3]`
    pub conv: Vec<f32>,
    /// `[batch, inner, state]`
    pub ssm: Vec<f32>,
}

/// Backward pass of [`forward`].
///
/// `saved` is what the forward pass kept; without it, it is computed again. `d_output` `[batch, frames, inner]`;
/// `d_final` is the gradient of the final states, if they were used.
///
/// # Panics
/// If a length does not fit the configuration.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    config: &Mamba1Config,
    sequences: Sequences<'_>,
    projected: &[f32],
    weights: &Weights<'_, f32>,
    projections: &Projections<'_, f32>,
    precision: MatrixPrecision,
    initial: Option<States<'_, f32>>,
    saved: Option<Saved<&[f32]>>,
    d_output: &[f32],
    d_final: Option<States<'_, f32>>,
) -> Gradients {
    config.check();
    weights.check(config);
    projections.check(config);
    sequences.check(projected.len(), config.projected());
    let (inner, rank, selected_width) = (config.inner, config.rank, config.selected());
    let rows = sequences.batch * sequences.frames;
    assert_eq!(d_output.len(), rows * inner, "mamba1 output gradient");
    for states in initial.iter().chain(&d_final) {
        states.check(config, sequences.batch);
    }
    let again;
    let saved = match saved {
        Some(saved) => saved,
        None => {
            again = forward(config, sequences, projected, weights, projections, precision, initial, true, false);
            again.saved.as_ref().expect("the forward pass was asked to keep it").view()
        }
    };
    let Saved { x, selected, dt_raw, chunk_states } = saved;
    assert_eq!(x.len(), rows * inner, "mamba1 saved x");
    assert_eq!(selected.len(), rows * selected_width, "mamba1 saved selection");
    assert_eq!(dt_raw.len(), rows * inner, "mamba1 saved steps");
    let chunks = sequences.batch * inner.div_ceil(BLOCK) * sequences.frames.div_ceil(config.chunk);
    assert_eq!(chunk_states.len(), chunks * config.state * BLOCK, "mamba1 saved states");

    let rates = rates(config, weights.a_log);
    let scan = Scan { config: *config, sequences, projected, x, selected, dt_raw, weights: *weights, rates: &rates };
    let mut d_projected = vec![0.0; projected.len()];
    let mut d = scan_backward(
        &scan,
        as_lanes(chunk_states),
        d_output,
        d_final.map(|states| states.ssm),
        initial.is_some(),
        &mut d_projected,
    );

    let d_dt_raw = Matrix::new(&d.dt_raw, rows, inner);
    let mut d_low = vec![0.0; rows * rank];
    precision.multiply(d_dt_raw, Matrix::new(projections.dt, inner, rank), &mut d_low, Start::Zero);
    let mut dt_projection = vec![0.0; inner * rank];
    let low = low_rank(config, selected);
    precision.multiply(d_dt_raw.turned(), Matrix::new(&low, rows, rank), &mut dt_projection, Start::Zero);
    for (line, low) in d.selected.chunks_exact_mut(selected_width).zip(d_low.chunks_exact(rank)) {
        line[..rank].copy_from_slice(low);
    }
    let d_selected = Matrix::new(&d.selected, rows, selected_width);
    let mut x_projection = vec![0.0; selected_width * inner];
    precision.multiply(d_selected.turned(), Matrix::new(x, rows, inner), &mut x_projection, Start::Zero);
    precision.multiply(d_selected, Matrix::new(projections.x, selected_width, inner), &mut d.x, Start::Output);

    let taps = tap_rows(weights.conv_weight, inner);
    let conv = convolution(config, sequences, projected, weights, initial, &taps);
    let d_active = Columns { values: Shared::new(&mut d.x), row_width: inner, column: 0 };
    let d_inputs = Columns { values: Shared::new(&mut d_projected), row_width: config.projected(), column: 0 };
    let d_conv = conv.backward(d_active, d_inputs, d_final.map(|states| states.conv));
    Gradients {
        projected: d_projected,
        conv_weight: d_conv.weight,
        conv_bias: d_conv.bias,
        x_projection,
        dt_projection,
        dt_bias: d.dt_bias,
        a_log: d.a_log,
        d_skip: d.d_skip,
        initial: initial.map(|_| InitialGradient { conv: d_conv.history, ssm: d.initial }),
    }
}
