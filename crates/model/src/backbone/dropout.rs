//! Dropout with its own stream of random numbers.

use burn::tensor::Tensor;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;

use crate::ops;

/// Dropout whose masks depend on (seed, step) alone; a copy draws the same masks again.
#[derive(Debug, Clone)]
pub struct Dropout {
    rate: f32,
    rng: Option<ChaCha8Rng>,
}

impl Dropout {
    /// No dropout: evaluation and generation.
    pub fn off() -> Self {
        Self { rate: 0.0, rng: None }
    }

    /// Zeroes values with probability `rate` and scales the others by 1/(1 - rate).
    pub fn new(rate: f32, rng: ChaCha8Rng) -> Self {
        Self { rate, rng: (rate > 0.0).then_some(rng) }
    }

    /// `base + dropout(x)`.
    pub fn residual(&mut self, base_btd: Tensor<3>, x_btd: Tensor<3>) -> Tensor<3> {
        match &mut self.rng {
            Some(rng) => ops::residual(base_btd, x_btd, self.rate, rng.next_u64()),
            None => base_btd + x_btd,
        }
    }
}
