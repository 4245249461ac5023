//! One line of music in the making: the decoder's state, what was written, and the place in the beat.

use std::collections::VecDeque;

use crate::clock::Metronome;
use crate::sampler::{Sampling, blend};
use crate::stepper::{Column, Stepper, StepperState};

/// What a strand goes by; the same for all strands of a clip.
pub(crate) struct Score {
    /// Beats of the clip.
    pub metronome: Metronome,
    /// Frames of each of the model's echo lags; `None` without a beat.
    pub lags: Vec<Option<usize>>,
    /// Weight of each stream of the state.
    pub weights: Vec<f32>,
}

/// Decoder state and memory of columns. A copy goes on on its own.
#[derive(Clone)]
pub(crate) struct Strand {
    state: StepperState,
    /// Latest columns, newest last: as many as echoes and the frequency penalty look back.
    columns: VecDeque<Vec<u16>>,
    /// Columns written since the text.
    place: usize,
}

impl Strand {
    /// Stands before the first column.
    pub fn new(state: StepperState) -> Self {
        Self { state, columns: VecDeque::new(), place: 0 }
    }

    /// Columns written since the text.
    pub fn place(&self) -> usize {
        self.place
    }

    /// Bytes of everything that grows or could grow.
    pub fn bytes(&self) -> usize {
        self.state.bytes() + self.columns.iter().map(|column| 2 * column.len()).sum::<usize>()
    }

    /// Reads the column before this place and says how likely each code is here: guided logits less the penalties,
    /// `[K][cardinality]`.
    pub fn logits(&mut self, stepper: &Stepper, score: &Score, sampling: &Sampling) -> Vec<Vec<f32>> {
        let config = stepper.config();
        let before = self.columns.back().cloned().unwrap_or_else(|| vec![config.special(); config.codebooks]);
        let echoes = self.echoes(stepper, score);
        let column = Column { codes: &before, ticks: score.metronome.at(self.place as u64), echoes: &echoes };
        let mut logits = stepper.step(column, &mut self.state);
        let share = sampling.frequency_penalty / sampling.frequency_frames.max(1) as f32;
        let latest = if share == 0.0 { 0 } else { sampling.frequency_frames };
        for (k, logits) in logits.iter_mut().enumerate() {
            blend(logits, &score.weights);
            logits.truncate(config.cardinality);
            let mut add = |column: &[u16], value: f32| {
                if let Some(logit) = logits.get_mut(usize::from(column[k])) {
                    *logit += value;
                }
            };
            add(&before, -sampling.hold_penalty);
            self.columns.iter().rev().take(latest).for_each(|column| add(column, -share));
            echoes.chunks_exact(before.len()).for_each(|column| add(column, sampling.echo));
        }
        logits
    }

    /// What stood at each lag before this place, `[lags, K]`; the special code where nothing did.
    fn echoes(&self, stepper: &Stepper, score: &Score) -> Vec<u16> {
        let config = stepper.config();
        let mut echoes = Vec::with_capacity(score.lags.len() * config.codebooks);
        for lag in &score.lags {
            match lag.and_then(|frames| self.columns.get(self.columns.len().checked_sub(frames)?)) {
                Some(column) => echoes.extend_from_slice(column),
                None => echoes.resize(echoes.len() + config.codebooks, config.special()),
            }
        }
        echoes
    }

    /// Writes a column.
    pub fn write(&mut self, column: Vec<u16>, score: &Score, sampling: &Sampling) {
        self.columns.push_back(column);
        self.place += 1;
        let penalised = if sampling.frequency_penalty == 0.0 { 0 } else { sampling.frequency_frames };
        let enough = score.lags.iter().flatten().copied().chain([1, penalised]).max().unwrap_or(1);
        while self.columns.len() > enough {
            self.columns.pop_front();
        }
    }
}
