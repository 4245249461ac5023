//! Matrix products of the sizes inside a scan chunk (sides of 16 to 512), on one thread, without packing.
//!
//! The right-hand matrix must have contiguous rows; the left-hand one may have any strides, so a transposed left
//! side costs nothing. Each result is summed over k in ascending order.
#![allow(unsafe_code)]

use crate::simd::{Isa, Single, Vector, simd_fn};

/// A strided left-hand matrix.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) row_stride: usize,
    pub(crate) column_stride: usize,
}

impl<'a> Left<'a> {
    /// Row-major with `stride` values a row.
    pub(crate) fn rows(values: &'a [f32], stride: usize) -> Self {
        Self { values, row_stride: stride, column_stride: 1 }
    }

    /// The transpose of a row-major matrix with `stride` values a row.
    pub(crate) fn transposed(values: &'a [f32], stride: usize) -> Self {
        Self { values, row_stride: 1, column_stride: stride }
    }

    /// The matrix without its first `rows` rows and `columns` columns.
    pub(crate) fn skip(self, rows: usize, columns: usize) -> Self {
        Self { values: &self.values[rows * self.row_stride + columns * self.column_stride..], ..self }
    }
}

simd_fn! {
    /// `out[m, n] = left[m, k] right[k, n]` (added to `out` if `accumulate`); strides in values a row.
    pub(crate) fn multiply(m: usize, n: usize, k: usize, left: Left<'_>, right: &[f32], right_stride: usize, out: &mut [f32], out_stride: usize, accumulate: bool) = multiply_body
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn multiply_body<I: Isa>(
    m: usize,
    n: usize,
    k: usize,
    left: Left<'_>,
    right: &[f32],
    right_stride: usize,
    out: &mut [f32],
    out_stride: usize,
    accumulate: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(out.len() >= (m - 1) * out_stride + n, "small product: out too short");
    if k > 0 {
        assert!(
            left.values.len() > (m - 1) * left.row_stride + (k - 1) * left.column_stride,
            "small product: left too short"
        );
        assert!(right.len() >= (k - 1) * right_stride + n, "small product: right too short");
    }
    let lanes = I::Vector::LANES;
    let mut column = 0;
    while column < n {
        let width = n - column;
        let right = right.as_ptr().wrapping_add(column);
        let out = out.as_mut_ptr().wrapping_add(column);
        // SAFETY: the asserts above bound every access of the strip of columns.
        unsafe {
            if width >= 2 * lanes {
                strip::<I::Vector, 2>(m, k, left, right, right_stride, out, out_stride, accumulate);
                column += 2 * lanes;
            } else if width >= lanes {
                strip::<I::Vector, 1>(m, k, left, right, right_stride, out, out_stride, accumulate);
                column += lanes;
            } else if I::FUSED {
                strip::<Single<true>, 1>(m, k, left, right, right_stride, out, out_stride, accumulate);
                column += 1;
            } else {
                strip::<Single<false>, 1>(m, k, left, right, right_stride, out, out_stride, accumulate);
                column += 1;
            }
        }
    }
}

/// A strip of `NV` vectors' columns, tile by tile from the first row.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn strip<V: Vector, const NV: usize>(
    m: usize,
    k: usize,
    left: Left<'_>,
    right: *const f32,
    right_stride: usize,
    out: *mut f32,
    out_stride: usize,
    accumulate: bool,
) {
    let mut row = 0;
    while row < m {
        let start = left.values.as_ptr().wrapping_add(row * left.row_stride);
        let (a, b) = (left.row_stride, left.column_stride);
        let target = out.wrapping_add(row * out_stride);
        // SAFETY: rows `row..row + tile rows` are below m; the caller bounded the matrices.
        unsafe {
            match m - row {
                rest if V::ROWS == 8 && rest >= 8 => {
                    tile::<V, 8, NV>(k, start, a, b, right, right_stride, target, out_stride, accumulate);
                    row += 8;
                }
                rest if V::ROWS == 6 && rest >= 6 => {
                    tile::<V, 6, NV>(k, start, a, b, right, right_stride, target, out_stride, accumulate);
                    row += 6;
                }
                rest if rest >= 4 => {
                    tile::<V, 4, NV>(k, start, a, b, right, right_stride, target, out_stride, accumulate);
                    row += 4;
                }
                _ => {
                    tile::<V, 1, NV>(k, start, a, b, right, right_stride, target, out_stride, accumulate);
                    row += 1;
                }
            }
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn tile<V: Vector, const MR: usize, const NV: usize>(
    k: usize,
    left: *const f32,
    row_stride: usize,
    column_stride: usize,
    right: *const f32,
    right_stride: usize,
    out: *mut f32,
    out_stride: usize,
    accumulate: bool,
) {
    // SAFETY: the caller bounded all three matrices for MR rows, NV vectors of columns and k steps.
    unsafe {
        let mut sums = [[V::splat(0.0); NV]; MR];
        if accumulate {
            for (i, row) in sums.iter_mut().enumerate() {
                for (j, sum) in row.iter_mut().enumerate() {
                    *sum = V::load(out.add(i * out_stride + j * V::LANES));
                }
            }
        }
        for step in 0..k {
            let mut values = [V::splat(0.0); NV];
            for (j, value) in values.iter_mut().enumerate() {
                *value = V::load(right.add(step * right_stride + j * V::LANES));
            }
            for (i, row) in sums.iter_mut().enumerate() {
                let factor = V::splat(*left.add(i * row_stride + step * column_stride));
                for (j, sum) in row.iter_mut().enumerate() {
                    *sum = factor.multiply_add(values[j], *sum);
                }
            }
        }
        for (i, row) in sums.iter().enumerate() {
            for (j, sum) in row.iter().enumerate() {
                sum.store(out.add(i * out_stride + j * V::LANES));
            }
        }
    }
}

simd_fn! {
    /// `out[columns, rows] = source[rows, columns]` transposed; strides in values a row.
    pub(crate) fn transpose(rows: usize, columns: usize, source: &[f32], source_stride: usize, out: &mut [f32], out_stride: usize) = transpose_body
}

#[inline(always)]
pub(crate) fn transpose_body<I: Isa>(
    rows: usize,
    columns: usize,
    source: &[f32],
    source_stride: usize,
    out: &mut [f32],
    out_stride: usize,
) {
    if rows == 0 || columns == 0 {
        return;
    }
    assert!(source.len() >= (rows - 1) * source_stride + columns, "transpose: source too short");
    assert!(out.len() >= (columns - 1) * out_stride + rows, "transpose: out too short");
    let (row_blocks, column_blocks) = (rows / 8 * 8, columns / 8 * 8);
    for r in (0..row_blocks).step_by(8) {
        for c in (0..column_blocks).step_by(8) {
            let mut block = [[0.0f32; 8]; 8];
            for (i, line) in block.iter_mut().enumerate() {
                let from = (r + i) * source_stride + c;
                line.copy_from_slice(&source[from..from + 8]);
            }
            let turned = turn(block);
            for (j, line) in turned.iter().enumerate() {
                let to = (c + j) * out_stride + r;
                out[to..to + 8].copy_from_slice(line);
            }
        }
        for c in column_blocks..columns {
            for i in r..r + 8 {
                out[c * out_stride + i] = source[i * source_stride + c];
            }
        }
    }
    let mut r = row_blocks;
    if rows - r >= 4 {
        let columns_of_four = columns / 4 * 4;
        for c in (0..columns_of_four).step_by(4) {
            let line = |i: usize| -> [f32; 4] { std::array::from_fn(|j| source[(r + i) * source_stride + c + j]) };
            let [a, b, d, e] = [line(0), line(1), line(2), line(3)];
            for j in 0..4 {
                out[(c + j) * out_stride + r..][..4].copy_from_slice(&[a[j], b[j], d[j], e[j]]);
            }
        }
        for c in columns_of_four..columns {
            for i in r..r + 4 {
                out[c * out_stride + i] = source[i * source_stride + c];
            }
        }
        r += 4;
    }
    for r in r..rows {
        for c in 0..columns {
            out[c * out_stride + r] = source[r * source_stride + c];
        }
    }
}

/// Transposes 8 x 8 in three rounds of pairwise interleaving, which compile to shuffles.
#[inline(always)]
fn turn(mut block: [[f32; 8]; 8]) -> [[f32; 8]; 8] {
    for _ in 0..3 {
        let mut next = [[0.0f32; 8]; 8];
        for i in 0..4 {
            let (a, b) = (block[i], block[i + 4]);
            next[2 * i] = [a[0], b[0], a[1], b[1], a[2], b[2], a[3], b[3]];
            next[2 * i + 1] = [a[4], b[4], a[5], b[5], a[6], b[6], a[7], b[7]];
        }
        block = next;
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        (0..count)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    #[test]
    fn products_match_the_definition() {
        for (m, n, k) in [(64, 64, 64), (8, 32, 5), (13, 37, 9), (1, 1, 1), (3, 16, 0), (44, 20, 17)] {
            let (left, right) = (values(m * k + 1, 1), values(k * n + 1, 2));
            let start = values(m * n, 3);
            for (view, transposed) in [(Left::rows(&left, k), false), (Left::transposed(&left, m), true)] {
                for accumulate in [false, true] {
                    let mut out = start.clone();
                    multiply(m, n, k, view, &right, n, &mut out, n, accumulate);
                    for i in 0..m {
                        for j in 0..n {
                            let mut expected = if accumulate { f64::from(start[i * n + j]) } else { 0.0 };
                            for p in 0..k {
                                let a = if transposed { left[p * m + i] } else { left[i * k + p] };
                                expected += f64::from(a) * f64::from(right[p * n + j]);
                            }
                            assert!((f64::from(out[i * n + j]) - expected).abs() < 1e-5, "{m} {n} {k} at {i} {j}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn transposes_any_size() {
        for (rows, columns) in [(64, 64), (8, 8), (13, 21), (1, 9), (16, 5), (12, 19), (4, 3)] {
            let source = values(rows * columns, 4);
            let mut out = vec![0.0; rows * columns];
            transpose(rows, columns, &source, columns, &mut out, rows);
            for r in 0..rows {
                for c in 0..columns {
                    assert_eq!(out[c * rows + r], source[r * columns + c]);
                }
            }
        }
    }
}
