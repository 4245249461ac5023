//! MusicGen's frames, one after another and without end.

use std::collections::VecDeque;
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;

use super::{Decoder, DecoderState};
use crate::random;
use crate::sampler::{Sampling, blend};
use crate::tokens::DelayPattern;

/// Seconds that the models were trained on.
const WINDOW: f64 = 30.0;
/// Seconds of the end of a window that the next one begins with, as its authors' program has it.
const KEPT: f64 = 12.0;

/// An endless iterator of frames, each one code a codebook.
///
/// The model knows no more than its window. So at its end the model starts anew, is told the last frames, and goes on from
/// there: memory does not grow with length.
pub struct Frames {
    decoder: Arc<Decoder>,
    /// What each stream hears.
    texts: Vec<Vec<f32>>,
    /// Weights of the streams' logits.
    weights: Vec<f32>,
    sampling: Sampling,
    rng: ChaCha8Rng,
    pattern: DelayPattern,
    window: usize,
    kept: usize,
    state: DecoderState,
    /// Columns of this window as far back as the pattern reaches; the first is the start column.
    columns: VecDeque<Vec<u16>>,
    /// The latest frames: those that the next window begins with.
    latest: VecDeque<Vec<u16>>,
    /// The frames that this window began with.
    told: Vec<Vec<u16>>,
}

impl Frames {
    /// Frames for what the decoder hears of a text, `[tokens, width]`; nothing leaves the text out.
    pub(super) fn new(
        decoder: Arc<Decoder>,
        heard: Option<Vec<f32>>,
        frame_rate: f64,
        sampling: &Sampling,
        seed: u64,
    ) -> Self {
        // The stream that hears the text and the one that does not.
        let streams = match heard {
            None => vec![(1.0, Vec::new())],
            Some(heard) => vec![(sampling.guidance, heard), (1.0 - sampling.guidance, Vec::new())],
        };
        let (weights, texts): (Vec<f32>, Vec<Vec<f32>>) = streams.into_iter().filter(|(w, _)| *w != 0.0).unzip();
        let frames = |seconds: f64| (seconds * frame_rate).round() as usize;
        let mut all = Self {
            pattern: DelayPattern::staircase(decoder.config().num_codebooks),
            state: decoder.start(&[]),
            decoder,
            texts,
            weights,
            sampling: sampling.clone(),
            rng: random::stream(seed, "sample", 0),
            window: frames(WINDOW),
            kept: frames(KEPT),
            columns: VecDeque::new(),
            latest: VecDeque::new(),
            told: Vec::new(),
        };
        all.begin_window();
        all
    }

    fn begin_window(&mut self) {
        let config = self.decoder.config();
        let texts: Vec<&[f32]> = self.texts.iter().map(Vec::as_slice).collect();
        self.state = self.decoder.start(&texts);
        self.columns = [vec![config.vocab_size as u16; config.num_codebooks]].into();
        self.told = self.latest.iter().cloned().collect();
    }

    /// Reads the last column and writes the next; its place in the window.
    fn advance(&mut self) -> usize {
        let codes = self.decoder.config().vocab_size;
        let last = self.columns.back().expect("begins with the start column");
        let mut logits = self.decoder.step(last, &mut self.state);
        blend(&mut logits, &self.weights);
        let place = self.state.columns() - 1;
        let mut column = Vec::with_capacity(self.pattern.codebooks());
        for (k, logits) in logits.chunks_exact(codes).take(self.pattern.codebooks()).enumerate() {
            // Drawn even where the code is known: the place in the stream of numbers depends on the column alone.
            let drawn = self.sampling.draw(k, logits, &mut self.rng);
            column.push(match place.checked_sub(self.pattern.delay(k)) {
                None => codes as u16,
                Some(frame) => self.told.get(frame).map_or(drawn, |told| told[k]),
            });
        }
        self.columns.push_back(column);
        if self.columns.len() > self.pattern.longest() + 1 {
            self.columns.pop_front();
        }
        place
    }
}

impl Iterator for Frames {
    type Item = Vec<u16>;

    fn next(&mut self) -> Option<Vec<u16>> {
        loop {
            let longest = self.pattern.longest();
            if self.state.columns() == self.window + longest {
                self.begin_window();
            }
            let Some(frame) = self.advance().checked_sub(longest) else { continue };
            if frame < self.told.len() {
                continue;
            }
            let codes = self.pattern.frame(&self.columns);
            self.latest.push_back(codes.clone());
            if self.latest.len() > self.kept {
                self.latest.pop_front();
            }
            return Some(codes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::musicgen::MusicGen;

    /// After a window the model is told its last frames and goes on as if it had written them just now.
    #[test]
    fn a_new_window_goes_on_from_the_end_of_the_one_before() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/musicgen");
        let (model, _) = MusicGen::load(&folder).expect("a golden folder");
        let heard = Some(model.hear(&[5, 7, 1]));
        let sampling = Sampling { temperature: 0.0, guidance: 3.0, ..Sampling::default() };
        let begin = |window: usize, kept: usize| {
            let frames = Frames::new(model.decoder.clone(), heard.clone(), 50.0, &sampling, 0);
            Frames { window, kept, ..frames }
        };
        let written: Vec<Vec<u16>> = begin(20, 8).take(44).collect();
        let alone: Vec<Vec<u16>> = begin(1500, 600).take(20).collect();
        assert_eq!(written[..20], alone);
        // 12 new frames a window: those of the second follow frames 12 to 20, those of the third 24 to 32.
        for start in [12, 24] {
            let mut fresh = begin(1500, 600);
            fresh.told = written[start..start + 8].to_vec();
            let next: Vec<Vec<u16>> = fresh.take(12).collect();
            assert_eq!(written[start + 8..start + 20], next, "{start}");
        }
        assert_eq!(begin(20, 8).nth(43), written.last().cloned());
    }
}
