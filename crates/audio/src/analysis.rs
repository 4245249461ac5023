//! What can be measured in music without a network: tempo, key, brightness, density, and how a piece is built.
//!
//! Everything takes mono f32 samples at any rate; windows are chosen in seconds, so the figures do not depend on
//! the rate. Nothing here fails: silence or a fragment gives `None` or 0. Long signals are read in blocks, so the
//! spectra never take more memory than a few seconds of sound.

pub mod beats;
pub mod chroma;
mod frames;
pub mod key;
pub mod loudness_range;
pub mod mel_distance;
pub mod onset;
pub mod structure;
pub mod tempo;
pub mod tone;

pub use beats::{Beats, track_beats};
pub use chroma::{Chromagram, chroma_correlation, chromagram};
pub use key::{KeyEstimate, Mode, estimate_key};
pub use loudness_range::loudness_range;
pub use mel_distance::{MelScales, multi_scale_mel_distance};
pub use onset::{OnsetEnvelope, onset_envelope};
pub use structure::StructureFeatures;
pub use tempo::{Tempo, estimate_tempo, pulse_clarity, tempo_stability};
pub use tone::{OCTAVE_COUNT, OCTAVE_EDGES_HZ, brightness, octave_energy};

/// All measurements of one piece of sound.
#[derive(Debug, Clone, PartialEq)]
pub struct Analysis {
    /// Length in seconds.
    pub seconds: f32,
    /// Tempo, absent where nothing repeats (silence, fragments).
    pub tempo: Option<Tempo>,
    /// How clearly a pulse is felt, 0 to 1: see [`pulse_clarity`].
    pub pulse_clarity: f32,
    /// How steady the tempo is, 0 to 1: see [`tempo_stability`].
    pub tempo_stability: f32,
    /// Key, absent where there is no pitch.
    pub key: Option<KeyEstimate>,
    /// Mean chroma, C first, summing to 1 (all 0 where there is no pitch).
    pub chroma: [f32; 12],
    /// Correlation of the chroma with itself one beat later: see [`Chromagram::self_similarity`].
    pub chroma_beat_similarity: f32,
    /// The same at four beats.
    pub chroma_bar_similarity: f32,
    /// Spectral centroid in Hz.
    pub brightness_hz: f32,
    /// Note onsets a second.
    pub onset_density: f32,
    /// EBU loudness range in LU.
    pub loudness_range_lu: f32,
    /// Energy in each octave of [`OCTAVE_EDGES_HZ`].
    pub octave_energy: [f64; OCTAVE_COUNT],
}

/// Beats in a bar where nothing else is known.
const BEATS_PER_BAR: f32 = 4.0;

/// Measures everything at once, with one pass over short windows and one over long ones.
pub fn analyse(samples: &[f32], rate: u32) -> Analysis {
    let (envelope, brightness_hz) = onset::short_windows(samples, rate);
    let (chromagram, octave_energy) = chroma::long_windows(samples, rate);
    let tempo = estimate_tempo(&envelope);
    let similarity =
        |beats: f32| tempo.map_or(0.0, |tempo| chromagram.self_similarity(beats * 60.0 / tempo.beats_per_minute));
    let chroma = chromagram.mean();
    Analysis {
        seconds: samples.len() as f32 / rate as f32,
        tempo,
        pulse_clarity: pulse_clarity(&envelope),
        tempo_stability: tempo_stability(&envelope),
        key: estimate_key(&chroma),
        chroma,
        chroma_beat_similarity: similarity(1.0),
        chroma_bar_similarity: similarity(BEATS_PER_BAR),
        brightness_hz,
        onset_density: envelope.density(),
        loudness_range_lu: loudness_range(samples, rate),
        octave_energy,
    }
}

#[cfg(test)]
mod tests;
