//! A slow leveller: draws the loudness of a clip together, as mastering does by hand.
//!
//! Loudness is heard over windows of 3 s, the short-term loudness of EBU Tech 3341, around each moment. What strays from
//! the loudness of the clip so far by more than a dead band is brought back by a share of the rest. Notes, beats and
//! accents are much shorter than the window and pass as they are.

use std::collections::VecDeque;

use ebur128::{EbuR128, Mode};

use crate::CORPUS_LUFS;

/// Gains a second; between them the gain is a straight line in dB.
const HOPS_A_SECOND: u32 = 10;
/// Hops of the window around each moment.
const WINDOW: usize = 3 * HOPS_A_SECOND as usize;
/// Hops between input and output: half a window.
const DELAY: usize = WINDOW / 2;
/// Hops between them when a clip begins, and those given out for each by which they grow apart: the first second does not wait
/// for the third.
const FIRST_DELAY: usize = 3;
const GROWTH: usize = 4;
/// Hops of [`CORPUS_LUFS`] that a clip starts out with, so that a quiet first bar is not taken for the whole clip.
const PRIOR: f64 = 6.0 * HOPS_A_SECOND as f64;
/// Straying that is left alone, LU: real music does as much.
const DEAD_BAND: f64 = 2.0;
/// Share of the rest that is taken back.
const SHARE: f64 = 0.8;
/// Most that is turned up or down, dB.
const MOST: f64 = 9.0;

/// Loudness control of a running mono signal; comes out 1.5 s later than it goes in, and sooner at the beginning.
pub struct Leveller {
    /// `None` for a rate beyond the meter's filters: such sound passes as it is.
    meter: Option<EbuR128>,
    hop: usize,
    /// Samples not yet given out, and how many of them stand before the next hop's end.
    held: VecDeque<f32>,
    heard: usize,
    /// Hops heard and given out.
    hops: [usize; 2],
    /// Powers of the latest hops, at most a window.
    powers: VecDeque<f64>,
    /// Sum of all powers, and how many: the loudness of the clip.
    sum: f64,
    count: f64,
    /// Gain in dB where the next hop to be given out begins.
    gain: f64,
}

impl std::fmt::Debug for Leveller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leveller").field("held", &self.held.len()).field("gain", &self.gain).finish()
    }
}

impl Leveller {
    /// A leveller for sound of this rate.
    pub fn new(sample_rate: u32) -> Self {
        Self {
            meter: EbuR128::new(1, sample_rate, Mode::M).ok(),
            hop: (sample_rate / HOPS_A_SECOND).max(1) as usize,
            held: VecDeque::new(),
            heard: 0,
            hops: [0, 0],
            powers: VecDeque::new(),
            sum: PRIOR * power(CORPUS_LUFS),
            count: PRIOR,
            gain: 0.0,
        }
    }

    /// Takes samples and returns those that are finished.
    pub fn push(&mut self, samples: &[f32]) -> Vec<f32> {
        let mut out = Vec::with_capacity(samples.len());
        let mut rest = samples;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(self.hop - self.heard));
            rest = later;
            if let Some(meter) = &mut self.meter {
                meter.add_frames_f32(now).expect("mono samples");
            }
            self.held.extend(now);
            self.heard += now.len();
            if self.heard == self.hop {
                self.heard = 0;
                self.hear();
                let [heard, given] = self.hops;
                if heard > given + DELAY.min(FIRST_DELAY + given / GROWTH) {
                    self.give(&mut out);
                }
            }
        }
        out
    }

    /// The samples that are left.
    pub fn finish(mut self) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.held.len());
        while !self.held.is_empty() {
            self.give(&mut out);
        }
        out
    }

    /// Takes the power of the hop just heard (in its own 400 ms) into window and clip.
    fn hear(&mut self) {
        let loudness = self.meter.as_ref().and_then(|meter| meter.loudness_momentary().ok());
        let now = loudness.map_or(0.0, power);
        self.powers.push_back(now);
        self.hops[0] += 1;
        self.sum += now;
        self.count += 1.0;
    }

    /// Gives out a hop, its gain on a straight line to the one that the window around its end asks for.
    fn give(&mut self, out: &mut Vec<f32>) {
        self.hops[1] += 1;
        let [heard, given] = self.hops;
        // Half a window before, and after it what has been heard: the window ends with the sound.
        while self.powers.len() > DELAY + heard.saturating_sub(given) {
            self.powers.pop_front();
        }
        let target = if self.meter.is_none() || self.powers.is_empty() { 0.0 } else { self.wanted() };
        let length = self.hop.min(self.held.len());
        for (n, sample) in self.held.drain(..length).enumerate() {
            let gain = self.gain + (target - self.gain) * (n + 1) as f64 / self.hop as f64;
            out.push(sample * 10f64.powf(gain / 20.0) as f32);
        }
        self.gain = target;
    }

    /// Gain in dB for the middle of the window.
    fn wanted(&self) -> f64 {
        let window = self.powers.iter().sum::<f64>() / self.powers.len() as f64;
        let strays = 10.0 * (window.max(1e-9) / (self.sum / self.count)).log10();
        (-strays.signum() * SHARE * (strays.abs() - DEAD_BAND).max(0.0)).clamp(-MOST, MOST)
    }
}

/// Power of a loudness in LUFS (ITU-R BS.1770-4); 0 for silence.
fn power(lufs: f64) -> f64 {
    10f64.powf((lufs + 0.691) / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AudioClip, measure};

    const RATE: u32 = 44_100;

    fn run(samples: &[f32], block: usize) -> Vec<f32> {
        let mut leveller = Leveller::new(RATE);
        let mut out: Vec<f32> = samples.chunks(block).flat_map(|block| leveller.push(block)).collect();
        out.extend(leveller.finish());
        out
    }

    /// A tone whose loudness in dBFS is a function of the second.
    fn tone(seconds: usize, level: impl Fn(usize) -> f32) -> Vec<f32> {
        let sample = |n: usize| {
            10f32.powf(level(n / RATE as usize) / 20.0) * (n as f32 * 997.0 * std::f32::consts::TAU / RATE as f32).sin()
        };
        (0..seconds * RATE as usize).map(sample).collect()
    }

    #[test]
    fn blocks_do_not_matter_and_no_sample_is_lost() {
        let samples = tone(7, |second| if second % 2 == 0 { -12.0 } else { -30.0 });
        let (whole, parts) = (run(&samples, samples.len()), run(&samples, 777));
        assert_eq!(whole.len(), samples.len());
        assert_eq!(whole, parts);
        assert_eq!(run(&[], 1), []);
        assert_eq!(run(&samples[..100], 7), samples[..100], "too short to be heard");
        // A clip shorter than the window ends as loud as it is.
        let short = tone(1, |_| -13.0);
        assert!(run(&short, 777).iter().zip(&short).all(|(a, b)| (a - b).abs() < 0.05));
    }

    #[test]
    fn the_first_second_comes_early_and_later_ones_after_half_a_window() {
        let samples = tone(20, |_| -13.0);
        let mut leveller = Leveller::new(RATE);
        let second = RATE as usize;
        assert!(leveller.push(&samples[..second * 3 / 2]).len() >= second);
        leveller.push(&samples[second * 3 / 2..]);
        assert_eq!(leveller.held.len(), DELAY * leveller.hop);
    }

    #[test]
    fn steady_sound_and_short_accents_pass_and_long_swings_are_drawn_together() {
        let range = |samples: &[f32]| measure(&AudioClip::from_mono(samples.to_vec(), RATE)).range_lu;
        // -13 dBFS of a 997 Hz tone are -16 LUFS.
        let steady = tone(20, |_| -13.0);
        let out = run(&steady, 2048);
        assert!(out.iter().zip(&steady).skip(2 * RATE as usize).all(|(a, b)| (a - b).abs() < 0.01));
        let swings = tone(40, |second| if second / 5 % 2 == 0 { -10.0 } else { -22.0 });
        let (before, after) = (range(&swings), range(&run(&swings, 2048)));
        assert!(before > 10.0 && after < 0.7 * before, "{before} LU became {after} LU");
        // Silence stays silence, and what follows it is not blown up.
        let gap = tone(30, |second| if (10..20).contains(&second) { -200.0 } else { -13.0 });
        let out = run(&gap, 2048);
        assert!(out.iter().all(|v| v.is_finite() && v.abs() < 1.0));
    }
}
