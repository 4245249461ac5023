//! Encoder and decoder of DAC as layers over values `[frames, channels]`.

use mambo_kernels::conv1d::{Conv1d, ConvSizes, ConvTranspose1d, between_zeros};
use mambo_kernels::snake::Snake;
use rayon::prelude::*;

use super::{DacConfig, DacError, Reader};

/// Dilations of the three residual units of a block.
const DILATIONS: [usize; 3] = [1, 3, 9];
/// Frames that a residual unit's first convolution sees, and those of the first and last layer.
const TAPS: usize = 7;
/// Values that a task adds.
const TASK: usize = 1 << 15;

/// A convolution with as many zeros on each side as keep the length (with stride s: divide it by s).
struct Padded {
    conv: Conv1d,
    padding: usize,
}

impl Padded {
    fn read(source: &mut dyn Reader, name: &str, sizes: ConvSizes, padding: usize) -> Result<Self, DacError> {
        let shape = [sizes.outputs, sizes.inputs, sizes.taps];
        let weight = source.tensor(&format!("{name}.weight"), &shape)?;
        let bias = source.tensor(&format!("{name}.bias"), &[sizes.outputs])?;
        Ok(Self { conv: Conv1d::new(sizes, &weight, &bias), padding })
    }

    fn forward(&self, x: &[f32]) -> Vec<f32> {
        self.conv.forward(&between_zeros(x, self.conv.sizes().inputs, self.padding, self.padding))
    }

    /// As [`Padded::forward`] of `snake(x)`.
    fn forward_bent(&self, snake: &Snake, x: &[f32]) -> Vec<f32> {
        let mut wide = between_zeros(x, self.conv.sizes().inputs, self.padding, self.padding);
        // Zeros stay zeros.
        snake.apply(&mut wide);
        self.conv.forward(&wide)
    }
}

fn read_snake(source: &mut dyn Reader, name: &str, channels: usize) -> Result<Snake, DacError> {
    Ok(Snake::new(&source.tensor(&format!("{name}.alpha"), &[1, channels, 1])?))
}

/// x + conv(snake(dilated conv(snake(x))))
struct Unit {
    first_snake: Snake,
    dilated: Padded,
    second_snake: Snake,
    joint: Padded,
}

impl Unit {
    fn read(source: &mut dyn Reader, name: &str, channels: usize, dilation: usize) -> Result<Self, DacError> {
        let dilated = ConvSizes { dilation, ..ConvSizes::new(channels, channels, TAPS) };
        Ok(Self {
            first_snake: read_snake(source, &format!("{name}.snake1"), channels)?,
            dilated: Padded::read(source, &format!("{name}.conv1"), dilated, TAPS / 2 * dilation)?,
            second_snake: read_snake(source, &format!("{name}.snake2"), channels)?,
            joint: Padded::read(source, &format!("{name}.conv2"), ConvSizes::new(channels, channels, 1), 0)?,
        })
    }

    fn forward(&self, x: &mut [f32]) {
        let mut y = self.dilated.forward_bent(&self.first_snake, x);
        self.second_snake.apply(&mut y);
        let y = self.joint.conv.forward(&y);
        x.par_chunks_mut(TASK).zip(y.par_chunks(TASK)).for_each(|(x, y)| {
            for (x, y) in x.iter_mut().zip(y) {
                *x += y;
            }
        });
    }
}

fn read_units(source: &mut dyn Reader, name: &str, channels: usize) -> Result<Vec<Unit>, DacError> {
    let unit = |(index, dilation): (usize, &usize)| {
        Unit::read(source, &format!("{name}.res_unit{}", index + 1), channels, *dilation)
    };
    DILATIONS.iter().enumerate().map(unit).collect()
}

/// Frames to one side of an output that its units see.
fn reach_of_units() -> usize {
    DILATIONS.iter().map(|dilation| TAPS / 2 * dilation).sum()
}

struct Down {
    units: Vec<Unit>,
    snake: Snake,
    conv: Padded,
}

/// Samples to latents.
pub(super) struct Encoder {
    first: Padded,
    blocks: Vec<Down>,
    snake: Snake,
    last: Padded,
}

impl Encoder {
    pub(super) fn read(source: &mut dyn Reader, config: &DacConfig) -> Result<Self, DacError> {
        let mut channels = config.encoder_hidden_size;
        let first = Padded::read(source, "encoder.conv1", ConvSizes::new(1, channels, TAPS), TAPS / 2)?;
        let mut blocks = Vec::new();
        for (index, &stride) in config.downsampling_ratios.iter().enumerate() {
            let name = format!("encoder.block.{index}");
            let units = read_units(source, &name, channels)?;
            let snake = read_snake(source, &format!("{name}.snake1"), channels)?;
            let sizes = ConvSizes { stride, ..ConvSizes::new(channels, 2 * channels, 2 * stride) };
            blocks.push(Down {
                units,
                snake,
                conv: Padded::read(source, &format!("{name}.conv1"), sizes, stride / 2)?,
            });
            channels *= 2;
        }
        let snake = read_snake(source, "encoder.snake1", channels)?;
        let last = Padded::read(source, "encoder.conv2", ConvSizes::new(channels, channels, 3), 1)?;
        Ok(Self { first, blocks, snake, last })
    }

    /// Tokens on each side of a token that its latent depends on.
    pub(super) fn reach(config: &DacConfig) -> usize {
        let mut samples = TAPS / 2;
        let mut rate = 1;
        for stride in &config.downsampling_ratios {
            samples += rate * (reach_of_units() + 2 * stride);
            rate *= stride;
        }
        (samples + rate).div_ceil(rate)
    }

    /// Samples, whole tokens of them, to latents `[tokens, latent]`.
    pub(super) fn forward(&self, samples: &[f32]) -> Vec<f32> {
        let mut x = self.first.forward(samples);
        for block in &self.blocks {
            block.units.iter().for_each(|unit| unit.forward(&mut x));
            x = block.conv.forward_bent(&block.snake, &x);
        }
        self.last.forward_bent(&self.snake, &x)
    }
}

struct Up {
    snake: Snake,
    conv: ConvTranspose1d,
    /// Channels read and written, frames a frame becomes.
    sizes: [usize; 3],
    units: Vec<Unit>,
}

impl Up {
    fn forward(&self, x: &[f32]) -> Vec<f32> {
        let [inputs, outputs, stride] = self.sizes;
        let mut wide = between_zeros(x, inputs, self.conv.margin(), self.conv.margin());
        self.snake.apply(&mut wide);
        let full = self.conv.forward(&wide);
        // The transpose is one stride longer than wanted; half of that goes on each side.
        let from = stride / 2 * outputs;
        let mut out = full[from..from + x.len() / inputs * stride * outputs].to_vec();
        self.units.iter().for_each(|unit| unit.forward(&mut out));
        out
    }
}

/// Latents to samples.
pub(super) struct Decoder {
    first: Padded,
    blocks: Vec<Up>,
    snake: Snake,
    last: Padded,
}

impl Decoder {
    pub(super) fn read(source: &mut dyn Reader, config: &DacConfig) -> Result<Self, DacError> {
        let mut channels = config.decoder_hidden_size;
        let first = Padded::read(source, "decoder.conv1", ConvSizes::new(config.latent(), channels, TAPS), TAPS / 2)?;
        let mut blocks = Vec::new();
        for (index, &stride) in config.upsampling_ratios.iter().enumerate() {
            let name = format!("decoder.block.{index}");
            let (inputs, outputs, taps) = (channels, channels / 2, 2 * stride);
            let snake = read_snake(source, &format!("{name}.snake1"), inputs)?;
            let weight = source.tensor(&format!("{name}.conv_t1.weight"), &[inputs, outputs, taps])?;
            let bias = source.tensor(&format!("{name}.conv_t1.bias"), &[outputs])?;
            let conv = ConvTranspose1d::new(inputs, outputs, taps, stride, &weight, &bias);
            let units = read_units(source, &name, outputs)?;
            blocks.push(Up { snake, conv, sizes: [inputs, outputs, stride], units });
            channels = outputs;
        }
        let snake = read_snake(source, "decoder.snake1", channels)?;
        let last = Padded::read(source, "decoder.conv2", ConvSizes::new(channels, 1, TAPS), TAPS / 2)?;
        Ok(Self { first, blocks, snake, last })
    }

    /// Tokens on each side of a token that its samples depend on.
    pub(super) fn reach(config: &DacConfig) -> usize {
        let rates = config.upsampling_ratios.iter().scan(1, |rate, stride| {
            *rate *= stride;
            Some(*rate)
        });
        // In tokens: the first layer, two frames of every block's input, its units at the rate of its output.
        let mut tokens = (TAPS / 2) as f64;
        let mut before = 1;
        for rate in rates {
            tokens += 2.0 / before as f64 + reach_of_units() as f64 / rate as f64;
            before = rate;
        }
        (tokens + (TAPS / 2) as f64 / before as f64).ceil() as usize + 1
    }

    /// Latents `[tokens, latent]` to samples.
    pub(super) fn forward(&self, latents: &[f32]) -> Vec<f32> {
        let mut x = self.first.forward(latents);
        for block in &self.blocks {
            x = block.forward(&x);
        }
        let mut samples = self.last.forward_bent(&self.snake, &x);
        samples.par_chunks_mut(TASK).for_each(|samples| samples.iter_mut().for_each(|sample| *sample = sample.tanh()));
        samples
    }
}
