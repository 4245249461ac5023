//! Language model over codec tokens (arXiv 2601.14786), with any [`crate::backbone`].
//!
//! Sequence: `[text prefix | start | frame 0 | frame 1 ...]`; the output at `start` predicts frame 0. A backbone with
//! cross-attention has no prefix and attends to the text instead.
//! Text states go through Linear and LayerNorm; a caption that was dropped is replaced by learned null
//! tokens. Captions are right-aligned, so padding comes first and is masked: it never changes anything.
//! Every frame may also be told the mean of the text and where it stands in the pulse ([`crate::clock`]); the last
//! text token then predicts the tempo.
//! Every head has exactly `cardinality` outputs: the special token cannot be predicted or sampled.

mod checkpointed;
mod config;
mod cost;
mod ends;
mod loss;
pub(crate) mod positions;
mod text;

use burn::tensor::Tensor;

use crate::backbone::{Backbone, Dropout, LayerState, Stack, TextMemory};
use crate::clock;
use crate::parameters::Bound;
use ends::Ends;
pub(crate) use positions::sinusoid;

pub use checkpointed::{Pass, checkpointed_gradients};
pub use config::{Head, LmConfig, LmConfigError, Positions};
pub use cost::{Flops, ParameterCounts, TrainingMemory, TrainingShape};
pub use loss::{LmLoss, LossConfig, Targets, loss};
pub use text::TextBatch;

/// What the model remembers between frames.
#[derive(Debug, Clone)]
pub struct LmState {
    layers: Vec<LayerState>,
    /// Position of the next column of each clip.
    positions: Vec<i64>,
    /// What every frame is told of the text, `[B, d]`.
    told: Option<Tensor<2>>,
}

impl LmState {
    /// What every sublayer remembers, block after block.
    pub fn layers(&self) -> &[LayerState] {
        &self.layers
    }
}

/// Columns for the model to read.
#[derive(Debug, Clone, Copy)]
pub struct Columns<'a> {
    /// Codes, row-major `[B, K, T]`.
    pub codes: &'a [u16],
    /// Beat clock of the frame that each column predicts, `[B, T]`; not read by a model without a clock.
    pub clock: &'a [u16],
    /// Codes at each lag before the column that is predicted, `[B, lags, K, T]`, the special token where there is none:
    /// see [`echoes`].
    pub echoes: &'a [u16],
}

/// What training needs of one pass.
pub struct LmOutput {
    /// Logits of each codebook, `[B * T, cardinality]`.
    pub logits: Logits,
    /// Logits of the tempo classes, `[B, classes]`, from a model with a beat clock.
    pub tempo: Option<Tensor<2>>,
}

/// Logits of each codebook, `[B * T, cardinality]`.
pub type Logits = Vec<Tensor<2>>;

/// The model for one pass: tensors taken from bound parameters.
pub struct Lm {
    config: LmConfig,
    ends: Ends,
    stack: Stack,
}

impl Lm {
    /// Takes all tensors from `bound`, which must come from parameters made by [`LmConfig::init`].
    pub fn new(config: &LmConfig, bound: &Bound) -> Self {
        Self { config: config.clone(), ends: Ends::new(config, bound), stack: Stack::new(&config.stack(), bound) }
    }

    /// The configuration it was built from.
    pub fn config(&self) -> &LmConfig {
        &self.config
    }

    /// The effective tables: input embeddings `[cardinality + 1, d]` and heads `[cardinality, d]`.
    pub(crate) fn tables(&self) -> (&[Tensor<2>], &[Tensor<2>]) {
        self.ends.tables()
    }

    /// Reads the text: the state before the start column.
    pub fn start(&self, text: &TextBatch) -> LmState {
        let text_bld = self.ends.prefix(text);
        let told = self.ends.told(&text_bld, text);
        let padding = text.padding();
        if self.config.backbone.is_cross() {
            let memory = TextMemory { text_bld, padding };
            let layers = self.stack.start(text.batch, Some(&memory));
            return LmState { layers, positions: vec![0; text.batch], told };
        }
        let first = text.first_positions();
        let x_btd = self.ends.place(text_bld, &first);
        let fresh = Some(self.stack.start(text.batch, None));
        let (_, layers) = self.stack.forward(x_btd, &padding, None, fresh, &mut Dropout::off());
        let positions = first.iter().map(|first| first + text.length as i64).collect();
        LmState { layers: layers.expect("a state was given"), positions, told }
    }

    /// Many columns: logits per codebook and the state after them.
    pub fn forward(&self, columns: Columns<'_>, batch: usize, state: LmState) -> (Logits, LmState) {
        let LmState { layers, mut positions, told } = state;
        let x_btd = self.ends.place(self.ends.embed(columns, batch, told.as_ref()), &positions);
        let frames = x_btd.dims()[1];
        let (h_btd, layers) = self.stack.forward(x_btd, &[], None, Some(layers), &mut Dropout::off());
        positions.iter_mut().for_each(|position| *position += frames as i64);
        let after = LmState { layers: layers.expect("a state was given"), positions, told };
        (self.ends.logits(h_btd, columns), after)
    }

    /// One column: logits per codebook `[B, cardinality]` and the state after it.
    pub fn step(&self, column: Columns<'_>, batch: usize, state: LmState) -> (Logits, LmState) {
        let LmState { layers, mut positions, told } = state;
        let width = self.config.d_model;
        let x_btd = self.ends.place(self.ends.embed(column, batch, told.as_ref()), &positions);
        let (h_bd, layers) = self.stack.step(x_btd.reshape([batch, width]), layers);
        positions.iter_mut().for_each(|position| *position += 1);
        (self.ends.logits(h_bd.reshape([batch, 1, width]), column), LmState { layers, positions, told })
    }

    /// Text and columns in one pass, for training.
    pub fn forward_with_text(&self, text: &TextBatch, columns: Columns<'_>, dropout: &mut Dropout) -> LmOutput {
        let input = self.ends.input(text, columns);
        let (x_btd, memory) = (input.x_btd.clone(), input.memory.as_ref());
        let (h_btd, _) = self.stack.forward(x_btd, &input.padding, memory, None, dropout);
        self.ends.output(h_btd, &input, text, columns)
    }
}

/// What stood at each lag before every column that is predicted, `[B, lags, K, T]`, from inputs `[B, K, T]` and the beat
/// clock `[B, T]`; the special token where nothing did.
pub fn echoes(config: &LmConfig, codes: &[u16], clock: &[u16], batch: usize) -> Vec<u16> {
    let (books, special) = (config.codebooks, config.special());
    let frames = codes.len() / (batch * books);
    let mut out = Vec::with_capacity(codes.len() * config.echo_beats.len());
    for (codes, clock) in codes.chunks_exact(books * frames).zip(clock.chunks_exact(frames)) {
        for &beats in &config.echo_beats {
            let before = clock::frames_before(clock, beats);
            for row in codes.chunks_exact(frames) {
                // The column predicted at i is read at i + 1.
                out.extend(before.iter().map(|before| before.map_or(special, |i| row[i + 1])));
            }
        }
    }
    out
}

/// Row `book` of every clip of row-major `[B, K, T]` codes, clip after clip.
fn rows_of(codes: &[u16], batch: usize, books: usize, book: usize) -> impl Iterator<Item = u16> + '_ {
    let frames = codes.len() / (batch * books);
    (0..batch).flat_map(move |b| {
        let at = (b * books + book) * frames;
        codes[at..at + frames].iter().copied()
    })
}
