//! Augmented versions of a segment: pitch, tempo, gain, offset. Version 0 is always unaltered.
//!
//! Half of the versions change pitch and tempo together by resampling, which leaves no trace; the others
//! change them independently by overlap-add at the best-fitting place (WSOLA, Verhelst and Roelands 1993).

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use std::f64::consts::PI;

/// Largest change of tempo, as a factor.
pub const MAX_SPEED: f64 = 1.13;
/// Largest offset as a share of the segment.
pub const MAX_OFFSET: f64 = 0.25;

/// How a version differs from what was recorded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Alteration {
    /// Semitones up.
    pub semitones: f64,
    /// Factor on the tempo.
    pub speed: f64,
    /// Decibels louder.
    pub gain_db: f64,
    /// How much later in the track the segment begins, as a share of its length.
    pub offset: f64,
}

impl Alteration {
    /// Nothing changed.
    pub const NONE: Self = Self { semitones: 0.0, speed: 1.0, gain_db: 0.0, offset: 0.0 };

    /// The alteration of a version; the same arguments always give the same one.
    #[must_use]
    pub fn of_version(seed: u64, track_id: &str, segment: u32, version: u32) -> Self {
        if version == 0 {
            return Self::NONE;
        }
        let key = blake3::hash(format!("augment:{seed}:{track_id}:{segment}:{version}").as_bytes());
        let mut random = ChaCha8Rng::from_seed(*key.as_bytes());
        let mut draw =
            |low: f64, high: f64| low + (high - low) * (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        // Whole semitones keep the tuning that instruments have; zero is left to other choices.
        let (semitones, speed) = if version % 2 == 1 {
            let steps: f64 = [-2.0, -1.0, 1.0, 2.0][draw(0.0, 4.0) as usize % 4];
            (steps, 2.0_f64.powf(steps / 12.0))
        } else {
            ([-3.0, -2.0, -1.0, 0.0, 0.0, 1.0, 2.0, 3.0][draw(0.0, 8.0) as usize % 8], draw(0.92, 1.09))
        };
        Self { semitones, speed, gain_db: draw(-6.0, 3.0), offset: draw(0.0, MAX_OFFSET) }
    }

    /// Frames of the original that `frames` of this version are made from.
    #[must_use]
    pub fn source_frames(&self, frames: usize) -> usize {
        (frames as f64 * self.speed).ceil() as usize
    }

    /// The version of a piece of sound: as long as the input divided by the speed.
    #[must_use]
    pub fn apply(&self, samples: &[f32], rate: u32) -> Vec<f32> {
        let pitch = 2.0_f64.powf(self.semitones / 12.0);
        // Playing faster by the pitch factor raises the pitch; stretching makes up for the tempo.
        let stretch = pitch / self.speed;
        let mut out = if (stretch - 1.0).abs() < 1e-6 { samples.to_vec() } else { stretched(samples, rate, stretch) };
        if (pitch - 1.0).abs() > 1e-9 {
            out = played_faster(&out, pitch);
        }
        if self.gain_db != 0.0 {
            let peak = out.iter().fold(1e-9_f32, |peak, sample| peak.max(sample.abs()));
            // Never louder than full scale, unless the recording already was.
            let gain = (10.0_f64.powf(self.gain_db / 20.0) as f32).min((1.0 / peak).max(1.0));
            out.iter_mut().for_each(|sample| *sample *= gain);
        }
        out
    }
}

/// Half width of the interpolation filter in samples at a factor of 1.
const HALF_WIDTH: usize = 24;
/// Filter positions between two samples.
const PHASES: usize = 256;

/// Resamples so that playing at the old rate is `factor` times faster and higher: band-limited
/// interpolation with a Blackman-windowed sinc.
#[must_use]
pub fn played_faster(samples: &[f32], factor: f64) -> Vec<f32> {
    // Faster playback moves the highest partials beyond half the rate, so they are filtered away.
    let cutoff = (1.0 / factor).min(1.0) * 0.97;
    let half = (HALF_WIDTH as f64 / cutoff).ceil() as usize;
    // Whole lanes; the weights beyond the filter are zero.
    let taps = (2 * half).next_multiple_of(LANES);
    let mut table = vec![0.0_f32; (PHASES + 1) * taps];
    for phase in 0..=PHASES {
        let fraction = phase as f64 / PHASES as f64;
        let row = &mut table[phase * taps..(phase + 1) * taps];
        let mut sum = 0.0;
        let values: Vec<f64> = (0..2 * half)
            .map(|tap| {
                let x = tap as f64 - (half as f64 - 1.0) - fraction;
                let sinc = if x.abs() < 1e-9 { 1.0 } else { (PI * x * cutoff).sin() / (PI * x * cutoff) };
                let place = (x / half as f64).clamp(-1.0, 1.0);
                let window = 0.42 + 0.5 * (PI * place).cos() + 0.08 * (2.0 * PI * place).cos();
                sum += sinc * window;
                sinc * window
            })
            .collect();
        row.iter_mut().zip(values).for_each(|(target, value)| *target = (value / sum) as f32);
    }
    let mut padded = vec![0.0_f32; half];
    padded.extend_from_slice(samples);
    padded.resize(samples.len() + half + taps + 2, 0.0);
    let length = (samples.len() as f64 / factor).floor() as usize;
    (0..length)
        .map(|index| {
            let place = index as f64 * factor;
            let whole = place as usize;
            let phase = (place - whole as f64) * PHASES as f64;
            let (row, mix) = (phase as usize, phase.fract() as f32);
            let weights = |row: usize| &table[row * taps..(row + 1) * taps];
            let source = &padded[whole + 1..whole + 1 + taps];
            let (a, b) = (dot(source, weights(row)), dot(source, weights((row + 1).min(PHASES))));
            a + (b - a) * mix
        })
        .collect()
}

/// Sums side by side: one sum after another would wait for every addition.
const LANES: usize = 16;

/// Sum of products of equally long slices.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (a_whole, b_whole) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a_whole.remainder().iter().zip(b_whole.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_whole.zip(b_whole) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    sums.iter().sum::<f32>() + rest
}

/// Makes sound `factor` times longer at the same pitch.
#[must_use]
pub fn stretched(samples: &[f32], rate: u32, factor: f64) -> Vec<f32> {
    // 50 ms windows hold two periods of the lowest bass; 12 ms of search find its phase.
    let window = (f64::from(rate) * 0.05) as usize / 4 * 4;
    let (hop, search) = (window / 2, (f64::from(rate) * 0.012) as usize);
    let length = (samples.len() as f64 * factor).floor() as usize;
    if samples.len() < 2 * window + 2 * search {
        // Too short to have a pitch worth keeping.
        return played_faster(samples, 1.0 / factor);
    }
    let shape: Vec<f32> =
        (0..window).map(|i| (0.5 - 0.5 * (2.0 * PI * i as f64 / window as f64).cos()) as f32).collect();
    let last_start = samples.len() - window;
    let mut out = vec![0.0_f32; length + window];
    let mut weight = vec![0.0_f32; length + window];
    let mut previous = 0_usize;
    let mut position = 0;
    while position < length {
        let wanted = (position as f64 / factor) as usize;
        let start = if position == 0 {
            0
        } else {
            // The piece that continues the previous one most smoothly, near where it should be taken.
            let natural = (previous + hop).min(last_start);
            let low = wanted.saturating_sub(search).min(last_start);
            let high = (wanted + search).min(last_start);
            best_match(samples, natural, low, high, window)
        };
        for index in 0..window {
            out[position + index] += samples[start + index] * shape[index];
            weight[position + index] += shape[index];
        }
        previous = start;
        position += hop;
    }
    out.truncate(length);
    out.iter_mut().zip(&weight).for_each(|(sample, weight)| *sample /= weight.max(1e-3));
    out
}

/// Samples between the starts of the first search.
const COARSE: usize = 4;

/// The start in `low..=high` whose window resembles the one at `natural` most (normalised correlation),
/// found coarsely on every fourth sample, then exactly.
fn best_match(samples: &[f32], natural: usize, low: usize, high: usize, window: usize) -> usize {
    // Every fourth sample, from the places that a coarse start can have.
    let thinned = |from: usize, to: usize| -> Vec<f32> { samples[from..to].iter().step_by(COARSE).copied().collect() };
    let wanted = thinned(natural, natural + window);
    let thin = thinned(low, high + window);
    let best = |wanted: &[f32], pieces: &mut dyn Iterator<Item = (usize, &[f32])>| {
        let likeness = |piece: &[f32]| dot(wanted, piece) / (dot(piece, piece) + 1e-9).sqrt();
        let better = |best: (f32, usize), next: (f32, usize)| if next.0 > best.0 { next } else { best };
        pieces.map(|(start, piece)| (likeness(piece), start)).fold((f32::MIN, low), better).1
    };
    let coarse = best(&wanted, &mut thin.windows(wanted.len()).enumerate().map(|(n, piece)| (low + COARSE * n, piece)));
    let near = coarse.saturating_sub(COARSE - 1).max(low)..=(coarse + COARSE - 1).min(high);
    best(&samples[natural..natural + window], &mut near.map(|start| (start, &samples[start..start + window])))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u32 = 44_100;

    fn tone(frequency: f64, seconds: f64) -> Vec<f32> {
        (0..(seconds * f64::from(RATE)) as usize)
            .map(|i| (0.5 * (2.0 * PI * frequency * i as f64 / f64::from(RATE)).sin()) as f32)
            .collect()
    }

    /// Amplitude of a frequency in the middle of the sound.
    fn amplitude(samples: &[f32], frequency: f64) -> f64 {
        let middle = &samples[samples.len() / 4..samples.len() * 3 / 4];
        let (mut re, mut im) = (0.0, 0.0);
        for (i, &sample) in middle.iter().enumerate() {
            let window = 1.0 - (2.0 * PI * i as f64 / middle.len() as f64).cos();
            let turn = 2.0 * PI * frequency * i as f64 / f64::from(RATE);
            re += f64::from(sample) * window * turn.cos();
            im += f64::from(sample) * window * turn.sin();
        }
        2.0 * f64::hypot(re, im) / middle.len() as f64
    }

    #[test]
    fn playing_faster_raises_the_pitch_cleanly() {
        let out = played_faster(&tone(1000.0, 1.0), 2.0_f64.powf(2.0 / 12.0));
        assert_eq!(out.len(), (44_100.0 / 2.0_f64.powf(2.0 / 12.0)) as usize);
        assert!((amplitude(&out, 1122.46) - 0.5).abs() < 0.005);
        assert!(amplitude(&out, 1000.0) < 0.001 && amplitude(&out, 2244.9) < 0.0005);
        let high = played_faster(&tone(21_000.0, 0.5), 1.2);
        assert!(high[2000..high.len() - 2000].iter().all(|sample| sample.abs() < 0.01), "aliases must be gone");
    }

    #[test]
    fn stretching_keeps_the_pitch() {
        for factor in [0.9, 1.12] {
            let out = stretched(&tone(440.0, 2.0), RATE, factor);
            assert_eq!(out.len(), (88_200.0 * factor) as usize);
            assert!((amplitude(&out, 440.0) - 0.5).abs() < 0.03, "{factor} {}", amplitude(&out, 440.0));
        }
        assert_eq!(stretched(&tone(440.0, 0.05), RATE, 1.1).len(), (2205.0_f64 * 1.1) as usize);
    }

    #[test]
    fn an_alteration_does_what_it_says() {
        let sound = tone(500.0, 2.0);
        let alteration = Alteration { semitones: 3.0, speed: 0.95, gain_db: -6.0, offset: 0.0 };
        let out = alteration.apply(&sound, RATE);
        assert!((out.len() as f64 - 88_200.0 / 0.95).abs() < 4.0);
        assert!((amplitude(&out, 500.0 * 2.0_f64.powf(0.25)) - 0.25).abs() < 0.02);
        assert_eq!(Alteration::NONE.apply(&sound, RATE), sound);
        let loud = Alteration { gain_db: 12.0, ..Alteration::NONE }.apply(&sound, RATE);
        assert!(loud.iter().all(|sample| sample.abs() <= 1.0));
    }

    #[test]
    fn versions_are_fixed_differ_and_stay_in_range() {
        let mut seen = Vec::new();
        for version in 0..64 {
            let one = Alteration::of_version(1, "track", 3, version);
            assert_eq!(one, Alteration::of_version(1, "track", 3, version));
            assert!(
                (1.0 / MAX_SPEED..=MAX_SPEED).contains(&one.speed)
                    && one.semitones.abs() <= 3.0
                    && one.semitones.fract() == 0.0
            );
            assert!((0.0..=MAX_OFFSET).contains(&one.offset) && !seen.contains(&one));
            seen.push(one);
        }
        assert_eq!(seen[0], Alteration::NONE);
        assert_ne!(seen[1], Alteration::of_version(1, "track", 4, 1));
    }
}
