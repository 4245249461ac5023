//! Causal depthwise convolution of width 4 with SiLU on some columns of wider rows, and its backward pass: the local
//! mixing in front of the scans of Mamba-1 and Mamba-2.
//!
//! Laws: padding counts as zero inputs; a sequence may be cut anywhere if the last three inputs are carried over.

use crate::sequences::Sequences;
use crate::simd::{Isa, fused, sigmoid, simd_fn};
use crate::threads::{Shared, sum_rows};
use rayon::prelude::*;

/// Width of the causal convolution.
pub const TAPS: usize = 4;
/// Frames of history that the convolution needs.
pub const HISTORY: usize = TAPS - 1;

/// A run of neighbouring convolution channels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Channels {
    pub(crate) first: usize,
    pub(crate) width: usize,
}

/// The convolution's inputs and weights.
#[derive(Clone, Copy)]
pub(crate) struct Conv<'a> {
    pub(crate) sequences: Sequences<'a>,
    /// `[batch, frames, row_width]`; the inputs are the columns from `column` on.
    pub(crate) values: &'a [f32],
    pub(crate) row_width: usize,
    pub(crate) column: usize,
    pub(crate) channels: usize,
    /// Inputs before the first frame `[batch, channels, 3]`, oldest first; zeros where absent.
    pub(crate) initial: Option<&'a [f32]>,
    /// `[4, channels]`
    pub(crate) taps: &'a [f32],
    /// `[channels]`
    pub(crate) bias: &'a [f32],
}

/// Frames a task of [`Conv::forward`] handles.
const FORWARD_TILE: usize = 32;

impl Conv<'_> {
    /// Copies frames `from - 3 .. from + rows` of the channels into `raw` `[rows + 3, width]`.
    pub(crate) fn gather(&self, sequence: usize, channels: Channels, from: usize, rows: usize, raw: &mut [f32]) {
        let width = channels.width;
        let padding = self.sequences.padding_of(sequence);
        for (row, line) in raw[..(rows + HISTORY) * width].chunks_exact_mut(width).enumerate() {
            let frame = from + row;
            if (HISTORY..HISTORY + padding).contains(&frame) {
                line.fill(0.0);
            } else if frame >= HISTORY {
                let at = (sequence * self.sequences.frames + frame - HISTORY) * self.row_width
                    + self.column
                    + channels.first;
                line.copy_from_slice(&self.values[at..at + width]);
            } else if let Some(initial) = self.initial {
                for (channel, value) in line.iter_mut().enumerate() {
                    *value = initial[(sequence * self.channels + channels.first + channel) * HISTORY + frame];
                }
            } else {
                line.fill(0.0);
            }
        }
    }

    /// Convolution and SiLU of `rows` frames gathered in `raw`, into `out` `[rows, width]`.
    pub(crate) fn activate(&self, channels: Channels, rows: usize, raw: &[f32], out: &mut [f32]) {
        let taps: [&[f32]; TAPS] =
            std::array::from_fn(|tap| &self.taps[tap * self.channels + channels.first..][..channels.width]);
        activate_rows(rows, taps, &self.bias[channels.first..][..channels.width], raw, out);
    }

    /// Convolution and SiLU of everything, `[batch, frames, channels]`.
    pub(crate) fn forward(&self) -> Vec<f32> {
        let (frames, width) = (self.sequences.frames, self.channels);
        let channels = Channels { first: 0, width };
        let mut out = vec![0.0; self.sequences.batch * frames * width];
        out.par_chunks_mut((frames * width).max(1)).enumerate().for_each(|(sequence, out)| {
            out.par_chunks_mut(FORWARD_TILE * width).enumerate().for_each(|(tile, out)| {
                let rows = out.len() / width;
                let mut raw = vec![0.0; (rows + HISTORY) * width];
                self.gather(sequence, channels, tile * FORWARD_TILE, rows, &mut raw);
                self.activate(channels, rows, &raw, out);
            });
        });
        out
    }

    /// The convolution's inputs after the last frame, `[batch, channels, 3]`.
    pub(crate) fn final_state(&self) -> Vec<f32> {
        let (batch, total) = (self.sequences.batch, self.channels);
        let channels = Channels { first: 0, width: total };
        let mut state = vec![0.0; batch * total * HISTORY];
        let mut raw = vec![0.0; HISTORY * total];
        for sequence in 0..batch {
            self.gather(sequence, channels, self.sequences.frames, 0, &mut raw);
            for row in 0..HISTORY {
                for channel in 0..total {
                    state[(sequence * total + channel) * HISTORY + row] = raw[row * total + channel];
                }
            }
        }
        state
    }
}

/// Strided `[channels, 4]` weights as four contiguous rows.
pub(crate) fn tap_rows(conv_weight: &[f32], channels: usize) -> Vec<f32> {
    let mut rows = vec![0.0; TAPS * channels];
    for channel in 0..channels {
        for tap in 0..TAPS {
            rows[tap * channels + channel] = conv_weight[channel * TAPS + tap];
        }
    }
    rows
}

/// One frame of one sequence: convolution and SiLU of `input` `[channels]` into `out`; `history` `[channels, 3]`
/// moves on. `weight` is `[channels, 4]`.
pub(crate) fn step(input: &[f32], weight: &[f32], bias: &[f32], history: &mut [f32], out: &mut [f32]) {
    for (channel, value) in out.iter_mut().enumerate() {
        let taps = &weight[channel * TAPS..][..TAPS];
        let past = &mut history[channel * HISTORY..][..HISTORY];
        let sum = bias[channel] + taps[0] * past[0] + taps[1] * past[1] + taps[2] * past[2] + taps[3] * input[channel];
        past[0] = past[1];
        past[1] = past[2];
        past[2] = input[channel];
        *value = sum;
    }
    silu(out);
}

simd_fn! {
    fn silu(values: &mut [f32]) = silu_body
}

#[inline(always)]
fn silu_body<I: Isa>(values: &mut [f32]) {
    for value in values {
        *value *= sigmoid::<I>(*value);
    }
}

simd_fn! {
    fn activate_rows(rows: usize, taps: [&[f32]; TAPS], bias: &[f32], raw: &[f32], out: &mut [f32]) = activate_rows_body
}

#[inline(always)]
fn activate_rows_body<I: Isa>(rows: usize, taps: [&[f32]; TAPS], bias: &[f32], raw: &[f32], out: &mut [f32]) {
    let width = bias.len();
    let [w0, w1, w2, w3] = taps.map(|tap| &tap[..width]);
    for row in 0..rows {
        let line = &mut out[row * width..][..width];
        let [r0, r1, r2, r3]: [&[f32]; TAPS] = std::array::from_fn(|tap| &raw[(row + tap) * width..][..width]);
        for c in 0..width {
            let sum = fused::<I>(w0[c], r0[c], bias[c]);
            let sum = fused::<I>(w1[c], r1[c], sum);
            let sum = fused::<I>(w2[c], r2[c], sum);
            let sum = fused::<I>(w3[c], r3[c], sum);
            line[c] = sum * sigmoid::<I>(sum);
        }
    }
}

simd_fn! {
    /// Turns the gradient of the activated rows into that of the rows before SiLU, in place.
    fn undo_silu(rows: usize, taps: [&[f32]; TAPS], bias: &[f32], raw: &[f32], gradient: &mut [f32]) = undo_silu_body
}

#[inline(always)]
fn undo_silu_body<I: Isa>(rows: usize, taps: [&[f32]; TAPS], bias: &[f32], raw: &[f32], gradient: &mut [f32]) {
    let width = bias.len();
    let [w0, w1, w2, w3] = taps.map(|tap| &tap[..width]);
    for row in 0..rows {
        let line = &mut gradient[row * width..][..width];
        let [r0, r1, r2, r3]: [&[f32]; TAPS] = std::array::from_fn(|tap| &raw[(row + tap) * width..][..width]);
        for c in 0..width {
            let sum = fused::<I>(w0[c], r0[c], bias[c]);
            let sum = fused::<I>(w1[c], r1[c], sum);
            let sum = fused::<I>(w2[c], r2[c], sum);
            let sum = fused::<I>(w3[c], r3[c], sum);
            let gate = sigmoid::<I>(sum);
            line[c] *= gate * fused::<I>(sum, 1.0 - gate, 1.0);
        }
    }
}

simd_fn! {
    /// From pre-activation gradients of frames `0..rows + 3`: input gradients of frames `0..rows` into `inputs`, and
    /// the weight gradients of frames `0..rows` added to `weights` `[5, width]` (four taps, bias).
    fn undo_conv(rows: usize, taps: [&[f32]; TAPS], raw: &[f32], gradient: &[f32], inputs: &mut [f32], weights: &mut [f32]) = undo_conv_body
}

#[inline(always)]
fn undo_conv_body<I: Isa>(
    rows: usize,
    taps: [&[f32]; TAPS],
    raw: &[f32],
    gradient: &[f32],
    inputs: &mut [f32],
    weights: &mut [f32],
) {
    let width = taps[0].len();
    let [w0, w1, w2, w3] = taps.map(|tap| &tap[..width]);
    let (d0, rest) = weights.split_at_mut(width);
    let (d1, rest) = rest.split_at_mut(width);
    let (d2, rest) = rest.split_at_mut(width);
    let (d3, rest) = rest.split_at_mut(width);
    let d_bias = &mut rest[..width];
    for row in 0..rows {
        let [g0, g1, g2, g3]: [&[f32]; TAPS] = std::array::from_fn(|ahead| &gradient[(row + ahead) * width..][..width]);
        let [r0, r1, r2, r3]: [&[f32]; TAPS] = std::array::from_fn(|tap| &raw[(row + tap) * width..][..width]);
        let line = &mut inputs[row * width..][..width];
        for c in 0..width {
            let g = g0[c];
            let sum = fused::<I>(w2[c], g1[c], w3[c] * g);
            let sum = fused::<I>(w1[c], g2[c], sum);
            line[c] = fused::<I>(w0[c], g3[c], sum);
            d0[c] = fused::<I>(g, r0[c], d0[c]);
            d1[c] = fused::<I>(g, r1[c], d1[c]);
            d2[c] = fused::<I>(g, r2[c], d2[c]);
            d3[c] = fused::<I>(g, r3[c], d3[c]);
            d_bias[c] += g;
        }
    }
}

/// Channels that one task of the backward pass handles, so that its tile stays in the first-level cache.
const TASK_WIDTH: usize = 64;
/// Frames of a tile of the backward pass.
const TILE: usize = 32;

/// Gradients of the convolution's weights and history.
pub(crate) struct ConvGradients {
    /// `[channels, 4]`
    pub(crate) weight: Vec<f32>,
    /// `[channels]`
    pub(crate) bias: Vec<f32>,
    /// `[batch, channels, 3]` if there was an initial state.
    pub(crate) history: Vec<f32>,
}

/// Columns of rows that several tasks write at once, each its own.
#[derive(Clone, Copy)]
pub(crate) struct Columns<'a> {
    pub(crate) values: Shared<'a, f32>,
    pub(crate) row_width: usize,
    pub(crate) column: usize,
}

impl Conv<'_> {
    /// Backward pass of convolution and SiLU.
    ///
    /// `d_active` holds the gradients of the activated values, `d_inputs` receives those of the inputs; both may be
    /// the same columns. `d_final` is the gradient of the final history, if that was used.
    pub(crate) fn backward(
        &self,
        d_active: Columns<'_>,
        d_inputs: Columns<'_>,
        d_final: Option<&[f32]>,
    ) -> ConvGradients {
        let (batch, total) = (self.sequences.batch, self.channels);
        let blocks = total.div_ceil(TASK_WIDTH);
        let mut partial = vec![0.0f32; batch * (TAPS + 1) * total];
        let mut history = vec![0.0f32; if self.initial.is_some() { batch * total * HISTORY } else { 0 }];
        {
            let (partial, history) = (Shared::new(&mut partial), Shared::new(&mut history));
            let results = Results { d_active, d_inputs, partial, history };
            (0..batch * blocks).into_par_iter().for_each(|task| {
                let (sequence, block) = (task / blocks, task % blocks);
                let first = block * TASK_WIDTH;
                let channels = Channels { first, width: TASK_WIDTH.min(total - first) };
                backward_task(self, sequence, channels, results, d_final);
            });
        }
        let summed = sum_rows(&partial, (TAPS + 1) * total);
        let mut weight = vec![0.0; total * TAPS];
        for channel in 0..total {
            for tap in 0..TAPS {
                weight[channel * TAPS + tap] = summed[tap * total + channel];
            }
        }
        ConvGradients { weight, bias: summed[TAPS * total..].to_vec(), history }
    }
}

/// Where the tasks of the backward pass read and write, each its own channels of its own sequence.
#[derive(Clone, Copy)]
struct Results<'a> {
    d_active: Columns<'a>,
    d_inputs: Columns<'a>,
    partial: Shared<'a, f32>,
    history: Shared<'a, f32>,
}

#[allow(unsafe_code)]
fn backward_task(conv: &Conv<'_>, sequence: usize, channels: Channels, results: Results<'_>, d_final: Option<&[f32]>) {
    let (width, total, frames) = (channels.width, conv.channels, conv.sequences.frames);
    let padding = conv.sequences.padding_of(sequence);
    let taps: [&[f32]; TAPS] = std::array::from_fn(|tap| &conv.taps[tap * total + channels.first..][..width]);
    let bias = &conv.bias[channels.first..][..width];
    let at = |place: Columns<'_>, frame: usize| {
        (sequence * frames + frame) * place.row_width + place.column + channels.first
    };
    let (d_active, d_inputs) = (results.d_active, results.d_inputs);
    let mut raw = vec![0.0; (TILE + 2 * HISTORY) * width];
    let mut gradient = vec![0.0; (TILE + HISTORY) * width];
    let mut inputs = vec![0.0; TILE * width];
    let mut weights = vec![0.0; (TAPS + 1) * width];
    // Pre-activation gradients of the first three frames, for the history before them.
    let mut head = vec![0.0; HISTORY * width];

    let mut done = 0; // frames whose gradient already went through SiLU and waits at the front of `gradient`
    let mut from = 0;
    while from < frames {
        let rows = TILE.min(frames - from);
        let known = (rows + HISTORY).min(frames - from);
        conv.gather(sequence, channels, from, known, &mut raw);
        for row in done..known {
            // SAFETY: this task alone touches these channels of this sequence.
            let source = unsafe { d_active.values.part(at(d_active, from + row), width) };
            gradient[row * width..][..width].copy_from_slice(source);
        }
        if known > done {
            undo_silu(known - done, taps, bias, &raw[done * width..], &mut gradient[done * width..]);
        }
        gradient[known * width..(rows + HISTORY) * width].fill(0.0);
        if from == 0 {
            head.copy_from_slice(&gradient[..HISTORY * width]);
        }
        undo_conv(rows, taps, &raw, &gradient, &mut inputs, &mut weights);
        for row in 0..rows {
            // SAFETY: as above; later tiles have already read what they need of these frames.
            let target = unsafe { d_inputs.values.part(at(d_inputs, from + row), width) };
            if from + row < padding {
                target.fill(0.0);
            } else {
                target.copy_from_slice(&inputs[row * width..][..width]);
            }
        }
        gradient.copy_within(rows * width..(rows + HISTORY) * width, 0);
        done = known - rows;
        from += rows;
    }
    for tap in 0..=TAPS {
        // SAFETY: one task per sequence and run of channels.
        let target = unsafe { results.partial.part((sequence * (TAPS + 1) + tap) * total + channels.first, width) };
        target.copy_from_slice(&weights[tap * width..][..width]);
    }
    if conv.initial.is_some() {
        // History row r is frame r - 3: it reaches frame f through tap r - f.
        // SAFETY: as above.
        let target = unsafe { results.history.part((sequence * total + channels.first) * HISTORY, width * HISTORY) };
        for channel in 0..width {
            for row in 0..HISTORY {
                target[channel * HISTORY + row] =
                    (0..=row).map(|frame| taps[row - frame][channel] * head[frame * width + channel]).sum();
            }
        }
    }
    if let Some(d_final) = d_final {
        for channel in 0..width {
            for row in 0..HISTORY {
                let value = d_final[(sequence * total + channels.first + channel) * HISTORY + row];
                let frame = frames + row;
                if (HISTORY..HISTORY + padding).contains(&frame) {
                    continue;
                }
                // SAFETY: as above.
                let target = unsafe {
                    if frame >= HISTORY {
                        d_inputs.values.part(at(d_inputs, frame - HISTORY) + channel, 1)
                    } else if conv.initial.is_some() {
                        results.history.part((sequence * total + channels.first + channel) * HISTORY + frame, 1)
                    } else {
                        continue;
                    }
                };
                target[0] += value;
            }
        }
    }
}
