//! A judge and sounds simple enough to know the answers.

use mambo_audio::analysis::octave_energy;
use mambo_eval::{Judge, Listening, Rows};

pub const RATE: u32 = 16_000;
const PATCH_SECONDS: usize = 1;
pub const TAGS: [&str; 4] = ["low", "middle", "high", "loud"];

/// Hears how the energy lies over the octaves.
pub struct OctaveJudge;

impl Judge for OctaveJudge {
    fn name(&self) -> &str {
        "octaves"
    }

    fn tag_names(&self) -> &[&'static str] {
        &TAGS
    }

    fn listen(&self, mono: &[f32], rate: u32) -> Listening {
        let (mut tags, mut features) = (Vec::new(), Vec::new());
        for patch in mono.chunks_exact(PATCH_SECONDS * rate as usize) {
            let energy = octave_energy(patch, rate);
            let total: f64 = energy.iter().sum::<f64>().max(1e-9);
            let share = |range: std::ops::Range<usize>| (energy[range].iter().sum::<f64>() / total) as f32;
            tags.extend([share(0..2), share(2..4), share(4..8), (total / (total + 1e4)) as f32]);
            features.extend(energy.map(|e| ((e + 1e-3).ln()) as f32));
        }
        Listening { tags: Rows::new(4, tags), features: Rows::new(8, features) }
    }
}

pub fn noise(length: usize, seed: u64) -> Vec<f32> {
    let mut state = seed as u32 ^ (seed >> 32) as u32;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// Notes at a steady beat, an octave band chosen by `band` (0 low, 1 middle, 2 high), varied by `seed`.
pub fn tune(band: usize, seconds: f64, seed: u64) -> Vec<f32> {
    let mut samples: Vec<f32> = noise((seconds * f64::from(RATE)) as usize, seed).iter().map(|n| 0.003 * n).collect();
    let beat = RATE as usize * 60 / (90 + (seed % 60) as usize);
    let steps = [0.0, 4.0, 7.0, 12.0, 7.0, 4.0, 2.0, 5.0];
    for (note, start) in (0..samples.len()).step_by(beat).enumerate() {
        let pitch = steps[(note + seed as usize) % steps.len()] + (seed % 5) as f32;
        let hz = [80.0, 300.0, 1600.0][band] * (pitch / 12.0).exp2();
        for n in 0..beat.min(samples.len() - start) {
            let time = n as f32 / RATE as f32;
            samples[start + n] += 0.4 * (-4.0 * time).exp() * (std::f32::consts::TAU * hz * time).sin();
        }
    }
    samples
}
