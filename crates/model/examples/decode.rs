//! Decoding a language model of an experiment file, with guidance, timed beside what the memory allows.
//!
//!     cargo run --release --workspace --example decode -- configs/paper-prefix-simba.toml [frames]
//!     cargo run --release --workspace --example decode -- configs/tiny.toml 200 100000
//!
//! Weights are random, in f32. Two streams, with caption and without, advance together. The limit is the time to read
//! the weights once and to read and write both states at the best rate at which all threads together read memory.
//! With a third argument it goes on to that frame and times it beside frame 100, in turns.
#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use mambo_kernels::memory::zeros;
use mambo_model::clock::NO_BEAT;
use mambo_model::lm::LmConfig;
use mambo_model::parameters::Initialiser;
use mambo_model::sampler::blend;
use mambo_model::stepper::{Column, Stepper, StepperState};
use rayon::prelude::*;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const GUIDANCE: f32 = 3.0;
/// Values of the buffer that is read: 1 GB.
const BUFFER: usize = 1 << 28;

/// Best rate at which all threads together read memory, in bytes a second.
fn read_rate() -> f64 {
    let mut buffer: Vec<f32> = zeros(BUFFER);
    buffer.par_iter_mut().enumerate().for_each(|(i, value)| *value = (i % 7) as f32);
    let part = BUFFER / rayon::current_num_threads();
    let seconds = (0..7).map(|_| {
        let start = Instant::now();
        let sums = buffer.par_chunks(part).map(|part| {
            let mut lanes = [0.0f32; 64];
            for block in part.chunks_exact(64) {
                lanes.iter_mut().zip(block).for_each(|(lane, value)| *lane += value);
            }
            lanes.iter().sum::<f32>()
        });
        black_box(sums.sum::<f32>());
        start.elapsed().as_secs_f64()
    });
    4.0 * BUFFER as f64 / seconds.fold(f64::INFINITY, f64::min)
}

/// Draws the most likely code of guided logits and feeds it: one frame of generation.
fn frame(stepper: &Stepper, state: &mut StepperState, column: &mut [u16]) {
    let config = stepper.config();
    let echoes = vec![config.special(); config.echo_beats.len() * config.codebooks];
    let logits = stepper.step(Column { codes: column, ticks: NO_BEAT, echoes: &echoes }, state);
    for (code, mut logits) in column.iter_mut().zip(logits) {
        blend(&mut logits, &[GUIDANCE, 1.0 - GUIDANCE]);
        let scores = logits[..config.cardinality].iter().enumerate();
        *code = scores.max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(code, _)| code as u16);
    }
}

fn timed(work: &mut dyn FnMut()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Resident memory in MB, where the system tells.
fn memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kilobytes| kilobytes / 1024)
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let file = arguments.first().context("give an experiment file")?;
    let number = |at: usize| arguments.get(at).map(|text| text.parse::<usize>()).transpose();
    let (frames, far) = (number(1)?.unwrap_or(50), number(2)?);
    let text = std::fs::read_to_string(Path::new(file)).with_context(|| file.clone())?;
    let model = toml::from_str::<toml::Table>(&text)?.remove("model").context("no [model]")?;
    let config: LmConfig = model.try_into()?;
    let vectors = vec![0.0; config.codebooks * config.cardinality * config.codec_width];
    let parameters = config.init(&vectors, &mut Initialiser::seeded(1))?;
    let count = parameters.trained_count();
    let stepper = Stepper::new(&config, &parameters);
    drop(parameters);
    let caption: Vec<f32> = (0..20 * config.text_width).map(|i| (i as f32 * 0.37).sin()).collect();
    let fresh = stepper.start(Some(&caption)).join(stepper.start(None));
    let start = vec![config.special(); config.codebooks];

    let rate = read_rate();
    // Embeddings are looked up, not read through.
    let read = 4 * (count - config.codebooks * (config.cardinality + 1) * config.d_model);
    let (mut state, mut column) = (fresh.clone(), start.clone());
    (0..5).for_each(|_| frame(&stepper, &mut state, &mut column));
    let times = (0..frames).map(|_| timed(&mut || frame(&stepper, &mut state, &mut column))).collect();
    let (taken, rate) = (median(times), rate.max(read_rate()));
    let limit = (read + 2 * fresh.bytes()) as f64 / rate;
    println!(
        "{:.1} M parameters, {} threads: median {:.2} ms a frame of {frames}, {} MB resident",
        count as f64 / 1e6,
        rayon::current_num_threads(),
        1e3 * taken,
        memory().unwrap_or(0),
    );
    println!(
        "weights {:.0} MB, both states {:.0} MB; memory read at {:.1} GB/s allows {:.2} ms: {:.0} % of it reached",
        read as f64 / 1e6,
        fresh.bytes() as f64 / 1e6,
        rate / 1e9,
        1e3 * limit,
        100.0 * limit / taken,
    );

    let Some(far) = far else { return Ok(()) };
    let (mut near, mut near_column) = (fresh, start);
    (0..100).for_each(|_| frame(&stepper, &mut near, &mut near_column));
    let before = memory();
    (frames + 5..far).for_each(|_| frame(&stepper, &mut state, &mut column));
    let (mut early, mut late) = (Vec::new(), Vec::new());
    for _ in 0..200 {
        early.push(timed(&mut || frame(&stepper, &mut near, &mut near_column)));
        late.push(timed(&mut || frame(&stepper, &mut state, &mut column)));
    }
    println!(
        "frame {far} over frame 100: {:.3}; memory {:?} MB before, {:?} MB after",
        median(late) / median(early),
        before.unwrap_or(0),
        memory().unwrap_or(0),
    );
    Ok(())
}
