//! Snake, the activation of neural codecs for periodic signals (Ziyin, Hartwig and Ueda, arXiv:2006.08195):
//! x + sin^2(alpha x) / alpha, alpha a channel's own.

use crate::simd::{Isa, fused, simd_fn};
use rayon::prelude::*;

/// Added to alpha before it divides, as the published codecs do.
const EPSILON: f32 = 1e-9;
/// Frames that a task handles.
const FRAMES: usize = 64;
/// Angles up to which the multiples of pi to be taken off are exact.
const LARGEST: f32 = 8192.0;

/// Snake over values `[frames, channels]`, one `alpha` a channel.
#[derive(Clone, Debug)]
pub struct Snake {
    alpha: Vec<f32>,
    /// 1 / (alpha + epsilon)
    inverse: Vec<f32>,
}

impl Snake {
    /// From the alphas of all channels.
    pub fn new(alpha: &[f32]) -> Self {
        Self { alpha: alpha.to_vec(), inverse: alpha.iter().map(|alpha| 1.0 / (alpha + EPSILON)).collect() }
    }

    /// In place.
    ///
    /// # Panics
    /// If `values` is not whole frames.
    pub fn apply(&self, values: &mut [f32]) {
        let channels = self.alpha.len();
        assert!(values.len().is_multiple_of(channels), "snake: {} values of {channels} channels", values.len());
        values.par_chunks_mut(FRAMES * channels).for_each(|frames| {
            for frame in frames.chunks_exact_mut(channels) {
                bend(&self.alpha, &self.inverse, frame);
            }
        });
    }
}

simd_fn! {
    /// One frame.
    fn bend(alpha: &[f32], inverse: &[f32], frame: &mut [f32]) = bend_body
}

#[inline(always)]
fn bend_body<I: Isa>(alpha: &[f32], inverse: &[f32], frame: &mut [f32]) {
    let (alpha, inverse) = (&alpha[..frame.len()], &inverse[..frame.len()]);
    let mut largest = 0.0f32;
    for (value, alpha) in frame.iter().zip(alpha) {
        let angle = (alpha * value).abs();
        largest = if angle > largest { angle } else { largest };
    }
    if largest > LARGEST {
        // No codec comes here on sound; one that does shall still be right.
        for ((value, alpha), inverse) in frame.iter_mut().zip(alpha).zip(inverse) {
            let sine = f64::from(alpha * *value).sin();
            *value += (sine * sine) as f32 * inverse;
        }
        return;
    }
    for ((value, alpha), inverse) in frame.iter_mut().zip(alpha).zip(inverse) {
        let sine = sine_within_half_turns::<I>(alpha * *value);
        *value = fused::<I>(sine * sine, *inverse, *value);
    }
}

/// sin(x) up to its sign, for |x| up to [`LARGEST`]: the multiple of pi next to x is taken off in three parts, then a
/// Taylor polynomial of degree 11 on [-pi / 2, pi / 2].
#[inline(always)]
fn sine_within_half_turns<I: Isa>(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    // The first two have few enough bits that their products with the integer are exact.
    const PI: [f32; 3] = [3.140_625, 9.675_026e-4, 1.509_958e-7];
    let half_turns = (x * std::f32::consts::FRAC_1_PI + SHIFT) - SHIFT;
    let rest = PI.iter().fold(x, |rest, part| fused::<I>(-half_turns, *part, rest));
    let square = rest * rest;
    let mut sum = -1.0 / 39_916_800.0;
    for factor in [1.0 / 362_880.0, -1.0 / 5040.0, 1.0 / 120.0, -1.0 / 6.0, 1.0] {
        sum = fused::<I>(sum, square, factor);
    }
    rest * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worst(alphas: &[f32], values: &[f32]) -> f64 {
        let snake = Snake::new(alphas);
        let mut out = values.to_vec();
        snake.apply(&mut out);
        let mut worst = 0.0f64;
        for (index, (got, value)) in out.iter().zip(values).enumerate() {
            let alpha = alphas[index % alphas.len()];
            let sine = f64::from(alpha * value).sin();
            let expected = f64::from(*value) + sine * sine / (f64::from(alpha) + 1e-9);
            worst = worst.max((f64::from(*got) - expected).abs() / expected.abs().max(1.0));
        }
        worst
    }

    #[test]
    fn snake_equals_its_definition() {
        let alphas: Vec<f32> = (0..70).map(|i| 0.03 + 0.4 * i as f32).collect();
        let values: Vec<f32> = (0..70 * 300).map(|i| ((i * 7919 % 20_011) as f32 - 10_000.0) / 1000.0).collect();
        let worst = worst(&alphas, &values);
        assert!(worst < 1e-6, "{worst}");
    }

    #[test]
    fn huge_angles_are_exact_too() {
        let worst = worst(&[3.0, 1000.0, 0.5], &[1.0, 77.7, -3.0, 1e6, -9e3, 12.0]);
        assert!(worst < 1e-6, "{worst}");
    }
}
