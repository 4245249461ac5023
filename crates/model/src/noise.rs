//! Noise of frames that comes back with the beat: what a language model plays again then sounds alike, as it does where it
//! is played again by hand or machine. Fresh noise gives every beat other partials.

use crate::clock::Metronome;
use crate::random;

/// Standard normal noise of the frame at `place`, `count` values. A `share` (0 to 1) of its variance is alike in all frames
/// that stand equally long after a beat; without a beat all of it is fresh.
pub fn frame_noise(seed: u64, name: &str, metronome: &Metronome, share: f32, place: u64, count: usize) -> Vec<f32> {
    let after_beat = metronome.after_beat(place);
    let again = if after_beat.is_some() { share } else { 0.0 };
    let mut out = vec![0.0; count];
    let mut add = |name: &str, place: u64, share: f32| {
        if share > 0.0 {
            let mut rng = random::stream(seed, name, place);
            out.iter_mut().for_each(|value| *value += share.sqrt() * random::normal(&mut rng));
        }
    };
    add(name, place, 1.0 - again);
    add(&format!("{name} again"), after_beat.unwrap_or_default(), again);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_comes_back_with_every_beat_and_the_variance_stays() {
        // 8.3 frames a beat.
        let metronome = Metronome::new(Some(60.0), 8.3);
        let frame = |share, place| frame_noise(4, "test", &metronome, share, place, 20_000);
        let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>() / a.len() as f32;
        for share in [0.0, 0.3, 1.0] {
            let (first, later, other) = (frame(share, 2), frame(share, 83 + 2), frame(share, 83 + 3));
            assert!((product(&first, &first) - 1.0).abs() < 0.04, "{share}");
            assert!((product(&first, &later) - share).abs() < 0.03, "{share}");
            assert!(product(&first, &other).abs() < 0.03, "{share}");
        }
        assert_eq!(frame(1.0, 2), frame(1.0, 83 + 2));
        // Without a beat, and with no share of it, nothing comes back.
        let free = |place| frame_noise(4, "test", &Metronome::default(), 1.0, place, 20);
        assert_eq!(free(85), frame_noise(4, "test", &metronome, 0.0, 85, 20));
        assert_ne!(free(85), free(2));
    }
}
