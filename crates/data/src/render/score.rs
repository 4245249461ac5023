//! A piece of notes in beats, and what can be known from it exactly: instruments, tempo, key, density.

use super::gm::program_name;

/// Channel that plays percussion in General MIDI.
pub const DRUMS: u8 = 9;

/// A sounding note.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Note {
    /// Start in beats (quarter notes) from the beginning.
    pub beat: f64,
    /// Duration in beats.
    pub length: f64,
    /// MIDI channel, 0 to 15.
    pub channel: u8,
    /// MIDI key; for drums the percussion sound.
    pub key: u8,
    /// 1 to 127.
    pub velocity: u8,
}

/// A change on a channel that is not a note.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Change {
    /// When, in beats.
    pub beat: f64,
    /// MIDI channel.
    pub channel: u8,
    /// What.
    pub kind: ChangeKind,
}

/// Kinds of [`Change`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ChangeKind {
    /// Another instrument.
    Program(u8),
    /// Controller and value.
    Control(u8, u8),
    /// 14-bit pitch bend, 8192 in the middle.
    Bend(u16),
}

/// A piece.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Score {
    /// Title in the file, or its name.
    pub title: String,
    /// Sorted by start.
    pub notes: Vec<Note>,
    /// Sorted by time.
    pub changes: Vec<Change>,
    /// (beat, beats per minute), sorted, the first at beat 0.
    pub tempo: Vec<(f64, f64)>,
    /// Beats in a bar.
    pub beats_per_bar: f64,
    /// False where the file's beats are a formality (converted from a format without beats), so that
    /// its tempo says nothing and nothing can be placed on its bars.
    pub has_grid: bool,
}

/// What a channel does in the piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The tune.
    Lead,
    /// Chords and figures.
    Harmony,
    /// Long held notes.
    Pad,
    /// The lowest line.
    Bass,
    /// Percussion.
    Drums,
}

impl Score {
    /// End of the last note in beats.
    #[must_use]
    pub fn end(&self) -> f64 {
        self.notes.iter().map(|note| note.beat + note.length).fold(0.0, f64::max)
    }

    /// Seconds from the beginning to a beat.
    #[must_use]
    pub fn seconds_at(&self, beat: f64) -> f64 {
        let mut seconds = 0.0;
        for (index, &(start, bpm)) in self.tempo.iter().enumerate() {
            let end = self.tempo.get(index + 1).map_or(f64::INFINITY, |next| next.0);
            if beat <= start {
                break;
            }
            seconds += (beat.min(end) - start) * 60.0 / bpm;
        }
        seconds
    }

    /// Program of a channel at a beat.
    #[must_use]
    pub fn program_at(&self, channel: u8, beat: f64) -> u8 {
        let mut program = 0;
        for change in self.changes.iter().take_while(|change| change.beat <= beat + 1e-9) {
            if let (true, ChangeKind::Program(number)) = (change.channel == channel, change.kind) {
                program = number;
            }
        }
        program
    }

    /// Tempo by time: the mean of the tempo map, or an estimate from the onsets where the map says
    /// nothing. Folded into the range in which people tap.
    #[must_use]
    pub fn beats_per_minute(&self) -> f64 {
        let end = self.end();
        let seconds = self.seconds_at(end);
        let bpm = if self.has_grid && seconds > 0.0 {
            end * 60.0 / seconds
        } else {
            let mut onsets: Vec<(f64, f64)> =
                self.notes.iter().map(|note| (self.seconds_at(note.beat), f64::from(note.velocity) / 127.0)).collect();
            onsets.sort_by(|a, b| a.0.total_cmp(&b.0));
            tempo_of_onsets(&onsets)
        };
        fold_tempo(bpm)
    }

    /// Channels with their roles; silent channels are absent.
    #[must_use]
    pub fn roles(&self) -> Vec<(u8, Role)> {
        let mut found: Vec<(u8, Role)> = Vec::new();
        let mut tunes: Vec<(f64, usize)> = Vec::new();
        for channel in 0..16_u8 {
            let notes: Vec<&Note> = self.notes.iter().filter(|note| note.channel == channel).collect();
            if notes.is_empty() {
                continue;
            }
            if channel == DRUMS {
                found.push((channel, Role::Drums));
                continue;
            }
            let count = notes.len() as f64;
            let mean_key = notes.iter().map(|note| f64::from(note.key)).sum::<f64>() / count;
            let mean_length = notes.iter().map(|note| note.length).sum::<f64>() / count;
            let program = self.program_at(channel, notes[0].beat);
            let mut starts: Vec<i64> = notes.iter().map(|note| (note.beat * 24.0).round() as i64).collect();
            starts.sort_unstable();
            starts.dedup();
            let chord_size = count / starts.len() as f64;
            let role = if (32..40).contains(&program) || program == 43 || (mean_key < 46.0 && chord_size < 1.3) {
                Role::Bass
            } else if mean_length > 2.5 || (88..96).contains(&program) {
                Role::Pad
            } else {
                // A tune moves, is high and has one note at a time.
                let moves = (count / 40.0).min(1.0);
                tunes.push((moves * (mean_key - 40.0).max(1.0) / chord_size.powi(2), found.len()));
                Role::Harmony
            };
            found.push((channel, role));
        }
        if let Some(&(_, index)) = tunes.iter().max_by(|a, b| a.0.total_cmp(&b.0)) {
            found[index].1 = Role::Lead;
        }
        found
    }

    /// Instruments by sounding time and loudness, the most heard first; drums by how often they are hit.
    #[must_use]
    pub fn instruments(&self) -> Vec<String> {
        let mut heard: Vec<(&'static str, f64)> = Vec::new();
        let mut total = 0.0;
        for note in &self.notes {
            let drums = note.channel == DRUMS;
            let name = if drums { "drums" } else { program_name(self.program_at(note.channel, note.beat)) };
            // A held note fades; a hit counts as a short note.
            let weight = f64::from(note.velocity) * if drums { 0.25 } else { note.length.min(2.0) };
            total += weight;
            match heard.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum += weight,
                None => heard.push((name, weight)),
            }
        }
        heard.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(b.0)));
        heard
            .into_iter()
            .filter(|(_, weight)| *weight >= 0.06 * total)
            .take(5)
            .map(|(name, _)| name.to_owned())
            .collect()
    }

    /// The key, where the notes leave little doubt.
    #[must_use]
    pub fn key(&self) -> Option<String> {
        let mut weights = [0.0; 12];
        for note in self.notes.iter().filter(|note| note.channel != DRUMS) {
            weights[usize::from(note.key % 12)] += note.length.min(4.0);
        }
        key_of_weights(&weights)
    }

    /// Note onsets a second over all parts.
    #[must_use]
    pub fn notes_per_second(&self) -> f64 {
        let seconds = self.seconds_at(self.end());
        if seconds > 0.0 { self.notes.len() as f64 / seconds } else { 0.0 }
    }
}

/// Doubles or halves a tempo into 60 to 190 beats a minute.
fn fold_tempo(mut bpm: f64) -> f64 {
    if !bpm.is_finite() || bpm <= 0.0 {
        return 120.0;
    }
    while bpm < 60.0 {
        bpm *= 2.0;
    }
    while bpm > 190.0 {
        bpm /= 2.0;
    }
    bpm
}

/// Tempo whose beat and its subdivisions the onsets (seconds, weight) fall on best, with a mild
/// preference for the middle of the range.
fn tempo_of_onsets(onsets: &[(f64, f64)]) -> f64 {
    let mut best = (f64::MIN, 120.0);
    for step in 0..=520 {
        let bpm = 60.0 + f64::from(step) * 0.25;
        let mut score = 0.0;
        // Phase coherence at the beat and at half of it: |sum w exp(i phase)|.
        for (divisions, weight) in [(1.0, 1.0), (2.0, 0.8), (4.0, 0.5)] {
            let (mut real, mut imaginary, mut total) = (0.0, 0.0, 1e-9);
            for &(seconds, velocity) in onsets {
                let phase = seconds * bpm / 60.0 * divisions * std::f64::consts::TAU;
                real += velocity * phase.cos();
                imaginary += velocity * phase.sin();
                total += velocity;
            }
            score += weight * f64::hypot(real, imaginary) / total;
        }
        score -= 0.25 * (bpm / 115.0_f64).log2().powi(2);
        if score > best.0 {
            best = (score, bpm);
        }
    }
    best.1
}

/// Probe-tone weights for keys on C (Krumhansl and Kessler 1982), major and minor.
const MAJOR: [f64; 12] = [6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88];
const MINOR: [f64; 12] = [6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17];
/// Names of the pitch classes.
pub(crate) const PITCH_NAMES: [&str; 12] =
    ["C", "C sharp", "D", "E flat", "E", "F", "F sharp", "G", "A flat", "A", "B flat", "B"];

fn correlation(a: &[f64; 12], b: impl Fn(usize) -> f64) -> f64 {
    let mean_a = a.iter().sum::<f64>() / 12.0;
    let mean_b = (0..12).map(&b).sum::<f64>() / 12.0;
    let (mut ab, mut aa, mut bb) = (0.0, 1e-12, 1e-12);
    for (index, &value) in a.iter().enumerate() {
        let (x, y) = (value - mean_a, b(index) - mean_b);
        ab += x * y;
        aa += x * x;
        bb += y * y;
    }
    ab / (aa * bb).sqrt()
}

fn key_of_weights(weights: &[f64; 12]) -> Option<String> {
    let mut scores: Vec<(f64, usize, &str)> = Vec::new();
    for tonic in 0..12 {
        for (profile, mode) in [(&MAJOR, "major"), (&MINOR, "minor")] {
            scores.push((correlation(weights, |index| profile[(index + 12 - tonic) % 12]), tonic, mode));
        }
    }
    scores.sort_by(|a, b| b.0.total_cmp(&a.0));
    let clear = scores[0].0 > 0.6 && scores[0].0 - scores[1].0 > 0.04;
    clear.then(|| format!("{} {}", PITCH_NAMES[scores[0].1], scores[0].2))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(beat: f64, length: f64, channel: u8, key: u8) -> Note {
        Note { beat, length, channel, key, velocity: 100 }
    }

    #[test]
    fn time_follows_the_tempo_map() {
        let score = Score { tempo: vec![(0.0, 60.0), (4.0, 120.0)], ..Score::default() };
        assert_eq!([0.0, 2.0, 4.0, 6.0].map(|beat| score.seconds_at(beat)), [0.0, 2.0, 4.0, 5.0]);
    }

    #[test]
    fn keys_are_found_and_chromatic_noise_has_none() {
        let scale = [0, 2, 4, 5, 7, 9, 11, 12, 7, 4, 0];
        let notes =
            |transpose: u8| scale.iter().enumerate().map(|(i, k)| note(i as f64, 1.0, 0, 60 + k + transpose)).collect();
        let score = |transpose| Score { notes: notes(transpose), tempo: vec![(0.0, 120.0)], ..Score::default() };
        assert_eq!(score(0).key().as_deref(), Some("C major"));
        assert_eq!(score(9).key().as_deref(), Some("A major"));
        assert_eq!(key_of_weights(&[1.0; 12]), None);
    }

    #[test]
    fn tempo_is_found_from_onsets_where_the_file_has_none() {
        // Eighth notes with strong beats at 140 bpm, written under a meaningless tempo.
        let onset = |index: i32| Note {
            velocity: if index % 2 == 0 { 120 } else { 60 },
            ..note(f64::from(index) * 30.0 / 140.0, 0.1, DRUMS, 36)
        };
        let score = Score {
            notes: (0..200).map(onset).collect(),
            tempo: vec![(0.0, 60.0)],
            has_grid: false,
            ..Score::default()
        };
        let bpm = score.beats_per_minute();
        assert!((bpm - 140.0).abs() < 1.0 || (bpm - 70.0).abs() < 0.6, "{bpm}");
    }

    #[test]
    fn roles_and_instruments_come_from_what_sounds() {
        let mut notes = Vec::new();
        for beat in 0..32 {
            let beat = f64::from(beat);
            notes.push(note(beat, 0.9, 0, 72 + (beat as u8 % 5)));
            notes.push(note(beat, 0.9, 1, 36));
            for key in [55, 59, 62] {
                notes.push(note(beat, 0.5, 2, key));
            }
            notes.push(note(beat, 0.1, DRUMS, 38));
        }
        let change = |channel, program| Change { beat: 0.0, channel, kind: ChangeKind::Program(program) };
        let score = Score {
            notes,
            changes: vec![change(0, 73), change(1, 33), change(2, 0)],
            tempo: vec![(0.0, 100.0)],
            has_grid: true,
            ..Score::default()
        };
        assert_eq!(score.roles(), [(0, Role::Lead), (1, Role::Bass), (2, Role::Harmony), (9, Role::Drums)]);
        assert_eq!(score.instruments(), ["piano", "electric bass", "flute", "drums"]);
        assert!((score.beats_per_minute() - 100.0).abs() < 1e-9);
    }
}
