//! Comparing two folders of sound: any model's output with any reference.

use serde::Serialize;
use serde_json::json;

use crate::EvalError;
use crate::clip_set::{ClipSet, SetComparison, compare};
use crate::frechet::{self, Draws, Frechet};
use crate::report::{FigureTable, Report, number, optional};
use crate::structure;

/// A comparison of two sets beside what chance leaves between halves of the reference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FilesComparison {
    /// Judged set against the reference.
    pub comparison: SetComparison,
    /// Fréchet distance between random halves of the reference, at its own number of patches; absent with
    /// fewer than 4 patches.
    pub reference_halves: Option<Frechet>,
    /// Structure distance between random halves of the reference; absent with fewer than 4 clips.
    pub structure_halves: Option<f64>,
}

/// Compares a judged set with a reference.
pub fn compare_files(judged: &ClipSet, reference: &ClipSet, draws: &Draws) -> Result<FilesComparison, EvalError> {
    let comparison = compare(judged, reference, draws)?;
    let halves = reference.features.count() >= 4;
    let clips = reference.clips.len() >= 4;
    Ok(FilesComparison {
        reference_halves: halves.then(|| frechet::halves_distance(&reference.features, draws)).transpose()?,
        structure_halves: clips
            .then(|| structure::halves_distance(&reference.structure_rows(), draws.count, draws.seed))
            .transpose()?,
        comparison,
    })
}

/// The comparison as a report.
pub fn files_report(found: &FilesComparison, judged: &ClipSet, reference: &ClipSet, judge: &str) -> Report {
    let comparison = &found.comparison;
    let mut table = FigureTable::new("Distances", &["figure", "value", "between halves of the reference"]);
    let fd = &comparison.frechet;
    table.row(vec![
        format!("Fréchet distance ({} patches a side)", fd.patches),
        number(fd.distance),
        found
            .reference_halves
            .as_ref()
            .map_or("-".into(), |h| format!("{} ({} patches)", number(h.distance), h.patches)),
    ]);
    if let Some(divergence) = comparison.divergence {
        table.row(vec!["KL (judged || reference), pairs".into(), number(divergence.generated_from_real), "-".into()]);
        table.row(vec!["KL (reference || judged), pairs".into(), number(divergence.real_from_generated), "-".into()]);
    }
    if let Some(structure) = &comparison.structure {
        table.row(vec!["structure distance".into(), number(structure.distance), optional(found.structure_halves)]);
    }
    let mut features = FigureTable::new("Structure", &["feature", "judged", "reference", "distance"]);
    for feature in comparison.structure.iter().flat_map(|structure| &structure.features) {
        features.row(vec![feature.name.into(), number(feature.judged), number(feature.real), number(feature.distance)]);
    }
    let mut notes = vec![
        format!("{}: {} clips. {}: {} clips.", judged.name, judged.clips.len(), reference.name, reference.clips.len()),
        format!("Judge: {judge}. These are Mambo's own proxies, not published metrics."),
    ];
    if !fd.reliable {
        notes.push(format!(
            "Fewer than {} patches a side: the Fréchet distance is inflated; compare it only at equal numbers.",
            frechet::RELIABLE_PATCHES
        ));
    }
    Report {
        title: format!("{} against {}", judged.name, reference.name),
        notes,
        tables: vec![table, features],
        figures: json!({
            "judged": judged.name,
            "reference": reference.name,
            "judge": judge,
            "judged_clips": judged.clips.len(),
            "reference_clips": reference.clips.len(),
            "result": found,
        }),
        ..Report::default()
    }
}
