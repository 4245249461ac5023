//! Decoding that goes on: token frames in, samples out, constant memory.

use super::{CodecStream, Dac, Decoder, WINDOW};

/// A running decoder. Tokens are decoded in windows with all the neighbours that their samples depend on, so how they are
/// pushed never changes a sample.
pub struct DacStream<'a> {
    codec: &'a Dac,
    levels: usize,
    reach: usize,
    /// Codes not yet past the reach of the next window, `levels` a token.
    codes: Vec<u16>,
    /// Tokens of them that are decoded already.
    before: usize,
}

impl<'a> DacStream<'a> {
    pub(super) fn new(codec: &'a Dac, levels: usize) -> Self {
        let most = codec.config().n_codebooks;
        assert!((1..=most).contains(&levels), "levels must be 1 to {most}, found {levels}");
        Self { codec, levels, reach: Decoder::reach(codec.config()), codes: Vec::new(), before: 0 }
    }

    /// Decodes `count` tokens with the neighbours there are.
    fn decode(&mut self, count: usize) -> Vec<f32> {
        let tokens = (self.before + count + self.reach).min(self.codes.len() / self.levels);
        let rows: Vec<u16> = (0..self.levels)
            .flat_map(|level| self.codes.iter().skip(level).step_by(self.levels).take(tokens).copied())
            .collect();
        let all = self.codec.decoder.forward(&self.codec.quantizer.decode(&rows, tokens));
        let hop = self.codec.config().hop();
        let samples = all[self.before * hop..(self.before + count) * hop].to_vec();
        self.before += count;
        let gone = self.before.saturating_sub(self.reach);
        self.codes.drain(..gone * self.levels);
        self.before -= gone;
        samples
    }
}

impl CodecStream for DacStream<'_> {
    fn push(&mut self, codes: &[u16]) -> Vec<f32> {
        self.codes.extend_from_slice(&codes[..self.levels]);
        if self.codes.len() / self.levels >= self.before + WINDOW + self.reach {
            self.decode(WINDOW)
        } else {
            Vec::new()
        }
    }

    fn finish(mut self: Box<Self>) -> Vec<f32> {
        let mut samples = Vec::new();
        loop {
            let left = self.codes.len() / self.levels - self.before;
            if left == 0 {
                return samples;
            }
            samples.extend(self.decode(left.min(WINDOW)));
        }
    }
}
