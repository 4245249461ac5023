//! Beat tracking: the evenly spaced places that collect most onset strength, found by dynamic programming
//! (Ellis 2007, "Beat Tracking by Dynamic Programming").

use super::onset::onset_envelope;
use super::tempo::{estimate_tempo, pulses};

/// How much an uneven step costs against a strong onset.
const TIGHTNESS: f32 = 100.0;

/// The beats of a clip.
#[derive(Debug, Clone, PartialEq)]
pub struct Beats {
    /// Where they fall, in seconds; at least two, rising.
    seconds: Vec<f32>,
    /// Length of a beat in seconds, as estimated for the whole clip.
    period: f32,
}

/// Beats of mono samples at `rate` Hz; `None` where the pulse repeats less than `least_strength` (see
/// [`super::Tempo::strength`]) or the clip is too short for one.
pub fn track_beats(samples: &[f32], rate: u32, least_strength: f32) -> Option<Beats> {
    let envelope = onset_envelope(samples, rate);
    let tempo = estimate_tempo(&envelope).filter(|tempo| tempo.strength >= least_strength)?;
    let period = 60.0 / tempo.beats_per_minute;
    let frames = best_path(&scaled(&pulses(&envelope.values, envelope.frame_rate)), period * envelope.frame_rate);
    let seconds: Vec<f32> = frames.into_iter().map(|frame| frame as f32 / envelope.frame_rate).collect();
    (seconds.len() >= 2).then_some(Beats { seconds, period })
}

/// Unit deviation.
fn scaled(values: &[f32]) -> Vec<f32> {
    let square = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / values.len().max(1) as f64;
    let scale = if square > 0.0 { (1.0 / square.sqrt()) as f32 } else { 0.0 };
    values.iter().map(|value| value * scale).collect()
}

/// Frames of the beats, about `period` frames apart, with the highest sum of strength less unevenness.
fn best_path(strength: &[f32], period: f32) -> Vec<usize> {
    let nearest = (period / 2.0).round().max(1.0) as usize;
    let farthest = (period * 2.0).round() as usize;
    let cost: Vec<f32> = (nearest..=farthest).map(|step| TIGHTNESS * (step as f32 / period).ln().powi(2)).collect();
    let mut score = Vec::with_capacity(strength.len());
    let mut before = Vec::with_capacity(strength.len());
    for (frame, here) in strength.iter().enumerate() {
        // A path may also begin here: that scores no less than a bad past.
        let (mut best, mut from) = (0.0, None);
        for (step, cost) in (nearest..=farthest.min(frame)).zip(&cost) {
            let value = score[frame - step] - cost;
            if value > best {
                (best, from) = (value, Some(frame - step));
            }
        }
        score.push(here + best);
        before.push(from);
    }
    // The last beat lies within the last period.
    let last = strength.len().saturating_sub(period.ceil() as usize);
    let mut at = (last..strength.len()).max_by(|&a, &b| score[a].total_cmp(&score[b]));
    let mut path = Vec::new();
    while let Some(frame) = at {
        path.push(frame);
        at = before[frame];
    }
    path.reverse();
    path
}

impl Beats {
    /// Beats since the first one at a time in seconds; before the first and after the last beat the clock runs on
    /// at the clip's tempo.
    pub fn position(&self, seconds: f32) -> f32 {
        let after = self.seconds.partition_point(|&beat| beat <= seconds);
        if after == 0 {
            return (seconds - self.seconds[0]) / self.period;
        }
        let start = self.seconds[after - 1];
        let length = self.seconds.get(after).map_or(self.period, |end| end - start);
        (after - 1) as f32 + (seconds - start) / length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u32 = 16_000;

    /// Decaying bursts of noise at the given times.
    fn clicks(times: &[f32], seconds: f32) -> Vec<f32> {
        let mut state = 1_u32;
        let mut out = vec![0.0; (seconds * RATE as f32) as usize];
        for time in times {
            let start = (time * RATE as f32) as usize;
            for (n, sample) in out.iter_mut().skip(start).take(2000).enumerate() {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *sample += ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * 0.5 * (-(n as f32) / 300.0).exp();
            }
        }
        out
    }

    #[test]
    fn beats_fall_on_the_clicks_and_positions_count_them() {
        let times: Vec<f32> = (0..38).map(|n| 0.3 + 0.5 * n as f32).collect();
        let beats = track_beats(&clicks(&times, 20.0), RATE, 0.2).expect("a strict pulse");
        let offset = beats.position(times[4]) - 4.0;
        assert!((offset - offset.round()).abs() < 0.06, "{offset}");
        for (n, &time) in times.iter().enumerate() {
            assert!((beats.position(time) - offset - n as f32).abs() < 0.12, "beat {n}: {}", beats.position(time));
            let half = beats.position(time + 0.25) - offset - n as f32;
            assert!((half - 0.5).abs() < 0.12, "after beat {n}: {half}");
        }
        assert!(beats.position(-1.0) < beats.position(0.0));
    }

    #[test]
    fn a_tempo_that_drifts_is_followed() {
        let mut times = vec![0.2];
        for n in 0..40 {
            times.push(times[n] + 0.5 + 0.001 * n as f32);
        }
        let beats = track_beats(&clicks(&times, 22.0), RATE, 0.05).expect("a pulse");
        let offset = beats.position(times[5]) - 5.0;
        for (n, &time) in times.iter().enumerate().skip(2) {
            let found = beats.position(time) - offset - n as f32;
            assert!(found.abs() < 0.2, "beat {n}: off by {found}");
        }
    }

    #[test]
    fn silence_and_fragments_have_no_beats() {
        assert_eq!(track_beats(&vec![0.0; 320_000], RATE, 0.1), None);
        assert_eq!(track_beats(&[], RATE, 0.1), None);
        assert_eq!(track_beats(&clicks(&[0.1], 0.5), RATE, 0.1), None);
    }
}
