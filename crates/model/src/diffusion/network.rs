//! The network that tells data from noise: ConvNeXt blocks (Liu et al., arXiv 2201.03545) over frames, with time and
//! text in the norms (Peebles and Xie, arXiv 2212.09748, section 3.2) and, if wanted, attention to the text, and a Mamba-2 layer
//! before each block, forwards and backwards in turn: what a convolution of a second's reach cannot hold together.

use burn::tensor::activation::silu;
use burn::tensor::{Device, Tensor, TensorData};
use mambo_kernels::mamba2::TAPS;
use serde::{Deserialize, Serialize};

use crate::ops;
use crate::parameters::{Bound, Initialiser, Parameter, Parameters, Role, Side};
use crate::ssm::{Mamba2, Mamba2Config};

/// Cosine and sine pairs that describe the time.
const TIME_PAIRS: usize = 32;
/// Width of the vector that steers the norms.
const STEER: usize = 256;
/// Epsilon of the norms.
const EPSILON: f64 = 1e-5;
/// Channels of a head, and frames of a chunk, of the Mamba-2 layers.
const HEAD: usize = 32;
const CHUNK: usize = 64;

/// Shape of the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenoiserConfig {
    /// Width of the blocks.
    pub width: usize,
    /// Number of blocks.
    pub blocks: usize,
    /// Taps of the depthwise convolution over tokens; odd.
    pub kernel: usize,
    /// Inner width of a block over its width.
    pub expansion: usize,
    /// State entries a channel of the Mamba-2 layer before each block; 0 for no such layers.
    #[serde(default, skip_serializing_if = "none")]
    pub state: usize,
}

fn none(state: &usize) -> bool {
    *state == 0
}

impl Default for DenoiserConfig {
    /// 384 wide, 6 blocks, 7 taps, expansion 4: 8.2 M parameters for 1024 values a token.
    fn default() -> Self {
        Self { width: 384, blocks: 6, kernel: 7, expansion: 4, state: 0 }
    }
}

impl DenoiserConfig {
    /// Whether the shape can be built.
    pub fn is_valid(&self) -> bool {
        (1..=8192).contains(&self.width)
            && (1..=128).contains(&self.blocks)
            && (1..=63).contains(&self.kernel)
            && self.kernel % 2 == 1
            && (1..=16).contains(&self.expansion)
            && self.state <= 1024
            && (self.state == 0 || self.width.is_multiple_of(HEAD))
    }

    /// The Mamba-2 layers, if there are any.
    fn scan(&self) -> Option<Mamba2Config> {
        let (d_model, d_state) = (self.width, self.state);
        (d_state > 0).then_some(Mamba2Config { d_model, d_state, expand: 1, head_dim: HEAD, groups: 1, chunk: CHUNK })
    }

    /// Floating-point operations of a frame in a pass forwards, beside a text of `text` tokens if it attends to one: products
    /// and convolutions, a multiply-add as two. What is computed once a clip (time, keys and values of the text) is left out.
    pub fn flops(&self, conditions: Conditions, text: usize) -> u64 {
        let (width, inner) = (self.width, self.width * self.expansion);
        let attention = conditions.attention.map_or(0, |_| 2 * width * width + 2 * width * text);
        // Both projections, the convolution, and decay, input and output of every state entry.
        let scan = self.scan().map_or(0, |scan| {
            width * (scan.projected() + scan.d_inner()) + TAPS * scan.conv_width() + 3 * scan.d_inner() * scan.d_state
        });
        let block = self.kernel * width + 2 * width * inner + attention + scan;
        let ends = (2 * conditions.values + conditions.known) * width;
        2 * (self.blocks * block + ends) as u64
    }
}

/// What goes in beside the noisy values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conditions {
    /// Values of a frame to be denoised.
    pub values: usize,
    /// Values of a frame that are known.
    pub known: usize,
    /// Numbers that steer beside the time.
    pub steering: usize,
    /// Width of text states and heads of the attention to them, if there is one.
    pub attention: Option<(usize, usize)>,
}

/// The network with its weights on a device.
pub struct Denoiser {
    name: &'static str,
    config: DenoiserConfig,
    heads: Option<usize>,
    bound: Bound,
}

impl Denoiser {
    /// Appends the network's weights under `name`.
    pub fn add_parameters(
        name: &str,
        config: &DenoiserConfig,
        conditions: Conditions,
        draw: &mut Initialiser,
        all: &mut Parameters,
    ) {
        let linear = |all: &mut Parameters, draw: &mut Initialiser, part: &str, sizes: [usize; 2], scale: f32| {
            let [inputs, outputs] = sizes;
            let weight = draw.normal(inputs * outputs, scale / (inputs as f32).sqrt());
            all.push(format!("{name}.{part}.weight"), &[inputs, outputs], Role::Decayed, weight);
            all.push(format!("{name}.{part}.bias"), &[outputs], Role::Free, draw.zeros(outputs));
        };
        let (width, inner) = (config.width, config.width * config.expansion);
        let small = 1.0 / config.blocks as f32;
        linear(all, draw, "input", [conditions.values, width], 1.0);
        linear(all, draw, "latent", [conditions.known, width], 1.0);
        linear(all, draw, "steer.0", [2 * TIME_PAIRS + conditions.steering, STEER], 1.0);
        linear(all, draw, "steer.1", [STEER, 2 * width * (config.blocks + 1)], 0.1);
        for block in 0..config.blocks {
            linear(all, draw, &format!("blocks.{block}.0"), [width, inner], 1.0);
            linear(all, draw, &format!("blocks.{block}.1"), [inner, width], small);
        }
        linear(all, draw, "output", [width, conditions.values], 0.0);
        for block in 0..config.blocks {
            let deviation = 1.0 / (config.kernel as f32).sqrt();
            let taps = draw.normal(config.kernel * width, deviation);
            all.push(format!("{name}.blocks.{block}.taps"), &[config.kernel, width], Role::Decayed, taps);
            all.push(format!("{name}.blocks.{block}.taps_bias"), &[width], Role::Free, draw.zeros(width));
        }
        for (block, scan) in (0..config.blocks).flat_map(|block| config.scan().map(|scan| (block, scan))) {
            all.push(format!("{name}.blocks.{block}.scan_norm"), &[width], Role::Free, vec![1.0; width]);
            scan.init(&format!("{name}.blocks.{block}.scan"), 2 * config.blocks, draw, all);
        }
        for (block, (text, _)) in (0..config.blocks).flat_map(|block| conditions.attention.map(|text| (block, text))) {
            linear(all, draw, &format!("blocks.{block}.query"), [width, width], 1.0);
            linear(all, draw, &format!("blocks.{block}.text"), [text, 2 * width], 1.0);
            linear(all, draw, &format!("blocks.{block}.heard"), [width, width], small);
        }
    }

    /// The network called `name` on `device`: on an autodiff device to be trained, else to be run many times.
    pub fn new(
        name: &'static str,
        config: &DenoiserConfig,
        heads: Option<usize>,
        parameters: &Parameters,
        device: &Device,
    ) -> Self {
        let side = |parameter: &Parameter| {
            let matrix = parameter.name.ends_with(".weight") && parameter.shape.len() == 2;
            let turned = parameter.name.contains(".scan.");
            (matrix && parameter.name.starts_with(name)).then_some(if turned { Side::Turned } else { Side::Plain })
        };
        let bound = if device.is_autodiff() { parameters.bind(device) } else { parameters.bind_packed(device, side) };
        Self { name, config: config.clone(), heads, bound }
    }

    /// The bound weights, to fetch gradients from.
    pub fn bound(&self) -> &Bound {
        &self.bound
    }

    /// Where it is.
    pub fn device(&self) -> &Device {
        self.bound.device()
    }

    fn linear<const D: usize>(&self, part: &str, x: Tensor<D>) -> Tensor<D> {
        let [weight, bias] = ["weight", "bias"].map(|end| format!("{}.{part}.{end}", self.name));
        self.bound.weight(&weight, Side::Plain).apply(x, Some(self.bound.tensor(&bias)))
    }

    /// The network's answer `[b, t, values]` for noisy values of unit variance, known values `[b, t, known]`, times `[b]`,
    /// steering `[b, steering]`, and text states `[b, l, text]` with the empty rows before each if it attends to them.
    pub fn forward(
        &self,
        x_btw: Tensor<3>,
        known_btd: Tensor<3>,
        times: &[f32],
        steering: Option<Tensor<2>>,
        text: Option<(Tensor<3>, &[usize])>,
    ) -> Tensor<3> {
        let width = self.config.width;
        let [batch, ..] = x_btw.dims();
        let times = TensorData::new(time_features(times), [batch, 2 * TIME_PAIRS]);
        let times = Tensor::<2>::from_data(times, self.device());
        let steer = steering.map_or_else(|| times.clone(), |more| Tensor::cat(vec![times.clone(), more], 1));
        let steer = self.linear("steer.1", silu(self.linear("steer.0", steer)));
        let part = |index: usize| steer.clone().slice([0..batch, index * width..(index + 1) * width]);
        let mut hidden = self.linear("input", x_btw) + self.linear("latent", known_btd);
        let scan = self.config.scan();
        for block in 0..self.config.blocks {
            if let Some(scan) = &scan {
                let prefix = format!("{}.blocks.{block}.scan", self.name);
                let normed = ops::rms_norm(hidden.clone(), self.bound.tensor(&format!("{prefix}_norm")), EPSILON);
                let turn = |x: Tensor<3>| if block % 2 == 1 { ops::reverse_frames(x) } else { x };
                let (heard, _) = Mamba2::new(scan, &prefix, &self.bound).forward(turn(normed), &[], None);
                hidden = hidden + turn(heard);
            }
            let [taps, bias] = ["taps", "taps_bias"].map(|end| format!("{}.blocks.{block}.{end}", self.name));
            let mixed = ops::depthwise_conv1d(hidden.clone(), self.bound.tensor(&taps), self.bound.tensor(&bias));
            let normed = ops::ada_layer_norm(mixed, part(2 * block), part(2 * block + 1), EPSILON);
            if let (Some(heads), Some((states, padding))) = (self.heads, &text) {
                let query = self.linear(&format!("blocks.{block}.query"), normed.clone());
                let keys_and_values = self.linear(&format!("blocks.{block}.text"), states.clone());
                let heard = ops::cross_attention(query, keys_and_values, heads, padding.to_vec());
                hidden = hidden + self.linear(&format!("blocks.{block}.heard"), heard);
            }
            let inner = ops::gelu(self.linear(&format!("blocks.{block}.0"), normed));
            hidden = hidden + self.linear(&format!("blocks.{block}.1"), inner);
        }
        let last = 2 * self.config.blocks;
        self.linear("output", ops::ada_layer_norm(hidden, part(last), part(last + 1), EPSILON))
    }
}

/// Times in 0..1 as cosines and sines of rising frequency.
fn time_features(times: &[f32]) -> Vec<f32> {
    let mut out = Vec::with_capacity(times.len() * 2 * TIME_PAIRS);
    for time in times {
        for pair in 0..TIME_PAIRS {
            let phase = time * 1000f32.powf(pair as f32 / (TIME_PAIRS - 1) as f32);
            out.extend([phase.cos(), phase.sin()]);
        }
    }
    out
}
