//! A table of f32 rows: patches by tags, patches by features.

use crate::EvalError;

/// Row-major values `[rows, width]`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rows {
    width: usize,
    values: Vec<f32>,
}

impl Rows {
    /// Wraps row-major values. An incomplete last row is an error of the caller.
    ///
    /// # Panics
    /// If the values do not fill rows of `width`.
    pub fn new(width: usize, values: Vec<f32>) -> Self {
        assert!(width > 0 && values.len().is_multiple_of(width), "{} values in rows of {width}", values.len());
        Self { width, values }
    }

    /// No rows yet.
    pub fn empty(width: usize) -> Self {
        Self::new(width, Vec::new())
    }

    /// Number of rows.
    pub fn count(&self) -> usize {
        self.values.len() / self.width.max(1)
    }

    /// Values in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// One row.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.width..(index + 1) * self.width]
    }

    /// All rows in order.
    pub fn iter(&self) -> std::slice::ChunksExact<'_, f32> {
        self.values.chunks_exact(self.width.max(1))
    }

    /// Appends the rows of another table.
    pub fn append(&mut self, other: &Self) -> Result<(), EvalError> {
        if self.width != other.width {
            return Err(EvalError::Width { expected: self.width, found: other.width });
        }
        self.values.extend_from_slice(&other.values);
        Ok(())
    }

    /// The chosen rows, in the order given.
    pub fn select(&self, order: &[usize]) -> Self {
        Self::new(self.width, order.iter().flat_map(|&index| self.row(index)).copied().collect())
    }

    /// Mean of all rows; `None` without rows.
    pub fn mean(&self) -> Option<Vec<f64>> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let mut sums = vec![0.0; self.width];
        for row in self.iter() {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += f64::from(*value);
            }
        }
        sums.iter_mut().for_each(|sum| *sum /= count as f64);
        Some(sums)
    }

    /// Refuses values that are not finite.
    pub fn check_finite(&self, what: &str) -> Result<(), EvalError> {
        if self.values.iter().all(|value| value.is_finite()) {
            return Ok(());
        }
        Err(EvalError::NotFinite { what: what.to_owned() })
    }
}
