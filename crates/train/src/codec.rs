//! Training of the house codec: spectra, then the fitted tokeniser, then the flow decoder by gradient descent.
//!
//! The tokeniser is frozen before the flow starts, and lies in every checkpoint beside it.

mod corpus;
mod flow;
mod linear;
mod tokeniser;

pub use corpus::TrackSpectrum;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use mambo_audio::AudioError;
use mambo_data::{DataError, Manifest, Split};
use mambo_model::codec::{FloorCodec, HouseCodec, HouseConfig, HouseError, ResidualQuantizer};
use mambo_model::parameters::Initialiser;
use serde::{Deserialize, Serialize};

use crate::checkpoint;
use crate::error::TrainError;
use crate::optim::{OptimConfig, Optimizer};
use crate::run::RunFolder;

/// One codec experiment; unknown keys are errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodecExperiment {
    /// Seed of everything random.
    pub seed: u64,
    /// Folder or file of the manifest.
    pub manifest: PathBuf,
    /// Tiers to learn from; empty for all.
    #[serde(default)]
    pub tiers: Vec<String>,
    /// Shape of the codec.
    #[serde(default)]
    pub codec: HouseConfig,
    /// The fitted part.
    #[serde(default)]
    pub fit: FitConfig,
    /// The flow.
    #[serde(default)]
    pub flow: FlowTrainConfig,
    /// Its optimiser.
    #[serde(default)]
    pub optim: OptimConfig,
}

/// Settings of the fitted part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FitConfig {
    /// Playback speeds every track is heard at (pitch and tempo change together).
    pub speeds: Vec<f64>,
    /// Most tokens used for components, codebooks and regression.
    pub tokens: usize,
    /// Rounds of k-means a codebook.
    pub rounds: usize,
    /// Weight of the partials (low bands minus their envelope) in the projection.
    pub detail: f64,
    /// 0 keeps the variances of the components, 1 makes them equal.
    pub whitening: f64,
    /// Ridge of the linear mean.
    pub ridge: f64,
}

impl Default for FitConfig {
    fn default() -> Self {
        Self { speeds: vec![1.0, 0.94, 1.06], tokens: 200_000, rounds: 10, detail: 2.0, whitening: 0.2, ridge: 10.0 }
    }
}

/// Settings of the flow's training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FlowTrainConfig {
    /// Optimiser steps.
    pub steps: u64,
    /// Crops in a batch.
    pub batch: usize,
    /// Tokens in a crop.
    pub tokens: usize,
    /// Steps between validations and checkpoints.
    pub every: u64,
    /// Large matrix products in bf16 with f32 sums where the processor has a unit for it; weights stay f32.
    pub bf16: bool,
}

impl Default for FlowTrainConfig {
    fn default() -> Self {
        Self { steps: 6000, batch: 16, tokens: 64, every: 200, bf16: false }
    }
}

/// Why the training of a codec stopped.
#[derive(Debug, thiserror::Error)]
pub enum CodecTrainError {
    /// Anything that language models meet too.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The corpus.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A track.
    #[error(transparent)]
    Audio(#[from] AudioError),
    /// The finished codec could not be written or opened.
    #[error(transparent)]
    Codec(#[from] HouseError),
    /// Too little sound.
    #[error(
        "{manifest}: the split `{split}` holds {found} tokens, at least {expected} are needed; fetch more music or choose other tiers"
    )]
    TooLittle {
        /// Manifest.
        manifest: PathBuf,
        /// Split.
        split: &'static str,
        /// Tokens there are.
        found: usize,
        /// Tokens needed.
        expected: usize,
    },
    /// The regression has no solution.
    #[error("the linear mean cannot be solved: the spectra are not finite or fit.ridge is too small")]
    Singular,
}

/// What a run leaves behind.
#[derive(Debug, Clone, Serialize)]
pub struct CodecSummary {
    /// Codec folder.
    pub folder: PathBuf,
    /// Steps of the flow finished.
    pub step: u64,
    /// Whether it was stopped from outside before its last step.
    pub stopped: bool,
    /// Latest validation loss of the averaged weights.
    pub validation: f64,
}

/// Trains the codec of `experiment` in the run folder `root`, going on from a checkpoint if there is one.
/// `stop`, set from outside, saves and ends the run after the step in hand.
pub fn run(experiment: &CodecExperiment, root: &Path, stop: &AtomicBool) -> Result<CodecSummary, CodecTrainError> {
    experiment.optim.validate()?;
    let folder = RunFolder::open(root, experiment)?;
    let train = load(experiment, Split::Train, &experiment.fit.speeds)?;
    let valid = load(experiment, Split::Valid, &[1.0])?;

    let config = &experiment.codec;
    let mut parameters = config.parameters(&mut Initialiser::seeded(experiment.seed));
    let mut optimizer = Optimizer::new(&experiment.optim, &parameters, experiment.flow.steps);
    let position = checkpoint::load::<()>(&folder.checkpoint(), experiment.seed, &mut parameters, &mut optimizer)?;
    let first = match position {
        Some(position) => position.step,
        None => {
            tokeniser::fit(experiment, &train, &mut parameters)?;
            checkpoint::save(&folder.checkpoint(), experiment.seed, 0, &(), &parameters, &optimizer)?;
            0
        }
    };
    let (step, validation) =
        flow::train(experiment, &folder, &train, &valid, first, stop, &mut parameters, &mut optimizer)?;
    let out = folder.inner("codec")?;
    HouseCodec::save(config, &optimizer.averaged(&parameters), &out)?;
    Ok(CodecSummary { folder: out, step, stopped: step < experiment.flow.steps, validation })
}

/// Fits the k-means floor codec to the same tracks and settings as the house codec of `experiment`.
pub fn floor(experiment: &CodecExperiment) -> Result<FloorCodec, CodecTrainError> {
    let spec = &experiment.codec.spec;
    let width = FloorCodec::width(spec.hop);
    let mut rows = Vec::new();
    for mono in corpus::sounds(&experiment.manifest, &experiment.tiers, Split::Train, spec.sample_rate)? {
        rows.extend(FloorCodec::features(spec.sample_rate, spec.hop, &mono));
    }
    let (mean, basis) = linear::principal_components(&rows, width, experiment.codec.latent);
    let latents = linear::project(&rows, &mean, &basis);
    drop(rows);
    let mut spec = spec.clone();
    spec.name = "k-means floor".into();
    let quantizer = ResidualQuantizer::fit(
        &latents,
        experiment.codec.latent,
        spec.levels,
        spec.cardinality,
        experiment.fit.rounds,
        experiment.seed,
        &mut |_, _| (),
    );
    Ok(FloorCodec::new(spec, mean, basis, quantizer))
}

fn load(experiment: &CodecExperiment, split: Split, speeds: &[f64]) -> Result<Vec<TrackSpectrum>, CodecTrainError> {
    let spectra = corpus::spectra(experiment, split, speeds)?;
    let found: usize = spectra.iter().map(TrackSpectrum::tokens).sum();
    let expected = match split {
        Split::Train => experiment.codec.spec.cardinality,
        _ => experiment.flow.tokens,
    };
    if found < expected || spectra.iter().all(|s| s.tokens() < experiment.flow.tokens) {
        return Err(CodecTrainError::TooLittle {
            manifest: Manifest::file_of(&experiment.manifest),
            split: split.name(),
            found,
            expected,
        });
    }
    tracing::info!(split = split.name(), tracks = spectra.len(), tokens = found, "spectra ready");
    Ok(spectra)
}
