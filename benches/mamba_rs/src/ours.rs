//! Mambo's side: the layers as the language model trains them.

use burn::tensor::{Tensor, TensorData};
use mambo_model::parameters::Parameters;
use mambo_model::ssm::mamba2::NORM_EPSILON;
use mambo_model::ssm::{Mamba1, Mamba1Config, Mamba2, Mamba2Config};
use mambo_model::{device, ops};

use crate::{Case, EXPAND, Family, HEAD_WIDTH, Pass};

/// Frames per chunk of the Mamba-2 scan; changes speed only.
const CHUNK: usize = 64;

pub fn mamba1(case: &Case) -> Mamba1Config {
    Mamba1Config { d_model: case.width, d_state: case.state, expand: EXPAND }
}

pub fn mamba2(case: &Case) -> Mamba2Config {
    Mamba2Config { d_model: case.width, d_state: case.state, expand: EXPAND, head_dim: HEAD_WIDTH, chunk: CHUNK }
}

/// Forward and backward; the gradients of all weights are copied out as the optimizer gets them.
pub fn pass(case: &Case, parameters: &Parameters, input: &[f32], upstream: &[f32]) -> Pass {
    let device = device::cpu_training();
    let bound = parameters.bind(&device);
    let tensor = |values: &[f32]| {
        Tensor::<3>::from_data(TensorData::new(values.to_vec(), [case.batch, case.frames, case.width]), &device)
    };
    let h = tensor(input).require_grad();
    let normed = ops::rms_norm(h.clone(), bound.tensor("norm.weight"), NORM_EPSILON);
    let mixed = match case.family {
        Family::Mamba1 => Mamba1::new(&mamba1(case), "mixer", &bound).forward(normed, &[], None).0,
        Family::Mamba2 => Mamba2::new(&mamba2(case), "mixer", &bound).forward(normed, &[], None).0,
    };
    let output = h.clone() + mixed;
    let mut gradients = (output.clone() * tensor(upstream)).sum().backward();
    let d_input = h.grad_remove(&mut gradients).expect("the input requires a gradient");
    std::hint::black_box(bound.gradients(gradients));
    let floats = |tensor: Tensor<3>| tensor.into_data().try_into_vec::<f32>().expect("f32 tensors");
    Pass { output: floats(output), d_input: floats(d_input) }
}
