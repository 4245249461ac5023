//! The gated norm: `v = y silu(z)`, `out = v / sqrt(mean(v^2) + eps) * gain`, the mean over each group of channels.

use super::{Mamba2Config, NORM_EPSILON};
use crate::simd::{Isa, dot, fused, sigmoid, simd_fn};
use crate::threads::{Shared, sum_rows};
use rayon::prelude::*;

/// Rows a task handles; the partial sums of the gain's gradient follow these bounds, so they fix its order.
const ROWS: usize = 64;

/// Applies the gate and norm to `y` `[rows, inner]`, into `out`, or in place where `y` is absent.
pub(crate) fn gate_forward(config: &Mamba2Config, projected: &[f32], gain: &[f32], y: Option<&[f32]>, out: &mut [f32]) {
    let (inner, row_width) = (config.inner, config.projected());
    out.par_chunks_mut(ROWS * inner).enumerate().for_each(|(task, lines)| {
        for (index, line) in lines.chunks_exact_mut(inner).enumerate() {
            let row = task * ROWS + index;
            if let Some(y) = y {
                line.copy_from_slice(&y[row * inner..][..inner]);
            }
            gate_row(&projected[row * row_width..][..inner], gain, config.groups, line);
        }
    });
}

simd_fn! {
    /// One row in place.
    pub(crate) fn gate_row(z: &[f32], gain: &[f32], groups: usize, y: &mut [f32]) = gate_row_body
}

#[inline(always)]
fn gate_row_body<I: Isa>(z: &[f32], gain: &[f32], groups: usize, y: &mut [f32]) {
    let width = y.len() / groups;
    for group in 0..groups {
        let (z, gain) = (&z[group * width..][..width], &gain[group * width..][..width]);
        let y = &mut y[group * width..][..width];
        for c in 0..width {
            y[c] *= z[c] * sigmoid::<I>(z[c]);
        }
        let scale = 1.0 / (dot::<I>(y, y) / width as f32 + NORM_EPSILON as f32).sqrt();
        for c in 0..width {
            y[c] *= scale * gain[c];
        }
    }
}

/// Backward pass: writes dz into `d_projected` `[rows, projected]`, dy into the result; returns (dy, d gain).
pub(crate) fn gate_backward(
    config: &Mamba2Config,
    projected: &[f32],
    gain: &[f32],
    y: &[f32],
    d_out: &[f32],
    d_projected: &mut [f32],
) -> (Vec<f32>, Vec<f32>) {
    let (inner, row_width) = (config.inner, config.projected());
    let rows = y.len() / inner;
    let tasks = rows.div_ceil(ROWS);
    let mut d_y = vec![0.0f32; y.len()];
    let mut partial = vec![0.0f32; tasks * inner];
    {
        let d_projected = Shared::new(d_projected);
        d_y.par_chunks_mut(ROWS * inner).zip(partial.par_chunks_mut(inner)).enumerate().for_each(
            |(task, (lines, d_gain))| {
                let mut gated = vec![0.0f32; inner];
                for (index, line) in lines.chunks_exact_mut(inner).enumerate() {
                    let row = task * ROWS + index;
                    let part = row * inner..(row + 1) * inner;
                    // SAFETY: each row belongs to one task.
                    #[allow(unsafe_code)]
                    let d_z = unsafe { d_projected.part(row * row_width, inner) };
                    let z = &projected[row * row_width..][..inner];
                    gate_row_backward(
                        z,
                        gain,
                        config.groups,
                        &y[part.clone()],
                        &d_out[part],
                        &mut gated,
                        line,
                        d_z,
                        d_gain,
                    );
                }
            },
        );
    }
    (d_y, sum_rows(&partial, inner))
}

simd_fn! {
    /// One row; `gated` is scratch of the row's length, `d_gain` is added to.
    fn gate_row_backward(z: &[f32], gain: &[f32], groups: usize, y: &[f32], d_out: &[f32], gated: &mut [f32], d_y: &mut [f32], d_z: &mut [f32], d_gain: &mut [f32]) = gate_row_backward_body
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn gate_row_backward_body<I: Isa>(
    z: &[f32],
    gain: &[f32],
    groups: usize,
    y: &[f32],
    d_out: &[f32],
    gated: &mut [f32],
    d_y: &mut [f32],
    d_z: &mut [f32],
    d_gain: &mut [f32],
) {
    let width = y.len() / groups;
    for group in 0..groups {
        let from = group * width;
        let (z, gain, y, d_out) =
            (&z[from..][..width], &gain[from..][..width], &y[from..][..width], &d_out[from..][..width]);
        let gated = &mut gated[..width];
        let (d_y, d_z, d_gain) = (&mut d_y[from..][..width], &mut d_z[from..][..width], &mut d_gain[from..][..width]);
        for c in 0..width {
            let gate = sigmoid::<I>(z[c]);
            d_z[c] = gate;
            gated[c] = y[c] * z[c] * gate;
            d_y[c] = d_out[c] * gain[c];
        }
        let scale = 1.0 / (dot::<I>(gated, gated) / width as f32 + NORM_EPSILON as f32).sqrt();
        let pull = dot::<I>(d_y, gated) * scale * scale * scale / width as f32;
        for c in 0..width {
            let gate = d_z[c];
            let d_gated = fused::<I>(scale, d_y[c], -(gated[c] * pull));
            d_gain[c] = fused::<I>(d_out[c] * scale, gated[c], d_gain[c]);
            d_z[c] = d_gated * y[c] * gate * fused::<I>(z[c], 1.0 - gate, 1.0);
            d_y[c] = d_gated * z[c] * gate;
        }
    }
}
