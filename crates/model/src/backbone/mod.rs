//! The stack between embedding and heads: blocks of pre-norm residual sublayers,
//! `h += Dropout(sublayer(RMSNorm(h)))` (SSM-TTM, arXiv 2601.14786, architecture figure).
//!
//! [`BackboneKind`] says which sublayers; [`Stack`] is all of them.
//! Law: `forward(a ++ b) == forward(a); forward(b)`, and `forward == fold(step)`, in outputs, state and gradients.

mod attention;
mod channel_mixer;
mod config;
mod dropout;

use burn::tensor::Tensor;

use crate::ops;
use crate::parameters::Bound;
use crate::ssm::mamba2::NORM_EPSILON;
use crate::ssm::{Mamba1, Mamba1State, Mamba2, Mamba2State};

pub use attention::{CrossAttention, KeyValues, SelfAttention, TextMemory};
pub use channel_mixer::{EinFft, FeedForward};
pub(crate) use channel_mixer::{SOFT_SHRINK, transform};
pub use config::{BackboneKind, ChannelMixer, Part, SsmKind, StackConfig};
pub use dropout::Dropout;

/// A causal stack.
pub trait Backbone {
    /// What it remembers between frames.
    type State: Clone;

    /// The state before the first frame; `text` is what cross-attention attends to.
    fn start(&self, batch: usize, text: Option<&TextMemory>) -> Self::State;

    /// Many frames. The first `padding[b]` frames of sequence b do not count (empty: all count).
    /// Without `state` it starts fresh from `text` and returns none: cheaper, for training. A state brings its own text.
    fn forward(
        &self,
        x_btd: Tensor<3>,
        padding: &[usize],
        text: Option<&TextMemory>,
        state: Option<Self::State>,
        dropout: &mut Dropout,
    ) -> (Tensor<3>, Option<Self::State>);

    /// One frame, without dropout.
    fn step(&self, x_bd: Tensor<2>, state: Self::State) -> (Tensor<2>, Self::State);
}

/// One sublayer.
#[derive(Debug, Clone)]
enum Layer {
    Mamba1(Box<Mamba1>),
    Mamba2(Box<Mamba2>),
    SelfAttention(SelfAttention),
    CrossAttention(CrossAttention),
    FeedForward(FeedForward),
    EinFft(Box<EinFft>),
}

/// What one sublayer remembers between frames.
#[derive(Debug, Clone)]
pub enum LayerState {
    /// A Mamba-1 layer's; its size never changes.
    Mamba1(Mamba1State),
    /// A Mamba-2 layer's; its size never changes.
    Mamba2(Mamba2State),
    /// Keys and values of all frames so far, or of the text.
    KeyValues(KeyValues),
    /// Channel mixers remember nothing.
    Nothing,
}

impl Layer {
    fn new(config: &StackConfig, part: Part, name: &str, bound: &Bound) -> Self {
        match part {
            Part::Mixer | Part::SecondMixer => {
                let name = format!("{name}.mamba");
                match config.ssm {
                    SsmKind::Mamba1 => Self::Mamba1(Box::new(Mamba1::new(&config.mamba1(), &name, bound))),
                    SsmKind::Mamba2 => Self::Mamba2(Box::new(Mamba2::new(&config.mixer, &name, bound))),
                }
            }
            Part::SelfAttention => Self::SelfAttention(SelfAttention::new(config.attention_head_dim, name, bound)),
            Part::CrossAttention => Self::CrossAttention(CrossAttention::new(config.attention_head_dim, name, bound)),
            Part::ChannelMixer => match config.channel_mixer {
                ChannelMixer::FeedForward => Self::FeedForward(FeedForward::new(name, bound)),
                ChannelMixer::EinFft => Self::EinFft(Box::new(EinFft::new(name, bound))),
            },
        }
    }

    fn start(&self, batch: usize, text: Option<&TextMemory>) -> LayerState {
        match self {
            Self::Mamba1(layer) => LayerState::Mamba1(layer.start(batch)),
            Self::Mamba2(layer) => LayerState::Mamba2(layer.start(batch)),
            Self::SelfAttention(layer) => LayerState::KeyValues(layer.start(batch)),
            Self::CrossAttention(layer) => LayerState::KeyValues(layer.read(text.expect("cross-attention needs text"))),
            Self::FeedForward(_) | Self::EinFft(_) => LayerState::Nothing,
        }
    }

    fn forward(
        &self,
        x_btd: Tensor<3>,
        padding: &[usize],
        text: Option<&TextMemory>,
        state: Option<LayerState>,
    ) -> (Tensor<3>, Option<LayerState>) {
        match (self, state) {
            (Self::Mamba1(layer), None) => (layer.forward(x_btd, padding, None).0, None),
            (Self::Mamba1(layer), Some(LayerState::Mamba1(state))) => {
                let (y, state) = layer.forward(x_btd, padding, Some(state));
                (y, state.map(LayerState::Mamba1))
            }
            (Self::Mamba2(layer), None) => (layer.forward(x_btd, padding, None).0, None),
            (Self::Mamba2(layer), Some(LayerState::Mamba2(state))) => {
                let (y, state) = layer.forward(x_btd, padding, Some(state));
                (y, state.map(LayerState::Mamba2))
            }
            (Self::SelfAttention(layer), None) => (layer.forward(x_btd, padding, None).0, None),
            (Self::SelfAttention(layer), Some(LayerState::KeyValues(cache))) => {
                let (y, cache) = layer.forward(x_btd, padding, Some(cache));
                (y, cache.map(LayerState::KeyValues))
            }
            (Self::CrossAttention(layer), None) => {
                (layer.forward(x_btd, &layer.read(text.expect("cross-attention needs text"))), None)
            }
            (Self::CrossAttention(layer), Some(LayerState::KeyValues(text))) => {
                (layer.forward(x_btd, &text), Some(LayerState::KeyValues(text)))
            }
            (Self::FeedForward(layer), state) => (layer.forward(x_btd), state),
            (Self::EinFft(layer), state) => (layer.forward(x_btd), state),
            (layer, Some(state)) => panic!("a state of another kind of layer: {state:?} for {layer:?}"),
        }
    }

    fn step(&self, x_bd: Tensor<2>, state: LayerState) -> (Tensor<2>, LayerState) {
        let [batch, width] = x_bd.dims();
        match (self, state) {
            (Self::Mamba1(layer), LayerState::Mamba1(state)) => {
                let (y, state) = layer.step(x_bd, state);
                (y, LayerState::Mamba1(state))
            }
            (Self::Mamba2(layer), LayerState::Mamba2(state)) => {
                let (y, state) = layer.step(x_bd, state);
                (y, LayerState::Mamba2(state))
            }
            // One frame is a short sequence for layers without a recurrence.
            (layer, state) => {
                let (y, state) = layer.forward(x_bd.reshape([batch, 1, width]), &[], None, Some(state));
                (y.reshape([batch, width]), state.expect("a state was given"))
            }
        }
    }
}

#[derive(Debug, Clone)]
struct Sublayer {
    norm: Tensor<1>,
    layer: Layer,
}

/// One block of sublayers.
#[derive(Debug, Clone)]
pub struct Block(Vec<Sublayer>);

impl Block {
    /// Takes the tensors of block `index` from `bound`.
    pub fn new(config: &StackConfig, index: usize, bound: &Bound) -> Self {
        let sublayer = |part: &Part| {
            let name = format!("backbone.{index}.{}", part.name());
            Sublayer {
                norm: bound.tensor(&format!("{name}.norm.weight")),
                layer: Layer::new(config, *part, &name, bound),
            }
        };
        Self(config.kind.sublayers().iter().map(sublayer).collect())
    }

    /// Many frames without states: see [`Backbone::forward`].
    pub fn forward(
        &self,
        x_btd: Tensor<3>,
        padding: &[usize],
        text: Option<&TextMemory>,
        dropout: &mut Dropout,
    ) -> Tensor<3> {
        self.0.iter().fold(x_btd, |h_btd, sublayer| {
            let normed = norm(h_btd.clone(), &sublayer.norm);
            dropout.residual(h_btd, sublayer.layer.forward(normed, padding, text, None).0)
        })
    }
}

/// The norm after the last block, in stacks that have one.
#[derive(Debug, Clone)]
pub struct FinalNorm(Option<Tensor<1>>);

impl FinalNorm {
    /// Takes its weight from `bound`.
    pub fn new(config: &StackConfig, bound: &Bound) -> Self {
        Self(config.final_norm.then(|| bound.tensor("final_norm.weight")))
    }

    /// What leaves the stack.
    pub fn forward<const D: usize>(&self, h: Tensor<D>) -> Tensor<D> {
        match &self.0 {
            Some(weight) => norm(h, weight),
            None => h,
        }
    }
}

/// All blocks, and the norm after them.
#[derive(Debug, Clone)]
pub struct Stack {
    blocks: Vec<Block>,
    final_norm: FinalNorm,
}

impl Stack {
    /// Takes all tensors from `bound`, whose parameters [`StackConfig::init`] made.
    pub fn new(config: &StackConfig, bound: &Bound) -> Self {
        Self {
            blocks: (0..config.layers).map(|index| Block::new(config, index, bound)).collect(),
            final_norm: FinalNorm::new(config, bound),
        }
    }
}

fn norm<const D: usize>(x: Tensor<D>, weight: &Tensor<1>) -> Tensor<D> {
    ops::rms_norm(x, weight.clone(), NORM_EPSILON)
}

impl Backbone for Stack {
    type State = Vec<LayerState>;

    fn start(&self, batch: usize, text: Option<&TextMemory>) -> Self::State {
        self.blocks.iter().flat_map(|block| &block.0).map(|sublayer| sublayer.layer.start(batch, text)).collect()
    }

    fn forward(
        &self,
        x_btd: Tensor<3>,
        padding: &[usize],
        text: Option<&TextMemory>,
        state: Option<Self::State>,
        dropout: &mut Dropout,
    ) -> (Tensor<3>, Option<Self::State>) {
        let Some(state) = state else {
            let through = |h_btd, block: &Block| block.forward(h_btd, padding, text, dropout);
            return (self.final_norm.forward(self.blocks.iter().fold(x_btd, through)), None);
        };
        let mut h_btd = x_btd;
        let mut after = Vec::with_capacity(state.len());
        for (sublayer, state) in self.blocks.iter().flat_map(|block| &block.0).zip(state) {
            let (y_btd, state) =
                sublayer.layer.forward(norm(h_btd.clone(), &sublayer.norm), padding, text, Some(state));
            after.push(state.expect("a state was given"));
            h_btd = dropout.residual(h_btd, y_btd);
        }
        (self.final_norm.forward(h_btd), Some(after))
    }

    fn step(&self, x_bd: Tensor<2>, state: Self::State) -> (Tensor<2>, Self::State) {
        let mut h_bd = x_bd;
        let mut after = Vec::with_capacity(state.len());
        for (sublayer, state) in self.blocks.iter().flat_map(|block| &block.0).zip(state) {
            let (y_bd, state) = sublayer.layer.step(norm(h_bd.clone(), &sublayer.norm), state);
            after.push(state);
            h_bd = h_bd + y_bd;
        }
        (self.final_norm.forward(h_bd), after)
    }
}
