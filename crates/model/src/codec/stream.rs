//! Decoding that goes on: token frames in, samples out, constant memory.
//!
//! Tokens are decoded in windows at fixed places, each with the same context on both sides, and the noise of a
//! token depends on the seed and its place alone; so how the frames are pushed never changes the sound.

use std::collections::VecDeque;

use mambo_audio::spectrum::GriffinLimStream;

use super::HouseCodec;
use super::house::usable_levels;
use crate::random;

/// STFT frames that the phase search keeps open between windows.
const LOOK_AHEAD: usize = 8;

/// A running decoder.
pub struct HouseStream<'a> {
    codec: &'a HouseCodec,
    phases: GriffinLimStream,
    levels: usize,
    choice: usize,
    seed: u64,
    /// Latents not yet past the context of the next window, `latent` values each.
    latents: VecDeque<Vec<f32>>,
    /// Place of the first of `latents`.
    first: usize,
    /// Tokens already decoded.
    done: usize,
}

impl<'a> HouseStream<'a> {
    pub(super) fn new(codec: &'a HouseCodec, levels: usize, seed: u64) -> Self {
        assert!(
            (1..=codec.config().spec.levels).contains(&levels),
            "levels must be 1 to {}, found {levels}",
            codec.config().spec.levels
        );
        let (levels, choice) = usable_levels(levels);
        let phases = GriffinLimStream::new(&codec.griffin_lim(), LOOK_AHEAD, seed);
        Self { codec, phases, levels, choice, seed, latents: VecDeque::new(), first: 0, done: 0 }
    }

    /// Takes the codes of one frame and returns the samples that are finished.
    ///
    /// # Panics
    /// When the frame has fewer codes than the levels to decode.
    pub fn push(&mut self, codes: &[u16]) -> Vec<f32> {
        self.latents.push_back(self.codec.quantizer().decode(&codes[..self.levels], 1, self.levels));
        let decoding = &self.codec.config().decoding;
        if self.first + self.latents.len() >= self.done + decoding.window + decoding.halo {
            self.decode_window(decoding.window)
        } else {
            Vec::new()
        }
    }

    /// Decodes what is left.
    pub fn finish(mut self) -> Vec<f32> {
        let mut sound = Vec::new();
        loop {
            let left = self.first + self.latents.len() - self.done;
            if left == 0 {
                break;
            }
            sound.extend(self.decode_window(left.min(self.codec.config().decoding.window)));
        }
        sound.extend(self.phases.finish());
        sound
    }

    /// Decodes `count` tokens with the context there is around them.
    fn decode_window(&mut self, count: usize) -> Vec<f32> {
        let config = self.codec.config();
        let halo = config.decoding.halo;
        let end = (self.done + count + halo).min(self.first + self.latents.len());
        let before = self.done - self.first;
        let tokens = end - self.first;
        let inputs: Vec<f32> = self.latents.iter().take(tokens).flatten().copied().collect();
        let noise: Vec<f32> = if config.decoding.steps == 0 {
            Vec::new()
        } else {
            (self.first..end)
                .flat_map(|token| {
                    let mut rng = random::stream(self.seed, "decode", token as u64);
                    (0..config.width()).map(move |_| random::normal(&mut rng))
                })
                .collect()
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
