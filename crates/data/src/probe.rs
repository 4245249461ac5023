//! Reads a sound file from beginning to end, since only that shows whether it is whole.

use mambo_audio::{AudioError, AudioReader};
use std::collections::BTreeMap;
use std::path::Path;

/// What a complete read of a file shows.
#[derive(Debug, Clone, PartialEq)]
pub struct FileFacts {
    /// Duration.
    pub seconds: f64,
    /// Frames a second.
    pub sample_rate: u32,
    /// Channels.
    pub channels: u32,
    /// Format as found in the content.
    pub format: String,
    /// Tags with lower-case standard keys.
    pub tags: BTreeMap<String, String>,
    /// Largest absolute sample.
    pub peak: f32,
}

/// Decodes the whole file, block by block.
///
/// # Errors
/// The reader's reason why the file is not sound.
pub fn probe(path: &Path) -> Result<FileFacts, AudioError> {
    let mut reader = AudioReader::open(path)?;
    let (mut frames, mut peak) = (0_u64, 0.0_f32);
    while let Some(block) = reader.next_block()? {
        frames += block.frames() as u64;
        for sample in block.channels.iter().flatten() {
            peak = peak.max(sample.abs());
        }
    }
    Ok(FileFacts {
        seconds: frames as f64 / f64::from(reader.sample_rate()),
        sample_rate: reader.sample_rate(),
        channels: reader.channel_count() as u32,
        format: reader.format_name().to_owned(),
        tags: reader.tags().clone(),
        peak,
    })
}
