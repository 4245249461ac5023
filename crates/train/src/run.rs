//! The run folder: `experiment.toml`, `checkpoint.safetensors`, metrics, curve, samples and model folders.

use std::path::{Path, PathBuf};

use mambo_model::parameters::write_atomically;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::TrainError;

/// Paths of one run.
#[derive(Debug, Clone)]
pub struct RunFolder {
    root: PathBuf,
}

impl RunFolder {
    /// Opens or makes the folder of `experiment`. A folder made by another experiment is refused: mixing
    /// them would break the promise that a resumed run equals an uninterrupted one.
    pub fn open<E: Serialize + DeserializeOwned + PartialEq>(root: &Path, experiment: &E) -> Result<Self, TrainError> {
        std::fs::create_dir_all(root).map_err(TrainError::io(root, "make the run folder"))?;
        let path = root.join("experiment.toml");
        if path.exists() {
            let before: E = read_toml(&path)?;
            if before != *experiment {
                return Err(TrainError::OtherExperiment { path });
            }
        } else {
            let text = toml::to_string_pretty(experiment).expect("experiments are plain data");
            write_atomically(&path, text.as_bytes()).map_err(TrainError::io(&path, "write the experiment"))?;
        }
        Ok(Self { root: root.to_owned() })
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The checkpoint file.
    pub fn checkpoint(&self) -> PathBuf {
        self.root.join("checkpoint.safetensors")
    }

    /// A folder inside, made if missing.
    pub fn inner(&self, name: &str) -> Result<PathBuf, TrainError> {
        let path = self.root.join(name);
        std::fs::create_dir_all(&path).map_err(TrainError::io(&path, "make the folder"))?;
        Ok(path)
    }
}

/// Reads an experiment file and checks its values; the error names the file.
pub fn read_experiment<E: DeserializeOwned>(
    path: &Path,
    check: impl FnOnce(&E) -> Result<(), TrainError>,
) -> Result<E, TrainError> {
    let experiment = read_toml(path)?;
    match check(&experiment) {
        Ok(()) => Ok(experiment),
        Err(source) => Err(TrainError::File { path: path.to_owned(), source: Box::new(source) }),
    }
}

/// Reads a typed TOML file.
pub fn read_toml<E: DeserializeOwned>(path: &Path) -> Result<E, TrainError> {
    let text = std::fs::read_to_string(path).map_err(TrainError::io(path, "read"))?;
    toml::from_str(&text).map_err(|source| TrainError::Toml { path: path.to_owned(), source: Box::new(source) })
}
