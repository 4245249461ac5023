//! How often each edge of the instrumented code was taken. The compiler lays one byte an edge into every object file; the
//! linker joins them, and each object's start-up code says where they lie.

use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

static START: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
static LENGTH: AtomicUsize = AtomicUsize::new(0);

/// Edges that are looked at together.
const PAGE: usize = 1 << 10;
/// Executions between two looks at pages that nothing has reached so far.
const FULL_LOOK: u64 = 64;

/// Called by the start-up code of every instrumented object, each time with the whole range.
#[unsafe(no_mangle)]
extern "C" fn __sanitizer_cov_8bit_counters_init(start: *mut u8, stop: *mut u8) {
    START.store(start, Ordering::Relaxed);
    LENGTH.store(stop as usize - start as usize, Ordering::Relaxed);
}

/// What has been seen of the counters so far.
pub struct Counters {
    /// For each edge, a bit for each class of counts.
    seen: Vec<u8>,
    /// Which pages have been reached.
    live: Vec<bool>,
    looks: u64,
}

impl Counters {
    pub fn new() -> Self {
        let length = LENGTH.load(Ordering::Relaxed);
        Self { seen: vec![0; length], live: vec![false; length.div_ceil(PAGE)], looks: 0 }
    }

    /// Edges there are, and edges that have been taken.
    pub fn edges(&self) -> (usize, usize) {
        (self.seen.len(), self.seen.iter().filter(|&&classes| classes != 0).count())
    }

    /// Sets the counters to zero.
    pub fn clear(&mut self) {
        let counters = counters();
        for (page, live) in counters.chunks_mut(PAGE).zip(&self.live) {
            if *live {
                page.fill(0);
            }
        }
    }

    /// Whether an edge was taken that never had been, or so many times as never before.
    pub fn anything_new(&mut self) -> bool {
        let full = self.looks.is_multiple_of(FULL_LOOK);
        self.looks += 1;
        let mut new = false;
        let pages = counters().chunks_mut(PAGE).zip(self.seen.chunks_mut(PAGE)).zip(&mut self.live);
        for ((counts, seen), live) in pages {
            // At the very end up to seven edges are left over, which are not looked at.
            let (counts, seen) = (counts.as_chunks::<8>().0, seen.as_chunks_mut::<8>().0);
            if !*live {
                if !full || counts.iter().all(|eight| *eight == [0; 8]) {
                    continue;
                }
                *live = true;
            }
            for (eight, seen) in counts.iter().zip(seen) {
                if *eight == [0; 8] {
                    continue;
                }
                for (&count, seen) in eight.iter().zip(seen) {
                    let class = class(count);
                    new |= class & !*seen != 0;
                    *seen |= class;
                }
            }
        }
        new
    }
}

fn counters() -> &'static mut [u8] {
    let (start, length) = (START.load(Ordering::Relaxed), LENGTH.load(Ordering::Relaxed));
    if start.is_null() {
        return &mut [];
    }
    // SAFETY: the range is the program's own section of counters, which lives as long as it. The instrumented code of this
    // one thread counts in it by plain additions, never while a slice of it is in use.
    unsafe { std::slice::from_raw_parts_mut(start, length) }
}

/// A bit for counts that are much the same.
fn class(count: u8) -> u8 {
    match count {
        0 => 0,
        1 => 1,
        2 => 2,
        3 => 4,
        4..=7 => 8,
        8..=15 => 16,
        16..=31 => 32,
        32..=127 => 64,
        128.. => 128,
    }
}
