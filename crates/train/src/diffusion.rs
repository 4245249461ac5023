//! Training the second stage, one page read top to bottom.
//!
//! Shards -> outlines and details -> statistics -> resume -> loop { batch; noise; loss; step, average; metrics; every so often:
//! validate, save, sample }. Batches, times, noise and what is left out are functions of (seed, step).

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::{Device, Tensor, TensorData};
use mambo_data::batch::{Batch, BatchSource};
use mambo_data::shard::Shard;
use mambo_data::{Progress, Report, Split};
use mambo_model::codec::Refinable;
use mambo_model::diffusion::{
    DenoiserConfig, Heard, Moments, Objective, Refiner, RefinerConfig, RefinerSampling, Schedule, Statistics,
};
use mambo_model::ops::{MatrixPrecision, with_precision};
use mambo_model::parameters::{Initialiser, Parameters};
use mambo_model::random;
use serde::{Deserialize, Serialize};

use crate::checkpoint;
use crate::config::{BatchSizes, DataConfig, precision};
use crate::error::{Rule, TrainError};
use crate::lm::first_shard;
use crate::optim::{OptimConfig, Optimizer, accumulate};
use crate::run::{RunFolder, read_experiment};
use crate::track::Tracker;

/// A second-stage experiment; unknown keys are errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiffusionExperiment {
    /// Name, used as the curve's title.
    pub name: String,
    /// Seed of everything random.
    pub seed: u64,
    /// What to learn from.
    pub data: DataConfig,
    /// Shapes and objective.
    pub model: ModelConfig,
    /// Folder of a second stage whose weights and statistics training starts from, instead of random ones.
    #[serde(default)]
    pub start_from: Option<PathBuf>,
    /// The optimiser.
    #[serde(default)]
    pub optim: OptimConfig,
    /// The loop.
    pub train: LoopConfig,
    /// Settings of the samples made while training, saved with the weights.
    #[serde(default)]
    pub sampling: RefinerSampling,
}

/// Shapes that do not follow from codec and text encoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// What is learned.
    pub objective: Objective,
    /// Heads of the attention to the text; 0: the mean of its states alone.
    #[serde(default)]
    pub text_heads: usize,
    /// The network.
    pub network: DenoiserConfig,
}

/// The loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoopConfig {
    /// Optimiser steps.
    pub steps: u64,
    /// Clips in a batch.
    pub batch: usize,
    /// Share of clips that do not hear their text.
    #[serde(default = "tenth")]
    pub text_dropout: f32,
    /// Share of clips that do not hear their outline.
    #[serde(default = "tenth")]
    pub outline_dropout: f32,
    /// Which times of the path from data to noise are trained.
    #[serde(default)]
    pub times: Times,
    /// Large matrix products in bf16 where the processor has a unit for it.
    #[serde(default)]
    pub bf16: bool,
    /// Steps between lines of metrics.
    #[serde(default = "twenty")]
    pub log_every: u64,
    /// Steps between validations.
    #[serde(default = "two_hundred")]
    pub validate_every: u64,
    /// Steps between checkpoints.
    #[serde(default = "two_hundred")]
    pub save_every: u64,
    /// Steps between samples; 0 for none.
    #[serde(default)]
    pub sample_every: u64,
}

/// How the times of a batch are spread.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Times {
    /// All alike.
    #[default]
    Uniform,
    /// More of the middle, where there is most to learn: ln(t / (1 - t)) of deviation 1 (Esser et al., arXiv 2403.03206, section
    /// 3.1), with a logistic density for the normal one, since its quantiles have a closed form.
    Middle,
}

impl Times {
    /// The time below which a share of all times lies; at the very ends there is nothing to learn.
    fn quantile(self, share: f32) -> f64 {
        let share = f64::from(share.mul_add(0.98, 0.01));
        match self {
            Self::Uniform => share,
            // A logistic density of scale s has the deviation pi s / sqrt(3).
            Self::Middle => 1.0 / (1.0 + (1.0 / share - 1.0).powf(3f64.sqrt() / std::f64::consts::PI)),
        }
    }
}

fn tenth() -> f32 {
    0.1
}

fn twenty() -> u64 {
    20
}

fn two_hundred() -> u64 {
    200
}

/// Batches that the statistics are measured on.
const MEASURED: u64 = 200;
/// Batches of a validation.
const VALIDATED: u64 = 16;

impl DiffusionExperiment {
    /// Reads and checks an experiment file.
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        read_experiment(path, Self::validate)
    }

    /// Checks every range.
    pub fn validate(&self) -> Result<(), TrainError> {
        self.optim.validate()?;
        let train = &self.train;
        let share = |value: f32| (0.0..=1.0).contains(&value);
        let sampling = self.sampling.broken_rule(self.model.objective);
        let rules: [Rule; 9] = [
            ("data.frames", self.data.frames.to_string(), self.data.frames > 1, "2 or more"),
            ("data.max_text", self.data.max_text.to_string(), self.data.max_text > 0, "1 or more"),
            ("train.steps", train.steps.to_string(), train.steps > 0, "1 or more"),
            ("train.batch", train.batch.to_string(), train.batch > 0, "1 or more"),
            ("train.log_every", train.log_every.to_string(), train.log_every > 0, "1 or more"),
            ("train.text_dropout", train.text_dropout.to_string(), share(train.text_dropout), "0 to 1"),
            ("train.outline_dropout", train.outline_dropout.to_string(), share(train.outline_dropout), "0 to 1"),
            (
                "model.network",
                format!("{:?}", self.model.network),
                self.model.network.is_valid(),
                "width (with state a multiple of 32), blocks, kernel (odd) and expansion that are positive and moderate",
            ),
            ("sampling", format!("{:?}", self.sampling), sampling.is_none(), sampling.unwrap_or_default()),
        ];
        TrainError::unless_all_hold(rules)
    }

    /// The refiner that it trains, for a codec and states of a text encoder.
    pub fn refiner(&self, codec: &dyn Refinable, text_width: usize) -> RefinerConfig {
        RefinerConfig {
            codec: codec.spec().clone(),
            outline_width: codec.outline_width(),
            detail_width: codec.detail_width(),
            text_width,
            text_heads: self.model.text_heads,
            objective: self.model.objective,
            network: self.model.network.clone(),
            sampling: self.sampling.clone(),
        }
    }
}

/// Makes a sample at a step from first-level codes and text states; its error is shown to the user.
pub type SampleHook<'a> = dyn FnMut(&Refiner, &[u16], &[f32], u64) -> Result<(), String> + 'a;

/// What a run needs besides the experiment.
pub struct DiffusionRun<'a, 'hook> {
    /// The experiment.
    pub experiment: &'a DiffusionExperiment,
    /// The run folder; a run that was started there is continued.
    pub folder: &'a Path,
    /// The codec that made the shards.
    pub codec: &'a dyn Refinable,
    /// Set from outside to save and stop after the step in hand.
    pub stop: &'a AtomicBool,
    /// Told about every line of metrics.
    pub report: &'a mut Report<'hook>,
    /// Makes samples.
    pub sample: Option<&'a mut SampleHook<'hook>>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DiffusionOutcome {
    /// Folder of the averaged weights of the last step.
    pub folder: PathBuf,
    /// Steps finished.
    pub step: u64,
    /// The last validation loss, if there is anything to validate on.
    pub validation: Option<f64>,
    /// True when it was stopped from outside before its last step.
    pub stopped: bool,
    /// The final weights (not averaged).
    #[serde(skip)]
    pub parameters: Parameters,
}

/// Runs the experiment to its end, or continues it.
pub fn run(run: DiffusionRun<'_, '_>) -> Result<DiffusionOutcome, TrainError> {
    let DiffusionRun { experiment, folder, codec, stop, report, mut sample } = run;
    experiment.validate()?;
    let (train, seed) = (&experiment.train, experiment.seed);

    // Data.
    let shards = Arc::new(Shard::open_folders(&experiment.data.shards)?);
    let text_width = check_shards(&shards, codec)?;
    let batches = |split: Split, training: bool| {
        let sizes = BatchSizes { batch: train.batch, levels: codec.spec().levels };
        experiment.data.source(&shards, &[split], training, sizes, seed)
    };
    let source = batches(Split::Train, true)?;
    let validation = match experiment.data.validate_on.first() {
        Some(split) => {
            batches(*split, false).inspect_err(|error| tracing::warn!(%error, ?split, "not validated: no clips")).ok()
        }
        None => None,
    };

    // Model, optimiser, run folder; resume.
    let config = experiment.refiner(codec, text_width);
    let (mut parameters, measured) = first_parameters(experiment, &config)?;
    let mut optimizer = Optimizer::new(&experiment.optim, &parameters, train.steps);
    let folder = RunFolder::open(folder, experiment)?;
    let resumed = checkpoint::load::<Option<f64>>(&folder.checkpoint(), seed, &mut parameters, &mut optimizer)?;
    let (mut step, mut score) = match resumed {
        Some(at) => (at.step, at.state),
        None => {
            if !measured {
                measure(&source, codec, text_width).store(&mut parameters);
            }
            (0, None)
        }
    };
    let mut tracker = Tracker::open(folder.root(), step)?;
    let parameters_count = parameters.trained_count();
    tracing::info!(
        parameters = parameters_count,
        clips = source.len(),
        step,
        steps = train.steps,
        "training the second stage"
    );

    let precision = precision(train.bf16);
    let schedule = config.objective.schedule();
    let halves = Halves::new();
    let device = Device::flex().autodiff();
    let (mut sum, mut count) = (0.0, 0);
    while step < train.steps && !stop.load(Ordering::Relaxed) {
        // One optimiser step.
        let batch = source.batch_at_step(step);
        let clips = Clips::new(&batch, codec, text_width);
        let refiner = || Refiner::new(config.clone(), &parameters, &device);
        let first = refiner();
        let lesson = Lesson::draw(&first, &schedule, &clips, train, random::stream(seed, "lesson", step));
        let (loss, gradients) = halves.both(&first, refiner, &clips, &lesson, precision);
        sum += f64::from(loss);
        count += 1;
        let update = optimizer.step(step, &mut parameters, &gradients);
        step += 1;
        if !sum.is_finite() {
            return Err(TrainError::Diverged { step, steps: 1 });
        }

        // What a person sees.
        let last = step == train.steps || stop.load(Ordering::Relaxed);
        let due = |every: u64| last || (every > 0 && step.is_multiple_of(every));
        if due(train.log_every) {
            let seconds_left = tracker.seconds_left(step, train.steps);
            let loss = sum / f64::from(count);
            (sum, count) = (0.0, 0);
            tracker.log(
                step,
                &[("train/loss", loss), ("train/rate", update.rate), ("train/gradient_norm", update.gradient_norm)],
            )?;
            let item = format!("loss {loss:.4}, rate {:.2e}", update.rate);
            report(&Progress { stage: "train", item, done: step, total: train.steps, seconds_left });
        }

        // Validate, save, sample.
        if let (Some(source), true) = (&validation, due(train.validate_every)) {
            let averaged = Refiner::new(config.clone(), &optimizer.averaged(&parameters), &Device::flex());
            let loss = validate(&averaged, &schedule, source, codec, experiment);
            tracing::info!(step, loss = format!("{loss:.4}"), "validation");
            tracker.log(step, &[("valid/loss", loss)])?;
            tracker.curve(&experiment.name, &["train/loss", "valid/loss"])?;
            score = Some(loss);
        }
        if let (Some(sample), true) = (sample.as_mut(), train.sample_every > 0 && due(train.sample_every)) {
            let averaged = Refiner::new(config.clone(), &optimizer.averaged(&parameters), &Device::flex());
            let source = validation.as_ref().unwrap_or(&source);
            let batch = source.in_order(0);
            let clips = Clips::new(&batch, codec, text_width);
            let codes = &batch.codes_bkt[..batch.lengths_b[0]];
            sample(&averaged, codes, &clips.texts[0], step).map_err(|reason| TrainError::Sample { step, reason })?;
        }
        if due(train.save_every) {
            checkpoint::save(&folder.checkpoint(), seed, step, &score, &parameters, &optimizer)?;
        }
    }

    // Stopped or done: leave everything behind that the next start needs.
    checkpoint::save(&folder.checkpoint(), seed, step, &score, &parameters, &optimizer)?;
    let out = folder.inner("refiner")?;
    config.save(&out, &optimizer.averaged(&parameters))?;
    let stopped = step < train.steps;
    Ok(DiffusionOutcome { folder: out, step, validation: score, stopped, parameters })
}

/// Two pools of threads, one for each half of a batch: halves that share one wait for each other in every product, and what a
/// network does between its large products keeps one thread busy, whatever the number of threads.
struct Halves([rayon::ThreadPool; 2]);

impl Halves {
    /// Shares all threads between the halves; each has one at least.
    fn new() -> Self {
        let threads = rayon::current_num_threads();
        Self([threads.div_ceil(2), threads / 2].map(|share| {
            rayon::ThreadPoolBuilder::new().num_threads(share.max(1)).build().expect("threads for half of a batch")
        }))
    }

    /// Loss and gradients of a batch; each half has leaves of its own, since graphs that share some wait for each other.
    fn both(
        &self,
        first: &Refiner,
        second: impl FnOnce() -> Refiner + Send,
        clips: &Clips,
        lesson: &Lesson,
        precision: MatrixPrecision,
    ) -> (f32, Vec<Vec<f32>>) {
        let half = |refiner: &Refiner, range: Range<usize>| {
            let loss = with_precision(precision, || lesson.loss(refiner, clips, range));
            (loss.clone().into_scalar::<f32>(), refiner.bound().gradients(loss.backward()))
        };
        let (middle, end) = (clips.lengths.len().div_ceil(2), clips.lengths.len());
        if middle == end {
            return half(first, 0..end);
        }
        let Self([pool, other_pool]) = self;
        std::thread::scope(|scope| {
            let other = scope.spawn(|| other_pool.install(|| half(&second(), middle..end)));
            let (loss, mut gradients) = pool.install(|| half(first, 0..middle));
            let (more, other) = other.join().expect("the second half of the batch");
            accumulate(&mut gradients, other, 1.0);
            (loss + more, gradients)
        })
    }
}

/// Random weights, or those of the folder that the experiment names, with its statistics; whether these are measured.
fn first_parameters(
    experiment: &DiffusionExperiment,
    config: &RefinerConfig,
) -> Result<(Parameters, bool), TrainError> {
    let Some(folder) = &experiment.start_from else {
        return Ok((config.parameters(&mut Initialiser::seeded(experiment.seed)), false));
    };
    let (known, parameters) = RefinerConfig::load(folder)?;
    if (RefinerConfig { sampling: config.sampling.clone(), ..known }) != *config {
        return Err(TrainError::Setting {
            key: "start_from",
            found: format!("{} with another codec, text encoder, objective or other sizes", folder.display()),
            expected: "the folder of a second stage whose refiner.toml has those of [model]",
        });
    }
    Ok((parameters, true))
}

/// All shards speak this codec, with all its levels; the width of their text states.
fn check_shards(shards: &[Shard], codec: &dyn Refinable) -> Result<usize, TrainError> {
    let first = first_shard(shards)?;
    for shard in shards {
        let spec = &shard.header().spec;
        if spec.codec != *codec.spec() || spec.text_width != first.header().spec.text_width {
            return Err(TrainError::Mismatch {
                what: "tokens of",
                found: format!("{}, text states of width {}", spec.codec, spec.text_width),
                expected: format!("{}, text states of width {}", codec.spec(), first.header().spec.text_width),
            });
        }
    }
    Ok(first.header().spec.text_width)
}

/// What the network is to paint, and what it hears.
struct Clips {
    /// `[b, t, outline]`
    outlines: Vec<f32>,
    /// `[b, t, detail]` as the codec has it.
    details: Vec<f32>,
    lengths: Vec<usize>,
    /// States of each clip's text, `[tokens, text_width]`.
    texts: Vec<Vec<f32>>,
}

impl Clips {
    /// Frames beyond a clip's length are those of code 0 and count for nothing.
    fn new(batch: &Batch, codec: &dyn Refinable, text_width: usize) -> Self {
        let (levels, frames) = (codec.spec().levels, batch.clock_bt.len() / batch.lengths_b.len());
        let (mut outlines, mut details) = (Vec::new(), Vec::new());
        for codes in batch.codes_bkt.chunks_exact(levels * frames) {
            for frame in 0..frames {
                let codes = column(codes, frame, frames);
                outlines.extend(codec.outline(codes[0]));
                details.extend(codec.detail(&codes));
            }
        }
        let row = batch.text_length;
        let texts = (0..batch.lengths_b.len())
            .map(|clip| {
                let heard: f32 = batch.text_mask_bl[clip * row..][..row].iter().sum();
                batch.text_bld[clip * row * text_width..][..heard as usize * text_width].to_vec()
            })
            .collect();
        Self { outlines, details, lengths: batch.lengths_b.clone(), texts }
    }
}

/// The codes of a frame, one a level, out of `[levels, frames]`.
fn column(codes: &[u16], frame: usize, frames: usize) -> Vec<u16> {
    codes.iter().skip(frame).step_by(frames).copied().collect()
}

/// What there is to know of outlines, details and text states.
fn measure(source: &BatchSource, codec: &dyn Refinable, text_width: usize) -> Statistics {
    let (outline_width, detail_width) = (codec.outline_width(), codec.detail_width());
    let (mut outline, mut detail) = (Moments::new(outline_width), Moments::new(detail_width));
    let (mut square, mut values) = (0.0, 0.0);
    for step in 0..MEASURED.min(source.batches_per_epoch() as u64) {
        let clips = Clips::new(&source.batch_at_step(step), codec, text_width);
        let frames = clips.outlines.len() / outline_width / clips.lengths.len();
        for (clip, length) in clips.lengths.iter().enumerate() {
            let rows = clip * frames..clip * frames + length;
            for row in rows {
                outline.add(&clips.outlines[row * outline_width..][..outline_width]);
                detail.add(&clips.details[row * detail_width..][..detail_width]);
            }
        }
        for text in &clips.texts {
            square += text.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
            values += text.len() as f64;
        }
    }
    let text_deviation = (square / values.max(1.0)).sqrt().max(1e-6) as f32;
    Statistics { detail, outline, text_deviation }
}

/// A batch with noise in it, and what the network should say.
struct Lesson {
    noisy: Vec<f32>,
    target: Vec<f32>,
    times: Vec<f32>,
    without_text: Vec<bool>,
    without_outline: Vec<bool>,
}

impl Lesson {
    fn draw(
        refiner: &Refiner,
        schedule: &Schedule,
        clips: &Clips,
        train: &LoopConfig,
        mut rng: rand_chacha::ChaCha8Rng,
    ) -> Self {
        let batch = clips.lengths.len();
        let mut details = clips.details.clone();
        refiner.normalise_detail(&mut details);
        let (mut noisy, mut target) = (Vec::with_capacity(details.len()), Vec::with_capacity(details.len()));
        let mut times = Vec::with_capacity(batch);
        for (clip, detail) in details.chunks_exact(details.len() / batch).enumerate() {
            // Stratified over the batch.
            let share = (clip as f32 + random::uniform(&mut rng)) / batch as f32;
            let time = schedule.nearest(train.times.quantile(share));
            let (a, s) = schedule.shares(time);
            let (a, s) = (a as f32, s as f32);
            times.push(time as f32);
            for data in detail {
                let noise = random::normal(&mut rng);
                noisy.push(a * data + s * noise);
                target.push(a * noise - s * data);
            }
        }
        let mut left_out = |share: f32| (0..batch).map(|_| random::uniform(&mut rng) < share).collect::<Vec<bool>>();
        let (without_text, without_outline) = (left_out(train.text_dropout), left_out(train.outline_dropout));
        Self { noisy, target, times, without_text, without_outline }
    }

    /// Squared error of some clips over the frames that are there, its sum over all clips being the mean.
    fn loss(&self, refiner: &Refiner, clips: &Clips, range: Range<usize>) -> Tensor<1> {
        let total = clips.lengths.len();
        let part = |values: &[f32]| {
            let row = values.len() / total;
            values[range.start * row..range.end * row].to_vec()
        };
        let heard: Vec<Heard<'_>> = clips.texts[range.clone()]
            .iter()
            .zip(self.without_text[range.clone()].iter().zip(&self.without_outline[range.clone()]))
            .map(|(text, (no_text, no_outline))| Heard {
                text: (!no_text && !text.is_empty()).then_some(text.as_slice()),
                outline: !no_outline,
            })
            .collect();
        let said = refiner.answer(part(&self.noisy), part(&clips.outlines), &self.times[range.clone()], &heard);
        let [batch, frames, width] = said.dims();
        let device = said.device();
        let there = clips.lengths[range.clone()]
            .iter()
            .flat_map(|length| (0..frames).map(move |t| f32::from(u8::from(t < *length))));
        let there = Tensor::<3>::from_data(TensorData::new(there.collect::<Vec<f32>>(), [batch, frames, 1]), &device);
        let target = Tensor::<3>::from_data(TensorData::new(part(&self.target), [batch, frames, width]), &device);
        let count = clips.lengths.iter().sum::<usize>() * width;
        let wrong = (said - target) * there;
        (wrong.clone() * wrong).sum() / count as f32
    }
}

/// Loss of averaged weights with times and noise that never change, all conditions heard.
fn validate(
    refiner: &Refiner,
    schedule: &Schedule,
    source: &BatchSource,
    codec: &dyn Refinable,
    experiment: &DiffusionExperiment,
) -> f64 {
    let everything =
        LoopConfig { text_dropout: 0.0, outline_dropout: 0.0, times: Times::Uniform, ..experiment.train.clone() };
    let rounds = VALIDATED.min(source.batches_per_epoch() as u64);
    let losses = (0..rounds).map(|round| {
        let batch = source.in_order(round as usize * experiment.train.batch);
        let clips = Clips::new(&batch, codec, refiner.config().text_width);
        let lesson =
            Lesson::draw(refiner, schedule, &clips, &everything, random::stream(experiment.seed, "validation", round));
        f64::from(lesson.loss(refiner, &clips, 0..clips.lengths.len()).into_scalar::<f32>())
    });
    losses.sum::<f64>() / rounds as f64
}

#[cfg(test)]
mod tests {
    use mambo_model::parameters::Role;
    use mambo_model::tokens::CodecSpec;

    use super::*;

    #[test]
    fn halves_of_a_batch_add_up_to_the_whole() {
        let config = RefinerConfig {
            codec: CodecSpec { name: "toy".into(), sample_rate: 8000, hop: 80, levels: 2, cardinality: 8 },
            outline_width: 3,
            detail_width: 5,
            text_width: 4,
            text_heads: 2,
            objective: Objective::Flow,
            network: DenoiserConfig { width: 32, blocks: 2, kernel: 3, expansion: 2, state: 4 },
            sampling: RefinerSampling::default(),
        };
        let mut rng = random::stream(1, "halves", 0);
        let mut normal = |count: usize| (0..count).map(|_| random::normal(&mut rng)).collect::<Vec<f32>>();
        let mut parameters = config.parameters(&mut Initialiser::seeded(2));
        for parameter in parameters.list_mut().iter_mut().filter(|parameter| parameter.role != Role::Buffer) {
            let noise = normal(parameter.values.len());
            parameter.values.iter_mut().zip(noise).for_each(|(value, noise)| *value += 0.05 * noise);
        }
        let (clips, frames) = (3, 6);
        let rows = clips * frames;
        let batch = Clips {
            outlines: normal(rows * 3),
            details: normal(rows * 5),
            lengths: vec![6, 2, 5],
            texts: vec![normal(8), normal(4), normal(12)],
        };
        let lesson = Lesson {
            noisy: normal(rows * 5),
            target: normal(rows * 5),
            times: vec![0.2, 0.5, 0.9],
            without_text: vec![false, true, false],
            without_outline: vec![true, false, false],
        };
        let refiner = || Refiner::new(config.clone(), &parameters, &Device::flex().autodiff());
        let whole = refiner();
        let loss = lesson.loss(&whole, &batch, 0..clips);
        let (sum, gradients) = Halves::new().both(&refiner(), refiner, &batch, &lesson, MatrixPrecision::F32);
        assert!((sum - loss.clone().into_scalar::<f32>()).abs() < 1e-5 * sum);
        let expected = whole.bound().gradients(loss.backward());
        assert_eq!(gradients.len(), expected.len());
        for ((found, expected), parameter) in gradients.iter().zip(&expected).zip(parameters.list()) {
            assert_eq!(found.len(), expected.len(), "{}", parameter.name);
            let largest = expected.iter().fold(1e-3f32, |most, value| most.max(value.abs()));
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-4 * largest, "{}: {found}, {expected}", parameter.name);
            }
        }
    }

    #[test]
    fn middle_times_have_logits_of_deviation_one() {
        let count = 100_000;
        let shares = (0..count).map(|place| (place as f32 + 0.5) / count as f32);
        let logits = shares.map(|share| {
            let time = Times::Middle.quantile(share);
            (time / (1.0 - time)).ln()
        });
        // Without the outermost hundredths of the distribution.
        let square = logits.map(|logit| logit * logit).sum::<f64>() / f64::from(count);
        assert!((0.85..1.0).contains(&square.sqrt()), "{square}");
        assert!((Times::Uniform.quantile(0.25) - 0.255).abs() < 1e-6);
        assert!(Times::Middle.quantile(0.25) > 0.255);
    }
}
