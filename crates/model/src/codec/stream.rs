//! Decoding that goes on: token frames in, samples out, constant memory.
//!
//! Tokens are decoded in windows at fixed places, each with the same context on both sides, and the noise of a
//! token depends on the seed and its place alone (with a beat, its place within that); so how the frames are pushed
//! never changes the sound.

use std::collections::VecDeque;
use std::ops::Range;

use mambo_audio::spectrum::GriffinLimStream;

use super::house::usable_levels;
use super::windowed::{growing, growing_starts};
use super::{DecodeStream, HouseCodec, HouseConfig, PaintStream, Windows};
use crate::clock::Metronome;
use crate::noise::frame_noise;
use crate::random;

/// Tokens of the first window, and that it looks ahead: a second of sound, and what phase search and leveller hold back of it.
const OPENING: usize = 40;
const OPENING_AHEAD: usize = 12;
/// STFT frames that the phase search keeps open between windows.
const LOOK_AHEAD: usize = 8;

/// Lowest band with a steady part: below about 170 Hz a single partial is most of the sound, and would boom.
const LOWEST_STEADY: usize = 8;
/// Bands on each side that a band is compared with for the steady part of the noise.
const NEIGHBOURS: usize = 3;

/// Standard normal noise of some tokens, row-major `[tokens, frames of a token, bands]`. What differs between
/// neighbouring low bands stands still for a share of `decoding.steady`, so that a held tone keeps its partials; the
/// envelope keeps its own life. With a beat it is that of the first beat again and again.
fn noise(seed: u64, metronome: &Metronome, tokens: Range<usize>, config: &HouseConfig) -> Vec<f32> {
    let (bands, low, steady) = (config.layout.bands(), config.layout.linear, config.decoding.steady);
    let mut out = Vec::with_capacity(tokens.len() * config.width());
    for token in tokens {
        out.extend(frame_noise(seed, "decode", metronome, 1.0, token as u64, config.width()));
    }
    if steady == 0.0 {
        return out;
    }
    let mut rng = random::stream(seed, "decode steady", 0);
    let still: Vec<f32> = (0..low).map(|_| random::normal(&mut rng)).collect();
    for frame in out.chunks_exact_mut(bands) {
        let change: Vec<f32> =
            frame.iter().zip(&still).map(|(n, s)| ((1.0 - steady).sqrt() - 1.0) * n + steady.sqrt() * s).collect();
        for (band, value) in frame[..low].iter_mut().enumerate().skip(LOWEST_STEADY) {
            let around = &change[band.saturating_sub(NEIGHBOURS)..(band + NEIGHBOURS + 1).min(low)];
            *value += change[band] - around.iter().sum::<f32>() / around.len() as f32;
        }
    }
    out
}

/// A running decoder.
pub struct HouseStream<'a> {
    codec: &'a HouseCodec,
    phases: GriffinLimStream,
    levels: usize,
    choice: usize,
    seed: u64,
    metronome: Metronome,
    /// Latents not yet past the context of the next window, `latent` values each.
    latents: VecDeque<Vec<f32>>,
    /// Place of the first of `latents`.
    first: usize,
    /// Tokens already decoded.
    done: usize,
}

impl<'a> HouseStream<'a> {
    pub(super) fn new(codec: &'a HouseCodec, levels: usize, seed: u64, metronome: Metronome) -> Self {
        assert!(
            (1..=codec.config().spec.levels).contains(&levels),
            "levels must be 1 to {}, found {levels}",
            codec.config().spec.levels
        );
        let (levels, choice) = usable_levels(levels);
        let phases = GriffinLimStream::new(&codec.griffin_lim(), LOOK_AHEAD, seed);
        Self { codec, phases, levels, choice, seed, metronome, latents: VecDeque::new(), first: 0, done: 0 }
    }

    /// Decodes `count` tokens with the context there is around them.
    fn decode_window(&mut self, count: usize) -> Vec<f32> {
        let config = self.codec.config();
        let halo = config.decoding.halo;
        let end = (self.done + count + self.ahead()).min(self.first + self.latents.len());
        let before = self.done - self.first;
        let tokens = end - self.first;
        let inputs: Vec<f32> = self.latents.iter().take(tokens).flatten().copied().collect();
        let noise: Vec<f32> = if config.decoding.steps == 0 {
            Vec::new()
        } else {
            noise(self.seed, &self.metronome, self.first..end, config)
        };
        let logs = self.codec.spectrum(&inputs, self.choice, noise);
        let row = config.width();
        let mut magnitudes = config.layout.unfold(&logs[before * row..(before + count) * row]);
        magnitudes.frames = count * config.frames_per_token();
        self.done += count;
        while self.first + halo < self.done {
            self.latents.pop_front();
            self.first += 1;
        }
        self.phases.push(&magnitudes)
    }
}

impl HouseStream<'_> {
    /// Tokens of the next window.
    fn next(&self) -> usize {
        growing(OPENING, self.codec.config().decoding.window, self.done)
    }

    /// Tokens that it looks ahead.
    fn ahead(&self) -> usize {
        growing(OPENING_AHEAD, self.codec.config().decoding.halo, self.done)
    }

    /// Takes the latent of a token.
    fn push_latent(&mut self, latent: Vec<f32>) -> Vec<f32> {
        self.latents.push_back(latent);
        let next = self.next();
        if self.first + self.latents.len() >= self.done + next + self.ahead() {
            self.decode_window(next)
        } else {
            Vec::new()
        }
    }

    /// Decodes what is left.
    fn rest(mut self) -> Vec<f32> {
        let mut sound = Vec::new();
        loop {
            let left = self.first + self.latents.len() - self.done;
            if left == 0 {
                break;
            }
            sound.extend(self.decode_window(left.min(self.next())));
        }
        sound.extend(self.phases.finish());
        sound
    }
}

impl DecodeStream for HouseStream<'_> {
    fn push(&mut self, codes: &[u16]) -> Vec<f32> {
        self.push_latent(self.codec.quantizer().decode(&codes[..self.levels], 1, self.levels))
    }

    fn opening(&self) -> usize {
        growing(OPENING, self.codec.config().decoding.window, 0)
            + growing(OPENING_AHEAD, self.codec.config().decoding.halo, 0)
    }

    fn windows(&self, frames: usize) -> Windows {
        vec![("codec", growing_starts(OPENING, self.codec.config().decoding.window, frames))]
    }

    fn finish(self: Box<Self>) -> Vec<f32> {
        self.rest()
    }
}

impl PaintStream for HouseStream<'_> {
    fn opening(&self) -> usize {
        DecodeStream::opening(self)
    }

    fn windows(&self, frames: usize) -> Windows {
        DecodeStream::windows(self, frames)
    }

    fn push(&mut self, code: u16, detail: &[f32]) -> Vec<f32> {
        let outline = self.codec.quantizer().vector(0, usize::from(code));
        self.push_latent(outline.iter().zip(detail).map(|(outline, detail)| outline + detail).collect())
    }

    fn finish(self: Box<Self>) -> Vec<f32> {
        self.rest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Decoding;

    #[test]
    fn steady_noise_keeps_its_variance_and_leaves_high_bands_alone() {
        let with = |steady: f32| HouseConfig {
            decoding: Decoding { steady, ..Decoding::default() },
            ..HouseConfig::default()
        };
        let config = with(0.3);
        let noise = |tokens: Range<usize>, config: &HouseConfig| noise(7, &Metronome::default(), tokens, config);
        let (bands, low) = (config.layout.bands(), config.layout.linear);
        let (plain, steady) = (noise(5..505, &with(0.0)), noise(5..505, &config));
        let mut power = 0.0;
        let mut mean = vec![0.0f32; low];
        for (a, b) in plain.chunks_exact(bands).zip(steady.chunks_exact(bands)) {
            assert_eq!(a[low..], b[low..]);
            power += b[..low].iter().map(|v| v * v).sum::<f32>();
            mean.iter_mut().zip(b).for_each(|(sum, value)| *sum += value);
        }
        let frames = (steady.len() / bands) as f32;
        let power = power / (frames * low as f32);
        assert!((0.9..1.1).contains(&power), "{power}");
        // The part that stands still is what the mean over time leaves.
        let still = mean.iter().map(|sum| (sum / frames).powi(2)).sum::<f32>() / low as f32;
        assert!((0.15..0.4).contains(&still), "{still}");
        assert_eq!(noise(100..200, &config), steady[95 * config.width()..195 * config.width()]);
    }
}
