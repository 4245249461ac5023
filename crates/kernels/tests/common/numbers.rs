//! Drawn inputs, and how far results lie apart.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;

/// Uniform values in `low..high`.
pub fn uniform(rng: &mut ChaCha8Rng, count: usize, low: f32, high: f32) -> Vec<f32> {
    (0..count).map(|_| low + (high - low) * (rng.next_u32() >> 8) as f32 / (1 << 24) as f32).collect()
}

/// In f64.
pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

/// ‖a-b‖ / ‖b‖
pub fn distance(a: &[f32], b: &[f64]) -> f64 {
    distance_above(a, b, 0.0)
}

/// ‖a-b‖ / max(‖b‖, least): terms of a sum may cancel each other while their rounding does not.
pub fn distance_above(a: &[f32], b: &[f64], least: f64) -> f64 {
    assert_eq!(a.len(), b.len());
    let scale = b.iter().map(|y| y * y).sum::<f64>().sqrt().max(least);
    let difference = a.iter().zip(b).map(|(x, y)| (f64::from(*x) - y).powi(2)).sum::<f64>().sqrt();
    if scale == 0.0 { difference } else { difference / scale }
}
