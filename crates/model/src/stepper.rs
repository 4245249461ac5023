//! Decoding on plain slices: the same network as [`crate::lm::Lm`], one frame at a time, without tensors.
//!
//! Law: its logits equal those of `Lm::step` up to rounding (matrices are held in f16, states in f32). Streams (caption and null text) advance
//! together, so that each weight is read once per frame; the state's size never changes.

use burn::tensor::Device;
use half::f16;
use mambo_kernels::activation::Activation;
use mambo_kernels::mamba2 as kernel;
use mambo_kernels::panel_linear::PanelLinear;

use crate::clock;
use crate::lm::{Lm, LmConfig};
use crate::parameters::Parameters;
use crate::ssm::mamba2::NORM_EPSILON;

/// A linear layer from row-major `[out, in]`. Weights come from f16 files, so f16 loses nothing of them.
fn linear(weight: &[f32], inputs: usize) -> PanelLinear {
    let bits: Vec<u16> = weight.iter().map(|&value| f16::from_f32(value).to_bits()).collect();
    PanelLinear::from_f16_bits(&bits, inputs)
}

struct Block {
    mixer_norm: Vec<f32>,
    in_proj: PanelLinear,
    conv_weight: Vec<f32>,
    conv_bias: Vec<f32>,
    dt_bias: Vec<f32>,
    a_log: Vec<f32>,
    d_skip: Vec<f32>,
    gate_norm: Vec<f32>,
    out_proj: PanelLinear,
    ff_norm: Vec<f32>,
    ff_in: PanelLinear,
    ff_in_bias: Vec<f32>,
    ff_out: PanelLinear,
    ff_out_bias: Vec<f32>,
}

struct HeadWeights {
    table: PanelLinear,
    bias: Vec<f32>,
    same_again: Option<(Vec<f32>, f32)>,
    echo_gate: Option<(PanelLinear, Vec<f32>)>,
}

/// The model's weights, ready for decoding.
pub struct Stepper {
    config: LmConfig,
    kernel: kernel::Mamba2Config,
    condition: PanelLinear,
    condition_bias: Vec<f32>,
    condition_norm: Vec<f32>,
    condition_norm_bias: Vec<f32>,
    null_prefix: Vec<f32>,
    told: Option<PanelLinear>,
    clock: Option<PanelLinear>,
    tempo_head: Option<(PanelLinear, Vec<f32>)>,
    echo: Vec<PanelLinear>,
    embedding: Vec<Vec<f32>>,
    blocks: Vec<Block>,
    final_norm: Vec<f32>,
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
    conv: Vec<Vec<f32>>,
    ssm: Vec<Vec<f32>>,
    /// What every frame is told of the text, `[streams, d]`; empty if nothing.
    told: Vec<f32>,
    /// Final hidden states of the latest token or column, `[streams, d]`.
    latest: Vec<f32>,
}

impl StepperState {
    /// Streams that advance together.
    pub fn streams(&self) -> usize {
        self.streams
    }

    /// Bytes held; constant while generating.
    pub fn bytes(&self) -> usize {
        4 * self.conv.iter().chain(&self.ssm).chain([&self.told, &self.latest]).map(Vec::len).sum::<usize>()
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
        let layers = self.conv.iter_mut().chain(&mut self.ssm);
        layers.zip(other.conv.into_iter().chain(other.ssm)).for_each(|(layer, more)| layer.extend(more));
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
        let values = |name: &str| -> Vec<f32> {
            parameters.get(name).unwrap_or_else(|| panic!("no parameter `{name}`")).values.clone()
        };
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
                bias: values(&format!("lm_head.{k}.bias")),
                echo_gate: (!config.echo_beats.is_empty()).then(|| {
                    let name = format!("echo_gate.{k}");
                    (linear(&values(&format!("{name}.weight")), width), values(&format!("{name}.bias")))
                }),
                same_again: config
                    .same_again
                    .then(|| (values(&format!("same_again.{k}.weight")), values(&format!("same_again.{k}.bias"))[0])),
            })
            .collect();
        let blocks = (0..config.layers)
            .map(|i| {
                let mixer = |name: &str| values(&format!("backbone.{i}.mamba.mamba.{name}"));
                let ff = |name: &str| values(&format!("backbone.{i}.ff.{name}"));
                Block {
                    mixer_norm: values(&format!("backbone.{i}.mamba.norm.weight")),
                    in_proj: linear(&mixer("in_proj.weight"), width),
                    conv_weight: mixer("conv1d.weight"),
                    conv_bias: mixer("conv1d.bias"),
                    dt_bias: mixer("dt_bias"),
                    a_log: mixer("A_log"),
                    d_skip: mixer("D"),
                    gate_norm: mixer("norm.weight"),
                    out_proj: linear(&mixer("out_proj.weight"), config.mixer().d_inner()),
                    ff_norm: ff("norm.weight"),
                    ff_in: linear(&ff("feed_forward.0.weight"), width),
                    ff_in_bias: ff("feed_forward.0.bias"),
                    ff_out: linear(&ff("feed_forward.3.weight"), config.ff_multiple * width),
                    ff_out_bias: ff("feed_forward.3.bias"),
                }
            })
            .collect();
        Self {
            config: config.clone(),
            kernel: config.mixer().kernel(),
            condition: linear(&values("condition_linear.weight"), config.text_width),
            condition_bias: values("condition_linear.bias"),
            condition_norm: values("condition_norm.weight"),
            condition_norm_bias: values("condition_norm.bias"),
            null_prefix: values("null_prefix"),
            told: config.text_in_every_frame.then(|| linear(&values("told.weight"), width)),
            clock: config.beat_clock.then(|| linear(&values("clock.weight"), clock::FEATURES)),
            tempo_head: config
                .beat_clock
                .then(|| (linear(&values("tempo_head.weight"), width), values("tempo_head.bias"))),
            echo: (0..config.echo_beats.len())
                .map(|lag| linear(&values(&format!("echo.{lag}.weight")), width))
                .collect(),
            embedding: embedding.iter().map(floats).collect(),
            blocks,
            final_norm: values("final_norm.weight"),
            heads,
        }
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
        let mut state = StepperState {
            streams: 1,
            without_beat: vec![false],
            conv: vec![vec![0.0; self.kernel.conv_state_size()]; config.layers],
            ssm: vec![vec![0.0; self.kernel.ssm_state_size()]; config.layers],
            told: Vec::new(),
            latest: Vec::new(),
        };
        let prefix: Vec<Vec<f32>> = match text.filter(|text| !text.is_empty()) {
            Some(text) => {
                assert_eq!(text.len() % config.text_width, 0, "text states must be [tokens, width]");
                let token = |token: &[f32]| {
                    let mut x = self.condition_bias.clone();
                    self.condition.add(token, &mut x);
                    layer_norm(&mut x, &self.condition_norm, &self.condition_norm_bias);
                    x
                };
                text.chunks_exact(config.text_width).map(token).collect()
            }
            None => self.null_prefix.chunks_exact(config.d_model).map(<[f32]>::to_vec).collect(),
        };
        if let Some(weight) = &self.told {
            let mut mean = vec![0.0; config.d_model];
            for token in &prefix {
                mean.iter_mut().zip(token).for_each(|(mean, value)| *mean += value / prefix.len() as f32);
            }
            state.told = vec![0.0; config.d_model];
            weight.add(&mean, &mut state.told);
        }
        for token in prefix {
            self.advance(token, &mut state);
        }
        state
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

    /// Runs the stack on `h` (`[streams, d]`) and keeps the final normed states.
    fn advance(&self, mut h: Vec<f32>, state: &mut StepperState) {
        let rows = state.streams;
        for (i, block) in self.blocks.iter().enumerate() {
            let normed = rms_norm(&h, &block.mixer_norm);
            let mut projected = vec![0.0; rows * self.kernel.projected()];
            block.in_proj.add(&normed, &mut projected);
            let mut gated = vec![0.0; rows * self.kernel.inner];
            let weights = kernel::Weights {
                conv_weight: &block.conv_weight,
                conv_bias: &block.conv_bias,
                dt_bias: &block.dt_bias,
                a_log: &block.a_log,
                d_skip: &block.d_skip,
                norm: &block.gate_norm,
            };
            let (conv, ssm) = (&mut state.conv[i], &mut state.ssm[i]);
            kernel::step(&self.kernel, rows, &projected, &weights, conv, ssm, &mut gated);
            block.out_proj.add(&gated, &mut h);

            let normed = rms_norm(&h, &block.ff_norm);
            let mut wide = block.ff_in_bias.repeat(rows);
            block.ff_in.add(&normed, &mut wide);
            let wide = Activation::Gelu.forward(&wide, None);
            for row in h.chunks_exact_mut(block.ff_out_bias.len()) {
                row.iter_mut().zip(&block.ff_out_bias).for_each(|(h, bias)| *h += bias);
            }
            block.ff_out.add(&wide, &mut h);
        }
        state.latest = rms_norm(&h, &self.final_norm);
    }
}

fn rms_norm(x: &[f32], weight: &[f32]) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks_exact(weight.len()) {
        let square: f32 = row.iter().map(|value| value * value).sum();
        let scale = 1.0 / (square / row.len() as f32 + NORM_EPSILON as f32).sqrt();
        out.extend(row.iter().zip(weight).map(|(value, weight)| value * scale * weight));
    }
    out
}

fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32]) {
    let mean = x.iter().sum::<f32>() / x.len() as f32;
    let variance = x.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / x.len() as f32;
    let scale = 1.0 / (variance + NORM_EPSILON as f32).sqrt();
    for ((x, weight), bias) in x.iter_mut().zip(weight).zip(bias) {
        *x = (*x - mean) * scale * weight + bias;
    }
}
