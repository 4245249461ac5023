//! Distances against numpy and scipy: tools/reference/metrics.py wrote golden/metrics.json.

#![allow(clippy::unwrap_used)]

use mambo_audio::analysis::multi_scale_mel_distance;
use mambo_eval::Rows;
use mambo_eval::frechet::{Draws, Gaussian, frechet_distance};
use mambo_eval::kl::{clip_distribution, divergence};
use mambo_eval::structure::wasserstein;

fn golden(name: &str) -> f64 {
    values()[name].as_f64().expect("a number")
}

fn values() -> serde_json::Value {
    serde_json::from_str(include_str!("golden/metrics.json")).expect("well formed")
}

/// The generator of tools/reference/metrics.py.
fn noise(count: usize, mut state: u32) -> Vec<f32> {
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

fn matrix(rows: usize, width: usize, seed: u32, shift: f32, scale: f32, mix: f64) -> Rows {
    let mut values: Vec<f64> = noise(rows * width, seed).into_iter().map(f64::from).collect();
    for row in values.chunks_exact_mut(width) {
        for column in 1..width {
            row[column] += mix * row[column - 1];
        }
    }
    Rows::new(width, values.into_iter().map(|v| shift + scale * v as f32).collect())
}

fn close(found: f64, expected: f64, tolerance: f64) {
    assert!((found - expected).abs() <= tolerance * expected.abs().max(1e-3), "{found} instead of {expected}");
}

#[test]
fn frechet_agrees_with_scipy() {
    let fit = |rows: &Rows| Gaussian::fit(rows).expect("enough rows");
    let (a, b) = (matrix(40, 6, 1, 0.0, 1.0, 0.5), matrix(70, 6, 2, 0.3, 1.5, -0.4));
    close(fit(&a).distance(&fit(&b)).expect("same width"), golden("frechet"), 1e-6);
    let (a, b) = (matrix(8, 12, 3, 0.0, 1.0, 0.2), matrix(9, 12, 4, 0.1, 0.7, 0.0));
    let found = fit(&a).distance(&fit(&b)).expect("same width");
    close(found, golden("frechet_fewer_rows_than_columns"), 1e-5);
    // Equal numbers: one row of the larger side stays out of each draw.
    let drawn = frechet_distance(&a, &b, &Draws::default()).expect("enough rows");
    assert!(drawn.patches == 8 && drawn.spread > 0.0);
}

#[test]
fn divergence_agrees_with_numpy() {
    let tags =
        |count: usize, seed: u32| Rows::new(10, noise(count, seed).into_iter().map(|v| (v + 1.0) / 2.0).collect());
    let p = clip_distribution(&tags(30, 5)).expect("patches");
    let q = clip_distribution(&tags(40, 6)).expect("patches");
    for (found, expected) in p.iter().zip(values()["distribution_a"].as_array().expect("a list")) {
        close(*found, expected.as_f64().expect("a number"), 1e-5);
    }
    close(divergence(&p, &q), golden("kl_a_b"), 1e-5);
    close(divergence(&q, &p), golden("kl_b_a"), 1e-5);
}

#[test]
fn mel_distance_agrees_with_numpy() {
    let rate = 44_100;
    let clean: Vec<f32> = (0..20_000)
        .map(|n| {
            let turn = 2.0 * std::f64::consts::PI * f64::from(n) / f64::from(rate);
            (0.4 * (440.0 * turn).sin() + 0.2 * (3000.0 * turn).sin()) as f32
        })
        .collect();
    let hiss = noise(20_000, 7);
    let hissy: Vec<f32> = clean.iter().zip(&hiss).map(|(s, n)| s + 0.01 * n).collect();
    // Between the partials of a pure tone stand the rounding errors of f32, hence the tolerance.
    close(multi_scale_mel_distance(&clean, &hissy, rate), golden("mel_distance_hiss"), 2e-3);
    close(multi_scale_mel_distance(&clean, &hiss, rate), golden("mel_distance_noise"), 2e-3);
}

#[test]
fn wasserstein_agrees_with_scipy() {
    let list = |count: usize, seed: u32, shift: f64| -> Vec<f64> {
        noise(count, seed).into_iter().map(|v| shift + f64::from(v)).collect()
    };
    close(wasserstein(&list(13, 8, 0.0), &list(29, 9, 0.5)), golden("wasserstein"), 1e-9);
}
