//! The mixer against golden files of tools/reference/mamba2.py (float64 recurrence, PyTorch's gradients).

#![allow(clippy::unwrap_used)]

#[path = "common/golden_file.rs"]
mod golden_file;

use golden_file::Golden;
use mambo_kernels::mamba2::{self, Mamba2Config, Sequences, States, Weights, plain};

/// Relative error allowed to the fused path in f32, and to the recurrence in f64.
const FUSED_LIMIT: f64 = 1e-4;
const PLAIN_LIMIT: f64 = 1e-9;

const NAMES: [&str; 9] =
    ["projected", "conv_weight", "conv_bias", "dt_bias", "a_log", "d_skip", "norm", "conv_state", "ssm_state"];

fn weights<F>(inputs: &[Vec<F>; 9]) -> Weights<'_, F> {
    Weights {
        conv_weight: &inputs[1],
        conv_bias: &inputs[2],
        dt_bias: &inputs[3],
        a_log: &inputs[4],
        d_skip: &inputs[5],
        norm: &inputs[6],
    }
}

fn check_file(frames: usize) {
    let bytes = golden_file::read(&format!("mamba2_{frames}"));
    let golden = Golden::open(&bytes);
    let [batch, frames, inner, state, heads, groups, chunk] = golden.sizes()[..] else { panic!("seven sizes") };
    let config = Mamba2Config { inner, state, heads, groups, chunk };
    let sequences = Sequences { batch, frames, padding: &[] };

    let inputs = NAMES.map(|name| golden.wide(name));
    let initial = States { conv: &inputs[7], ssm: &inputs[8] };
    let trace = plain::forward(&config, sequences, &inputs[0], &weights(&inputs), Some(initial));
    golden.check("output", &trace.output, PLAIN_LIMIT);
    golden.check("final_conv_state", &trace.conv_state, PLAIN_LIMIT);
    golden.check("final_ssm_state", &trace.ssm_state, PLAIN_LIMIT);
    let upstream =
        ["output", "final_conv_state", "final_ssm_state"].map(|name| golden.wide(&format!("upstream_{name}")));
    let d_final = States { conv: &upstream[1], ssm: &upstream[2] };
    let d = plain::backward(
        &config,
        sequences,
        &inputs[0],
        &weights(&inputs),
        Some(initial),
        &trace,
        &upstream[0],
        Some(d_final),
    );
    let gradients =
        [d.projected, d.conv_weight, d.conv_bias, d.dt_bias, d.a_log, d.d_skip, d.norm, d.conv_state, d.ssm_state];
    for (name, gradient) in NAMES.iter().zip(&gradients) {
        golden.check(&format!("d_{name}"), gradient, PLAIN_LIMIT);
    }

    let inputs = NAMES.map(|name| golden.narrow(name));
    let initial = States { conv: &inputs[7], ssm: &inputs[8] };
    let upstream =
        ["output", "final_conv_state", "final_ssm_state"].map(|name| golden.narrow(&format!("upstream_{name}")));
    let d_final = States { conv: &upstream[1], ssm: &upstream[2] };
    let out = mamba2::forward(&config, sequences, &inputs[0], &weights(&inputs), Some(initial), true, true);
    golden.check("output", &out.output, FUSED_LIMIT);
    golden.check("final_conv_state", &out.conv_state, FUSED_LIMIT);
    golden.check("final_ssm_state", &out.ssm_state, FUSED_LIMIT);
    let saved = Some((out.scanned.as_slice(), out.chunk_states.as_slice()));
    let d = mamba2::backward(
        &config,
        sequences,
        &inputs[0],
        &weights(&inputs),
        Some(initial),
        saved,
        &upstream[0],
        Some(d_final),
    );
    let start = d.initial.expect("there were initial states");
    let gradients =
        [d.projected, d.conv_weight, d.conv_bias, d.dt_bias, d.a_log, d.d_skip, d.norm, start.conv, start.ssm];
    for (name, gradient) in NAMES.iter().zip(&gradients) {
        golden.check(&format!("d_{name}"), gradient, FUSED_LIMIT);
    }
}

#[test]
fn one_frame() {
    check_file(1);
}

#[test]
fn seven_frames_in_two_groups() {
    check_file(7);
}

#[test]
fn three_hundred_frames() {
    check_file(300);
}
