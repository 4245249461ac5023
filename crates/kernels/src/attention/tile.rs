//! Tiles of keys by queries, queries side by side in a row: what is summed over keys then runs down the rows and needs
//! no sums across a register.

use super::{Attention, Columns};
use crate::small_gemm::{Left, multiply, transpose};

/// Queries of a tile, and length of its rows.
pub(crate) const QUERIES: usize = 64;
/// Keys of a tile.
pub(crate) const KEYS: usize = 64;
/// Queries handled together; rows are filled up to a multiple of them with columns that nobody reads.
pub(crate) const LANES: usize = 16;

/// One head of one sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub(crate) sequence: usize,
    pub(crate) head: usize,
}

impl Head {
    /// The head of this index, sequence by sequence.
    pub(crate) fn new(attention: &Attention<'_>, index: usize) -> Self {
        Self { sequence: index / attention.heads, head: index % attention.heads }
    }

    /// First column of the head.
    pub(crate) fn column(&self, attention: &Attention<'_>) -> usize {
        self.head * attention.head_width
    }

    /// The head's rows that are not padding as one block `[keys - padding, head width]`.
    pub(crate) fn unpadded(&self, attention: &Attention<'_>, columns: Columns<'_, f32>) -> Vec<f32> {
        let (padding, width) = (attention.padding_of(self.sequence), attention.head_width);
        let mut out = vec![0.0; (attention.keys - padding) * width];
        let first = self.sequence * attention.keys + padding;
        gather(columns, first, self.column(attention), width, 1.0, &mut out);
        out
    }
}

/// `out[row] = factor * columns[first + row][from..from + width]`
pub(crate) fn gather(columns: Columns<'_, f32>, first: usize, from: usize, width: usize, factor: f32, out: &mut [f32]) {
    for (row, line) in out.chunks_exact_mut(width).enumerate() {
        for (value, source) in line.iter_mut().zip(columns.part(first + row, from, width)) {
            *value = factor * source;
        }
    }
}

/// Rows of a head that belong to the queries of a tile, as they are and turned.
pub(crate) struct Block {
    width: usize,
    /// Queries at hand.
    pub(crate) count: usize,
    /// `[count, head width]`
    pub(crate) rows: Vec<f32>,
    /// `[head width, QUERIES]`
    turned: Vec<f32>,
}

impl Block {
    pub(crate) fn new(width: usize) -> Self {
        Self { width, count: 0, rows: vec![0.0; QUERIES * width], turned: vec![0.0; width * QUERIES] }
    }

    /// Takes the rows of tile `tile` times `factor`.
    pub(crate) fn load(
        &mut self,
        attention: &Attention<'_>,
        head: Head,
        tile: usize,
        columns: Columns<'_, f32>,
        factor: f32,
    ) {
        let from = tile * QUERIES;
        self.count = QUERIES.min(attention.queries - from);
        let rows = &mut self.rows[..self.count * self.width];
        let first = head.sequence * attention.queries + from;
        gather(columns, first, head.column(attention), self.width, factor, rows);
        transpose(self.count, self.width, rows, self.width, &mut self.turned, QUERIES);
    }

    /// Columns in use, filled up.
    pub(crate) fn columns(&self) -> usize {
        self.count.next_multiple_of(LANES)
    }

    /// `out[row, query] = others[row] . block[query]` for `others` `[rows, head width]`.
    pub(crate) fn products(&self, rows: usize, others: &[f32], out: &mut [f32]) {
        let left = Left::rows(others, self.width);
        multiply(rows, self.columns(), self.width, left, &self.turned, QUERIES, out, QUERIES, false);
    }
}

/// How many keys each query of a tile sees, ascending; columns beyond the last query go along with it.
#[derive(Clone, Copy)]
pub(crate) struct Seen([u32; QUERIES]);

impl Seen {
    pub(crate) fn new(attention: &Attention<'_>, head: Head, tile: usize) -> Self {
        Self(std::array::from_fn(|column| {
            let query = (tile * QUERIES + column).min(attention.queries - 1);
            u32::try_from(attention.seen(head.sequence, query)).expect("fewer keys than 2^32")
        }))
    }

    /// Keys that the last query sees.
    pub(crate) fn most(&self) -> usize {
        self.0[QUERIES - 1] as usize
    }

    /// For each column, how many of the keys from `first` on it sees; `None` if all see `rows` of them.
    pub(crate) fn limits(&self, first: usize, rows: usize) -> Option<[u32; QUERIES]> {
        let first = first as u32;
        (self.0[0] < first + rows as u32).then(|| self.0.map(|seen| seen.saturating_sub(first)))
    }
}

/// Columns `block..block + LANES` of a row of a tile.
#[inline(always)]
pub(crate) fn lanes(tile: &mut [f32], row: usize, block: usize) -> &mut [f32; LANES] {
    (&mut tile[row * QUERIES + block..][..LANES]).try_into().expect("rows are whole blocks")
}
