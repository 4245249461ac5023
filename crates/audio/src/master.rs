//! The last two stages of everything Mambo makes: even loudness, then true peaks below a ceiling.

use crate::leveller::Leveller;
use crate::limiter::Limiter;

/// Ceiling of true peaks, dBFS.
pub const CEILING_DBFS: f32 = -1.0;

/// A running mono signal made ready to be heard; what comes out is as long as what goes in.
#[derive(Debug)]
pub struct Master {
    leveller: Option<Leveller>,
    limiter: Limiter,
}

impl Master {
    /// `even` draws the loudness together (see [`Leveller`]); without it only peaks are limited.
    pub fn new(sample_rate: u32, even: bool) -> Self {
        Self { leveller: even.then(|| Leveller::new(sample_rate)), limiter: Limiter::new(sample_rate, CEILING_DBFS) }
    }

    /// Takes samples and returns those that are finished.
    pub fn push(&mut self, samples: &[f32]) -> Vec<f32> {
        match &mut self.leveller {
            Some(leveller) => self.limiter.push(&leveller.push(samples)),
            None => self.limiter.push(samples),
        }
    }

    /// The samples that are left.
    pub fn finish(mut self) -> Vec<f32> {
        let rest = self.leveller.take().map(Leveller::finish).unwrap_or_default();
        let mut out = self.limiter.push(&rest);
        out.extend(self.limiter.finish());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_and_peaks_stay_below_the_ceiling() {
        let samples: Vec<f32> = (0..100_000).map(|n| 3.0 * (n as f32 * 0.03).sin()).collect();
        for even in [false, true] {
            let mut master = Master::new(44_100, even);
            let mut out: Vec<f32> = samples.chunks(2048).flat_map(|block| master.push(block)).collect();
            out.extend(master.finish());
            assert_eq!(out.len(), samples.len());
            assert!(out.iter().all(|v| v.abs() <= 10f32.powf(CEILING_DBFS / 20.0) + 1e-6));
        }
    }
}
