//! Whether long clips stay as good as they begin: their first seconds and their last ones against the real clips.

use serde::Serialize;

use super::{Setup, System, clip_seed, judge_real, make};
use crate::EvalError;
use crate::clip_set::ClipSet;
use crate::frechet::{Draws, Frechet, frechet_distance};
use crate::report::{FigureTable, number};
use crate::resources::Speed;

/// Seconds judged at the beginning.
const FIRST_SECONDS: f64 = 30.0;
/// Seconds judged at the end.
const LAST_SECONDS: f64 = 60.0;
/// Bar: most that the distance may grow.
const GROWTH_AT_MOST: f64 = 1.3;

/// Figures of long clips.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LengthResult {
    /// Clips made.
    pub clips: usize,
    /// Seconds of each.
    pub seconds: f64,
    /// Distance of the first 30 s from the real clips.
    pub first: Frechet,
    /// Distance of the last minute from the real clips.
    pub last: Frechet,
    /// Last over first.
    pub growth: f64,
    /// Time taken.
    pub speed: Speed,
}

/// Makes `clips` clips of `seconds` seconds with a system on the captions of the real clips and judges both ends, at
/// equal numbers of patches.
pub fn long_clips(
    system: &mut System<'_>,
    setup: &Setup<'_>,
    clips: usize,
    seconds: f64,
    progress: &mut dyn FnMut(&str),
) -> Result<LengthResult, EvalError> {
    if setup.real.is_empty() || clips == 0 {
        return Err(EvalError::NoClips { what: "the test split is empty, or no long clip was asked for".into() });
    }
    let real = judge_real(setup, &mut Vec::new(), progress)?;
    let (mut first, mut last) = (ClipSet::new("first seconds"), ClipSet::new("last minute"));
    let mut speed = Speed::default();
    let samples = |seconds: f64| (seconds * f64::from(setup.sample_rate)) as usize;
    for n in 0..clips {
        progress(&format!("{}: long clip {} of {clips}", system.name, n + 1));
        let index = n * setup.real.len() / clips;
        let clip = &setup.real[index];
        let seed = clip_seed(setup.settings.seed, "long", n);
        let request = super::Request { prompt: &clip.caption, seconds, seed, real: None };
        let made = make(system, setup, &request, &clip.id, &mut speed)?.samples;
        first.add(&clip.id, &made[..samples(FIRST_SECONDS).min(made.len())], setup.sample_rate, setup.judge)?;
        let end = made.len().saturating_sub(samples(LAST_SECONDS));
        last.add(&clip.id, &made[end..], setup.sample_rate, setup.judge)?;
    }
    let counts = [&first, &last, &real].map(|set| set.features.count());
    let most = setup.settings.draws.patches.unwrap_or(usize::MAX);
    let draws = Draws { patches: Some(counts.into_iter().min().unwrap_or(0).min(most)), ..setup.settings.draws };
    let first = frechet_distance(&first.features, &real.features, &draws)?;
    let last = frechet_distance(&last.features, &real.features, &draws)?;
    let growth = last.distance / first.distance.max(f64::MIN_POSITIVE);
    Ok(LengthResult { clips, seconds, first, last, growth, speed })
}

impl LengthResult {
    /// The figures and their bar as tables.
    pub fn tables(&self) -> [FigureTable; 2] {
        let mut table = FigureTable::new(
            "Long clips",
            &["clips", "seconds each", "patches", "FD first 30 s", "FD last minute", "x real time"],
        );
        table.row(vec![
            self.clips.to_string(),
            number(self.seconds),
            self.first.patches.to_string(),
            number(self.first.distance),
            number(self.last.distance),
            number(self.speed.times_real_time()),
        ]);
        let mut bars = FigureTable { title: "Bars: length".into(), ..FigureTable::bars() };
        let bar = format!("at most {GROWTH_AT_MOST}");
        bars.bar("FD of the last minute over the first 30 s", number(self.growth), &bar, self.growth <= GROWTH_AT_MOST);
        [table, bars]
    }
}
