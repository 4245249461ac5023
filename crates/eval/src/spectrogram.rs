//! Spectrograms as pictures: logarithmic frequency upwards, time to the right, level by colour.

use std::path::Path;

use mambo_audio::spectrum::{Spectrogram, Stft};
use mambo_model::parameters::write_atomically;

use crate::EvalError;

const WINDOW: usize = 4096;
const WIDEST: usize = 900;
const HEIGHT: usize = 240;
const LOWEST_HZ: f64 = 40.0;
const HIGHEST_HZ: f64 = 20_000.0;
/// Levels shown, in dB against a sine at full scale.
const QUIETEST_DB: f32 = -100.0;
const LOUDEST_DB: f32 = -15.0;
/// Octaves marked by a tick at the left edge.
const TICKS_HZ: [f64; 9] = [62.5, 125.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0, 16_000.0];
const TICK_LENGTH: usize = 6;
/// Colours from quiet to loud: night, violet, rose, amber, paper.
const COLOURS: [[f32; 3]; 6] = [
    [8.0, 10.0, 22.0],
    [44.0, 24.0, 92.0],
    [134.0, 36.0, 120.0],
    [222.0, 74.0, 88.0],
    [250.0, 164.0, 74.0],
    [255.0, 248.0, 214.0],
];
/// The last palette entry is kept for ticks.
const TICK_INDEX: u8 = 255;

/// Writes the spectrogram of mono samples at `rate` Hz as a PNG file; a file already there is replaced.
pub fn spectrogram_png(samples: &[f32], rate: u32, path: &Path) -> Result<(), EvalError> {
    let bytes = spectrogram_bytes(samples, rate)?;
    write_atomically(path, &bytes).map_err(EvalError::io(path))
}

/// The spectrogram as the bytes of a PNG: at most 900 by 240 points, 40 Hz to 20 kHz (or half the rate).
pub fn spectrogram_bytes(samples: &[f32], rate: u32) -> Result<Vec<u8>, EvalError> {
    let (width, points) = picture(samples, rate);
    let failed =
        |error: png::EncodingError| EvalError::Encode { what: "spectrogram".into(), reason: error.to_string() };
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width as u32, HEIGHT as u32);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_palette(palette());
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(&points).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(bytes)
}

fn palette() -> Vec<u8> {
    let mut entries = Vec::with_capacity(768);
    for index in 0..255 {
        let place = index as f32 / 254.0 * (COLOURS.len() - 1) as f32;
        let left = (place as usize).min(COLOURS.len() - 2);
        let share = place - left as f32;
        for (a, b) in COLOURS[left].iter().zip(&COLOURS[left + 1]) {
            entries.push((a + (b - a) * share).round() as u8);
        }
    }
    entries.extend([160, 160, 170]);
    entries
}

/// Width and palette indices, top row first.
fn picture(samples: &[f32], rate: u32) -> (usize, Vec<u8>) {
    // Time resolution down to 5 ms for short clips; long ones are averaged into the width.
    let hop = (samples.len().div_ceil(4 * WIDEST)).clamp(rate as usize / 200 + 1, WINDOW / 2);
    let spectrogram = Stft::new(WINDOW, hop.max(1)).magnitude(samples);
    let width = spectrogram.frames.clamp(1, WIDEST);
    let highest = HIGHEST_HZ.min(f64::from(rate) / 2.0);
    let hz_of_row = |row: f64| highest * (LOWEST_HZ / highest).powf(row / HEIGHT as f64);
    let mut points = vec![0u8; width * HEIGHT];
    for row in 0..HEIGHT {
        let bin = |hz: f64| hz * WINDOW as f64 / f64::from(rate);
        let (low, high) = (bin(hz_of_row((row + 1) as f64)), bin(hz_of_row(row as f64)));
        for column in 0..width {
            let frames = span(column, width, spectrogram.frames);
            let magnitude = mean_magnitude(&spectrogram, frames, low, high);
            // A full-scale sine reaches a quarter of the window length.
            let level = 20.0 * (magnitude / (WINDOW as f32 / 4.0)).max(1e-9).log10();
            let share = ((level - QUIETEST_DB) / (LOUDEST_DB - QUIETEST_DB)).clamp(0.0, 1.0);
            points[row * width + column] = (share * 254.0).round() as u8;
        }
    }
    for hz in TICKS_HZ.into_iter().filter(|hz| *hz < highest) {
        let row = ((hz / highest).ln() / (LOWEST_HZ / highest).ln() * HEIGHT as f64) as usize;
        let start = row.min(HEIGHT - 1) * width;
        points[start..start + TICK_LENGTH.min(width)].fill(TICK_INDEX);
    }
    (width, points)
}

/// Frames shown by a column; never empty while there are frames.
fn span(column: usize, width: usize, frames: usize) -> std::ops::Range<usize> {
    let start = column * frames / width;
    start..((column + 1) * frames / width).max(start + 1).min(frames)
}

/// Root mean square over the frames, of the bins between two fractional ones (or between the two nearest).
fn mean_magnitude(spectrogram: &Spectrogram, frames: std::ops::Range<usize>, low: f64, high: f64) -> f32 {
    let last = spectrogram.bins - 1;
    let (first, end) = ((low.ceil() as usize).min(last), (high.floor() as usize).min(last));
    let count = frames.len().max(1) as f32;
    let mut sum = 0.0;
    for frame in frames {
        let row = spectrogram.frame(frame);
        if first <= end {
            sum += row[first..=end].iter().map(|m| m * m).fold(0.0, f32::max);
        } else {
            let middle = 0.5 * (low + high);
            let left = (middle as usize).min(last);
            let share = (middle - left as f64) as f32;
            let value = row[left] * (1.0 - share) + row[(left + 1).min(last)] * share;
            sum += value * value;
        }
    }
    (sum / count).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sine_is_a_line_at_its_height() {
        let rate = 44_100;
        let samples: Vec<f32> =
            (0..rate).map(|n| (2.0 * std::f32::consts::PI * 1000.0 * n as f32 / rate as f32).sin()).collect();
        let (width, points) = picture(&samples, rate);
        let column = width / 2;
        let brightest = (0..HEIGHT).max_by_key(|row| points[row * width + column]).expect("rows");
        let hz = HIGHEST_HZ * (LOWEST_HZ / HIGHEST_HZ).powf((brightest as f64 + 0.5) / HEIGHT as f64);
        assert!((hz / 1000.0).log2().abs() < 0.06, "{hz}");
        // 5 kHz stays dark.
        let quiet = ((5000.0f64 / HIGHEST_HZ).ln() / (LOWEST_HZ / HIGHEST_HZ).ln() * HEIGHT as f64) as usize;
        assert!(points[quiet * width + column] < 60);
    }

    #[test]
    fn files_decode_to_the_picture() {
        for length in [0usize, 10, 3000, 400_000] {
            let samples: Vec<f32> = (0..length).map(|n| ((n * n) % 97) as f32 / 97.0 - 0.5).collect();
            let bytes = spectrogram_bytes(&samples, 22_050).expect("encodes");
            let mut reader = png::Decoder::new(std::io::Cursor::new(&bytes)).read_info().expect("a PNG");
            let info = reader.info();
            assert_eq!(info.height as usize, HEIGHT);
            assert!((1..=WIDEST as u32).contains(&info.width));
            let mut points = vec![0; reader.output_buffer_size().expect("a known size")];
            reader.next_frame(&mut points).expect("all rows");
            assert_eq!(points, picture(&samples, 22_050).1);
        }
        let folder = tempfile::tempdir().expect("a folder");
        assert!(spectrogram_png(&[0.0; 100], 8000, &folder.path().join("none/x.png")).is_err());
    }
}
