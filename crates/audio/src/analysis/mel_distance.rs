//! Multi-scale mel distance, as in the loss of the Descript Audio Codec (Kumar et al. 2023):
//! mean absolute difference of log10 mel magnitudes, summed over seven window lengths.

use rayon::prelude::*;

use crate::spectrum::{MelFilterbank, Padding, Stft, mel_filterbank};

const SCALES: [(usize, usize); 7] = [(32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320)];
/// Magnitudes below this count as this.
const FLOOR: f32 = 1e-5;
/// Values compared at once.
const BLOCK_VALUES: usize = 4096;

/// Transforms and filterbanks of all scales for one sample rate: make it once, use it for many clips.
pub struct MelScales {
    scales: Vec<(Stft, MelFilterbank)>,
}

impl MelScales {
    /// For sound at `rate` Hz.
    pub fn new(rate: u32) -> Self {
        let scales = SCALES
            .iter()
            .map(|&(window, bands)| {
                let stft = Stft::new(window, window / 4).with_padding(Padding::Reflect);
                (stft, mel_filterbank(rate, window, bands, 0.0, f64::from(rate) / 2.0))
            })
            .collect();
        Self { scales }
    }

    /// Distance between two mono signals, over their common length. 0 for the same signal; rounding to 8 bits makes
    /// 0.2 to 1.5, half the level about 2, another piece of music 5 to 10.
    pub fn distance(&self, a: &[f32], b: &[f32]) -> f64 {
        let length = a.len().min(b.len());
        self.scales.iter().map(|(stft, bank)| scale_distance(stft, bank, &a[..length], &b[..length])).sum()
    }
}

/// [`MelScales::distance`] for a single pair at `rate` Hz.
pub fn multi_scale_mel_distance(a: &[f32], b: &[f32], rate: u32) -> f64 {
    MelScales::new(rate).distance(a, b)
}

fn scale_distance(stft: &Stft, bank: &MelFilterbank, a: &[f32], b: &[f32]) -> f64 {
    if a.is_empty() {
        return 0.0;
    }
    let (left, right) = (bank.apply(&stft.magnitude(a)), bank.apply(&stft.magnitude(b)));
    let log = |value: f32| value.max(FLOOR).log10();
    // Sums of fixed blocks, added in order: the same bytes for any number of threads.
    let sums: Vec<f64> = left
        .data
        .par_chunks(BLOCK_VALUES)
        .zip(right.data.par_chunks(BLOCK_VALUES))
        .map(|(x, y)| x.iter().zip(y).map(|(x, y)| f64::from((log(*x) - log(*y)).abs())).sum())
        .collect();
    sums.iter().sum::<f64>() / left.data.len() as f64
}
