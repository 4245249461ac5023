//! Voices like those of old game consoles: pulse waves, a stepped triangle, shift-register noise.
//!
//! The tune and chords are pulses of 12.5, 25 or 50 %, the bass is a triangle of 16 levels, drums are
//! noise and a falling triangle. Pulse edges are smoothed over one sample (PolyBLEP), since plain
//! aliasing at 44.1 kHz sounds harsher than the machines did.

use super::score::{DRUMS, Note, Role, Score};

/// The correction of a step at phase 0 for a wave of `step` cycles a sample.
fn smooth_step(phase: f64, step: f64) -> f64 {
    if phase < step {
        let t = phase / step;
        t + t - t * t - 1.0
    } else if phase > 1.0 - step {
        let t = (phase - 1.0) / step;
        t * t + t + t + 1.0
    } else {
        0.0
    }
}

fn pulse(phase: f64, step: f64, duty: f64) -> f64 {
    let raw = if phase < duty { 1.0 } else { -1.0 };
    raw + smooth_step(phase, step) - smooth_step((phase + 1.0 - duty).fract(), step)
}

fn stepped_triangle(phase: f64) -> f64 {
    let wave = 1.0 - 4.0 * (phase - 0.5).abs();
    (wave * 7.5).round() / 7.5
}

/// Adds one pitched note.
fn add_voice(out: &mut [f32], rate: f64, start: usize, frames: usize, note: &Note, role: Role, level: f64) {
    let frequency = 440.0 * 2.0_f64.powf((f64::from(note.key) - 69.0) / 12.0);
    let step = frequency / rate;
    let duty = match role {
        Role::Lead => 0.25,
        Role::Harmony => 0.125,
        _ => 0.5,
    };
    let release = (rate * 0.02) as usize;
    let mut phase = 0.0;
    for index in 0..frames + release {
        let Some(sample) = out.get_mut(start + index) else { break };
        let seconds = index as f64 / rate;
        let decay = 0.55 + 0.45 * (-seconds * 6.0).exp();
        let ending = if index < frames { 1.0 } else { 1.0 - (index - frames) as f64 / release as f64 };
        let attack = (seconds / 0.002).min(1.0);
        // Vibrato on held notes, as the players of these machines liked it.
        let vibrato = if role == Role::Lead && seconds > 0.25 {
            1.0 + 0.006 * (seconds * 6.0 * std::f64::consts::TAU).sin()
        } else {
            1.0
        };
        let wave = if role == Role::Bass { stepped_triangle(phase) * 1.6 } else { pulse(phase, step, duty) };
        *sample += (wave * level * decay * ending * attack) as f32;
        phase = (phase + step * vibrato).fract();
    }
}

/// Adds a drum hit.
fn add_drum(out: &mut [f32], rate: f64, start: usize, key: u8, level: f64) {
    // (seconds of noise decay, samples a noise value is held, kick level)
    let (decay, hold, kick) = match key {
        35 | 36 => (0.012, 4, 1.6),
        37..=40 => (0.09, 3, 0.5),
        42 | 44 | 54 | 70 => (0.025, 1, 0.0),
        46 => (0.12, 1, 0.0),
        49 | 51..=53 | 55 | 57 | 59 => (0.3, 2, 0.0),
        _ => (0.05, 5, 0.9),
    };
    let mut register = 1_u32;
    let mut phase = 0.0;
    for index in 0..(rate * (decay * 5.0 + 0.12)) as usize {
        let Some(sample) = out.get_mut(start + index) else { break };
        let seconds = index as f64 / rate;
        if index % hold == 0 {
            let bit = (register ^ (register >> 1)) & 1;
            register = (register >> 1) | (bit << 14);
        }
        let noise = if register & 1 == 1 { 1.0 } else { -1.0 };
        let frequency = 45.0 + 130.0 * (-seconds * 28.0).exp();
        phase = (phase + frequency / rate).fract();
        let body = stepped_triangle(phase) * kick * (-seconds * 18.0).exp();
        *sample += ((noise * (-seconds / decay).exp() * 0.7 + body) * level) as f32;
    }
}

/// Plays a score; mono, not yet normalised.
#[must_use]
pub fn play(score: &Score, rate: u32, seconds: f64) -> Vec<f32> {
    let mut out = vec![0.0; (seconds * f64::from(rate)) as usize];
    let rate = f64::from(rate);
    let roles = score.roles();
    for note in &score.notes {
        let start_seconds = score.seconds_at(note.beat);
        let start = (start_seconds * rate) as usize;
        let level = f64::from(note.velocity) / 127.0;
        if note.channel == DRUMS {
            add_drum(&mut out, rate, start, note.key, 0.16 * level);
            continue;
        }
        let role = roles.iter().find(|(channel, _)| *channel == note.channel).map_or(Role::Harmony, |(_, role)| *role);
        let frames = ((score.seconds_at(note.beat + note.length) - start_seconds) * rate) as usize;
        let level = level * if role == Role::Lead { 0.16 } else { 0.09 };
        add_voice(&mut out, rate, start, frames, note, role, level);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_has_its_pitch_and_ends() {
        let note = Note { beat: 0.0, length: 1.0, channel: 0, key: 69, velocity: 127 };
        let score = Score { notes: vec![note], tempo: vec![(0.0, 120.0)], ..Score::default() };
        let sound = play(&score, 44_100, 1.0);
        assert_eq!(sound.len(), 44_100);
        let energy = |frequency: f64| {
            let turn = |i: usize| std::f64::consts::TAU * frequency * i as f64 / 44_100.0;
            let re: f64 = sound.iter().take(8820).enumerate().map(|(i, &s)| f64::from(s) * turn(i).cos()).sum();
            let im: f64 = sound.iter().take(8820).enumerate().map(|(i, &s)| f64::from(s) * turn(i).sin()).sum();
            f64::hypot(re, im)
        };
        assert!(energy(440.0) > 10.0 * energy(415.0) && energy(440.0) > 10.0 * energy(466.0));
        assert!(sound[25_000..].iter().all(|&sample| sample == 0.0));
        assert!(sound[..22_000].iter().any(|&sample| sample.abs() > 0.05));
    }

    #[test]
    fn drums_sound_and_differ() {
        let hit = |key| {
            let note = Note { beat: 0.0, length: 0.1, channel: DRUMS, key, velocity: 127 };
            play(&Score { notes: vec![note], tempo: vec![(0.0, 120.0)], ..Score::default() }, 44_100, 0.5)
        };
        assert_ne!(hit(36), hit(38));
        assert!(hit(42).iter().any(|&sample| sample != 0.0));
    }
}
