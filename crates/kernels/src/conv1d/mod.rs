//! One-dimensional convolution of values `[frames, channels]`, and its transpose: matrix products of windows that are
//! never copied out, since with the frames one after another a window is a run of values (or one run a tap).

pub mod plain;

use crate::linear::{Matrix, Panels, Start};
use crate::simd::{Isa, dot, simd_fn};
use crate::small_gemm::{Left, multiply as multiply_small};
use rayon::prelude::*;

/// Frames that a task of a narrow convolution computes.
const FRAMES: usize = 96;
/// Outputs up to which packing the windows costs more than it gains.
const NARROW: usize = 64;

/// `x` `[frames, channels]` between frames of zeros.
pub fn between_zeros(x: &[f32], channels: usize, before: usize, after: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len() + (before + after) * channels);
    out.resize(before * channels, 0.0);
    out.extend_from_slice(x);
    out.resize(out.len() + after * channels, 0.0);
    out
}

/// A convolution without padding: what is beyond the ends has to be in the values.
#[derive(Clone, Debug)]
pub struct Conv1d {
    sizes: ConvSizes,
    weight: Weight,
    /// `[outputs]`
    bias: Vec<f32>,
}

#[derive(Clone, Debug)]
enum Weight {
    /// One group and more outputs than [`NARROW`]: `[taps * inputs, outputs]`.
    Packed(Panels),
    /// `[groups, taps * inputs / groups, outputs / groups]`
    Plain(Vec<f32>),
}

/// Sizes of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvSizes {
    /// Channels read.
    pub inputs: usize,
    /// Channels written.
    pub outputs: usize,
    /// Frames that one output looks at.
    pub taps: usize,
    /// Frames from one output to the next.
    pub stride: usize,
    /// Frames from one tap to the next.
    pub dilation: usize,
    /// Groups of channels that see nothing of each other.
    pub groups: usize,
}

impl ConvSizes {
    /// A convolution that moves frame by frame, of neighbouring frames, in one group.
    pub fn new(inputs: usize, outputs: usize, taps: usize) -> Self {
        Self { inputs, outputs, taps, stride: 1, dilation: 1, groups: 1 }
    }

    /// Frames from the first that one output sees to the last, both counted.
    pub fn reach(&self) -> usize {
        self.dilation * (self.taps - 1) + 1
    }

    /// Outputs of so many frames, padding included.
    pub fn frames(&self, inputs: usize) -> usize {
        if inputs < self.reach() { 0 } else { (inputs - self.reach()) / self.stride + 1 }
    }

    /// Values of the weight, `[outputs, inputs / groups, taps]`.
    pub fn weights(&self) -> usize {
        self.outputs * self.inputs / self.groups * self.taps
    }

    fn check(&self) {
        let positive = [self.inputs, self.outputs, self.taps, self.stride, self.dilation, self.groups];
        assert!(positive.iter().all(|&size| size > 0), "convolution sizes must be positive: {self:?}");
        assert!(
            self.inputs.is_multiple_of(self.groups) && self.outputs.is_multiple_of(self.groups),
            "convolution: channels must be whole groups: {self:?}"
        );
    }
}

impl Conv1d {
    /// Takes a weight `[outputs, inputs / groups, taps]`, as PyTorch stores it, and a bias `[outputs]`.
    ///
    /// # Panics
    /// If a length does not fit.
    pub fn new(sizes: ConvSizes, weight: &[f32], bias: &[f32]) -> Self {
        sizes.check();
        assert_eq!(weight.len(), sizes.weights(), "convolution weight");
        assert_eq!(bias.len(), sizes.outputs, "convolution bias");
        let (inputs, outputs) = (sizes.inputs / sizes.groups, sizes.outputs / sizes.groups);
        let mut turned = vec![0.0; weight.len()];
        for (output, rows) in weight.chunks_exact(inputs * sizes.taps).enumerate() {
            let (group, column) = (output / outputs, output % outputs);
            for (input, taps) in rows.chunks_exact(sizes.taps).enumerate() {
                for (tap, value) in taps.iter().enumerate() {
                    turned[((group * sizes.taps + tap) * inputs + input) * outputs + column] = *value;
                }
            }
        }
        let wide = sizes.groups == 1 && sizes.outputs > NARROW;
        let weight = if wide {
            Weight::Packed(Panels::new(Matrix::new(&turned, sizes.taps * sizes.inputs, sizes.outputs)))
        } else {
            Weight::Plain(turned)
        };
        Self { sizes, weight, bias: bias.to_vec() }
    }

    /// Its sizes.
    pub fn sizes(&self) -> &ConvSizes {
        &self.sizes
    }

    /// `[frames, inputs]` to `[sizes.frames(frames), outputs]`.
    ///
    /// # Panics
    /// If `x` is not whole frames.
    pub fn forward(&self, x: &[f32]) -> Vec<f32> {
        let sizes = &self.sizes;
        assert!(x.len().is_multiple_of(sizes.inputs), "convolution: {} values of {}", x.len(), sizes.inputs);
        let frames = sizes.frames(x.len() / sizes.inputs);
        let mut out = vec![0.0; frames * sizes.outputs];
        if frames == 0 {
            return out;
        }
        match &self.weight {
            Weight::Packed(panels) => {
                let runs = [sizes.taps, sizes.inputs, sizes.dilation * sizes.inputs];
                let windows = Matrix::windows(x, frames, sizes.stride * sizes.inputs, runs);
                panels.multiply(windows, &mut out, Start::Row(&self.bias));
            }
            Weight::Plain(weight) if sizes.outputs == 1 => self.forward_to_one(x, weight, &mut out),
            Weight::Plain(weight) => self.forward_narrow(x, weight, &mut out),
        }
        out
    }

    /// Few outputs: windows are read where they lie.
    fn forward_narrow(&self, x: &[f32], weight: &[f32], out: &mut [f32]) {
        let sizes = &self.sizes;
        let (inputs, outputs) = (sizes.inputs / sizes.groups, sizes.outputs / sizes.groups);
        // Taps that touch are one.
        let (runs, run) =
            if sizes.dilation == 1 && sizes.groups == 1 { (1, sizes.taps * inputs) } else { (sizes.taps, inputs) };
        out.par_chunks_mut(FRAMES * sizes.outputs).enumerate().for_each(|(task, out)| {
            let rows = out.len() / sizes.outputs;
            out.chunks_exact_mut(sizes.outputs).for_each(|line| line.copy_from_slice(&self.bias));
            let first = task * FRAMES * sizes.stride * sizes.inputs;
            for group in 0..sizes.groups {
                for tap in 0..runs {
                    let from = first + tap * sizes.dilation * sizes.inputs + group * inputs;
                    let left = Left::rows(&x[from..], sizes.stride * sizes.inputs);
                    let weight = &weight[(group * sizes.taps * inputs + tap * run) * outputs..];
                    let target = &mut out[group * outputs..];
                    multiply_small(rows, outputs, run, left, weight, outputs, target, sizes.outputs, true);
                }
            }
        });
    }

    /// One output: a sum of products a tap.
    fn forward_to_one(&self, x: &[f32], weight: &[f32], out: &mut [f32]) {
        let sizes = &self.sizes;
        out.par_chunks_mut(FRAMES).enumerate().for_each(|(task, out)| {
            let first = task * FRAMES * sizes.stride * sizes.inputs;
            weigh(sizes, &x[first..], weight, self.bias[0], out);
        });
    }
}

simd_fn! {
    /// One output a window.
    fn weigh(sizes: &ConvSizes, x: &[f32], weight: &[f32], bias: f32, out: &mut [f32]) = weigh_body
}

#[inline(always)]
fn weigh_body<I: Isa>(sizes: &ConvSizes, x: &[f32], weight: &[f32], bias: f32, out: &mut [f32]) {
    let (runs, run) = if sizes.dilation == 1 { (1, sizes.taps * sizes.inputs) } else { (sizes.taps, sizes.inputs) };
    for (frame, out) in out.iter_mut().enumerate() {
        let from = frame * sizes.stride * sizes.inputs;
        *out = bias;
        for tap in 0..runs {
            let x = &x[from + tap * sizes.dilation * sizes.inputs..][..run];
            *out += dot::<I>(x, &weight[tap * run..][..run]);
        }
    }
}

/// The transpose of a convolution without padding: every frame adds `taps` frames of outputs, `stride` after those of the
/// frame before.
///
/// The `stride` frames that begin together see the same frames of input, so they are one output of a convolution.
#[derive(Clone, Debug)]
pub struct ConvTranspose1d {
    conv: Conv1d,
    taps: usize,
    stride: usize,
}

impl ConvTranspose1d {
    /// Takes a weight `[inputs, outputs, taps]`, as PyTorch stores it, and a bias `[outputs]`.
    ///
    /// # Panics
    /// If a size is zero or a length does not fit.
    pub fn new(inputs: usize, outputs: usize, taps: usize, stride: usize, weight: &[f32], bias: &[f32]) -> Self {
        assert!(inputs > 0 && outputs > 0 && taps > 0 && stride > 0, "transposed convolution sizes must be positive");
        assert_eq!(weight.len(), inputs * outputs * taps, "transposed convolution weight");
        assert_eq!(bias.len(), outputs, "transposed convolution bias");
        // Frames of input that one frame of output sees; the newest last.
        let seen = taps.div_ceil(stride);
        let mut joint = vec![0.0; stride * outputs * inputs * seen];
        for input in 0..inputs {
            for output in 0..outputs {
                for tap in 0..taps {
                    let (age, phase) = (tap / stride, tap % stride);
                    let value = weight[(input * outputs + output) * taps + tap];
                    joint[((phase * outputs + output) * inputs + input) * seen + seen - 1 - age] = value;
                }
            }
        }
        let bias: Vec<f32> = (0..stride).flat_map(|_| bias.iter().copied()).collect();
        let conv = Conv1d::new(ConvSizes::new(inputs, stride * outputs, seen), &joint, &bias);
        Self { conv, taps, stride }
    }

    /// Frames of zeros that [`ConvTranspose1d::forward`] needs on both sides of its input.
    pub fn margin(&self) -> usize {
        self.taps.div_ceil(self.stride) - 1
    }

    /// `[frames, inputs]`, of which the first and last [`ConvTranspose1d::margin`] are zeros or neighbours, to
    /// `[(frames - margin) * stride, outputs]`. With zeros around n frames its first `(n - 1) * stride + taps` frames are
    /// the transpose; what is to be trimmed of them, the caller trims.
    ///
    /// # Panics
    /// If `x` is not whole frames.
    pub fn forward(&self, x: &[f32]) -> Vec<f32> {
        self.conv.forward(x)
    }
}
