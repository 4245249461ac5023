//! Whether windows that were made one after another can be heard where they meet: how far spectrum and energy move there, beyond what
//! they do in the same piece with windows elsewhere, against random places, by a permutation test.

use mambo_audio::spectrum::Stft;
use mambo_model::random;
use rayon::prelude::*;
use serde::Serialize;

use crate::EvalError;

/// Window and hop of the spectra, in samples: short, since a seam is.
const WINDOW: usize = 1024;
const HOP: usize = 256;
/// Hops on each side of a place whose flux counts.
const NEAR: usize = 2;
/// Samples on each side that flux is compared with, a multiple of the hop.
const AROUND: usize = 64 * HOP;
/// Samples on each side whose energies are compared, in seconds.
const ENERGY_SECONDS: f64 = 0.02;
/// Random places for each given one.
const RANDOM_PLACES: usize = 10;
/// Random places keep this far from given ones, in seconds.
const APART_SECONDS: f64 = 0.25;
/// Root mean square below which a place is silent and says nothing.
const SILENT: f32 = 1e-4;
/// Permutations of a test.
const PERMUTATIONS: u64 = 10_000;

/// One measure at the places and elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Comparison {
    /// Mean at the seams, less that of the piece without seams there.
    pub there: f64,
    /// The same at random places.
    pub elsewhere: f64,
    /// How often a random choice of places differs as much from the others, either way.
    pub p: f64,
}

/// What a piece does at its seams.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Seams {
    /// Seams that are not silent.
    pub places: usize,
    /// Random places that are not silent.
    pub random_places: usize,
    /// Largest spectral flux (Dixon, DAFx 2006, section 2.1) within 12 ms of the place over the median of 0.4 s on each side, as a
    /// logarithm.
    pub flux: Comparison,
    /// Decibels, up or down, between the energies of 20 ms before and after.
    pub energy: Comparison,
}

/// Compares a piece that was made with seams at `seams` (samples) with the same piece whose seams are at `others`: at its own seams, and
/// at random places of a seed that are far from all of them. A place is a multiple of `grid` samples, where tokens meet: sound moves more
/// there than within a token. The piece itself cancels out, and what music does where a window happens to end says nothing.
///
/// # Panics
/// If `grid` is 0.
///
/// # Errors
/// [`EvalError::NoClips`] if fewer than two places can be heard.
pub fn seams(
    pieces: [&[f32]; 2],
    rate: u32,
    [seams, others]: [&[usize]; 2],
    grid: usize,
    seed: u64,
) -> Result<Seams, EvalError> {
    let stft = Stft::new(WINDOW, HOP);
    let apart = (APART_SECONDS * f64::from(rate)) as usize;
    let mut rng = random::stream(seed, "seams", 0);
    let shortest = pieces.map(<[f32]>::len).into_iter().fold(usize::MAX, usize::min);
    let ends = AROUND + WINDOW..shortest.saturating_sub(AROUND + WINDOW);
    let far = |place: usize, from: &[usize]| from.iter().all(|other| other.abs_diff(place) > apart);
    let mut elsewhere = Vec::new();
    if !ends.is_empty() {
        // A sound that has no room for as many gives fewer.
        for _ in 0..100 * RANDOM_PLACES * seams.len() {
            let place = random::below(&mut rng, ends.end.div_ceil(grid)) * grid;
            if ends.contains(&place) && far(place, seams) && far(place, others) {
                elsewhere.push(place);
            }
            if elsewhere.len() == RANDOM_PLACES * seams.len() {
                break;
            }
        }
    }
    let measure = |places: &[usize]| -> Vec<[f64; 2]> {
        let difference = |place: &usize| {
            let [with, without] = pieces.map(|mono| measures(&stft, mono, rate, *place));
            let (with, without) = (with?, without?);
            Some([with[0] - without[0], with[1] - without[1]])
        };
        places.par_iter().filter(|place| ends.contains(place)).filter_map(difference).collect()
    };
    let alone: Vec<usize> = seams.iter().copied().filter(|seam| far(*seam, others)).collect();
    let (there, others) = (measure(&alone), measure(&elsewhere));
    if there.len() < 2 || others.len() < 2 {
        return Err(EvalError::NoClips { what: "fewer than two places that can be heard".into() });
    }
    let column = |rows: &[[f64; 2]], index: usize| -> Vec<f64> { rows.iter().map(|row| row[index]).collect() };
    let [flux, energy] = [0, 1].map(|index| compare(&column(&there, index), &column(&others, index), seed));
    Ok(Seams { places: there.len(), random_places: others.len(), flux, energy })
}

/// Flux and energy at a place, unless it is silent.
fn measures(stft: &Stft, mono: &[f32], rate: u32, place: usize) -> Option<[f64; 2]> {
    let around = &mono[place - AROUND..place + AROUND];
    let power = around.iter().map(|v| v * v).sum::<f32>() / around.len() as f32;
    if power.sqrt() < SILENT {
        return None;
    }
    let spectra = stft.magnitude(around);
    // The first and the last frames reach over the edges.
    let edge = WINDOW / HOP;
    let flux: Vec<f64> = (edge..spectra.frames - edge)
        .map(|t| {
            let pairs = spectra.frame(t).iter().zip(spectra.frame(t - 1));
            pairs.map(|(now, before)| f64::from((now - before).max(0.0))).sum::<f64>()
        })
        .collect();
    let middle = AROUND / HOP - edge;
    let near = flux[middle - NEAR..=middle + NEAR].iter().copied().fold(0.0, f64::max);
    let mut sorted = flux.clone();
    sorted.sort_by(f64::total_cmp);
    let usual = sorted[sorted.len() / 2];
    let samples = (ENERGY_SECONDS * f64::from(rate)) as usize;
    let energy = |part: &[f32]| part.iter().map(|v| f64::from(v * v)).sum::<f64>() + 1e-9 * part.len() as f64;
    let (before, after) = (energy(&mono[place - samples..place]), energy(&mono[place..place + samples]));
    Some([((near + 1e-9) / (usual + 1e-9)).ln(), (10.0 * (after / before).log10()).abs()])
}

/// Difference of means, and how often as large a one comes of chance.
fn compare(there: &[f64], elsewhere: &[f64], seed: u64) -> Comparison {
    let all: Vec<f64> = there.iter().chain(elsewhere).copied().collect();
    let (sum, count) = (all.iter().sum::<f64>(), there.len());
    let difference = |chosen: f64| chosen / count as f64 - (sum - chosen) / (all.len() - count) as f64;
    let observed = difference(there.iter().sum()).abs();
    let as_large = (0..PERMUTATIONS)
        .filter(|draw| {
            let order = random::permutation(&mut random::stream(seed, "seams permutation", *draw), all.len());
            difference(order[..count].iter().map(|index| all[*index]).sum()).abs() >= observed - 1e-12
        })
        .count();
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    Comparison { there: mean(there), elsewhere: mean(elsewhere), p: (1 + as_large) as f64 / (1 + PERMUTATIONS) as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u32 = 22_050;

    /// Chords over noise that change at places of their own; `seams` give another phase from there on, and noise a seed.
    fn music(seams: &[usize], seed: u64) -> Vec<f32> {
        let (mut rng, mut phase) = (random::stream(seed, "music", 0), 0.0f64);
        (0..60 * RATE as usize)
            .map(|n| {
                if seams.contains(&n) {
                    phase += 2.0;
                }
                let note = [220.0, 277.0, 330.0, 247.0][n / 9_000 % 4];
                let tone: f64 = (1..5).map(|k| (k as f64 * (phase + n as f64 * note / 3500.0)).sin() / k as f64).sum();
                0.1 * tone as f32 + 0.002 * random::normal(&mut rng)
            })
            .collect()
    }

    #[test]
    fn a_hard_cut_stands_out_and_nothing_does_not() {
        let places: Vec<usize> = (1..50).map(|n| n * 26_111).collect();
        let others: Vec<usize> = (1..20).map(|n| n * 61_771).collect();
        let whole = seams([&music(&[], 5), &music(&[], 6)], RATE, [&places, &others], 1, 1).expect("heard");
        // Some seams fall near one of the other piece.
        assert!(whole.places > 30 && whole.random_places > 300, "{whole:?}");
        assert!(whole.flux.p > 0.05 && whole.energy.p > 0.05, "{whole:?}");
        let cut = seams([&music(&places, 5), &music(&others, 6)], RATE, [&places, &others], 1, 1).expect("heard");
        assert!(cut.flux.p < 0.001 && cut.flux.there > cut.flux.elsewhere, "{cut:?}");
    }

    #[test]
    fn what_the_music_does_at_every_seam_is_none() {
        let hop = 2048;
        let places: Vec<usize> = (1..45).map(|window| window * 14 * hop).collect();
        let sound = |seed: u64| -> Vec<f32> {
            let mut rng = random::stream(seed, "accents", 0);
            let loud =
                |n: usize| if places.iter().any(|place| (*place..place + 600).contains(&n)) { 0.3 } else { 0.05 };
            (0..60 * RATE as usize).map(|n| loud(n) * random::normal(&mut rng)).collect()
        };
        let found = seams([&sound(1), &sound(2)], RATE, [&places, &[]], hop, 1).expect("heard");
        assert!(found.flux.p > 0.05 && found.energy.p > 0.05, "{found:?}");
    }

    #[test]
    fn silence_has_no_seams() {
        for (sound, places) in [(vec![0.0; 200_000], vec![50_000, 100_000]), (vec![0.5; 100], vec![50])] {
            assert!(seams([&sound, &sound], RATE, [&places, &[]], 1, 1).is_err());
        }
    }
}
