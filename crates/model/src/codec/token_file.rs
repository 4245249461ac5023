//! Codec tokens as a file: safetensors with one tensor `codes` `[levels, frames]` of u16, and what they mean as metadata.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize};

use crate::parameters::{WriteError, write_atomically};
use crate::tokens::{CodecSpec, CodecTokens};
use crate::weights::{Weights, WeightsError};

/// Value of the metadata entry `format`.
const FORMAT: &str = "mambo-tokens-1";

/// Tokens of a sound, as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenFile {
    /// The codes and what they mean.
    pub tokens: CodecTokens,
    /// Samples of the sound, which need not fill its last frame.
    pub samples: u64,
    /// The [`super::fingerprint`] of the codec that made them.
    pub codec: String,
}

impl TokenFile {
    /// Writes the file, over one that is there.
    ///
    /// # Errors
    /// [`WriteError`], naming the file.
    pub fn save(&self, path: &Path) -> Result<(), WriteError> {
        let bytes: Vec<u8> = self.tokens.codes.iter().flat_map(|code| code.to_le_bytes()).collect();
        let shape = vec![self.tokens.spec.levels, self.tokens.frames];
        let view = TensorView::new(Dtype::U16, shape, &bytes).expect("codes fill levels and frames");
        let metadata = HashMap::from([
            ("format".to_owned(), FORMAT.to_owned()),
            ("spec".to_owned(), serde_json::to_string(&self.tokens.spec).expect("a spec is plain data")),
            ("samples".to_owned(), self.samples.to_string()),
            ("codec".to_owned(), self.codec.clone()),
        ]);
        let file = serialize([("codes", view)], Some(metadata)).expect("one tensor of a known layout");
        write_atomically(path, &file).map_err(|source| WriteError { path: path.to_owned(), source })
    }

    /// Reads a file. Every code is one of the codec that it names.
    ///
    /// # Errors
    /// [`WeightsError`], naming the file and what is wrong with it.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let file = Weights::open(path)?;
        file.expect_metadata("format", FORMAT)?;
        let wrong = |key: &str, expected: &str| file.wrong_metadata(key, expected);
        let spec: CodecSpec = file
            .metadata("spec")
            .and_then(|text| serde_json::from_str(text).ok())
            .filter(|spec: &CodecSpec| spec.hop > 0 && spec.sample_rate > 0 && (1..=65_535).contains(&spec.cardinality))
            .ok_or_else(|| wrong("spec", "the specification of a codec"))?;
        let frames = match file.shape("codes") {
            Some(&[levels, frames]) if levels == spec.levels => frames,
            _ => 0,
        };
        let codes = file.u16("codes", &[spec.levels, frames])?;
        file.finish()?;
        let full = frames as u64 * u64::from(spec.hop);
        let samples = file
            .metadata("samples")
            .and_then(|text| text.parse().ok())
            .filter(|samples| *samples <= full)
            .ok_or_else(|| wrong("samples", "a number of samples that the frames hold"))?;
        let codec = file.metadata("codec").ok_or_else(|| wrong("codec", "a fingerprint"))?.to_owned();
        let tokens = CodecTokens::new(spec, codes, frames)
            .map_err(|error| WeightsError::Format { path: path.to_owned(), reason: error.to_string() })?;
        Ok(Self { tokens, samples, codec })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_read_and_what_does_not_fit_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.safetensors");
        let spec = CodecSpec { name: "x".into(), sample_rate: 8000, hop: 10, levels: 2, cardinality: 7 };
        let tokens = CodecTokens::new(spec, vec![0, 1, 2, 6, 5, 4], 3).expect("codes");
        let file = TokenFile { tokens, samples: 25, codec: "abc".into() };
        file.save(&path).expect("saved");
        assert_eq!(TokenFile::open(&path).expect("opened"), file);
        let mut wrong = file.clone();
        wrong.tokens.codes[0] = 7;
        wrong.save(&path).expect("saved");
        let error = TokenFile::open(&path).expect_err("a code that is none").to_string();
        assert!(error.contains("a.safetensors") && error.contains("code 7"), "{error}");
        let wrong = TokenFile { samples: 31, ..file };
        wrong.save(&path).expect("saved");
        let error = TokenFile::open(&path).expect_err("too many samples").to_string();
        assert!(error.contains("samples"), "{error}");
    }
}
