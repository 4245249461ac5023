//! Prefix SiMBA language model over codec tokens (arXiv 2601.14786).
//!
//! Sequence: `[text prefix | start | frame 0 | frame 1 ...]`; the output at `start` predicts frame 0.
//! Text states go through Linear and LayerNorm; a caption that was dropped is replaced by learned null
//! tokens. Captions are right-aligned, so padding comes first and is masked: it never changes anything.
//! Every head has exactly `cardinality` outputs: the special token cannot be predicted or sampled.

use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::backbone::{Backbone, Dropout, Simba};
use crate::ops;
use crate::parameters::{Bound, Initialiser, Parameters, Role};
use crate::ssm::mamba2::NORM_EPSILON;
use crate::ssm::{Mamba2Config, Mamba2State};
use crate::tokens::DelayPattern;

/// How hidden states become logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Head {
    /// A table of its own per codebook.
    Free,
    /// The input embedding, after a learned square projection per codebook.
    Tied,
    /// A table of rank d_model / 4 per codebook.
    Factored,
}

/// Everything that decides the shapes of the model. Unknown keys are errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LmConfig {
    /// Codebooks modelled, counted from the codec's first (kappa).
    pub codebooks: usize,
    /// Delay of each codebook in columns; one entry per codebook.
    pub delays: Vec<usize>,
    /// Codes per codebook.
    pub cardinality: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Blocks.
    pub layers: usize,
    /// State entries per channel of a Mamba-2 layer.
    pub d_state: usize,
    /// Channels per head of a Mamba-2 layer.
    pub head_dim: usize,
    /// Inner width of a Mamba-2 layer as a multiple of `d_model`.
    #[serde(default = "two")]
    pub expand: usize,
    /// Frames per chunk of the scan; changes speed, never results.
    #[serde(default = "sixty_four")]
    pub chunk: usize,
    /// Width of the feed-forward layers as a multiple of `d_model`.
    #[serde(default = "two")]
    pub ff_multiple: usize,
    /// Width of the text encoder's states.
    pub text_width: usize,
    /// Learned tokens that stand for "no caption".
    #[serde(default = "one")]
    pub null_tokens: usize,
    /// How hidden states become logits.
    pub head: Head,
    /// Width of the codec's centroid vectors used by embeddings and heads; 0 uses none.
    #[serde(default)]
    pub codec_width: usize,
    /// A learned gate per codebook that raises the logit of the code just heard.
    #[serde(default)]
    pub same_again: bool,
}

fn one() -> usize {
    1
}
fn two() -> usize {
    2
}
fn sixty_four() -> usize {
    64
}

/// A rule of [`LmConfig`] that was broken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LmConfigError {
    /// A size is zero.
    #[error("model.{0} must be at least 1")]
    Zero(&'static str),
    /// The heads do not divide the inner width.
    #[error("model.head_dim = {head_dim} must divide expand * d_model = {inner}")]
    HeadDim {
        /// Channels per head.
        head_dim: usize,
        /// Inner width.
        inner: usize,
    },
    /// The number of delays is not the number of codebooks.
    #[error("model.delays has {found} entries, model.codebooks is {expected}")]
    Delays {
        /// Codebooks.
        expected: usize,
        /// Delays.
        found: usize,
    },
    /// Codes are stored in 16 bits and the special token needs one more value.
    #[error("model.cardinality = {0} must be at most 65535")]
    Cardinality(usize),
    /// Vectors were given that the configuration does not ask for, or the other way round.
    #[error("model.codec_width = {codec_width} needs {expected} centroid values, {found} were given")]
    CodecVectors {
        /// Width asked for.
        codec_width: usize,
        /// Values needed: codebooks * cardinality * codec_width.
        expected: usize,
        /// Values given.
        found: usize,
    },
}

impl LmConfig {
    /// Checks the rules that types cannot.
    pub fn validate(&self) -> Result<(), LmConfigError> {
        let sizes = [
            ("codebooks", self.codebooks),
            ("cardinality", self.cardinality),
            ("d_model", self.d_model),
            ("layers", self.layers),
            ("d_state", self.d_state),
            ("head_dim", self.head_dim),
            ("expand", self.expand),
            ("chunk", self.chunk),
            ("ff_multiple", self.ff_multiple),
            ("text_width", self.text_width),
            ("null_tokens", self.null_tokens),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(LmConfigError::Zero(name));
        }
        let inner = self.expand * self.d_model;
        if !inner.is_multiple_of(self.head_dim) {
            return Err(LmConfigError::HeadDim { head_dim: self.head_dim, inner });
        }
        if self.delays.len() != self.codebooks {
            return Err(LmConfigError::Delays { expected: self.codebooks, found: self.delays.len() });
        }
        if self.cardinality > usize::from(u16::MAX) {
            return Err(LmConfigError::Cardinality(self.cardinality));
        }
        Ok(())
    }

    /// Sizes of the Mamba-2 layers.
    pub fn mixer(&self) -> Mamba2Config {
        Mamba2Config {
            d_model: self.d_model,
            d_state: self.d_state,
            expand: self.expand,
            head_dim: self.head_dim,
            chunk: self.chunk,
        }
    }

    /// The delay pattern.
    pub fn pattern(&self) -> DelayPattern {
        DelayPattern::new(self.delays.clone())
    }

    /// The special token: start of sequence and delay filler.
    pub fn special(&self) -> u16 {
        self.cardinality as u16
    }

    fn head_rank(&self) -> usize {
        (self.d_model / 4).max(1)
    }

    /// Fresh parameters. `codec_vectors` is row-major `[codebooks, cardinality, codec_width]`, empty when
    /// `codec_width` is 0; each codebook is centred and scaled to unit mean square length.
    pub fn init(&self, codec_vectors: &[f32], draw: &mut Initialiser) -> Result<Parameters, LmConfigError> {
        self.validate()?;
        let expected = self.codebooks * self.cardinality * self.codec_width;
        if codec_vectors.len() != expected {
            return Err(LmConfigError::CodecVectors {
                codec_width: self.codec_width,
                expected,
                found: codec_vectors.len(),
            });
        }
        let (width, codes) = (self.d_model, self.cardinality);
        let mut all = Parameters::new();
        all.push(
            "condition_linear.weight",
            &[width, self.text_width],
            Role::Decayed,
            draw.fan_in(width * self.text_width, self.text_width),
        );
        all.push("condition_linear.bias", &[width], Role::Free, vec![0.0; width]);
        all.push("condition_norm.weight", &[width], Role::Free, vec![1.0; width]);
        all.push("condition_norm.bias", &[width], Role::Free, vec![0.0; width]);
        all.push("null_prefix", &[self.null_tokens, width], Role::Free, draw.normal(self.null_tokens * width, 1.0));
        let deviation = 0.5 / (width as f32).sqrt();
        for k in 0..self.codebooks {
            all.push(
                format!("embedding.{k}.weight"),
                &[codes + 1, width],
                Role::Decayed,
                draw.normal((codes + 1) * width, deviation),
            );
            match self.head {
                Head::Free => all.push(
                    format!("lm_head.{k}.weight"),
                    &[codes, width],
                    Role::Decayed,
                    draw.normal(codes * width, deviation),
                ),
                Head::Tied => {
                    let identity =
                        (0..width * width).map(|i| f32::from(u8::from(i / width == i % width))).collect();
                    // Decay would pull it to zero, not to the identity.
                    all.push(format!("lm_head.{k}.projection"), &[width, width], Role::Free, identity);
                }
                Head::Factored => {
                    let rank = self.head_rank();
                    all.push(
                        format!("lm_head.{k}.codes"),
                        &[codes, rank],
                        Role::Decayed,
                        draw.normal(codes * rank, 0.5 / (rank as f32).sqrt()),
                    );
                    all.push(
                        format!("lm_head.{k}.directions"),
                        &[rank, width],
                        Role::Decayed,
                        draw.normal(rank * width, 1.0 / (width as f32).sqrt()),
                    );
                }
            }
            all.push(format!("lm_head.{k}.bias"), &[codes], Role::Free, vec![0.0; codes]);
            if self.codec_width > 0 {
                let size = codes * self.codec_width;
                let vectors = normalised(&codec_vectors[k * size..(k + 1) * size], self.codec_width);
                all.push(format!("codec_vectors.{k}"), &[codes, self.codec_width], Role::Buffer, vectors);
                let map = &[self.codec_width, width];
                let count = self.codec_width * width;
                all.push(format!("codec_embedding.{k}"), map, Role::Decayed, draw.normal(count, deviation));
                all.push(format!("codec_head.{k}"), map, Role::Decayed, vec![0.0; count]);
            }
            if self.same_again {
                all.push(format!("same_again.{k}.weight"), &[1, width], Role::Free, vec![0.0; width]);
                all.push(format!("same_again.{k}.bias"), &[1], Role::Free, vec![0.0]);
            }
        }
        Simba::init(&self.mixer(), self.layers, self.ff_multiple * width, draw, &mut all);
        Ok(all)
    }
}

/// Centres the rows and scales them to a mean square length of one.
fn normalised(vectors: &[f32], width: usize) -> Vec<f32> {
    let rows = vectors.len() / width;
    let mut mean = vec![0.0_f64; width];
    for row in vectors.chunks_exact(width) {
        row.iter().zip(&mut mean).for_each(|(&value, sum)| *sum += f64::from(value) / rows as f64);
    }
    let mut out: Vec<f32> =
        vectors.iter().enumerate().map(|(i, &value)| (f64::from(value) - mean[i % width]) as f32).collect();
    let square: f64 = out.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>() / rows as f64;
    let scale = if square > 0.0 { (1.0 / square.sqrt()) as f32 } else { 0.0 };
    out.iter_mut().for_each(|value| *value *= scale);
    out
}

/// Captions of a batch, right-aligned: padding first, then the text (or the null tokens).
#[derive(Debug, Clone)]
pub struct TextBatch {
    batch: usize,
    length: usize,
    /// `[B, L, text_width]`, zero where there is no text.
    states: Vec<f32>,
    /// `[B, L]`, 1 where a text token stands.
    text: Vec<f32>,
    /// `[B, L, null_tokens]`, one-hot where a null token stands.
    null: Vec<f32>,
}

impl TextBatch {
    /// One row-major `[tokens, text_width]` slice per clip; `None` or no tokens means "no caption".
    ///
    /// # Panics
    /// When a slice is no multiple of the text width.
    pub fn new(config: &LmConfig, captions: &[Option<&[f32]>]) -> Self {
        Self::padded(config, captions, 0)
    }

    /// The same with room for at least `length` text tokens; more room than needed never changes a result.
    pub fn padded(config: &LmConfig, captions: &[Option<&[f32]>], length: usize) -> Self {
        let (batch, width, nulls) = (captions.len(), config.text_width, config.null_tokens);
        let tokens = |caption: &Option<&[f32]>| match caption {
            Some(states) => {
                assert_eq!(states.len() % width, 0, "text states must be [tokens, {width}]");
                states.len() / width
            }
            None => 0,
        };
        let longest = captions.iter().map(tokens).max().unwrap_or(0);
        let length = longest.max(length).max(nulls);
        let mut states = vec![0.0; batch * length * width];
        let mut text = vec![0.0; batch * length];
        let mut null = vec![0.0; batch * length * nulls];
        for (b, caption) in captions.iter().enumerate() {
            match caption {
                Some(caption) if !caption.is_empty() => {
                    let end = (b + 1) * length;
                    let start = end - caption.len() / width;
                    states[start * width..end * width].copy_from_slice(caption);
                    text[start..end].fill(1.0);
                }
                _ => {
                    for i in 0..nulls {
                        null[((b + 1) * length - nulls + i) * nulls + i] = 1.0;
                    }
                }
            }
        }
        Self { batch, length, states, text, null }
    }

    /// Places before the first token of each clip.
    fn padding(&self) -> Vec<usize> {
        let nulls = self.null.len() / (self.batch * self.length);
        (0..self.batch)
            .map(|b| {
                let stands = |i: &usize| {
                    let at = b * self.length + i;
                    self.text[at] > 0.0 || self.null[at * nulls..(at + 1) * nulls].iter().any(|&v| v > 0.0)
                };
                (0..self.length).find(stands).unwrap_or(self.length)
            })
            .collect()
    }
}

/// What the model remembers between frames.
pub type LmState = Vec<Mamba2State>;

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
            let vectors =
                (config.codec_width > 0).then(|| bound.tensor::<2>(&format!("codec_vectors.{k}")));
            if let Some(vectors) = &vectors {
                let near = vectors.clone().matmul(bound.tensor(&format!("codec_embedding.{k}")));
                let special = Tensor::zeros([1, config.d_model], bound.device());
                table = table + Tensor::cat(vec![near, special], 0);
            }
            let mut out = match config.head {
                Head::Free => bound.tensor(&format!("lm_head.{k}.weight")),
                Head::Tied => table
                    .clone()
                    .narrow(0, 0, codes)
                    .matmul(bound.tensor(&format!("lm_head.{k}.projection"))),
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
        let per_codebook = |name: &str| -> Vec<String> {
            (0..config.codebooks).map(|k| name.replace('#', &k.to_string())).collect()
        };
        let same_again = if config.same_again {
            per_codebook("same_again.#")
                .iter()
                .map(|name| {
                    (bound.tensor(&format!("{name}.weight")), bound.tensor(&format!("{name}.bias")))
                })
                .collect()
        } else {
            Vec::new()
        };
        Self {
            config: config.clone(),
            condition_linear: bound.tensor("condition_linear.weight"),
            condition_bias: bound.tensor("condition_linear.bias"),
            norm_weight: bound.tensor("condition_norm.weight"),
            norm_bias: bound.tensor("condition_norm.bias"),
            null_prefix: bound.tensor("null_prefix"),
            embedding,
            head,
            head_bias: per_codebook("lm_head.#.bias").iter().map(|name| bound.tensor(name)).collect(),
            same_again,
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
        let text_btd =
            ops::layer_norm(linear, self.norm_weight.clone(), self.norm_bias.clone(), NORM_EPSILON);
        let null_btd = ops::linear(floats(&text.null, config.null_tokens), self.null_prefix.clone(), None);
        text_btd * floats(&text.text, 1) + null_btd
    }

    /// Sum of the K embeddings for row-major codes `[B, K, T]`.
    fn embed(&self, codes: &[u16], batch: usize) -> Tensor<3> {
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
        sum.reshape([batch, frames, self.config.d_model])
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

    /// Logits from final hidden states; `codes` are the inputs at the same places (for "same again").
    fn logits(&self, h_btd: Tensor<3>, codes: &[u16]) -> Logits {
        let [batch, frames, width] = h_btd.dims();
        let h_nd = h_btd.reshape([batch * frames, width]);
        (0..self.config.codebooks)
            .map(|k| {
                let bias = Some(self.head_bias[k].clone());
                let logits = ops::linear_turned(h_nd.clone(), self.head[k].clone(), bias);
                match self.same_again.get(k) {
                    None => logits,
                    Some((weight, bias)) => {
                        let gate_n1 =
                            ops::linear_turned(h_nd.clone(), weight.clone(), Some(bias.clone()));
                        self.raise_repeated(logits, gate_n1, codes, batch, k)
                    }
                }
            })
            .collect()
    }

    /// Adds the gate to the logit of the code just heard, where one was heard.
    fn raise_repeated(
        &self,
        logits_nv: Tensor<2>,
        gate_n1: Tensor<2>,
        codes: &[u16],
        batch: usize,
        book: usize,
    ) -> Tensor<2> {
        let special = self.config.special();
        let count = logits_nv.dims()[0];
        let (mut at, mut heard) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for code in rows_of(codes, batch, self.config.codebooks, book) {
            heard.push(f32::from(u8::from(code != special)));
            at.push(if code == special { 0 } else { i64::from(code) });
        }
        let device = logits_nv.device();
        let heard = Tensor::<2>::from_data(TensorData::new(heard, [count, 1]), &device);
        let at = Tensor::<2, Int>::from_data(TensorData::new(at, [count, 1]), &device);
        logits_nv.scatter(1, at, gate_n1 * heard, IndexingUpdateOp::Add)
    }

    /// Reads the text: the state before the start column.
    pub fn start(&self, text: &TextBatch) -> LmState {
        let fresh = Some(self.backbone.start(text.batch));
        let prefix = self.prefix(text);
        let (_, state) = self.backbone.forward(prefix, &text.padding(), fresh, &mut Dropout::off());
        state.expect("a state was given")
    }

    /// Many columns: inputs `[B, K, T]` to logits per codebook and the state after them.
    pub fn forward(&self, codes: &[u16], batch: usize, state: LmState) -> (Logits, LmState) {
        let x_btd = self.embed(codes, batch);
        let (h_btd, state) = self.backbone.forward(x_btd, &[], Some(state), &mut Dropout::off());
        (self.logits(h_btd, codes), state.expect("a state was given"))
    }

    /// One column: inputs `[B, K]` to logits per codebook `[B, cardinality]` and the state after it.
    pub fn step(&self, codes: &[u16], batch: usize, state: LmState) -> (Logits, LmState) {
        let width = self.config.d_model;
        let x_bd = self.embed(codes, batch).reshape([batch, width]);
        let (h_bd, state) = self.backbone.step(x_bd, state);
        (self.logits(h_bd.reshape([batch, 1, width]), codes), state)
    }

    /// Text and columns in one pass, for training: inputs `[B, K, T]` to logits per codebook.
    pub fn forward_with_text(&self, text: &TextBatch, codes: &[u16], dropout: &mut Dropout) -> Logits {
        let x_btd = self.embed(codes, text.batch);
        let frames = x_btd.dims()[1];
        let all = Tensor::cat(vec![self.prefix(text), x_btd], 1);
        let (h_btd, _) = self.backbone.forward(all, &text.padding(), None, dropout);
        self.logits(h_btd.narrow(1, text.length, frames), codes)
    }
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

/// How the loss is formed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossConfig {
    /// Probability mass spread evenly over all codes.
    pub label_smoothing: f32,
    /// Weight of each codebook; missing entries are 1. The weights are normalised to sum to one.
    pub level_weights: Vec<f32>,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self { label_smoothing: 0.0, level_weights: Vec::new() }
    }
}

/// Loss of one batch.
pub struct LmLoss {
    /// Weighted, smoothed mean to minimise (one value).
    pub total: Tensor<1>,
    /// Negative log-likelihood summed over all places with a code, per codebook, without smoothing.
    pub nll: Vec<f64>,
    /// Places with a code, per codebook.
    pub counts: Vec<usize>,
}

/// Cross-entropy per codebook. `targets` is `[B, K, T]`; places that hold the special token are ignored.
pub fn loss(config: &LmConfig, options: &LossConfig, logits: &Logits, targets: &[u16], batch: usize) -> LmLoss {
    let weight = |k: usize| options.level_weights.get(k).copied().unwrap_or(1.0);
    let sum: f32 = (0..config.codebooks).map(weight).sum();
    let mut out = LmLoss { total: Tensor::zeros([1], &logits[0].device()), nll: vec![], counts: vec![] };
    for (k, logits_nv) in logits.iter().enumerate() {
        let targets: Vec<i32> = rows_of(targets, batch, config.codebooks, k)
            .map(|code| if code == config.special() { -1 } else { i32::from(code) })
            .collect();
        let count = targets.iter().filter(|&&target| target >= 0).count();
        let smoothed = ops::cross_entropy(logits_nv.clone(), targets.clone(), options.label_smoothing);
        let plain = if options.label_smoothing > 0.0 {
            ops::cross_entropy(logits_nv.clone().inner(), targets, 0.0)
        } else {
            smoothed.clone().inner()
        };
        out.nll.push(f64::from(plain.into_scalar::<f32>()) * count as f64);
        out.counts.push(count);
        out.total = out.total + smoothed * (weight(k) / sum);
    }
    out
}
