//! The Mamba mixer (everything between its two outer projections) as one operation.

use std::sync::Arc;

use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use mambo_kernels::bf16_product::MatrixPrecision;
use mambo_kernels::mamba1::{self, Mamba1Config, Projections, Saved, Sequences, States, Weights};

use super::{FusedOperations, Operation, from_vec, join_parts, layers, shape, split_parts, values};

/// Inputs: projected, conv weight, conv bias, x projection, dt projection, dt bias, A_log, D, and with states conv and
/// ssm state.
///
/// With states the output is one row a sequence: frames, then final convolution state, then final state.
#[derive(Debug)]
struct MixerOperation {
    config: Mamba1Config,
    /// Compute everything again in the backward pass instead of keeping it.
    recompute: bool,
    /// Padding frames at the start of each sequence; empty for none.
    padding: Vec<usize>,
    /// Of the two products inside.
    precision: MatrixPrecision,
}

impl MixerOperation {
    fn sequences(&self, inputs: &[FlexTensor]) -> Sequences<'_> {
        let shape = shape(&inputs[0]);
        Sequences { batch: shape[0], frames: shape[1], padding: &self.padding }
    }
}

fn weights(inputs: &[FlexTensor]) -> Weights<'_, f32> {
    Weights {
        conv_weight: values(&inputs[1]),
        conv_bias: values(&inputs[2]),
        dt_bias: values(&inputs[5]),
        a_log: values(&inputs[6]),
        d_skip: values(&inputs[7]),
    }
}

fn projections(inputs: &[FlexTensor]) -> Projections<'_, f32> {
    Projections { x: values(&inputs[3]), dt: values(&inputs[4]) }
}

fn initial(inputs: &[FlexTensor]) -> Option<States<'_, f32>> {
    inputs.get(9).map(|ssm| States { conv: values(&inputs[8]), ssm: values(ssm) })
}

/// Lengths of the three parts of a row of the output with states.
fn sizes(config: &Mamba1Config, frames: usize) -> [usize; 3] {
    [frames * config.inner, config.conv_state_size(), config.ssm_state_size()]
}

impl Operation for MixerOperation {
    fn forward(&self, inputs: &[FlexTensor], tracked: bool) -> (FlexTensor, Vec<FlexTensor>) {
        let sequences = self.sequences(inputs);
        let (batch, frames) = (sequences.batch, sequences.frames);
        let states = initial(inputs);
        let with_states = states.is_some();
        let out = mamba1::forward(
            &self.config,
            sequences,
            values(&inputs[0]),
            &weights(inputs),
            &projections(inputs),
            self.precision,
            states,
            tracked && !self.recompute,
            with_states,
        );
        let flat = |values: Vec<f32>| {
            let count = values.len();
            from_vec(values, [count])
        };
        let saved = match out.saved {
            Some(Saved { x, selected, dt_raw, chunk_states }) => [x, selected, dt_raw, chunk_states].map(flat).into(),
            None => Vec::new(),
        };
        if !with_states {
            return (from_vec(out.output, [batch, frames, self.config.inner]), saved);
        }
        let parts = [out.output.as_slice(), &out.conv_state, &out.ssm_state];
        (join_parts(batch, parts, sizes(&self.config, frames)), saved)
    }

    fn backward(&self, inputs: &[FlexTensor], saved: &[FlexTensor], gradient: &FlexTensor) -> Vec<FlexTensor> {
        let sequences = self.sequences(inputs);
        let states = initial(inputs);
        let saved = match saved {
            [x, selected, dt_raw, chunk_states] => Some(Saved {
                x: values(x),
                selected: values(selected),
                dt_raw: values(dt_raw),
                chunk_states: values(chunk_states),
            }),
            _ => None,
        };
        let parts;
        let (d_output, d_final) = if states.is_some() {
            parts = split_parts(gradient, sizes(&self.config, sequences.frames));
            let [output, conv, ssm] = &parts;
            (output.as_slice(), Some(States { conv, ssm }))
        } else {
            (values(gradient), None)
        };
        let out = mamba1::backward(
            &self.config,
            sequences,
            values(&inputs[0]),
            &weights(inputs),
            &projections(inputs),
            self.precision,
            states,
            saved,
            d_output,
            d_final,
        );
        let mut results = vec![
            out.projected,
            out.conv_weight,
            out.conv_bias,
            out.x_projection,
            out.dt_projection,
            out.dt_bias,
            out.a_log,
            out.d_skip,
        ];
        if let Some(states) = out.initial {
            results.extend([states.conv, states.ssm]);
        }
        results.into_iter().zip(inputs).map(|(gradient, input)| from_vec(gradient, shape(input))).collect()
    }
}

/// The trained tensors of a Mamba mixer.
#[derive(Clone, Debug)]
pub struct Mamba1Weights {
    /// `[inner, 4]`; the last tap multiplies the current frame.
    pub conv_weight: Tensor<2>,
    /// `[inner]`
    pub conv_bias: Tensor<1>,
    /// `[rank + 2 state, inner]`, rows for the low-rank step, B and C.
    pub x_projection: Tensor<2>,
    /// `[inner, rank]`
    pub dt_projection: Tensor<2>,
    /// `[inner]`
    pub dt_bias: Tensor<1>,
    /// `[inner, state]`
    pub a_log: Tensor<2>,
    /// `[inner]`
    pub d_skip: Tensor<1>,
}

/// States of a batch between calls.
#[derive(Clone, Debug)]
pub struct Mamba1States {
    /// Last three inputs of the convolution `[batch, inner, 3]`, oldest first.
    pub conv_biw: Tensor<3>,
    /// `[batch, inner, state]`
    pub ssm_bin: Tensor<3>,
}

/// Everything between the outer projections of a Mamba layer, from zero states: `[batch, frames, 2 inner]` (x, then z
/// as published) to `[batch, frames, inner]`.
///
/// `padding` frames at the start of each sequence (empty: none) do not count: their inputs are taken as zero and their
/// time as standing still. `recompute` trades time for memory: the backward pass keeps only the inputs and runs the
/// mixer again. The products inside follow [`super::with_precision`].
pub fn mamba1_mixer(
    xz_btd: Tensor<3>,
    weights: Mamba1Weights,
    config: Mamba1Config,
    padding: Vec<usize>,
    recompute: bool,
) -> Tensor<3> {
    let operation = Arc::new(MixerOperation { config, recompute, padding, precision: layers::precision() });
    Tensor::from_dispatch(<burn::backend::Dispatch as FusedOperations>::fused_8(
        operation,
        xz_btd.into_dispatch(),
        weights.conv_weight.into_dispatch(),
        weights.conv_bias.into_dispatch(),
        weights.x_projection.into_dispatch(),
        weights.dt_projection.into_dispatch(),
        weights.dt_bias.into_dispatch(),
        weights.a_log.into_dispatch(),
        weights.d_skip.into_dispatch(),
    ))
}

/// As [`mamba1_mixer`] from given states, also returning the final ones; gradients flow through both.
pub fn mamba1_mixer_with_states(
    xz_btd: Tensor<3>,
    weights: Mamba1Weights,
    states: Mamba1States,
    config: Mamba1Config,
    padding: Vec<usize>,
    recompute: bool,
) -> (Tensor<3>, Mamba1States) {
    let [batch, frames, _] = xz_btd.dims();
    let operation = Arc::new(MixerOperation { config, recompute, padding, precision: layers::precision() });
    let joined: Tensor<2> = Tensor::from_dispatch(<burn::backend::Dispatch as FusedOperations>::fused_10(
        operation,
        xz_btd.into_dispatch(),
        weights.conv_weight.into_dispatch(),
        weights.conv_bias.into_dispatch(),
        weights.x_projection.into_dispatch(),
        weights.dt_projection.into_dispatch(),
        weights.dt_bias.into_dispatch(),
        weights.a_log.into_dispatch(),
        weights.d_skip.into_dispatch(),
        states.conv_biw.into_dispatch(),
        states.ssm_bin.into_dispatch(),
    ));
    let [output, conv, ssm] = sizes(&config, frames);
    let part = |from: usize, size: usize| joined.clone().narrow(1, from, size);
    (
        part(0, output).reshape([batch, frames, config.inner]),
        Mamba1States {
            conv_biw: part(output, conv).reshape([batch, config.inner, mamba1::HISTORY]),
            ssm_bin: part(output + conv, ssm).reshape([batch, config.inner, config.state]),
        },
    )
}
