//! Both ends of the language model: from text and columns to the stack's input, and from its output to logits.

use burn::tensor::{Device, IndexingUpdateOp, Int, Tensor, TensorData};

use crate::backbone::TextMemory;
use crate::clock;
use crate::ops;
use crate::parameters::Bound;
use crate::ssm::mamba2::NORM_EPSILON;

use super::config::Positions;
use super::{Columns, Head, LmConfig, LmOutput, Logits, TextBatch, positions, rows_of};

/// What the stack reads.
pub(crate) struct StackInput {
    /// The sequence.
    pub x_btd: Tensor<3>,
    /// Places of the sequence that do not count, one number a clip.
    pub padding: Vec<usize>,
    /// The text, for a stack with cross-attention.
    pub memory: Option<TextMemory>,
    /// The text, whichever way it enters.
    text_bld: Tensor<3>,
    /// Columns, which end the sequence.
    columns: usize,
}

/// Every tensor of the model but those of its stack.
pub(crate) struct Ends {
    config: LmConfig,
    condition_linear: Tensor<2>,
    condition_bias: Tensor<1>,
    norm_weight: Tensor<1>,
    norm_bias: Tensor<1>,
    null_prefix: Option<Tensor<2>>,
    told: Option<Tensor<2>>,
    clock: Option<Tensor<2>>,
    tempo_head: Option<(Tensor<2>, Tensor<1>)>,
    echo: Vec<Tensor<2>>,
    echo_gate: Vec<(Tensor<2>, Tensor<1>)>,
    embedding: Vec<Tensor<2>>,
    head: Vec<Tensor<2>>,
    head_bias: Vec<Tensor<1>>,
    same_again: Vec<(Tensor<2>, Tensor<1>)>,
}

impl Ends {
    /// Takes its tensors from `bound`.
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
                Head::Published => bound.tensor::<2>(&format!("lm_head.{k}.weight")).narrow(0, 0, codes),
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
            null_prefix: (config.null_tokens > 0).then(|| bound.tensor("null_prefix")),
            told: config.text_in_every_frame.then(|| bound.tensor("told.weight")),
            clock: config.beat_clock.then(|| bound.tensor("clock.weight")),
            tempo_head: config.beat_clock.then(|| (bound.tensor("tempo_head.weight"), bound.tensor("tempo_head.bias"))),
            echo: lags.map(|lag| bound.tensor(&format!("echo.{lag}.weight"))).collect(),
            echo_gate: gates(!config.echo_beats.is_empty(), "echo_gate.#"),
            embedding,
            head,
            head_bias: match config.head {
                Head::Published => Vec::new(),
                _ => per_codebook("lm_head.#.bias").iter().map(|name| bound.tensor(name)).collect(),
            },
            same_again: gates(config.same_again, "same_again.#"),
        }
    }

    fn device(&self) -> Device {
        self.condition_linear.device()
    }

    /// The effective tables: input embeddings `[cardinality + 1, d]` and heads `[cardinality, d]`.
    pub fn tables(&self) -> (&[Tensor<2>], &[Tensor<2>]) {
        (&self.embedding, &self.head)
    }

    /// The text `[B, L, d]`, zero where there is none.
    pub fn prefix(&self, text: &TextBatch) -> Tensor<3> {
        let config = &self.config;
        let device = self.device();
        let floats = |values: &[f32], width: usize| {
            let data = TensorData::new(values.to_vec(), [text.batch, text.length, width]);
            Tensor::<3>::from_data(data, &device)
        };
        let states = floats(&text.states, config.text_width);
        let linear = ops::linear_turned(states, self.condition_linear.clone(), Some(self.condition_bias.clone()));
        let text_btd = ops::layer_norm(linear, self.norm_weight.clone(), self.norm_bias.clone(), NORM_EPSILON);
        let text_btd = text_btd * floats(&text.text, 1);
        match &self.null_prefix {
            Some(null) => text_btd + ops::linear(floats(&text.null, config.null_tokens), null.clone(), None),
            None => text_btd,
        }
    }

    /// What every frame is told of the text, `[B, d]`: a projection of the mean of the text.
    pub fn told(&self, text_bld: &Tensor<3>, text: &TextBatch) -> Option<Tensor<2>> {
        let weight = self.told.clone()?;
        Some(ops::linear_turned(self.mean(text_bld, text), weight, None))
    }

    /// The mean of each text, `[B, d]`.
    fn mean(&self, text_bld: &Tensor<3>, text: &TextBatch) -> Tensor<2> {
        let counts: Vec<f32> = text.padding().iter().map(|&padding| (text.length - padding) as f32).collect();
        let counts = Tensor::<2>::from_data(TensorData::new(counts, [text.batch, 1]), &self.device());
        // Padding is zero, so it adds nothing to the sum.
        text_bld.clone().sum_dim(1).reshape([text.batch, self.config.d_model]) / counts
    }

    /// Logits of the tempo classes, `[B, classes]`, from what the stack made of the last text token, or from the mean of a
    /// text that is attended to.
    pub fn tempo(&self, h_btd: &Tensor<3>, text_bld: &Tensor<3>, text: &TextBatch) -> Option<Tensor<2>> {
        let (weight, bias) = self.tempo_head.clone()?;
        let read_bd = if self.config.backbone.is_cross() {
            self.mean(text_bld, text)
        } else {
            h_btd.clone().narrow(1, text.length - 1, 1).reshape([text.batch, self.config.d_model])
        };
        Some(ops::linear_turned(read_bd, weight, Some(bias)))
    }

    /// What the stack reads in training: text and columns in one sequence, or columns alone beside the text.
    pub fn input(&self, text: &TextBatch, columns: Columns<'_>) -> StackInput {
        let text_bld = self.prefix(text);
        let told = self.told(&text_bld, text);
        let x_btd = self.embed(columns, text.batch, told.as_ref());
        let columns = x_btd.dims()[1];
        if self.config.backbone.is_cross() {
            let memory = TextMemory { text_bld: text_bld.clone(), padding: text.padding() };
            let x_btd = self.place(x_btd, &vec![0; text.batch]);
            StackInput { x_btd, padding: Vec::new(), memory: Some(memory), text_bld, columns }
        } else {
            let padding = text.padding();
            let first = text.first_positions();
            let x_btd = self.place(Tensor::cat(vec![text_bld.clone(), x_btd], 1), &first);
            StackInput { x_btd, padding, memory: None, text_bld, columns }
        }
    }

    /// Logits and tempo from the stack's output for an [`StackInput`].
    pub fn output(&self, h_btd: Tensor<3>, input: &StackInput, text: &TextBatch, columns: Columns<'_>) -> LmOutput {
        let tempo = self.tempo(&h_btd, &input.text_bld, text);
        let first = h_btd.dims()[1] - input.columns;
        LmOutput { logits: self.logits(h_btd.narrow(1, first, input.columns), columns), tempo }
    }

    /// Adds the position of every place; sequence b starts at `first[b]`, and what stands before 0 is padding.
    pub fn place(&self, x_btd: Tensor<3>, first: &[i64]) -> Tensor<3> {
        if self.config.positions == Positions::None {
            return x_btd;
        }
        let [batch, frames, width] = x_btd.dims();
        let mut values = vec![0.0; batch * frames * width];
        for (row, target) in values.chunks_exact_mut(width).enumerate() {
            if let Ok(position) = u64::try_from(first[row / frames] + (row % frames) as i64) {
                positions::sinusoid(position, target);
            }
        }
        let device = x_btd.device();
        x_btd + Tensor::from_data(TensorData::new(values, [batch, frames, width]), &device)
    }

    /// Inputs of the stack: the K embeddings, the clock and what is told of the text, summed.
    pub fn embed(&self, columns: Columns<'_>, batch: usize, told_bd: Option<&Tensor<2>>) -> Tensor<3> {
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
            x_btd = x_btd + ops::linear_turned(Tensor::<3>::from_data(hands, &self.device()), weight.clone(), None);
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
        let device = self.device();
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
        Tensor::from_data(TensorData::new(values, [count]), &self.device())
    }

    /// Logits from final hidden states; gates raise the code just heard and those heard at each lag.
    pub fn logits(&self, h_btd: Tensor<3>, columns: Columns<'_>) -> Logits {
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
                let logits = ops::linear_turned(h_nd.clone(), self.head[k].clone(), self.head_bias.get(k).cloned());
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
}

/// Factor between the stored embedding (deviation 0.5 / sqrt(d)) and the input of the stack (about 1); published
/// embeddings are read as they are.
fn embedding_scale(config: &LmConfig) -> f32 {
    if config.head == Head::Published { 1.0 } else { 2.0 * (config.d_model as f32).sqrt() }
}
