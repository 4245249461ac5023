//! Laws of the Mamba layer: equations, published initialisation, forward == fold(step), cuts, padding; fused == plain.
#![allow(clippy::unwrap_used)]

#[path = "laws/closeness.rs"]
mod closeness;

use burn::tensor::{Device, Tensor, TensorData};
use closeness::{assert_close, floats, noise};
use mambo_model::ops;
use mambo_model::parameters::{Initialiser, Parameters};
use mambo_model::ssm::{Mamba1, Mamba1Config, Mamba1State};
use proptest::prelude::*;

const WIDTH: usize = 24;

fn layer() -> Mamba1Config {
    Mamba1Config { d_model: WIDTH, d_state: 6, expand: 2 }
}

fn layer_parameters(config: &Mamba1Config, seed: u64) -> Parameters {
    let mut parameters = Parameters::new();
    config.init("m", 1, &mut Initialiser::seeded(seed), &mut parameters);
    // The default time steps are tiny; larger ones make decay and state matter in few frames.
    let dt = parameters.values_mut("m.dt_proj.bias").unwrap();
    dt.iter_mut().for_each(|value| *value += 3.0);
    parameters
}

fn tensor3(values: &[f32], shape: [usize; 3], device: &Device) -> Tensor<3> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

/// A scalar that depends on all outputs and the final state, each place with its own weight.
fn probe(y_btd: Tensor<3>, state: &Mamba1State, seed: u64) -> Tensor<1> {
    let weigh = |tensor: &Tensor<3>, seed: u64| {
        let count = tensor.dims().iter().product::<usize>();
        let weights = Tensor::<1>::from_data(TensorData::new(noise(seed, count), [count]), &tensor.device());
        (tensor.clone().reshape([count]) * weights).sum()
    };
    weigh(&y_btd, seed) + weigh(&state.conv_biw, seed + 1) + weigh(&state.ssm_bin, seed + 2)
}

/// What one run gives.
struct Run {
    output: Vec<f32>,
    conv: Vec<f32>,
    ssm: Vec<f32>,
    /// Of the parameters in their order, then of the input.
    gradients: Vec<Vec<f32>>,
}

/// Runs `body` on an autodiff device.
fn with_gradients(
    parameters: &Parameters,
    input: &[f32],
    shape: [usize; 3],
    body: impl Fn(&Mamba1, Tensor<3>) -> (Tensor<3>, Mamba1State),
) -> Run {
    let device = Device::flex().autodiff();
    let bound = parameters.bind(&device);
    let model = Mamba1::new(&layer(), "m", &bound);
    let u_btd = tensor3(input, shape, &device).require_grad();
    let (y_btd, state) = body(&model, u_btd.clone());
    let (output, conv, ssm) = (floats(&y_btd), floats(&state.conv_biw), floats(&state.ssm_bin));
    let gradients = probe(y_btd, &state, 77).backward();
    let of_input = floats(&u_btd.grad(&gradients).unwrap());
    let mut gradients = bound.gradients(gradients);
    gradients.push(of_input);
    Run { output, conv, ssm, gradients }
}

fn assert_same(parameters: &Parameters, a: &Run, b: &Run) {
    assert_close("output", &a.output, &b.output, 2e-5);
    assert_close("conv state", &a.conv, &b.conv, 2e-5);
    assert_close("ssm state", &a.ssm, &b.ssm, 2e-5);
    for (i, (a, b)) in a.gradients.iter().zip(&b.gradients).enumerate() {
        let name = parameters.list().get(i).map_or("input", |parameter| parameter.name.as_str());
        assert_close(name, a, b, 1e-3);
    }
}

fn fused(model: &Mamba1, u_btd: Tensor<3>, padding: &[usize]) -> (Tensor<3>, Mamba1State) {
    let start = model.start(u_btd.dims()[0]);
    let (y, state) = model.forward(u_btd, padding, Some(start));
    (y, state.unwrap())
}

fn folded(model: &Mamba1, u_btd: Tensor<3>) -> (Tensor<3>, Mamba1State) {
    let [batch, frames, width] = u_btd.dims();
    let mut state = model.start(batch);
    let mut outputs = Vec::new();
    for t in 0..frames {
        let u_bd = u_btd.clone().narrow(1, t, 1).reshape([batch, width]);
        let (y_bd, next) = model.step(u_bd, state);
        outputs.push(y_bd.reshape([batch, 1, width]));
        state = next;
    }
    (Tensor::cat(outputs, 1), state)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]

    #[test]
    fn forward_equals_its_steps_in_outputs_state_and_gradients(
        seed in 0u64..1000, batch in 1usize..3, frames in 1usize..41,
    ) {
        let parameters = layer_parameters(&layer(), seed);
        let shape = [batch, frames, WIDTH];
        let input = noise(seed + 1, shape.iter().product());
        let whole = with_gradients(&parameters, &input, shape, |model, u| fused(model, u, &[]));
        let plain = with_gradients(&parameters, &input, shape, |model, u| model.forward_plain(u, &[], model.start(batch)));
        let steps = with_gradients(&parameters, &input, shape, folded);
        assert_same(&parameters, &whole, &steps);
        assert_same(&parameters, &whole, &plain);
    }

    #[test]
    fn a_sequence_may_be_cut_anywhere(seed in 0u64..1000, frames in 2usize..80, cut in any::<prop::sample::Index>()) {
        let parameters = layer_parameters(&layer(), seed);
        let shape = [1, frames, WIDTH];
        let input = noise(seed, frames * WIDTH);
        let cut = 1 + cut.index(frames - 1);
        let whole = with_gradients(&parameters, &input, shape, |model, u| fused(model, u, &[]));
        let joined = with_gradients(&parameters, &input, shape, |model, u| {
            let (first, between) = fused(model, u.clone().narrow(1, 0, cut), &[]);
            let (second, end) = model.forward(u.narrow(1, cut, frames - cut), &[], Some(between));
            (Tensor::cat(vec![first, second], 1), end.unwrap())
        });
        assert_same(&parameters, &whole, &joined);
        let device = Device::flex();
        let model = Mamba1::new(&layer(), "m", &parameters.bind(&device));
        let (fresh, none) = model.forward(tensor3(&input, shape, &device), &[], None);
        assert!(none.is_none());
        assert_eq!(floats(&fresh), whole.output);
    }

    #[test]
    fn padding_in_front_is_as_if_absent(seed in 0u64..1000, padding in 1usize..9, frames in 1usize..12) {
        let parameters = layer_parameters(&layer(), seed);
        let total = padding + frames;
        // Padding holds garbage on purpose; the second sequence has none.
        let mut input: Vec<f32> = noise(seed, 2 * total * WIDTH);
        input[..padding * WIDTH].iter_mut().for_each(|value| *value *= 50.0);
        let counts = [padding, 0];
        let shape = [2, total, WIDTH];
        let whole = with_gradients(&parameters, &input, shape, |model, u| {
            let (y, state) = fused(model, u, &counts);
            (y.narrow(1, padding, frames), state)
        });
        let plain = with_gradients(&parameters, &input, shape, |model, u| {
            let (y, state) = model.forward_plain(u, &counts, model.start(2));
            (y.narrow(1, padding, frames), state)
        });
        assert_same(&parameters, &whole, &plain);
        let real = &input[padding * WIDTH..total * WIDTH];
        let alone = with_gradients(&parameters, real, [1, frames, WIDTH], |model, u| fused(model, u, &[]));
        assert_close("alone", &alone.output, &whole.output[..frames * WIDTH], 2e-5);
        assert_close("state alone", &alone.ssm, &whole.ssm[..whole.ssm.len() / 2], 2e-5);
    }
}

/// The layer's equations in f64 loops, straight from the paper; independent of every tensor operation.
fn equations(config: &Mamba1Config, parameters: &Parameters, input: &[f32], frames: usize) -> Vec<f64> {
    let get = |name: &str| -> Vec<f64> {
        parameters.get(&format!("m.{name}")).unwrap().values.iter().map(|&value| f64::from(value)).collect()
    };
    let (inner, size, rank) = (config.d_inner(), config.d_state, config.dt_rank());
    let (w_in, w_conv, b_conv, w_x) =
        (get("in_proj.weight"), get("conv1d.weight"), get("conv1d.bias"), get("x_proj.weight"));
    let (w_dt, b_dt, w_out) = (get("dt_proj.weight"), get("dt_proj.bias"), get("out_proj.weight"));
    let (a_log, d) = (get("A_log"), get("D"));
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let product = |matrix: &[f64], x: &[f64]| -> Vec<f64> {
        matrix.chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
    };
    let mut past = vec![vec![0.0; inner]; 3];
    let mut state = vec![0.0; inner * size];
    let mut out = Vec::new();
    for t in 0..frames {
        let u: Vec<f64> = input[t * config.d_model..][..config.d_model].iter().map(|&x| f64::from(x)).collect();
        let xz = product(&w_in, &u);
        past.push(xz[..inner].to_vec());
        let x: Vec<f64> = (0..inner)
            .map(|c| silu(b_conv[c] + (0..4).map(|j| w_conv[c * 4 + j] * past[t + j][c]).sum::<f64>()))
            .collect();
        let selected = product(&w_x, &x);
        let (b, c) = selected[rank..].split_at(size);
        let steps = product(&w_dt, &selected[..rank]);
        let gated: Vec<f64> = (0..inner)
            .map(|channel| {
                let dt = (1.0 + (steps[channel] + b_dt[channel]).exp()).ln();
                let mut y = d[channel] * x[channel];
                for n in 0..size {
                    let s = &mut state[channel * size + n];
                    *s = (-dt * a_log[channel * size + n].exp()).exp() * *s + dt * b[n] * x[channel];
                    y += *s * c[n];
                }
                y * silu(xz[inner + channel])
            })
            .collect();
        out.extend(product(&w_out, &gated));
    }
    out
}

#[test]
fn layer_matches_the_equations_in_f64() {
    let config = layer();
    let mut parameters = layer_parameters(&config, 5);
    for name in ["m.D", "m.A_log"] {
        let values = parameters.values_mut(name).unwrap();
        let draws = noise(31, values.len());
        values.iter_mut().zip(draws).for_each(|(value, draw)| *value += 0.3 * draw);
    }
    let frames = 37;
    let input = noise(6, frames * WIDTH);
    let expected: Vec<f32> = equations(&config, &parameters, &input, frames).iter().map(|&x| x as f32).collect();
    let device = Device::flex();
    let model = Mamba1::new(&config, "m", &parameters.bind(&device));
    let u = tensor3(&input, [1, frames, WIDTH], &device);
    let (y, _) = model.forward(u.clone(), &[], None);
    assert_close("fused", &expected, &floats(&y), 1e-5);
    let (y, _) = model.forward_plain(u, &[], model.start(1));
    assert_close("plain", &expected, &floats(&y), 1e-5);
}

#[test]
fn initialisation_is_the_published_one() {
    let config = Mamba1Config { d_model: 40, d_state: 16, expand: 2 };
    let mut parameters = Parameters::new();
    config.init("m", 4, &mut Initialiser::seeded(3), &mut parameters);
    let expected: [(&str, &[usize], f32); 6] = [
        ("in_proj.weight", &[160, 40], 40.0),
        ("conv1d.weight", &[80, 1, 4], 4.0),
        ("conv1d.bias", &[80], 4.0),
        ("x_proj.weight", &[35, 80], 80.0),
        ("dt_proj.weight", &[80, 3], 3.0),
        ("out_proj.weight", &[40, 80], 80.0 * 4.0),
    ];
    let get = |name: &str| parameters.get(&format!("m.{name}")).unwrap();
    for (name, shape, fan_in) in expected {
        let (parameter, bound) = (get(name), fan_in.sqrt().recip());
        let largest = parameter.values.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        assert_eq!(parameter.shape, shape, "{name}");
        assert!(largest <= bound && largest > 0.9 * bound, "{name}: {largest} of {bound}");
    }
    for (at, value) in get("A_log").values.iter().enumerate() {
        assert_eq!(*value, ((at % 16 + 1) as f32).ln());
    }
    assert_eq!(get("D").values, [1.0; 80]);
    let steps: Vec<f32> = get("dt_proj.bias").values.iter().map(|bias| bias.exp().ln_1p()).collect();
    assert!(steps.iter().all(|dt| (0.999e-3..0.1001).contains(dt)), "{steps:?}");
    let middle = steps.iter().filter(|dt| **dt < 0.01).count();
    assert!((25..55).contains(&middle), "{middle} of 80 steps below the middle of the range");

    let mut large = Parameters::new();
    Mamba1Config { d_model: 1024, d_state: 16, expand: 2 }.init("m", 1, &mut Initialiser::blank(), &mut large);
    let count: usize = large.list().iter().map(|parameter| parameter.shape.iter().product::<usize>()).sum();
    assert_eq!(count, 6_666_240);
}

#[test]
fn computing_again_changes_no_byte() {
    let config = layer();
    let parameters = layer_parameters(&config, 9);
    let (inner, frames) = (config.d_inner(), 50);
    let run = |recompute: bool| {
        let device = Device::flex().autodiff();
        let bound = parameters.bind(&device);
        let weights = ops::Mamba1Weights {
            conv_weight: bound.tensor::<3>("m.conv1d.weight").reshape([inner, 4]),
            conv_bias: bound.tensor("m.conv1d.bias"),
            x_projection: bound.tensor("m.x_proj.weight"),
            dt_projection: bound.tensor("m.dt_proj.weight"),
            dt_bias: bound.tensor("m.dt_proj.bias"),
            a_log: bound.tensor("m.A_log"),
            d_skip: bound.tensor("m.D"),
        };
        let xz = tensor3(&noise(4, 2 * frames * 2 * inner), [2, frames, 2 * inner], &device).require_grad();
        let y = ops::mamba1_mixer(xz.clone(), weights, config.kernel(), vec![0, 7], recompute);
        let gradients = (y.clone() * y.clone()).sum().backward();
        let of_input = floats(&xz.grad(&gradients).unwrap());
        (floats(&y), of_input, bound.gradients(gradients))
    };
    assert_eq!(run(false), run(true));
}
