//! Magnitude spectra of a long signal, a block of frames at a time: the same values as transforming it whole.

use crate::spectrum::Stft;

/// Frames transformed at once.
const BLOCK_FRAMES: usize = 256;

/// Calls `visit` with the magnitudes of every frame, in order.
pub(super) fn for_each_frame(stft: &Stft, samples: &[f32], mut visit: impl FnMut(&[f32])) {
    let (frames, hop) = (stft.frame_count(samples.len()), stft.hop());
    // So many frames further in, a window no longer reaches over the edge of its block.
    let margin = (stft.window_length() / 2).div_ceil(hop);
    for first in (0..frames).step_by(BLOCK_FRAMES) {
        let last = (first + BLOCK_FRAMES).min(frames);
        let skipped = margin.min(first);
        let block = &samples[(first - skipped) * hop..((last + margin) * hop).min(samples.len())];
        let spectra = stft.magnitude(block);
        for frame in skipped..skipped + (last - first) {
            visit(spectra.frame(frame));
        }
    }
}

/// The power of two nearest above `seconds` at `rate`, at least 64 samples.
pub(super) fn window_length(rate: u32, seconds: f64) -> usize {
    ((f64::from(rate) * seconds) as usize).next_power_of_two().max(64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_change_nothing() {
        let stft = Stft::new(256, 60);
        for length in [0, 1, 59, 5000, 256 * 60, 40_000] {
            let samples: Vec<f32> = (0..length).map(|n| ((n * n) % 137) as f32 / 68.0 - 1.0).collect();
            let whole = stft.magnitude(&samples);
            let mut frame = 0;
            for_each_frame(&stft, &samples, |row| {
                assert_eq!(row, whole.frame(frame), "frame {frame} of {length} samples");
                frame += 1;
            });
            assert_eq!(frame, whole.frames);
        }
    }
}
