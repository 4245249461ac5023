//! Key from the mean chroma, by correlation with the key profiles of Albrecht and Shanahan 2013
//! ("The use of large corpora to train a new type of key-finding algorithm").

use super::chroma::correlation;

/// Share of each degree in pieces in a major key, tonic first.
const MAJOR: [f32; 12] = [0.238, 0.006, 0.111, 0.006, 0.137, 0.094, 0.016, 0.214, 0.009, 0.080, 0.008, 0.081];
/// Share of each degree in pieces in a minor key, tonic first.
const MINOR: [f32; 12] = [0.220, 0.006, 0.104, 0.123, 0.019, 0.103, 0.012, 0.214, 0.062, 0.022, 0.061, 0.052];
const NOTE_NAMES: [&str; 12] = ["C", "C sharp", "D", "E flat", "E", "F", "F sharp", "G", "A flat", "A", "B flat", "B"];
/// Lead over the second-best key at which the estimate is about two thirds certain.
const MARGIN_SCALE: f32 = 0.1;

/// Major or minor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Major.
    Major,
    /// Minor (natural, harmonic or melodic).
    Minor,
}

/// An estimated key.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KeyEstimate {
    /// Pitch class of the tonic, 0 = C to 11 = B.
    pub tonic: u8,
    /// Major or minor.
    pub mode: Mode,
    /// 0 to 1: the correlation with the profile times a factor that grows with the lead over the second-best key.
    pub confidence: f32,
}

impl KeyEstimate {
    /// Name in words: "E flat minor".
    pub fn name(&self) -> String {
        let mode = match self.mode {
            Mode::Major => "major",
            Mode::Minor => "minor",
        };
        format!("{} {mode}", NOTE_NAMES[usize::from(self.tonic) % 12])
    }

    /// The key after moving everything by some semitones.
    pub fn transposed(self, semitones: i32) -> Self {
        Self { tonic: (i32::from(self.tonic) + semitones).rem_euclid(12) as u8, ..self }
    }
}

/// The best of the 24 keys for a mean chroma (C first); `None` if the chroma is flat or empty.
pub fn estimate_key(chroma: &[f32; 12]) -> Option<KeyEstimate> {
    let mut ranked: Vec<(f32, u8, Mode)> = Vec::with_capacity(24);
    for tonic in 0..12u8 {
        let mut turned = *chroma;
        turned.rotate_left(usize::from(tonic));
        ranked.push((correlation(&turned, &MAJOR), tonic, Mode::Major));
        ranked.push((correlation(&turned, &MINOR), tonic, Mode::Minor));
    }
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (best, tonic, mode) = ranked[0];
    if best <= 0.0 {
        return None;
    }
    let margin = best - ranked[1].0;
    let confidence = best * (1.0 - (-margin / MARGIN_SCALE).exp());
    Some(KeyEstimate { tonic, mode, confidence: confidence.clamp(0.0, 1.0) })
}
