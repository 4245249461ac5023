//! Checkpoints: one safetensors file with weights, moments, averages and the run's state as JSON.
//!
//! Written beside, synced and renamed: a crash leaves the old checkpoint or the new one, never half of one.
//! Law: training continued from a checkpoint equals training that never stopped, byte for byte.

use std::path::Path;

use mambo_model::parameters::{Parameters, Precision, Role, write_floats};
use mambo_model::weights::Weights;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::optim::{Optimizer, Slot};

/// Header key of the state.
const KEY: &str = "mambo";

/// What the header says; `S` is the loop's own state.
#[derive(Serialize, Deserialize)]
struct Header<S> {
    /// Steps finished. Random streams are functions of (seed, step): these two are their positions.
    step: u64,
    seed: u64,
    updates: u64,
    averaged: bool,
    state: S,
}

/// Where a run stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Position<S> {
    /// Steps finished.
    pub step: u64,
    /// The loop's own state.
    pub state: S,
}

/// Saves everything that the next step depends on.
pub fn save<S: Serialize>(
    path: &Path,
    seed: u64,
    step: u64,
    state: &S,
    parameters: &Parameters,
    optimizer: &Optimizer,
) -> Result<(), TrainError> {
    let mut tensors: Vec<(String, &[usize], &[f32])> = Vec::new();
    let mut averaged = false;
    for (parameter, slot) in parameters.list().iter().zip(optimizer.slots()) {
        let mut push = |kind: &str, values| {
            tensors.push((format!("{kind}.{}", parameter.name), parameter.shape.as_slice(), values));
        };
        push("weight", parameter.values.as_slice());
        if parameter.role == Role::Buffer {
            continue;
        }
        push("first", &slot.first);
        push("second", &slot.second);
        if !slot.ema.is_empty() {
            averaged = true;
            push("average", &slot.ema);
        }
    }
    let header = Header { step, seed, updates: optimizer.updates(), averaged, state };
    let header = serde_json::to_string(&header).map_err(|error| broken(path, error.to_string()))?;
    write_floats(path, tensors, Precision::F32, &header).map_err(TrainError::io(path, "write the checkpoint"))
}

/// Puts a checkpoint back; `None` when there is none.
pub fn load<S: DeserializeOwned>(
    path: &Path,
    seed: u64,
    parameters: &mut Parameters,
    optimizer: &mut Optimizer,
) -> Result<Option<Position<S>>, TrainError> {
    if !path.exists() {
        return Ok(None);
    }
    let file = Weights::open(path)?;
    let text = file.metadata(KEY).ok_or_else(|| broken(path, "no state in the header".into()))?;
    let header: Header<S> =
        serde_json::from_str(text).map_err(|error| broken(path, format!("state in the header: {error}")))?;
    if header.seed != seed {
        return Err(broken(path, format!("made with seed {}, this run has seed {seed}", header.seed)));
    }
    let mut slots = Vec::with_capacity(parameters.list().len());
    for parameter in parameters.list_mut() {
        let read = |kind: &str| file.f32(&format!("{kind}.{}", parameter.name), &parameter.shape);
        let values = read("weight")?;
        slots.push(if parameter.role == Role::Buffer {
            Slot::default()
        } else {
            let ema = if header.averaged { read("average")? } else { Vec::new() };
            Slot { first: read("first")?, second: read("second")?, ema }
        });
        parameter.values = values;
    }
    file.finish()?;
    optimizer.restore(header.updates, slots);
    Ok(Some(Position { step: header.step, state: header.state }))
}

fn broken(path: &Path, reason: String) -> TrainError {
    TrainError::Checkpoint { path: path.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::OptimConfig;

    fn parameters() -> Parameters {
        let mut parameters = Parameters::new();
        parameters.push("w", &[2], Role::Decayed, vec![1.0, -0.3]);
        parameters.push("fixed", &[1], Role::Buffer, vec![7.0]);
        parameters
    }

    #[test]
    fn what_is_saved_comes_back_and_bytes_repeat() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint.safetensors");
        let config = OptimConfig::default();
        let mut trained = parameters();
        let mut optimizer = Optimizer::new(&config, &trained, 10);
        let nothing: Option<Position<f64>> = load(&path, 1, &mut trained, &mut optimizer).unwrap();
        assert_eq!(nothing, None);
        for step in 0..3 {
            optimizer.step(step, &mut trained, &[vec![0.1, 0.7], vec![]]);
        }
        save(&path, 1, 3, &2.5, &trained, &optimizer).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let mut fresh = parameters();
        let mut restored = Optimizer::new(&config, &fresh, 10);
        let position = load(&path, 1, &mut fresh, &mut restored).unwrap();
        assert_eq!(position, Some(Position { step: 3, state: 2.5 }));
        assert_eq!((&fresh, &restored), (&trained, &optimizer));
        save(&path, 1, 3, &2.5, &fresh, &restored).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }

    #[test]
    fn a_wrong_seed_and_a_torn_file_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint.safetensors");
        let mut trained = parameters();
        let mut optimizer = Optimizer::new(&OptimConfig::default(), &trained, 10);
        save(&path, 1, 0, &(), &trained, &optimizer).unwrap();
        let error = load::<()>(&path, 2, &mut trained, &mut optimizer).unwrap_err().to_string();
        assert!(error.contains("seed 1") && error.contains("seed 2"), "{error}");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
        assert!(load::<()>(&path, 1, &mut trained, &mut optimizer).is_err());
    }
}
