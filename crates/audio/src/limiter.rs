//! A look-ahead limiter: keeps true peaks below a ceiling without an audible edge.
//!
//! The gain is the least that any peak inside the look-ahead allows, smoothed by a moving average as long as the
//! look-ahead; an average of values that are all low enough is low enough itself, so the ceiling always holds for
//! the samples and, up to the error of the short interpolation, between them (ITU-R BS.1770-4, annex 2).

use std::collections::VecDeque;

/// Points between two samples that are looked at, and taps on each side of the interpolation.
const POINTS: usize = 4;
const SIDE: usize = 8;

/// Gain control of a running mono signal.
#[derive(Debug, Clone)]
pub struct Limiter {
    ceiling: f32,
    window: usize,
    /// Interpolation taps for each point between samples, `[POINTS - 1, 2 * SIDE]`.
    taps: Vec<[f32; 2 * SIDE]>,
    /// Samples not yet given out.
    held: VecDeque<f32>,
    /// The latest `2 * SIDE` samples, oldest first.
    recent: VecDeque<f32>,
    /// Rising gains with the place where each was allowed: front is the least of the window.
    least: VecDeque<(usize, f32)>,
    /// The latest `window` least gains and their sum.
    smoothed: VecDeque<f32>,
    sum: f64,
    place: usize,
}

impl Limiter {
    /// A limiter at `ceiling_dbfs` with a look-ahead of 5 ms.
    pub fn new(sample_rate: u32, ceiling_dbfs: f32) -> Self {
        let window = (sample_rate as usize / 200).max(2 * SIDE);
        let taps = (1..POINTS)
            .map(|point| {
                let mut taps = [0.0; 2 * SIDE];
                for (index, tap) in taps.iter_mut().enumerate() {
                    let x = index as f64 - (SIDE as f64 - 1.0) - point as f64 / POINTS as f64;
                    let phase = std::f64::consts::PI * x;
                    let window = 0.5 + 0.5 * (phase / SIDE as f64).cos();
                    *tap = (phase.sin() / phase * window) as f32;
                }
                taps
            })
            .collect();
        Self {
            ceiling: 10f32.powf(ceiling_dbfs / 20.0),
            window,
            taps,
            held: VecDeque::new(),
            recent: VecDeque::from(vec![0.0; 2 * SIDE]),
            least: VecDeque::new(),
            smoothed: VecDeque::from(vec![1.0; window]),
            sum: window as f64,
            place: 0,
        }
    }

    /// Takes samples and returns those that are finished, later by the look-ahead.
    pub fn push(&mut self, samples: &[f32]) -> Vec<f32> {
        let mut out = Vec::with_capacity(samples.len());
        for &sample in samples {
            self.held.push_back(sample);
            self.step(sample);
            if self.held.len() > self.delay() {
                out.push(self.give());
            }
        }
        out
    }

    /// The samples that are left.
    pub fn finish(mut self) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.held.len());
        let missing = (self.delay() + 1).saturating_sub(self.held.len());
        for _ in 0..missing {
            self.step(0.0);
        }
        while !self.held.is_empty() {
            out.push(self.give());
            self.step(0.0);
        }
        out
    }

    /// Samples between input and output: the look-ahead and the interpolation's.
    fn delay(&self) -> usize {
        self.window - 1 + SIDE
    }

    fn give(&mut self) -> f32 {
        let gain = (self.sum / self.window as f64) as f32;
        let sample = self.held.pop_front().unwrap_or(0.0) * gain;
        sample.clamp(-self.ceiling, self.ceiling)
    }

    fn step(&mut self, sample: f32) {
        self.recent.pop_front();
        self.recent.push_back(sample);
        let recent = self.recent.make_contiguous();
        let mut peak = recent[SIDE - 1].abs().max(recent[SIDE].abs());
        for taps in &self.taps {
            let between: f32 = taps.iter().zip(recent.iter()).map(|(tap, value)| tap * value).sum();
            peak = peak.max(between.abs());
        }
        let allowed = if peak > self.ceiling { self.ceiling / peak } else { 1.0 };
        while self.least.back().is_some_and(|(_, gain)| *gain >= allowed) {
            self.least.pop_back();
        }
        self.least.push_back((self.place, allowed));
        while self.least.front().is_some_and(|(place, _)| place + self.window <= self.place) {
            self.least.pop_front();
        }
        let least = self.least.front().map_or(1.0, |(_, gain)| *gain);
        self.smoothed.push_back(least);
        self.sum += f64::from(least) - f64::from(self.smoothed.pop_front().unwrap_or(1.0));
        self.place += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(samples: &[f32], block: usize) -> Vec<f32> {
        let mut limiter = Limiter::new(44_100, -1.0);
        let mut out: Vec<f32> = samples.chunks(block).flat_map(|block| limiter.push(block)).collect();
        out.extend(limiter.finish());
        out
    }

    #[test]
    fn quiet_sound_passes_untouched_and_loud_sound_stays_below() {
        let quiet: Vec<f32> = (0..5000).map(|n| (n as f32 * 0.05).sin() * 0.3).collect();
        let out = run(&quiet, 700);
        assert_eq!(out.len(), quiet.len());
        assert!(out.iter().zip(&quiet).all(|(a, b)| (a - b).abs() < 1e-6));

        let loud: Vec<f32> =
            (0..20_000).map(|n| (n as f32 * 0.11).sin() * if n % 9000 < 300 { 3.0 } else { 0.5 }).collect();
        let out = run(&loud, 333);
        let ceiling = 10f32.powf(-0.05);
        assert!(out.iter().all(|v| v.abs() <= ceiling + 1e-6));
        assert!(out[4000..8000].iter().zip(&loud[4000..8000]).all(|(a, b)| (a - b).abs() < 1e-6), "it lets go again");
    }

    #[test]
    fn a_peak_between_samples_counts() {
        // A tone at a quarter of the rate, sampled 45 degrees off its peaks: true peak 3 dB above the samples.
        let tone: Vec<f32> =
            (0..4000).map(|n| (std::f32::consts::FRAC_PI_2 * n as f32 + std::f32::consts::FRAC_PI_4).sin()).collect();
        let out = run(&tone, 4000);
        let highest = out[1000..3000].iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert!(highest < 10f32.powf(-0.05) * std::f32::consts::FRAC_1_SQRT_2 * 1.02, "{highest}");
    }

    #[test]
    fn blocks_do_not_matter() {
        let noise: Vec<f32> =
            (0..9000u32).map(|n| ((n.wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0) * 2.0).collect();
        assert_eq!(run(&noise, 17), run(&noise, 9000));
    }
}
