//! Interpolated Kneser-Ney bigram (Chen and Goodman 1999, section 2.7): the floor a language model must beat.
//!
//! The start of a clip is a context of its own, so it answers for exactly the tokens a model answers for.

use std::collections::BTreeMap;

use mambo_model::random;
use rand_chacha::ChaCha8Rng;

/// Counts and smoothing of a bigram over `vocabulary` codes.
#[derive(Debug, Clone)]
pub struct KneserNeyBigram {
    vocabulary: usize,
    /// Followers of each context (the last one is the start), sorted by code.
    followers: Vec<Vec<(u16, u32)>>,
    totals: Vec<u64>,
    discount: f64,
    /// Smoothed share of contexts that a code follows.
    continuation: Vec<f64>,
}

impl KneserNeyBigram {
    /// Counts the streams (one per clip).
    ///
    /// # Panics
    /// When a code is not below `vocabulary`.
    pub fn fit<S: AsRef<[u16]>>(streams: &[S], vocabulary: usize) -> Self {
        let mut counts: Vec<BTreeMap<u16, u32>> = vec![BTreeMap::new(); vocabulary + 1];
        for stream in streams {
            let mut context = vocabulary;
            for &code in stream.as_ref() {
                assert!(usize::from(code) < vocabulary, "code {code} is not below {vocabulary}");
                *counts[context].entry(code).or_default() += 1;
                context = usize::from(code);
            }
        }
        let discount = discount(counts.iter().flat_map(BTreeMap::values).copied());
        let mut contexts = vec![0u32; vocabulary];
        for followers in &counts {
            followers.keys().for_each(|&code| contexts[usize::from(code)] += 1);
        }
        // Lower order: how many contexts a code follows, discounted once more towards uniform.
        let lower = self::discount(contexts.iter().copied());
        let kinds: f64 = contexts.iter().map(|&count| f64::from(count)).sum();
        let seen = contexts.iter().filter(|&&count| count > 0).count() as f64;
        let uniform = 1.0 / vocabulary as f64;
        let continuation = contexts
            .iter()
            .map(|&count| {
                if kinds == 0.0 {
                    return uniform;
                }
                (f64::from(count) - lower).max(0.0) / kinds + lower * seen / kinds * uniform
            })
            .collect();
        let followers: Vec<Vec<(u16, u32)>> = counts.into_iter().map(|map| map.into_iter().collect()).collect();
        let totals = followers.iter().map(|list| list.iter().map(|&(_, n)| u64::from(n)).sum()).collect();
        Self { vocabulary, followers, totals, discount, continuation }
    }

    /// Probability of `code` after `context` (`None` at the start of a clip).
    pub fn probability(&self, context: Option<u16>, code: u16) -> f64 {
        let context = context.map_or(self.vocabulary, usize::from);
        let lower = self.continuation[usize::from(code)];
        let (followers, total) = (&self.followers[context], self.totals[context] as f64);
        if followers.is_empty() {
            return lower;
        }
        let count = followers.binary_search_by_key(&code, |&(code, _)| code).map_or(0, |at| followers[at].1);
        let kept = (f64::from(count) - self.discount).max(0.0) / total;
        kept + self.discount * followers.len() as f64 / total * lower
    }

    /// Negative log-likelihood of streams in nats, and the number of codes.
    pub fn score<S: AsRef<[u16]>>(&self, streams: &[S]) -> (f64, usize) {
        let (mut nll, mut count) = (0.0, 0);
        for stream in streams {
            let mut context = None;
            for &code in stream.as_ref() {
                nll -= self.probability(context, code).ln();
                count += 1;
                context = Some(code);
            }
        }
        (nll, count)
    }

    /// Perplexity per code; 1 for no codes.
    pub fn perplexity<S: AsRef<[u16]>>(&self, streams: &[S]) -> f64 {
        let (nll, count) = self.score(streams);
        (nll / count.max(1) as f64).exp()
    }

    /// Draws a stream of `length` codes from the start of a clip.
    pub fn sample(&self, length: usize, rng: &mut ChaCha8Rng) -> Vec<u16> {
        let mut out = Vec::with_capacity(length);
        let mut context = self.vocabulary;
        for _ in 0..length {
            let code = self.draw(context, rng);
            out.push(code);
            context = usize::from(code);
        }
        out
    }

    fn draw(&self, context: usize, rng: &mut ChaCha8Rng) -> u16 {
        let (followers, total) = (&self.followers[context], self.totals[context] as f64);
        let mut left = f64::from(random::uniform(rng));
        for &(code, count) in followers {
            left -= (f64::from(count) - self.discount).max(0.0) / total;
            if left < 0.0 {
                return code;
            }
        }
        // What the followers left over is shared out by continuation; scale the rest back to [0, 1).
        let share = if followers.is_empty() { 1.0 } else { self.discount * followers.len() as f64 / total };
        let mut left = if share > 0.0 { left / share } else { 0.0 };
        for (code, probability) in self.continuation.iter().enumerate() {
            left -= probability;
            if left < 0.0 {
                return code as u16;
            }
        }
        (self.vocabulary - 1) as u16
    }
}

/// Ney's estimate n1 / (n1 + 2 n2), kept within (0, 1).
fn discount(counts: impl Iterator<Item = u32>) -> f64 {
    let (mut once, mut twice) = (0.0_f64, 0.0_f64);
    for count in counts {
        once += f64::from(u8::from(count == 1));
        twice += f64::from(u8::from(count == 2));
    }
    if once == 0.0 { 0.5 } else { (once / (once + 2.0 * twice)).clamp(0.05, 0.95) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn probabilities_sum_to_one_after_any_context(
            streams in prop::collection::vec(prop::collection::vec(0u16..9, 0..30), 0..6),
        ) {
            let bigram = KneserNeyBigram::fit(&streams, 9);
            for context in std::iter::once(None).chain((0..9).map(Some)) {
                let sum: f64 = (0..9).map(|code| bigram.probability(context, code)).sum();
                prop_assert!((sum - 1.0).abs() < 1e-9, "{context:?} {sum}");
                prop_assert!((0..9).all(|code| bigram.probability(context, code) > 0.0));
            }
        }
    }

    #[test]
    fn a_hand_counted_example() {
        // Streams 0 1, 0 1, 0 2: start->0 x3, 0->1 x2, 0->2 x1. Discount 1 / (1 + 2) from one single, one double.
        let bigram = KneserNeyBigram::fit(&[vec![0, 1], vec![0, 1], vec![0, 2]], 4);
        let d = 1.0 / 3.0;
        // Each of 0, 1, 2 follows one context: three kinds; discount of ones only is 0.95.
        let lower = (1.0 - 0.95) / 3.0 + 0.95 * 3.0 / 3.0 / 4.0;
        let expected = (2.0 - d) / 3.0 + d * 2.0 / 3.0 * lower;
        assert!((bigram.probability(Some(0), 1) - expected).abs() < 1e-12);
    }

    #[test]
    fn it_beats_chance_on_its_own_kind_and_samples_it() {
        let mut rng = random::stream(1, "bigram", 0);
        // A chain that nearly always steps by one.
        let mut make = || -> Vec<u16> {
            let mut code = 0u16;
            (0..200)
                .map(|_| {
                    code = if random::uniform(&mut rng) < 0.9 {
                        (code + 1) % 50
                    } else {
                        random::below(&mut rng, 50) as u16
                    };
                    code
                })
                .collect()
        };
        let train: Vec<_> = (0..20).map(|_| make()).collect();
        let test: Vec<_> = (0..5).map(|_| make()).collect();
        let bigram = KneserNeyBigram::fit(&train, 50);
        // Entropy of the chain: perplexity about 2.0.
        let perplexity = bigram.perplexity(&test);
        assert!((1.7..2.6).contains(&perplexity), "{perplexity}");
        let sample = bigram.sample(5000, &mut random::stream(2, "bigram", 0));
        let steps = sample.windows(2).filter(|pair| pair[1] == (pair[0] + 1) % 50).count();
        assert!((4300..4750).contains(&steps), "{steps}");
    }
}
