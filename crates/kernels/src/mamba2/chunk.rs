//! What the forward and the backward scan compute alike inside one chunk: B, C and their products, the steps and
//! decays of a head, its activated x.

use super::{Mamba2Config, Piece, Source, Weights};
use crate::causal_conv::{Channels, HISTORY};
use crate::simd::{Isa, Portable, exp, sigmoid, simd_fn, softplus};
use crate::small_gemm::{Left, multiply, transpose};

/// Rows of a tile of a lower-triangular matrix; columns beyond the tile's last row are skipped.
pub(crate) const TRIANGLE: usize = 16;

/// Buffers of one piece of work, sized for one chunk.
pub(crate) struct Chunk {
    /// Row length of the frame-by-frame matrices: the chunk rounded up to whole vectors.
    pub(crate) stride: usize,
    raw: Vec<f32>,
    /// B `[frames, state]`
    pub(crate) b: Vec<f32>,
    /// C `[frames, state]`
    pub(crate) c: Vec<f32>,
    /// B transposed `[state, stride]`
    pub(crate) b_turned: Vec<f32>,
    /// C B^T, lower triangle `[frames, stride]`
    pub(crate) products: Vec<f32>,
    /// exp(c_i - c_j) of the head, lower triangle, zero above `[frames, stride]`
    pub(crate) decay: Vec<f32>,
    /// Activated x of the head `[frames, head width]`
    pub(crate) x: Vec<f32>,
    /// dt of the head `[frames]`
    pub(crate) dt: Vec<f32>,
    /// Derivative of softplus `[frames]`
    pub(crate) dt_slope: Vec<f32>,
    /// Cumulative log decay within the chunk `[stride]`, constant after the last frame
    pub(crate) cumulative: Vec<f32>,
    /// exp(c_i) `[frames]`
    pub(crate) from_start: Vec<f32>,
    /// exp(c_last - c_i) `[frames]`
    pub(crate) to_end: Vec<f32>,
}

impl Chunk {
    pub(crate) fn new(config: &Mamba2Config, frames: usize) -> Self {
        let rows = config.chunk.min(frames);
        let stride = rows.next_multiple_of(TRIANGLE);
        let width = config.state.max(config.head_width());
        Self {
            stride,
            raw: vec![0.0; (rows + HISTORY) * width],
            b: vec![0.0; rows * config.state],
            c: vec![0.0; rows * config.state],
            b_turned: vec![0.0; config.state * stride],
            products: vec![0.0; rows * stride],
            decay: vec![0.0; rows * stride],
            x: vec![0.0; rows * config.head_width()],
            dt: vec![0.0; rows],
            dt_slope: vec![0.0; rows],
            cumulative: vec![0.0; stride],
            from_start: vec![0.0; rows],
            to_end: vec![0.0; rows],
        }
    }

    /// Fills B, C, their transpose and products for `rows` frames from `from`.
    pub(crate) fn load_group(&mut self, source: &Source<'_>, piece: &Piece, from: usize, rows: usize) {
        let (config, state) = (&source.config, source.config.state);
        let first = config.inner + piece.group * state;
        for (channels, target) in [
            (Channels { first, width: state }, &mut self.b),
            (Channels { first: first + config.groups * state, width: state }, &mut self.c),
        ] {
            source.conv.gather(piece.sequence, channels, from, rows, &mut self.raw);
            source.conv.activate(channels, rows, &self.raw, target);
        }
        transpose(rows, state, &self.b, state, &mut self.b_turned, self.stride);
        for row in (0..rows).step_by(TRIANGLE) {
            let height = TRIANGLE.min(rows - row);
            // Columns up to the tile's end; `b_turned` has padding where the chunk ends earlier.
            let columns = row + TRIANGLE;
            multiply(
                height,
                columns,
                state,
                Left::rows(&self.c, state).skip(row, 0),
                &self.b_turned,
                self.stride,
                &mut self.products[row * self.stride..],
                self.stride,
                false,
            );
        }
    }

    /// Fills everything that belongs to one head.
    pub(crate) fn load_head(
        &mut self,
        source: &Source<'_>,
        weights: &Weights<'_, f32>,
        sequence: usize,
        head: usize,
        from: usize,
        rows: usize,
    ) {
        let config = &source.config;
        let rate = -weights.a_log[head].exp();
        let mut sum = 0.0f32;
        let padding = source.conv.sequences.padding_of(sequence).saturating_sub(from).min(rows);
        self.dt[..padding].fill(0.0);
        self.dt_slope[..padding].fill(0.0);
        self.cumulative[..padding].fill(0.0);
        for row in padding..rows {
            let at =
                (sequence * source.conv.sequences.frames + from + row) * config.projected() + config.dt_column() + head;
            let raw = source.conv.values[at] + weights.dt_bias[head];
            let dt = softplus::<Portable>(raw);
            sum += dt * rate;
            self.dt[row] = dt;
            self.dt_slope[row] = if raw > 20.0 { 1.0 } else { sigmoid::<Portable>(raw) };
            self.cumulative[row] = sum;
        }
        self.cumulative[rows..].fill(sum);
        decays(rows, self.stride, &self.cumulative, &mut self.decay, &mut self.from_start, &mut self.to_end);
        let width = config.head_width();
        let channels = Channels { first: head * width, width };
        source.conv.gather(sequence, channels, from, rows, &mut self.raw);
        source.conv.activate(channels, rows, &self.raw, &mut self.x);
    }
}

simd_fn! {
    /// exp(c_i - c_j) for j <= i, zero for the rest of the tile; exp(c_i) and exp(c_last - c_i).
    fn decays(rows: usize, stride: usize, cumulative: &[f32], decay: &mut [f32], from_start: &mut [f32], to_end: &mut [f32]) = decays_body
}

#[inline(always)]
fn decays_body<I: Isa>(
    rows: usize,
    stride: usize,
    cumulative: &[f32],
    decay: &mut [f32],
    from_start: &mut [f32],
    to_end: &mut [f32],
) {
    let last = cumulative[rows - 1];
    for row in 0..rows {
        from_start[row] = exp::<I>(cumulative[row]);
        to_end[row] = exp::<I>(last - cumulative[row]);
    }
    // Left of the diagonal tile the exponent is split at the tile's first frame, c_i - c_first + c_first - c_j: both
    // parts are at most zero, so nothing overflows, and one row of exponentials serves the whole tile.
    let mut before = [0.0f32; TRIANGLE];
    for tile in (0..rows).step_by(TRIANGLE) {
        let first = cumulative[tile];
        let height = TRIANGLE.min(rows - tile);
        for row in 0..height {
            let line = &mut decay[(tile + row) * stride..][..tile + TRIANGLE];
            let own: &[f32; TRIANGLE] =
                cumulative[tile..tile + TRIANGLE].try_into().expect("the stride is whole tiles");
            let here = cumulative[tile + row];
            for column in 0..TRIANGLE {
                let value = exp::<I>(here - own[column]);
                line[tile + column] = if column <= row { value } else { 0.0 };
            }
        }
        for block in (0..tile).step_by(TRIANGLE) {
            let own: &[f32; TRIANGLE] = cumulative[block..block + TRIANGLE].try_into().expect("whole tiles");
            for column in 0..TRIANGLE {
                before[column] = exp::<I>(first - own[column]);
            }
            for row in 0..height {
                // decay from the tile's first frame to this one: the first column of the diagonal tile
                let start = decay[(tile + row) * stride + tile];
                let line: &mut [f32; TRIANGLE] =
                    (&mut decay[(tile + row) * stride + block..][..TRIANGLE]).try_into().expect("whole tiles");
                for column in 0..TRIANGLE {
                    line[column] = start * before[column];
                }
            }
        }
    }
}

simd_fn! {
    /// `rows[i] *= factors[i]`
    pub(crate) fn scale_rows(factors: &[f32], width: usize, rows: &mut [f32], stride: usize) = scale_rows_body
}

#[inline(always)]
fn scale_rows_body<I: Isa>(factors: &[f32], width: usize, rows: &mut [f32], stride: usize) {
    for (row, factor) in factors.iter().enumerate() {
        for value in &mut rows[row * stride..][..width] {
            *value *= factor;
        }
    }
}

simd_fn! {
    /// `out[i] = rows[i] * factors[i]`
    pub(crate) fn scaled_rows(factors: &[f32], width: usize, rows: &[f32], stride: usize, out: &mut [f32]) = scaled_rows_body
}

#[inline(always)]
fn scaled_rows_body<I: Isa>(factors: &[f32], width: usize, rows: &[f32], stride: usize, out: &mut [f32]) {
    for (row, factor) in factors.iter().enumerate() {
        let line = &mut out[row * width..][..width];
        for (value, source) in line.iter_mut().zip(&rows[row * stride..][..width]) {
            *value = source * factor;
        }
    }
}

simd_fn! {
    /// `values *= factor`
    pub(crate) fn scale(factor: f32, values: &mut [f32]) = scale_body
}

#[inline(always)]
fn scale_body<I: Isa>(factor: f32, values: &mut [f32]) {
    for value in values {
        *value *= factor;
    }
}
