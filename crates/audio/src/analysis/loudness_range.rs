//! Loudness range after EBU Tech 3342.

use ebur128::{EbuR128, Mode};

/// Samples handed over at once, so that a long piece needs no copy.
const BLOCK: usize = 1 << 16;

/// Loudness range in LU of mono samples at `rate` Hz: spread between soft and loud passages, windows of 3 s.
/// 0 for silence, for less than 3 s, and for rates the standard does not cover.
pub fn loudness_range(samples: &[f32], rate: u32) -> f32 {
    let Ok(mut meter) = EbuR128::new(1, rate, Mode::LRA) else { return 0.0 };
    for block in samples.chunks(BLOCK) {
        if meter.add_frames_f32(block).is_err() {
            return 0.0;
        }
    }
    meter.loudness_range().map_or(0.0, |range| range as f32)
}
