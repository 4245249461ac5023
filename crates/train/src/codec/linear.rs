//! Closed-form linear algebra for the codec: principal components and ridge regression.
//!
//! Large products go through Burn in blocks of rows, whose sums are added in f64 in a fixed order; the small
//! symmetric problems that remain are solved in f64.

use burn::tensor::{Device, Tensor, TensorData};
use nalgebra::{DMatrix, SymmetricEigen};

/// Rows multiplied at once.
const BLOCK: usize = 8192;

/// `left^T right` of row-major `[n, a]` and `[n, b]`, as `[a, b]` in f64.
pub fn cross_product(left: &[f32], a: usize, right: &[f32], b: usize) -> DMatrix<f64> {
    let device = Device::flex();
    let mut sum = vec![0.0f64; a * b];
    for (left, right) in left.chunks(BLOCK * a).zip(right.chunks(BLOCK * b)) {
        let rows = left.len() / a;
        let left = Tensor::<2>::from_data(TensorData::new(left.to_vec(), [rows, a]), &device);
        let right = Tensor::<2>::from_data(TensorData::new(right.to_vec(), [rows, b]), &device);
        let part: Vec<f32> = left.transpose().matmul(right).into_data().try_into_vec().expect("products are f32");
        for (sum, part) in sum.iter_mut().zip(part) {
            *sum += f64::from(part);
        }
    }
    DMatrix::from_row_slice(a, b, &sum)
}

/// `rows [n, width] * weight [width, outputs]`.
pub fn multiply(rows: &[f32], width: usize, weight: &[f32], outputs: usize) -> Vec<f32> {
    let device = Device::flex();
    let weight = Tensor::<2>::from_data(TensorData::new(weight.to_vec(), [width, outputs]), &device);
    let mut out = Vec::with_capacity(rows.len() / width * outputs);
    for block in rows.chunks(BLOCK * width) {
        let shape = [block.len() / width, width];
        let block = Tensor::<2>::from_data(TensorData::new(block.to_vec(), shape), &device);
        let part: Vec<f32> = block.matmul(weight.clone()).into_data().try_into_vec().expect("products are f32");
        out.extend(part);
    }
    out
}

/// Mean `[width]` and the `count` leading principal directions `[count, width]` of `[n, width]` rows.
pub fn principal_components(rows: &[f32], width: usize, count: usize) -> (Vec<f32>, Vec<f32>) {
    let n = (rows.len() / width) as f64;
    let ones = vec![1.0f32; rows.len() / width];
    let mean = cross_product(&ones, 1, rows, width) / n;
    let covariance = cross_product(rows, width, rows, width) / n - mean.transpose() * &mean;
    let (vectors, _) = leading_components(covariance, count);
    (mean.iter().map(|&x| x as f32).collect(), vectors.iter().map(|&x| x as f32).collect())
}

/// Latents `[n, count]` of rows under a mean `[width]` and directions `[count, width]`.
pub fn project(rows: &[f32], mean: &[f32], basis: &[f32]) -> Vec<f32> {
    let (width, count) = (mean.len(), basis.len() / mean.len());
    let turned = DMatrix::from_row_slice(count, width, basis);
    let turned: Vec<f32> = turned.iter().copied().collect(); // column-major [count, width] is row-major [width, count]
    let offset = multiply(mean, width, &turned, count);
    let mut out = multiply(rows, width, &turned, count);
    for row in out.chunks_exact_mut(count) {
        for (value, offset) in row.iter_mut().zip(&offset) {
            *value -= offset;
        }
    }
    out
}

/// The `count` leading eigenvectors of a symmetric matrix (as columns) with their eigenvalues, largest first. The
/// sign of a vector is fixed: its largest entry is positive.
pub fn leading_components(symmetric: DMatrix<f64>, count: usize) -> (DMatrix<f64>, Vec<f64>) {
    let eigen = SymmetricEigen::new(symmetric);
    let mut order: Vec<usize> = (0..eigen.eigenvalues.len()).collect();
    order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]));
    order.truncate(count);
    let mut vectors = eigen.eigenvectors.select_columns(&order);
    for mut column in vectors.column_iter_mut() {
        let sign = column.iter().copied().fold(0.0f64, |best, x| if x.abs() > best.abs() { x } else { best });
        if sign < 0.0 {
            column.neg_mut();
        }
    }
    let values = order.iter().map(|&i| eigen.eigenvalues[i].max(0.0)).collect();
    (vectors, values)
}

/// `(gram + ridge I)^-1 moments`; the last row of `gram` belongs to a constant and is not penalised.
/// `None` when the matrix is not positive definite.
pub fn ridge_solve(mut gram: DMatrix<f64>, moments: &DMatrix<f64>, ridge: f64) -> Option<DMatrix<f64>> {
    let last = gram.nrows() - 1;
    for i in 0..last {
        gram[(i, i)] += ridge;
    }
    gram[(last, last)] += 1e-6;
    Some(gram.cholesky()?.solve(moments))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ridge_finds_a_line() {
        let xs: Vec<f32> = (0..200).flat_map(|i| [(i % 17) as f32 / 4.0 - 2.0, 1.0]).collect();
        let ys: Vec<f32> = xs.chunks(2).map(|x| 3.0 * x[0] - 0.5).collect();
        let solution = ridge_solve(cross_product(&xs, 2, &xs, 2), &cross_product(&xs, 2, &ys, 1), 1e-9).unwrap();
        assert!((solution[(0, 0)] - 3.0).abs() < 1e-4 && (solution[(1, 0)] + 0.5).abs() < 1e-4, "{solution}");
    }

    #[test]
    fn components_come_largest_first() {
        let matrix = DMatrix::from_diagonal(&nalgebra::DVector::from_vec(vec![1.0, 9.0, 4.0]));
        let (vectors, values) = leading_components(matrix, 2);
        assert_eq!(values.len(), 2);
        assert!((values[0] - 9.0).abs() < 1e-9 && (values[1] - 4.0).abs() < 1e-9);
        assert!((vectors[(1, 0)] - 1.0).abs() < 1e-9);
    }
}
