//! Backward pass over the same tiles: a tile's weights are formed again from the logarithms of the sums.
#![allow(unsafe_code)]

use super::tile::{Block, Head, KEYS, LANES, QUERIES, Seen, lanes};
use super::{Attention, Columns, ColumnsMut};
use crate::simd::{Isa, exp, inner_product, simd_fn};
use crate::small_gemm::{Left, multiply};
use rayon::prelude::*;

/// Backward pass of [`super::forward`] for `d_output` `[batch, queries, width]`.
///
/// `saved` is (`output`, `log_sums`) of the forward pass. The gradients of queries, keys and values are written over
/// what `gradients` hold, columns as in the inputs; each head is one task.
///
/// # Panics
/// If a size does not fit.
pub fn backward(
    attention: &Attention<'_>,
    query: Columns<'_, f32>,
    key: Columns<'_, f32>,
    value: Columns<'_, f32>,
    saved: (&[f32], &[f32]),
    d_output: &[f32],
    gradients: [ColumnsMut<'_>; 3],
) {
    attention.check(&query, &key, &value);
    let (width, heads) = (attention.width(), attention.batch * attention.heads);
    let rows = [attention.queries, attention.keys, attention.keys];
    for ((name, rows), columns) in ["d queries", "d keys", "d values"].iter().zip(rows).zip(&gradients) {
        columns.check(name, attention.batch * rows, width);
    }
    let ([output], [d_output]) = (Columns::split(saved.0, [width]), Columns::split(d_output, [width]));
    output.check("output", attention.batch * attention.queries, width);
    d_output.check("output gradient", attention.batch * attention.queries, width);
    assert_eq!(saved.1.len(), heads * attention.queries, "attention: saved sums");
    let inputs = Inputs { query, key, value, output, log_sums: saved.1, d_output };
    (0..heads).into_par_iter().for_each(|index| {
        attend_backward(attention, Head::new(attention, index), &inputs, &gradients);
    });
}

struct Inputs<'a> {
    query: Columns<'a, f32>,
    key: Columns<'a, f32>,
    value: Columns<'a, f32>,
    output: Columns<'a, f32>,
    log_sums: &'a [f32],
    d_output: Columns<'a, f32>,
}

/// One head.
fn attend_backward(attention: &Attention<'_>, head: Head, inputs: &Inputs<'_>, gradients: &[ColumnsMut<'_>; 3]) {
    let (width, scale, column) = (attention.head_width, attention.scale() as f32, head.column(attention));
    let (keys, values) = (head.unpadded(attention, inputs.key), head.unpadded(attention, inputs.value));
    let (mut d_keys, mut d_values) = (vec![0.0; keys.len()], vec![0.0; values.len()]);
    let (mut queries, mut d_output) = (Block::new(width), Block::new(width));
    let mut d_queries = vec![0.0; QUERIES * width];
    let (mut weights, mut d_weights) = (vec![0.0; KEYS * QUERIES], vec![0.0; KEYS * QUERIES]);
    let (mut log_sums, mut pulls) = ([0.0; QUERIES], [0.0; QUERIES]);
    for tile in 0..attention.queries.div_ceil(QUERIES) {
        queries.load(attention, head, tile, inputs.query, scale);
        d_output.load(attention, head, tile, inputs.d_output, 1.0);
        let (from, count, columns) = (tile * QUERIES, queries.count, queries.columns());
        let first_row = head.sequence * attention.queries + from;
        let sums_row = head.sequence * attention.heads + head.head;
        log_sums[..count].copy_from_slice(&inputs.log_sums[sums_row * attention.queries + from..][..count]);
        for (index, pull) in pulls[..count].iter_mut().enumerate() {
            let row = first_row + index;
            *pull = inner_product(inputs.output.part(row, column, width), &d_output.rows[index * width..][..width]);
        }
        let seen = Seen::new(attention, head, tile);
        d_queries.fill(0.0);
        for first in (0..seen.most()).step_by(KEYS) {
            let rows = KEYS.min(seen.most() - first);
            let part = first * width..(first + rows) * width;
            queries.products(rows, &keys[part.clone()], &mut weights);
            d_output.products(rows, &values[part.clone()], &mut d_weights);
            let limits = seen.limits(first, rows);
            join(columns, rows, limits.as_ref(), &log_sums, &pulls, &mut weights, &mut d_weights);
            // Now the second tile holds the gradients of the scores.
            let (weights, d_scores) = (Left::rows(&weights, QUERIES), Left::rows(&d_weights, QUERIES));
            let (d_keys, d_values) = (&mut d_keys[part.clone()], &mut d_values[part.clone()]);
            multiply(rows, width, count, weights, &d_output.rows, width, d_values, width, true);
            multiply(rows, width, count, d_scores, &queries.rows, width, d_keys, width, true);
            let turned = Left::transposed(&d_weights, QUERIES);
            multiply(count, width, rows, turned, &keys[part], width, &mut d_queries, width, true);
        }
        let rows = &d_queries[..count * width];
        // SAFETY: each head of each sequence is one task.
        unsafe { write(&gradients[0], first_row, column, width, scale, rows) };
    }
    let first_row = head.sequence * attention.keys;
    let padding = attention.padding_of(head.sequence);
    for (target, rows) in [(&gradients[1], &d_keys), (&gradients[2], &d_values)] {
        // SAFETY: as above.
        unsafe {
            (first_row..first_row + padding).for_each(|row| target.part(row, column, width).fill(0.0));
            write(target, first_row + padding, column, width, 1.0, rows);
        }
    }
}

/// `columns[first + row][from..from + width] = factor * rows[row]`
///
/// # Safety
/// No other task may touch the same values.
unsafe fn write(columns: &ColumnsMut<'_>, first: usize, from: usize, width: usize, factor: f32, rows: &[f32]) {
    for (index, line) in rows.chunks_exact(width).enumerate() {
        // SAFETY: by the caller's promise.
        let target = unsafe { columns.part(first + index, from, width) };
        for (value, source) in target.iter_mut().zip(line) {
            *value = factor * source;
        }
    }
}

simd_fn! {
    /// Scores become weights, their gradients `d_weights` become those of the scores: `weight * (d_weight - pull)`.
    /// Where a column sees only its first `limits` rows, both are zero in the others.
    fn join(columns: usize, rows: usize, limits: Option<&[u32; QUERIES]>, log_sums: &[f32; QUERIES], pulls: &[f32; QUERIES], weights: &mut [f32], d_weights: &mut [f32]) = join_body
}

#[inline(always)]
fn join_body<I: Isa>(
    columns: usize,
    rows: usize,
    limits: Option<&[u32; QUERIES]>,
    log_sums: &[f32; QUERIES],
    pulls: &[f32; QUERIES],
    weights: &mut [f32],
    d_weights: &mut [f32],
) {
    match limits {
        Some(limits) => join_blocks::<I, true>(columns, rows, limits, log_sums, pulls, weights, d_weights),
        None => join_blocks::<I, false>(columns, rows, &[0; QUERIES], log_sums, pulls, weights, d_weights),
    }
}

#[inline(always)]
fn join_blocks<I: Isa, const MASKED: bool>(
    columns: usize,
    rows: usize,
    limits: &[u32; QUERIES],
    log_sums: &[f32; QUERIES],
    pulls: &[f32; QUERIES],
    weights: &mut [f32],
    d_weights: &mut [f32],
) {
    for block in (0..columns).step_by(LANES) {
        let limits: [u32; LANES] = std::array::from_fn(|lane| limits[block + lane]);
        let log_sums: [f32; LANES] = std::array::from_fn(|lane| log_sums[block + lane]);
        let pulls: [f32; LANES] = std::array::from_fn(|lane| pulls[block + lane]);
        for row in 0..rows {
            let (weights, d_weights) = (lanes(weights, row, block), lanes(d_weights, row, block));
            for lane in 0..LANES {
                let weight = exp::<I>(weights[lane] - log_sums[lane]);
                weights[lane] = if !MASKED || (row as u32) < limits[lane] { weight } else { 0.0 };
                d_weights[lane] = weights[lane] * (d_weights[lane] - pulls[lane]);
            }
        }
    }
}
