//! Log-magnitudes folded into bands: every low STFT bin for itself, the high ones in logarithmic groups.
//!
//! Low partials lie close together and need the full resolution; above a few kHz the ear hears only bands.

use mambo_audio::spectrum::{Spectrogram, Stft};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Added to a magnitude before the logarithm: about -100 dB of a full-scale sine at window 2048.
const FLOOR: f32 = 1e-3;

/// Which STFT bins form which band.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BandLayout {
    /// STFT window in samples.
    pub window: usize,
    /// STFT hop in samples.
    pub hop: usize,
    /// Lowest bins that are a band each.
    pub linear: usize,
    /// Logarithmic bands above them, up to half the sample rate.
    pub logarithmic: usize,
}

impl Default for BandLayout {
    /// Window 2048, hop 512, 160 + 96 bands.
    fn default() -> Self {
        Self { window: 2048, hop: 512, linear: 160, logarithmic: 96 }
    }
}

impl BandLayout {
    /// Number of bands.
    pub fn bands(&self) -> usize {
        self.linear + self.logarithmic
    }

    /// STFT bins.
    pub fn bins(&self) -> usize {
        self.window / 2 + 1
    }

    /// First bin of every band, and one more for the end.
    fn edges(&self) -> Vec<usize> {
        let (first, last) = (self.linear as f64, self.bins() as f64);
        let mut edges: Vec<usize> = (0..self.linear).collect();
        edges.extend(
            (0..=self.logarithmic)
                .map(|band| (first * (last / first).powf(band as f64 / self.logarithmic as f64)).round() as usize),
        );
        edges
    }

    /// Whether every band holds at least one bin.
    pub fn is_valid(&self) -> bool {
        self.window >= 4
            && self.window.is_multiple_of(2)
            && self.hop >= 1
            && 2 * self.hop <= self.window
            && self.linear >= 1
            && self.logarithmic >= 1
            && self.bands() <= self.bins()
            && self.edges().windows(2).all(|pair| pair[0] < pair[1])
    }

    /// Log band magnitudes `[frames, bands]` of mono samples; frame i is centred on sample `i * hop`.
    pub fn analyse(&self, mono: &[f32], frames: usize) -> Vec<f32> {
        let mut magnitudes = Stft::new(self.window, self.hop).magnitude(mono);
        magnitudes.data.resize(frames * self.bins(), 0.0);
        magnitudes.frames = frames;
        self.fold(&magnitudes)
    }

    /// Log of the root mean square magnitude of each band, `[frames, bands]`.
    pub fn fold(&self, magnitudes: &Spectrogram) -> Vec<f32> {
        let (edges, bins) = (self.edges(), self.bins());
        let mut out = vec![0.0; magnitudes.frames * self.bands()];
        out.par_chunks_mut(self.bands()).zip(magnitudes.data.par_chunks(bins)).for_each(|(row, frame)| {
            for (value, edge) in row.iter_mut().zip(edges.windows(2)) {
                let band = &frame[edge[0]..edge[1]];
                let power = band.iter().map(|m| m * m).sum::<f32>() / band.len() as f32;
                *value = (power.sqrt() + FLOOR).ln();
            }
        });
        out
    }

    /// Magnitudes whose bins share the value of their band: the inverse of [`BandLayout::fold`] up to the
    /// detail inside a band.
    pub fn unfold(&self, logs: &[f32]) -> Spectrogram {
        let (edges, bins) = (self.edges(), self.bins());
        let frames = logs.len() / self.bands();
        let mut out = Spectrogram::zeros(frames, bins);
        out.data.par_chunks_mut(bins).zip(logs.par_chunks(self.bands())).for_each(|(frame, row)| {
            for (value, edge) in row.iter().zip(edges.windows(2)) {
                // A generative decoder may stray: nothing real is louder than e^8 here.
                let magnitude = (value.min(8.0).exp() - FLOOR).max(0.0);
                frame[edge[0]..edge[1]].fill(magnitude);
            }
        });
        out
    }

    /// The matrix `[linear, linear]` (row-major, symmetric range clipped at the ends) that subtracts from a low
    /// band the mean of the `2 * reach + 1` bands around it: what is left are partials, without the envelope.
    pub fn detail_matrix(&self, reach: usize) -> Vec<f32> {
        let n = self.linear;
        let mut matrix = vec![0.0; n * n];
        for row in 0..n {
            let around = row.saturating_sub(reach)..(row + reach + 1).min(n);
            let share = 1.0 / around.len() as f32;
            for column in around {
                matrix[row * n + column] -= share;
            }
            matrix[row * n + row] += 1.0;
        }
        matrix
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfold_undoes_fold_where_bands_are_flat() {
        let layout = BandLayout::default();
        assert!(layout.is_valid());
        let logs: Vec<f32> = (0..3 * layout.bands()).map(|i| ((i * 37) % 50) as f32 / 10.0 - 2.0).collect();
        let back = layout.fold(&layout.unfold(&logs));
        for (a, b) in logs.iter().zip(&back) {
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
    }

    #[test]
    fn detail_ignores_a_constant() {
        let layout = BandLayout::default();
        let matrix = layout.detail_matrix(7);
        for row in matrix.chunks(layout.linear) {
            assert!(row.iter().sum::<f32>().abs() < 1e-5);
        }
    }

    #[test]
    fn a_layout_with_empty_bands_is_invalid() {
        assert!(!BandLayout { window: 512, hop: 128, linear: 200, logarithmic: 90 }.is_valid());
    }
}
