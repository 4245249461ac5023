//! A score and an arrangement become a performance: a new score with other instruments, drums, key
//! and tempo, of which one excerpt is played.

use super::arrangement::{Arrangement, Beat, Engine, pattern};
use super::score::{Change, ChangeKind, DRUMS, Note, Role, Score};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;

/// What to play.
#[derive(Debug, Clone, PartialEq)]
pub struct Performance {
    /// The notes to play, with a tempo map in performed time.
    pub score: Score,
    /// Who plays.
    pub engine: Engine,
    /// Semitones up from the written key.
    pub transposed: i32,
    /// Beats that are felt for one that is written: one half where a slow style is played over a score
    /// that counts twice as fast.
    pub felt: f64,
}

/// A number in `0..limit`.
pub(super) fn draw(random: &mut ChaCha8Rng, limit: usize) -> usize {
    ((u128::from(random.next_u64()) * limit.max(1) as u128) >> 64) as usize
}

/// A number in the range.
fn draw_between(random: &mut ChaCha8Rng, low: f64, high: f64) -> f64 {
    low + (high - low) * (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// Moves a key by octaves into a range of at least an octave.
fn into_range(key: i32, (low, high): (u8, u8)) -> u8 {
    let (low, high) = (i32::from(low), i32::from(high));
    let mut key = key;
    while key < low {
        key += 12;
    }
    while key > high {
        key -= 12;
    }
    key.clamp(0, 127) as u8
}

/// Delays the second half of each beat: straight eighths become long and short.
fn swung(beat: f64) -> f64 {
    let (whole, phase) = (beat.floor(), beat - beat.floor());
    whole + if phase < 0.5 { phase * 4.0 / 3.0 } else { 2.0 / 3.0 + (phase - 0.5) * 2.0 / 3.0 }
}

/// The piece as written, a little faster or slower, higher or lower.
#[must_use]
pub fn as_written(score: &Score, random: &mut ChaCha8Rng) -> Performance {
    let transposed = draw(random, 7) as i32 - 3;
    let speed = draw_between(random, 0.92, 1.08);
    let mut score = score.clone();
    for note in score.notes.iter_mut().filter(|note| note.channel != DRUMS) {
        note.key = (i32::from(note.key) + transposed).clamp(0, 127) as u8;
    }
    score.tempo.iter_mut().for_each(|(_, bpm)| *bpm *= speed);
    Performance { score, engine: Engine::SoundFont, transposed, felt: 1.0 }
}

/// The piece in another arrangement.
#[must_use]
pub fn arranged(score: &Score, arrangement: &Arrangement, random: &mut ChaCha8Rng) -> Performance {
    let transposed = draw(random, 11) as i32 - 5;
    let roles = score.roles();
    let mut notes = Vec::new();
    let mut changes = Vec::new();
    let mut dealt = 0;
    let lead_program = arrangement.lead[draw(random, arrangement.lead.len())];
    let bass_program = arrangement.bass.get(draw(random, arrangement.bass.len())).copied();
    for &(channel, role) in &roles {
        let (program, range, volume) = match role {
            Role::Lead => (Some(lead_program), arrangement.lead_range, 112),
            Role::Harmony => {
                dealt += 1;
                (Some(arrangement.harmony[(dealt - 1) % arrangement.harmony.len()]), arrangement.harmony_range, 84)
            }
            Role::Pad => {
                dealt += 1;
                let choices = if arrangement.pad.is_empty() { arrangement.harmony } else { arrangement.pad };
                (Some(choices[(dealt - 1) % choices.len()]), arrangement.harmony_range, 76)
            }
            Role::Bass => (bass_program, (28, 55), 104),
            Role::Drums => (None, (0, 127), 100),
        };
        let Some(program) = program else { continue };
        changes.push(Change { beat: 0.0, channel, kind: ChangeKind::Program(program) });
        changes.push(Change { beat: 0.0, channel, kind: ChangeKind::Control(7, volume) });
        let pan = if matches!(role, Role::Lead | Role::Bass) { 64 } else { 34 + (dealt % 4) as u8 * 20 };
        changes.push(Change { beat: 0.0, channel, kind: ChangeKind::Control(10, pan) });
        let own: Vec<Note> = score.notes.iter().filter(|note| note.channel == channel).copied().collect();
        let chords = arrangement.power_chords && matches!(role, Role::Harmony | Role::Pad);
        let own = if chords { power_chords(&own) } else { own };
        notes.extend(own.into_iter().map(|note| Note {
            key: into_range(i32::from(note.key) + transposed, range),
            length: note.length * if role == Role::Bass { 1.0 } else { arrangement.hold },
            velocity: (f64::from(note.velocity.max(50)) * arrangement.force).clamp(20.0, 127.0) as u8,
            ..note
        }));
    }
    add_drums(score, arrangement.beat, arrangement.force, &mut notes, &mut changes);
    if arrangement.swing && score.has_grid {
        for note in &mut notes {
            let end = swung(note.beat + note.length);
            note.beat = swung(note.beat);
            note.length = (end - note.beat).max(1.0 / 64.0);
        }
    }
    // Two parts on one key of one channel after octave folding would cut each other off.
    notes.sort_by(|a, b| a.beat.total_cmp(&b.beat).then(a.channel.cmp(&b.channel)).then(a.key.cmp(&b.key)));
    notes.dedup_by(|later, earlier| {
        later.channel == earlier.channel && later.key == earlier.key && (later.beat - earlier.beat).abs() < 1e-6
    });
    let (speed, felt) = speed_for(score, arrangement.tempo, random);
    let tempo = score.tempo.iter().map(|&(beat, bpm)| (beat, bpm * speed)).collect();
    let score = Score { notes, changes, tempo, ..score.clone() };
    Performance { score, engine: arrangement.engine, transposed, felt }
}

/// Each chord becomes its lowest note and the fifth above it.
fn power_chords(notes: &[Note]) -> Vec<Note> {
    let mut chords: Vec<Note> = Vec::new();
    for note in notes {
        match chords.last_mut() {
            Some(last) if (last.beat - note.beat).abs() < 0.02 => {
                if note.key < last.key {
                    *last = *note;
                }
            }
            _ => chords.push(*note),
        }
    }
    chords.iter().flat_map(|root| [*root, Note { key: (root.key + 7).min(127), ..*root }]).collect()
}

fn add_drums(score: &Score, beat: Beat, force: f64, notes: &mut Vec<Note>, changes: &mut Vec<Change>) {
    let (kit, pattern) = match beat {
        Beat::None => return,
        Beat::Keep(kit) => (kit, None),
        Beat::Pattern(name, kit) => (kit, pattern(name)),
    };
    changes.push(Change { beat: 0.0, channel: DRUMS, kind: ChangeKind::Program(kit) });
    changes.push(Change { beat: 0.0, channel: DRUMS, kind: ChangeKind::Control(7, 108) });
    let Some(pattern) = pattern.filter(|_| score.has_grid) else {
        notes.extend(score.notes.iter().filter(|note| note.channel == DRUMS));
        return;
    };
    let bars = (score.end() / score.beats_per_bar).ceil() as usize;
    let sixteenths = (score.beats_per_bar * 4.0).round() as usize;
    for bar in 0..bars {
        for &(key, hits) in pattern {
            for place in 0..sixteenths {
                let base = match hits.as_bytes()[place % 16] {
                    b'x' => 100.0,
                    b'o' => 62.0,
                    _ => continue,
                };
                notes.push(Note {
                    beat: bar as f64 * score.beats_per_bar + place as f64 * 0.25,
                    length: 0.2,
                    channel: DRUMS,
                    key,
                    velocity: (base * force).clamp(20.0, 127.0) as u8,
                });
            }
        }
    }
}

/// Factor on the written tempo that brings the piece into a range, never so much that the piece is
/// distorted; and how many beats are then felt for a written one, where that is nearer.
fn speed_for(score: &Score, range: Option<(f64, f64)>, random: &mut ChaCha8Rng) -> (f64, f64) {
    let Some((low, high)) = range else { return (draw_between(random, 0.9, 1.1), 1.0) };
    let written = score.beats_per_minute();
    let target = draw_between(random, low, high);
    let (speed, felt) = [0.5, 1.0, 2.0]
        .into_iter()
        .map(|felt| (target / (written * felt), felt))
        .min_by(|a, b| a.0.ln().abs().total_cmp(&b.0.ln().abs()))
        .unwrap_or((1.0, 1.0));
    (speed.clamp(0.55, 1.8), felt)
}

/// Cuts out `seconds` of the performance, beginning on a bar, where enough is played. What was set on
/// the channels before still holds. `None` if the piece is too empty everywhere.
#[must_use]
pub fn excerpt(performance: &Performance, seconds: f64, random: &mut ChaCha8Rng) -> Option<Performance> {
    let score = &performance.score;
    let end = score.end();
    let total = score.seconds_at(end);
    let bar = score.beats_per_bar.max(1.0);
    let bars = (end / bar).ceil() as usize;
    let latest = (0..bars).rev().find(|&number| score.seconds_at(number as f64 * bar) + seconds <= total).unwrap_or(0);
    let mean = score.notes.len() as f64 / total.max(1.0);
    let mut best: Option<(f64, f64, usize)> = None;
    for _ in 0..8 {
        let first = draw(random, latest + 1);
        let start = score.seconds_at(first as f64 * bar);
        let tuned = |from: f64, to: f64| {
            let inside = |note: &&Note| (from..to).contains(&score.seconds_at(note.beat));
            let all = score.notes.iter().filter(inside).count();
            let pitched = score.notes.iter().filter(inside).filter(|note| note.channel != DRUMS).count();
            (all as f64, pitched as f64)
        };
        let (all, pitched) = tuned(start, start + seconds);
        let early = tuned(start, start + seconds / 4.0).0;
        // Rather a full excerpt with a tune that begins at once than an introduction.
        let worth = (all / (mean * seconds)).min(1.0)
            + (pitched / seconds).min(2.0)
            + (early / (mean * seconds / 4.0)).min(1.0);
        if pitched >= seconds && best.is_none_or(|(known, _, _)| worth > known) {
            best = Some((worth, start, first));
        }
    }
    let (_, start, first) = best?;
    let offset = first as f64 * bar;
    let mut cut = score.clone();
    cut.notes.retain(|note| note.beat >= offset - 1e-9 && score.seconds_at(note.beat) < start + seconds);
    cut.notes.iter_mut().for_each(|note| note.beat = (note.beat - offset).max(0.0));
    cut.changes.retain(|change| score.seconds_at(change.beat) < start + seconds);
    cut.changes.iter_mut().for_each(|change| change.beat = (change.beat - offset).max(0.0));
    let before = cut.tempo.iter().rev().find(|(beat, _)| *beat <= offset).map_or(120.0, |(_, bpm)| *bpm);
    cut.tempo.retain(|(beat, _)| *beat > offset);
    cut.tempo.iter_mut().for_each(|(beat, _)| *beat -= offset);
    cut.tempo.insert(0, (0.0, before));
    Some(Performance { score: cut, ..performance.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::arrangement::all;
    use rand_chacha::rand_core::SeedableRng;

    fn piece() -> Score {
        let mut notes = Vec::new();
        for beat in 0..256_u32 {
            let start = f64::from(beat);
            let tune =
                Note { beat: start, length: 0.8, channel: 0, key: 70 + [0, 2, 4, 7][beat as usize % 4], velocity: 90 };
            notes.push(tune);
            notes.push(Note { channel: 1, key: 36, ..tune });
            for key in [55, 59, 62] {
                notes.push(Note { channel: 2, key, beat: start + 0.5, length: 0.4, ..tune });
            }
        }
        notes.sort_by(|a, b| a.beat.total_cmp(&b.beat));
        let changes = vec![Change { beat: 0.0, channel: 1, kind: ChangeKind::Program(33) }];
        Score { notes, changes, tempo: vec![(0.0, 120.0)], beats_per_bar: 4.0, has_grid: true, title: "x".into() }
    }

    #[test]
    fn every_arrangement_plays_its_own_instruments_in_range_and_tempo() {
        let score = piece();
        for arrangement in all() {
            let mut random = ChaCha8Rng::seed_from_u64(5);
            let performance = arranged(&score, arrangement, &mut random);
            assert_eq!(performance, arranged(&score, arrangement, &mut ChaCha8Rng::seed_from_u64(5)));
            let played = &performance.score;
            let allowed: Vec<u8> = [arrangement.lead, arrangement.harmony, arrangement.pad, arrangement.bass].concat();
            for note in played.notes.iter().filter(|note| note.channel != DRUMS) {
                assert!(allowed.contains(&played.program_at(note.channel, note.beat)), "{}", arrangement.name);
                assert!((28..=96).contains(&note.key), "{} {}", arrangement.name, note.key);
            }
            let drums = played.notes.iter().any(|note| note.channel == DRUMS);
            assert_eq!(drums, matches!(arrangement.beat, Beat::Pattern(..)), "{}", arrangement.name);
            if let Some((low, high)) = arrangement.tempo {
                let bpm = played.beats_per_minute() * performance.felt;
                let felt = [bpm / 2.0, bpm, bpm * 2.0].into_iter().any(|bpm| (low - 1.0..high + 1.0).contains(&bpm));
                assert!(felt, "{} {bpm}", arrangement.name);
            }
        }
    }

    #[test]
    fn an_excerpt_starts_on_a_bar_and_keeps_what_was_set() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let whole = as_written(&piece(), &mut random);
        let cut = excerpt(&whole, 20.0, &mut random).unwrap();
        assert!((cut.score.seconds_at(cut.score.end()) - 20.0).abs() < 1.0);
        assert_eq!(cut.score.notes[0].beat, 0.0);
        assert_eq!(cut.score.program_at(1, 0.0), 33);
        let empty = Performance { score: Score { notes: vec![], ..whole.score.clone() }, ..whole };
        assert!(excerpt(&empty, 20.0, &mut random).is_none());
    }

    #[test]
    fn swing_is_late_only_off_the_beat() {
        assert_eq!(swung(3.0), 3.0);
        assert!((swung(3.5) - 3.0 - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(into_range(20, (60, 88)), 68);
        assert_eq!(into_range(100, (60, 88)), 88);
    }
}
