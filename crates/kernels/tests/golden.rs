//! The mixer against golden files of tools/reference/mamba2.py (float64 recurrence, PyTorch's gradients).

#![allow(clippy::unwrap_used)]

use std::path::Path;

use mambo_kernels::mamba2::{self, Mamba2Config, Sequences, States, Weights, plain};
use safetensors::{Dtype, SafeTensors};

/// Relative error allowed to the fused path in f32, and to the recurrence in f64.
const FUSED_LIMIT: f64 = 1e-4;
const PLAIN_LIMIT: f64 = 1e-9;

struct Golden<'a>(SafeTensors<'a>);

impl Golden<'_> {
    fn wide(&self, name: &str) -> Vec<f64> {
        let view = self.0.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        match view.dtype() {
            Dtype::F32 => view
                .data()
                .chunks_exact(4)
                .map(|b| f64::from(f32::from_le_bytes(b.try_into().expect("4 bytes"))))
                .collect(),
            Dtype::F64 => {
                view.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("8 bytes"))).collect()
            }
            other => panic!("{name}: unexpected {other:?}"),
        }
    }

    fn narrow(&self, name: &str) -> Vec<f32> {
        self.wide(name).into_iter().map(|value| value as f32).collect()
    }

    fn sizes(&self) -> Vec<usize> {
        let view = self.0.tensor("sizes").expect("sizes");
        view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("8 bytes")) as usize).collect()
    }

    fn check<F: Copy + Into<f64>>(&self, name: &str, got: &[F], limit: f64) {
        let expected = self.wide(name);
        assert_eq!(got.len(), expected.len(), "{name}");
        let norm = expected.iter().map(|y| y * y).sum::<f64>().sqrt();
        let off = got.iter().zip(&expected).map(|(x, y)| ((*x).into() - y).powi(2)).sum::<f64>().sqrt() / norm;
        assert!(off <= limit, "{name}: {off:.2e} above {limit:.0e}");
    }
}

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
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/mamba2_{frames}.safetensors"));
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let golden = Golden(SafeTensors::deserialize(&bytes).expect("golden file"));
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
