//! The detail that a mean averages away: a small rectified-flow network over the frames of each token.
//!
//! Straight paths x_t = (1 - t) x_0 + t n between data x_0 and noise n (Liu et al., arXiv 2209.03003), velocity
//! v = n - x_0. Data and noise have unit variance, so with s^2 = (1 - t)^2 + t^2 the best linear guess of v is
//! (2t - 1) / s^2 x_t and what is left has variance 1 / s^2: the network F sees x_t / s and predicts that rest,
//! v = (2t - 1) / s^2 x_t + F / s, against targets of unit variance (the preconditioning idea of Karras et al.,
//! arXiv 2206.00364). Blocks are ConvNeXt's (Liu et al., arXiv 2201.03545) with time and level in the norm.

use burn::tensor::activation::silu;
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::ops;
use crate::parameters::{Bound, Initialiser, Parameters, Role};

/// Numbers of codebooks the decoder is trained for.
pub const LEVEL_CHOICES: [usize; 4] = [1, 2, 4, 8];

/// Cosine and sine pairs that describe the time.
const TIME_PAIRS: usize = 32;
/// Width of the vector that steers the norms.
const STEER: usize = 256;
/// Epsilon of the norms.
const EPSILON: f64 = 1e-5;

/// Index of the largest of [`LEVEL_CHOICES`] that `levels` allows.
pub fn level_choice(levels: usize) -> usize {
    LEVEL_CHOICES.iter().rposition(|&choice| choice <= levels).unwrap_or(0)
}

/// Shape of the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowConfig {
    /// Width of the blocks.
    pub width: usize,
    /// Number of blocks.
    pub blocks: usize,
    /// Taps of the depthwise convolution over tokens; odd.
    pub kernel: usize,
    /// Inner width of a block over its width.
    pub expansion: usize,
}

impl Default for FlowConfig {
    /// 384 wide, 6 blocks, 7 taps, expansion 4: 8.2 M parameters for 1024 values a token.
    fn default() -> Self {
        Self { width: 384, blocks: 6, kernel: 7, expansion: 4 }
    }
}

impl FlowConfig {
    /// Whether the shape can be built.
    pub fn is_valid(&self) -> bool {
        (1..=8192).contains(&self.width)
            && (1..=128).contains(&self.blocks)
            && (1..=63).contains(&self.kernel)
            && self.kernel % 2 == 1
            && (1..=16).contains(&self.expansion)
    }
}

/// The network with its weights on a device.
pub struct FlowNetwork {
    config: FlowConfig,
    bound: Bound,
}

impl FlowNetwork {
    /// Appends the network's weights for `values` numbers a token and latents of `latent`.
    pub fn add_parameters(
        config: &FlowConfig,
        values: usize,
        latent: usize,
        draw: &mut Initialiser,
        all: &mut Parameters,
    ) {
        let linear =
            |all: &mut Parameters, draw: &mut Initialiser, name: &str, inputs: usize, outputs: usize, scale: f32| {
                let deviation = scale / (inputs as f32).sqrt();
                let weight = draw.normal(inputs * outputs, deviation);
                all.push(format!("{name}.weight"), &[inputs, outputs], Role::Decayed, weight);
                all.push(format!("{name}.bias"), &[outputs], Role::Free, vec![0.0; outputs]);
            };
        let (width, inner) = (config.width, config.width * config.expansion);
        linear(all, draw, "flow.input", values, width, 1.0);
        linear(all, draw, "flow.latent", latent, width, 1.0);
        linear(all, draw, "flow.steer.0", 2 * TIME_PAIRS + LEVEL_CHOICES.len(), STEER, 1.0);
        linear(all, draw, "flow.steer.1", STEER, 2 * width * (config.blocks + 1), 0.1);
        for block in 0..config.blocks {
            linear(all, draw, &format!("flow.blocks.{block}.0"), width, inner, 1.0);
            linear(all, draw, &format!("flow.blocks.{block}.1"), inner, width, 1.0 / config.blocks as f32);
        }
        linear(all, draw, "flow.output", width, values, 0.0);
        for block in 0..config.blocks {
            let deviation = 1.0 / (config.kernel as f32).sqrt();
            let taps = draw.normal(config.kernel * width, deviation);
            all.push(format!("flow.blocks.{block}.taps"), &[config.kernel, width], Role::Decayed, taps);
            all.push(format!("flow.blocks.{block}.taps_bias"), &[width], Role::Free, vec![0.0; width]);
        }
    }

    /// The network on `device`.
    pub fn new(config: &FlowConfig, parameters: &Parameters, device: &Device) -> Self {
        Self { config: config.clone(), bound: parameters.bind(device) }
    }

    /// The bound weights, to fetch gradients from.
    pub fn bound(&self) -> &Bound {
        &self.bound
    }

    fn linear<const D: usize>(&self, name: &str, x: Tensor<D>) -> Tensor<D> {
        ops::linear(x, self.bound.tensor(&format!("{name}.weight")), Some(self.bound.tensor(&format!("{name}.bias"))))
    }

    /// F for scaled noisy values `x_btw / s` and latents `z_btd`, times `[b]` in 0..1 and choices of levels `[b]`.
    pub fn forward(&self, x_btw: Tensor<3>, z_btd: Tensor<3>, times: &[f32], choices: &[usize]) -> Tensor<3> {
        let width = self.config.width;
        let device = self.bound.device();
        let [batch, ..] = x_btw.dims();
        let features = steering(times, choices);
        let steer =
            Tensor::<2>::from_data(TensorData::new(features, [batch, 2 * TIME_PAIRS + LEVEL_CHOICES.len()]), device);
        let steer = self.linear("flow.steer.1", silu(self.linear("flow.steer.0", steer)));
        let part = |index: usize| steer.clone().slice([0..batch, index * width..(index + 1) * width]);
        let mut hidden = self.linear("flow.input", x_btw) + self.linear("flow.latent", z_btd);
        for block in 0..self.config.blocks {
            let name = format!("flow.blocks.{block}");
            let mixed = ops::depthwise_conv1d(
                hidden.clone(),
                self.bound.tensor(&format!("{name}.taps")),
                self.bound.tensor(&format!("{name}.taps_bias")),
            );
            let normed = ops::ada_layer_norm(mixed, part(2 * block), part(2 * block + 1), EPSILON);
            let inner = ops::gelu(self.linear(&format!("{name}.0"), normed));
            hidden = hidden + self.linear(&format!("{name}.1"), inner);
        }
        let last = 2 * self.config.blocks;
        self.linear("flow.output", ops::ada_layer_norm(hidden, part(last), part(last + 1), EPSILON))
    }

    /// Data `[T, values]` drawn by `steps` Euler steps from `noise` `[T, values]` at t = 1, for latents `[T, latent]`.
    pub fn sample(&self, noise: Vec<f32>, latents: &[f32], choice: usize, steps: usize) -> Vec<f32> {
        let device = self.bound.device();
        let latent = self.bound.tensor::<2>("flow.latent.weight").dims()[0];
        let tokens = latents.len() / latent;
        let values = noise.len() / tokens.max(1);
        let z = Tensor::<3>::from_data(TensorData::new(latents.to_vec(), [1, tokens, latent]), device);
        let mut x = Tensor::<3>::from_data(TensorData::new(noise, [1, tokens, values]), device);
        for step in 0..steps {
            let (t, next) = (1.0 - step as f32 / steps as f32, 1.0 - (step + 1) as f32 / steps as f32);
            let power = (1.0 - t).powi(2) + t * t;
            let rest = self.forward(x.clone() / power.sqrt(), z.clone(), &[t], &[choice]);
            let velocity = x.clone() * ((2.0 * t - 1.0) / power) + rest / power.sqrt();
            x = x + velocity * (next - t);
        }
        x.into_data().try_into_vec().expect("the flow computes in f32")
    }
}

/// Time as cosines and sines of rising frequency beside the choice of levels as one of four.
fn steering(times: &[f32], choices: &[usize]) -> Vec<f32> {
    let mut out = Vec::with_capacity(times.len() * (2 * TIME_PAIRS + LEVEL_CHOICES.len()));
    for (time, &choice) in times.iter().zip(choices) {
        for pair in 0..TIME_PAIRS {
            let phase = time * 1000f32.powf(pair as f32 / (TIME_PAIRS - 1) as f32);
            out.extend([phase.cos(), phase.sin()]);
        }
        out.extend((0..LEVEL_CHOICES.len()).map(|index| f32::from(u8::from(index == choice))));
    }
    out
}
