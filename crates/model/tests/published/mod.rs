//! Golden files of models in the layouts of other libraries, and how far results lie from them.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;

/// A place among the golden files.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Tensors of a golden file.
pub struct Golden(Vec<u8>);

impl Golden {
    pub fn read(name: &str) -> Self {
        Self::open(&golden(&format!("{name}.safetensors")))
    }

    pub fn open(path: &Path) -> Self {
        Self(std::fs::read(path).unwrap())
    }

    /// An entry of the header's metadata.
    pub fn note(&self, key: &str) -> String {
        let (_, header) = SafeTensors::read_metadata(&self.0).unwrap();
        header.metadata().as_ref().unwrap()[key].clone()
    }

    fn values<const N: usize, T>(&self, name: &str, read: fn([u8; N]) -> T) -> Vec<T> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        file.tensor(name).unwrap().data().chunks_exact(N).map(|bytes| read(bytes.try_into().unwrap())).collect()
    }

    /// Stored as f32.
    pub fn narrow(&self, name: &str) -> Vec<f32> {
        self.values(name, f32::from_le_bytes)
    }

    /// Stored as f64.
    pub fn wide(&self, name: &str) -> Vec<f64> {
        self.values(name, f64::from_le_bytes)
    }

    /// Token ids.
    pub fn ids(&self, name: &str) -> Vec<u32> {
        self.values(name, u32::from_le_bytes)
    }

    /// Codes.
    pub fn codes(&self, name: &str) -> Vec<u16> {
        self.ids(name).iter().map(|code| u16::try_from(*code).unwrap()).collect()
    }
}

/// ‖a-b‖ / ‖b‖
pub fn distance(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let length = expected.iter().map(|value| value * value).sum::<f64>().sqrt();
    got.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum::<f64>().sqrt() / length
}

/// The largest error of a sample, and the peak of what is expected.
pub fn worst_and_peak(got: &[f32], expected: &[f64]) -> (f64, f64) {
    assert_eq!(got.len(), expected.len());
    let worst = got.iter().zip(expected).fold(0.0f64, |worst, (a, b)| worst.max((f64::from(*a) - b).abs()));
    (worst, expected.iter().fold(0.0f64, |peak, value| peak.max(value.abs())))
}
