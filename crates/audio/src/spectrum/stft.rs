//! Short-time Fourier transform with exact inverse (least squares over the overlapping windows).

use std::sync::Arc;

use rayon::prelude::*;
use realfft::num_complex::Complex;
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};

/// Frames handled by one parallel task.
pub(super) const TASK_FRAMES: usize = 64;

/// What stands outside the signal when a frame reaches over its edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Padding {
    /// Silence.
    #[default]
    Zero,
    /// The signal mirrored at its first and last sample (as older librosa does).
    Reflect,
}

/// Magnitudes, row-major `[frames, bins]`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Spectrogram {
    /// Number of time frames.
    pub frames: usize,
    /// Number of frequency bins (or bands).
    pub bins: usize,
    /// `frames * bins` values, one frame after another.
    pub data: Vec<f32>,
}

impl Spectrogram {
    /// A spectrogram of zeros.
    pub fn zeros(frames: usize, bins: usize) -> Self {
        Self { frames, bins, data: vec![0.0; frames * bins] }
    }

    /// The `bins` values of one frame.
    pub fn frame(&self, index: usize) -> &[f32] {
        &self.data[index * self.bins..(index + 1) * self.bins]
    }

    /// The frames `range` as a spectrogram of their own.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Self {
        Self {
            frames: range.len(),
            bins: self.bins,
            data: self.data[range.start * self.bins..range.end * self.bins].to_vec(),
        }
    }
}

/// Complex spectra, row-major `[frames, bins]`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ComplexSpectrogram {
    /// Number of time frames.
    pub frames: usize,
    /// Number of frequency bins.
    pub bins: usize,
    /// `frames * bins` values, one frame after another.
    pub data: Vec<Complex<f32>>,
}

impl ComplexSpectrogram {
    /// The magnitudes.
    pub fn magnitude(&self) -> Spectrogram {
        Spectrogram {
            frames: self.frames,
            bins: self.bins,
            data: self.data.iter().map(|value| value.norm_sqr().sqrt()).collect(),
        }
    }
}

/// Periodic Hann window of `length` samples.
pub fn hann_window(length: usize) -> Vec<f32> {
    (0..length).map(|n| (0.5 - 0.5 * (2.0 * std::f64::consts::PI * n as f64 / length as f64).cos()) as f32).collect()
}

/// A plan for transforms of one window length and hop; cheap to clone, shared between threads.
#[derive(Clone)]
pub struct Stft {
    pub(super) window: Arc<[f32]>,
    /// Window over the sum of squared windows that overlap inside a long signal, over the window length:
    /// adding up inverse transforms weighted by it gives the signal back, except at the edges.
    pub(super) dual: Arc<[f32]>,
    /// Sum of squared windows at each of the `hop` phases inside a long signal.
    pub(super) window_power: Arc<[f32]>,
    pub(super) hop: usize,
    padding: Padding,
    pub(super) to_spectrum: Arc<dyn RealToComplex<f32>>,
    pub(super) to_signal: Arc<dyn ComplexToReal<f32>>,
}

impl std::fmt::Debug for Stft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stft")
            .field("window", &self.window.len())
            .field("hop", &self.hop)
            .field("padding", &self.padding)
            .finish()
    }
}

/// Working memory of one thread.
pub(super) struct Scratch {
    pub(super) samples: Vec<f32>,
    pub(super) bins: Vec<Complex<f32>>,
    pub(super) fft: Vec<Complex<f32>>,
}

impl Stft {
    /// A transform with a periodic Hann window of `window` samples every `hop` samples.
    ///
    /// # Panics
    /// If `window` is odd or 0, or `hop` is 0 or more than half the window (no exact inverse exists then).
    pub fn new(window: usize, hop: usize) -> Self {
        assert!(
            window >= 2 && window.is_multiple_of(2) && hop >= 1 && 2 * hop <= window,
            "window {window} must be even and at least twice the hop {hop}"
        );
        let shape = hann_window(window);
        let window_power: Vec<f32> =
            (0..hop).map(|phase| shape.iter().skip(phase).step_by(hop).map(|w| w * w).sum()).collect();
        let dual: Vec<f32> = shape.iter().enumerate().map(|(n, w)| w / window_power[n % hop] / window as f32).collect();
        let mut planner = RealFftPlanner::new();
        Self {
            window: shape.into(),
            dual: dual.into(),
            window_power: window_power.into(),
            hop,
            padding: Padding::Zero,
            to_spectrum: planner.plan_fft_forward(window),
            to_signal: planner.plan_fft_inverse(window),
        }
    }

    /// The same transform with another rule for the edges.
    pub fn with_padding(mut self, padding: Padding) -> Self {
        self.padding = padding;
        self
    }

    /// Window length in samples.
    pub fn window_length(&self) -> usize {
        self.window.len()
    }

    /// Samples between frames.
    pub fn hop(&self) -> usize {
        self.hop
    }

    /// Frequency bins of a frame: `window / 2 + 1`.
    pub fn bins(&self) -> usize {
        self.window.len() / 2 + 1
    }

    /// Frames of a signal of `samples` samples: `1 + samples / hop`, or 0 for none.
    pub fn frame_count(&self, samples: usize) -> usize {
        if samples == 0 { 0 } else { 1 + samples / self.hop }
    }

    pub(super) fn scratch(&self) -> Scratch {
        Scratch {
            samples: vec![0.0; self.window.len()],
            bins: vec![Complex::default(); self.bins()],
            fft: vec![Complex::default(); self.to_spectrum.get_scratch_len().max(self.to_signal.get_scratch_len())],
        }
    }

    /// Transforms `scratch.samples` (destroyed) into `bins`.
    pub(super) fn analyse(&self, samples: &mut [f32], bins: &mut [Complex<f32>], fft: &mut [Complex<f32>]) {
        self.to_spectrum.process_with_scratch(samples, bins, fft).expect("buffer lengths come from the same plan");
    }

    /// Transforms `bins` (destroyed) into `samples`, not scaled. The first and last bin must be real.
    pub(super) fn synthesise(&self, bins: &mut [Complex<f32>], samples: &mut [f32], fft: &mut [Complex<f32>]) {
        let last = bins.len() - 1;
        bins[0].im = 0.0;
        bins[last].im = 0.0;
        self.to_signal
            .process_with_scratch(bins, samples, fft)
            .expect("buffer lengths come from the same plan and the edge bins are real");
    }

    /// Copies the windowed samples of frame `frame` into `out`.
    fn load_frame(&self, signal: &[f32], frame: usize, out: &mut [f32]) {
        let length = self.window.len();
        let start = (frame * self.hop) as isize - (length / 2) as isize;
        if start >= 0 && start as usize + length <= signal.len() {
            let inside = &signal[start as usize..start as usize + length];
            for ((value, sample), weight) in out.iter_mut().zip(inside).zip(self.window.iter()) {
                *value = sample * weight;
            }
            return;
        }
        for (n, (value, weight)) in out.iter_mut().zip(self.window.iter()).enumerate() {
            *value = weight * self.padded_sample(signal, start + n as isize);
        }
    }

    fn padded_sample(&self, signal: &[f32], index: isize) -> f32 {
        let length = signal.len() as isize;
        if (0..length).contains(&index) {
            return signal[index as usize];
        }
        match self.padding {
            Padding::Zero => 0.0,
            Padding::Reflect if length <= 1 => signal.first().copied().unwrap_or(0.0),
            Padding::Reflect => {
                // A mirror at both ends repeats with this period.
                let period = 2 * (length - 1);
                let folded = index.rem_euclid(period);
                signal[folded.min(period - folded) as usize]
            }
        }
    }

    /// Magnitudes `[frame_count, bins]` of a signal.
    pub fn magnitude(&self, signal: &[f32]) -> Spectrogram {
        let (frames, bins) = (self.frame_count(signal.len()), self.bins());
        let mut data = vec![0.0; frames * bins];
        data.par_chunks_mut(TASK_FRAMES * bins).enumerate().for_each_init(
            || self.scratch(),
            |scratch, (task, rows)| {
                for (row, out) in rows.chunks_exact_mut(bins).enumerate() {
                    self.load_frame(signal, task * TASK_FRAMES + row, &mut scratch.samples);
                    self.analyse(&mut scratch.samples, &mut scratch.bins, &mut scratch.fft);
                    for (magnitude, value) in out.iter_mut().zip(&scratch.bins) {
                        *magnitude = value.norm_sqr().sqrt();
                    }
                }
            },
        );
        Spectrogram { frames, bins, data }
    }

    /// Complex spectra `[frame_count, bins]` of a signal.
    pub fn forward(&self, signal: &[f32]) -> ComplexSpectrogram {
        let (frames, bins) = (self.frame_count(signal.len()), self.bins());
        let mut data = vec![Complex::default(); frames * bins];
        data.par_chunks_mut(TASK_FRAMES * bins).enumerate().for_each_init(
            || self.scratch(),
            |scratch, (task, rows)| {
                for (row, out) in rows.chunks_exact_mut(bins).enumerate() {
                    self.load_frame(signal, task * TASK_FRAMES + row, &mut scratch.samples);
                    self.analyse(&mut scratch.samples, out, &mut scratch.fft);
                }
            },
        );
        ComplexSpectrogram { frames, bins, data }
    }

    /// The signal of `length` samples whose spectra come closest to `spectra` (exactly the original one for
    /// spectra that [`Stft::forward`] made with zero padding).
    ///
    /// # Panics
    /// If `spectra.bins` is not [`Stft::bins`].
    pub fn inverse(&self, spectra: &ComplexSpectrogram, length: usize) -> Vec<f32> {
        assert_eq!(spectra.bins, self.bins(), "bins of the spectra");
        let bins = self.bins();
        let pieces: Vec<Vec<f32>> = spectra
            .data
            .par_chunks(TASK_FRAMES * bins)
            .map_init(
                || self.scratch(),
                |scratch, rows| {
                    let mut piece = self.new_piece(rows.len() / bins);
                    for (row, values) in rows.chunks_exact(bins).enumerate() {
                        scratch.bins.copy_from_slice(values);
                        self.add_frame(scratch, &mut piece[row * self.hop..]);
                    }
                    piece
                },
            )
            .collect();
        let mut signal = vec![0.0; self.padded_length(spectra.frames)];
        self.join_pieces(&pieces, &mut signal);
        self.correct_head(&mut signal, spectra.frames);
        self.correct_tail(&mut signal, spectra.frames);
        let half = self.window.len() / 2;
        signal.drain(..half.min(signal.len()));
        signal.resize(length, 0.0);
        signal
    }

    /// Samples that `frames` frames touch, from half a window before the first centre.
    pub(super) fn padded_length(&self, frames: usize) -> usize {
        if frames == 0 { 0 } else { (frames - 1) * self.hop + self.window.len() }
    }

    pub(super) fn new_piece(&self, frames: usize) -> Vec<f32> {
        vec![0.0; self.padded_length(frames)]
    }

    /// Turns `scratch.bins` into samples and adds them, weighted by the dual window, to the start of `out`.
    pub(super) fn add_frame(&self, scratch: &mut Scratch, out: &mut [f32]) {
        self.synthesise(&mut scratch.bins, &mut scratch.samples, &mut scratch.fft);
        for ((total, sample), weight) in out.iter_mut().zip(&scratch.samples).zip(self.dual.iter()) {
            *total += sample * weight;
        }
    }

    /// Overlap-adds the pieces of consecutive tasks, in order.
    pub(super) fn join_pieces(&self, pieces: &[Vec<f32>], signal: &mut [f32]) {
        let stride = TASK_FRAMES * self.hop;
        signal.par_chunks_mut(stride).enumerate().for_each(|(region, out)| {
            out.fill(0.0);
            // A long window may reach over several regions.
            for back in (0..=(self.window.len() / stride + 1).min(region)).rev() {
                let Some(piece) = pieces.get(region - back) else { continue };
                let Some(part) = piece.get(back * stride..) else { continue };
                for (total, value) in out.iter_mut().zip(part) {
                    *total += value;
                }
            }
        });
    }

    /// The dual window assumes all overlapping frames exist. Where some are missing, at the edges of the
    /// padded signal, this and [`Stft::correct_tail`] raise the sum to what the present ones alone would give.
    pub(super) fn correct_head(&self, signal: &mut [f32], frames: usize) {
        let head_end = (self.window.len() - self.hop).min(signal.len());
        self.correct(signal, 0..head_end, frames);
    }

    /// See [`Stft::correct_head`]; leaves alone what that one corrects.
    pub(super) fn correct_tail(&self, signal: &mut [f32], frames: usize) {
        let (edge, total) = (self.window.len() - self.hop, signal.len());
        let tail_start = total.saturating_sub(edge).max(edge.min(total));
        self.correct(signal, tail_start..total, frames);
    }

    fn correct(&self, signal: &mut [f32], range: std::ops::Range<usize>, frames: usize) {
        let length = self.window.len();
        for index in range {
            let last = (index / self.hop).min(frames.saturating_sub(1));
            let first = (index + 1).saturating_sub(length).div_ceil(self.hop);
            let present: f32 = (first..=last).map(|frame| self.window[index - frame * self.hop].powi(2)).sum();
            signal[index] *= self.window_power[index % self.hop] / present.max(1e-8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(length: usize, mut state: u32) -> Vec<f32> {
        (0..length)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    #[test]
    fn inverse_gives_the_signal_back() {
        for (window, hop) in [(2048, 512), (512, 160), (64, 32), (30, 7)] {
            let stft = Stft::new(window, hop);
            for length in [1, 5, hop, window, 10 * window + 3, 70 * hop + 1] {
                let signal = noise(length, 7);
                let back = stft.inverse(&stft.forward(&signal), length);
                // The last samples of a signal can lie under the mere foot of the last window when
                // hop == window / 2: they keep fewer digits.
                let worst = signal.iter().zip(&back).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < 2e-3, "window {window} hop {hop} length {length}: {worst}");
                let inner = length.saturating_sub(2 * hop);
                let worst = signal[..inner].iter().zip(&back).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < 2e-6, "window {window} hop {hop} length {length}: inner {worst}");
            }
        }
    }

    #[test]
    fn a_sine_stands_in_its_bin() {
        let stft = Stft::new(1024, 256);
        let signal: Vec<f32> =
            (0..8192).map(|n| (2.0 * std::f32::consts::PI * 37.0 * n as f32 / 1024.0).cos()).collect();
        let spectrogram = stft.magnitude(&signal);
        assert_eq!((spectrogram.frames, spectrogram.bins), (33, 513));
        let frame = spectrogram.frame(16);
        // A Hann window sums to half its length; a cosine of amplitude 1 gives half of that.
        assert!((frame[37] - 256.0).abs() < 0.1 && (frame[36] - 128.0).abs() < 0.1);
        assert!(frame[45] < 0.01);
    }

    #[test]
    fn reflection_folds_at_both_ends() {
        let stft = Stft::new(8, 2).with_padding(Padding::Reflect);
        let signal = [1.0, 2.0, 3.0];
        let seen: Vec<f32> = (-5..8).map(|i| stft.padded_sample(&signal, i)).collect();
        assert_eq!(seen, [2.0, 1.0, 2.0, 3.0, 2.0, 1.0, 2.0, 3.0, 2.0, 1.0, 2.0, 3.0, 2.0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn transform_is_linear_and_shifts_by_hops(seed in 1u32..1000, hops in 1usize..5, gain in -3.0f32..3.0) {
            let stft = Stft::new(128, 32);
            let signal = noise(1000, seed);
            let mut shifted = vec![0.0; hops * 32];
            shifted.extend(signal.iter().map(|s| gain * s));
            let (plain, moved) = (stft.forward(&signal), stft.forward(&shifted));
            for frame in 0..plain.frames {
                for bin in 0..plain.bins {
                    let expected = plain.data[frame * plain.bins + bin] * gain;
                    let got = moved.data[(frame + hops) * plain.bins + bin];
                    prop_assert!((expected - got).norm() < 1e-3);
                }
            }
        }
    }
}
