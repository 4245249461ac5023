//! Plays a score with a SoundFont.

use super::score::{ChangeKind, Score};
use crate::error::DataError;
use rustysynth::{SoundFont, Synthesizer, SynthesizerSettings};
use std::path::Path;
use std::sync::Arc;

/// Reads a SoundFont (`.sf2`).
///
/// # Errors
/// The file cannot be read or is no SoundFont.
pub fn load_sound_font(path: &Path) -> Result<Arc<SoundFont>, DataError> {
    let file = std::fs::File::open(path).map_err(DataError::io(path, "open the SoundFont"))?;
    let mut reader = std::io::BufReader::new(file);
    SoundFont::new(&mut reader)
        .map(Arc::new)
        .map_err(|error| DataError::format(path, "a SoundFont 2 file (.sf2)", error.to_string()))
}

enum Event {
    Off(u8),
    Change(ChangeKind),
    On(u8, u8),
}

/// Plays `seconds` of the score in stereo; not yet normalised.
///
/// # Errors
/// The synthesiser refuses the sample rate.
pub fn play(font: &Arc<SoundFont>, score: &Score, rate: u32, seconds: f64) -> Result<[Vec<f32>; 2], DataError> {
    let settings = SynthesizerSettings::new(rate as i32);
    let mut synthesizer = Synthesizer::new(font, &settings)
        .map_err(|error| DataError::Argument { what: "sample rate", problem: error.to_string() })?;
    let mut events: Vec<(f64, u8, Event)> = Vec::new();
    for change in &score.changes {
        events.push((score.seconds_at(change.beat), change.channel, Event::Change(change.kind)));
    }
    for note in &score.notes {
        events.push((score.seconds_at(note.beat), note.channel, Event::On(note.key, note.velocity)));
        events.push((score.seconds_at(note.beat + note.length), note.channel, Event::Off(note.key)));
    }
    // At the same time: end notes, then set, then start notes. The sort is stable.
    let rank = |event: &Event| match event {
        Event::Off(_) => 0,
        Event::Change(_) => 1,
        Event::On(..) => 2,
    };
    events.sort_by(|a, b| a.0.total_cmp(&b.0).then(rank(&a.2).cmp(&rank(&b.2))));

    let frames = (seconds * f64::from(rate)) as usize;
    let (mut left, mut right) = (vec![0.0; frames], vec![0.0; frames]);
    let mut done = 0;
    for (time, channel, event) in &events {
        let until = ((time * f64::from(rate)) as usize).min(frames);
        if until > done {
            synthesizer.render(&mut left[done..until], &mut right[done..until]);
            done = until;
        }
        let channel = i32::from(*channel);
        match *event {
            Event::Off(key) => synthesizer.note_off(channel, i32::from(key)),
            Event::On(key, velocity) => synthesizer.note_on(channel, i32::from(key), i32::from(velocity)),
            Event::Change(ChangeKind::Program(program)) => {
                synthesizer.process_midi_message(channel, 0xc0, i32::from(program), 0)
            }
            Event::Change(ChangeKind::Control(number, value)) => {
                synthesizer.process_midi_message(channel, 0xb0, i32::from(number), i32::from(value));
            }
            Event::Change(ChangeKind::Bend(bend)) => {
                synthesizer.process_midi_message(channel, 0xe0, i32::from(bend & 0x7f), i32::from(bend >> 7));
            }
        }
    }
    synthesizer.render(&mut left[done..], &mut right[done..]);
    Ok([left, right])
}
