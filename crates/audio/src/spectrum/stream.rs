//! Griffin-Lim that goes on: blocks of magnitudes in, finished samples out, constant memory.
//!
//! Law: samples once given out never change, and every sample is the overlap-add of settled frames, so blocks
//! join without a seam. The last few frames of a block stay open (the look-ahead) and are searched again
//! together with the next block, with the settled past as fixed context.

use super::griffin_lim::Solver;
use super::phase_start::PhaseStart;
use super::{GriffinLim, Spectrogram};

/// A running inversion of magnitudes into sound.
pub struct GriffinLimStream {
    solver: Solver,
    start: PhaseStart,
    hop: usize,
    iterations: usize,
    look_ahead: usize,
    /// Samples still to drop: the half window before the centre of the very first frame.
    skip: usize,
    pushed: usize,
    emitted: usize,
}

impl GriffinLimStream {
    /// A stream with the given settings. `look_ahead` frames (at least one window; 8 is a good value for
    /// four frames a window) stay open between blocks. The same seed and the same blocks give the same samples.
    pub fn new(settings: &GriffinLim, look_ahead: usize, seed: u64) -> Self {
        let window = settings.stft.window_length();
        let hop = settings.stft.hop;
        Self {
            solver: Solver::new(settings.clone()),
            start: PhaseStart::new(window, hop, seed),
            hop,
            iterations: settings.iterations,
            look_ahead: look_ahead.max(window.div_ceil(hop)),
            skip: window / 2,
            pushed: 0,
            emitted: 0,
        }
    }

    /// Takes the next frames of magnitudes (`[frames, window / 2 + 1]`) and returns the samples they finish:
    /// over the whole stream `hop` for each frame, late by the look-ahead and half a window.
    pub fn push(&mut self, magnitudes: &Spectrogram) -> Vec<f32> {
        self.solver.extend(magnitudes, &mut self.start);
        self.pushed += magnitudes.frames;
        let count = self.solver.frames.saturating_sub(self.look_ahead);
        if count == 0 || (!self.solver.has_past() && count < self.look_ahead) {
            return Vec::new();
        }
        self.search();
        let samples = self.solver.settle(count);
        self.give(samples)
    }

    /// Settles what is open and returns the rest of the `frames * hop` samples.
    pub fn finish(mut self) -> Vec<f32> {
        if self.solver.frames > 0 {
            self.search();
            self.solver.iterate();
            self.solver.correct_edges();
        }
        let samples = std::mem::take(&mut self.solver.signal);
        let mut rest = self.give(samples);
        rest.truncate(self.pushed * self.hop + rest.len() - self.emitted);
        rest
    }

    fn search(&mut self) {
        for _ in 1..self.iterations {
            self.solver.iterate();
        }
    }

    fn give(&mut self, mut samples: Vec<f32>) -> Vec<f32> {
        let dropped = self.skip.min(samples.len());
        self.skip -= dropped;
        samples.drain(..dropped);
        self.emitted += samples.len();
        samples
    }
}
