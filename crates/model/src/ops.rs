//! The fused kernels of `mambo_kernels` as Burn operations with their own backward passes.
//!
//! An `Operation` is a forward and a backward pass on flex tensors; `record` puts any of them into Burn's graph,
//! with only the inputs and what the operation chose to save. Results are contiguous f32.

mod attention;
mod layers;
mod mixer;
mod selective_scan;

use std::fmt::Debug;
use std::sync::Arc;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Flex, backend_extension};
use burn::tensor::{Bytes, DType, Shape, Tensor};
use burn_flex::{FlexTensor, Layout};

pub use attention::{cross_attention, self_attention, self_attention_with_cache};
pub use layers::{
    LinearWeight, ada_layer_norm, add_bias, bias_gelu, cross_entropy, depthwise_conv1d, dropout, gelu, layer_norm,
    linear, linear_turned, residual, reverse_frames, rms_norm, silu, with_precision,
};
pub use mambo_kernels::bf16_product::{MatrixPrecision, bf16_unavailable};
pub use mixer::{MixerStates, MixerWeights, mamba2_mixer, mamba2_mixer_with_states};
pub use selective_scan::{Mamba1States, Mamba1Weights, mamba1_mixer, mamba1_mixer_with_states};

/// A fused computation with its backward pass.
trait Operation: Send + Sync + Debug + 'static {
    /// The output, and what the backward pass wants saved (nothing unless `tracked`).
    fn forward(&self, inputs: &[FlexTensor], tracked: bool) -> (FlexTensor, Vec<FlexTensor>);

    /// One gradient per input, in order.
    fn backward(&self, inputs: &[FlexTensor], saved: &[FlexTensor], gradient: &FlexTensor) -> Vec<FlexTensor>;
}

/// An operation on its way through Burn's dispatch.
type Shared = Arc<dyn Operation>;

/// Fused operations by number of inputs.
#[backend_extension(Flex, Autodiff)]
trait FusedOperations: Backend {
    fn fused_1(operation: Shared, a: FloatTensor<Self>) -> FloatTensor<Self>;
    fn fused_2(operation: Shared, a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self>;
    fn fused_3(
        operation: Shared,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    #[allow(clippy::too_many_arguments)]
    fn fused_7(
        operation: Shared,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
        e: FloatTensor<Self>,
        f: FloatTensor<Self>,
        g: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    #[allow(clippy::too_many_arguments)]
    fn fused_8(
        operation: Shared,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
        e: FloatTensor<Self>,
        f: FloatTensor<Self>,
        g: FloatTensor<Self>,
        h: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    #[allow(clippy::too_many_arguments)]
    fn fused_9(
        operation: Shared,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
        e: FloatTensor<Self>,
        f: FloatTensor<Self>,
        g: FloatTensor<Self>,
        h: FloatTensor<Self>,
        i: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    #[allow(clippy::too_many_arguments)]
    fn fused_10(
        operation: Shared,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
        e: FloatTensor<Self>,
        f: FloatTensor<Self>,
        g: FloatTensor<Self>,
        h: FloatTensor<Self>,
        i: FloatTensor<Self>,
        j: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

/// Implements [`FusedOperations`] for the processor, plain and with gradients.
macro_rules! implement {
    ($($name:ident($($input:ident),+)),+ $(,)?) => {
        impl FusedOperations for Flex {
            $(fn $name(operation: Shared, $($input: FloatTensor<Self>),+) -> FloatTensor<Self> {
                operation.forward(&[$(contiguous($input)),+], false).0
            })+
        }

        impl<C: CheckpointStrategy> FusedOperations for Autodiff<Flex, C> {
            $(fn $name(operation: Shared, $($input: FloatTensor<Self>),+) -> FloatTensor<Self> {
                record::<C, _>(operation, [$($input),+])
            })+
        }
    };
}

implement!(
    fused_1(a),
    fused_2(a, b),
    fused_3(a, b, c),
    fused_7(a, b, c, d, e, f, g),
    fused_8(a, b, c, d, e, f, g, h),
    fused_9(a, b, c, d, e, f, g, h, i),
    fused_10(a, b, c, d, e, f, g, h, i, j)
);

/// What the backward pass of an operation reads.
#[derive(Clone, Debug)]
struct Saved {
    operation: Shared,
    inputs: Vec<FlexTensor>,
    saved: Vec<FlexTensor>,
}

#[derive(Debug)]
struct FusedStep;

impl<const N: usize> Backward<Flex, N> for FusedStep {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = contiguous(gradients.consume::<Flex>(&ops.node));
        let Saved { operation, inputs, saved } = ops.state;
        let results = operation.backward(&inputs, &saved, &gradient);
        for (parent, result) in ops.parents.into_iter().zip(results) {
            if let Some(node) = parent {
                gradients.register::<Flex>(node.id, result);
            }
        }
    }
}

/// Runs the operation and, if any input is tracked, records its backward pass.
fn record<C: CheckpointStrategy, const N: usize>(
    operation: Shared,
    inputs: [FloatTensor<Autodiff<Flex, C>>; N],
) -> FloatTensor<Autodiff<Flex, C>> {
    let nodes = inputs.each_ref().map(|input| input.node());
    let inputs: Vec<FlexTensor> = inputs.into_iter().map(|input| contiguous(input.into_primitive())).collect();
    match Backward::<Flex, N>::prepare::<C>(FusedStep, nodes).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => {
            let (output, saved) = operation.forward(&inputs, true);
            prepared.finish(Saved { operation, inputs, saved }, output)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(operation.forward(&inputs, false).0),
    }
}

/// The tensor with its values in row-major order.
fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.layout().contiguous_offsets().is_some() { tensor } else { tensor.to_contiguous() }
}

/// The values of a contiguous f32 tensor.
fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("fused operations work on contiguous f32 tensors")
}

/// A tensor that owns `data`.
fn from_vec(data: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    let shape = shape.into();
    assert_eq!(data.len(), shape.num_elements(), "fused operation: result size");
    FlexTensor::new(Bytes::from_elems(data), Layout::contiguous(shape), DType::F32)
}

/// The shape of a tensor.
fn shape(tensor: &FlexTensor) -> Shape {
    tensor.layout().shape().clone()
}

/// Joins results by sequence: each row of the output is one sequence's share of every part, whose lengths a sequence
/// are `sizes`.
fn join_parts<const N: usize>(batch: usize, parts: [&[f32]; N], sizes: [usize; N]) -> FlexTensor {
    let row = sizes.iter().sum::<usize>();
    let mut joined = Vec::with_capacity(batch * row);
    for sequence in 0..batch {
        for (part, size) in parts.iter().zip(sizes) {
            joined.extend_from_slice(&part[sequence * size..(sequence + 1) * size]);
        }
    }
    from_vec(joined, [batch, row])
}

/// Undoes [`join_parts`].
fn split_parts<const N: usize>(joined: &FlexTensor, sizes: [usize; N]) -> [Vec<f32>; N] {
    let mut parts = [const { Vec::new() }; N];
    for row in values(joined).chunks_exact(sizes.iter().sum()) {
        let mut from = 0;
        for (part, size) in parts.iter_mut().zip(sizes) {
            part.extend_from_slice(&row[from..from + size]);
            from += size;
        }
    }
    parts
}

/// Length of the last axis.
fn width(tensor: &FlexTensor) -> usize {
    let shape = tensor.layout().shape();
    shape[shape.num_dims() - 1]
}

fn apply_1<const A: usize, const D: usize>(operation: impl Operation, a: Tensor<A>) -> Tensor<D> {
    Tensor::from_dispatch(<burn::backend::Dispatch as FusedOperations>::fused_1(Arc::new(operation), a.into_dispatch()))
}

fn apply_2<const A: usize, const B: usize, const D: usize>(
    operation: impl Operation,
    a: Tensor<A>,
    b: Tensor<B>,
) -> Tensor<D> {
    Tensor::from_dispatch(<burn::backend::Dispatch as FusedOperations>::fused_2(
        Arc::new(operation),
        a.into_dispatch(),
        b.into_dispatch(),
    ))
}

fn apply_3<const A: usize, const B: usize, const C: usize, const D: usize>(
    operation: impl Operation,
    a: Tensor<A>,
    b: Tensor<B>,
    c: Tensor<C>,
) -> Tensor<D> {
    Tensor::from_dispatch(<burn::backend::Dispatch as FusedOperations>::fused_3(
        Arc::new(operation),
        a.into_dispatch(),
        b.into_dispatch(),
        c.into_dispatch(),
    ))
}
