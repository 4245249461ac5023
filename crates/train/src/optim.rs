//! AdamW on flat named parameters (arXiv 1711.05101), with what a small model needs around it.
//!
//! Schedule per optimiser step (linear warm-up, cosine to a floor), clipping by the global norm, weight
//! decay only where a parameter asks for it, and an exponential moving average of the weights.
//! Sums run in a fixed order, so the same gradients always give the same weights.

use mambo_kernels::optimizer::{AdamW, Trained, global_norm, moving_average};
use mambo_model::parameters::{Parameters, Role};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::TrainError;

/// Settings of the optimiser. Unknown keys are errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimConfig {
    /// Highest learning rate.
    pub rate: f64,
    /// Learning rate at the end, as a fraction of the highest.
    pub floor: f64,
    /// Steps of linear warm-up.
    pub warmup: u64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay on matrices.
    pub weight_decay: f64,
    /// Highest global gradient norm; 0 never clips.
    pub clip: f64,
    /// Decay of the moving average of the weights (less at the start); 0 switches it off.
    pub ema: f64,
}

impl Default for OptimConfig {
    fn default() -> Self {
        Self {
            rate: 1e-3,
            floor: 0.05,
            warmup: 100,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.05,
            clip: 1.0,
            ema: 0.999,
        }
    }
}

impl OptimConfig {
    /// Checks ranges.
    pub fn validate(&self) -> Result<(), TrainError> {
        let rules: [(&'static str, f64, bool, &'static str); 8] = [
            ("optim.rate", self.rate, self.rate > 0.0 && self.rate.is_finite(), "above 0"),
            ("optim.floor", self.floor, (0.0..=1.0).contains(&self.floor), "0 to 1"),
            ("optim.beta1", self.beta1, (0.0..1.0).contains(&self.beta1), "0 to below 1"),
            ("optim.beta2", self.beta2, (0.0..1.0).contains(&self.beta2), "0 to below 1"),
            ("optim.epsilon", self.epsilon, self.epsilon > 0.0, "above 0"),
            ("optim.weight_decay", self.weight_decay, self.weight_decay >= 0.0, "0 or more"),
            ("optim.clip", self.clip, self.clip >= 0.0, "0 or more"),
            ("optim.ema", self.ema, (0.0..1.0).contains(&self.ema), "0 to below 1"),
        ];
        let rules = rules.map(|(key, found, holds, expected)| (key, found.to_string(), holds, expected));
        TrainError::unless_all_hold(rules)
    }

    /// Learning rate of `step` (counted from 0) of `total`.
    pub fn rate_at(&self, step: u64, total: u64) -> f64 {
        if step < self.warmup {
            return self.rate * (step + 1) as f64 / self.warmup as f64;
        }
        let span = total.saturating_sub(self.warmup).max(1);
        let progress = ((step - self.warmup) as f64 / span as f64).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
        self.rate * (self.floor + (1.0 - self.floor) * cosine)
    }
}

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Learning rate used.
    pub rate: f64,
    /// Global gradient norm before clipping.
    pub gradient_norm: f64,
    /// False when the gradients were not finite and nothing was changed.
    pub applied: bool,
}

/// Moments and average of one parameter; empty for buffers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Slot {
    /// First moment.
    pub first: Vec<f32>,
    /// Second moment.
    pub second: Vec<f32>,
    /// Moving average of the weights; empty when switched off.
    pub ema: Vec<f32>,
}

/// AdamW over a parameter list.
#[derive(Debug, Clone, PartialEq)]
pub struct Optimizer {
    config: OptimConfig,
    total: u64,
    updates: u64,
    slots: Vec<Slot>,
}

impl Optimizer {
    /// A fresh optimiser for a run of `total` steps.
    pub fn new(config: &OptimConfig, parameters: &Parameters, total: u64) -> Self {
        let slot = |parameter: &mambo_model::parameters::Parameter| {
            if parameter.role == Role::Buffer {
                return Slot::default();
            }
            let zeros = vec![0.0; parameter.values.len()];
            let ema = if config.ema > 0.0 { parameter.values.clone() } else { Vec::new() };
            Slot { first: zeros.clone(), second: zeros, ema }
        };
        let slots = parameters.list().iter().map(slot).collect();
        Self { config: config.clone(), total, updates: 0, slots }
    }

    /// Updates applied so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Moments and averages, in the order of the parameters.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Puts saved moments and averages back. The caller has checked their lengths.
    pub(crate) fn restore(&mut self, updates: u64, slots: Vec<Slot>) {
        self.updates = updates;
        self.slots = slots;
    }

    /// One update at schedule position `step`; `gradients` as from `Bound::gradients`.
    /// Gradients that are not finite change nothing.
    ///
    /// # Panics
    /// When the gradients are not those of the parameters.
    pub fn step(&mut self, step: u64, parameters: &mut Parameters, gradients: &[Vec<f32>]) -> StepReport {
        assert_eq!(gradients.len(), self.slots.len(), "one gradient per parameter");
        let rate = self.config.rate_at(step, self.total);
        let slices: Vec<&[f32]> = gradients.iter().map(Vec::as_slice).collect();
        let gradient_norm = global_norm(&slices);
        if !gradient_norm.is_finite() {
            return StepReport { rate, gradient_norm, applied: false };
        }
        self.updates += 1;
        let config = &self.config;
        let clipped = config.clip > 0.0 && gradient_norm > config.clip;
        let update = AdamW {
            rate,
            beta1: config.beta1,
            beta2: config.beta2,
            epsilon: config.epsilon,
            weight_decay: config.weight_decay,
            step: self.updates,
            gradient_scale: if clipped { config.clip / gradient_norm } else { 1.0 },
        };
        let mut trained = Vec::new();
        for ((parameter, slot), gradient) in parameters.list_mut().iter_mut().zip(&mut self.slots).zip(gradients) {
            if parameter.role != Role::Buffer {
                trained.push(Trained {
                    decay: parameter.role == Role::Decayed,
                    value: &mut parameter.values,
                    gradient,
                    first: &mut slot.first,
                    second: &mut slot.second,
                });
            }
        }
        update.apply(&mut trained);
        if config.ema > 0.0 {
            // A young average must forget the initial weights quickly.
            let decay = config.ema.min((1 + self.updates) as f64 / (10 + self.updates) as f64);
            let mut pairs: Vec<(&mut [f32], &[f32])> = self
                .slots
                .iter_mut()
                .zip(parameters.list())
                .filter(|(slot, _)| !slot.ema.is_empty())
                .map(|(slot, parameter)| (slot.ema.as_mut_slice(), parameter.values.as_slice()))
                .collect();
            moving_average(&mut pairs, decay as f32);
        }
        StepReport { rate, gradient_norm, applied: true }
    }

    /// The averaged weights (the weights themselves when averaging is off).
    pub fn averaged(&self, parameters: &Parameters) -> Parameters {
        let mut out = parameters.clone();
        for (parameter, slot) in out.list_mut().iter_mut().zip(&self.slots) {
            if !slot.ema.is_empty() {
                parameter.values.clone_from(&slot.ema);
            }
        }
        out
    }
}

/// Adds `more` times `scale` to `sum`, taking it over when `sum` is empty: gradient accumulation.
pub fn accumulate(sum: &mut Vec<Vec<f32>>, more: Vec<Vec<f32>>, scale: f32) {
    if sum.is_empty() {
        *sum = more;
        sum.par_iter_mut().for_each(|values| values.iter_mut().for_each(|value| *value *= scale));
        return;
    }
    sum.par_iter_mut().zip(more).for_each(|(sum, more)| {
        sum.iter_mut().zip(more).for_each(|(sum, value)| *sum += scale * value);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(role: Role, value: f32) -> Parameters {
        let mut parameters = Parameters::new();
        parameters.push("x", &[1], role, vec![value]);
        parameters
    }

    fn plain() -> OptimConfig {
        OptimConfig { rate: 0.1, warmup: 0, floor: 1.0, clip: 0.0, weight_decay: 0.0, ..OptimConfig::default() }
    }

    #[test]
    fn three_steps_match_the_formulas_in_f64() {
        let config = OptimConfig { weight_decay: 0.1, ..plain() };
        let mut parameters = one(Role::Decayed, 2.0);
        let mut optimizer = Optimizer::new(&config, &parameters, 10);
        let (mut x, mut m, mut v) = (2.0_f64, 0.0_f64, 0.0_f64);
        for (i, gradient) in [0.5_f64, -0.25, 3.0].into_iter().enumerate() {
            optimizer.step(i as u64, &mut parameters, &[vec![gradient as f32]]);
            m = 0.9 * m + 0.1 * gradient;
            v = 0.95 * v + 0.05 * gradient * gradient;
            let (mh, vh) = (m / (1.0 - 0.9_f64.powi(i as i32 + 1)), v / (1.0 - 0.95_f64.powi(i as i32 + 1)));
            x = x - 0.1 * 0.1 * x - 0.1 * mh / (vh.sqrt() + 1e-8);
            let found = f64::from(parameters.list()[0].values[0]);
            assert!((found - x).abs() < 1e-5, "{found} {x}");
        }
    }

    #[test]
    fn only_decayed_parameters_shrink_and_buffers_never_move() {
        for (role, expected) in [(Role::Decayed, 0.9), (Role::Free, 1.0), (Role::Buffer, 1.0)] {
            let mut parameters = one(role, 1.0);
            let mut optimizer = Optimizer::new(&OptimConfig { weight_decay: 1.0, ..plain() }, &parameters, 1);
            let gradient = if role == Role::Buffer { vec![] } else { vec![0.0] };
            optimizer.step(0, &mut parameters, &[gradient]);
            assert!((parameters.list()[0].values[0] - expected).abs() < 1e-6, "{role:?}");
        }
    }

    #[test]
    fn clipping_uses_the_norm_over_all_parameters() {
        let gradients = vec![vec![3.0], vec![4.0]];
        let mut parameters = one(Role::Free, 0.0);
        parameters.push("y", &[1], Role::Free, vec![0.0]);
        let mut optimizer = Optimizer::new(&OptimConfig { clip: 1.0, ..plain() }, &parameters, 1);
        let report = optimizer.step(0, &mut parameters, &gradients);
        assert!((report.gradient_norm - 5.0).abs() < 1e-12);
        assert!((optimizer.slots()[0].first[0] - 0.1 * 0.6).abs() < 1e-6);
        assert!((optimizer.slots()[1].first[0] - 0.1 * 0.8).abs() < 1e-6);
    }

    #[test]
    fn infinite_gradients_change_nothing() {
        let mut parameters = one(Role::Free, 1.0);
        let mut optimizer = Optimizer::new(&plain(), &parameters, 1);
        let before = optimizer.clone();
        assert!(!optimizer.step(0, &mut parameters, &[vec![f32::NAN]]).applied);
        assert_eq!(optimizer, before);
        assert_eq!(parameters.list()[0].values, [1.0]);
    }

    #[test]
    fn schedule_warms_up_peaks_and_ends_at_the_floor() {
        let config = OptimConfig { rate: 1.0, floor: 0.1, warmup: 10, ..OptimConfig::default() };
        assert!((config.rate_at(0, 110) - 0.1).abs() < 1e-12);
        assert!((config.rate_at(10, 110) - 1.0).abs() < 1e-12);
        assert!((config.rate_at(60, 110) - 0.55).abs() < 1e-12);
        assert!((config.rate_at(110, 110) - 0.1).abs() < 1e-12);
        assert!((config.rate_at(500, 110) - 0.1).abs() < 1e-12);
    }

    #[test]
    fn average_lags_behind() {
        let mut parameters = one(Role::Free, 0.0);
        let mut optimizer = Optimizer::new(&OptimConfig { ema: 0.5, ..plain() }, &parameters, 1);
        optimizer.step(0, &mut parameters, &[vec![1.0]]);
        let average = optimizer.averaged(&parameters).list()[0].values[0];
        let value = parameters.list()[0].values[0];
        // The first decay is min(0.5, 2 / 11).
        assert!((average - value * (1.0 - 2.0 / 11.0)).abs() < 1e-6, "{average} {value}");
    }

    #[test]
    fn accumulation_is_a_weighted_sum() {
        let mut sum = Vec::new();
        accumulate(&mut sum, vec![vec![2.0, 4.0]], 0.5);
        accumulate(&mut sum, vec![vec![1.0, -1.0]], 0.5);
        assert_eq!(sum, [[1.5, 1.5]]);
    }
}
