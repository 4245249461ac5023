//! Standard MIDI files and the MUS files of Doom-like games become a [`Score`].
//!
//! MUS has no beats: 140 ticks a second, channel 15 for percussion, its own controller numbers. It is
//! read as beats of one second at a tempo of 60, without a grid.

use super::score::{Change, ChangeKind, DRUMS, Note, Score};
use crate::error::DataError;
use midly::{MetaMessage, MidiMessage, Smf, Timing, TrackEventKind};
use std::path::Path;

/// Reads either format by content.
///
/// # Errors
/// Neither format, damaged, or without notes.
pub fn read_score(path: &Path, name: &str, bytes: &[u8]) -> Result<Score, DataError> {
    let mut score = if bytes.starts_with(b"MUS\x1a") {
        read_mus(bytes).ok_or_else(|| DataError::format(path, "a whole MUS file", "one that breaks off"))?
    } else {
        read_midi(path, bytes)?
    };
    if score.notes.is_empty() {
        return Err(DataError::format(path, "a score with notes", format!("none in {name}")));
    }
    score.notes.sort_by(|a, b| a.beat.total_cmp(&b.beat).then(a.channel.cmp(&b.channel)).then(a.key.cmp(&b.key)));
    score.changes.sort_by(|a, b| a.beat.total_cmp(&b.beat));
    score.tempo.sort_by(|a, b| a.0.total_cmp(&b.0));
    if score.tempo.first().is_none_or(|first| first.0 > 0.0) {
        // The MIDI default.
        score.tempo.insert(0, (0.0, 120.0));
    }
    if score.title.is_empty() {
        name.clone_into(&mut score.title);
    }
    Ok(score)
}

/// Notes that are on, until their off comes.
#[derive(Default)]
struct Open {
    notes: Vec<Note>,
}

impl Open {
    fn on(&mut self, beat: f64, channel: u8, key: u8, velocity: u8, done: &mut Vec<Note>) {
        self.off(beat, channel, key, done);
        self.notes.push(Note { beat, length: 0.0, channel, key, velocity });
    }

    fn off(&mut self, beat: f64, channel: u8, key: u8, done: &mut Vec<Note>) {
        if let Some(place) = self.notes.iter().position(|note| note.channel == channel && note.key == key) {
            let mut note = self.notes.remove(place);
            // Drum hits are often written with no length at all.
            note.length = (beat - note.beat).max(1.0 / 64.0);
            done.push(note);
        }
    }

    fn close(mut self, beat: f64, done: &mut Vec<Note>) {
        while let Some(note) = self.notes.first().copied() {
            self.off(beat, note.channel, note.key, done);
        }
    }
}

fn read_midi(path: &Path, bytes: &[u8]) -> Result<Score, DataError> {
    let smf = Smf::parse(bytes)
        .map_err(|error| DataError::format(path, "a standard MIDI file or a MUS file", error.to_string()))?;
    let Timing::Metrical(ticks) = smf.header.timing else {
        return Err(DataError::format(path, "a MIDI file that counts in beats", "one that counts in film frames"));
    };
    let ticks = f64::from(ticks.as_int().max(1));
    let mut score = Score { beats_per_bar: 4.0, has_grid: true, ..Score::default() };
    for (track_index, track) in smf.tracks.iter().enumerate() {
        let mut open = Open::default();
        let mut tick = 0_u64;
        for event in track {
            tick += u64::from(event.delta.as_int());
            let beat = tick as f64 / ticks;
            match event.kind {
                TrackEventKind::Midi { channel, message } => {
                    let channel = channel.as_int();
                    let mut change = |kind| score.changes.push(Change { beat, channel, kind });
                    match message {
                        MidiMessage::NoteOn { key, vel } if vel.as_int() > 0 => {
                            open.on(beat, channel, key.as_int(), vel.as_int(), &mut score.notes);
                        }
                        MidiMessage::NoteOn { key, .. } | MidiMessage::NoteOff { key, .. } => {
                            open.off(beat, channel, key.as_int(), &mut score.notes);
                        }
                        MidiMessage::ProgramChange { program } => change(ChangeKind::Program(program.as_int())),
                        MidiMessage::Controller { controller, value } => {
                            change(ChangeKind::Control(controller.as_int(), value.as_int()));
                        }
                        MidiMessage::PitchBend { bend } => change(ChangeKind::Bend(bend.0.as_int())),
                        MidiMessage::Aftertouch { .. } | MidiMessage::ChannelAftertouch { .. } => {}
                    }
                }
                TrackEventKind::Meta(MetaMessage::Tempo(microseconds)) => {
                    score.tempo.push((beat, 60e6 / f64::from(microseconds.as_int().max(1))));
                }
                TrackEventKind::Meta(MetaMessage::TimeSignature(numerator, denominator, ..)) if beat == 0.0 => {
                    score.beats_per_bar = f64::from(numerator.max(1)) * 4.0 / f64::from(1_u32 << denominator.min(6));
                }
                TrackEventKind::Meta(MetaMessage::TrackName(text)) if track_index == 0 && beat == 0.0 => {
                    score.title = String::from_utf8_lossy(text).trim().to_owned();
                }
                TrackEventKind::Meta(MetaMessage::Text(text) | MetaMessage::Copyright(text))
                    if (text.starts_with(b"QMUS2MID") || text.starts_with(b"Quick MUS->MID")) =>
                {
                    score.has_grid = false;
                }
                _ => {}
            }
        }
        open.close(tick as f64 / ticks, &mut score.notes);
    }
    if score.title.contains("QMUS2MID") {
        score.has_grid = false;
        score.title.clear();
    }
    Ok(score)
}

/// Ticks a second in MUS files.
const MUS_RATE: f64 = 140.0;
/// MIDI controllers of the MUS controllers 1 to 9 and of the system events 10 to 14.
const MUS_CONTROLLERS: [u8; 15] = [0, 0, 1, 7, 10, 11, 91, 93, 64, 67, 120, 123, 126, 127, 121];

fn read_mus(bytes: &[u8]) -> Option<Score> {
    let word = |place: usize| Some(usize::from(u16::from_le_bytes(bytes.get(place..place + 2)?.try_into().ok()?)));
    let start = word(6)?;
    let end = start.checked_add(word(4)?)?;
    let mut events = bytes.get(start..end.min(bytes.len()))?.iter().copied();
    let mut score = Score { tempo: vec![(0.0, 60.0)], beats_per_bar: 4.0, has_grid: false, ..Score::default() };
    let mut open = Open::default();
    let mut velocities = [100_u8; 16];
    let mut tick = 0_u64;
    loop {
        let head = events.next()?;
        // Percussion is channel 15 in MUS and 9 in MIDI.
        let channel = match head & 0x0f {
            15 => DRUMS,
            9 => 15,
            other => other,
        };
        let beat = tick as f64 / MUS_RATE;
        match head >> 4 & 7 {
            0 => open.off(beat, channel, events.next()? & 0x7f, &mut score.notes),
            1 => {
                let key = events.next()?;
                if key & 0x80 != 0 {
                    velocities[usize::from(channel)] = events.next()? & 0x7f;
                }
                let velocity = velocities[usize::from(channel)];
                open.on(beat, channel, key & 0x7f, velocity.max(1), &mut score.notes);
            }
            2 => {
                let bend = u16::from(events.next()?) * 64;
                score.changes.push(Change { beat, channel, kind: ChangeKind::Bend(bend) });
            }
            3 => {
                let controller = *MUS_CONTROLLERS.get(usize::from(events.next()?))?;
                score.changes.push(Change { beat, channel, kind: ChangeKind::Control(controller, 0) });
            }
            4 => {
                let (number, value) = (events.next()?, events.next()? & 0x7f);
                let kind = match number {
                    0 => ChangeKind::Program(value),
                    _ => ChangeKind::Control(*MUS_CONTROLLERS.get(usize::from(number))?, value),
                };
                score.changes.push(Change { beat, channel, kind });
            }
            5 => {}
            6 => break,
            _ => return None,
        }
        if head & 0x80 != 0 {
            let mut delay = 0_u64;
            loop {
                let byte = events.next()?;
                delay = delay.checked_mul(128)? + u64::from(byte & 0x7f);
                if byte & 0x80 == 0 {
                    break;
                }
            }
            tick = tick.checked_add(delay)?;
        }
    }
    open.close(tick as f64 / MUS_RATE, &mut score.notes);
    Some(score)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_midi_file_gives_notes_tempo_and_programs() {
        let mut track: Vec<u8> = Vec::new();
        track.extend(b"\x00\xff\x03\x04Song");
        track.extend(b"\x00\xff\x51\x03\x07\xa1\x20"); // 500000 us: 120 bpm
        track.extend(b"\x00\xc1\x18\x00\x91\x40\x64"); // program 24, note on
        track.extend(b"\x60\x81\x40\x00\x00\x99\x24\x50\x30\x99\x24\x00"); // off after a beat; a drum hit
        track.extend(b"\x00\xff\x2f\x00");
        let mut bytes = b"MThd\0\0\0\x06\0\0\0\x01\0\x60MTrk".to_vec();
        bytes.extend((track.len() as u32).to_be_bytes());
        bytes.extend(track);
        let score = read_score(Path::new("x.mid"), "x", &bytes).unwrap();
        assert_eq!(score.title, "Song");
        assert_eq!(score.tempo, [(0.0, 120.0)]);
        assert_eq!(score.program_at(1, 0.5), 24);
        assert_eq!(score.notes[0], Note { beat: 0.0, length: 1.0, channel: 1, key: 64, velocity: 100 });
        assert_eq!((score.notes[1].channel, score.notes[1].beat, score.notes[1].length), (9, 1.0, 0.5));
        assert!(score.has_grid);
        for length in 0..bytes.len() {
            let _ = read_score(Path::new("x.mid"), "x", &bytes[..length]);
        }
    }

    #[test]
    fn a_mus_file_gives_the_same_kind_of_score() {
        // Program 30 on channel 0; note 60 at volume 90 for 140 ticks; drum on channel 15; end.
        let body = [0x40, 0, 30, 0x90, 60 | 0x80, 90, 0x81, 0x0c, 0x00, 60, 0x9f, 36, 70, 0x0f, 36, 0x60];
        let mut bytes = b"MUS\x1a".to_vec();
        bytes.extend((body.len() as u16).to_le_bytes());
        bytes.extend(16_u16.to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend(body);
        let score = read_score(Path::new("x.mus"), "x", &bytes).unwrap();
        assert_eq!(score.notes[0], Note { beat: 0.0, length: 1.0, channel: 0, key: 60, velocity: 90 });
        assert_eq!((score.notes[1].channel, score.notes[1].key, score.notes[1].velocity), (DRUMS, 36, 100));
        assert_eq!(score.program_at(0, 0.0), 30);
        assert!(!score.has_grid);
        for length in 0..bytes.len() - 1 {
            assert!(read_score(Path::new("x.mus"), "x", &bytes[..length]).is_err());
        }
    }
}
