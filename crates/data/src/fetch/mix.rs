//! Several stems of one recording become one file.

use crate::error::DataError;
use mambo_audio::{AudioClip, AudioFormat, AudioWriter};
use std::path::{Path, PathBuf};

/// Sums stems of equal rate and channel count; turned down as a whole if the sum would clip.
///
/// # Errors
/// A stem cannot be read, the stems do not fit together, or the file cannot be written.
pub(super) fn mix_stems(stems: &[PathBuf], target: &Path) -> Result<(), DataError> {
    let mut mix: Option<AudioClip> = None;
    for path in stems {
        let stem = mambo_audio::read(path)?;
        let Some(sum) = &mut mix else {
            mix = Some(stem);
            continue;
        };
        if stem.sample_rate != sum.sample_rate || stem.channel_count() != sum.channel_count() {
            return Err(DataError::format(
                path,
                format!("{} Hz and {} channels like the other stems", sum.sample_rate, sum.channel_count()),
                format!("{} Hz and {} channels", stem.sample_rate, stem.channel_count()),
            ));
        }
        for (sum, stem) in sum.channels.iter_mut().zip(&stem.channels) {
            sum.resize(sum.len().max(stem.len()), 0.0);
            for (sum, stem) in sum.iter_mut().zip(stem) {
                *sum += stem;
            }
        }
    }
    let Some(mut mix) = mix else {
        return Err(DataError::Argument { what: "stems", problem: "none were given".into() });
    };
    let peak = mix.channels.iter().flatten().fold(0.0_f32, |peak, sample| peak.max(sample.abs()));
    if peak > 0.999 {
        let gain = 0.999 / peak;
        mix.channels.iter_mut().flatten().for_each(|sample| *sample *= gain);
    }
    let channels = mix.channel_count();
    let mut writer = AudioWriter::create(target, AudioFormat::Flac, mix.sample_rate, channels, true)?;
    writer.write(&mix)?;
    writer.finish()?;
    Ok(())
}
