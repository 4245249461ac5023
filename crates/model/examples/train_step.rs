//! One training step of a Mamba-2 language model, timed: the size of the PyTorch peer's default.
//!
//!     cargo run --release -p mambo-model --example train_step -- [layers] [width] [state] [batch] [frames] [chunk] [ff] \
//!         [steps] [bf16]
#![allow(clippy::print_stdout)]

use std::time::Instant;

use burn::tensor::{Device, Int, Tensor, TensorData};
use mambo_kernels::bf16_product::{MatrixPrecision, bf16_unavailable};
use mambo_kernels::mamba2::Mamba2Config;
use mambo_kernels::optimizer::{AdamW, Trained};
use mambo_model::device;
use mambo_model::ops::{self, MixerWeights};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const VOCABULARY: usize = 1024;
const HEAD_WIDTH: usize = 64;
const EPSILON: f64 = 1e-5;

struct Parameter {
    shape: Vec<usize>,
    values: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
}

struct Model {
    layers: usize,
    width: usize,
    feed_forward: bool,
    mixer: Mamba2Config,
    parameters: Vec<Parameter>,
}

impl Model {
    fn new(layers: usize, width: usize, state: usize, chunk: usize, feed_forward: bool) -> Self {
        let mixer = Mamba2Config { inner: 2 * width, state, heads: 2 * width / HEAD_WIDTH, groups: 1, chunk };
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut parameters = Vec::new();
        let mut add = |shape: &[usize], fill: Option<f32>| {
            let bound = 1.0 / (shape[shape.len() - 1] as f32).sqrt();
            let count = shape.iter().product();
            let values: Vec<f32> = (0..count)
                .map(|_| fill.unwrap_or_else(|| bound * ((rng.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0)))
                .collect();
            parameters.push(Parameter {
                shape: shape.to_vec(),
                first: vec![0.0; count],
                second: vec![0.0; count],
                values,
            });
        };
        add(&[VOCABULARY, width], None);
        for _ in 0..layers {
            add(&[width], Some(1.0));
            add(&[mixer.projected(), width], None);
            add(&[mixer.conv_channels(), 4], None);
            add(&[mixer.conv_channels()], Some(0.0));
            add(&[mixer.heads], Some(-4.0));
            add(&[mixer.heads], Some(1.5));
            add(&[mixer.heads], Some(1.0));
            add(&[mixer.inner], Some(1.0));
            add(&[width, mixer.inner], None);
            if feed_forward {
                add(&[width], Some(1.0));
                add(&[2 * width, width], None);
                add(&[2 * width], Some(0.0));
                add(&[width, 2 * width], None);
                add(&[width], Some(0.0));
            }
        }
        add(&[width], Some(1.0));
        add(&[VOCABULARY, width], None);
        Self { layers, width, feed_forward, mixer, parameters }
    }

    /// Loss, with the bound leaves in order of the parameters.
    fn loss(&self, tokens: &[i32], targets: Vec<i32>, batch: usize, device: &Device) -> (Tensor<1>, Vec<Tensor<1>>) {
        let leaves: Vec<Tensor<1>> = self
            .parameters
            .iter()
            .map(|p| Tensor::from_data(TensorData::new(p.values.clone(), [p.values.len()]), device).require_grad())
            .collect();
        let mut next = leaves.iter().zip(&self.parameters);
        let mut one = || next.next().expect("as many as were added");
        macro_rules! matrix {
            () => {{
                let (leaf, parameter) = one();
                leaf.clone().reshape([parameter.shape[0], parameter.shape[1]])
            }};
        }
        macro_rules! vector {
            () => {
                one().0.clone()
            };
        }
        let frames = tokens.len() / batch;
        let indices = Tensor::<1, Int>::from_data(TensorData::new(tokens.to_vec(), [tokens.len()]), device);
        let mut x: Tensor<3> = matrix!().select(0, indices).reshape([batch, frames, self.width]);
        for _ in 0..self.layers {
            let normed = ops::rms_norm(x.clone(), vector!(), EPSILON);
            let projected = ops::linear_turned(normed, matrix!(), None);
            let weights = MixerWeights {
                conv_weight: matrix!(),
                conv_bias: vector!(),
                dt_bias: vector!(),
                a_log: vector!(),
                d_skip: vector!(),
                norm_weight: vector!(),
            };
            let mixed = ops::mamba2_mixer(projected, weights, self.mixer, Vec::new(), false);
            x = ops::residual(x, ops::linear_turned(mixed, matrix!(), None), 0.0, 0);
            if self.feed_forward {
                let normed = ops::rms_norm(x.clone(), vector!(), EPSILON);
                let hidden = ops::bias_gelu(ops::linear_turned(normed, matrix!(), None), vector!());
                x = ops::residual(x, ops::linear_turned(hidden, matrix!(), Some(vector!())), 0.0, 0);
            }
        }
        let logits = ops::linear_turned(ops::rms_norm(x, vector!(), EPSILON), matrix!(), None);
        (ops::cross_entropy(logits, targets, 0.0), leaves)
    }

    fn train(
        &mut self,
        tokens: &[i32],
        targets: Vec<i32>,
        batch: usize,
        step: u64,
        precision: MatrixPrecision,
        device: &Device,
    ) -> (f32, [f64; 3]) {
        let start = Instant::now();
        let (loss, leaves) = ops::with_precision(precision, || self.loss(tokens, targets, batch, device));
        let value = loss.clone().into_scalar::<f32>();
        let forward = start.elapsed().as_secs_f64();
        let mut gradients = loss.backward();
        let gradients: Vec<Vec<f32>> = leaves
            .iter()
            .map(|leaf| {
                let gradient = leaf.grad_remove(&mut gradients).expect("every parameter is used");
                gradient.into_data().try_to_vec().expect("f32 gradient")
            })
            .collect();
        let backward = start.elapsed().as_secs_f64() - forward;
        let mut trained: Vec<Trained<'_>> = self
            .parameters
            .iter_mut()
            .zip(&gradients)
            .map(|(p, gradient)| Trained {
                value: &mut p.values,
                gradient,
                first: &mut p.first,
                second: &mut p.second,
                decay: p.shape.len() > 1,
            })
            .collect();
        AdamW { rate: 1e-3, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01, step, gradient_scale: 1.0 }
            .apply(&mut trained);
        (value, [forward, backward, start.elapsed().as_secs_f64() - forward - backward])
    }
}

/// Peak resident memory in MB, where the system tells.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kilobytes| kilobytes / 1024)
}

fn main() {
    let arguments: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let argument = |index: usize, default: usize| arguments.get(index).copied().unwrap_or(default);
    let (layers, width, state) = (argument(0, 6), argument(1, 256), argument(2, 64));
    let (batch, frames, chunk) = (argument(3, 8), argument(4, 512), argument(5, 64));
    mambo_kernels::memory::keep_freed_memory();
    let mut model = Model::new(layers, width, state, chunk, argument(6, 0) > 0);
    let count: usize = model.parameters.iter().map(|p| p.values.len()).sum();
    let precision = if argument(8, 0) > 0 { MatrixPrecision::Bf16 } else { MatrixPrecision::F32 };
    if let (MatrixPrecision::Bf16, Some(reason)) = (precision, bf16_unavailable()) {
        println!("bf16 products compute in f32: {reason}");
    }
    println!(
        "{count} parameters, {precision:?}, {:?}, {} threads",
        mambo_kernels::simd::instruction_set(),
        rayon::current_num_threads()
    );
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let tokens: Vec<i32> = (0..batch * (frames + 1)).map(|_| (rng.next_u32() % VOCABULARY as u32) as i32).collect();
    let rows = |shift: usize| -> Vec<i32> {
        tokens.chunks(frames + 1).flat_map(|row| row[shift..shift + frames].to_vec()).collect()
    };
    let device = device::cpu_training();
    let mut times = Vec::new();
    for step in 1..=argument(7, 9) as u64 {
        let (loss, parts) = model.train(&rows(0), rows(1), batch, step, precision, &device);
        let total: f64 = parts.iter().sum();
        println!(
            "step {step}: loss {loss:.4}, forward {:.3} s, backward {:.3} s, optimizer {:.3} s, total {total:.3} s",
            parts[0], parts[1], parts[2]
        );
        if step > 2 {
            times.push(total);
        }
    }
    times.sort_by(f64::total_cmp);
    if let Some(median) = times.get(times.len() / 2) {
        println!(
            "median {median:.3} s, {:.0} tokens/s, peak memory {:?} MB",
            (batch * frames) as f64 / median,
            peak_memory()
        );
    }
}
