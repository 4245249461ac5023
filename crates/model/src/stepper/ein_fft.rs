//! SiMBA's EinFFT (see [`crate::backbone`]) for one frame: a complex product of a block is one real product.

use mambo_kernels::panel_linear::PanelLinear;

use crate::backbone::{SOFT_SHRINK, transform};

use super::layers::Format;

/// One frame's worth of the layer.
pub(super) struct EinFft {
    width: usize,
    cosine: Vec<f32>,
    sine: Vec<f32>,
    /// Of both complex layers: per block `[real | imaginary]` to `[real | imaginary]`, and its bias.
    layers: [Vec<(PanelLinear, Vec<f32>)>; 2],
}

impl EinFft {
    /// From both layers' weights `[2, blocks, w, w]` (real, imaginary; inputs before outputs) and biases `[2, blocks, w]`.
    pub fn new(width: usize, blocks: usize, layers: [(Vec<f32>, Vec<f32>); 2], format: Format) -> Self {
        let w = width / blocks;
        let layers = layers.map(|(weight, bias)| {
            let block = |block: usize| {
                let value = |part: usize, from: usize, to: usize| weight[((part * blocks + block) * w + from) * w + to];
                // (a + bi)(x + yi): the real part is ax - by, the imaginary part bx + ay.
                let entry = |at: usize| {
                    let (out, input) = (at / (2 * w), at % (2 * w));
                    match (out < w, input < w) {
                        (true, true) => value(0, input, out),
                        (true, false) => -value(1, input - w, out),
                        (false, true) => value(1, input, out - w),
                        (false, false) => value(0, input - w, out - w),
                    }
                };
                let matrix: Vec<f32> = (0..4 * w * w).map(entry).collect();
                let bias = [0, 1].map(|part| bias[(part * blocks + block) * w..][..w].to_vec()).concat();
                (format.linear(&matrix, 2 * w), bias)
            };
            (0..blocks).map(block).collect()
        });
        let (cosine, sine) = transform(blocks);
        Self { width, cosine, sine, layers }
    }

    /// `h += layer(x)` for `[rows, d]`.
    pub fn add(&self, x: &[f32], h: &mut [f32]) {
        let blocks = self.layers[0].len();
        let w = self.width / blocks;
        for (x, h) in x.chunks_exact(self.width).zip(h.chunks_exact_mut(self.width)) {
            // [blocks, real | imaginary]
            let mut spectrum = vec![0.0; 2 * self.width];
            for (to, spread) in spectrum.chunks_exact_mut(2 * w).enumerate() {
                let (real, imaginary) = spread.split_at_mut(w);
                for (from, x) in x.chunks_exact(w).enumerate() {
                    let (c, s) = (self.cosine[to * blocks + from], self.sine[to * blocks + from]);
                    real.iter_mut().zip(x).for_each(|(sum, value)| *sum += c * value);
                    imaginary.iter_mut().zip(x).for_each(|(sum, value)| *sum += s * value);
                }
            }
            for (index, layer) in self.layers.iter().enumerate() {
                for ((matrix, bias), part) in layer.iter().zip(spectrum.chunks_exact_mut(2 * w)) {
                    let mut out = bias.clone();
                    matrix.add(part, &mut out);
                    let bend = |value: f32| match index {
                        0 => value.max(0.0),
                        _ => (value - SOFT_SHRINK).max(0.0) - (-value - SOFT_SHRINK).max(0.0),
                    };
                    part.iter_mut().zip(out).for_each(|(part, out)| *part = bend(out));
                }
            }
            for (to, h) in h.chunks_exact_mut(w).enumerate() {
                for (from, spread) in spectrum.chunks_exact(2 * w).enumerate() {
                    let (c, s) = (self.cosine[to * blocks + from], self.sine[to * blocks + from]);
                    let (real, imaginary) = spread.split_at(w);
                    let values = real.iter().zip(imaginary);
                    h.iter_mut().zip(values).for_each(|(h, (real, imaginary))| *h += c * real + s * imaginary);
                }
            }
        }
    }
}
