//! Floats to integers.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Rounds samples to 16 or 24 bits, always in the same way.
pub(super) struct Quantiser {
    scale: f32,
    dither: Option<ChaCha8Rng>,
    clipped: u64,
}

impl Quantiser {
    /// To 16 bits, with dither of triangular distribution and two steps wide: the error is noise and does not
    /// follow the sound. Values that are 16-bit values already stay as they are, silence among them.
    pub(super) fn sixteen() -> Self {
        Self { scale: 32_768.0, dither: Some(ChaCha8Rng::seed_from_u64(0)), clipped: 0 }
    }

    /// To 24 bits, where rounding is below all hearing.
    pub(super) fn twenty_four() -> Self {
        Self { scale: 8_388_608.0, dither: None, clipped: 0 }
    }

    pub(super) fn quantise(&mut self, sample: f32) -> i32 {
        let scaled = sample * self.scale;
        let mut value = scaled.round();
        if let Some(random) = &mut self.dither {
            let bits = random.next_u64();
            if value != scaled {
                let unit = |half: u64| (half as u32 >> 8) as f32 / (1 << 24) as f32;
                value = (scaled + unit(bits) - unit(bits >> 32)).round();
            }
        }
        if scaled > self.scale || scaled < -self.scale {
            self.clipped += 1;
        }
        value.clamp(-self.scale, self.scale - 1.0) as i32
    }

    pub(super) fn clipped(&self) -> u64 {
        self.clipped
    }
}

#[cfg(test)]
mod tests {
    use super::Quantiser;

    #[test]
    fn dither_keeps_the_mean_and_the_grid() {
        let mut quantiser = Quantiser::sixteen();
        let (level, count) = (0.3 / 32_768.0, 200_000);
        let values: Vec<i32> = (0..count).map(|_| quantiser.quantise(level)).collect();
        let mean = values.iter().sum::<i32>() as f64 / f64::from(count);
        assert!((mean - 0.3).abs() < 0.01, "{mean}");
        // Variance of the total error of triangular dither: a quarter of a step squared.
        let variance = values.iter().map(|&v| (f64::from(v) - 0.3).powi(2)).sum::<f64>() / f64::from(count);
        assert!((variance - 0.25).abs() < 0.01, "{variance}");
        for value in [0, 1, -1, 12_345, -32_768, 32_767] {
            assert_eq!(quantiser.quantise(value as f32 / 32_768.0), value);
        }
        assert_eq!(quantiser.clipped(), 0);
        assert_eq!((quantiser.quantise(1.5), quantiser.quantise(-1.5)), (32_767, -32_768));
        assert_eq!(quantiser.clipped(), 2);
    }
}
