//! Laws of the Mamba-2 layer: equations, forward == fold(step), chunks, cuts, padding; fused == plain.
#![allow(clippy::unwrap_used)]

#[path = "laws/closeness.rs"]
mod closeness;

use burn::tensor::{Device, Tensor, TensorData};
use closeness::{assert_close, floats, noise};
use mambo_model::parameters::{Initialiser, Parameters};
use mambo_model::ssm::{Mamba2, Mamba2Config, Mamba2State};
use proptest::prelude::*;

fn mixer(chunk: usize) -> Mamba2Config {
    Mamba2Config { d_model: 24, d_state: 16, expand: 2, head_dim: 16, groups: 1, chunk }
}

fn mixer_parameters(config: &Mamba2Config, seed: u64) -> Parameters {
    let mut parameters = Parameters::new();
    config.init("m", 1, &mut Initialiser::seeded(seed), &mut parameters);
    // The default time steps are tiny; larger ones make decay and state matter in few frames.
    let dt = parameters.values_mut("m.dt_bias").unwrap();
    dt.iter_mut().for_each(|value| *value += 3.0);
    parameters
}

fn tensor3(values: &[f32], shape: [usize; 3], device: &Device) -> Tensor<3> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

/// All gradients together: single ones may be small differences of large terms, where f32 leaves few digits.
fn assert_near(name: &str, a: &[f32], b: &[f32]) {
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let apart = norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied());
    assert!(a.len() == b.len() && apart <= 1e-4, "{name}: {apart:e} apart");
}

/// A scalar that depends on all outputs and the final state, each place with its own weight.
fn probe(y_btd: Tensor<3>, state: &Mamba2State, seed: u64) -> Tensor<1> {
    let device = y_btd.device();
    let weigh = |tensor: Tensor<1>, seed: u64| {
        let count = tensor.dims()[0];
        let weights = Tensor::<1>::from_data(TensorData::new(noise(seed, count), [count]), &device);
        (tensor * weights).sum()
    };
    let flat = |tensor: Tensor<3>| {
        let count = tensor.dims().iter().product::<usize>();
        tensor.reshape([count])
    };
    let count = state.ssm_bhpn.dims().iter().product::<usize>();
    weigh(flat(y_btd), seed)
        + weigh(flat(state.conv_bcw.clone()), seed + 1)
        + weigh(state.ssm_bhpn.clone().reshape([count]), seed + 2)
}

/// Outputs, final state and gradients of a mixer run by `body` on an autodiff device.
fn with_gradients(
    parameters: &Parameters,
    config: &Mamba2Config,
    input: &[f32],
    shape: [usize; 3],
    body: impl Fn(&Mamba2, Tensor<3>) -> (Tensor<3>, Mamba2State),
) -> (Vec<f32>, Vec<f32>, Vec<f32>, Vec<Vec<f32>>) {
    let device = Device::flex().autodiff();
    let bound = parameters.bind(&device);
    let model = Mamba2::new(config, "m", &bound);
    let u_btd = tensor3(input, shape, &device).require_grad();
    let (y_btd, state) = body(&model, u_btd.clone());
    let outputs = (floats(&y_btd), floats(&state.conv_bcw), floats(&state.ssm_bhpn));
    let gradients = probe(y_btd, &state, 77).backward();
    let input_gradient = floats(&u_btd.grad(&gradients).unwrap());
    let mut all = bound.gradients(gradients);
    all.push(input_gradient);
    (outputs.0, outputs.1, outputs.2, all)
}

fn folded(model: &Mamba2, u_btd: Tensor<3>) -> (Tensor<3>, Mamba2State) {
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
    fn mixer_forward_equals_its_steps_in_outputs_state_and_gradients(
        seed in 0u64..1000, batch in 1usize..3, frames in 1usize..21, chunk in 1usize..9,
        grouped in any::<bool>(),
    ) {
        let config = Mamba2Config { groups: if grouped { 3 } else { 1 }, ..mixer(chunk) };
        let parameters = mixer_parameters(&config, seed);
        let shape = [batch, frames, config.d_model];
        let input = noise(seed + 1, shape.iter().product());
        let whole = with_gradients(&parameters, &config, &input, shape, |model, u| {
            let (y, state) = model.forward(u, &[], Some(model.start(batch)));
            (y, state.unwrap())
        });
        let plain = with_gradients(&parameters, &config, &input, shape, |model, u| {
            model.forward_plain(u, &[], model.start(batch))
        });
        let steps = with_gradients(&parameters, &config, &input, shape, folded);
        for other in [&steps, &plain] {
            assert_close("output", &whole.0, &other.0, 2e-5);
            assert_close("conv state", &whole.1, &other.1, 2e-5);
            assert_close("ssm state", &whole.2, &other.2, 2e-5);
            for (i, (a, b)) in whole.3.iter().zip(&other.3).enumerate() {
                let name = parameters.list().get(i).map_or("input", |parameter| parameter.name.as_str());
                assert_close(name, a, b, 1e-3);
            }
        }
    }

    #[test]
    fn mixer_is_invariant_to_chunks_and_to_where_a_sequence_is_cut(
        seed in 0u64..1000, frames in 2usize..40, chunk in 1usize..50, cut in any::<prop::sample::Index>(),
    ) {
        let (one, other) = (mixer(1), mixer(chunk));
        let parameters = mixer_parameters(&one, seed);
        let device = Device::flex();
        let bound = parameters.bind(&device);
        let (a, b) = (Mamba2::new(&one, "m", &bound), Mamba2::new(&other, "m", &bound));
        let u = tensor3(&noise(seed, frames * 24), [1, frames, 24], &device);
        let run = |model: &Mamba2, u: Tensor<3>, state: Mamba2State| {
            let (y, state) = model.forward(u, &[], Some(state));
            (y, state.unwrap())
        };
        let (y, state) = run(&a, u.clone(), a.start(1));
        let (y_chunked, state_chunked) = run(&b, u.clone(), b.start(1));
        let (y_fresh, none) = b.forward(u.clone(), &[], None);
        assert_close("fresh", &floats(&y), &floats(&y_fresh), 2e-5);
        assert!(none.is_none());
        assert_close("chunks", &floats(&y), &floats(&y_chunked), 2e-5);
        assert_close("state", &floats(&state.ssm_bhpn), &floats(&state_chunked.ssm_bhpn), 2e-5);
        let cut = 1 + cut.index(frames - 1);
        let (first, between) = run(&b, u.clone().narrow(1, 0, cut), b.start(1));
        let (second, end) = run(&b, u.narrow(1, cut, frames - cut), between);
        assert_close("cut", &floats(&y), &floats(&Tensor::cat(vec![first, second], 1)), 2e-5);
        assert_close("cut state", &floats(&state.ssm_bhpn), &floats(&end.ssm_bhpn), 2e-5);
        assert_close("cut history", &floats(&state.conv_bcw), &floats(&end.conv_bcw), 2e-5);
    }

    #[test]
    fn padding_in_front_is_as_if_absent(seed in 0u64..1000, padding in 1usize..9, frames in 1usize..12) {
        let config = mixer(4);
        let parameters = mixer_parameters(&config, seed);
        let total = padding + frames;
        // Padding holds garbage on purpose; the second sequence has none.
        let mut input: Vec<f32> = noise(seed, 2 * total * 24);
        input[..padding * 24].iter_mut().for_each(|value| *value *= 50.0);
        let counts = [padding, 0];
        let shape = [2, total, 24];
        let fused = with_gradients(&parameters, &config, &input, shape, |model, u| {
            let (y, state) = model.forward(u, &counts, Some(model.start(2)));
            (y.narrow(1, padding, frames), state.unwrap())
        });
        let plain = with_gradients(&parameters, &config, &input, shape, |model, u| {
            let (y, state) = model.forward_plain(u, &counts, model.start(2));
            (y.narrow(1, padding, frames), state)
        });
        assert_close("output", &fused.0, &plain.0, 2e-5);
        assert_close("history", &fused.1, &plain.1, 2e-5);
        assert_close("state", &fused.2, &plain.2, 2e-5);
        assert_near("gradients", &fused.3.concat(), &plain.3.concat());
        let alone = with_gradients(&parameters, &config, &input[padding * 24..total * 24], [1, frames, 24], |model, u| {
            let (y, state) = model.forward(u, &[], Some(model.start(1)));
            (y, state.unwrap())
        });
        assert_close("alone", &alone.0, &fused.0[..frames * 24], 2e-5);
        assert_close("state alone", &alone.2, &fused.2[..fused.2.len() / 2], 2e-5);
    }
}

/// The layer's equations in f64 loops, straight from the paper; independent of every tensor operation.
fn golden(config: &Mamba2Config, parameters: &Parameters, input: &[f32], frames: usize) -> Vec<f64> {
    let get = |name: &str| -> Vec<f64> {
        parameters.get(&format!("m.{name}")).unwrap().values.iter().map(|&value| f64::from(value)).collect()
    };
    let (inner, size, heads, channels) = (config.d_inner(), config.d_state, config.heads(), config.conv_width());
    let (w_in, w_conv, b_conv, w_out) =
        (get("in_proj.weight"), get("conv1d.weight"), get("conv1d.bias"), get("out_proj.weight"));
    let (dt_bias, a_log, d, gain) = (get("dt_bias"), get("A_log"), get("D"), get("norm.weight"));
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let mut past = vec![vec![0.0; channels]; 3];
    let mut state = vec![0.0; inner * size];
    let mut out = Vec::new();
    for t in 0..frames {
        let u: Vec<f64> = input[t * config.d_model..][..config.d_model].iter().map(|&x| f64::from(x)).collect();
        let z: Vec<f64> = w_in.chunks(config.d_model).map(|row| row.iter().zip(&u).map(|(w, x)| w * x).sum()).collect();
        past.push(z[inner..inner + channels].to_vec());
        let xbc: Vec<f64> = (0..channels)
            .map(|c| silu(b_conv[c] + (0..4).map(|j| w_conv[c * 4 + j] * past[past.len() - 4 + j][c]).sum::<f64>()))
            .collect();
        let mut gated = vec![0.0; inner];
        for c in 0..inner {
            let head = c / config.head_dim;
            let dt = (1.0 + (z[inner + channels + head] + dt_bias[head]).exp()).ln();
            let decay = (-dt * a_log[head].exp()).exp();
            let mut sum = d[head] * xbc[c];
            for n in 0..size {
                let s = &mut state[c * size + n];
                *s = decay * *s + dt * xbc[c] * xbc[inner + n];
                sum += *s * xbc[inner + size + n];
            }
            gated[c] = sum * silu(z[c]);
        }
        let scale = 1.0 / (gated.iter().map(|v| v * v).sum::<f64>() / inner as f64 + 1e-5).sqrt();
        let normed: Vec<f64> = gated.iter().zip(&gain).map(|(v, g)| v * scale * g).collect();
        out.extend(w_out.chunks(inner).map(|row| row.iter().zip(&normed).map(|(w, x)| w * x).sum::<f64>()));
        assert_eq!(heads * config.head_dim, inner);
    }
    out
}

#[test]
fn mixer_matches_the_equations_in_f64() {
    let config = mixer(8);
    let mut parameters = mixer_parameters(&config, 5);
    for name in ["m.D", "m.norm.weight"] {
        let values = parameters.values_mut(name).unwrap();
        let draws = noise(31, values.len());
        values.iter_mut().zip(draws).for_each(|(value, draw)| *value += 0.3 * draw);
    }
    let frames = 37;
    let input = noise(6, frames * config.d_model);
    let expected: Vec<f32> = golden(&config, &parameters, &input, frames).iter().map(|&x| x as f32).collect();
    let device = Device::flex();
    let model = Mamba2::new(&config, "m", &parameters.bind(&device));
    let u = tensor3(&input, [1, frames, config.d_model], &device);
    let (y, _) = model.forward(u.clone(), &[], None);
    assert_close("fused", &expected, &floats(&y), 1e-5);
    let (y, _) = model.forward_plain(u, &[], model.start(1));
    assert_close("plain", &expected, &floats(&y), 1e-5);
}
