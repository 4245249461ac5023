//! Gradients with activation checkpointing by block (Chen et al., arXiv 1604.06174): the pass forwards keeps only what
//! goes into each block; the pass backwards computes each block again.
//!
//! Law: the same loss and gradients as one pass through [`super::Lm`]. Costs one more pass forwards; only one block's
//! activations are held at a time.

use burn::tensor::{Device, Gradients, Tensor};

use crate::backbone::{Block, Dropout, FinalNorm, TextMemory};
use crate::parameters::Parameters;

use super::ends::{Ends, StackInput};
use super::{Columns, LmConfig, LmLoss, LossConfig, Targets, TextBatch, loss};

/// One clip batch and how its loss is formed.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// Captions.
    pub text: &'a TextBatch,
    /// Columns to read.
    pub columns: Columns<'a>,
    /// What the model should say.
    pub targets: Targets<'a>,
    /// How the loss is formed.
    pub loss: &'a LossConfig,
}

/// The loss and one gradient per parameter, in the order of the list.
pub fn checkpointed_gradients(
    config: &LmConfig,
    parameters: &Parameters,
    pass: Pass<'_>,
    mut dropout: Dropout,
) -> (LmLoss, Vec<Vec<f32>>) {
    let (plain, recorded) = (Device::flex(), Device::flex().autodiff());
    let stack = config.stack();
    let block_names = |index: usize| {
        let prefix = format!("backbone.{index}.");
        move |name: &str| name.starts_with(&prefix)
    };
    let is_end = |name: &str| !name.starts_with("backbone.");

    // Forwards: what goes into every block, and the dropout's place in its stream.
    let input = Ends::new(config, &parameters.bind_some(&plain, is_end)).input(pass.text, pass.columns);
    let mut kept = Vec::with_capacity(stack.layers);
    let mut h_btd = input.x_btd.clone();
    for index in 0..stack.layers {
        kept.push((h_btd.clone(), dropout.clone()));
        let block = Block::new(&stack, index, &parameters.bind_some(&plain, block_names(index)));
        h_btd = block.forward(h_btd, &input.padding, input.memory.as_ref(), &mut dropout);
    }

    // The end: loss, and its gradient where the last block comes out and where the text goes in.
    let mut sums = parameters.no_gradients();
    let bound = parameters.bind_some(&recorded, is_end);
    let ends = Ends::new(config, &bound);
    let entrance = ends.input(pass.text, pass.columns);
    let h_btd = leaf(h_btd);
    let normed = FinalNorm::new(&stack, &bound).forward(h_btd.clone());
    let output = ends.output(normed, &entrance, pass.text, pass.columns);
    let loss = loss(config, pass.loss, &output, pass.targets);
    let gradients = loss.total.backward();
    let mut d_h = taken(&h_btd, &gradients);
    bound.add_gradients(gradients, &mut sums);

    // Backwards, block by block.
    let mut d_text: Option<Tensor<3>> = None;
    for index in (0..stack.layers).rev() {
        let (before, mut dropout) = kept.pop().expect("one for every block");
        let bound = parameters.bind_some(&recorded, block_names(index));
        let x_btd = leaf(before);
        let memory = input
            .memory
            .as_ref()
            .map(|memory| TextMemory { text_bld: leaf(memory.text_bld.clone()), padding: memory.padding.clone() });
        let block = Block::new(&stack, index, &bound);
        let h_btd = block.forward(x_btd.clone(), &input.padding, memory.as_ref(), &mut dropout);
        let gradients = pulled(h_btd, d_h);
        d_h = taken(&x_btd, &gradients);
        if let Some(memory) = &memory {
            let more = taken(&memory.text_bld, &gradients);
            d_text = Some(match d_text {
                Some(sum) => sum + more,
                None => more,
            });
        }
        bound.add_gradients(gradients, &mut sums);
    }

    // The beginning.
    let bound = parameters.bind_some(&recorded, is_end);
    let StackInput { x_btd, memory, .. } = Ends::new(config, &bound).input(pass.text, pass.columns);
    let pull = |y: Tensor<3>, d_y: Tensor<3>| (y * Tensor::from_inner(d_y)).sum();
    let mut pulls = pull(x_btd, d_h);
    if let (Some(memory), Some(d_text)) = (memory, d_text) {
        pulls = pulls + pull(memory.text_bld, d_text);
    }
    bound.add_gradients(pulls.backward(), &mut sums);
    (LmLoss { total: loss.total.inner(), ..loss }, sums)
}

/// The tensor as a leaf that a gradient is wanted of.
fn leaf(x_btd: Tensor<3>) -> Tensor<3> {
    Tensor::from_inner(x_btd).require_grad()
}

/// The gradient of a leaf.
fn taken(leaf: &Tensor<3>, gradients: &Gradients) -> Tensor<3> {
    leaf.grad(gradients).unwrap_or_else(|| leaf.clone().inner().zeros_like())
}

/// Gradients of what `y` was made of, from that of `y`.
fn pulled(y: Tensor<3>, d_y: Tensor<3>) -> Gradients {
    (y * Tensor::from_inner(d_y)).sum().backward()
}
