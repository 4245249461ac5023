//! musicnn against the float64 reference in tools/reference/musicnn.py, on a signal that both sides compute.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use mambo_model::listen::Musicnn;
use mambo_model::listen::musicnn::{FEATURES, MELS, TAGS};
use mambo_model::weights::{Weights, WeightsError};

fn tagger(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny/tagger").join(name)
}

fn golden() -> Weights {
    Weights::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/musicnn.safetensors"))
        .expect("the golden file is in the repository")
}

/// Noise in [-1, 1): an integer hash of the sample index.
fn hash_noise(index: usize) -> f64 {
    let mut value = (index as u32).wrapping_mul(0x9E37_79B1);
    value ^= value >> 15;
    value = value.wrapping_mul(0x85EB_CA77);
    value ^= value >> 13;
    value = value.wrapping_mul(0xC2B2_AE3D);
    value ^= value >> 16;
    f64::from(value) / 2_147_483_648.0 - 1.0
}

/// The signal of tools/reference/test_signal.py: plucked harmonics, drum and noise, chirps, quiet noise.
fn signal() -> Vec<f32> {
    let turn = std::f64::consts::TAU;
    (0..16_000 * 12)
        .map(|index| {
            let time = (index % 48_000) as f64 / 16_000.0;
            let noise = hash_noise(index);
            let value = match index / 48_000 {
                0 => {
                    let beat = (time * 4.0).floor();
                    let since = time - beat / 4.0;
                    let pitch = 220.0 * [1.0, 1.25, 1.5, 2.0][beat as usize % 4];
                    let tone: f64 = (1..7).map(f64::from).map(|h| (turn * pitch * h * since).sin() / h).sum();
                    0.3 * tone * (-6.0 * since).exp()
                }
                1 => {
                    let since = time - (time * 2.0).floor() / 2.0;
                    0.5 * (turn * 60.0 * since).sin() * (-10.0 * since).exp() + 0.4 * noise * (-30.0 * since).exp()
                }
                2 => {
                    let rising = (turn * (100.0 * time + 900.0 * time * time)).sin();
                    let falling = (turn * (6000.0 * time - 800.0 * time * time)).sin();
                    0.3 * rising + 0.2 * falling + 0.01 * noise
                }
                _ => 1e-3 * noise,
            };
            value as f32
        })
        .collect()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn relative_distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    square(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b))) / square(&mut b.iter().map(|&b| f64::from(b)))
}

#[test]
fn input_matches_the_reference() {
    let (golden, samples) = (golden(), signal());
    let picked: Vec<f32> = samples.iter().copied().step_by(997).collect();
    let expected = golden.f32("samples", &[picked.len()]).unwrap();
    assert!(largest_difference(&picked, &expected) < 1e-6, "the two test signals differ");

    let model = Musicnn::load(&tagger("mtt.safetensors")).unwrap();
    let mel = model.log_mel(&samples);
    let frames = mel.len() / MELS;
    assert_eq!(frames, 751);
    let picked: Vec<f32> = mel.chunks_exact(MELS).step_by(25).flatten().copied().collect();
    let expected = golden.f32("log_mel", &[frames.div_ceil(25), MELS]).unwrap();
    let distance = relative_distance(&picked, &expected);
    assert!(distance <= 1e-5, "relative distance {distance}");
    let worst = largest_difference(&picked, &expected);
    assert!(worst <= 1e-3, "largest difference {worst} of log10 values up to 7");
}

#[test]
fn tags_and_features_match_the_reference() {
    let (golden, samples) = (golden(), signal());
    for name in ["mtt", "msd"] {
        let model = Musicnn::load(&tagger(&format!("{name}.safetensors"))).unwrap();
        let output = model.analyse(&samples);
        assert_eq!(output.patches, 4);
        let read = |what: &str, width| golden.f32(&format!("{name}.{what}"), &[4, width]).unwrap();
        let worst = largest_difference(&output.tags, &read("tags", TAGS));
        assert!(worst <= 2e-3, "{name}: tags differ from the published weights' by {worst}");
        let distance = relative_distance(&output.features, &read("features", FEATURES));
        assert!(distance <= 5e-3, "{name}: features differ from the published weights' by {distance}");
        // Against the reference on the shipped file only rounding of f32 sums is left.
        let worst = largest_difference(&output.tags, &read("shipped_tags", TAGS));
        assert!(worst <= 2e-5, "{name}: tags differ by {worst}");
        let distance = relative_distance(&output.features, &read("shipped_features", FEATURES));
        assert!(distance <= 2e-5, "{name}: features differ by {distance}");
    }
}

#[test]
fn blocks_and_steps_do_not_change_a_patch() {
    let model = Musicnn::load(&tagger("mtt.safetensors")).unwrap();
    let twelve = signal();
    let whole = model.analyse(&twelve);
    let overlapping = model.analyse_every(&twelve, 17);
    // More than one block of 16; 187 = 11 * 17, so every 11th overlapping patch is one of the others.
    assert_eq!(overlapping.patches, (751 - 187) / 17 + 1);
    for patch in 0..4 {
        let (a, b) = (patch * TAGS, patch * 11 * TAGS);
        assert_eq!(whole.tags[a..a + TAGS], overlapping.tags[b..b + TAGS], "patch {patch}");
    }
    // Without its first patch the recording starts with another reflection, which only one patch sees.
    let later = model.analyse(&twelve[187 * 256..]);
    assert_eq!(later.features[FEATURES..], whole.features[2 * FEATURES..]);

    let mean = whole.mean_tags().unwrap();
    let by_hand = whole.tags.iter().step_by(TAGS).sum::<f32>() / 4.0;
    assert!((mean[0] - by_hand).abs() < 1e-6);
    assert_eq!(whole.mean_features().unwrap().len(), FEATURES);
}

#[test]
fn short_sound_has_no_patches() {
    let model = Musicnn::load(&tagger("msd.safetensors")).unwrap();
    for length in [0, 1, 100, 257, 47_000] {
        let output = model.analyse(&vec![0.1; length]);
        assert_eq!((output.patches, output.tags.len(), output.mean_tags()), (0, 0, None), "{length} samples");
    }
    // 187 frames: the first patch, its last window reflected at the end.
    assert_eq!(model.analyse(&vec![0.1; 47_616]).patches, 1);
}

#[test]
fn other_rates_are_resampled() {
    let model = Musicnn::load(&tagger("mtt.safetensors")).unwrap();
    let tone = |rate: usize| -> Vec<f32> {
        (0..rate * 6)
            .map(|n| n as f64 / rate as f64)
            .map(|t| (0.4 * (std::f64::consts::TAU * 440.0 * t).sin() * (-2.0 * t.fract()).exp()) as f32)
            .collect()
    };
    let direct = model.analyse(&tone(16_000));
    let resampled = model.analyse_44k(&tone(44_100));
    assert_eq!(direct.patches, 2);
    assert_eq!(resampled.patches, 2);
    let worst = largest_difference(&direct.tags, &resampled.tags);
    assert!(worst < 0.05, "tags differ by {worst}");
}

#[test]
fn a_foreign_file_is_refused_by_name() {
    let error =
        Musicnn::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/musicnn.safetensors")).unwrap_err();
    assert!(matches!(error, WeightsError::Metadata { .. }) && error.to_string().contains("format"), "{error}");

    let bytes = std::fs::read(tagger("mtt.safetensors")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.safetensors");
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = Musicnn::load(&path).unwrap_err();
    assert!(matches!(error, WeightsError::Format { .. }) && error.to_string().contains("cut.safetensors"), "{error}");

    // The same length of JSON with one name changed.
    let at = bytes.windows(9).position(|part| part == b"dense_1/b").unwrap();
    let mut renamed = bytes.clone();
    renamed[at..at + 9].copy_from_slice(b"dense_2/b");
    std::fs::write(&path, renamed).unwrap();
    let error = Musicnn::load(&path).unwrap_err();
    assert!(matches!(&error, WeightsError::Missing { name, .. } if name == "dense_1/bias"), "{error}");
}
