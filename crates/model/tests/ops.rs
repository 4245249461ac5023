//! Fused operations against Burn's own, in values and gradients.

#![allow(clippy::unwrap_used)]

use burn::tensor::{Device, Distribution, Int, Tensor, TensorData, activation};
use mambo_kernels::attention::{self, Attention, Columns};
use mambo_kernels::mamba2::{Mamba2Config, Sequences, States, Weights, plain};
use mambo_model::{device, ops};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

fn values(rng: &mut ChaCha8Rng, count: usize, low: f32, high: f32) -> Vec<f32> {
    (0..count).map(|_| low + (high - low) * (rng.next_u32() >> 8) as f32 / (1 << 24) as f32).collect()
}

fn tensor<const D: usize>(data: &[f32], shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(data.to_vec(), shape), device)
}

fn to_vec<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().expect("f32 tensor")
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = b.iter().map(|y| f64::from(*y).powi(2)).sum::<f64>().sqrt();
    let off = a.iter().zip(b).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum::<f64>().sqrt();
    if norm == 0.0 { off } else { off / norm }
}

/// Values and input gradients (for a fixed random weighting of the output) of a function of (x [2, 37, 40], two rows
/// and two tables).
struct Probe {
    x: Vec<f32>,
    row_a: Vec<f32>,
    row_b: Vec<f32>,
    table_a: Vec<f32>,
    table_b: Vec<f32>,
    weighting: Vec<f32>,
}

struct Inputs {
    x: Tensor<3>,
    row_a: Tensor<1>,
    row_b: Tensor<1>,
    table_a: Tensor<2>,
    table_b: Tensor<2>,
}

const SHAPE: [usize; 3] = [2, 37, 40];

impl Probe {
    fn new(table: [usize; 2]) -> Self {
        let rng = &mut ChaCha8Rng::seed_from_u64(1);
        let count = SHAPE.iter().product();
        Self {
            x: values(rng, count, -3.0, 3.0),
            row_a: values(rng, 40, 0.5, 1.5),
            row_b: values(rng, 40, -0.5, 0.5),
            table_a: values(rng, table[0] * table[1], -0.5, 0.5),
            table_b: values(rng, table[0] * table[1], -0.5, 0.5),
            weighting: values(rng, 2 * 37 * 200, -1.0, 1.0),
        }
    }

    fn run(&self, table: [usize; 2], function: impl Fn(Inputs) -> Tensor<3>) -> Vec<Vec<f32>> {
        let device = device::cpu_training();
        let x = tensor(&self.x, SHAPE, &device).require_grad();
        let (row_a, row_b) =
            (tensor(&self.row_a, [40], &device).require_grad(), tensor(&self.row_b, [40], &device).require_grad());
        let (table_a, table_b) = (
            tensor(&self.table_a, table, &device).require_grad(),
            tensor(&self.table_b, table, &device).require_grad(),
        );
        let out = function(Inputs {
            x: x.clone(),
            row_a: row_a.clone(),
            row_b: row_b.clone(),
            table_a: table_a.clone(),
            table_b: table_b.clone(),
        });
        let shape = out.dims();
        let weighting = tensor(&self.weighting[..shape.iter().product()], shape, &device);
        let gradients = (out.clone() * weighting).sum().backward();
        let mut results = vec![to_vec(out)];
        results.extend(x.grad(&gradients).map(to_vec));
        results.extend(row_a.grad(&gradients).map(to_vec));
        results.extend(row_b.grad(&gradients).map(to_vec));
        results.extend(table_a.grad(&gradients).map(to_vec));
        results.extend(table_b.grad(&gradients).map(to_vec));
        results
    }

    fn compare(
        &self,
        name: &str,
        table: [usize; 2],
        fused: impl Fn(Inputs) -> Tensor<3>,
        reference: impl Fn(Inputs) -> Tensor<3>,
    ) {
        let (got, expected) = (self.run(table, fused), self.run(table, reference));
        assert_eq!(got.len(), expected.len(), "{name}: number of gradients");
        for (index, (a, b)) in got.iter().zip(&expected).enumerate() {
            let off = distance(a, b);
            assert!(off < 1e-5, "{name}: result {index} is off by {off:.1e}");
        }
    }
}

fn row(tensor: Tensor<1>) -> Tensor<3> {
    let width = tensor.dims()[0];
    tensor.reshape([1, 1, width])
}

#[test]
fn norms_match_burn() {
    let (probe, table) = (Probe::new([2, 40]), [2, 40]);
    probe.compare(
        "rms_norm",
        table,
        |i| ops::rms_norm(i.x, i.row_a, 1e-5),
        |i| i.x.clone() / (i.x.powi_scalar(2).mean_dim(2) + 1e-5).sqrt() * row(i.row_a),
    );
    let unit = |x: Tensor<3>| {
        let centred = x.clone() - x.mean_dim(2);
        centred.clone() / (centred.powi_scalar(2).mean_dim(2) + 1e-5).sqrt()
    };
    probe.compare(
        "layer_norm",
        table,
        |i| ops::layer_norm(i.x, i.row_a, i.row_b, 1e-5),
        |i| unit(i.x) * row(i.row_a) + row(i.row_b),
    );
    probe.compare(
        "ada_layer_norm",
        table,
        |i| ops::ada_layer_norm(i.x, i.table_a, i.table_b, 1e-5f32),
        |i| unit(i.x) * (i.table_a.reshape([2, 1, 40]) + 1.0) + i.table_b.reshape([2, 1, 40]),
    );
}

#[test]
fn activations_match_burn() {
    let (probe, table) = (Probe::new([2, 40]), [2, 40]);
    probe.compare("gelu", table, |i| ops::gelu(i.x), |i| activation::gelu(i.x));
    probe.compare("silu", table, |i| ops::silu(i.x), |i| activation::silu(i.x));
    probe.compare("bias_gelu", table, |i| ops::bias_gelu(i.x, i.row_a), |i| activation::gelu(i.x + row(i.row_a)));
    probe.compare("add_bias", table, |i| ops::add_bias(i.x, i.row_a), |i| i.x + row(i.row_a));
    // A transposed input is not contiguous.
    let turned = |x: Tensor<3>| x.swap_dims(1, 2);
    probe.compare("gelu of a view", table, |i| ops::gelu(turned(i.x)), |i| activation::gelu(turned(i.x)));
}

#[test]
fn linear_layers_match_burn() {
    let table = [40, 72];
    let probe = Probe::new(table);
    let product = |x: Tensor<3>, w: Tensor<2>| x.reshape([74, 40]).matmul(w).reshape([2, 37, 72]);
    let bias = |i: &Inputs| i.table_b.clone().slice([0..1, 0..72]).reshape([72]);
    probe.compare("linear", table, |i| ops::linear(i.x, i.table_a, None), |i| product(i.x, i.table_a));
    probe.compare(
        "linear with bias",
        table,
        |i| ops::linear(i.x.clone(), i.table_a.clone(), Some(bias(&i))),
        |i| product(i.x.clone(), i.table_a.clone()) + row(bias(&i)),
    );
    let table = [72, 40];
    probe.compare(
        "linear_turned",
        table,
        |i| ops::linear_turned(i.x, i.table_a, None),
        |i| product(i.x, i.table_a.transpose()),
    );
}

#[test]
fn bf16_products_stay_near_in_both_directions_and_end_with_their_scope() {
    for (turned, table) in [(false, [40, 72]), (true, [72, 40])] {
        let probe = Probe::new(table);
        let layer = move |i: Inputs| match turned {
            true => ops::linear_turned(i.x, i.table_a, None),
            false => ops::linear(i.x, i.table_a, None),
        };
        let exact = probe.run(table, layer);
        // The backward pass runs outside the scope, and still as the forward pass did.
        let rounded = probe.run(table, |i| ops::with_precision(ops::MatrixPrecision::Bf16, || layer(i)));
        for (a, b) in rounded.iter().zip(&exact) {
            let off = distance(a, b);
            let expected = if ops::bf16_unavailable().is_none() { 1e-4..6e-3 } else { 0.0..1e-6 };
            assert!(expected.contains(&off), "{off:e}");
        }
        assert_eq!(probe.run(table, layer), exact);
    }
}

#[test]
fn depthwise_convolution_matches_burn() {
    let table = [7, 40];
    let probe = Probe::new(table);
    probe.compare(
        "depthwise_conv1d",
        table,
        |i| ops::depthwise_conv1d(i.x, i.table_a, i.row_a),
        |i| {
            let device = i.x.device();
            let edge = Tensor::<3>::zeros([2, 3, 40], &device);
            let padded = Tensor::cat(vec![edge.clone(), i.x, edge], 1);
            let mut sum = row(i.row_a).expand([2, 37, 40]);
            for tap in 0..7 {
                sum = sum + padded.clone().narrow(1, tap, 37) * i.table_a.clone().narrow(0, tap, 1).reshape([1, 1, 40]);
            }
            sum
        },
    );
}

#[test]
fn frames_in_reverse_match_burn() {
    let table = [1, 1];
    Probe::new(table).compare("reverse_frames", table, |i| ops::reverse_frames(i.x), |i| i.x.flip([1]));
}

#[test]
fn dropout_masks_alike_in_both_directions() {
    let (probe, table) = (Probe::new([2, 40]), [2, 40]);
    let results = probe.run(table, |i| ops::dropout(i.x, 0.3, 5));
    let dropped = results[0].iter().filter(|value| **value == 0.0).count();
    assert!((600..1200).contains(&dropped), "{dropped} of 2960");
    for ((out, d_x), weight) in results[0].iter().zip(&results[1]).zip(&probe.weighting) {
        assert_eq!(*out == 0.0, *d_x == 0.0);
        if *d_x != 0.0 {
            assert!((d_x - weight / 0.7).abs() < 1e-5);
        }
    }
    probe.compare(
        "residual",
        table,
        |i| ops::residual(i.x.clone(), i.x * row(i.row_a), 0.0, 0),
        |i| i.x.clone() + i.x * row(i.row_a),
    );
    let joined = probe.run(table, |i| ops::residual(i.x.clone() * 0.0, i.x, 0.3, 5));
    assert_eq!(joined[0], results[0]);
    assert_eq!(joined[1], results[1]);
}

#[test]
fn cross_entropy_matches_burn() {
    let device = device::cpu_training();
    let logits = Tensor::<2>::random([50, 30], Distribution::Normal(0.0, 2.0), &device);
    let targets: Vec<i32> = (0..50).map(|row| (row * 7) % 30).collect();
    let gradient_of = |loss: Tensor<1>, leaf: &Tensor<2>| {
        let gradients = (loss.clone() * 3.0).backward();
        (to_vec(loss)[0], to_vec(leaf.grad(&gradients).expect("logits are tracked")))
    };
    let leaf = logits.clone().detach().require_grad();
    let (loss, gradient) = gradient_of(ops::cross_entropy(leaf.clone(), targets.clone(), 0.1), &leaf);
    let reference = logits.detach().require_grad();
    let log_probabilities = activation::log_softmax(reference.clone(), 1);
    let indices = Tensor::<2, Int>::from_data(TensorData::new(targets, [50, 1]), &device);
    let picked = log_probabilities.clone().gather(1, indices).mean();
    let expected = -(picked * 0.9) - log_probabilities.mean() * 0.1;
    let (expected, expected_gradient) = gradient_of(expected, &reference);
    assert!((loss - expected).abs() < 1e-5, "{loss} against {expected}");
    assert!(distance(&gradient, &expected_gradient) < 1e-5);
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|value| *value as f32).collect()
}

/// The mixer in Burn's graph, with and without states, with and without saved scans, against the recurrence in f64.
#[test]
fn mixer_matches_the_recurrence() {
    let config = Mamba2Config { inner: 64, state: 24, heads: 4, groups: 1, chunk: 32 };
    let (batch, frames) = (2, 75);
    let rng = &mut ChaCha8Rng::seed_from_u64(2);
    let channels = config.conv_channels();
    let projected = values(rng, batch * frames * config.projected(), -2.0, 2.0);
    let parameters = [
        values(rng, channels * 4, -0.5, 0.5),
        values(rng, channels, -0.5, 0.5),
        values(rng, 4, -5.0, -1.0),
        values(rng, 4, 0.0, 2.7),
        values(rng, 4, 0.5, 1.5),
        values(rng, 64, 0.5, 1.5),
    ];
    let conv_state = values(rng, batch * config.conv_state_size(), -1.0, 1.0);
    let ssm_state = values(rng, batch * config.ssm_state_size(), -1.0, 1.0);
    let d_output = values(rng, batch * frames * 64, -1.0, 1.0);
    let d_conv = values(rng, conv_state.len(), -1.0, 1.0);
    let d_ssm = values(rng, ssm_state.len(), -0.1, 0.1);

    let exact = parameters.clone().map(|parameter| wide(&parameter));
    let weights = Weights {
        conv_weight: &exact[0],
        conv_bias: &exact[1],
        dt_bias: &exact[2],
        a_log: &exact[3],
        d_skip: &exact[4],
        norm: &exact[5],
    };
    let (exact_projected, exact_conv, exact_ssm) = (wide(&projected), wide(&conv_state), wide(&ssm_state));
    let (exact_d_output, exact_d_conv, exact_d_ssm) = (wide(&d_output), wide(&d_conv), wide(&d_ssm));

    for (with_states, padding, recompute) in
        [(false, vec![], false), (false, vec![3, 40], true), (true, vec![], false), (true, vec![], true)]
    {
        let sequences = Sequences { batch, frames, padding: &padding };
        let initial = with_states.then_some(States { conv: &exact_conv, ssm: &exact_ssm });
        let d_final = with_states.then_some(States { conv: &exact_d_conv, ssm: &exact_d_ssm });
        let trace = plain::forward(&config, sequences, &exact_projected, &weights, initial);
        let expected =
            plain::backward(&config, sequences, &exact_projected, &weights, initial, &trace, &exact_d_output, d_final);

        let device = device::cpu_training();
        let x = tensor(&projected, [batch, frames, config.projected()], &device).require_grad();
        let leaf = |index: usize| tensor(&parameters[index], [parameters[index].len()], &device).require_grad();
        let mixer = ops::MixerWeights {
            conv_weight: tensor(&parameters[0], [channels, 4], &device).require_grad(),
            conv_bias: leaf(1),
            dt_bias: leaf(2),
            a_log: leaf(3),
            d_skip: leaf(4),
            norm_weight: leaf(5),
        };
        let states = ops::MixerStates {
            conv_bcw: tensor(&conv_state, [batch, channels, 3], &device).require_grad(),
            ssm_bhpn: tensor(&ssm_state, [batch, 4, 16, 24], &device).require_grad(),
        };
        let weighting = tensor(&d_output, [batch, frames, 64], &device);
        let (output, loss) = if with_states {
            let (output, last) = ops::mamba2_mixer_with_states(
                x.clone(),
                mixer.clone(),
                states.clone(),
                config,
                padding.clone(),
                recompute,
            );
            let loss = (output.clone() * weighting).sum()
                + (last.conv_bcw.clone() * tensor(&d_conv, [batch, channels, 3], &device)).sum()
                + (last.ssm_bhpn.clone() * tensor(&d_ssm, [batch, 4, 16, 24], &device)).sum();
            assert!(distance(&to_vec(last.ssm_bhpn), &narrow(&trace.ssm_state)) < 1e-5);
            assert!(distance(&to_vec(last.conv_bcw), &narrow(&trace.conv_state)) < 1e-6);
            (output, loss)
        } else {
            let output = ops::mamba2_mixer(x.clone(), mixer.clone(), config, padding.clone(), recompute);
            (output.clone(), (output * weighting).sum())
        };
        assert!(distance(&to_vec(output), &narrow(&trace.output)) < 1e-5);
        let gradients = loss.backward();
        let of = |tensor: Option<Vec<f32>>| tensor.expect("tracked");
        let mut pairs = vec![
            (of(x.grad(&gradients).map(to_vec)), expected.projected),
            (of(mixer.conv_weight.grad(&gradients).map(to_vec)), expected.conv_weight),
            (of(mixer.conv_bias.grad(&gradients).map(to_vec)), expected.conv_bias),
            (of(mixer.dt_bias.grad(&gradients).map(to_vec)), expected.dt_bias),
            (of(mixer.a_log.grad(&gradients).map(to_vec)), expected.a_log),
            (of(mixer.d_skip.grad(&gradients).map(to_vec)), expected.d_skip),
            (of(mixer.norm_weight.grad(&gradients).map(to_vec)), expected.norm),
        ];
        if with_states {
            pairs.push((of(states.conv_bcw.grad(&gradients).map(to_vec)), expected.conv_state));
            pairs.push((of(states.ssm_bhpn.grad(&gradients).map(to_vec)), expected.ssm_state));
        }
        for (index, (got, expected)) in pairs.iter().enumerate() {
            let off = distance(got, &narrow(expected));
            assert!(off < 2e-5, "gradient {index} is off by {off:.1e}, with states {with_states}, padding {padding:?}");
        }
    }
}

/// Attention in Burn's graph against its definition in f64: to itself, with earlier keys, to another sequence.
#[test]
fn attention_matches_its_definition() {
    let (batch, frames, heads, head_width, width) = (2, 70, 3, 12, 36);
    let rng = &mut ChaCha8Rng::seed_from_u64(3);
    let projected = values(rng, batch * frames * 3 * width, -2.0, 2.0);
    let other = values(rng, batch * 90 * 2 * width, -2.0, 2.0);
    let d_output = values(rng, batch * frames * width, -1.0, 1.0);
    let device = device::cpu_training();
    let rows = |data: &[f32], from: usize, to: usize, stride: usize| -> Vec<f32> {
        data.chunks_exact(stride).flat_map(|row| row[from..to].to_vec()).collect()
    };
    let (query, own) = (rows(&projected, 0, width, 3 * width), rows(&projected, width, 3 * width, 3 * width));

    for (name, positions, padding) in [
        ("self", 0, vec![]),
        ("self", 0, vec![8, 0]),
        ("with cache", 5, vec![]),
        ("with cache", 90, vec![3, 95]),
        ("cross", 90, vec![]),
        ("cross", 21, vec![0, 6]),
    ] {
        let own_keys = if name == "cross" { 0 } else { frames };
        let keys = positions + own_keys;
        // Keys and values of each sequence: those of the second input, then its own.
        let seen: Vec<f32> = (0..batch)
            .flat_map(|sequence| {
                let first = &other[sequence * positions * 2 * width..][..positions * 2 * width];
                let last = &own[sequence * frames * 2 * width..][..own_keys * 2 * width];
                [first, last].concat()
            })
            .collect();
        let causal = name != "cross";
        let sizes = Attention { batch, queries: frames, keys, heads, head_width, causal, padding: &padding };
        let (exact_query, exact_seen) = (wide(&query), wide(&seen));
        let ([q], [k, v]) = (Columns::split(&exact_query, [width]), Columns::split(&exact_seen, [width; 2]));
        let output = attention::plain::forward(&sizes, q, k, v);
        let expected = attention::plain::backward(&sizes, q, k, v, &wide(&d_output));

        let second = tensor(&other[..batch * positions * 2 * width], [batch, positions, 2 * width], &device);
        let second = second.require_grad();
        let first = if causal { (&projected, 3 * width) } else { (&query, width) };
        let first = tensor(first.0, [batch, frames, first.1], &device).require_grad();
        let out = match name {
            "self" => ops::self_attention(first.clone(), heads, padding.clone()),
            "cross" => ops::cross_attention(first.clone(), second.clone(), heads, padding.clone()),
            _ => ops::self_attention_with_cache(first.clone(), second.clone(), heads, padding.clone()),
        };
        let gradients = (out.clone() * tensor(&d_output, [batch, frames, width], &device)).sum().backward();
        let d_first = to_vec(first.grad(&gradients).expect("tracked"));
        let d_second = second.grad(&gradients).map(to_vec).unwrap_or_default();

        // Their gradients in the same order as the keys and values above.
        let stride = if causal { 3 * width } else { width };
        let d_own = rows(&d_first, width.min(stride), stride, stride);
        let part = |data: &[f32], sequence: usize, rows: usize| -> Vec<f32> {
            data[sequence * rows * 2 * width..][..rows * 2 * width].to_vec()
        };
        let got: Vec<f32> = (0..batch)
            .flat_map(|sequence| [part(&d_second, sequence, positions), part(&d_own, sequence, own_keys)].concat())
            .collect();
        let pairs = [
            ("output", to_vec(out), output),
            ("query", rows(&d_first, 0, width, stride), expected.query),
            ("key", rows(&got, 0, width, 2 * width), expected.key),
            ("value", rows(&got, width, 2 * width, 2 * width), expected.value),
        ];
        for (what, got, expected) in pairs {
            let off = distance(&got, &narrow(&expected));
            assert!(off < 1e-5, "{name} with padding {padding:?}: {what} is off by {off:.1e}");
        }
    }
}

#[test]
fn inference_runs_without_a_graph() {
    let device = device::cpu();
    let x = Tensor::<2>::ones([3, 8], &device);
    let out = to_vec(ops::rms_norm(x, Tensor::<1>::ones([8], &device) * 2.0, 0.0));
    assert!(out.iter().all(|value| (value - 2.0).abs() < 1e-6));
}
