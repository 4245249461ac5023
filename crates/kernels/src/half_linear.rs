//! A linear layer for decoding: f16 weights in panels of 32 outputs, each read front to back once for all rows.
//!
//! With one or two rows a product is bound by reading the weights, so half the bytes is twice the speed. Values are
//! widened exactly and summed in f32 over ascending inputs, one order on every instruction set with fused
//! multiply-add.
#![allow(unsafe_code)]

use crate::simd::{InstructionSet, instruction_set};

/// Outputs of a panel.
const PANEL: usize = 32;

/// `[outputs, inputs]` weights as f16.
#[derive(Debug, Clone)]
pub struct HalfLinear {
    inputs: usize,
    outputs: usize,
    /// `[panels, inputs, 32]`; outputs beyond the last are zero.
    panels: Vec<u16>,
}

impl HalfLinear {
    /// From row-major `[outputs, inputs]` f16 bit patterns.
    ///
    /// # Panics
    /// If the weights are not whole rows.
    pub fn new(weights: &[u16], inputs: usize) -> Self {
        assert!(
            inputs > 0 && weights.len().is_multiple_of(inputs),
            "half linear: {} weights in rows of {inputs}",
            weights.len()
        );
        let outputs = weights.len() / inputs;
        let mut panels = vec![0u16; outputs.div_ceil(PANEL) * PANEL * inputs];
        for (output, row) in weights.chunks_exact(inputs).enumerate() {
            let panel = &mut panels[output / PANEL * PANEL * inputs..][..PANEL * inputs];
            for (input, &weight) in row.iter().enumerate() {
                panel[input * PANEL + output % PANEL] = weight;
            }
        }
        Self { inputs, outputs, panels }
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
        assert!(x.len().is_multiple_of(self.inputs), "half linear: {} inputs in rows of {}", x.len(), self.inputs);
        let rows = x.len() / self.inputs;
        assert_eq!(out.len(), rows * self.outputs, "half linear: output");
        let instructions = instruction_set_with_f16();
        for (index, panel) in self.panels.chunks_exact(PANEL * self.inputs).enumerate() {
            let first = index * PANEL;
            let width = PANEL.min(self.outputs - first);
            let mut row = 0;
            while row < rows {
                let count = (rows - row).min(2);
                let start = &x[row * self.inputs..][..count * self.inputs];
                let mut sums = [[0.0f32; PANEL]; 2];
                if count == 2 {
                    sums = products::<2>(instructions, panel, start, self.inputs);
                } else {
                    [sums[0]] = products::<1>(instructions, panel, start, self.inputs);
                }
                for (offset, sums) in sums.iter().take(count).enumerate() {
                    let target = &mut out[(row + offset) * self.outputs + first..][..width];
                    target.iter_mut().zip(sums).for_each(|(target, sum)| *target += sum);
                }
                row += count;
            }
        }
    }
}

/// Every processor with AVX2 so far converts f16; should one not, it takes the portable path.
fn instruction_set_with_f16() -> InstructionSet {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("f16c") {
        return instruction_set();
    }
    let _ = instruction_set;
    InstructionSet::Portable
}

/// Products of `R` rows with one panel.
fn products<const R: usize>(
    instructions: InstructionSet,
    panel: &[u16],
    x: &[f32],
    inputs: usize,
) -> [[f32; PANEL]; R] {
    assert!(panel.len() == PANEL * inputs && x.len() == R * inputs, "half linear: panel");
    match instructions {
        // SAFETY: the instruction set was detected; the lengths were checked above.
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512 => unsafe { x86::avx512::<R>(panel, x, inputs) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2 => unsafe { x86::avx2::<R>(panel, x, inputs) },
        _ => portable::<R>(panel, x, inputs),
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::PANEL;
    use std::arch::x86_64::*;

    macro_rules! products {
        ($name:ident, $features:literal, $vectors:literal, $lanes:literal, $zero:ident, $load:ident, $half:ty, $widen:ident, $splat:ident, $fma:ident, $store:ident) => {
            /// # Safety
            /// The processor has the instructions; `panel` holds 32 and `x` `R` values an input.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name<const R: usize>(panel: &[u16], x: &[f32], inputs: usize) -> [[f32; PANEL]; R] {
                // Even and odd inputs apart: twice as many independent sums hide the latency of the multiply-adds.
                let mut sums = [[[$zero(); $vectors]; R]; 2];
                let mut input = 0;
                while input < inputs {
                    for (parity, sums) in sums.iter_mut().enumerate().take(inputs - input) {
                        let at = input + parity;
                        for vector in 0..$vectors {
                            // SAFETY: `at` is below `inputs`, so both reads lie within the slices.
                            let weights = unsafe {
                                $widen($load(panel.as_ptr().add(at * PANEL + vector * $lanes).cast::<$half>()))
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

    products!(
        avx512,
        "avx512f",
        2,
        16,
        _mm512_setzero_ps,
        _mm256_loadu_si256,
        __m256i,
        _mm512_cvtph_ps,
        _mm512_set1_ps,
        _mm512_fmadd_ps,
        _mm512_storeu_ps
    );
    products!(
        avx2,
        "avx2,fma,f16c",
        4,
        8,
        _mm256_setzero_ps,
        _mm_loadu_si128,
        __m128i,
        _mm256_cvtph_ps,
        _mm256_set1_ps,
        _mm256_fmadd_ps,
        _mm256_storeu_ps
    );
}

/// The same without special instructions, in the same order.
fn portable<const R: usize>(panel: &[u16], x: &[f32], inputs: usize) -> [[f32; PANEL]; R] {
    let mut sums = [[[0.0f32; PANEL]; R]; 2];
    for (input, weights) in panel.chunks_exact(PANEL).enumerate() {
        let mut wide = [0.0f32; PANEL];
        wide.iter_mut().zip(weights).for_each(|(wide, &half)| *wide = widen(half));
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
fn widen(half: u16) -> f32 {
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

    #[test]
    fn every_finite_half_widens_exactly() {
        for half in (0..=u16::MAX).filter(|half| half >> 10 & 31 != 31) {
            assert_eq!(f64::from(widen(half)), value(half), "{half:#06x}");
        }
    }

    #[test]
    fn all_paths_equal_the_definition() {
        let mut state = 1u32;
        let mut draw = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 16
        };
        for (rows, inputs, outputs) in [(1, 1, 1), (1, 7, 33), (2, 288, 64), (3, 31, 70), (5, 64, 32)] {
            // Magnitudes up to 1, subnormals among them.
            let weights: Vec<u16> =
                (0..inputs * outputs).map(|_| (draw() as u16 & 0x83ff) | (draw() as u16 % 15) << 10).collect();
            let x: Vec<f32> = (0..rows * inputs).map(|_| draw() as f32 / 32768.0 - 1.0).collect();
            let layer = HalfLinear::new(&weights, inputs);
            assert_eq!(layer.outputs(), outputs);
            let mut out = vec![0.5f32; rows * outputs];
            layer.add(&x, &mut out);
            for row in 0..rows {
                let mut portable_sums = Vec::new();
                for panel in layer.panels.chunks_exact(PANEL * inputs) {
                    portable_sums.extend(portable::<1>(panel, &x[row * inputs..][..inputs], inputs)[0]);
                }
                for output in 0..outputs {
                    let expected: f64 =
                        (0..inputs).map(|i| value(weights[output * inputs + i]) * f64::from(x[row * inputs + i])).sum();
                    let tolerance = 1e-6 * inputs as f64;
                    assert!((f64::from(out[row * outputs + output]) - 0.5 - expected).abs() < tolerance);
                    assert!((f64::from(portable_sums[output]) - expected).abs() < tolerance);
                }
            }
        }
    }
}
