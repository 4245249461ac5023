//! Sounds that several tests use.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

use mambo_audio::AudioClip;

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The two sweeps of the fixtures, see their README.
pub fn sweep(rate: u32, seconds: f64) -> AudioClip {
    let side = |amplitude: f64, start: f64, slope: f64| {
        (0..(seconds * f64::from(rate)).round() as usize)
            .map(|n| {
                let t = n as f64 / f64::from(rate);
                (amplitude * (std::f64::consts::TAU * (start * t + slope * t * t)).sin()) as f32
            })
            .collect()
    };
    AudioClip { sample_rate: rate, channels: vec![side(0.5, 200.0, 2000.0), side(0.4, 300.0, 1500.0)] }
}

/// Signal to noise ratio in dB of `seen` against `wanted`, over what both have.
pub fn ratio(seen: &[f32], wanted: &[f32]) -> f64 {
    let power: f64 = wanted.iter().zip(seen).map(|(w, _)| f64::from(*w).powi(2)).sum();
    let error: f64 = wanted.iter().zip(seen).map(|(w, s)| f64::from(s - w).powi(2)).sum();
    10.0 * (power / error.max(1e-30)).log10()
}

/// A chord with an attack, a decay and some noise: music enough for a spectrum.
pub fn music(frames: usize) -> Vec<f32> {
    let mut state = 1u32;
    (0..frames)
        .map(|n| {
            let t = n as f32 / 44_100.0;
            let beat = (t * 2.0).fract();
            let root = [220.0, 261.63, 174.61, 196.0][(t * 0.5) as usize % 4];
            let chord: f32 = [1.0, 1.26, 1.5, 2.0, 3.0]
                .iter()
                .enumerate()
                .map(|(k, ratio)| (std::f32::consts::TAU * root * ratio * t).sin() / (k + 2) as f32)
                .sum();
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let noise = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
            0.4 * chord * (-3.0 * beat).exp() + 0.05 * noise * (-20.0 * beat).exp()
        })
        .collect()
}
