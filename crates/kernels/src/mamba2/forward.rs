//! Forward pass in chunks.
#![allow(unsafe_code)]

use super::chunk::{Chunk, TRIANGLE, scale, scale_rows, scaled_rows};
use super::gate::gate_forward;
use super::{Mamba2Config, Piece, Sequences, Source, States, Weights, pieces};
use crate::causal_conv::tap_rows;
use crate::simd::{Isa, fused, simd_fn};
use crate::small_gemm::{Left, multiply, transpose};
use crate::threads::Shared;
use rayon::prelude::*;

/// Results of the forward pass.
#[derive(Debug, Default)]
pub struct Forward {
    /// `[batch, frames, inner]`
    pub output: Vec<f32>,
    /// For the backward pass, if asked for: the scan's output before gate and norm, `[batch, frames, inner]`.
    pub scanned: Vec<f32>,
    /// For the backward pass, if asked for: the state before each chunk, `[batch, chunks, heads, state, head width]`.
    pub chunk_states: Vec<f32>,
    /// Final `[batch, channels, 3]`, if states were asked for.
    pub conv_state: Vec<f32>,
    /// Final `[batch, heads, head width, state]`, if states were asked for.
    pub ssm_state: Vec<f32>,
}

/// Runs the mixer over the frames of a batch of sequences.
///
/// `projected` `[batch, frames, projected]` is the input projection's output. `keep` saves what makes the backward
/// pass cheaper; `states` asks for the final states.
///
/// # Panics
/// If a length does not fit the configuration.
#[allow(clippy::too_many_arguments)]
pub fn forward(
    config: &Mamba2Config,
    sequences: Sequences<'_>,
    projected: &[f32],
    weights: &Weights<'_, f32>,
    initial: Option<States<'_, f32>>,
    keep: bool,
    states: bool,
) -> Forward {
    config.check();
    weights.check(config);
    sequences.check(projected.len(), config.projected());
    let (batch, frames) = (sequences.batch, sequences.frames);
    if let Some(initial) = &initial {
        initial.check(config, batch);
    }
    let taps = tap_rows(weights.conv_weight, config.conv_channels());
    let source = Source::new(config, sequences, projected, initial, &taps, weights.conv_bias);
    let mut out = Forward::default();
    let mut scanned = vec![0.0; batch * frames * config.inner];
    if keep {
        out.chunk_states = vec![0.0; batch * frames.div_ceil(config.chunk) * config.ssm_state_size()];
    }
    if states {
        out.ssm_state = vec![0.0; batch * config.ssm_state_size()];
        out.conv_state = source.conv.final_state();
    }
    {
        let results = Results {
            scanned: Shared::new(&mut scanned),
            chunk_states: keep.then(|| Shared::new(&mut out.chunk_states)),
            ssm_state: states.then(|| Shared::new(&mut out.ssm_state)),
        };
        pieces(config, batch).0.into_par_iter().for_each(|piece| scan(&source, weights, &piece, results));
    }
    if keep {
        out.output = vec![0.0; scanned.len()];
        gate_forward(config, projected, weights.norm, Some(&scanned), &mut out.output);
        out.scanned = scanned;
    } else {
        gate_forward(config, projected, weights.norm, None, &mut scanned);
        out.output = scanned;
    }
    out
}

#[derive(Clone, Copy)]
struct Results<'a> {
    scanned: Shared<'a, f32>,
    chunk_states: Option<Shared<'a, f32>>,
    ssm_state: Option<Shared<'a, f32>>,
}

/// The state of a piece's heads `[heads, state, head width]`, from the initial states or zero.
fn initial_state(source: &Source<'_>, piece: &Piece) -> Vec<f32> {
    let (state, width) = (source.config.state, source.config.head_width());
    let mut out = vec![0.0; piece.heads * state * width];
    if let Some(initial) = source.initial {
        for (head, target) in out.chunks_exact_mut(state * width).enumerate() {
            let at = (piece.sequence * source.config.heads + piece.first_head + head) * width * state;
            transpose(width, state, &initial[at..], state, target, width);
        }
    }
    out
}

fn scan(source: &Source<'_>, weights: &Weights<'_, f32>, piece: &Piece, results: Results<'_>) {
    let config = &source.config;
    let (state, width, inner) = (config.state, config.head_width(), config.inner);
    let chunks = source.conv.sequences.frames.div_ceil(config.chunk);
    let mut chunk = Chunk::new(config, source.conv.sequences.frames);
    let mut states = initial_state(source, piece);
    let rows_max = config.chunk.min(source.conv.sequences.frames);
    let (mut stepped, mut y) = (vec![0.0; rows_max * width], vec![0.0; rows_max * width]);
    for index in 0..chunks {
        let from = index * config.chunk;
        let rows = config.chunk.min(source.conv.sequences.frames - from);
        chunk.load_group(source, piece, from, rows);
        for (local, memory) in states.chunks_exact_mut(state * width).enumerate() {
            let head = piece.first_head + local;
            chunk.load_head(source, weights, piece.sequence, head, from, rows);
            if let Some(saved) = results.chunk_states {
                // SAFETY: each head of each sequence belongs to one piece.
                let target = unsafe {
                    saved.part(((piece.sequence * chunks + index) * config.heads + head) * state * width, state * width)
                };
                target.copy_from_slice(memory);
            }
            // y = exp(c_i) C_i S + D x_i + sum_j exp(c_i - c_j) (C_i B_j) dt_j x_j
            multiply(rows, width, state, Left::rows(&chunk.c, state), memory, width, &mut y, width, false);
            join(&chunk.from_start[..rows], weights.d_skip[head], width, &chunk.x, &mut y);
            scaled_rows(&chunk.dt[..rows], width, &chunk.x, width, &mut stepped);
            weigh(rows, chunk.stride, &chunk.products, &mut chunk.decay);
            for row in (0..rows).step_by(TRIANGLE) {
                let height = TRIANGLE.min(rows - row);
                let left = Left::rows(&chunk.decay[row * chunk.stride..], chunk.stride);
                multiply(height, width, row + height, left, &stepped, width, &mut y[row * width..], width, true);
            }
            for row in 0..rows {
                // SAFETY: as above.
                let target = unsafe {
                    results.scanned.part(
                        (piece.sequence * source.conv.sequences.frames + from + row) * inner + head * width,
                        width,
                    )
                };
                target.copy_from_slice(&y[row * width..][..width]);
            }
            // S <- exp(c_last) S + sum_j exp(c_last - c_j) B_j (outer) dt_j x_j
            scale(chunk.from_start[rows - 1], memory);
            scale_rows(&chunk.to_end[..rows], width, &mut stepped, width);
            multiply(
                state,
                width,
                rows,
                Left::rows(&chunk.b_turned, chunk.stride),
                &stepped,
                width,
                memory,
                width,
                true,
            );
        }
    }
    if let Some(target) = results.ssm_state {
        for (local, memory) in states.chunks_exact(state * width).enumerate() {
            let at = (piece.sequence * config.heads + piece.first_head + local) * width * state;
            // SAFETY: as above.
            let target = unsafe { target.part(at, width * state) };
            transpose(state, width, memory, width, target, state);
        }
    }
}

simd_fn! {
    /// `y[i] = factors[i] * y[i] + skip * x[i]`
    fn join(factors: &[f32], skip: f32, width: usize, x: &[f32], y: &mut [f32]) = join_body
}

#[inline(always)]
fn join_body<I: Isa>(factors: &[f32], skip: f32, width: usize, x: &[f32], y: &mut [f32]) {
    for (row, factor) in factors.iter().enumerate() {
        let line = &mut y[row * width..][..width];
        for (value, x) in line.iter_mut().zip(&x[row * width..][..width]) {
            *value = fused::<I>(*factor, *value, skip * x);
        }
    }
}

simd_fn! {
    /// `decay *= products` over the lower triangle's tiles.
    fn weigh(rows: usize, stride: usize, products: &[f32], decay: &mut [f32]) = weigh_body
}

#[inline(always)]
fn weigh_body<I: Isa>(rows: usize, stride: usize, products: &[f32], decay: &mut [f32]) {
    for row in 0..rows {
        let columns = row / TRIANGLE * TRIANGLE + TRIANGLE;
        let (line, source) = (&mut decay[row * stride..][..columns], &products[row * stride..][..columns]);
        for (value, product) in line.iter_mut().zip(source) {
            *value *= product;
        }
    }
}
