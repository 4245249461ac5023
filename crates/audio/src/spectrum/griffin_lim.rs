//! Sound from magnitudes alone: fast Griffin-Lim.
//!
//! Griffin and Lim (1984) alternate between spectra that have the wanted magnitudes and spectra that some
//! sound can have; Perraudin, Balazs and Søndergaard, "A fast Griffin-Lim algorithm" (2013), extrapolate each
//! step by a momentum. One pass over the frames does a whole iteration: transform, extrapolate, restore the
//! magnitude, transform back, overlap-add. Phases are complex numbers of length one; no angle is computed.

use rayon::prelude::*;
use realfft::num_complex::Complex;

use super::phase_start::PhaseStart;
use super::stft::TASK_FRAMES;
use super::{Spectrogram, Stft};

/// Settings of fast Griffin-Lim.
#[derive(Debug, Clone)]
pub struct GriffinLim {
    pub(super) stft: Stft,
    pub(super) iterations: usize,
    pub(super) momentum: f32,
}

impl Default for GriffinLim {
    /// Window 2048, hop 512, 16 iterations, momentum 0.99.
    fn default() -> Self {
        Self::new(2048, 512, 16, 0.99)
    }
}

impl GriffinLim {
    /// Fast Griffin-Lim with `iterations` steps over windows of `window` samples every `hop` samples.
    /// `momentum` 0 is the algorithm of 1984; 0.99 is the usual fast one.
    ///
    /// # Panics
    /// As [`Stft::new`] does.
    pub fn new(window: usize, hop: usize, iterations: usize, momentum: f32) -> Self {
        Self { stft: Stft::new(window, hop), iterations, momentum }
    }

    /// The transform whose magnitudes it inverts.
    pub fn stft(&self) -> &Stft {
        &self.stft
    }

    /// Steps of the algorithm.
    pub fn iterations(&self) -> usize {
        self.iterations
    }

    /// Sound of `frames * hop` samples with the given magnitudes (`[frames, window / 2 + 1]`; frame `t`
    /// centred on sample `t * hop`). The same seed gives the same samples. Needs about 20 bytes of memory
    /// a bin; for long sounds see [`super::GriffinLimStream`].
    ///
    /// # Panics
    /// If the number of bins does not fit the window.
    pub fn invert(&self, magnitudes: &Spectrogram, seed: u64) -> Vec<f32> {
        let mut start = PhaseStart::new(self.stft.window_length(), self.stft.hop, seed);
        let mut solver = Solver::new(self.clone());
        solver.extend(magnitudes, &mut start);
        for _ in 0..self.iterations {
            solver.iterate();
        }
        solver.correct_edges();
        let mut signal = solver.signal;
        let half = self.stft.window_length() / 2;
        signal.drain(..half.min(signal.len()));
        signal.truncate(magnitudes.frames * self.stft.hop);
        signal
    }
}

/// The frames whose phases are still being searched.
pub(super) struct Solver {
    settings: GriffinLim,
    pub(super) frames: usize,
    magnitudes: Vec<f32>,
    /// Consistent spectra of the last iteration, `[frames, bins]`.
    previous: Vec<Complex<f32>>,
    /// Current estimate, edges not corrected yet; starts half a window before the centre of the first frame.
    pub(super) signal: Vec<f32>,
    /// What settled frames before the first one add to the first `window - hop` samples;
    /// empty while there are none.
    context: Vec<f32>,
    pieces: Vec<Vec<f32>>,
}

impl Solver {
    pub(super) fn new(settings: GriffinLim) -> Self {
        Self {
            settings,
            frames: 0,
            magnitudes: Vec::new(),
            previous: Vec::new(),
            signal: Vec::new(),
            context: Vec::new(),
            pieces: Vec::new(),
        }
    }

    /// Appends frames, with first phases from `start`.
    pub(super) fn extend(&mut self, magnitudes: &Spectrogram, start: &mut PhaseStart) {
        let stft = &self.settings.stft;
        let (bins, hop) = (stft.bins(), stft.hop);
        assert_eq!(magnitudes.bins, bins, "bins of the magnitudes");
        if magnitudes.frames == 0 {
            return;
        }
        let old = self.frames;
        self.frames += magnitudes.frames;
        self.magnitudes.extend_from_slice(&magnitudes.data);
        let mut spectra = vec![Complex::default(); magnitudes.data.len()];
        for (frame, spectrum) in spectra.chunks_exact_mut(bins).enumerate() {
            start.next_frame(magnitudes.frame(frame), spectrum);
        }
        let pieces: Vec<Vec<f32>> = spectra
            .par_chunks(TASK_FRAMES * bins)
            .map_init(
                || stft.scratch(),
                |scratch, rows| {
                    let mut piece = stft.new_piece(rows.len() / bins);
                    for (row, spectrum) in rows.chunks_exact(bins).enumerate() {
                        scratch.bins.copy_from_slice(spectrum);
                        stft.add_frame(scratch, &mut piece[row * hop..]);
                    }
                    piece
                },
            )
            .collect();
        // The first extrapolation starts from the guess itself.
        self.previous.append(&mut spectra);
        let mut addition = vec![0.0; stft.padded_length(magnitudes.frames)];
        stft.join_pieces(&pieces, &mut addition);
        self.signal.resize(stft.padded_length(self.frames), 0.0);
        for (total, value) in self.signal[old * hop..].iter_mut().zip(&addition) {
            *total += value;
        }
    }

    /// Makes up for the frames that are missing at the ends of the estimate.
    pub(super) fn correct_edges(&mut self) {
        let stft = &self.settings.stft;
        if self.context.is_empty() {
            stft.correct_head(&mut self.signal, self.frames);
        }
        stft.correct_tail(&mut self.signal, self.frames);
    }

    /// `true` once frames before the first one are settled.
    pub(super) fn has_past(&self) -> bool {
        !self.context.is_empty()
    }

    /// One iteration over all frames.
    pub(super) fn iterate(&mut self) {
        self.correct_edges();
        self.step(0..self.frames);
        self.settings.stft.join_pieces(&self.pieces, &mut self.signal);
        for (total, value) in self.signal.iter_mut().zip(&self.context) {
            *total += value;
        }
    }

    /// The last iteration, which settles the first `count` frames: returns the finished samples before the
    /// first frame that stays, `count * hop` of them, and makes the sum of the rest the new estimate.
    /// The first time, `count` must be a window long at least.
    pub(super) fn settle(&mut self, count: usize) -> Vec<f32> {
        let (hop, bins) = (self.settings.stft.hop, self.settings.stft.bins());
        self.correct_edges();
        self.step(0..count);
        let mut settled = vec![0.0; self.settings.stft.padded_length(count)];
        self.settings.stft.join_pieces(&self.pieces, &mut settled);
        for (total, value) in settled.iter_mut().zip(&self.context) {
            *total += value;
        }
        if self.context.is_empty() {
            self.settings.stft.correct_head(&mut settled, usize::MAX);
        }
        self.step(count..self.frames);
        self.frames -= count;
        self.magnitudes.drain(..count * bins);
        self.previous.drain(..count * bins);
        self.context = settled.split_off(count * hop);
        let stft = &self.settings.stft;
        self.signal.resize(stft.padded_length(self.frames).max(self.context.len()), 0.0);
        stft.join_pieces(&self.pieces, &mut self.signal);
        for (total, value) in self.signal.iter_mut().zip(&self.context) {
            *total += value;
        }
        settled
    }

    /// Reads the estimate and leaves the overlap-added next one of some frames in `pieces`.
    fn step(&mut self, range: std::ops::Range<usize>) {
        let stft = &self.settings.stft;
        let (bins, hop, length) = (stft.bins(), stft.hop, stft.window_length());
        let momentum = self.settings.momentum;
        let count = range.len();
        self.pieces.resize_with(count.div_ceil(TASK_FRAMES), Vec::new);
        let signal = &self.signal[range.start * hop..];
        let magnitudes = &self.magnitudes[range.start * bins..range.end * bins];
        self.previous[range.start * bins..range.end * bins]
            .par_chunks_mut(TASK_FRAMES * bins)
            .zip(magnitudes.par_chunks(TASK_FRAMES * bins))
            .zip(self.pieces.par_iter_mut())
            .enumerate()
            .for_each_init(
                || stft.scratch(),
                |scratch, (task, ((previous, magnitudes), piece))| {
                    let frames = magnitudes.len() / bins;
                    piece.clear();
                    piece.resize(stft.padded_length(frames), 0.0);
                    for row in 0..frames {
                        let at = (task * TASK_FRAMES + row) * hop;
                        let inside = &signal[at..at + length];
                        for ((value, sample), weight) in scratch.samples.iter_mut().zip(inside).zip(stft.window.iter())
                        {
                            *value = sample * weight;
                        }
                        stft.analyse(&mut scratch.samples, &mut scratch.bins, &mut scratch.fft);
                        let bin_range = row * bins..(row + 1) * bins;
                        project(&mut scratch.bins, &mut previous[bin_range.clone()], &magnitudes[bin_range], momentum);
                        stft.add_frame(scratch, &mut piece[row * hop..]);
                    }
                },
            );
    }
}

/// `spectrum` becomes the extrapolated spectrum with its magnitudes replaced; `previous` the consistent one.
fn project(spectrum: &mut [Complex<f32>], previous: &mut [Complex<f32>], magnitudes: &[f32], momentum: f32) {
    for ((value, before), &magnitude) in spectrum.iter_mut().zip(previous).zip(magnitudes) {
        let now = *value;
        let ahead = now + (now - *before) * momentum;
        *before = now;
        // The tiny term keeps silence silent; it is far below the square of any audible magnitude.
        let gain = magnitude / (ahead.norm_sqr() + 1e-30).sqrt();
        *value = ahead * gain;
    }
}
