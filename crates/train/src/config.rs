//! One TOML file is one runnable experiment. Unknown keys are errors; every value is checked before work starts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mambo_data::Split;
use mambo_data::batch::{BatchOptions, BatchSource};
use mambo_data::shard::Shard;
use mambo_model::lm::{LmConfig, LossConfig};
use mambo_model::ops::{MatrixPrecision, bf16_unavailable};
use mambo_model::sampler::Sampling;
use serde::{Deserialize, Serialize};

use crate::error::{Rule, TrainError};
use crate::optim::OptimConfig;
use crate::run::read_experiment;

/// A language model experiment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LmExperiment {
    /// Name, used as the curve's title.
    pub name: String,
    /// Seed of everything random.
    pub seed: u64,
    /// What to learn from.
    pub data: DataConfig,
    /// Shapes of the model.
    pub model: LmConfig,
    /// Model folder whose weights training starts from, instead of random ones.
    #[serde(default)]
    pub start_from: Option<PathBuf>,
    /// How the loss is formed.
    #[serde(default)]
    pub loss: LossConfig,
    /// The optimiser.
    #[serde(default)]
    pub optim: OptimConfig,
    /// The loop.
    pub train: LoopConfig,
    /// Settings of the samples made while training, saved with the model.
    #[serde(default)]
    pub sampling: Sampling,
}

/// What to learn from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Folders of shards made by `mambo prepare`.
    pub shards: Vec<PathBuf>,
    /// Frames in a crop.
    pub frames: usize,
    /// Licence tiers to learn from; empty for all.
    #[serde(default)]
    pub tiers: Vec<String>,
    /// Leave augmented versions out.
    #[serde(default)]
    pub unaltered_only: bool,
    /// Text tokens at most.
    #[serde(default = "max_text")]
    pub max_text: usize,
    /// Splits to validate on, e.g. `["valid", "seen-artist"]`; the first one chooses the best weights.
    #[serde(default = "validate_on")]
    pub validate_on: Vec<Split>,
    /// Licence tiers to validate on; empty for all.
    #[serde(default)]
    pub validate_tiers: Vec<String>,
}

impl DataConfig {
    /// Batches of some splits. Validation never sees augmented clips.
    pub(crate) fn source(
        &self,
        shards: &Arc<Vec<Shard>>,
        splits: &[Split],
        training: bool,
        sizes: BatchSizes,
        seed: u64,
    ) -> Result<BatchSource, TrainError> {
        Ok(BatchSource::new(
            Arc::clone(shards),
            BatchOptions {
                splits: splits.to_vec(),
                tiers: if training { self.tiers.clone() } else { self.validate_tiers.clone() },
                unaltered_only: !training || self.unaltered_only,
                batch: sizes.batch,
                frames: self.frames,
                levels: sizes.levels,
                max_text: self.max_text,
                seed,
            },
        )?)
    }
}

/// Sizes of a batch that the data does not decide.
pub(crate) struct BatchSizes {
    /// Clips.
    pub(crate) batch: usize,
    /// Codebooks.
    pub(crate) levels: usize,
}

fn max_text() -> usize {
    64
}

fn validate_on() -> Vec<Split> {
    vec![Split::Valid, Split::SeenArtist]
}

/// The loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoopConfig {
    /// Optimiser steps.
    pub steps: u64,
    /// Clips in a pass.
    pub batch: usize,
    /// Passes averaged into one optimiser step.
    #[serde(default = "one")]
    pub accumulate: usize,
    /// Dropout after every residual layer.
    #[serde(default)]
    pub dropout: f32,
    /// Probability that a clip is trained without its caption.
    #[serde(default)]
    pub caption_dropout: f32,
    /// Probability that a clip trained without its caption goes without beat clock and echoes too, for
    /// `sampling.beat_guidance`.
    #[serde(default)]
    pub beat_dropout: f32,
    /// Probability that an input code is replaced by another one of its codebook.
    #[serde(default)]
    pub input_corruption: f32,
    /// Share of the columns that lie in stretches of inputs that stand still while the targets go on.
    #[serde(default)]
    pub held_inputs: f32,
    /// Probability that an input code is one that the model itself would have drawn there (scheduled sampling in
    /// parallel, Mihaylova and Martins 2019), in every other pass: costs one more forward pass there.
    #[serde(default)]
    pub own_inputs: f32,
    /// Start embeddings and heads from the codec's centroids.
    #[serde(default)]
    pub codec_vectors: bool,
    /// Large matrix products in bf16 with f32 sums where the processor has a unit for it; weights stay f32.
    #[serde(default)]
    pub bf16: bool,
    /// Keep only what goes into each block and compute its insides again in the pass backwards: a third more time for a
    /// fraction of the memory.
    #[serde(default)]
    pub checkpoint_blocks: bool,
    /// Steps between lines of metrics.
    #[serde(default = "ten")]
    pub log_every: u64,
    /// Steps between validations; 0 validates only at the end.
    #[serde(default)]
    pub validate_every: u64,
    /// Clips per split looked at in a validation; 0 for all.
    #[serde(default)]
    pub validate_clips: usize,
    /// Steps between checkpoints; 0 saves only at the end.
    #[serde(default)]
    pub save_every: u64,
    /// Steps between samples; 0 makes none.
    #[serde(default)]
    pub sample_every: u64,
    /// Stop after this many validations without a better one; 0 never.
    #[serde(default)]
    pub patience: u32,
}

/// The precision that `bf16` asks for; says so where the processor cannot give it.
pub(crate) fn precision(bf16: bool) -> MatrixPrecision {
    match bf16_unavailable() {
        Some(reason) if bf16 => tracing::warn!("bf16 was asked for, but {reason}: training computes in f32"),
        _ => {}
    }
    if bf16 { MatrixPrecision::Bf16 } else { MatrixPrecision::F32 }
}

fn one() -> usize {
    1
}

fn ten() -> u64 {
    10
}

impl LmExperiment {
    /// Reads and checks an experiment file.
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        read_experiment(path, Self::validate)
    }

    /// Checks every range.
    pub fn validate(&self) -> Result<(), TrainError> {
        self.model.validate()?;
        self.optim.validate()?;
        self.sampling.validate()?;
        let train = &self.train;
        let share = |value: f32| (0.0..1.0).contains(&value);
        let rules: [Rule; 14] = [
            ("data.frames", self.data.frames.to_string(), self.data.frames > 1, "2 or more"),
            ("data.max_text", self.data.max_text.to_string(), self.data.max_text > 0, "1 or more"),
            ("train.steps", train.steps.to_string(), train.steps > 0, "1 or more"),
            ("train.batch", train.batch.to_string(), train.batch > 0, "1 or more"),
            ("train.accumulate", train.accumulate.to_string(), train.accumulate > 0, "1 or more"),
            ("train.log_every", train.log_every.to_string(), train.log_every > 0, "1 or more"),
            ("train.dropout", train.dropout.to_string(), share(train.dropout), "0 to below 1"),
            (
                "train.caption_dropout",
                train.caption_dropout.to_string(),
                (0.0..=1.0).contains(&train.caption_dropout),
                "0 to 1",
            ),
            ("train.beat_dropout", train.beat_dropout.to_string(), (0.0..=1.0).contains(&train.beat_dropout), "0 to 1"),
            (
                "train.input_corruption",
                train.input_corruption.to_string(),
                share(train.input_corruption),
                "0 to below 1",
            ),
            ("train.held_inputs", train.held_inputs.to_string(), share(train.held_inputs), "0 to below 1"),
            ("train.own_inputs", train.own_inputs.to_string(), share(train.own_inputs), "0 to below 1"),
            (
                "loss.label_smoothing",
                self.loss.label_smoothing.to_string(),
                share(self.loss.label_smoothing),
                "0 to below 1",
            ),
            (
                "loss.level_weights",
                format!("{:?}", self.loss.level_weights),
                self.loss.level_weights.len() <= self.model.codebooks
                    && self.loss.level_weights.iter().all(|weight| *weight >= 0.0 && weight.is_finite())
                    && (self.loss.level_weights.len() < self.model.codebooks
                        || self.loss.level_weights.iter().any(|weight| *weight > 0.0)),
                "at most one per codebook, none negative, not all zero",
            ),
        ];
        TrainError::unless_all_hold(rules)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        name = "x"
        seed = 1
        [data]
        shards = ["shards"]
        frames = 64
        [model]
        codebooks = 1
        delays = [0]
        cardinality = 16
        d_model = 32
        layers = 1
        d_state = 16
        head_dim = 16
        text_width = 8
        head = "tied"
        [train]
        steps = 2
        batch = 2
    "#;

    #[test]
    fn shortest_experiment_is_complete() {
        let experiment: LmExperiment = toml::from_str(TEXT).unwrap();
        experiment.validate().unwrap();
        let again: LmExperiment = toml::from_str(&toml::to_string_pretty(&experiment).unwrap()).unwrap();
        assert_eq!(again, experiment);
    }

    #[test]
    fn unknown_keys_and_wrong_values_are_named() {
        let unknown = TEXT.replace("batch = 2", "batch = 2\nbatches = 3");
        assert!(toml::from_str::<LmExperiment>(&unknown).unwrap_err().to_string().contains("batches"));
        for (from, to, key) in [
            ("steps = 2", "steps = 0", "train.steps"),
            ("batch = 2", "batch = 2\ndropout = 1.0", "train.dropout"),
            ("delays = [0]", "delays = [0, 1]", "model.delays"),
            ("head_dim = 16", "head_dim = 15", "model.head_dim"),
            ("[train]", "[optim]\nbeta2 = 1.0\n[train]", "optim.beta2"),
            ("[train]", "[sampling]\ntop_p = 0.0\n[train]", "top-p"),
            ("[train]", "[loss]\nlevel_weights = [0.0]\n[train]", "loss.level_weights"),
        ] {
            let experiment: LmExperiment = toml::from_str(&TEXT.replace(from, to)).unwrap();
            let message = experiment.validate().unwrap_err().to_string();
            assert!(message.contains(key), "{message}");
        }
    }
}
