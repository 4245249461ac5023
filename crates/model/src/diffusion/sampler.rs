//! From noise to data in steps.

use serde::{Deserialize, Serialize};

use super::Schedule;

/// How a step is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Solver {
    /// Draws from the posterior of each step (Ho et al., arXiv 2006.11239; it depends on the shares alone, so straight paths
    /// have one too): new noise in every step.
    Ancestral,
    /// Follows the path of the data that is guessed now (DDIM, Song et al., arXiv 2010.02502, with eta 0).
    Ddim,
    /// DPM-Solver++(2M) (Lu et al., arXiv 2211.01095): a guess along the last two.
    DpmSolver,
    /// A straight step along the velocity: for straight paths the same as DDIM.
    Euler,
    /// The mean of the velocities at both ends of the step: two looks a step.
    Heun,
}

impl Solver {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Ancestral, Self::Ddim, Self::DpmSolver, Self::Euler, Self::Heun];

    /// Its name in flags and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ancestral => "ancestral",
            Self::Ddim => "ddim",
            Self::DpmSolver => "dpm-solver",
            Self::Euler => "euler",
            Self::Heun => "heun",
        }
    }

    /// The solver of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|solver| solver.name() == name)
    }
}

/// Data from `x`, which has the shares of data and noise that belong to the time `begin` (1: noise alone), in `steps` steps. `network` says v for values of unit variance at a time; `more_noise` gives the noise of
/// an ancestral step, counted from 0.
///
/// # Panics
/// If `steps` is 0.
pub fn sample(
    schedule: &Schedule,
    solver: Solver,
    steps: usize,
    begin: f64,
    mut x: Vec<f32>,
    mut more_noise: impl FnMut(usize) -> Vec<f32>,
    mut network: impl FnMut(&[f32], f32) -> Vec<f32>,
) -> Vec<f32> {
    assert!(steps > 0, "a sampler needs a step");
    let times = schedule.times(begin, steps);
    // The data guessed in the step before, and the width of that step in log-signal-to-noise.
    let mut before: Option<(Vec<f32>, f64)> = None;
    for (step, pair) in times.windows(2).enumerate() {
        let (from, to) = (schedule.shares(pair[0]), schedule.shares(pair[1]));
        let v = network(&x, pair[0] as f32);
        let data = mix(from.0, &x, -from.1, &v);
        let noise = mix(from.1, &x, from.0, &v);
        let last = to.1 == 0.0;
        x = match solver {
            _ if last => data,
            Solver::Ddim | Solver::Euler => mix(to.0, &data, to.1, &noise),
            Solver::Ancestral => {
                let variance = (to.1 / from.1).powi(2) * (1.0 - (from.0 / to.0).powi(2)).max(0.0);
                let kept = (to.1 * to.1 - variance).max(0.0).sqrt();
                let mean = mix(to.0, &data, kept, &noise);
                mix(1.0, &mean, variance.sqrt(), &more_noise(step))
            }
            Solver::DpmSolver => {
                let logsnr = |(a, s): (f64, f64)| (a / s).ln();
                let width = logsnr(to) - logsnr(from);
                let guess = match &before {
                    Some((earlier, earlier_width)) => {
                        let half = width / earlier_width / 2.0;
                        mix(1.0 + half, &data, -half, earlier)
                    }
                    None => data.clone(),
                };
                before = Some((data, width));
                // From pure noise the width is infinite, and what is left of x is its noise.
                mix(to.1 / from.1, &x, to.0 * (1.0 - (-width).exp()), &guess)
            }
            Solver::Heun => {
                let ahead = mix(to.0, &data, to.1, &noise);
                let v = network(&ahead, pair[1] as f32);
                let (later_data, later_noise) = (mix(to.0, &ahead, -to.1, &v), mix(to.1, &ahead, to.0, &v));
                // Along the straight path, on which the velocity is noise - data.
                let length = |time: f64| ((1.0 - time).powi(2) + time * time).sqrt();
                let first = mix(1.0, &noise, -1.0, &data);
                let second = mix(1.0, &later_noise, -1.0, &later_data);
                let mean = mix(0.5, &first, 0.5, &second);
                mix(length(pair[0]) / length(pair[1]), &x, (pair[1] - pair[0]) / length(pair[1]), &mean)
            }
        };
    }
    x
}

/// `a x + b y`.
fn mix(a: f64, x: &[f32], b: f64, y: &[f32]) -> Vec<f32> {
    let (a, b) = (a as f32, b as f32);
    x.iter().zip(y).map(|(x, y)| a * x + b * y).collect()
}
