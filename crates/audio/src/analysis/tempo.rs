//! Tempo from the autocorrelation of the onset envelope, with a log-normal preference for about 120 beats a minute;
//! pulse clarity after Lartillot et al. 2008 ("Multi-feature modeling of pulse clarity").

use super::onset::OnsetEnvelope;

/// Slowest beat that is looked for, in beats a minute.
pub const SLOWEST: f32 = 40.0;
/// Fastest beat that is looked for, in beats a minute.
pub const FASTEST: f32 = 240.0;
const PREFERRED: f32 = 120.0;
/// Standard deviation of the preference, in octaves.
const PREFERENCE_OCTAVES: f32 = 0.9;
/// A slower pulse than the beat also repeats at the beat's multiples: what those add to a lag.
const MULTIPLE_WEIGHTS: [f32; 3] = [1.0, 0.5, 0.25];
/// What a lag loses if the envelope repeats just as well at half of it: then the faster pulse is the beat.
const SUBDIVISION_PENALTY: f32 = 0.15;
const STABILITY_WINDOW_SECONDS: f32 = 8.0;
const STABILITY_HOP_SECONDS: f32 = 2.0;
/// Deviation from the main tempo, in octaves, at which a window counts about 60 %.
const STABILITY_TOLERANCE: f32 = 0.04;

/// An estimated tempo.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tempo {
    /// Beats a minute, 40 to 240.
    pub beats_per_minute: f32,
    /// Normalised autocorrelation of the onset envelope at one beat, 0 to 1. Noise has less than about 0.1.
    pub strength: f32,
}

/// The main tempo; `None` if the envelope is shorter than three slow beats or empty of onsets.
pub fn estimate_tempo(envelope: &OnsetEnvelope) -> Option<Tempo> {
    tempo_of(&Correlation::of(&envelope.values, envelope.frame_rate)?)
}

/// The highest autocorrelation peak of the onset envelope between 40 and 300 beats a minute: 1 for a strict pulse,
/// near 0 where nothing repeats.
pub fn pulse_clarity(envelope: &OnsetEnvelope) -> f32 {
    let Some(correlation) = Correlation::of(&envelope.values, envelope.frame_rate) else { return 0.0 };
    let rate = envelope.frame_rate;
    let (first, last) = ((rate * 60.0 / 300.0) as usize, (rate * 60.0 / SLOWEST) as usize);
    (first.max(1)..=last)
        .filter(|&lag| correlation.is_peak(lag))
        .map(|lag| correlation.at(lag))
        .fold(0.0, f32::max)
        .clamp(0.0, 1.0)
}

/// Agreement of the tempo in windows of 8 s with the tempo of the whole, 0 to 1. Twice and half the tempo count as
/// the same; a window without a tempo counts 0.
pub fn tempo_stability(envelope: &OnsetEnvelope) -> f32 {
    let Some(whole) = estimate_tempo(envelope) else { return 0.0 };
    let length = (STABILITY_WINDOW_SECONDS * envelope.frame_rate) as usize;
    let hop = (STABILITY_HOP_SECONDS * envelope.frame_rate) as usize;
    if envelope.values.len() <= length {
        return 1.0;
    }
    let agreement = |window: &[f32]| {
        let local = Correlation::of(window, envelope.frame_rate).and_then(|c| tempo_of(&c));
        local.map_or(0.0, |local| {
            let octaves = (local.beats_per_minute / whole.beats_per_minute).log2();
            let deviation = (octaves - octaves.round()) / STABILITY_TOLERANCE;
            (-0.5 * deviation * deviation).exp()
        })
    };
    let (sum, count) = envelope
        .values
        .windows(length)
        .step_by(hop.max(1))
        .fold((0.0, 0), |(sum, count), window| (sum + agreement(window), count + 1));
    sum / count as f32
}

/// Normalised autocorrelation of an onset envelope: 1 at lag 0, corrected for the shrinking overlap.
struct Correlation {
    values: Vec<f32>,
    frame_rate: f32,
}

impl Correlation {
    fn of(envelope: &[f32], frame_rate: f32) -> Option<Self> {
        let slowest_lag = frame_rate * 60.0 / SLOWEST;
        if (envelope.len() as f32) < 2.0 * slowest_lag {
            return None;
        }
        let pulses = pulses(envelope, frame_rate);
        let energy: f32 = pulses.iter().map(|v| v * v).sum();
        if energy < 1e-9 * pulses.len() as f32 {
            return None;
        }
        // Multiples of a lag help to place it; beyond half the envelope there is too little to compare.
        let longest = ((8.0 * slowest_lag) as usize).min(envelope.len() / 2 + 1);
        let count = pulses.len() as f32;
        let values = (0..=longest)
            .map(|lag| {
                let sum: f32 = pulses[lag..].iter().zip(&pulses).map(|(a, b)| a * b).sum();
                sum / energy * count / (count - lag as f32)
            })
            .collect();
        Some(Self { values, frame_rate })
    }

    fn at(&self, lag: usize) -> f32 {
        self.values.get(lag).copied().unwrap_or(0.0)
    }

    fn is_peak(&self, lag: usize) -> bool {
        lag >= 1 && self.at(lag) > self.at(lag - 1) && self.at(lag) >= self.at(lag + 1)
    }

    /// The highest value near a fractional lag (a frame of play), and where it is.
    fn peak_near(&self, lag: f32) -> Option<(usize, f32)> {
        let centre = lag.round() as usize;
        (centre.saturating_sub(1)..=centre + 1)
            .filter(|&lag| lag + 1 < self.values.len() && lag >= 1)
            .map(|lag| (lag, self.at(lag)))
            .max_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// Vertex of the parabola through a peak and its neighbours.
    fn refine(&self, lag: usize) -> f32 {
        let (left, centre, right) = (self.at(lag - 1), self.at(lag), self.at(lag + 1));
        let curvature = left - 2.0 * centre + right;
        if curvature >= -1e-9 {
            return lag as f32;
        }
        lag as f32 + (0.5 * (left - right) / curvature).clamp(-0.5, 0.5)
    }
}

/// Takes out slow changes (mean over a second), keeps the rises, smooths over 3 frames, removes the mean.
pub(super) fn pulses(envelope: &[f32], frame_rate: f32) -> Vec<f32> {
    let half = (0.5 * frame_rate) as usize;
    let mut sums = Vec::with_capacity(envelope.len() + 1);
    sums.push(0.0f64);
    for value in envelope {
        sums.push(sums[sums.len() - 1] + f64::from(*value));
    }
    let risen: Vec<f32> = envelope
        .iter()
        .enumerate()
        .map(|(frame, value)| {
            let (start, end) = (frame.saturating_sub(half), (frame + half + 1).min(envelope.len()));
            let local = (sums[end] - sums[start]) / (end - start) as f64;
            (value - local as f32).max(0.0)
        })
        .collect();
    let value = |index: usize| risen.get(index).copied().unwrap_or(0.0);
    let mut smooth: Vec<f32> =
        (0..risen.len()).map(|n| 0.5 * value(n) + 0.25 * (value(n.wrapping_sub(1)) + value(n + 1))).collect();
    let mean = (smooth.iter().map(|v| f64::from(*v)).sum::<f64>() / smooth.len().max(1) as f64) as f32;
    for value in &mut smooth {
        *value -= mean;
    }
    smooth
}

fn tempo_of(correlation: &Correlation) -> Option<Tempo> {
    let rate = correlation.frame_rate;
    let (first, last) = ((rate * 60.0 / FASTEST) as usize, (rate * 60.0 / SLOWEST) as usize);
    let score = |lag: usize| {
        let place = correlation.refine(lag);
        let sum: f32 = MULTIPLE_WEIGHTS
            .iter()
            .enumerate()
            .filter_map(|(n, weight)| Some(weight * correlation.peak_near(place * (n + 1) as f32)?.1))
            .sum();
        let octaves = (60.0 * rate / place / PREFERRED).log2() / PREFERENCE_OCTAVES;
        let half = correlation.peak_near(place / 2.0).map_or(0.0, |peak| peak.1);
        let subdivision = (half / correlation.at(lag).max(1e-6)).clamp(0.0, 1.0);
        sum.max(0.0) * (-0.5 * octaves * octaves).exp() * (1.0 - SUBDIVISION_PENALTY * subdivision)
    };
    let lag = (first.max(1)..=last)
        .filter(|&lag| correlation.is_peak(lag))
        .map(|lag| (lag, score(lag)))
        .max_by(|a, b| a.1.total_cmp(&b.1))?
        .0;
    // A peak many beats away places the beat more exactly than the first.
    let mut place = correlation.refine(lag);
    for multiple in [2.0, 4.0, 8.0] {
        let Some((far, height)) = correlation.peak_near(place * multiple) else { break };
        if !correlation.is_peak(far) || height < 0.5 * correlation.at(lag) {
            break;
        }
        place = correlation.refine(far) / multiple;
    }
    Some(Tempo {
        beats_per_minute: (60.0 * rate / place).clamp(SLOWEST, FASTEST),
        strength: correlation.at(lag).clamp(0.0, 1.0),
    })
}
