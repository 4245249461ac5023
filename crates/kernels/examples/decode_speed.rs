//! What decoding at the papers' size is bound by: gigabytes a second of weights and states, against plain reading and
//! updating of memory.
//!
//!     cargo run --release -p mambo-kernels --example decode_speed -- [rounds]
//!
//! Everything is far larger than the caches, 3 GB in all. The programs take turns layer by layer, and of each layer the
//! best round counts, so that a moment's other load does not decide. `RAYON_NUM_THREADS` sets the threads.
#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::time::Instant;

use mambo_kernels::mamba2::{self, Mamba2Config, Weights};
use mambo_kernels::memory::zeros;
use mambo_kernels::panel_linear::PanelLinear;
use rayon::prelude::*;

const LAYERS: usize = 24;
/// Input projection of a Mamba-2 layer of d_model 1024, inner width 2048, state 512.
const SHAPE: [usize; 2] = [5152, 1024];
/// So many of these a layer come to 1 GB of f32.
const MATRICES: usize = 2;
/// With and without caption.
const STREAMS: usize = 2;

struct Program<'a> {
    name: String,
    /// Bytes that a layer moves.
    bytes: usize,
    /// Runs one layer.
    work: Box<dyn FnMut(usize) + 'a>,
    /// Least seconds of each layer.
    best: [f64; LAYERS],
}

impl<'a> Program<'a> {
    fn new(name: impl Into<String>, bytes: usize, work: impl FnMut(usize) + 'a) -> Self {
        Self { name: name.into(), bytes, work: Box::new(work), best: [f64::INFINITY; LAYERS] }
    }
}

fn wave(index: usize) -> f32 {
    (index % 1021) as f32 / 1021.0 - 0.5
}

fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 64];
    for block in values.chunks_exact(64) {
        lanes.iter_mut().zip(block).for_each(|(lane, value)| *lane += value);
    }
    lanes.iter().sum()
}

/// As much memory a layer as the f32 matrices have, one part a thread.
fn plain<'a>() -> [Program<'a>; 2] {
    let values = MATRICES * SHAPE[0] * SHAPE[1];
    let part = values.div_ceil(rayon::current_num_threads());
    let buffers = || -> Vec<Vec<f32>> {
        let filled = |_| {
            let mut buffer = zeros(values);
            buffer.fill(0.5);
            buffer
        };
        (0..LAYERS).map(filled).collect()
    };
    let (read, mut updated) = (buffers(), buffers());
    let sums = move |layer: usize| {
        black_box(read[layer].par_chunks(part).map(sum).collect::<Vec<_>>());
    };
    let update = move |layer: usize| {
        updated[layer].par_chunks_mut(part).for_each(|part| part.iter_mut().for_each(|value| *value *= 0.999));
    };
    [
        Program::new("f32 summed, read", 4 * values, sums),
        Program::new("f32 multiplied in place, read and written", 8 * values, update),
    ]
}

fn matrices<'a>(name: &str, bytes: usize, make: impl Fn() -> PanelLinear) -> Program<'a> {
    let [outputs, inputs] = SHAPE;
    let weights: Vec<PanelLinear> = (0..LAYERS * MATRICES).map(|_| make()).collect();
    let x: Vec<f32> = (0..STREAMS * inputs).map(wave).collect();
    let mut out = vec![0.0; STREAMS * outputs];
    let work = move |layer: usize| {
        weights[layer * MATRICES..][..MATRICES].iter().for_each(|weights| weights.add(&x, &mut out));
    };
    Program::new(
        format!("{name} weights {SHAPE:?} for {STREAMS} rows, read"),
        MATRICES * outputs * inputs * bytes,
        work,
    )
}

fn steps<'a>() -> Program<'a> {
    let config = Mamba2Config { inner: 2048, state: 512, heads: 32, groups: 1, chunk: 64 };
    let channels = config.conv_channels();
    let projected: Vec<f32> = (0..STREAMS * config.projected()).map(wave).collect();
    let conv_weight: Vec<f32> = (0..channels * 4).map(wave).collect();
    let (conv_bias, per_head, norm) = (vec![0.1; channels], vec![0.5; config.heads], vec![1.0; config.inner]);
    let filled = |size: usize| {
        let mut state = zeros(STREAMS * size);
        state.fill(0.1f32);
        state
    };
    let mut states: Vec<_> =
        (0..LAYERS).map(|_| (filled(config.conv_state_size()), filled(config.ssm_state_size()))).collect();
    let mut out = vec![0.0; STREAMS * config.inner];
    let name = format!("mamba2 step, inner 2048, state 512, {STREAMS} streams, read and written");
    Program::new(name, 8 * STREAMS * config.ssm_state_size(), move |layer: usize| {
        let weights = Weights {
            conv_weight: &conv_weight,
            conv_bias: &conv_bias,
            dt_bias: &per_head,
            a_log: &per_head,
            d_skip: &per_head,
            norm: &norm,
        };
        let (conv, ssm) = &mut states[layer];
        mamba2::step(&config, STREAMS, &projected, &weights, conv, ssm, &mut out);
    })
}

fn main() {
    let rounds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(20);
    let threads = rayon::current_num_threads();
    println!("{:?}, {threads} threads, best of {rounds} rounds", mambo_kernels::simd::instruction_set());
    let [outputs, inputs] = SHAPE;
    let halves: Vec<u16> = (0..outputs * inputs).map(|index| (index % 0x3c00) as u16).collect();
    let singles: Vec<f32> = (0..outputs * inputs).map(wave).collect();
    let mut programs = Vec::from(plain());
    programs.push(matrices("f32", 4, || PanelLinear::from_f32(&singles, inputs)));
    programs.push(matrices("f16", 2, || PanelLinear::from_f16_bits(&halves, inputs)));
    programs.push(steps());
    for _ in 0..rounds {
        for layer in 0..LAYERS {
            for program in &mut programs {
                let start = Instant::now();
                (program.work)(layer);
                program.best[layer] = program.best[layer].min(start.elapsed().as_secs_f64());
            }
        }
    }
    for program in &programs {
        let rate = (LAYERS * program.bytes) as f64 * 1e-9 / program.best.iter().sum::<f64>();
        println!("{rate:5.1} GB/s  {}", program.name);
    }
}
