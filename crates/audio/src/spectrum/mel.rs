//! Mel filterbank on Slaney's scale (Auditory Toolbox, 1998): linear below 1 kHz, logarithmic above,
//! triangles of equal area. The definition and default of librosa.

use super::Spectrogram;

const HZ_PER_MEL: f64 = 200.0 / 3.0;
const BREAK_HZ: f64 = 1000.0;
const BREAK_MEL: f64 = BREAK_HZ / HZ_PER_MEL;

/// Natural logarithm of the frequency ratio of one mel above 1 kHz.
fn log_step() -> f64 {
    6.4f64.ln() / 27.0
}

/// Frequency in Hz to mel (Slaney).
pub fn hz_to_mel(hz: f64) -> f64 {
    if hz < BREAK_HZ { hz / HZ_PER_MEL } else { BREAK_MEL + (hz / BREAK_HZ).ln() / log_step() }
}

/// Mel (Slaney) to frequency in Hz.
pub fn mel_to_hz(mel: f64) -> f64 {
    if mel < BREAK_MEL { mel * HZ_PER_MEL } else { BREAK_HZ * ((mel - BREAK_MEL) * log_step()).exp() }
}

/// A sparse matrix of triangles, `[bands, bins]`: of each band only the bins it covers.
#[derive(Debug, Clone, PartialEq)]
pub struct MelFilterbank {
    bins: usize,
    /// First covered bin and the weights from there on, one entry a band.
    rows: Vec<(usize, Vec<f32>)>,
}

/// Slaney's filterbank of `n_mels` triangles between `fmin` and `fmax` Hz for spectra of `n_fft / 2 + 1` bins
/// at `rate` Hz.
pub fn mel_filterbank(rate: u32, n_fft: usize, n_mels: usize, fmin: f64, fmax: f64) -> MelFilterbank {
    let bins = n_fft / 2 + 1;
    let (low, high) = (hz_to_mel(fmin), hz_to_mel(fmax));
    let corner = |index: usize| mel_to_hz(low + (high - low) * index as f64 / (n_mels + 1) as f64);
    let rows = (0..n_mels)
        .map(|band| {
            let (left, centre, right) = (corner(band), corner(band + 1), corner(band + 2));
            let area = 2.0 / (right - left);
            let weight = |bin: usize| {
                let hz = bin as f64 * f64::from(rate) / n_fft as f64;
                let rising = (hz - left) / (centre - left);
                let falling = (right - hz) / (right - centre);
                (area * rising.min(falling).max(0.0)) as f32
            };
            let first = (0..bins).find(|&bin| weight(bin) > 0.0).unwrap_or(0);
            let weights = (first..bins).map(weight).take_while(|&w| w > 0.0).collect();
            (first, weights)
        })
        .collect();
    MelFilterbank { bins, rows }
}

impl MelFilterbank {
    /// Number of mel bands.
    pub fn bands(&self) -> usize {
        self.rows.len()
    }

    /// Number of linear bins it takes.
    pub fn bins(&self) -> usize {
        self.bins
    }

    /// First covered bin and weights of one band.
    pub fn band(&self, band: usize) -> (usize, &[f32]) {
        let (first, weights) = &self.rows[band];
        (*first, weights)
    }

    /// The dense matrix, row-major `[bands, bins]`.
    pub fn dense(&self) -> Vec<f32> {
        let mut matrix = vec![0.0; self.bands() * self.bins];
        for (band, (first, weights)) in self.rows.iter().enumerate() {
            let start = band * self.bins + first;
            matrix[start..start + weights.len()].copy_from_slice(weights);
        }
        matrix
    }

    /// Sums the bins of one frame into `out`, one value a band.
    pub fn apply_frame(&self, frame: &[f32], out: &mut [f32]) {
        for ((first, weights), value) in self.rows.iter().zip(out) {
            *value = frame[*first..].iter().zip(weights).map(|(x, w)| x * w).sum();
        }
    }

    /// Sums bins into bands for every frame: `[frames, bins] -> [frames, bands]`.
    ///
    /// # Panics
    /// If the spectrogram has another number of bins.
    pub fn apply(&self, spectrogram: &Spectrogram) -> Spectrogram {
        assert_eq!(spectrogram.bins, self.bins, "bins of the spectrogram");
        let mut mel = Spectrogram::zeros(spectrogram.frames, self.bands());
        for (frame, out) in mel.data.chunks_exact_mut(self.bands().max(1)).enumerate() {
            self.apply_frame(spectrogram.frame(frame), out);
        }
        mel
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_is_continuous_and_invertible() {
        assert!((hz_to_mel(1000.0) - 15.0).abs() < 1e-12);
        assert!((hz_to_mel(6400.0) - 42.0).abs() < 1e-9);
        for hz in [0.0, 60.0, 999.9, 1000.1, 8000.0, 22_050.0] {
            assert!((mel_to_hz(hz_to_mel(hz)) - hz).abs() < 1e-8);
        }
    }

    #[test]
    fn dense_and_sparse_agree() {
        let bank = mel_filterbank(16_000, 512, 40, 20.0, 7600.0);
        let frame: Vec<f32> = (0..bank.bins()).map(|bin| ((bin * 37) % 101) as f32).collect();
        let mut sparse = vec![0.0; bank.bands()];
        bank.apply_frame(&frame, &mut sparse);
        for (row, value) in bank.dense().chunks_exact(bank.bins()).zip(&sparse) {
            let dense: f32 = row.iter().zip(&frame).map(|(a, b)| a * b).sum();
            assert!((dense - value).abs() <= 1e-4 * dense.abs());
        }
    }
}
