//! A network of finite reach over rows that keep coming: the same as over all of them at once, in constant memory.

use super::EncodeStream;

/// The running encoder of a codec whose encoder has a finite reach: samples to latents, latents to codes row by row.
pub(super) struct WindowedEncoder<N, Q> {
    pub(super) windows: Windowed,
    pub(super) network: N,
    pub(super) quantise: Q,
}

impl<N: Fn(&[f32]) -> Vec<f32>, Q: Fn(Vec<f32>) -> Vec<u16>> EncodeStream for WindowedEncoder<N, Q> {
    fn push(&mut self, mono: &[f32]) -> Vec<u16> {
        (self.quantise)(self.windows.push(mono, &self.network))
    }

    fn finish(mut self: Box<Self>) -> Vec<u16> {
        (self.quantise)(self.windows.finish(&self.network))
    }
}

/// Rows of the window that begins after `passed` rows, or look-ahead of it: from `opening` on, as many as there were before, at
/// most `most`. So the first sound comes early, and places of windows depend on nothing but these.
pub(crate) fn growing(opening: usize, most: usize, passed: usize) -> usize {
    passed.max(opening).min(most)
}

/// Where windows begin that grow from `opening` to `window` rows, in `rows` rows.
pub(crate) fn growing_starts(opening: usize, window: usize, rows: usize) -> Vec<usize> {
    std::iter::successors(Some(0), |passed| Some(passed + growing(opening, window, *passed)))
        .take_while(|start| *start < rows)
        .collect()
}

/// Rows wait until all neighbours that their outputs depend on are there; then they go through in windows.
pub(crate) struct Windowed {
    /// Values of a row, in and out.
    sizes: [usize; 2],
    /// Rows on each side of a row that its output depends on.
    reach: usize,
    /// Rows at a time: memory, and little else, grows with it.
    window: usize,
    /// Rows of the first window, and that it looks ahead.
    opening: [usize; 2],
    /// Rows after a window over which what it made of its look-ahead fades into what the next one makes of the same rows.
    blend: usize,
    /// Those of the window before.
    tail: Vec<f32>,
    /// Rows that have gone through.
    passed: usize,
    /// What waits, and before it as many rows as are still in reach.
    values: Vec<f32>,
    /// Rows of it that are done.
    done: usize,
}

impl Windowed {
    pub(crate) fn new(sizes: [usize; 2], reach: usize, window: usize) -> Self {
        let opening = [window, reach];
        Self { sizes, reach, window, opening, blend: 0, tail: Vec::new(), passed: 0, values: Vec::new(), done: 0 }
    }

    /// Begins with a window of so many rows that looks so many ahead; see [`growing`]. Less than the reach is an approximation.
    pub(crate) fn opening_with(self, opening: [usize; 2]) -> Self {
        Self { opening, ..self }
    }

    /// Lets neighbouring windows fade into each other over so many rows, where there is as much look-ahead: for a network whose
    /// outputs depend a little on what lies beyond its reach.
    pub(crate) fn blending(self, blend: usize) -> Self {
        Self { blend, ..self }
    }

    /// Rows that it takes before its first window is full.
    pub(crate) fn opening(&self) -> usize {
        growing(self.opening[0], self.window, 0) + growing(self.opening[1], self.reach, 0)
    }

    /// Where its windows begin, in `rows` rows.
    pub(crate) fn starts(&self, rows: usize) -> Vec<usize> {
        growing_starts(self.opening[0], self.window, rows)
    }

    /// Rows of the next window.
    fn next(&self) -> usize {
        growing(self.opening[0], self.window, self.passed)
    }

    /// Rows that it looks ahead.
    fn ahead(&self) -> usize {
        growing(self.opening[1], self.reach, self.passed)
    }

    /// Takes values, whole rows or not, and gives the outputs of the rows that are ready. `network` gets some rows and gives
    /// the outputs of all of them.
    pub(crate) fn push(&mut self, values: &[f32], network: impl Fn(&[f32]) -> Vec<f32>) -> Vec<f32> {
        let mut out = Vec::new();
        // Not all at once: what waits stays short.
        for part in values.chunks(self.window * self.sizes[0]) {
            self.values.extend_from_slice(part);
            while self.values.len() / self.sizes[0] >= self.done + self.next() + self.ahead() {
                out.extend(self.run(self.next(), &network));
            }
        }
        out
    }

    /// Gives the outputs of the rest. The last row may lack values; the network sees that.
    pub(crate) fn finish(&mut self, network: impl Fn(&[f32]) -> Vec<f32>) -> Vec<f32> {
        let mut out = Vec::new();
        loop {
            let left = self.values.len().div_ceil(self.sizes[0]) - self.done;
            if left == 0 {
                return out;
            }
            out.extend(self.run(left.min(self.next()), &network));
        }
    }

    fn run(&mut self, count: usize, network: &impl Fn(&[f32]) -> Vec<f32>) -> Vec<f32> {
        let [from, to] = self.sizes;
        let seen = ((self.done + count + self.ahead()) * from).min(self.values.len());
        let mut out = network(&self.values[..seen]);
        let ahead = out.split_off((self.done + count) * to);
        out.drain(..self.done * to);
        let fading = self.tail.len() / to;
        let pairs = out.chunks_exact_mut(to).zip(self.tail.chunks_exact(to)).enumerate();
        for (row, (now, before)) in pairs {
            let share = (row + 1) as f32 / (fading + 1) as f32;
            now.iter_mut().zip(before).for_each(|(now, before)| *now = before + share * (*now - before));
        }
        self.tail = ahead;
        self.tail.truncate(self.blend * to);
        self.done += count;
        self.passed += count;
        let gone = self.done.saturating_sub(self.reach);
        self.values.drain(..(gone * from).min(self.values.len()));
        self.done -= gone;
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Sums over two rows to each side, of rows of three values; the last row may be shorter. Two outputs a row.
    fn sums(values: &[f32]) -> Vec<f32> {
        let rows: Vec<f32> = values.chunks(3).map(|row| row.iter().sum()).collect();
        let near = |t: usize| rows[t.saturating_sub(2)..(t + 3).min(rows.len())].iter().sum::<f32>();
        (0..rows.len()).flat_map(|t| [near(t), rows[t]]).collect()
    }

    proptest! {
        #[test]
        fn windows_and_pushes_change_nothing(
            length in 0usize..120, window in 1usize..9, opening in 1usize..9, more in 0usize..3, push in 1usize..20,
            blend in 0usize..3,
        ) {
            let values: Vec<f32> = (0..length).map(|n| (n * 7 % 23) as f32).collect();
            // Rows that fade see as far as others do.
            let blend = blend.min(more);
            let mut windowed =
                Windowed::new([3, 2], 2 + more, window).opening_with([opening, 2 + blend]).blending(blend);
            prop_assert_eq!(windowed.opening(), window.min(opening) + 2 + blend);
            let mut out: Vec<f32> = values.chunks(push).flat_map(|part| windowed.push(part, sums)).collect();
            prop_assert!(windowed.values.len() <= 3 * (2 * (2 + more) + window + 1));
            out.extend(windowed.finish(sums));
            prop_assert_eq!(out, sums(&values));
        }
    }

    #[test]
    fn windows_fade_into_each_other() {
        // A network that says how many rows it saw.
        let seen = |values: &[f32]| vec![values.len() as f32; values.len()];
        let mut windowed = Windowed::new([1, 1], 4, 10).opening_with([4, 4]).blending(3);
        let mut out = windowed.push(&[0.0; 30], seen);
        out.extend(windowed.finish(seen));
        // Windows of 4, 4, 8, 10 and 4 rows see 8, 12, 16, 18 and 8.
        assert_eq!(out[..12], [8.0, 8.0, 8.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0]);
        assert_eq!(out[16..20], [16.5, 17.0, 17.5, 18.0]);
        assert_eq!((out.len(), out[26], out[29]), (30, 15.5, 8.0));
    }

    #[test]
    fn windows_grow_to_their_size() {
        assert_eq!(growing_starts(24, 160, 600), [0, 24, 48, 96, 192, 352, 512]);
        assert_eq!(growing_starts(24, 16, 40), [0, 16, 32]);
    }
}
