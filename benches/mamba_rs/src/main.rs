//! One residual block, `h + mixer(rms_norm(h))`, forward and backward on the processor: Mambo's layers beside those of
//! the crate mamba-rs 0.8.2 (its host trainers, matrix products by the crate gemm), all in f32.
//!
//!     cd benches/mamba_rs
//!     RAYON_NUM_THREADS=2 cargo run --release --ignore-rust-version
//!
//! (from that folder, so that `.cargo/config.toml` compiles for this processor: without that their Mamba-2 is five times
//! slower.) Both get the same weights and inputs; outputs and input gradients must agree in every run. Runs of both take
//! turns, so that a busy machine slows both alike. Ours are timed as a training step makes them: weights copied into
//! tensors, forward, backward, gradients copied out. Theirs own their weights and keep their buffers. Their sequences
//! run side by side, one thread each, so with one sequence they use one thread; ours share out each sequence. No
//! optimizer runs on either side.

use std::time::{Duration, Instant};

use mamba_rs::TrainSessionCfg;
use mambo_model::parameters::{Initialiser, Parameters, Role};

mod ours;
mod theirs;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs of each side that are timed, after one that is not.
const ROUNDS: usize = 15;
/// Largest relative distance allowed between both sides' results.
const APART: f64 = 1e-4;
/// Width of a Mamba-2 head.
const HEAD_WIDTH: usize = 64;
/// Inner width as a multiple of the model's.
const EXPAND: usize = 2;

/// A generation of the layer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Family {
    Mamba1,
    Mamba2,
}

/// What is run.
#[derive(Clone, Copy, Debug)]
struct Case {
    family: Family,
    width: usize,
    state: usize,
    batch: usize,
    frames: usize,
}

const CASES: [Case; 6] = [
    Case { family: Family::Mamba1, width: 256, state: 16, batch: 1, frames: 512 },
    Case { family: Family::Mamba1, width: 256, state: 16, batch: 4, frames: 512 },
    Case { family: Family::Mamba1, width: 512, state: 16, batch: 2, frames: 512 },
    Case { family: Family::Mamba2, width: 256, state: 64, batch: 1, frames: 512 },
    Case { family: Family::Mamba2, width: 256, state: 64, batch: 4, frames: 512 },
    Case { family: Family::Mamba2, width: 512, state: 128, batch: 2, frames: 512 },
];

impl Case {
    /// Values of the input, and of the output.
    fn values(&self) -> usize {
        self.batch * self.frames * self.width
    }

    /// The block's weights under Mambo's names.
    fn parameters(&self) -> Parameters {
        let draw = &mut Initialiser::seeded(7);
        let mut parameters = Parameters::new();
        parameters.push("norm.weight", &[self.width], Role::Free, draw.uniform(self.width, 0.5, 1.5));
        match self.family {
            Family::Mamba1 => ours::mamba1(self).init("mixer", 1, draw, &mut parameters),
            Family::Mamba2 => ours::mamba2(self).init("mixer", 1, draw, &mut parameters),
        }
        parameters
    }
}

/// What one forward and one backward pass give.
struct Pass {
    output: Vec<f32>,
    d_input: Vec<f32>,
}

/// ‖a-b‖ / ‖b‖
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    difference / norm(&mut b.iter().map(|value| f64::from(*value)))
}

/// (best, median) in milliseconds.
fn summary(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort();
    (times[0].as_secs_f64() * 1e3, times[times.len() / 2].as_secs_f64() * 1e3)
}

fn measure(case: &Case) -> Result<(), String> {
    let parameters = case.parameters();
    let draw = &mut Initialiser::seeded(8);
    let (input, upstream) = (draw.normal(case.values(), 1.0), draw.normal(case.values(), 1.0));
    let session = TrainSessionCfg::new(case.width, case.batch, case.frames);
    let mut trainer = match case.family {
        Family::Mamba1 => theirs::mamba1(case, &parameters, session)?,
        Family::Mamba2 => theirs::mamba2(case, &parameters, session)?,
    };
    let (mut our_times, mut their_times) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let start = Instant::now();
        let ours = ours::pass(case, &parameters, &input, &upstream);
        let our_time = start.elapsed();
        let start = Instant::now();
        let theirs = theirs::pass(trainer.as_mut(), &input, &upstream)?;
        let their_time = start.elapsed();
        for (name, a, b) in
            [("outputs", &ours.output, &theirs.output), ("input gradients", &ours.d_input, &theirs.d_input)]
        {
            let apart = distance(a, b);
            if apart.is_nan() || apart > APART {
                return Err(format!("{case:?}: {name} are {apart:.1e} apart"));
            }
        }
        if round > 0 {
            our_times.push(our_time);
            their_times.push(their_time);
        }
    }
    let ((our_best, our_median), (their_best, their_median)) = (summary(our_times), summary(their_times));
    let Case { family, width, state, batch, frames } = case;
    println!(
        "| {family:?} | {width} | {state} | {batch} | {frames} | {our_best:.1} / {our_median:.1} | \
         {their_best:.1} / {their_median:.1} | {:.2} / {:.2} |",
        their_best / our_best,
        their_median / our_median
    );
    Ok(())
}

fn main() -> Result<(), String> {
    println!("{} threads; milliseconds, best / median of {ROUNDS}\n", rayon::current_num_threads());
    println!("| layer | d_model | N | batch | frames | Mambo | mamba-rs | theirs : ours |");
    println!("|---|---|---|---|---|---|---|---|");
    CASES.iter().try_for_each(measure)
}
