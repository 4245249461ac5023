//! The figures of generating systems as a report, with the project's bars where the systems for them are there.

use serde_json::json;

use super::plot::distance_plot;
use super::{GenerationResult, Role, SystemResult};
use crate::EvalError;
use crate::frechet::RELIABLE_PATCHES;
use crate::report::{FigureTable, Player, Plot, Report, number, optional, percent};
use crate::structure::SHORTEST_SECONDS;

/// Bars, as the project set them.
const NORMALISED_AT_MOST: f64 = 0.15;
const STRUCTURE_SHARE_OF_BIGRAM: f64 = 0.5;
const COPY_SHARE: f64 = 0.95;
const AGREEMENT: f64 = 0.5;
const AGREEMENT_LEAD: f64 = 0.25;

pub(super) fn report(result: &GenerationResult, players: Vec<Player>) -> Result<Report, EvalError> {
    let mut notes = vec![
        format!("{} real clips, up to {} s each. Judge: {}.", result.real_clips, number(result.seconds), result.judge),
        "FD and KL over musicnn are Mambo's own proxies, not published metrics.".into(),
        "KL: mean over pairs of a generated clip and the real clip of its caption.".into(),
    ];
    if result.systems.iter().any(|system| !system.comparison.frechet.reliable) {
        notes.push(format!(
            "Fewer than {RELIABLE_PATCHES} patches a side: FD is inflated, compare it within this table only."
        ));
    }
    if result.seconds < SHORTEST_SECONDS {
        notes.push(format!("Clips under {SHORTEST_SECONDS} s: structure figures say little."));
    }
    if let Some(bytes) = result.peak_memory {
        notes.push(format!("Peak memory of this evaluation, judge included: {} MB.", bytes / 1_000_000));
    }
    let mut tables = vec![systems(result), rounds(result), structure(result), agreement(result), bars(result)];
    tables.retain(|table| !table.rows.is_empty());
    let title = "Fréchet distance to the real clips".into();
    let plots = vec![Plot { title, svg: distance_plot(result)? }];
    Ok(Report { title: "Generated music".into(), notes, tables, plots, players, figures: json!(result) })
}

/// Fréchet distances of all rounds, where there were several.
fn rounds(result: &GenerationResult) -> FigureTable {
    let mut table = FigureTable::new("FD by seed", &["system", "mean", "deviation", "each"]);
    for system in result.systems.iter().filter(|system| system.rounds.len() > 1) {
        let (mean, deviation) = mean_and_deviation(&system.rounds);
        let each = system.rounds.iter().map(|distance| number(*distance)).collect::<Vec<_>>().join(", ");
        table.row(vec![system.name.clone(), number(mean), number(deviation), each]);
    }
    table
}

/// Mean and sample deviation.
fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    (mean, (squares / (count - 1.0).max(1.0)).sqrt())
}

fn systems(result: &GenerationResult) -> FigureTable {
    let columns = [
        "system",
        "clips",
        "FD",
        "FD 0..1",
        "KL gen||real",
        "KL real||gen",
        "structure",
        "prompt",
        "shuffled",
        "copy median s",
        "copy longest s",
        "x real time",
        "silent",
        "clipped",
        "distinct",
    ];
    let mut table = FigureTable::new("Systems", &columns);
    for system in &result.systems {
        let comparison = &system.comparison;
        let divergence = comparison.divergence;
        table.row(vec![
            system.name.clone(),
            system.clips.to_string(),
            number(comparison.frechet.distance),
            optional(system.normalised),
            optional(divergence.map(|d| d.generated_from_real)),
            optional(divergence.map(|d| d.real_from_generated)),
            optional(comparison.structure.as_ref().map(|s| s.distance)),
            system.prompts.as_ref().map_or("-".into(), |p| percent(p.agreement)),
            system.prompts.as_ref().map_or("-".into(), |p| percent(p.shuffled)),
            optional(system.copying.as_ref().map(|c| c.median_seconds)),
            optional(system.copying.as_ref().map(|c| c.longest_seconds)),
            optional(Some(system.speed.times_real_time())),
            system.silent.to_string(),
            system.clipped.to_string(),
            system.distinct.to_string(),
        ]);
    }
    let mut halves = vec![String::from("-"); columns.len()];
    halves[0] = "halves of the real clips".into();
    halves[2] = optional(result.real_halves.as_ref().map(|h| h.distance));
    halves[6] = optional(result.real_structure_halves);
    halves[9] = optional(result.real_copying.as_ref().map(|c| c.median_seconds));
    halves[10] = optional(result.real_copying.as_ref().map(|c| c.longest_seconds));
    table.row(halves);
    table
}

fn structure(result: &GenerationResult) -> FigureTable {
    let judged: Vec<&SystemResult> =
        result.systems.iter().filter(|system| system.comparison.structure.is_some()).collect();
    let mut columns = vec!["feature (mean, distance)".to_owned(), "real".to_owned()];
    columns.extend(judged.iter().map(|system| system.name.clone()));
    let mut table = FigureTable { title: "Structure".into(), columns, rows: Vec::new() };
    let Some(first) = judged.first().and_then(|system| system.comparison.structure.as_ref()) else { return table };
    for (index, feature) in first.features.iter().enumerate() {
        let mut cells = vec![feature.name.to_owned(), number(feature.real)];
        for system in &judged {
            let own = system.comparison.structure.as_ref().map(|s| &s.features[index]);
            cells.push(own.map_or("-".into(), |f| format!("{} ({})", number(f.judged), number(f.distance))));
        }
        table.row(cells);
    }
    table
}

fn agreement(result: &GenerationResult) -> FigureTable {
    let asked: Vec<&SystemResult> = result.systems.iter().filter(|system| system.prompts.is_some()).collect();
    let mut columns = vec!["named tag in the judge's top".to_owned()];
    columns.extend(asked.iter().map(|system| system.name.clone()));
    let mut table = FigureTable { title: "Prompts by tag".into(), columns, rows: Vec::new() };
    let Some(first) = asked.first().and_then(|system| system.prompts.as_ref()) else { return table };
    for tag in first.by_tag.keys() {
        let mut cells = vec![tag.clone()];
        for system in &asked {
            let share = system.prompts.as_ref().and_then(|prompts| prompts.by_tag.get(tag));
            cells.push(share.map_or("-".into(), |share| percent(*share)));
        }
        table.row(cells);
    }
    table
}

fn bars(result: &GenerationResult) -> FigureTable {
    let mut table = FigureTable::bars();
    let find = |role: Role| result.systems.iter().find(|system| system.role == role);
    let Some(model) = find(Role::Model) else { return table };
    let distance = model.comparison.frechet.distance;
    if let Some(share) = model.normalised {
        let bar = format!("at most {NORMALISED_AT_MOST}");
        table.bar("(FD - FD codec) / (FD uniform - FD codec)", number(share), &bar, share <= NORMALISED_AT_MOST);
    }
    if let Some(bigram) = find(Role::Bigram) {
        let floor = bigram.comparison.frechet.distance;
        table.bar("FD", number(distance), &format!("below the bigram's {}", number(floor)), distance < floor);
        if let (Some(own), Some(floor)) = (&model.comparison.structure, &bigram.comparison.structure) {
            let limit = STRUCTURE_SHARE_OF_BIGRAM * floor.distance;
            let bar = format!("at most half of the bigram's {}", number(floor.distance));
            table.bar("structure distance", number(own.distance), &bar, own.distance <= limit);
        }
    }
    if let Some(copying) = &model.copying {
        let what = format!("clips that copy less than {} s", number(copying.limit_seconds));
        let share = copying.share_below_limit;
        table.bar(&what, percent(share), &format!("at least {}", percent(COPY_SHARE)), share >= COPY_SHARE);
    }
    if let Some(prompts) = &model.prompts {
        let what = format!("named tag in the judge's top {}", prompts.top);
        let met = prompts.agreement >= AGREEMENT;
        table.bar(&what, percent(prompts.agreement), &format!("at least {}", percent(AGREEMENT)), met);
        let lead = prompts.agreement - prompts.shuffled;
        let bar = format!("at least {:.0} points", 100.0 * AGREEMENT_LEAD);
        table.bar("lead over shuffled prompts", format!("{:.0} points", 100.0 * lead), &bar, lead >= AGREEMENT_LEAD);
    }
    let flawless = model.silent == 0 && model.clipped == 0 && model.distinct == model.clips;
    let value = format!("{} silent, {} clipped, {} alike", model.silent, model.clipped, model.clips - model.distinct);
    table.bar("clips of the model", value, "none silent, clipped or alike", flawless);
    table
}
