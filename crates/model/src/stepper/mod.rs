//! Decoding on plain slices: the same network as [`crate::lm::Lm`], one frame at a time, without tensors.
//!
//! Law: its logits equal those of `Lm::step` up to rounding (states are held in f32, matrices in f16 where the weights
//! are). Streams (caption and null text) advance together, so that each weight is read once per frame; the state of a
//! state-space model never grows.

mod ein_fft;
pub(crate) mod layers;

use burn::tensor::Device;
use mambo_kernels::panel_linear::PanelLinear;

use crate::clock;
use crate::lm::{Head, Lm, LmConfig, Positions, sinusoid};
use crate::parameters::Parameters;
use crate::ssm::mamba2::NORM_EPSILON;
use layers::{Format, Memory, Sublayer, rms_norm, values};

struct HeadWeights {
    table: PanelLinear,
    bias: Vec<f32>,
    same_again: Option<(Vec<f32>, f32)>,
    echo_gate: Option<(PanelLinear, Vec<f32>)>,
}

/// The model's weights, ready for decoding.
pub struct Stepper {
    config: LmConfig,
    condition: PanelLinear,
    condition_bias: Vec<f32>,
    condition_norm: Vec<f32>,
    condition_norm_bias: Vec<f32>,
    /// What stands for "no caption", `[tokens, d]`.
    null: Vec<f32>,
    told: Option<PanelLinear>,
    clock: Option<PanelLinear>,
    tempo_head: Option<(PanelLinear, Vec<f32>)>,
    echo: Vec<PanelLinear>,
    embedding: Vec<Vec<f32>>,
    sublayers: Vec<Sublayer>,
    final_norm: Option<Vec<f32>>,
    heads: Vec<HeadWeights>,
}

/// One column as the decoder reads it.
#[derive(Debug, Clone, Copy)]
pub struct Column<'a> {
    /// K codes.
    pub codes: &'a [u16],
    /// Beat clock of the frame to come.
    pub ticks: u16,
    /// Codes at each lag before the frame to come, `[lags, K]`, the special token where there is none.
    pub echoes: &'a [u16],
}

/// What the streams remember: per layer, one stream after the other.
#[derive(Debug, Clone, PartialEq)]
pub struct StepperState {
    streams: usize,
    /// Streams that hear neither clock nor echoes.
    without_beat: Vec<bool>,
    /// Of every sublayer.
    layers: Vec<Memory>,
    /// Position of the next token or column of each stream.
    positions: Vec<u64>,
    /// What every frame is told of the text, `[streams, d]`; empty if nothing.
    told: Vec<f32>,
    /// Final hidden states of the latest token or column, `[streams, d]`; before the first column of a model with
    /// cross-attention, the mean of the text.
    latest: Vec<f32>,
}

impl StepperState {
    /// Streams that advance together.
    pub fn streams(&self) -> usize {
        self.streams
    }

    /// Bytes held; constant while generating, but for a stack with self-attention.
    pub fn bytes(&self) -> usize {
        4 * (self.layers.iter().map(Memory::len).sum::<usize>() + self.told.len() + self.latest.len())
    }

    /// The same streams, from now on deaf to clock and echoes: music without a beat, as far as they know.
    #[must_use]
    pub fn without_beat(mut self) -> Self {
        self.without_beat.fill(true);
        self
    }

    /// Adds the streams of `other` behind these.
    pub fn join(mut self, other: Self) -> Self {
        self.streams += other.streams;
        self.without_beat.extend(other.without_beat);
        self.layers.iter_mut().zip(other.layers).for_each(|(layer, more)| layer.join(more));
        self.positions.extend(other.positions);
        self.told.extend(other.told);
        self.latest.extend(other.latest);
        self
    }
}

impl Stepper {
    /// Takes the weights. Tables that are sums and products of parameters are formed once, here.
    ///
    /// # Panics
    /// When `parameters` were not made by [`LmConfig::init`] of the same configuration.
    pub fn new(config: &LmConfig, parameters: &Parameters) -> Self {
        let format = Format::of(parameters);
        let values = |name: &str| values(parameters, name);
        let linear = |weight: &[f32], inputs: usize| format.linear(weight, inputs);
        let model = Lm::new(config, &parameters.bind(&Device::flex()));
        let (embedding, head) = model.tables();
        let floats = |tensor: &burn::tensor::Tensor<2>| -> Vec<f32> {
            tensor.to_data().try_to_vec_as::<f32>().expect("tables are f32")
        };
        let width = config.d_model;
        let heads = head
            .iter()
            .enumerate()
            .map(|(k, table)| HeadWeights {
                table: linear(&floats(table), width),
                bias: match config.head {
                    Head::Published => vec![0.0; config.cardinality],
                    _ => values(&format!("lm_head.{k}.bias")),
                },
                echo_gate: (!config.echo_beats.is_empty()).then(|| {
                    let name = format!("echo_gate.{k}");
                    (linear(&values(&format!("{name}.weight")), width), values(&format!("{name}.bias")))
                }),
                same_again: config
                    .same_again
                    .then(|| (values(&format!("same_again.{k}.weight")), values(&format!("same_again.{k}.bias"))[0])),
            })
            .collect();
        let stack = config.stack();
        let parts = (0..config.layers).flat_map(|i| config.backbone.sublayers().iter().map(move |&part| (i, part)));
        let mut stepper = Self {
            config: config.clone(),
            condition: linear(&values("condition_linear.weight"), config.text_width),
            condition_bias: values("condition_linear.bias"),
            condition_norm: values("condition_norm.weight"),
            condition_norm_bias: values("condition_norm.bias"),
            null: Vec::new(),
            told: config.text_in_every_frame.then(|| linear(&values("told.weight"), width)),
            clock: config.beat_clock.then(|| linear(&values("clock.weight"), clock::FEATURES)),
            tempo_head: config
                .beat_clock
                .then(|| (linear(&values("tempo_head.weight"), width), values("tempo_head.bias"))),
            echo: (0..config.echo_beats.len())
                .map(|lag| linear(&values(&format!("echo.{lag}.weight")), width))
                .collect(),
            embedding: embedding.iter().map(floats).collect(),
            sublayers: parts.map(|(i, part)| Sublayer::new(&stack, i, part, parameters, format)).collect(),
            final_norm: config.final_norm.then(|| values("final_norm.weight")),
            heads,
        };
        stepper.null = match config.null_tokens {
            0 => stepper.token(&vec![0.0; config.text_width]),
            _ => values("null_prefix"),
        };
        stepper
    }

    /// The model's configuration.
    pub fn config(&self) -> &LmConfig {
        &self.config
    }

    /// The state of one stream after reading a caption (`[tokens, text_width]`) or, with `None`, the null text.
    ///
    /// # Panics
    /// When the caption is no multiple of the text width.
    pub fn start(&self, text: Option<&[f32]>) -> StepperState {
        let config = &self.config;
        let text = match text.filter(|text| !text.is_empty()) {
            Some(text) => {
                assert_eq!(text.len() % config.text_width, 0, "text states must be [tokens, width]");
                text.chunks_exact(config.text_width).flat_map(|token| self.token(token)).collect()
            }
            None => self.null.clone(),
        };
        let mut mean = vec![0.0; config.d_model];
        let tokens = text.chunks_exact(config.d_model);
        let share = 1.0 / tokens.len() as f32;
        tokens.clone().for_each(|token| mean.iter_mut().zip(token).for_each(|(mean, value)| *mean += share * value));
        let mut state = StepperState {
            streams: 1,
            without_beat: vec![false],
            layers: self.sublayers.iter().map(|sublayer| sublayer.start(&text)).collect(),
            positions: vec![0],
            told: Vec::new(),
            latest: mean,
        };
        if let Some(weight) = &self.told {
            state.told = vec![0.0; config.d_model];
            weight.add(&state.latest, &mut state.told);
        }
        if !config.backbone.is_cross() {
            tokens.for_each(|token| self.advance(token.to_vec(), &mut state));
        }
        state
    }

    /// A token's text states as the stack reads them.
    fn token(&self, states: &[f32]) -> Vec<f32> {
        let mut x = self.condition_bias.clone();
        self.condition.add(states, &mut x);
        layer_norm(&mut x, &self.condition_norm, &self.condition_norm_bias);
        x
    }

    /// Logits of the tempo classes of each stream, `[streams, classes]`, right after the text; `None` for a model
    /// without a beat clock.
    pub fn tempo(&self, after_text: &StepperState) -> Option<Vec<f32>> {
        let (weight, bias) = self.tempo_head.as_ref()?;
        let mut logits = bias.repeat(after_text.streams);
        weight.add(&after_text.latest, &mut logits);
        Some(logits)
    }

    /// Sum of the embeddings of one column of codes.
    fn embed(&self, column: &[u16], heard: impl Fn(u16) -> bool) -> Vec<f32> {
        let width = self.config.d_model;
        let mut x = vec![0.0; width];
        for (table, &code) in self.embedding.iter().zip(column).filter(|(_, code)| heard(**code)) {
            let row = &table[usize::from(code) * width..(usize::from(code) + 1) * width];
            x.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        x
    }

    /// Feeds one column to every stream.
    ///
    /// # Panics
    /// When a model with echoes is not given one column per lag.
    fn feed(&self, column: Column<'_>, state: &mut StepperState) {
        assert_eq!(column.echoes.len(), self.echo.len() * self.config.codebooks, "echoes must be [lags, K]");
        let special = self.config.special();
        let codes = self.embed(column.codes, |_| true);
        let mut x = codes.clone();
        if let Some(weight) = &self.clock {
            weight.add(&clock::features(column.ticks), &mut x);
        }
        for (weight, echo) in self.echo.iter().zip(column.echoes.chunks_exact(self.config.codebooks)) {
            if echo.iter().any(|&code| code != special) {
                weight.add(&self.embed(echo, |code| code != special), &mut x);
            }
        }
        let heard = |&deaf: &bool| if deaf { codes.as_slice() } else { x.as_slice() };
        let mut x = state.without_beat.iter().map(heard).collect::<Vec<_>>().concat();
        x.iter_mut().zip(&state.told).for_each(|(x, told)| *x += told);
        self.advance(x, state);
    }

    /// Feeds one column and returns the logits of each codebook, `[streams, cardinality]`.
    pub fn step(&self, column: Column<'_>, state: &mut StepperState) -> Vec<Vec<f32>> {
        let (width, codes, books) = (self.config.d_model, self.config.cardinality, self.config.codebooks);
        self.feed(column, state);
        let logits = |(k, head): (usize, &HeadWeights)| {
            let mut logits = head.bias.repeat(state.streams);
            head.table.add(&state.latest, &mut logits);
            let heard = usize::from(column.codes[k]);
            if let (Some((weight, bias)), true) = (&head.same_again, heard < codes) {
                for (row, h) in logits.chunks_exact_mut(codes).zip(state.latest.chunks_exact(width)) {
                    let gate: f32 = weight.iter().zip(h).map(|(a, b)| a * b).sum();
                    row[heard] += bias + gate;
                }
            }
            if let Some((weight, bias)) = &head.echo_gate {
                let mut gates = bias.repeat(state.streams);
                weight.add(&state.latest, &mut gates);
                let rows = logits.chunks_exact_mut(codes).zip(gates.chunks_exact(bias.len()));
                for ((row, gates), _) in rows.zip(&state.without_beat).filter(|(_, deaf)| !**deaf) {
                    for (gate, echo) in gates.iter().zip(column.echoes.chunks_exact(books)) {
                        if let Some(logit) = row.get_mut(usize::from(echo[k])) {
                            *logit += gate;
                        }
                    }
                }
            }
            logits
        };
        self.heads.iter().enumerate().map(logits).collect()
    }

    /// Runs the stack on `h` (`[streams, d]`) and keeps the final states.
    fn advance(&self, mut h: Vec<f32>, state: &mut StepperState) {
        if self.config.positions == Positions::Sinusoidal {
            let mut place = vec![0.0; self.config.d_model];
            for (row, &position) in h.chunks_exact_mut(place.len()).zip(&state.positions) {
                sinusoid(position, &mut place);
                row.iter_mut().zip(&place).for_each(|(value, place)| *value += place);
            }
        }
        state.positions.iter_mut().for_each(|position| *position += 1);
        for (sublayer, memory) in self.sublayers.iter().zip(&mut state.layers) {
            sublayer.advance(&mut h, memory);
        }
        state.latest = match &self.final_norm {
            Some(weight) => rms_norm(&h, weight),
            None => h,
        };
    }
}

fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32]) {
    let mean = x.iter().sum::<f32>() / x.len() as f32;
    let variance = x.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / x.len() as f32;
    let scale = 1.0 / (variance + NORM_EPSILON as f32).sqrt();
    for ((x, weight), bias) in x.iter_mut().zip(weight).zip(bias) {
        *x = (*x - mean) * scale * weight + bias;
    }
}
