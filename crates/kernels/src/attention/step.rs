//! One query for each sequence of a batch against the keys and values kept of it: decoding.
#![allow(unsafe_code)]

use super::{Columns, head_width};
use crate::simd::{Isa, dot, exp, fold, fused, simd_fn};
use crate::threads::Shared;
use rayon::prelude::*;

/// Values of all caches together from which handing heads to other threads costs less than it gains.
const PARALLEL_SIZE: usize = 1 << 18;

/// What is kept of one sequence: a row a position, the newest last.
#[derive(Clone, Copy, Debug)]
pub struct Cache<'a> {
    /// As wide as all heads.
    pub keys: Columns<'a, f32>,
    /// As wide as all heads.
    pub values: Columns<'a, f32>,
}

impl<'a> Cache<'a> {
    /// Rows that hold `width` values of a key, then as many of a value.
    ///
    /// # Panics
    /// If they are not whole rows.
    pub fn of_rows(rows: &'a [f32], width: usize) -> Self {
        let [keys, values] = Columns::split(rows, [width, width]);
        Self { keys, values }
    }
}

/// Attends from one query a sequence, `queries` `[batch, width]`, to every row of its cache; an empty one gives zeros.
/// Writes `out` `[batch, width]`.
///
/// # Panics
/// If a size does not fit.
pub fn step(heads: usize, queries: &[f32], caches: &[Cache<'_>], out: &mut [f32]) {
    if caches.is_empty() {
        return;
    }
    let width = queries.len() / caches.len();
    let head_width = head_width(heads, width);
    assert_eq!(queries.len(), caches.len() * width, "attention queries");
    assert_eq!(out.len(), queries.len(), "attention output");
    let mut size = 0;
    for Cache { keys, values } in caches {
        keys.check("cached keys", keys.rows(), width);
        values.check("cached values", keys.rows(), width);
        size += 2 * keys.rows() * width;
    }
    let parallel = size >= PARALLEL_SIZE;
    // Neighbouring heads stay together, so that a row is read in few pieces.
    let parts = if parallel { (2 * rayon::current_num_threads()).div_ceil(caches.len()).min(heads) } else { 1 };
    let shared = Shared::new(out);
    let work = |task: usize| {
        let (sequence, part) = (task / parts, task % parts);
        let (first, end) = (part * heads / parts, (part + 1) * heads / parts);
        let (from, wide) = (first * head_width, (end - first) * head_width);
        // SAFETY: each head of each sequence is in one task.
        let out = unsafe { shared.part(sequence * width + from, wide) };
        look_up(head_width, from, &queries[sequence * width + from..][..wide], &caches[sequence], out);
    };
    if parallel {
        (0..caches.len() * parts).into_par_iter().for_each(work);
    } else {
        (0..caches.len()).for_each(work);
    }
}

simd_fn! {
    /// Some heads of one sequence, from column `from` on.
    fn look_up(head_width: usize, from: usize, query: &[f32], cache: &Cache<'_>, out: &mut [f32]) = look_up_body
}

#[inline(always)]
fn look_up_body<I: Isa>(head_width: usize, from: usize, query: &[f32], cache: &Cache<'_>, out: &mut [f32]) {
    let (rows, width) = (cache.keys.rows(), query.len());
    let heads = width / head_width;
    let scale = 1.0 / (head_width as f32).sqrt();
    // [heads, rows]
    let mut weights = vec![0.0f32; heads * rows];
    for row in 0..rows {
        let keys = cache.keys.part(row, from, width);
        for (head, (key, query)) in keys.chunks_exact(head_width).zip(query.chunks_exact(head_width)).enumerate() {
            weights[head * rows + row] = scale * dot::<I>(key, query);
        }
    }
    for line in weights.chunks_exact_mut(rows.max(1)) {
        soften::<I>(line);
    }
    out.fill(0.0);
    for row in 0..rows {
        let values = cache.values.part(row, from, width);
        for (head, (value, out)) in values.chunks_exact(head_width).zip(out.chunks_exact_mut(head_width)).enumerate() {
            let weight = weights[head * rows + row];
            for (sum, value) in out.iter_mut().zip(value) {
                *sum = fused::<I>(weight, *value, *sum);
            }
        }
    }
}

simd_fn! {
    /// The softmax of a row, in place.
    pub fn softmax(scores: &mut [f32]) = soften
}

#[inline(always)]
fn soften<I: Isa>(scores: &mut [f32]) {
    let top = scores.iter().fold(f32::MIN, |top, score| if *score > top { *score } else { top });
    let (blocks, rest) = scores.as_chunks_mut::<16>();
    let mut sums = [0.0f32; 16];
    for block in blocks {
        for lane in 0..16 {
            block[lane] = exp::<I>(block[lane] - top);
            sums[lane] += block[lane];
        }
    }
    let mut sum = fold(sums);
    for score in rest {
        *score = exp::<I>(*score - top);
        sum += *score;
    }
    let factor = 1.0 / sum;
    scores.iter_mut().for_each(|power| *power *= factor);
}
