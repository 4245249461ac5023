//! How data and noise are mixed at a time, and in which steps a sampler goes from one to the other.
//!
//! Both kinds of path are written as x = a data + s noise with a^2 + s^2 = 1, so that x has unit variance whatever the time, and the
//! network says v = a noise - s data (Salimans and Ho, arXiv 2202.00512, appendix D). For a straight path
//! (1 - t) data + t noise (Liu et al., arXiv 2209.03003), x is that over its length, sqrt((1 - t)^2 + t^2), and v is what the best
//! linear guess of the velocity leaves over, at unit variance (the preconditioning of Karras et al., arXiv 2206.00364).

use serde::{Deserialize, Serialize};

/// Largest share of noise that a step of the cosine schedule may add.
const MOST_BETA: f64 = 0.999;
/// Offset of the cosine schedule.
const OFFSET: f64 = 0.008;

/// Shares of data and noise by time, which goes from 0 (data) to 1 (noise).
#[derive(Debug, Clone, PartialEq)]
pub enum Schedule {
    /// Straight paths at any time: rectified flow.
    Flow,
    /// The cosine schedule (Nichol and Dhariwal, arXiv 2102.09672, section 3.2) at so many times: `a` at each, from 0 on.
    Cosine(Vec<f64>),
}

/// What a network is trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// Rectified flow.
    Flow,
    /// v-prediction on the cosine schedule in 100 steps.
    VPrediction,
}

impl Objective {
    /// Its schedule.
    pub fn schedule(self) -> Schedule {
        match self {
            Self::Flow => Schedule::Flow,
            Self::VPrediction => Schedule::cosine(100),
        }
    }
}

impl Schedule {
    /// The cosine schedule in `steps` steps.
    pub fn cosine(steps: usize) -> Self {
        let share = |step: usize| {
            let place = (step as f64 / steps as f64 + OFFSET) / (1.0 + OFFSET);
            (place * std::f64::consts::FRAC_PI_2).cos().powi(2)
        };
        let mut product = 1.0;
        let mut all = vec![1.0];
        for step in 0..steps {
            product *= 1.0 - (1.0 - share(step + 1) / share(step)).min(MOST_BETA);
            all.push(product.sqrt());
        }
        Self::Cosine(all)
    }

    /// Shares of data and noise at a time.
    pub fn shares(&self, time: f64) -> (f64, f64) {
        match self {
            Self::Flow => {
                let length = ((1.0 - time).powi(2) + time * time).sqrt();
                ((1.0 - time) / length, time / length)
            }
            Self::Cosine(data) => {
                let steps = data.len() - 1;
                let a = data[((time * steps as f64).round() as usize).min(steps)];
                (a, (1.0 - a * a).max(0.0).sqrt())
            }
        }
    }

    /// The time nearest to `time` that the network knows.
    pub fn nearest(&self, time: f64) -> f64 {
        match self {
            Self::Flow => time,
            Self::Cosine(data) => {
                let steps = (data.len() - 1) as f64;
                (time * steps).round().clamp(1.0, steps) / steps
            }
        }
    }

    /// Times of a sampler with so many steps: from `begin` to 0, both counted.
    pub fn times(&self, begin: f64, steps: usize) -> Vec<f64> {
        let even = (0..=steps).map(|step| begin * (1.0 - step as f64 / steps as f64));
        match self {
            Self::Flow => even.collect(),
            Self::Cosine(data) => {
                let all = (data.len() - 1) as f64;
                let mut times: Vec<f64> = even.map(|time| (time * all).round() / all).collect();
                times.dedup();
                times
            }
        }
    }
}
