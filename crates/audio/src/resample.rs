//! Change of the sample rate: band-limited, streaming, of exact length.
//!
//! Laws: the output has `round(n * to / from)` samples, starts at the same instant as the input, and does not
//! depend on how the input is cut into blocks.

use rubato::audioadapter_buffers::direct::SequentialSliceOfVecs;
use rubato::{Fft, FixedSync, Resampler as _, WindowFunction};

use crate::AudioClip;

/// Input frames that one transform takes, about. Longer ones cut steeper between pass and stop band.
const BLOCK: usize = 2048;

/// A running change of the sample rate.
pub struct Resampler {
    from: u32,
    to: u32,
    channels: usize,
    /// `None` if the rates are equal.
    engine: Option<Fft<f32>>,
    /// Input that waits for a full block.
    waiting: Vec<Vec<f32>>,
    output: Vec<Vec<f32>>,
    /// Output frames still to drop: the delay of the filter.
    skip: usize,
    taken: u64,
    given: u64,
}

impl Resampler {
    /// From `from` Hz to `to` Hz for `channels` channels.
    ///
    /// # Panics
    /// If a rate is 0.
    pub fn new(from: u32, to: u32, channels: usize) -> Self {
        assert!(from > 0 && to > 0, "sample rates {from} and {to} must be positive");
        // The delay is half a block. An even number of the smallest blocks makes it a whole number of samples
        // on both sides: a half one would shift the sound.
        let smallest = (from / greatest_common_divisor(from, to)) as usize;
        let block = smallest * BLOCK.div_ceil(smallest).next_multiple_of(2);
        let engine = (from != to && channels > 0).then(|| {
            Fft::new_custom(
                from as usize,
                to as usize,
                block,
                1,
                channels,
                WindowFunction::BlackmanHarris2,
                FixedSync::Both,
            )
            .expect("rates, block and channels are positive")
        });
        Self {
            from,
            to,
            channels,
            skip: engine.as_ref().map_or(0, |engine| engine.output_delay()),
            waiting: vec![Vec::new(); channels],
            output: vec![Vec::new(); channels],
            engine,
            taken: 0,
            given: 0,
        }
    }

    /// Takes the next samples and returns those that are ready.
    ///
    /// # Panics
    /// If the clip has another rate or number of channels.
    pub fn push(&mut self, clip: &AudioClip) -> AudioClip {
        assert_eq!((clip.sample_rate, clip.channel_count()), (self.from, self.channels), "rate and channels");
        self.taken += clip.frames() as u64;
        if self.engine.is_none() {
            self.given = self.taken;
            return AudioClip { sample_rate: self.to, channels: clip.channels.clone() };
        }
        for (waiting, new) in self.waiting.iter_mut().zip(&clip.channels) {
            waiting.extend_from_slice(new);
        }
        self.run(u64::MAX)
    }

    /// Returns the rest.
    pub fn finish(mut self) -> AudioClip {
        let total = resampled_length(self.taken, self.from, self.to);
        let mut rest = AudioClip::empty(self.to, self.channels);
        while self.engine.is_some() && self.given < total {
            let block = self.engine.as_ref().map_or(0, |engine| engine.input_frames_next());
            for waiting in &mut self.waiting {
                let filled = waiting.len().next_multiple_of(block).max(block);
                waiting.resize(filled, 0.0);
            }
            rest.append(&self.run(total));
        }
        rest
    }

    /// Turns full blocks of waiting input into output, up to `limit` frames in all.
    fn run(&mut self, limit: u64) -> AudioClip {
        let mut ready = AudioClip::empty(self.to, self.channels);
        let Some(engine) = &mut self.engine else { return ready };
        let available = self.waiting.first().map_or(0, Vec::len);
        let mut used = 0;
        while available - used >= engine.input_frames_next() {
            let frames_out = engine.output_frames_next();
            for channel in &mut self.output {
                channel.resize(frames_out, 0.0);
            }
            let input = SequentialSliceOfVecs::new(&self.waiting, self.channels, available)
                .expect("all channels wait with the same length");
            let mut output = SequentialSliceOfVecs::new_mut(&mut self.output, self.channels, frames_out)
                .expect("all channels were resized");
            let indexing = rubato::Indexing::new().input_offset(used);
            let (consumed, produced) = engine
                .process_into_buffer(&input, &mut output, Some(&indexing))
                .expect("the buffers have the lengths that were asked for");
            used += consumed;
            let dropped = self.skip.min(produced);
            self.skip -= dropped;
            let kept = ((produced - dropped) as u64).min(limit - self.given.min(limit)) as usize;
            for (ready, output) in ready.channels.iter_mut().zip(&self.output) {
                ready.extend_from_slice(&output[dropped..dropped + kept]);
            }
            self.given += kept as u64;
        }
        for waiting in &mut self.waiting {
            waiting.drain(..used);
        }
        ready
    }
}

fn greatest_common_divisor(mut a: u32, mut b: u32) -> u32 {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Frames that `frames` frames at `from` Hz become at `to` Hz: rounded to the nearest, halves up.
pub fn resampled_length(frames: u64, from: u32, to: u32) -> u64 {
    let doubled = 2 * u128::from(frames) * u128::from(to) + u128::from(from);
    (doubled / (2 * u128::from(from.max(1)))) as u64
}

/// A whole clip at another rate.
pub fn resample(clip: &AudioClip, to: u32) -> AudioClip {
    let mut resampler = Resampler::new(clip.sample_rate, to, clip.channel_count());
    let mut resampled = resampler.push(clip);
    resampled.append(&resampler.finish());
    resampled
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(rate: u32, hz: f64, frames: usize) -> Vec<f32> {
        (0..frames).map(|n| (std::f64::consts::TAU * hz * n as f64 / f64::from(rate)).sin() as f32).collect()
    }

    #[test]
    fn a_tone_stays_the_same_tone_at_the_same_time() {
        for (from, to) in [(44_100, 48_000), (48_000, 44_100), (44_100, 16_000), (8_000, 44_100), (44_100, 43_211)] {
            let frames = from as usize;
            let clip = AudioClip::from_mono(tone(from, 997.0, frames), from);
            let out = resample(&clip, to);
            assert_eq!(out.frames() as u64, resampled_length(frames as u64, from, to));
            let expected = tone(to, 997.0, out.frames());
            let middle = out.frames() / 4..out.frames() * 3 / 4;
            let worst = out.channels[0][middle.clone()]
                .iter()
                .zip(&expected[middle])
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            assert!(worst < 1e-4, "{from} to {to}: {worst}");
        }
    }

    #[test]
    fn what_the_lower_rate_cannot_hold_is_gone() {
        let clip = AudioClip::from_mono(tone(48_000, 11_000.0, 48_000), 48_000);
        let out = resample(&clip, 16_000);
        let middle = &out.channels[0][4000..12_000];
        assert!(middle.iter().all(|sample| sample.abs() < 1e-4));
    }

    #[test]
    fn blocks_and_length_are_exact() {
        let clip =
            AudioClip { sample_rate: 44_100, channels: vec![tone(44_100, 440.0, 30_011), tone(44_100, 660.0, 30_011)] };
        let whole = resample(&clip, 32_000);
        let mut resampler = Resampler::new(44_100, 32_000, 2);
        let mut joined = AudioClip::empty(32_000, 2);
        let (mut at, mut size) = (0, 1);
        while at < clip.frames() {
            let end = (at + size).min(clip.frames());
            let block = AudioClip {
                sample_rate: 44_100,
                channels: clip.channels.iter().map(|channel| channel[at..end].to_vec()).collect(),
            };
            joined.append(&resampler.push(&block));
            (at, size) = (end, size * 3 % 4999 + 1);
        }
        joined.append(&resampler.finish());
        assert_eq!(joined, whole);
        for frames in [0usize, 1, 2, 100, 5000] {
            let clip = AudioClip::from_mono(vec![0.5; frames], 44_100);
            for to in [8_000, 44_100, 96_000] {
                let length = resampled_length(frames as u64, 44_100, to);
                assert_eq!(resample(&clip, to).frames() as u64, length, "{frames} to {to}");
            }
        }
    }
}
