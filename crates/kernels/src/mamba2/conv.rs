//! The causal convolution of width 4 with SiLU, on rows of `width` neighbouring channels, and its backward pass.

use super::{HISTORY, Mamba2Config, Sequences, States, TAPS};
use crate::simd::{Isa, fused, sigmoid, simd_fn};
use crate::threads::Shared;
use rayon::prelude::*;

/// A run of neighbouring convolution channels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Channels {
    pub(crate) first: usize,
    pub(crate) width: usize,
}

/// The convolution's inputs and weights.
#[derive(Clone, Copy)]
pub(crate) struct Conv<'a> {
    pub(crate) config: Mamba2Config,
    pub(crate) sequences: Sequences<'a>,
    /// `[batch, frames, projected]`
    pub(crate) projected: &'a [f32],
    /// Frames before the first; zeros where absent.
    pub(crate) initial: Option<States<'a, f32>>,
    /// `[4, channels]`
    pub(crate) taps: &'a [f32],
    /// `[channels]`
    pub(crate) bias: &'a [f32],
}

impl Conv<'_> {
    /// Copies frames `from - 3 .. from + rows` of the channels into `raw` `[rows + 3, width]`.
    pub(crate) fn gather(&self, sequence: usize, channels: Channels, from: usize, rows: usize, raw: &mut [f32]) {
        let (width, total) = (channels.width, self.config.conv_channels());
        let padding = self.sequences.padding_of(sequence);
        for (row, line) in raw[..(rows + HISTORY) * width].chunks_exact_mut(width).enumerate() {
            let frame = from + row;
            if (HISTORY..HISTORY + padding).contains(&frame) {
                line.fill(0.0);
            } else if frame >= HISTORY {
                let at = (sequence * self.sequences.frames + frame - HISTORY) * self.config.projected()
                    + self.config.inner
                    + channels.first;
                line.copy_from_slice(&self.projected[at..at + width]);
            } else if let Some(states) = self.initial {
                for (channel, value) in line.iter_mut().enumerate() {
                    *value = states.conv[(sequence * total + channels.first + channel) * HISTORY + frame];
                }
            } else {
                line.fill(0.0);
            }
        }
    }

    /// Convolution and SiLU of `rows` frames gathered in `raw`, into `out` `[rows, width]`.
    pub(crate) fn activate(&self, channels: Channels, rows: usize, raw: &[f32], out: &mut [f32]) {
        let total = self.config.conv_channels();
        let taps: [&[f32]; TAPS] =
            std::array::from_fn(|tap| &self.taps[tap * total + channels.first..][..channels.width]);
        activate_rows(rows, taps, &self.bias[channels.first..][..channels.width], raw, out);
    }

    /// The convolution's inputs after the last frame, `[batch, channels, 3]`.
    pub(crate) fn final_state(&self) -> Vec<f32> {
        let batch = self.sequences.batch;
        let total = self.config.conv_channels();
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

/// Backward pass of convolution and SiLU.
///
/// `d_projected` `[batch, frames, projected]` holds at the channels' columns the gradients of the activated values
/// and receives there the gradients of the inputs. `d_final` is the gradient of the final history, if that was used.
pub(crate) fn conv_backward(conv: &Conv<'_>, d_projected: &mut [f32], d_final: Option<&[f32]>) -> ConvGradients {
    let (batch, total) = (conv.sequences.batch, conv.config.conv_channels());
    let blocks = total.div_ceil(TASK_WIDTH);
    let mut partial = vec![0.0f32; batch * (TAPS + 1) * total];
    let mut history = vec![0.0f32; if conv.initial.is_some() { batch * total * HISTORY } else { 0 }];
    {
        let (d_projected, partial, history) =
            (Shared::new(d_projected), Shared::new(&mut partial), Shared::new(&mut history));
        (0..batch * blocks).into_par_iter().for_each(|task| {
            let (sequence, block) = (task / blocks, task % blocks);
            let first = block * TASK_WIDTH;
            let channels = Channels { first, width: TASK_WIDTH.min(total - first) };
            backward_task(conv, sequence, channels, d_projected, partial, history, d_final);
        });
    }
    let summed = crate::threads::sum_rows(&partial, (TAPS + 1) * total);
    let mut weight = vec![0.0; total * TAPS];
    for channel in 0..total {
        for tap in 0..TAPS {
            weight[channel * TAPS + tap] = summed[tap * total + channel];
        }
    }
    ConvGradients { weight, bias: summed[TAPS * total..].to_vec(), history }
}

#[allow(unsafe_code)]
fn backward_task(
    conv: &Conv<'_>,
    sequence: usize,
    channels: Channels,
    d_projected: Shared<'_, f32>,
    partial: Shared<'_, f32>,
    history: Shared<'_, f32>,
    d_final: Option<&[f32]>,
) {
    let (width, total, row_width, frames) =
        (channels.width, conv.config.conv_channels(), conv.config.projected(), conv.sequences.frames);
    let padding = conv.sequences.padding_of(sequence);
    let taps: [&[f32]; TAPS] = std::array::from_fn(|tap| &conv.taps[tap * total + channels.first..][..width]);
    let bias = &conv.bias[channels.first..][..width];
    let at = |frame: usize| (sequence * frames + frame) * row_width + conv.config.inner + channels.first;
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
            let source = unsafe { d_projected.part(at(from + row), width) };
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
            let target = unsafe { d_projected.part(at(from + row), width) };
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
        let target = unsafe { partial.part((sequence * (TAPS + 1) + tap) * total + channels.first, width) };
        target.copy_from_slice(&weights[tap * width..][..width]);
    }
    if conv.initial.is_some() {
        // History row r is frame r - 3: it reaches frame f through tap r - f.
        // SAFETY: as above.
        let target = unsafe { history.part((sequence * total + channels.first) * HISTORY, width * HISTORY) };
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
                        d_projected.part(at(frame - HISTORY) + channel, 1)
                    } else if conv.initial.is_some() {
                        history.part((sequence * total + channels.first + channel) * HISTORY + frame, 1)
                    } else {
                        continue;
                    }
                };
                target[0] += value;
            }
        }
    }
}
