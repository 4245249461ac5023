//! Large matrix products on all threads, and the linear layer made of them.
//!
//! The right side is packed once into panels as wide as two registers, then blocks of rows are handed to the
//! threads, or where there are few rows, panels; each packs its rows in strips as high as the micro-kernel and keeps
//! sums in registers (the scheme of Goto and van de Geijn, ACM TOMS 34(3), 2008). Every result is summed over k in ascending order within blocks of
//! fixed size, so the number of threads cannot change a byte.
#![allow(unsafe_code)]

use crate::simd::{InstructionSet, Isa, Vector, instruction_set, prefetch, prefetch_at, simd_fn};
use crate::small_gemm::transpose_body;
use crate::threads::Shared;
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

/// A matrix in a slice: row-major, the transpose of a row-major one, or windows that may overlap.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    values: &'a [f32],
    row_stride: usize,
    column_stride: usize,
    rows: usize,
    columns: usize,
    /// Columns that lie side by side; all of them unless it is made of windows.
    run: usize,
    /// From one run of a row to the next.
    run_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Row-major `[rows, columns]`.
    ///
    /// # Panics
    /// If the length is not `rows * columns`.
    pub fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "matrix of {rows} x {columns}");
        Self { values, row_stride: columns, column_stride: 1, rows, columns, run: columns, run_stride: columns }
    }

    /// Rows `row_stride` apart, each of `runs` runs of `run` values that begin `run_stride` apart: what a convolution
    /// reads, without a copy of it.
    ///
    /// # Panics
    /// If the last row ends beyond the values.
    pub fn windows(values: &'a [f32], rows: usize, row_stride: usize, [runs, run, run_stride]: [usize; 3]) -> Self {
        let columns = runs * run;
        if rows > 0 && columns > 0 {
            let end = (rows - 1) * row_stride + (runs - 1) * run_stride + run;
            assert!(end <= values.len(), "windows end at {end}, of {} values", values.len());
        }
        // Runs that touch are one.
        let run = if run == run_stride { columns } else { run };
        Self { values, row_stride, column_stride: 1, rows, columns, run, run_stride }
    }

    /// The transpose, without moving anything.
    ///
    /// # Panics
    /// If it is made of windows in several runs.
    pub fn turned(self) -> Self {
        assert_eq!(self.run, self.columns, "the transpose of windows");
        Self {
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            rows: self.columns,
            columns: self.rows,
            run: self.rows,
            ..self
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The values, and how far apart they lie from row to row and from column to column; one of both is 1.
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    pub(crate) fn strides(&self) -> (&'a [f32], usize, usize) {
        assert_eq!(self.run, self.columns, "the strides of windows");
        (self.values, self.row_stride, self.column_stride)
    }
}

/// What the sums start from.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a> {
    /// Zero: the output is overwritten.
    Zero,
    /// The values already in the output.
    Output,
    /// A row repeated for every row of the output.
    Row(&'a [f32]),
}

/// Steps of k in a packed block: a strip of it stays in the first-level cache.
const DEPTH: usize = 256;
/// Rows of the left side packed at a time: a block of them stays in the second-level cache.
const MOST_ROWS: usize = 144;
/// Rows of a transposed left side asked for ahead of their use: they lie too far apart for the processor to guess.
const AHEAD: usize = 8;
/// Values of a line of cache.
const LINE: usize = 16;
/// Multiply-adds from which threads pay for themselves.
const PARALLEL_SIZE: usize = 1 << 19;
/// Values of the largest micro-tile: 12 rows of two 16-value registers.
const MOST_TILE: usize = 12 * 32;

/// Rows and columns of the micro-tile of the instruction set in use.
fn tile_size() -> (usize, usize) {
    match instruction_set() {
        InstructionSet::Avx512 => (12, 32),
        InstructionSet::Avx2 => (6, 16),
        InstructionSet::Portable => (4, 8),
    }
}

thread_local! {
    /// Packing buffers kept between calls; taken out while in use, so a nested call simply makes its own.
    static RIGHT: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    static LEFT: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// `length` values of a buffer that is kept between calls.
pub(crate) fn with_buffer<T: Clone, R>(
    key: &'static std::thread::LocalKey<Cell<Vec<T>>>,
    length: usize,
    empty: T,
    work: impl FnOnce(&mut [T]) -> R,
) -> R {
    let mut buffer = key.take();
    if buffer.len() < length {
        buffer = vec![empty; length];
    }
    let result = work(&mut buffer[..length]);
    key.set(buffer);
    result
}

/// A right side packed once for many products.
#[derive(Clone, Debug)]
pub struct Panels {
    depth: usize,
    columns: usize,
    packed: Vec<f32>,
}

impl Panels {
    /// Packs a matrix.
    pub fn new(right: Matrix<'_>) -> Self {
        let mut packed = vec![0.0; packed_size(right)];
        pack(right, rayon::current_num_threads(), &mut packed);
        Self { depth: right.rows, columns: right.columns, packed }
    }

    /// Number of rows of the matrix.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Number of columns of the matrix.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// As [`multiply`] with this right side.
    ///
    /// # Panics
    /// If the sizes do not fit.
    pub fn multiply(&self, left: Matrix<'_>, out: &mut [f32], start: Start<'_>) {
        check(left, self.depth, self.columns, out, start);
        multiply_packed(left, self.columns, threads_for(left, self.columns), &self.packed, out, start);
    }
}

/// `out = start + left right`, `out` row-major.
///
/// # Panics
/// If the sizes do not fit.
pub fn multiply(left: Matrix<'_>, right: Matrix<'_>, out: &mut [f32], start: Start<'_>) {
    check(left, right.rows, right.columns, out, start);
    let threads = threads_for(left, right.columns);
    with_buffer(&RIGHT, packed_size(right), 0.0, |packed| {
        pack(right, threads, packed);
        multiply_packed(left, right.columns, threads, packed, out, start);
    });
}

fn check(left: Matrix<'_>, depth: usize, columns: usize, out: &[f32], start: Start<'_>) {
    assert_eq!(left.columns, depth, "product: inner sizes");
    assert_eq!(out.len(), left.rows * columns, "product: output");
    if let Start::Row(row) = start {
        assert_eq!(row.len(), columns, "product: starting row");
    }
}

fn threads_for(left: Matrix<'_>, columns: usize) -> usize {
    if left.rows * left.columns * columns < PARALLEL_SIZE { 1 } else { rayon::current_num_threads() }
}

/// Values of a packed right side.
fn packed_size(right: Matrix<'_>) -> usize {
    right.rows * right.columns.next_multiple_of(tile_size().1)
}

fn pack(right: Matrix<'_>, threads: usize, packed: &mut [f32]) {
    assert_eq!(right.run, right.columns, "product: windows on the right");
    let (_, tile_columns) = tile_size();
    let pack = |(panel, target): (usize, &mut [f32])| {
        let first = panel * tile_columns;
        pack_panel(right, first, tile_columns.min(right.columns - first), target);
    };
    let panel_size = (right.rows * tile_columns).max(1);
    if threads == 1 {
        packed.chunks_exact_mut(panel_size).enumerate().for_each(pack);
    } else {
        packed.par_chunks_exact_mut(panel_size).enumerate().for_each(pack);
    }
}

/// The product by a packed right side.
fn multiply_packed(
    left: Matrix<'_>,
    columns: usize,
    threads: usize,
    packed: &[f32],
    out: &mut [f32],
    start: Start<'_>,
) {
    let (rows, depth) = (left.rows, left.columns);
    if out.is_empty() {
        return;
    }
    if depth == 0 {
        match start {
            Start::Zero => out.fill(0.0),
            Start::Output => {}
            Start::Row(row) => out.chunks_exact_mut(columns).for_each(|line| line.copy_from_slice(row)),
        }
        return;
    }
    let (tile_rows, tile_columns) = tile_size();
    let panels = columns.div_ceil(tile_columns);
    // Rows of one block are too few to share evenly, and every thread would read all of the right side for its few.
    let parts = if rows <= MOST_ROWS { threads.min(panels) } else { 1 };
    // Equal blocks, a multiple of the threads, none above the limit.
    let blocks = if parts > 1 { 1 } else { threads * rows.div_ceil(threads * MOST_ROWS) };
    let block_rows = rows.div_ceil(blocks).next_multiple_of(tile_rows);
    let out = Shared::new(out);
    let work = |task: usize| {
        let (first, part) = (task / parts * block_rows, task % parts);
        let share = part * panels / parts..(part + 1) * panels / parts;
        with_buffer(&LEFT, block_rows * DEPTH, 0.0, |strips| {
            let height = block_rows.min(rows - first);
            multiply_block(left, first, height, packed, share, columns, start, strips, out)
        });
    };
    let tasks = rows.div_ceil(block_rows) * parts;
    if threads == 1 {
        (0..tasks).for_each(work);
    } else {
        (0..tasks).into_par_iter().for_each(work);
    }
}

simd_fn! {
    /// Columns `first..first + width` of all rows as `[depth, tile columns]`, zero beyond `width`.
    fn pack_panel(right: Matrix<'_>, first: usize, width: usize, target: &mut [f32]) = pack_panel_body
}

#[inline(always)]
fn pack_panel_body<I: Isa>(right: Matrix<'_>, first: usize, width: usize, target: &mut [f32]) {
    match I::Vector::LANES {
        16 => pack_columns::<I, 32>(right, first, width, target),
        8 => pack_columns::<I, 16>(right, first, width, target),
        _ => pack_columns::<I, 8>(right, first, width, target),
    }
}

#[inline(always)]
fn pack_columns<I: Isa, const NR: usize>(right: Matrix<'_>, first: usize, width: usize, target: &mut [f32]) {
    let (lines, _) = target.as_chunks_mut::<NR>();
    if right.column_stride != 1 {
        transpose_body::<I>(
            width,
            right.rows,
            &right.values[first * right.column_stride..],
            right.column_stride,
            lines.as_flattened_mut(),
            NR,
        );
        lines.iter_mut().for_each(|line| line[width..].fill(0.0));
    } else if width == NR {
        for (row, line) in lines.iter_mut().enumerate() {
            line.copy_from_slice(&right.values[row * right.row_stride + first..][..NR]);
        }
    } else {
        for (row, line) in lines.iter_mut().enumerate() {
            line[..width].copy_from_slice(&right.values[row * right.row_stride + first..][..width]);
            line[width..].fill(0.0);
        }
    }
}

/// Rows `first..first + height` and steps `from..from + depth` as strips `[depth, MR]`, zero beyond `height`.
#[inline(always)]
fn pack_strips<I: Isa, const MR: usize>(
    left: Matrix<'_>,
    first: usize,
    height: usize,
    from: usize,
    depth: usize,
    target: &mut [f32],
) {
    let strips = height.div_ceil(MR);
    if left.row_stride == 1 && left.run == left.columns {
        // Along the rows of the source, so that each of its cache lines is read once.
        for step in 0..depth {
            if from + step + AHEAD < left.columns {
                prefetch(&left.values[(from + step + AHEAD) * left.column_stride + first..][..height]);
            }
            let source = &left.values[(from + step) * left.column_stride + first..][..height];
            let (lines, rest) = source.as_chunks::<MR>();
            for (strip, line) in lines.iter().enumerate() {
                target[(strip * depth + step) * MR..][..MR].copy_from_slice(line);
            }
            if !rest.is_empty() {
                let line = &mut target[((strips - 1) * depth + step) * MR..][..MR];
                line[..rest.len()].copy_from_slice(rest);
                line[rest.len()..].fill(0.0);
            }
        }
        return;
    }
    for (strip, target) in target.chunks_exact_mut(depth * MR).take(strips).enumerate() {
        let row = first + strip * MR;
        let rows = MR.min(first + height - row);
        let mut step = 0;
        while step < depth {
            let (run, offset) = ((from + step) / left.run, (from + step) % left.run);
            let count = (left.run - offset).min(depth - step);
            let source = &left.values[row * left.row_stride + run * left.run_stride + offset..];
            transpose_body::<I>(rows, count, source, left.row_stride, &mut target[step * MR..], MR);
            step += count;
        }
        if rows < MR {
            for line in target.chunks_exact_mut(MR) {
                line[rows..].fill(0.0);
            }
        }
    }
}

simd_fn! {
    /// Rows `first..first + height` of the product by some `panels` into `out`, where no other task writes them; `strips` is
    /// scratch for the packed rows.
    fn multiply_block(left: Matrix<'_>, first: usize, height: usize, packed: &[f32], panels: Range<usize>, columns: usize, start: Start<'_>, strips: &mut [f32], out: Shared<'_, f32>) = multiply_block_body
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn multiply_block_body<I: Isa>(
    left: Matrix<'_>,
    first: usize,
    height: usize,
    packed: &[f32],
    panels: Range<usize>,
    columns: usize,
    start: Start<'_>,
    strips: &mut [f32],
    out: Shared<'_, f32>,
) {
    match I::Vector::LANES {
        16 => blocked::<I, 12>(left, first, height, packed, panels, columns, start, strips, out),
        8 => blocked::<I, 6>(left, first, height, packed, panels, columns, start, strips, out),
        _ => blocked::<I, 4>(left, first, height, packed, panels, columns, start, strips, out),
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn blocked<I: Isa, const MR: usize>(
    left: Matrix<'_>,
    first: usize,
    height: usize,
    packed: &[f32],
    panels: Range<usize>,
    columns: usize,
    start: Start<'_>,
    strips: &mut [f32],
    out: Shared<'_, f32>,
) {
    let lanes = I::Vector::LANES;
    let panel_width = 2 * lanes;
    for from in (0..left.columns).step_by(DEPTH) {
        let depth = DEPTH.min(left.columns - from);
        pack_strips::<I, MR>(left, first, height, from, depth, strips);
        let start = if from == 0 { start } else { Start::Output };
        for panel in panels.clone() {
            let right = &packed[panel * left.columns * panel_width..][..left.columns * panel_width];
            let right = &right[from * panel_width..(from + depth) * panel_width];
            let column = panel * panel_width;
            let width = panel_width.min(columns - column);
            // The panel after this one comes from memory: each strip asks for its share of it.
            let next = right.as_ptr().wrapping_add(left.columns * panel_width);
            let lines = right.len().div_ceil(LINE).div_ceil(height.div_ceil(MR));
            for row in (0..height).step_by(MR) {
                for line in 0..lines {
                    prefetch_at(next.wrapping_add((row / MR * lines + line) * LINE));
                }
                let strip = &strips[row * depth..][..MR * depth];
                let rows = MR.min(height - row);
                let at = (first + row) * columns + column;
                if rows == MR && width == panel_width {
                    let first = match start {
                        Start::Zero => First::Zero,
                        Start::Output => First::Output,
                        Start::Row(row) => First::Row(&row[column..column + width]),
                    };
                    let to = out.address(at, (MR - 1) * columns + panel_width);
                    // SAFETY: a whole tile of `out` starts there; strip and panel hold `depth` steps.
                    unsafe { micro::<I::Vector, MR, 2>(depth, strip, right, panel_width, first, to, columns) };
                } else {
                    let mut tile = [0.0f32; MOST_TILE];
                    let to = tile.as_mut_ptr();
                    // SAFETY: `tile` holds MR rows of a panel's width.
                    unsafe {
                        if width <= lanes {
                            micro::<I::Vector, MR, 1>(depth, strip, right, panel_width, First::Zero, to, panel_width);
                        } else {
                            micro::<I::Vector, MR, 2>(depth, strip, right, panel_width, First::Zero, to, panel_width);
                        }
                    }
                    for line in 0..rows {
                        let sums = &tile[line * panel_width..][..width];
                        // SAFETY: no other task has these rows of this panel.
                        let target = unsafe { out.part(at + line * columns, width) };
                        match start {
                            Start::Zero => target.copy_from_slice(sums),
                            Start::Output => target.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum),
                            Start::Row(row) => {
                                let row = &row[column..column + width];
                                target.iter_mut().zip(sums).zip(row).for_each(|((out, sum), first)| *out = first + sum);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// What a tile's sums are added to.
#[derive(Clone, Copy)]
enum First<'a> {
    Zero,
    Output,
    Row(&'a [f32]),
}

/// `out = first + strip panel` for `MR` rows and `NV` registers of columns.
///
/// The output is touched only after the sums, so that nothing waits for it; it is asked for before them.
///
/// # Safety
/// `out` must hold `MR` rows `stride` apart; the strip `[depth, MR]`, the panel `[depth, panel_width]`, a first row `NV`
/// registers.
#[inline(always)]
unsafe fn micro<V: Vector, const MR: usize, const NV: usize>(
    depth: usize,
    strip: &[f32],
    panel: &[f32],
    panel_width: usize,
    first: First<'_>,
    out: *mut f32,
    stride: usize,
) {
    debug_assert!(strip.len() >= depth * MR && panel.len() >= depth * panel_width);
    let (mut left, mut right) = (strip.as_ptr(), panel.as_ptr());
    // SAFETY: bounds as the caller promises.
    unsafe {
        for row in 0..MR {
            prefetch(std::slice::from_raw_parts(out.add(row * stride), NV * V::LANES));
        }
        let mut sums = [[V::splat(0.0); NV]; MR];
        for _ in 0..depth {
            let mut values = [V::splat(0.0); NV];
            for (j, value) in values.iter_mut().enumerate() {
                *value = V::load(right.add(j * V::LANES));
            }
            for (i, row) in sums.iter_mut().enumerate() {
                let factor = V::splat(*left.add(i));
                for (j, sum) in row.iter_mut().enumerate() {
                    *sum = factor.multiply_add(values[j], *sum);
                }
            }
            left = left.add(MR);
            right = right.add(panel_width);
        }
        // One plain loop each: were a choice made within it, the compiler would keep the sums in memory as well, and write
        // them there in every step.
        match first {
            First::Zero => finish(&sums, out, stride, |_, _, sum| sum),
            First::Output => finish(&sums, out, stride, |target, _, sum| V::load(target).add(sum)),
            First::Row(row) => finish(&sums, out, stride, |_, column, sum| V::load(row.as_ptr().add(column)).add(sum)),
        }
    }
}

/// Writes what `last` makes of each register of sums; it is told where that goes and in which column of the tile.
///
/// # Safety
/// `out` must hold `MR` rows of `NV` registers, `stride` apart.
#[inline(always)]
unsafe fn finish<V: Vector, const MR: usize, const NV: usize>(
    sums: &[[V; NV]; MR],
    out: *mut f32,
    stride: usize,
    last: impl Fn(*const f32, usize, V) -> V,
) {
    for (i, row) in sums.iter().enumerate() {
        for (j, sum) in row.iter().enumerate() {
            // SAFETY: bounds as the caller promises.
            unsafe {
                let target = out.add(i * stride + j * V::LANES);
                last(target, j * V::LANES, *sum).store(target);
            }
        }
    }
}

/// `x weight + bias` for `x` `[rows, inputs]` and a weight of `inputs` rows (turn an `[outputs, inputs]` one).
///
/// # Panics
/// If the sizes do not fit.
pub fn forward(x: Matrix<'_>, weight: Matrix<'_>, bias: Option<&[f32]>) -> Vec<f32> {
    let mut out = vec![0.0f32; x.rows * weight.columns];
    multiply(x, weight, &mut out, bias.map_or(Start::Zero, Start::Row));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize, rate: f32) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * rate).sin()).collect()
    }

    #[test]
    fn products_match_the_definition_on_every_path() {
        for (m, n, k) in
            [(1, 1, 1), (13, 40, 9), (150, 70, 300), (300, 33, 257), (5, 200, 0), (64, 8, 520), (290, 64, 64)]
        {
            let (a, b) = (values(m * k, 0.37), values(k * n, 0.73));
            let row = values(n, 0.11);
            let before = values(m * n, 0.29);
            let mut a_turned = vec![0.0; m * k];
            (0..m).for_each(|i| (0..k).for_each(|p| a_turned[p * m + i] = a[i * k + p]));
            let mut b_turned = vec![0.0; k * n];
            (0..k).for_each(|p| (0..n).for_each(|j| b_turned[j * k + p] = b[p * n + j]));
            let mut product = vec![0.0f64; m * n];
            for i in 0..m {
                for p in 0..k {
                    for j in 0..n {
                        product[i * n + j] += f64::from(a[i * k + p]) * f64::from(b[p * n + j]);
                    }
                }
            }
            for left in [Matrix::new(&a, m, k), Matrix::new(&a_turned, k, m).turned()] {
                for right in [Matrix::new(&b, k, n), Matrix::new(&b_turned, n, k).turned()] {
                    for (case, start) in [Start::Zero, Start::Output, Start::Row(&row)].into_iter().enumerate() {
                        let mut out = before.clone();
                        multiply(left, right, &mut out, start);
                        let mut by_panels = before.clone();
                        Panels::new(right).multiply(left, &mut by_panels, start);
                        assert_eq!(out, by_panels);
                        for (i, value) in out.iter().enumerate() {
                            let first = [0.0, before[i], row[i % n]][case];
                            let expected = product[i] + f64::from(first);
                            assert!(
                                (f64::from(*value) - expected).abs() < 1e-4,
                                "{m} {n} {k}, start {case}, value {i}: {value} against {expected}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn thread_count_cannot_change_a_byte() {
        // Many rows, which are shared, and few, where columns are.
        for (m, n, k) in [(500, 90, 400), (20, 90, 400), (7, 300, 300), (144, 20, 300)] {
            let (a, b) = (values(m * k, 0.37), values(k * n, 0.73));
            let run = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
                pool.install(|| forward(Matrix::new(&a, m, k), Matrix::new(&b, k, n), None))
            };
            assert_eq!(run(1), run(3));
        }
    }
}
