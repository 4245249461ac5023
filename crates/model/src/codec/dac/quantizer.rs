//! Residual vector quantisation in a few dimensions: each level projects what the levels before left over, takes the
//! codebook row of the nearest direction, and projects that row back.

use mambo_kernels::linear::{Matrix, Start, multiply};
use rayon::prelude::*;

use super::super::first_largest;
use super::{DacConfig, DacError, Reader};

/// Tokens a task looks up.
const TASK: usize = 32;
/// Shortest length of a vector that is scaled to length 1, as `torch.nn.functional.normalize` has it.
const SHORTEST: f32 = 1e-12;

struct Level {
    /// `[latent, dim]`
    project: Vec<f32>,
    /// `[dim]`
    project_bias: Vec<f32>,
    /// `[codes, dim]`
    book: Vec<f32>,
    /// Directions of the rows, `[dim, codes]`.
    directions: Vec<f32>,
    /// Every row projected back, `[codes, latent]`.
    table: Vec<f32>,
}

/// All levels.
pub(super) struct Quantizer {
    latent: usize,
    dim: usize,
    codes: usize,
    levels: Vec<Level>,
}

/// Codes of all levels, `[tokens, levels]`, and what each level projected before it chose, `[tokens, levels * dim]`.
pub(super) struct Quantized {
    pub(super) codes: Vec<u16>,
    pub(super) projections: Vec<f32>,
}

impl Quantizer {
    pub(super) fn read(source: &mut dyn Reader, config: &DacConfig) -> Result<Self, DacError> {
        let (latent, dim, codes) = (config.latent(), config.codebook_dim, config.codebook_size);
        let level = |index: usize| {
            let name = |part: &str| format!("quantizer.quantizers.{index}.{part}");
            let project = turned(&source.tensor(&name("in_proj.weight"), &[dim, latent, 1])?, dim);
            let project_bias = source.tensor(&name("in_proj.bias"), &[dim])?;
            let back = source.tensor(&name("out_proj.weight"), &[latent, dim, 1])?;
            let back_bias = source.tensor(&name("out_proj.bias"), &[latent])?;
            let book = source.tensor(&name("codebook.weight"), &[codes, dim])?;
            let mut table = vec![0.0; codes * latent];
            let (rows, back) = (Matrix::new(&book, codes, dim), Matrix::new(&back, latent, dim).turned());
            multiply(rows, back, &mut table, Start::Row(&back_bias));
            let directions = turned(&book.chunks_exact(dim).flat_map(direction).collect::<Vec<f32>>(), codes);
            Ok(Level { project, project_bias, book, directions, table })
        };
        let levels = (0..config.n_codebooks).map(level).collect::<Result<_, DacError>>()?;
        Ok(Self { latent, dim, codes, levels })
    }

    /// Quantises latents `[tokens, latent]`.
    pub(super) fn encode(&self, mut latents: Vec<f32>) -> Quantized {
        let (latent, dim) = (self.latent, self.dim);
        let tokens = latents.len() / latent;
        let row = self.levels.len() * dim;
        let mut projections = vec![0.0; tokens * row];
        let mut codes = vec![0u16; tokens * self.levels.len()];
        let tasks = latents.par_chunks_mut(TASK * latent).zip(projections.par_chunks_mut(TASK * row));
        tasks.zip(codes.par_chunks_mut(TASK * self.levels.len())).for_each(|((rest, projections), codes)| {
            let lines = rest.chunks_exact_mut(latent).zip(projections.chunks_exact_mut(row));
            for ((rest, projections), codes) in lines.zip(codes.chunks_exact_mut(self.levels.len())) {
                let mut scores = vec![0.0; self.codes];
                let choices = self.levels.iter().zip(projections.chunks_exact_mut(dim)).zip(codes);
                for ((level, projection), code) in choices {
                    level.project(rest, projection);
                    *code = level.nearest(projection, &mut scores);
                    let back = &level.table[usize::from(*code) * latent..][..latent];
                    rest.iter_mut().zip(back).for_each(|(value, back)| *value -= back);
                }
            }
        });
        Quantized { codes, projections }
    }

    /// Codes and projections `[tokens, dim]` that one level gives for what is left of latents, `[tokens, latent]`.
    pub(super) fn at_level(&self, level: usize, rest: &[f32]) -> Quantized {
        let level = &self.levels[level];
        let mut projections = vec![0.0; rest.len() / self.latent * self.dim];
        let mut scores = vec![0.0; self.codes];
        let lines = rest.chunks_exact(self.latent).zip(projections.chunks_exact_mut(self.dim));
        let code = |(rest, projection): (&[f32], &mut [f32])| {
            level.project(rest, projection);
            level.nearest(projection, &mut scores)
        };
        Quantized { codes: lines.map(code).collect(), projections }
    }

    /// The latent `[latent]` of a token's codes, one for each of the first levels.
    pub(super) fn decode(&self, codes: &[u16]) -> Vec<f32> {
        let mut out = vec![0.0; self.latent];
        for (level, code) in self.levels.iter().zip(codes) {
            let row = &level.table[usize::from(*code) * self.latent..][..self.latent];
            out.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        out
    }

    /// The codes nearest to vectors `[tokens, levels * dim]` of the first levels, `[levels, tokens]`.
    pub(super) fn choose(&self, vectors: &[f32], levels: usize) -> Vec<u16> {
        let mut scores = vec![0.0; self.codes];
        let mut codes = Vec::with_capacity(vectors.len() / self.dim);
        for (k, level) in self.levels[..levels].iter().enumerate() {
            let rows = vectors.chunks_exact(levels * self.dim);
            codes.extend(rows.map(|row| level.nearest(&row[k * self.dim..][..self.dim], &mut scores)));
        }
        codes
    }

    /// The rows of all codebooks, `[levels, codes, dim]`.
    pub(super) fn rows(&self) -> Vec<f32> {
        self.levels.iter().flat_map(|level| level.book.iter().copied()).collect()
    }

    /// A row of a codebook, `[dim]`.
    pub(super) fn row(&self, level: usize, code: u16) -> &[f32] {
        &self.levels[level].book[usize::from(code) * self.dim..][..self.dim]
    }
}

impl Level {
    fn project(&self, rest: &[f32], out: &mut [f32]) {
        out.copy_from_slice(&self.project_bias);
        for (value, weights) in rest.iter().zip(self.project.chunks_exact(out.len())) {
            out.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += value * weight);
        }
    }

    /// The row whose direction is nearest; the first of equals.
    fn nearest(&self, vector: &[f32], scores: &mut [f32]) -> u16 {
        scores.fill(0.0);
        for (value, line) in direction(vector).zip(self.directions.chunks_exact(scores.len())) {
            scores.iter_mut().zip(line).for_each(|(score, factor)| *score += value * factor);
        }
        first_largest(scores)
    }
}

/// A vector at length 1.
fn direction(vector: &[f32]) -> impl Iterator<Item = f32> {
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt().max(SHORTEST);
    vector.iter().map(move |value| value / length)
}

/// The transpose of `rows` rows.
fn turned(values: &[f32], rows: usize) -> Vec<f32> {
    let columns = values.len() / rows;
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}
