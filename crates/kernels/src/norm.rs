//! Root-mean-square norm and layer norm over rows, with a gain and shift shared by runs of consecutive rows.
//!
//! One set of gains for all rows is the ordinary norm (Zhang and Sennrich, arXiv:1910.07467; Ba et al.,
//! arXiv:1607.06450); one per sequence is the adaptive norm of diffusion networks (Peebles and Xie, arXiv:2212.09748).

use crate::simd::{Isa, fold, fused, simd_fn};
use rayon::prelude::*;

/// Rows a task handles; sums over rows follow these bounds, which fixes their order.
const ROWS: usize = 64;

/// What is normalised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Values in a row.
    pub width: usize,
    /// Whether the mean is taken off first (layer norm).
    pub centre: bool,
    /// Added to the mean square or variance.
    pub epsilon: f64,
    /// Consecutive rows that share one gain and shift.
    pub rows_per_set: usize,
}

/// Gradients of a norm's inputs.
#[derive(Debug)]
pub struct NormGradients {
    /// `[rows, width]`
    pub x: Vec<f32>,
    /// `[sets, width]`
    pub gain: Vec<f32>,
    /// `[sets, width]`
    pub shift: Vec<f32>,
}

impl Norm {
    fn check(&self, x: &[f32], gain: &[f32]) -> usize {
        assert!(
            self.width > 0 && self.rows_per_set > 0 && x.len().is_multiple_of(self.width),
            "norm: {} values, {self:?}",
            x.len()
        );
        let rows = x.len() / self.width;
        assert!(rows.is_multiple_of(self.rows_per_set), "norm: {rows} rows in sets of {}", self.rows_per_set);
        assert_eq!(gain.len(), rows / self.rows_per_set * self.width, "norm: gain");
        rows / self.rows_per_set
    }

    /// `(x - mean) / sqrt(variance + epsilon) * gain + shift`, the mean zero unless `centre`; any shift may be absent.
    ///
    /// # Panics
    /// If a length does not fit.
    pub fn forward(&self, x: &[f32], gain: &[f32], shift: Option<&[f32]>) -> Vec<f32> {
        self.check(x, gain);
        let mut out = vec![0.0f32; x.len()];
        out.par_chunks_mut(ROWS * self.width).enumerate().for_each(|(task, lines)| {
            for (index, line) in lines.chunks_exact_mut(self.width).enumerate() {
                let row = task * ROWS + index;
                let set = row / self.rows_per_set * self.width;
                let shift = shift.map(|values| &values[set..set + self.width]);
                normalise(
                    self.centre,
                    self.epsilon as f32,
                    &x[row * self.width..][..self.width],
                    &gain[set..set + self.width],
                    shift,
                    line,
                );
            }
        });
        out
    }

    /// Backward pass; needs only the forward pass's `x` and `gain`.
    ///
    /// # Panics
    /// If a length does not fit.
    pub fn backward(&self, x: &[f32], gain: &[f32], d_out: &[f32]) -> NormGradients {
        let sets = self.check(x, gain);
        assert_eq!(d_out.len(), x.len(), "norm: output gradient");
        let (width, set_size) = (self.width, self.rows_per_set * self.width);
        let blocks = self.rows_per_set.div_ceil(ROWS);
        let mut d_x = vec![0.0f32; x.len()];
        let mut partial = vec![0.0f32; sets * blocks * 2 * width];
        d_x.par_chunks_mut(set_size).zip(partial.par_chunks_mut(blocks * 2 * width)).enumerate().for_each(
            |(set, (d_x, partial))| {
                d_x.par_chunks_mut(ROWS * width).zip(partial.par_chunks_mut(2 * width)).enumerate().for_each(
                    |(block, (lines, partial))| {
                        let gain = &gain[set * width..][..width];
                        for (index, line) in lines.chunks_exact_mut(width).enumerate() {
                            let at = set * set_size + (block * ROWS + index) * width;
                            normalise_backward(
                                self.centre,
                                self.epsilon as f32,
                                &x[at..at + width],
                                gain,
                                &d_out[at..at + width],
                                line,
                                partial,
                            );
                        }
                    },
                );
            },
        );
        let (mut d_gain, mut d_shift) = (Vec::with_capacity(sets * width), Vec::with_capacity(sets * width));
        for partial in partial.chunks_exact(blocks * 2 * width) {
            let sums = crate::threads::sum_rows(partial, 2 * width);
            d_gain.extend_from_slice(&sums[..width]);
            d_shift.extend_from_slice(&sums[width..]);
        }
        NormGradients { x: d_x, gain: d_gain, shift: d_shift }
    }
}

/// Sum of the values in a fixed order.
#[inline(always)]
fn sum<I: Isa>(values: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let blocks = values.chunks_exact(16);
    let rest: f32 = blocks.remainder().iter().sum();
    for block in blocks {
        for lane in 0..16 {
            lanes[lane] += block[lane];
        }
    }
    fold(lanes) + rest
}

/// Sum of the squared distances from `mean` in a fixed order.
#[inline(always)]
fn square_sum<I: Isa>(values: &[f32], mean: f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let blocks = values.chunks_exact(16);
    let mut rest = 0.0;
    for value in blocks.remainder() {
        rest = fused::<I>(value - mean, value - mean, rest);
    }
    for block in blocks {
        for lane in 0..16 {
            let off = block[lane] - mean;
            lanes[lane] = fused::<I>(off, off, lanes[lane]);
        }
    }
    fold(lanes) + rest
}

/// (mean, 1 / deviation) of a row.
#[inline(always)]
fn moments<I: Isa>(centre: bool, epsilon: f32, x: &[f32]) -> (f32, f32) {
    let count = x.len() as f32;
    let mean = if centre { sum::<I>(x) / count } else { 0.0 };
    (mean, 1.0 / (square_sum::<I>(x, mean) / count + epsilon).sqrt())
}

simd_fn! {
    fn normalise(centre: bool, epsilon: f32, x: &[f32], gain: &[f32], shift: Option<&[f32]>, out: &mut [f32]) = normalise_body
}

#[inline(always)]
fn normalise_body<I: Isa>(centre: bool, epsilon: f32, x: &[f32], gain: &[f32], shift: Option<&[f32]>, out: &mut [f32]) {
    let width = x.len();
    let (mean, scale) = moments::<I>(centre, epsilon, x);
    let (gain, out) = (&gain[..width], &mut out[..width]);
    match shift {
        Some(shift) => {
            let shift = &shift[..width];
            for c in 0..width {
                out[c] = fused::<I>((x[c] - mean) * scale, gain[c], shift[c]);
            }
        }
        None => {
            for c in 0..width {
                out[c] = (x[c] - mean) * scale * gain[c];
            }
        }
    }
}

simd_fn! {
    /// One row; adds to `sums` `[2, width]` its part of the gradients of gain and shift.
    fn normalise_backward(centre: bool, epsilon: f32, x: &[f32], gain: &[f32], d_out: &[f32], d_x: &mut [f32], sums: &mut [f32]) = normalise_backward_body
}

#[inline(always)]
fn normalise_backward_body<I: Isa>(
    centre: bool,
    epsilon: f32,
    x: &[f32],
    gain: &[f32],
    d_out: &[f32],
    d_x: &mut [f32],
    sums: &mut [f32],
) {
    let width = x.len();
    let (mean, scale) = moments::<I>(centre, epsilon, x);
    let (gain, d_out, d_x) = (&gain[..width], &d_out[..width], &mut d_x[..width]);
    let (d_gain, d_shift) = sums.split_at_mut(width);
    let d_shift = &mut d_shift[..width];
    for c in 0..width {
        let unit = (x[c] - mean) * scale;
        d_gain[c] = fused::<I>(d_out[c], unit, d_gain[c]);
        d_shift[c] += d_out[c];
        d_x[c] = d_out[c] * gain[c];
    }
    let level = if centre { sum::<I>(d_x) / width as f32 } else { 0.0 };
    let mut lanes = [0.0f32; 16];
    let whole = width / 16 * 16;
    for block in (0..whole).step_by(16) {
        for lane in 0..16 {
            let c = block + lane;
            lanes[lane] = fused::<I>(d_x[c], (x[c] - mean) * scale, lanes[lane]);
        }
    }
    let mut pull = fold(lanes);
    for c in whole..width {
        pull = fused::<I>(d_x[c], (x[c] - mean) * scale, pull);
    }
    pull /= width as f32;
    for c in 0..width {
        let unit = (x[c] - mean) * scale;
        d_x[c] = scale * (d_x[c] - level - unit * pull);
    }
}

/// The definition in f64, for tests.
pub mod plain {
    use super::Norm;

    /// Output of one row.
    pub fn forward(norm: &Norm, x: &[f64], gain: &[f64], shift: &[f64]) -> Vec<f64> {
        let count = x.len() as f64;
        let mean = if norm.centre { x.iter().sum::<f64>() / count } else { 0.0 };
        let deviation = (x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count + norm.epsilon).sqrt();
        x.iter().zip(gain).zip(shift).map(|((v, g), s)| (v - mean) / deviation * g + s).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_gradients_match_the_definition() {
        for (width, rows_per_set, sets, centre) in
            [(40, 70, 2, true), (17, 5, 1, false), (64, 1, 3, true), (3, 130, 1, false)]
        {
            let norm = Norm { width, centre, epsilon: 1e-5, rows_per_set };
            let rows = rows_per_set * sets;
            let wave = |count: usize, rate: f32, offset: f32| -> Vec<f32> {
                (0..count).map(|i| (i as f32 * rate).sin() + offset).collect()
            };
            let (x, gain, shift) =
                (wave(rows * width, 0.37, 0.4), wave(sets * width, 0.8, 1.5), wave(sets * width, 0.5, 0.0));
            let d_out = wave(rows * width, 0.91, 0.0);
            let out = norm.forward(&x, &gain, Some(&shift));
            let got = norm.backward(&x, &gain, &d_out);
            let wide = |values: &[f32]| -> Vec<f64> { values.iter().map(|value| f64::from(*value)).collect() };
            let (mut d_gain, mut d_shift) = (vec![0.0f64; sets * width], vec![0.0f64; sets * width]);
            for row in 0..rows {
                let (part, set) = (row * width..(row + 1) * width, row / rows_per_set * width);
                let (x, d_out) = (wide(&x[part.clone()]), wide(&d_out[part.clone()]));
                let (gain, shift) = (wide(&gain[set..set + width]), wide(&shift[set..set + width]));
                let expected = plain::forward(&norm, &x, &gain, &shift);
                for c in 0..width {
                    assert!((f64::from(out[part.start + c]) - expected[c]).abs() < 2e-6);
                    d_gain[set + c] += d_out[c] * (expected[c] - shift[c]) / gain[c];
                    d_shift[set + c] += d_out[c];
                    // Central difference of the definition.
                    let moved = |by: f64| -> f64 {
                        let mut x = x.clone();
                        x[c] += by;
                        plain::forward(&norm, &x, &gain, &shift).iter().zip(&d_out).map(|(y, d)| y * d).sum()
                    };
                    let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                    assert!((f64::from(got.x[part.start + c]) - slope).abs() < 1e-5, "row {row} column {c}");
                }
            }
            for (got, expected) in [(&got.gain, &d_gain), (&got.shift, &d_shift)] {
                for (a, b) in got.iter().zip(expected) {
                    assert!((f64::from(*a) - b).abs() < 1e-4, "{a} against {b}");
                }
            }
        }
    }
}
