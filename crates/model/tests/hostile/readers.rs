//! What is read of a file of each kind: all that any part of Mambo would read, errors spelled out. Nothing may panic.

use std::hint::black_box;
use std::io::Cursor;
use std::path::Path;

use mambo_model::checkpoint::{Checkpoint, CheckpointError, StoredTensor, ssm_ttm};
use mambo_model::weights::{Weights, WeightsError};

use crate::checkpoints::zip;

/// A safetensors file, each tensor as everything that it may be.
pub fn safetensors(bytes: &[u8]) {
    if let Err(error) = read_safetensors(bytes) {
        drop(error.to_string());
    }
}

fn read_safetensors(bytes: &[u8]) -> Result<(), WeightsError> {
    let weights = Weights::from_bytes(Path::new("hostile.safetensors"), bytes.to_vec())?;
    let entries: Vec<(String, Vec<usize>)> =
        weights.entries().map(|(name, _, shape)| (name.to_owned(), shape.to_vec())).collect();
    for (name, shape) in &entries {
        for error in [weights.f32(name, shape).err(), weights.i8(name, shape).err()].into_iter().flatten() {
            drop(error.to_string());
        }
        let &[rows, columns] = &shape[..] else { continue };
        match weights.quantised(name, rows, columns) {
            Ok(matrix) => {
                black_box((0..rows.min(1 << 16)).flat_map(|row| matrix.row(row)).sum::<f32>());
            }
            Err(error) => drop(error.to_string()),
        }
    }
    weights.ignore("a");
    weights.expect_metadata("format", "x-1")?;
    weights.finish()
}

/// A PyTorch checkpoint: everything in it, and what the language model and the codec make of it.
pub fn checkpoint(bytes: &[u8]) {
    if let Err(error) = read_checkpoint(bytes) {
        drop(error.to_string());
    }
}

fn read_checkpoint(bytes: &[u8]) -> Result<(), CheckpointError> {
    let open = || Checkpoint::from_source(Path::new("hostile.ckpt"), Cursor::new(bytes));
    let mut file = open()?;
    for key in ["hyper_parameters", "metadata", "global_step"] {
        let values = file.plain(key)?;
        black_box(values.iter().map(|(name, value)| name.len() + value.to_string().len()).sum::<usize>());
    }
    let tensors: Vec<(String, StoredTensor)> =
        file.tensors()?.into_iter().map(|(name, tensor)| (name, tensor.clone())).collect();
    // Many may share a storage; a reader asks for a known number of them.
    let mut room = file.length();
    for (name, tensor) in &tensors {
        let Some(left) = room.checked_sub(tensor.count() as u64) else { break };
        room = left;
        if let Err(error) = file.read(name, tensor) {
            drop(error.to_string());
        }
    }
    black_box((file.state_dict()?.len(), file.tensor_count()));
    let model = ssm_ttm::read_from(file, &mut |_, _| {})?;
    if let Err(error) = model.into_model() {
        drop(error.to_string());
    }
    Ok(())
}

/// A bare pickle, beside storages of six numbers each.
pub fn pickle(bytes: &[u8]) {
    let numbers = [0; 24];
    checkpoint(&zip(&[("archive/data.pkl", bytes), ("archive/data/0", &numbers), ("archive/data/1", &numbers)]));
}
