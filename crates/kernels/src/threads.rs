//! Work shared between threads in pieces whose bounds never depend on timing.
#![allow(unsafe_code)]

use std::marker::PhantomData;

/// A slice that several tasks write at once, each its own part.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    length: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: the only access is through the unsafe methods, whose callers promise disjoint parts.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    /// Shares a slice.
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), length: slice.len(), life: PhantomData }
    }

    /// Where `length` values from `from` on lie; whoever writes there must be alone with what it touches.
    pub(crate) fn address(&self, from: usize, length: usize) -> *mut T {
        assert!(from + length <= self.length, "address {from}+{length} of {}", self.length);
        self.start.wrapping_add(from)
    }

    /// The part `from..from + length`.
    ///
    /// # Safety
    /// No other task may touch the same values while the result lives.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, from: usize, length: usize) -> &'a mut [T] {
        assert!(from + length <= self.length, "part {from}+{length} of {}", self.length);
        // SAFETY: within bounds as asserted; disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), length) }
    }
}

/// Column sums of the rows of `partial` (each `width` long), accumulated in f64 because there may be many rows.
pub(crate) fn sum_rows(partial: &[f32], width: usize) -> Vec<f32> {
    let mut total = vec![0.0f64; width];
    for row in partial.chunks_exact(width.max(1)) {
        for (sum, value) in total.iter_mut().zip(row) {
            *sum += f64::from(*value);
        }
    }
    total.into_iter().map(|value| value as f32).collect()
}
