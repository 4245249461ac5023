//! First guess of the phases that belong to magnitudes, one frame after another.
//!
//! Single-pass spectrum inversion (Beauregard, Harish and Wyse, "Single pass spectrogram inversion", 2015):
//! every spectral peak is taken for a sinusoid whose phase advances by its frequency; the bins around it
//! follow the transform of the Hann window. Here the advance uses the mean of the frequencies of two
//! neighbouring frames, and phases are kept at the centre of the frame. Fine magnitudes start Griffin-Lim
//! far closer to its goal than random phases do, for the price of a look at each bin.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use realfft::num_complex::Complex;

/// Phases of the last frame and how fast they turn, bin by bin.
#[derive(Debug, Clone)]
pub(super) struct PhaseStart {
    hop: usize,
    window: usize,
    /// Phase at the frame centre of the sinusoid that owns the bin, in turns.
    phase: Vec<f32>,
    /// Its advance in turns from frame to frame.
    advance: Vec<f32>,
    started: bool,
}

impl PhaseStart {
    /// Starts with random phases drawn from `seed`.
    pub(super) fn new(window: usize, hop: usize, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let bins = window / 2 + 1;
        Self {
            hop,
            window,
            phase: (0..bins).map(|_| random.random::<f32>()).collect(),
            advance: vec![0.0; bins],
            started: false,
        }
    }

    /// Writes `magnitudes` with guessed phases into `spectrum`.
    pub(super) fn next_frame(&mut self, magnitudes: &[f32], spectrum: &mut [Complex<f32>]) {
        let last = magnitudes.len() - 1;
        let mut start = 0;
        while start <= last {
            // One hill: up to the next peak, then down to the valley behind it.
            let mut peak = start;
            while peak < last && magnitudes[peak + 1] >= magnitudes[peak] {
                peak += 1;
            }
            let mut end = peak;
            while end < last && magnitudes[end + 1] < magnitudes[end] {
                end += 1;
            }
            self.place_hill(magnitudes, start, peak, end, spectrum);
            start = end + 1;
        }
        self.started = true;
    }

    fn place_hill(&mut self, magnitudes: &[f32], start: usize, peak: usize, end: usize, spectrum: &mut [Complex<f32>]) {
        let position = peak as f32 + peak_offset(magnitudes, peak);
        let advance = position * self.hop as f32 / self.window as f32;
        let mut phase = self.phase[peak];
        if self.started {
            // A note that glides has the mean of its two frequencies in between. A peak that jumped by more
            // than a bin is another note: only its own frequency counts.
            let before = self.advance[peak];
            let same = (before - advance).abs() < self.hop as f32 / self.window as f32;
            phase += if same { 0.5 * (before + advance) } else { advance };
            phase -= phase.floor();
        }
        let (sin, cos) = (std::f32::consts::TAU * phase).sin_cos();
        for bin in start..=end {
            let distance = (bin as f32 - position).abs();
            // Main lobe: same sign at the centre, so alternating at the start of the frame, half a window
            // earlier. Side lobes alternate once more.
            let lobe = if distance < 2.0 { 0 } else { distance as usize - 1 };
            let sign = if (bin + lobe).is_multiple_of(2) { 1.0 } else { -1.0 };
            let magnitude = sign * magnitudes[bin];
            spectrum[bin] = Complex::new(magnitude * cos, magnitude * sin);
            self.phase[bin] = phase;
            self.advance[bin] = advance;
        }
    }
}

/// Where between its neighbours the top of a parabola through the peak lies, in bins, -0.5 to 0.5.
fn peak_offset(magnitudes: &[f32], peak: usize) -> f32 {
    if peak == 0 || peak + 1 >= magnitudes.len() {
        return 0.0;
    }
    let (left, top, right) = (magnitudes[peak - 1], magnitudes[peak], magnitudes[peak + 1]);
    let curvature = left - 2.0 * top + right;
    if curvature < 0.0 { (0.5 * (left - right) / curvature).clamp(-0.5, 0.5) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spectrum::{ComplexSpectrogram, Stft};

    #[test]
    fn a_steady_tone_is_right_at_once() {
        let stft = Stft::new(1024, 256);
        let tone: Vec<f32> = (0..20_000).map(|n| (n as f32 * 0.2137).sin()).collect();
        let goal = stft.magnitude(&tone).slice(4..70);
        let mut start = PhaseStart::new(1024, 256, 3);
        let mut guess = ComplexSpectrogram {
            frames: goal.frames,
            bins: goal.bins,
            data: vec![Complex::default(); goal.data.len()],
        };
        for frame in 0..goal.frames {
            let range = frame * goal.bins..(frame + 1) * goal.bins;
            start.next_frame(goal.frame(frame), &mut guess.data[range]);
        }
        let sound = stft.inverse(&guess, goal.frames * 256);
        let seen = stft.magnitude(&sound);
        let (mut error, mut power) = (0.0, 0.0);
        for frame in 4..goal.frames - 4 {
            for (a, b) in seen.frame(frame).iter().zip(goal.frame(frame)) {
                error += (a - b) * (a - b);
                power += b * b;
            }
        }
        assert!(error / power < 0.01, "{}", error / power);
    }
}
