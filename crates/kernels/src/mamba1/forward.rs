//! Forward pass, the channels in blocks and the frames in chunks.
#![allow(unsafe_code)]

use super::lanes::{BLOCK, lanes, store};
use super::tile::{Place, Scan, Tile, advance, load, rates, silu, write_states};
use super::{Mamba1Config, Projections, Sequences, States, Weights};
use crate::bf16_product::MatrixPrecision;
use crate::causal_conv::{Conv, tap_rows};
use crate::linear::{Matrix, Start};
use crate::simd::{Isa, simd_fn};
use crate::threads::Shared;
use rayon::prelude::*;

/// What the backward pass reads again, as vectors or slices.
#[derive(Clone, Copy, Debug)]
pub struct Saved<S> {
    /// Activated x `[batch, frames, inner]`
    pub x: S,
    /// Low-rank step, B and C `[batch, frames, rank + 2 state]`
    pub selected: S,
    /// Steps before bias and softplus `[batch, frames, inner]`
    pub dt_raw: S,
    /// The state before each chunk, `[batch, blocks of 32 channels, chunks, state, 32]`
    pub chunk_states: S,
}

impl Saved<Vec<f32>> {
    /// The same as slices.
    pub fn view(&self) -> Saved<&[f32]> {
        Saved { x: &self.x, selected: &self.selected, dt_raw: &self.dt_raw, chunk_states: &self.chunk_states }
    }
}

/// Results of the forward pass.
#[derive(Debug, Default)]
pub struct Forward {
    /// `[batch, frames, inner]`
    pub output: Vec<f32>,
    /// For the backward pass, if asked for.
    pub saved: Option<Saved<Vec<f32>>>,
    /// Final `[batch, inner, 3]`, if states were asked for.
    pub conv_state: Vec<f32>,
    /// Final `[batch, inner, state]`, if states were asked for.
    pub ssm_state: Vec<f32>,
}

/// Runs the mixer over the frames of a batch of sequences.
///
/// `projected` `[batch, frames, 2 inner]` is the input projection's output; `precision` is that of the two products
/// inside. `keep` saves what makes the backward pass cheaper; `states` asks for the final states.
///
/// # Panics
/// If a length does not fit the configuration.
#[allow(clippy::too_many_arguments)]
pub fn forward(
    config: &Mamba1Config,
    sequences: Sequences<'_>,
    projected: &[f32],
    weights: &Weights<'_, f32>,
    projections: &Projections<'_, f32>,
    precision: MatrixPrecision,
    initial: Option<States<'_, f32>>,
    keep: bool,
    states: bool,
) -> Forward {
    config.check();
    weights.check(config);
    projections.check(config);
    sequences.check(projected.len(), config.projected());
    if let Some(initial) = &initial {
        initial.check(config, sequences.batch);
    }
    let rows = sequences.batch * sequences.frames;
    let (inner, selected_width) = (config.inner, config.selected());
    let taps = tap_rows(weights.conv_weight, inner);
    let conv = convolution(config, sequences, projected, weights, initial, &taps);
    let x = conv.forward();
    let mut selected = vec![0.0; rows * selected_width];
    let x_projection = Matrix::new(projections.x, selected_width, inner).turned();
    precision.multiply(Matrix::new(&x, rows, inner), x_projection, &mut selected, Start::Zero);
    let low = low_rank(config, &selected);
    let mut dt_raw = vec![0.0; rows * inner];
    let dt_projection = Matrix::new(projections.dt, inner, config.rank).turned();
    precision.multiply(Matrix::new(&low, rows, config.rank), dt_projection, &mut dt_raw, Start::Zero);

    let rates = rates(config, weights.a_log);
    let scan = Scan {
        config: *config,
        sequences,
        projected,
        x: &x,
        selected: &selected,
        dt_raw: &dt_raw,
        weights: *weights,
        rates: &rates,
    };
    let tasks = sequences.batch * scan.blocks();
    let mut output = vec![0.0; rows * inner];
    let mut chunk_states = vec![0.0; if keep { tasks * scan.chunks() * config.state * BLOCK } else { 0 }];
    let mut ssm_state = vec![0.0; if states { sequences.batch * config.ssm_state_size() } else { 0 }];
    {
        let results = Results {
            output: Shared::new(&mut output),
            chunk_states: keep.then(|| Shared::new(&mut chunk_states)),
            ssm_state: states.then(|| Shared::new(&mut ssm_state)),
        };
        (0..tasks).into_par_iter().for_each(|task| {
            run(&scan, initial.map(|states| states.ssm), task / scan.blocks(), task % scan.blocks(), results);
        });
    }
    let conv_state = if states { conv.final_state() } else { Vec::new() };
    let saved = keep.then_some(Saved { x, selected, dt_raw, chunk_states });
    Forward { output, saved, conv_state, ssm_state }
}

/// The convolution over x, the first half of the projected rows; `taps` from [`tap_rows`].
pub(super) fn convolution<'a>(
    config: &Mamba1Config,
    sequences: Sequences<'a>,
    projected: &'a [f32],
    weights: &Weights<'a, f32>,
    initial: Option<States<'a, f32>>,
    taps: &'a [f32],
) -> Conv<'a> {
    Conv {
        sequences,
        values: projected,
        row_width: config.projected(),
        column: 0,
        channels: config.inner,
        initial: initial.map(|states| states.conv),
        taps,
        bias: weights.conv_bias,
    }
}

/// The first `rank` columns of what is selected, rows close together.
pub(super) fn low_rank(config: &Mamba1Config, selected: &[f32]) -> Vec<f32> {
    selected.chunks_exact(config.selected()).flat_map(|row| &row[..config.rank]).copied().collect()
}

#[derive(Clone, Copy)]
struct Results<'a> {
    output: Shared<'a, f32>,
    chunk_states: Option<Shared<'a, f32>>,
    ssm_state: Option<Shared<'a, f32>>,
}

/// Scans one block of one sequence.
fn run(scan: &Scan<'_>, initial: Option<&[f32]>, sequence: usize, block: usize, results: Results<'_>) {
    let first = scan.place(sequence, block, 0);
    let mut states = scan.block_states(initial, &first);
    let mut tile = Tile::new(scan.rows_max());
    for chunk in 0..scan.chunks() {
        let place = scan.place(sequence, block, chunk);
        if let Some(saved) = results.chunk_states {
            // SAFETY: each block of each sequence is one task.
            let target = unsafe { saved.part(scan.kept_at(&place) * BLOCK, scan.config.state * BLOCK) };
            target.copy_from_slice(states.as_flattened());
        }
        load(scan, &place, &mut tile);
        advance(scan, &place, &mut tile, &mut states);
        gate(scan, &place, &tile, results.output);
    }
    if let Some(target) = results.ssm_state {
        let (at, length) = scan.states_at(&first);
        // SAFETY: as above.
        write_states(&states, unsafe { target.part(at, length) });
    }
}

simd_fn! {
    /// `y silu(z)` into the place's part of `[batch, frames, inner]`.
    fn gate(scan: &Scan<'_>, place: &Place, tile: &Tile, output: Shared<'_, f32>) = gate_body
}

#[inline(always)]
fn gate_body<I: Isa>(scan: &Scan<'_>, place: &Place, tile: &Tile, output: Shared<'_, f32>) {
    for (row, y) in tile.y[..place.rows].iter().enumerate() {
        let mut gated = lanes(scan.z(place, row));
        for lane in 0..BLOCK {
            gated[lane] = y[lane] * silu::<I>(gated[lane]).0;
        }
        // SAFETY: each block of each sequence is one task.
        store(&gated, unsafe { output.part(scan.at(place, row), place.width) });
    }
}
