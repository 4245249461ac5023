//! Forward pass over tiles of queries and keys.
#![allow(unsafe_code)]

use super::tile::{Block, Head, KEYS, LANES, QUERIES, Seen, lanes};
use super::{Attention, Columns};
use crate::simd::{Isa, exp, fused, simd_fn};
use crate::small_gemm::{Left, multiply, transpose};
use crate::threads::Shared;
use rayon::prelude::*;

/// Results of the forward pass.
#[derive(Debug)]
pub struct Forward {
    /// `[batch, queries, width]`
    pub output: Vec<f32>,
    /// For the backward pass: logarithm of the sum of the exponentials of a query's scores, `[batch, heads, queries]`.
    pub log_sums: Vec<f32>,
}

/// Attends from every query to the keys it sees.
///
/// `query` has `batch * queries` rows, `key` and `value` have `batch * keys`, each as wide as all heads.
///
/// # Panics
/// If a size does not fit.
pub fn forward(
    attention: &Attention<'_>,
    query: Columns<'_, f32>,
    key: Columns<'_, f32>,
    value: Columns<'_, f32>,
) -> Forward {
    attention.check(&query, &key, &value);
    let heads = attention.batch * attention.heads;
    let mut output = vec![0.0; attention.batch * attention.queries * attention.width()];
    let mut log_sums = vec![0.0; heads * attention.queries];
    if !output.is_empty() {
        let results = Results { output: Shared::new(&mut output), log_sums: Shared::new(&mut log_sums) };
        // With few heads several tasks share the tiles of one; where a tile is computed makes no difference to it.
        let tiles = attention.queries.div_ceil(QUERIES);
        let parts = (2 * rayon::current_num_threads()).div_ceil(heads).min(tiles);
        (0..heads * parts).into_par_iter().for_each(|task| {
            let head = Head::new(attention, task / parts);
            attend(attention, head, (task % parts..tiles).step_by(parts), [query, key, value], results);
        });
    }
    Forward { output, log_sums }
}

#[derive(Clone, Copy)]
struct Results<'a> {
    output: Shared<'a, f32>,
    log_sums: Shared<'a, f32>,
}

/// Some tiles of queries of one head.
fn attend(
    attention: &Attention<'_>,
    head: Head,
    tiles: impl Iterator<Item = usize>,
    [query, key, value]: [Columns<'_, f32>; 3],
    results: Results<'_>,
) {
    let width = attention.head_width;
    let (keys, values) = (head.unpadded(attention, key), head.unpadded(attention, value));
    let (mut block, mut running) = (Block::new(width), Running::new(width));
    let mut scores = vec![0.0; KEYS * QUERIES];
    let mut out = vec![0.0; QUERIES * width];
    for tile in tiles {
        block.load(attention, head, tile, query, attention.scale() as f32);
        let seen = Seen::new(attention, head, tile);
        running.clear();
        for first in (0..seen.most()).step_by(KEYS) {
            let rows = KEYS.min(seen.most() - first);
            block.products(rows, &keys[first * width..], &mut scores);
            let limits = seen.limits(first, rows);
            running.add(block.columns(), rows, limits.as_ref(), &mut scores, &values[first * width..]);
        }
        let from = tile * QUERIES;
        // SAFETY: each tile of each head is in one task.
        let log_sums = unsafe {
            let row = head.sequence * attention.heads + head.head;
            results.log_sums.part(row * attention.queries + from, block.count)
        };
        running.finish(block.count, &mut out, log_sums);
        for (index, line) in out.chunks_exact(width).take(block.count).enumerate() {
            let row = head.sequence * attention.queries + from + index;
            // SAFETY: as above.
            let target = unsafe { results.output.part(row * attention.width() + head.column(attention), width) };
            target.copy_from_slice(line);
        }
    }
}

/// Running maximum, sum and weighted values of the queries of a tile.
struct Running {
    width: usize,
    tops: [f32; QUERIES],
    sums: [f32; QUERIES],
    /// `[head width, QUERIES]`
    turned: Vec<f32>,
}

impl Running {
    fn new(width: usize) -> Self {
        Self { width, tops: [f32::MIN; QUERIES], sums: [0.0; QUERIES], turned: vec![0.0; width * QUERIES] }
    }

    /// Begins with no key.
    fn clear(&mut self) {
        self.tops.fill(f32::MIN);
        self.sums.fill(0.0);
        self.turned.fill(0.0);
    }

    /// Takes in `rows` keys: their scores, which become weights, and their values `[rows, head width]`.
    fn add(
        &mut self,
        columns: usize,
        rows: usize,
        limits: Option<&[u32; QUERIES]>,
        scores: &mut [f32],
        values: &[f32],
    ) {
        let mut factors = [1.0; QUERIES];
        soften(columns, rows, limits, scores, &mut self.tops, &mut self.sums, &mut factors);
        if factors[..columns].iter().any(|factor| *factor != 1.0) {
            scale_columns(columns, &factors, &mut self.turned);
        }
        let left = Left::transposed(values, self.width);
        multiply(self.width, columns, rows, left, scores, QUERIES, &mut self.turned, QUERIES, true);
    }

    /// Writes the weighted mean of the values `[count, head width]` into `out`, and the logarithms of the sums of the
    /// exponentials into `log_sums`; both zero where no key was seen.
    fn finish(&mut self, count: usize, out: &mut [f32], log_sums: &mut [f32]) {
        let mut factors = [0.0; QUERIES];
        for column in 0..count {
            let sum = self.sums[column];
            factors[column] = if sum > 0.0 { 1.0 / sum } else { 0.0 };
            log_sums[column] = if sum > 0.0 { self.tops[column] + sum.ln() } else { 0.0 };
        }
        scale_columns(count, &factors, &mut self.turned);
        transpose(self.width, count, &self.turned, QUERIES, out, self.width);
    }
}

simd_fn! {
    /// Updates `tops` and `sums` with the scores, makes these `exp(score - top)`, and tells by which `factors` what was
    /// summed before shrinks. Where a column sees only its first `limits` rows, the others' weights are zero.
    fn soften(columns: usize, rows: usize, limits: Option<&[u32; QUERIES]>, scores: &mut [f32], tops: &mut [f32; QUERIES], sums: &mut [f32; QUERIES], factors: &mut [f32; QUERIES]) = soften_body
}

#[inline(always)]
fn soften_body<I: Isa>(
    columns: usize,
    rows: usize,
    limits: Option<&[u32; QUERIES]>,
    scores: &mut [f32],
    tops: &mut [f32; QUERIES],
    sums: &mut [f32; QUERIES],
    factors: &mut [f32; QUERIES],
) {
    match limits {
        Some(limits) => soften_blocks::<I, true>(columns, rows, limits, scores, tops, sums, factors),
        None => soften_blocks::<I, false>(columns, rows, &[0; QUERIES], scores, tops, sums, factors),
    }
}

#[inline(always)]
fn soften_blocks<I: Isa, const MASKED: bool>(
    columns: usize,
    rows: usize,
    limits: &[u32; QUERIES],
    scores: &mut [f32],
    tops: &mut [f32; QUERIES],
    sums: &mut [f32; QUERIES],
    factors: &mut [f32; QUERIES],
) {
    for block in (0..columns).step_by(LANES) {
        let limits: [u32; LANES] = std::array::from_fn(|lane| limits[block + lane]);
        let before: [f32; LANES] = std::array::from_fn(|lane| tops[block + lane]);
        let mut top = before;
        for row in 0..rows {
            let line = lanes(scores, row, block);
            for lane in 0..LANES {
                let score = if !MASKED || (row as u32) < limits[lane] { line[lane] } else { f32::MIN };
                top[lane] = if score > top[lane] { score } else { top[lane] };
            }
        }
        let mut sum = [0.0f32; LANES];
        for row in 0..rows {
            let line = lanes(scores, row, block);
            for lane in 0..LANES {
                let power = exp::<I>(line[lane] - top[lane]);
                line[lane] = if !MASKED || (row as u32) < limits[lane] { power } else { 0.0 };
                sum[lane] += line[lane];
            }
        }
        for lane in 0..LANES {
            let factor = exp::<I>(before[lane] - top[lane]);
            factors[block + lane] = factor;
            sums[block + lane] = fused::<I>(sums[block + lane], factor, sum[lane]);
            tops[block + lane] = top[lane];
        }
    }
}

simd_fn! {
    /// `turned[.., c] *= factors[c]`
    fn scale_columns(columns: usize, factors: &[f32; QUERIES], turned: &mut [f32]) = scale_columns_body
}

#[inline(always)]
fn scale_columns_body<I: Isa>(columns: usize, factors: &[f32; QUERIES], turned: &mut [f32]) {
    for line in turned.chunks_exact_mut(QUERIES) {
        for (value, factor) in line[..columns].iter_mut().zip(factors) {
            *value *= factor;
        }
    }
}
