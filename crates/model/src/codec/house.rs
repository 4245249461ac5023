//! The house codec: residual k-means tokens over band spectra, and a small generative decoder.
//!
//! Encoder: log band magnitudes (`bands`), normalised per band, four STFT frames a token, projected by a fixed
//! linear map that keeps partials as well as envelope, then residual vector quantisation; level 1 stands alone.
//! Decoder: a closed-form linear map gives the mean spectrum of the tokens, a rectified-flow network (`flow`) adds
//! the detail that a mean averages away, fast Griffin-Lim finds the phases.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use mambo_audio::spectrum::GriffinLim;
use mambo_kernels::matmul::{Strided, matmul};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::flow::{FlowNetwork, LEVEL_CHOICES, level_choice};
use super::windowed::{Windowed, WindowedEncoder};
use super::{
    BandLayout, Codec, DecodeStream, EncodeStream, HouseStream, PaintStream, Refinable, ResidualQuantizer, StreamCodec,
    decode_by_stream, encode_by_stream,
};
use crate::clock::Metronome;
use crate::diffusion::DenoiserConfig;
use crate::parameters::{Initialiser, Parameters, Precision, Role, WriteError, write_atomically};
use crate::tokens::{CodecSpec, CodecTokens};
use crate::weights::WeightsError;

/// Tokens that the encoder looks at in one go.
const ENCODED_AT_ONCE: usize = 256;
/// Tokens a task projects at once.
const TASK: usize = 64;

/// How tokens become sound; changes nothing in the tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decoding {
    /// Euler steps of the flow; 0 decodes the mean alone.
    pub steps: usize,
    /// Scale of the starting noise; below 1 is calmer.
    pub noise: f32,
    /// Share of the starting noise between low bands that stands still, so that a held tone keeps its partials.
    pub steady: f32,
    /// Iterations of Griffin-Lim.
    pub griffin_lim: usize,
    /// Momentum of Griffin-Lim.
    pub momentum: f32,
    /// Tokens decoded in one window.
    pub window: usize,
    /// Tokens of context on each side of a window.
    pub halo: usize,
}

impl Default for Decoding {
    /// 10 steps, noise 0.75 and 0.3 of it steady, 16 iterations, windows of 160 tokens with 16 around.
    fn default() -> Self {
        Self { steps: 10, noise: 0.75, steady: 0.3, griffin_lim: 16, momentum: 0.99, window: 160, halo: 16 }
    }
}

/// Shape of the codec.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HouseConfig {
    /// What the tokens mean.
    pub spec: CodecSpec,
    /// Bands.
    pub layout: BandLayout,
    /// Width of the quantised vectors.
    pub latent: usize,
    /// Tokens on each side that the linear mean sees.
    pub context: usize,
    /// The flow network.
    pub flow: DenoiserConfig,
    /// How tokens become sound.
    pub decoding: Decoding,
}

impl Default for HouseConfig {
    fn default() -> Self {
        Self {
            spec: CodecSpec { name: "house".into(), sample_rate: 44_100, hop: 2048, levels: 8, cardinality: 1024 },
            layout: BandLayout::default(),
            latent: 64,
            context: 2,
            flow: DenoiserConfig::default(),
            decoding: Decoding::default(),
        }
    }
}

impl HouseConfig {
    /// STFT frames in a token.
    pub fn frames_per_token(&self) -> usize {
        self.spec.hop as usize / self.layout.hop
    }

    /// Values that describe one token: frames times bands.
    pub fn width(&self) -> usize {
        self.frames_per_token() * self.layout.bands()
    }

    /// Inputs of the linear mean, without its constant.
    pub fn context_width(&self) -> usize {
        (2 * self.context + 1) * self.latent
    }

    /// All weights, zero but for the flow network's.
    pub fn parameters(&self, draw: &mut Initialiser) -> Parameters {
        let (bands, width) = (self.layout.bands(), self.width());
        let (levels, entries) = (self.spec.levels, self.spec.cardinality);
        let mut all = Parameters::new();
        let mut buffer = |name: &str, shape: &[usize]| {
            all.push(name, shape, Role::Buffer, vec![0.0; shape.iter().product()]);
        };
        buffer("bands.mean", &[bands]);
        buffer("bands.deviation", &[bands]);
        buffer("project.weight", &[width, self.latent]);
        buffer("project.bias", &[self.latent]);
        buffer("codebooks", &[levels, entries, self.latent]);
        buffer("mean.weight", &[LEVEL_CHOICES.len(), self.context_width(), width]);
        buffer("mean.bias", &[LEVEL_CHOICES.len(), width]);
        buffer("mean.deviation", &[LEVEL_CHOICES.len(), width]);
        FlowNetwork::add_parameters(&self.flow, self.width(), self.latent, draw, &mut all);
        all
    }

    fn check(&self) -> Result<(), String> {
        let spec = &self.spec;
        let rules = [
            (
                self.layout.is_valid(),
                "layout: every band needs at least one STFT bin and the hop at most half the window",
            ),
            (
                self.layout.hop > 0 && spec.hop > 0 && (spec.hop as usize).is_multiple_of(self.layout.hop),
                "spec.hop must be a multiple of layout.hop",
            ),
            ((1..=64).contains(&spec.levels), "spec.levels must be 1 to 64"),
            ((2..=65_535).contains(&spec.cardinality), "spec.cardinality must be 2 to 65535"),
            ((1..=4096).contains(&self.latent), "latent must be 1 to 4096"),
            (self.context <= 64, "context must be at most 64"),
            (self.layout.window <= 1 << 16, "layout.window must be at most 65536"),
            (self.flow.is_valid(), "flow: width, blocks, kernel (odd) and expansion must be positive and moderate"),
            (self.decoding.window > 0 && self.decoding.window <= 1 << 16, "decoding.window must be 1 to 65536"),
            (self.decoding.halo <= 1 << 12 && self.decoding.steps <= 1000, "decoding.halo or decoding.steps too large"),
            ((0.0..=1.0).contains(&self.decoding.steady), "decoding.steady must be 0 to 1"),
            ((1..=1000).contains(&self.decoding.griffin_lim), "decoding.griffin_lim must be 1 to 1000"),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, rule)) => Err((*rule).to_owned()),
            None => Ok(()),
        }
    }
}

/// Why a codec could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum HouseError {
    /// A file cannot be read or written.
    #[error("{path}: {source}; expected a codec folder with config.json and codec.safetensors")]
    Io {
        /// File.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The configuration is no valid JSON of this shape.
    #[error("{path}: not a codec configuration: {source}")]
    Json {
        /// File.
        path: PathBuf,
        /// Cause.
        source: serde_json::Error,
    },
    /// A value of the configuration cannot be.
    #[error("{path}: {rule}")]
    Config {
        /// File.
        path: PathBuf,
        /// The rule that it breaks.
        rule: String,
    },
    /// The weights do not fit.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The weights could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// The house codec, ready to use.
pub struct HouseCodec {
    config: HouseConfig,
    parameters: Parameters,
    quantizer: ResidualQuantizer,
    flow: FlowNetwork,
}

impl HouseCodec {
    /// A codec from its weights (as [`HouseConfig::parameters`] lists them).
    ///
    /// # Panics
    /// When the weights are another configuration's.
    pub fn new(config: HouseConfig, parameters: Parameters) -> Self {
        let book = &parameters.get("codebooks").expect("a codec has codebooks").values;
        let quantizer = ResidualQuantizer::new(config.latent, config.spec.cardinality, book.clone());
        let flow = FlowNetwork::new(&config.flow, &parameters, &Device::flex());
        Self { config, parameters, quantizer, flow }
    }

    /// Opens a folder with `config.json` and `codec.safetensors`.
    pub fn load(folder: &Path) -> Result<Self, HouseError> {
        let path = folder.join("config.json");
        let text = std::fs::read(&path).map_err(|source| HouseError::Io { path: path.clone(), source })?;
        let config: HouseConfig =
            serde_json::from_slice(&text).map_err(|source| HouseError::Json { path: path.clone(), source })?;
        config.check().map_err(|rule| HouseError::Config { path, rule })?;
        let mut parameters = config.parameters(&mut Initialiser::blank());
        parameters.load(&folder.join("codec.safetensors"))?;
        Ok(Self::new(config, parameters))
    }

    /// Writes `config.json` and `codec.safetensors` (half precision) into an existing folder.
    pub fn save(config: &HouseConfig, parameters: &Parameters, folder: &Path) -> Result<(), HouseError> {
        let path = folder.join("config.json");
        let text = serde_json::to_vec_pretty(config).expect("a configuration is plain data");
        parameters.save(&folder.join("codec.safetensors"), Precision::F16, "house codec")?;
        write_atomically(&path, &text).map_err(|source| HouseError::Io { path, source })
    }

    /// The same codec with other settings for decoding.
    pub fn with_decoding(mut self, decoding: Decoding) -> Self {
        self.config.decoding = decoding;
        self
    }

    /// Its configuration.
    pub fn config(&self) -> &HouseConfig {
        &self.config
    }

    /// Its weights.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Its codebooks.
    pub fn quantizer(&self) -> &ResidualQuantizer {
        &self.quantizer
    }

    fn values(&self, name: &str) -> &[f32] {
        &self.parameters.get(name).expect("listed in HouseConfig::parameters").values
    }

    /// Normalised band magnitudes `[T, width]` of mono samples.
    pub fn features(&self, mono: &[f32]) -> Vec<f32> {
        let tokens = mono.len().div_ceil(self.config.spec.hop as usize);
        let mut values = self.config.layout.analyse(mono, tokens * self.config.frames_per_token());
        self.normalise(&mut values);
        values
    }

    /// Log band magnitudes to zero mean and unit deviation per band.
    pub fn normalise(&self, logs: &mut [f32]) {
        let (mean, deviation) = (self.values("bands.mean"), self.values("bands.deviation"));
        logs.par_chunks_mut(mean.len()).for_each(|row| {
            for ((value, mean), deviation) in row.iter_mut().zip(mean).zip(deviation) {
                *value = (*value - mean) / deviation;
            }
        });
    }

    /// Standard deviation of what the mean leaves, per value of a token `[width]`.
    pub fn deviation(&self, choice: usize) -> &[f32] {
        let width = self.config.width();
        &self.values("mean.deviation")[choice * width..(choice + 1) * width]
    }

    /// Quantiser inputs `[T, latent]` of features `[T, width]`.
    pub fn project(&self, features: &[f32]) -> Vec<f32> {
        let (width, latent) = (self.config.width(), self.config.latent);
        product(features, width, self.values("project.weight"), self.values("project.bias"), latent)
    }

    /// The linear mean spectrum `[T, width]`, normalised, of latents `[T, latent]` quantised with
    /// `LEVEL_CHOICES[choice]` levels.
    pub fn mean(&self, latents: &[f32], choice: usize) -> Vec<f32> {
        let (inputs, width) = (self.config.context_width(), self.config.width());
        let weight = &self.values("mean.weight")[choice * inputs * width..(choice + 1) * inputs * width];
        let bias = &self.values("mean.bias")[choice * width..(choice + 1) * width];
        product(&with_context(latents, self.config.latent, self.config.context), inputs, weight, bias, width)
    }

    /// Log band magnitudes `[T * frames_per_token, bands]` of latents `[T, latent]`; `noise` (`[T, width]`,
    /// standard normal) is what the flow starts from.
    pub fn spectrum(&self, latents: &[f32], choice: usize, mut noise: Vec<f32>) -> Vec<f32> {
        let width = self.config.width();
        let mut values = self.mean(latents, choice);
        let decoding = &self.config.decoding;
        if decoding.steps > 0 {
            for value in &mut noise {
                *value *= decoding.noise;
            }
            let rest = self.flow.sample(noise, latents, choice, decoding.steps);
            let deviation = self.deviation(choice);
            for (row, rest) in values.chunks_exact_mut(width).zip(rest.chunks_exact(width)) {
                for ((value, rest), deviation) in row.iter_mut().zip(rest).zip(deviation) {
                    *value += rest * deviation;
                }
            }
        }
        let (mean, deviation) = (self.values("bands.mean"), self.values("bands.deviation"));
        for row in values.chunks_exact_mut(mean.len()) {
            for ((value, mean), deviation) in row.iter_mut().zip(mean).zip(deviation) {
                *value = *value * deviation + mean;
            }
        }
        values
    }

    /// The phase search this codec uses.
    pub fn griffin_lim(&self) -> GriffinLim {
        let (layout, decoding) = (&self.config.layout, &self.config.decoding);
        GriffinLim::new(layout.window, layout.hop, decoding.griffin_lim, decoding.momentum)
    }
}

impl Codec for HouseCodec {
    fn spec(&self) -> &CodecSpec {
        &self.config.spec
    }

    fn encode(&self, mono: &[f32]) -> CodecTokens {
        encode_by_stream(self, mono)
    }

    fn decode(&self, tokens: &CodecTokens, levels: usize, seed: u64) -> Vec<f32> {
        decode_by_stream(self.decoder(levels, seed), tokens)
    }
}

impl StreamCodec for HouseCodec {
    fn encoder(&self) -> Box<dyn EncodeStream + '_> {
        let hop = self.config.spec.hop as usize;
        // A spectrum sees half its window on each side.
        let reach = self.config.layout.window.div_ceil(2 * hop);
        Box::new(WindowedEncoder {
            windows: Windowed::new([hop, self.config.latent], reach, ENCODED_AT_ONCE),
            network: |samples: &[f32]| self.project(&self.features(samples)),
            quantise: |latents: Vec<f32>| self.quantizer.encode_frames(&latents),
        })
    }

    fn decoder(&self, levels: usize, seed: u64) -> Box<dyn DecodeStream + '_> {
        Box::new(HouseStream::new(self, levels, seed, Metronome::default()))
    }

    fn codebooks(&self) -> (Vec<f32>, usize) {
        (self.quantizer.vectors().to_vec(), self.quantizer.dimension())
    }

    fn refinable(&self) -> Option<&dyn Refinable> {
        Some(self)
    }
}

/// Outline and detail are latents that add up to the one that the decoder reads.
impl Refinable for HouseCodec {
    fn outline_width(&self) -> usize {
        self.config.latent
    }

    fn detail_width(&self) -> usize {
        self.config.latent
    }

    fn outline(&self, code: u16) -> Vec<f32> {
        self.quantizer.vector(0, usize::from(code)).to_vec()
    }

    fn detail(&self, codes: &[u16]) -> Vec<f32> {
        let levels = codes.len().min(self.config.spec.levels);
        let all = self.quantizer.decode(&codes[..levels], 1, levels);
        all.iter().zip(self.quantizer.vector(0, usize::from(codes[0]))).map(|(all, outline)| all - outline).collect()
    }

    fn painted(&self, seed: u64, metronome: &Metronome) -> Box<dyn PaintStream + '_> {
        Box::new(HouseStream::new(self, self.config.spec.levels, seed, *metronome))
    }
}

/// Each row beside its neighbours: `[T, latent]` to `[T, (2 * context + 1) * latent]`, zeros beyond the ends.
pub fn with_context(latents: &[f32], latent: usize, context: usize) -> Vec<f32> {
    let frames = latents.len() / latent;
    let inputs = (2 * context + 1) * latent;
    let mut out = vec![0.0; frames * inputs];
    out.par_chunks_mut(inputs).enumerate().for_each(|(t, row)| {
        for (slot, values) in row.chunks_exact_mut(latent).enumerate() {
            let from = (t + slot) as isize - context as isize;
            if (0..frames as isize).contains(&from) {
                values.copy_from_slice(&latents[from as usize * latent..][..latent]);
            }
        }
    });
    out
}

/// `rows [T, inputs] * weight [inputs, outputs] + bias`, shared between threads by rows.
fn product(rows: &[f32], inputs: usize, weight: &[f32], bias: &[f32], outputs: usize) -> Vec<f32> {
    let mut out = vec![0.0; rows.len() / inputs * outputs];
    out.par_chunks_mut(TASK * outputs).zip(rows.par_chunks(TASK * inputs)).for_each(|(out, rows)| {
        for row in out.chunks_exact_mut(outputs) {
            row.copy_from_slice(bias);
        }
        matmul(rows.len() / inputs, outputs, inputs, Strided::rows(rows, inputs), weight, outputs, out, outputs, true);
    });
    out
}

/// The largest choice of levels that `levels` allows, and its index.
pub(super) fn usable_levels(levels: usize) -> (usize, usize) {
    let choice = level_choice(levels);
    (LEVEL_CHOICES[choice], choice)
}
