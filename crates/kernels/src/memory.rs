//! Memory for what is streamed through again and again: weights and states of decoding, and all that a training step
//! asks for anew.
#![allow(unsafe_code)]

/// Zeros, on large pages where the system grants them: a stream of pages of 4 KiB spends a fifth of its time on finding
/// them.
pub fn zeros<T: Copy + Default>(length: usize) -> Vec<T> {
    let values = vec![T::default(); length];
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    {
        const LARGE_PAGE: usize = 2 << 20;
        let bytes = values.as_ptr_range();
        let first = (bytes.start as usize).next_multiple_of(LARGE_PAGE);
        let end = bytes.end as usize / LARGE_PAGE * LARGE_PAGE;
        if first < end {
            // SAFETY: advice on pages that lie wholly within the vector; it changes no value, and a refusal no meaning.
            unsafe { libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_HUGEPAGE) };
        }
    }
    values
}

/// mimalloc's option `purge_delay`: milliseconds until freed memory goes back, -1 for never. The bindings do not name it.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// From now on freed memory is kept for later allocations, in programs whose global allocator is mimalloc.
///
/// A training step asks for the same large blocks as the step before. What went back to the system comes again as pages
/// that the kernel zeroes one by one, on one thread: an eighth of a step of a 72 M model.
pub fn keep_freed_memory() {
    // SAFETY: sets a number that the allocator reads; may be called at any time from any thread.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) }
}
