//! DAC on sound that goes on, in constant memory: samples in and codes out, and the other way. Everything goes through in
//! windows with all the neighbours that it depends on, so how it is pushed never changes a code or a sample.

use super::{Dac, DecodeStream, Decoder, EncodeStream, PaintStream, WINDOW, Windowed};

/// A running encoder.
pub(super) struct DacEncoder<'a> {
    codec: &'a Dac,
    windows: Windowed,
}

impl<'a> DacEncoder<'a> {
    pub(super) fn new(codec: &'a Dac) -> Self {
        Self { codec, windows: codec.encoder_windows() }
    }
}

impl EncodeStream for DacEncoder<'_> {
    fn push(&mut self, mono: &[f32]) -> Vec<u16> {
        let latents = self.windows.push(mono, |samples| self.codec.latents_of_window(samples));
        self.codec.quantizer.encode(latents).codes
    }

    fn finish(mut self: Box<Self>) -> Vec<u16> {
        let latents = self.windows.finish(|samples| self.codec.latents_of_window(samples));
        self.codec.quantizer.encode(latents).codes
    }
}

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
