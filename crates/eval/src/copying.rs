//! The longest run of tokens that a clip copies exactly from the training set.
//!
//! The clip becomes a suffix automaton (Blumer et al. 1985) and the training set streams through it: linear in both,
//! exact, and no index of the training set is kept.

use rayon::prelude::*;
use serde::Serialize;

/// A run of tokens found in the training set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct CopiedRun {
    /// Length of the run.
    pub frames: usize,
    /// Where it starts in the clip.
    pub clip_start: usize,
    /// Index of the training sequence.
    pub sequence: usize,
    /// Where it starts there.
    pub sequence_start: usize,
}

/// What all clips of a system copied.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CopyReport {
    /// Longest run of each clip in seconds.
    pub seconds: Vec<f64>,
    /// Median over the clips.
    pub median_seconds: f64,
    /// Longest over the clips.
    pub longest_seconds: f64,
    /// Share of clips whose longest run is shorter than `limit_seconds`.
    pub share_below_limit: f64,
    /// The limit.
    pub limit_seconds: f64,
}

/// One state: a set of end positions of substrings.
#[derive(Clone, Default)]
struct State {
    length: usize,
    link: usize,
    /// End of its first occurrence in the clip.
    end: usize,
    next: Vec<(u16, usize)>,
}

const NONE: usize = usize::MAX;

struct Automaton {
    states: Vec<State>,
    /// Transitions of the start state: most steps of foreign tokens begin there.
    start: Vec<usize>,
}

impl Automaton {
    fn new(tokens: &[u16]) -> Self {
        let mut states = vec![State { link: NONE, ..State::default() }];
        let mut last = 0;
        for (position, &token) in tokens.iter().enumerate() {
            let current = states.len();
            states.push(State { length: states[last].length + 1, link: 0, end: position + 1, next: Vec::new() });
            let mut state = last;
            while state != NONE && find(&states[state].next, token).is_none() {
                states[state].next.push((token, current));
                state = states[state].link;
            }
            if state != NONE {
                let target = find(&states[state].next, token).unwrap_or(0);
                if states[state].length + 1 == states[target].length {
                    states[current].link = target;
                } else {
                    let copy = states.len();
                    states.push(State { length: states[state].length + 1, ..states[target].clone() });
                    while state != NONE {
                        let Some(entry) = states[state].next.iter_mut().find(|entry| **entry == (token, target)) else {
                            break;
                        };
                        entry.1 = copy;
                        state = states[state].link;
                    }
                    states[target].link = copy;
                    states[current].link = copy;
                }
            }
            last = current;
        }
        let widest = tokens.iter().copied().max().map_or(0, |token| usize::from(token) + 1);
        let mut start = vec![NONE; widest];
        for &(token, state) in &states[0].next {
            start[usize::from(token)] = state;
        }
        Self { states, start }
    }

    fn step(&self, state: usize, token: u16) -> Option<usize> {
        if state == 0 {
            return self.start.get(usize::from(token)).copied().filter(|&next| next != NONE);
        }
        find(&self.states[state].next, token)
    }

    /// Longest common run with one sequence, if longer than `best`.
    fn improve(&self, sequence: &[u16], index: usize, best: &mut CopiedRun) {
        let (mut state, mut length) = (0, 0);
        for (position, &token) in sequence.iter().enumerate() {
            loop {
                if let Some(next) = self.step(state, token) {
                    state = next;
                    length += 1;
                    break;
                }
                if state == 0 {
                    break;
                }
                state = self.states[state].link;
                length = self.states[state].length;
            }
            if length > best.frames {
                *best = CopiedRun {
                    frames: length,
                    clip_start: self.states[state].end - length,
                    sequence: index,
                    sequence_start: position + 1 - length,
                };
            }
        }
    }
}

fn find(next: &[(u16, usize)], token: u16) -> Option<usize> {
    next.iter().find(|entry| entry.0 == token).map(|entry| entry.1)
}

/// The longest run of `clip` that stands exactly so in one of the training sequences (first codebook each).
pub fn longest_copied_run(clip: &[u16], training: &[&[u16]]) -> CopiedRun {
    let automaton = Automaton::new(clip);
    let mut best = CopiedRun::default();
    for (index, sequence) in training.iter().enumerate() {
        automaton.improve(sequence, index, &mut best);
    }
    best
}

/// Runs of many clips, in seconds at `frame_rate` frames a second; clips run in parallel.
pub fn copy_report(clips: &[Vec<u16>], training: &[&[u16]], frame_rate: f64, limit_seconds: f64) -> CopyReport {
    let seconds: Vec<f64> =
        clips.par_iter().map(|clip| longest_copied_run(clip, training).frames as f64 / frame_rate).collect();
    let mut sorted = seconds.clone();
    sorted.sort_by(f64::total_cmp);
    let below = seconds.iter().filter(|&&run| run < limit_seconds).count();
    CopyReport {
        median_seconds: sorted.get(sorted.len() / 2).copied().unwrap_or(0.0),
        longest_seconds: sorted.last().copied().unwrap_or(0.0),
        share_below_limit: below as f64 / seconds.len().max(1) as f64,
        limit_seconds,
        seconds,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mambo_model::random;
    use proptest::prelude::*;

    fn by_hand(clip: &[u16], training: &[Vec<u16>]) -> usize {
        let mut best = 0;
        for sequence in training {
            for i in 0..clip.len() {
                for j in 0..sequence.len() {
                    let run = clip[i..].iter().zip(&sequence[j..]).take_while(|(a, b)| a == b).count();
                    best = best.max(run);
                }
            }
        }
        best
    }

    proptest! {
        #[test]
        fn agrees_with_comparing_everything(
            clip in prop::collection::vec(0u16..4, 0..60),
            training in prop::collection::vec(prop::collection::vec(0u16..5, 0..60), 0..4),
        ) {
            let slices: Vec<&[u16]> = training.iter().map(Vec::as_slice).collect();
            let found = longest_copied_run(&clip, &slices);
            prop_assert_eq!(found.frames, by_hand(&clip, &training));
            if found.frames > 0 {
                let source = &training[found.sequence][found.sequence_start..][..found.frames];
                prop_assert_eq!(&clip[found.clip_start..][..found.frames], source);
            }
        }
    }

    #[test]
    fn a_planted_copy_is_found() {
        let mut rng = random::stream(5, "copies", 0);
        let mut sequence =
            |length: usize| -> Vec<u16> { (0..length).map(|_| random::below(&mut rng, 1024) as u16).collect() };
        let training: Vec<Vec<u16>> = (0..50).map(|_| sequence(646)).collect();
        let slices: Vec<&[u16]> = training.iter().map(Vec::as_slice).collect();
        let mut clip = sequence(646);
        assert!(longest_copied_run(&clip, &slices).frames < 6);
        clip[200..287].copy_from_slice(&training[31][400..487]);
        let found = longest_copied_run(&clip, &slices);
        assert_eq!(found, CopiedRun { frames: 87, clip_start: 200, sequence: 31, sequence_start: 400 });
        let report = copy_report(&[clip, sequence(646)], &slices, 44_100.0 / 2048.0, 4.0);
        assert_eq!(report.share_below_limit, 0.5);
        assert!((report.longest_seconds - 87.0 * 2048.0 / 44_100.0).abs() < 1e-9);
    }
}
