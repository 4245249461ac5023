//! Sound as bytes for a page: FLAC, which browsers play and which takes half the room of WAV.

use std::io::Write;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use mambo_audio::{AudioClip, AudioFormat, AudioWriter};

use crate::EvalError;

/// MIME type of [`encode_sound`].
pub(super) const SOUND_TYPE: &str = "audio/flac";
/// Where a FLAC header keeps the low 32 bits of the number of samples (RFC 9639, section 8.2).
const TOTAL_SAMPLES: Range<usize> = 22..26;

/// A writer that leaves its bytes behind.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().map_err(|_| std::io::Error::other("a writer panicked"))?.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// FLAC bytes of mono samples at `rate` Hz; values beyond full scale are clipped.
pub(super) fn encode_sound(samples: &[f32], rate: u32) -> Result<Vec<u8>, EvalError> {
    let failed = |reason: String| EvalError::Encode { what: "a clip".into(), reason };
    let shared = Shared::default();
    let mut writer = AudioWriter::to_stream(Box::new(shared.clone()), "a clip of the page", AudioFormat::Flac, rate, 1)
        .map_err(|error| failed(error.to_string()))?;
    writer.write(&AudioClip::from_mono(samples.to_vec(), rate)).map_err(|error| failed(error.to_string()))?;
    writer.finish().map_err(|error| failed(error.to_string()))?;
    let mut bytes = std::mem::take(&mut *shared.0.lock().map_err(|error| failed(error.to_string()))?);
    // A stream is written without knowing its end; without a length, players show no position.
    let total = u32::try_from(samples.len()).map_err(|error| failed(error.to_string()))?;
    if let Some(place) = bytes.get_mut(TOTAL_SAMPLES) {
        place.copy_from_slice(&total.to_be_bytes());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clips_read_back() {
        let samples: Vec<f32> = (0..30_001).map(|n| (n as f32 * 0.05).sin() * 0.7).collect();
        let bytes = encode_sound(&samples, 44_100).expect("encodes");
        assert!(bytes.len() < samples.len() * 2);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("clip");
        std::fs::write(&path, bytes).expect("writes");
        let clip = mambo_audio::read(&path).expect("a FLAC file");
        assert_eq!((clip.sample_rate, clip.channel_count(), clip.frames()), (44_100, 1, samples.len()));
        for (a, b) in clip.channels[0].iter().zip(&samples) {
            assert!((a - b).abs() < 1e-4);
        }
    }
}
