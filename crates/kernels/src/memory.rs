//! Memory for what is streamed through again and again: weights and states of decoding.
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
