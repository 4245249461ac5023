//! Tokens that know nothing.

use mambo_model::random;
use mambo_model::tokens::{CodecSpec, CodecTokens};

/// Tokens drawn uniformly from every codebook: what a model must leave far behind.
pub fn uniform_tokens(spec: &CodecSpec, frames: usize, seed: u64) -> CodecTokens {
    let mut rng = random::stream(seed, "uniform tokens", 0);
    let codes = (0..spec.levels * frames).map(|_| random::below(&mut rng, spec.cardinality) as u16).collect();
    CodecTokens::new(spec.clone(), codes, frames).expect("codes are drawn below the cardinality and fill the table")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_tokens_use_every_code_evenly() {
        let spec = CodecSpec { name: "test".into(), sample_rate: 44_100, hop: 2048, levels: 2, cardinality: 16 };
        let tokens = uniform_tokens(&spec, 4000, 7);
        for level in 0..2 {
            for code in 0..16 {
                let count = tokens.row(level).iter().filter(|&&c| c == code).count();
                assert!((170..330).contains(&count), "code {code}: {count}");
            }
        }
        assert_eq!(tokens, uniform_tokens(&spec, 4000, 7));
        assert_ne!(tokens, uniform_tokens(&spec, 4000, 8));
    }
}
