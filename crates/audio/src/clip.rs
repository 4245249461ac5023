//! Sound in memory: planar f32 samples, full scale at 1.0.

/// A piece of sound: one vector of samples per channel, all of the same length.
#[derive(Debug, Clone, PartialEq)]
pub struct AudioClip {
    /// Samples per second of each channel, in Hz.
    pub sample_rate: u32,
    /// `[channel][sample]`, full scale at 1.0. All channels have the same length.
    pub channels: Vec<Vec<f32>>,
}

impl AudioClip {
    /// A clip with `channels` empty channels.
    pub fn empty(sample_rate: u32, channels: usize) -> Self {
        Self { sample_rate, channels: vec![Vec::new(); channels] }
    }

    /// A one-channel clip that takes over `samples`.
    pub fn from_mono(samples: Vec<f32>, sample_rate: u32) -> Self {
        Self { sample_rate, channels: vec![samples] }
    }

    /// Samples per channel (0 for a clip without channels).
    pub fn frames(&self) -> usize {
        self.channels.first().map_or(0, Vec::len)
    }

    /// Number of channels.
    pub fn channel_count(&self) -> usize {
        self.channels.len()
    }

    /// Length in seconds.
    pub fn seconds(&self) -> f64 {
        self.frames() as f64 / f64::from(self.sample_rate.max(1))
    }

    /// Mean of all channels, `frames()` samples.
    pub fn to_mono(&self) -> Vec<f32> {
        match self.channels.as_slice() {
            [] => Vec::new(),
            [only] => only.clone(),
            [left, right] => left.iter().zip(right).map(|(l, r)| 0.5 * (l + r)).collect(),
            many => {
                let gain = 1.0 / many.len() as f32;
                let mut sum = many[0].clone();
                for channel in &many[1..] {
                    for (total, sample) in sum.iter_mut().zip(channel) {
                        *total += sample;
                    }
                }
                sum.iter_mut().for_each(|total| *total *= gain);
                sum
            }
        }
    }

    /// Appends the samples of `other`, which must have as many channels.
    ///
    /// # Panics
    /// If the channel counts or rates differ: that is a bug of the caller.
    pub fn append(&mut self, other: &AudioClip) {
        assert_eq!(self.channel_count(), other.channel_count(), "channel count");
        assert_eq!(self.sample_rate, other.sample_rate, "sample rate");
        for (mine, theirs) in self.channels.iter_mut().zip(&other.channels) {
            mine.extend_from_slice(theirs);
        }
    }

    /// Largest absolute sample value over all channels.
    pub fn peak(&self) -> f32 {
        self.channels.iter().flatten().fold(0.0, |peak, sample| peak.max(sample.abs()))
    }
}

#[cfg(test)]
mod tests {
    use super::AudioClip;

    #[test]
    fn mono_is_the_mean_of_the_channels() {
        for count in 1..5 {
            let clip = AudioClip {
                sample_rate: 10,
                channels: (0..count).map(|c| vec![c as f32, 1.0, -2.0 * c as f32]).collect(),
            };
            let mean = (count - 1) as f32 / 2.0;
            let mono = clip.to_mono();
            assert!((mono[0] - mean).abs() < 1e-6 && (mono[1] - 1.0).abs() < 1e-6);
            assert!((mono[2] + 2.0 * mean).abs() < 1e-6);
            assert!((clip.seconds() - 0.3).abs() < 1e-12);
        }
        assert!(AudioClip::empty(44_100, 0).to_mono().is_empty());
    }

    #[test]
    fn append_and_peak() {
        let mut clip = AudioClip::from_mono(vec![0.5, -0.75], 8000);
        clip.append(&AudioClip::from_mono(vec![0.25], 8000));
        assert_eq!(clip.channels[0], [0.5, -0.75, 0.25]);
        assert_eq!(clip.peak(), 0.75);
    }
}
