//! Encoder and decoder of EnCodec as one list of layers over values `[frames, channels]`, numbered as published.

use mambo_kernels::activation::Activation;
use mambo_kernels::conv1d::{Conv1d, ConvSizes, ConvTranspose1d, between_zeros};
use mambo_kernels::lstm::{Lstm, LstmState};

use super::{EncodecConfig, PadMode};
use crate::weights::{Weights, WeightsError, join_weight_norm};

/// A convolution that keeps the length, or divides it by its stride and rounds up.
struct Padded {
    conv: Conv1d,
    mode: PadMode,
}

impl Padded {
    fn forward(&self, x: &[f32]) -> Vec<f32> {
        let sizes = self.conv.sizes();
        let frames = x.len() / sizes.inputs;
        let total = sizes.reach() - sizes.stride;
        let right = total / 2;
        // The last output sees beyond the end if the stride does not divide the length.
        let extra = frames.next_multiple_of(sizes.stride) - frames;
        self.conv.forward(&padded(x, sizes.inputs, total - right, right + extra, self.mode))
    }
}

/// `x` `[frames, channels]` with so many frames before and after it.
fn padded(x: &[f32], channels: usize, before: usize, after: usize, mode: PadMode) -> Vec<f32> {
    let frames = x.len() / channels;
    let mut out = between_zeros(x, channels, before, after);
    if mode == PadMode::Reflect {
        // A clip too short to be mirrored is first made longer with silence, as the published models do.
        let length = frames.max(before.max(after) + 1);
        let mirrored =
            (0..before).map(|i| (i, before - i)).chain((0..after).map(|i| (before + frames + i, frames + i)));
        for (target, source) in mirrored {
            let source = if source < length { source } else { 2 * (length - 1) - source };
            if source < frames {
                let line = &x[source * channels..][..channels];
                out[target * channels..][..channels].copy_from_slice(line);
            }
        }
    }
    out
}

enum Layer {
    Conv(Padded),
    /// Channels read and written, frames a frame becomes.
    Transposed(ConvTranspose1d, [usize; 3]),
    Unit([Padded; 2]),
    Memory(Vec<Lstm>),
    Elu,
}

/// Encoder or decoder.
pub(super) struct Stack(Vec<Layer>);

/// Takes layers from a file in the order of their numbers.
struct Builder<'a> {
    config: &'a EncodecConfig,
    weights: &'a Weights,
    prefix: &'a str,
    layers: Vec<Layer>,
}

impl Builder<'_> {
    /// The weight under any of the names that published files have for its length and direction; then the bias.
    fn weight(&self, name: &str, shape: [usize; 3], biases: usize) -> Result<[Vec<f32>; 2], WeightsError> {
        let pair = |length: &str, direction: &str| [format!("{name}.{length}"), format!("{name}.{direction}")];
        let [first, second] = [
            pair("parametrizations.weight.original0", "parametrizations.weight.original1"),
            pair("weight_g", "weight_v"),
        ];
        let [length, direction] = if self.weights.shape(&second[1]).is_some() { second } else { first };
        let lengths = self.weights.f32(&length, &[shape[0], 1, 1])?;
        let mut weight = self.weights.f32(&direction, &shape)?;
        join_weight_norm(&lengths, &mut weight);
        Ok([weight, self.weights.f32(&format!("{name}.bias"), &[biases])?])
    }

    fn padded(&self, name: &str, sizes: ConvSizes) -> Result<Padded, WeightsError> {
        let [weight, bias] = self.weight(name, [sizes.outputs, sizes.inputs, sizes.taps], sizes.outputs)?;
        Ok(Padded { conv: Conv1d::new(sizes, &weight, &bias), mode: self.config.pad_mode })
    }

    fn name(&self) -> String {
        format!("{}.{}", self.prefix, self.layers.len())
    }

    fn conv(&mut self, sizes: ConvSizes) -> Result<(), WeightsError> {
        let conv = self.padded(&format!("{}.conv", self.name()), sizes)?;
        self.layers.push(Layer::Conv(conv));
        Ok(())
    }

    fn units(&mut self, channels: usize) -> Result<(), WeightsError> {
        let inner = channels / self.config.compress;
        let mut dilation = 1;
        for _ in 0..self.config.num_residual_layers {
            let name = self.name();
            let wide = ConvSizes { dilation, ..ConvSizes::new(channels, inner, self.config.residual_kernel_size) };
            let unit = [
                self.padded(&format!("{name}.block.1.conv"), wide)?,
                self.padded(&format!("{name}.block.3.conv"), ConvSizes::new(inner, channels, 1))?,
            ];
            self.layers.push(Layer::Unit(unit));
            dilation *= self.config.dilation_growth_rate;
        }
        Ok(())
    }

    fn memory(&mut self, width: usize) -> Result<(), WeightsError> {
        let name = format!("{}.lstm", self.name());
        let layer = |index: usize| {
            let read = |part: &str, shape: &[usize]| self.weights.f32(&format!("{name}.{part}_l{index}"), shape);
            let square = [4 * width, width];
            let (ih, hh) = (read("weight_ih", &square)?, read("weight_hh", &square)?);
            let (bias_ih, bias_hh) = (read("bias_ih", &square[..1])?, read("bias_hh", &square[..1])?);
            Ok(Lstm::new(width, &ih, &hh, &bias_ih, &bias_hh))
        };
        let memory = (0..self.config.num_lstm_layers).map(layer).collect::<Result<_, WeightsError>>()?;
        self.layers.push(Layer::Memory(memory));
        Ok(())
    }

    fn transposed(&mut self, channels: usize, stride: usize) -> Result<(), WeightsError> {
        let (outputs, taps) = (channels / 2, 2 * stride);
        let [weight, bias] = self.weight(&format!("{}.conv", self.name()), [channels, outputs, taps], outputs)?;
        let conv = ConvTranspose1d::new(channels, outputs, taps, stride, &weight, &bias);
        self.layers.push(Layer::Transposed(conv, [channels, outputs, stride]));
        Ok(())
    }
}

impl Stack {
    fn builder<'a>(config: &'a EncodecConfig, weights: &'a Weights, prefix: &'a str) -> Builder<'a> {
        Builder { config, weights, prefix, layers: Vec::new() }
    }

    pub(super) fn encoder(config: &EncodecConfig, weights: &Weights, prefix: &str) -> Result<Self, WeightsError> {
        let mut build = Self::builder(config, weights, prefix);
        let mut channels = config.num_filters;
        build.conv(ConvSizes::new(1, channels, config.kernel_size))?;
        for &stride in config.upsampling_ratios.iter().rev() {
            build.units(channels)?;
            build.layers.push(Layer::Elu);
            build.conv(ConvSizes { stride, ..ConvSizes::new(channels, 2 * channels, 2 * stride) })?;
            channels *= 2;
        }
        build.memory(channels)?;
        build.layers.push(Layer::Elu);
        build.conv(ConvSizes::new(channels, config.hidden_size, config.last_kernel_size))?;
        Ok(Self(build.layers))
    }

    pub(super) fn decoder(config: &EncodecConfig, weights: &Weights, prefix: &str) -> Result<Self, WeightsError> {
        let mut build = Self::builder(config, weights, prefix);
        let mut channels = config.num_filters << config.upsampling_ratios.len();
        build.conv(ConvSizes::new(config.hidden_size, channels, config.kernel_size))?;
        build.memory(channels)?;
        for &stride in &config.upsampling_ratios {
            build.layers.push(Layer::Elu);
            build.transposed(channels, stride)?;
            channels /= 2;
            build.units(channels)?;
        }
        build.layers.push(Layer::Elu);
        build.conv(ConvSizes::new(channels, 1, config.last_kernel_size))?;
        Ok(Self(build.layers))
    }

    pub(super) fn forward(&self, mut x: Vec<f32>) -> Vec<f32> {
        if x.is_empty() {
            return x;
        }
        for layer in &self.0 {
            match layer {
                Layer::Elu => x = Activation::Elu.forward(&x, None),
                Layer::Conv(conv) => x = conv.forward(&x),
                Layer::Unit([wide, joint]) => {
                    let y = wide.forward(&Activation::Elu.forward(&x, None));
                    add(&mut x, &joint.forward(&Activation::Elu.forward(&y, None)));
                }
                Layer::Memory(layers) => {
                    let mut y = x.clone();
                    for layer in layers {
                        y = layer.forward(&y, &mut LstmState::new(layer.width()));
                    }
                    add(&mut x, &y);
                }
                Layer::Transposed(conv, [inputs, outputs, stride]) => {
                    let frames = x.len() / inputs;
                    let full = conv.forward(&between_zeros(&x, *inputs, conv.margin(), conv.margin()));
                    // The transpose is one stride longer than wanted; of an odd one, more goes on the left.
                    let left = stride - stride / 2;
                    x = full[left * outputs..][..frames * stride * outputs].to_vec();
                }
            }
        }
        x
    }
}

fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}
