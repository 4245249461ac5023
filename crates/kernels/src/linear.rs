//! Large matrix products on all threads, and a linear layer with its gradients as one product each.

use gemm::{Parallelism, gemm};

/// A matrix in a slice, with any strides.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    values: &'a [f32],
    row_stride: usize,
    column_stride: usize,
    rows: usize,
    columns: usize,
}

impl<'a> Matrix<'a> {
    /// Row-major `[rows, columns]`.
    ///
    /// # Panics
    /// If the length is not `rows * columns`.
    pub fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "matrix of {rows} x {columns}");
        Self { values, row_stride: columns, column_stride: 1, rows, columns }
    }

    /// The transpose, without moving anything.
    pub fn turned(self) -> Self {
        Self { row_stride: self.column_stride, column_stride: self.row_stride, rows: self.columns, columns: self.rows, ..self }
    }
}

/// Multiply-adds from which threads pay for themselves.
const PARALLEL_SIZE: usize = 1 << 20;

/// `out = left right`, or `out += left right` if `accumulate`; `out` row-major.
///
/// # Panics
/// If the sizes do not fit.
#[allow(unsafe_code)]
pub fn multiply(left: Matrix<'_>, right: Matrix<'_>, out: &mut [f32], accumulate: bool) {
    let (rows, inner, columns) = (left.rows, left.columns, right.columns);
    assert_eq!(inner, right.rows, "product: inner sizes");
    assert_eq!(out.len(), rows * columns, "product: output");
    if out.is_empty() {
        return;
    }
    if inner == 0 {
        if !accumulate {
            out.fill(0.0);
        }
        return;
    }
    let parallelism =
        if rows * inner * columns >= PARALLEL_SIZE { Parallelism::Rayon(0) } else { Parallelism::None };
    // SAFETY: `Matrix::new` and the asserts above bound all three matrices.
    unsafe {
        gemm(
            rows,
            columns,
            inner,
            out.as_mut_ptr(),
            1,
            columns as isize,
            accumulate,
            left.values.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.values.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            1.0f32,
            1.0f32,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// `x weight + bias` for `x` `[rows, inputs]` and a weight of `inputs` rows (turn an `[outputs, inputs]` one).
///
/// # Panics
/// If the sizes do not fit.
pub fn forward(x: Matrix<'_>, weight: Matrix<'_>, bias: Option<&[f32]>) -> Vec<f32> {
    let mut out = vec![0.0f32; x.rows * weight.columns];
    if let Some(bias) = bias {
        assert_eq!(bias.len(), weight.columns, "linear: bias");
        for row in out.chunks_exact_mut(bias.len().max(1)) {
            row.copy_from_slice(bias);
        }
    }
    multiply(x, weight, &mut out, bias.is_some());
    out
}
