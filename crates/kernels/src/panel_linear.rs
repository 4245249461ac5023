//! A linear layer for decoding, its weights as they were stored, f16 or f32, in panels of 32 outputs, each read front to
//! back once for two rows.
//!
//! With one or two rows a product is bound by reading the weights, so half the bytes is twice the speed. Values are
//! widened exactly and summed in f32 over ascending inputs, one order on every instruction set with fused
//! multiply-add. Each output is one thread's work, so the number of threads changes no byte.
#![allow(unsafe_code)]

use rayon::prelude::*;

use crate::memory::zeros;
use crate::simd::{InstructionSet, instruction_set};
use crate::threads::Shared;

/// Outputs of a panel.
const PANEL: usize = 32;

/// Weights from which handing panels to other threads costs less than it gains.
const PARALLEL_SIZE: usize = 1 << 20;

/// Panels handed over at a time: few enough that a thread that was late is helped out.
const MOST_PANELS: usize = 8;

/// Bytes between the weights in use and those asked for, about as much as arrives meanwhile.
const AHEAD: usize = 2048;

/// `[outputs, inputs]` weights.
#[derive(Debug, Clone)]
pub struct PanelLinear {
    inputs: usize,
    outputs: usize,
    panels: Panels,
}

/// `[panels, inputs, 32]`; outputs beyond the last are zero.
#[derive(Debug, Clone)]
enum Panels {
    Half(Vec<u16>),
    Single(Vec<f32>),
}

impl PanelLinear {
    /// From row-major `[outputs, inputs]` f16 bit patterns.
    ///
    /// # Panics
    /// If the weights are not whole rows.
    pub fn from_f16_bits(weights: &[u16], inputs: usize) -> Self {
        let (outputs, panels) = arrange(weights, inputs);
        Self { inputs, outputs, panels: Panels::Half(panels) }
    }

    /// From row-major `[outputs, inputs]` f32 values.
    ///
    /// # Panics
    /// If the weights are not whole rows.
    pub fn from_f32(weights: &[f32], inputs: usize) -> Self {
        let (outputs, panels) = arrange(weights, inputs);
        Self { inputs, outputs, panels: Panels::Single(panels) }
    }

    /// Width of the output.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// `out[rows, outputs] += x[rows, inputs] W^T`.
    ///
    /// # Panics
    /// If the lengths do not fit.
    pub fn add(&self, x: &[f32], out: &mut [f32]) {
        assert!(x.len().is_multiple_of(self.inputs), "panel linear: {} inputs in rows of {}", x.len(), self.inputs);
        let rows = x.len() / self.inputs;
        assert_eq!(out.len(), rows * self.outputs, "panel linear: output");
        match &self.panels {
            Panels::Half(panels) => self.add_panels(panels, x, rows, out),
            Panels::Single(panels) => self.add_panels(panels, x, rows, out),
        }
    }

    fn add_panels<W: Stored>(&self, panels: &[W], x: &[f32], rows: usize, out: &mut [f32]) {
        let size = PANEL * self.inputs;
        let shared = Shared::new(out);
        let work = |(index, panel): (usize, &[W])| {
            let first = index * PANEL;
            let width = PANEL.min(self.outputs - first);
            let mut row = 0;
            while row < rows {
                let count = (rows - row).min(2);
                let start = &x[row * self.inputs..][..count * self.inputs];
                let mut sums = [[0.0f32; PANEL]; 2];
                if count == 2 {
                    sums = W::products::<2>(panel, start, self.inputs);
                } else {
                    [sums[0]] = W::products::<1>(panel, start, self.inputs);
                }
                for (offset, sums) in sums.iter().take(count).enumerate() {
                    // SAFETY: each panel is one task.
                    let target = unsafe { shared.part((row + offset) * self.outputs + first, width) };
                    target.iter_mut().zip(sums).for_each(|(target, sum)| *target += sum);
                }
                row += count;
            }
        };
        if panels.len() >= PARALLEL_SIZE {
            panels.par_chunks_exact(size).enumerate().with_max_len(MOST_PANELS).for_each(work);
        } else {
            panels.chunks_exact(size).enumerate().for_each(work);
        }
    }
}

/// The number of outputs and the panels.
fn arrange<W: Stored>(weights: &[W], inputs: usize) -> (usize, Vec<W>) {
    assert!(
        inputs > 0 && weights.len().is_multiple_of(inputs),
        "panel linear: {} weights in rows of {inputs}",
        weights.len()
    );
    let outputs = weights.len() / inputs;
    let mut panels = zeros(outputs.div_ceil(PANEL) * PANEL * inputs);
    for (panel, rows) in panels.chunks_exact_mut(PANEL * inputs).zip(weights.chunks(PANEL * inputs)) {
        for (place, row) in rows.chunks_exact(inputs).enumerate() {
            for (line, &weight) in panel.chunks_exact_mut(PANEL).zip(row) {
                line[place] = weight;
            }
        }
    }
    (outputs, panels)
}

/// A format that weights are stored in.
trait Stored: Copy + Default + Send + Sync {
    /// The stored value, exactly.
    fn widen(self) -> f32;

    /// Products of `R` rows with one panel.
    fn products<const R: usize>(panel: &[Self], x: &[f32], inputs: usize) -> [[f32; PANEL]; R];
}

macro_rules! stored {
    ($type:ty, $instruction_set:ident, $avx512:ident, $avx2:ident, $value:ident => $widen:expr) => {
        impl Stored for $type {
            #[inline(always)]
            fn widen(self) -> f32 {
                let $value = self;
                $widen
            }

            fn products<const R: usize>(panel: &[Self], x: &[f32], inputs: usize) -> [[f32; PANEL]; R] {
                assert!(panel.len() == PANEL * inputs && x.len() == R * inputs, "panel linear: panel");
                match $instruction_set() {
                    // SAFETY: the instruction set was detected; the lengths were checked above.
                    #[cfg(target_arch = "x86_64")]
                    InstructionSet::Avx512 => unsafe { x86::$avx512::<R>(panel, x, inputs) },
                    // SAFETY: as above.
                    #[cfg(target_arch = "x86_64")]
                    InstructionSet::Avx2 => unsafe { x86::$avx2::<R>(panel, x, inputs) },
                    _ => portable::<Self, R>(panel, x, inputs),
                }
            }
        }
    };
}

stored!(u16, instruction_set_with_f16, avx512_half, avx2_half, half => widen_half(half));
stored!(f32, instruction_set, avx512_single, avx2_single, single => single);

/// Every processor with AVX2 so far converts f16; should one not, it takes the portable path.
fn instruction_set_with_f16() -> InstructionSet {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("f16c") {
        return instruction_set();
    }
    InstructionSet::Portable
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{AHEAD, PANEL};
    use crate::simd::prefetch_at;
    use std::arch::x86_64::*;

    macro_rules! products {
        ($name:ident, $features:literal, $weight:ty, $vectors:literal, $lanes:literal, $zero:ident, $splat:ident, $fma:ident, $store:ident, $from:ident => $load:expr) => {
            /// # Safety
            /// The processor has the instructions; `panel` holds 32 and `x` `R` values an input.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name<const R: usize>(
                panel: &[$weight],
                x: &[f32],
                inputs: usize,
            ) -> [[f32; PANEL]; R] {
                const LINES: usize = PANEL * size_of::<$weight>() / 64;
                // Even and odd inputs apart: twice as many independent sums hide the latency of the multiply-adds.
                let mut sums = [[[$zero(); $vectors]; R]; 2];
                let mut input = 0;
                while input < inputs {
                    for (parity, sums) in sums.iter_mut().enumerate().take(inputs - input) {
                        let at = input + parity;
                        for line in 0..LINES {
                            prefetch_at(panel.as_ptr().cast::<u8>().wrapping_add((at * LINES + line) * 64 + AHEAD));
                        }
                        for vector in 0..$vectors {
                            // SAFETY: `at` is below `inputs`, so both reads lie within the slices.
                            let weights = unsafe {
                                let $from = panel.as_ptr().add(at * PANEL + vector * $lanes);
                                $load
                            };
                            for (row, sums) in sums.iter_mut().enumerate() {
                                // SAFETY: as above.
                                let value = $splat(unsafe { *x.get_unchecked(row * inputs + at) });
                                sums[vector] = $fma(weights, value, sums[vector]);
                            }
                        }
                    }
                    input += 2;
                }
                let mut out = [[0.0f32; PANEL]; R];
                for (row, out) in out.iter_mut().enumerate() {
                    for vector in 0..$vectors {
                        let mut odd = [0.0f32; $lanes];
                        // SAFETY: both targets hold a whole vector.
                        unsafe {
                            $store(out.as_mut_ptr().add(vector * $lanes), sums[0][row][vector]);
                            $store(odd.as_mut_ptr(), sums[1][row][vector]);
                        }
                        let out = &mut out[vector * $lanes..][..$lanes];
                        out.iter_mut().zip(odd).for_each(|(out, odd)| *out += odd);
                    }
                }
                out
            }
        };
    }

    macro_rules! avx512 {
        ($name:ident, $weight:ty, $from:ident => $load:expr) => {
            products!(
                $name,
                "avx512f",
                $weight,
                2,
                16,
                _mm512_setzero_ps,
                _mm512_set1_ps,
                _mm512_fmadd_ps,
                _mm512_storeu_ps,
                $from => $load
            );
        };
    }

    macro_rules! avx2 {
        ($name:ident, $features:literal, $weight:ty, $from:ident => $load:expr) => {
            products!(
                $name,
                $features,
                $weight,
                4,
                8,
                _mm256_setzero_ps,
                _mm256_set1_ps,
                _mm256_fmadd_ps,
                _mm256_storeu_ps,
                $from => $load
            );
        };
    }

    avx512!(avx512_half, u16, from => _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())));
    avx512!(avx512_single, f32, from => _mm512_loadu_ps(from));
    avx2!(avx2_half, "avx2,fma,f16c", u16, from => _mm256_cvtph_ps(_mm_loadu_si128(from.cast())));
    avx2!(avx2_single, "avx2,fma", f32, from => _mm256_loadu_ps(from));
}

/// The same without special instructions, in the same order.
fn portable<W: Stored, const R: usize>(panel: &[W], x: &[f32], inputs: usize) -> [[f32; PANEL]; R] {
    let mut sums = [[[0.0f32; PANEL]; R]; 2];
    for (input, weights) in panel.chunks_exact(PANEL).enumerate() {
        let mut wide = [0.0f32; PANEL];
        wide.iter_mut().zip(weights).for_each(|(wide, &weight)| *wide = weight.widen());
        for (row, sums) in sums[input % 2].iter_mut().enumerate() {
            let value = x[row * inputs + input];
            sums.iter_mut().zip(wide).for_each(|(sum, weight)| *sum += weight * value);
        }
    }
    let mut out = sums[0];
    for (out, odd) in out.iter_mut().zip(&sums[1]) {
        out.iter_mut().zip(odd).for_each(|(out, odd)| *out += odd);
    }
    out
}

/// A finite f16 as f32, without branches so that it vectorises: exponents are shifted by 112, and a subnormal (whose
/// exponent field is zero) is read as a normal number and rid of the leading one it never had.
#[inline(always)]
fn widen_half(half: u16) -> f32 {
    let magnitude = u32::from(half & 0x7fff) << 13;
    let normal = f32::from_bits(magnitude + (112 << 23));
    let subnormal = f32::from_bits(magnitude + (113 << 23)) - f32::from_bits(113 << 23);
    let value = if magnitude < 1 << 23 { subnormal } else { normal };
    f32::from_bits(value.to_bits() | u32::from(half & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// f16 from the definition: sign, 5 bits of exponent, 10 bits of fraction.
    fn value(half: u16) -> f64 {
        let sign = if half >> 15 == 1 { -1.0 } else { 1.0 };
        let (exponent, fraction) = (i32::from(half >> 10 & 31), f64::from(half & 1023) / 1024.0);
        sign * if exponent == 0 { fraction * 2f64.powi(-14) } else { (1.0 + fraction) * 2f64.powi(exponent - 15) }
    }

    /// 16 bits a call.
    fn draw(state: &mut u32) -> u32 {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *state >> 16
    }

    fn signed(state: &mut u32, count: usize) -> Vec<f32> {
        (0..count).map(|_| draw(state) as f32 / 32768.0 - 1.0).collect()
    }

    #[test]
    fn every_finite_half_widens_exactly() {
        for half in (0..=u16::MAX).filter(|half| half >> 10 & 31 != 31) {
            assert_eq!(f64::from(widen_half(half)), value(half), "{half:#06x}");
        }
    }

    /// Both paths of one layer against sums in f64.
    fn check<W: Stored>(layer: &PanelLinear, panels: &[W], weights: &[f64], x: &[f32]) {
        let (inputs, outputs) = (layer.inputs, layer.outputs());
        let rows = x.len() / inputs;
        let mut out = vec![0.5f32; rows * outputs];
        layer.add(x, &mut out);
        for row in 0..rows {
            let x = &x[row * inputs..][..inputs];
            let mut portable_sums = Vec::new();
            for panel in panels.chunks_exact(PANEL * inputs) {
                portable_sums.extend(portable::<W, 1>(panel, x, inputs)[0]);
            }
            for output in 0..outputs {
                let weights = &weights[output * inputs..][..inputs];
                let expected: f64 = weights.iter().zip(x).map(|(w, &x)| w * f64::from(x)).sum();
                let tolerance = 1e-6 * inputs as f64;
                let at = format!("{rows} {inputs} {outputs}, row {row}, output {output}");
                assert!((f64::from(out[row * outputs + output]) - 0.5 - expected).abs() < tolerance, "{at}");
                assert!((f64::from(portable_sums[output]) - expected).abs() < tolerance, "{at}, portable");
            }
        }
    }

    #[test]
    fn all_paths_equal_the_definition() {
        let state = &mut 1;
        for (rows, inputs, outputs) in [(1, 1, 1), (1, 7, 33), (2, 288, 64), (3, 31, 70), (5, 64, 32)] {
            let x = signed(state, rows * inputs);
            // Magnitudes up to 1, subnormals among them.
            let halves: Vec<u16> = (0..inputs * outputs)
                .map(|_| (draw(state) as u16 & 0x83ff) | (draw(state) as u16 % 15) << 10)
                .collect();
            let layer = PanelLinear::from_f16_bits(&halves, inputs);
            assert_eq!(layer.outputs(), outputs);
            let Panels::Half(panels) = &layer.panels else { panic!("stored as f16") };
            check(&layer, panels, &halves.iter().map(|&half| value(half)).collect::<Vec<_>>(), &x);

            let singles = signed(state, inputs * outputs);
            let layer = PanelLinear::from_f32(&singles, inputs);
            assert_eq!(layer.outputs(), outputs);
            let Panels::Single(panels) = &layer.panels else { panic!("stored as f32") };
            check(&layer, panels, &singles.iter().map(|&single| f64::from(single)).collect::<Vec<_>>(), &x);
        }
    }

    /// Exact in both formats, the weights give the same bytes from both; a row alone the same as beside others.
    #[test]
    fn neither_format_nor_company_nor_thread_count_changes_a_byte() {
        let state = &mut 2;
        let (rows, inputs, outputs) = (3, 512, PARALLEL_SIZE / 512 + 5);
        let halves: Vec<u16> = (0..inputs * outputs).map(|_| draw(state) as u16 & 0xbbff).collect();
        let singles: Vec<f32> = halves.iter().map(|&half| widen_half(half)).collect();
        let x = signed(state, rows * inputs);
        let layers = [PanelLinear::from_f16_bits(&halves, inputs), PanelLinear::from_f32(&singles, inputs)];
        let run = |layer: &PanelLinear, threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            let mut out = vec![0.0; rows * outputs];
            pool.install(|| layer.add(&x, &mut out));
            out
        };
        let expected = run(&layers[0], 1);
        assert_eq!(expected, run(&layers[0], 3));
        let mut alone = vec![0.0; outputs];
        layers[0].add(&x[inputs..2 * inputs], &mut alone);
        assert_eq!(alone, expected[outputs..2 * outputs]);
        let expected = run(&layers[1], 1);
        assert_eq!(expected, run(&layers[1], 3));
        if instruction_set_with_f16() == instruction_set() {
            assert_eq!(expected, run(&layers[0], 1));
        }
    }
}
