//! Values of a block of neighbouring channels, and the vector registers that hold them.
#![allow(unsafe_code)]

use crate::simd::Vector;

/// Channels scanned together: enough independent sums to keep the multiply-add units busy.
pub(crate) const BLOCK: usize = 32;

/// One value for each channel of a block; channels beyond the last have decay rates and inputs of zero.
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

/// `values` as lanes.
///
/// # Panics
/// If they are not whole blocks.
pub(crate) fn as_lanes(values: &[f32]) -> &[Lanes] {
    let (lanes, rest) = values.as_chunks::<BLOCK>();
    assert!(rest.is_empty(), "selective scan: {} values in blocks of {BLOCK}", values.len());
    lanes
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
