//! Cross-entropy per codebook.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{LmConfig, LmOutput, rows_of};
use crate::ops;

/// How the loss is formed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossConfig {
    /// Probability mass spread evenly over all codes.
    pub label_smoothing: f32,
    /// Weight of each codebook; missing entries are 1. The weights are normalised to sum to one.
    pub level_weights: Vec<f32>,
    /// Weight of the cross-entropy of the tempo, beside the codes' total of one.
    pub tempo_weight: f32,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self { label_smoothing: 0.0, level_weights: Vec::new(), tempo_weight: 0.02 }
    }
}

/// Loss of one batch.
pub struct LmLoss {
    /// Weighted, smoothed mean to minimise (one value).
    pub total: Tensor<1>,
    /// Negative log-likelihood summed over all places with a code, per codebook, without smoothing.
    pub nll: Vec<f64>,
    /// Places with a code, per codebook.
    pub counts: Vec<usize>,
}

/// What the model should have said.
#[derive(Debug, Clone, Copy)]
pub struct Targets<'a> {
    /// Codes, row-major `[B, K, T]`; places that hold the special token are ignored.
    pub codes: &'a [u16],
    /// Tempo class of each clip, `[B]`; not read for a model without a beat clock.
    pub tempo: &'a [usize],
    /// Clips B.
    pub batch: usize,
}

/// Cross-entropy per codebook, and of the tempo.
pub fn loss(config: &LmConfig, options: &LossConfig, output: &LmOutput, targets: Targets<'_>) -> LmLoss {
    let Targets { codes: targets, tempo, batch } = targets;
    let logits = &output.logits;
    let weight = |k: usize| options.level_weights.get(k).copied().unwrap_or(1.0);
    let sum: f32 = (0..config.codebooks).map(weight).sum();
    let mut out = LmLoss { total: Tensor::zeros([1], &logits[0].device()), nll: vec![], counts: vec![] };
    for (k, logits_nv) in logits.iter().enumerate() {
        let targets: Vec<i32> = rows_of(targets, batch, config.codebooks, k)
            .map(|code| if code == config.special() { -1 } else { i32::from(code) })
            .collect();
        let count = targets.iter().filter(|&&target| target >= 0).count();
        let smoothed = ops::cross_entropy(logits_nv.clone(), targets.clone(), options.label_smoothing);
        let plain = if options.label_smoothing > 0.0 {
            ops::cross_entropy(logits_nv.clone().inner(), targets, 0.0)
        } else {
            smoothed.clone().inner()
        };
        out.nll.push(f64::from(plain.into_scalar::<f32>()) * count as f64);
        out.counts.push(count);
        out.total = out.total + smoothed * (weight(k) / sum);
    }
    if let Some(tempo_bc) = &output.tempo {
        let classes = tempo.iter().map(|&class| class as i32).collect();
        out.total = out.total + ops::cross_entropy(tempo_bc.clone(), classes, 0.0) * options.tempo_weight;
    }
    out
}
