//! Fréchet distance between two clouds of features, each seen as a Gaussian:
//! `|m1 - m2|^2 + tr S1 + tr S2 - 2 tr sqrt(S1 S2)` (Heusel et al. 2017), covariances with n - 1.
//!
//! The last trace is computed as the sum of the square roots of the eigenvalues of the symmetric matrix
//! `S1^1/2 S2 S1^1/2`, negative ones (rounding) counted as 0. The distance shrinks with more rows, so only figures
//! with equal numbers of rows may be compared: both sides are drawn down to one number, several times.

use mambo_model::random;
use nalgebra::{DMatrix, DVector, SymmetricEigen};
use serde::Serialize;

use crate::{EvalError, Rows};

/// Patches a side below which a distance says little.
pub const RELIABLE_PATCHES: usize = 600;

/// How rows are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draws {
    /// Rows a side; fewer are taken where one side has fewer.
    pub patches: Option<usize>,
    /// Number of draws to average over.
    pub count: usize,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Draws {
    fn default() -> Self {
        Self { patches: None, count: 5, seed: 0 }
    }
}

/// A Fréchet distance and how it came about.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Frechet {
    /// Mean over the draws.
    pub distance: f64,
    /// Standard deviation over the draws (0 where every draw takes all rows).
    pub spread: f64,
    /// Rows a side.
    pub patches: usize,
    /// Whether there were at least [`RELIABLE_PATCHES`].
    pub reliable: bool,
}

/// Mean and covariance of a cloud.
#[derive(Debug, Clone, PartialEq)]
pub struct Gaussian {
    mean: DVector<f64>,
    covariance: DMatrix<f64>,
}

impl Gaussian {
    /// Fits rows; at least two.
    pub fn fit(rows: &Rows) -> Result<Self, EvalError> {
        let count = rows.count();
        if count < 2 {
            return Err(EvalError::TooFewPatches { what: "Fréchet distance".into(), found: count });
        }
        rows.check_finite("a feature table")?;
        let mean = DVector::from_vec(rows.mean().unwrap_or_default());
        let centred =
            DMatrix::from_fn(rows.width(), count, |feature, row| f64::from(rows.row(row)[feature]) - mean[feature]);
        let covariance = &centred * centred.transpose() / (count - 1) as f64;
        Ok(Self { mean, covariance })
    }

    /// Fréchet distance to another Gaussian, never negative.
    pub fn distance(&self, other: &Self) -> Result<f64, EvalError> {
        if self.mean.len() != other.mean.len() {
            return Err(EvalError::Width { expected: self.mean.len(), found: other.mean.len() });
        }
        let root = square_root(&self.covariance);
        let mut product = &root * &other.covariance * &root;
        // Rounding leaves it a little asymmetric.
        product = (&product + product.transpose()) * 0.5;
        let cross: f64 = product.symmetric_eigenvalues().iter().map(|value| value.max(0.0).sqrt()).sum();
        let shift = (&self.mean - &other.mean).norm_squared();
        Ok((shift + self.covariance.trace() + other.covariance.trace() - 2.0 * cross).max(0.0))
    }
}

/// Root of a symmetric positive semidefinite matrix.
fn square_root(matrix: &DMatrix<f64>) -> DMatrix<f64> {
    let eigen = SymmetricEigen::new(matrix.clone());
    let mut scaled = eigen.eigenvectors.clone();
    for (mut column, value) in scaled.column_iter_mut().zip(eigen.eigenvalues.iter()) {
        column *= value.max(0.0).sqrt();
    }
    scaled * eigen.eigenvectors.transpose()
}

/// Distance between two tables of features, with equal numbers of rows, averaged over draws without replacement.
pub fn frechet_distance(a: &Rows, b: &Rows, draws: &Draws) -> Result<Frechet, EvalError> {
    let patches = a.count().min(b.count()).min(draws.patches.unwrap_or(usize::MAX));
    // Where every draw would take everything, one says it all.
    let count = if a.count() == patches && b.count() == patches { 1 } else { draws.count.max(1) };
    let mut distances = Vec::with_capacity(count);
    for draw in 0..count as u64 {
        let first = draw_rows(a, patches, draws.seed, "frechet first", draw);
        let second = draw_rows(b, patches, draws.seed, "frechet second", draw);
        distances.push(Gaussian::fit(&first)?.distance(&Gaussian::fit(&second)?)?);
    }
    let mean = distances.iter().sum::<f64>() / count as f64;
    let variance = distances.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / count as f64;
    Ok(Frechet { distance: mean, spread: variance.sqrt(), patches, reliable: patches >= RELIABLE_PATCHES })
}

/// Distance between two random halves of one table: what the number of rows alone leaves.
pub fn halves_distance(rows: &Rows, draws: &Draws) -> Result<Frechet, EvalError> {
    let half = (rows.count() / 2).min(draws.patches.unwrap_or(usize::MAX));
    let mut distances = Vec::with_capacity(draws.count.max(1));
    for draw in 0..draws.count.max(1) as u64 {
        let order = random::permutation(&mut random::stream(draws.seed, "frechet halves", draw), rows.count());
        let (first, second) = (rows.select(&order[..half]), rows.select(&order[half..2 * half]));
        distances.push(Gaussian::fit(&first)?.distance(&Gaussian::fit(&second)?)?);
    }
    let mean = distances.iter().sum::<f64>() / distances.len() as f64;
    let variance = distances.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / distances.len() as f64;
    Ok(Frechet { distance: mean, spread: variance.sqrt(), patches: half, reliable: half >= RELIABLE_PATCHES })
}

fn draw_rows(rows: &Rows, count: usize, seed: u64, name: &str, draw: u64) -> Rows {
    if count == rows.count() {
        return rows.clone();
    }
    let order = random::permutation(&mut random::stream(seed, name, draw), rows.count());
    rows.select(&order[..count])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cloud(rows: usize, width: usize, shift: f32, scale: f32, index: u64) -> Rows {
        let mut rng = random::stream(1, "cloud", index);
        Rows::new(width, (0..rows * width).map(|_| shift + scale * random::normal(&mut rng)).collect())
    }

    #[test]
    fn distance_to_itself_is_zero_and_both_ways_are_equal() {
        let (a, b) = (cloud(90, 12, 0.0, 1.0, 1), cloud(90, 12, 0.4, 1.3, 2));
        let draws = Draws::default();
        let own = frechet_distance(&a, &a, &draws).expect("enough rows");
        assert!(own.distance < 1e-9, "{own:?}");
        let there = frechet_distance(&a, &b, &draws).expect("enough rows").distance;
        let back = frechet_distance(&b, &a, &draws).expect("enough rows").distance;
        assert!(there > 1.0 && (there - back).abs() < 1e-9 * there);
    }

    #[test]
    fn gaussians_of_known_distance() {
        // Width 3, means 0.5 apart in each dimension, deviations 1 and 2: 3 * (0.25 + (2 - 1)^2).
        let (a, b) = (cloud(60_000, 3, 0.0, 1.0, 3), cloud(60_000, 3, 0.5, 2.0, 4));
        let found = frechet_distance(&a, &b, &Draws::default()).expect("enough rows").distance;
        assert!((found - 3.75).abs() < 0.1, "{found}");
    }

    #[test]
    fn a_constant_shift_adds_its_square() {
        let a = cloud(50, 8, 0.0, 1.0, 5);
        let b = Rows::new(8, a.iter().flatten().map(|v| v + 0.25).collect());
        let found = frechet_distance(&a, &b, &Draws::default()).expect("enough rows").distance;
        assert!((found - 8.0 * 0.0625).abs() < 1e-5, "{found}");
    }

    #[test]
    fn draws_use_equal_numbers_and_repeat() {
        let (a, b) = (cloud(300, 4, 0.0, 1.0, 6), cloud(80, 4, 0.0, 1.0, 7));
        let draws = Draws { patches: Some(60), count: 5, seed: 3 };
        let first = frechet_distance(&a, &b, &draws).expect("enough rows");
        assert_eq!((first.patches, first.reliable), (60, false));
        assert!(first.spread > 0.0);
        assert_eq!(first, frechet_distance(&a, &b, &draws).expect("enough rows"));
        let other = frechet_distance(&a, &b, &Draws { seed: 4, ..draws }).expect("enough rows");
        assert_ne!(first.distance, other.distance);
    }

    #[test]
    fn fewer_rows_give_a_larger_distance() {
        let rows = cloud(800, 20, 0.0, 1.0, 8);
        let few = halves_distance(&rows, &Draws { patches: Some(40), ..Draws::default() }).expect("enough rows");
        let many = halves_distance(&rows, &Draws::default()).expect("enough rows");
        assert!(few.distance > 3.0 * many.distance, "{few:?} {many:?}");
    }

    #[test]
    fn bad_tables_are_refused() {
        let a = cloud(10, 4, 0.0, 1.0, 9);
        let draws = Draws::default();
        assert!(matches!(
            frechet_distance(&a, &cloud(1, 4, 0.0, 1.0, 9), &draws),
            Err(EvalError::TooFewPatches { found: 1, .. })
        ));
        assert!(matches!(
            frechet_distance(&a, &cloud(10, 5, 0.0, 1.0, 9), &draws),
            Err(EvalError::Width { expected: 4, found: 5 })
        ));
        let broken = Rows::new(4, vec![f32::NAN; 40]);
        assert!(matches!(frechet_distance(&a, &broken, &draws), Err(EvalError::NotFinite { .. })));
    }
}
