//! MusicGen's language model (Copet et al., arXiv:2306.05284): a Transformer over the sum of its codebooks' embeddings,
//! with cross-attention to the text in every layer; one column at a time, keys and values kept.

use mambo_kernels::activation::Activation;
use mambo_kernels::attention;
use mambo_kernels::norm::Norm;
use mambo_kernels::panel_linear::PanelLinear;
use serde::Deserialize;

use crate::lm::positions::sinusoid;
use crate::stepper::layers::caches;
use crate::weights::{Weights, WeightsError};

/// Added to the variance in norms.
const EPSILON: f64 = 1e-5;

/// Sizes, as the part `decoder` of `config.json` names them.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct DecoderConfig {
    /// Width.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads of attention.
    pub num_attention_heads: usize,
    /// Inner width of the feed-forward layers.
    pub ffn_dim: usize,
    /// Codes a codebook.
    pub vocab_size: usize,
    /// Codebooks.
    pub num_codebooks: usize,
    /// Of the feed-forward layers; only `gelu` is known.
    pub activation_function: String,
    /// Whether embeddings are scaled by the root of the width.
    #[serde(default)]
    pub scale_embedding: bool,
    /// Channels of the sound; two have their codebooks in turns.
    #[serde(default = "mono")]
    pub audio_channels: usize,
}

fn mono() -> usize {
    1
}

impl DecoderConfig {
    /// The rule that a configuration breaks, if any.
    pub fn broken_rule(&self) -> Option<&'static str> {
        let sane = |size: usize| (1..=1 << 16).contains(&size);
        let rules = [
            (sane(self.hidden_size) && sane(self.ffn_dim), "decoder: hidden_size and ffn_dim must be 1 to 65536"),
            ((1..=1000).contains(&self.num_hidden_layers), "decoder: num_hidden_layers must be 1 to 1000"),
            (
                self.num_attention_heads > 0
                    && self.hidden_size.is_multiple_of(self.num_attention_heads)
                    && self.hidden_size.is_multiple_of(2)
                    && self.hidden_size >= 4,
                "decoder: num_attention_heads must divide hidden_size, which must be even",
            ),
            ((2..=65_534).contains(&self.vocab_size), "decoder: vocab_size must be 2 to 65534"),
            ((1..=64).contains(&self.num_codebooks), "decoder: num_codebooks must be 1 to 64"),
            (self.activation_function == "gelu", "decoder: activation_function must be gelu"),
            (!self.scale_embedding, "decoder: scale_embedding is not supported"),
            (self.audio_channels == 1, "decoder: audio_channels: only mono is supported"),
        ];
        rules.iter().find(|(holds, _)| !holds).map(|(_, rule)| *rule)
    }
}

struct LayerNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl LayerNorm {
    fn read(file: &Weights, name: &str, width: usize) -> Result<Self, WeightsError> {
        let part = |part: &str| file.f32(&format!("{name}.{part}"), &[width]);
        Ok(Self { weight: part("weight")?, bias: part("bias")? })
    }

    fn apply(&self, x: &[f32]) -> Vec<f32> {
        let width = self.weight.len();
        let norm = Norm { width, centre: true, epsilon: EPSILON, rows_per_set: (x.len() / width).max(1) };
        norm.forward(x, &self.weight, Some(&self.bias))
    }
}

struct Layer {
    own_norm: LayerNorm,
    /// Queries, keys and values side by side.
    own: PanelLinear,
    own_out: PanelLinear,
    text_norm: LayerNorm,
    query: PanelLinear,
    /// Keys and values side by side.
    text: PanelLinear,
    text_out: PanelLinear,
    last_norm: LayerNorm,
    wide: PanelLinear,
    back: PanelLinear,
}

/// The language model.
pub struct Decoder {
    config: DecoderConfig,
    /// Embeddings of every codebook, the special token last, `[codebooks, codes + 1, width]`.
    tables: Vec<f32>,
    layers: Vec<Layer>,
    last_norm: LayerNorm,
    /// All heads, `[codebooks * codes, width]`.
    heads: PanelLinear,
}

/// What some streams that read the same codes remember.
#[derive(Debug, Clone)]
pub struct DecoderState {
    streams: usize,
    position: usize,
    /// Of each layer and stream, a row of keys and values a column.
    own: Vec<Vec<Vec<f32>>>,
    /// Of each layer and stream, a row of keys and values a text token.
    text: Vec<Vec<Vec<f32>>>,
}

impl DecoderState {
    /// Columns read.
    pub fn columns(&self) -> usize {
        self.position
    }
}

impl Decoder {
    /// Reads the tensors whose names begin with `prefix`, of a configuration that breaks no rule.
    ///
    /// # Errors
    /// [`WeightsError`] for tensors that are missing or of another shape.
    pub fn read(config: DecoderConfig, file: &Weights, prefix: &str) -> Result<Self, WeightsError> {
        let (width, codes, inner) = (config.hidden_size, config.vocab_size, config.ffn_dim);
        let model = format!("{prefix}model.decoder");
        let mut tables = Vec::new();
        let mut heads = Vec::new();
        for book in 0..config.num_codebooks {
            tables.extend(file.f32(&format!("{model}.embed_tokens.{book}.weight"), &[codes + 1, width])?);
            heads.extend(file.f32(&format!("{prefix}lm_heads.{book}.weight"), &[codes, width])?);
        }
        // Computed, whether stored or not.
        file.ignore(&format!("{model}.embed_positions."));
        let layer = |index: usize| {
            let name = |part: &str| format!("{model}.layers.{index}.{part}");
            // Layers with the same input, side by side.
            let beside = |parts: &[&str], inputs: usize, outputs: usize| {
                let mut all = Vec::with_capacity(parts.len() * inputs * outputs);
                for part in parts {
                    all.extend(file.f32(&name(&format!("{part}.weight")), &[outputs, inputs])?);
                }
                Ok::<_, WeightsError>(PanelLinear::from_f32(&all, inputs))
            };
            let norm = |part: &str| LayerNorm::read(file, &name(part), width);
            Ok(Layer {
                own_norm: norm("self_attn_layer_norm")?,
                own: beside(&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], width, width)?,
                own_out: beside(&["self_attn.out_proj"], width, width)?,
                text_norm: norm("encoder_attn_layer_norm")?,
                query: beside(&["encoder_attn.q_proj"], width, width)?,
                text: beside(&["encoder_attn.k_proj", "encoder_attn.v_proj"], width, width)?,
                text_out: beside(&["encoder_attn.out_proj"], width, width)?,
                last_norm: norm("final_layer_norm")?,
                wide: beside(&["fc1"], width, inner)?,
                back: beside(&["fc2"], inner, width)?,
            })
        };
        Ok(Self {
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_, WeightsError>>()?,
            last_norm: LayerNorm::read(file, &format!("{model}.layer_norm"), width)?,
            heads: PanelLinear::from_f32(&heads, width),
            tables,
            config,
        })
    }

    /// Its sizes.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// One stream a text, `[tokens, width]` each; one without tokens hears no text, as the unconditional branch does.
    ///
    /// # Panics
    /// If a text is not whole tokens.
    pub fn start(&self, texts: &[&[f32]]) -> DecoderState {
        let width = self.config.hidden_size;
        let keys_and_values = |layer: &Layer| -> Vec<Vec<f32>> {
            let of = |text: &&[f32]| {
                assert!(text.len().is_multiple_of(width), "a text of {} values, rows of {width}", text.len());
                let mut rows = vec![0.0; 2 * text.len()];
                layer.text.add(text, &mut rows);
                rows
            };
            texts.iter().map(of).collect()
        };
        DecoderState {
            streams: texts.len(),
            position: 0,
            own: vec![vec![Vec::new(); texts.len()]; self.layers.len()],
            text: self.layers.iter().map(keys_and_values).collect(),
        }
    }

    /// Reads a column, a code for each codebook or the special one, and gives the logits of the next,
    /// `[streams, codebooks, codes]`.
    ///
    /// # Panics
    /// If there are other than one code a codebook, or a code is none.
    pub fn step(&self, column: &[u16], state: &mut DecoderState) -> Vec<f32> {
        let (width, codes) = (self.config.hidden_size, self.config.vocab_size);
        assert_eq!(column.len(), self.config.num_codebooks, "codes of a column");
        let mut place = vec![0.0; width];
        sinusoid(state.position as u64, &mut place);
        for (table, code) in self.tables.chunks_exact((codes + 1) * width).zip(column) {
            let row = &table[usize::from(*code) * width..][..width];
            place.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        let mut h = place.repeat(state.streams);
        for ((layer, own), text) in self.layers.iter().zip(&mut state.own).zip(&state.text) {
            self.advance(layer, &mut h, own, text);
        }
        state.position += 1;
        let mut logits = vec![0.0; state.streams * self.config.num_codebooks * codes];
        self.heads.add(&self.last_norm.apply(&h), &mut logits);
        logits
    }

    fn advance(&self, layer: &Layer, h: &mut [f32], own: &mut [Vec<f32>], text: &[Vec<f32>]) {
        let (width, heads, rows) = (self.config.hidden_size, self.config.num_attention_heads, own.len());
        let mut projected = vec![0.0; rows * 3 * width];
        layer.own.add(&layer.own_norm.apply(h), &mut projected);
        let mut queries = Vec::with_capacity(rows * width);
        for (row, kept) in projected.chunks_exact(3 * width).zip(own.iter_mut()) {
            queries.extend_from_slice(&row[..width]);
            kept.extend_from_slice(&row[width..]);
        }
        let mut mixed = vec![0.0; rows * width];
        attention::step(heads, &queries, &caches(own, width), &mut mixed);
        layer.own_out.add(&mixed, h);

        queries.fill(0.0);
        layer.query.add(&layer.text_norm.apply(h), &mut queries);
        attention::step(heads, &queries, &caches(text, width), &mut mixed);
        layer.text_out.add(&mixed, h);

        let mut inner = vec![0.0; rows * self.config.ffn_dim];
        layer.wide.add(&layer.last_norm.apply(h), &mut inner);
        layer.back.add(&Activation::Gelu.forward(&inner, None), h);
    }
}
