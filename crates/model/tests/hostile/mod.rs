//! Changes that a hostile hand could make to a file: to its bytes, and within what it holds so that the rest stays sound
//! and the change reaches the inner layers. The tests here and the programs of `fuzz/` draw from the same.
// Each user takes its part.
#![allow(dead_code)]

pub mod archives;
pub mod bytes;
pub mod headers;
pub mod pickles;
pub mod readers;
pub mod seeds;

/// Longest file that changes lead to.
pub const MOST_BYTES: usize = 1 << 16;

/// A change of a file of some kind. The second file is another one of that kind, to take pieces from.
pub type Change = fn(&mut Vec<u8>, &[u8], &mut Random);

/// A stream of random numbers that is the same for the same seed (SplitMix64).
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`, or 0.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.number() % (limit.max(1) as u64)) as usize
    }

    /// Whether one case in `cases` is at hand.
    pub fn one_in(&mut self, cases: usize) -> bool {
        self.below(cases) == 0
    }

    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    /// A number at which arithmetic goes wrong, if any does.
    pub fn extreme(&mut self) -> u64 {
        let power = 1_u64 << self.below(64);
        match self.below(6) {
            0 => self.below(17) as u64,
            1 => 0_u64.wrapping_sub(self.below(4) as u64),
            2 => power,
            3 => power - 1,
            4 => power.wrapping_add(self.below(16) as u64),
            _ => self.number() >> self.below(64),
        }
    }

    /// One to a few changes of `file`.
    pub fn changes(&mut self, change: Change, file: &mut Vec<u8>, other: &[u8]) {
        loop {
            change(file, other, self);
            file.truncate(MOST_BYTES);
            if self.one_in(2) {
                return;
            }
        }
    }
}
