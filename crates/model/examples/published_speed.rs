//! How long published models take at full size: the other side of benches/peer/published.py.
//!
//!     RAYON_NUM_THREADS=2 cargo run --release --workspace --example published_speed -- FOLDER [SECONDS] [PART]...
//!
//! Each line has the median and the least of the clock and the mean of what all threads computed.
//! The folders are those of tools/soak/published.py; parts: dac (so many seconds
//! of sound, 10 if not given), t5, musicgen.
#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use mambo_model::codec::Codec;
use mambo_model::codec::dac::Dac;
use mambo_model::musicgen::MusicGen;
use mambo_model::text::T5;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const RUNS: usize = 5;
const RATE: usize = 44_100;
/// Frames of MusicGen that are timed.
const FRAMES: std::ops::Range<usize> = 100..150;

/// Seconds that all threads have computed so far, where the system tells: on a busy machine a better measure than the clock.
fn computed() -> f64 {
    let ticks = || {
        let text = std::fs::read_to_string("/proc/self/stat").ok()?;
        let (_, fields) = text.rsplit_once(')')?;
        // User and system time, in hundredths of a second.
        fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<f64>().ok()).sum::<Option<f64>>()
    };
    ticks().unwrap_or(f64::NAN) / 100.0
}

fn report(name: &str, mut times: Vec<f64>, began: f64) {
    let computed = (computed() - began) / times.len() as f64;
    times.sort_by(f64::total_cmp);
    println!(
        "{name:<24} median {:9.2} ms, least {:9.2} ms, computed {:9.2} ms",
        1e3 * times[times.len() / 2],
        1e3 * times[0],
        1e3 * computed
    );
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// After one that does not count.
fn timed(name: &str, runs: usize, mut work: impl FnMut()) {
    work();
    let began = computed();
    report(name, (0..runs).map(|_| seconds(&mut work)).collect(), began);
}

fn dac(folder: &Path, length: usize) -> Result<()> {
    let dac = Dac::load(folder)?;
    let samples: Vec<f32> = (0..length * RATE).map(|i| 0.5 * (i as f32 * 0.05).sin()).collect();
    timed(&format!("dac encode {length} s"), RUNS, || {
        black_box(dac.encode(&samples));
    });
    let tokens = dac.encode(&samples);
    timed(&format!("dac decode {length} s"), RUNS, || {
        black_box(dac.decode(&tokens, dac.config().n_codebooks, 0));
    });
    Ok(())
}

fn t5(folder: &Path) -> Result<()> {
    let t5 = T5::load(folder)?;
    for length in [16, 64, 512] {
        let ids: Vec<u32> = (0..length).map(|i| 3 + i * 61 % 30_000).collect();
        timed(&format!("t5-base {length} tokens"), 4 * RUNS, || {
            black_box(t5.network().forward(&[(&ids, ids.len())]));
        });
    }
    Ok(())
}

fn musicgen(folder: &Path) -> Result<()> {
    let (model, _) = MusicGen::load(folder)?;
    let ids: Vec<u32> = (0..16).map(|i| 3 + i * 61).collect();
    let heard = model.hear(&ids);
    let mut state = model.decoder().start(&[&heard, &[]]);
    let mut step = |frame: usize| {
        let column = [0, 1, 2, 3].map(|book| ((frame * 37 + book * 101) % 2048) as u16);
        seconds(|| {
            black_box(model.decoder().step(&column, &mut state));
        })
    };
    (0..FRAMES.start).for_each(|frame| {
        step(frame);
    });
    let began = computed();
    report("musicgen-small step", FRAMES.map(step).collect(), began);
    Ok(())
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).peekable();
    let folder = arguments.next().context("give the folder of tools/soak/published.py")?;
    let length = arguments.peek().and_then(|text| text.parse().ok());
    let parts: Vec<String> = arguments.skip(usize::from(length.is_some())).collect();
    let parts = if parts.is_empty() { ["dac", "t5", "musicgen"].map(String::from).into() } else { parts };
    mambo_kernels::memory::keep_freed_memory();
    println!("{:?}, {} threads", mambo_kernels::simd::instruction_set(), rayon::current_num_threads());
    for part in parts {
        let place = Path::new(&folder).join(&part);
        match part.as_str() {
            "dac" => dac(&place, length.unwrap_or(10))?,
            "t5" => t5(&place)?,
            "musicgen" => musicgen(&place)?,
            _ => bail!("no part {part}"),
        }
    }
    Ok(())
}
