//! Compares language model experiments at equal data: for each a learning rate chosen by the same sweep of short runs,
//! then the whole run with several seeds; validation loss by step, by operations and by time, with its spread.
//!
//!     cargo run --release --workspace --example sweep -- OUT RATES STEPS SEEDS EXPERIMENT.toml...
//!     cargo run --release --workspace --example sweep -- runs/study 2e-3,4e-3,8e-3,1.6e-2 100 3 configs/study-*.toml
//!
//! Every run has a folder of its own under OUT and goes on where it was when the command is given again. Results:
//! OUT/sweep.json, OUT/sweep.svg, and a table on the standard output.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, ensure};
use mambo_train::config::LmExperiment;
use mambo_train::lm::{LmRun, run};
use mambo_train::track::{METRICS_FILE, Row};
use plotters::coord::Shift;
use plotters::prelude::*;
use serde::Serialize;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How often all experiments in turn are timed, and over how many steps.
const TURNS: u64 = 3;
const TIMED_STEPS: u64 = 8;

/// One finished run.
#[derive(Debug, Clone, Serialize)]
struct Finished {
    rate: f64,
    seed: u64,
    /// Step and validation loss.
    curve: Vec<(u64, f64)>,
    seconds_per_step: f64,
}

impl Finished {
    fn last(&self) -> f64 {
        self.curve.last().map_or(f64::INFINITY, |point| point.1)
    }
}

/// One experiment with all its runs.
#[derive(Debug, Clone, Serialize)]
struct Contender {
    name: String,
    parameters: usize,
    flops_per_step: f64,
    seconds_per_step: f64,
    /// The rate with the lowest last loss in the sweep.
    best_rate: f64,
    /// A short run at every rate.
    sweep: Vec<Finished>,
    /// All seeds at the best rate.
    runs: Vec<Finished>,
}

impl Contender {
    /// Mean validation loss over the seeds by step, with lowest and highest.
    fn curve(&self) -> Vec<(u64, [f64; 3])> {
        let points = self.runs[0].curve.iter().enumerate();
        let at = |index: usize| self.runs.iter().filter_map(move |run| run.curve.get(index).map(|point| point.1));
        points
            .map(|(index, &(step, _))| {
                let count = at(index).count() as f64;
                let mean = at(index).sum::<f64>() / count;
                (step, [mean, at(index).fold(f64::INFINITY, f64::min), at(index).fold(f64::NEG_INFINITY, f64::max)])
            })
            .collect()
    }

    fn last(&self) -> [f64; 3] {
        self.curve().last().map_or([f64::INFINITY; 3], |point| point.1)
    }

    /// The first step, between validations by straight lines, at which the mean loss is down to `loss`.
    fn step_at(&self, loss: f64) -> Option<f64> {
        let curve = self.curve();
        let after = curve.iter().position(|point| point.1[0] <= loss)?;
        let (step, [value, ..]) = curve[after];
        Some(match after.checked_sub(1).map(|before| curve[before]) {
            Some((earlier, [higher, ..])) if higher > value => {
                earlier as f64 + (step - earlier) as f64 * (higher - loss) / (higher - value)
            }
            _ => step as f64,
        })
    }
}

fn main() -> Result<()> {
    mambo_kernels::memory::keep_freed_memory();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    ensure!(arguments.len() >= 5, "give OUT RATES STEPS SEEDS EXPERIMENT.toml...");
    let out = PathBuf::from(&arguments[0]);
    let rates: Vec<f64> =
        arguments[1].split(',').map(str::parse).collect::<Result<_, _>>().context("RATES: numbers with commas")?;
    let steps: u64 = arguments[2].parse().context("STEPS of the sweep: a whole number")?;
    let seeds: u64 = arguments[3].parse().context("SEEDS: a whole number")?;
    let read = |file: &String| LmExperiment::read(Path::new(file));
    let experiments = arguments[4..].iter().map(read).collect::<Result<Vec<_>, _>>()?;
    // Timed first and in turns, so that what else the machine does falls on all alike.
    let mut seconds = vec![Vec::new(); experiments.len()];
    for turn in 1..=TURNS {
        for (seconds, experiment) in seconds.iter_mut().zip(&experiments) {
            seconds.push(trained(experiment, &out.join("speed"), rates[0], turn, TIMED_STEPS)?.seconds_per_step);
        }
    }
    let mut contenders = Vec::new();
    for (experiment, seconds) in experiments.iter().zip(seconds) {
        let budget = experiment.budget()?;
        let short = |&rate: &f64| trained(experiment, &out, rate, 1, steps);
        let sweep = rates.iter().map(short).collect::<Result<Vec<_>>>()?;
        let best_rate = sweep.iter().min_by(|a, b| a.last().total_cmp(&b.last())).context("no rates")?.rate;
        let whole = |seed| trained(experiment, &out, best_rate, seed, experiment.train.steps);
        let runs = (1..=seeds).map(whole).collect::<Result<Vec<_>>>()?;
        contenders.push(Contender {
            name: experiment.name.clone(),
            parameters: budget.parameters.total,
            flops_per_step: budget.training.flops_per_step,
            seconds_per_step: median(seconds),
            best_rate,
            sweep,
            runs,
        });
        report(&contenders, &out)?;
    }
    Ok(())
}

/// Trains one run, or what is left of it, and reads its metrics.
fn trained(experiment: &LmExperiment, out: &Path, rate: f64, seed: u64, steps: u64) -> Result<Finished> {
    let mut experiment = experiment.clone();
    experiment.optim.rate = rate;
    experiment.seed = seed;
    experiment.train.steps = steps;
    let name = experiment.name.replace([' ', ','], "-").to_lowercase();
    let folder = out.join(name).join(format!("{steps}-{rate:e}-{seed}"));
    eprintln!("{}", folder.display());
    run(LmRun {
        experiment: &experiment,
        folder: &folder,
        codec_vectors: None,
        stop: &AtomicBool::new(false),
        report: &mut |progress| eprintln!("{progress}"),
        sample: None,
    })?;
    let text = std::fs::read_to_string(folder.join(METRICS_FILE))?;
    let rows: Vec<Row> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let of = |name: &str| -> Vec<(u64, f64)> {
        rows.iter().filter_map(|row| Some((row.step, *row.values.get(name)?))).collect()
    };
    let frames = experiment.train.batch * experiment.train.accumulate * experiment.data.frames;
    let times = of("train/frames_per_second").iter().map(|(_, rate)| frames as f64 / rate).collect();
    let split = experiment.data.validate_on.first().context("data.validate_on is empty")?.name();
    Ok(Finished { rate, seed, curve: of(&format!("{split}/loss")), seconds_per_step: median(times) })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn report(contenders: &[Contender], out: &Path) -> Result<()> {
    std::fs::write(out.join("sweep.json"), serde_json::to_vec_pretty(contenders)?)?;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (1200, 460)).into_drawing_area();
        plot(&area, contenders).map_err(|reason| anyhow::anyhow!("the plot: {reason}"))?;
    }
    std::fs::write(out.join("sweep.svg"), svg)?;
    println!("| model | parameters | GFLOP a step | s a step | rate | validation loss, mean (lowest to highest) |");
    println!("|---|---|---|---|---|---|");
    for one in contenders {
        let [mean, low, high] = one.last();
        println!(
            "| {} | {:.2} M | {:.0} | {:.2} | {:e} | {mean:.4} ({low:.4} to {high:.4}, {} seeds) |",
            one.name,
            one.parameters as f64 / 1e6,
            one.flops_per_step / 1e9,
            one.seconds_per_step,
            one.best_rate,
            one.runs.len(),
        );
    }
    // How much of another's training each needs to reach where that one ends.
    println!("\n| to reach the last loss of | steps | operations | seconds |\n|---|---|---|---|");
    for one in contenders {
        for other in contenders.iter().filter(|other| other.name != one.name) {
            let goal = other.last()[0];
            let steps = other.curve().last().map_or(0, |point| point.0) as f64;
            let shares = one.step_at(goal).map_or("never | never | never".to_owned(), |step| {
                let share = step / steps;
                let flops = share * one.flops_per_step / other.flops_per_step;
                let time = share * one.seconds_per_step / other.seconds_per_step;
                format!("{:.0} % | {:.0} % | {:.0} %", 100.0 * share, 100.0 * flops, 100.0 * time)
            });
            println!("| {}: {} | {shares} |", other.name, one.name);
        }
    }
    Ok(())
}

type Scale = fn(&Contender) -> f64;

/// Three panels: loss against steps, operations and seconds; a band from the lowest to the highest seed.
fn plot(area: &DrawingArea<SVGBackend<'_>, Shift>, contenders: &[Contender]) -> Result<(), String> {
    let text = |error: DrawingAreaErrorKind<_>| format!("{error:?}");
    area.fill(&WHITE).map_err(text)?;
    // What a step is worth on the horizontal axis.
    let panels: [(&str, Scale); 3] =
        [("step", |_| 1.0), ("TFLOP", |one| one.flops_per_step / 1e12), ("seconds", |one| one.seconds_per_step)];
    // The first steps would flatten everything that comes after them.
    let shown = |one: &Contender| one.curve().into_iter().skip(1).collect::<Vec<_>>();
    let losses = || contenders.iter().flat_map(|one| shown(one).into_iter().flat_map(|point| point.1));
    let (low, high) = (losses().fold(f64::INFINITY, f64::min), losses().fold(f64::NEG_INFINITY, f64::max));
    for (cell, (axis, scale)) in area.split_evenly((1, 3)).iter().zip(panels) {
        let last = |one: &Contender| shown(one).last().map_or(0.0, |point| point.0 as f64 * scale(one));
        let widest = contenders.iter().map(last).fold(1.0, f64::max);
        let mut chart = ChartBuilder::on(cell)
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(48)
            .build_cartesian_2d(0.0..widest, low - 0.02..high + 0.02)
            .map_err(text)?;
        chart
            .configure_mesh()
            .x_desc(axis)
            .y_desc("validation loss")
            .x_labels(6)
            .light_line_style(WHITE)
            .draw()
            .map_err(text)?;
        for (index, one) in contenders.iter().enumerate() {
            let colour = Palette99::pick(index).to_rgba();
            let curve = shown(one);
            let x = |step: u64| step as f64 * scale(one);
            let there = curve.iter().map(|(step, loss)| (x(*step), loss[2]));
            let back = curve.iter().rev().map(|(step, loss)| (x(*step), loss[1]));
            let band: Vec<(f64, f64)> = there.chain(back).collect();
            chart.draw_series([Polygon::new(band, colour.mix(0.2).filled())]).map_err(text)?;
            let mean = curve.iter().map(|(step, loss)| (x(*step), loss[0]));
            chart
                .draw_series(LineSeries::new(mean, colour.stroke_width(2)))
                .map_err(text)?
                .label(&one.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        }
        chart.configure_series_labels().border_style(BLACK).background_style(WHITE).draw().map_err(text)?;
    }
    area.present().map_err(|error| format!("{error:?}"))
}
