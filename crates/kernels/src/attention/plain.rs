//! Attention by its definition, generic over f32 and f64: the oracle of the fused passes.

use super::{Attention, Columns};
use num_traits::Float;

/// Gradients of the three inputs.
#[derive(Debug)]
pub struct PlainGradients<F> {
    /// `[batch, queries, width]`
    pub query: Vec<F>,
    /// `[batch, keys, width]`
    pub key: Vec<F>,
    /// `[batch, keys, width]`
    pub value: Vec<F>,
}

fn dot<F: Float>(a: &[F], b: &[F]) -> F {
    a.iter().zip(b).fold(F::zero(), |sum, (x, y)| sum + *x * *y)
}

fn add<F: Float>(factor: F, source: &[F], target: &mut [F]) {
    for (sum, value) in target.iter_mut().zip(source) {
        *sum = *sum + factor * *value;
    }
}

/// The softmax of a row, in place.
fn soften<F: Float>(weights: &mut [F]) {
    let top = weights.iter().fold(F::min_value(), |top, score| top.max(*score));
    weights.iter_mut().for_each(|score| *score = (*score - top).exp());
    let sum = weights.iter().fold(F::zero(), |sum, power| sum + *power);
    weights.iter_mut().for_each(|power| *power = *power / sum);
}

/// One query of one head: where it lies, which keys it sees and with what weights.
struct Glance<F> {
    row: usize,
    column: usize,
    first_key: usize,
    weights: Vec<F>,
}

/// Calls `visit` for every query of every head.
fn each<F: Float>(
    attention: &Attention<'_>,
    query: Columns<'_, F>,
    key: Columns<'_, F>,
    mut visit: impl FnMut(Glance<F>),
) {
    let (width, scale) = (attention.head_width, scale::<F>(attention));
    for sequence in 0..attention.batch {
        let first_key = sequence * attention.keys + attention.padding_of(sequence);
        for head in 0..attention.heads {
            let column = head * width;
            for index in 0..attention.queries {
                let row = sequence * attention.queries + index;
                let own = query.part(row, column, width);
                let seen = first_key..first_key + attention.seen(sequence, index);
                let mut weights: Vec<F> = seen.map(|at| scale * dot(own, key.part(at, column, width))).collect();
                soften(&mut weights);
                visit(Glance { row, column, first_key, weights });
            }
        }
    }
}

fn scale<F: Float>(attention: &Attention<'_>) -> F {
    F::from(attention.scale()).expect("f32 and f64 hold any scale")
}

/// Output `[batch, queries, width]`; arguments as in [`super::forward`].
///
/// # Panics
/// If a size does not fit.
pub fn forward<F: Float>(
    attention: &Attention<'_>,
    query: Columns<'_, F>,
    key: Columns<'_, F>,
    value: Columns<'_, F>,
) -> Vec<F> {
    attention.check(&query, &key, &value);
    let (width, row_width) = (attention.head_width, attention.width());
    let mut output = vec![F::zero(); attention.batch * attention.queries * row_width];
    each(attention, query, key, |glance| {
        let target = &mut output[glance.row * row_width + glance.column..][..width];
        for (offset, weight) in glance.weights.iter().enumerate() {
            add(*weight, value.part(glance.first_key + offset, glance.column, width), target);
        }
    });
    output
}

/// Gradients for `d_output` `[batch, queries, width]`.
///
/// # Panics
/// If a size does not fit.
pub fn backward<F: Float>(
    attention: &Attention<'_>,
    query: Columns<'_, F>,
    key: Columns<'_, F>,
    value: Columns<'_, F>,
    d_output: &[F],
) -> PlainGradients<F> {
    attention.check(&query, &key, &value);
    let (width, row_width, scale) = (attention.head_width, attention.width(), scale::<F>(attention));
    let zeros = |rows: usize| vec![F::zero(); attention.batch * rows * row_width];
    let mut out =
        PlainGradients { query: zeros(attention.queries), key: zeros(attention.keys), value: zeros(attention.keys) };
    assert_eq!(d_output.len(), out.query.len(), "attention output gradient");
    each(attention, query, key, |Glance { row, column, first_key, weights }| {
        let (at, own) = (row * row_width + column, query.part(row, column, width));
        let d_own = &d_output[at..at + width];
        let keys = first_key..first_key + weights.len();
        let d_weights: Vec<F> = keys.clone().map(|key| dot(d_own, value.part(key, column, width))).collect();
        let pull = dot(&weights, &d_weights);
        for ((weight, d_weight), position) in weights.iter().zip(&d_weights).zip(keys) {
            let d_score = scale * *weight * (*d_weight - pull);
            let there = position * row_width + column;
            add(*weight, d_own, &mut out.value[there..there + width]);
            add(d_score, own, &mut out.key[there..there + width]);
            add(d_score, key.part(position, column, width), &mut out.query[at..at + width]);
        }
    });
    out
}

/// Output `[rows, width]`; arguments as in [`super::biased`].
///
/// # Panics
/// If a size does not fit.
pub fn biased<F: Float>(
    heads: usize,
    heard: usize,
    query: Columns<'_, F>,
    key: Columns<'_, F>,
    value: Columns<'_, F>,
    biases: &[F],
) -> Vec<F> {
    let (rows, width) = super::biased::check(heads, heard, &query, &key, &value, biases.len());
    let mut output = vec![F::zero(); rows * heads * width];
    for (place, out) in output.chunks_exact_mut(width).enumerate() {
        let (row, head) = (place / heads, place % heads);
        let column = head * width;
        let own = query.part(row, column, width);
        let bias = |at: usize| biases[head * (2 * rows - 1) + rows - 1 + at - row];
        let mut weights: Vec<F> = (0..heard).map(|at| dot(own, key.part(at, column, width)) + bias(at)).collect();
        soften(&mut weights);
        weights.iter().enumerate().for_each(|(at, weight)| add(*weight, value.part(at, column, width), out));
    }
    output
}
