//! Backward pass of the selective scan, chunk by chunk from the last, one n at a time: the chunk's states are found
//! again from the one before it, so that never more than a chunk of one n is held.
#![allow(unsafe_code)]

use super::Mamba1Config;
use super::lanes::{BLOCK, Lanes, lanes, register, registers, set_register, store};
use super::tile::{History, Place, Scan, Tile, advance_one, load, silu, write_states};
use crate::simd::{Isa, Vector, fused, prefetch, sigmoid, simd_fn};
use crate::threads::{Shared, sum_rows};
use rayon::prelude::*;
use std::f32::consts::LN_2;

/// Gradients of what the scan reads, each shaped as its input.
pub(super) struct ScanGradients {
    pub(super) x: Vec<f32>,
    /// The columns of B and C; those of the low-rank step are zero.
    pub(super) selected: Vec<f32>,
    pub(super) dt_raw: Vec<f32>,
    pub(super) dt_bias: Vec<f32>,
    pub(super) a_log: Vec<f32>,
    pub(super) d_skip: Vec<f32>,
    /// Of the initial state, if asked for.
    pub(super) initial: Vec<f32>,
}

/// Neighbouring blocks that one task works off, so that they share their sums of dB and dC. A rule of the sizes alone:
/// the order of those sums, and so the result, is the same for any number of threads. All tasks' sums together take
/// half the memory of x, more only where the state is very large.
fn blocks_per_task(config: &Mamba1Config) -> usize {
    let most_tasks = (config.inner / (4 * config.state)).max(4);
    config.inner.div_ceil(BLOCK).div_ceil(most_tasks)
}

/// Backward pass of the scan. dz goes to the second half of the rows of `d_projected`.
pub(super) fn scan_backward(
    scan: &Scan<'_>,
    chunk_states: &[Lanes],
    d_output: &[f32],
    d_final: Option<&[f32]>,
    with_initial: bool,
    d_projected: &mut [f32],
) -> ScanGradients {
    let config = &scan.config;
    let (batch, frames) = (scan.sequences.batch, scan.sequences.frames);
    let (inner, state, width) = (config.inner, config.state, config.selected());
    let mut x = vec![0.0; batch * frames * inner];
    let mut dt_raw = vec![0.0; x.len()];
    let mut initial = vec![0.0; if with_initial { batch * config.ssm_state_size() } else { 0 }];
    // For each sequence: dt_bias, D, then A_log by state; each `[inner]`.
    let size = (2 + state) * inner;
    let mut partial = vec![0.0; batch * size];
    let step = blocks_per_task(config);
    let tasks = scan.blocks().div_ceil(step);
    // dB and dC of each task `[batch, tasks, frames, 2 state]`; added up below in this order.
    let shared_size = frames * 2 * state;
    let mut d_shared = vec![0.0f32; batch * tasks * shared_size];
    {
        let results = Results {
            d_projected: Shared::new(d_projected),
            d_x: Shared::new(&mut x),
            d_dt_raw: Shared::new(&mut dt_raw),
            partial: Shared::new(&mut partial),
            initial: with_initial.then(|| Shared::new(&mut initial)),
        };
        d_shared.par_chunks_mut(shared_size.max(1)).enumerate().for_each(|(task, d_shared)| {
            let (sequence, first) = (task / tasks, task % tasks * step);
            for block in first..(first + step).min(scan.blocks()) {
                run(scan, chunk_states, d_output, d_final, [sequence, block], d_shared, results);
            }
        });
    }
    let mut selected = vec![0.0; batch * frames * width];
    selected.par_chunks_mut(width).enumerate().for_each(|(row, line)| {
        let (sequence, frame) = (row / frames, row % frames);
        for task in 0..tasks {
            let source = &d_shared[((sequence * tasks + task) * frames + frame) * 2 * state..][..2 * state];
            for (sum, value) in line[config.rank..].iter_mut().zip(source) {
                *sum += value;
            }
        }
    });
    let mut sums = sum_rows(&partial, size);
    let mut a_log = vec![0.0; inner * state];
    for n in 0..state {
        for channel in 0..inner {
            a_log[channel * state + n] = sums[(2 + n) * inner + channel];
        }
    }
    sums.truncate(2 * inner);
    let d_skip = sums.split_off(inner);
    ScanGradients { x, selected, dt_raw, dt_bias: sums, a_log, d_skip, initial }
}

#[derive(Clone, Copy)]
struct Results<'a> {
    d_projected: Shared<'a, f32>,
    d_x: Shared<'a, f32>,
    d_dt_raw: Shared<'a, f32>,
    partial: Shared<'a, f32>,
    initial: Option<Shared<'a, f32>>,
}

/// Gradients at a place, one row of lanes a frame.
struct Pulls {
    /// dy before the gate
    y: Vec<Lanes>,
    /// Of dt x
    stepped: Vec<Lanes>,
    /// Of dt through the decays, times ln 2
    decay: Vec<Lanes>,
}

/// Sums over time of a block.
struct Sums {
    dt_bias: Lanes,
    d_skip: Lanes,
    /// Of the decays' exponents times dt, one a state
    rates: Vec<Lanes>,
}

/// Backward scan of one block of one sequence; dB and dC are added to `d_shared` `[frames, 2 state]`.
fn run(
    scan: &Scan<'_>,
    chunk_states: &[Lanes],
    d_output: &[f32],
    d_final: Option<&[f32]>,
    [sequence, block]: [usize; 2],
    d_shared: &mut [f32],
    results: Results<'_>,
) {
    let (state, rows) = (scan.config.state, scan.rows_max());
    let buffer = |rows: usize| vec![[0.0; BLOCK]; rows];
    let mut tile = Tile::new(rows);
    let mut pulls = Pulls { y: buffer(rows), stepped: buffer(rows), decay: buffer(rows) };
    let mut history = History { decays: buffer(rows), states: buffer(rows + 1) };
    let mut sums = Sums { dt_bias: [0.0; BLOCK], d_skip: [0.0; BLOCK], rates: buffer(state) };
    let first = scan.place(sequence, block, 0);
    let mut d_states = scan.block_states(d_final, &first);
    for chunk in (0..scan.chunks()).rev() {
        let place = scan.place(sequence, block, chunk);
        for row in 0..place.rows {
            prefetch(&d_output[scan.at(&place, row)..][..place.width]);
        }
        load(scan, &place, &mut tile);
        undo_gate(scan, &place, d_output, &mut pulls);
        let before = &chunk_states[scan.kept_at(&place)..][..state];
        let d_shared = &mut d_shared[place.from * 2 * state..];
        retreat(scan, &place, before, &mut tile, &mut history, &mut pulls, &mut d_states, &mut sums.rates, d_shared);
        finish(scan, &place, d_output, &tile, &pulls, &mut sums, results);
    }
    if let Some(initial) = results.initial {
        let (at, length) = scan.states_at(&first);
        // SAFETY (both): each block of each sequence belongs to one task.
        write_states(&d_states, unsafe { initial.part(at, length) });
    }
    let write = |index: usize, values: &Lanes| {
        let at = (sequence * (2 + state) + index) * scan.config.inner + block * BLOCK;
        store(values, unsafe { results.partial.part(at, first.width) });
    };
    write(0, &sums.dt_bias);
    write(1, &sums.d_skip);
    for (n, (sum, rate)) in sums.rates.iter().zip(scan.block_rates(&first)).enumerate() {
        // d A_log = A d A, and the rate is A / ln 2.
        write(2 + n, &std::array::from_fn(|lane| sum[lane] * rate[lane] * LN_2));
    }
}

simd_fn! {
    /// `d_y = d_output silu(z)`; the other pulls start at zero.
    fn undo_gate(scan: &Scan<'_>, place: &Place, d_output: &[f32], pulls: &mut Pulls) = undo_gate_body
}

#[inline(always)]
fn undo_gate_body<I: Isa>(scan: &Scan<'_>, place: &Place, d_output: &[f32], pulls: &mut Pulls) {
    for row in 0..place.rows {
        let d_output = lanes(&d_output[scan.at(place, row)..][..place.width]);
        let z = lanes(scan.z(place, row));
        let d_y = &mut pulls.y[row];
        for lane in 0..BLOCK {
            d_y[lane] = d_output[lane] * silu::<I>(z[lane]).0;
        }
        pulls.stepped[row] = [0.0; BLOCK];
        pulls.decay[row] = [0.0; BLOCK];
    }
}

simd_fn! {
    /// Finds the states of the chunk again, from those `before` it, and goes back through them. `d_states` goes from
    /// the gradient of the state after the chunk to that before it; `d_shared` starts at the chunk's first frame.
    fn retreat(scan: &Scan<'_>, place: &Place, before: &[Lanes], tile: &mut Tile, history: &mut History, pulls: &mut Pulls, d_states: &mut [Lanes], d_rates: &mut [Lanes], d_shared: &mut [f32]) = retreat_body
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn retreat_body<I: Isa>(
    scan: &Scan<'_>,
    place: &Place,
    before: &[Lanes],
    tile: &mut Tile,
    history: &mut History,
    pulls: &mut Pulls,
    d_states: &mut [Lanes],
    d_rates: &mut [Lanes],
    d_shared: &mut [f32],
) {
    for n in 0..scan.config.state {
        let (mut memory, d_state, d_rate) = (before[n], &mut d_states[n], &mut d_rates[n]);
        match I::Vector::LANES {
            16 => {
                advance_one::<I::Vector, 2, true>(scan, place, n, tile, &mut memory, history);
                retreat_one::<I::Vector, 2>(scan, place, n, tile, history, pulls, d_state, d_rate, d_shared);
            }
            8 => {
                advance_one::<I::Vector, 4, true>(scan, place, n, tile, &mut memory, history);
                retreat_one::<I::Vector, 4>(scan, place, n, tile, history, pulls, d_state, d_rate, d_shared);
            }
            _ => {
                advance_one::<I::Vector, 8, true>(scan, place, n, tile, &mut memory, history);
                retreat_one::<I::Vector, 8>(scan, place, n, tile, history, pulls, d_state, d_rate, d_shared);
            }
        }
    }
}

/// Goes back through the states of one n, `VECTORS` registers a block.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn retreat_one<V: Vector, const VECTORS: usize>(
    scan: &Scan<'_>,
    place: &Place,
    n: usize,
    tile: &Tile,
    history: &History,
    pulls: &mut Pulls,
    d_states: &mut Lanes,
    d_rates: &mut Lanes,
    d_shared: &mut [f32],
) {
    assert_eq!(VECTORS * V::LANES, BLOCK, "selective scan: registers of a block");
    let (rows, state) = (place.rows, scan.config.state);
    let (dt, stepped) = (&tile.dt[..rows], &tile.stepped[..rows]);
    let (d_y, d_stepped, d_decay) = (&pulls.y[..rows], &mut pulls.stepped[..rows], &mut pulls.decay[..rows]);
    let (decays, states) = (&history.decays[..rows], &history.states[..rows + 1]);
    // SAFETY: registers of a block stay inside its lanes; the instruction set is the caller's.
    unsafe {
        let rate: [V; VECTORS] = registers(&scan.block_rates(place)[n]);
        let mut carry: [V; VECTORS] = registers(d_states);
        let mut d_rate: [V; VECTORS] = registers(d_rates);
        for row in (0..rows).rev() {
            let (b, c) = scan.b_and_c(place, row, n);
            let (b, c) = (V::splat(b), V::splat(c));
            let (mut to_b, mut to_c) = (V::splat(0.0), V::splat(0.0));
            for v in 0..VECTORS {
                let d_y = register::<V>(&d_y[row], v);
                let d_state = d_y.multiply_add(c, carry[v]);
                to_b = d_state.multiply_add(register(&stepped[row], v), to_b);
                to_c = d_y.multiply_add(register(&states[row + 1], v), to_c);
                set_register(d_state.multiply_add(b, register(&d_stepped[row], v)), &mut d_stepped[row], v);
                carry[v] = d_state.multiply(register(&decays[row], v));
                let exponent = carry[v].multiply(register(&states[row], v));
                set_register(exponent.multiply_add(rate[v], register(&d_decay[row], v)), &mut d_decay[row], v);
                d_rate[v] = exponent.multiply_add(register(&dt[row], v), d_rate[v]);
            }
            let line = &mut d_shared[row * 2 * state..][..2 * state];
            line[n] += to_b.sum();
            line[state + n] += to_c.sum();
        }
        for v in 0..VECTORS {
            set_register(carry[v], d_states, v);
            set_register(d_rate[v], d_rates, v);
        }
    }
}

simd_fn! {
    /// Gradients of x, the raw steps and z; sums over time.
    fn finish(scan: &Scan<'_>, place: &Place, d_output: &[f32], tile: &Tile, pulls: &Pulls, sums: &mut Sums, results: Results<'_>) = finish_body
}

#[inline(always)]
fn finish_body<I: Isa>(
    scan: &Scan<'_>,
    place: &Place,
    d_output: &[f32],
    tile: &Tile,
    pulls: &Pulls,
    sums: &mut Sums,
    results: Results<'_>,
) {
    let (bias, skip) = (scan.of(scan.weights.dt_bias, place), scan.of(scan.weights.d_skip, place));
    for row in 0..place.rows {
        let (at, z_at) = (scan.at(place, row), scan.z_at(place, row));
        let (x, raw, z) = (lanes(scan.x(place, row)), lanes(scan.raw(place, row)), lanes(scan.z(place, row)));
        let d_output = lanes(&d_output[at..][..place.width]);
        let (dt, y) = (&tile.dt[row], &tile.y[row]);
        let (d_y, d_stepped, d_decay) = (&pulls.y[row], &pulls.stepped[row], &pulls.decay[row]);
        let (mut d_x, mut d_raw, mut d_z) = ([0.0; BLOCK], [0.0; BLOCK], [0.0; BLOCK]);
        for lane in 0..BLOCK {
            d_x[lane] = fused::<I>(dt[lane], d_stepped[lane], skip[lane] * d_y[lane]);
            d_z[lane] = d_output[lane] * y[lane] * silu::<I>(z[lane]).1;
            sums.d_skip[lane] = fused::<I>(d_y[lane], x[lane], sums.d_skip[lane]);
        }
        if !scan.padded(place, row) {
            for lane in 0..BLOCK {
                // The slope of softplus; where softplus is the identity, it is 1 in f32 as well.
                let slope = sigmoid::<I>(raw[lane] + bias[lane]);
                d_raw[lane] = fused::<I>(d_stepped[lane], x[lane], d_decay[lane] * LN_2) * slope;
                sums.dt_bias[lane] += d_raw[lane];
            }
        }
        // SAFETY: each block of each sequence belongs to one task.
        unsafe {
            store(&d_x, results.d_x.part(at, place.width));
            store(&d_raw, results.d_dt_raw.part(at, place.width));
            store(&d_z, results.d_projected.part(z_at, place.width));
        }
    }
}
