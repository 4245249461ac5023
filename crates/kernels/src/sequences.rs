//! The sequences of a batch, with padding in front where they are shorter than the longest.

/// The sequences of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Sequences<'a> {
    /// How many there are.
    pub batch: usize,
    /// Frames of each.
    pub frames: usize,
    /// Frames at the start of each that are padding: their inputs count as zero and time stands still, so states pass
    /// through unchanged (a convolution history must then be zero). Empty: none; otherwise one number a sequence.
    pub padding: &'a [usize],
}

impl Sequences<'_> {
    /// Padding of one sequence.
    pub(crate) fn padding_of(&self, sequence: usize) -> usize {
        self.padding.get(sequence).copied().unwrap_or(0)
    }

    /// Panics unless `values` are whole rows of `row_width`, one a frame.
    pub(crate) fn check(&self, values: usize, row_width: usize) {
        assert_eq!(values, self.batch * self.frames * row_width, "projected input");
        assert!(self.padding.is_empty() || self.padding.len() == self.batch, "one padding a sequence");
    }
}
