//! Memory that stays.
//!
//! A training step asks for the same large blocks as the step before. An allocator that hands freed blocks back to the
//! system gets them again as pages that the kernel has to zero one by one, on one thread: an eighth of a step of a 72 M
//! model. A program that trains keeps them.
#![allow(unsafe_code)]

/// mimalloc's option `purge_delay`: milliseconds until freed memory goes back, -1 for never. The bindings do not name it.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// From now on freed memory is kept for later allocations, in programs whose global allocator is mimalloc.
pub fn keep_freed_memory() {
    // SAFETY: sets a number that the allocator reads; may be called at any time from any thread.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) }
}
