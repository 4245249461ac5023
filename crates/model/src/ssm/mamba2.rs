//! Mamba-2 mixer: arXiv 2405.21060; tensor names and layout of `state-spaces/mamba` (`modules/mamba2.py`).
//!
//! `in_proj` rows are `[z | x | B | C | dt]`; gate before the norm.
//! Law: `forward` over a sequence equals its single `step`s in outputs, state and gradients.
//! Padding frames in front leave convolution and state exactly as if they were not there.

use burn::tensor::{Tensor, activation};
use mambo_kernels::mamba2::TAPS;
use serde::{Deserialize, Serialize};

use crate::ops::{self, LinearWeight};
use crate::parameters::{Bound, Initialiser, Parameters, Role, Side};

use super::{causal_conv, chunked_scan, draw_step_biases, linear, padding_mask};

/// Sizes of one Mamba-2 layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mamba2Config {
    /// Width of the residual stream.
    pub d_model: usize,
    /// State entries per channel (N).
    pub d_state: usize,
    /// Inner width as a multiple of `d_model`.
    pub expand: usize,
    /// Channels per head (P).
    pub head_dim: usize,
    /// Groups of heads that share B and C (G).
    #[serde(default = "one")]
    pub groups: usize,
    /// Frames per chunk of the scan; changes speed, never results.
    pub chunk: usize,
}

fn one() -> usize {
    1
}

impl Mamba2Config {
    /// Inner width.
    pub fn d_inner(&self) -> usize {
        self.expand * self.d_model
    }

    /// Heads (H).
    pub fn heads(&self) -> usize {
        self.d_inner() / self.head_dim
    }

    /// Channels through the convolution: x, B and C.
    pub fn conv_width(&self) -> usize {
        self.d_inner() + 2 * self.groups * self.d_state
    }

    /// Rows of `in_proj`.
    pub fn projected(&self) -> usize {
        self.d_inner() + self.conv_width() + self.heads()
    }

    /// The same sizes as the fused kernels name them.
    pub fn kernel(&self) -> mambo_kernels::mamba2::Mamba2Config {
        mambo_kernels::mamba2::Mamba2Config {
            inner: self.d_inner(),
            state: self.d_state,
            heads: self.heads(),
            groups: self.groups,
            chunk: self.chunk,
        }
    }

    /// Adds the layer's parameters under `prefix`, initialised as published;
    /// `out_proj` is scaled by 1/sqrt(`residuals`), the number of residual additions of the network.
    pub fn init(&self, prefix: &str, residuals: usize, draw: &mut Initialiser, into: &mut Parameters) {
        let (inner, conv, heads) = (self.d_inner(), self.conv_width(), self.heads());
        into.push(
            format!("{prefix}.in_proj.weight"),
            &[self.projected(), self.d_model],
            Role::Decayed,
            draw.fan_in(self.projected() * self.d_model, self.d_model),
        );
        into.push(format!("{prefix}.conv1d.weight"), &[conv, 1, TAPS], Role::Free, draw.fan_in(conv * TAPS, TAPS));
        into.push(format!("{prefix}.conv1d.bias"), &[conv], Role::Free, draw.fan_in(conv, TAPS));
        into.push(format!("{prefix}.dt_bias"), &[heads], Role::Free, draw_step_biases(heads, draw));
        let a_log = draw.uniform(heads, 1.0, 16.0).iter().map(|a| a.ln()).collect();
        into.push(format!("{prefix}.A_log"), &[heads], Role::Free, a_log);
        into.push(format!("{prefix}.D"), &[heads], Role::Free, vec![1.0; heads]);
        into.push(format!("{prefix}.norm.weight"), &[inner], Role::Free, vec![1.0; inner]);
        let out = draw.for_residual(self.d_model * inner, inner, residuals);
        into.push(format!("{prefix}.out_proj.weight"), &[self.d_model, inner], Role::Decayed, out);
    }
}

/// What one layer remembers between frames; its size does not depend on how many there were.
#[derive(Debug, Clone)]
pub struct Mamba2State {
    /// The last three inputs of the convolution, oldest first: `[B, channels, 3]`.
    pub conv_bcw: Tensor<3>,
    /// State of the recurrence.
    pub ssm_bhpn: Tensor<4>,
}

/// One layer's tensors, taken from bound parameters.
#[derive(Debug, Clone)]
pub struct Mamba2 {
    config: Mamba2Config,
    in_proj: LinearWeight,
    conv_weight_cw: Tensor<2>,
    conv_bias_c: Tensor<1>,
    dt_bias_h: Tensor<1>,
    a_log_h: Tensor<1>,
    d_h: Tensor<1>,
    norm_weight: Tensor<1>,
    out_proj: LinearWeight,
}

impl Mamba2 {
    /// Takes the layer's tensors from `bound`.
    pub fn new(config: &Mamba2Config, prefix: &str, bound: &Bound) -> Self {
        Self {
            config: config.clone(),
            in_proj: bound.weight(&format!("{prefix}.in_proj.weight"), Side::Turned),
            conv_weight_cw: bound.tensor::<3>(&format!("{prefix}.conv1d.weight")).reshape([config.conv_width(), TAPS]),
            conv_bias_c: bound.tensor(&format!("{prefix}.conv1d.bias")),
            dt_bias_h: bound.tensor(&format!("{prefix}.dt_bias")),
            a_log_h: bound.tensor(&format!("{prefix}.A_log")),
            d_h: bound.tensor(&format!("{prefix}.D")),
            norm_weight: bound.tensor(&format!("{prefix}.norm.weight")),
            out_proj: bound.weight(&format!("{prefix}.out_proj.weight"), Side::Turned),
        }
    }

    /// The state before the first frame.
    pub fn start(&self, batch: usize) -> Mamba2State {
        let (config, device) = (&self.config, self.conv_bias_c.device());
        Mamba2State {
            conv_bcw: Tensor::zeros([batch, config.conv_width(), TAPS - 1], &device),
            ssm_bhpn: Tensor::zeros([batch, config.heads(), config.head_dim, config.d_state], &device),
        }
    }

    /// Many frames: `u_btd` to `y_btd` by the fused scan. The first `padding[b]` frames of sequence b do not
    /// count (empty: all count). Without `state` it starts fresh and returns none.
    pub fn forward(
        &self,
        u_btd: Tensor<3>,
        padding: &[usize],
        state: Option<Mamba2State>,
    ) -> (Tensor<3>, Option<Mamba2State>) {
        let config = &self.config;
        let weights = ops::MixerWeights {
            conv_weight: self.conv_weight_cw.clone(),
            conv_bias: self.conv_bias_c.clone(),
            dt_bias: self.dt_bias_h.clone(),
            a_log: self.a_log_h.clone(),
            d_skip: self.d_h.clone(),
            norm_weight: self.norm_weight.clone(),
        };
        let projected = self.in_proj.apply(u_btd, None);
        let (y, state) = match state {
            None => {
                let y = ops::mamba2_mixer(projected, weights, config.kernel(), padding.to_vec(), false);
                (y, None)
            }
            Some(Mamba2State { conv_bcw, ssm_bhpn }) => {
                let states = ops::MixerStates { conv_bcw, ssm_bhpn };
                let (y, states) =
                    ops::mamba2_mixer_with_states(projected, weights, states, config.kernel(), padding.to_vec(), false);
                (y, Some(Mamba2State { conv_bcw: states.conv_bcw, ssm_bhpn: states.ssm_bhpn }))
            }
        };
        (self.out_proj.apply(y, None), state)
    }

    /// The same in plain tensor operations: the oracle of [`Mamba2::forward`].
    pub fn forward_plain(&self, u_btd: Tensor<3>, padding: &[usize], state: Mamba2State) -> (Tensor<3>, Mamba2State) {
        let config = &self.config;
        let [batch, frames, _] = u_btd.dims();
        let (inner, size, heads) = (config.d_inner(), config.d_state, config.heads());
        let mask_bt1 = padding_mask(batch, frames, padding, &u_btd.device());
        // A zero input makes zero convolution inputs: the same history as before a first frame.
        let zxbcdt = linear(u_btd * mask_bt1.clone(), self.in_proj.turned());
        let z_bti = zxbcdt.clone().narrow(2, 0, inner);
        let xbc_btc = zxbcdt.clone().narrow(2, inner, config.conv_width());
        let dt_bth = zxbcdt.narrow(2, inner + config.conv_width(), heads);

        let (xbc_btc, conv_bcw) = causal_conv(xbc_btc, state.conv_bcw, &self.conv_weight_cw, &self.conv_bias_c);

        let x_bthp = xbc_btc.clone().narrow(2, 0, inner).reshape([batch, frames, heads, config.head_dim]);
        let dt_bth = activation::softplus(dt_bth + self.dt_bias_h.clone().reshape([1, 1, heads]), 1.0);
        // No time passes while padding lasts, so the state stays untouched.
        let dt_bth = dt_bth * mask_bt1;
        let share = heads / config.groups;
        let (y, after): (Vec<_>, Vec<_>) = (0..config.groups)
            .map(|group| {
                let of_group = |from: usize| xbc_btc.clone().narrow(2, inner + (from + group) * size, size);
                chunked_scan(
                    x_bthp.clone().narrow(2, group * share, share),
                    dt_bth.clone().narrow(2, group * share, share),
                    self.a_log_h.clone().narrow(0, group * share, share).exp().neg(),
                    of_group(0),
                    of_group(config.groups),
                    state.ssm_bhpn.clone().narrow(1, group * share, share),
                    config.chunk,
                )
            })
            .unzip();
        let (y_bthp, ssm_bhpn) = (Tensor::cat(y, 2), Tensor::cat(after, 1));
        let y_bthp = y_bthp + x_bthp * self.d_h.clone().reshape([1, 1, heads, 1]);
        let gated = y_bthp.reshape([batch, frames, inner]) * activation::silu(z_bti);
        let normed = self.gated_norm(gated.reshape([batch * frames, inner])).reshape([batch, frames, inner]);
        (linear(normed, self.out_proj.turned()), Mamba2State { conv_bcw, ssm_bhpn })
    }

    /// One frame: `u_bd` to `y_bd`, by the recurrence itself.
    pub fn step(&self, u_bd: Tensor<2>, state: Mamba2State) -> (Tensor<2>, Mamba2State) {
        let config = &self.config;
        let [batch, _] = u_bd.dims();
        let (inner, size, heads) = (config.d_inner(), config.d_state, config.heads());
        let (width, conv_width) = (config.head_dim, config.conv_width());
        let zxbcdt = u_bd.matmul(self.in_proj.turned().clone().transpose());
        let z_bi = zxbcdt.clone().narrow(1, 0, inner);
        let xbc_bc = zxbcdt.clone().narrow(1, inner, conv_width);
        let dt_bh = zxbcdt.narrow(1, inner + conv_width, heads);

        let history = Tensor::cat(vec![state.conv_bcw, xbc_bc.reshape([batch, conv_width, 1])], 2);
        let weight_1cw = self.conv_weight_cw.clone().unsqueeze::<3>();
        let sum = (history.clone() * weight_1cw).sum_dim(2).reshape([batch, conv_width])
            + self.conv_bias_c.clone().reshape([1, conv_width]);
        let conv_bcw = history.narrow(2, 1, TAPS - 1);
        let xbc_bc = activation::silu(sum);

        let x_bhp = xbc_bc.clone().narrow(1, 0, inner).reshape([batch, heads, width, 1]);
        // B and C of every head: those of its group.
        let groups = config.groups;
        let of_heads = |from: usize| {
            let of_groups = xbc_bc.clone().narrow(1, inner + from * size, groups * size);
            of_groups.reshape([batch, groups, 1, size]).repeat_dim(2, heads / groups).reshape([batch, heads, 1, size])
        };
        let (b_bh1n, c_bh1n) = (of_heads(0), of_heads(groups));
        let dt =
            activation::softplus(dt_bh + self.dt_bias_h.clone().reshape([1, heads]), 1.0).reshape([batch, heads, 1, 1]);
        let decay = (dt.clone() * self.a_log_h.clone().exp().neg().reshape([1, heads, 1, 1])).exp();
        let ssm_bhpn = state.ssm_bhpn * decay + x_bhp.clone() * dt * b_bh1n;
        let y = (ssm_bhpn.clone() * c_bh1n).sum_dim(3) + x_bhp * self.d_h.clone().reshape([1, heads, 1, 1]);
        let gated = y.reshape([batch, inner]) * activation::silu(z_bi);
        let y_bd = self.gated_norm(gated).matmul(self.out_proj.turned().clone().transpose());
        (y_bd, Mamba2State { conv_bcw, ssm_bhpn })
    }

    /// RMSNorm over the channels of each group.
    fn gated_norm(&self, gated_ri: Tensor<2>) -> Tensor<2> {
        let [rows, inner] = gated_ri.dims();
        let groups = self.config.groups;
        let x = gated_ri.reshape([rows, groups, inner / groups]);
        let scale = (x.clone().square().mean_dim(2) + NORM_EPSILON).sqrt().recip();
        (x * scale).reshape([rows, inner]) * self.norm_weight.clone().reshape([1, inner])
    }
}

/// Epsilon of every RMSNorm here.
pub const NORM_EPSILON: f64 = 1e-5;
