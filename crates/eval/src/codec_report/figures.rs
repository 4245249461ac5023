//! The figures of codecs as a report, with the project's bars for the first of them.

use mambo_audio::analysis::OCTAVE_EDGES_HZ;
use serde_json::json;

use super::plot::codec_plot;
use super::{CodecFigures, CodecResult, LevelFigures};
use crate::EvalError;
use crate::frechet::RELIABLE_PATCHES;
use crate::report::{FigureTable, Player, Plot, Report, number, optional, percent};

/// Bars, as the project set them.
const TAGS_ALL_LEVELS: f64 = 0.90;
const TAGS_ONE_LEVEL: f64 = 0.80;
const FRECHET_SHARE_OF_FLOOR: f64 = 0.5;
const OCTAVE_DB: f64 = 3.0;
const CODEBOOK_USE: f64 = 0.70;

pub(super) fn report(result: &CodecResult, players: Vec<Player>) -> Result<Report, EvalError> {
    let mut notes = vec![
        format!(
            "{} clips, {} s in all. FD: against the originals of the same clips.",
            result.clips,
            number(result.seconds)
        ),
        "Tags and FD over musicnn are Mambo's own proxies, not published metrics.".into(),
        "Tag cosine: mean tags of each clip; by patch: 3 s at a time; centred: after taking off the mean tags.".into(),
    ];
    let judged = result.codecs.iter().flat_map(|codec| &codec.levels).flat_map(|level| &level.judges);
    if judged.into_iter().any(|figures| !figures.frechet.reliable) {
        notes.push(format!(
            "Fewer than {RELIABLE_PATCHES} patches a side: FD is inflated, compare it within this table only."
        ));
    }
    let mut tables = vec![quality(result), octaves(result), codebooks(result), bars(result)];
    tables.retain(|table| !table.rows.is_empty());
    Ok(Report {
        title: "Codecs".into(),
        notes,
        tables,
        plots: vec![Plot { title: "Quality by number of levels".into(), svg: codec_plot(result)? }],
        players,
        figures: json!(result),
    })
}

fn quality(result: &CodecResult) -> FigureTable {
    let mut columns = vec!["codec", "levels", "mel distance", "chroma"];
    let judges: Vec<&str> = first_level(result)
        .map_or(Vec::new(), |level| level.judges.iter().map(|figures| figures.judge.as_str()).collect());
    let headings: Vec<[String; 4]> = judges
        .iter()
        .map(|judge| ["tags", "by patch", "centred", "FD"].map(|figure| format!("{figure} ({judge})")))
        .collect();
    columns.extend(headings.iter().flatten().map(String::as_str));
    columns.extend(["encode x", "decode x"]);
    let mut table = FigureTable::new("Quality", &columns);
    for codec in &result.codecs {
        for level in &codec.levels {
            let mut cells = vec![
                codec.name.clone(),
                level.levels.to_string(),
                number(level.mel_distance),
                number(level.chroma_correlation),
            ];
            for figures in &level.judges {
                let tags = &figures.tags;
                cells.extend([tags.clip, tags.patch, tags.clip_centred, figures.frechet.distance].map(number));
            }
            cells.extend([codec.encode, level.decode].map(|speed| number(speed.times_real_time())));
            table.row(cells);
        }
    }
    let Some(level) = first_level(result) else { return table };
    let mut strangers = vec![
        "floor: another clip".into(),
        "-".into(),
        number(result.mel_distance_strangers),
        number(result.chroma_strangers),
    ];
    let mut constant: Vec<String> = ["floor: mean tags for all", "-", "-", "-"].map(str::to_owned).to_vec();
    let mut halves: Vec<String> = ["halves of the originals", "-", "-", "-"].map(str::to_owned).to_vec();
    for (figures, half) in level.judges.iter().zip(&result.halves) {
        let tags = &figures.tags;
        strangers.extend([number(tags.clip_shuffled), number(tags.patch_shuffled), "-".into(), "-".into()]);
        constant.extend([number(tags.clip_constant), number(tags.patch_constant), number(0.0), "-".into()]);
        let distance = optional(half.as_ref().map(|half| half.distance));
        halves.extend(["-".into(), "-".into(), "-".into(), distance]);
    }
    for mut cells in [strangers, constant, halves] {
        cells.extend(["-".into(), "-".into()]);
        table.row(cells);
    }
    table
}

fn first_level(result: &CodecResult) -> Option<&LevelFigures> {
    result.codecs.first()?.levels.first()
}

fn octaves(result: &CodecResult) -> FigureTable {
    let mut columns = vec!["dB against the original".to_owned(), "levels".to_owned()];
    columns.extend(OCTAVE_EDGES_HZ.windows(2).map(|edge| format!("{}-{}", number(edge[0]), number(edge[1]))));
    let mut table = FigureTable { title: "Energy by octave (Hz)".into(), columns, rows: Vec::new() };
    for codec in &result.codecs {
        for level in &codec.levels {
            for (kind, values) in [("all energy", level.octave_db), ("median clip", level.octave_median_db)] {
                let mut cells = vec![format!("{}, {kind}", codec.name), level.levels.to_string()];
                cells.extend(values.iter().map(|value| format!("{value:+.1}")));
                table.row(cells);
            }
        }
    }
    table
}

fn codebooks(result: &CodecResult) -> FigureTable {
    let mut table = FigureTable::new("Codebooks", &["codec", "level", "entries used", "perplexity", "repeated"]);
    for codec in &result.codecs {
        for (level, codebook) in codec.codebooks.iter().enumerate() {
            table.row(vec![
                codec.name.clone(),
                (level + 1).to_string(),
                percent(codebook.used),
                number(codebook.perplexity),
                percent(codebook.repeated),
            ]);
        }
    }
    table
}

/// Bars of the first codec, by the first judge, if it was judged at one level and at all.
fn bars(result: &CodecResult) -> FigureTable {
    let mut table = FigureTable::bars();
    let Some(codec) = result.codecs.first() else { return table };
    let (Some(one), Some(all)) = (codec.at(1), codec.at(codec.codebooks.len())) else { return table };
    let floor = result.codecs.iter().find(|codec| codec.floor);
    let same = |level: &LevelFigures| floor.and_then(|floor| floor.at(level.levels));
    let tags = |level: &LevelFigures| level.judges[0].tags.clip;
    let frechet = |level: &LevelFigures| level.judges[0].frechet.distance;
    let floors = |level: &LevelFigures| {
        let own = &level.judges[0].tags;
        own.clip_shuffled.max(own.clip_constant).max(same(level).map_or(0.0, tags))
    };
    for (level, bar) in [(all, TAGS_ALL_LEVELS), (one, TAGS_ONE_LEVEL)] {
        let what = format!("tag cosine, levels: {}", level.levels);
        table.bar(&what, number(tags(level)), &format!("at least {bar}"), tags(level) >= bar);
        let what = format!("tag cosine above every floor, levels: {}", level.levels);
        let highest = floors(level);
        table.bar(&what, number(tags(level)), &format!("above {}", number(highest)), tags(level) > highest);
    }
    if let Some(other) = same(all) {
        let limit = FRECHET_SHARE_OF_FLOOR * frechet(other);
        let bar = format!("at most {} (half of {})", number(limit), number(frechet(other)));
        table.bar("FD, all levels", number(frechet(all)), &bar, frechet(all) <= limit);
    }
    if let Some(other) = same(one) {
        let (own, other) = (one.chroma_correlation, other.chroma_correlation);
        table.bar("chroma correlation, 1 level", number(own), &format!("above {}", number(other)), own > other);
    }
    let doubling = codec.levels.windows(2).all(|p| tags(&p[1]) > tags(&p[0]) && frechet(&p[1]) < frechet(&p[0]));
    let steps = codec.levels.iter().map(|l| number(tags(l))).collect::<Vec<_>>().join(" / ");
    table.bar("each doubling improves tags and FD", steps, "every step", doubling);
    let worst = all.octave_db.iter().map(|db| db.abs()).fold(0.0, f64::max);
    let bar = format!("within {OCTAVE_DB} dB");
    table.bar("energy of each octave, all levels", format!("{worst:.1} dB"), &bar, worst <= OCTAVE_DB);
    let least = codec.codebooks.iter().map(|codebook| codebook.used).fold(1.0, f64::min);
    let bar = format!("at least {}", percent(CODEBOOK_USE));
    table.bar("entries used, worst codebook", percent(least), &bar, least >= CODEBOOK_USE);
    table
}

impl CodecFigures {
    /// Figures of the given number of levels, if it was judged.
    pub fn at(&self, levels: usize) -> Option<&LevelFigures> {
        self.levels.iter().find(|figures| figures.levels == levels)
    }
}
