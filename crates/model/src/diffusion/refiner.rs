//! The second stage: a language model writes the first level of a codec, the outline; the refiner paints what all other levels
//! would have added, the detail, as noise that becomes it step by step. After the second stage of the papers, DiscoDiff.
//!
//! It hears the outline and the text. In training each is left out of some clips, so that guidance has a model without them to
//! lead away from.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::{Conditions, Denoiser, DenoiserConfig, Objective, Solver, sample};
use crate::parameters::{Bound, Initialiser, Parameters, Precision, Role, WriteError, write_atomically};
use crate::sampler::{Guidance, blend};
use crate::tokens::CodecSpec;
use crate::weights::WeightsError;

/// Folder of a model folder that holds the second stage.
pub const REFINER_FOLDER: &str = "refiner";
const CONFIG_FILE: &str = "refiner.toml";
const WEIGHTS_FILE: &str = "refiner.safetensors";
const NAME: &str = "refiner";
/// Name of a condition that is left out.
const NULL_OUTLINE: &str = "refiner.null_outline";
const NULL_TEXT: &str = "refiner.null_text";
/// Measured from the data.
const STATISTICS: [&str; 4] = ["detail.mean", "detail.deviation", "outline.mean", "outline.deviation"];
const TEXT_DEVIATION: &str = "text.deviation";

/// Shapes, and what they belong to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefinerConfig {
    /// The codec whose levels it paints.
    pub codec: CodecSpec,
    /// Values of a frame's outline.
    pub outline_width: usize,
    /// Values of a frame's detail.
    pub detail_width: usize,
    /// Width of a text state.
    pub text_width: usize,
    /// Heads of the attention to the text; 0: it hears the mean of the text states alone.
    #[serde(default)]
    pub text_heads: usize,
    /// What it was trained on.
    pub objective: Objective,
    /// The network.
    pub network: DenoiserConfig,
    /// Settings that sound best with these weights.
    #[serde(default)]
    pub sampling: RefinerSampling,
}

/// How detail is drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RefinerSampling {
    /// How a step is made.
    pub solver: Solver,
    /// Steps from noise to detail.
    pub steps: usize,
    /// Guidance by the text: 1 follows it as heard in training, 0 ignores it.
    pub guidance: f32,
    /// Guidance by the outline: 1 as in training, 0 ignores it, and the text with it unless that has guidance of its own.
    pub outline_guidance: f32,
    /// Scales the noise that it begins with; below 1 gives less varied, cleaner detail.
    pub noise: f32,
    /// Share (0 to 1) of that noise which comes back with every beat, where there is one: what is played again then sounds
    /// alike. Above 0, what the codec draws comes back as well.
    pub beat_noise: f32,
    /// Time (above 0, to 1) at which painting begins: below 1 it begins with the detail of the further levels that were written, if
    /// any were, and the less noise besides the lower it is. The name is that of image-to-image pipelines (SDEdit, Meng et al.,
    /// arXiv 2108.01073).
    pub strength: f32,
    /// Scales what was painted around its mean: few steps leave less than the deviation of true detail, and cleaner detail than
    /// more steps would.
    pub gain: f32,
    /// Frames painted at a time.
    pub window: usize,
    /// Frames before and after them that are painted along and thrown away: the look-ahead.
    pub halo: usize,
}

impl Default for RefinerSampling {
    fn default() -> Self {
        Self {
            solver: Solver::DpmSolver,
            steps: 10,
            guidance: 1.0,
            outline_guidance: 1.0,
            noise: 1.0,
            beat_noise: 0.0,
            strength: 1.0,
            gain: 1.0,
            window: 224,
            halo: 32,
        }
    }
}

/// Why a refiner cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RefinerError {
    /// The description could not be read.
    #[error("{path}: cannot read the description of the second stage: {source}")]
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
    /// The description says what cannot be.
    #[error("{path}: {rule}")]
    Rule {
        /// File or flags.
        path: PathBuf,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// The weights do not fit.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The folder could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl RefinerSampling {
    /// The rule that the settings break, if any.
    pub fn broken_rule(&self, objective: Objective) -> Option<&'static str> {
        let straight = matches!(self.solver, Solver::Euler | Solver::Heun);
        let finite = [self.guidance, self.outline_guidance].iter().all(|scale| scale.is_finite());
        let rules = [
            (
                objective == Objective::Flow || !straight,
                "solver: v-prediction takes ancestral, ddim and dpm-solver; euler and heun are for rectified flow",
            ),
            ((1..=1000).contains(&self.steps), "steps must be 1 to 1000"),
            (finite, "guidance and outline_guidance must be finite numbers"),
            ((0.0..=2.0).contains(&self.noise), "noise must be 0 to 2"),
            ((0.0..=1.0).contains(&self.beat_noise), "beat_noise must be 0 to 1"),
            (self.strength > 0.0 && self.strength <= 1.0, "strength must be above 0 and at most 1"),
            ((0.0..=4.0).contains(&self.gain), "gain must be 0 to 4"),
            (
                (1..=1 << 16).contains(&self.window) && self.halo <= 1 << 12,
                "window must be 1 to 65536, halo at most 4096",
            ),
        ];
        rules.iter().find(|(holds, _)| !holds).map(|(_, rule)| *rule)
    }
}

impl RefinerConfig {
    /// The rule that the description breaks, if any.
    pub fn broken_rule(&self) -> Option<&'static str> {
        let sane = |size: usize| (1..=1 << 14).contains(&size);
        let heads = self.text_heads;
        let rules = [
            (
                self.network.is_valid(),
                "network: width (with state a multiple of 32), blocks, kernel (odd) and expansion must be positive and moderate",
            ),
            (
                sane(self.outline_width) && sane(self.detail_width) && sane(self.text_width),
                "outline_width, detail_width and text_width must be 1 to 16384",
            ),
            (heads == 0 || self.network.width.is_multiple_of(heads), "text_heads must divide the network's width"),
        ];
        let broken = rules.iter().find(|(holds, _)| !holds).map(|(_, rule)| *rule);
        broken.or_else(|| self.sampling.broken_rule(self.objective))
    }

    fn conditions(&self) -> Conditions {
        Conditions {
            values: self.detail_width,
            known: self.outline_width,
            steering: self.text_width,
            attention: (self.text_heads > 0).then_some((self.text_width, self.text_heads)),
        }
    }

    /// Floating-point operations of a frame in one pass forwards, beside a text of `text` tokens if it attends to the text; see
    /// [`DenoiserConfig::flops`].
    pub fn flops(&self, text: usize) -> u64 {
        self.network.flops(self.conditions(), text)
    }

    /// All weights, freshly drawn; the statistics of the data are those of unit noise until they are measured.
    pub fn parameters(&self, draw: &mut Initialiser) -> Parameters {
        let mut all = Parameters::new();
        Denoiser::add_parameters(NAME, &self.network, self.conditions(), draw, &mut all);
        let widths = [(NULL_OUTLINE, self.outline_width), (NULL_TEXT, self.text_width)];
        for (name, width) in widths {
            all.push(name, &[width], Role::Free, draw.normal(width, 0.1));
        }
        let widths = [self.detail_width, self.detail_width, self.outline_width, self.outline_width];
        for (place, (name, width)) in STATISTICS.iter().zip(widths).enumerate() {
            let mut values = draw.zeros(width);
            values.iter_mut().for_each(|value| *value = (place % 2) as f32);
            all.push(*name, &[width], Role::Buffer, values);
        }
        let mut one = draw.zeros(1);
        one.iter_mut().for_each(|value| *value = 1.0);
        all.push(TEXT_DEVIATION, &[1], Role::Buffer, one);
        all
    }

    /// Writes the description and the weights (int8) into an existing folder.
    ///
    /// # Errors
    /// [`RefinerError::Write`].
    pub fn save(&self, folder: &Path, parameters: &Parameters) -> Result<(), RefinerError> {
        let text = toml::to_string_pretty(self).expect("a description is plain data");
        parameters.save(&folder.join(WEIGHTS_FILE), Precision::Int8, "refiner")?;
        let path = folder.join(CONFIG_FILE);
        write_atomically(&path, text.as_bytes()).map_err(|source| WriteError { path, source })?;
        Ok(())
    }

    /// Reads a folder: the description and all weights.
    ///
    /// # Errors
    /// [`RefinerError`], naming the file and what is wrong with it.
    pub fn load(folder: &Path) -> Result<(Self, Parameters), RefinerError> {
        let path = folder.join(CONFIG_FILE);
        let text = std::fs::read_to_string(&path).map_err(|source| RefinerError::Io { path: path.clone(), source })?;
        let config: Self = toml::from_str(&text)
            .map_err(|source| RefinerError::Toml { path: path.clone(), source: Box::new(source) })?;
        if let Some(rule) = config.broken_rule() {
            return Err(RefinerError::Rule { path, rule });
        }
        let mut parameters = config.parameters(&mut Initialiser::blank());
        parameters.load(&folder.join(WEIGHTS_FILE))?;
        Ok((config, parameters))
    }
}

/// What a clip's network hears.
#[derive(Debug, Clone, Copy)]
pub struct Heard<'a> {
    /// States of its text, `[tokens, text_width]`; `None` for the null text.
    pub text: Option<&'a [f32]>,
    /// Whether it hears its outline, and not the null outline.
    pub outline: bool,
}

/// A refiner with its weights on a device.
pub struct Refiner {
    config: RefinerConfig,
    network: Denoiser,
    /// Mean and deviation of a frame's detail and of its outline.
    statistics: [Vec<f32>; 4],
    text_deviation: f32,
}

impl Refiner {
    /// The network on `device`; on an autodiff device, to be trained.
    pub fn new(config: RefinerConfig, parameters: &Parameters, device: &Device) -> Self {
        let values = |name: &str| parameters.get(name).expect("listed in RefinerConfig::parameters").values.clone();
        let heads = (config.text_heads > 0).then_some(config.text_heads);
        Self {
            network: Denoiser::new(NAME, &config.network, heads, parameters, device),
            statistics: STATISTICS.map(values),
            text_deviation: values(TEXT_DEVIATION)[0],
            config,
        }
    }

    /// Opens a folder.
    ///
    /// # Errors
    /// As [`RefinerConfig::load`].
    pub fn open(folder: &Path) -> Result<Self, RefinerError> {
        let (config, parameters) = RefinerConfig::load(folder)?;
        Ok(Self::new(config, &parameters, &Device::flex()))
    }

    /// Shapes and settings.
    pub fn config(&self) -> &RefinerConfig {
        &self.config
    }

    /// The same with other settings.
    ///
    /// # Errors
    /// The rule that they break.
    pub fn with_sampling(mut self, sampling: RefinerSampling) -> Result<Self, &'static str> {
        if let Some(rule) = sampling.broken_rule(self.config.objective) {
            return Err(rule);
        }
        self.config.sampling = sampling;
        Ok(self)
    }

    /// The bound weights, to fetch gradients from.
    pub fn bound(&self) -> &Bound {
        self.network.bound()
    }

    /// Detail `[frames, detail_width]` at zero mean and unit deviation, in place.
    pub fn normalise_detail(&self, detail: &mut [f32]) {
        normalise(detail, &self.statistics[0], &self.statistics[1]);
    }

    /// Its answer `[b, t, detail]` for noisy detail of unit variance `[b, t, detail]` and outlines `[b, t, outline]` as the
    /// codec has them.
    pub fn answer(&self, noisy: Vec<f32>, mut outlines: Vec<f32>, times: &[f32], heard: &[Heard<'_>]) -> Tensor<3> {
        let device = self.network.device();
        let batch = heard.len();
        let (outline_width, detail_width) = (self.config.outline_width, self.config.detail_width);
        let frames = outlines.len() / batch / outline_width;
        normalise(&mut outlines, &self.statistics[2], &self.statistics[3]);
        let null: Vec<f32> = heard.iter().map(|heard| f32::from(u8::from(!heard.outline))).collect();
        for (outline, null) in outlines.chunks_exact_mut(frames * outline_width).zip(&null) {
            if *null > 0.0 {
                outline.fill(0.0);
            }
        }
        let tensor =
            |values: Vec<f32>, shape: [usize; 3]| Tensor::<3>::from_data(TensorData::new(values, shape), device);
        let null_outline = self.bound().tensor::<1>(NULL_OUTLINE).reshape([1, 1, outline_width]);
        let known = tensor(outlines, [batch, frames, outline_width]) + tensor(null, [batch, 1, 1]) * null_outline;
        let (mean, states) = self.texts(heard);
        let states = states.as_ref().map(|(states, padding)| (states.clone(), padding.as_slice()));
        self.network.forward(tensor(noisy, [batch, frames, detail_width]), known, times, Some(mean), states)
    }

    /// The mean of each clip's text `[b, text]`, and for attention all states, `[b, l, text]` with the empty rows before each.
    #[allow(clippy::type_complexity)]
    fn texts(&self, heard: &[Heard<'_>]) -> (Tensor<2>, Option<(Tensor<3>, Vec<usize>)>) {
        let device = self.network.device();
        let (batch, width) = (heard.len(), self.config.text_width);
        let null = self.bound().tensor::<1>(NULL_TEXT);
        let scale = 1.0 / self.text_deviation;
        let missing: Vec<f32> = heard.iter().map(|heard| f32::from(u8::from(heard.text.is_none()))).collect();
        let missing = Tensor::<2>::from_data(TensorData::new(missing, [batch, 1]), device);
        let mut means = vec![0.0; batch * width];
        for (mean, heard) in means.chunks_exact_mut(width).zip(heard) {
            let text = heard.text.unwrap_or_default();
            let share = scale * width as f32 / text.len().max(1) as f32;
            for row in text.chunks_exact(width) {
                mean.iter_mut().zip(row).for_each(|(sum, value)| *sum += share * value);
            }
        }
        let means = Tensor::<2>::from_data(TensorData::new(means, [batch, width]), device);
        let means = means + missing.clone() * null.clone().reshape([1, width]);
        if self.config.text_heads == 0 {
            return (means, None);
        }
        // The null text is one row.
        let lengths: Vec<usize> =
            heard.iter().map(|heard| (heard.text.unwrap_or_default().len() / width).max(1)).collect();
        let longest = lengths.iter().copied().max().unwrap_or(1);
        let mut states = vec![0.0; batch * longest * width];
        let mut nulls = vec![0.0; batch * longest];
        for (item, (heard, length)) in heard.iter().zip(&lengths).enumerate() {
            let first = (item + 1) * longest - length;
            match heard.text {
                Some(text) => {
                    let rows = &mut states[first * width..][..text.len()];
                    rows.iter_mut().zip(text).for_each(|(row, value)| *row = scale * value);
                }
                None => nulls[first] = 1.0,
            }
        }
        let states = Tensor::<3>::from_data(TensorData::new(states, [batch, longest, width]), device);
        let nulls = Tensor::<3>::from_data(TensorData::new(nulls, [batch, longest, 1]), device);
        let states = states + nulls * null.reshape([1, 1, width]);
        (means, Some((states, lengths.iter().map(|length| longest - length).collect())))
    }

    /// Mean of a frame's detail.
    pub(super) fn detail_mean(&self) -> &[f32] {
        &self.statistics[0]
    }

    /// Detail `[frames, detail_width]` as the codec has it, for an outline `[frames, outline_width]` and a text
    /// `[tokens, text_width]`; `sketch`, detail as it is known so far, is what it begins with as far as `strength` allows; `noise` gives
    /// standard normal numbers `[frames, detail_width]`: 0 for those that it begins with, then one set for each ancestral step.
    pub fn paint(
        &self,
        outline: &[f32],
        sketch: Option<Vec<f32>>,
        text: Option<&[f32]>,
        mut noise: impl FnMut(usize) -> Vec<f32>,
    ) -> Vec<f32> {
        let sampling = &self.config.sampling;
        // The outline is here what the beat is to the language model.
        let scales = Guidance::by(if text.is_some() { sampling.guidance } else { 0.0 }, sampling.outline_guidance);
        let all = [
            (scales.caption, Heard { text, outline: true }),
            (scales.beat, Heard { text: None, outline: true }),
            (scales.neither, Heard { text: None, outline: false }),
        ];
        let (weights, heard): (Vec<f32>, Vec<Heard<'_>>) = all.into_iter().filter(|(weight, _)| *weight != 0.0).unzip();
        let mut first = noise(0);
        first.iter_mut().for_each(|value| *value *= sampling.noise);
        let schedule = self.config.objective.schedule();
        let mut begin = 1.0;
        if let Some(mut sketch) = sketch.filter(|_| sampling.strength < 1.0) {
            begin = schedule.nearest(f64::from(sampling.strength));
            let (known, unknown) = schedule.shares(begin);
            self.normalise_detail(&mut sketch);
            for (value, sketch) in first.iter_mut().zip(sketch) {
                *value = known as f32 * sketch + unknown as f32 * *value;
            }
        }
        let values = first.len();
        let network = |x: &[f32], time: f32| {
            let answer =
                self.answer(x.repeat(heard.len()), outline.repeat(heard.len()), &vec![time; heard.len()], &heard);
            let mut answer: Vec<f32> = answer.into_data().try_into_vec().expect("the refiner computes in f32");
            blend(&mut answer, &weights);
            answer.truncate(values);
            answer
        };
        let more_noise = |step| noise(step + 1);
        let mut detail = sample(&schedule, sampling.solver, sampling.steps, begin, first, more_noise, network);
        let (mean, deviation) = (&self.statistics[0], &self.statistics[1]);
        for row in detail.chunks_exact_mut(mean.len()) {
            for ((v, mean), deviation) in row.iter_mut().zip(mean).zip(deviation) {
                *v = *v * sampling.gain * deviation + mean;
            }
        }
        detail
    }
}

fn normalise(rows: &mut [f32], mean: &[f32], deviation: &[f32]) {
    for row in rows.chunks_exact_mut(mean.len()) {
        row.iter_mut().zip(mean).zip(deviation).for_each(|((v, mean), deviation)| *v = (*v - mean) / deviation);
    }
}

/// Statistics of frames, gathered one after another.
#[derive(Debug, Clone)]
pub struct Moments {
    count: f64,
    sums: Vec<f64>,
    squares: Vec<f64>,
}

impl Moments {
    /// Of rows of `width`.
    pub fn new(width: usize) -> Self {
        Self { count: 0.0, sums: vec![0.0; width], squares: vec![0.0; width] }
    }

    /// Adds a row.
    pub fn add(&mut self, row: &[f32]) {
        self.count += 1.0;
        for ((sum, square), value) in self.sums.iter_mut().zip(&mut self.squares).zip(row) {
            *sum += f64::from(*value);
            *square += f64::from(*value).powi(2);
        }
    }

    /// Mean and deviation by column; a column that never changes has deviation 1.
    pub fn finish(&self) -> [Vec<f32>; 2] {
        let count = self.count.max(1.0);
        let mean: Vec<f64> = self.sums.iter().map(|sum| sum / count).collect();
        let deviation = self.squares.iter().zip(&mean).map(|(square, mean)| {
            let variance = square / count - mean * mean;
            if variance > 1e-12 { variance.sqrt() as f32 } else { 1.0 }
        });
        [mean.iter().map(|mean| *mean as f32).collect(), deviation.collect()]
    }
}

/// What is measured of the training data.
#[derive(Debug, Clone)]
pub struct Statistics {
    /// Of frames' detail.
    pub detail: Moments,
    /// Of frames' outlines.
    pub outline: Moments,
    /// Deviation of text states.
    pub text_deviation: f32,
}

impl Statistics {
    /// Writes them into the weights of a second stage.
    ///
    /// # Panics
    /// If the widths are not those of the weights.
    pub fn store(&self, parameters: &mut Parameters) {
        let mut set = |name: &str, values: &[f32]| parameters.values_mut(name).expect("listed").copy_from_slice(values);
        let [detail_mean, detail_deviation] = self.detail.finish();
        let [outline_mean, outline_deviation] = self.outline.finish();
        let measured = [&detail_mean, &detail_deviation, &outline_mean, &outline_deviation];
        for (name, values) in STATISTICS.iter().zip(measured) {
            set(name, values);
        }
        set(TEXT_DEVIATION, &[self.text_deviation]);
    }
}
