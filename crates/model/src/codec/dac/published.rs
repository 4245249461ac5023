//! The original checkpoint: a PyTorch file with weight-normed layers under other names, and its sizes as metadata.

use std::collections::BTreeMap;
use std::path::Path;

use super::config::MOST_BLOCKS;
use super::{DacConfig, DacError, Reader};
use crate::checkpoint::{Checkpoint, Plain, StoredTensor};
use crate::published::ConfigError;
use crate::weights::{WeightsError, join_weight_norm, require_none};

/// The original file, read tensor by tensor under the names of Hugging Face's layout.
pub(super) struct Published {
    checkpoint: Checkpoint,
    /// Number of blocks of encoder and decoder.
    blocks: [usize; 2],
    /// Tensors that have not been read.
    unread: BTreeMap<String, StoredTensor>,
}

impl Published {
    pub(super) fn open(path: &Path) -> Result<(DacConfig, Self), DacError> {
        let checkpoint = Checkpoint::open(path)?;
        let settings = checkpoint.plain("metadata")?;
        let number = |name: &'static str| {
            let key = format!("kwargs.{name}");
            match settings.iter().find(|(place, _)| *place == key) {
                Some((_, Plain::Int(number))) => usize::try_from(*number).map_err(|_| name),
                _ => Err(name),
            }
        };
        let list = |name: &str| -> Vec<usize> {
            let at = |index: usize| {
                let key = format!("kwargs.{name}.{index}");
                match settings.iter().find(|(place, _)| *place == key) {
                    Some((_, Plain::Int(number))) => usize::try_from(*number).ok(),
                    _ => None,
                }
            };
            // One more than are allowed; a hostile list may be as long as it likes.
            (0..=MOST_BLOCKS).map_while(at).collect()
        };
        let read = || {
            Ok(DacConfig {
                encoder_hidden_size: number("encoder_dim")?,
                downsampling_ratios: list("encoder_rates"),
                decoder_hidden_size: number("decoder_dim")?,
                upsampling_ratios: list("decoder_rates"),
                n_codebooks: number("n_codebooks")?,
                codebook_size: number("codebook_size")?,
                codebook_dim: number("codebook_dim")?,
                sampling_rate: u32::try_from(number("sample_rate")?).map_err(|_| "sample_rate")?,
            })
        };
        let config = read().map_err(|name| DacError::Metadata { path: path.to_owned(), name })?;
        if let Some(rule) = config.broken_rule() {
            return Err(ConfigError::Rule { path: path.to_owned(), rule }.into());
        }
        if matches!(number("latent_dim"), Ok(latent) if latent != config.latent()) {
            let rule = "latent_dim other than the encoder's last width is not supported";
            return Err(ConfigError::Rule { path: path.to_owned(), rule }.into());
        }
        let blocks = [config.downsampling_ratios.len(), config.upsampling_ratios.len()];
        let unread = checkpoint.state_dict()?.into_iter().map(|(name, tensor)| (name.to_owned(), tensor.clone()));
        let unread = unread.collect();
        Ok((config, Self { checkpoint, blocks, unread }))
    }

    /// Every tensor must have been read.
    pub(super) fn finish(&self) -> Result<(), DacError> {
        Ok(require_none(self.checkpoint.path(), self.unread.keys().map(String::as_str))?)
    }

    fn stored(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, DacError> {
        let path = || self.checkpoint.path().to_owned();
        let Some(tensor) = self.unread.remove(name) else {
            return Err(WeightsError::Missing { path: path(), name: name.to_owned() }.into());
        };
        if tensor.shape() != shape {
            let found = tensor.shape().to_vec();
            let (name, expected) = (name.to_owned(), shape.to_vec());
            return Err(WeightsError::Shape { path: path(), name, found, expected }.into());
        }
        Ok(self.checkpoint.read(name, &tensor)?)
    }
}

impl Reader for Published {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, DacError> {
        let (layer, part) = name.rsplit_once('.').unwrap_or(("", name));
        let layer = original(layer, self.blocks);
        if part != "weight" || layer.ends_with(".codebook") {
            // Snakes are layers of their own there, and their only tensor is alpha.
            return self.stored(&format!("{layer}.{part}"), shape);
        }
        let lengths = self.stored(&format!("{layer}.weight_g"), &[shape[0], 1, 1])?;
        let mut weight = self.stored(&format!("{layer}.weight_v"), shape)?;
        join_weight_norm(&lengths, &mut weight);
        Ok(weight)
    }
}

/// The original's name of a layer: a place in nested lists instead of a word.
fn original(layer: &str, [encoder, decoder]: [usize; 2]) -> String {
    let parts: Vec<&str> = layer.split('.').collect();
    let next = |index: &str, by: usize| index.parse::<usize>().unwrap_or(0) + by;
    // Place of a layer in a residual unit.
    let inner = |name: &str| match name {
        "snake1" => 0,
        "conv1" => 1,
        "snake2" => 2,
        _ => 3,
    };
    match parts[..] {
        ["encoder", "conv1"] => "encoder.block.0".into(),
        ["encoder", "snake1"] => format!("encoder.block.{}", encoder + 1),
        ["encoder", "conv2"] => format!("encoder.block.{}", encoder + 2),
        ["encoder", "block", block, unit, layer] => {
            let unit = next(unit.trim_start_matches("res_unit"), 0) - 1;
            format!("encoder.block.{}.block.{unit}.block.{}", next(block, 1), inner(layer))
        }
        ["encoder", "block", block, layer] => {
            format!("encoder.block.{}.block.{}", next(block, 1), if layer == "snake1" { 3 } else { 4 })
        }
        ["decoder", "conv1"] => "decoder.model.0".into(),
        ["decoder", "snake1"] => format!("decoder.model.{}", decoder + 1),
        ["decoder", "conv2"] => format!("decoder.model.{}", decoder + 2),
        ["decoder", "block", block, unit, layer] => {
            let unit = next(unit.trim_start_matches("res_unit"), 1);
            format!("decoder.model.{}.block.{unit}.block.{}", next(block, 1), inner(layer))
        }
        ["decoder", "block", block, layer] => {
            format!("decoder.model.{}.block.{}", next(block, 1), if layer == "snake1" { 0 } else { 1 })
        }
        _ => layer.to_owned(),
    }
}
