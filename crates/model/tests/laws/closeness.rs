//! Noise and comparisons for the law tests.

use burn::tensor::Tensor;
use mambo_model::random;

/// Standard normal values from a seed.
pub fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut rng = random::stream(seed, "noise", 0);
    (0..count).map(|_| random::normal(&mut rng)).collect()
}

/// The values of a tensor.
pub fn floats<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.to_data().try_to_vec_as::<f32>().unwrap()
}

/// Fails unless `a` and `b` agree to `tolerance` times the largest value.
pub fn assert_close(name: &str, a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len(), "{name}");
    let largest = a.iter().fold(1e-3_f32, |most, value| most.max(value.abs()));
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= tolerance * largest, "{name}[{i}]: {a} and {b} (largest {largest})");
    }
}
