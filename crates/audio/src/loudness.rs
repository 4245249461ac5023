//! Loudness and true peak: EBU R128 (ITU-R BS.1770-4) and EBU Tech 3342, through the crate `ebur128`.

use ebur128::{EbuR128, Mode};

use crate::AudioClip;

/// Frames handed to the meter at once: bounds the memory of its true-peak filter.
const BLOCK: usize = 1 << 16;

/// What a meter has heard.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loudness {
    /// Integrated loudness in LUFS; negative infinity for silence and for sound below the gate.
    pub integrated_lufs: f64,
    /// Loudness range in LU; 0 for sound too short to have one.
    pub range_lu: f64,
    /// Highest true peak of any channel in dBFS; negative infinity for silence.
    pub true_peak_dbfs: f64,
}

/// A running meter: blocks in, one measurement at the end, memory that does not grow with the samples.
pub struct LoudnessMeter {
    /// `None` for a format no meter can measure (no channels or a rate beyond its filters).
    meter: Option<EbuR128>,
    channels: usize,
    /// Frames heard.
    frames: u64,
}

impl std::fmt::Debug for LoudnessMeter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoudnessMeter").field("channels", &self.channels).field("frames", &self.frames).finish()
    }
}

impl LoudnessMeter {
    /// A meter for sound of this rate and number of channels.
    pub fn new(sample_rate: u32, channels: usize) -> Self {
        let mode = Mode::I | Mode::LRA | Mode::TRUE_PEAK | Mode::HISTOGRAM;
        let meter = u32::try_from(channels).ok().and_then(|count| EbuR128::new(count, sample_rate, mode).ok());
        Self { meter, channels, frames: 0 }
    }

    /// Listens to a block.
    ///
    /// # Panics
    /// When the block has another number of channels.
    pub fn push(&mut self, clip: &AudioClip) {
        assert_eq!(clip.channels.len(), self.channels, "channels of the block");
        self.frames += clip.frames() as u64;
        let Some(meter) = &mut self.meter else { return };
        for start in (0..clip.frames()).step_by(BLOCK) {
            let end = (start + BLOCK).min(clip.frames());
            let planes: Vec<&[f32]> = clip.channels.iter().map(|channel| &channel[start..end]).collect();
            meter.add_frames_planar_f32(&planes).expect("planes of equal length, one per channel");
        }
    }

    /// What has been heard so far.
    pub fn measure(&self) -> Loudness {
        let silent = Loudness { integrated_lufs: f64::NEG_INFINITY, range_lu: 0.0, true_peak_dbfs: f64::NEG_INFINITY };
        let Some(meter) = self.meter.as_ref().filter(|_| self.frames > 0) else { return silent };
        let peak = (0..self.channels as u32).filter_map(|channel| meter.true_peak(channel).ok()).fold(0.0, f64::max);
        Loudness {
            integrated_lufs: meter.loudness_global().unwrap_or(f64::NEG_INFINITY),
            range_lu: meter.loudness_range().unwrap_or(0.0),
            true_peak_dbfs: 20.0 * peak.log10(),
        }
    }
}

/// Loudness and true peak of a whole clip.
pub fn measure(clip: &AudioClip) -> Loudness {
    let mut meter = LoudnessMeter::new(clip.sample_rate, clip.channels.len());
    meter.push(clip);
    meter.measure()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(amplitude: f32, seconds: usize) -> AudioClip {
        let samples =
            (0..48_000 * seconds).map(|n| amplitude * (n as f32 * 997.0 * std::f32::consts::TAU / 48_000.0).sin());
        AudioClip::from_mono(samples.collect(), 48_000)
    }

    #[test]
    fn a_full_scale_tone_reads_minus_three() {
        // BS.1770: a 997 Hz sine at 0 dBFS in one channel is -3.01 LUFS.
        let loudness = measure(&tone(1.0, 5));
        assert!((loudness.integrated_lufs + 3.01).abs() < 0.1, "{loudness:?}");
        assert!(loudness.true_peak_dbfs.abs() < 0.1, "{loudness:?}");
        let quieter = measure(&tone(0.1, 5));
        assert!((loudness.integrated_lufs - quieter.integrated_lufs - 20.0).abs() < 0.1);
    }

    #[test]
    fn blocks_do_not_matter_and_silence_has_no_loudness() {
        let clip = tone(0.5, 4);
        let mut meter = LoudnessMeter::new(48_000, 1);
        for block in clip.channels[0].chunks(777) {
            meter.push(&AudioClip::from_mono(block.to_vec(), 48_000));
        }
        let (whole, parts) = (measure(&clip), meter.measure());
        assert!((whole.integrated_lufs - parts.integrated_lufs).abs() < 1e-9);
        assert_eq!(measure(&tone(0.0, 2)).integrated_lufs, f64::NEG_INFINITY);
        assert_eq!(measure(&AudioClip::from_mono(Vec::new(), 48_000)).integrated_lufs, f64::NEG_INFINITY);
    }
}
