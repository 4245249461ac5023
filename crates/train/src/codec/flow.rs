//! The flow decoder by gradient descent: random crops, random levels, random times.

use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::{Device, Tensor, TensorData};
use mambo_model::codec::{FlowNetwork, HouseCodec, LEVEL_CHOICES};
use mambo_model::ops::with_precision;
use mambo_model::parameters::Parameters;
use mambo_model::random;
use rayon::prelude::*;

use super::{CodecExperiment, CodecTrainError, TrackSpectrum};
use crate::checkpoint;
use crate::config::precision;
use crate::optim::Optimizer;
use crate::run::RunFolder;
use crate::track::Tracker;

/// Crops in the fixed validation set.
const VALIDATION: usize = 64;

/// Network inputs and targets of a batch, row-major; a single item has `b` = 1.
#[derive(Default)]
struct Batch {
    /// Scaled noisy values, `[b, t, width]`.
    noisy: Vec<f32>,
    /// Latents, `[b, t, latent]`.
    latents: Vec<f32>,
    /// What the network should say, `[b, t, width]`.
    target: Vec<f32>,
    times: Vec<f32>,
    choices: Vec<usize>,
}

/// One track ready to be cropped: spectrum, codes and place in the corpus.
struct Source<'a> {
    spectrum: &'a TrackSpectrum,
    codes: Vec<u16>,
}

/// Trains from step `first`; returns the steps finished and the last validation loss.
#[allow(clippy::too_many_arguments)]
pub fn train(
    experiment: &CodecExperiment,
    folder: &RunFolder,
    train: &[TrackSpectrum],
    valid: &[TrackSpectrum],
    first: u64,
    stop: &AtomicBool,
    parameters: &mut Parameters,
    optimizer: &mut Optimizer,
) -> Result<(u64, f64), CodecTrainError> {
    let settings = &experiment.flow;
    let codec = HouseCodec::new(experiment.codec.clone(), parameters.clone());
    let train = sources(experiment, &codec, train);
    let valid = sources(experiment, &codec, valid);
    let mut tracker = Tracker::open(folder.root(), first)?;
    let device = Device::flex().autodiff();
    let precision = precision(settings.bf16);
    let mut validation = f64::NAN;
    let mut done = first;
    for step in first..settings.steps {
        let batch = draw(experiment, &codec, &train, settings.batch, "flow batch", step);
        let network = FlowNetwork::new(&experiment.codec.flow, parameters, &device);
        let loss = with_precision(precision, || loss(&network, &batch, experiment, &device));
        let value = f64::from(loss.clone().into_scalar::<f32>());
        let gradients = network.bound().gradients(loss.backward());
        let report = optimizer.step(step, parameters, &gradients);
        done = step + 1;
        let last = done == settings.steps || stop.load(Ordering::SeqCst);
        let mut row = vec![("loss", value), ("rate", report.rate), ("gradient_norm", report.gradient_norm)];
        if done.is_multiple_of(settings.every) || last {
            validation = validate(experiment, &codec, &valid, &optimizer.averaged(parameters));
            row.push(("validation", validation));
            tracker.log(done, &row)?;
            tracker.curve("house codec: flow loss", &["loss", "validation"])?;
            checkpoint::save(&folder.checkpoint(), experiment.seed, done, &(), parameters, optimizer)?;
        } else {
            tracker.log(done, &row)?;
        }
        if done.is_multiple_of(20) || last {
            let left = tracker.seconds_left(done, settings.steps).unwrap_or(0.0);
            tracing::info!(
                step = done,
                of = settings.steps,
                loss = format!("{value:.4}"),
                validation = format!("{validation:.4}"),
                rate = format!("{:.2e}", report.rate),
                left = format!("{:.0} s", left),
                "flow"
            );
        }
        if last {
            break;
        }
    }
    if validation.is_nan() {
        validation = validate(experiment, &codec, &valid, &optimizer.averaged(parameters));
    }
    Ok((done, validation))
}

fn sources<'a>(experiment: &CodecExperiment, codec: &HouseCodec, spectra: &'a [TrackSpectrum]) -> Vec<Source<'a>> {
    spectra
        .iter()
        .filter(|spectrum| spectrum.tokens() >= experiment.flow.tokens)
        .map(|spectrum| {
            let mut rows = spectrum.rows(0..spectrum.tokens());
            codec.normalise(&mut rows);
            Source { spectrum, codes: codec.quantizer().encode(&codec.project(&rows)) }
        })
        .collect()
}

/// A batch that depends on (seed, name, index) alone. Tracks are drawn by their length.
fn draw(
    experiment: &CodecExperiment,
    codec: &HouseCodec,
    sources: &[Source<'_>],
    size: usize,
    name: &str,
    index: u64,
) -> Batch {
    let total: usize = sources.iter().map(|source| source.spectrum.tokens()).sum();
    let items: Vec<Batch> = (0..size)
        .into_par_iter()
        .map(|item| {
            let mut rng = random::stream(experiment.seed, name, index * size as u64 + item as u64);
            let mut place = random::below(&mut rng, total);
            let source = sources
                .iter()
                .find(|source| {
                    let tokens = source.spectrum.tokens();
                    let here = place < tokens;
                    place -= if here { 0 } else { tokens };
                    here
                })
                .expect("a place below the total lies in a track");
            crop(experiment, codec, source, (item as f32, size as f32), &mut rng)
        })
        .collect();
    let mut batch = Batch::default();
    for item in items {
        batch.noisy.extend(item.noisy);
        batch.latents.extend(item.latents);
        batch.target.extend(item.target);
        batch.times.extend(item.times);
        batch.choices.extend(item.choices);
    }
    batch
}

/// One item of a batch. Times are stratified over the batch.
fn crop(
    experiment: &CodecExperiment,
    codec: &HouseCodec,
    source: &Source<'_>,
    (item, size): (f32, f32),
    rng: &mut rand_chacha::ChaCha8Rng,
) -> Batch {
    let (config, length) = (&experiment.codec, experiment.flow.tokens);
    let all = source.spectrum.tokens();
    let start = random::below(rng, all - length + 1);
    let choice = random::below(rng, LEVEL_CHOICES.len());
    // The middle of the range of times is where the network has most to say.
    let place = (item + random::uniform(rng)) / size;
    let time = place.mul_add(0.98, 0.01);
    // The linear mean looks a few tokens around: cut them with the crop where they exist.
    let from = start.saturating_sub(config.context);
    let to = (start + length + config.context).min(all);
    let codes: Vec<u16> = (0..config.spec.levels)
        .flat_map(|level| source.codes[level * all + from..level * all + to].iter().copied())
        .collect();
    let latents = codec.quantizer().decode(&codes, to - from, LEVEL_CHOICES[choice]);
    let mean = codec.mean(&latents, choice);
    let (width, latent) = (config.width(), config.latent);
    let mut rows = source.spectrum.rows(start..start + length);
    codec.normalise(&mut rows);
    let deviation = codec.deviation(choice);
    let (mut noisy, mut target) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
    let power = (1.0 - time).powi(2) + time * time;
    let scale = power.sqrt();
    let mean = &mean[(start - from) * width..(start - from + length) * width];
    for (index, (value, mean)) in rows.iter().zip(mean).enumerate() {
        let data = (value - mean) / deviation[index % width];
        let noise = random::normal(rng);
        let mixed = (1.0 - time) * data + time * noise;
        noisy.push(mixed / scale);
        target.push(scale * ((noise - data) - (2.0 * time - 1.0) / power * mixed));
    }
    let latents = latents[(start - from) * latent..(start - from + length) * latent].to_vec();
    Batch { noisy, latents, target, times: vec![time], choices: vec![choice] }
}

fn loss(network: &FlowNetwork, batch: &Batch, experiment: &CodecExperiment, device: &Device) -> Tensor<1> {
    let (size, tokens) = (batch.times.len(), experiment.flow.tokens);
    let tensor = |values: &[f32], width: usize| {
        Tensor::<3>::from_data(TensorData::new(values.to_vec(), [size, tokens, width]), device)
    };
    let (width, latent) = (experiment.codec.width(), experiment.codec.latent);
    let said =
        network.forward(tensor(&batch.noisy, width), tensor(&batch.latents, latent), &batch.times, &batch.choices);
    let wrong = said - tensor(&batch.target, width);
    (wrong.clone() * wrong).mean()
}

/// Loss of the averaged weights on crops that never change.
fn validate(experiment: &CodecExperiment, codec: &HouseCodec, valid: &[Source<'_>], averaged: &Parameters) -> f64 {
    let device = Device::flex();
    let network = FlowNetwork::new(&experiment.codec.flow, averaged, &device);
    let size = experiment.flow.batch;
    let rounds = VALIDATION.div_ceil(size);
    let sum: f64 = (0..rounds as u64)
        .map(|index| {
            let batch = draw(experiment, codec, valid, size, "flow validation", index);
            f64::from(loss(&network, &batch, experiment, &device).into_scalar::<f32>())
        })
        .sum();
    sum / rounds as f64
}
