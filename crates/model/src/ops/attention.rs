//! Multi-head attention between its projections: of a sequence to itself, to itself and earlier keys, to another.

use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use mambo_kernels::attention::{self, Attention, Columns, ColumnsMut, Forward};

use super::{Operation, apply_1, apply_2, from_vec, shape, values};

type Results = (FlexTensor, Vec<FlexTensor>);

/// `[batch, rows, width]` of a tensor.
fn dims(tensor: &FlexTensor) -> [usize; 3] {
    shape(tensor).to_vec().try_into().expect("attention works on three axes")
}

/// The output as a tensor; that and the logarithms of the sums are what the backward pass wants saved.
fn results(attention: &Attention<'_>, out: Forward, tracked: bool) -> Results {
    let output = from_vec(out.output, [attention.batch, attention.queries, attention.width()]);
    let saved = if tracked {
        let sums = from_vec(out.log_sums, [attention.batch, attention.heads, attention.queries]);
        vec![output.clone(), sums]
    } else {
        Vec::new()
    };
    (output, saved)
}

/// Causal, from one projection `[batch, frames, 3 width]`, and with a second input from earlier keys and values
/// `[batch, earlier, 2 width]` too.
#[derive(Debug)]
struct SelfAttention {
    heads: usize,
    padding: Vec<usize>,
}

impl SelfAttention {
    fn attention(&self, inputs: &[FlexTensor]) -> Attention<'_> {
        let [batch, queries, projected] = dims(&inputs[0]);
        let earlier = inputs.get(1).map_or(0, |cache| dims(cache)[1]);
        Attention {
            batch,
            queries,
            keys: earlier + queries,
            heads: self.heads,
            head_width: projected / 3 / self.heads,
            causal: true,
            padding: &self.padding,
        }
    }
}

/// Values in the rows of one sequence: earlier keys and values, the projection, keys and values of both.
fn row_sizes(attention: &Attention<'_>) -> [usize; 3] {
    let (width, earlier) = (attention.width(), attention.keys - attention.queries);
    [earlier * 2 * width, attention.queries * 3 * width, attention.keys * 2 * width]
}

/// Keys and values of the cache and of the projection in one: `[batch, keys, 2 width]`.
fn join(attention: &Attention<'_>, projected: &[f32], cache: &[f32]) -> Vec<f32> {
    let (width, [earlier, own, both]) = (attention.width(), row_sizes(attention));
    let mut joined = Vec::with_capacity(attention.batch * both);
    for sequence in 0..attention.batch {
        joined.extend_from_slice(&cache[sequence * earlier..][..earlier]);
        for row in projected[sequence * own..][..own].chunks_exact(3 * width) {
            joined.extend_from_slice(&row[width..]);
        }
    }
    joined
}

/// The reverse of [`join`]: writes keys and values of the projection into it and returns those of the cache.
fn part(attention: &Attention<'_>, joined: &[f32], projected: &mut [f32]) -> Vec<f32> {
    let (width, [earlier, own, both]) = (attention.width(), row_sizes(attention));
    let mut cache = Vec::with_capacity(attention.batch * earlier);
    for sequence in 0..attention.batch {
        let (first, last) = joined[sequence * both..][..both].split_at(earlier);
        cache.extend_from_slice(first);
        let rows = projected[sequence * own..][..own].chunks_exact_mut(3 * width);
        for (row, source) in rows.zip(last.chunks_exact(2 * width)) {
            row[width..].copy_from_slice(source);
        }
    }
    cache
}

impl Operation for SelfAttention {
    fn forward(&self, inputs: &[FlexTensor], tracked: bool) -> Results {
        let (attention, projected) = (self.attention(inputs), values(&inputs[0]));
        let width = attention.width();
        let [query, mut key, mut value] = Columns::split(projected, [width; 3]);
        let joined;
        if let Some(cache) = inputs.get(1) {
            joined = join(&attention, projected, values(cache));
            [key, value] = Columns::split(&joined, [width; 2]);
        }
        results(&attention, attention::forward(&attention, query, key, value), tracked)
    }

    fn backward(&self, inputs: &[FlexTensor], saved: &[FlexTensor], gradient: &FlexTensor) -> Vec<FlexTensor> {
        let (attention, projected) = (self.attention(inputs), values(&inputs[0]));
        let width = attention.width();
        let (saved, d_output) = ((values(&saved[0]), values(&saved[1])), values(gradient));
        let mut d_projected = vec![0.0f32; projected.len()];
        let [query, key, value] = Columns::split(projected, [width; 3]);
        let [d_query, d_key, d_value] = ColumnsMut::split(&mut d_projected, [width; 3]);
        let Some(cache) = inputs.get(1) else {
            let gradients = [d_query, d_key, d_value];
            attention::backward(&attention, query, key, value, saved, d_output, gradients);
            return vec![from_vec(d_projected, shape(&inputs[0]))];
        };
        let joined = join(&attention, projected, values(cache));
        let mut d_joined = vec![0.0f32; joined.len()];
        let [key, value] = Columns::split(&joined, [width; 2]);
        let [d_key, d_value] = ColumnsMut::split(&mut d_joined, [width; 2]);
        attention::backward(&attention, query, key, value, saved, d_output, [d_query, d_key, d_value]);
        let d_cache = part(&attention, &d_joined, &mut d_projected);
        vec![from_vec(d_projected, shape(&inputs[0])), from_vec(d_cache, shape(cache))]
    }
}

/// From queries `[batch, frames, width]` to keys and values `[batch, positions, 2 width]`.
#[derive(Debug)]
struct CrossAttention {
    heads: usize,
    padding: Vec<usize>,
}

impl CrossAttention {
    fn attention(&self, inputs: &[FlexTensor]) -> Attention<'_> {
        let ([batch, queries, width], [_, keys, _]) = (dims(&inputs[0]), dims(&inputs[1]));
        let (heads, head_width) = (self.heads, width / self.heads);
        Attention { batch, queries, keys, heads, head_width, causal: false, padding: &self.padding }
    }
}

impl Operation for CrossAttention {
    fn forward(&self, inputs: &[FlexTensor], tracked: bool) -> Results {
        let attention = self.attention(inputs);
        let [query] = Columns::split(values(&inputs[0]), [attention.width()]);
        let [key, value] = Columns::split(values(&inputs[1]), [attention.width(); 2]);
        results(&attention, attention::forward(&attention, query, key, value), tracked)
    }

    fn backward(&self, inputs: &[FlexTensor], saved: &[FlexTensor], gradient: &FlexTensor) -> Vec<FlexTensor> {
        let attention = self.attention(inputs);
        let [query] = Columns::split(values(&inputs[0]), [attention.width()]);
        let [key, value] = Columns::split(values(&inputs[1]), [attention.width(); 2]);
        let mut results = [&inputs[0], &inputs[1]].map(|input| vec![0.0f32; values(input).len()]);
        let [d_queries, d_keys_values] = &mut results;
        let [d_query] = ColumnsMut::split(d_queries, [attention.width()]);
        let [d_key, d_value] = ColumnsMut::split(d_keys_values, [attention.width(); 2]);
        let saved = (values(&saved[0]), values(&saved[1]));
        attention::backward(&attention, query, key, value, saved, values(gradient), [d_query, d_key, d_value]);
        results.into_iter().zip(inputs).map(|(data, input)| from_vec(data, shape(input))).collect()
    }
}

/// Causal attention of each position to itself and those before, between the projections: `qkv_btd3` holds queries,
/// keys and values `[batch, frames, 3 width]`, each of `heads` side by side; gives `[batch, frames, width]`.
///
/// `padding` frames at the start of each sequence (empty: none) are seen by nobody and give zeros.
///
/// # Panics
/// If the last axis is not three times a multiple of `heads`, or paddings do not fit the batch.
pub fn self_attention(qkv_btd3: Tensor<3>, heads: usize, padding: Vec<usize>) -> Tensor<3> {
    apply_1(SelfAttention { heads, padding }, qkv_btd3)
}

/// As [`self_attention`] of a sequence that goes on after the keys and values `cache_kv_bsd2` `[batch, earlier,
/// 2 width]`, which every position sees too; gradients flow to both. `padding` counts from the first earlier key.
///
/// # Panics
/// As [`self_attention`], and if the cache does not fit.
pub fn self_attention_with_cache(
    qkv_btd3: Tensor<3>,
    cache_kv_bsd2: Tensor<3>,
    heads: usize,
    padding: Vec<usize>,
) -> Tensor<3> {
    let ([batch, _, projected], [sequences, _, cached]) = (qkv_btd3.dims(), cache_kv_bsd2.dims());
    assert_eq!((sequences, 3 * cached), (batch, 2 * projected), "attention: the cache has another batch or width");
    apply_2(SelfAttention { heads, padding }, qkv_btd3, cache_kv_bsd2)
}

/// Attention of every query `q_btd` `[batch, frames, width]` to all keys and values `kv_bsd2` `[batch, positions,
/// 2 width]` of its sequence but `padding` at their start (empty: none); gives `[batch, frames, width]`.
///
/// # Panics
/// If the widths do not fit each other and `heads`, or paddings do not fit the batch.
pub fn cross_attention(q_btd: Tensor<3>, kv_bsd2: Tensor<3>, heads: usize, padding: Vec<usize>) -> Tensor<3> {
    apply_2(CrossAttention { heads, padding }, q_btd, kv_bsd2)
}
