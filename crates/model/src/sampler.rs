//! From logits to a code: guidance, temperature, top-k, top-p, one seeded draw.
//!
//! Law: the special token is never drawn, because logits have exactly one entry per code.

use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::clock::{FASTEST, SLOWEST};
use crate::random;

/// How codes are drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely code.
    pub temperature: f32,
    /// The same for the codebooks after the first, which hold less of the tune and more of the sound; absent: as for the
    /// first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fine_temperature: Option<f32>,
    /// Draw among this many most likely codes; 0 for all.
    pub top_k: usize,
    /// Draw among the fewest codes that together reach this probability; 1 for all.
    pub top_p: f32,
    /// Classifier-free guidance by the caption: see [`Guidance`]; 1 uses the caption alone, 0 ignores it.
    pub guidance: f32,
    /// The same by the beat: away from music that hears neither clock nor echoes; 1 leaves them as they are.
    pub beat_guidance: f32,
    /// Subtracted from the logit of the code just drawn, per codebook. A small model that has held a tone for a while
    /// holds it for ever; this gives it a way out.
    pub hold_penalty: f32,
    /// Subtracted from each code's logit, times the share of the latest `frequency_frames` that had it: a small model
    /// that settles on a few codes never leaves them by itself.
    pub frequency_penalty: f32,
    /// Frames over which the frequency penalty counts.
    pub frequency_frames: usize,
    /// Added to the logits of the codes that stood at each lag of a model with echoes: above 0 repeats itself more.
    pub echo: f32,
    /// Tempo of the beat clock in beats a minute; 0 for music without a beat; absent: drawn from what the model reads in
    /// the text. Models without a clock ignore it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tempo: Option<f32>,
    /// After this many frames go back to where the opening ended, and draw another continuation; 0 never. Keeps long
    /// clips within the trained length.
    pub window: usize,
    /// Frames of the clip's opening.
    pub opening: usize,
    /// Frames over which what was played before such a turn fades into what comes after it.
    pub overlap: usize,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            fine_temperature: None,
            top_k: 0,
            top_p: 0.95,
            guidance: 2.0,
            beat_guidance: 1.0,
            hold_penalty: 0.0,
            frequency_penalty: 0.0,
            frequency_frames: 172,
            echo: 0.0,
            tempo: None,
            window: 646,
            opening: 108,
            overlap: 21,
        }
    }
}

/// A setting outside its range.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum SamplingError {
    /// Temperature is negative or no number.
    #[error("temperature {0} must be 0 or more")]
    Temperature(f32),
    /// Temperature is negative or no number.
    #[error("fine-temperature {0} must be 0 or more")]
    FineTemperature(f32),
    /// Top-p outside (0, 1].
    #[error("top-p {0} must be above 0 and at most 1")]
    TopP(f32),
    /// Guidance is no number.
    #[error("guidance {0} must be a finite number")]
    Guidance(f32),
    /// Guidance is no number.
    #[error("beat-guidance {0} must be a finite number")]
    BeatGuidance(f32),
    /// The penalty is no number.
    #[error("hold-penalty {0} must be a finite number")]
    HoldPenalty(f32),
    /// The penalty is no number.
    #[error("frequency-penalty {0} must be a finite number")]
    FrequencyPenalty(f32),
    /// The echo is no number.
    #[error("echo {0} must be a finite number")]
    Echo(f32),
    /// The tempo is none of music.
    #[error("tempo {0} must be 40 to 240 beats a minute, or 0 for music without a beat")]
    Tempo(f32),
    /// Nothing is left between two turns.
    #[error("opening = {opening} and overlap = {overlap} together must be below window = {window}")]
    Window {
        /// Frames before a turn.
        window: usize,
        /// Frames of the opening.
        opening: usize,
        /// Frames that fade.
        overlap: usize,
    },
}

impl Sampling {
    /// Checks ranges.
    pub fn validate(&self) -> Result<(), SamplingError> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(SamplingError::Temperature(self.temperature));
        }
        if let Some(temperature) = self.fine_temperature
            && !(temperature >= 0.0 && temperature.is_finite())
        {
            return Err(SamplingError::FineTemperature(temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(SamplingError::TopP(self.top_p));
        }
        if !self.guidance.is_finite() {
            return Err(SamplingError::Guidance(self.guidance));
        }
        if !self.beat_guidance.is_finite() {
            return Err(SamplingError::BeatGuidance(self.beat_guidance));
        }
        if !self.hold_penalty.is_finite() {
            return Err(SamplingError::HoldPenalty(self.hold_penalty));
        }
        if !self.frequency_penalty.is_finite() {
            return Err(SamplingError::FrequencyPenalty(self.frequency_penalty));
        }
        if !self.echo.is_finite() {
            return Err(SamplingError::Echo(self.echo));
        }
        if self.tempo.is_some_and(|tempo| tempo != 0.0 && !(SLOWEST..=FASTEST).contains(&tempo)) {
            return Err(SamplingError::Tempo(self.tempo.unwrap_or_default()));
        }
        if self.window > 0 && self.opening.saturating_add(self.overlap) >= self.window {
            let Self { window, opening, overlap, .. } = *self;
            return Err(SamplingError::Window { window, opening, overlap });
        }
        Ok(())
    }

    /// Draws a code of a codebook from `logits` (one per code). Takes exactly one number from `rng`, whatever the
    /// settings, so that settings change codes but not the stream behind them.
    pub fn draw(&self, codebook: usize, logits: &[f32], rng: &mut ChaCha8Rng) -> u16 {
        let chance = random::uniform(rng);
        let temperature = self.fine_temperature.filter(|_| codebook > 0).unwrap_or(self.temperature);
        let mut order: Vec<u16> = (0..logits.len() as u16).collect();
        // Ties by index: the order must not depend on the sorting algorithm.
        order.sort_unstable_by(|&a, &b| logits[usize::from(b)].total_cmp(&logits[usize::from(a)]).then(a.cmp(&b)));
        if temperature == 0.0 || order.len() == 1 {
            return order[0];
        }
        if self.top_k > 0 {
            order.truncate(self.top_k);
        }
        let highest = logits[usize::from(order[0])];
        let mut weights: Vec<f32> =
            order.iter().map(|&code| ((logits[usize::from(code)] - highest) / temperature).exp()).collect();
        let total: f32 = weights.iter().sum();
        if self.top_p < 1.0 {
            let mut reached = 0.0;
            let enough = weights.iter().position(|weight| {
                reached += weight / total;
                reached >= self.top_p
            });
            weights.truncate(enough.map_or(weights.len(), |at| at + 1));
        }
        let mut left = chance * weights.iter().sum::<f32>();
        for (&code, weight) in order.iter().zip(&weights) {
            left -= weight;
            if left < 0.0 {
                return code;
            }
        }
        order[weights.len() - 1]
    }
}

/// Weights of the streams that are decoded together.
///
/// With `c` the logits given caption and beat, `n` given the beat alone and `u` given neither, codes are drawn from
/// `u + beat_guidance (n - u) + guidance (c - n)` (classifier-free guidance, Ho and Salimans 2022, with two conditions
/// as in InstructPix2Pix, section 3.2.1). With 1 for either this is the usual guidance by the other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guidance {
    /// Weight of `c`.
    pub caption: f32,
    /// Weight of `n`.
    pub beat: f32,
    /// Weight of `u`.
    pub neither: f32,
}

impl Guidance {
    /// Weights for a clip with or without a caption and a beat; a stream of weight 0 need not be decoded.
    pub fn new(sampling: &Sampling, with_caption: bool, with_beat: bool) -> Self {
        let by_caption = if with_caption { sampling.guidance } else { 0.0 };
        Self::by(by_caption, if with_beat { sampling.beat_guidance } else { 1.0 })
    }

    /// Weights for the scales of both guidances, 0 for no caption.
    pub fn by(caption: f32, beat: f32) -> Self {
        Self { caption, beat: beat - caption, neither: 1.0 - beat }
    }
}

/// The weighted sum of equally long streams of logits, into the first.
pub fn blend(logits: &mut [f32], weights: &[f32]) {
    let length = logits.len() / weights.len();
    let (first, others) = logits.split_at_mut(length);
    if weights == [1.0] {
        return;
    }
    first.iter_mut().for_each(|value| *value *= weights[0]);
    for (other, weight) in others.chunks_exact(length).zip(&weights[1..]) {
        first.iter_mut().zip(other).for_each(|(sum, value)| *sum += weight * value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plain() -> Sampling {
        Sampling { top_p: 1.0, guidance: 1.0, window: 0, ..Sampling::default() }
    }

    proptest! {
        #[test]
        fn every_draw_is_a_code_and_obeys_top_k(
            logits in prop::collection::vec(-30.0f32..30.0, 1..200),
            temperature in 0.0f32..3.0,
            top_k in 0usize..20,
            top_p in 0.01f32..1.0,
            seed in any::<u64>(),
        ) {
            let sampling = Sampling { temperature, top_k, top_p, ..plain() };
            let code = usize::from(sampling.draw(0, &logits, &mut random::stream(seed, "sample", 0)));
            prop_assert!(code < logits.len());
            if top_k > 0 {
                let above = logits.iter().filter(|&&value| value > logits[code]).count();
                prop_assert!(above < top_k);
            }
        }
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let logits = [0.5_f32.ln(), 0.3_f32.ln(), 0.2_f32.ln()];
        let mut rng = random::stream(1, "sample", 0);
        let mut counts = [0; 3];
        for _ in 0..20_000 {
            counts[usize::from(plain().draw(0, &logits, &mut rng))] += 1;
        }
        for (count, expected) in counts.iter().zip([10_000, 6_000, 4_000]) {
            assert!(i32::abs(count - expected) < 300, "{counts:?}");
        }
    }

    #[test]
    fn the_first_codebook_and_the_others_have_temperatures_of_their_own() {
        let logits = [0.5_f32.ln(), 0.3_f32.ln(), 0.2_f32.ln()];
        let sampling = Sampling { temperature: 0.0, fine_temperature: Some(1.0), ..plain() };
        let mut rng = random::stream(3, "sample", 0);
        let mut drawn = |codebook| (0..200).filter(|_| sampling.draw(codebook, &logits, &mut rng) > 0).count();
        assert!(drawn(0) == 0 && drawn(1) > 50 && drawn(3) > 50);
    }

    #[test]
    fn top_p_keeps_the_fewest_codes_that_reach_it() {
        let logits = [0.5_f32.ln(), 0.3_f32.ln(), 0.2_f32.ln()];
        let sampling = Sampling { top_p: 0.6, ..plain() };
        let mut rng = random::stream(2, "sample", 0);
        assert!((0..500).all(|_| sampling.draw(0, &logits, &mut rng) < 2));
    }

    #[test]
    fn guidance_weighs_the_streams() {
        let weights = |guidance, beat_guidance, with_caption, with_beat| {
            let sampling = Sampling { guidance, beat_guidance, ..plain() };
            let Guidance { caption, beat, neither } = Guidance::new(&sampling, with_caption, with_beat);
            [caption, beat, neither]
        };
        assert_eq!(weights(1.0, 1.0, true, true), [1.0, 0.0, 0.0]);
        assert_eq!(weights(3.0, 1.0, true, true), [3.0, -2.0, 0.0]);
        assert_eq!(weights(2.0, 2.0, true, true), [2.0, 0.0, -1.0]);
        assert_eq!(weights(3.0, 2.0, true, true), [3.0, -1.0, -1.0]);
        assert_eq!(weights(3.0, 2.0, false, true), [0.0, 2.0, -1.0]);
        assert_eq!(weights(3.0, 2.0, true, false), [3.0, -2.0, 0.0]);
        assert_eq!(weights(3.0, 2.0, false, false), [0.0, 1.0, 0.0]);
        let mut logits = [1.0, -2.0, 0.5, 0.5, 4.0, 0.0];
        blend(&mut logits, &[3.0, -2.0, 0.5]);
        assert_eq!(logits[..2], [4.0, -7.0]);
        blend(&mut logits[..2], &[1.0]);
        assert_eq!(logits[..2], [4.0, -7.0]);
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        assert!(Sampling { temperature: -1.0, ..plain() }.validate().is_err());
        assert!(Sampling { temperature: f32::NAN, ..plain() }.validate().is_err());
        assert!(Sampling { fine_temperature: Some(f32::NAN), ..plain() }.validate().is_err());
        assert!(Sampling { top_p: 0.0, ..plain() }.validate().is_err());
        assert!(Sampling { beat_guidance: f32::NAN, ..plain() }.validate().is_err());
        assert!(Sampling { hold_penalty: f32::INFINITY, ..plain() }.validate().is_err());
        assert!(Sampling { echo: f32::NAN, ..plain() }.validate().is_err());
        assert!(Sampling { frequency_penalty: f32::INFINITY, ..plain() }.validate().is_err());
        assert!(Sampling { tempo: Some(39.0), ..plain() }.validate().is_err());
        assert!(Sampling { tempo: Some(f32::NAN), ..plain() }.validate().is_err());
        assert!(Sampling { tempo: Some(0.0), ..plain() }.validate().is_ok());
        let turns = |window, opening, overlap| Sampling { window, opening, overlap, ..plain() }.validate();
        assert!(turns(10, 0, 10).is_err() && turns(10, 7, 3).is_err() && turns(10, usize::MAX, 3).is_err());
        assert!(turns(10, 6, 3).is_ok() && turns(10, 0, 0).is_ok() && turns(0, 7, 3).is_ok());
    }
}
