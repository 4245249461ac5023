//! Norms, activations, linear layers, depthwise convolution, dropout and the loss.

use std::cell::Cell;
use std::sync::Arc;

use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use mambo_kernels::activation::{Activation, column_sums};
use mambo_kernels::bf16_product::MatrixPrecision;
use mambo_kernels::cross_entropy;
use mambo_kernels::depthwise::Depthwise;
use mambo_kernels::dropout::Dropout;
use mambo_kernels::linear::{Matrix, Panels, Start};
use mambo_kernels::norm::Norm;

use super::{Operation, apply_1, apply_2, apply_3, from_vec, shape, values, width};

type Results = (FlexTensor, Vec<FlexTensor>);

/// A norm with (x, gain) or (x, gain, shift); see [`Norm`].
#[derive(Debug)]
struct NormOperation {
    norm: Norm,
    /// The gain is 1 + the input instead of the input.
    from_one: bool,
}

impl NormOperation {
    fn gain(&self, gain: &FlexTensor) -> Vec<f32> {
        let offset = if self.from_one { 1.0 } else { 0.0 };
        values(gain).iter().map(|value| value + offset).collect()
    }
}

impl Operation for NormOperation {
    fn forward(&self, inputs: &[FlexTensor], _tracked: bool) -> Results {
        let gain = self.gain(&inputs[1]);
        let out = self.norm.forward(values(&inputs[0]), &gain, inputs.get(2).map(values));
        (from_vec(out, shape(&inputs[0])), Vec::new())
    }

    fn backward(&self, inputs: &[FlexTensor], _saved: &[FlexTensor], gradient: &FlexTensor) -> Vec<FlexTensor> {
        let gain = self.gain(&inputs[1]);
        let out = self.norm.backward(values(&inputs[0]), &gain, values(gradient));
        let mut results = vec![from_vec(out.x, shape(&inputs[0])), from_vec(out.gain, shape(&inputs[1]))];
        if let Some(shift) = inputs.get(2) {
            results.push(from_vec(out.shift, shape(shift)));
        }
        results
    }
}

fn rows<const D: usize>(x: &Tensor<D>) -> usize {
    x.dims()[..D - 1].iter().product::<usize>().max(1)
}

/// `x / sqrt(mean(x^2) + epsilon) * weight` over the last axis; `weight` `[width]`.
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, epsilon: impl Into<f64>) -> Tensor<D> {
    let norm = Norm { width: x.dims()[D - 1], centre: false, epsilon: epsilon.into(), rows_per_set: rows(&x) };
    apply_2(NormOperation { norm, from_one: false }, x, weight)
}

/// `(x - mean) / sqrt(variance + epsilon) * weight + bias` over the last axis; `weight` and `bias` `[width]`.
pub fn layer_norm<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    epsilon: impl Into<f64>,
) -> Tensor<D> {
    let norm = Norm { width: x.dims()[D - 1], centre: true, epsilon: epsilon.into(), rows_per_set: rows(&x) };
    apply_3(NormOperation { norm, from_one: false }, x, weight, bias)
}

/// Layer norm over channels, then `* (1 + scale) + shift` with one `scale` and `shift` `[batch, channels]` a sequence.
pub fn ada_layer_norm(
    x_btc: Tensor<3>,
    scale_bc: Tensor<2>,
    shift_bc: Tensor<2>,
    epsilon: impl Into<f64>,
) -> Tensor<3> {
    let [_, frames, channels] = x_btc.dims();
    let norm = Norm { width: channels, centre: true, epsilon: epsilon.into(), rows_per_set: frames };
    apply_3(NormOperation { norm, from_one: true }, x_btc, scale_bc, shift_bc)
}

/// An element function of x, or of x plus a bias row.
#[derive(Debug)]
struct ActivationOperation(Activation);

impl Operation for ActivationOperation {
    fn forward(&self, inputs: &[FlexTensor], _tracked: bool) -> Results {
        let out = self.0.forward(values(&inputs[0]), inputs.get(1).map(values));
        (from_vec(out, shape(&inputs[0])), Vec::new())
    }

    fn backward(&self, inputs: &[FlexTensor], _saved: &[FlexTensor], gradient: &FlexTensor) -> Vec<FlexTensor> {
        if self.0 == Activation::Identity {
            let sums = column_sums(values(gradient), width(gradient));
            return vec![gradient.clone(), from_vec(sums, shape(&inputs[1]))];
        }
        let (d_x, d_bias) = self.0.backward(values(&inputs[0]), inputs.get(1).map(values), values(gradient));
        let mut results = vec![from_vec(d_x, shape(&inputs[0]))];
        if let Some(bias) = inputs.get(1) {
            results.push(from_vec(d_bias, shape(bias)));
        }
        results
    }
}

/// Exact GELU.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    apply_1(ActivationOperation(Activation::Gelu), x)
}

/// `x / (1 + e^-x)`
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    apply_1(ActivationOperation(Activation::Silu), x)
}

/// `gelu(x + bias)`, `bias` `[width]` of the last axis.
pub fn bias_gelu<const D: usize>(x: Tensor<D>, bias: Tensor<1>) -> Tensor<D> {
    apply_2(ActivationOperation(Activation::Gelu), x, bias)
}

/// `x + bias`, `bias` `[width]` of the last axis.
pub fn add_bias<const D: usize>(x: Tensor<D>, bias: Tensor<1>) -> Tensor<D> {
    apply_2(ActivationOperation(Activation::Identity), x, bias)
}

/// A linear layer with (x, weight) or (x, weight, bias).
#[derive(Debug)]
struct LinearOperation {
    /// The weight is `[outputs, inputs]` instead of `[inputs, outputs]`.
    turned: bool,
    precision: MatrixPrecision,
}

thread_local! {
    static PRECISION: Cell<MatrixPrecision> = const { Cell::new(MatrixPrecision::F32) };
}

/// Linear layers called by `work` on this thread compute with `precision`, and so do their backward passes later.
pub fn with_precision<R>(precision: MatrixPrecision, work: impl FnOnce() -> R) -> R {
    struct Restore(MatrixPrecision);
    impl Drop for Restore {
        fn drop(&mut self) {
            PRECISION.set(self.0);
        }
    }
    let _restore = Restore(PRECISION.replace(precision));
    work()
}

/// The precision in force on this thread.
pub(super) fn precision() -> MatrixPrecision {
    PRECISION.get()
}

impl Operation for LinearOperation {
    fn forward(&self, inputs: &[FlexTensor], _tracked: bool) -> Results {
        let (x, weight) = (matrix(&inputs[0]), matrix(&inputs[1]));
        let weight = if self.turned { weight.turned() } else { weight };
        let mut out = vec![0.0f32; x.rows() * weight.columns()];
        self.precision.multiply(
            x,
            weight,
            &mut out,
            inputs.get(2).map_or(Start::Zero, |bias| Start::Row(values(bias))),
        );
        (in_rows(out, &inputs[0], weight.columns()), Vec::new())
    }

    fn backward(&self, inputs: &[FlexTensor], _saved: &[FlexTensor], gradient: &FlexTensor) -> Vec<FlexTensor> {
        let (x, weight, d_out) = (matrix(&inputs[0]), matrix(&inputs[1]), matrix(gradient));
        let mut d_x = vec![0.0f32; values(&inputs[0]).len()];
        let mut d_weight = vec![0.0f32; values(&inputs[1]).len()];
        if self.turned {
            self.precision.multiply(d_out, weight, &mut d_x, Start::Zero);
            self.precision.multiply(d_out.turned(), x, &mut d_weight, Start::Zero);
        } else {
            self.precision.multiply(d_out, weight.turned(), &mut d_x, Start::Zero);
            self.precision.multiply(x.turned(), d_out, &mut d_weight, Start::Zero);
        }
        let mut results = vec![from_vec(d_x, shape(&inputs[0])), from_vec(d_weight, shape(&inputs[1]))];
        if let Some(bias) = inputs.get(2) {
            results.push(from_vec(column_sums(values(gradient), width(gradient)), shape(bias)));
        }
        results
    }
}

/// A tensor of rows of `outputs` values, one for each row of `x`.
fn in_rows(values: Vec<f32>, x: &FlexTensor, outputs: usize) -> FlexTensor {
    let mut dims = shape(x).to_vec();
    if let Some(last) = dims.last_mut() {
        *last = outputs;
    }
    from_vec(values, dims)
}

/// All axes but the last as rows.
fn matrix(tensor: &FlexTensor) -> Matrix<'_> {
    let columns = width(tensor);
    Matrix::new(values(tensor), tensor.layout().num_elements() / columns.max(1), columns)
}

fn apply_linear<const D: usize>(turned: bool, x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    let operation = LinearOperation { turned, precision: precision() };
    match bias {
        Some(bias) => apply_3(operation, x, weight, bias),
        None => apply_2(operation, x, weight),
    }
}

/// `x weight + bias` over the last axis; `weight` `[inputs, outputs]`, `bias` `[outputs]`.
pub fn linear<const D: usize>(x: Tensor<D>, weight_io: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    apply_linear(false, x, weight_io, bias)
}

/// As [`linear()`] for a weight stored `[outputs, inputs]`, as PyTorch and published checkpoints have it.
pub fn linear_turned<const D: usize>(x: Tensor<D>, weight_oi: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    apply_linear(true, x, weight_oi, bias)
}

/// A linear layer with (x) or (x, bias) and a weight that was packed before.
#[derive(Debug)]
struct PackedOperation(Arc<Panels>);

impl Operation for PackedOperation {
    fn forward(&self, inputs: &[FlexTensor], _tracked: bool) -> Results {
        let x = matrix(&inputs[0]);
        let mut out = vec![0.0f32; x.rows() * self.0.columns()];
        self.0.multiply(x, &mut out, inputs.get(1).map_or(Start::Zero, |bias| Start::Row(values(bias))));
        (in_rows(out, &inputs[0], self.0.columns()), Vec::new())
    }

    fn backward(&self, _inputs: &[FlexTensor], _saved: &[FlexTensor], _gradient: &FlexTensor) -> Vec<FlexTensor> {
        unreachable!("packed weights are bound without gradients")
    }
}

/// The matrix of a linear layer.
#[derive(Debug, Clone)]
pub enum LinearWeight {
    /// `[inputs, outputs]`.
    Plain(Tensor<2>),
    /// `[outputs, inputs]`, as PyTorch and published checkpoints have it.
    Turned(Tensor<2>),
    /// Packed once for many products, without gradients.
    Packed(Arc<Panels>),
}

impl LinearWeight {
    /// `x weight + bias` over the last axis; `bias` `[outputs]`.
    pub fn apply<const D: usize>(&self, x: Tensor<D>, bias: Option<Tensor<1>>) -> Tensor<D> {
        match (self, bias) {
            (Self::Plain(weight), bias) => linear(x, weight.clone(), bias),
            (Self::Turned(weight), bias) => linear_turned(x, weight.clone(), bias),
            (Self::Packed(panels), Some(bias)) => apply_2(PackedOperation(panels.clone()), x, bias),
            (Self::Packed(panels), None) => apply_1(PackedOperation(panels.clone()), x),
        }
    }

    /// The tensor `[outputs, inputs]`.
    ///
    /// # Panics
    /// If it is bound another way.
    pub fn turned(&self) -> &Tensor<2> {
        match self {
            Self::Turned(weight) => weight,
            Self::Plain(_) | Self::Packed(_) => panic!("a weight that is not bound as [outputs, inputs]"),
        }
    }

    /// Values of a row of x.
    pub fn inputs(&self) -> usize {
        match self {
            Self::Plain(weight) => weight.dims()[0],
            Self::Turned(weight) => weight.dims()[1],
            Self::Packed(panels) => panels.depth(),
        }
    }
}

#[derive(Debug)]
struct DepthwiseOperation(Depthwise);

impl Operation for DepthwiseOperation {
    fn forward(&self, inputs: &[FlexTensor], _tracked: bool) -> Results {
        let out = self.0.forward(values(&inputs[0]), values(&inputs[1]), values(&inputs[2]));
        (from_vec(out, shape(&inputs[0])), Vec::new())
    }

    fn backward(&self, inputs: &[FlexTensor], _saved: &[FlexTensor], gradient: &FlexTensor) -> Vec<FlexTensor> {
        let out = self.0.backward(values(&inputs[0]), values(&inputs[1]), values(gradient));
        vec![
            from_vec(out.x, shape(&inputs[0])),
            from_vec(out.weight, shape(&inputs[1])),
            from_vec(out.bias, shape(&inputs[2])),
        ]
    }
}

/// Depthwise convolution over frames with zero padding that keeps their number; `weight` `[taps, channels]` with an
/// odd number of taps, the middle one for the current frame (cross-correlation), `bias` `[channels]`.
pub fn depthwise_conv1d(x_btc: Tensor<3>, weight_kc: Tensor<2>, bias_c: Tensor<1>) -> Tensor<3> {
    let [batch, frames, channels] = x_btc.dims();
    let taps = weight_kc.dims()[0];
    apply_3(DepthwiseOperation(Depthwise { batch, frames, channels, taps }), x_btc, weight_kc, bias_c)
}

/// The rows of each sequence in the opposite order.
#[derive(Debug)]
struct ReversalOperation;

impl ReversalOperation {
    fn reversed(x: &FlexTensor) -> FlexTensor {
        let (shape, width) = (shape(x), width(x));
        let sequence = shape[1] * width;
        let mut out = Vec::with_capacity(values(x).len());
        for rows in values(x).chunks_exact(sequence.max(1)) {
            rows.rchunks_exact(width).for_each(|row| out.extend_from_slice(row));
        }
        from_vec(out, shape)
    }
}

impl Operation for ReversalOperation {
    fn forward(&self, inputs: &[FlexTensor], _tracked: bool) -> Results {
        (Self::reversed(&inputs[0]), Vec::new())
    }

    fn backward(&self, _inputs: &[FlexTensor], _saved: &[FlexTensor], gradient: &FlexTensor) -> Vec<FlexTensor> {
        vec![Self::reversed(gradient)]
    }
}

/// The frames of each sequence from the last to the first, row by row; `flip` would have every operation after it walk backwards
/// value by value.
pub fn reverse_frames(x_btc: Tensor<3>) -> Tensor<3> {
    apply_1(ReversalOperation, x_btc)
}

/// Dropout of one input, or of the second added to the first.
#[derive(Debug)]
struct DropoutOperation(Dropout);

impl Operation for DropoutOperation {
    fn forward(&self, inputs: &[FlexTensor], _tracked: bool) -> Results {
        let out = match inputs {
            [base, x] => self.0.apply(Some(values(base)), values(x)),
            _ => self.0.apply(None, values(&inputs[0])),
        };
        (from_vec(out, shape(&inputs[0])), Vec::new())
    }

    fn backward(&self, inputs: &[FlexTensor], _saved: &[FlexTensor], gradient: &FlexTensor) -> Vec<FlexTensor> {
        let d_x = if self.0.probability == 0.0 {
            gradient.clone()
        } else {
            from_vec(self.0.apply(None, values(gradient)), shape(gradient))
        };
        if inputs.len() == 2 { vec![gradient.clone(), d_x] } else { vec![d_x] }
    }
}

/// Zeroes a share `probability` of the values and scales the others by `1 / (1 - probability)`.
///
/// The mask depends on `seed` and position alone. Use only while training.
pub fn dropout<const D: usize>(x: Tensor<D>, probability: f32, seed: u64) -> Tensor<D> {
    apply_1(DropoutOperation(Dropout { probability, seed }), x)
}

/// `base + dropout(x)`; plain addition at probability 0.
pub fn residual<const D: usize>(base: Tensor<D>, x: Tensor<D>, probability: f32, seed: u64) -> Tensor<D> {
    apply_2(DropoutOperation(Dropout { probability, seed }), base, x)
}

#[derive(Debug)]
struct CrossEntropyOperation {
    targets: Vec<i32>,
    smoothing: f32,
}

impl Operation for CrossEntropyOperation {
    fn forward(&self, inputs: &[FlexTensor], tracked: bool) -> Results {
        let loss = cross_entropy::forward(values(&inputs[0]), width(&inputs[0]), &self.targets, self.smoothing);
        let rows = loss.log_sums.len();
        let saved = if tracked { vec![from_vec(loss.log_sums, [rows])] } else { Vec::new() };
        (from_vec(vec![loss.mean], [1]), saved)
    }

    fn backward(&self, inputs: &[FlexTensor], saved: &[FlexTensor], gradient: &FlexTensor) -> Vec<FlexTensor> {
        let logits = &inputs[0];
        let d_mean = values(gradient)[0];
        let out = cross_entropy::backward(
            values(logits),
            width(logits),
            &self.targets,
            self.smoothing,
            values(&saved[0]),
            d_mean,
        );
        vec![from_vec(out, shape(logits))]
    }
}

/// Mean cross-entropy of logits whose last axis is the classes, one target per row in row-major order; a negative
/// target does not count. `smoothing` is the share of each target spread evenly over all classes.
///
/// # Panics
/// If the number of targets is not the number of rows, or a target is not a class.
pub fn cross_entropy<const D: usize>(logits: Tensor<D>, targets: Vec<i32>, smoothing: f32) -> Tensor<1> {
    apply_1(CrossEntropyOperation { targets, smoothing }, logits)
}
