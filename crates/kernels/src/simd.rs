//! Instruction sets chosen at run time, and the element functions written so that the compiler vectorises them.
//!
//! A kernel body is an `#[inline(always)]` function generic over `Isa`; `simd_fn!` compiles it once for AVX-512,
//! once for AVX2 + FMA and once for the target's baseline (SSE2, or NEON on ARM), and picks at run time.
#![allow(unsafe_code)]

use std::sync::OnceLock;

/// What a kernel body may assume of the processor.
pub(crate) trait Isa: Copy {
    /// A multiply-add is one instruction; without it `mul_add` would call a library function.
    const FUSED: bool;
    /// Widest vector of the matrix micro-kernel.
    type Vector: Vector;
}

/// A register of `LANES` f32 values.
pub(crate) trait Vector: Copy {
    /// Values a register holds.
    const LANES: usize;
    /// Rows of the matrix tile that keep the multiply-add units busy without spilling.
    const ROWS: usize;
    /// The same value in every lane.
    unsafe fn splat(value: f32) -> Self;
    /// Reads `LANES` values, unaligned.
    unsafe fn load(source: *const f32) -> Self;
    /// Writes `LANES` values, unaligned.
    unsafe fn store(self, target: *mut f32);
    /// `self * factor + addend`.
    unsafe fn multiply_add(self, factor: Self, addend: Self) -> Self;
    /// `self + other`.
    unsafe fn add(self, other: Self) -> Self;
    /// `self * factor`.
    unsafe fn multiply(self, factor: Self) -> Self;
    /// The larger of both; `other` where one of them is no number.
    unsafe fn at_least(self, other: Self) -> Self;
    /// Adds the lowest bits of `power`, taken as integers, to the exponents.
    unsafe fn raise(self, power: Self) -> Self;
    /// Sum of the lanes, by halves.
    unsafe fn sum(self) -> f32;
}

/// One value: the column tail of a matrix product.
#[derive(Clone, Copy)]
pub(crate) struct Single<const FUSED: bool>(f32);

impl<const FUSED: bool> Vector for Single<FUSED> {
    const LANES: usize = 1;
    const ROWS: usize = 4;
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self(value)
    }
    #[inline(always)]
    unsafe fn load(source: *const f32) -> Self {
        // SAFETY: the caller guarantees one readable value.
        Self(unsafe { *source })
    }
    #[inline(always)]
    unsafe fn store(self, target: *mut f32) {
        // SAFETY: the caller guarantees one writable value.
        unsafe { *target = self.0 }
    }
    #[inline(always)]
    unsafe fn multiply_add(self, factor: Self, addend: Self) -> Self {
        Self(if FUSED { self.0.mul_add(factor.0, addend.0) } else { self.0 * factor.0 + addend.0 })
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
    #[inline(always)]
    unsafe fn multiply(self, factor: Self) -> Self {
        Self(self.0 * factor.0)
    }
    #[inline(always)]
    unsafe fn at_least(self, other: Self) -> Self {
        Self(if self.0 > other.0 { self.0 } else { other.0 })
    }
    #[inline(always)]
    unsafe fn raise(self, power: Self) -> Self {
        Self(f32::from_bits(self.0.to_bits().wrapping_add(power.0.to_bits() << 23)))
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        self.0
    }
}

/// Four values as an array: SSE2 or NEON through the compiler.
#[derive(Clone, Copy)]
pub(crate) struct Four<const FUSED: bool>([f32; 4]);

impl<const FUSED: bool> Vector for Four<FUSED> {
    const LANES: usize = 4;
    const ROWS: usize = 4;
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 4])
    }
    #[inline(always)]
    unsafe fn load(source: *const f32) -> Self {
        // SAFETY: the caller guarantees four readable values.
        Self(unsafe { source.cast::<[f32; 4]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, target: *mut f32) {
        // SAFETY: the caller guarantees four writable values.
        unsafe { target.cast::<[f32; 4]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn multiply_add(self, factor: Self, addend: Self) -> Self {
        let mut out = [0.0; 4];
        for lane in 0..4 {
            out[lane] = if FUSED {
                self.0[lane].mul_add(factor.0[lane], addend.0[lane])
            } else {
                self.0[lane] * factor.0[lane] + addend.0[lane]
            };
        }
        Self(out)
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane] + other.0[lane]))
    }
    #[inline(always)]
    unsafe fn multiply(self, factor: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane] * factor.0[lane]))
    }
    #[inline(always)]
    unsafe fn at_least(self, other: Self) -> Self {
        Self(std::array::from_fn(|lane| if self.0[lane] > other.0[lane] { self.0[lane] } else { other.0[lane] }))
    }
    #[inline(always)]
    unsafe fn raise(self, power: Self) -> Self {
        let raised = |lane: usize| self.0[lane].to_bits().wrapping_add(power.0[lane].to_bits() << 23);
        Self(std::array::from_fn(|lane| f32::from_bits(raised(lane))))
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let [a, b, c, d] = self.0;
        (a + c) + (b + d)
    }
}

#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

/// The target's baseline; on ARM that includes NEON and fused multiply-add.
#[derive(Clone, Copy)]
pub(crate) struct Portable;
impl Isa for Portable {
    const FUSED: bool = cfg!(target_arch = "aarch64");
    type Vector = Four<{ cfg!(target_arch = "aarch64") }>;
}

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum InstructionSet {
    /// The target's baseline: SSE2 on x86-64, NEON on ARM.
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
}

/// Environment variable that names the widest instruction set to use: `portable`, `avx2` or `avx512`. The same set gives
/// the same bytes on processors that differ in what else they have.
pub const LIMIT: &str = "MAMBO_INSTRUCTION_SET";

/// The instruction set in use: the widest that the processor has, up to [`LIMIT`]; settled at the first call.
///
/// # Panics
/// If [`limit`] fails.
pub fn instruction_set() -> InstructionSet {
    static SELECTED: OnceLock<InstructionSet> = OnceLock::new();
    *SELECTED.get_or_init(|| match limit() {
        Ok(limit) => detect().min(limit),
        Err(reason) => panic!("{reason}"),
    })
}

/// What [`LIMIT`] asks for; the widest if it is not set.
///
/// # Errors
/// If it is set to something else than a name of an instruction set.
pub fn limit() -> Result<InstructionSet, String> {
    let Some(name) = std::env::var_os(LIMIT) else {
        return Ok(InstructionSet::Avx512);
    };
    match name.to_str() {
        Some("portable") => Ok(InstructionSet::Portable),
        Some("avx2") => Ok(InstructionSet::Avx2),
        Some("avx512") => Ok(InstructionSet::Avx512),
        _ => Err(format!("{LIMIT} is {name:?}, expected portable, avx2 or avx512")),
    }
}

fn detect() -> InstructionSet {
    #[cfg(target_arch = "x86_64")]
    {
        let wide = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        let fused = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        if wide && fused {
            return InstructionSet::Avx512;
        }
        if fused {
            return InstructionSet::Avx2;
        }
    }
    InstructionSet::Portable
}

/// Declares a function that runs `$body::<I>` compiled for the best instruction set of the processor.
macro_rules! simd_fn {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? = $body:ident) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, unsafe_code)]
        $vis fn $name($($arg: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx512($($arg: $type),*) $(-> $result)? {
                    $body::<$crate::simd::Avx512>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($arg: $type),*) $(-> $result)? {
                    $body::<$crate::simd::Avx2>($($arg),*)
                }
                match $crate::simd::instruction_set() {
                    // SAFETY: the instruction set was detected on this processor.
                    $crate::simd::InstructionSet::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::simd::InstructionSet::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::simd::InstructionSet::Portable => {}
                }
            }
            $body::<$crate::simd::Portable>($($arg),*)
        }
    };
}
pub(crate) use simd_fn;

/// Asks for `values` to be brought near the processor; a hint without effect on results.
#[inline(always)]
pub(crate) fn prefetch(values: &[f32]) {
    values.chunks(16).for_each(|line| prefetch_at(line.as_ptr()));
}

/// The same for the line of memory at one address, which may lie beyond what it came from.
#[inline(always)]
pub(crate) fn prefetch_at<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, harmless at any address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast())
    };
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// `a * b + c`, fused where that is one instruction.
#[inline(always)]
pub(crate) fn fused<I: Isa>(a: f32, b: f32, c: f32) -> f32 {
    if I::FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// e^x to about 1e-7 relative; results stay within the normal range (1e-38 to 3e38), NaN passes through.
///
/// Range reduction by ln 2 in two parts, then a polynomial on [-ln 2 / 2, ln 2 / 2] (Taylor, degree 7).
#[inline(always)]
pub(crate) fn exp<I: Isa>(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer held in the low mantissa bits
    let x = if x > 88.0 { 88.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = fused::<I>(x, std::f32::consts::LOG2_E, SHIFT);
    let whole = shifted - SHIFT;
    let r = fused::<I>(whole, -0.693_359_4, x);
    let r = fused::<I>(whole, 2.121_944_4e-4, r);
    let p = fused::<I>(r, 1.0 / 5040.0, 1.0 / 720.0);
    let p = fused::<I>(r, p, 1.0 / 120.0);
    let p = fused::<I>(r, p, 1.0 / 24.0);
    let p = fused::<I>(r, p, 1.0 / 6.0);
    let p = fused::<I>(r, p, 0.5);
    let p = fused::<I>(r * r, p, r) + 1.0;
    f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(crate) fn sigmoid<I: Isa>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<I>(-x))
}

/// ln(1 + e^x) to about 2e-7 relative, also for very negative x; the identity well above 0, as in the reference.
///
/// max(x, 0) + ln(1 + e), e = e^-|x|; the logarithm is 2 artanh(e / (2 + e)), whose argument is at most 1/3.
#[inline(always)]
pub(crate) fn softplus<I: Isa>(x: f32) -> f32 {
    let e = exp::<I>(-x.abs());
    let w = e / (e + 2.0);
    let square = w * w;
    let p = fused::<I>(square, 1.0 / 13.0, 1.0 / 11.0);
    let p = fused::<I>(square, p, 1.0 / 9.0);
    let p = fused::<I>(square, p, 1.0 / 7.0);
    let p = fused::<I>(square, p, 1.0 / 5.0);
    let p = fused::<I>(square, p, 1.0 / 3.0);
    let p = fused::<I>(square, p, 1.0);
    fused::<I>(2.0 * w, p, if x < 0.0 { 0.0 } else { x })
}

/// 2^x for x of at most 0, to about 1e-7 relative; results stay above 1e-38, 2^0 is exactly 1, NaN passes through.
///
/// A polynomial on [-1/2, 1/2] with the least relative error that degree 6 allows (1.6e-8).
///
/// # Safety
/// As the register's operations: inside a function compiled for its instruction set.
#[inline(always)]
pub(crate) unsafe fn exp2<V: Vector>(x: V) -> V {
    const SHIFT: f32 = 12_582_912.0; // as in `exp`
    const POLYNOMIAL: [f32; 6] =
        [1.0, std::f32::consts::LN_2, 0.240_226_48, 5.550_332_4e-2, 9.618_438e-3, 1.339_887_4e-3];
    // SAFETY: as the caller promises.
    unsafe {
        let x = V::splat(-126.0).at_least(x);
        let shifted = x.add(V::splat(SHIFT));
        let r = V::splat(-1.0).multiply_add(shifted.add(V::splat(-SHIFT)), x);
        let power = |p: V, factor: &f32| r.multiply_add(p, V::splat(*factor));
        POLYNOMIAL.iter().rev().fold(V::splat(1.535_334_4e-4), power).raise(shifted)
    }
}

/// The normal distribution's (cumulative probability, density) at x.
///
/// Abramowitz and Stegun 7.1.26: absolute error of the probability below 1e-7.
#[inline(always)]
pub(crate) fn normal<I: Isa>(x: f32) -> (f32, f32) {
    let bell = exp::<I>(-0.5 * x * x);
    let t = 1.0 / fused::<I>(x.abs(), 0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2, 1.0);
    let p = fused::<I>(t, 1.061_405_4, -1.453_152);
    let p = fused::<I>(t, p, 1.421_413_7);
    let p = fused::<I>(t, p, -0.284_496_74);
    let p = fused::<I>(t, p, 0.254_829_6);
    let tail = 0.5 * t * p * bell;
    (if x < 0.0 { tail } else { 1.0 - tail }, bell * 0.398_942_3)
}

simd_fn! {
    /// [`dot`] outside of kernels.
    pub(crate) fn inner_product(a: &[f32], b: &[f32]) -> f32 = dot
}

/// Lanes of a sum that the compiler may keep in registers: the order of additions is fixed by this number alone.
pub(crate) const LANES: usize = 16;

/// Sum of `a[i] * b[i]` in a fixed order.
#[inline(always)]
pub(crate) fn dot<I: Isa>(a: &[f32], b: &[f32]) -> f32 {
    let length = a.len().min(b.len());
    let ((a_blocks, a_rest), (b_blocks, b_rest)) = (a[..length].as_chunks::<LANES>(), b[..length].as_chunks::<LANES>());
    let mut rest = 0.0;
    for (x, y) in a_rest.iter().zip(b_rest) {
        rest = fused::<I>(*x, *y, rest);
    }
    // Registers by name: left to itself, the compiler pairs lanes for the sum at the end and uses a quarter of them.
    let mut lanes = [0.0f32; LANES];
    let registers = LANES / I::Vector::LANES;
    // SAFETY: blocks and lanes are whole registers, none of fewer than four values.
    unsafe {
        let mut sums = [I::Vector::splat(0.0); LANES / 4];
        for (x, y) in a_blocks.iter().zip(b_blocks) {
            for (register, sum) in sums[..registers].iter_mut().enumerate() {
                let from = register * I::Vector::LANES;
                *sum = I::Vector::load(x[from..].as_ptr()).multiply_add(I::Vector::load(y[from..].as_ptr()), *sum);
            }
        }
        for (register, sum) in sums[..registers].iter().enumerate() {
            sum.store(lanes[register * I::Vector::LANES..].as_mut_ptr());
        }
    }
    fold(lanes) + rest
}

/// Sum of lanes by halves.
#[inline(always)]
pub(crate) fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_over_its_range() {
        let mut x = -86.5f32;
        while x < 87.0 {
            let (got, expected) = (exp::<Portable>(x), f64::from(x).exp());
            let relative = ((f64::from(got) - expected) / expected).abs();
            assert!(relative < 3e-7, "exp({x}) = {got}, expected {expected}, relative {relative}");
            x += 0.0137;
        }
        assert_eq!(exp::<Portable>(0.0), 1.0);
        assert!(exp::<Portable>(f32::NAN).is_nan());
        assert!(exp::<Portable>(-1000.0) < 2e-38);
    }

    #[test]
    fn softplus_and_exp2_are_accurate_over_their_ranges() {
        let off = |got: f32, expected: f64| ((f64::from(got) - expected) / expected).abs();
        let mut x = -80.0f32;
        while x < 80.0 {
            assert!(off(softplus::<Portable>(x), f64::from(x).exp().ln_1p()) < 4e-7, "softplus({x})");
            x += 0.0137;
        }
        assert_eq!(softplus::<Portable>(21.0), 21.0);
        assert!(softplus::<Portable>(f32::NAN).is_nan());
        // SAFETY: single values need no instruction set.
        let exp2 = |x: f32| unsafe { exp2(Single::<false>::splat(x)).sum() };
        let mut x = -125.9f32;
        while x <= 0.0 {
            assert!(off(exp2(x), f64::from(x).exp2()) < 1.5e-7, "exp2({x})");
            x += 0.0107;
        }
        assert_eq!(exp2(0.0), 1.0);
        assert!(exp2(f32::NAN).is_nan() && exp2(-1e9) < 2e-38);
    }

    #[test]
    fn normal_matches_published_values() {
        // Standard normal tables.
        for (x, probability) in
            [(0.0, 0.5), (1.0, 0.841_344_746), (-1.0, 0.158_655_254), (2.5, 0.993_790_335), (-3.0, 0.001_349_898)]
        {
            let (p, density) = normal::<Portable>(x);
            assert!((f64::from(p) - probability).abs() < 3e-7, "{x}: {p} against {probability}");
            let expected = (-0.5 * f64::from(x * x)).exp() / (2.0 * std::f64::consts::PI).sqrt();
            assert!((f64::from(density) - expected).abs() < 1e-7);
        }
    }
}
