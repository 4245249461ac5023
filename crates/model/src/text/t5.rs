//! T5 and FLAN-T5 encoders (Raffel et al., arXiv:1910.10683; Chung et al., arXiv:2210.11416) from a folder as Hugging
//! Face has it: `config.json`, `model.safetensors`, `tokenizer.json`.
//!
//! Pre-norm layers without biases; attention whose scores are not scaled and know of positions by a bias for the
//! distance alone, which all layers share. Parity is tested against tools/reference/t5.py.

use std::path::Path;

use mambo_kernels::activation::Activation;
use mambo_kernels::attention::{self, Columns};
use mambo_kernels::linear::{Matrix, Panels, Start};
use mambo_kernels::norm::Norm;
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::{Tokenizer, TruncationParams};

use super::{TextEncoder, TextError, TextStates};
use crate::published::read_config;
use crate::weights::{Weights, WeightsError};

/// Most tokens of a text, the one that closes it included: what the models were trained on.
pub const MAX_TOKENS: usize = 512;
/// The token that closes a text.
const END: &str = "</s>";

/// Sizes, as `config.json` names them; its other keys say nothing about an encoder.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct T5Config {
    /// Width of a token state.
    pub d_model: usize,
    /// Layers of the encoder.
    pub num_layers: usize,
    /// Heads of attention.
    pub num_heads: usize,
    /// Width of a head.
    pub d_kv: usize,
    /// Inner width of the feed-forward layers.
    pub d_ff: usize,
    /// `relu` for T5, `gated-gelu` for FLAN-T5 and T5 1.1.
    #[serde(default = "relu")]
    pub feed_forward_proj: String,
    /// Classes of distances.
    pub relative_attention_num_buckets: usize,
    /// Distance from which all are in the last class.
    #[serde(default = "furthest")]
    pub relative_attention_max_distance: usize,
    /// Added to the mean square in norms.
    #[serde(default = "epsilon")]
    pub layer_norm_epsilon: f64,
    /// Rows of the table of token embeddings.
    pub vocab_size: usize,
}

fn relu() -> String {
    "relu".into()
}

fn furthest() -> usize {
    128
}

fn epsilon() -> f64 {
    1e-6
}

impl T5Config {
    /// The rule that a configuration breaks, if any.
    pub fn broken_rule(&self) -> Option<&'static str> {
        let sane = |size: usize| (1..=1 << 20).contains(&size);
        let rules = [
            (sane(self.d_model) && sane(self.d_ff) && sane(self.vocab_size), "sizes must be 1 to 2^20"),
            ((1..=1000).contains(&self.num_layers), "num_layers must be 1 to 1000"),
            ((1..=1000).contains(&self.num_heads) && (1..=4096).contains(&self.d_kv), "num_heads or d_kv is too large"),
            (
                ["relu", "gated-gelu"].contains(&self.feed_forward_proj.as_str()),
                "feed_forward_proj must be relu or gated-gelu",
            ),
            (
                (4..=4096).contains(&self.relative_attention_num_buckets)
                    && self.relative_attention_num_buckets.is_multiple_of(4)
                    && self.relative_attention_max_distance > self.relative_attention_num_buckets / 4,
                "relative_attention_num_buckets must be a multiple of 4 with the greatest distance beyond a quarter of it",
            ),
            (self.layer_norm_epsilon > 0.0 && self.layer_norm_epsilon < 1.0, "layer_norm_epsilon must be 0 to 1"),
        ];
        rules.iter().find(|(holds, _)| !holds).map(|(_, rule)| *rule)
    }

    fn inner(&self) -> usize {
        self.num_heads * self.d_kv
    }

    fn gated(&self) -> bool {
        self.feed_forward_proj != "relu"
    }
}

/// The network, without a tokenizer.
pub struct T5Network {
    config: T5Config,
    /// `[vocabulary, width]`
    embeddings: Vec<f32>,
    /// Bias of attention by class of distance, `[buckets, heads]`.
    distances: Vec<f32>,
    layers: Vec<Layer>,
    last_norm: Vec<f32>,
}

struct Layer {
    attention_norm: Vec<f32>,
    /// Queries, keys and values side by side.
    projections: Panels,
    joint: Panels,
    outer_norm: Vec<f32>,
    /// The inner layer; with a gate, gate and values side by side.
    inner: Panels,
    outer: Panels,
}

impl T5Network {
    /// Reads the tensors whose names begin with `prefix`: an encoder, alone or with the decoder that it was published with,
    /// of a configuration that breaks no rule.
    ///
    /// # Errors
    /// [`WeightsError`] for tensors that are missing or of another shape.
    pub fn read(config: T5Config, file: &Weights, prefix: &str) -> Result<Self, WeightsError> {
        let (width, inner, heads) = (config.d_model, config.inner(), config.num_heads);
        // One table under two names, of which a file has either or both.
        let names = ["shared.weight", "encoder.embed_tokens.weight"].map(|name| format!("{prefix}{name}"));
        let name = names.iter().find(|name| file.shape(name).is_some()).unwrap_or(&names[0]);
        let embeddings = file.f32(name, &[config.vocab_size, width])?;
        names.iter().for_each(|name| file.ignore(name));
        ["decoder.", "lm_head."].iter().for_each(|part| file.ignore(&format!("{prefix}{part}")));
        let place = format!("{prefix}encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
        let distances = file.f32(&place, &[config.relative_attention_num_buckets, heads])?;
        let read = |index: usize| {
            let name = |part: &str| format!("{prefix}encoder.block.{index}.layer.{part}.weight");
            // Layers with the same input, side by side; stored `[outputs, inputs]`.
            let beside = |parts: &[&str], inputs: usize, outputs: usize| {
                let mut all = Vec::with_capacity(parts.len() * inputs * outputs);
                for part in parts {
                    all.extend(file.f32(&name(part), &[outputs, inputs])?);
                }
                Ok::<_, WeightsError>(Panels::new(Matrix::new(&all, parts.len() * outputs, inputs).turned()))
            };
            let attention = ["0.SelfAttention.q", "0.SelfAttention.k", "0.SelfAttention.v"];
            let gated = ["1.DenseReluDense.wi_0", "1.DenseReluDense.wi_1"];
            let wide = if config.gated() { &gated[..] } else { &["1.DenseReluDense.wi"] };
            Ok(Layer {
                attention_norm: file.f32(&name("0.layer_norm"), &[width])?,
                projections: beside(&attention, width, inner)?,
                joint: beside(&["0.SelfAttention.o"], inner, width)?,
                outer_norm: file.f32(&name("1.layer_norm"), &[width])?,
                inner: beside(wide, width, config.d_ff)?,
                outer: beside(&["1.DenseReluDense.wo"], config.d_ff, width)?,
            })
        };
        let layers = (0..config.num_layers).map(read).collect::<Result<_, WeightsError>>()?;
        let last_norm = file.f32(&format!("{prefix}encoder.final_layer_norm.weight"), &[width])?;
        Ok(Self { config, embeddings, distances, layers, last_norm })
    }

    /// Its sizes.
    pub fn config(&self) -> &T5Config {
        &self.config
    }

    /// States `[tokens of all texts, width]` of the last layer, text after text. Each text is its token ids and how many of
    /// them, from the first on, are heard; the others hear them without being heard, as padding does.
    ///
    /// # Panics
    /// If an id is not of the vocabulary, or a text hears more tokens than it has.
    pub fn forward(&self, texts: &[(&[u32], usize)]) -> Vec<f32> {
        let width = self.config.d_model;
        let mut states = Vec::new();
        for (ids, heard) in texts {
            assert!((1..=ids.len()).contains(heard), "t5: {heard} of {} tokens heard", ids.len());
            for &id in *ids {
                states.extend_from_slice(&self.embeddings[id as usize * width..][..width]);
            }
        }
        if states.is_empty() {
            return states;
        }
        let rows = states.len() / width;
        let norm = Norm { width, centre: false, epsilon: self.config.layer_norm_epsilon, rows_per_set: rows };
        let normed = |states: &[f32], weight: &[f32]| norm.forward(states, weight, None);
        let product = |panels: &Panels, x: &[f32], out: &mut [f32], start| {
            panels.multiply(Matrix::new(x, rows, panels.depth()), out, start);
        };
        // All layers share them.
        let biases: Vec<Vec<f32>> = texts.iter().map(|(ids, _)| self.biases(ids.len())).collect();
        // One of each for all layers: fresh memory would be zeroed by the system in every one.
        let mut projected = vec![0.0; rows * 3 * self.config.inner()];
        let mut mixed = vec![0.0; rows * self.config.inner()];
        let mut inner = vec![0.0; rows * self.layers.first().map_or(0, |layer| layer.inner.columns())];
        let mut active = vec![0.0; if self.config.gated() { inner.len() / 2 } else { 0 }];
        for layer in &self.layers {
            product(&layer.projections, &normed(&states, &layer.attention_norm), &mut projected, Start::Zero);
            self.attend(texts, &biases, &projected, &mut mixed);
            product(&layer.joint, &mixed, &mut states, Start::Output);
            product(&layer.inner, &normed(&states, &layer.outer_norm), &mut inner, Start::Zero);
            let active = if self.config.gated() {
                self.gate(&inner, &mut active);
                &active
            } else {
                inner.par_iter_mut().for_each(|value| *value = value.max(0.0));
                &inner
            };
            product(&layer.outer, active, &mut states, Start::Output);
        }
        normed(&states, &self.last_norm)
    }

    /// Rows of gates and values, side by side, to what the outer layer reads.
    fn gate(&self, inner: &[f32], out: &mut [f32]) {
        let width = self.config.d_ff;
        out.par_chunks_mut(width).zip(inner.par_chunks(2 * width)).for_each(|(out, row)| {
            let (gate, values) = row.split_at(width);
            Activation::GeluTanh.forward_into(gate, None, out);
            out.iter_mut().zip(values).for_each(|(gate, value)| *gate *= value);
        });
    }

    /// What is added to scores among `length` tokens, `[heads, 2 length - 1]`: from the key furthest behind a query to the one
    /// furthest ahead.
    fn biases(&self, length: usize) -> Vec<f32> {
        let heads = self.config.num_heads;
        let classes: Vec<usize> = (0..2 * length - 1).map(|place| self.bucket(length - 1, place)).collect();
        (0..heads).flat_map(|head| classes.iter().map(move |class| self.distances[class * heads + head])).collect()
    }

    /// Attention of all heads of all texts into `out`, `[tokens, inner]`, from queries, keys and values `[tokens, 3 inner]` and
    /// each text's biases.
    fn attend(&self, texts: &[(&[u32], usize)], biases: &[Vec<f32>], projected: &[f32], out: &mut [f32]) {
        let (inner, heads) = (self.config.inner(), self.config.num_heads);
        let mut first = 0;
        for ((ids, heard), biases) in texts.iter().zip(biases) {
            let length = ids.len();
            let [query, key, value] = Columns::split(&projected[first * 3 * inner..][..length * 3 * inner], [inner; 3]);
            attention::biased(heads, *heard, query, key, value, biases, &mut out[first * inner..][..length * inner]);
            first += length;
        }
    }

    /// The class of a distance: keys behind and ahead apart, near ones each for itself, far ones by logarithm.
    fn bucket(&self, query: usize, key: usize) -> usize {
        let half = self.config.relative_attention_num_buckets / 2;
        let exact = half / 2;
        let ahead = if key > query { half } else { 0 };
        let distance = key.abs_diff(query);
        if distance < exact {
            return ahead + distance;
        }
        // In f32, as the published models were trained.
        let share = (distance as f32 / exact as f32).ln()
            / (self.config.relative_attention_max_distance as f32 / exact as f32).ln();
        let far = exact + (share * (half - exact) as f32) as usize;
        ahead + far.min(half - 1)
    }
}

/// An encoder with its tokenizer.
pub struct T5 {
    network: T5Network,
    tokenizer: Tokenizer,
    identity: String,
}

impl T5 {
    /// Opens a folder.
    ///
    /// # Errors
    /// [`TextError`], naming the file and what is wrong with it.
    pub fn load(folder: &Path) -> Result<Self, TextError> {
        let config = read_config(folder, "a T5", T5Config::broken_rule)?;
        let file = Weights::open_folder(folder)?;
        let encoder = Self::read(config, &file, "", &folder.join("tokenizer.json"))?;
        file.finish()?;
        Ok(encoder)
    }

    /// The encoder whose tensors begin with `prefix`, with the tokenizer of a file.
    ///
    /// # Errors
    /// As [`T5::load`].
    pub fn read(config: T5Config, file: &Weights, prefix: &str, tokenizer: &Path) -> Result<Self, TextError> {
        let vocabulary = config.vocab_size;
        let (tokenizer, (network, hash)) = rayon::join(
            || open_tokenizer(tokenizer, vocabulary),
            || rayon::join(|| T5Network::read(config, file, prefix), || file.sha256()),
        );
        Ok(Self { network: network?, tokenizer: tokenizer?, identity: format!("t5 {hash}") })
    }

    /// Token ids of a text, the closing token included, at most [`MAX_TOKENS`]. Names of control tokens inside the text are
    /// ordinary text.
    pub fn token_ids(&self, text: &str) -> Vec<u32> {
        let encoding = self.tokenizer.encode_fast(text, true).expect("pieces with an unknown one cover any text");
        encoding.get_ids().to_vec()
    }

    /// The network.
    pub fn network(&self) -> &T5Network {
        &self.network
    }
}

impl TextEncoder for T5 {
    fn width(&self) -> usize {
        self.network.config.d_model
    }

    fn max_tokens(&self) -> usize {
        MAX_TOKENS
    }

    fn name(&self) -> &'static str {
        "T5"
    }

    fn identity(&self) -> &str {
        &self.identity
    }

    fn encode(&self, texts: &[&str]) -> Vec<TextStates> {
        let ids: Vec<Vec<u32>> = texts.iter().map(|text| self.token_ids(text)).collect();
        let inputs: Vec<(&[u32], usize)> = ids.iter().map(|ids| (ids.as_slice(), ids.len())).collect();
        let states = self.network.forward(&inputs);
        let mut rest = states.as_slice();
        let take = |ids: &Vec<u32>| {
            let (own, others) = rest.split_at(ids.len() * self.network.config.d_model);
            rest = others;
            TextStates { states: own.to_vec(), length: ids.len() }
        };
        ids.iter().map(take).collect()
    }
}

fn open_tokenizer(path: &Path, vocabulary: usize) -> Result<Tokenizer, TextError> {
    let failed = |reason: String| TextError::Tokenizer { path: path.to_owned(), reason };
    let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let mut description: Value = serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))?;
    hide_control_tokens(&mut description).map_err(failed)?;
    let text = serde_json::to_vec(&description).map_err(|error| failed(error.to_string()))?;
    let mut tokenizer = Tokenizer::from_bytes(&text).map_err(|error| failed(error.to_string()))?;
    tokenizer.with_padding(None);
    let truncation = TruncationParams { max_length: MAX_TOKENS, ..TruncationParams::default() };
    tokenizer.with_truncation(Some(truncation)).map_err(|error| failed(error.to_string()))?;
    let size = tokenizer.get_vocab_size(true);
    if size > vocabulary {
        return Err(failed(format!("{size} tokens, the network has {vocabulary}")));
    }
    Ok(tokenizer)
}

/// Control tokens are pieces of the model like any other, so that a text which contains the name of one would become it.
/// Here they keep their numbers and lose their names: a piece with a space in it is in no text, which is cut at spaces.
fn hide_control_tokens(description: &mut Value) -> Result<(), String> {
    let added = description.get_mut("added_tokens").map(Value::take);
    let names: Vec<String> = added
        .iter()
        .flat_map(|added| added.as_array().into_iter().flatten())
        .filter_map(|token| token.get("content")?.as_str().map(str::to_owned))
        .collect();
    if !names.iter().any(|name| name == END) {
        return Err(format!("no {END} token"));
    }
    let model = description.get_mut("model").ok_or("no model")?;
    if model.get("type").and_then(Value::as_str) != Some("Unigram") {
        return Err("its model is not Unigram".to_owned());
    }
    let pieces = model.get_mut("vocab").and_then(Value::as_array_mut).ok_or("no vocabulary")?;
    for piece in pieces {
        let Some(name) = piece.get_mut(0) else { continue };
        if let Some(text) = name.as_str()
            && names.iter().any(|control| control == text)
        {
            *name = Value::String(format!(" {text}"));
        }
    }
    description["added_tokens"] = Value::Array(Vec::new());
    Ok(())
}
