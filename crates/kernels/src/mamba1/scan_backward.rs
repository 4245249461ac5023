//! Backward pass of the selective scan, chunk by chunk from the last, one n at a time: the chunk's states are found
//! again from the one before it, so that never more than a chunk of one n is held.
#![allow(unsafe_code)]

use super::Mamba1Config;
use super::tile::{
    BLOCK, Lanes, Scan, Tile, lanes, load, register, registers, set_register, silu, store, write_states,
};
use crate::simd::{Isa, Vector, exp2, fused, prefetch, sigmoid, simd_fn};
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
                let d_states = scan.block_states(d_final, sequence, block);
                run(scan, chunk_states, d_output, sequence, block, d_states, d_shared, results);
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

/// Gradients of a block over one chunk, and the states of one n in it.
struct Pulls {
    /// dy before the gate
    d_y: Vec<Lanes>,
    /// Of dt x
    stepped: Vec<Lanes>,
    /// Of dt through the decays, to base 2
    decay: Vec<Lanes>,
    /// Decays of one n
    decays: Vec<Lanes>,
    /// States of one n, before the chunk and after each of its frames
    states: Vec<Lanes>,
}

/// Sums over time of a block.
struct Sums {
    dt_bias: Lanes,
    d_skip: Lanes,
    /// Of the decays' exponents times dt, one a state
    rates: Vec<Lanes>,
}

/// Backward scan of one block of one sequence; dB and dC are added to `d_shared` `[frames, 2 state]`.
#[allow(clippy::too_many_arguments)]
fn run(
    scan: &Scan<'_>,
    chunk_states: &[Lanes],
    d_output: &[f32],
    sequence: usize,
    block: usize,
    mut d_states: Vec<Lanes>,
    d_shared: &mut [f32],
    results: Results<'_>,
) {
    let config = &scan.config;
    let (frames, state, width) = (scan.sequences.frames, config.state, scan.width(block));
    let rows_max = scan.rows_max();
    let buffer = |rows: usize| vec![[0.0; BLOCK]; rows];
    let mut tile = Tile::new(rows_max);
    let mut pulls = Pulls {
        d_y: buffer(rows_max),
        stepped: buffer(rows_max),
        decay: buffer(rows_max),
        decays: buffer(rows_max),
        states: buffer(rows_max + 1),
    };
    let mut sums = Sums { dt_bias: [0.0; BLOCK], d_skip: [0.0; BLOCK], rates: buffer(state) };
    for chunk in (0..scan.chunks()).rev() {
        let from = chunk * config.chunk;
        let rows = config.chunk.min(frames - from);
        for row in 0..rows {
            prefetch(&d_output[scan.at(sequence, from + row, block)..][..width]);
        }
        load(scan, sequence, block, from, rows, &mut tile);
        for row in 0..rows {
            let at = scan.at(sequence, from + row, block);
            let z = &scan.projected[scan.z_at(sequence, from + row, block)..][..width];
            undo_gate(z, &d_output[at..][..width], &mut pulls.d_y[row]);
        }
        pulls.stepped.fill([0.0; BLOCK]);
        pulls.decay.fill([0.0; BLOCK]);
        let at = ((sequence * scan.blocks() + block) * scan.chunks() + chunk) * state;
        retreat(
            config,
            rows,
            scan.block_rates(block),
            &scan.selected[(sequence * frames + from) * config.selected()..],
            &chunk_states[at..][..state],
            &mut tile,
            &mut pulls,
            &mut d_states,
            &mut sums.rates,
            &mut d_shared[from * 2 * state..],
        );
        // SAFETY (all three): each block of each sequence belongs to one task.
        for row in 0..rows {
            let at = scan.at(sequence, from + row, block);
            let z_at = scan.z_at(sequence, from + row, block);
            finish(
                scan,
                block,
                from + row < scan.sequences.padding_of(sequence),
                &scan.x[at..][..width],
                &scan.dt_raw[at..][..width],
                &scan.projected[z_at..][..width],
                &d_output[at..][..width],
                row,
                &tile,
                &pulls,
                &mut sums,
                unsafe { results.d_x.part(at, width) },
                unsafe { results.d_dt_raw.part(at, width) },
                unsafe { results.d_projected.part(z_at, width) },
            );
        }
    }
    if let Some(initial) = results.initial {
        let (at, length) = scan.states_at(sequence, block);
        // SAFETY: as above.
        write_states(&d_states, unsafe { initial.part(at, length) });
    }
    let write = |index: usize, values: &Lanes| {
        let at = (sequence * (2 + state) + index) * config.inner + block * BLOCK;
        // SAFETY: as above.
        unsafe { results.partial.part(at, width) }.copy_from_slice(&values[..width]);
    };
    write(0, &sums.dt_bias);
    write(1, &sums.d_skip);
    for (n, (sum, rate)) in sums.rates.iter().zip(scan.block_rates(block)).enumerate() {
        // d A_log = A d A, and the rate is A / ln 2.
        write(2 + n, &std::array::from_fn(|lane| sum[lane] * rate[lane] * LN_2));
    }
}

simd_fn! {
    /// `d_y = d_output silu(z)`
    fn undo_gate(z: &[f32], d_output: &[f32], d_y: &mut Lanes) = undo_gate_body
}

#[inline(always)]
fn undo_gate_body<I: Isa>(z: &[f32], d_output: &[f32], d_y: &mut Lanes) {
    let (z, d_output) = (lanes(z), lanes(d_output));
    for lane in 0..BLOCK {
        d_y[lane] = d_output[lane] * silu::<I>(z[lane]).0;
    }
}

simd_fn! {
    /// Finds the states of the chunk again and goes back through them. `selected` and `d_shared` start at the chunk's
    /// first frame, `before` is the state before it; `d_states` goes from the gradient of the state after the chunk to
    /// that before it.
    fn retreat(config: &Mamba1Config, rows: usize, rates: &[Lanes], selected: &[f32], before: &[Lanes], tile: &mut Tile, pulls: &mut Pulls, d_states: &mut [Lanes], d_rates: &mut [Lanes], d_shared: &mut [f32]) = retreat_body
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn retreat_body<I: Isa>(
    config: &Mamba1Config,
    rows: usize,
    rates: &[Lanes],
    selected: &[f32],
    before: &[Lanes],
    tile: &mut Tile,
    pulls: &mut Pulls,
    d_states: &mut [Lanes],
    d_rates: &mut [Lanes],
    d_shared: &mut [f32],
) {
    match I::Vector::LANES {
        16 => retreat_lanes::<I::Vector, 2>(
            config, rows, rates, selected, before, tile, pulls, d_states, d_rates, d_shared,
        ),
        8 => retreat_lanes::<I::Vector, 4>(
            config, rows, rates, selected, before, tile, pulls, d_states, d_rates, d_shared,
        ),
        _ => retreat_lanes::<I::Vector, 8>(
            config, rows, rates, selected, before, tile, pulls, d_states, d_rates, d_shared,
        ),
    }
}

/// `VECTORS` registers hold a block.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn retreat_lanes<V: Vector, const VECTORS: usize>(
    config: &Mamba1Config,
    rows: usize,
    rates: &[Lanes],
    selected: &[f32],
    before: &[Lanes],
    tile: &mut Tile,
    pulls: &mut Pulls,
    d_states: &mut [Lanes],
    d_rates: &mut [Lanes],
    d_shared: &mut [f32],
) {
    assert_eq!(VECTORS * V::LANES, BLOCK, "selective scan: registers of a block");
    let state = config.state;
    let (dt, stepped, y) = (&tile.dt[..rows], &tile.stepped[..rows], &mut tile.y[..rows]);
    let (d_y, d_stepped, d_decay) = (&pulls.d_y[..rows], &mut pulls.stepped[..rows], &mut pulls.decay[..rows]);
    let (decays, states) = (&mut pulls.decays[..rows], &mut pulls.states[..rows + 1]);
    for n in 0..state {
        // SAFETY: registers of a block stay inside its lanes; the instruction set is the caller's.
        unsafe {
            let of = |row: usize| {
                let line = &selected[row * config.selected() + config.rank..][..2 * state];
                (V::splat(line[n]), V::splat(line[state + n]))
            };
            let rate: [V; VECTORS] = registers(&rates[n]);
            let mut memory: [V; VECTORS] = registers(&before[n]);
            states[0] = before[n];
            for row in 0..rows {
                let (b, c) = of(row);
                for v in 0..VECTORS {
                    let decay = exp2(register::<V>(&dt[row], v).multiply(rate[v]));
                    set_register(decay, &mut decays[row], v);
                    memory[v] = decay.multiply_add(memory[v], register::<V>(&stepped[row], v).multiply(b));
                    set_register(memory[v], &mut states[row + 1], v);
                    set_register(memory[v].multiply_add(c, register(&y[row], v)), &mut y[row], v);
                }
            }
            let mut carry: [V; VECTORS] = registers(&d_states[n]);
            let mut d_rate: [V; VECTORS] = registers(&d_rates[n]);
            for row in (0..rows).rev() {
                let (b, c) = of(row);
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
                set_register(carry[v], &mut d_states[n], v);
                set_register(d_rate[v], &mut d_rates[n], v);
            }
        }
    }
}

simd_fn! {
    /// Gradients of x, the raw step and z at one frame (`row` of the chunk); sums over time. Slices start at the block.
    fn finish(scan: &Scan<'_>, block: usize, padded: bool, x: &[f32], raw: &[f32], z: &[f32], d_output: &[f32], row: usize, tile: &Tile, pulls: &Pulls, sums: &mut Sums, d_x: &mut [f32], d_raw: &mut [f32], d_z: &mut [f32]) = finish_body
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn finish_body<I: Isa>(
    scan: &Scan<'_>,
    block: usize,
    padded: bool,
    x: &[f32],
    raw: &[f32],
    z: &[f32],
    d_output: &[f32],
    row: usize,
    tile: &Tile,
    pulls: &Pulls,
    sums: &mut Sums,
    d_x: &mut [f32],
    d_raw: &mut [f32],
    d_z: &mut [f32],
) {
    let width = d_x.len();
    let bias = lanes(&scan.weights.dt_bias[block * BLOCK..][..width]);
    let skip = lanes(&scan.weights.d_skip[block * BLOCK..][..width]);
    let (x, raw, z, d_output) = (lanes(x), lanes(raw), lanes(z), lanes(d_output));
    let (dt, y) = (&tile.dt[row], &tile.y[row]);
    let (d_y, d_stepped, d_decay) = (&pulls.d_y[row], &pulls.stepped[row], &pulls.decay[row]);
    let (mut to_x, mut to_raw, mut to_z) = ([0.0; BLOCK], [0.0; BLOCK], [0.0; BLOCK]);
    for lane in 0..BLOCK {
        to_x[lane] = fused::<I>(dt[lane], d_stepped[lane], skip[lane] * d_y[lane]);
        to_z[lane] = d_output[lane] * y[lane] * silu::<I>(z[lane]).1;
        sums.d_skip[lane] = fused::<I>(d_y[lane], x[lane], sums.d_skip[lane]);
    }
    if !padded {
        for lane in 0..BLOCK {
            // The derivative of softplus; beyond 20 it is 1 in f32 as well.
            let slope = sigmoid::<I>(raw[lane] + bias[lane]);
            to_raw[lane] = fused::<I>(d_stepped[lane], x[lane], d_decay[lane] * LN_2) * slope;
            sums.dt_bias[lane] += to_raw[lane];
        }
    }
    store(&to_x, d_x);
    store(&to_raw, d_raw);
    store(&to_z, d_z);
}
