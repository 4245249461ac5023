//! Mean cross-entropy of rows of logits with integer targets, label smoothing (Szegedy et al., arXiv:1512.00567) and
//! rows that do not count; the gradient is recomputed from the logits and one number a row.

use crate::simd::{Isa, exp, fold, fused, simd_fn};
use rayon::prelude::*;

/// Rows a task handles.
const ROWS: usize = 16;

/// The loss of a set of rows.
#[derive(Debug)]
pub struct Loss {
    /// Mean over the rows that count; 0 if none does.
    pub mean: f32,
    /// Loss of each row, 0 where it does not count.
    pub rows: Vec<f32>,
    /// ln of the sum of the exponentials of each row, for [`backward`].
    pub log_sums: Vec<f32>,
    /// Rows that count.
    pub counted: usize,
}

/// Loss of `logits` `[rows, classes]` for one target a row; a negative target does not count.
///
/// # Panics
/// If the lengths do not fit or a target is not below `classes`.
pub fn forward(logits: &[f32], classes: usize, targets: &[i32], smoothing: f32) -> Loss {
    check(logits, classes, targets);
    let rows = targets.len();
    let (mut losses, mut log_sums) = (vec![0.0f32; rows], vec![0.0f32; rows]);
    losses
        .par_chunks_mut(ROWS)
        .zip(log_sums.par_chunks_mut(ROWS))
        .zip(logits.par_chunks(ROWS * classes))
        .zip(targets.par_chunks(ROWS))
        .for_each(|(((losses, log_sums), logits), targets)| {
            for (index, logits) in logits.chunks_exact(classes).enumerate() {
                let (log_sum, total) = row_sums(logits);
                log_sums[index] = log_sum;
                if let Ok(target) = usize::try_from(targets[index]) {
                    losses[index] = log_sum - (1.0 - smoothing) * logits[target] - smoothing * total / classes as f32;
                }
            }
        });
    let counted = targets.iter().filter(|target| **target >= 0).count();
    let sum: f64 = losses.iter().map(|loss| f64::from(*loss)).sum();
    Loss { mean: if counted == 0 { 0.0 } else { (sum / counted as f64) as f32 }, rows: losses, log_sums, counted }
}

/// Gradient of the logits for the gradient `d_mean` of the mean loss.
///
/// # Panics
/// As [`forward`].
pub fn backward(
    logits: &[f32],
    classes: usize,
    targets: &[i32],
    smoothing: f32,
    log_sums: &[f32],
    d_mean: f32,
) -> Vec<f32> {
    check(logits, classes, targets);
    assert_eq!(log_sums.len(), targets.len(), "cross-entropy: saved sums");
    let counted = targets.iter().filter(|target| **target >= 0).count().max(1);
    let scale = d_mean / counted as f32;
    let mut out = vec![0.0f32; logits.len()];
    out.par_chunks_mut(ROWS * classes).enumerate().for_each(|(task, lines)| {
        for (index, line) in lines.chunks_exact_mut(classes).enumerate() {
            let row = task * ROWS + index;
            if let Ok(target) = usize::try_from(targets[row]) {
                softmax_gradient(
                    &logits[row * classes..][..classes],
                    log_sums[row],
                    scale,
                    smoothing / classes as f32,
                    line,
                );
                line[target] -= (1.0 - smoothing) * scale;
            }
        }
    });
    out
}

fn check(logits: &[f32], classes: usize, targets: &[i32]) {
    assert!(classes > 0, "cross-entropy: no classes");
    assert_eq!(logits.len(), targets.len() * classes, "cross-entropy: {} targets of {classes} classes", targets.len());
    if let Some(target) = targets.iter().find(|target| **target >= classes as i32) {
        panic!("cross-entropy: target {target} of {classes} classes");
    }
}

simd_fn! {
    /// (ln sum exp, sum) of a row.
    fn row_sums(logits: &[f32]) -> (f32, f32) = row_sums_body
}

#[inline(always)]
fn row_sums_body<I: Isa>(logits: &[f32]) -> (f32, f32) {
    let blocks = logits.chunks_exact(16);
    let rest = blocks.remainder();
    let (mut highest, mut sums) = ([f32::MIN; 16], [0.0f32; 16]);
    for block in blocks.clone() {
        for lane in 0..16 {
            highest[lane] = if block[lane] > highest[lane] { block[lane] } else { highest[lane] };
            sums[lane] += block[lane];
        }
    }
    let mut top = f32::MIN;
    for value in highest.iter().chain(rest) {
        top = if *value > top { *value } else { top };
    }
    let total = fold(sums) + rest.iter().sum::<f32>();
    let mut powers = [0.0f32; 16];
    for block in blocks {
        for lane in 0..16 {
            powers[lane] += exp::<I>(block[lane] - top);
        }
    }
    let mut power = fold(powers);
    for value in rest {
        power += exp::<I>(value - top);
    }
    (top + power.ln(), total)
}

simd_fn! {
    /// `out = scale * (softmax - smooth)`
    fn softmax_gradient(logits: &[f32], log_sum: f32, scale: f32, smooth: f32, out: &mut [f32]) = softmax_gradient_body
}

#[inline(always)]
fn softmax_gradient_body<I: Isa>(logits: &[f32], log_sum: f32, scale: f32, smooth: f32, out: &mut [f32]) {
    for (value, logit) in out.iter_mut().zip(logits) {
        *value = fused::<I>(scale, exp::<I>(logit - log_sum), -(scale * smooth));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_and_gradient_match_the_definition() {
        for classes in [5usize, 64, 1030] {
            let rows = 37;
            let logits: Vec<f32> = (0..rows * classes).map(|i| 4.0 * (i as f32 * 0.71).sin() + 30.0).collect();
            let targets: Vec<i32> =
                (0..rows).map(|r| if r % 5 == 4 { -1 } else { ((r * 31) % classes) as i32 }).collect();
            for smoothing in [0.0f32, 0.1] {
                let loss = forward(&logits, classes, &targets, smoothing);
                let got = backward(&logits, classes, &targets, smoothing, &loss.log_sums, 2.0);
                let counted = targets.iter().filter(|t| **t >= 0).count();
                assert_eq!(loss.counted, counted);
                let mut sum = 0.0f64;
                for row in 0..rows {
                    let line: Vec<f64> = logits[row * classes..][..classes].iter().map(|v| f64::from(*v)).collect();
                    let top = line.iter().cloned().fold(f64::MIN, f64::max);
                    let power: f64 = line.iter().map(|v| (v - top).exp()).sum();
                    for c in 0..classes {
                        let probability = (line[c] - top).exp() / power;
                        let wanted = f64::from(smoothing) / classes as f64
                            + if targets[row] == c as i32 { 1.0 - f64::from(smoothing) } else { 0.0 };
                        let expected =
                            if targets[row] < 0 { 0.0 } else { 2.0 * (probability - wanted) / counted as f64 };
                        // The saved sum is an f32 near 34: half a unit in its last place is 2e-6 relative.
                        assert!(
                            (f64::from(got[row * classes + c]) - expected).abs() < 5e-6 * (probability + wanted) + 1e-9,
                            "row {row} class {c}"
                        );
                        if targets[row] >= 0 {
                            sum -= wanted * probability.ln();
                        }
                    }
                }
                let mean = sum / counted as f64;
                assert!((f64::from(loss.mean) - mean).abs() < 1e-5 * mean, "{} against {mean}", loss.mean);
            }
        }
        let none = forward(&[1.0, 2.0], 2, &[-1], 0.0);
        assert_eq!((none.mean, none.counted), (0.0, 0));
        assert_eq!(backward(&[1.0, 2.0], 2, &[-1], 0.0, &none.log_sums, 1.0), vec![0.0, 0.0]);
    }
}
