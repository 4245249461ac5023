//! The one way to make music from text: an iterator of frames, and the model folder it reads.
//!
//! Text states -> state -> tempo -> per column: step -> guidance -> draw -> the delay pattern releases a frame.
//! Laws: same seed, same frames; memory does not grow with length; a special token is never in a frame.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::clock::{CYCLE_BEATS, Metronome, TEMPO_CLASSES, tempo_of_class, whole_frames};
use crate::lm::{LmConfig, LmConfigError};
use crate::parameters::{Parameters, Precision, WriteError, write_atomically};
use crate::random;
use crate::sampler::{Guidance, Sampling, SamplingError, blend};
use crate::stepper::{Stepper, StepperState};
use crate::strand::{Score, Strand};
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
        self.save_as(folder, parameters, Precision::F16)
    }

    /// The same with the weights in another number format.
    pub fn save_as(&self, folder: &Path, parameters: &Parameters, precision: Precision) -> Result<(), LmFolderError> {
        let path = folder.join(CONFIG_FILE);
        let text = toml::to_string_pretty(self).expect("a model description is plain data");
        write_atomically(&path, text.as_bytes()).map_err(|source| WriteError { path, source })?;
        let note = serde_json::to_string(self).expect("a model description is plain data");
        Ok(parameters.save(&folder.join(WEIGHTS_FILE), precision, &note)?)
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
///
/// A model is at home in the length it was trained on, and what it reads back of its own beyond that leads it astray.
/// So a clip longer than `window` goes back, on the beat, to how everything stood after its `opening`, and draws
/// another continuation of it; over `overlap` frames the old strand fades into the new one.
pub struct Generator {
    stepper: Arc<Stepper>,
    sampling: Sampling,
    pattern: DelayPattern,
    rng: ChaCha8Rng,
    tempo: Option<f32>,
    score: Score,
    /// Where a strand goes back; 0 for never.
    turn: usize,
    /// Everything as it stood after the opening.
    anchor: Strand,
    strand: Strand,
    /// The strand before, while it fades.
    fading: Option<Strand>,
    /// Latest columns, newest last: enough for the delay pattern.
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
        sampling.validate()?;
        let read = Read { captioned: text.map(|text| stepper.start(Some(text))), null: stepper.start(None) };
        let tempo = match sampling.tempo {
            Some(tempo) => (tempo > 0.0).then_some(tempo),
            None => draw_tempo(&stepper, &read, sampling, seed).map(|tempo| whole_frames(tempo, frames_per_second)),
        };
        let with_beat = tempo.is_some() && stepper.config().beat_clock;
        let (state, weights) = read.streams(Guidance::new(sampling, text.is_some(), with_beat));
        let metronome = Metronome::new(tempo, frames_per_second);
        let strand = Strand::new(state);
        Ok(Self {
            turn: turn(sampling, &metronome),
            sampling: sampling.clone(),
            tempo,
            score: Score {
                lags: stepper.config().echo_beats.iter().map(|&beats| metronome.frames_in(beats)).collect(),
                metronome,
                weights,
            },
            rng: random::stream(seed, "sample", 0),
            anchor: strand.clone(),
            strand,
            fading: None,
            columns: VecDeque::new(),
            made: 0,
            pattern: stepper.config().pattern(),
            stepper,
        })
    }

    /// Beats a minute that the clip is played to; `None` without a beat.
    pub fn tempo(&self) -> Option<f32> {
        self.tempo
    }

    /// Bytes of everything that grows or could grow: the same after a minute and after an hour, but for the while that
    /// a strand fades.
    pub fn state_bytes(&self) -> usize {
        let columns: usize = self.columns.iter().map(|column| 2 * column.len()).sum();
        let fading = self.fading.as_ref().map_or(0, Strand::bytes);
        self.strand.bytes() + self.anchor.bytes() + fading + columns
    }

    fn turn_if_due(&mut self) {
        if self.turn > 0 && self.strand.place() == self.turn {
            let before = std::mem::replace(&mut self.strand, self.anchor.clone());
            self.fading = (self.sampling.overlap > 0).then_some(before);
        }
        if self.strand.place() >= self.sampling.opening + self.sampling.overlap {
            self.fading = None;
        }
    }

    fn next_column(&mut self) -> Vec<u16> {
        self.turn_if_due();
        let mut logits = self.strand.logits(&self.stepper, &self.score, &self.sampling);
        if let Some(before) = &mut self.fading {
            let since = self.strand.place() - self.sampling.opening;
            let share = (since + 1) as f32 / (self.sampling.overlap + 1) as f32;
            let old = before.logits(&self.stepper, &self.score, &self.sampling);
            for (new, old) in logits.iter_mut().flatten().zip(old.iter().flatten()) {
                *new = share * *new + (1.0 - share) * old;
            }
        }
        let special = self.stepper.config().special();
        let mut column = Vec::with_capacity(logits.len());
        for (k, logits) in logits.iter().enumerate() {
            // Drawn even where the filler is forced: the stream's position depends on the column alone.
            let code = self.sampling.draw(k, logits, &mut self.rng);
            column.push(if self.made < self.pattern.delay(k) { special } else { code });
        }
        column
    }

    fn accept(&mut self, column: Vec<u16>) {
        for strand in self.fading.iter_mut().chain([&mut self.strand]) {
            strand.write(column.clone(), &self.score, &self.sampling);
        }
        self.made += 1;
        if self.made == self.sampling.opening && self.turn > 0 {
            self.anchor.clone_from(&self.strand);
        }
        self.columns.push_back(column);
        if self.columns.len() > self.pattern.longest() + 1 {
            self.columns.pop_front();
        }
    }
}

/// The place where a strand goes back to the end of the opening: as far on as the window allows, and at the same point
/// of the longest phrase that fits; 0 for never.
fn turn(sampling: &Sampling, metronome: &Metronome) -> usize {
    if sampling.window == 0 {
        return 0;
    }
    let room = sampling.window - sampling.overlap - sampling.opening;
    let phrases = [CYCLE_BEATS, CYCLE_BEATS / 2, CYCLE_BEATS / 4, 1].map(|beats| metronome.frames_in(beats));
    let fits = phrases.into_iter().flatten().find(|&phrase| phrase <= room);
    sampling.opening + fits.map_or(room, |phrase| room / phrase * phrase)
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
    let class = plain.draw(0, &logits[..TEMPO_CLASSES], &mut random::stream(seed, "tempo", 0));
    tempo_of_class(usize::from(class))
}

impl Iterator for Generator {
    type Item = Vec<u16>;

    fn next(&mut self) -> Option<Vec<u16>> {
        loop {
            let column = self.next_column();
            self.accept(column);
            if self.made > self.pattern.longest() {
                return Some(self.pattern.frame(&self.columns));
            }
        }
    }
}
