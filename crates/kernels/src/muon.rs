//! Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon): the momentum of a matrix is made orthogonal before it is added, so
//! that every direction moves alike, and not only the few that all gradients share.

use crate::linear::{Matrix, Start, multiply};

/// Settings of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Muon {
    /// Learning rate of this step, on the scale of AdamW's: a step has the size of 0.2 rates a value (Liu et al., arXiv 2502.16982,
    /// section 2.2).
    pub rate: f64,
    /// Decay of the momentum.
    pub momentum: f64,
    /// Share of the parameter taken off, times the rate.
    pub weight_decay: f64,
    /// Multiplies the gradient first.
    pub gradient_scale: f64,
}

/// Polynomials `a x + b x^3 + c x^5` of the singular values, one after another; the coefficients are Jordan's.
const ITERATIONS: usize = 5;
const COEFFICIENTS: [f32; 3] = [3.4445, -4.7750, 2.0315];
/// Below this length a matrix has no direction.
const SHORTEST: f32 = 1e-20;

impl Muon {
    /// One step of a row-major matrix with `columns` columns; `average` is its momentum, updated. Results do not depend on the
    /// number of threads.
    ///
    /// # Panics
    /// If the lengths differ or are no multiple of `columns`.
    pub fn apply(&self, value: &mut [f32], gradient: &[f32], average: &mut [f32], columns: usize) {
        assert_eq!([gradient.len(), average.len()], [value.len(); 2], "Muon: slices of one matrix");
        let momentum = self.momentum as f32;
        let fresh = (1.0 - self.momentum) as f32 * self.gradient_scale as f32;
        // Nesterov's: as the average will be if this gradient comes once more.
        let ahead: Vec<f32> = average
            .iter_mut()
            .zip(gradient)
            .map(|(average, gradient)| {
                *average = momentum * *average + fresh * gradient;
                momentum * *average + fresh * gradient
            })
            .collect();
        let rows = value.len() / columns;
        let step = orthogonal(&ahead, rows, columns);
        let size = (0.2 * self.rate * (rows.max(columns) as f64).sqrt()) as f32;
        let keep = (1.0 - self.rate * self.weight_decay) as f32;
        value.iter_mut().zip(step).for_each(|(value, step)| *value = keep * *value - size * step);
    }
}

/// Of the singular value decomposition `U S V'` of a row-major matrix, roughly `U V'`: singular values of 0.7 to 1.2 in place of 1, less for
/// those that are thousands of times smaller than the largest.
///
/// The iteration of Newton and Schulz multiplies a matrix `X` by polynomials of `X X'` alone. So it runs on that small square, and
/// `X` is multiplied by the product of all polynomials once; for a matrix four times as wide as high this takes half of the
/// operations.
fn orthogonal(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let matrix = Matrix::new(values, rows, columns);
    let wide = if rows <= columns { matrix } else { matrix.turned() };
    let side = wide.rows();
    let product = |left: Matrix<'_>, right: Matrix<'_>| {
        let mut out = vec![0.0; left.rows() * right.columns()];
        multiply(left, right, &mut out, Start::Zero);
        out
    };
    let square = |a: &[f32], b: &[f32]| product(Matrix::new(a, side, side), Matrix::new(b, side, side));
    let mut gram = product(wide, wide.turned());
    let length = gram.iter().step_by(side + 1).sum::<f32>().sqrt();
    if length < SHORTEST {
        return vec![0.0; values.len()];
    }
    gram.iter_mut().for_each(|value| *value /= length * length);
    let [a, b, c] = COEFFICIENTS;
    let mut all: Option<Vec<f32>> = None;
    for iteration in 0..ITERATIONS {
        let mut factor = square(&gram, &gram);
        factor.iter_mut().zip(&gram).for_each(|(square, gram)| *square = b * gram + c * *square);
        factor.iter_mut().step_by(side + 1).for_each(|value| *value += a);
        if iteration + 1 < ITERATIONS {
            gram = square(&square(&factor, &gram), &factor);
        }
        all = Some(all.map_or_else(|| factor.clone(), |all| square(&factor, &all)));
    }
    let mut all = all.unwrap_or_default();
    all.iter_mut().for_each(|value| *value /= length);
    let all = Matrix::new(&all, side, side);
    if rows <= columns { product(all, matrix) } else { product(matrix, all) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(count: usize, seed: f32) -> Vec<f32> {
        (0..count).map(|n| (n as f32 * 1.7 + seed).sin() + 0.3 * (n as f32 * 0.013 + seed).cos()).collect()
    }

    /// The iteration as it is written down, in f64, on the matrix itself.
    fn plain(values: &[f32], rows: usize, columns: usize) -> Vec<f64> {
        let at = |x: &[f64], row: usize, column: usize| x[row * columns + column];
        let length = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        let mut x: Vec<f64> = values.iter().map(|value| f64::from(*value) / length).collect();
        let product =
            |a: &dyn Fn(usize, usize) -> f64, b: &dyn Fn(usize, usize) -> f64, inner: usize, columns: usize| {
                let value = |n: usize| (0..inner).map(|k| a(n / columns, k) * b(k, n % columns)).sum::<f64>();
                (0..rows * columns).map(value).collect::<Vec<f64>>()
            };
        let [a, b, c] = COEFFICIENTS.map(f64::from);
        for _ in 0..ITERATIONS {
            let gram = product(&|r, k| at(&x, r, k), &|k, c| at(&x, c, k), columns, rows);
            let square = product(&|r, k| gram[r * rows + k], &|k, c| gram[k * rows + c], rows, rows);
            let factor = |row: usize, column: usize| {
                let n = row * rows + column;
                b * gram[n] + c * square[n] + if row == column { a } else { 0.0 }
            };
            x = product(&factor, &|k, c| at(&x, k, c), rows, columns);
        }
        x
    }

    #[test]
    fn a_step_follows_its_definition() {
        let settings = Muon { rate: 1e-2, momentum: 0.9, weight_decay: 0.1, gradient_scale: 0.5 };
        for (rows, columns) in [(20, 36), (36, 20), (24, 24)] {
            let count = rows * columns;
            let mut value = matrix(count, 0.1);
            let mut average = vec![0.0f32; count];
            let mut expected: Vec<f64> = value.iter().map(|value| f64::from(*value)).collect();
            let mut momentum = vec![0.0f64; count];
            for step in 0..3 {
                let gradient = matrix(count, step as f32);
                settings.apply(&mut value, &gradient, &mut average, columns);
                for (momentum, gradient) in momentum.iter_mut().zip(&gradient) {
                    *momentum = 0.9 * *momentum + 0.1 * 0.5 * f64::from(*gradient);
                }
                let ahead = momentum.iter().zip(&gradient).map(|(m, g)| (0.9 * m + 0.1 * 0.5 * f64::from(*g)) as f32);
                let direction = plain(&ahead.collect::<Vec<f32>>(), rows, columns);
                for (expected, direction) in expected.iter_mut().zip(&direction) {
                    *expected = *expected * (1.0 - 1e-3) - 0.2 * 1e-2 * (rows.max(columns) as f64).sqrt() * direction;
                }
            }
            for (found, expected) in value.iter().zip(&expected) {
                assert!((f64::from(*found) - expected).abs() < 1e-4, "{rows} x {columns}: {found} against {expected}");
            }
        }
    }

    #[test]
    fn singular_values_come_near_one_and_nothing_stays_nothing() {
        // Directions of very different length, in a wide and in a high matrix.
        for (rows, columns) in [(24, 40), (40, 24)] {
            let mut values = vec![0.0; rows * columns];
            (0..24).for_each(|k| values[k * columns + k] = 0.8f32.powi(k as i32));
            for (n, found) in orthogonal(&values, rows, columns).iter().enumerate() {
                let wanted = if n / columns == n % columns { 0.6..1.3 } else { -1e-4..1e-4 };
                assert!(wanted.contains(found), "{n}: {found}");
            }
        }
        assert_eq!(orthogonal(&[0.0; 6], 2, 3), [0.0; 6]);
    }
}
