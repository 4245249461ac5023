//! Chroma from spectral peaks: each peak is placed by interpolation, the tuning of the whole piece is found first,
//! and a peak also speaks for the notes whose overtone it may be (after Gómez 2006, "Tonal description of music").

use crate::spectrum::Stft;

use super::frames::{for_each_frame, window_length};
use super::tone::{OCTAVE_COUNT, OctaveBins};

const WINDOW_SECONDS: f64 = 0.17;
const LOWEST_HZ: f64 = 55.0;
const HIGHEST_HZ: f64 = 3500.0;
const PEAKS_PER_FRAME: usize = 40;
/// A peak counts if its magnitude is above this share of the frame's strongest.
const PEAK_FLOOR: f32 = 0.01;
/// A peak may be overtone 1 to 4 of a note; each further one is this much less likely.
const OVERTONES: usize = 4;
const OVERTONE_DECAY: f32 = 0.6;
/// Width in semitones of the window that shares a peak between neighbouring notes.
const NOTE_WIDTH: f32 = 4.0 / 3.0;
/// Frames this far below the loudest in energy count as silent in comparisons.
const SILENCE_RATIO: f32 = 1e-5;

/// Strength of the twelve pitch classes over time.
#[derive(Debug, Clone, PartialEq)]
pub struct Chromagram {
    /// Row-major `[frames, 12]`, C first, in units of magnitude.
    pub values: Vec<f32>,
    /// Energy of each frame.
    pub energy: Vec<f32>,
    /// Frames a second, about 21.
    pub frame_rate: f32,
    /// Tuning against A = 440 Hz in semitones, -0.5 to 0.5.
    pub tuning: f32,
}

#[derive(Clone, Copy)]
struct Peak {
    /// Position in semitones above A = 440 Hz.
    semitones: f32,
    magnitude: f32,
}

/// Chromagram of mono samples at `rate` Hz.
pub fn chromagram(samples: &[f32], rate: u32) -> Chromagram {
    long_windows(samples, rate).0
}

/// One pass over windows of about 190 ms: chroma, and energy per octave.
pub(super) fn long_windows(samples: &[f32], rate: u32) -> (Chromagram, [f64; OCTAVE_COUNT]) {
    let window = window_length(rate, WINDOW_SECONDS);
    let stft = Stft::new(window, window / 4);
    let octave_bins = OctaveBins::new(rate, window);
    let mut octaves = [0.0; OCTAVE_COUNT];
    let mut peaks = Vec::new();
    let mut ends = Vec::new();
    let mut energy = Vec::new();
    for_each_frame(&stft, samples, |frame| {
        energy.push(frame.iter().map(|m| m * m).sum());
        octave_bins.add(frame, &mut octaves);
        collect_peaks(frame, f64::from(rate) / window as f64, &mut peaks);
        ends.push(peaks.len());
    });
    let tuning = tuning(&peaks);
    let mut values = vec![0.0; ends.len() * 12];
    let mut start = 0;
    for (row, end) in values.chunks_exact_mut(12).zip(&ends) {
        for peak in &peaks[start..*end] {
            add_peak(*peak, tuning, row);
        }
        start = *end;
    }
    let frame_rate = rate as f32 / (window / 4) as f32;
    (Chromagram { values, energy, frame_rate, tuning }, octaves)
}

/// Appends the strongest peaks of a frame.
fn collect_peaks(frame: &[f32], hz_per_bin: f64, peaks: &mut Vec<Peak>) {
    let first = ((LOWEST_HZ / hz_per_bin) as usize).max(2);
    let last = ((HIGHEST_HZ / hz_per_bin) as usize).min(frame.len().saturating_sub(3));
    if first >= last {
        return;
    }
    let strongest = frame[first..=last].iter().copied().fold(0.0, f32::max);
    let floor = (PEAK_FLOOR * strongest).max(1e-6);
    let begin = peaks.len();
    for bin in first..=last {
        let value = frame[bin];
        let around = [frame[bin - 2], frame[bin - 1], frame[bin + 1], frame[bin + 2]];
        if value < floor || value <= around[0] || value <= around[1] || value < around[2] || value < around[3] {
            continue;
        }
        // A Hann peak is close to a parabola in the logarithm.
        let (left, centre, right) = (around[1].max(1e-12).ln(), value.ln(), around[2].max(1e-12).ln());
        let curvature = left - 2.0 * centre + right;
        let shift = if curvature < -1e-6 { 0.5 * (left - right) / curvature } else { 0.0 };
        let hz = (bin as f64 + f64::from(shift.clamp(-0.5, 0.5))) * hz_per_bin;
        peaks.push(Peak { semitones: (12.0 * (hz / 440.0).log2()) as f32, magnitude: value });
    }
    if peaks.len() - begin > PEAKS_PER_FRAME {
        peaks[begin..].sort_by(|a, b| b.magnitude.total_cmp(&a.magnitude));
        peaks.truncate(begin + PEAKS_PER_FRAME);
    }
}

/// Mean deviation of all peaks from the nearest semitone, as an angle so that -0.5 and 0.5 meet.
fn tuning(peaks: &[Peak]) -> f32 {
    let (mut sine, mut cosine) = (0.0f64, 0.0f64);
    for peak in peaks {
        let angle = f64::from(peak.semitones) * 2.0 * std::f64::consts::PI;
        sine += f64::from(peak.magnitude) * angle.sin();
        cosine += f64::from(peak.magnitude) * angle.cos();
    }
    if sine == 0.0 && cosine == 0.0 {
        return 0.0;
    }
    (sine.atan2(cosine) / (2.0 * std::f64::consts::PI)) as f32
}

fn add_peak(peak: Peak, tuning: f32, row: &mut [f32]) {
    let mut weight = peak.magnitude;
    for overtone in 1..=OVERTONES {
        // A = 440 Hz is pitch class 9.
        let pitch = peak.semitones - tuning - 12.0 * (overtone as f32).log2() + 9.0;
        for note in [pitch.floor(), pitch.floor() + 1.0] {
            let distance = (pitch - note).abs();
            if distance < NOTE_WIDTH / 2.0 {
                let share = (std::f32::consts::PI * distance / NOTE_WIDTH).cos();
                row[note.rem_euclid(12.0) as usize % 12] += weight * share * share;
            }
        }
        weight *= OVERTONE_DECAY;
    }
}

impl Chromagram {
    /// Number of frames.
    pub fn frames(&self) -> usize {
        self.energy.len()
    }

    /// The twelve values of one frame.
    pub fn frame(&self, index: usize) -> &[f32] {
        &self.values[index * 12..(index + 1) * 12]
    }

    /// Mean over time, summing to 1; all 0 where there is no pitch.
    pub fn mean(&self) -> [f32; 12] {
        let mut sums = [0.0f64; 12];
        for row in self.values.chunks_exact(12) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += f64::from(*value);
            }
        }
        let total: f64 = sums.iter().sum();
        sums.map(|sum| if total > 0.0 { (sum / total) as f32 } else { 0.0 })
    }

    fn audible(&self) -> Vec<bool> {
        let loudest = self.energy.iter().copied().fold(0.0, f32::max);
        self.energy.iter().map(|&energy| energy > SILENCE_RATIO * loudest && energy > 1e-9).collect()
    }

    /// Mean correlation between the chroma of a moment and of `seconds` later, -1 to 1, over audible frames.
    /// 0 where the piece is too short.
    pub fn self_similarity(&self, seconds: f32) -> f32 {
        let lag = ((seconds * self.frame_rate).round() as usize).max(1);
        let audible = self.audible();
        mean(
            (lag..self.frames())
                .filter(|&frame| audible[frame] && audible[frame - lag])
                .map(|frame| correlation(self.frame(frame), self.frame(frame - lag))),
        )
    }

    /// Mean correlation of the chroma, frame by frame, with that of `other` at the same time, -1 to 1,
    /// over the audible frames of `self`. 0 where there are none.
    pub fn correlation(&self, other: &Self) -> f32 {
        let audible = self.audible();
        let frames = self.frames().min(other.frames());
        mean((0..frames).filter(|&f| audible[f]).map(|f| correlation(self.frame(f), other.frame(f))))
    }
}

/// How well the pitch content of `original` survives in `copy` (same rate, same start), -1 to 1.
pub fn chroma_correlation(original: &[f32], copy: &[f32], rate: u32) -> f32 {
    chromagram(original, rate).correlation(&chromagram(copy, rate))
}

fn mean(values: impl Iterator<Item = f32>) -> f32 {
    let (sum, count) = values.fold((0.0f64, 0usize), |(sum, n), value| (sum + f64::from(value), n + 1));
    if count == 0 { 0.0 } else { (sum / count as f64) as f32 }
}

/// Pearson correlation; 0 where one side is constant.
pub(super) fn correlation(a: &[f32], b: &[f32]) -> f32 {
    let count = a.len() as f32;
    let (mean_a, mean_b) = (a.iter().sum::<f32>() / count, b.iter().sum::<f32>() / count);
    let (mut product, mut square_a, mut square_b) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        let (x, y) = (x - mean_a, y - mean_b);
        product += x * y;
        square_a += x * x;
        square_b += y * y;
    }
    let scale = (square_a * square_b).sqrt();
    if scale > 0.0 { product / scale } else { 0.0 }
}
