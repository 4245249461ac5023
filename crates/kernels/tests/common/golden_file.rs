//! Golden files made by tools/reference: what the scans are compared with.

use safetensors::{Dtype, SafeTensors};
use std::path::Path;

/// The bytes of `tests/golden/{name}.safetensors`.
pub fn read(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.safetensors"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// One case: inputs, upstream gradients, results and gradients, by name.
pub struct Golden<'a>(SafeTensors<'a>);

impl<'a> Golden<'a> {
    /// Opens the bytes of a file.
    pub fn open(bytes: &'a [u8]) -> Self {
        Self(SafeTensors::deserialize(bytes).expect("golden file"))
    }

    /// Values in f64.
    pub fn wide(&self, name: &str) -> Vec<f64> {
        let view = self.0.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        match view.dtype() {
            Dtype::F32 => view
                .data()
                .chunks_exact(4)
                .map(|b| f64::from(f32::from_le_bytes(b.try_into().expect("4 bytes"))))
                .collect(),
            Dtype::F64 => {
                view.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("8 bytes"))).collect()
            }
            other => panic!("{name}: unexpected {other:?}"),
        }
    }

    /// Values in f32.
    pub fn narrow(&self, name: &str) -> Vec<f32> {
        self.wide(name).into_iter().map(|value| value as f32).collect()
    }

    /// The case's sizes.
    pub fn sizes(&self) -> Vec<usize> {
        let view = self.0.tensor("sizes").expect("sizes");
        view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("8 bytes")) as usize).collect()
    }

    /// Asserts that `got` lies within `limit` of the tensor, relative to its norm.
    pub fn check<F: Copy + Into<f64>>(&self, name: &str, got: &[F], limit: f64) {
        let expected = self.wide(name);
        assert_eq!(got.len(), expected.len(), "{name}");
        let norm = expected.iter().map(|y| y * y).sum::<f64>().sqrt();
        let off = got.iter().zip(&expected).map(|(x, y)| ((*x).into() - y).powi(2)).sum::<f64>().sqrt() / norm;
        assert!(off <= limit, "{name}: {off:.2e} above {limit:.0e}");
    }
}
