//! Backward pass in chunks, last to first.
//!
//! The decay of frame k scales what passes from frames before k to frames from k on, so its gradient is the sum of
//! four paths: from inputs before k and from the state before the chunk, to outputs from k on and to the state after
//! the chunk. Only the path inside the chunk is a difference of sums; that one is summed in f64 over the same values,
//! so that what should cancel does.
#![allow(unsafe_code)]

use super::chunk::{Chunk, TRIANGLE, scale, scale_rows, scaled_rows};
use super::forward::forward;
use super::gate::gate_backward;
use super::{Mamba2Config, Piece, Sequences, Source, States, TAPS, Weights, pieces};
use crate::causal_conv::{Columns, tap_rows};
use crate::simd::{Isa, dot, fused, inner_product, simd_fn};
use crate::small_gemm::{Left, multiply, transpose};
use crate::threads::Shared;
use rayon::prelude::*;

/// Gradients of all inputs, each shaped as its input.
#[derive(Debug)]
pub struct Gradients {
    /// `[batch, frames, projected]`
    pub projected: Vec<f32>,
    /// `[channels, 4]`
    pub conv_weight: Vec<f32>,
    /// `[channels]`
    pub conv_bias: Vec<f32>,
    /// `[heads]`
    pub dt_bias: Vec<f32>,
    /// `[heads]`
    pub a_log: Vec<f32>,
    /// `[heads]`
    pub d_skip: Vec<f32>,
    /// `[inner]`
    pub norm: Vec<f32>,
    /// Of the initial states, if there were any.
    pub initial: Option<InitialGradient>,
}

/// Gradients of the initial states.
#[derive(Debug)]
pub struct InitialGradient {
    /// `[batch, channels, 3]`
    pub conv: Vec<f32>,
    /// `[batch, heads, head width, state]`
    pub ssm: Vec<f32>,
}

/// Backward pass of [`forward`].
///
/// `saved` is (`scanned`, `chunk_states`) of the forward pass; without it both are computed again. `d_output`
/// `[batch, frames, inner]`; `d_final` is the gradient of the final states, if they were used.
///
/// # Panics
/// If a length does not fit the configuration.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    config: &Mamba2Config,
    sequences: Sequences<'_>,
    projected: &[f32],
    weights: &Weights<'_, f32>,
    initial: Option<States<'_, f32>>,
    saved: Option<(&[f32], &[f32])>,
    d_output: &[f32],
    d_final: Option<States<'_, f32>>,
) -> Gradients {
    config.check();
    weights.check(config);
    sequences.check(projected.len(), config.projected());
    let (batch, frames) = (sequences.batch, sequences.frames);
    assert_eq!(d_output.len(), batch * frames * config.inner, "mamba2 output gradient");
    for states in initial.iter().chain(&d_final) {
        states.check(config, batch);
    }
    let again;
    let (scanned, chunk_states) = match saved {
        Some(saved) => saved,
        None => {
            again = forward(config, sequences, projected, weights, initial, true, false);
            (again.scanned.as_slice(), again.chunk_states.as_slice())
        }
    };
    assert_eq!(scanned.len(), d_output.len(), "mamba2 saved scan");
    assert_eq!(
        chunk_states.len(),
        batch * frames.div_ceil(config.chunk) * config.ssm_state_size(),
        "mamba2 saved states"
    );

    let taps = tap_rows(weights.conv_weight, config.conv_channels());
    let source = Source::new(config, sequences, projected, initial, &taps, weights.conv_bias);
    let mut d_projected = vec![0.0f32; projected.len()];
    let (d_y, norm) = gate_backward(config, projected, weights.norm, scanned, d_output, &mut d_projected);

    let (list, parts) = pieces(config, batch);
    // dB and dC of each piece [batch, groups, parts, frames, 2 state]; added up below in this order.
    let shared_size = frames * 2 * config.state;
    let mut d_shared = vec![0.0f32; list.len() * shared_size];
    let mut d_ssm = vec![0.0f32; if initial.is_some() { batch * config.ssm_state_size() } else { 0 }];
    let per_head: Vec<Vec<[f64; 3]>> = {
        let results = Results { d_projected: Shared::new(&mut d_projected), d_ssm: Shared::new(&mut d_ssm) };
        let inputs = Inputs { source: &source, weights, chunk_states, d_y: &d_y, d_final };
        list.par_iter()
            .zip(d_shared.par_chunks_mut(shared_size.max(1)))
            .map(|(piece, d_shared)| scan_backward(&inputs, piece, d_shared, results))
            .collect()
    };
    add_shared(config, frames, parts, &d_shared, &mut d_projected);
    drop(d_shared);
    let columns =
        Columns { values: Shared::new(&mut d_projected), row_width: config.projected(), column: config.inner };
    let convolution = source.conv.backward(columns, columns, d_final.map(|states| states.conv));
    debug_assert_eq!(convolution.weight.len(), config.conv_channels() * TAPS);

    let mut sums = vec![[0.0f64; 3]; config.heads];
    for (piece, heads) in list.iter().zip(&per_head) {
        for (local, values) in heads.iter().enumerate() {
            for (sum, value) in sums[piece.first_head + local].iter_mut().zip(values) {
                *sum += value;
            }
        }
    }
    let of = |index: usize| sums.iter().map(|values| values[index] as f32).collect();
    Gradients {
        projected: d_projected,
        conv_weight: convolution.weight,
        conv_bias: convolution.bias,
        dt_bias: of(0),
        a_log: of(1),
        d_skip: of(2),
        norm,
        initial: initial.map(|_| InitialGradient { conv: convolution.history, ssm: d_ssm }),
    }
}

struct Inputs<'a> {
    source: &'a Source<'a>,
    weights: &'a Weights<'a, f32>,
    chunk_states: &'a [f32],
    d_y: &'a [f32],
    d_final: Option<States<'a, f32>>,
}

#[derive(Clone, Copy)]
struct Results<'a> {
    d_projected: Shared<'a, f32>,
    d_ssm: Shared<'a, f32>,
}

/// Adds the pieces' dB and dC into their columns of `d_projected`.
fn add_shared(config: &Mamba2Config, frames: usize, parts: usize, d_shared: &[f32], d_projected: &mut [f32]) {
    let (state, row_width, groups) = (config.state, config.projected(), config.groups);
    let b_column = 2 * config.inner;
    d_projected.par_chunks_mut(row_width).enumerate().for_each(|(row, line)| {
        let (sequence, frame) = (row / frames, row % frames);
        for group in 0..groups {
            for part in 0..parts {
                let piece = (sequence * groups + group) * parts + part;
                let source = &d_shared[(piece * frames + frame) * 2 * state..][..2 * state];
                let (d_b, d_c) = source.split_at(state);
                for (values, column) in [(d_b, b_column + group * state), (d_c, b_column + (groups + group) * state)] {
                    for (sum, value) in line[column..column + state].iter_mut().zip(values) {
                        *sum = if part == 0 { *value } else { *sum + value };
                    }
                }
            }
        }
    });
}

/// Backward scan of one piece; returns the gradients of (dt_bias, a_log, D) of its heads.
fn scan_backward(inputs: &Inputs<'_>, piece: &Piece, d_shared: &mut [f32], results: Results<'_>) -> Vec<[f64; 3]> {
    let (source, weights) = (inputs.source, inputs.weights);
    let config = &source.config;
    let (state, width, inner, row_width) = (config.state, config.head_width(), config.inner, config.projected());
    let chunks = source.conv.sequences.frames.div_ceil(config.chunk);
    let rows_max = config.chunk.min(source.conv.sequences.frames);
    let mut chunk = Chunk::new(config, source.conv.sequences.frames);
    let stride = chunk.stride;
    let mut sums = vec![[0.0f64; 3]; piece.heads];
    // Gradient of the state after the chunk at hand, [heads, state, head width].
    let mut d_states = vec![0.0f32; piece.heads * state * width];
    if let Some(d_final) = &inputs.d_final {
        for (local, target) in d_states.chunks_exact_mut(state * width).enumerate() {
            let at = (piece.sequence * config.heads + piece.first_head + local) * width * state;
            transpose(width, state, &d_final.ssm[at..], state, target, width);
        }
    }
    let head_buffer = || vec![0.0f32; rows_max * width];
    let (mut stepped, mut d_y, mut d_y_scaled, mut d_stepped) =
        (head_buffer(), head_buffer(), head_buffer(), head_buffer());
    let mut turned = vec![0.0f32; width * stride];
    let mut d_weights = vec![0.0f32; rows_max * stride];
    let mut d_products = vec![0.0f32; rows_max * stride];
    let (mut d_b_turned, mut d_c_turned) = (vec![0.0f32; state * stride], vec![0.0f32; state * stride]);
    let (mut d_b, mut d_c) = (vec![0.0f32; rows_max * state], vec![0.0f32; rows_max * state]);
    let (mut c_turned, mut d_c_head) = (vec![0.0f32; state * stride], vec![0.0f32; state * stride]);
    let (mut into_state, mut out_of_state) = (vec![0.0f32; rows_max], vec![0.0f32; rows_max]);
    let (mut row_sums, mut column_sums) = (vec![0.0f64; rows_max], vec![0.0f64; stride]);
    let mut x_pull = vec![0.0f32; rows_max];

    for index in (0..chunks).rev() {
        let from = index * config.chunk;
        let rows = config.chunk.min(source.conv.sequences.frames - from);
        chunk.load_group(source, piece, from, rows);
        transpose(rows, state, &chunk.c, state, &mut c_turned, stride);
        d_products.fill(0.0);
        for (local, d_state) in d_states.chunks_exact_mut(state * width).enumerate() {
            let head = piece.first_head + local;
            let accumulate = local > 0;
            let memory = &inputs.chunk_states
                [((piece.sequence * chunks + index) * config.heads + head) * state * width..][..state * width];
            chunk.load_head(source, weights, piece.sequence, head, from, rows);
            scaled_rows(&chunk.dt[..rows], width, &chunk.x, width, &mut stepped);
            let first = (piece.sequence * source.conv.sequences.frames + from) * inner + head * width;
            for row in 0..rows {
                d_y[row * width..][..width].copy_from_slice(&inputs.d_y[first + row * inner..][..width]);
            }
            scaled_rows(&chunk.from_start[..rows], width, &d_y, width, &mut d_y_scaled);

            // Inside the chunk: d(weights) = dy u^T; their decays feed d(products) before the decay buffer is reused.
            transpose(rows, width, &stepped, width, &mut turned, stride);
            for row in (0..rows).step_by(TRIANGLE) {
                let height = TRIANGLE.min(rows - row);
                let left = Left::rows(&d_y[row * width..], width);
                multiply(
                    height,
                    row + TRIANGLE,
                    width,
                    left,
                    &turned,
                    stride,
                    &mut d_weights[row * stride..],
                    stride,
                    false,
                );
            }
            column_sums.fill(0.0);
            join_products(
                rows,
                stride,
                &d_weights,
                &chunk.products,
                &mut chunk.decay,
                &mut d_products,
                &mut row_sums,
                &mut column_sums,
            );

            // du = exp(c_last - c_j) B_j dS + sum_i weights_ij dy_i
            multiply(rows, width, state, Left::rows(&chunk.b, state), d_state, width, &mut d_stepped, width, false);
            scale_rows(&chunk.to_end[..rows], width, &mut d_stepped, width);
            let across = f64::from(chunk.from_start[rows - 1] * inner_product(memory, d_state));
            for row in 0..rows {
                let part = row * width..(row + 1) * width;
                into_state[row] = inner_product(&stepped[part.clone()], &d_stepped[part]);
            }
            for row in (0..rows).step_by(TRIANGLE) {
                let height = TRIANGLE.min(rows - row);
                let left = Left::transposed(&chunk.decay, stride).skip(row, row);
                multiply(
                    height,
                    width,
                    rows - row,
                    left,
                    &d_y[row * width..],
                    width,
                    &mut d_stepped[row * width..],
                    width,
                    true,
                );
            }

            // dB^T += dS (exp(c_last - c_j) u_j)^T, dC^T += S (exp(c_i) dy_i)^T
            scale_columns(&chunk.to_end[..rows], width, stride, &mut turned);
            multiply(
                state,
                rows,
                width,
                Left::rows(d_state, width),
                &turned,
                stride,
                &mut d_b_turned,
                stride,
                accumulate,
            );
            transpose(rows, width, &d_y_scaled, width, &mut turned, stride);
            multiply(state, rows, width, Left::rows(memory, width), &turned, stride, &mut d_c_head, stride, false);
            out_of_state.fill(0.0);
            add_head(state, rows, stride, accumulate, &c_turned, &d_c_head, &mut d_c_turned, &mut out_of_state);

            // dS before the chunk
            scale(chunk.from_start[rows - 1], d_state);
            multiply(state, width, rows, Left::transposed(&chunk.c, state), &d_y_scaled, width, d_state, width, true);

            // Per frame: gradients of x, dt, the decay and D.
            let skip = weights.d_skip[head];
            let mut d_skip = 0.0f64;
            for row in 0..rows {
                let part = row * width..(row + 1) * width;
                // SAFETY: each head of each sequence belongs to one piece.
                let d_x = unsafe {
                    results.d_projected.part(
                        (piece.sequence * source.conv.sequences.frames + from + row) * row_width + inner + head * width,
                        width,
                    )
                };
                let [own, skipped] =
                    frame(skip, chunk.dt[row], &chunk.x[part.clone()], &d_y[part.clone()], &d_stepped[part], d_x);
                x_pull[row] = own;
                d_skip += f64::from(skipped);
            }
            let rate = -weights.a_log[head].exp();
            // Inputs of frames before `row` to the state after the chunk; the rest of the paths grows backwards in time.
            let mut before: f64 = into_state[..rows].iter().map(|value| f64::from(*value)).sum();
            let mut later = across;
            let [sum_bias, sum_rate, sum_skip] = &mut sums[local];
            for row in (0..rows).rev() {
                before -= f64::from(into_state[row]);
                later += f64::from(out_of_state[row]) + row_sums[row] - column_sums[row];
                let d_decay = later + before;
                let d_raw = (rate * d_decay as f32 + x_pull[row]) * chunk.dt_slope[row];
                *sum_bias += f64::from(d_raw);
                *sum_rate += f64::from(chunk.dt[row]) * f64::from(rate) * d_decay;
                // SAFETY: as above.
                let target = unsafe {
                    results.d_projected.part(
                        (piece.sequence * source.conv.sequences.frames + from + row) * row_width
                            + config.dt_column()
                            + head,
                        1,
                    )
                };
                target[0] = d_raw;
            }
            *sum_skip += d_skip;
        }
        transpose(state, rows, &d_b_turned, stride, &mut d_b, state);
        transpose(state, rows, &d_c_turned, stride, &mut d_c, state);
        for row in (0..rows).step_by(TRIANGLE) {
            let height = TRIANGLE.min(rows - row);
            let left = Left::rows(&d_products[row * stride..], stride);
            multiply(height, state, row + height, left, &chunk.b, state, &mut d_c[row * state..], state, true);
            let left = Left::transposed(&d_products, stride).skip(row, row);
            multiply(
                height,
                state,
                rows - row,
                left,
                &chunk.c[row * state..],
                state,
                &mut d_b[row * state..],
                state,
                true,
            );
        }
        for row in 0..rows {
            let line = &mut d_shared[(from + row) * 2 * state..][..2 * state];
            line[..state].copy_from_slice(&d_b[row * state..][..state]);
            line[state..].copy_from_slice(&d_c[row * state..][..state]);
        }
    }
    if source.initial.is_some() {
        for (local, d_state) in d_states.chunks_exact(state * width).enumerate() {
            let at = (piece.sequence * config.heads + piece.first_head + local) * width * state;
            // SAFETY: as above.
            let target = unsafe { results.d_ssm.part(at, width * state) };
            transpose(state, width, d_state, width, target, state);
        }
    }
    sums
}

simd_fn! {
    /// Over the lower triangle's tiles: `d_products += d_weights * decay`, then `decay *= products` (which makes it the
    /// weights), and the sums of `d_weights * weights` by row, and by column added to `column_sums`.
    fn join_products(rows: usize, stride: usize, d_weights: &[f32], products: &[f32], decay: &mut [f32], d_products: &mut [f32], row_sums: &mut [f64], column_sums: &mut [f64]) = join_products_body
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn join_products_body<I: Isa>(
    rows: usize,
    stride: usize,
    d_weights: &[f32],
    products: &[f32],
    decay: &mut [f32],
    d_products: &mut [f32],
    row_sums: &mut [f64],
    column_sums: &mut [f64],
) {
    for row in 0..rows {
        let columns = row / TRIANGLE * TRIANGLE + TRIANGLE;
        let from = row * stride;
        let (d_weights, products) = (&d_weights[from..][..columns], &products[from..][..columns]);
        let (decay, d_products, column_sums) =
            (&mut decay[from..][..columns], &mut d_products[from..][..columns], &mut column_sums[..columns]);
        let mut lanes = [0.0f64; TRIANGLE];
        for block in (0..columns).step_by(TRIANGLE) {
            for lane in 0..TRIANGLE {
                let c = block + lane;
                d_products[c] = fused::<I>(d_weights[c], decay[c], d_products[c]);
                decay[c] *= products[c];
                let share = f64::from(d_weights[c] * decay[c]);
                lanes[lane] += share;
                column_sums[c] += share;
            }
        }
        row_sums[row] = lanes.iter().sum();
    }
}

simd_fn! {
    /// `total += head` (or `=`), and by column the sums of `c * head` into `sums`.
    fn add_head(state: usize, rows: usize, stride: usize, accumulate: bool, c: &[f32], head: &[f32], total: &mut [f32], sums: &mut [f32]) = add_head_body
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn add_head_body<I: Isa>(
    state: usize,
    rows: usize,
    stride: usize,
    accumulate: bool,
    c: &[f32],
    head: &[f32],
    total: &mut [f32],
    sums: &mut [f32],
) {
    let sums = &mut sums[..rows];
    for n in 0..state {
        let (c, head, total) =
            (&c[n * stride..][..rows], &head[n * stride..][..rows], &mut total[n * stride..][..rows]);
        for row in 0..rows {
            sums[row] = fused::<I>(c[row], head[row], sums[row]);
            total[row] = if accumulate { total[row] + head[row] } else { head[row] };
        }
    }
}

simd_fn! {
    /// `matrix[r][c] *= factors[c]` for `rows` rows.
    fn scale_columns(factors: &[f32], rows: usize, stride: usize, matrix: &mut [f32]) = scale_columns_body
}

#[inline(always)]
fn scale_columns_body<I: Isa>(factors: &[f32], rows: usize, stride: usize, matrix: &mut [f32]) {
    for row in 0..rows {
        let line = &mut matrix[row * stride..][..factors.len()];
        for (value, factor) in line.iter_mut().zip(factors) {
            *value *= factor;
        }
    }
}

simd_fn! {
    /// dx of one frame of one head; returns (x . du, x . dy).
    fn frame(skip: f32, dt: f32, x: &[f32], d_y: &[f32], d_stepped: &[f32], d_x: &mut [f32]) -> [f32; 2] = frame_body
}

#[inline(always)]
fn frame_body<I: Isa>(skip: f32, dt: f32, x: &[f32], d_y: &[f32], d_stepped: &[f32], d_x: &mut [f32]) -> [f32; 2] {
    let width = x.len();
    let (d_y, d_stepped, d_x) = (&d_y[..width], &d_stepped[..width], &mut d_x[..width]);
    for c in 0..width {
        d_x[c] = fused::<I>(dt, d_stepped[c], skip * d_y[c]);
    }
    [dot::<I>(x, d_stepped), dot::<I>(x, d_y)]
}
