//! The beat clock: where in the pulse of the music each frame stands.
//!
//! A small state-space model keeps harmony for minutes but loses count of 10.8 frames a beat. The clock counts for it:
//! beats are tracked in the training music, and while generating a metronome of the tempo that the model drew from
//! the text goes on for ever. Positions are kept in ticks, modulo sixteen beats (four bars of four).

pub use mambo_audio::analysis::tempo::{FASTEST, SLOWEST};

/// Beats after which the clock starts again.
pub const CYCLE_BEATS: u16 = 16;
/// Ticks of a beat.
pub const TICKS_PER_BEAT: u16 = 2048;
/// Stands for a frame of music without a clear beat.
pub const NO_BEAT: u16 = u16::MAX;
/// Ticks after which the clock starts again; every position is below it.
pub const CYCLE_TICKS: u16 = CYCLE_BEATS * TICKS_PER_BEAT;

/// Numbers that tell the model one position.
pub const FEATURES: usize = 2 * CYCLES_A_BEAT.len() + 1;
/// Frequencies of the hands: four bars, two bars, a bar, half a bar, a beat, an eighth, a sixteenth.
const CYCLES_A_BEAT: [f32; 7] = [1.0 / 16.0, 1.0 / 8.0, 1.0 / 4.0, 1.0 / 2.0, 1.0, 2.0, 4.0];

/// Classes an octave of tempo: neighbours are 4.4 % apart.
const CLASSES_AN_OCTAVE: f32 = 16.0;
/// Tempo classes: no beat, then 40 to 240 beats a minute in equal ratios.
pub const TEMPO_CLASSES: usize = 43;

/// Whether a stored number is a position or [`NO_BEAT`].
pub fn is_position(ticks: u16) -> bool {
    ticks < CYCLE_TICKS || ticks == NO_BEAT
}

/// The position some whole beats later.
pub fn later(ticks: u16, beats: u16) -> u16 {
    if ticks == NO_BEAT { NO_BEAT } else { (ticks + beats % CYCLE_BEATS * TICKS_PER_BEAT) % CYCLE_TICKS }
}

/// Ticks of a position in beats, which may be negative.
pub fn ticks(beats: f64) -> u16 {
    let cycle = f64::from(CYCLE_BEATS);
    let ticks = (beats.rem_euclid(cycle) * f64::from(TICKS_PER_BEAT)).round() as u32;
    (ticks % u32::from(CYCLE_TICKS)) as u16
}

/// The model's view of a position: sine and cosine of every hand, then 1; all 0 for [`NO_BEAT`].
pub fn features(ticks: u16) -> [f32; FEATURES] {
    let mut out = [0.0; FEATURES];
    if ticks == NO_BEAT {
        return out;
    }
    let beats = f32::from(ticks) / f32::from(TICKS_PER_BEAT);
    for (pair, cycles) in out.chunks_exact_mut(2).zip(CYCLES_A_BEAT) {
        // The whole turns are taken off first: they cost precision.
        let angle = (beats * cycles).fract() * std::f32::consts::TAU;
        pair[0] = angle.sin();
        pair[1] = angle.cos();
    }
    out[FEATURES - 1] = 1.0;
    out
}

/// For every frame the one that stands `beats` before it, to the nearest frame; `None` where the music has no beat or had
/// not begun.
pub fn frames_before(frames: &[u16], beats: u16) -> Vec<Option<usize>> {
    let cycle = u32::from(CYCLE_TICKS);
    let lag = u64::from(beats) * u64::from(TICKS_PER_BEAT);
    // Positions unwrapped; a gap without a beat begins a new stretch.
    let mut places: Vec<Option<u64>> = Vec::with_capacity(frames.len());
    let (mut begin, mut at) = (0, 0);
    let mut out = Vec::with_capacity(frames.len());
    for (frame, &position) in frames.iter().enumerate() {
        let before = frame.checked_sub(1).and_then(|last| Some((places[last]?, frames[last])));
        let place = match before {
            _ if position == NO_BEAT => None,
            Some((place, last)) => Some(place + u64::from((u32::from(position) + cycle - u32::from(last)) % cycle)),
            None => {
                (begin, at) = (frame, frame);
                Some(0)
            }
        };
        places.push(place);
        let wanted = place.and_then(|place| place.checked_sub(lag));
        out.push(wanted.map(|wanted| {
            let distance = |frame: usize| places[frame].map_or(u64::MAX, |place| place.abs_diff(wanted));
            at = at.max(begin);
            while at + 1 < frame && distance(at + 1) <= distance(at) {
                at += 1;
            }
            at
        }));
    }
    out
}

/// Mean tempo of a run of frames in beats a minute; `None` without a beat or with fewer than two frames.
pub fn tempo(frames: &[u16], frames_per_second: f32) -> Option<f32> {
    if frames.len() < 2 || frames.contains(&NO_BEAT) {
        return None;
    }
    let cycle = u32::from(CYCLE_TICKS);
    let advance = |pair: &[u16]| (u32::from(pair[1]) + cycle - u32::from(pair[0])) % cycle;
    let total: u64 = frames.windows(2).map(|pair| u64::from(advance(pair))).sum();
    let beats = total as f32 / f32::from(TICKS_PER_BEAT);
    Some(60.0 * frames_per_second * beats / (frames.len() - 1) as f32)
}

/// Class of a tempo: 0 without a beat.
pub fn tempo_class(beats_per_minute: Option<f32>) -> usize {
    let Some(tempo) = beats_per_minute else { return 0 };
    let steps = (tempo.clamp(SLOWEST, FASTEST) / SLOWEST).log2() * CLASSES_AN_OCTAVE;
    1 + (steps.round() as usize).min(TEMPO_CLASSES - 2)
}

/// Tempo in the middle of a class; `None` for class 0.
pub fn tempo_of_class(class: usize) -> Option<f32> {
    (class > 0).then(|| SLOWEST * ((class - 1) as f32 / CLASSES_AN_OCTAVE).exp2())
}

/// The nearest tempo whose beats last whole frames: what is played again then falls on the same place within a frame.
pub fn whole_frames(beats_per_minute: f32, frames_per_second: f32) -> f32 {
    let frames = |tempo: f32| 60.0 * frames_per_second / tempo;
    let fewest = frames(FASTEST).ceil().max(1.0);
    frames(frames(beats_per_minute).round().max(fewest))
}

/// A clock at a constant tempo; by default without a beat.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Metronome {
    beats_per_frame: Option<f64>,
}

impl Metronome {
    /// `None`: music without a beat.
    pub fn new(beats_per_minute: Option<f32>, frames_per_second: f32) -> Self {
        Self { beats_per_frame: beats_per_minute.map(|tempo| f64::from(tempo) / 60.0 / f64::from(frames_per_second)) }
    }

    /// Frames that `beats` last, to the nearest one; `None` without a beat.
    pub fn frames_in(&self, beats: u16) -> Option<usize> {
        self.beats_per_frame.map(|rate| (f64::from(beats) / rate).round().max(1.0) as usize)
    }

    /// Frames since the last one that a beat falls on, to the nearest; `None` without a beat.
    pub fn after_beat(&self, frame: u64) -> Option<u64> {
        self.beats_per_frame.map(|rate| {
            let start = |beat: f64| (beat / rate).round() as u64;
            // Half a frame on, so that a beat which rounds to this frame has begun.
            let beat = ((frame as f64 + 0.5) * rate).floor();
            frame.saturating_sub(start(beat))
        })
    }

    /// Position of a frame, the first of which is on the beat.
    pub fn at(&self, frame: u64) -> u16 {
        self.beats_per_frame.map_or(NO_BEAT, |beats| ticks(frame as f64 * beats))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_metronome_has_the_tempo_it_was_given(tempo_given in SLOWEST..FASTEST, rate in 10.0f32..100.0, first in 0u64..1_000_000) {
            let metronome = Metronome::new(Some(tempo_given), rate);
            let frames: Vec<u16> = (first..first + 200).map(|frame| metronome.at(frame)).collect();
            prop_assert!(frames.iter().all(|&position| position < CYCLE_TICKS));
            let found = tempo(&frames, rate).unwrap();
            prop_assert!((found / tempo_given - 1.0).abs() < 2e-3, "{} {}", found, tempo_given);
            let whole = whole_frames(tempo_given, rate);
            let frames_a_beat = 60.0 * rate / whole;
            prop_assert!((frames_a_beat - frames_a_beat.round()).abs() < 1e-3 && whole <= FASTEST * 1.0001);
            let class = tempo_class(Some(tempo_given));
            prop_assert!((1..TEMPO_CLASSES).contains(&class));
            prop_assert!((tempo_of_class(class).unwrap() / tempo_given).log2().abs() <= 0.5 / CLASSES_AN_OCTAVE + 1e-4);
        }

        #[test]
        fn hands_turn_smoothly_through_the_end_of_the_cycle(beats in -100.0f64..100.0) {
            let (a, b) = (features(ticks(beats)), features(ticks(beats + 0.01)));
            for (a, b) in a.iter().zip(b) {
                prop_assert!((a - b).abs() < 0.3);
            }
            prop_assert_eq!(a[FEATURES - 1], 1.0);
        }
    }

    #[test]
    fn frames_a_few_beats_before_are_found_in_a_steady_and_in_a_broken_clock() {
        let metronome = Metronome::new(Some(117.45), 21.533_2);
        let steady: Vec<u16> = (0..200).map(|frame| metronome.at(frame)).collect();
        for beats in [1, 2, 4] {
            let lag = metronome.frames_in(beats).unwrap();
            assert_eq!(lag, 11 * usize::from(beats));
            for (frame, before) in frames_before(&steady, beats).into_iter().enumerate() {
                if frame != lag {
                    assert_eq!(before, frame.checked_sub(lag), "{beats} beats before frame {frame}");
                }
            }
        }
        let mut broken = steady.clone();
        broken[60..80].fill(NO_BEAT);
        let before = frames_before(&broken, 1);
        assert_eq!((before[59], before[60], before[85]), (Some(48), None, None));
        assert_eq!(before[95], Some(84));
        assert_eq!(Metronome::new(None, 21.5).frames_in(1), None);
    }

    #[test]
    fn without_a_beat_there_is_nothing_to_see() {
        assert_eq!(features(NO_BEAT), [0.0; FEATURES]);
        assert_eq!(Metronome::new(None, 21.5).at(7), NO_BEAT);
        assert_eq!(tempo(&[NO_BEAT; 9], 21.5), None);
        assert_eq!(tempo(&[5], 21.5), None);
        assert_eq!(tempo_class(None), 0);
        assert_eq!(tempo_of_class(0), None);
        assert_eq!(tempo_class(Some(FASTEST)), TEMPO_CLASSES - 1);
        assert_eq!(tempo_class(Some(SLOWEST)), 1);
    }
}
