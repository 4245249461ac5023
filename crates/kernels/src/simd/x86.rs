//! AVX2 and AVX-512: their vector registers, and what they let a kernel assume.

use super::{Isa, Vector};
use std::arch::x86_64::*;

/// The registers of an instruction set, by the names that its operations have after their common prefix.
macro_rules! register {
    ($name:ident, $type:ty, $lanes:literal, $rows:literal, $sum:ident, [$($operation:ident),+]) => {
        /// A vector register of this instruction set.
        #[derive(Clone, Copy)]
        pub(crate) struct $name($type);

        register!(@methods $name, $lanes, $rows, $sum, $($operation),+);
    };
    (@methods $name:ident, $lanes:literal, $rows:literal, $sum:ident, $splat:ident, $load:ident, $store:ident,
     $fma:ident, $add:ident, $multiply:ident, $max:ident, $to_int:ident, $from_int:ident, $shift:ident,
     $add_int:ident) => {
        // SAFETY (all): only called inside functions compiled for, and dispatched to, this instruction set.
        impl Vector for $name {
            const LANES: usize = $lanes;
            const ROWS: usize = $rows;
            #[inline(always)]
            unsafe fn splat(value: f32) -> Self {
                Self(unsafe { $splat(value) })
            }
            #[inline(always)]
            unsafe fn load(source: *const f32) -> Self {
                Self(unsafe { $load(source) })
            }
            #[inline(always)]
            unsafe fn store(self, target: *mut f32) {
                unsafe { $store(target, self.0) }
            }
            #[inline(always)]
            unsafe fn multiply_add(self, factor: Self, addend: Self) -> Self {
                Self(unsafe { $fma(self.0, factor.0, addend.0) })
            }
            #[inline(always)]
            unsafe fn add(self, other: Self) -> Self {
                Self(unsafe { $add(self.0, other.0) })
            }
            #[inline(always)]
            unsafe fn multiply(self, factor: Self) -> Self {
                Self(unsafe { $multiply(self.0, factor.0) })
            }
            #[inline(always)]
            unsafe fn at_least(self, other: Self) -> Self {
                Self(unsafe { $max(self.0, other.0) })
            }
            #[inline(always)]
            unsafe fn raise(self, power: Self) -> Self {
                Self(unsafe { $from_int($add_int($to_int(self.0), $shift::<23>($to_int(power.0)))) })
            }
            #[inline(always)]
            unsafe fn sum(self) -> f32 {
                unsafe { $sum(self.0) }
            }
        }
    };
}

/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn sum_eight(values: __m256) -> f32 {
    // SAFETY: the caller promises AVX2, which includes all of these.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps::<1>(values));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

/// # Safety
/// The processor has AVX-512 F and DQ, and AVX2.
#[inline(always)]
unsafe fn sum_sixteen(values: __m512) -> f32 {
    // SAFETY: as the caller promises.
    unsafe { sum_eight(_mm256_add_ps(_mm512_castps512_ps256(values), _mm512_extractf32x8_ps::<1>(values))) }
}

register!(
    Sixteen,
    __m512,
    16,
    8,
    sum_sixteen,
    [
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_fmadd_ps,
        _mm512_add_ps,
        _mm512_mul_ps,
        _mm512_max_ps,
        _mm512_castps_si512,
        _mm512_castsi512_ps,
        _mm512_slli_epi32,
        _mm512_add_epi32
    ]
);
register!(
    Eight,
    __m256,
    8,
    6,
    sum_eight,
    [
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_fmadd_ps,
        _mm256_add_ps,
        _mm256_mul_ps,
        _mm256_max_ps,
        _mm256_castps_si256,
        _mm256_castsi256_ps,
        _mm256_slli_epi32,
        _mm256_add_epi32
    ]
);

/// AVX-512 (F, BW, DQ, VL).
#[derive(Clone, Copy)]
pub(crate) struct Avx512;
impl Isa for Avx512 {
    const FUSED: bool = true;
    type Vector = Sixteen;
}

/// AVX2 with FMA.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;
impl Isa for Avx2 {
    const FUSED: bool = true;
    type Vector = Eight;
}
