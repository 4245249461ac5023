//! Colour of the sound: brightness, and energy octave by octave.

/// Number of octaves in [`octave_energy`].
pub const OCTAVE_COUNT: usize = 8;
/// Edges of the octaves in Hz, from about 60 Hz to 16 kHz.
pub const OCTAVE_EDGES_HZ: [f64; OCTAVE_COUNT + 1] =
    [62.5, 125.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0, 16_000.0];

/// Spectral centroid of mono samples in Hz: mean frequency, weighted by magnitude over the whole piece.
/// 0 for silence.
pub fn brightness(samples: &[f32], rate: u32) -> f32 {
    super::onset::short_windows(samples, rate).1
}

/// Energy between the [`OCTAVE_EDGES_HZ`] (squared magnitudes summed over time; only ratios mean something).
/// Octaves above half the rate are 0.
pub fn octave_energy(samples: &[f32], rate: u32) -> [f64; OCTAVE_COUNT] {
    super::chroma::long_windows(samples, rate).1
}

/// Which bins belong to which octave.
pub(super) struct OctaveBins {
    edges: [usize; OCTAVE_COUNT + 1],
}

impl OctaveBins {
    pub(super) fn new(rate: u32, window: usize) -> Self {
        let bins = window / 2 + 1;
        let edges = OCTAVE_EDGES_HZ.map(|hz| ((hz * window as f64 / f64::from(rate)).round() as usize).min(bins));
        Self { edges }
    }

    pub(super) fn add(&self, frame: &[f32], octaves: &mut [f64; OCTAVE_COUNT]) {
        for (octave, edge) in octaves.iter_mut().zip(self.edges.windows(2)) {
            *octave += f64::from(frame[edge[0]..edge[1]].iter().map(|m| m * m).sum::<f32>());
        }
    }
}
