//! The stack between embedding and heads: pre-norm residual blocks of a mixer and a feed-forward layer.
//!
//! [`Simba`] is the block of SSM-TTM (arXiv 2601.14786, figure "Prefix SiMBA"):
//! `h += Dropout(Mamba2(RMSNorm(h))); h += Dropout(FF(RMSNorm(h)))`, with a final RMSNorm added.
//! Law: `forward(a ++ b) == forward(a); forward(b)`, and `forward == fold(step)`.

use burn::tensor::Tensor;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;

use crate::ops;
use crate::parameters::{Bound, Initialiser, Parameters, Role};
use crate::ssm::mamba2::NORM_EPSILON;
use crate::ssm::{Mamba2, Mamba2Config, Mamba2State};

/// A causal stack with a constant-size state.
pub trait Backbone {
    /// What it remembers between frames.
    type State: Clone;

    /// The state before the first frame.
    fn start(&self, batch: usize) -> Self::State;

    /// Many frames. The first `padding[b]` frames of sequence b do not count (empty: all count).
    /// Without `state` it starts fresh and returns none: cheaper, for training.
    fn forward(
        &self,
        x_btd: Tensor<3>,
        padding: &[usize],
        state: Option<Self::State>,
        dropout: &mut Dropout,
    ) -> (Tensor<3>, Option<Self::State>);

    /// One frame, without dropout.
    fn step(&self, x_bd: Tensor<2>, state: Self::State) -> (Tensor<2>, Self::State);
}

/// Dropout with its own stream, so that a step's masks depend on (seed, step) alone.
pub struct Dropout {
    rate: f32,
    rng: Option<ChaCha8Rng>,
}

impl Dropout {
    /// No dropout: evaluation and generation.
    pub fn off() -> Self {
        Self { rate: 0.0, rng: None }
    }

    /// Zeroes values with probability `rate` and scales the others by 1/(1 - rate).
    pub fn new(rate: f32, rng: ChaCha8Rng) -> Self {
        Self { rate, rng: (rate > 0.0).then_some(rng) }
    }

    /// `base + dropout(x)`.
    pub fn residual(&mut self, base_btd: Tensor<3>, x_btd: Tensor<3>) -> Tensor<3> {
        match &mut self.rng {
            Some(rng) => ops::residual(base_btd, x_btd, self.rate, rng.next_u64()),
            None => base_btd + x_btd,
        }
    }
}

/// One block's tensors.
#[derive(Debug, Clone)]
struct Block {
    mixer_norm: Tensor<1>,
    mixer: Mamba2,
    ff_norm: Tensor<1>,
    ff_in: Tensor<2>,
    ff_in_bias: Tensor<1>,
    ff_out: Tensor<2>,
    ff_out_bias: Tensor<1>,
}

/// Mamba-2 and feed-forward blocks.
#[derive(Debug, Clone)]
pub struct Simba {
    blocks: Vec<Block>,
    final_norm: Tensor<1>,
}

impl Simba {
    /// Adds the parameters of `layers` blocks and the final norm; the feed-forward layers are
    /// `ff_width` wide.
    pub fn init(mixer: &Mamba2Config, layers: usize, ff_width: usize, draw: &mut Initialiser, into: &mut Parameters) {
        let width = mixer.d_model;
        let residual_scale = 1.0 / (2.0 * layers as f32).sqrt();
        for i in 0..layers {
            let block = format!("backbone.{i}");
            into.push(format!("{block}.mamba.norm.weight"), &[width], Role::Free, vec![1.0; width]);
            mixer.init(&format!("{block}.mamba.mamba"), 2 * layers, draw, into);
            into.push(format!("{block}.ff.norm.weight"), &[width], Role::Free, vec![1.0; width]);
            let ff = format!("{block}.ff.feed_forward");
            into.push(
                format!("{ff}.0.weight"),
                &[ff_width, width],
                Role::Decayed,
                draw.fan_in(ff_width * width, width),
            );
            into.push(format!("{ff}.0.bias"), &[ff_width], Role::Free, vec![0.0; ff_width]);
            let mut out = draw.fan_in(width * ff_width, ff_width);
            out.iter_mut().for_each(|value| *value *= residual_scale);
            into.push(format!("{ff}.3.weight"), &[width, ff_width], Role::Decayed, out);
            into.push(format!("{ff}.3.bias"), &[width], Role::Free, vec![0.0; width]);
        }
        into.push("final_norm.weight", &[width], Role::Free, vec![1.0; width]);
    }

    /// Takes the tensors of `layers` blocks from `bound`.
    pub fn new(mixer: &Mamba2Config, layers: usize, bound: &Bound) -> Self {
        let blocks = (0..layers)
            .map(|i| {
                let block = format!("backbone.{i}");
                let ff = format!("{block}.ff.feed_forward");
                Block {
                    mixer_norm: bound.tensor(&format!("{block}.mamba.norm.weight")),
                    mixer: Mamba2::new(mixer, &format!("{block}.mamba.mamba"), bound),
                    ff_norm: bound.tensor(&format!("{block}.ff.norm.weight")),
                    ff_in: bound.tensor(&format!("{ff}.0.weight")),
                    ff_in_bias: bound.tensor(&format!("{ff}.0.bias")),
                    ff_out: bound.tensor(&format!("{ff}.3.weight")),
                    ff_out_bias: bound.tensor(&format!("{ff}.3.bias")),
                }
            })
            .collect();
        Self { blocks, final_norm: bound.tensor("final_norm.weight") }
    }
}

impl Block {
    fn feed_forward(&self, h_btd: Tensor<3>) -> Tensor<3> {
        let x = norm(h_btd, &self.ff_norm);
        let x = ops::bias_gelu(ops::linear_turned(x, self.ff_in.clone(), None), self.ff_in_bias.clone());
        ops::linear_turned(x, self.ff_out.clone(), Some(self.ff_out_bias.clone()))
    }
}

fn norm<const D: usize>(x: Tensor<D>, weight: &Tensor<1>) -> Tensor<D> {
    ops::rms_norm(x, weight.clone(), NORM_EPSILON)
}

impl Backbone for Simba {
    type State = Vec<Mamba2State>;

    fn start(&self, batch: usize) -> Self::State {
        self.blocks.iter().map(|block| block.mixer.start(batch)).collect()
    }

    fn forward(
        &self,
        x_btd: Tensor<3>,
        padding: &[usize],
        state: Option<Self::State>,
        dropout: &mut Dropout,
    ) -> (Tensor<3>, Option<Self::State>) {
        let mut h_btd = x_btd;
        let mut before = state.map(Vec::into_iter);
        let mut after = before.as_ref().map(|layers| Vec::with_capacity(layers.len()));
        for block in &self.blocks {
            let state = before.as_mut().and_then(Iterator::next);
            let (mixed, state) = block.mixer.forward(norm(h_btd.clone(), &block.mixer_norm), padding, state);
            if let (Some(after), Some(state)) = (&mut after, state) {
                after.push(state);
            }
            h_btd = dropout.residual(h_btd, mixed);
            h_btd = dropout.residual(h_btd.clone(), block.feed_forward(h_btd));
        }
        (norm(h_btd, &self.final_norm), after)
    }

    fn step(&self, x_bd: Tensor<2>, state: Self::State) -> (Tensor<2>, Self::State) {
        let [batch, width] = x_bd.dims();
        let mut h_bd = x_bd;
        let mut after = Vec::with_capacity(state.len());
        for (block, state) in self.blocks.iter().zip(state) {
            let (mixed, state) = block.mixer.step(norm(h_bd.clone(), &block.mixer_norm), state);
            after.push(state);
            h_bd = h_bd + mixed;
            let ff = block.feed_forward(h_bd.clone().reshape([batch, 1, width]));
            h_bd = h_bd + ff.reshape([batch, width]);
        }
        (norm(h_bd, &self.final_norm), after)
    }
}
