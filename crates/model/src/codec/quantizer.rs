//! Residual vector quantisation: each level quantises what the levels before it left over.
//!
//! The search is greedy, level by level, by Euclidean distance; ties go to the lower index.

use mambo_kernels::matmul::{Strided, matmul};
use rayon::prelude::*;

use crate::random;

/// Vectors a task searches at once: keeps the scores of one task in the second-level cache.
const TASK: usize = 64;

/// Codebooks of a residual quantiser.
#[derive(Debug, Clone, PartialEq)]
pub struct ResidualQuantizer {
    dimension: usize,
    entries: usize,
    /// `[levels, entries, dimension]`.
    vectors: Vec<f32>,
    /// The same transposed per level, `[levels, dimension, entries]`, for the search.
    turned: Vec<f32>,
    /// Half the squared length of every entry, `[levels, entries]`.
    half_power: Vec<f32>,
}

impl ResidualQuantizer {
    /// Wraps `[levels, entries, dimension]` vectors.
    ///
    /// # Panics
    /// When the vectors do not fill whole levels.
    pub fn new(dimension: usize, entries: usize, vectors: Vec<f32>) -> Self {
        let level = dimension * entries;
        assert!(level > 0 && vectors.len().is_multiple_of(level), "vectors must be [levels, {entries}, {dimension}]");
        let mut turned = vec![0.0; vectors.len()];
        for (from, to) in vectors.chunks_exact(level).zip(turned.chunks_exact_mut(level)) {
            for entry in 0..entries {
                for d in 0..dimension {
                    to[d * entries + entry] = from[entry * dimension + d];
                }
            }
        }
        let half_power = vectors.chunks_exact(dimension).map(|v| v.iter().map(|x| x * x).sum::<f32>() / 2.0).collect();
        Self { dimension, entries, vectors, turned, half_power }
    }

    /// Width of a vector.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// Entries of each codebook.
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// Number of codebooks.
    pub fn levels(&self) -> usize {
        self.vectors.len() / (self.dimension * self.entries)
    }

    /// All vectors, `[levels, entries, dimension]`.
    pub fn vectors(&self) -> &[f32] {
        &self.vectors
    }

    /// One entry.
    pub fn vector(&self, level: usize, entry: usize) -> &[f32] {
        &self.vectors[(level * self.entries + entry) * self.dimension..][..self.dimension]
    }

    /// Codes `[levels, T]` of the vectors `[T, dimension]`.
    pub fn encode(&self, vectors: &[f32]) -> Vec<u16> {
        let (levels, by_frame) = (self.levels(), self.encode_frames(vectors));
        (0..levels).flat_map(|level| by_frame.iter().skip(level).step_by(levels).copied()).collect()
    }

    /// The same, row-major `[frames, levels]`.
    pub(super) fn encode_frames(&self, vectors: &[f32]) -> Vec<u16> {
        let (frames, levels) = (vectors.len() / self.dimension, self.levels());
        let mut by_frame = vec![0u16; frames * levels];
        by_frame.par_chunks_mut(TASK * levels).zip(vectors.par_chunks(TASK * self.dimension)).for_each(
            |(codes, block)| {
                let mut rest = block.to_vec();
                for level in 0..levels {
                    for (row, code) in self.nearest(level, &rest).into_iter().enumerate() {
                        codes[row * levels + level] = code;
                        let entry = self.vector(level, usize::from(code));
                        for (value, part) in rest[row * self.dimension..].iter_mut().zip(entry) {
                            *value -= part;
                        }
                    }
                }
            },
        );
        by_frame
    }

    /// Index of the nearest entry of one level for each row of `rows`.
    fn nearest(&self, level: usize, rows: &[f32]) -> Vec<u16> {
        let count = rows.len() / self.dimension;
        let (entries, size) = (self.entries, self.dimension * self.entries);
        let mut scores = vec![0.0; count * entries];
        let turned = &self.turned[level * size..(level + 1) * size];
        matmul(
            count,
            entries,
            self.dimension,
            Strided::rows(rows, self.dimension),
            turned,
            entries,
            &mut scores,
            entries,
            false,
        );
        let half_power = &self.half_power[level * entries..(level + 1) * entries];
        scores
            .chunks_exact(entries)
            .map(|row| {
                let mut best = (f32::NEG_INFINITY, 0);
                for (index, (score, half)) in row.iter().zip(half_power).enumerate() {
                    if score - half > best.0 {
                        best = (score - half, index);
                    }
                }
                best.1 as u16
            })
            .collect()
    }

    /// Sums of the entries of the first `levels` levels, `[T, dimension]`, for codes `[K, T]`.
    ///
    /// # Panics
    /// When there are fewer levels than wanted or a code is too large.
    pub fn decode(&self, codes: &[u16], frames: usize, levels: usize) -> Vec<f32> {
        let mut out = vec![0.0; frames * self.dimension];
        for level in 0..levels {
            for (row, &code) in out.chunks_exact_mut(self.dimension).zip(&codes[level * frames..(level + 1) * frames]) {
                for (value, part) in row.iter_mut().zip(self.vector(level, usize::from(code))) {
                    *value += part;
                }
            }
        }
        out
    }

    /// Fits the codebooks to `[T, dimension]` vectors: k-means on what the earlier levels leave, `rounds` rounds
    /// of Lloyd's algorithm a level; an entry that loses its vectors is moved to a random one. `note` hears of
    /// each level and the share of the power left after it.
    pub fn fit(
        vectors: &[f32],
        dimension: usize,
        levels: usize,
        entries: usize,
        rounds: usize,
        seed: u64,
        note: &mut dyn FnMut(usize, f64),
    ) -> Self {
        let count = vectors.len() / dimension;
        assert!(count >= entries, "k-means needs at least {entries} vectors, found {count}");
        let power = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        let before = power(vectors).max(f64::MIN_POSITIVE);
        let mut rest = vectors.to_vec();
        let mut fitted = Vec::with_capacity(levels * entries * dimension);
        for level in 0..levels {
            let mut rng = random::stream(seed, "k-means", level as u64);
            let order = random::permutation(&mut rng, count);
            let mut book: Vec<f32> =
                order[..entries].iter().flat_map(|&i| rest[i * dimension..(i + 1) * dimension].to_vec()).collect();
            for _ in 0..rounds {
                let codes = Self::new(dimension, entries, book.clone()).encode(&rest);
                let mut sums = vec![0.0f64; book.len()];
                let mut counts = vec![0usize; entries];
                for (row, &code) in rest.chunks_exact(dimension).zip(&codes) {
                    let code = usize::from(code);
                    counts[code] += 1;
                    for (sum, value) in sums[code * dimension..(code + 1) * dimension].iter_mut().zip(row) {
                        *sum += f64::from(*value);
                    }
                }
                for (entry, &members) in counts.iter().enumerate() {
                    let place = entry * dimension..(entry + 1) * dimension;
                    if members < 2 {
                        let from = random::below(&mut rng, count);
                        book[place].copy_from_slice(&rest[from * dimension..(from + 1) * dimension]);
                    } else {
                        for (value, sum) in book[place.clone()].iter_mut().zip(&sums[place]) {
                            *value = (sum / members as f64) as f32;
                        }
                    }
                }
            }
            let quantizer = Self::new(dimension, entries, book);
            let codes = quantizer.encode(&rest);
            for (row, &code) in rest.chunks_exact_mut(dimension).zip(&codes) {
                for (value, part) in row.iter_mut().zip(quantizer.vector(0, usize::from(code))) {
                    *value -= part;
                }
            }
            fitted.extend_from_slice(&quantizer.vectors);
            note(level, power(&rest) / before);
        }
        Self::new(dimension, entries, fitted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cloud(count: usize, dimension: usize) -> Vec<f32> {
        let mut rng = random::stream(1, "cloud", 0);
        (0..count * dimension).map(|i| random::normal(&mut rng) + (i / dimension % 4) as f32 * 5.0).collect()
    }

    #[test]
    fn every_level_leaves_less() {
        let mut left = Vec::new();
        let data = cloud(2000, 6);
        let quantizer = ResidualQuantizer::fit(&data, 6, 3, 32, 8, 7, &mut |_, share| left.push(share));
        assert!(left[0] < 0.2 && left[1] < left[0] && left[2] < left[1], "{left:?}");
        let codes = quantizer.encode(&data);
        let decoded = quantizer.decode(&codes, 2000, 3);
        let error: f64 = data.iter().zip(&decoded).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let power: f64 = data.iter().map(|a| f64::from(*a).powi(2)).sum();
        assert!((error / power - left[2]).abs() < 1e-6);
    }

    #[test]
    fn the_search_finds_the_nearest() {
        let data = cloud(300, 5);
        let quantizer = ResidualQuantizer::fit(&data, 5, 1, 16, 3, 2, &mut |_, _| ());
        for (row, &code) in data.chunks_exact(5).zip(&quantizer.encode(&data)) {
            let distance = |entry: usize| -> f32 {
                row.iter().zip(quantizer.vector(0, entry)).map(|(a, b)| (a - b).powi(2)).sum()
            };
            let best = (0..16).map(distance).fold(f32::INFINITY, f32::min);
            assert!(distance(usize::from(code)) <= best + 1e-4);
        }
    }
}
