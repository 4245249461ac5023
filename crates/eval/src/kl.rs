//! Kullback-Leibler divergence between what a judge hears in a generated clip and in the real clip of the same
//! caption, after the procedure of KL-PaSST: logits averaged over a clip's patches, softmax over all tags.
//! musicnn's tags are independent probabilities, so the softmax of their logits is our own proxy.

use serde::Serialize;

use crate::{EvalError, Rows};

const SMALLEST_PROBABILITY: f64 = 1e-7;
/// Added to the second distribution, as in stable-audio-metrics.
const EPSILON: f64 = 1e-6;

/// Divergences in nats, mean over pairs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Divergence {
    /// KL(generated || real): the direction of stable-audio-metrics.
    pub generated_from_real: f64,
    /// KL(real || generated): the direction of audiocraft.
    pub real_from_generated: f64,
}

/// A clip's distribution over tags: softmax of the mean logits of its patches `[patches, tags]`.
/// `None` without patches.
pub fn clip_distribution(tags: &Rows) -> Option<Vec<f64>> {
    if tags.count() == 0 {
        return None;
    }
    let mut logits = vec![0.0; tags.width()];
    for row in tags.iter() {
        for (sum, &probability) in logits.iter_mut().zip(row) {
            let p = f64::from(probability).clamp(SMALLEST_PROBABILITY, 1.0 - SMALLEST_PROBABILITY);
            *sum += (p / (1.0 - p)).ln();
        }
    }
    logits.iter_mut().for_each(|sum| *sum /= tags.count() as f64);
    let highest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut weights: Vec<f64> = logits.iter().map(|logit| (logit - highest).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter_mut().for_each(|weight| *weight /= total);
    Some(weights)
}

/// `sum p (ln p - ln(q + 1e-6))` in nats.
pub fn divergence(p: &[f64], q: &[f64]) -> f64 {
    p.iter().zip(q).filter(|(p, _)| **p > 0.0).map(|(p, q)| p * (p.ln() - (q + EPSILON).ln())).sum()
}

/// Mean divergence over pairs of (generated, real) distributions.
pub fn paired_divergence(pairs: &[(&[f64], &[f64])]) -> Result<Divergence, EvalError> {
    if pairs.is_empty() {
        return Err(EvalError::NoClips { what: "no pair of a generated and a real clip".into() });
    }
    let mut mean = Divergence { generated_from_real: 0.0, real_from_generated: 0.0 };
    for (generated, real) in pairs {
        if generated.len() != real.len() {
            return Err(EvalError::Width { expected: real.len(), found: generated.len() });
        }
        mean.generated_from_real += divergence(generated, real) / pairs.len() as f64;
        mean.real_from_generated += divergence(real, generated) / pairs.len() as f64;
    }
    Ok(mean)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn divergence_is_zero_only_at_home(values in prop::collection::vec(0.01f32..0.99, 8)) {
            let own = clip_distribution(&Rows::new(8, values.clone())).expect("one patch");
            prop_assert!((own.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            prop_assert!(divergence(&own, &own).abs() < 1e-4);
            let mut turned = own.clone();
            turned.rotate_left(1);
            let difference: f64 = own.iter().zip(&turned).map(|(a, b)| (a - b).abs()).sum();
            if difference > 0.1 {
                // Pinsker's inequality.
                prop_assert!(divergence(&own, &turned) > 0.49 * difference * difference - 1e-4);
            }
        }
    }

    #[test]
    fn certain_tags_stay_finite() {
        let sure = clip_distribution(&Rows::new(3, vec![1.0, 0.0, 0.0])).expect("one patch");
        let other = clip_distribution(&Rows::new(3, vec![0.0, 1.0, 0.0])).expect("one patch");
        let far = paired_divergence(&[(&sure, &other)]).expect("a pair");
        assert!(far.generated_from_real > 5.0 && far.generated_from_real.is_finite());
        assert!(clip_distribution(&Rows::empty(3)).is_none());
    }
}
