//! The fitted half of the codec: normalisation, projection, codebooks and the linear mean. No gradient descent.

use mambo_model::codec::{LEVEL_CHOICES, ResidualQuantizer, with_context};
use mambo_model::parameters::Parameters;
use mambo_model::random;
use nalgebra::DMatrix;

use super::corpus::TrackSpectrum;
use super::linear::{cross_product, leading_components, multiply, ridge_solve};
use super::{CodecExperiment, CodecTrainError};

/// Low bands on each side that count as the envelope of a band.
const ENVELOPE: usize = 7;

/// Fits everything but the flow to the spectra and writes it into `parameters`.
pub fn fit(
    experiment: &CodecExperiment,
    spectra: &[TrackSpectrum],
    parameters: &mut Parameters,
) -> Result<(), CodecTrainError> {
    let config = &experiment.codec;
    let bands = config.layout.bands();
    let (mean, deviation) = band_statistics(spectra, bands);
    set(parameters, "bands.mean", &mean);
    set(parameters, "bands.deviation", &deviation);

    let rows = sample_rows(spectra, experiment.fit.tokens, experiment.seed, &mean, &deviation);
    let weight = projection(experiment, &rows);
    tracing::info!(tokens = rows.len() / config.width(), "projection fitted");
    set(parameters, "project.weight", &weight);

    let latents = multiply(&rows, config.width(), &weight, config.latent);
    let quantizer = ResidualQuantizer::fit(
        &latents,
        config.latent,
        config.spec.levels,
        config.spec.cardinality,
        experiment.fit.rounds,
        experiment.seed,
        &mut |level, left| tracing::info!(level = level + 1, left = format!("{left:.4}"), "codebook fitted"),
    );
    set(parameters, "codebooks", quantizer.vectors());
    drop(rows);
    fit_means(experiment, spectra, &quantizer, &weight, (&mean, &deviation), parameters)
}

fn set(parameters: &mut Parameters, name: &str, values: &[f32]) {
    parameters.values_mut(name).expect("listed in HouseConfig::parameters").copy_from_slice(values);
}

/// Mean and standard deviation of every band over all frames.
fn band_statistics(spectra: &[TrackSpectrum], bands: usize) -> (Vec<f32>, Vec<f32>) {
    let (mut sum, mut square, mut count) = (vec![0.0f64; bands], vec![0.0f64; bands], 0usize);
    for spectrum in spectra {
        for frame in spectrum.rows(0..spectrum.tokens()).chunks_exact(bands) {
            for ((sum, square), &value) in sum.iter_mut().zip(&mut square).zip(frame) {
                *sum += f64::from(value);
                *square += f64::from(value).powi(2);
            }
            count += 1;
        }
    }
    let count = count.max(1) as f64;
    let mean: Vec<f32> = sum.iter().map(|s| (s / count) as f32).collect();
    let deviation = sum.iter().zip(&square).map(|(s, q)| (q / count - (s / count).powi(2)).max(1e-4).sqrt() as f32);
    (mean, deviation.collect())
}

fn normalise(rows: &mut [f32], mean: &[f32], deviation: &[f32]) {
    for row in rows.chunks_exact_mut(mean.len()) {
        for ((value, mean), deviation) in row.iter_mut().zip(mean).zip(deviation) {
            *value = (*value - mean) / deviation;
        }
    }
}

/// Up to `count` normalised tokens drawn from all tracks, `[n, width]`.
fn sample_rows(spectra: &[TrackSpectrum], count: usize, seed: u64, mean: &[f32], deviation: &[f32]) -> Vec<f32> {
    let total: usize = spectra.iter().map(TrackSpectrum::tokens).sum();
    let keep = (count as f64 / total.max(1) as f64).min(1.0);
    let mut rng = random::stream(seed, "fit rows", 0);
    let mut out = Vec::new();
    for spectrum in spectra {
        for token in 0..spectrum.tokens() {
            if f64::from(random::uniform(&mut rng)) < keep {
                out.extend(spectrum.rows(token..token + 1));
            }
        }
    }
    normalise(&mut out, mean, deviation);
    out
}

/// The projection `[width, latent]`: principal components of the normalised token beside its partials (low bands
/// minus their envelope, mean over the frames of the token, times `fit.detail`), variances raised to the power
/// `1 - fit.whitening`, scaled to unit power.
fn projection(experiment: &CodecExperiment, rows: &[f32]) -> Vec<f32> {
    let (config, fit) = (&experiment.codec, &experiment.fit);
    let (width, bands, low) = (config.width(), config.layout.bands(), config.layout.linear);
    let frames = config.frames_per_token();
    let detail = config.layout.detail_matrix(ENVELOPE);
    let mut lift = DMatrix::<f64>::zeros(width + low, width);
    for i in 0..width {
        lift[(i, i)] = 1.0;
    }
    for row in 0..low {
        for frame in 0..frames {
            for column in 0..low {
                lift[(width + row, frame * bands + column)] =
                    fit.detail * f64::from(detail[row * low + column]) / frames as f64;
            }
        }
    }
    let count = (rows.len() / width) as f64;
    let gram = cross_product(rows, width, rows, width) / count;
    let (vectors, values) = leading_components(&lift * &gram * lift.transpose(), config.latent);
    let mut projected = lift.transpose() * vectors;
    let power: f64 = values.iter().map(|v| v.powf(1.0 - fit.whitening)).sum::<f64>() / values.len() as f64;
    for (mut column, value) in projected.column_iter_mut().zip(&values) {
        column *= value.max(1e-9).powf(-fit.whitening / 2.0) / power.sqrt();
    }
    projected.transpose().iter().map(|&x| x as f32).collect()
}

/// Ridge regression from quantised latents in context to the spectrum, and what it leaves, per choice of levels.
fn fit_means(
    experiment: &CodecExperiment,
    spectra: &[TrackSpectrum],
    quantizer: &ResidualQuantizer,
    weight: &[f32],
    (mean, deviation): (&[f32], &[f32]),
    parameters: &mut Parameters,
) -> Result<(), CodecTrainError> {
    let config = &experiment.codec;
    let (width, inputs) = (config.width(), config.context_width());
    let count = LEVEL_CHOICES.len();
    let mut grams = vec![DMatrix::<f64>::zeros(inputs + 1, inputs + 1); count];
    let mut moments = vec![DMatrix::<f64>::zeros(inputs + 1, width); count];
    let mut squares = vec![0.0f64; width];
    let mut tokens = 0usize;
    let total: usize = spectra.iter().map(TrackSpectrum::tokens).sum();
    let stride = total.div_ceil(experiment.fit.tokens).max(1);
    // Whole tracks, since the regression needs neighbours: every `stride`-th one.
    for spectrum in spectra.iter().step_by(stride) {
        let mut rows = spectrum.rows(0..spectrum.tokens());
        normalise(&mut rows, mean, deviation);
        let codes = quantizer.encode(&multiply(&rows, width, weight, config.latent));
        for (choice, &levels) in LEVEL_CHOICES.iter().enumerate() {
            let latents = quantizer.decode(&codes, spectrum.tokens(), levels);
            let context = with_constant(&with_context(&latents, config.latent, config.context), inputs);
            grams[choice] += cross_product(&context, inputs + 1, &context, inputs + 1);
            moments[choice] += cross_product(&context, inputs + 1, &rows, width);
        }
        for row in rows.chunks_exact(width) {
            for (sum, value) in squares.iter_mut().zip(row) {
                *sum += f64::from(*value).powi(2);
            }
        }
        tokens += spectrum.tokens();
    }
    for choice in 0..count {
        let gram = std::mem::replace(&mut grams[choice], DMatrix::zeros(0, 0));
        let solution =
            ridge_solve(gram.clone(), &moments[choice], experiment.fit.ridge).ok_or(CodecTrainError::Singular)?;
        // What is left per value: y^2 - 2 w.m + w G w, over the tokens.
        let fitted = &gram * &solution;
        let left: Vec<f32> = (0..width)
            .map(|v| {
                let w = solution.column(v);
                let power = squares[v] - 2.0 * w.dot(&moments[choice].column(v)) + w.dot(&fitted.column(v));
                ((power / tokens as f64).max(1e-4)).sqrt() as f32
            })
            .collect();
        let share =
            left.iter().map(|d| f64::from(*d).powi(2)).sum::<f64>() / (squares.iter().sum::<f64>() / tokens as f64);
        tracing::info!(levels = LEVEL_CHOICES[choice], left = format!("{share:.4}"), "linear mean fitted");
        let rows: Vec<f32> = solution.rows(0, inputs).transpose().iter().map(|&x| x as f32).collect();
        let bias: Vec<f32> = solution.row(inputs).iter().map(|&x| x as f32).collect();
        let put = |parameters: &mut Parameters, name: &str, size: usize, values: &[f32]| {
            let all = parameters.values_mut(name).expect("listed in HouseConfig::parameters");
            all[choice * size..(choice + 1) * size].copy_from_slice(values);
        };
        put(parameters, "mean.weight", inputs * width, &rows);
        put(parameters, "mean.bias", width, &bias);
        put(parameters, "mean.deviation", width, &left);
    }
    Ok(())
}

/// Appends a column of ones to `[n, width]`.
fn with_constant(rows: &[f32], width: usize) -> Vec<f32> {
    rows.chunks_exact(width).flat_map(|row| row.iter().copied().chain([1.0])).collect()
}
