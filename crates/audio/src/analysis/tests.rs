//! Synthetic pieces whose tempo, key and structure are known.

use super::*;

const RATE: u32 = 22_050;

fn silence(seconds: f32) -> Vec<f32> {
    vec![0.0; (seconds * RATE as f32) as usize]
}

fn noise(length: usize, mut state: u32) -> Vec<f32> {
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// Adds a short burst of noise at each of the given times.
fn clicks(times: impl Iterator<Item = f32>, seconds: f32) -> Vec<f32> {
    let mut samples = silence(seconds);
    let burst = noise((0.03 * RATE as f32) as usize, 5);
    for time in times {
        let start = (time * RATE as f32) as usize;
        for (n, value) in burst.iter().enumerate() {
            if let Some(sample) = samples.get_mut(start + n) {
                *sample += 0.5 * value * (-(n as f32) / 150.0).exp();
            }
        }
    }
    samples
}

fn pulse(beats_per_minute: f32, seconds: f32) -> Vec<f32> {
    clicks((0..).map(|n| n as f32 * 60.0 / beats_per_minute).take_while(|t| *t < seconds), seconds)
}

/// A note with four overtones and a decay; `pitch` in semitones above A = 440 Hz.
fn add_note(samples: &mut [f32], start_seconds: f32, seconds: f32, pitch: f32) {
    let hz = 440.0 * (pitch / 12.0).exp2();
    let start = (start_seconds * RATE as f32) as usize;
    for n in 0..(seconds * RATE as f32) as usize {
        let time = n as f32 / RATE as f32;
        let envelope = (time * 200.0).min(1.0) * (-1.5 * time).exp();
        let tone: f32 =
            (1..=4).map(|k| (2.0 * std::f32::consts::PI * hz * k as f32 * time).sin() / (k * k) as f32).sum();
        if let Some(sample) = samples.get_mut(start + n) {
            *sample += 0.2 * envelope * tone;
        }
    }
}

fn melody(pitches: &[f32], note_seconds: f32) -> Vec<f32> {
    let mut samples = silence(pitches.len() as f32 * note_seconds);
    for (n, pitch) in pitches.iter().enumerate() {
        add_note(&mut samples, n as f32 * note_seconds, note_seconds, *pitch);
    }
    samples
}

fn chords(chords: &[[f32; 3]], seconds: f32, transposed: f32) -> Vec<f32> {
    let mut samples = silence(chords.len() as f32 * seconds);
    for (n, chord) in chords.iter().enumerate() {
        for pitch in chord {
            add_note(&mut samples, n as f32 * seconds, seconds, pitch + transposed);
        }
    }
    samples
}

#[test]
fn tempo_of_click_tracks() {
    for expected in [70.0, 96.0, 120.0, 128.0, 150.0, 174.0] {
        let envelope = onset_envelope(&pulse(expected, 20.0), RATE);
        let tempo = estimate_tempo(&envelope).expect("a pulse");
        let ratio = tempo.beats_per_minute / expected;
        assert!((ratio - 1.0).abs() < 0.01, "{expected}: {tempo:?}");
        assert!(tempo.strength > 0.8, "{tempo:?}");
        assert!(pulse_clarity(&envelope) > 0.8);
        assert!(tempo_stability(&envelope) > 0.9, "{expected}: {}", tempo_stability(&envelope));
        let density = envelope.density();
        assert!((density - expected / 60.0).abs() < 0.1, "{expected}: {density} onsets a second");
    }
}

#[test]
fn tempo_does_not_depend_on_level_or_rate() {
    let loud = pulse(110.0, 15.0);
    let soft: Vec<f32> = loud.iter().map(|s| s * 0.01).collect();
    let (a, b) = (onset_envelope(&loud, RATE), onset_envelope(&soft, RATE));
    for (x, y) in a.values.iter().zip(&b.values) {
        assert!((x - y).abs() < 1e-3);
    }
    // The same samples called 44.1 kHz are twice as fast.
    let fast = estimate_tempo(&onset_envelope(&pulse(55.0, 30.0), 2 * RATE)).expect("a pulse");
    assert!((fast.beats_per_minute - 110.0).abs() < 1.5, "{fast:?}");
}

#[test]
fn irregular_onsets_have_no_pulse() {
    let mut state = 9u32;
    let mut time = 0.0;
    let times: Vec<f32> = (0..60)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            time += 0.1 + 0.6 * (state >> 8) as f32 / (1 << 24) as f32;
            time
        })
        .collect();
    let irregular = onset_envelope(&clicks(times.into_iter(), 22.0), RATE);
    let steady = onset_envelope(&pulse(120.0, 22.0), RATE);
    assert!(pulse_clarity(&irregular) < 0.5 * pulse_clarity(&steady));
    let hiss = onset_envelope(&noise(20 * RATE as usize, 3), RATE);
    assert!(pulse_clarity(&hiss) < 0.15, "{}", pulse_clarity(&hiss));
}

#[test]
fn a_tempo_that_changes_is_less_stable() {
    let mut time = 0.0;
    let times: Vec<f32> = std::iter::from_fn(|| {
        time += 60.0 / (80.0 + 3.0 * time);
        (time < 24.0).then_some(time)
    })
    .collect();
    let drifting = tempo_stability(&onset_envelope(&clicks(times.into_iter(), 24.0), RATE));
    assert!(drifting < 0.7, "{drifting}");
}

#[test]
fn key_of_scales_and_cadences() {
    // C D E F G A B C and back.
    let degrees = [-9.0, -7.0, -5.0, -4.0, -2.0, 0.0, 2.0, 3.0, 2.0, 0.0, -2.0, -4.0, -5.0, -7.0, -9.0];
    let scale = melody(&degrees, 0.4);
    let key = analyse(&scale, RATE).key.expect("a key");
    assert_eq!((key.tonic, key.mode), (0, Mode::Major), "{}", key.name());
    assert_eq!(key.name(), "C major");
    // A minor: i iv V i, moved through all twelve keys.
    let cadence = [[0.0, 3.0, 7.0], [-7.0, -4.0, 0.0], [-5.0, -1.0, 2.0], [0.0, 3.0, 7.0]];
    for semitones in 0..12i8 {
        let key = analyse(&chords(&cadence, 1.0, f32::from(semitones)), RATE).key.expect("a key");
        assert_eq!(key.mode, Mode::Minor, "moved by {semitones}: {}", key.name());
        assert_eq!(key.tonic, (9 + semitones as u8) % 12, "moved by {semitones}");
        assert!(key.confidence > 0.1, "{key:?}");
    }
}

#[test]
fn tuning_is_found_and_removed() {
    let triad = [[-9.0, -5.0, -2.0]; 3];
    for detuned in [-0.4, -0.2, 0.0, 0.3] {
        let chroma = chromagram(&chords(&triad, 1.0, detuned), RATE);
        assert!((chroma.tuning - detuned).abs() < 0.05, "{detuned}: {}", chroma.tuning);
        let mean = chroma.mean();
        let mut order: Vec<usize> = (0..12).collect();
        order.sort_by(|a, b| mean[*b].total_cmp(&mean[*a]));
        let mut strongest = order[..3].to_vec();
        strongest.sort_unstable();
        assert_eq!(strongest, [0, 4, 7], "detuned by {detuned}: {mean:?}");
    }
}

#[test]
fn chroma_correlation_knows_the_right_notes() {
    let progression = [[-9.0, -5.0, -2.0], [-4.0, 0.0, 3.0], [-2.0, 2.0, 5.0], [-9.0, -5.0, -2.0]];
    let original = chords(&progression, 0.8, 0.0);
    assert!((chroma_correlation(&original, &original, RATE) - 1.0).abs() < 1e-5);
    let softer: Vec<f32> = original.iter().map(|s| s * 0.1).collect();
    assert!(chroma_correlation(&original, &softer, RATE) > 0.999);
    let hissy: Vec<f32> = original.iter().zip(noise(original.len(), 8)).map(|(s, n)| s + 0.02 * n).collect();
    assert!(chroma_correlation(&original, &hissy, RATE) > 0.8);
    assert!(chroma_correlation(&original, &chords(&progression, 0.8, 1.0), RATE) < 0.2);
    assert!(chroma_correlation(&original, &noise(original.len(), 4), RATE) < 0.35);
}

#[test]
fn repetition_shows_at_its_lag() {
    // One chord a beat at 120, four different chords: alike at a bar, unlike at a beat.
    let bar = [[-9.0, -5.0, -2.0], [-8.0, -4.0, -1.0], [-7.0, -3.0, 0.0], [-6.0, -2.0, 1.0]];
    let progression: Vec<[f32; 3]> = bar.iter().copied().cycle().take(40).collect();
    let chroma = chromagram(&chords(&progression, 0.5, 0.0), RATE);
    let (beat, measure) = (chroma.self_similarity(0.5), chroma.self_similarity(2.0));
    assert!(measure > 0.9, "{measure}");
    assert!(beat < 0.5, "{beat}");
    assert_eq!(chroma.self_similarity(100.0), 0.0);
}

#[test]
fn brightness_and_octaves_follow_the_frequency() {
    let sine = |hz: f32| -> Vec<f32> {
        (0..2 * RATE).map(|n| 0.3 * (2.0 * std::f32::consts::PI * hz * n as f32 / RATE as f32).sin()).collect()
    };
    for (octave, hz) in [(0, 90.0), (2, 350.0), (4, 1400.0), (6, 5600.0)] {
        // The clip starts and stops abruptly, which spreads a little of the sound everywhere.
        let centroid = brightness(&sine(hz), RATE);
        assert!((centroid - hz).abs() < 60.0 + 0.1 * hz, "{hz}: {centroid}");
        let energy = octave_energy(&sine(hz), RATE);
        let total: f64 = energy.iter().sum();
        assert!(energy[octave] > 0.98 * total, "{hz}: {energy:?}");
    }
}

#[test]
fn loudness_range_of_a_crescendo() {
    let length = 30 * RATE as usize;
    let steady = noise(length, 2);
    let swelling: Vec<f32> = steady
        .iter()
        .enumerate()
        .map(|(n, s)| s * 10f32.powf(-20.0 * (1.0 - n as f32 / length as f32) / 20.0))
        .collect();
    assert!(loudness_range(&steady, RATE) < 1.0);
    let range = loudness_range(&swelling, RATE);
    // 20 dB over the piece, the middle 85 % of them.
    assert!((13.0..19.0).contains(&range), "{range}");
}

#[test]
fn mel_distance_grows_with_damage() {
    let original = melody(&[0.0, 4.0, 7.0, 12.0], 0.5);
    let hiss = noise(original.len(), 6);
    let damaged = |gain: f32| -> Vec<f32> { original.iter().zip(&hiss).map(|(s, n)| s + gain * n).collect() };
    let scales = MelScales::new(RATE);
    let distances: Vec<f64> =
        [0.0, 1e-4, 1e-3, 1e-2].iter().map(|g| scales.distance(&original, &damaged(*g))).collect();
    assert_eq!(distances[0], 0.0);
    assert!(distances.windows(2).all(|pair| pair[0] < pair[1]), "{distances:?}");
    assert_eq!(scales.distance(&[], &original), 0.0);
    let other = damaged(1e-2);
    assert!((scales.distance(&original, &other) - scales.distance(&other, &original)).abs() < 1e-12);
}

#[test]
fn silence_and_fragments_are_answered() {
    for samples in [vec![], vec![0.3], silence(0.01), silence(5.0), vec![0.5; 3000], noise(1000, 1)] {
        let analysis = analyse(&samples, RATE);
        assert!(analysis.tempo.is_none(), "{analysis:?}");
        let figures = StructureFeatures::from(&analysis).values();
        assert!(figures.iter().all(|v| v.is_finite()), "{figures:?}");
        assert!(analysis.brightness_hz.is_finite() && analysis.octave_energy.iter().all(|e| e.is_finite()));
    }
    let quiet = analyse(&silence(5.0), RATE);
    assert!(quiet.key.is_none() && quiet.onset_density == 0.0 && quiet.brightness_hz == 0.0);
    // Any rate a file may claim.
    for rate in [1, 8, 100, 8000, 192_000] {
        let _ = analyse(&noise(20_000, 1), rate);
    }
}

#[test]
fn analysis_is_fast() {
    let clip: Vec<f32> = noise(20 * 44_100, 11);
    let start = std::time::Instant::now();
    let analysis = analyse(&clip, 44_100);
    let factor = analysis.seconds / start.elapsed().as_secs_f32();
    // About 400 on one core of a quiet machine; the bound leaves room for a busy one.
    assert!(factor > 30.0, "{factor:.0} x real time");
}
