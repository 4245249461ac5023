//! Decoding that goes on: token frames in, samples out, constant memory. Tokens go through in windows with all the neighbours that
//! their samples depend on, so how they are pushed never changes a sample.

use super::{Dac, DecodeStream, Decoder, PaintStream, WINDOW, Windowed};

/// A running decoder.
pub(super) struct DacStream<'a> {
    codec: &'a Dac,
    levels: usize,
    windows: Windowed,
}

impl<'a> DacStream<'a> {
    pub(super) fn new(codec: &'a Dac, levels: usize) -> Self {
        let config = codec.config();
        let most = config.n_codebooks;
        assert!((1..=most).contains(&levels), "levels must be 1 to {most}, found {levels}");
        let windows = Windowed::new([config.latent(), config.hop()], Decoder::reach(config), WINDOW);
        Self { codec, levels, windows }
    }
}

impl DecodeStream for DacStream<'_> {
    fn push(&mut self, codes: &[u16]) -> Vec<f32> {
        let latent = self.codec.quantizer.decode(&codes[..self.levels]);
        self.windows.push(&latent, |latents| self.codec.decoder.forward(latents))
    }

    fn finish(mut self: Box<Self>) -> Vec<f32> {
        self.windows.finish(|latents| self.codec.decoder.forward(latents))
    }
}

impl PaintStream for DacStream<'_> {
    fn opening(&self) -> usize {
        self.windows.opening()
    }

    fn push(&mut self, code: u16, detail: &[f32]) -> Vec<f32> {
        let mut projections = self.codec.codebook_row(0, code).to_vec();
        projections.extend_from_slice(detail);
        let codes = self.codec.tokens_of(&projections, self.levels).codes;
        DecodeStream::push(self, &codes)
    }

    fn finish(self: Box<Self>) -> Vec<f32> {
        DecodeStream::finish(self)
    }
}
