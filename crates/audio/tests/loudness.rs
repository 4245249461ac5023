//! Loudness against the test signals of the EBU.

#![allow(clippy::unwrap_used)]

use mambo_audio::{AudioClip, measure};

fn tone(dbfs: f64, seconds: f64) -> Vec<f32> {
    let amplitude = 10f64.powf(dbfs / 20.0);
    (0..(48_000.0 * seconds) as usize)
        .map(|n| (amplitude * (std::f64::consts::TAU * 1000.0 * n as f64 / 48_000.0 + 0.7).sin()) as f32)
        .collect()
}

fn stereo(samples: Vec<f32>) -> AudioClip {
    AudioClip { sample_rate: 48_000, channels: vec![samples.clone(), samples] }
}

#[test]
fn reference_tones() {
    // EBU Tech 3341, cases 1 and 2.
    for level in [-23.0, -33.0] {
        let loudness = measure(&stereo(tone(level, 20.0)));
        assert!((loudness.integrated_lufs - level).abs() < 0.1, "{loudness:?}");
        assert!((loudness.true_peak_dbfs - level).abs() < 0.1, "{loudness:?}");
    }
    // Case 3: what is far below the rest does not count.
    let gated = [tone(-36.0, 10.0), tone(-23.0, 60.0), tone(-36.0, 10.0)].concat();
    assert!((measure(&stereo(gated)).integrated_lufs + 23.0).abs() < 0.1);
}

#[test]
fn loudness_range() {
    // EBU Tech 3342, cases 1 and 2.
    for (low, range) in [(-30.0, 10.0), (-15.0, 5.0)] {
        let clip = stereo([tone(-20.0, 20.0), tone(low, 20.0)].concat());
        let measured = measure(&clip).range_lu;
        assert!((measured - range).abs() < 1.0, "{measured}");
    }
}

#[test]
fn peaks_between_the_samples_count() {
    // EBU Tech 3341, case 16: a quarter of the rate, 45 degrees off: 3 dB above its samples.
    let beside: Vec<f32> = (0..48_000)
        .map(|n| 0.5 * (std::f32::consts::FRAC_PI_2 * n as f32 + std::f32::consts::FRAC_PI_4).sin())
        .collect();
    let peak = measure(&AudioClip::from_mono(beside, 48_000)).true_peak_dbfs;
    assert!((-6.4..-5.8).contains(&peak), "{peak}");
}
