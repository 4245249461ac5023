//! Depthwise convolution along time, channels last, zero padding that keeps the length: `[batch, frames, channels]`.

use crate::simd::{Isa, fused, simd_fn};
use crate::threads::sum_rows;
use rayon::prelude::*;

/// Frames a task handles; the weight gradients' sums follow these bounds, which fixes their order.
const FRAMES: usize = 64;
/// Channels kept in registers while the taps are added up.
const BLOCK: usize = 32;

/// Sizes of a depthwise convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depthwise {
    /// Sequences.
    pub batch: usize,
    /// Frames of each.
    pub frames: usize,
    /// Channels, each with its own taps.
    pub channels: usize,
    /// Taps; odd, so that the middle one multiplies the current frame.
    pub taps: usize,
}

/// Gradients of the inputs.
#[derive(Debug)]
pub struct DepthwiseGradients {
    /// `[batch, frames, channels]`
    pub x: Vec<f32>,
    /// `[taps, channels]`
    pub weight: Vec<f32>,
    /// `[channels]`
    pub bias: Vec<f32>,
}

impl Depthwise {
    fn check(&self, x: &[f32], weight: &[f32]) {
        assert!(self.taps % 2 == 1 && self.channels > 0, "depthwise convolution: taps must be odd: {self:?}");
        assert_eq!(x.len(), self.batch * self.frames * self.channels, "depthwise convolution: input");
        assert_eq!(weight.len(), self.taps * self.channels, "depthwise convolution: weight");
    }

    /// (sequence, first frame, frames) of each task.
    fn tasks(&self) -> Vec<(usize, usize, usize)> {
        (0..self.batch)
            .flat_map(|sequence| (0..self.frames).step_by(FRAMES).map(move |from| (sequence, from)))
            .map(|(sequence, from)| (sequence, from, FRAMES.min(self.frames - from)))
            .collect()
    }

    /// `out[t] = bias + sum_k weight[k] x[t + k - taps / 2]`.
    ///
    /// # Panics
    /// If a length does not fit.
    pub fn forward(&self, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
        self.check(x, weight);
        assert_eq!(bias.len(), self.channels, "depthwise convolution: bias");
        self.convolve(x, weight, Some(bias), false)
    }

    /// Backward pass; needs only the forward pass's input and weight.
    ///
    /// # Panics
    /// If a length does not fit.
    pub fn backward(&self, x: &[f32], weight: &[f32], d_out: &[f32]) -> DepthwiseGradients {
        self.check(x, weight);
        assert_eq!(d_out.len(), x.len(), "depthwise convolution: output gradient");
        let d_x = self.convolve(d_out, weight, None, true);
        let tasks = self.tasks();
        let size = (self.taps + 1) * self.channels;
        let mut partial = vec![0.0f32; tasks.len() * size];
        let line = self.frames * self.channels;
        partial.par_chunks_mut(size.max(1)).zip(tasks).for_each(|(sums, (sequence, from, frames))| {
            let part = sequence * line..(sequence + 1) * line;
            gradient_tile(*self, from, frames, &x[part.clone()], &d_out[part], sums);
        });
        let mut weight = sum_rows(&partial, size);
        let bias = weight.split_off(self.taps * self.channels);
        DepthwiseGradients { x: d_x, weight, bias }
    }

    fn convolve(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>, flip: bool) -> Vec<f32> {
        let mut out = vec![0.0f32; x.len()];
        let line = self.frames * self.channels;
        out.par_chunks_mut(line.max(1)).enumerate().for_each(|(sequence, out)| {
            let x = &x[sequence * line..(sequence + 1) * line];
            out.par_chunks_mut(FRAMES * self.channels).enumerate().for_each(|(tile, out)| {
                convolve_tile(*self, tile * FRAMES, x, weight, bias, flip, out);
            });
        });
        out
    }

    /// Taps that reach inside the sequence from `frame`.
    #[inline(always)]
    fn reach(&self, frame: usize) -> std::ops::Range<usize> {
        let middle = self.taps / 2;
        middle.saturating_sub(frame)..self.taps.min(self.frames + middle - frame)
    }
}

simd_fn! {
    fn convolve_tile(sizes: Depthwise, from: usize, x: &[f32], weight: &[f32], bias: Option<&[f32]>, flip: bool, out: &mut [f32]) = convolve_tile_body
}

#[inline(always)]
fn convolve_tile_body<I: Isa>(
    sizes: Depthwise,
    from: usize,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    flip: bool,
    out: &mut [f32],
) {
    let channels = sizes.channels;
    let middle = sizes.taps / 2;
    for (row, line) in out.chunks_exact_mut(channels).enumerate() {
        let frame = from + row;
        let reach = sizes.reach(frame);
        let mut c = 0;
        while c + BLOCK <= channels {
            let mut sums = [0.0f32; BLOCK];
            if let Some(bias) = bias {
                sums.copy_from_slice(&bias[c..c + BLOCK]);
            }
            for tap in reach.clone() {
                let factor = if flip { sizes.taps - 1 - tap } else { tap };
                let source: &[f32] = &x[(frame + tap - middle) * channels + c..][..BLOCK];
                let weight: &[f32] = &weight[factor * channels + c..][..BLOCK];
                for lane in 0..BLOCK {
                    sums[lane] = fused::<I>(weight[lane], source[lane], sums[lane]);
                }
            }
            line[c..c + BLOCK].copy_from_slice(&sums);
            c += BLOCK;
        }
        for c in c..channels {
            let mut sum = bias.map_or(0.0, |bias| bias[c]);
            for tap in reach.clone() {
                let factor = if flip { sizes.taps - 1 - tap } else { tap };
                sum = fused::<I>(weight[factor * channels + c], x[(frame + tap - middle) * channels + c], sum);
            }
            line[c] = sum;
        }
    }
}

simd_fn! {
    /// Adds a tile's part of the gradients of weight and bias to `sums` `[taps + 1, channels]`.
    fn gradient_tile(sizes: Depthwise, from: usize, frames: usize, x: &[f32], d_out: &[f32], sums: &mut [f32]) = gradient_tile_body
}

#[inline(always)]
fn gradient_tile_body<I: Isa>(
    sizes: Depthwise,
    from: usize,
    frames: usize,
    x: &[f32],
    d_out: &[f32],
    sums: &mut [f32],
) {
    let channels = sizes.channels;
    let middle = sizes.taps / 2;
    for c in (0..channels).step_by(BLOCK) {
        let width = BLOCK.min(channels - c);
        for tap in 0..=sizes.taps {
            let mut total = [0.0f32; BLOCK];
            for frame in from..from + frames {
                let d_out = &d_out[frame * channels + c..][..width];
                if tap == sizes.taps {
                    for lane in 0..width {
                        total[lane] += d_out[lane];
                    }
                } else if sizes.reach(frame).contains(&tap) {
                    let x = &x[(frame + tap - middle) * channels + c..][..width];
                    if width == BLOCK {
                        for lane in 0..BLOCK {
                            total[lane] = fused::<I>(d_out[lane], x[lane], total[lane]);
                        }
                    } else {
                        for lane in 0..width {
                            total[lane] = fused::<I>(d_out[lane], x[lane], total[lane]);
                        }
                    }
                }
            }
            sums[tap * channels + c..][..width].copy_from_slice(&total[..width]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_definition_and_its_transpose() {
        for (batch, frames, channels, taps) in [(2, 70, 40, 7), (1, 3, 5, 7), (3, 1, 33, 3), (1, 130, 64, 1)] {
            let sizes = Depthwise { batch, frames, channels, taps };
            let wave = |count: usize, rate: f32| (0..count).map(|i| (i as f32 * rate).sin()).collect::<Vec<_>>();
            let (x, weight, bias) =
                (wave(batch * frames * channels, 0.37), wave(taps * channels, 0.91), wave(channels, 0.5));
            let d_out = wave(x.len(), 0.53);
            let out = sizes.forward(&x, &weight, &bias);
            let got = sizes.backward(&x, &weight, &d_out);
            let mut d_x = vec![0.0f64; x.len()];
            let mut d_weight = vec![0.0f64; weight.len()];
            let mut d_bias = vec![0.0f64; channels];
            for b in 0..batch {
                for t in 0..frames {
                    for c in 0..channels {
                        let at = (b * frames + t) * channels + c;
                        let mut sum = f64::from(bias[c]);
                        d_bias[c] += f64::from(d_out[at]);
                        for k in 0..taps {
                            let source = t as isize + k as isize - (taps / 2) as isize;
                            if (0..frames as isize).contains(&source) {
                                let from = (b * frames + source as usize) * channels + c;
                                sum += f64::from(weight[k * channels + c]) * f64::from(x[from]);
                                d_x[from] += f64::from(weight[k * channels + c]) * f64::from(d_out[at]);
                                d_weight[k * channels + c] += f64::from(x[from]) * f64::from(d_out[at]);
                            }
                        }
                        assert!((f64::from(out[at]) - sum).abs() < 1e-5);
                    }
                }
            }
            for (got, expected) in [(&got.x, &d_x), (&got.weight, &d_weight), (&got.bias, &d_bias)] {
                assert_eq!(got.len(), expected.len());
                for (a, b) in got.iter().zip(expected) {
                    assert!((f64::from(*a) - b).abs() < 1e-4, "{a} against {b}");
                }
            }
        }
    }
}
