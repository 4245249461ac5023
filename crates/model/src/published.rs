//! `config.json` of folders in the layout of other libraries.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// File of the sizes.
const CONFIG_FILE: &str = "config.json";

/// Why the sizes of a published model cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// They cannot be read.
    #[error(
        "{path}: cannot read the sizes of {kind}: {source}; expected a folder with config.json and model.safetensors"
    )]
    Io {
        /// File.
        path: PathBuf,
        /// What was expected there.
        kind: &'static str,
        /// Cause.
        source: std::io::Error,
    },
    /// They are no JSON, or some are missing.
    #[error("{path}: not the configuration of {kind}: {source}")]
    Json {
        /// File.
        path: PathBuf,
        /// What was expected there.
        kind: &'static str,
        /// Cause.
        source: serde_json::Error,
    },
    /// They cannot be, or are not supported.
    #[error("{path}: {rule}")]
    Rule {
        /// File.
        path: PathBuf,
        /// The rule that they break.
        rule: &'static str,
    },
}

/// What kind of model a folder says that it holds, by the names of Hugging Face; ours say nothing.
pub fn model_type(folder: &Path) -> Option<String> {
    #[derive(Deserialize)]
    struct Kind {
        model_type: String,
    }
    let text = std::fs::read(folder.join(CONFIG_FILE)).ok()?;
    Some(serde_json::from_slice::<Kind>(&text).ok()?.model_type)
}

/// Reads and checks the sizes of `kind` in a folder; `broken_rule` names the rule that they break, if any.
pub(crate) fn read_config<C: DeserializeOwned>(
    folder: &Path,
    kind: &'static str,
    broken_rule: impl FnOnce(&C) -> Option<&'static str>,
) -> Result<C, ConfigError> {
    let path = folder.join(CONFIG_FILE);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(source) => return Err(ConfigError::Io { path, kind, source }),
    };
    let config = match serde_json::from_slice(&text) {
        Ok(config) => config,
        Err(source) => return Err(ConfigError::Json { path, kind, source }),
    };
    match broken_rule(&config) {
        None => Ok(config),
        Some(rule) => Err(ConfigError::Rule { path, rule }),
    }
}
