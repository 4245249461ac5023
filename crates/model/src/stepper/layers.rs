//! The sublayers of [`crate::backbone`] for one frame at a time, on slices.

use half::f16;
use mambo_kernels::activation::Activation;
use mambo_kernels::attention::{self, Cache};
use mambo_kernels::memory::zeros;
use mambo_kernels::panel_linear::PanelLinear;
use mambo_kernels::{mamba1, mamba2};

use crate::backbone::{ChannelMixer, Part, SsmKind, StackConfig};
use crate::parameters::Parameters;
use crate::ssm::mamba2::NORM_EPSILON;

use super::ein_fft::EinFft;

/// How a model's matrices are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Half,
    Single,
}

impl Format {
    /// f16 where that loses nothing of the parameters, as with those of an f16 file; else f32.
    pub fn of(parameters: &Parameters) -> Self {
        let exact = |value: &f32| f16::from_f32(*value).to_f32() == *value;
        let all = parameters.list().iter().all(|parameter| parameter.values.iter().all(exact));
        if all { Self::Half } else { Self::Single }
    }

    /// A linear layer from row-major `[out, in]`.
    pub fn linear(self, weight: &[f32], inputs: usize) -> PanelLinear {
        match self {
            Self::Half => {
                let bits: Vec<u16> = weight.iter().map(|&value| f16::from_f32(value).to_bits()).collect();
                PanelLinear::from_f16_bits(&bits, inputs)
            }
            Self::Single => PanelLinear::from_f32(weight, inputs),
        }
    }
}

/// The values of a parameter.
///
/// # Panics
/// When there is none of that name.
pub(super) fn values(parameters: &Parameters, name: &str) -> Vec<f32> {
    parameters.get(name).unwrap_or_else(|| panic!("no parameter `{name}`")).values.clone()
}

/// What the streams remember of one sublayer, one stream after the other.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Memory {
    /// Convolution inputs and state of a state-space layer; their size never changes.
    Ssm { conv: Vec<f32>, ssm: Vec<f32> },
    /// Keys, then values, of each stream: `[places, 2 d]`. Of all frames so far, or of the text.
    KeyValues(Vec<Vec<f32>>),
    /// Channel mixers remember nothing.
    Nothing,
}

impl Memory {
    /// Adds the streams of `other` behind these.
    pub fn join(&mut self, other: Self) {
        match (self, other) {
            (Self::Ssm { conv, ssm }, Self::Ssm { conv: more_conv, ssm: more_ssm }) => {
                conv.extend(more_conv);
                ssm.extend(more_ssm);
            }
            (Self::KeyValues(streams), Self::KeyValues(more)) => streams.extend(more),
            (Self::Nothing, Self::Nothing) => {}
            (one, other) => panic!("streams of different models: {one:?} and {other:?}"),
        }
    }

    /// Values held.
    pub fn len(&self) -> usize {
        match self {
            Self::Ssm { conv, ssm } => conv.len() + ssm.len(),
            Self::KeyValues(streams) => streams.iter().map(Vec::len).sum(),
            Self::Nothing => 0,
        }
    }
}

/// A sublayer and the norm before it.
pub(super) struct Sublayer {
    norm: Vec<f32>,
    layer: Layer,
}

enum Layer {
    Mamba1(Mamba1),
    Mamba2(Mamba2),
    SelfAttention { heads: usize, in_proj: PanelLinear, out_proj: PanelLinear },
    CrossAttention { heads: usize, q_proj: PanelLinear, kv_proj: PanelLinear, out_proj: PanelLinear },
    EinFft(EinFft),
    FeedForward { wide: PanelLinear, wide_bias: Vec<f32>, back: PanelLinear, back_bias: Vec<f32> },
}

struct Mamba1 {
    kernel: mamba1::Mamba1Config,
    in_proj: PanelLinear,
    conv_weight: Vec<f32>,
    conv_bias: Vec<f32>,
    x_proj: PanelLinear,
    dt_proj: PanelLinear,
    dt_bias: Vec<f32>,
    a_log: Vec<f32>,
    d_skip: Vec<f32>,
    out_proj: PanelLinear,
}

struct Mamba2 {
    kernel: mamba2::Mamba2Config,
    in_proj: PanelLinear,
    conv_weight: Vec<f32>,
    conv_bias: Vec<f32>,
    dt_bias: Vec<f32>,
    a_log: Vec<f32>,
    d_skip: Vec<f32>,
    norm: Vec<f32>,
    out_proj: PanelLinear,
}

impl Sublayer {
    pub fn new(config: &StackConfig, index: usize, part: Part, parameters: &Parameters, format: Format) -> Self {
        let prefix = format!("backbone.{index}.{}", part.name());
        let width = config.width();
        let value = |name: &str| values(parameters, &format!("{prefix}.{name}"));
        let matrix = |name: &str, inputs: usize| format.linear(&value(name), inputs);
        let heads = width / config.attention_head_dim;
        let layer = match part {
            Part::Mixer | Part::SecondMixer if config.ssm == SsmKind::Mamba1 => {
                let sizes = config.mamba1();
                Layer::Mamba1(Mamba1 {
                    kernel: sizes.kernel(),
                    in_proj: matrix("mamba.in_proj.weight", width),
                    conv_weight: value("mamba.conv1d.weight"),
                    conv_bias: value("mamba.conv1d.bias"),
                    x_proj: matrix("mamba.x_proj.weight", sizes.d_inner()),
                    dt_proj: matrix("mamba.dt_proj.weight", sizes.dt_rank()),
                    dt_bias: value("mamba.dt_proj.bias"),
                    a_log: value("mamba.A_log"),
                    d_skip: value("mamba.D"),
                    out_proj: matrix("mamba.out_proj.weight", sizes.d_inner()),
                })
            }
            Part::Mixer | Part::SecondMixer => Layer::Mamba2(Mamba2 {
                kernel: config.mixer.kernel(),
                in_proj: matrix("mamba.in_proj.weight", width),
                conv_weight: value("mamba.conv1d.weight"),
                conv_bias: value("mamba.conv1d.bias"),
                dt_bias: value("mamba.dt_bias"),
                a_log: value("mamba.A_log"),
                d_skip: value("mamba.D"),
                norm: value("mamba.norm.weight"),
                out_proj: matrix("mamba.out_proj.weight", config.mixer.d_inner()),
            }),
            Part::SelfAttention => Layer::SelfAttention {
                heads,
                in_proj: matrix("in_proj.weight", width),
                out_proj: matrix("out_proj.weight", width),
            },
            Part::CrossAttention => Layer::CrossAttention {
                heads,
                q_proj: matrix("q_proj.weight", width),
                kv_proj: matrix("kv_proj.weight", width),
                out_proj: matrix("out_proj.weight", width),
            },
            Part::ChannelMixer => match config.channel_mixer {
                ChannelMixer::FeedForward => Layer::FeedForward {
                    wide: matrix("feed_forward.0.weight", width),
                    wide_bias: value("feed_forward.0.bias"),
                    back: matrix("feed_forward.3.weight", config.ff_width),
                    back_bias: value("feed_forward.3.bias"),
                },
                ChannelMixer::EinFft => {
                    let layer =
                        |at: usize| (value(&format!("ein_fft.weight_{at}")), value(&format!("ein_fft.bias_{at}")));
                    Layer::EinFft(EinFft::new(width, config.fft_blocks, [layer(1), layer(2)], format))
                }
            },
        };
        Self { norm: value("norm.weight"), layer }
    }

    /// What one stream remembers before its first frame; `text` `[tokens, d]` is what cross-attention attends to.
    pub fn start(&self, text: &[f32]) -> Memory {
        match &self.layer {
            Layer::Mamba1(layer) => Memory::Ssm {
                conv: vec![0.0; layer.kernel.conv_state_size()],
                ssm: zeros(layer.kernel.ssm_state_size()),
            },
            Layer::Mamba2(layer) => Memory::Ssm {
                conv: vec![0.0; layer.kernel.conv_state_size()],
                ssm: zeros(layer.kernel.ssm_state_size()),
            },
            Layer::SelfAttention { .. } => Memory::KeyValues(vec![Vec::new()]),
            Layer::CrossAttention { kv_proj, .. } => {
                let mut kv = vec![0.0; text.len() / self.norm.len() * kv_proj.outputs()];
                kv_proj.add(text, &mut kv);
                Memory::KeyValues(vec![kv])
            }
            Layer::FeedForward { .. } | Layer::EinFft(_) => Memory::Nothing,
        }
    }

    /// `h += layer(norm(h))` for `[streams, d]`.
    pub fn advance(&self, h: &mut [f32], memory: &mut Memory) {
        let normed = rms_norm(h, &self.norm);
        let width = self.norm.len();
        let rows = h.len() / width;
        match (&self.layer, memory) {
            (Layer::Mamba1(layer), Memory::Ssm { conv, ssm }) => {
                let mut projected = vec![0.0; rows * layer.kernel.projected()];
                layer.in_proj.add(&normed, &mut projected);
                let mut gated = vec![0.0; rows * layer.kernel.inner];
                let weights = mamba1::Weights {
                    conv_weight: &layer.conv_weight,
                    conv_bias: &layer.conv_bias,
                    dt_bias: &layer.dt_bias,
                    a_log: &layer.a_log,
                    d_skip: &layer.d_skip,
                };
                mamba1::step(
                    &layer.kernel,
                    rows,
                    &projected,
                    &weights,
                    |x, out| layer.x_proj.add(x, out),
                    |x, out| layer.dt_proj.add(x, out),
                    conv,
                    ssm,
                    &mut gated,
                );
                layer.out_proj.add(&gated, h);
            }
            (Layer::Mamba2(layer), Memory::Ssm { conv, ssm }) => {
                let mut projected = vec![0.0; rows * layer.kernel.projected()];
                layer.in_proj.add(&normed, &mut projected);
                let mut gated = vec![0.0; rows * layer.kernel.inner];
                let weights = mamba2::Weights {
                    conv_weight: &layer.conv_weight,
                    conv_bias: &layer.conv_bias,
                    dt_bias: &layer.dt_bias,
                    a_log: &layer.a_log,
                    d_skip: &layer.d_skip,
                    norm: &layer.norm,
                };
                mamba2::step(&layer.kernel, rows, &projected, &weights, conv, ssm, &mut gated);
                layer.out_proj.add(&gated, h);
            }
            (Layer::SelfAttention { heads, in_proj, out_proj }, Memory::KeyValues(streams)) => {
                let mut qkv = vec![0.0; rows * 3 * width];
                in_proj.add(&normed, &mut qkv);
                let mut mixed = vec![0.0; rows * width];
                let mut queries = Vec::with_capacity(mixed.len());
                for (row, kv) in qkv.chunks_exact(3 * width).zip(streams.iter_mut()) {
                    queries.extend_from_slice(&row[..width]);
                    kv.extend_from_slice(&row[width..]);
                }
                attention::step(*heads, &queries, &caches(streams, width), &mut mixed);
                out_proj.add(&mixed, h);
            }
            (Layer::CrossAttention { heads, q_proj, out_proj, .. }, Memory::KeyValues(streams)) => {
                let mut queries = vec![0.0; rows * width];
                q_proj.add(&normed, &mut queries);
                let mut mixed = vec![0.0; rows * width];
                attention::step(*heads, &queries, &caches(streams, width), &mut mixed);
                out_proj.add(&mixed, h);
            }
            (Layer::FeedForward { wide, wide_bias, back, back_bias }, Memory::Nothing) => {
                let mut inner = wide_bias.repeat(rows);
                wide.add(&normed, &mut inner);
                let inner = Activation::Gelu.forward(&inner, None);
                for row in h.chunks_exact_mut(width) {
                    row.iter_mut().zip(back_bias).for_each(|(h, bias)| *h += bias);
                }
                back.add(&inner, h);
            }
            (Layer::EinFft(layer), Memory::Nothing) => layer.add(&normed, h),
            (_, memory) => panic!("memory of another kind of layer: {memory:?}"),
        }
    }
}

/// Keys and values of each stream as attention reads them.
pub(crate) fn caches(streams: &[Vec<f32>], width: usize) -> Vec<Cache<'_>> {
    streams.iter().map(|rows| Cache::of_rows(rows, width)).collect()
}

pub(super) fn rms_norm(x: &[f32], weight: &[f32]) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks_exact(weight.len()) {
        let square: f32 = row.iter().map(|value| value * value).sum();
        let scale = 1.0 / (square / row.len() as f32 + NORM_EPSILON as f32).sqrt();
        out.extend(row.iter().zip(weight).map(|(value, weight)| value * scale * weight));
    }
    out
}
