//! Speed of a language model experiment on this machine: training frames a second, decoding milliseconds a frame.
//!
//! `cargo run --release -p mambo-train --example lm_speed -- configs/lm-kappa1.toml [steps]`
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::Device;
use mambo_model::backbone::Dropout;
use mambo_model::clock::Metronome;
use mambo_model::generate::Generator;
use mambo_model::lm::{Columns, Lm, Targets, TextBatch, echoes, loss};
use mambo_model::ops::{MatrixPrecision, with_precision};
use mambo_model::parameters::Initialiser;
use mambo_model::random;
use mambo_model::stepper::Stepper;
use mambo_train::config::LmExperiment;
use mambo_train::optim::Optimizer;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: lm_speed EXPERIMENT.toml [STEPS]")?;
    let steps: u64 = arguments.next().map_or(Ok(4), |text| text.parse())?;
    let experiment = LmExperiment::read(Path::new(&path))?;
    let (mut config, train) = (experiment.model, experiment.train);
    config.codec_width = if train.codec_vectors { 64 } else { 0 };
    let mut rng = random::stream(1, "speed", 0);
    let vectors: Vec<f32> =
        (0..config.codebooks * config.cardinality * config.codec_width).map(|_| random::normal(&mut rng)).collect();
    let mut parameters = config.init(&vectors, &mut Initialiser::seeded(1))?;
    println!("{:.2} M trained values", parameters.trained_count() as f64 / 1e6);

    let frames = experiment.data.frames;
    let codes: Vec<u16> = (0..train.batch * config.codebooks * frames)
        .map(|_| random::below(&mut rng, config.cardinality) as u16)
        .collect();
    let caption: Vec<f32> = (0..20 * config.text_width).map(|_| random::normal(&mut rng)).collect();
    let metronome = Metronome::new(Some(120.0), 21.5);
    let clock: Vec<u16> = (0..train.batch).flat_map(|_| (0..frames as u64).map(|frame| metronome.at(frame))).collect();
    let echoes = echoes(&config, &codes, &clock, train.batch);
    let mut optimizer = Optimizer::new(&experiment.optim, &parameters, steps);
    let device = Device::flex().autodiff();
    for step in 0..steps {
        let started = Instant::now();
        let bound = parameters.bind(&device);
        let model = Lm::new(&config, &bound);
        let precision = if train.bf16 { MatrixPrecision::Bf16 } else { MatrixPrecision::F32 };
        let text = TextBatch::new(&config, &vec![Some(caption.as_slice()); train.batch]);
        let mut dropout = Dropout::new(train.dropout, random::stream(1, "dropout", step));
        let columns = Columns { codes: &codes, clock: &clock, echoes: &echoes };
        let output = with_precision(precision, || model.forward_with_text(&text, columns, &mut dropout));
        let tempo = vec![0; train.batch];
        let targets = Targets { codes: &codes, tempo: &tempo, batch: train.batch };
        let loss = loss(&config, &experiment.loss, &output, targets);
        let forward = started.elapsed().as_secs_f64();
        let gradients = bound.gradients(loss.total.backward());
        let backward = started.elapsed().as_secs_f64() - forward;
        optimizer.step(step, &mut parameters, &gradients);
        let all = started.elapsed().as_secs_f64();
        let update = all - forward - backward;
        let rate = (train.batch * frames) as f64 / all;
        println!(
            "step {all:.3} s (forward {forward:.3}, backward {backward:.3}, update {update:.3}): {rate:.0} frames/s"
        );
    }

    let started = Instant::now();
    let stepper = Arc::new(Stepper::new(&config, &parameters));
    println!("decoder ready in {:.0} ms", 1e3 * started.elapsed().as_secs_f64());
    for guidance in [1.0, 2.0] {
        let sampling = mambo_model::sampler::Sampling { guidance, window: 0, ..experiment.sampling.clone() };
        let started = Instant::now();
        let count = Generator::new(stepper.clone(), 21.5, Some(&caption), &sampling, 1)?.take(frames).count();
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "guidance {guidance}: {count} frames in {seconds:.3} s, {:.3} ms a frame",
            1e3 * seconds / count as f64
        );
    }
    Ok(())
}
