//! all-MiniLM-L6-v2, a sentence encoder (MiniLM: Wang et al., 2020, <https://arxiv.org/abs/2002.10957>): a BERT of
//! 6 layers, width 384, 12 heads, post-norm. Weights (Apache-2.0) in int8, converted by
//! tools/reference/convert_minilm.py; parity is tested against tools/reference/minilm.py.
//!
//! Matrices become f32 at loading, in strips of 32 outputs that the matrix product streams through; rows of the
//! word table when they are needed. Slices instead of Burn tensors: it only infers, and its cold start counts.

use std::path::{Path, PathBuf};

use mambo_kernels::matmul::{Strided, matmul};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use tokenizers::{Tokenizer, TruncationParams};

use super::{TextEncoder, TextError, TextStates};
use crate::weights::{Weights, WeightsError};

/// Width of a token state.
pub const WIDTH: usize = 384;
/// Most tokens of a text, the two that open and close it included.
pub const MAX_TOKENS: usize = 128;

const LAYERS: usize = 6;
const HEADS: usize = 12;
const HEAD_WIDTH: usize = WIDTH / HEADS;
const INNER: usize = 4 * WIDTH;
const VOCABULARY: usize = 30_522;
const EPSILON: f64 = 1e-12;
/// Outputs of a strip: two of the widest vectors.
const STRIP: usize = 32;

/// A loaded encoder; shared between threads by reference.
pub struct MiniLm {
    identity: String,
    tokenizer: Tokenizer,
    words: WordTable,
    /// Position plus type, `[128, 384]`.
    places: Vec<f32>,
    first_norm: LayerNorm,
    layers: Vec<Layer>,
}

impl std::fmt::Debug for MiniLm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MiniLm").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl MiniLm {
    /// Loads `minilm.safetensors` and `tokenizer.json` from `folder`.
    ///
    /// # Errors
    /// [`TextError`], naming the file and what is wrong with it.
    pub fn load(folder: &Path) -> Result<Self, TextError> {
        let (tokenizer, network) = rayon::join(
            || open_tokenizer(&folder.join("tokenizer.json")),
            || Weights::open(&folder.join("minilm.safetensors")).and_then(|file| Network::load(&file)),
        );
        let network = network?;
        let (tokenizer, found, path) = tokenizer?;
        if found != network.tokenizer_hash {
            return Err(TextError::OtherTokenizer { path, expected: network.tokenizer_hash, found });
        }
        let Network { identity, words, places, first_norm, layers, .. } = network;
        Ok(Self { identity, tokenizer, words, places, first_norm, layers })
    }

    /// Name and hash of the weights.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Token ids of a text, 2 to 128: word pieces between `[CLS]` and `[SEP]`. Names of control tokens inside
    /// the text are ordinary text.
    pub fn token_ids(&self, text: &str) -> Vec<u32> {
        let encoding = self
            .tokenizer
            .encode_fast(text, true)
            .expect("word pieces with an unknown token, checked at loading, cover any text");
        encoding.get_ids().to_vec()
    }

    /// States `[L, 384]` of the last layer for each text, cut at 128 tokens. The empty text gives the two states
    /// of `[CLS]` and `[SEP]`. A text's states do not depend on the other texts.
    pub fn encode(&self, texts: &[&str]) -> Vec<TextStates> {
        texts.par_iter().map(|text| self.forward(&self.token_ids(text))).collect()
    }

    fn forward(&self, ids: &[u32]) -> TextStates {
        let length = ids.len();
        // Products work on four rows at a time; the rows added here hold nothing and are cut off at the end.
        let rows = length.next_multiple_of(4);
        let mut states = vec![0.0; rows * WIDTH];
        for ((state, &id), place) in states.chunks_exact_mut(WIDTH).zip(ids).zip(self.places.chunks_exact(WIDTH)) {
            self.words.row(id as usize, state);
            add(state, place);
        }
        self.first_norm.apply(&mut states);
        let mut scratch = Scratch::new(rows);
        for layer in &self.layers {
            layer.apply(&mut states, length, &mut scratch);
        }
        states.truncate(length * WIDTH);
        TextStates { states, length }
    }
}

impl TextEncoder for MiniLm {
    fn width(&self) -> usize {
        WIDTH
    }

    fn max_tokens(&self) -> usize {
        MAX_TOKENS
    }

    fn name(&self) -> &'static str {
        "all-MiniLM-L6-v2"
    }

    fn identity(&self) -> &str {
        &self.identity
    }

    fn encode(&self, texts: &[&str]) -> Vec<TextStates> {
        self.encode(texts)
    }
}

/// The tokenizer, set up; the hash of its file; its path.
fn open_tokenizer(path: &Path) -> Result<(Tokenizer, String, PathBuf), TextError> {
    let failed = |reason: String| TextError::Tokenizer { path: path.to_owned(), reason };
    let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(|error| failed(error.to_string()))?;
    tokenizer.with_padding(None);
    let truncation = TruncationParams { max_length: MAX_TOKENS, ..TruncationParams::default() };
    tokenizer.with_truncation(Some(truncation)).map_err(|error| failed(error.to_string()))?;
    tokenizer.set_encode_special_tokens(true);
    let size = tokenizer.get_vocab_size(true);
    if size != VOCABULARY {
        return Err(failed(format!("{size} tokens, expected {VOCABULARY}")));
    }
    if tokenizer.token_to_id("[UNK]").is_none() {
        return Err(failed("no [UNK] token".to_owned()));
    }
    Ok((tokenizer, hash, path.to_owned()))
}

/// What the weights file holds.
struct Network {
    identity: String,
    tokenizer_hash: String,
    words: WordTable,
    places: Vec<f32>,
    first_norm: LayerNorm,
    layers: Vec<Layer>,
}

impl Network {
    fn load(file: &Weights) -> Result<Self, WeightsError> {
        file.expect_metadata("format", "mambo-minilm-1")?;
        let text =
            |key: &str| file.metadata(key).map(str::to_owned).ok_or_else(|| file.wrong_metadata(key, "some text"));
        let words = file.quantised("embeddings.word_embeddings.weight", VOCABULARY, WIDTH)?;
        let positions = file.quantised("embeddings.position_embeddings.weight", MAX_TOKENS, WIDTH)?;
        let types = file.f32("embeddings.token_type_embeddings.weight", &[2, WIDTH])?;
        let mut places: Vec<f32> = (0..MAX_TOKENS).flat_map(|row| positions.row(row)).collect();
        places.chunks_exact_mut(WIDTH).for_each(|row| add(row, &types[..WIDTH]));
        let layers = (0..LAYERS).into_par_iter().map(|index| Layer::load(file, index)).collect::<Result<_, _>>()?;
        let network = Self {
            identity: text("identity")?,
            tokenizer_hash: text("tokenizer_sha256")?,
            words: WordTable { groups: words.groups, values: words.values.to_vec(), scales: words.scales },
            places,
            first_norm: LayerNorm::load(file, "embeddings.LayerNorm")?,
            layers,
        };
        file.finish()?;
        Ok(network)
    }
}

/// The word embeddings, kept in int8: a text looks up a few of 30,522 rows.
struct WordTable {
    groups: usize,
    values: Vec<i8>,
    scales: Vec<f32>,
}

impl WordTable {
    fn row(&self, id: usize, out: &mut [f32]) {
        let run = WIDTH / self.groups;
        let values = self.values[id * WIDTH..(id + 1) * WIDTH].chunks_exact(run);
        let scales = &self.scales[id * self.groups..(id + 1) * self.groups];
        for ((out, values), scale) in out.chunks_exact_mut(run).zip(values).zip(scales) {
            for (out, &value) in out.iter_mut().zip(values) {
                *out = f32::from(value) * scale;
            }
        }
    }
}

/// `y = x W^T + b`.
struct Linear {
    inputs: usize,
    /// `[outputs / 32, inputs, 32]`: the transposed weight in strips of 32 outputs.
    strips: Vec<f32>,
    bias: Vec<f32>,
}

impl Linear {
    /// The layers `names` stacked into one, each with `outputs` outputs.
    fn load(file: &Weights, names: &[String], inputs: usize, outputs: usize) -> Result<Self, WeightsError> {
        let mut bias = Vec::with_capacity(names.len() * outputs);
        let mut strips = vec![0.0; names.len() * outputs * inputs];
        for (name, strips) in names.iter().zip(strips.chunks_exact_mut(outputs * inputs)) {
            let weight = file.quantised(&format!("{name}.weight"), outputs, inputs)?;
            bias.extend(file.f32(&format!("{name}.bias"), &[outputs])?);
            strips.par_chunks_exact_mut(STRIP * inputs).enumerate().for_each(|(strip, out)| {
                for column in 0..STRIP {
                    for (line, value) in out.chunks_exact_mut(STRIP).zip(weight.row(strip * STRIP + column)) {
                        line[column] = value;
                    }
                }
            });
        }
        Ok(Self { inputs, strips, bias })
    }

    /// `x` `[rows, inputs]` to `y` `[rows, outputs]`.
    fn apply(&self, x: &[f32], y: &mut [f32]) {
        let outputs = self.bias.len();
        let rows = x.len() / self.inputs;
        for row in y.chunks_exact_mut(outputs) {
            row.copy_from_slice(&self.bias);
        }
        let left = Strided::rows(x, self.inputs);
        for (index, strip) in self.strips.chunks_exact(STRIP * self.inputs).enumerate() {
            matmul(rows, STRIP, self.inputs, left, strip, STRIP, &mut y[index * STRIP..], outputs, true);
        }
    }
}

struct LayerNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl LayerNorm {
    fn load(file: &Weights, name: &str) -> Result<Self, WeightsError> {
        Ok(Self {
            weight: file.f32(&format!("{name}.weight"), &[WIDTH])?,
            bias: file.f32(&format!("{name}.bias"), &[WIDTH])?,
        })
    }

    fn apply(&self, states: &mut [f32]) {
        for row in states.chunks_exact_mut(WIDTH) {
            let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / WIDTH as f64;
            let variance = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / WIDTH as f64;
            let (mean, factor) = (mean as f32, (variance + EPSILON).sqrt().recip() as f32);
            for ((x, weight), bias) in row.iter_mut().zip(&self.weight).zip(&self.bias) {
                *x = (*x - mean) * factor * weight + bias;
            }
        }
    }
}

/// Working memory of one text.
struct Scratch {
    /// Query, key and value of each token, `[rows, 3 * 384]`.
    projected: Vec<f32>,
    mixed: Vec<f32>,
    inner: Vec<f32>,
    residual: Vec<f32>,
    /// Attention of one head, `[rows, columns]`.
    scores: Vec<f32>,
    /// Keys of one head, transposed, `[32, columns]`.
    keys: Vec<f32>,
}

impl Scratch {
    fn new(rows: usize) -> Self {
        let columns = rows.next_multiple_of(STRIP);
        Self {
            projected: vec![0.0; rows * 3 * WIDTH],
            mixed: vec![0.0; rows * WIDTH],
            inner: vec![0.0; rows * INNER],
            residual: vec![0.0; rows * WIDTH],
            scores: vec![0.0; rows * columns],
            keys: vec![0.0; HEAD_WIDTH * columns],
        }
    }
}

struct Layer {
    /// Query, key and value stacked.
    attention_in: Linear,
    attention_out: Linear,
    attention_norm: LayerNorm,
    inner: Linear,
    outer: Linear,
    outer_norm: LayerNorm,
}

impl Layer {
    fn load(file: &Weights, index: usize) -> Result<Self, WeightsError> {
        let name = |part: &str| format!("encoder.layer.{index}.{part}");
        let one = |part: &str, inputs, outputs| Linear::load(file, &[name(part)], inputs, outputs);
        let projections = ["query", "key", "value"].map(|part| name(&format!("attention.self.{part}")));
        Ok(Self {
            attention_in: Linear::load(file, &projections, WIDTH, WIDTH)?,
            attention_out: one("attention.output.dense", WIDTH, WIDTH)?,
            attention_norm: LayerNorm::load(file, &name("attention.output.LayerNorm"))?,
            inner: one("intermediate.dense", WIDTH, INNER)?,
            outer: one("output.dense", INNER, WIDTH)?,
            outer_norm: LayerNorm::load(file, &name("output.LayerNorm"))?,
        })
    }

    fn apply(&self, states: &mut [f32], length: usize, scratch: &mut Scratch) {
        self.attention_in.apply(states, &mut scratch.projected);
        for head in 0..HEADS {
            attend(head, length, scratch);
        }
        self.attention_out.apply(&scratch.mixed, &mut scratch.residual);
        add(states, &scratch.residual);
        self.attention_norm.apply(states);

        self.inner.apply(states, &mut scratch.inner);
        scratch.inner.iter_mut().for_each(|x| *x = gelu(*x));
        self.outer.apply(&scratch.inner, &mut scratch.residual);
        add(states, &scratch.residual);
        self.outer_norm.apply(states);
    }
}

/// Scaled dot-product attention of one head, from `projected` to its columns of `mixed`.
fn attend(head: usize, length: usize, scratch: &mut Scratch) {
    let Scratch { projected, mixed, scores, keys, .. } = scratch;
    let stride = 3 * WIDTH;
    let columns = keys.len() / HEAD_WIDTH;
    for (token, row) in projected.chunks_exact(stride).take(length).enumerate() {
        for (d, value) in row[WIDTH + head * HEAD_WIDTH..][..HEAD_WIDTH].iter().enumerate() {
            keys[d * columns + token] = *value;
        }
    }
    let queries = Strided::rows(&projected[head * HEAD_WIDTH..], stride);
    matmul(length, columns, HEAD_WIDTH, queries, keys, columns, scores, columns, false);
    let factor = 1.0 / (HEAD_WIDTH as f32).sqrt();
    for row in scores.chunks_exact_mut(columns).take(length) {
        let row = &mut row[..length];
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        for score in row.iter_mut() {
            *score = ((*score - largest) * factor).exp();
            sum += *score;
        }
        row.iter_mut().for_each(|score| *score /= sum);
    }
    let values = &projected[2 * WIDTH + head * HEAD_WIDTH..];
    let out = &mut mixed[head * HEAD_WIDTH..];
    matmul(length, HEAD_WIDTH, length, Strided::rows(scores, columns), values, stride, out, WIDTH, false);
}

fn add(sum: &mut [f32], other: &[f32]) {
    for (sum, other) in sum.iter_mut().zip(other) {
        *sum += other;
    }
}

/// The exact GELU, `x Phi(x)`; the error function after Abramowitz and Stegun 7.1.26 (error under 2e-7).
fn gelu(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let polynomial = t * (0.254_829_6 + t * (-0.284_496_74 + t * (1.421_413_7 + t * (-1.453_152 + t * 1.061_405_4))));
    // Of the tail that lies beyond |x|, half belongs to each side.
    let tail = 0.5 * polynomial * (-z * z).exp();
    if x < 0.0 { x * tail } else { x - x * tail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gelu_matches_published_values() {
        // Phi(1) = 0.8413447, Phi(2) = 0.9772499, Phi(0.5) = 0.6914625.
        for (x, phi) in [(1.0f32, 0.841_344_7f32), (2.0, 0.977_249_9), (0.5, 0.691_462_5), (0.0, 0.5), (9.0, 1.0)] {
            assert!((gelu(x) - x * phi).abs() < 5e-7, "{x}");
            assert!((gelu(-x) + x * (1.0 - phi)).abs() < 5e-7, "-{x}");
        }
    }
}
