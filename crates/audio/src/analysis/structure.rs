//! How a piece is built, as six figures: what a Fréchet distance over 3-second patches cannot hear.

use super::{Analysis, analyse};

/// Six measurements of the structure of a clip; meant for 20 s and more.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StructureFeatures {
    /// See [`Analysis::pulse_clarity`].
    pub pulse_clarity: f32,
    /// See [`Analysis::tempo_stability`].
    pub tempo_stability: f32,
    /// See [`Analysis::chroma_beat_similarity`].
    pub chroma_beat_similarity: f32,
    /// See [`Analysis::chroma_bar_similarity`].
    pub chroma_bar_similarity: f32,
    /// See [`Analysis::onset_density`].
    pub onset_density: f32,
    /// See [`Analysis::loudness_range_lu`].
    pub loudness_range_lu: f32,
}

impl StructureFeatures {
    /// Number of features.
    pub const COUNT: usize = 6;
    /// Their names, in the order of [`StructureFeatures::values`].
    pub const NAMES: [&'static str; Self::COUNT] = [
        "pulse clarity",
        "tempo stability",
        "chroma similarity at a beat",
        "chroma similarity at a bar",
        "onset density",
        "loudness range",
    ];

    /// Measures a clip.
    pub fn of(samples: &[f32], rate: u32) -> Self {
        (&analyse(samples, rate)).into()
    }

    /// The values, in the order of [`StructureFeatures::NAMES`].
    pub fn values(&self) -> [f64; Self::COUNT] {
        [
            self.pulse_clarity,
            self.tempo_stability,
            self.chroma_beat_similarity,
            self.chroma_bar_similarity,
            self.onset_density,
            self.loudness_range_lu,
        ]
        .map(f64::from)
    }
}

impl From<&Analysis> for StructureFeatures {
    fn from(analysis: &Analysis) -> Self {
        Self {
            pulse_clarity: analysis.pulse_clarity,
            tempo_stability: analysis.tempo_stability,
            chroma_beat_similarity: analysis.chroma_beat_similarity,
            chroma_bar_similarity: analysis.chroma_bar_similarity,
            onset_density: analysis.onset_density,
            loudness_range_lu: analysis.loudness_range_lu,
        }
    }
}
