//! Multi-head scaled-dot-product attention (Vaswani et al., arXiv:1706.03762), causal or not, with left padding.
//!
//! [`forward`] and [`backward`] never hold a matrix of queries by keys: they walk over its tiles with a running maximum
//! and sum, and the backward pass forms a tile's weights again from one number a query and head (Dao et al.,
//! arXiv:2205.14135; Dao, arXiv:2307.08691). [`step`] is one query a sequence against a growing cache, [`biased`] hears
//! distances; [`plain`] is the full softmax and the oracle of the others. Laws: padding is never read; queries alone give
//! what they give among others; a step equals the last row of the forward pass; the number of threads cannot change a byte.

mod backward;
mod biased;
mod columns;
mod forward;
pub mod plain;
mod step;
mod tile;

pub use backward::backward;
pub use biased::biased;
pub use columns::{Columns, ColumnsMut};
pub use forward::{Forward, forward};
pub use step::{Cache, softmax, step};

/// Width of each of the heads that make up `width`.
fn head_width(heads: usize, width: usize) -> usize {
    assert!(heads > 0 && width > 0 && width.is_multiple_of(heads), "attention: {heads} heads in {width} values");
    width / heads
}

/// Sizes of an attention, and who sees whom.
///
/// Heads lie side by side in a row. Scores are scaled by `1 / sqrt(head_width)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attention<'a> {
    /// Sequences; each sees only itself.
    pub batch: usize,
    /// Queries of each.
    pub queries: usize,
    /// Keys of each, and as many values.
    pub keys: usize,
    /// Heads.
    pub heads: usize,
    /// Width of a head.
    pub head_width: usize,
    /// The queries stand at the last positions of the keys and see no later one: query i sees keys up to
    /// `keys - queries + i`.
    pub causal: bool,
    /// Keys at the start of each sequence that no query sees. Empty: none; otherwise one number a sequence. A query
    /// that sees no key at all gives zeros and passes no gradient.
    pub padding: &'a [usize],
}

impl Attention<'_> {
    /// Width of all heads together.
    pub fn width(&self) -> usize {
        self.heads * self.head_width
    }

    /// Factor of the scores.
    pub(crate) fn scale(&self) -> f64 {
        1.0 / (self.head_width as f64).sqrt()
    }

    /// Padding of one sequence.
    pub(crate) fn padding_of(&self, sequence: usize) -> usize {
        self.padding.get(sequence).copied().unwrap_or(0)
    }

    /// How many keys a query sees; they begin after the padding.
    pub(crate) fn seen(&self, sequence: usize, query: usize) -> usize {
        let end = if self.causal { self.keys - self.queries + query + 1 } else { self.keys };
        end.saturating_sub(self.padding_of(sequence))
    }

    /// Panics unless everything fits together: a wrong size is a mistake in the program.
    pub(crate) fn check<F>(&self, query: &Columns<'_, F>, key: &Columns<'_, F>, value: &Columns<'_, F>) {
        assert!(self.heads > 0 && self.head_width > 0, "attention sizes must be positive: {self:?}");
        assert!(!self.causal || self.keys >= self.queries, "attention: fewer keys than causal queries: {self:?}");
        assert!(self.padding.is_empty() || self.padding.len() == self.batch, "attention: one padding a sequence");
        assert!(
            self.padding.iter().all(|padding| *padding <= self.keys),
            "attention: padding beyond the keys: {self:?}"
        );
        query.check("queries", self.batch * self.queries, self.width());
        key.check("keys", self.batch * self.keys, self.width());
        value.check("values", self.batch * self.keys, self.width());
    }
}
