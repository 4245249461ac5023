//! Distance between the distributions of structure features of two sets of clips: for each feature the
//! Wasserstein-1 distance in units of the real spread, then the mean.

use mambo_audio::analysis::StructureFeatures;
use mambo_model::random;
use serde::Serialize;

use crate::EvalError;

/// Clips shorter than this say little about structure.
pub const SHORTEST_SECONDS: f64 = 20.0;

/// One row of feature values a clip.
pub type StructureRow = [f64; StructureFeatures::COUNT];

/// Structure distance, whole and by feature.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StructureDistance {
    /// Mean over the features.
    pub distance: f64,
    /// Name, distance, mean of the judged clips, mean of the real clips.
    pub features: Vec<FeatureDistance>,
}

/// One feature of a [`StructureDistance`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FeatureDistance {
    /// Name of the feature.
    pub name: &'static str,
    /// Wasserstein-1 distance over the standard deviation of the real clips.
    pub distance: f64,
    /// Mean of the judged clips.
    pub judged: f64,
    /// Mean of the real clips.
    pub real: f64,
}

/// Wasserstein-1 distance between two samples: area between their distribution functions.
pub fn wasserstein(a: &[f64], b: &[f64]) -> f64 {
    if a.is_empty() || b.is_empty() {
        return 0.0;
    }
    let sorted = |values: &[f64]| {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        values
    };
    let (a, b) = (sorted(a), sorted(b));
    let (mut i, mut j, mut done, mut area) = (0usize, 0usize, 0.0, 0.0);
    // Walk through the quantiles: at each step the nearer end of a run of equal quantile.
    while i < a.len() && j < b.len() {
        let (end_a, end_b) = ((i + 1) as f64 / a.len() as f64, (j + 1) as f64 / b.len() as f64);
        let end = end_a.min(end_b);
        area += (end - done) * (a[i] - b[j]).abs();
        done = end;
        i += usize::from(end_a <= end);
        j += usize::from(end_b <= end);
    }
    area
}

/// Distance of judged clips from real ones; at least two real clips.
pub fn structure_distance(judged: &[StructureRow], real: &[StructureRow]) -> Result<StructureDistance, EvalError> {
    if judged.is_empty() || real.len() < 2 {
        return Err(EvalError::NoClips { what: "structure needs a judged clip and at least two real ones".into() });
    }
    let column = |rows: &[StructureRow], feature: usize| -> Vec<f64> { rows.iter().map(|row| row[feature]).collect() };
    let features: Vec<FeatureDistance> = StructureFeatures::NAMES
        .iter()
        .enumerate()
        .map(|(feature, name)| {
            let (judged, real) = (column(judged, feature), column(real, feature));
            let (judged_mean, _) = moments(&judged);
            let (real_mean, spread) = moments(&real);
            // A feature that never varies in real music is measured against 1 % of itself.
            let unit = spread.max(0.01 * real_mean.abs()).max(1e-9);
            FeatureDistance { name, distance: wasserstein(&judged, &real) / unit, judged: judged_mean, real: real_mean }
        })
        .collect();
    let distance = features.iter().map(|feature| feature.distance).sum::<f64>() / features.len() as f64;
    Ok(StructureDistance { distance, features })
}

/// Structure distance between random halves of the real clips, mean of `draws`: what chance alone leaves.
pub fn halves_distance(real: &[StructureRow], draws: usize, seed: u64) -> Result<f64, EvalError> {
    let mut sum = 0.0;
    for draw in 0..draws.max(1) as u64 {
        let order = random::permutation(&mut random::stream(seed, "structure halves", draw), real.len());
        let pick = |indices: &[usize]| -> Vec<StructureRow> { indices.iter().map(|&n| real[n]).collect() };
        let (first, second) = order.split_at(real.len() / 2);
        sum += structure_distance(&pick(first), &pick(second))?.distance;
    }
    Ok(sum / draws.max(1) as f64)
}

/// Mean and standard deviation (n - 1).
fn moments(values: &[f64]) -> (f64, f64) {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / (values.len().max(2) - 1) as f64).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn wasserstein_is_a_distance(
            a in prop::collection::vec(-5.0f64..5.0, 1..20),
            b in prop::collection::vec(-5.0f64..5.0, 1..20),
            shift in -3.0f64..3.0,
        ) {
            prop_assert!(wasserstein(&a, &a) < 1e-12);
            prop_assert!((wasserstein(&a, &b) - wasserstein(&b, &a)).abs() < 1e-9);
            let moved: Vec<f64> = a.iter().map(|v| v + shift).collect();
            prop_assert!((wasserstein(&a, &moved) - shift.abs()).abs() < 1e-9);
            let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
            prop_assert!(wasserstein(&a, &b) >= (mean(&a) - mean(&b)).abs() - 1e-9);
        }
    }

    #[test]
    fn distance_counts_in_real_deviations() {
        let real: Vec<StructureRow> = (0..40).map(|n| [f64::from(n % 5); StructureFeatures::COUNT]).collect();
        let spread = moments(&real.iter().map(|row| row[0]).collect::<Vec<_>>()).1;
        let moved: Vec<StructureRow> = real.iter().map(|row| row.map(|v| v + 2.0 * spread)).collect();
        assert!(structure_distance(&real, &real).expect("clips").distance < 1e-12);
        assert!((structure_distance(&moved, &real).expect("clips").distance - 2.0).abs() < 1e-9);
        let chance = halves_distance(&real, 5, 1).expect("clips");
        assert!(chance > 0.0 && chance < 0.5, "{chance}");
        assert!(structure_distance(&[], &real).is_err());
    }
}
