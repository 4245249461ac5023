//! Spectra against independent numbers, and sound from magnitudes.

#![allow(clippy::unwrap_used)]

mod common;

use common::music;
use mambo_audio::spectrum::{GriffinLim, GriffinLimStream, Padding, Spectrogram, Stft, mel_filterbank};

fn golden() -> serde_json::Value {
    serde_json::from_str(include_str!("golden/mel.json")).unwrap()
}

#[test]
fn mel_filterbank_matches_independent_numbers() {
    for bank in golden()["banks"].as_array().unwrap() {
        let number = |key: &str| bank[key].as_f64().unwrap();
        let (rate, n_fft, bands) = (number("rate") as u32, number("n_fft") as usize, number("bands") as usize);
        let filters = mel_filterbank(rate, n_fft, bands, number("low"), number("high"));
        let dense = filters.dense();
        assert_eq!((filters.bands(), filters.bins()), (bands, n_fft / 2 + 1));
        // A weight at the very corner of a triangle may round to zero or not.
        let non_zero = dense.iter().filter(|weight| **weight > 0.0).count();
        assert!(non_zero.abs_diff(number("non_zero") as usize) <= 2);
        for (row, sum) in dense.chunks_exact(filters.bins()).zip(bank["sums"].as_array().unwrap()) {
            let seen: f64 = row.iter().map(|weight| f64::from(*weight)).sum();
            assert!((seen - sum.as_f64().unwrap()).abs() < 1e-7, "{seen} {sum}");
        }
        for sample in bank["samples"].as_array().unwrap() {
            let (band, bin) = (sample[0].as_u64().unwrap() as usize, sample[1].as_u64().unwrap() as usize);
            let seen = f64::from(dense[band * filters.bins() + bin]);
            assert!((seen - sample[2].as_f64().unwrap()).abs() < 1e-8, "{band} {bin}: {seen}");
        }
    }
}

#[test]
fn stft_matches_independent_numbers() {
    let golden = &golden()["stft"];
    let count = golden["samples"].as_u64().unwrap() as usize;
    let signal: Vec<f32> = (0..count)
        .map(|n| {
            let t = n as f64;
            (0.6 * (0.03 * t + 1e-5 * t * t).sin() + 0.2 * (0.9 * t).cos()) as f32
        })
        .collect();
    for (name, padding) in [("constant", Padding::Zero), ("reflect", Padding::Reflect)] {
        let stft = Stft::new(1024, 256).with_padding(padding);
        let spectra = stft.forward(&signal);
        let magnitudes = stft.magnitude(&signal);
        assert_eq!(spectra.frames as u64, golden["frames"].as_u64().unwrap());
        let values = golden["values"].as_array().unwrap();
        let mut seen = 0;
        for value in values.iter().filter(|value| value[0] == name) {
            let index = value[1].as_u64().unwrap() as usize * spectra.bins + value[2].as_u64().unwrap() as usize;
            let (re, im) = (value[3].as_f64().unwrap(), value[4].as_f64().unwrap());
            let bin = spectra.data[index];
            assert!((f64::from(bin.re) - re).abs() < 2e-4 && (f64::from(bin.im) - im).abs() < 2e-4, "{value} {bin}");
            assert!((f64::from(magnitudes.data[index]) - re.hypot(im)).abs() < 2e-4);
            seen += 1;
        }
        assert_eq!(seen, 7);
    }
}

/// Energy of the difference of two spectrograms relative to the first, in dB, away from the ends.
fn convergence(goal: &Spectrogram, seen: &Spectrogram) -> f64 {
    let (mut error, mut power) = (0.0, 0.0);
    for frame in 4..goal.frames - 4 {
        for (a, b) in goal.frame(frame).iter().zip(seen.frame(frame)) {
            error += f64::from(a - b).powi(2);
            power += f64::from(*a).powi(2);
        }
    }
    10.0 * (error / power).log10()
}

#[test]
fn griffin_lim_finds_sound_with_these_magnitudes() {
    let signal = music(3 * 44_100);
    let stft = Stft::new(2048, 512);
    let goal = stft.magnitude(&signal);
    let mut before = 0.0;
    for (iterations, least) in [(0, -8.0), (8, -18.0), (32, -22.0)] {
        let found = GriffinLim::new(2048, 512, iterations, 0.99).invert(&goal, 1);
        assert_eq!(found.len(), goal.frames * 512);
        let reached = convergence(&goal, &stft.magnitude(&found));
        assert!(reached < least && reached < before, "{iterations} iterations: {reached:.1} dB");
        before = reached;
    }
    let solver = GriffinLim::default();
    assert_eq!(solver.invert(&goal, 5), solver.invert(&goal, 5));
    assert_ne!(solver.invert(&goal, 5), solver.invert(&goal, 6));
}

#[test]
fn silence_stays_silent_and_few_frames_are_enough() {
    let solver = GriffinLim::default();
    assert!(solver.invert(&Spectrogram::zeros(20, 1025), 1).iter().all(|sample| *sample == 0.0));
    for frames in 0..6 {
        let goal = Stft::new(2048, 512).magnitude(&music(8192)).slice(0..frames);
        let found = solver.invert(&goal, 1);
        assert_eq!(found.len(), frames * 512);
        assert!(found.iter().all(|sample| sample.is_finite() && sample.abs() < 8.0));
        let mut stream = GriffinLimStream::new(&solver, 8, 1);
        let mut joined = stream.push(&goal);
        joined.extend(stream.finish());
        assert_eq!(joined.len(), frames * 512);
    }
}

#[test]
fn the_stream_is_as_good_as_the_whole_and_has_no_seams() {
    let signal = music(4 * 44_100);
    let stft = Stft::new(2048, 512);
    let goal = stft.magnitude(&signal);
    let solver = GriffinLim::default();
    let whole = convergence(&goal, &stft.magnitude(&solver.invert(&goal, 1)));
    for block in [4, 8, 43, 80] {
        let mut stream = GriffinLimStream::new(&solver, 8, 1);
        let mut joined = Vec::new();
        let mut at = 0;
        while at < goal.frames {
            let end = (at + block).min(goal.frames);
            joined.extend(stream.push(&goal.slice(at..end)));
            // Late by no more than the look-ahead, half a window and the first block.
            assert!(joined.len() + (8 + 8 + block) * 512 >= end * 512, "block {block} at {at}: {}", joined.len());
            at = end;
        }
        joined.extend(stream.finish());
        assert_eq!(joined.len(), goal.frames * 512, "block {block}");
        let seen = stft.magnitude(&joined);
        let reached = convergence(&goal, &seen);
        assert!(reached < whole + 1.0, "block {block}: {reached:.1} dB, whole {whole:.1} dB");
        // A seam would show as error that stands at the joins. Compare the frames there with the others.
        let error = |frame: usize| -> f64 {
            goal.frame(frame).iter().zip(seen.frame(frame)).map(|(a, b)| f64::from(a - b).powi(2)).sum()
        };
        if block >= 43 {
            let (joins, others): (Vec<usize>, Vec<usize>) =
                (8..goal.frames - 16).partition(|frame| (frame + 8) % block < 4 || (frame + 8) % block >= block - 4);
            let mean = |frames: &[usize]| frames.iter().map(|&frame| error(frame)).sum::<f64>() / frames.len() as f64;
            assert!(mean(&joins) < 3.0 * mean(&others), "block {block}: {} {}", mean(&joins), mean(&others));
        }
    }
}
