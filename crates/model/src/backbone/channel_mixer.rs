//! Layers that mix the channels of one frame: feed-forward, and SiMBA's EinFFT.

use burn::tensor::{Device, Tensor, TensorData, activation};

use crate::ops;
use crate::parameters::{Bound, Initialiser, Parameters, Role};

/// `W2 gelu(W1 x + b1) + b2`.
#[derive(Debug, Clone)]
pub struct FeedForward {
    wide: Tensor<2>,
    wide_bias: Tensor<1>,
    back: Tensor<2>,
    back_bias: Tensor<1>,
}

impl FeedForward {
    /// Adds the parameters of a layer of `inner` width under `prefix`.
    pub fn init(
        width: usize,
        inner: usize,
        prefix: &str,
        residuals: usize,
        draw: &mut Initialiser,
        into: &mut Parameters,
    ) {
        let name = format!("{prefix}.feed_forward");
        into.push(format!("{name}.0.weight"), &[inner, width], Role::Decayed, draw.fan_in(inner * width, width));
        into.push(format!("{name}.0.bias"), &[inner], Role::Free, vec![0.0; inner]);
        let out = draw.for_residual(width * inner, inner, residuals);
        into.push(format!("{name}.3.weight"), &[width, inner], Role::Decayed, out);
        into.push(format!("{name}.3.bias"), &[width], Role::Free, vec![0.0; width]);
    }

    /// Takes the layer's tensors from `bound`.
    pub fn new(prefix: &str, bound: &Bound) -> Self {
        let tensor = |name: &str| format!("{prefix}.feed_forward.{name}");
        Self {
            wide: bound.tensor(&tensor("0.weight")),
            wide_bias: bound.tensor(&tensor("0.bias")),
            back: bound.tensor(&tensor("3.weight")),
            back_bias: bound.tensor(&tensor("3.bias")),
        }
    }

    /// `[B, T, d]` to `[B, T, d]`.
    pub fn forward(&self, x_btd: Tensor<3>) -> Tensor<3> {
        let wide = ops::bias_gelu(ops::linear_turned(x_btd, self.wide.clone(), None), self.wide_bias.clone());
        ops::linear_turned(wide, self.back.clone(), Some(self.back_bias.clone()))
    }
}

/// Values nearer to zero than this become zero before the inverse transform.
pub(crate) const SOFT_SHRINK: f32 = 0.01;

/// SiMBA's channel mixer (arXiv 2403.15360, section 3.2): Fourier transform, two complex block-diagonal layers, inverse
/// transform. The transform runs over the blocks of channels, not over time, so that no frame hears a later one.
#[derive(Debug, Clone)]
pub struct EinFft {
    blocks: usize,
    /// The orthonormal transform over blocks, `[blocks, blocks]`: cosines and negative sines.
    cosine: Tensor<2>,
    sine: Tensor<2>,
    /// Two layers of `[2, blocks, w, w]` and `[2, blocks, w]`, real then imaginary.
    layers: [(Tensor<4>, Tensor<3>); 2],
}

impl EinFft {
    /// Adds the parameters of a layer with `blocks` blocks of channels under `prefix`.
    pub fn init(width: usize, blocks: usize, prefix: &str, draw: &mut Initialiser, into: &mut Parameters) {
        let inner = width / blocks;
        for layer in 1..=2 {
            let name = format!("{prefix}.ein_fft");
            let count = 2 * blocks * inner * inner;
            // The deviation of the paper's code.
            let weight = draw.normal(count, 0.02);
            into.push(format!("{name}.weight_{layer}"), &[2, blocks, inner, inner], Role::Decayed, weight);
            let bias = draw.normal(2 * blocks * inner, 0.02);
            into.push(format!("{name}.bias_{layer}"), &[2, blocks, inner], Role::Free, bias);
        }
    }

    /// Takes the layer's tensors from `bound`.
    pub fn new(prefix: &str, bound: &Bound) -> Self {
        let layer = |layer: usize| {
            let name = format!("{prefix}.ein_fft");
            (bound.tensor::<4>(&format!("{name}.weight_{layer}")), bound.tensor::<3>(&format!("{name}.bias_{layer}")))
        };
        let layers = [layer(1), layer(2)];
        let blocks = layers[0].0.dims()[1];
        let (cosine, sine) = transform(blocks);
        let table = |values: Vec<f32>| on(values, blocks, bound.device());
        Self { blocks, cosine: table(cosine), sine: table(sine), layers }
    }

    /// `[B, T, d]` to `[B, T, d]`.
    pub fn forward(&self, x_btd: Tensor<3>) -> Tensor<3> {
        let [batch, frames, width] = x_btd.dims();
        let (n, w) = (self.blocks, width / self.blocks);
        // Blocks in front: [n, B T w] for the transform, [n, B T, w] for the products.
        let x_nr = x_btd.reshape([batch * frames, n, w]).swap_dims(0, 1).reshape([n, batch * frames * w]);
        let spread = |table: &Tensor<2>| table.clone().matmul(x_nr.clone()).reshape([n, batch * frames, w]);
        let (mut real, mut imaginary) = (spread(&self.cosine), spread(&self.sine));
        for (index, (weight, bias)) in self.layers.iter().enumerate() {
            let part = |at: usize| weight.clone().narrow(0, at, 1).reshape([n, w, w]);
            let shift = |at: usize| bias.clone().narrow(0, at, 1).reshape([n, 1, w]);
            let next_real = real.clone().matmul(part(0)) - imaginary.clone().matmul(part(1)) + shift(0);
            let next_imaginary = real.matmul(part(1)) + imaginary.matmul(part(0)) + shift(1);
            let bend = |x: Tensor<3>| if index == 0 { activation::relu(x) } else { soft_shrink(x) };
            (real, imaginary) = (bend(next_real), bend(next_imaginary));
        }
        // Real part of the inverse: the transform is symmetric, its inverse the conjugate.
        let flat = |x: Tensor<3>| x.reshape([n, batch * frames * w]);
        let back = self.cosine.clone().matmul(flat(real)) + self.sine.clone().matmul(flat(imaginary));
        back.reshape([n, batch * frames, w]).swap_dims(0, 1).reshape([batch, frames, width])
    }
}

/// Real and imaginary part of the orthonormal discrete Fourier transform of `size` points, row-major.
pub(crate) fn transform(size: usize) -> (Vec<f32>, Vec<f32>) {
    let value = |at: usize, f: fn(f64) -> f64| {
        let angle = std::f64::consts::TAU * ((at / size) * (at % size) % size) as f64 / size as f64;
        (f(angle) / (size as f64).sqrt()) as f32
    };
    let all = |f: fn(f64) -> f64| (0..size * size).map(|at| value(at, f)).collect();
    (all(f64::cos), all(|angle| -angle.sin()))
}

fn on(values: Vec<f32>, size: usize, device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values, [size, size]), device)
}

/// Moves every value by 0.01 towards zero, not beyond it.
fn soft_shrink(x: Tensor<3>) -> Tensor<3> {
    activation::relu(x.clone() - SOFT_SHRINK) - activation::relu(-x - SOFT_SHRINK)
}
