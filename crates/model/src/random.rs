//! Randomness: one seed, named ChaCha8 streams, each reseeded from an index such as the step.
//!
//! A draw depends on (seed, name, index) alone, so nothing has to be saved to resume a run exactly.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// The stream `name` of `seed` at `index`: same three, same numbers, on every platform.
pub fn stream(seed: u64, name: &str, index: u64) -> ChaCha8Rng {
    // FNV-1a: any fixed mixing of the name will do, and this one needs no dependency.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in name.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&hash.to_le_bytes());
    key[16..24].copy_from_slice(&index.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// Uniform in `[0, 1)` with 24 random bits.
pub fn uniform(rng: &mut ChaCha8Rng) -> f32 {
    (rng.next_u32() >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// Uniform integer in `[0, bound)`, `bound` below 2^32. The bias of the multiplication is below 2^-32 * bound.
pub fn below(rng: &mut ChaCha8Rng, bound: usize) -> usize {
    ((u64::from(rng.next_u32()) * bound as u64) >> 32) as usize
}

/// Standard normal draw (Box-Muller, one of the pair).
pub fn normal(rng: &mut ChaCha8Rng) -> f32 {
    let radius = (-2.0 * (1.0 - uniform(rng)).ln()).sqrt();
    radius * (std::f32::consts::TAU * uniform(rng)).cos()
}

/// A random order of `0..count` (Fisher-Yates).
pub fn permutation(rng: &mut ChaCha8Rng, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    for i in (1..count).rev() {
        order.swap(i, below(rng, i + 1));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_repeat_and_differ() {
        let draw = |seed, name, index| stream(seed, name, index).next_u64();
        assert_eq!(draw(1, "data", 5), draw(1, "data", 5));
        assert_ne!(draw(1, "data", 5), draw(1, "data", 6));
        assert_ne!(draw(1, "data", 5), draw(1, "init", 5));
        assert_ne!(draw(1, "data", 5), draw(2, "data", 5));
    }

    #[test]
    fn normal_has_unit_variance() {
        let mut rng = stream(3, "test", 0);
        let draws: Vec<f32> = (0..20_000).map(|_| normal(&mut rng)).collect();
        let mean = draws.iter().sum::<f32>() / 20_000.0;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / 20_000.0;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.04, "{mean} {variance}");
    }

    #[test]
    fn permutation_holds_every_index_once() {
        let mut order = permutation(&mut stream(9, "data", 1), 100);
        assert_ne!(order, (0..100).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }
}
