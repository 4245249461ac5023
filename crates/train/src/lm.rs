//! Training the language model, one page read top to bottom.
//!
//! Open shards -> build -> resume -> loop { batch; loss; accumulate, clip, step, average; metrics; every so
//! often: validate, save, sample }. Batches, dropped captions and dropout are functions of (seed, step).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::tensor::Device;
use mambo_data::batch::BatchSource;
use mambo_data::shard::Shard;
use mambo_data::{Progress, Report, Split};
use mambo_model::backbone::Dropout;
use mambo_model::generate::{LanguageModel, LmFile};
use mambo_model::lm::{Lm, LmConfig, Pass, checkpointed_gradients, loss};
use mambo_model::ops::with_precision;
use mambo_model::parameters::{Initialiser, Parameters};
use mambo_model::random;
use mambo_model::tokens::CodecSpec;
use serde::{Deserialize, Serialize};

use crate::checkpoint;
use crate::config::{BatchSizes, LmExperiment, precision};
use crate::error::TrainError;
use crate::optim::{Optimizer, accumulate};
use crate::run::RunFolder;
use crate::sequence::{arrange, captions, corrupt, forget, hold, own};
use crate::track::Tracker;

/// The codec's centroids, row-major `[levels, cardinality, width]`.
#[derive(Debug, Clone)]
pub struct CodecVectors {
    /// All values.
    pub values: Vec<f32>,
    /// Width of a vector.
    pub width: usize,
}

/// Makes a sample of the model at a step; its error is shown to the user.
pub type SampleHook<'a> = dyn FnMut(&LanguageModel, u64) -> Result<(), String> + 'a;

/// What a run needs besides the experiment.
pub struct LmRun<'a, 'hook> {
    /// The experiment, validated.
    pub experiment: &'a LmExperiment,
    /// The run folder; a run that was started there is continued.
    pub folder: &'a Path,
    /// The codec's centroids, needed when the experiment asks for them.
    pub codec_vectors: Option<&'a CodecVectors>,
    /// Set from outside to save and stop after the step in hand.
    pub stop: &'a AtomicBool,
    /// Told about every step.
    pub report: &'a mut Report<'hook>,
    /// Makes samples.
    pub sample: Option<&'a mut SampleHook<'hook>>,
}

/// Validation of one split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SplitScore {
    /// Which split.
    pub split: Split,
    /// Mean negative log-likelihood per codebook, in nats.
    pub nll: Vec<f64>,
}

impl SplitScore {
    /// Perplexity of the first codebook.
    pub fn level_1_perplexity(&self) -> f64 {
        self.nll[0].exp()
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct LmOutcome {
    /// Steps finished.
    pub step: u64,
    /// Best mean validation loss per code so far and its step, if any was measured.
    pub best: Option<(u64, f64)>,
    /// The last validation.
    pub scores: Vec<SplitScore>,
    /// True when it was stopped from outside before its last step.
    pub stopped: bool,
    /// The final weights (not averaged).
    pub parameters: Parameters,
}

/// What the loop itself remembers between steps.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Memory {
    best: Option<(u64, f64)>,
    without_better: u32,
    not_finite: u32,
    scores: Vec<SplitScore>,
}

/// Steps in a row with infinite gradients that end a run.
const MOST_NOT_FINITE: u32 = 20;

/// Runs the experiment to its end, or continues it.
pub fn run(run: LmRun<'_, '_>) -> Result<LmOutcome, TrainError> {
    let LmRun { experiment, folder, codec_vectors, stop, report, mut sample } = run;
    experiment.validate()?;
    let (train, seed) = (&experiment.train, experiment.seed);

    // Data.
    let shards = Arc::new(Shard::open_folders(&experiment.data.shards)?);
    let codec = check_shards(&shards, experiment)?;
    let source = batches(experiment, &shards, &[Split::Train], true)?;
    let mut validation = Vec::new();
    for &split in &experiment.data.validate_on {
        match batches(experiment, &shards, &[split], false) {
            Ok(source) => validation.push((split, source)),
            Err(error) => tracing::warn!(%error, ?split, "not validated: no clips"),
        }
    }

    // Model, optimiser, run folder; resume.
    let (config, vectors) = with_codec(experiment, &codec, codec_vectors)?;
    let mut parameters = first_parameters(experiment, &config, &vectors)?;
    let mut optimizer = Optimizer::new(&experiment.optim, &parameters, train.steps);
    let folder = RunFolder::open(folder, experiment)?;
    let resumed = checkpoint::load::<Memory>(&folder.checkpoint(), seed, &mut parameters, &mut optimizer)?;
    let (mut step, mut memory) = resumed.map_or((0, Memory::default()), |at| (at.step, at.state));
    let mut tracker = Tracker::open(folder.root(), step)?;
    let file = LmFile { model: config.clone(), codec, sampling: experiment.sampling.clone() };
    tracing::info!(
        parameters = parameters.trained_count(),
        clips = source.len(),
        step,
        steps = train.steps,
        "training the language model in {}",
        folder.root().display()
    );

    let precision = precision(train.bf16);
    let frame_rate = source.frame_rate();
    let device = Device::flex().autodiff();
    let mut since = Window::start();
    while step < train.steps && !stop.load(Ordering::Relaxed) {
        if train.patience > 0 && memory.without_better >= train.patience {
            tracing::info!(step, "stopped: no better validation for {} times", train.patience);
            break;
        }

        // One optimiser step.
        let mut gradients = Vec::new();
        for pass in 0..train.accumulate {
            let index = step * train.accumulate as u64 + pass as u64;
            let batch = source.batch_at_step(index);
            let mut sequence = arrange(&config, &batch, frame_rate);
            corrupt(&config, &mut sequence, train.input_corruption, &mut random::stream(seed, "corrupt", index));
            hold(&config, &mut sequence, train.held_inputs, &mut random::stream(seed, "hold", index));
            let mut rng = random::stream(seed, "caption", index);
            let forgotten = forget(batch.lengths_b.len(), train.caption_dropout, train.beat_dropout, &mut rng);
            let text = captions(&config, &batch, &forgotten.without_caption);
            sequence.silence_clock(&config, &forgotten.without_beat);
            if train.own_inputs > 0.0 && index.is_multiple_of(2) {
                let model = Lm::new(&config, &parameters.bind(&Device::flex()));
                let forward = || model.forward_with_text(&text, sequence.columns(), &mut Dropout::off()).logits;
                let logits = with_precision(precision, forward);
                let mut rng = random::stream(seed, "own", index);
                own(&config, &mut sequence, &logits, train.own_inputs, &mut rng);
            }
            let mut dropout = Dropout::new(train.dropout, random::stream(seed, "dropout", index));
            let (columns, targets) = (sequence.columns(), sequence.expected());
            let (loss, more) = with_precision(precision, || {
                if train.checkpoint_blocks {
                    let pass = Pass { text: &text, columns, targets, loss: &experiment.loss };
                    return checkpointed_gradients(&config, &parameters, pass, dropout);
                }
                let bound = parameters.bind(&device);
                let output = Lm::new(&config, &bound).forward_with_text(&text, columns, &mut dropout);
                let loss = loss(&config, &experiment.loss, &output, targets);
                let gradients = bound.gradients(loss.total.clone().backward());
                (loss, gradients)
            });
            since.add(&loss.nll, &loss.counts, batch.lengths_b.iter().sum());
            accumulate(&mut gradients, more, 1.0 / train.accumulate as f32);
        }
        let update = optimizer.step(step, &mut parameters, &gradients);
        step += 1;
        memory.not_finite = if update.applied { 0 } else { memory.not_finite + 1 };
        if memory.not_finite >= MOST_NOT_FINITE {
            return Err(TrainError::Diverged { step, steps: memory.not_finite });
        }

        // What a person sees.
        let last = step == train.steps;
        let due = |every: u64| last || (every > 0 && step.is_multiple_of(every));
        if due(train.log_every) {
            let seconds_left = tracker.seconds_left(step, train.steps);
            let mut values = since.metrics();
            values.push(("train/rate".into(), update.rate));
            values.push(("train/gradient_norm".into(), update.gradient_norm));
            let named: Vec<(&str, f64)> = values.iter().map(|(name, value)| (name.as_str(), *value)).collect();
            tracker.log(step, &named)?;
            let item = format!(
                "loss {:.3}, rate {:.2e}, {:.0} frames/s",
                since.loss(),
                update.rate,
                since.frames_per_second()
            );
            report(&Progress { stage: "train", item, done: step, total: train.steps, seconds_left });
            since = Window::start();
        }

        // Validate, save, sample.
        if due(train.validate_every) && !validation.is_empty() {
            let averaged = optimizer.averaged(&parameters);
            memory.scores = validation
                .iter()
                .map(|(split, source)| score(&config, &averaged, *split, source, train.validate_clips))
                .collect();
            let mut values = Vec::new();
            for score in &memory.scores {
                let name = score.split.name();
                let mean = mean(&score.nll);
                tracing::info!(step, split = name, loss = mean, perplexity = score.level_1_perplexity());
                values.push((format!("{name}/loss"), mean));
                values.push((format!("{name}/perplexity_level_1"), score.level_1_perplexity()));
                for (k, nll) in score.nll.iter().enumerate() {
                    values.push((format!("{name}/nll_{}", k + 1), *nll));
                }
            }
            let named: Vec<(&str, f64)> = values.iter().map(|(name, value)| (name.as_str(), *value)).collect();
            tracker.log(step, &named)?;
            let now = mean(&memory.scores[0].nll);
            if memory.best.is_none_or(|(_, best)| now < best) {
                memory.best = Some((step, now));
                memory.without_better = 0;
                file.save(&folder.inner("best")?, &averaged)?;
            } else {
                memory.without_better += 1;
            }
            tracker.curve(&experiment.name, &["train/loss", "valid/loss", "seen-artist/loss"])?;
            since = Window::start();
        }
        if let (Some(sample), true) = (sample.as_mut(), train.sample_every > 0 && due(train.sample_every)) {
            let model = LanguageModel::new(file.clone(), &optimizer.averaged(&parameters));
            sample(&model, step).map_err(|reason| TrainError::Sample { step, reason })?;
            since = Window::start();
        }
        if due(train.save_every) {
            checkpoint::save(&folder.checkpoint(), seed, step, &memory, &parameters, &optimizer)?;
        }
    }

    // Stopped, out of patience or done: leave everything behind that the next start needs.
    checkpoint::save(&folder.checkpoint(), seed, step, &memory, &parameters, &optimizer)?;
    tracker.curve(&experiment.name, &["train/loss", "valid/loss", "seen-artist/loss"])?;
    file.save(&folder.inner("last")?, &optimizer.averaged(&parameters))?;
    let stopped = step < train.steps && stop.load(Ordering::Relaxed);
    Ok(LmOutcome { step, best: memory.best, scores: memory.scores, stopped, parameters })
}

/// Scores a model folder's weights on a split: what `eval` reports beside the bigram.
pub fn score_model(config: &LmConfig, parameters: &Parameters, split: Split, source: &BatchSource) -> SplitScore {
    score(config, parameters, split, source, 0)
}

fn score(config: &LmConfig, parameters: &Parameters, split: Split, source: &BatchSource, most: usize) -> SplitScore {
    let model = Lm::new(config, &parameters.bind(&Device::flex()));
    let clips = if most == 0 { source.len() } else { most.min(source.len()) };
    let (mut nll, mut counts) = (vec![0.0; config.codebooks], vec![0; config.codebooks]);
    let mut at = 0;
    while at < clips {
        let batch = source.in_order(at);
        at += batch.lengths_b.len();
        let sequence = arrange(config, &batch, source.frame_rate());
        let text = captions(config, &batch, &vec![false; batch.lengths_b.len()]);
        let output = model.forward_with_text(&text, sequence.columns(), &mut Dropout::off());
        let loss = loss(config, &Default::default(), &output, sequence.expected());
        nll.iter_mut().zip(&loss.nll).for_each(|(sum, value)| *sum += value);
        counts.iter_mut().zip(&loss.counts).for_each(|(sum, value)| *sum += value);
    }
    let nll = nll.iter().zip(&counts).map(|(nll, &count)| nll / count.max(1) as f64).collect();
    SplitScore { split, nll }
}

/// There is at least one shard.
pub(crate) fn first_shard(shards: &[Shard]) -> Result<&Shard, TrainError> {
    let none = || TrainError::Mismatch { what: "no files,", found: "none".into(), expected: "at least one".into() };
    shards.first().ok_or_else(none)
}

/// All shards speak one codec, and the one the experiment expects.
fn check_shards(shards: &[Shard], experiment: &LmExperiment) -> Result<CodecSpec, TrainError> {
    let first = first_shard(shards)?;
    let differs = |what, found: String, expected: String| Err(TrainError::Mismatch { what, found, expected });
    for shard in shards {
        let (spec, expected) = (&shard.header().spec, &first.header().spec);
        if spec != expected {
            return differs("several settings, e.g.", format!("{spec:?}"), format!("{expected:?}"));
        }
    }
    let spec = &first.header().spec;
    let model = &experiment.model;
    if spec.codec.cardinality != model.cardinality {
        return differs("cardinality", spec.codec.cardinality.to_string(), model.cardinality.to_string());
    }
    if spec.codec.levels < model.codebooks {
        return differs("codebooks", spec.codec.levels.to_string(), format!("at least {}", model.codebooks));
    }
    if spec.text_width != model.text_width {
        return differs("text width", spec.text_width.to_string(), model.text_width.to_string());
    }
    Ok(spec.codec.clone())
}

/// The batches of some splits. Validation never sees augmented clips.
pub fn batches(
    experiment: &LmExperiment,
    shards: &Arc<Vec<Shard>>,
    splits: &[Split],
    training: bool,
) -> Result<BatchSource, TrainError> {
    let sizes = BatchSizes { batch: experiment.train.batch, levels: experiment.model.codebooks };
    experiment.data.source(shards, splits, training, sizes, experiment.seed)
}

/// The model's configuration with the codec's centroids, if the experiment asks for them.
fn with_codec(
    experiment: &LmExperiment,
    codec: &CodecSpec,
    vectors: Option<&CodecVectors>,
) -> Result<(LmConfig, Vec<f32>), TrainError> {
    let mut config = experiment.model.clone();
    if !experiment.train.codec_vectors {
        config.codec_width = 0;
        return Ok((config, Vec::new()));
    }
    let wanted = "the codec that made the shards, to be given with the run";
    let Some(vectors) = vectors else {
        return Err(TrainError::Setting { key: "train.codec_vectors", found: "true".into(), expected: wanted });
    };
    let size = codec.cardinality * vectors.width;
    if vectors.width == 0 || vectors.values.len() != codec.levels * size {
        return Err(TrainError::Mismatch {
            what: "a codec with centroid values in number of",
            found: (codec.levels * size).to_string(),
            expected: vectors.values.len().to_string(),
        });
    }
    config.codec_width = vectors.width;
    let values = vectors.values[..config.codebooks * size].to_vec();
    Ok((config, values))
}

/// Random weights, or those of the model folder that the experiment names. Clock, echoes and text in every frame may be
/// new: what the folder lacks of them starts fresh. Of a model of more codebooks the first ones are taken.
fn first_parameters(experiment: &LmExperiment, config: &LmConfig, vectors: &[f32]) -> Result<Parameters, TrainError> {
    let mut parameters = config.init(vectors, &mut Initialiser::seeded(experiment.seed))?;
    let Some(folder) = &experiment.start_from else { return Ok(parameters) };
    let (file, known) = LmFile::load(folder)?;
    let mut theirs = file.model;
    if config.codebooks < theirs.codebooks {
        theirs.codebooks = config.codebooks;
        theirs.delays.truncate(config.codebooks);
    }
    let keeps = (config.beat_clock || !theirs.beat_clock)
        && (config.text_in_every_frame || !theirs.text_in_every_frame)
        && (theirs.echo_beats.is_empty() || theirs.echo_beats == config.echo_beats);
    let grown = LmConfig {
        beat_clock: config.beat_clock,
        text_in_every_frame: config.text_in_every_frame,
        echo_beats: config.echo_beats.clone(),
        ..theirs
    };
    if !keeps || grown != *config {
        return Err(TrainError::Setting {
            key: "start_from",
            found: format!("{} with other sizes", folder.display()),
            expected: "a model folder whose lm.toml has the sizes of [model], or the same and more codebooks",
        });
    }
    for parameter in parameters.list_mut() {
        if let Some(known) = known.get(&parameter.name) {
            parameter.values.clone_from(&known.values);
        }
    }
    Ok(parameters)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// What was learned since the last line of metrics.
struct Window {
    started: Instant,
    frames: usize,
    nll: Vec<f64>,
    counts: Vec<usize>,
}

impl Window {
    fn start() -> Self {
        Self { started: Instant::now(), frames: 0, nll: Vec::new(), counts: Vec::new() }
    }

    fn add(&mut self, nll: &[f64], counts: &[usize], frames: usize) {
        self.nll.resize(nll.len(), 0.0);
        self.counts.resize(counts.len(), 0);
        self.nll.iter_mut().zip(nll).for_each(|(sum, value)| *sum += value);
        self.counts.iter_mut().zip(counts).for_each(|(sum, value)| *sum += value);
        self.frames += frames;
    }

    fn per_codebook(&self) -> Vec<f64> {
        self.nll.iter().zip(&self.counts).map(|(nll, &count)| nll / count.max(1) as f64).collect()
    }

    fn loss(&self) -> f64 {
        mean(&self.per_codebook())
    }

    fn frames_per_second(&self) -> f64 {
        self.frames as f64 / self.started.elapsed().as_secs_f64().max(1e-9)
    }

    fn metrics(&self) -> Vec<(String, f64)> {
        let mut out =
            vec![("train/loss".into(), self.loss()), ("train/frames_per_second".into(), self.frames_per_second())];
        let per_codebook = self.per_codebook();
        out.push(("train/perplexity_level_1".into(), per_codebook.first().map_or(f64::NAN, |nll| nll.exp())));
        for (k, nll) in per_codebook.iter().enumerate() {
            out.push((format!("train/nll_{}", k + 1), *nll));
        }
        out
    }
}
