//! AdamW (Loshchilov and Hutter, arXiv:1711.05101), moving averages and the norm of all gradients, over many
//! parameters at once. Every value is handled alone, so the thread count cannot change a byte.

use crate::simd::{Isa, fused, simd_fn};
use rayon::prelude::*;

/// Values a task handles; the norm's partial sums follow these bounds, which fixes their order.
const VALUES: usize = 1 << 14;

/// One parameter with its gradient and its two moments, all of one length.
#[derive(Debug)]
pub struct Trained<'a> {
    /// The parameter, updated.
    pub value: &'a mut [f32],
    /// Its gradient.
    pub gradient: &'a [f32],
    /// Moving mean of the gradient, updated.
    pub first: &'a mut [f32],
    /// Moving mean of the squared gradient, updated.
    pub second: &'a mut [f32],
    /// Whether weight decay applies.
    pub decay: bool,
}

/// Settings of one AdamW step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Share of the parameter taken off, times the rate.
    pub weight_decay: f64,
    /// Number of this step, from 1.
    pub step: u64,
    /// Multiplies the gradients first: clipping, averaging over accumulated batches.
    pub gradient_scale: f64,
}

impl AdamW {
    /// One step over all parameters.
    ///
    /// # Panics
    /// If the lengths of one parameter's slices differ or `step` is 0.
    pub fn apply(&self, parameters: &mut [Trained<'_>]) {
        assert!(self.step > 0, "AdamW steps count from 1");
        let exponent = i32::try_from(self.step).unwrap_or(i32::MAX);
        let factors = Factors {
            scale: self.gradient_scale as f32,
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            rate: (self.rate / (1.0 - self.beta1.powi(exponent))) as f32,
            root: (1.0 / (1.0 - self.beta2.powi(exponent)).sqrt()) as f32,
            epsilon: self.epsilon as f32,
        };
        let keep = (1.0 - self.rate * self.weight_decay) as f32;
        let mut pieces = Vec::new();
        for parameter in parameters {
            let length = parameter.value.len();
            for other in [parameter.gradient.len(), parameter.first.len(), parameter.second.len()] {
                assert_eq!(other, length, "AdamW: slices of one parameter");
            }
            let keep = if parameter.decay { keep } else { 1.0 };
            pieces.extend(
                parameter
                    .value
                    .chunks_mut(VALUES)
                    .zip(parameter.gradient.chunks(VALUES))
                    .zip(parameter.first.chunks_mut(VALUES).zip(parameter.second.chunks_mut(VALUES)))
                    .map(|part| (part, keep)),
            );
        }
        pieces.into_par_iter().for_each(|(((value, gradient), (first, second)), keep)| {
            update(factors, keep, gradient, value, first, second)
        });
    }
}

#[derive(Clone, Copy)]
struct Factors {
    scale: f32,
    beta1: f32,
    beta2: f32,
    rate: f32,
    root: f32,
    epsilon: f32,
}

simd_fn! {
    fn update(factors: Factors, keep: f32, gradient: &[f32], value: &mut [f32], first: &mut [f32], second: &mut [f32]) = update_body
}

#[inline(always)]
fn update_body<I: Isa>(
    factors: Factors,
    keep: f32,
    gradient: &[f32],
    value: &mut [f32],
    first: &mut [f32],
    second: &mut [f32],
) {
    let length = value.len();
    let (gradient, first, second) = (&gradient[..length], &mut first[..length], &mut second[..length]);
    for i in 0..length {
        let g = gradient[i] * factors.scale;
        first[i] = fused::<I>(factors.beta1, first[i] - g, g);
        second[i] = fused::<I>(factors.beta2, second[i] - g * g, g * g);
        let step = first[i] / fused::<I>(second[i].sqrt(), factors.root, factors.epsilon);
        value[i] = fused::<I>(-factors.rate, step, value[i] * keep);
    }
}

/// `average = decay * average + (1 - decay) * value` over many parameters.
///
/// # Panics
/// If the lengths of a pair differ.
pub fn moving_average(pairs: &mut [(&mut [f32], &[f32])], decay: f32) {
    let mut pieces = Vec::new();
    for (average, value) in pairs {
        assert_eq!(average.len(), value.len(), "moving average");
        pieces.extend(average.chunks_mut(VALUES).zip(value.chunks(VALUES)));
    }
    pieces.into_par_iter().for_each(|(average, value)| {
        for (average, value) in average.iter_mut().zip(value) {
            *average = value + decay * (*average - value);
        }
    });
}

/// Root of the sum of all squares, in f64 and a fixed order.
pub fn global_norm(gradients: &[&[f32]]) -> f64 {
    let pieces: Vec<&[f32]> = gradients.iter().flat_map(|gradient| gradient.chunks(VALUES)).collect();
    let sums: Vec<f64> = pieces.par_iter().map(|piece| square_sum(piece)).collect();
    sums.iter().sum::<f64>().sqrt()
}

simd_fn! {
    fn square_sum(values: &[f32]) -> f64 = square_sum_body
}

#[inline(always)]
fn square_sum_body<I: Isa>(values: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 8];
    let blocks = values.chunks_exact(8);
    let rest: f64 = blocks.remainder().iter().map(|value| f64::from(*value) * f64::from(*value)).sum();
    for block in blocks {
        for lane in 0..8 {
            let value = f64::from(block[lane]);
            lanes[lane] += value * value;
        }
    }
    lanes.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adamw_follows_its_definition() {
        let settings = |step| AdamW {
            rate: 1e-2,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
            step,
            gradient_scale: 0.5,
        };
        let count = 40_000;
        let gradient: Vec<f32> = (0..count).map(|i| (i as f32 * 0.01).sin()).collect();
        for decay in [false, true] {
            let mut value: Vec<f32> = (0..count).map(|i| (i as f32 * 0.003).cos()).collect();
            let mut expected: Vec<f64> = value.iter().map(|v| f64::from(*v)).collect();
            let (mut first, mut second) = (vec![0.0f32; count], vec![0.0f32; count]);
            let (mut m, mut v) = (vec![0.0f64; count], vec![0.0f64; count]);
            for step in 1..=3 {
                settings(step).apply(&mut [Trained {
                    value: &mut value,
                    gradient: &gradient,
                    first: &mut first,
                    second: &mut second,
                    decay,
                }]);
                for i in 0..count {
                    let g = 0.5 * f64::from(gradient[i]);
                    m[i] = 0.9 * m[i] + 0.1 * g;
                    v[i] = 0.95 * v[i] + 0.05 * g * g;
                    let (mean, square) =
                        (m[i] / (1.0 - 0.9f64.powi(step as i32)), v[i] / (1.0 - 0.95f64.powi(step as i32)));
                    expected[i] =
                        expected[i] * (1.0 - if decay { 1e-3 } else { 0.0 }) - 1e-2 * mean / (square.sqrt() + 1e-8);
                }
            }
            for (got, expected) in value.iter().zip(&expected) {
                assert!((f64::from(*got) - expected).abs() < 1e-5, "{got} against {expected}");
            }
        }
    }

    #[test]
    fn norm_and_average() {
        let (a, b) = (vec![3.0f32; 50_000], vec![4.0f32; 50_000]);
        assert!((global_norm(&[&a, &b]) - (25.0f64 * 50_000.0).sqrt()).abs() < 1e-9);
        let mut average = a.clone();
        moving_average(&mut [(&mut average, &b)], 0.75);
        assert!(average.iter().all(|value| (*value - 3.25).abs() < 1e-6));
    }
}
