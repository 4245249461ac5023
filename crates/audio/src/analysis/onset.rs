//! Onset envelope: how much louder the log-mel bands become from one frame to the next (spectral flux).

use crate::spectrum::{Stft, mel_filterbank};

use super::frames::{for_each_frame, window_length};

const WINDOW_SECONDS: f64 = 0.04;
const BANDS: usize = 40;
const LOWEST_HZ: f64 = 30.0;
const HIGHEST_HZ: f64 = 11_000.0;
/// Frames a second, rounded to whole samples a frame.
const FRAME_RATE: f64 = 100.0;
/// Compression: energies this far (as a ratio) below the clip's level still count, lower ones fade out.
const COMPRESSION: f32 = 1000.0;

/// Onset strength over time.
#[derive(Debug, Clone, PartialEq)]
pub struct OnsetEnvelope {
    /// Strength of each frame, never negative; the level of the clip has no influence.
    pub values: Vec<f32>,
    /// Frames a second, about 100.
    pub frame_rate: f32,
}

/// Onset envelope of mono samples at `rate` Hz.
pub fn onset_envelope(samples: &[f32], rate: u32) -> OnsetEnvelope {
    short_windows(samples, rate).0
}

/// One pass over windows of about 46 ms: the onset envelope and the spectral centroid in Hz.
pub(super) fn short_windows(samples: &[f32], rate: u32) -> (OnsetEnvelope, f32) {
    let window = window_length(rate, WINDOW_SECONDS);
    let hop = ((f64::from(rate) / FRAME_RATE).round() as usize).clamp(1, window / 2);
    let stft = Stft::new(window, hop);
    let highest = HIGHEST_HZ.min(f64::from(rate) / 2.0);
    let bank = mel_filterbank(rate, window, BANDS, LOWEST_HZ.min(highest / 2.0), highest);

    let mut mel = Vec::with_capacity(stft.frame_count(samples.len()) * BANDS);
    let mut power = vec![0.0f32; stft.bins()];
    let mut bands = [0.0f32; BANDS];
    let (mut weighted, mut total) = (0.0f64, 0.0f64);
    for_each_frame(&stft, samples, |frame| {
        let (mut frame_weighted, mut frame_total) = (0.0f32, 0.0f32);
        for (bin, (value, &magnitude)) in power.iter_mut().zip(frame).enumerate() {
            *value = magnitude * magnitude;
            frame_weighted += magnitude * bin as f32;
            frame_total += magnitude;
        }
        weighted += f64::from(frame_weighted);
        total += f64::from(frame_total);
        bank.apply_frame(&power, &mut bands);
        mel.extend_from_slice(&bands);
    });
    let centroid = if total > 0.0 { (weighted / total * f64::from(rate) / window as f64) as f32 } else { 0.0 };
    let envelope = OnsetEnvelope { values: flux(&mut mel), frame_rate: rate as f32 / hop as f32 };
    (envelope, centroid)
}

/// Mean rise over the bands, from log-compressed band energies `[frames, BANDS]`.
fn flux(mel: &mut [f32]) -> Vec<f32> {
    let frames = mel.len() / BANDS;
    // Level of the clip: mean over time of each frame's strongest band.
    let strongest = |frame: &[f32]| f64::from(frame.iter().copied().fold(0.0, f32::max));
    let level = mel.chunks_exact(BANDS).map(strongest).sum::<f64>() / frames.max(1) as f64;
    if level < 1e-12 {
        return vec![0.0; frames];
    }
    let gain = COMPRESSION / level as f32;
    for value in mel.iter_mut() {
        *value = (1.0 + gain * *value).ln();
    }
    let mut values = vec![0.0; frames];
    for (frame, value) in values.iter_mut().enumerate().skip(1) {
        let now = &mel[frame * BANDS..(frame + 1) * BANDS];
        let before = &mel[(frame - 1) * BANDS..frame * BANDS];
        let rise: f32 = now.iter().zip(before).map(|(a, b)| (a - b).max(0.0)).sum();
        *value = rise / BANDS as f32;
    }
    values
}

impl OnsetEnvelope {
    /// Frames where a note starts: a local maximum over 60 ms that stands out from its surroundings.
    pub fn onsets(&self) -> Vec<usize> {
        let frames = self.values.len();
        let near = (0.03 * self.frame_rate).round().max(1.0) as usize;
        let wide = (0.25 * self.frame_rate).round().max(1.0) as usize;
        let mut sums = Vec::with_capacity(frames + 1);
        sums.push(0.0f64);
        for value in &self.values {
            sums.push(sums[sums.len() - 1] + f64::from(*value));
        }
        let mean = sums[frames] / frames.max(1) as f64;
        // A rise must be real in the music's own terms (relative to the mean) and in absolute ones:
        // the bands rise by 5 % on average.
        let margin = (0.5 * mean).max(0.05);
        (0..frames)
            .filter(|&frame| {
                let value = self.values[frame];
                let around = &self.values[frame.saturating_sub(near)..(frame + near + 1).min(frames)];
                let (start, end) = (frame.saturating_sub(wide), (frame + wide + 1).min(frames));
                let local = (sums[end] - sums[start]) / (end - start) as f64;
                let earlier = near.min(frame);
                f64::from(value) > local + margin
                    && around[..earlier].iter().all(|&other| other < value)
                    && around[earlier..].iter().all(|&other| other <= value)
            })
            .collect()
    }

    /// Onsets a second.
    pub fn density(&self) -> f32 {
        if self.values.is_empty() {
            return 0.0;
        }
        self.onsets().len() as f32 * self.frame_rate / self.values.len() as f32
    }
}
