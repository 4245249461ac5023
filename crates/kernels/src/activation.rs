//! SiLU, GELU, exact and approximate, and ELU, alone or after adding a bias row; the bias alone; residual addition.

use crate::simd::{Isa, exp, fused, normal, sigmoid, simd_fn};
use crate::threads::sum_rows;
use rayon::prelude::*;

/// Rows a task handles; sums over rows follow these bounds, which fixes their order.
const ROWS: usize = 64;
/// Values a task handles where rows do not matter.
const VALUES: usize = 1 << 14;

/// An element function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x (after the bias, if any).
    Identity,
    /// x / (1 + e^-x)
    Silu,
    /// x times the normal distribution's probability of less than x (Hendrycks and Gimpel, arXiv:1606.08415), exact.
    Gelu,
    /// The approximation of GELU by a hyperbolic tangent, `gelu_new` of published models.
    GeluTanh,
    /// x where positive, else e^x - 1.
    Elu,
}

impl Activation {
    /// `f(x + bias)`, the bias repeated over rows of its length.
    ///
    /// # Panics
    /// If `x` is not whole rows.
    pub fn forward(self, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let mut out = vec![0.0f32; x.len()];
        self.forward_into(x, bias, &mut out);
        out
    }

    /// As [`Activation::forward`], into a buffer.
    ///
    /// # Panics
    /// If `x` is not whole rows or `out` has another length.
    pub fn forward_into(self, x: &[f32], bias: Option<&[f32]>, out: &mut [f32]) {
        assert_eq!(x.len(), out.len(), "activation: output");
        match bias {
            Some(bias) => {
                let width = row_width(x, bias);
                out.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width)).for_each(|(out, x)| {
                    for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                        apply(self, x, Some(bias), out);
                    }
                });
            }
            None => out.par_chunks_mut(VALUES).zip(x.par_chunks(VALUES)).for_each(|(out, x)| apply(self, x, None, out)),
        }
    }

    /// Gradients of (x, bias); the second is empty without a bias.
    ///
    /// # Panics
    /// If the lengths differ or `x` is not whole rows.
    pub fn backward(self, x: &[f32], bias: Option<&[f32]>, d_out: &[f32]) -> (Vec<f32>, Vec<f32>) {
        assert_eq!(x.len(), d_out.len(), "activation: output gradient");
        let mut d_x = vec![0.0f32; x.len()];
        let Some(bias) = bias else {
            d_x.par_chunks_mut(VALUES).zip(x.par_chunks(VALUES)).zip(d_out.par_chunks(VALUES)).for_each(
                |((d_x, x), d_out)| {
                    apply_backward(self, x, None, d_out, d_x, &mut []);
                },
            );
            return (d_x, Vec::new());
        };
        let width = row_width(x, bias);
        let mut partial = vec![0.0f32; (x.len() / width).div_ceil(ROWS) * width];
        d_x.par_chunks_mut(ROWS * width)
            .zip(x.par_chunks(ROWS * width))
            .zip(d_out.par_chunks(ROWS * width))
            .zip(partial.par_chunks_mut(width))
            .for_each(|(((d_x, x), d_out), sums)| {
                for ((d_x, x), d_out) in
                    d_x.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(d_out.chunks_exact(width))
                {
                    apply_backward(self, x, Some(bias), d_out, d_x, sums);
                }
            });
        (d_x, sum_rows(&partial, width))
    }

    /// The definition in f64, for tests: value and derivative.
    pub fn plain(self, x: f64) -> (f64, f64) {
        match self {
            Self::Identity => (x, 1.0),
            Self::Silu => {
                let gate = 1.0 / (1.0 + (-x).exp());
                (x * gate, gate * (1.0 + x * (1.0 - gate)))
            }
            Self::Gelu => {
                let (probability, density) = plain_normal(x);
                (x * probability, probability + x * density)
            }
            Self::GeluTanh => {
                let root = (2.0 / std::f64::consts::PI).sqrt();
                let tangent = (root * (x + 0.044_715 * x.powi(3))).tanh();
                let slope = root * (1.0 + 3.0 * 0.044_715 * x * x) * (1.0 - tangent * tangent);
                (0.5 * x * (1.0 + tangent), 0.5 * (1.0 + tangent) + 0.5 * x * slope)
            }
            Self::Elu => {
                if x > 0.0 {
                    (x, 1.0)
                } else {
                    (x.exp_m1(), x.exp())
                }
            }
        }
    }
}

fn row_width(x: &[f32], bias: &[f32]) -> usize {
    assert!(
        !bias.is_empty() && x.len().is_multiple_of(bias.len()),
        "activation: {} values in rows of {}",
        x.len(),
        bias.len()
    );
    bias.len()
}

/// Normal probability and density by the series of Marsaglia (J. Stat. Software 11(4), 2004), exact to f64 for |x| < 8.
fn plain_normal(x: f64) -> (f64, f64) {
    let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
    if x.abs() > 8.0 {
        return (if x > 0.0 { 1.0 } else { 0.0 }, density);
    }
    let (mut term, mut sum, mut odd) = (x, x, 1.0);
    while sum + term != sum {
        odd += 2.0;
        term *= x * x / odd;
        sum += term;
    }
    (0.5 + sum * density, density)
}

simd_fn! {
    fn apply(activation: Activation, x: &[f32], bias: Option<&[f32]>, out: &mut [f32]) = apply_body
}

#[inline(always)]
fn apply_body<I: Isa>(activation: Activation, x: &[f32], bias: Option<&[f32]>, out: &mut [f32]) {
    let length = x.len();
    let out = &mut out[..length];
    match bias {
        Some(bias) => {
            let bias = &bias[..length];
            match activation {
                Activation::Identity => (0..length).for_each(|c| out[c] = x[c] + bias[c]),
                Activation::Silu => (0..length).for_each(|c| out[c] = silu::<I>(x[c] + bias[c])),
                Activation::Gelu => (0..length).for_each(|c| out[c] = gelu::<I>(x[c] + bias[c])),
                Activation::GeluTanh => (0..length).for_each(|c| out[c] = gelu_tanh::<I>(x[c] + bias[c])),
                Activation::Elu => (0..length).for_each(|c| out[c] = elu::<I>(x[c] + bias[c])),
            }
        }
        None => match activation {
            Activation::Identity => out.copy_from_slice(x),
            Activation::Silu => (0..length).for_each(|c| out[c] = silu::<I>(x[c])),
            Activation::Gelu => (0..length).for_each(|c| out[c] = gelu::<I>(x[c])),
            Activation::GeluTanh => (0..length).for_each(|c| out[c] = gelu_tanh::<I>(x[c])),
            Activation::Elu => (0..length).for_each(|c| out[c] = elu::<I>(x[c])),
        },
    }
}

simd_fn! {
    /// `d_x = d_out f'(x + bias)`; with a bias, `sums += d_x`.
    fn apply_backward(activation: Activation, x: &[f32], bias: Option<&[f32]>, d_out: &[f32], d_x: &mut [f32], sums: &mut [f32]) = apply_backward_body
}

#[inline(always)]
fn apply_backward_body<I: Isa>(
    activation: Activation,
    x: &[f32],
    bias: Option<&[f32]>,
    d_out: &[f32],
    d_x: &mut [f32],
    sums: &mut [f32],
) {
    let length = x.len();
    let (d_out, d_x) = (&d_out[..length], &mut d_x[..length]);
    match bias {
        Some(bias) => {
            let bias = &bias[..length];
            match activation {
                Activation::Identity => d_x.copy_from_slice(d_out),
                Activation::Silu => (0..length).for_each(|c| d_x[c] = d_out[c] * silu_slope::<I>(x[c] + bias[c])),
                Activation::Gelu => (0..length).for_each(|c| d_x[c] = d_out[c] * gelu_slope::<I>(x[c] + bias[c])),
                Activation::GeluTanh => {
                    (0..length).for_each(|c| d_x[c] = d_out[c] * gelu_tanh_slope::<I>(x[c] + bias[c]))
                }
                Activation::Elu => (0..length).for_each(|c| d_x[c] = d_out[c] * elu_slope::<I>(x[c] + bias[c])),
            }
            for (sum, value) in sums[..length].iter_mut().zip(d_x) {
                *sum += *value;
            }
        }
        None => match activation {
            Activation::Identity => d_x.copy_from_slice(d_out),
            Activation::Silu => (0..length).for_each(|c| d_x[c] = d_out[c] * silu_slope::<I>(x[c])),
            Activation::Gelu => (0..length).for_each(|c| d_x[c] = d_out[c] * gelu_slope::<I>(x[c])),
            Activation::GeluTanh => (0..length).for_each(|c| d_x[c] = d_out[c] * gelu_tanh_slope::<I>(x[c])),
            Activation::Elu => (0..length).for_each(|c| d_x[c] = d_out[c] * elu_slope::<I>(x[c])),
        },
    }
}

#[inline(always)]
fn silu<I: Isa>(x: f32) -> f32 {
    x * sigmoid::<I>(x)
}

#[inline(always)]
fn silu_slope<I: Isa>(x: f32) -> f32 {
    let gate = sigmoid::<I>(x);
    gate * fused::<I>(x, 1.0 - gate, 1.0)
}

#[inline(always)]
fn gelu<I: Isa>(x: f32) -> f32 {
    x * normal::<I>(x).0
}

#[inline(always)]
fn gelu_slope<I: Isa>(x: f32) -> f32 {
    let (probability, density) = normal::<I>(x);
    fused::<I>(x, density, probability)
}

/// Twice the tangent's argument, and its slope: with t = sqrt(2 / pi) (x + 0.044715 x^3), 0.5 (1 + tanh t) = sigmoid(2 t).
#[inline(always)]
fn twice_angle<I: Isa>(x: f32) -> [f32; 2] {
    const ROOT: f32 = 1.595_769_2; // 2 sqrt(2 / pi)
    let square = x * x;
    [ROOT * x * fused::<I>(square, 0.044_715, 1.0), ROOT * fused::<I>(square, 3.0 * 0.044_715, 1.0)]
}

#[inline(always)]
fn gelu_tanh<I: Isa>(x: f32) -> f32 {
    x * sigmoid::<I>(twice_angle::<I>(x)[0])
}

#[inline(always)]
fn gelu_tanh_slope<I: Isa>(x: f32) -> f32 {
    let [angle, slope] = twice_angle::<I>(x);
    let gate = sigmoid::<I>(angle);
    gate * fused::<I>(x * slope, 1.0 - gate, 1.0)
}

#[inline(always)]
fn elu<I: Isa>(x: f32) -> f32 {
    let below = exp::<I>(x) - 1.0;
    if x > 0.0 { x } else { below }
}

#[inline(always)]
fn elu_slope<I: Isa>(x: f32) -> f32 {
    let below = exp::<I>(x);
    if x > 0.0 { 1.0 } else { below }
}

/// Sums of the columns of `values` in rows of `width`, in a fixed order: the gradient of a bias.
///
/// # Panics
/// If `values` is not whole rows.
pub fn column_sums(values: &[f32], width: usize) -> Vec<f32> {
    assert!(width > 0 && values.len().is_multiple_of(width), "column sums: {} values in rows of {width}", values.len());
    let mut partial = vec![0.0f32; (values.len() / width).div_ceil(ROWS) * width];
    partial.par_chunks_mut(width).zip(values.par_chunks(ROWS * width)).for_each(|(sums, rows)| add_rows(rows, sums));
    sum_rows(&partial, width)
}

simd_fn! {
    fn add_rows(rows: &[f32], sums: &mut [f32]) = add_rows_body
}

#[inline(always)]
fn add_rows_body<I: Isa>(rows: &[f32], sums: &mut [f32]) {
    for row in rows.chunks_exact(sums.len()) {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_slopes_match_the_definition() {
        let x: Vec<f32> = (-900..900).map(|i| i as f32 * 0.01).collect();
        let bias: Vec<f32> = (0..60).map(|i| (i as f32 * 0.7).sin()).collect();
        for activation in
            [Activation::Identity, Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Elu]
        {
            for bias in [None, Some(bias.as_slice())] {
                let out = activation.forward(&x, bias);
                let d_out: Vec<f32> = (0..x.len()).map(|i| (i as f32 * 0.3).cos()).collect();
                let (d_x, d_bias) = activation.backward(&x, bias, &d_out);
                let mut sums = vec![0.0f64; 60];
                for i in 0..x.len() {
                    let input = x[i] + bias.map_or(0.0, |bias| bias[i % 60]);
                    let (value, slope) = activation.plain(f64::from(input));
                    assert!(
                        (f64::from(out[i]) - value).abs() < 2e-6,
                        "{activation:?} at {input}: {} against {value}",
                        out[i]
                    );
                    let expected = slope * f64::from(d_out[i]);
                    assert!((f64::from(d_x[i]) - expected).abs() < 2e-6, "{activation:?} slope at {input}");
                    sums[i % 60] += expected;
                }
                for (got, expected) in d_bias.iter().zip(&sums) {
                    assert!((f64::from(*got) - expected).abs() < 1e-4);
                }
                assert_eq!(d_bias.len(), if bias.is_some() { 60 } else { 0 });
            }
        }
    }

    #[test]
    fn column_sums_add_every_row() {
        let values: Vec<f32> = (0..7 * 500).map(|i| (i % 13) as f32).collect();
        let sums = column_sums(&values, 7);
        for (column, sum) in sums.iter().enumerate() {
            let expected: f32 = values.iter().skip(column).step_by(7).sum();
            assert_eq!(*sum, expected);
        }
    }
}
