//! What can go wrong in training: one variant per broken rule.

use std::path::{Path, PathBuf};

use mambo_data::DataError;
use mambo_model::diffusion::RefinerError;
use mambo_model::generate::LmFolderError;
use mambo_model::lm::LmConfigError;
use mambo_model::parameters::WriteError;
use mambo_model::sampler::SamplingError;
use mambo_model::weights::WeightsError;

/// Why a run stopped.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A file could not be read or written.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Cause.
        source: std::io::Error,
    },
    /// The experiment file breaks TOML or has wrong keys.
    #[error("{path}: {source}")]
    Toml {
        /// File.
        path: PathBuf,
        /// Cause.
        source: Box<toml::de::Error>,
    },
    /// A setting outside its range.
    #[error("experiment: {key} = {found}, expected {expected}")]
    Setting {
        /// Key in the experiment file.
        key: &'static str,
        /// Value found.
        found: String,
        /// What would do.
        expected: &'static str,
    },
    /// An experiment file whose settings cannot be.
    #[error("{path}: {source}")]
    File {
        /// File.
        path: PathBuf,
        /// Cause.
        source: Box<Self>,
    },
    /// The model's sizes cannot be.
    #[error("experiment: {0}")]
    Model(#[from] LmConfigError),
    /// The sampling settings cannot be.
    #[error("experiment: {0}")]
    Sampling(#[from] SamplingError),
    /// The corpus could not be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Shards and experiment do not fit together.
    #[error(
        "the shards have {what} {found}, the experiment expects {expected}; prepare them again or change the experiment"
    )]
    Mismatch {
        /// What differs.
        what: &'static str,
        /// In the shards.
        found: String,
        /// In the experiment.
        expected: String,
    },
    /// Weights could not be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Weights could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A model folder could not be written.
    #[error(transparent)]
    Folder(#[from] LmFolderError),
    /// A second stage could not be written.
    #[error(transparent)]
    Refiner(#[from] RefinerError),
    /// The run folder belongs to another experiment.
    #[error("{path}: this run folder was made by another experiment; use a fresh folder or the same settings")]
    OtherExperiment {
        /// The run folder's copy of the experiment.
        path: PathBuf,
    },
    /// A checkpoint cannot be continued.
    #[error("{path}: {reason}; delete it to start again")]
    Checkpoint {
        /// File.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Too many steps in a row had infinite gradients.
    #[error(
        "training diverged: gradients were not finite for {steps} steps up to step {step}; lower optim.rate or raise optim.warmup"
    )]
    Diverged {
        /// Last step.
        step: u64,
        /// Steps in a row.
        steps: u32,
    },
    /// The sample hook failed.
    #[error("a sample could not be made at step {step}: {reason}")]
    Sample {
        /// Step.
        step: u64,
        /// What it said.
        reason: String,
    },
    /// The curve could not be drawn.
    #[error("{path}: cannot draw the curve: {reason}")]
    Plot {
        /// File.
        path: PathBuf,
        /// What the plotter said.
        reason: String,
    },
}

/// A rule of a setting: its key, the value found, whether that will do, what would.
pub(crate) type Rule = (&'static str, String, bool, &'static str);

impl TrainError {
    /// Requires that no rule of the settings is broken; the first that is becomes the error.
    pub(crate) fn unless_all_hold(rules: impl IntoIterator<Item = Rule>) -> Result<(), Self> {
        match rules.into_iter().find(|rule| !rule.2) {
            Some((key, found, _, expected)) => Err(Self::Setting { key, found, expected }),
            None => Ok(()),
        }
    }

    /// Makes the wrapper of an I/O error on `path`.
    pub fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, action, source }
    }
}
