//! Matrix products in bf16 with sums in f32, on the tile unit (AMX) that recent x86 server processors have, or else by
//! the dot products of pairs of AVX512-BF16.
//!
//! Both sides are rounded to bf16 (nearest, ties to even) while they are packed into tiles of 16 rows by 32 steps of
//! k; they are multiplied exactly and added in f32 over ascending k, so that neither threads nor block sizes can
//! change a byte. Elsewhere the f32 product takes over: more exact, and slower. Tiles as in the Intel 64 and IA-32
//! Architectures Software Developer's Manual, volume 1, chapter 18; pairs as in its volume 2, `VDPBF16PS`.
#![allow(unsafe_code)]

use crate::linear::{self, Matrix, Start};

/// Arithmetic of the large matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MatrixPrecision {
    /// f32 throughout.
    #[default]
    F32,
    /// Factors rounded to bf16, sums in f32, where the processor has a unit for it; else f32.
    Bf16,
}

impl MatrixPrecision {
    /// `out = start + left right`, `out` row-major.
    ///
    /// # Panics
    /// If the sizes do not fit.
    pub fn multiply(self, left: Matrix<'_>, right: Matrix<'_>, out: &mut [f32], start: Start<'_>) {
        #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
        if let (Self::Bf16, Some(unit), true) = (self, tiles::unit(), tiles::worthwhile(left, right)) {
            return tiles::multiply(unit, left, right, out, start);
        }
        linear::multiply(left, right, out, start);
    }
}

/// Why [`MatrixPrecision::Bf16`] computes in f32 on this machine; `None` if it does not.
pub fn bf16_unavailable() -> Option<&'static str> {
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    {
        tiles::unit().is_none().then_some("this processor has no AVX-512 with bf16")
    }
    #[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
    Some("bf16 products are written for x86-64 Linux")
}

/// `value` rounded to bf16 and back: what is multiplied.
pub fn rounded_to_bf16(value: f32) -> f32 {
    if value.is_nan() {
        return value;
    }
    let bits = value.to_bits();
    f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod tiles {
    use super::{Matrix, Start};
    use crate::linear::with_buffer;
    use crate::simd::Avx512;
    use crate::simd::{InstructionSet, instruction_set};
    use crate::small_gemm::transpose_body;
    use rayon::prelude::*;
    use std::arch::asm;
    use std::arch::x86_64::*;
    use std::cell::Cell;

    /// Rows of a tile, and columns of a tile of sums.
    const SIDE: usize = 16;
    /// Steps of k in a tile: a row of them is 64 bytes.
    const DEPTH: usize = 32;
    /// Pairs of bf16 values in a tile.
    const TILE: usize = SIDE * DEPTH / 2;
    /// Rows (and columns) worked on together: two tiles.
    const PAIR: usize = 2 * SIDE;
    /// Rows of the left side packed at a time.
    const MOST_ROWS: usize = 128;
    /// Multiply-adds below which packing costs more than the product.
    const LEAST_SIZE: usize = 1 << 17;

    /// A tile: 16 lines of 16 sums, or of 16 pairs of bf16 values that are only moved about as if they were f32.
    #[derive(Clone, Copy)]
    #[repr(C, align(64))]
    struct Tile([f32; TILE]);

    const EMPTY: Tile = Tile([0.0; TILE]);

    /// How many rows and bytes a row each tile register has, as `ldtilecfg` reads it.
    #[repr(C, align(64))]
    struct Settings([u8; 64]);

    thread_local! {
        /// Packing buffers kept between calls.
        static RIGHT: Cell<Vec<Tile>> = const { Cell::new(Vec::new()) };
        static LEFT: Cell<Vec<Tile>> = const { Cell::new(Vec::new()) };
    }

    /// What multiplies bf16.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) enum Unit {
        /// The tile unit.
        Tiles,
        /// Dot products of pairs in vector registers.
        Pairs,
    }

    /// The fastest unit of the processor that the kernel grants and the limit on instruction sets allows.
    pub(super) fn unit() -> Option<Unit> {
        static UNIT: std::sync::OnceLock<Option<Unit>> = std::sync::OnceLock::new();
        *UNIT.get_or_init(|| {
            let pairs = instruction_set() == InstructionSet::Avx512 && is_x86_feature_detected!("avx512bf16");
            pairs.then(|| if tiles_granted() { Unit::Tiles } else { Unit::Pairs })
        })
    }

    fn tiles_granted() -> bool {
        const TILE_BF16: u32 = 1 << 22;
        const TILES: u32 = 1 << 24;
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        let features = __cpuid_count(7, 0).edx;
        // SAFETY: asks the kernel to save tile registers for this process; nothing else changes.
        let ask = || unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) };
        features & TILE_BF16 != 0 && features & TILES != 0 && ask() == 0
    }

    pub(super) fn worthwhile(left: Matrix<'_>, right: Matrix<'_>) -> bool {
        let (rows, depth, columns) = (left.rows(), left.columns(), right.columns());
        rows >= SIDE && depth >= SIDE && columns >= SIDE && rows * depth * columns >= LEAST_SIZE
    }

    /// As [`crate::linear::multiply`].
    pub(super) fn multiply(unit: Unit, left: Matrix<'_>, right: Matrix<'_>, out: &mut [f32], start: Start<'_>) {
        let (rows, depth, columns) = (left.rows(), left.columns(), right.columns());
        assert_eq!(depth, right.rows(), "product: inner sizes");
        assert_eq!(out.len(), rows * columns, "product: output");
        if let Start::Row(row) = start {
            assert_eq!(row.len(), columns, "product: starting row");
        }
        let steps = depth.div_ceil(DEPTH);
        let threads = rayon::current_num_threads();
        let blocks = threads * rows.div_ceil(threads * MOST_ROWS);
        let block_rows = rows.div_ceil(blocks).next_multiple_of(PAIR);
        with_buffer(&RIGHT, columns.div_ceil(PAIR) * 2 * steps, EMPTY, |packed| {
            packed.par_chunks_exact_mut(2 * steps).enumerate().for_each(|(panel, tiles)| {
                // SAFETY: `unit` found AVX-512 with bf16.
                unsafe { pack(right.turned(), panel * PAIR, true, tiles) };
            });
            let packed = &*packed;
            out.par_chunks_mut(block_rows * columns).enumerate().for_each(|(block, out)| {
                with_buffer(&LEFT, block_rows.div_ceil(PAIR) * 2 * steps, EMPTY, |strips| {
                    // SAFETY: `unit` found AVX-512 with bf16, and the tile unit where that is to be used.
                    unsafe {
                        multiply_block(unit, left, block * block_rows, packed, steps, columns, start, strips, out)
                    };
                });
            });
        });
    }

    /// Rows from `first` of the product into `out`; `strips` is scratch for the packed rows.
    ///
    /// # Safety
    /// The processor has AVX-512 with bf16; for [`Unit::Tiles`] also tiles, and the kernel has granted them.
    #[allow(clippy::too_many_arguments)]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn multiply_block(
        unit: Unit,
        left: Matrix<'_>,
        first: usize,
        packed: &[Tile],
        steps: usize,
        columns: usize,
        start: Start<'_>,
        strips: &mut [Tile],
        out: &mut [f32],
    ) {
        let height = out.len() / columns;
        for (strip, tiles) in strips.chunks_exact_mut(2 * steps).enumerate() {
            // SAFETY: as the caller promises.
            unsafe { pack(left, first + strip * PAIR, false, tiles) };
        }
        let mut sums = [EMPTY; 4];
        // SAFETY: as the caller promises; tiles are released before anything else can run on this thread.
        unsafe {
            if unit == Unit::Tiles {
                configure();
            }
            for (panel, right) in packed.chunks_exact(2 * steps).enumerate() {
                let column = panel * PAIR;
                for (strip, left) in strips.chunks_exact(2 * steps).enumerate() {
                    let row = strip * PAIR;
                    if row >= height {
                        break;
                    }
                    match unit {
                        Unit::Tiles => product(left, right, &mut sums),
                        Unit::Pairs => product_by_pairs(left, right, &mut sums),
                    }
                    store(&sums, row, column, height, columns, start, out);
                }
            }
            if unit == Unit::Tiles {
                asm!("tilerelease", options(nostack));
            }
        }
    }

    /// All eight tile registers: 16 rows of 64 bytes.
    ///
    /// # Safety
    /// The tile unit is there and granted.
    unsafe fn configure() {
        let mut settings = Settings([0; 64]);
        // Palette 1; then bytes a row, 16 bits each, and rows.
        settings.0[0] = 1;
        (16..32).step_by(2).for_each(|at| settings.0[at] = 64);
        settings.0[48..56].fill(SIDE as u8);
        // SAFETY: 64 readable bytes in the documented layout.
        unsafe { asm!("ldtilecfg [{0}]", in(reg) settings.0.as_ptr(), options(nostack, readonly)) };
    }

    /// Four tiles of sums (upper left, upper right, lower left, lower right) of two strips and two panels.
    ///
    /// # Safety
    /// The tile registers are configured; `left` and `right` hold two tiles a step, equally many.
    unsafe fn product(left: &[Tile], right: &[Tile], sums: &mut [Tile; 4]) {
        assert!(left.len() == right.len() && left.len() >= 2, "tile product: sizes");
        // SAFETY: every step reads two tiles a side, `left.len() / 2` steps; four tiles are written.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{left} + {line}*1]",
                "tileloadd tmm6, [{right} + {line}*1]",
                "tileloadd tmm7, [{right} + {line}*1 + 1024]",
                "tileloadd tmm5, [{left} + {line}*1 + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {left}, 2048",
                "add {right}, 2048",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{sums} + {line}*1], tmm0",
                "tilestored [{sums} + {line}*1 + 1024], tmm1",
                "tilestored [{sums} + {line}*1 + 2048], tmm2",
                "tilestored [{sums} + {line}*1 + 3072], tmm3",
                left = inout(reg) left.as_ptr() => _,
                right = inout(reg) right.as_ptr() => _,
                steps = inout(reg) left.len() / 2 => _,
                sums = in(reg) sums.as_mut_ptr(),
                line = in(reg) 64usize,
                options(nostack),
            );
        }
    }

    /// Rows whose sums stay in registers: with two vectors of columns half of the registers, enough to hide the latency.
    const ROWS: usize = 8;

    /// The same sums by dot products of pairs.
    ///
    /// # Safety
    /// The processor has AVX-512 with bf16.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn product_by_pairs(left: &[Tile], right: &[Tile], sums: &mut [Tile; 4]) {
        assert!(left.len() == right.len() && left.len() >= 2, "pair product: sizes");
        for first in (0..PAIR).step_by(ROWS) {
            let (half, line) = (first / SIDE, first % SIDE);
            let mut rows = [[_mm512_setzero_ps(); 2]; ROWS];
            for (left, right) in left.chunks_exact(2).zip(right.chunks_exact(2)) {
                let left = &left[half].0[line * SIDE..(line + ROWS) * SIDE];
                for pair in 0..SIDE {
                    // SAFETY: line `pair` of both tiles; a pair of bf16 values is only moved as if it were an f32.
                    let columns: [__m512bh; 2] = unsafe {
                        let vector = |tile: &Tile| _mm512_load_ps(tile.0.as_ptr().add(pair * SIDE));
                        std::mem::transmute::<[__m512; 2], [__m512bh; 2]>([vector(&right[0]), vector(&right[1])])
                    };
                    for (row, sums) in rows.iter_mut().enumerate() {
                        let value = _mm512_set1_epi32(left[row * SIDE + pair].to_bits() as i32);
                        // SAFETY: both are 64 bytes of bf16 pairs.
                        let value: __m512bh = unsafe { std::mem::transmute(value) };
                        for (sum, columns) in sums.iter_mut().zip(columns) {
                            *sum = _mm512_dpbf16_ps(*sum, value, columns);
                        }
                    }
                }
            }
            for (row, values) in rows.iter().enumerate() {
                for (side, values) in values.iter().enumerate() {
                    let target = &mut sums[2 * half + side].0[(line + row) * SIDE..][..SIDE];
                    // SAFETY: a line of a tile holds a vector.
                    unsafe { _mm512_storeu_ps(target.as_mut_ptr(), *values) };
                }
            }
        }
    }

    /// Adds four tiles of sums to what the output starts from.
    #[inline(always)]
    fn store(
        sums: &[Tile; 4],
        row: usize,
        column: usize,
        height: usize,
        columns: usize,
        start: Start<'_>,
        out: &mut [f32],
    ) {
        for (quarter, tile) in sums.iter().enumerate() {
            let (row, column) = (row + quarter / 2 * SIDE, column + quarter % 2 * SIDE);
            if row >= height || column >= columns {
                continue;
            }
            let width = SIDE.min(columns - column);
            for (line, values) in tile.0.chunks_exact(SIDE).take(height - row).enumerate() {
                let target = &mut out[(row + line) * columns + column..][..width];
                match start {
                    Start::Zero => target.copy_from_slice(&values[..width]),
                    Start::Output => target.iter_mut().zip(values).for_each(|(t, value)| *t += value),
                    Start::Row(row) => {
                        let row = &row[column..column + width];
                        target.iter_mut().zip(values).zip(row).for_each(|((t, value), r)| *t = value + r);
                    }
                }
            }
        }
    }

    /// Rows `first..first + 32` of a matrix as pairs of tiles, zero beyond its ends: row by row, or pair of steps by
    /// pair of steps (`by_step`), as the right side of a product wants it.
    ///
    /// # Safety
    /// The processor has AVX-512 with bf16.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn pack(matrix: Matrix<'_>, first: usize, by_step: bool, tiles: &mut [Tile]) {
        let (values, row_stride, step_stride) = matrix.strides();
        for (index, tile) in tiles.iter_mut().enumerate() {
            let (row, step) = (first + index % 2 * SIDE, index / 2 * DEPTH);
            let rows = SIDE.min(matrix.rows().saturating_sub(row));
            let steps = DEPTH.min(matrix.columns() - step);
            let at = row * row_stride + step * step_stride;
            if rows == 0 {
                *tile = EMPTY;
            } else if step_stride == 1 {
                // SAFETY: rows and steps lie within the matrix.
                unsafe { along(&values[at..], row_stride, rows, steps, tile) };
                if by_step {
                    turn(tile);
                }
            } else {
                // SAFETY: as above.
                unsafe { across(&values[at..], step_stride, rows, steps, tile) };
                if !by_step {
                    turn(tile);
                }
            }
        }
    }

    /// Line `i` of the tile: 32 steps of row `i`, whose values lie next to each other.
    ///
    /// # Safety
    /// The processor has AVX-512 with bf16; `values` holds `rows` rows of `steps` values, `stride` apart.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn along(values: &[f32], stride: usize, rows: usize, steps: usize, tile: &mut Tile) {
        assert!(values.len() >= (rows - 1) * stride + steps, "tile: rows");
        let low_mask = mask(steps);
        let high_mask = mask(steps.saturating_sub(SIDE));
        for (row, line) in tile.0.chunks_exact_mut(SIDE).enumerate() {
            if row >= rows {
                line.fill(0.0);
                continue;
            }
            // SAFETY: the masks leave out everything beyond `steps`; a line holds 64 bytes.
            unsafe {
                let source = values.as_ptr().add(row * stride);
                let low = _mm512_maskz_loadu_ps(low_mask, source);
                let high = _mm512_maskz_loadu_ps(high_mask, source.wrapping_add(SIDE));
                let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
                _mm512_store_si512(line.as_mut_ptr().cast(), both);
            }
        }
    }

    /// Line `p` of the tile: steps `2p` and `2p + 1` of 16 rows, whose values of one step lie next to each other.
    ///
    /// # Safety
    /// The processor has AVX-512 with bf16; `values` holds `steps` runs of `rows` values, `stride` apart.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn across(values: &[f32], stride: usize, rows: usize, steps: usize, tile: &mut Tile) {
        assert!(values.len() >= (steps - 1) * stride + rows, "tile: steps");
        let row_mask = mask(rows);
        // SAFETY: an array of 64 bytes.
        let order = unsafe { _mm512_loadu_si512(INTERLEAVED.as_ptr().cast()) };
        for (pair, line) in tile.0.chunks_exact_mut(SIDE).enumerate() {
            // SAFETY: steps beyond the last are not read, nor rows beyond the mask; a line holds 64 bytes.
            unsafe {
                let read = |step: usize| match step < steps {
                    true => _mm512_maskz_loadu_ps(row_mask, values.as_ptr().add(step * stride)),
                    false => _mm512_setzero_ps(),
                };
                let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(read(2 * pair + 1), read(2 * pair)));
                _mm512_store_si512(line.as_mut_ptr().cast(), _mm512_permutexvar_epi16(order, both));
            }
        }
    }

    /// 0, 16, 1, 17, ...: values of two halves in turn.
    const INTERLEAVED: [u16; 32] = {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 32 {
            order[i] = (i / 2 + i % 2 * 16) as u16;
            i += 1;
        }
        order
    };

    /// The first `count` of 16 lanes.
    fn mask(count: usize) -> __mmask16 {
        if count >= SIDE { u16::MAX } else { (1 << count) - 1 }
    }

    /// Exchanges lines and places of a tile.
    #[inline(always)]
    fn turn(tile: &mut Tile) {
        let before = *tile;
        transpose_body::<Avx512>(SIDE, SIDE, &before.0, SIDE, &mut tile.0, SIDE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize, rate: f32) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * rate).sin()).collect()
    }

    #[test]
    fn rounding_is_to_nearest_and_even() {
        assert_eq!(rounded_to_bf16(1.0), 1.0);
        assert_eq!(rounded_to_bf16(1.0 + 1.0 / 256.0), 1.0);
        assert_eq!(rounded_to_bf16(1.0 + 3.0 / 256.0), 1.0 + 4.0 / 256.0);
        assert_eq!(rounded_to_bf16(-1.0 - 1.0 / 200.0), -1.0 - 1.0 / 128.0);
        assert!(rounded_to_bf16(f32::NAN).is_nan() && rounded_to_bf16(f32::INFINITY).is_infinite());
    }

    type Product = Box<dyn FnMut(Matrix<'_>, Matrix<'_>, &mut [f32], Start<'_>)>;

    /// The product as it is called, and by every slower unit that the processor has.
    fn products() -> Vec<Product> {
        let mut all: Vec<Product> = vec![Box::new(|left, right, out, start| {
            MatrixPrecision::Bf16.multiply(left, right, out, start);
        })];
        #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
        if tiles::unit() == Some(tiles::Unit::Tiles) {
            all.push(Box::new(|left, right, out, start| {
                tiles::multiply(tiles::Unit::Pairs, left, right, out, start);
            }));
        }
        all
    }

    #[test]
    fn products_match_the_definition_in_every_layout() {
        for (m, n, k) in [(1, 1, 1), (64, 64, 64), (100, 70, 90), (150, 33, 301), (300, 40, 257), (31, 200, 65)] {
            let (a, b) = (values(m * k, 0.37), values(k * n, 0.73));
            let (row, before) = (values(n, 0.11), values(m * n, 0.29));
            let turned = |values: &[f32], rows: usize, columns: usize| -> Vec<f32> {
                (0..columns).flat_map(|c| (0..rows).map(move |r| values[r * columns + c])).collect()
            };
            let (a_turned, b_turned) = (turned(&a, m, k), turned(&b, k, n));
            let exact = |round: fn(f32) -> f32| -> Vec<f64> {
                let mut product = vec![0.0f64; m * n];
                for i in 0..m {
                    for p in 0..k {
                        let factor = f64::from(round(a[i * k + p]));
                        (0..n).for_each(|j| product[i * n + j] += factor * f64::from(round(b[p * n + j])));
                    }
                }
                product
            };
            // What took the f32 path was not rounded.
            let (rounded, plain) = (exact(rounded_to_bf16), exact(|value| value));
            for left in [Matrix::new(&a, m, k), Matrix::new(&a_turned, k, m).turned()] {
                for right in [Matrix::new(&b, k, n), Matrix::new(&b_turned, n, k).turned()] {
                    for (case, start) in [Start::Zero, Start::Output, Start::Row(&row)].into_iter().enumerate() {
                        for multiply in &mut products() {
                            let mut out = before.clone();
                            multiply(left, right, &mut out, start);
                            let apart = |product: &[f64]| {
                                let first = |i: usize| f64::from([0.0, before[i], row[i % n]][case]);
                                let far = |(i, value): (usize, &f32)| (f64::from(*value) - product[i] - first(i)).abs();
                                out.iter().enumerate().map(far).fold(0.0, f64::max)
                            };
                            let apart = apart(&rounded).min(apart(&plain));
                            assert!(apart < 2e-4, "{m} {n} {k}, start {case}: {apart}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_so() {
        let (mut a, b) = (values(64 * 64, 0.37), values(64 * 64, 0.73));
        a[5 * 64 + 7] = f32::NAN;
        let mut out = vec![0.0; 64 * 64];
        MatrixPrecision::Bf16.multiply(Matrix::new(&a, 64, 64), Matrix::new(&b, 64, 64), &mut out, Start::Zero);
        assert!(out[5 * 64..6 * 64].iter().all(|value| value.is_nan()) && out[..5 * 64].iter().all(|v| v.is_finite()));
    }

    #[test]
    fn thread_count_cannot_change_a_byte() {
        let (m, n, k) = (500, 90, 400);
        let (a, b) = (values(m * k, 0.37), values(k * n, 0.73));
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            let mut out = vec![0.0; m * n];
            pool.install(|| {
                let (left, right) = (Matrix::new(&a, m, k), Matrix::new(&b, k, n));
                MatrixPrecision::Bf16.multiply(left, right, &mut out, Start::Zero);
            });
            out
        };
        assert_eq!(run(1), run(3));
    }
}
