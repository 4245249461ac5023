//! What the forward and the backward scan share: a block of channels over one chunk of frames.
#![allow(unsafe_code)]

use super::lanes::{BLOCK, Lanes, lanes, register, registers, set_register};
use super::{Mamba1Config, Sequences, Weights};
use crate::simd::{Isa, Vector, exp2, fused, prefetch, sigmoid, simd_fn, softplus};
use std::f32::consts::LOG2_E;

/// Frames asked for ahead of their use: a block's values lie too far apart from frame to frame for the processor to
/// guess.
const AHEAD: usize = 8;

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

/// A block of channels of one sequence over one chunk of frames.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) sequence: usize,
    pub(crate) block: usize,
    pub(crate) chunk: usize,
    /// First frame.
    pub(crate) from: usize,
    /// Frames.
    pub(crate) rows: usize,
    /// Channels.
    pub(crate) width: usize,
}

impl<'a> Scan<'a> {
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

    pub(crate) fn place(&self, sequence: usize, block: usize, chunk: usize) -> Place {
        let from = chunk * self.config.chunk;
        let rows = self.config.chunk.min(self.sequences.frames - from);
        Place { sequence, block, chunk, from, rows, width: BLOCK.min(self.config.inner - block * BLOCK) }
    }

    /// The place's first value in row `row` of `[batch, frames, inner]`.
    pub(crate) fn at(&self, place: &Place, row: usize) -> usize {
        (place.sequence * self.sequences.frames + place.from + row) * self.config.inner + place.block * BLOCK
    }

    /// The place's first z in row `row` of `[batch, frames, 2 inner]`.
    pub(crate) fn z_at(&self, place: &Place, row: usize) -> usize {
        (2 * (place.sequence * self.sequences.frames + place.from + row) + 1) * self.config.inner + place.block * BLOCK
    }

    /// The place's state before its first frame, among those kept between chunks `[batch, blocks, chunks, state]`.
    pub(crate) fn kept_at(&self, place: &Place) -> usize {
        ((place.sequence * self.blocks() + place.block) * self.chunks() + place.chunk) * self.config.state
    }

    /// The place's x.
    pub(crate) fn x(&self, place: &Place, row: usize) -> &'a [f32] {
        &self.x[self.at(place, row)..][..place.width]
    }

    /// The place's steps before bias and softplus.
    pub(crate) fn raw(&self, place: &Place, row: usize) -> &'a [f32] {
        &self.dt_raw[self.at(place, row)..][..place.width]
    }

    /// The place's z.
    pub(crate) fn z(&self, place: &Place, row: usize) -> &'a [f32] {
        &self.projected[self.z_at(place, row)..][..place.width]
    }

    /// The place's part of `[inner]`.
    pub(crate) fn of(&self, values: &[f32], place: &Place) -> Lanes {
        lanes(&values[place.block * BLOCK..][..place.width])
    }

    /// Whether a row of the place is padding.
    pub(crate) fn padded(&self, place: &Place, row: usize) -> bool {
        place.from + row < self.sequences.padding_of(place.sequence)
    }

    /// The place's decay rates, one n after the other.
    pub(crate) fn block_rates(&self, place: &Place) -> &'a [Lanes] {
        &self.rates[place.block * self.config.state..][..self.config.state]
    }

    /// (B, C) of a row for one n.
    #[inline(always)]
    pub(crate) fn b_and_c(&self, place: &Place, row: usize, n: usize) -> (f32, f32) {
        let at = (place.sequence * self.sequences.frames + place.from + row) * self.config.selected();
        let line = &self.selected[at + self.config.rank..][..2 * self.config.state];
        (line[n], line[self.config.state + n])
    }

    /// The state of a block, one n after the other, from `[batch, inner, state]`; zero where absent.
    pub(crate) fn block_states(&self, source: Option<&[f32]>, place: &Place) -> Vec<Lanes> {
        let state = self.config.state;
        let mut out = vec![[0.0; BLOCK]; state];
        if let Some(source) = source {
            let (from, length) = self.states_at(place);
            for (lane, line) in source[from..from + length].chunks_exact(state).enumerate() {
                for n in 0..state {
                    out[n][lane] = line[n];
                }
            }
        }
        out
    }

    /// A block's first value and number of values in `[batch, inner, state]`.
    pub(crate) fn states_at(&self, place: &Place) -> (usize, usize) {
        let state = self.config.state;
        ((place.sequence * self.config.inner + place.block * BLOCK) * state, place.width * state)
    }
}

/// Undoes [`Scan::block_states`].
pub(crate) fn write_states(states: &[Lanes], target: &mut [f32]) {
    for (lane, line) in target.chunks_exact_mut(states.len()).enumerate() {
        for (value, state) in line.iter_mut().zip(states) {
            *value = state[lane];
        }
    }
}

/// Steps and inputs at a place, one row of lanes a frame.
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
    /// Fills a tile; also asks for the place's z.
    pub(crate) fn load(scan: &Scan<'_>, place: &Place, tile: &mut Tile) = load_body
}

#[inline(always)]
fn load_body<I: Isa>(scan: &Scan<'_>, place: &Place, tile: &mut Tile) {
    let (bias, skip) = (scan.of(scan.weights.dt_bias, place), scan.of(scan.weights.d_skip, place));
    let fetch = |row: usize| [scan.x(place, row), scan.raw(place, row), scan.z(place, row)].map(prefetch);
    for row in 0..AHEAD.min(place.rows) {
        fetch(row);
    }
    for row in 0..place.rows {
        if row + AHEAD < place.rows {
            fetch(row + AHEAD);
        }
        let (x, raw) = (lanes(scan.x(place, row)), lanes(scan.raw(place, row)));
        let (dt, stepped, y) = (&mut tile.dt[row], &mut tile.stepped[row], &mut tile.y[row]);
        if scan.padded(place, row) {
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
    /// Runs the states of a block over a loaded tile, reading them into `y`.
    pub(crate) fn advance(scan: &Scan<'_>, place: &Place, tile: &mut Tile, states: &mut [Lanes]) = advance_body
}

#[inline(always)]
fn advance_body<I: Isa>(scan: &Scan<'_>, place: &Place, tile: &mut Tile, states: &mut [Lanes]) {
    let mut none = History { decays: Vec::new(), states: Vec::new() };
    for (n, memory) in states.iter_mut().enumerate() {
        match I::Vector::LANES {
            16 => advance_one::<I::Vector, 2, false>(scan, place, n, tile, memory, &mut none),
            8 => advance_one::<I::Vector, 4, false>(scan, place, n, tile, memory, &mut none),
            _ => advance_one::<I::Vector, 8, false>(scan, place, n, tile, memory, &mut none),
        }
    }
}

/// One n over a chunk.
pub(crate) struct History {
    /// Decays
    pub(crate) decays: Vec<Lanes>,
    /// States before the chunk and after each of its frames
    pub(crate) states: Vec<Lanes>,
}

/// Runs the states of one n, `VECTORS` registers a block; with `KEEP` decays and states go to `history`.
#[inline(always)]
pub(crate) fn advance_one<V: Vector, const VECTORS: usize, const KEEP: bool>(
    scan: &Scan<'_>,
    place: &Place,
    n: usize,
    tile: &mut Tile,
    memory: &mut Lanes,
    history: &mut History,
) {
    assert_eq!(VECTORS * V::LANES, BLOCK, "selective scan: registers of a block");
    let rows = place.rows;
    let (dt, stepped, y) = (&tile.dt[..rows], &tile.stepped[..rows], &mut tile.y[..rows]);
    if KEEP {
        history.states[0] = *memory;
    }
    // SAFETY: registers of a block stay inside its lanes; the instruction set is the caller's.
    unsafe {
        let rate: [V; VECTORS] = registers(&scan.block_rates(place)[n]);
        let mut state: [V; VECTORS] = registers(memory);
        for row in 0..rows {
            let (b, c) = scan.b_and_c(place, row, n);
            let (b, c) = (V::splat(b), V::splat(c));
            for v in 0..VECTORS {
                let decay = exp2(register::<V>(&dt[row], v).multiply(rate[v]));
                state[v] = decay.multiply_add(state[v], register::<V>(&stepped[row], v).multiply(b));
                set_register(state[v].multiply_add(c, register(&y[row], v)), &mut y[row], v);
                if KEEP {
                    set_register(decay, &mut history.decays[row], v);
                    set_register(state[v], &mut history.states[row + 1], v);
                }
            }
        }
        (0..VECTORS).for_each(|v| set_register(state[v], memory, v));
    }
}

/// `x / (1 + e^-x)` and its derivative.
#[inline(always)]
pub(crate) fn silu<I: Isa>(x: f32) -> (f32, f32) {
    let gate = sigmoid::<I>(x);
    (x * gate, gate * fused::<I>(x, 1.0 - gate, 1.0))
}
