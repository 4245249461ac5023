//! The one way to make music from text: an iterator of frames, and the model folder it reads.
//!
//! Text states -> state -> tempo -> per column: step -> guidance -> draw -> the delay pattern releases a frame.
//! Laws: same seed, same frames; memory does not grow with length; a special token is never in a frame.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::clock::{Metronome, TEMPO_CLASSES, tempo_of_class, whole_frames};
use crate::lm::{LmConfig, LmConfigError};
use crate::parameters::{Parameters, Precision, WriteError, write_atomically};
use crate::random;
use crate::sampler::{Guidance, Sampling, SamplingError, blend};
use crate::stepper::{Column, Stepper, StepperState};
use crate::tokens::{CodecSpec, DelayPattern};
use crate::weights::WeightsError;

/// File of a model folder that describes the language model.
pub const CONFIG_FILE: &str = "lm.toml";
/// File of a model folder that holds the language model's weights.
pub const WEIGHTS_FILE: &str = "lm.safetensors";

/// What `lm.toml` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LmFile {
    /// Shapes.
    pub model: LmConfig,
    /// The codec whose tokens it speaks.
    pub codec: CodecSpec,
    /// Settings that sound best with these weights.
    #[serde(default)]
    pub sampling: Sampling,
}

/// Why a language model folder was refused.
#[derive(Debug, thiserror::Error)]
pub enum LmFolderError {
    /// The description could not be read.
    #[error("{path}: cannot read the model description: {source}")]
    Io {
        /// File.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The description breaks TOML or has wrong keys.
    #[error("{path}: {source}")]
    Toml {
        /// File.
        path: PathBuf,
        /// Cause.
        source: Box<toml::de::Error>,
    },
    /// The shapes cannot be.
    #[error("{path}: {source}")]
    Config {
        /// File.
        path: PathBuf,
        /// Cause.
        source: LmConfigError,
    },
    /// The weights do not fit.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The folder could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl LmFile {
    /// Writes `lm.toml` and `lm.safetensors` (f16) to `folder`, which must exist.
    pub fn save(&self, folder: &Path, parameters: &Parameters) -> Result<(), LmFolderError> {
        let path = folder.join(CONFIG_FILE);
        let text = toml::to_string_pretty(self).expect("a model description is plain data");
        write_atomically(&path, text.as_bytes()).map_err(|source| WriteError { path, source })?;
        let note = serde_json::to_string(self).expect("a model description is plain data");
        Ok(parameters.save(&folder.join(WEIGHTS_FILE), Precision::F16, &note)?)
    }

    /// Reads a folder: the description and all weights.
    pub fn load(folder: &Path) -> Result<(Self, Parameters), LmFolderError> {
        let path = folder.join(CONFIG_FILE);
        let text = std::fs::read_to_string(&path).map_err(|source| LmFolderError::Io { path: path.clone(), source })?;
        let file: Self = toml::from_str(&text)
            .map_err(|source| LmFolderError::Toml { path: path.clone(), source: Box::new(source) })?;
        let mut parameters = file.model.blank().map_err(|source| LmFolderError::Config { path, source })?;
        parameters.load(&folder.join(WEIGHTS_FILE))?;
        Ok((file, parameters))
    }
}

/// A language model ready to generate.
#[derive(Clone)]
pub struct LanguageModel {
    /// What the folder says about it.
    pub file: LmFile,
    stepper: Arc<Stepper>,
}

impl LanguageModel {
    /// Opens a model folder.
    pub fn open(folder: &Path) -> Result<Self, LmFolderError> {
        let (file, parameters) = LmFile::load(folder)?;
        Ok(Self::new(file, &parameters))
    }

    /// From parameters in memory, e.g. while training.
    pub fn new(file: LmFile, parameters: &Parameters) -> Self {
        let stepper = Arc::new(Stepper::new(&file.model, parameters));
        Self { file, stepper }
    }

    /// The decoder.
    pub fn stepper(&self) -> &Arc<Stepper> {
        &self.stepper
    }

    /// Frames for a caption (`[tokens, text_width]`, `None` for no caption), without end.
    pub fn generate(&self, text: Option<&[f32]>, sampling: &Sampling, seed: u64) -> Result<Generator, SamplingError> {
        Generator::new(self.stepper.clone(), self.file.codec.frame_rate() as f32, text, sampling, seed)
    }
}

/// An endless iterator of frames, each one code per codebook. Take as many as the clip is long.
pub struct Generator {
    stepper: Arc<Stepper>,
    sampling: Sampling,
    pattern: DelayPattern,
    rng: ChaCha8Rng,
    tempo: Option<f32>,
    metronome: Metronome,
    /// Frames of each of the model's echo lags; `None` without a beat.
    lags: Vec<Option<usize>>,
    /// What to restart from: the state right after the text or, once it has been read, after the opening.
    anchor: StepperState,
    state: StepperState,
    /// Weight of each stream of the state.
    weights: Vec<f32>,
    /// Columns read since the last start.
    read: usize,
    /// Latest columns, newest last: enough for a restart and for the delay pattern.
    columns: VecDeque<Vec<u16>>,
    /// Columns made so far.
    made: usize,
}

impl Generator {
    /// Reads the text, draws a tempo and stands before the first frame.
    pub fn new(
        stepper: Arc<Stepper>,
        frames_per_second: f32,
        text: Option<&[f32]>,
        sampling: &Sampling,
        seed: u64,
    ) -> Result<Self, SamplingError> {
        let pattern = stepper.config().pattern();
        sampling.validate(pattern.longest())?;
        let read = Read { captioned: text.map(|text| stepper.start(Some(text))), null: stepper.start(None) };
        let tempo = match sampling.tempo {
            Some(tempo) => (tempo > 0.0).then_some(tempo),
            None => draw_tempo(&stepper, &read, sampling, seed).map(|tempo| whole_frames(tempo, frames_per_second)),
        };
        let with_beat = tempo.is_some() && stepper.config().beat_clock;
        let (state, weights) = read.streams(Guidance::new(sampling, text.is_some(), with_beat));
        let metronome = Metronome::new(tempo, frames_per_second);
        Ok(Self {
            sampling: sampling.clone(),
            tempo,
            lags: stepper.config().echo_beats.iter().map(|&beats| metronome.frames_in(beats)).collect(),
            metronome,
            rng: random::stream(seed, "sample", 0),
            anchor: state.clone(),
            state,
            weights,
            read: 0,
            columns: VecDeque::new(),
            made: 0,
            pattern,
            stepper,
        })
    }

    /// Beats a minute that the clip is played to; `None` without a beat.
    pub fn tempo(&self) -> Option<f32> {
        self.tempo
    }

    /// Bytes of everything that grows or could grow: the same after a minute and after an hour.
    pub fn state_bytes(&self) -> usize {
        let columns: usize = self.columns.iter().map(|column| 2 * column.len()).sum();
        self.state.bytes() + self.anchor.bytes() + columns
    }

    /// Starts from `frames` (row-major `[K, T]`) as if they had just been generated.
    ///
    /// # Panics
    /// When `frames` is not `[K, T]`.
    pub fn prime(&mut self, codes: &[u16], frames: usize) {
        let special = self.stepper.config().special();
        let delayed = self.pattern.apply(codes, frames, special);
        let columns = self.pattern.columns(frames);
        for t in 0..frames {
            let column = (0..self.pattern.codebooks()).map(|k| delayed[k * columns + t]).collect();
            self.restart_if_due();
            let before = self.previous();
            let (ticks, echoes) = self.beats_at(self.columns.len());
            self.stepper.feed(Column { codes: &before, ticks, echoes: &echoes }, &mut self.state);
            self.accept(column);
        }
    }

    /// Beat clock of place `at` of the latest columns, and what stood at each lag before it, `[lags, K]`.
    fn beats_at(&self, at: usize) -> (u16, Vec<u16>) {
        let config = self.stepper.config();
        let mut echoes = Vec::with_capacity(self.lags.len() * config.codebooks);
        for lag in &self.lags {
            match lag.and_then(|frames| self.columns.get(at.checked_sub(frames)?)) {
                Some(column) => echoes.extend_from_slice(column),
                None => echoes.resize(echoes.len() + config.codebooks, config.special()),
            }
        }
        (self.metronome.at((self.made - self.columns.len() + at) as u64), echoes)
    }

    fn start_column(&self) -> Vec<u16> {
        vec![self.stepper.config().special(); self.pattern.codebooks()]
    }

    fn previous(&self) -> Vec<u16> {
        match self.columns.back() {
            Some(column) if self.read > 0 => column.clone(),
            _ => self.start_column(),
        }
    }

    fn accept(&mut self, column: Vec<u16>) {
        self.columns.push_back(column);
        self.read += 1;
        self.made += 1;
        if self.made == self.sampling.opening {
            self.anchor.clone_from(&self.state);
        }
        let farthest = self.lags.iter().flatten().copied().max().unwrap_or(0);
        let enough = (self.sampling.keep + 1).max(self.pattern.longest() + 1).max(farthest);
        let enough =
            if self.sampling.frequency_penalty == 0.0 { enough } else { enough.max(self.sampling.frequency_frames) };
        while self.columns.len() > enough {
            self.columns.pop_front();
        }
    }

    /// After `window` columns: go back to the anchor and read the latest `keep` columns again, so that the model never
    /// leaves the length it was trained on. Without an opening it is as if the clip had begun with those columns.
    fn restart_if_due(&mut self) {
        if self.sampling.window == 0 || self.read < self.sampling.window {
            return;
        }
        self.state.clone_from(&self.anchor);
        let special = self.stepper.config().special();
        let kept = self.columns.len().min(self.sampling.keep);
        let oldest = self.columns.len() - kept;
        let opening = self.sampling.opening;
        let mut before = match oldest.checked_sub(1) {
            Some(last) if opening > 0 => self.columns[last].clone(),
            _ => self.start_column(),
        };
        for (at, column) in self.columns.iter().skip(oldest).enumerate() {
            let (ticks, echoes) = self.beats_at(oldest + at);
            self.stepper.feed(Column { codes: &before, ticks, echoes: &echoes }, &mut self.state);
            before.clone_from(column);
            for (k, code) in before.iter_mut().enumerate() {
                if opening == 0 && at < self.pattern.delay(k) {
                    *code = special;
                }
            }
        }
        self.read = opening + kept;
    }

    fn next_column(&mut self) -> Vec<u16> {
        self.restart_if_due();
        let before = self.previous();
        let (ticks, echoes) = self.beats_at(self.columns.len());
        let mut logits = self.stepper.step(Column { codes: &before, ticks, echoes: &echoes }, &mut self.state);
        let codes = self.stepper.config().cardinality;
        let special = self.stepper.config().special();
        let mut column = Vec::with_capacity(logits.len());
        for (k, logits) in logits.iter_mut().enumerate() {
            blend(logits, &self.weights);
            let conditional = &mut logits[..codes];
            if let Some(held) = conditional.get_mut(usize::from(before[k])) {
                *held -= self.sampling.hold_penalty;
            }
            if self.sampling.frequency_penalty != 0.0 {
                let share = self.sampling.frequency_penalty / self.sampling.frequency_frames.max(1) as f32;
                for column in self.columns.iter().rev().take(self.sampling.frequency_frames) {
                    if let Some(heard) = conditional.get_mut(usize::from(column[k])) {
                        *heard -= share;
                    }
                }
            }
            for echo in echoes.chunks_exact(before.len()) {
                if let Some(heard) = conditional.get_mut(usize::from(echo[k])) {
                    *heard += self.sampling.echo;
                }
            }
            // Drawn even where the filler is forced: the stream's position depends on the column alone.
            let code = self.sampling.draw(conditional, &mut self.rng);
            column.push(if self.made < self.pattern.delay(k) { special } else { code });
        }
        column
    }
}

/// What stands after the text, read once.
struct Read {
    captioned: Option<StepperState>,
    null: StepperState,
}

impl Read {
    /// The streams of weight other than 0, and their weights.
    fn streams(&self, guidance: Guidance) -> (StepperState, Vec<f32>) {
        let all = [
            (guidance.caption, self.captioned.clone()),
            (guidance.beat, Some(self.null.clone())),
            (guidance.neither, Some(self.null.clone().without_beat())),
        ];
        let heard = all.into_iter().filter(|(weight, _)| *weight != 0.0);
        let (weights, states): (Vec<f32>, Vec<StepperState>) =
            heard.filter_map(|(weight, state)| Some((weight, state?))).unzip();
        let state = states.into_iter().reduce(StepperState::join).expect("weights that sum to 1 are not all 0");
        (state, weights)
    }
}

/// A tempo from the class probabilities after the text, with a stream of random numbers of its own: asking for a tempo
/// instead leaves the draws of the codes as they are.
fn draw_tempo(stepper: &Stepper, read: &Read, sampling: &Sampling, seed: u64) -> Option<f32> {
    // No frame has been heard yet, so there is no beat to be guided by.
    let (state, weights) = read.streams(Guidance::new(sampling, read.captioned.is_some(), false));
    let mut logits = stepper.tempo(&state)?;
    blend(&mut logits, &weights);
    let plain = Sampling { temperature: 1.0, top_k: 0, top_p: 0.9, ..Sampling::default() };
    let class = plain.draw(&logits[..TEMPO_CLASSES], &mut random::stream(seed, "tempo", 0));
    tempo_of_class(usize::from(class))
}

impl Iterator for Generator {
    type Item = Vec<u16>;

    fn next(&mut self) -> Option<Vec<u16>> {
        let longest = self.pattern.longest();
        loop {
            let column = self.next_column();
            self.accept(column);
            if self.made > longest {
                let first = self.columns.len() - 1 - longest;
                let code = |k| self.columns[first + self.pattern.delay(k)][k];
                return Some((0..self.pattern.codebooks()).map(code).collect());
            }
        }
    }
}
