//! Mamba layer: arXiv 2312.00752; tensor names and layout of `state-spaces/mamba` (`modules/mamba_simple.py`).
//!
//! `in_proj` rows are `[x | z]`, `x_proj` rows `[dt | B | C]`; every channel has its own time step, every state of a
//! channel its own decay; no norm inside.
//! Law: `forward` over a sequence equals its single `step`s in outputs, state and gradients.
//! Padding frames in front leave convolution and state exactly as if they were not there.

use burn::tensor::{Tensor, activation};
use mambo_kernels::mamba1::TAPS;
use serde::{Deserialize, Serialize};

use crate::ops;
use crate::parameters::{Bound, Initialiser, Parameters, Role};

use super::{causal_conv, draw_step_biases, linear, padding_mask};

/// Sizes of one Mamba layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mamba1Config {
    /// Width of the residual stream.
    pub d_model: usize,
    /// State entries per channel (N).
    pub d_state: usize,
    /// Inner width as a multiple of `d_model`.
    pub expand: usize,
}

impl Mamba1Config {
    /// Inner width.
    pub fn d_inner(&self) -> usize {
        self.expand * self.d_model
    }

    /// Width from which the time steps of all channels are projected (R), as published.
    pub fn dt_rank(&self) -> usize {
        self.d_model.div_ceil(16)
    }

    /// Rows of `x_proj`.
    pub fn selected(&self) -> usize {
        self.dt_rank() + 2 * self.d_state
    }

    /// The same sizes as the fused kernels name them.
    ///
    /// States are kept every 2N frames, so that they take half the memory of x, within the range of chunks whose
    /// values stay in the processor's caches.
    pub fn kernel(&self) -> mambo_kernels::mamba1::Mamba1Config {
        mambo_kernels::mamba1::Mamba1Config {
            inner: self.d_inner(),
            state: self.d_state,
            rank: self.dt_rank(),
            chunk: (2 * self.d_state).clamp(32, 256),
        }
    }

    /// Adds the layer's parameters under `prefix`, initialised as published;
    /// `out_proj` is scaled by 1/sqrt(`residuals`), the number of residual additions of the network.
    pub fn init(&self, prefix: &str, residuals: usize, draw: &mut Initialiser, into: &mut Parameters) {
        let (width, inner, rank, selected) = (self.d_model, self.d_inner(), self.dt_rank(), self.selected());
        let mut push = |name: &str, shape: &[usize], role: Role, values: Vec<f32>| {
            into.push(format!("{prefix}.{name}"), shape, role, values);
        };
        push("in_proj.weight", &[2 * inner, width], Role::Decayed, draw.fan_in(2 * inner * width, width));
        push("conv1d.weight", &[inner, 1, TAPS], Role::Free, draw.fan_in(inner * TAPS, TAPS));
        push("conv1d.bias", &[inner], Role::Free, draw.fan_in(inner, TAPS));
        push("x_proj.weight", &[selected, inner], Role::Decayed, draw.fan_in(selected * inner, inner));
        push("dt_proj.weight", &[inner, rank], Role::Decayed, draw.fan_in(inner * rank, rank));
        push("dt_proj.bias", &[inner], Role::Free, draw_step_biases(inner, draw));
        let mut a_log = draw.zeros(inner * self.d_state);
        a_log.iter_mut().enumerate().for_each(|(at, value)| *value = ((at % self.d_state + 1) as f32).ln());
        push("A_log", &[inner, self.d_state], Role::Free, a_log);
        let mut skip = draw.zeros(inner);
        skip.fill(1.0);
        push("D", &[inner], Role::Free, skip);
        let out = draw.for_residual(width * inner, inner, residuals);
        push("out_proj.weight", &[width, inner], Role::Decayed, out);
    }
}

/// What one layer remembers between frames; its size does not depend on how many there were.
#[derive(Debug, Clone)]
pub struct Mamba1State {
    /// The last three inputs of the convolution, oldest first: `[B, inner, 3]`.
    pub conv_biw: Tensor<3>,
    /// State of the recurrence `[B, inner, N]`.
    pub ssm_bin: Tensor<3>,
}

/// One layer's tensors, taken from bound parameters.
#[derive(Debug, Clone)]
pub struct Mamba1 {
    config: Mamba1Config,
    in_proj: Tensor<2>,
    conv_weight_iw: Tensor<2>,
    conv_bias_i: Tensor<1>,
    x_proj: Tensor<2>,
    dt_proj: Tensor<2>,
    dt_bias_i: Tensor<1>,
    a_log_in: Tensor<2>,
    d_i: Tensor<1>,
    out_proj: Tensor<2>,
}

impl Mamba1 {
    /// Takes the layer's tensors from `bound`.
    pub fn new(config: &Mamba1Config, prefix: &str, bound: &Bound) -> Self {
        let conv_weight_i1w = bound.tensor::<3>(&format!("{prefix}.conv1d.weight"));
        Self {
            config: config.clone(),
            in_proj: bound.tensor(&format!("{prefix}.in_proj.weight")),
            conv_weight_iw: conv_weight_i1w.reshape([config.d_inner(), TAPS]),
            conv_bias_i: bound.tensor(&format!("{prefix}.conv1d.bias")),
            x_proj: bound.tensor(&format!("{prefix}.x_proj.weight")),
            dt_proj: bound.tensor(&format!("{prefix}.dt_proj.weight")),
            dt_bias_i: bound.tensor(&format!("{prefix}.dt_proj.bias")),
            a_log_in: bound.tensor(&format!("{prefix}.A_log")),
            d_i: bound.tensor(&format!("{prefix}.D")),
            out_proj: bound.tensor(&format!("{prefix}.out_proj.weight")),
        }
    }

    /// The state before the first frame.
    pub fn start(&self, batch: usize) -> Mamba1State {
        let (inner, device) = (self.config.d_inner(), self.in_proj.device());
        Mamba1State {
            conv_biw: Tensor::zeros([batch, inner, TAPS - 1], &device),
            ssm_bin: Tensor::zeros([batch, inner, self.config.d_state], &device),
        }
    }

    /// Many frames: `u_btd` to `y_btd` by the fused scan. The first `padding[b]` frames of sequence b do not
    /// count (empty: all count). Without `state` it starts fresh and returns none.
    pub fn forward(
        &self,
        u_btd: Tensor<3>,
        padding: &[usize],
        state: Option<Mamba1State>,
    ) -> (Tensor<3>, Option<Mamba1State>) {
        let weights = ops::Mamba1Weights {
            conv_weight: self.conv_weight_iw.clone(),
            conv_bias: self.conv_bias_i.clone(),
            x_projection: self.x_proj.clone(),
            dt_projection: self.dt_proj.clone(),
            dt_bias: self.dt_bias_i.clone(),
            a_log: self.a_log_in.clone(),
            d_skip: self.d_i.clone(),
        };
        let (sizes, padding) = (self.config.kernel(), padding.to_vec());
        let xz = ops::linear_turned(u_btd, self.in_proj.clone(), None);
        let (y, state) = match state {
            None => (ops::mamba1_mixer(xz, weights, sizes, padding, false), None),
            Some(Mamba1State { conv_biw, ssm_bin }) => {
                let states = ops::Mamba1States { conv_biw, ssm_bin };
                let (y, states) = ops::mamba1_mixer_with_states(xz, weights, states, sizes, padding, false);
                (y, Some(Mamba1State { conv_biw: states.conv_biw, ssm_bin: states.ssm_bin }))
            }
        };
        (ops::linear_turned(y, self.out_proj.clone(), None), state)
    }

    /// The same in plain tensor operations, frame by frame: the oracle of [`Mamba1::forward`].
    pub fn forward_plain(&self, u_btd: Tensor<3>, padding: &[usize], state: Mamba1State) -> (Tensor<3>, Mamba1State) {
        let [batch, frames, _] = u_btd.dims();
        let (inner, size, rank) = (self.config.d_inner(), self.config.d_state, self.config.dt_rank());
        let mask_bt1 = padding_mask(batch, frames, padding, &u_btd.device());
        // A zero input makes zero convolution inputs: the same history as before a first frame.
        let xz = linear(u_btd * mask_bt1.clone(), &self.in_proj);
        let z_bti = xz.clone().narrow(2, inner, inner);
        let (x_bti, conv_biw) =
            causal_conv(xz.narrow(2, 0, inner), state.conv_biw, &self.conv_weight_iw, &self.conv_bias_i);

        let selected = linear(x_bti.clone(), &self.x_proj);
        let raw_bti = linear(selected.clone().narrow(2, 0, rank), &self.dt_proj);
        // No time passes while padding lasts, so the state stays untouched.
        let dt_bti = activation::softplus(raw_bti + self.dt_bias_i.clone().reshape([1, 1, inner]), 1.0) * mask_bt1;
        let rate_1in = self.a_log_in.clone().exp().neg().reshape([1, inner, size]);
        let mut ssm_bin = state.ssm_bin;
        let mut read = Vec::with_capacity(frames);
        for t in 0..frames {
            let column = |values: &Tensor<3>| values.clone().narrow(1, t, 1).reshape([batch, inner, 1]);
            let row = |from: usize| selected.clone().narrow(1, t, 1).narrow(2, from, size);
            let dt_bi1 = column(&dt_bti);
            ssm_bin = ssm_bin * (dt_bi1.clone() * rate_1in.clone()).exp() + dt_bi1 * column(&x_bti) * row(rank);
            read.push((ssm_bin.clone() * row(rank + size)).sum_dim(2).reshape([batch, 1, inner]));
        }
        let y_bti = Tensor::cat(read, 1) + x_bti * self.d_i.clone().reshape([1, 1, inner]);
        let y_btd = linear(y_bti * activation::silu(z_bti), &self.out_proj);
        (y_btd, Mamba1State { conv_biw, ssm_bin })
    }

    /// One frame: `u_bd` to `y_bd`.
    pub fn step(&self, u_bd: Tensor<2>, state: Mamba1State) -> (Tensor<2>, Mamba1State) {
        let [batch, width] = u_bd.dims();
        let (inner, size, rank) = (self.config.d_inner(), self.config.d_state, self.config.dt_rank());
        let xz = u_bd.matmul(self.in_proj.clone().transpose());
        let x_bi1 = xz.clone().narrow(1, 0, inner).reshape([batch, inner, 1]);
        let z_bi = xz.narrow(1, inner, inner);

        let history = Tensor::cat(vec![state.conv_biw, x_bi1], 2);
        let sum_bi = (history.clone() * self.conv_weight_iw.clone().unsqueeze::<3>()).sum_dim(2);
        let conv_biw = history.narrow(2, 1, TAPS - 1);
        let x_bi = activation::silu(sum_bi.reshape([batch, inner]) + self.conv_bias_i.clone().reshape([1, inner]));

        let selected = x_bi.clone().matmul(self.x_proj.clone().transpose());
        let raw_bi = selected.clone().narrow(1, 0, rank).matmul(self.dt_proj.clone().transpose());
        let dt_bi = activation::softplus(raw_bi + self.dt_bias_i.clone().reshape([1, inner]), 1.0);
        let b_b1n = selected.clone().narrow(1, rank, size).reshape([batch, 1, size]);
        let c_b1n = selected.narrow(1, rank + size, size).reshape([batch, 1, size]);
        let rate_1in = self.a_log_in.clone().exp().neg().reshape([1, inner, size]);
        let decay_bin = (dt_bi.clone().reshape([batch, inner, 1]) * rate_1in).exp();
        let ssm_bin = state.ssm_bin * decay_bin + (dt_bi * x_bi.clone()).reshape([batch, inner, 1]) * b_b1n;
        let read_bi = (ssm_bin.clone() * c_b1n).sum_dim(2).reshape([batch, inner]);
        let y_bi = (read_bi + x_bi * self.d_i.clone().reshape([1, inner])) * activation::silu(z_bi);
        let y_bd = y_bi.matmul(self.out_proj.clone().transpose()).reshape([batch, width]);
        (y_bd, Mamba1State { conv_biw, ssm_bin })
    }
}
