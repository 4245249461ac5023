//! Attention whose scores are not scaled and know of positions by a number for each distance, as in T5 (Raffel et al.,
//! arXiv:1910.10683, section 2.1). To infer with; there is no gradient.
#![allow(unsafe_code)]

use super::{Columns, head_width, softmax};
use crate::small_gemm::{Left, multiply};
use crate::threads::Shared;
use rayon::prelude::*;

/// Queries of a head that are worked off together: their scores stay in the second-level cache.
const QUERIES: usize = 64;

/// Attends from each row of one sequence, `[rows, width]`, to the first `heard` of its keys and values. `biases`
/// `[heads, 2 rows - 1]` are added to the scores: at `rows - 1` of a head that of a query's own place, after it those of keys
/// further and further ahead. Writes `out` `[rows, width]`.
///
/// # Panics
/// If a size does not fit, or nothing is heard.
pub fn biased(
    heads: usize,
    heard: usize,
    query: Columns<'_, f32>,
    key: Columns<'_, f32>,
    value: Columns<'_, f32>,
    biases: &[f32],
    out: &mut [f32],
) {
    let (rows, width) = check(heads, heard, &query, &key, &value, biases.len());
    let all = heads * width;
    assert_eq!(out.len(), rows * all, "attention output");
    let out = Shared::new(out);
    (0..heads).into_par_iter().for_each(|head| {
        let column = head * width;
        let biases = &biases[head * (2 * rows - 1)..][..2 * rows - 1];
        // Turned and close together, as the products read them fastest.
        let (mut keys, mut values) = (vec![0.0; width * heard], Vec::with_capacity(heard * width));
        for row in 0..heard {
            key.part(row, column, width).iter().enumerate().for_each(|(d, value)| keys[d * heard + row] = *value);
            values.extend_from_slice(value.part(row, column, width));
        }
        let block = QUERIES.min(rows);
        let (mut queries, mut scores, mut mixed) = (Vec::new(), vec![0.0; block * heard], vec![0.0; block * width]);
        for first in (0..rows).step_by(QUERIES) {
            let count = QUERIES.min(rows - first);
            queries.clear();
            (first..first + count).for_each(|row| queries.extend_from_slice(query.part(row, column, width)));
            let (scores, mixed) = (&mut scores[..count * heard], &mut mixed[..count * width]);
            multiply(count, heard, width, Left::rows(&queries, width), &keys, heard, scores, heard, false);
            for (row, scores) in (first..).zip(scores.chunks_exact_mut(heard)) {
                let biases = &biases[rows - 1 - row..][..heard];
                scores.iter_mut().zip(biases).for_each(|(score, bias)| *score += bias);
                softmax(scores);
            }
            multiply(count, width, heard, Left::rows(scores, heard), &values, width, mixed, width, false);
            for (row, mixed) in (first..).zip(mixed.chunks_exact(width)) {
                // SAFETY: no other task has this head's columns.
                unsafe { out.part(row * all + column, width) }.copy_from_slice(mixed);
            }
        }
    });
}

/// Panics unless everything fits together; rows, and width of a head.
pub(super) fn check<F>(
    heads: usize,
    heard: usize,
    query: &Columns<'_, F>,
    key: &Columns<'_, F>,
    value: &Columns<'_, F>,
    biases: usize,
) -> (usize, usize) {
    let (rows, all) = (query.rows(), query.width());
    let width = head_width(heads, all);
    assert!((1..=rows).contains(&heard), "attention: {heard} of {rows} rows heard");
    key.check("keys", rows, all);
    value.check("values", rows, all);
    assert_eq!(biases, heads * (2 * rows - 1), "attention biases");
    (rows, width)
}
