//! Freed memory comes back without being zeroed by the system again.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Pages that the system has had to provide so far.
fn faults() -> u64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap();
    let after_name = text.rsplit(')').next().unwrap();
    after_name.split_whitespace().nth(7).unwrap().parse().unwrap()
}

/// Pages provided while blocks of many sizes are taken, written and freed, and time goes by.
fn step() -> u64 {
    let before = faults();
    drop(black_box((1..20).map(|size| vec![1u8; size << 20]).collect::<Vec<_>>()));
    // The allocator gives memory back, if it does, when time has gone by and something asks for more.
    std::thread::sleep(Duration::from_millis(250));
    (0..1000).for_each(|_| drop(black_box(vec![0u8; 3 << 20])));
    faults() - before
}

#[test]
fn steps_after_the_first_need_hardly_a_new_page() {
    mambo_kernels::memory::keep_freed_memory();
    let first = step();
    let later: Vec<u64> = (0..12).map(|_| step()).collect();
    assert!(10 * later.iter().sum::<u64>() < first, "{first} pages in the first step, {later:?} in later ones");
}
