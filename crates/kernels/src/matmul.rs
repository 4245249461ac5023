//! Matrix product on slices for networks that only infer: one thread, no packing, any strides on the left.
//!
//! Columns are worked off in whole vectors, so a width that is a multiple of 32 is fastest. Rows of the right
//! side may overlap (a stride of 1 makes a convolution out of a product). Sums run over k in ascending order,
//! so a result does not depend on m or n.

use crate::small_gemm::{Left, multiply};

/// A strided matrix: element `[r, c]` is `values[r * row_stride + c * column_stride]`.
#[derive(Debug, Clone, Copy)]
pub struct Strided<'a> {
    /// The values.
    pub values: &'a [f32],
    /// Values between rows.
    pub row_stride: usize,
    /// Values between columns.
    pub column_stride: usize,
}

impl<'a> Strided<'a> {
    /// Row-major with `stride` values a row.
    pub fn rows(values: &'a [f32], stride: usize) -> Self {
        Self { values, row_stride: stride, column_stride: 1 }
    }

    /// The transpose of a row-major matrix with `stride` values a row.
    pub fn transposed(values: &'a [f32], stride: usize) -> Self {
        Self { values, row_stride: 1, column_stride: stride }
    }
}

/// `out[m, n] = left[m, k] right[k, n]`, added to `out` if `accumulate`. `right` and `out` have contiguous rows,
/// `right_stride` and `out_stride` values apart.
///
/// # Panics
/// If a slice is too short for its matrix.
#[allow(clippy::too_many_arguments)]
pub fn matmul(
    m: usize,
    n: usize,
    k: usize,
    left: Strided<'_>,
    right: &[f32],
    right_stride: usize,
    out: &mut [f32],
    out_stride: usize,
    accumulate: bool,
) {
    let left = Left { values: left.values, row_stride: left.row_stride, column_stride: left.column_stride };
    multiply(m, n, k, left, right, right_stride, out, out_stride, accumulate);
}

/// [`matmul`] in three loops: what the fast one is tested against.
#[allow(clippy::too_many_arguments)]
pub fn matmul_plain(
    m: usize,
    n: usize,
    k: usize,
    left: Strided<'_>,
    right: &[f32],
    right_stride: usize,
    out: &mut [f32],
    out_stride: usize,
    accumulate: bool,
) {
    for row in 0..m {
        for column in 0..n {
            let start = if accumulate { out[row * out_stride + column] } else { 0.0 };
            out[row * out_stride + column] = (0..k).fold(start, |sum, step| {
                let factor = left.values[row * left.row_stride + step * left.column_stride];
                sum + factor * right[step * right_stride + column]
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn fast_and_plain_agree(
            m in 1usize..20, n in 1usize..70, k in 0usize..40, overlap: bool, accumulate: bool, turned: bool,
        ) {
            let values = |count: usize, factor: usize| -> Vec<f32> {
                (0..count).map(|i| ((i * factor) % 17) as f32 / 8.0 - 1.0).collect()
            };
            let right_stride = if overlap { 1 } else { n + 3 };
            let (left, right) = (values(m * k + 1, 7), values((k + 1) * right_stride + n, 5));
            let left = if turned { Strided::transposed(&left, m) } else { Strided::rows(&left, k) };
            let mut fast = values(m * (n + 2), 3);
            let mut plain = fast.clone();
            matmul(m, n, k, left, &right, right_stride, &mut fast, n + 2, accumulate);
            matmul_plain(m, n, k, left, &right, right_stride, &mut plain, n + 2, accumulate);
            for (a, b) in fast.iter().zip(&plain) {
                prop_assert!((a - b).abs() < 1e-4, "{a} {b}");
            }
        }
    }
}
