//! The side of mamba-rs: its host trainers with Mambo's weights in them.

use mamba_rs::module::CpuTrainer;
use mamba_rs::{
    BackwardOpts, Mamba2Config, Mamba2CpuTrainer, Mamba2Weights, MambaConfig, MambaCpuTrainer, MambaWeights,
    TrainSessionCfg,
};
use mambo_model::parameters::Parameters;

use crate::{Case, EXPAND, HEAD_WIDTH, Pass};

/// Forward and backward from empty states.
pub fn pass(trainer: &mut dyn CpuTrainer, input: &[f32], upstream: &[f32]) -> Result<Pass, String> {
    let mut pass = Pass { output: vec![0.0; input.len()], d_input: vec![0.0; input.len()] };
    trainer.reset_state()?;
    trainer.forward(input, &mut pass.output)?;
    // Adds to the gradients of earlier runs and leaves the weights alone.
    let accumulate = BackwardOpts::default().with_accumulate_only(true);
    trainer.backward_step_input_grad(upstream, accumulate, &mut pass.d_input)?;
    Ok(pass)
}

/// A matrix `[outputs, inputs]` as they store it, `[inputs, outputs]`.
fn turned(parameters: &Parameters, name: &str) -> Vec<f32> {
    let parameter = parameters.get(name).unwrap_or_else(|| panic!("no parameter `{name}`"));
    let (rows, columns) = (parameter.shape[0], parameter.shape[1]);
    (0..rows * columns).map(|at| parameter.values[at % rows * columns + at / rows]).collect()
}

fn values(parameters: &Parameters, name: &str) -> Vec<f32> {
    parameters.get(name).unwrap_or_else(|| panic!("no parameter `{name}`")).values.clone()
}

pub fn mamba1(case: &Case, from: &Parameters, session: TrainSessionCfg) -> Result<Box<dyn CpuTrainer>, String> {
    let config = MambaConfig {
        d_model: case.width,
        d_state: case.state,
        expand: EXPAND,
        n_layers: 1,
        final_norm: false,
        ..MambaConfig::default()
    };
    let mut weights = MambaWeights::zeros(&config, case.width);
    // Without an input projection the layer reads the input itself.
    weights.input_proj_w.clear();
    weights.input_proj_b.clear();
    let layer = &mut weights.layers[0];
    layer.norm_weight = values(from, "norm.weight");
    layer.in_proj_w = turned(from, "mixer.in_proj.weight");
    layer.conv1d_weight = values(from, "mixer.conv1d.weight");
    layer.conv1d_bias = values(from, "mixer.conv1d.bias");
    layer.x_proj_w = turned(from, "mixer.x_proj.weight");
    layer.dt_proj_w = turned(from, "mixer.dt_proj.weight");
    layer.dt_proj_b = values(from, "mixer.dt_proj.bias");
    layer.a_log = values(from, "mixer.A_log");
    layer.d_param = values(from, "mixer.D");
    layer.out_proj_w = turned(from, "mixer.out_proj.weight");
    layer.compute_a_neg();
    Ok(Box::new(MambaCpuTrainer::new(&weights, config, session)?))
}

pub fn mamba2(case: &Case, from: &Parameters, session: TrainSessionCfg) -> Result<Box<dyn CpuTrainer>, String> {
    let config = Mamba2Config {
        d_model: case.width,
        d_state: case.state,
        expand: EXPAND,
        headdim: HEAD_WIDTH,
        n_layers: 1,
        final_norm: false,
        ..Mamba2Config::default()
    };
    let mut weights = Mamba2Weights::zeros(&config, case.width);
    weights.input_proj_w.clear();
    weights.input_proj_b.clear();
    let layer = &mut weights.layers[0];
    layer.norm_weight = values(from, "norm.weight");
    layer.in_proj_w = turned(from, "mixer.in_proj.weight");
    layer.conv_w = values(from, "mixer.conv1d.weight");
    layer.conv_b = values(from, "mixer.conv1d.bias");
    layer.dt_bias = values(from, "mixer.dt_bias");
    layer.a_log = values(from, "mixer.A_log");
    layer.d_param = values(from, "mixer.D");
    layer.gate_norm_weight = values(from, "mixer.norm.weight");
    layer.out_proj_w = turned(from, "mixer.out_proj.weight");
    Ok(Box::new(Mamba2CpuTrainer::new(&weights, config, session)?))
}
