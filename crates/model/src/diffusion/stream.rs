//! The second stage on an outline that goes on: overlapped windows with a fixed look-ahead (a shorter one in the first window), in
//! constant memory.
//!
//! The noise of a frame depends on the seed and its place alone, a share of it on the place within the beat; and every window
//! is painted with the frames around it. So how frames are pushed changes nothing, and two windows that meet have painted the
//! place where they meet alike, but for what Mamba-2 layers heard from beyond the look-ahead: there they fade into each other.

use std::collections::VecDeque;

use super::{Refiner, Solver};
use crate::clock::Metronome;
use crate::codec::windowed::Windowed;
use crate::codec::{Codec, DecodeStream, PaintStream, Refinable, Windows, decode_by_stream};
use crate::noise::frame_noise;
use crate::tokens::{CodecSpec, CodecTokens};

/// Frames that the first window looks ahead, if later ones look further: the first sound comes early.
const OPENING_AHEAD: usize = 16;

/// A codec of one level, whose detail a second stage paints: what the two together can do at best.
pub struct RefinedCodec<'a> {
    codec: &'a dyn Refinable,
    refiner: &'a Refiner,
    text: Option<Vec<f32>>,
    spec: CodecSpec,
}

impl<'a> RefinedCodec<'a> {
    /// From its parts; the second stage hears a text, `[tokens, text_width]`, or none.
    pub fn new(codec: &'a dyn Refinable, refiner: &'a Refiner, text: Option<Vec<f32>>) -> Self {
        let spec = CodecSpec { name: format!("{}, refined", codec.spec().name), levels: 1, ..codec.spec().clone() };
        Self { codec, refiner, text, spec }
    }
}

impl Codec for RefinedCodec<'_> {
    fn spec(&self) -> &CodecSpec {
        &self.spec
    }

    fn encode(&self, mono: &[f32]) -> CodecTokens {
        let tokens = self.codec.encode(mono).first_levels(1).expect("a codec has a level");
        CodecTokens { spec: self.spec.clone(), ..tokens }
    }

    fn decode(&self, tokens: &CodecTokens, _levels: usize, seed: u64) -> Vec<f32> {
        let text = self.text.clone();
        decode_by_stream(Box::new(RefinerStream::new(self.refiner, self.codec, 1, text, None, seed)), tokens)
    }
}

/// A running second stage: frames of first-level codes in, samples out.
pub struct RefinerStream<'a> {
    refiner: &'a Refiner,
    codec: &'a dyn Refinable,
    text: Option<Vec<f32>>,
    seed: u64,
    metronome: Metronome,
    windows: Windowed,
    /// Levels whose detail painting begins with; 0: it begins with noise alone.
    sketched: usize,
    /// Sets of noise of a frame.
    sets: usize,
    /// Frames pushed.
    place: u64,
    /// Codes whose detail is not painted yet.
    waiting: VecDeque<u16>,
    decoder: Box<dyn PaintStream + 'a>,
}

impl<'a> RefinerStream<'a> {
    /// Starts a clip whose frames have codes of `levels` levels, with a text, `[tokens, text_width]`, played at `tempo` beats a
    /// minute; `None`: without a beat.
    ///
    /// # Panics
    /// If the refiner was made for another codec or another text encoder.
    pub fn new(
        refiner: &'a Refiner,
        codec: &'a dyn Refinable,
        levels: usize,
        text: Option<Vec<f32>>,
        tempo: Option<f32>,
        seed: u64,
    ) -> Self {
        let config = refiner.config();
        let widths = [codec.outline_width(), codec.detail_width()];
        assert_eq!([config.outline_width, config.detail_width], widths, "widths of outline and detail");
        let ok = text.as_ref().is_none_or(|text| text.len().is_multiple_of(config.text_width));
        assert!(ok, "text states of another width than {}", config.text_width);
        let sampling = &config.sampling;
        let sets = if sampling.solver == Solver::Ancestral { 1 + sampling.steps } else { 1 };
        let sketched = if sampling.strength < 1.0 && levels > 1 { levels } else { 0 };
        let row = config.outline_width + (sets + usize::from(sketched > 0)) * config.detail_width;
        let tempo = tempo.filter(|_| sampling.beat_noise > 0.0);
        let metronome = Metronome::new(tempo, codec.spec().frame_rate() as f32);
        let decoder = codec.painted(seed, &metronome);
        let windows = Windowed::new([row, config.detail_width], sampling.halo, sampling.window);
        Self {
            // As much at once as the codec waits for.
            windows: windows.opening_with([decoder.opening(), OPENING_AHEAD]).blending(sampling.halo / 2),
            decoder,
            refiner,
            codec,
            text,
            seed,
            metronome,
            sketched,
            sets,
            place: 0,
            waiting: VecDeque::new(),
        }
    }

    /// Detail of a window whose rows are outlines, noise and perhaps a sketch side by side.
    fn paint(refiner: &Refiner, text: Option<&[f32]>, sets: usize, sketched: bool, rows: &[f32]) -> Vec<f32> {
        let (outline, detail) = (refiner.config().outline_width, refiner.config().detail_width);
        let row = outline + (sets + usize::from(sketched)) * detail;
        let part = |from: usize, width: usize| -> Vec<f32> {
            rows.chunks_exact(row).flat_map(|row| row[from..from + width].iter().copied()).collect()
        };
        let sketch = sketched.then(|| part(outline + sets * detail, detail));
        refiner.paint(&part(0, outline), sketch, text, |set| part(outline + set * detail, detail))
    }

    fn decode(&mut self, detail: &[f32]) -> Vec<f32> {
        let mut samples = Vec::new();
        for row in detail.chunks_exact(self.refiner.config().detail_width) {
            let code = self.waiting.pop_front().expect("a code for every frame");
            samples.extend(self.decoder.push(code, row));
        }
        samples
    }
}

impl DecodeStream for RefinerStream<'_> {
    fn push(&mut self, codes: &[u16]) -> Vec<f32> {
        self.waiting.push_back(codes[0]);
        let mut row = self.codec.outline(codes[0]);
        let config = self.refiner.config();
        let (share, count) = (config.sampling.beat_noise, self.sets * config.detail_width);
        row.extend(frame_noise(self.seed, "refine", &self.metronome, share, self.place, count));
        self.place += 1;
        if self.sketched > 0 {
            let told = self.codec.detail(&codes[..self.sketched]);
            row.extend_from_slice(&told);
            row.extend_from_slice(&self.refiner.detail_mean()[told.len()..]);
        }
        let (refiner, text, sets, sketched) = (self.refiner, self.text.as_deref(), self.sets, self.sketched > 0);
        let detail = self.windows.push(&row, |rows| Self::paint(refiner, text, sets, sketched, rows));
        self.decode(&detail)
    }

    fn opening(&self) -> usize {
        self.windows.opening()
    }

    fn windows(&self, frames: usize) -> Windows {
        let mut all = vec![("second stage", self.windows.starts(frames))];
        all.extend(self.decoder.windows(frames));
        all
    }

    fn finish(mut self: Box<Self>) -> Vec<f32> {
        let (refiner, text, sets, sketched) = (self.refiner, self.text.as_deref(), self.sets, self.sketched > 0);
        let detail = self.windows.finish(|rows| Self::paint(refiner, text, sets, sketched, rows));
        let mut samples = self.decode(&detail);
        let Self { decoder, .. } = *self;
        samples.extend(decoder.finish());
        samples
    }
}
