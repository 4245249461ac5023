//! Multi-head scaled dot-product attention (arXiv 1706.03762): causal over the sequence, and from it to the text.
//!
//! Scale 1/sqrt(head width), no biases. Law: `forward` over a sequence equals its single steps on a cache.

use burn::tensor::Tensor;

use crate::ops;
use crate::parameters::{Bound, Initialiser, Parameters, Role};

/// Text for cross-attention: what it attends to, right-aligned.
#[derive(Debug, Clone)]
pub struct TextMemory {
    /// `[B, L, d]`
    pub text_bld: Tensor<3>,
    /// Places before the first token of each text.
    pub padding: Vec<usize>,
}

/// Keys and values of earlier places.
#[derive(Debug, Clone)]
pub struct KeyValues {
    /// Keys, then values: `[B, places, 2 d]`.
    pub kv_bse: Tensor<3>,
    /// Places before the first that counts, one number a sequence; empty: all count.
    pub padding: Vec<usize>,
}

/// Causal self-attention.
#[derive(Debug, Clone)]
pub struct SelfAttention {
    head_width: usize,
    in_proj: Tensor<2>,
    out_proj: Tensor<2>,
}

impl SelfAttention {
    /// Adds the parameters of a layer under `prefix`.
    pub fn init(width: usize, prefix: &str, residuals: usize, draw: &mut Initialiser, into: &mut Parameters) {
        let count = 3 * width * width;
        into.push(format!("{prefix}.in_proj.weight"), &[3 * width, width], Role::Decayed, draw.fan_in(count, width));
        push_output(width, prefix, residuals, draw, into);
    }

    /// Takes the layer's tensors from `bound`.
    pub fn new(head_width: usize, prefix: &str, bound: &Bound) -> Self {
        Self {
            head_width,
            in_proj: bound.tensor(&format!("{prefix}.in_proj.weight")),
            out_proj: bound.tensor(&format!("{prefix}.out_proj.weight")),
        }
    }

    /// The cache before the first frame.
    pub fn start(&self, batch: usize) -> KeyValues {
        let width = self.out_proj.dims()[0];
        KeyValues { kv_bse: Tensor::zeros([batch, 0, 2 * width], &self.out_proj.device()), padding: Vec::new() }
    }

    /// Many frames. The first `padding[b]` frames of sequence b do not count (empty: all count). With a cache the frames
    /// follow what it holds, and it comes back longer.
    pub fn forward(
        &self,
        x_btd: Tensor<3>,
        padding: &[usize],
        cache: Option<KeyValues>,
    ) -> (Tensor<3>, Option<KeyValues>) {
        let [_, frames, width] = x_btd.dims();
        let heads = width / self.head_width;
        let qkv_bte = ops::linear_turned(x_btd, self.in_proj.clone(), None);
        let (mixed, cache) = match cache {
            None => (ops::self_attention(qkv_bte, heads, padding.to_vec()), None),
            Some(cache) => {
                // Padding can only stand before the first frame ever.
                let first = cache.kv_bse.dims()[1] == 0;
                let padding = if first { padding.to_vec() } else { cache.padding };
                let own = qkv_bte.clone().narrow(2, width, 2 * width);
                let mixed = if first {
                    ops::self_attention(qkv_bte, heads, padding.clone())
                } else {
                    ops::self_attention_with_cache(qkv_bte, cache.kv_bse.clone(), heads, padding.clone())
                };
                let kv_bse = if first { own } else { Tensor::cat(vec![cache.kv_bse, own], 1) };
                (mixed, Some(KeyValues { kv_bse, padding }))
            }
        };
        debug_assert_eq!(mixed.dims()[1], frames);
        (ops::linear_turned(mixed, self.out_proj.clone(), None), cache)
    }
}

/// Attention from the sequence to the text.
#[derive(Debug, Clone)]
pub struct CrossAttention {
    head_width: usize,
    q_proj: Tensor<2>,
    kv_proj: Tensor<2>,
    out_proj: Tensor<2>,
}

impl CrossAttention {
    /// Adds the parameters of a layer under `prefix`.
    pub fn init(width: usize, prefix: &str, residuals: usize, draw: &mut Initialiser, into: &mut Parameters) {
        let square = width * width;
        into.push(format!("{prefix}.q_proj.weight"), &[width, width], Role::Decayed, draw.fan_in(square, width));
        into.push(
            format!("{prefix}.kv_proj.weight"),
            &[2 * width, width],
            Role::Decayed,
            draw.fan_in(2 * square, width),
        );
        push_output(width, prefix, residuals, draw, into);
    }

    /// Takes the layer's tensors from `bound`.
    pub fn new(head_width: usize, prefix: &str, bound: &Bound) -> Self {
        Self {
            head_width,
            q_proj: bound.tensor(&format!("{prefix}.q_proj.weight")),
            kv_proj: bound.tensor(&format!("{prefix}.kv_proj.weight")),
            out_proj: bound.tensor(&format!("{prefix}.out_proj.weight")),
        }
    }

    /// Keys and values of a text, computed once for a clip.
    pub fn read(&self, text: &TextMemory) -> KeyValues {
        let kv_bse = ops::linear_turned(text.text_bld.clone(), self.kv_proj.clone(), None);
        KeyValues { kv_bse, padding: text.padding.clone() }
    }

    /// `[B, T, d]` to `[B, T, d]`: every frame attends to the whole text.
    pub fn forward(&self, x_btd: Tensor<3>, text: &KeyValues) -> Tensor<3> {
        let heads = x_btd.dims()[2] / self.head_width;
        let q_btd = ops::linear_turned(x_btd, self.q_proj.clone(), None);
        let mixed = ops::cross_attention(q_btd, text.kv_bse.clone(), heads, text.padding.clone());
        ops::linear_turned(mixed, self.out_proj.clone(), None)
    }
}

fn push_output(width: usize, prefix: &str, residuals: usize, draw: &mut Initialiser, into: &mut Parameters) {
    let out = draw.for_residual(width * width, width, residuals);
    into.push(format!("{prefix}.out_proj.weight"), &[width, width], Role::Decayed, out);
}
