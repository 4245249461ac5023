//! State-space layers, and what they share in plain tensor operations.
//!
//! [`chunked_scan`] is the plain form of the SSD recurrence of Mamba-2 (arXiv 2405.21060, section 6) in
//! tensor operations; it is the oracle of the fused scan in `ops`.
//! Laws: the chunk size never changes the result, and a whole sequence equals its single steps.

pub mod mamba1;
pub mod mamba2;

pub use mamba1::{Mamba1, Mamba1Config, Mamba1State};
pub use mamba2::{Mamba2, Mamba2Config, Mamba2State};

use burn::tensor::{Bool, Device, Tensor, TensorData, activation};
use mambo_kernels::mamba1::{HISTORY, TAPS};

use crate::parameters::Initialiser;

/// Biases whose softplus is a time step log-uniform in [0.001, 0.1], as published.
fn draw_step_biases(count: usize, draw: &mut Initialiser) -> Vec<f32> {
    let mut biases = draw.uniform(count, 0.001_f32.ln(), 0.1_f32.ln());
    for value in &mut biases {
        let dt = value.exp().max(1e-4);
        *value = dt + (-(-dt).exp_m1()).ln();
    }
    biases
}

/// `x W^T` over the last axis, as one matrix product over all rows.
fn linear(x_btd: Tensor<3>, weight_od: &Tensor<2>) -> Tensor<3> {
    let [batch, frames, width] = x_btd.dims();
    let out = weight_od.dims()[0];
    x_btd.reshape([batch * frames, width]).matmul(weight_od.clone().transpose()).reshape([batch, frames, out])
}

/// 0 where a sequence has padding in front, 1 elsewhere: `[batch, frames, 1]`.
fn padding_mask(batch: usize, frames: usize, padding: &[usize], device: &Device) -> Tensor<3> {
    let mask: Vec<f32> = (0..batch * frames)
        .map(|i| f32::from(u8::from(i % frames >= padding.get(i / frames).copied().unwrap_or(0))))
        .collect();
    Tensor::from_data(TensorData::new(mask, [batch, frames, 1]), device)
}

/// Causal convolution and SiLU of `x_btc` after the inputs `history_bcw`, oldest first; also the last of them.
fn causal_conv(
    x_btc: Tensor<3>,
    history_bcw: Tensor<3>,
    weight_cw: &Tensor<2>,
    bias_c: &Tensor<1>,
) -> (Tensor<3>, Tensor<3>) {
    let frames = x_btc.dims()[1];
    let inputs = Tensor::cat(vec![history_bcw.swap_dims(1, 2), x_btc], 1);
    let last_bcw = inputs.clone().narrow(1, frames, HISTORY).swap_dims(1, 2);
    let mut sum = bias_c.clone().reshape([1, 1, -1]);
    for tap in 0..TAPS {
        let weight = weight_cw.clone().narrow(1, tap, 1).reshape([1, 1, -1]);
        sum = inputs.clone().narrow(1, tap, frames) * weight + sum;
    }
    (activation::silu(sum), last_bcw)
}

/// Runs `S <- exp(dt a) S + dt x (outer) B; y = S C` over time in chunks.
///
/// `x_bthp`, `dt_bth` (after softplus), `a_h` (negative), `b_btn`, `c_btn` (one group),
/// `state_bhpn` the state before the first frame. Returns `y_bthp` and the state after the last frame.
pub fn chunked_scan(
    x_bthp: Tensor<4>,
    dt_bth: Tensor<3>,
    a_h: Tensor<1>,
    b_btn: Tensor<3>,
    c_btn: Tensor<3>,
    state_bhpn: Tensor<4>,
    chunk: usize,
) -> (Tensor<4>, Tensor<4>) {
    let [batch, frames, heads, width] = x_bthp.dims();
    let state_size = b_btn.dims()[2];
    let size = chunk.min(frames).max(1);
    let chunks = frames.div_ceil(size);
    let padding = chunks * size - frames;
    // dt = 0 beyond the end: the state stays as it is.
    let x_bthp = pad_time(x_bthp.reshape([batch, frames, heads * width]), padding)
        .reshape([batch, chunks, size, heads, width])
        .permute([0, 3, 1, 2, 4]);
    let dt_bhci = pad_time(dt_bth, padding).reshape([batch, chunks, size, heads]).permute([0, 3, 1, 2]);
    let b_bcin = pad_time(b_btn, padding).reshape([batch, chunks, size, state_size]);
    let c_bcin = pad_time(c_btn, padding).reshape([batch, chunks, size, state_size]);

    let device = dt_bhci.device();
    // Inclusive running sum of dt a inside each chunk, as a product with a triangle of ones.
    let log_decay = dt_bhci.clone() * a_h.reshape([1, heads, 1, 1]);
    let ones: Vec<f32> = (0..size * size).map(|i| f32::from(u8::from(i / size <= i % size))).collect();
    let upper = Tensor::<2>::from_data(TensorData::new(ones, [size, size]), &device);
    let sum_bhci =
        log_decay.reshape([batch * heads * chunks, size]).matmul(upper).reshape([batch, heads, chunks, size]);

    let xdt_bhcip = x_bthp * dt_bhci.reshape([batch, heads, chunks, size, 1]);

    // Within a chunk: y_i = sum_{j <= i} exp(sum_i - sum_j) (C_i . B_j) dt_j x_j
    let rows = sum_bhci.clone().reshape([batch, heads, chunks, size, 1]);
    let columns = sum_bhci.clone().reshape([batch, heads, chunks, 1, size]);
    let future: Vec<bool> = (0..size * size).map(|i| i % size > i / size).collect();
    let future = Tensor::<5, Bool>::from_data(TensorData::new(future, [1, 1, 1, size, size]), &device)
        .expand([batch, heads, chunks, size, size]);
    let decay_bhcij = (rows - columns).mask_fill(future, f32::NEG_INFINITY).exp();
    let scores_bcij = c_bcin.clone().matmul(b_bcin.clone().swap_dims(2, 3));
    let scores_bhcij = scores_bcij.reshape([batch, 1, chunks, size, size]) * decay_bhcij;
    let inside_bhcip = scores_bhcij.matmul(xdt_bhcip.clone());

    // What each chunk adds to the state: sum_j exp(sum_last - sum_j) dt_j x_j (outer) B_j
    let last_bhc1 = sum_bhci.clone().narrow(3, size - 1, 1);
    let to_end = (last_bhc1.clone() - sum_bhci.clone()).exp().reshape([batch, heads, chunks, size, 1]);
    let b_bhcin = b_bcin.reshape([batch, 1, chunks, size, state_size]).expand([batch, heads, chunks, size, state_size]);
    let added_bhcpn = (xdt_bhcip * to_end).swap_dims(3, 4).matmul(b_bhcin);

    // Between chunks: carry the state and let it be read through C.
    let chunk_decay = last_bhc1.exp();
    let mut state = state_bhpn;
    let mut before = Vec::with_capacity(chunks);
    for c in 0..chunks {
        before.push(state.clone().reshape([batch, heads, 1, width, state_size]));
        let decay = chunk_decay.clone().narrow(2, c, 1);
        let added = added_bhcpn.clone().narrow(2, c, 1).reshape([batch, heads, width, state_size]);
        state = state * decay + added;
    }
    let before_bhcpn = Tensor::cat(before, 2);
    let from_start = sum_bhci.exp().reshape([batch, heads, chunks, size, 1]);
    let c_bhcin = c_bcin.reshape([batch, 1, chunks, size, state_size]).expand([batch, heads, chunks, size, state_size]);
    let carried_bhcip = c_bhcin.matmul(before_bhcpn.swap_dims(3, 4)) * from_start;

    let y_bthp = (inside_bhcip + carried_bhcip)
        .permute([0, 2, 3, 1, 4])
        .reshape([batch, chunks * size, heads, width])
        .narrow(1, 0, frames);
    (y_bthp, state)
}

fn pad_time(x_btd: Tensor<3>, padding: usize) -> Tensor<3> {
    if padding == 0 {
        return x_btd;
    }
    let [batch, _, width] = x_btd.dims();
    let zeros = Tensor::zeros([batch, padding, width], &x_btd.device());
    Tensor::cat(vec![x_btd, zeros], 1)
}
