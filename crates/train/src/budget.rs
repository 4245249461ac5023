//! What an experiment will cost, before any of it is run.

use mambo_model::diffusion::RefinerConfig;
use mambo_model::lm::{Flops, LmConfigError, ParameterCounts, TrainingMemory, TrainingShape};
use mambo_model::parameters::{Initialiser, Role};
use serde::Serialize;

use crate::config::LmExperiment;
use crate::diffusion::DiffusionExperiment;

/// Costs of a language model experiment, by the accounting of [`mambo_model::lm::LmConfig`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Budget {
    /// Trained parameters by part.
    pub parameters: ParameterCounts,
    /// Operations of one place of the sequence in a pass forwards.
    pub flops_per_place: Flops,
    /// Operations of one column of one stream while decoding, in the middle of a clip.
    pub flops_per_decoded_column: Flops,
    /// What is trained on.
    pub training: Training,
    /// Bytes that a training step holds at its peak.
    pub memory: TrainingMemory,
    /// What decoding holds.
    pub decoding: Decoding,
}

/// How much is trained.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Training {
    /// Optimiser steps.
    pub steps: u64,
    /// Clips in a step.
    pub clips_per_step: usize,
    /// Columns in a clip.
    pub columns: usize,
    /// Text tokens in a clip, at most.
    pub text_tokens: usize,
    /// Floating-point operations of a step, forwards and backwards.
    pub flops_per_step: f64,
    /// Of the whole training.
    pub flops: f64,
}

/// What decoding holds, in bytes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Decoding {
    /// Weights in f32; half in f16.
    pub weights: usize,
    /// One stream's state at the end of a clip; guidance takes two or three streams.
    pub state: usize,
    /// True when the state never grows.
    pub constant: bool,
}

/// Costs of a second-stage experiment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DiffusionBudget {
    /// Trained parameters.
    pub parameters: usize,
    /// Operations of a frame in a pass forwards.
    pub flops_per_frame: u64,
    /// What is trained on.
    pub training: Training,
}

impl DiffusionExperiment {
    /// What it will cost for this second stage, which is its own.
    pub fn budget(&self, refiner: &RefinerConfig) -> DiffusionBudget {
        let (train, columns) = (&self.train, self.data.frames);
        let flops_per_frame = refiner.flops(self.data.max_text);
        // A pass backwards is twice a pass forwards.
        let flops_per_step = (3 * (train.batch * columns) as u64 * flops_per_frame) as f64;
        let all = refiner.parameters(&mut Initialiser::blank());
        let trained = all.list().iter().filter(|parameter| parameter.role != Role::Buffer);
        let parameters = trained.map(|parameter| parameter.shape.iter().product::<usize>()).sum();
        DiffusionBudget {
            parameters,
            flops_per_frame,
            training: Training {
                steps: train.steps,
                clips_per_step: train.batch,
                columns,
                text_tokens: self.data.max_text,
                flops_per_step,
                flops: train.steps as f64 * flops_per_step,
            },
        }
    }
}

impl LmExperiment {
    /// What it will cost.
    pub fn budget(&self) -> Result<Budget, LmConfigError> {
        let (model, train, text) = (&self.model, &self.train, self.data.max_text);
        let columns = self.data.frames;
        let parameters = model.parameter_counts()?;
        let clips_per_step = train.batch * train.accumulate;
        let flops_per_step = clips_per_step as f64 * model.clip_flops(columns, text) as f64;
        let half = columns / 2;
        Ok(Budget {
            flops_per_place: model.training_flops(model.places(columns, text), text),
            flops_per_decoded_column: model.decoding_flops(half, text),
            training: Training {
                steps: train.steps,
                clips_per_step,
                columns,
                text_tokens: text,
                flops_per_step,
                flops: train.steps as f64 * flops_per_step,
            },
            memory: model.training_memory(TrainingShape {
                batch: train.batch,
                columns,
                text,
                accumulates: train.accumulate > 1,
                averages: self.optim.ema > 0.0,
                checkpoints: train.checkpoint_blocks,
            })?,
            decoding: Decoding {
                weights: 4 * parameters.total,
                state: model.state_bytes(columns, text),
                constant: model.state_bytes(columns, text) == model.state_bytes(2 * columns, text),
            },
            parameters,
        })
    }
}
