//! What the forward and the backward scan share: a block of channels over one chunk of frames.
#![allow(unsafe_code)]

use super::{Mamba1Config, Sequences, Weights};
use crate::simd::{Isa, Vector, exp2, fused, prefetch, sigmoid, simd_fn, softplus};
use std::f32::consts::LOG2_E;

/// Channels scanned together: enough independent sums to keep the multiply-add units busy.
pub(crate) const BLOCK: usize = 32;

/// Frames asked for ahead of their use: a block's values lie too far apart from frame to frame for the processor to
/// guess.
pub(crate) const AHEAD: usize = 8;

/// One value for each channel of a block; channels beyond the last have step, decay rate and inputs of zero.
pub(crate) type Lanes = [f32; BLOCK];

/// A block of lanes from `source`, zero beyond its end.
#[inline(always)]
pub(crate) fn lanes(source: &[f32]) -> Lanes {
    match source.try_into() {
        Ok(whole) => whole,
        Err(_) => partial(source),
    }
}

/// The last block, if it is not full. Apart, so that full blocks are copied without a call.
#[cold]
#[inline(never)]
fn partial(source: &[f32]) -> Lanes {
    std::array::from_fn(|lane| source.get(lane).copied().unwrap_or(0.0))
}

/// Writes as many lanes as `target` has room for.
#[inline(always)]
pub(crate) fn store(lanes: &Lanes, target: &mut [f32]) {
    match <&mut Lanes>::try_from(&mut *target) {
        Ok(whole) => *whole = *lanes,
        Err(_) => store_partial(lanes, target),
    }
}

/// As [`partial`].
#[cold]
#[inline(never)]
fn store_partial(lanes: &Lanes, target: &mut [f32]) {
    target.iter_mut().zip(lanes).for_each(|(target, value)| *target = *value);
}

/// `values` as lanes; a length that is no multiple of the block is a mistake in the program.
pub(crate) fn as_lanes(values: &[f32]) -> &[Lanes] {
    let (lanes, rest) = values.as_chunks::<BLOCK>();
    assert!(rest.is_empty(), "selective scan: {} values in blocks of {BLOCK}", values.len());
    lanes
}

/// What the scan reads.
#[derive(Clone, Copy)]
pub(crate) struct Scan<'a> {
    pub(crate) config: Mamba1Config,
    pub(crate) sequences: Sequences<'a>,
    /// `[batch, frames, 2 inner]`; z is the second half of each row.
    pub(crate) projected: &'a [f32],
    /// Activated x `[batch, frames, inner]`
    pub(crate) x: &'a [f32],
    /// `[batch, frames, rank + 2 state]`
    pub(crate) selected: &'a [f32],
    /// Steps before bias and softplus `[batch, frames, inner]`
    pub(crate) dt_raw: &'a [f32],
    pub(crate) weights: Weights<'a, f32>,
    /// From [`rates`].
    pub(crate) rates: &'a [Lanes],
}

/// Decay rates to base 2, `-exp(A_log) / ln 2`, as `[blocks, state]` lanes.
pub(crate) fn rates(config: &Mamba1Config, a_log: &[f32]) -> Vec<Lanes> {
    let mut out = vec![[0.0; BLOCK]; config.inner.div_ceil(BLOCK) * config.state];
    for (at, value) in a_log.iter().enumerate() {
        let (channel, n) = (at / config.state, at % config.state);
        out[channel / BLOCK * config.state + n][channel % BLOCK] = -value.exp() * LOG2_E;
    }
    out
}

impl Scan<'_> {
    /// Blocks of channels.
    pub(crate) fn blocks(&self) -> usize {
        self.config.inner.div_ceil(BLOCK)
    }

    /// Chunks of frames.
    pub(crate) fn chunks(&self) -> usize {
        self.sequences.frames.div_ceil(self.config.chunk)
    }

    /// Frames of the longest chunk.
    pub(crate) fn rows_max(&self) -> usize {
        self.config.chunk.min(self.sequences.frames)
    }

    /// Channels of a block.
    pub(crate) fn width(&self, block: usize) -> usize {
        BLOCK.min(self.config.inner - block * BLOCK)
    }

    /// A block's decay rates, one n after the other.
    pub(crate) fn block_rates(&self, block: usize) -> &[Lanes] {
        &self.rates[block * self.config.state..][..self.config.state]
    }

    /// First value of a block in `[batch, frames, inner]`.
    pub(crate) fn at(&self, sequence: usize, frame: usize, block: usize) -> usize {
        (sequence * self.sequences.frames + frame) * self.config.inner + block * BLOCK
    }

    /// First z of a block in `[batch, frames, 2 inner]`.
    pub(crate) fn z_at(&self, sequence: usize, frame: usize, block: usize) -> usize {
        (2 * (sequence * self.sequences.frames + frame) + 1) * self.config.inner + block * BLOCK
    }

    /// The state of a block `[state]` from `[batch, inner, state]`, zero where absent.
    pub(crate) fn block_states(&self, source: Option<&[f32]>, sequence: usize, block: usize) -> Vec<Lanes> {
        let state = self.config.state;
        let mut out = vec![[0.0; BLOCK]; state];
        if let Some(source) = source {
            let source = &source[(sequence * self.config.inner + block * BLOCK) * state..];
            for lane in 0..self.width(block) {
                for n in 0..state {
                    out[n][lane] = source[lane * state + n];
                }
            }
        }
        out
    }

    /// Where [`Scan::block_states`] reads a block, for writing it back with [`write_states`].
    pub(crate) fn states_at(&self, sequence: usize, block: usize) -> (usize, usize) {
        let state = self.config.state;
        ((sequence * self.config.inner + block * BLOCK) * state, self.width(block) * state)
    }
}

/// The transpose of [`Scan::block_states`].
pub(crate) fn write_states(states: &[Lanes], target: &mut [f32]) {
    let state = states.len();
    for (lane, line) in target.chunks_exact_mut(state).enumerate() {
        for n in 0..state {
            line[n] = states[n][lane];
        }
    }
}

/// Steps and inputs of a block over one chunk, one row of lanes a frame.
pub(crate) struct Tile {
    /// dt
    pub(crate) dt: Vec<Lanes>,
    /// dt x
    pub(crate) stepped: Vec<Lanes>,
    /// Starts as D x; the scan adds what it reads from the states.
    pub(crate) y: Vec<Lanes>,
}

impl Tile {
    pub(crate) fn new(rows: usize) -> Self {
        let rows = || vec![[0.0; BLOCK]; rows];
        Self { dt: rows(), stepped: rows(), y: rows() }
    }
}

simd_fn! {
    /// Fills a tile for `rows` frames from `from`; also asks for their z.
    pub(crate) fn load(scan: &Scan<'_>, sequence: usize, block: usize, from: usize, rows: usize, tile: &mut Tile) = load_body
}

#[inline(always)]
fn load_body<I: Isa>(scan: &Scan<'_>, sequence: usize, block: usize, from: usize, rows: usize, tile: &mut Tile) {
    let width = scan.width(block);
    let bias = lanes(&scan.weights.dt_bias[block * BLOCK..][..width]);
    let skip = lanes(&scan.weights.d_skip[block * BLOCK..][..width]);
    let padding = scan.sequences.padding_of(sequence);
    let fetch = |row: usize| {
        let at = scan.at(sequence, from + row, block);
        prefetch(&scan.x[at..][..width]);
        prefetch(&scan.dt_raw[at..][..width]);
        prefetch(&scan.projected[scan.z_at(sequence, from + row, block)..][..width]);
    };
    (0..AHEAD.min(rows)).for_each(fetch);
    for row in 0..rows {
        if row + AHEAD < rows {
            fetch(row + AHEAD);
        }
        let at = scan.at(sequence, from + row, block);
        let x = lanes(&scan.x[at..][..width]);
        let raw = lanes(&scan.dt_raw[at..][..width]);
        let (dt, stepped, y) = (&mut tile.dt[row], &mut tile.stepped[row], &mut tile.y[row]);
        if from + row < padding {
            *dt = [0.0; BLOCK];
        } else {
            for lane in 0..BLOCK {
                dt[lane] = softplus::<I>(raw[lane] + bias[lane]);
            }
        }
        for lane in 0..BLOCK {
            stepped[lane] = dt[lane] * x[lane];
            y[lane] = skip[lane] * x[lane];
        }
    }
}

simd_fn! {
    /// Runs the states of a block over the tile's first `rows` frames, reading them into `y`. `selected` starts at the
    /// chunk's first frame.
    pub(crate) fn advance(config: &Mamba1Config, rows: usize, rates: &[Lanes], selected: &[f32], tile: &mut Tile, states: &mut [Lanes]) = advance_body
}

#[inline(always)]
fn advance_body<I: Isa>(
    config: &Mamba1Config,
    rows: usize,
    rates: &[Lanes],
    selected: &[f32],
    tile: &mut Tile,
    states: &mut [Lanes],
) {
    match I::Vector::LANES {
        16 => advance_lanes::<I::Vector, 2>(config, rows, rates, selected, tile, states),
        8 => advance_lanes::<I::Vector, 4>(config, rows, rates, selected, tile, states),
        _ => advance_lanes::<I::Vector, 8>(config, rows, rates, selected, tile, states),
    }
}

/// `VECTORS` registers hold a block.
#[inline(always)]
fn advance_lanes<V: Vector, const VECTORS: usize>(
    config: &Mamba1Config,
    rows: usize,
    rates: &[Lanes],
    selected: &[f32],
    tile: &mut Tile,
    states: &mut [Lanes],
) {
    assert_eq!(VECTORS * V::LANES, BLOCK, "selective scan: registers of a block");
    let (dt, stepped, y) = (&tile.dt[..rows], &tile.stepped[..rows], &mut tile.y[..rows]);
    for (n, (rate, memory)) in rates.iter().zip(states).enumerate() {
        // SAFETY: registers of a block stay inside its lanes; the instruction set is the caller's.
        unsafe {
            let rate: [V; VECTORS] = registers(rate);
            let mut state: [V; VECTORS] = registers(memory);
            for row in 0..rows {
                let line = &selected[row * config.selected() + config.rank..][..2 * config.state];
                let (b, c) = (V::splat(line[n]), V::splat(line[config.state + n]));
                for v in 0..VECTORS {
                    let decay = exp2(register::<V>(&dt[row], v).multiply(rate[v]));
                    state[v] = decay.multiply_add(state[v], register::<V>(&stepped[row], v).multiply(b));
                    set_register(state[v].multiply_add(c, register(&y[row], v)), &mut y[row], v);
                }
            }
            (0..VECTORS).for_each(|v| set_register(state[v], memory, v));
        }
    }
}

/// Register `v` of a block.
///
/// # Safety
/// `v` is below `BLOCK / LANES`, and the processor has the register's instruction set; as for the two below.
#[inline(always)]
pub(crate) unsafe fn register<V: Vector>(lanes: &Lanes, v: usize) -> V {
    debug_assert!((v + 1) * V::LANES <= BLOCK);
    // SAFETY: as the caller promises.
    unsafe { V::load(lanes.as_ptr().add(v * V::LANES)) }
}

/// All registers of a block.
#[inline(always)]
pub(crate) unsafe fn registers<V: Vector, const VECTORS: usize>(lanes: &Lanes) -> [V; VECTORS] {
    // SAFETY: as the caller promises.
    std::array::from_fn(|v| unsafe { register(lanes, v) })
}

/// Writes register `v` of a block.
#[inline(always)]
pub(crate) unsafe fn set_register<V: Vector>(value: V, lanes: &mut Lanes, v: usize) {
    debug_assert!((v + 1) * V::LANES <= BLOCK);
    // SAFETY: as the caller promises.
    unsafe { value.store(lanes.as_mut_ptr().add(v * V::LANES)) }
}

/// `x / (1 + e^-x)` and its derivative.
#[inline(always)]
pub(crate) fn silu<I: Isa>(x: f32) -> (f32, f32) {
    let gate = sigmoid::<I>(x);
    (x * gate, gate * fused::<I>(x, 1.0 - gate, 1.0))
}
