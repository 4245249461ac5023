//! musicnn, a music tagger (Pons and Serra, 2019, <https://arxiv.org/abs/1909.06654>): three seconds of 16 kHz
//! sound to 50 tag probabilities and a 200-d feature. Weights: PyPI wheel musicnn 0.1.0 (ISC), converted by
//! tools/reference/convert_musicnn.py; parity is tested against tools/reference/musicnn.py.
//!
//! Slices and strided matrix products, not Burn tensors: it is inference only, convolutions over one
//! channel become products on views that no tensor library expresses without copies, and threads are better
//! spent on patches than inside an operation. Feature maps are channel-major, `[channels, time]`.

use std::path::Path;

use mambo_audio::spectrum::{MelFilterbank, Padding, Stft, mel_filterbank};
use mambo_audio::{AudioClip, resample};
use mambo_kernels::matmul::{Strided, matmul};
use rayon::prelude::*;

use super::tags::{MSD_TAGS, MTT_TAGS};
use crate::weights::{Weights, WeightsError};

/// Sample rate of the input in Hz.
pub const SAMPLE_RATE: u32 = 16_000;
/// Frames of one patch (2.992 s).
pub const PATCH_FRAMES: usize = 187;
/// Samples between frames.
pub const HOP: usize = 256;
/// Mel bands.
pub const MELS: usize = 96;
/// Tags of a model.
pub const TAGS: usize = 50;
/// Width of the feature vector.
pub const FEATURES: usize = 200;

const WINDOW: usize = 512;
/// Time taps of the timbral and mid-end convolutions, and the silence they need on each side.
const TAPS: usize = 7;
const MARGIN: usize = TAPS / 2;
/// Columns of a product: 187 frames rounded up to whole vectors. What stands in the last five is not used.
const COLUMNS: usize = 192;
/// Values between the rows of the feature maps: the frames, a margin before and one behind that also serves
/// the unused columns.
const MAP_STRIDE: usize = COLUMNS + TAPS + 1;
const MID_CHANNELS: usize = 64;
const FRONT_CHANNELS: usize = 2 * 204 + 3 * 51;
const POOLED_CHANNELS: usize = FRONT_CHANNELS + 3 * MID_CHANNELS;
/// Patches whose spectra are held at once, so that a long recording needs no more memory than a short one.
const BLOCK_PATCHES: usize = 16;

/// Probabilities and features of consecutive patches.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MusicnnOutput {
    /// Number of patches P; 0 for input under three seconds.
    pub patches: usize,
    /// Tag probabilities, row-major `[P, 50]`.
    pub tags: Vec<f32>,
    /// Penultimate activations after their normalisation, row-major `[P, 200]`.
    pub features: Vec<f32>,
}

impl MusicnnOutput {
    /// Mean of each tag over the patches; `None` without patches.
    pub fn mean_tags(&self) -> Option<Vec<f32>> {
        mean_rows(&self.tags, TAGS)
    }

    /// Mean of each feature over the patches; `None` without patches.
    pub fn mean_features(&self) -> Option<Vec<f32>> {
        mean_rows(&self.features, FEATURES)
    }
}

fn mean_rows(rows: &[f32], width: usize) -> Option<Vec<f32>> {
    if rows.is_empty() {
        return None;
    }
    let mut sum = vec![0.0f64; width];
    for row in rows.chunks_exact(width) {
        for (total, &value) in sum.iter_mut().zip(row) {
            *total += f64::from(value);
        }
    }
    let count = (rows.len() / width) as f64;
    Some(sum.into_iter().map(|total| (total / count) as f32).collect())
}

/// A loaded tagger; shared between threads by reference.
pub struct Musicnn {
    tag_names: &'static [&'static str; TAGS],
    stft: Stft,
    filterbank: MelFilterbank,
    input: (f32, f32),
    timbral: [PooledConvolution; 2],
    temporal: [PooledConvolution; 3],
    middle: [Convolution; 3],
    pooled: Affine,
    dense: Dense,
    features: Affine,
    output: Dense,
}

impl std::fmt::Debug for Musicnn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Musicnn").field("tag_names", self.tag_names).finish_non_exhaustive()
    }
}

impl Musicnn {
    /// Loads a converted tagger (`models/tiny/tagger/mtt.safetensors` or `msd.safetensors`).
    ///
    /// # Errors
    /// Any [`WeightsError`]; the metadata must say which of the two models it is.
    pub fn load(path: &Path) -> Result<Self, WeightsError> {
        let file = Weights::open(path)?;
        file.expect_metadata("format", "mambo-musicnn-1")?;
        let tag_names = match file.metadata("model") {
            Some("MTT_musicnn") => &MTT_TAGS,
            Some("MSD_musicnn") => &MSD_TAGS,
            _ => return Err(file.wrong_metadata("model", "\"MTT_musicnn\" or \"MSD_musicnn\"")),
        };
        let listed: Option<Vec<String>> = file.metadata("tags").and_then(|text| serde_json::from_str(text).ok());
        if listed.is_none_or(|listed| listed != *tag_names) {
            return Err(file.wrong_metadata("tags", format!("the tags of the model, {tag_names:?}")));
        }
        let input = Affine::load(&file, 0, 1)?;
        let model = Self {
            tag_names,
            stft: Stft::new(WINDOW, HOP).with_padding(Padding::Reflect),
            filterbank: mel_filterbank(SAMPLE_RATE, WINDOW, MELS, 0.0, f64::from(SAMPLE_RATE) / 2.0),
            input: (input.scale[0], input.shift[0]),
            timbral: [
                PooledConvolution::load(&file, 0, TAPS, 38, 204)?,
                PooledConvolution::load(&file, 1, TAPS, 67, 204)?,
            ],
            temporal: [
                PooledConvolution::load(&file, 2, 128, 1, 51)?,
                PooledConvolution::load(&file, 3, 64, 1, 51)?,
                PooledConvolution::load(&file, 4, 32, 1, 51)?,
            ],
            middle: [
                Convolution::load(&file, 5, FRONT_CHANNELS)?,
                Convolution::load(&file, 6, MID_CHANNELS)?,
                Convolution::load(&file, 7, MID_CHANNELS)?,
            ],
            pooled: Affine::load(&file, 9, 2 * POOLED_CHANNELS)?,
            dense: Dense::load(&file, "dense", 2 * POOLED_CHANNELS, FEATURES)?,
            features: Affine::load(&file, 10, FEATURES)?,
            output: Dense::load(&file, "dense_1", FEATURES, TAGS)?,
        };
        file.finish()?;
        Ok(model)
    }

    /// Names of the 50 tags, in the order of the output.
    pub fn tag_names(&self) -> &'static [&'static str; TAGS] {
        self.tag_names
    }

    /// Tags and features of the consecutive whole patches of 16 kHz mono sound; a tail under three seconds is
    /// dropped. Samples must be finite.
    pub fn analyse(&self, mono_16k: &[f32]) -> MusicnnOutput {
        self.analyse_every(mono_16k, PATCH_FRAMES)
    }

    /// As [`Musicnn::analyse`], with a patch starting every `step` frames of 16 ms: more patches from the same
    /// sound where `step` is under 187.
    ///
    /// # Panics
    /// If `step` is 0.
    pub fn analyse_every(&self, mono_16k: &[f32], step: usize) -> MusicnnOutput {
        assert!(step > 0, "patches must advance");
        let frames = self.stft.frame_count(mono_16k.len());
        let patches = if frames < PATCH_FRAMES { 0 } else { (frames - PATCH_FRAMES) / step + 1 };
        let mut output = MusicnnOutput {
            patches,
            tags: Vec::with_capacity(patches * TAGS),
            features: Vec::with_capacity(patches * FEATURES),
        };
        for first in (0..patches).step_by(BLOCK_PATCHES) {
            let count = BLOCK_PATCHES.min(patches - first);
            let start = first * step;
            let mel = self.log_mel_frames(mono_16k, start..start + (count - 1) * step + PATCH_FRAMES);
            let results: Vec<(Vec<f32>, Vec<f32>)> = (0..count)
                .into_par_iter()
                .map_init(Scratch::default, |scratch, patch| {
                    let begin = patch * step * MELS;
                    self.forward(&mel[begin..begin + PATCH_FRAMES * MELS], scratch)
                })
                .collect();
            for (tags, features) in results {
                output.tags.extend(tags);
                output.features.extend(features);
            }
        }
        output
    }

    /// As [`Musicnn::analyse`] for sound at 44.1 kHz.
    pub fn analyse_44k(&self, mono_44k: &[f32]) -> MusicnnOutput {
        self.analyse_clip(&AudioClip::from_mono(mono_44k.to_vec(), 44_100))
    }

    /// As [`Musicnn::analyse`] for sound of any rate and number of channels.
    pub fn analyse_clip(&self, clip: &AudioClip) -> MusicnnOutput {
        let mono = clip.to_mono();
        if clip.sample_rate == SAMPLE_RATE {
            return self.analyse(&mono);
        }
        let resampled = resample(&AudioClip::from_mono(mono, clip.sample_rate), SAMPLE_RATE);
        self.analyse(&resampled.to_mono())
    }

    /// The network's input for a whole recording: `log10(10000 mel + 1)`, row-major `[frames, 96]`.
    pub fn log_mel(&self, mono_16k: &[f32]) -> Vec<f32> {
        self.log_mel_frames(mono_16k, 0..self.stft.frame_count(mono_16k.len()))
    }

    /// Frames `range` of [`Musicnn::log_mel`], from only the samples they touch.
    fn log_mel_frames(&self, mono_16k: &[f32], range: std::ops::Range<usize>) -> Vec<f32> {
        // One frame of context on the left keeps the grid and reaches half a window back; on the right the
        // samples end either behind the last window or, where reflection is wanted, with the recording.
        let context = range.start.min(1);
        let samples = &mono_16k[(range.start - context) * HOP..(range.end * HOP).min(mono_16k.len())];
        let spectrogram = self.stft.magnitude(samples);
        let mut mel = vec![0.0; range.len() * MELS];
        mel.par_chunks_exact_mut(MELS).enumerate().for_each_init(
            || vec![0.0; spectrogram.bins],
            |power, (frame, out)| {
                for (square, magnitude) in power.iter_mut().zip(spectrogram.frame(frame + context)) {
                    *square = magnitude * magnitude;
                }
                self.filterbank.apply_frame(power, out);
                for value in out {
                    *value = (10_000.0 * *value + 1.0).log10();
                }
            },
        );
        mel
    }

    /// Tags and features of one patch `[187, 96]`.
    fn forward(&self, patch: &[f32], scratch: &mut Scratch) -> (Vec<f32>, Vec<f32>) {
        // Frequency-major input with silence around it, wide enough for the longest temporal kernel.
        let longest = self.temporal[0].time_taps;
        let before = (longest - 1) / 2;
        let width = PATCH_FRAMES + longest - 1;
        scratch.input.clear();
        // The unused columns of the last band read a little further.
        scratch.input.resize(MELS * width + COLUMNS - PATCH_FRAMES, 0.0);
        for (t, frame) in patch.chunks_exact(MELS).enumerate() {
            for (f, value) in frame.iter().enumerate() {
                scratch.input[f * width + before + t] = value * self.input.0 + self.input.1;
            }
        }
        // Row f * 7 + d of the unrolled input is band f shifted by d - 3 frames: the windows of a timbral
        // kernel at one frequency are then consecutive rows.
        scratch.unrolled.clear();
        for row in scratch.input.chunks_exact(width).take(MELS) {
            for tap in 0..TAPS {
                let start = before - MARGIN + tap;
                scratch.unrolled.extend_from_slice(&row[start..start + COLUMNS]);
            }
        }

        // Front-end and mid-end channels, each with the silent margins that the next convolution reads.
        scratch.maps.clear();
        scratch.maps.resize(POOLED_CHANNELS * MAP_STRIDE, 0.0);
        let mut channel = 0;
        for layer in &self.timbral {
            let windows = (0..=MELS - layer.frequency_taps).map(|f| f * TAPS * COLUMNS);
            layer.apply(
                &scratch.unrolled,
                COLUMNS,
                windows,
                &mut scratch.product,
                &mut scratch.maps[channel * MAP_STRIDE..],
            );
            channel += layer.channels;
        }
        for layer in &self.temporal {
            let own_before = (layer.time_taps - 1) / 2;
            // Rows overlap: tap k at time t reads sample k + t.
            let windows = (0..MELS).map(|f| f * width + before - own_before);
            layer.apply(&scratch.input, 1, windows, &mut scratch.product, &mut scratch.maps[channel * MAP_STRIDE..]);
            channel += layer.channels;
        }
        for (index, layer) in self.middle.iter().enumerate() {
            let (read, written) = scratch.maps.split_at_mut(channel * MAP_STRIDE);
            let source = &read[(channel - layer.inputs) * MAP_STRIDE..];
            layer.apply(source, &mut scratch.product, written);
            if index > 0 {
                // Only the outputs: the margins of both stay silent.
                for (sum, earlier) in written[..MID_CHANNELS * MAP_STRIDE].iter_mut().zip(source) {
                    *sum += earlier;
                }
            }
            channel += MID_CHANNELS;
        }

        let mut pooled = Vec::with_capacity(2 * POOLED_CHANNELS);
        for row in scratch.maps.chunks_exact(MAP_STRIDE) {
            let inner = &row[MARGIN..MARGIN + PATCH_FRAMES];
            pooled.push(inner.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            pooled.push(inner.iter().sum::<f32>() / PATCH_FRAMES as f32);
        }
        self.pooled.apply(&mut pooled);
        let mut features = self.dense.apply(&pooled);
        features.iter_mut().for_each(|value| *value = value.max(0.0));
        self.features.apply(&mut features);
        let mut tags = self.output.apply(&features);
        tags.iter_mut().for_each(|logit| *logit = 1.0 / (1.0 + (-*logit).exp()));
        (tags, features)
    }
}

/// Working memory of one thread.
#[derive(Default)]
struct Scratch {
    input: Vec<f32>,
    unrolled: Vec<f32>,
    product: Vec<f32>,
    maps: Vec<f32>,
}

/// A normalisation folded to `x * scale + shift`.
struct Affine {
    scale: Vec<f32>,
    shift: Vec<f32>,
}

impl Affine {
    fn load(file: &Weights, number: usize, width: usize) -> Result<Self, WeightsError> {
        let name = numbered("batch_normalization", number);
        Ok(Self {
            scale: file.f32(&format!("{name}/scale"), &[width])?,
            shift: file.f32(&format!("{name}/shift"), &[width])?,
        })
    }

    fn apply(&self, values: &mut [f32]) {
        for ((value, scale), shift) in values.iter_mut().zip(&self.scale).zip(&self.shift) {
            *value = *value * scale + shift;
        }
    }
}

/// The published names: the first layer of a kind has no number.
fn numbered(kind: &str, number: usize) -> String {
    if number == 0 { kind.to_owned() } else { format!("{kind}_{number}") }
}

struct Dense {
    /// `[inputs, outputs]`.
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Dense {
    fn load(file: &Weights, name: &str, inputs: usize, outputs: usize) -> Result<Self, WeightsError> {
        Ok(Self {
            weight: file.f32(&format!("{name}/kernel"), &[inputs, outputs])?,
            bias: file.f32(&format!("{name}/bias"), &[outputs])?,
        })
    }

    fn apply(&self, x: &[f32]) -> Vec<f32> {
        let mut y = self.bias.clone();
        for (value, row) in x.iter().zip(self.weight.chunks_exact(self.bias.len())) {
            for (sum, weight) in y.iter_mut().zip(row) {
                *sum += value * weight;
            }
        }
        y
    }
}

/// Convolution, bias, ReLU, normalisation, then the maximum over frequency.
///
/// All but the convolution is monotonic in each channel, so the maximum comes first and the rest is done once
/// instead of at every frequency. A channel whose normalisation has a negative scale needs the minimum: its
/// weights are negated, and the sign is put back after the maximum.
struct PooledConvolution {
    time_taps: usize,
    frequency_taps: usize,
    channels: usize,
    /// `[channels rounded up to a multiple of four, frequency taps * time taps]`, the added rows zero.
    weight: Vec<f32>,
    sign: Vec<f32>,
    bias: Vec<f32>,
    normalise: Affine,
}

impl PooledConvolution {
    fn load(
        file: &Weights,
        number: usize,
        time_taps: usize,
        frequency_taps: usize,
        channels: usize,
    ) -> Result<Self, WeightsError> {
        let name = numbered("conv2d", number);
        let kernel = file.f32(&format!("{name}/kernel"), &[time_taps, frequency_taps, 1, channels])?;
        let bias = file.f32(&format!("{name}/bias"), &[channels])?;
        let normalise = Affine::load(file, number + 1, channels)?;
        let sign: Vec<f32> = normalise.scale.iter().map(|&scale| if scale < 0.0 { -1.0 } else { 1.0 }).collect();
        let mut weight = Vec::with_capacity(kernel.len());
        for (channel, sign) in sign.iter().enumerate() {
            for frequency in 0..frequency_taps {
                weight.extend(
                    (0..time_taps).map(|time| sign * kernel[(time * frequency_taps + frequency) * channels + channel]),
                );
            }
        }
        weight.resize(channels.next_multiple_of(4) * time_taps * frequency_taps, 0.0);
        Ok(Self { time_taps, frequency_taps, channels, weight, sign, bias, normalise })
    }

    /// For each window, an offset into `source` where a matrix `[taps, 192]` with rows `row_stride` apart begins,
    /// multiplies it by the weights; writes the pooled result into the rows of `out`.
    fn apply(
        &self,
        source: &[f32],
        row_stride: usize,
        windows: impl Iterator<Item = usize>,
        product: &mut Vec<f32>,
        out: &mut [f32],
    ) {
        let taps = self.time_taps * self.frequency_taps;
        let rows = self.weight.len() / taps;
        product.clear();
        product.resize(2 * rows * COLUMNS, f32::NEG_INFINITY);
        let (best, current) = product.split_at_mut(rows * COLUMNS);
        for offset in windows {
            let left = Strided::rows(&self.weight, taps);
            matmul(rows, COLUMNS, taps, left, &source[offset..], row_stride, current, COLUMNS, false);
            for (best, value) in best.iter_mut().zip(&*current) {
                *best = if *value > *best { *value } else { *best };
            }
        }
        let channels = best.chunks_exact(COLUMNS).zip(out.chunks_exact_mut(MAP_STRIDE)).take(self.channels);
        for (channel, (best, out)) in channels.enumerate() {
            let (sign, bias) = (self.sign[channel], self.bias[channel]);
            let (scale, shift) = (self.normalise.scale[channel], self.normalise.shift[channel]);
            for (value, best) in out[MARGIN..MARGIN + PATCH_FRAMES].iter_mut().zip(best) {
                *value = (sign * best + bias).max(0.0) * scale + shift;
            }
        }
    }
}

/// Convolution over seven frames of all channels, bias, ReLU, normalisation; 64 channels out.
struct Convolution {
    inputs: usize,
    /// `[7, 64, inputs]`.
    weight: Vec<f32>,
    bias: Vec<f32>,
    normalise: Affine,
}

impl Convolution {
    fn load(file: &Weights, number: usize, inputs: usize) -> Result<Self, WeightsError> {
        let name = numbered("conv2d", number);
        let kernel = file.f32(&format!("{name}/kernel"), &[TAPS, inputs, 1, MID_CHANNELS])?;
        let mut weight = Vec::with_capacity(kernel.len());
        for tap in kernel.chunks_exact(inputs * MID_CHANNELS) {
            for channel in 0..MID_CHANNELS {
                weight.extend((0..inputs).map(|input| tap[input * MID_CHANNELS + channel]));
            }
        }
        Ok(Self {
            inputs,
            weight,
            bias: file.f32(&format!("{name}/bias"), &[MID_CHANNELS])?,
            normalise: Affine::load(file, number + 1, MID_CHANNELS)?,
        })
    }

    /// Feature maps `source` (`inputs` rows) to the first 64 rows of `out`.
    fn apply(&self, source: &[f32], product: &mut Vec<f32>, out: &mut [f32]) {
        product.clear();
        product.resize(MID_CHANNELS * COLUMNS, 0.0);
        for (tap, weight) in self.weight.chunks_exact(MID_CHANNELS * self.inputs).enumerate() {
            let left = Strided::rows(weight, self.inputs);
            let inputs = self.inputs;
            matmul(MID_CHANNELS, COLUMNS, inputs, left, &source[tap..], MAP_STRIDE, product, COLUMNS, tap > 0);
        }
        let channels = product.chunks_exact(COLUMNS).zip(out.chunks_exact_mut(MAP_STRIDE));
        for (channel, (row, out)) in channels.enumerate() {
            let bias = self.bias[channel];
            let (scale, shift) = (self.normalise.scale[channel], self.normalise.shift[channel]);
            for (value, sum) in out[MARGIN..MARGIN + PATCH_FRAMES].iter_mut().zip(row) {
                *value = (sum + bias).max(0.0) * scale + shift;
            }
        }
    }
}
