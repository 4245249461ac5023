//! Dropout whose mask is a function of (seed, index), so the backward pass recomputes it and nothing is stored.

use crate::simd::{Isa, simd_fn};
use rayon::prelude::*;

/// Values a task handles.
const VALUES: usize = 1 << 14;

/// A dropout mask.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Share of values set to zero, 0 to below 1; the others are scaled up so that the mean stays.
    pub probability: f32,
    /// Chooses the mask; draw one from the dropout stream for each use.
    pub seed: u64,
}

/// The two keys of a block of 2^14 values: the seed and the block's number through the mixer of SplitMix64
/// (Steele et al., OOPSLA 2014).
fn keys(seed: u64, block: usize) -> [u32; 2] {
    let mut mixed = seed.wrapping_add((block as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    [mixed as u32, (mixed >> 32) as u32]
}

impl Dropout {
    /// `base + x * mask`; without a base `x * mask`. Applied to a gradient it is the backward pass for `x`.
    ///
    /// # Panics
    /// If lengths differ or the probability is outside 0..1.
    pub fn apply(&self, base: Option<&[f32]>, x: &[f32]) -> Vec<f32> {
        assert!((0.0..1.0).contains(&self.probability), "dropout probability {} is outside 0..1", self.probability);
        if let Some(base) = base {
            assert_eq!(base.len(), x.len(), "dropout: residual");
        }
        let mut out = vec![0.0f32; x.len()];
        let threshold = (f64::from(self.probability) * 4_294_967_296.0) as u32;
        let scale = 1.0 / (1.0 - self.probability);
        out.par_chunks_mut(VALUES).zip(x.par_chunks(VALUES)).enumerate().for_each(|(block, (out, x))| {
            if let Some(base) = base {
                out.copy_from_slice(&base[block * VALUES..][..x.len()]);
            }
            masked_add(keys(self.seed, block), threshold, scale, x, out);
        });
        out
    }
}

simd_fn! {
    /// `out += x * scale` where the hash of the index is at least `threshold`.
    fn masked_add(keys: [u32; 2], threshold: u32, scale: f32, x: &[f32], out: &mut [f32]) = masked_add_body
}

#[inline(always)]
fn masked_add_body<I: Isa>(keys: [u32; 2], threshold: u32, scale: f32, x: &[f32], out: &mut [f32]) {
    if threshold == 0 {
        for (value, x) in out.iter_mut().zip(x) {
            *value += x;
        }
        return;
    }
    for (index, (value, x)) in out.iter_mut().zip(x).enumerate() {
        // The finaliser of MurmurHash3 twice, keyed before each.
        let mut hash = index as u32 ^ keys[0];
        hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
        hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
        hash = (hash ^ (hash >> 16)).wrapping_add(keys[1]);
        hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
        hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
        hash ^= hash >> 16;
        *value += if hash >= threshold { x * scale } else { 0.0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_right_share_and_repeats() {
        let ones = vec![1.0f32; 100_000];
        for probability in [0.1f32, 0.5] {
            let dropout = Dropout { probability, seed: 3 };
            let out = dropout.apply(None, &ones);
            let dropped = out.iter().filter(|value| **value == 0.0).count() as f32 / out.len() as f32;
            assert!((dropped - probability).abs() < 0.006, "{dropped}");
            assert!(out.iter().all(|value| *value == 0.0 || (*value - 1.0 / (1.0 - probability)).abs() < 1e-6));
            assert_eq!(out, dropout.apply(None, &ones));
            assert_ne!(out, Dropout { probability, seed: 4 }.apply(None, &ones));
            // Neighbours and blocks are independent: pairs are dropped together about probability^2 of the time.
            for distance in [1, 16, VALUES] {
                let both =
                    (0..out.len() - distance).filter(|&i| out[i] == 0.0 && out[i + distance] == 0.0).count() as f32;
                let share = both / (out.len() - distance) as f32;
                assert!((share - probability * probability).abs() < 0.01, "distance {distance}: {share}");
            }
        }
        let base = vec![2.0f32; 1000];
        assert_eq!(Dropout { probability: 0.0, seed: 0 }.apply(Some(&base), &ones[..1000]), vec![3.0; 1000]);
    }
}
