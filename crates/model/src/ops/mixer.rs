//! The Mamba-2 mixer (everything between its two projections) as one operation.

use std::sync::Arc;

use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use mambo_kernels::mamba2::{self, Mamba2Config, Sequences, States, Weights};

use super::{FusedOperations, Operation, from_vec, join_parts, shape, split_parts, values};

/// Inputs: projected, conv weight, conv bias, dt bias, A_log, D, norm weight, and with states conv and ssm state.
///
/// With states the output is one row a sequence: frames, then final convolution state, then final state.
#[derive(Debug)]
struct MixerOperation {
    config: Mamba2Config,
    /// Compute the scan again in the backward pass instead of keeping its outputs and states.
    recompute: bool,
    /// Padding frames at the start of each sequence; empty for none.
    padding: Vec<usize>,
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
        dt_bias: values(&inputs[3]),
        a_log: values(&inputs[4]),
        d_skip: values(&inputs[5]),
        norm: values(&inputs[6]),
    }
}

fn initial(inputs: &[FlexTensor]) -> Option<States<'_, f32>> {
    inputs.get(8).map(|ssm| States { conv: values(&inputs[7]), ssm: values(ssm) })
}

/// Lengths of the three parts of a row of the output with states.
fn sizes(config: &Mamba2Config, frames: usize) -> [usize; 3] {
    [frames * config.inner, config.conv_state_size(), config.ssm_state_size()]
}

impl Operation for MixerOperation {
    fn forward(&self, inputs: &[FlexTensor], tracked: bool) -> (FlexTensor, Vec<FlexTensor>) {
        let sequences = self.sequences(inputs);
        let (batch, frames) = (sequences.batch, sequences.frames);
        let states = initial(inputs);
        let keep = tracked && !self.recompute;
        let with_states = states.is_some();
        let out =
            mamba2::forward(&self.config, sequences, values(&inputs[0]), &weights(inputs), states, keep, with_states);
        let saved = if keep {
            let (scanned, chunks) = (out.scanned.len(), out.chunk_states.len());
            vec![from_vec(out.scanned, [scanned]), from_vec(out.chunk_states, [chunks])]
        } else {
            Vec::new()
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
            [scanned, chunk_states] => Some((values(scanned), values(chunk_states))),
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
        let out = mamba2::backward(
            &self.config,
            sequences,
            values(&inputs[0]),
            &weights(inputs),
            states,
            saved,
            d_output,
            d_final,
        );
        let mut results: Vec<FlexTensor> =
            [out.projected, out.conv_weight, out.conv_bias, out.dt_bias, out.a_log, out.d_skip, out.norm]
                .into_iter()
                .zip(inputs)
                .map(|(gradient, input)| from_vec(gradient, shape(input)))
                .collect();
        if let (Some(states), [.., conv, ssm]) = (out.initial, inputs) {
            results.push(from_vec(states.conv, shape(conv)));
            results.push(from_vec(states.ssm, shape(ssm)));
        }
        results
    }
}

/// The trained tensors of a mixer: `conv_weight` `[channels, 4]`, `conv_bias` `[channels]`, `dt_bias`, `a_log` and
/// `d_skip` `[heads]`, `norm_weight` `[inner]`.
#[derive(Clone, Debug)]
pub struct MixerWeights {
    /// `[channels, 4]`; the last tap multiplies the current frame.
    pub conv_weight: Tensor<2>,
    /// `[channels]`
    pub conv_bias: Tensor<1>,
    /// `[heads]`
    pub dt_bias: Tensor<1>,
    /// `[heads]`
    pub a_log: Tensor<1>,
    /// `[heads]`
    pub d_skip: Tensor<1>,
    /// `[inner]`
    pub norm_weight: Tensor<1>,
}

/// States of a batch between calls.
#[derive(Clone, Debug)]
pub struct MixerStates {
    /// Last three inputs of the convolution `[batch, channels, 3]`, oldest first.
    pub conv_bcw: Tensor<3>,
    /// `[batch, heads, head width, state]`
    pub ssm_bhpn: Tensor<4>,
}

/// Everything between the projections of a Mamba-2 layer, from zero states: `[batch, frames, projected]` (z, x, B, C,
/// dt as published) to `[batch, frames, inner]`.
///
/// `padding` frames at the start of each sequence (empty: none) do not count: their inputs are taken as zero and their
/// time as standing still. `recompute` trades time for memory: the backward pass keeps only the inputs and runs the
/// scan again.
pub fn mamba2_mixer(
    zxbcdt_btd: Tensor<3>,
    weights: MixerWeights,
    config: Mamba2Config,
    padding: Vec<usize>,
    recompute: bool,
) -> Tensor<3> {
    let operation = Arc::new(MixerOperation { config, recompute, padding });
    Tensor::from_dispatch(<burn::backend::Dispatch as FusedOperations>::fused_7(
        operation,
        zxbcdt_btd.into_dispatch(),
        weights.conv_weight.into_dispatch(),
        weights.conv_bias.into_dispatch(),
        weights.dt_bias.into_dispatch(),
        weights.a_log.into_dispatch(),
        weights.d_skip.into_dispatch(),
        weights.norm_weight.into_dispatch(),
    ))
}

/// As [`mamba2_mixer`] from given states, also returning the final ones; gradients flow through both.
pub fn mamba2_mixer_with_states(
    zxbcdt_btd: Tensor<3>,
    weights: MixerWeights,
    states: MixerStates,
    config: Mamba2Config,
    padding: Vec<usize>,
    recompute: bool,
) -> (Tensor<3>, MixerStates) {
    let [batch, frames, _] = zxbcdt_btd.dims();
    let operation = Arc::new(MixerOperation { config, recompute, padding });
    let packed: Tensor<2> = Tensor::from_dispatch(<burn::backend::Dispatch as FusedOperations>::fused_9(
        operation,
        zxbcdt_btd.into_dispatch(),
        weights.conv_weight.into_dispatch(),
        weights.conv_bias.into_dispatch(),
        weights.dt_bias.into_dispatch(),
        weights.a_log.into_dispatch(),
        weights.d_skip.into_dispatch(),
        weights.norm_weight.into_dispatch(),
        states.conv_bcw.into_dispatch(),
        states.ssm_bhpn.into_dispatch(),
    ));
    let [output, conv, ssm] = sizes(&config, frames);
    let part = |from: usize, size: usize| packed.clone().narrow(1, from, size);
    (
        part(0, output).reshape([batch, frames, config.inner]),
        MixerStates {
            conv_bcw: part(output, conv).reshape([batch, config.conv_channels(), mamba2::HISTORY]),
            ssm_bhpn: part(output + conv, ssm).reshape([batch, config.heads, config.head_width(), config.state]),
        },
    )
}
