//! Neighbouring columns of a row-major matrix, so that the parts of one projection are read and written in place.
#![allow(unsafe_code)]

use crate::threads::Shared;

/// Some columns of a matrix, to read.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a, F> {
    values: &'a [F],
    stride: usize,
    first: usize,
    width: usize,
}

impl<'a, F> Columns<'a, F> {
    /// The columns of row-major `values`, in groups of the given widths, which make up a row together.
    ///
    /// # Panics
    /// If the values are not whole rows.
    pub fn split<const N: usize>(values: &'a [F], widths: [usize; N]) -> [Self; N] {
        let (stride, firsts) = places(values.len(), widths);
        std::array::from_fn(|i| Self { values, stride, first: firsts[i], width: widths[i] })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.values.len() / self.stride.max(1)
    }

    /// Number of columns.
    pub fn width(&self) -> usize {
        self.width
    }

    pub(crate) fn check(&self, name: &str, rows: usize, width: usize) {
        assert_eq!((self.rows(), self.width), (rows, width), "attention {name}: rows and width");
    }

    /// `width` values of a row from column `from` on.
    pub(crate) fn part(&self, row: usize, from: usize, width: usize) -> &'a [F] {
        &self.values[row * self.stride + self.first + from..][..width]
    }
}

/// Some columns of a matrix, to write; no two share a value.
pub struct ColumnsMut<'a> {
    values: Shared<'a, f32>,
    rows: usize,
    stride: usize,
    first: usize,
    width: usize,
}

impl<'a> ColumnsMut<'a> {
    /// As [`Columns::split`].
    ///
    /// # Panics
    /// If the values are not whole rows.
    pub fn split<const N: usize>(values: &'a mut [f32], widths: [usize; N]) -> [Self; N] {
        let (stride, firsts) = places(values.len(), widths);
        let rows = values.len() / stride.max(1);
        let values = Shared::new(values);
        std::array::from_fn(|i| Self { values, rows, stride, first: firsts[i], width: widths[i] })
    }

    pub(crate) fn check(&self, name: &str, rows: usize, width: usize) {
        assert_eq!((self.rows, self.width), (rows, width), "attention {name}: rows and width");
    }

    /// `width` values of a row from column `from` on.
    ///
    /// # Safety
    /// No other task may touch the same values while the result lives.
    pub(crate) unsafe fn part(&self, row: usize, from: usize, width: usize) -> &'a mut [f32] {
        assert!(from + width <= self.width, "columns {from}+{width} of {}", self.width);
        // SAFETY: these columns belong to this value alone; the rest is the caller's promise.
        unsafe { self.values.part(row * self.stride + self.first + from, width) }
    }
}

/// Length of a row of the given widths, and where each of them begins.
fn places<const N: usize>(length: usize, widths: [usize; N]) -> (usize, [usize; N]) {
    let stride: usize = widths.iter().sum();
    assert!(length.is_multiple_of(stride.max(1)), "{length} values in rows of {stride}");
    (stride, std::array::from_fn(|i| widths[..i].iter().sum()))
}
