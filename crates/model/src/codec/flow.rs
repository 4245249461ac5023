//! The detail that a mean averages away: a small rectified-flow network over the frames of each token, with the choice of
//! levels among what steers it. See [`crate::diffusion`] for paths, targets and samplers.

use burn::tensor::{Device, Tensor, TensorData};

use crate::diffusion::{Conditions, Denoiser, DenoiserConfig, Schedule, Solver, sample};
use crate::parameters::{Bound, Initialiser, Parameters, Side};

/// Numbers of codebooks the decoder is trained for.
pub const LEVEL_CHOICES: [usize; 4] = [1, 2, 4, 8];

/// Index of the largest of [`LEVEL_CHOICES`] that `levels` allows.
pub fn level_choice(levels: usize) -> usize {
    LEVEL_CHOICES.iter().rposition(|&choice| choice <= levels).unwrap_or(0)
}

/// The network with its weights on a device.
pub struct FlowNetwork(Denoiser);

impl FlowNetwork {
    /// Appends the network's weights for `values` numbers a token and latents of `latent`.
    pub fn add_parameters(
        config: &DenoiserConfig,
        values: usize,
        latent: usize,
        draw: &mut Initialiser,
        all: &mut Parameters,
    ) {
        let conditions = Conditions { values, known: latent, steering: LEVEL_CHOICES.len(), attention: None };
        Denoiser::add_parameters("flow", config, conditions, draw, all);
    }

    /// The network on `device`.
    pub fn new(config: &DenoiserConfig, parameters: &Parameters, device: &Device) -> Self {
        Self(Denoiser::new("flow", config, None, parameters, device))
    }

    /// The bound weights, to fetch gradients from.
    pub fn bound(&self) -> &Bound {
        self.0.bound()
    }

    /// Its answer for noisy values of unit variance `x_btw` and latents `z_btd`, times `[b]` in 0..1 and choices of
    /// levels `[b]`.
    pub fn forward(&self, x_btw: Tensor<3>, z_btd: Tensor<3>, times: &[f32], choices: &[usize]) -> Tensor<3> {
        let one_of =
            choices.iter().flat_map(|choice| (0..LEVEL_CHOICES.len()).map(move |n| f32::from(u8::from(n == *choice))));
        let steering = TensorData::new(one_of.collect::<Vec<f32>>(), [choices.len(), LEVEL_CHOICES.len()]);
        self.0.forward(x_btw, z_btd, times, Some(Tensor::from_data(steering, self.0.device())), None)
    }

    /// Data `[T, values]` drawn by `steps` Euler steps from `noise` `[T, values]`, for latents `[T, latent]`.
    pub fn sample(&self, noise: Vec<f32>, latents: &[f32], choice: usize, steps: usize) -> Vec<f32> {
        let latent = self.bound().weight("flow.latent.weight", Side::Plain).inputs();
        let tokens = latents.len() / latent;
        let values = noise.len() / tokens.max(1);
        let device = self.0.device();
        let z = Tensor::<3>::from_data(TensorData::new(latents.to_vec(), [1, tokens, latent]), device);
        sample(
            &Schedule::Flow,
            Solver::Euler,
            steps,
            1.0,
            noise,
            |_| unreachable!("Euler draws nothing"),
            |x, time| {
                let x = Tensor::<3>::from_data(TensorData::new(x.to_vec(), [1, tokens, values]), device);
                let answer = self.forward(x, z.clone(), &[time], &[choice]);
                answer.into_data().try_into_vec().expect("the flow computes in f32")
            },
        )
    }
}
