//! Prefix SiMBA language model over codec tokens (arXiv 2601.14786).
//!
//! Sequence: `[text prefix | start | frame 0 | frame 1 ...]`; the output at `start` predicts frame 0.
//! Text states go through Linear and LayerNorm; a caption that was dropped is replaced by learned null
//! tokens. Captions are right-aligned, so padding comes first and is masked: it never changes anything.
//! Every frame may also be told the mean of the prefix and where it stands in the pulse ([`crate::clock`]); the last
//! text token then predicts the tempo.
//! Every head has exactly `cardinality` outputs: the special token cannot be predicted or sampled.

mod config;
mod loss;
mod text;

use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};

use crate::backbone::{Backbone, Dropout, Simba};
use crate::clock;
use crate::ops;
use crate::parameters::Bound;
use crate::ssm::Mamba2State;
use crate::ssm::mamba2::NORM_EPSILON;

pub use config::{Head, LmConfig, LmConfigError};
pub use loss::{LmLoss, LossConfig, Targets, loss};
pub use text::TextBatch;

/// What the model remembers between frames.
#[derive(Debug, Clone)]
pub struct LmState {
    layers: Vec<Mamba2State>,
    /// What every frame is told of the text, `[B, d]`.
    told: Option<Tensor<2>>,
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
    condition_linear: Tensor<2>,
    condition_bias: Tensor<1>,
    norm_weight: Tensor<1>,
    norm_bias: Tensor<1>,
    null_prefix: Tensor<2>,
    told: Option<Tensor<2>>,
    clock: Option<Tensor<2>>,
    tempo_head: Option<(Tensor<2>, Tensor<1>)>,
    echo: Vec<Tensor<2>>,
    echo_gate: Vec<(Tensor<2>, Tensor<1>)>,
    embedding: Vec<Tensor<2>>,
    head: Vec<Tensor<2>>,
    head_bias: Vec<Tensor<1>>,
    same_again: Vec<(Tensor<2>, Tensor<1>)>,
    backbone: Simba,
}

impl Lm {
    /// Takes all tensors from `bound`, which must come from parameters made by [`LmConfig::init`].
    pub fn new(config: &LmConfig, bound: &Bound) -> Self {
        let codes = config.cardinality;
        let mut embedding = Vec::with_capacity(config.codebooks);
        let mut head = Vec::with_capacity(config.codebooks);
        for k in 0..config.codebooks {
            let mut table: Tensor<2> = bound.tensor(&format!("embedding.{k}.weight"));
            let vectors = (config.codec_width > 0).then(|| bound.tensor::<2>(&format!("codec_vectors.{k}")));
            if let Some(vectors) = &vectors {
                let near = vectors.clone().matmul(bound.tensor(&format!("codec_embedding.{k}")));
                let special = Tensor::zeros([1, config.d_model], bound.device());
                table = table + Tensor::cat(vec![near, special], 0);
            }
            let mut out = match config.head {
                Head::Free => bound.tensor(&format!("lm_head.{k}.weight")),
                Head::Tied => {
                    table.clone().narrow(0, 0, codes).matmul(bound.tensor(&format!("lm_head.{k}.projection")))
                }
                Head::Factored => bound
                    .tensor::<2>(&format!("lm_head.{k}.codes"))
                    .matmul(bound.tensor(&format!("lm_head.{k}.directions"))),
            };
            if let Some(vectors) = vectors {
                out = out + vectors.matmul(bound.tensor(&format!("codec_head.{k}")));
            }
            // Unit scale into the stack, small scale out of it, from one table.
            embedding.push(table * embedding_scale(config));
            head.push(out);
        }
        let per_codebook =
            |name: &str| -> Vec<String> { (0..config.codebooks).map(|k| name.replace('#', &k.to_string())).collect() };
        let gates = |wanted: bool, name: &str| -> Vec<(Tensor<2>, Tensor<1>)> {
            let gate = |name: &String| (bound.tensor(&format!("{name}.weight")), bound.tensor(&format!("{name}.bias")));
            if wanted { per_codebook(name).iter().map(gate).collect() } else { Vec::new() }
        };
        let lags = 0..config.echo_beats.len();
        Self {
            config: config.clone(),
            condition_linear: bound.tensor("condition_linear.weight"),
            condition_bias: bound.tensor("condition_linear.bias"),
            norm_weight: bound.tensor("condition_norm.weight"),
            norm_bias: bound.tensor("condition_norm.bias"),
            null_prefix: bound.tensor("null_prefix"),
            told: config.text_in_every_frame.then(|| bound.tensor("told.weight")),
            clock: config.beat_clock.then(|| bound.tensor("clock.weight")),
            tempo_head: config.beat_clock.then(|| (bound.tensor("tempo_head.weight"), bound.tensor("tempo_head.bias"))),
            echo: lags.map(|lag| bound.tensor(&format!("echo.{lag}.weight"))).collect(),
            echo_gate: gates(!config.echo_beats.is_empty(), "echo_gate.#"),
            embedding,
            head,
            head_bias: per_codebook("lm_head.#.bias").iter().map(|name| bound.tensor(name)).collect(),
            same_again: gates(config.same_again, "same_again.#"),
            backbone: Simba::new(&config.mixer(), config.layers, bound),
        }
    }

    /// The configuration it was built from.
    pub fn config(&self) -> &LmConfig {
        &self.config
    }

    /// The effective tables: input embeddings `[cardinality + 1, d]` and heads `[cardinality, d]`.
    pub(crate) fn tables(&self) -> (&[Tensor<2>], &[Tensor<2>]) {
        (&self.embedding, &self.head)
    }

    /// The prefix `[B, L, d]`.
    fn prefix(&self, text: &TextBatch) -> Tensor<3> {
        let config = &self.config;
        let device = self.null_prefix.device();
        let floats = |values: &[f32], width: usize| {
            let data = TensorData::new(values.to_vec(), [text.batch, text.length, width]);
            Tensor::<3>::from_data(data, &device)
        };
        let states = floats(&text.states, config.text_width);
        let linear = ops::linear_turned(states, self.condition_linear.clone(), Some(self.condition_bias.clone()));
        let text_btd = ops::layer_norm(linear, self.norm_weight.clone(), self.norm_bias.clone(), NORM_EPSILON);
        let null_btd = ops::linear(floats(&text.null, config.null_tokens), self.null_prefix.clone(), None);
        text_btd * floats(&text.text, 1) + null_btd
    }

    /// What every frame is told of the text, `[B, d]`: a projection of the mean of the prefix.
    fn told(&self, prefix_bld: &Tensor<3>, text: &TextBatch) -> Option<Tensor<2>> {
        let weight = self.told.clone()?;
        let counts: Vec<f32> = text.padding().iter().map(|&padding| (text.length - padding) as f32).collect();
        let counts = Tensor::<2>::from_data(TensorData::new(counts, [text.batch, 1]), &self.null_prefix.device());
        // Padding is zero in the prefix, so it adds nothing to the sum.
        let mean_bd = prefix_bld.clone().sum_dim(1).reshape([text.batch, self.config.d_model]) / counts;
        Some(ops::linear_turned(mean_bd, weight, None))
    }

    /// Inputs of the stack: the K embeddings, the clock and what is told of the text, summed.
    fn embed(&self, columns: Columns<'_>, batch: usize, told_bd: Option<&Tensor<2>>) -> Tensor<3> {
        let codes = columns.codes;
        let (books, frames) = (self.config.codebooks, self.frames(codes, batch));
        let mut sum: Option<Tensor<2>> = None;
        for k in 0..books {
            let rows = self.embedding[k].clone().select(0, self.indices(codes, batch, k));
            sum = Some(match sum {
                Some(sum) => sum + rows,
                None => rows,
            });
        }
        let sum = sum.expect("validated: at least one codebook");
        let mut x_btd = sum.reshape([batch, frames, self.config.d_model]);
        if let Some(weight) = &self.clock {
            assert_eq!(columns.clock.len(), batch * frames, "the clock must be [B, T]");
            let hands: Vec<f32> = columns.clock.iter().flat_map(|&ticks| clock::features(ticks)).collect();
            let hands = TensorData::new(hands, [batch, frames, clock::FEATURES]);
            x_btd = x_btd
                + ops::linear_turned(Tensor::<3>::from_data(hands, &self.null_prefix.device()), weight.clone(), None);
        }
        for (lag, weight) in self.echo.iter().enumerate() {
            let heard = self.echo_embedding(columns, batch, lag);
            x_btd = x_btd + ops::linear_turned(heard, weight.clone(), None);
        }
        match told_bd {
            Some(told_bd) => x_btd + told_bd.clone().reshape([batch, 1, self.config.d_model]),
            None => x_btd,
        }
    }

    /// Sum of the embeddings of what stood at a lag, `[B, T, d]`. The tables learn from the columns themselves; leaving them
    /// alone here saves a scatter per lag and codebook.
    fn echo_embedding(&self, columns: Columns<'_>, batch: usize, lag: usize) -> Tensor<3> {
        let (frames, width) = (self.frames(columns.codes, batch), self.config.d_model);
        let device = self.null_prefix.device();
        let mut sum = Tensor::<2>::zeros([batch * frames, width], &device);
        for (book, table) in self.embedding.iter().enumerate() {
            let (at, heard) = self.places(&self.echo_row(columns.echoes, batch, lag, book));
            let count = at.len();
            let at = Tensor::<1, Int>::from_data(TensorData::new(at, [count]), &device);
            let heard = Tensor::<2>::from_data(TensorData::new(heard, [count, 1]), &device);
            sum = sum + table.clone().detach().select(0, at) * heard;
        }
        sum.reshape([batch, frames, width])
    }

    /// The codes of one lag and codebook, `[B * T]`.
    fn echo_row(&self, echoes: &[u16], batch: usize, lag: usize, book: usize) -> Vec<u16> {
        let rows = self.config.echo_beats.len() * self.config.codebooks;
        assert_eq!(echoes.len() % (batch * rows), 0, "echoes must be [B, lags, K, T]");
        rows_of(echoes, batch, rows, lag * self.config.codebooks + book).collect()
    }

    /// Where the codes stand in a table, and 1 for codes, 0 for the special token.
    fn places(&self, codes: &[u16]) -> (Vec<i64>, Vec<f32>) {
        let special = self.config.special();
        let place = |&code: &u16| if code == special { (0, 0.0) } else { (i64::from(code), 1.0) };
        codes.iter().map(place).unzip()
    }

    fn frames(&self, codes: &[u16], batch: usize) -> usize {
        let books = self.config.codebooks;
        assert_eq!(codes.len() % (batch * books), 0, "codes must be [B, K, T]");
        codes.len() / (batch * books)
    }

    /// Codes of one codebook as indices `[B * T]`.
    fn indices(&self, codes: &[u16], batch: usize, book: usize) -> Tensor<1, Int> {
        let values = rows_of(codes, batch, self.config.codebooks, book).map(i64::from).collect::<Vec<_>>();
        let count = values.len();
        Tensor::from_data(TensorData::new(values, [count]), &self.null_prefix.device())
    }

    /// Logits from final hidden states; gates raise the code just heard and those heard at each lag.
    fn logits(&self, h_btd: Tensor<3>, columns: Columns<'_>) -> Logits {
        let [batch, frames, width] = h_btd.dims();
        let h_nd = h_btd.reshape([batch * frames, width]);
        (0..self.config.codebooks)
            .map(|k| {
                let gated = |(weight, bias): &(Tensor<2>, Tensor<1>)| {
                    ops::linear_turned(h_nd.clone(), weight.clone(), Some(bias.clone()))
                };
                let mut gates: Vec<Tensor<2>> = Vec::new();
                let mut heard: Vec<Vec<u16>> = Vec::new();
                if let Some(gate) = self.same_again.get(k) {
                    gates.push(gated(gate));
                    heard.push(rows_of(columns.codes, batch, self.config.codebooks, k).collect());
                }
                if let Some(gate) = self.echo_gate.get(k) {
                    gates.push(gated(gate));
                    heard.extend((0..self.echo.len()).map(|lag| self.echo_row(columns.echoes, batch, lag, k)));
                }
                let logits = ops::linear_turned(h_nd.clone(), self.head[k].clone(), Some(self.head_bias[k].clone()));
                if gates.is_empty() { logits } else { self.raise(logits, Tensor::cat(gates, 1), &heard) }
            })
            .collect()
    }

    /// Adds gate g of a row (`[N, G]`) to the logit of the code that `heard[g]` has there, where there is one.
    fn raise(&self, logits_nv: Tensor<2>, gates_ng: Tensor<2>, heard: &[Vec<u16>]) -> Tensor<2> {
        let [rows, gates] = gates_ng.dims();
        let across: Vec<u16> = (0..rows).flat_map(|n| heard.iter().map(move |codes| codes[n])).collect();
        let (at, heard) = self.places(&across);
        let device = logits_nv.device();
        let heard = Tensor::<2>::from_data(TensorData::new(heard, [rows, gates]), &device);
        let at = Tensor::<2, Int>::from_data(TensorData::new(at, [rows, gates]), &device);
        logits_nv.scatter(1, at, gates_ng * heard, IndexingUpdateOp::Add)
    }

    /// Reads the text: the state before the start column.
    pub fn start(&self, text: &TextBatch) -> LmState {
        let fresh = Some(self.backbone.start(text.batch));
        let prefix = self.prefix(text);
        let told = self.told(&prefix, text);
        let (_, layers) = self.backbone.forward(prefix, &text.padding(), fresh, &mut Dropout::off());
        LmState { layers: layers.expect("a state was given"), told }
    }

    /// Many columns: logits per codebook and the state after them.
    pub fn forward(&self, columns: Columns<'_>, batch: usize, state: LmState) -> (Logits, LmState) {
        let x_btd = self.embed(columns, batch, state.told.as_ref());
        let (h_btd, layers) = self.backbone.forward(x_btd, &[], Some(state.layers), &mut Dropout::off());
        let after = LmState { layers: layers.expect("a state was given"), told: state.told };
        (self.logits(h_btd, columns), after)
    }

    /// One column: logits per codebook `[B, cardinality]` and the state after it.
    pub fn step(&self, column: Columns<'_>, batch: usize, state: LmState) -> (Logits, LmState) {
        let width = self.config.d_model;
        let x_bd = self.embed(column, batch, state.told.as_ref()).reshape([batch, width]);
        let (h_bd, layers) = self.backbone.step(x_bd, state.layers);
        (self.logits(h_bd.reshape([batch, 1, width]), column), LmState { layers, told: state.told })
    }

    /// Text and columns in one pass, for training.
    pub fn forward_with_text(&self, text: &TextBatch, columns: Columns<'_>, dropout: &mut Dropout) -> LmOutput {
        let prefix = self.prefix(text);
        let told = self.told(&prefix, text);
        let x_btd = self.embed(columns, text.batch, told.as_ref());
        let frames = x_btd.dims()[1];
        let all = Tensor::cat(vec![prefix, x_btd], 1);
        let (h_btd, _) = self.backbone.forward(all, &text.padding(), None, dropout);
        let tempo = self.tempo_head.as_ref().map(|(weight, bias)| {
            let last_bd = h_btd.clone().narrow(1, text.length - 1, 1).reshape([text.batch, self.config.d_model]);
            ops::linear_turned(last_bd, weight.clone(), Some(bias.clone()))
        });
        LmOutput { logits: self.logits(h_btd.narrow(1, text.length, frames), columns), tempo }
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

/// Factor between the stored embedding (deviation 0.5 / sqrt(d)) and the input of the stack (about 1).
pub(crate) fn embedding_scale(config: &LmConfig) -> f32 {
    2.0 * (config.d_model as f32).sqrt()
}

/// Row `book` of every clip of row-major `[B, K, T]` codes, clip after clip.
fn rows_of(codes: &[u16], batch: usize, books: usize, book: usize) -> impl Iterator<Item = u16> + '_ {
    let frames = codes.len() / (batch * books);
    (0..batch).flat_map(move |b| {
        let at = (b * books + book) * frames;
        codes[at..at + frames].iter().copied()
    })
}
