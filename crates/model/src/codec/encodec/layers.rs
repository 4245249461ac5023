//! Encoder and decoder of EnCodec as one list of layers over values `[frames, channels]`, numbered as published.

use mambo_kernels::activation::Activation;
use mambo_kernels::conv1d::{Conv1d, ConvSizes, ConvTranspose1d, between_zeros};
use mambo_kernels::lstm::{Lstm, LstmState};

use super::super::windowed::Windowed;
use super::{EncodecConfig, PadMode};
use crate::weights::{Weights, WeightsError, join_weight_norm};

/// Tokens at a time.
const WINDOW: usize = 128;

/// A convolution that keeps the length, or divides it by its stride and rounds up.
struct Padded {
    conv: Conv1d,
    mode: PadMode,
}

impl Padded {
    /// Frames to one side of an output's place that it sees at most.
    fn side(&self) -> usize {
        let sizes = self.conv.sizes();
        if sizes.stride == 1 { sizes.reach() / 2 } else { sizes.reach() }
    }

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
    Elu,
}

impl Layer {
    fn forward(&self, mut x: Vec<f32>) -> Vec<f32> {
        match self {
            Self::Elu => Activation::Elu.forward(&x, None),
            Self::Conv(conv) => conv.forward(&x),
            Self::Unit([wide, joint]) => {
                let y = wide.forward(&Activation::Elu.forward(&x, None));
                add(&mut x, &joint.forward(&Activation::Elu.forward(&y, None)));
                x
            }
            Self::Transposed(conv, [inputs, outputs, stride]) => {
                let frames = x.len() / inputs;
                let full = conv.forward(&between_zeros(&x, *inputs, conv.margin(), conv.margin()));
                // The transpose is one stride longer than wanted; of an odd one, more goes on the left.
                let left = stride - stride / 2;
                full[left * outputs..][..frames * stride * outputs].to_vec()
            }
        }
    }
}

/// Frames of the first layer's input to one side of an output that it depends on.
fn reach(layers: &[Layer]) -> f64 {
    // Frames at a layer for each frame of the input.
    let mut rate = 1.0;
    let mut reach = 0.0;
    for layer in layers {
        match layer {
            Layer::Elu => {}
            Layer::Conv(conv) => {
                reach += conv.side() as f64 / rate;
                rate /= conv.conv.sizes().stride as f64;
            }
            Layer::Unit(convs) => reach += convs.iter().map(Padded::side).sum::<usize>() as f64 / rate,
            Layer::Transposed(_, [_, _, stride]) => {
                reach += 2.0 / rate;
                rate *= *stride as f64;
            }
        }
    }
    reach
}

/// Encoder or decoder: layers that see a bounded stretch, memory of all that was heard, layers that see a bounded stretch.
pub(super) struct Stack {
    before: Vec<Layer>,
    memory: Vec<Lstm>,
    after: Vec<Layer>,
    /// Values of a row where they come in, at the memory, and where they go out; rows are tokens.
    widths: [usize; 3],
    /// Frames that the first layer makes of a row: an encoder's row is a token's worth of samples.
    frames_of_row: usize,
}

/// A stack in the middle of a clip, in constant memory.
pub(super) struct Running<'a> {
    stack: &'a Stack,
    before: Windowed,
    states: Vec<LstmState>,
    after: Windowed,
}

impl Running<'_> {
    /// Takes values and gives what is ready; how they are pushed changes nothing.
    pub(super) fn push(&mut self, values: &[f32]) -> Vec<f32> {
        let stack = self.stack;
        let rows = self.before.push(values, |x| through(&stack.before, x));
        let rows = self.remember(rows);
        self.after.push(&rows, |x| through(&stack.after, x))
    }

    /// Gives the rest.
    pub(super) fn finish(mut self) -> Vec<f32> {
        let stack = self.stack;
        let rows = self.before.finish(|x| through(&stack.before, x));
        let rows = self.remember(rows);
        let mut out = self.after.push(&rows, |x| through(&stack.after, x));
        out.extend(self.after.finish(|x| through(&stack.after, x)));
        out
    }

    fn remember(&mut self, mut x: Vec<f32>) -> Vec<f32> {
        let mut y = x.clone();
        for (layer, state) in self.stack.memory.iter().zip(&mut self.states) {
            y = layer.forward(&y, state);
        }
        if !self.stack.memory.is_empty() {
            add(&mut x, &y);
        }
        x
    }
}

fn through(layers: &[Layer], x: &[f32]) -> Vec<f32> {
    layers.iter().fold(x.to_vec(), |x, layer| layer.forward(x))
}

/// Takes layers from a file in the order of their numbers.
struct Builder<'a> {
    config: &'a EncodecConfig,
    weights: &'a Weights,
    prefix: &'a str,
    before: Vec<Layer>,
    memory: Vec<Lstm>,
    /// Layers since the memory; before it all.
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

    /// Name of the layer that comes next. The memory counts as one.
    fn name(&self) -> String {
        let memory = usize::from(!self.before.is_empty());
        format!("{}.{}", self.prefix, self.before.len() + memory + self.layers.len())
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
        self.memory = (0..self.config.num_lstm_layers).map(layer).collect::<Result<_, WeightsError>>()?;
        self.before = std::mem::take(&mut self.layers);
        Ok(())
    }

    fn finish(self, widths: [usize; 3], frames_of_row: usize) -> Stack {
        Stack { before: self.before, memory: self.memory, after: self.layers, widths, frames_of_row }
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
        Builder { config, weights, prefix, before: Vec::new(), memory: Vec::new(), layers: Vec::new() }
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
        Ok(build.finish([config.hop(), channels, config.hidden_size], config.hop()))
    }

    pub(super) fn decoder(config: &EncodecConfig, weights: &Weights, prefix: &str) -> Result<Self, WeightsError> {
        let mut build = Self::builder(config, weights, prefix);
        let widest = config.num_filters << config.upsampling_ratios.len();
        let mut channels = widest;
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
        Ok(build.finish([config.hidden_size, widest, config.hop()], 1))
    }

    /// Starts at the beginning of a clip.
    pub(super) fn start(&self) -> Running<'_> {
        let [from, middle, to] = self.widths;
        let windows = |sizes, reach: f64| Windowed::new(sizes, reach.ceil() as usize + 1, WINDOW);
        Running {
            stack: self,
            before: windows([from, middle], reach(&self.before) / self.frames_of_row as f64),
            states: self.memory.iter().map(|layer| LstmState::new(layer.width())).collect(),
            after: windows([middle, to], reach(&self.after)),
        }
    }
}

fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::codec::encodec::Encodec;

    /// Longer than two windows, with a last token that is not full; pushed in parts of any length.
    #[test]
    fn windows_and_pushes_give_what_the_whole_clip_gives() {
        for mode in ["encodec_reflect", "encodec_constant"] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(mode);
            let codec = Encodec::load(&folder).expect("a golden folder");
            let hop = codec.config.hop();
            let samples: Vec<f32> =
                (0..(2 * WINDOW + 70) * hop - 3).map(|n| (n * n % 997) as f32 / 997.0 - 0.5).collect();
            let whole = |stack: &Stack, x: &[f32]| {
                let rows = through(&stack.before, x);
                through(&stack.after, &stack.start().remember(rows))
            };
            let in_parts = |stack: &Stack, x: &[f32], part: usize| {
                let mut running = stack.start();
                let mut out: Vec<f32> = x.chunks(part).flat_map(|part| running.push(part)).collect();
                out.extend(running.finish());
                out
            };
            let latents = whole(&codec.encoder, &samples);
            let sound = whole(&codec.decoder, &latents);
            assert_eq!(sound.len(), samples.len().next_multiple_of(hop));
            for part in [1001, samples.len()] {
                assert_eq!(in_parts(&codec.encoder, &samples, part), latents, "{mode}, {part}");
            }
            for part in [codec.config.hidden_size, latents.len()] {
                assert_eq!(in_parts(&codec.decoder, &latents, part), sound, "{mode}, {part}");
            }
        }
    }
}
