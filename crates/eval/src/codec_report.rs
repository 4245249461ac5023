//! Judging codecs: for 1, 2, 4 and 8 levels, how much of the sound, of what a judge hears, and of the pitch survives.
//! The first codec is the one under test, the others are floors.

use std::path::Path;
use std::time::Instant;

use mambo_audio::analysis::{Chromagram, MelScales, OCTAVE_COUNT, chromagram, octave_energy};
use mambo_model::codec::Codec;
use mambo_model::tokens::CodecTokens;
use serde::Serialize;

use crate::frechet::{Draws, Frechet, frechet_distance, halves_distance};
use crate::judge::{Judge, Listening};
use crate::report::{Player, Report};
use crate::resources::Speed;
use crate::spectrogram::spectrogram_png;
use crate::tags::{TagCosine, tag_cosine};
use crate::{EvalError, Rows};

mod figures;
mod plot;

pub use plot::codec_plot;

/// An octave this far below the clip's strongest (60 dB) is not compared: its decibels would be those of nothing.
const INAUDIBLE: f64 = 1e-6;

/// A clip of the test split.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TestClip {
    /// Name, unique among the clips.
    pub id: String,
    /// Mono samples at the codecs' rate.
    pub samples: Vec<f32>,
}

/// A codec and its name in the report.
pub struct NamedCodec<'a> {
    /// Name.
    pub name: String,
    /// The codec: one for all clips, or one a clip if it has been told something of each.
    pub codecs: Vec<&'a dyn Codec>,
    /// Whether the first codec has to beat it.
    pub floor: bool,
}

impl NamedCodec<'_> {
    /// The codec of a clip.
    fn of(&self, clip: usize) -> &dyn Codec {
        self.codecs[clip % self.codecs.len()]
    }
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub struct CodecSettings {
    /// Numbers of levels to decode; those a codec does not have are left out. If it has none of them, all it has.
    pub levels: Vec<usize>,
    /// Seed for decoders that draw.
    pub seed: u64,
    /// How patches are drawn for Fréchet distances.
    pub draws: Draws,
    /// Clips kept for listening.
    pub examples: usize,
    /// Seconds of each kept.
    pub example_seconds: f64,
}

impl Default for CodecSettings {
    fn default() -> Self {
        Self { levels: vec![1, 2, 4, 8], seed: 0, draws: Draws::default(), examples: 3, example_seconds: 15.0 }
    }
}

/// Use of one codebook.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CodebookUse {
    /// Share of the entries that occur.
    pub used: f64,
    /// Exponential of the entropy: as many entries used evenly would say as much.
    pub perplexity: f64,
    /// Share of frames that repeat the entry of the frame before.
    pub repeated: f64,
}

/// What a judge says of a reconstruction.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JudgeFigures {
    /// Name of the judge.
    pub judge: String,
    /// Tag cosine with the originals, beside its floors.
    pub tags: TagCosine,
    /// Fréchet distance from the originals of the same clips: 0 for a perfect codec.
    pub frechet: Frechet,
}

/// Figures of one number of levels.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LevelFigures {
    /// Codebooks decoded.
    pub levels: usize,
    /// Multi-scale mel distance, mean over the clips.
    pub mel_distance: f64,
    /// Chroma correlation, mean over the clips.
    pub chroma_correlation: f64,
    /// Level of each octave against the original in dB, energies of all clips added up.
    pub octave_db: [f64; OCTAVE_COUNT],
    /// The same clip by clip, median over the clips in which the octave is audible.
    pub octave_median_db: [f64; OCTAVE_COUNT],
    /// One entry a judge.
    pub judges: Vec<JudgeFigures>,
    /// Time to decode.
    pub decode: Speed,
}

/// Figures of one codec.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CodecFigures {
    /// Name of the codec.
    pub name: String,
    /// Whether the first codec has to beat it.
    pub floor: bool,
    /// Token frames a second.
    pub frame_rate: f64,
    /// Time to encode.
    pub encode: Speed,
    /// Each codebook.
    pub codebooks: Vec<CodebookUse>,
    /// Each number of levels.
    pub levels: Vec<LevelFigures>,
}

/// Figures of all codecs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CodecResult {
    /// Number of clips.
    pub clips: usize,
    /// Their length in seconds, all together.
    pub seconds: f64,
    /// Mel distance between different originals.
    pub mel_distance_strangers: f64,
    /// Chroma correlation between different originals.
    pub chroma_strangers: f64,
    /// Each judge's Fréchet distance between random halves of the originals' patches.
    pub halves: Vec<Option<Frechet>>,
    /// The codecs; the first is under test.
    pub codecs: Vec<CodecFigures>,
}

/// Judges all codecs on the same clips; `progress` hears a line about each. Returns the figures and the report.
pub fn codec_report(
    codecs: &[NamedCodec<'_>],
    clips: &[TestClip],
    judges: &[&dyn Judge],
    settings: &CodecSettings,
    progress: &mut dyn FnMut(&str),
) -> Result<(CodecResult, Report), EvalError> {
    if codecs.is_empty() || codecs.iter().any(|named| named.codecs.is_empty()) {
        return Err(EvalError::NoClips { what: "no codec was given".into() });
    }
    if clips.is_empty() || judges.is_empty() {
        return Err(EvalError::NoClips { what: "the test split is empty, or there is no judge".into() });
    }
    let rate = codecs[0].of(0).spec().sample_rate;
    let originals = Originals::new(clips, judges, rate, progress);
    let mut players = Vec::new();
    for clip in clips.iter().take(settings.examples) {
        players.push(player(settings, clip, "original", &clip.samples, rate));
    }
    let mut figures = Vec::with_capacity(codecs.len());
    for named in codecs {
        figures.push(judge_codec(named, clips, judges, &originals, settings, &mut players, progress)?);
    }
    let result = CodecResult {
        clips: clips.len(),
        seconds: clips.iter().map(|clip| clip.samples.len() as f64).sum::<f64>() / f64::from(rate),
        mel_distance_strangers: originals.mel_strangers(clips),
        chroma_strangers: originals.chroma_strangers(),
        halves: originals
            .features
            .iter()
            .map(|rows| (rows.count() >= 4).then(|| halves_distance(rows, &settings.draws)).transpose())
            .collect::<Result<_, _>>()?,
        codecs: figures,
    };
    players.sort_by(|a, b| a.group.cmp(&b.group));
    let report = figures::report(&result, players)?;
    Ok((result, report))
}

/// Writes the spectrograms of everything to be heard in a report as `NAME.png` in a folder, and returns their paths.
pub fn write_spectrograms(report: &Report, folder: &Path) -> Result<Vec<std::path::PathBuf>, EvalError> {
    std::fs::create_dir_all(folder).map_err(EvalError::io(folder))?;
    let mut paths = Vec::with_capacity(report.players.len());
    for player in &report.players {
        let words = format!("{} {}", player.group, player.title);
        let name: String = words.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
        let path = folder.join(format!("{name}.png"));
        spectrogram_png(&player.samples, player.rate, &path)?;
        paths.push(path);
    }
    Ok(paths)
}

/// What is measured of the originals once.
struct Originals {
    scales: MelScales,
    chroma: Vec<Chromagram>,
    octaves: Vec<[f64; OCTAVE_COUNT]>,
    /// One list a judge, one entry a clip.
    heard: Vec<Vec<Listening>>,
    /// One table a judge, all clips.
    features: Vec<Rows>,
}

impl Originals {
    fn new(clips: &[TestClip], judges: &[&dyn Judge], rate: u32, progress: &mut dyn FnMut(&str)) -> Self {
        let mut heard: Vec<Vec<Listening>> = judges.iter().map(|_| Vec::new()).collect();
        let (mut chroma, mut octaves) = (Vec::new(), Vec::new());
        for (n, clip) in clips.iter().enumerate() {
            progress(&format!("originals: clip {} of {}", n + 1, clips.len()));
            for (judge, heard) in judges.iter().zip(&mut heard) {
                heard.push(judge.listen(&clip.samples, rate));
            }
            chroma.push(chromagram(&clip.samples, rate));
            octaves.push(octave_energy(&clip.samples, rate));
        }
        let features = heard.iter().map(|list| gather(list.iter())).collect();
        Self { scales: MelScales::new(rate), chroma, octaves, heard, features }
    }

    /// Each clip against the next, at most 20 pairs.
    fn mel_strangers(&self, clips: &[TestClip]) -> f64 {
        if clips.len() < 2 {
            return 0.0;
        }
        let pairs = clips.len().min(20);
        let distance = |n: usize| self.scales.distance(&clips[n].samples, &clips[(n + 1) % clips.len()].samples);
        (0..pairs).map(distance).sum::<f64>() / pairs as f64
    }

    fn chroma_strangers(&self) -> f64 {
        let count = self.chroma.len();
        if count < 2 {
            return 0.0;
        }
        let correlation = |n: usize| f64::from(self.chroma[n].correlation(&self.chroma[(n + 1) % count]));
        (0..count).map(correlation).sum::<f64>() / count as f64
    }
}

fn gather<'a>(heard: impl Iterator<Item = &'a Listening>) -> Rows {
    let mut all: Option<Rows> = None;
    for listening in heard {
        match &mut all {
            None => all = Some(listening.features.clone()),
            Some(rows) => rows.append(&listening.features).expect("one judge always gives the same width"),
        }
    }
    all.unwrap_or_default()
}

fn judge_codec(
    named: &NamedCodec<'_>,
    clips: &[TestClip],
    judges: &[&dyn Judge],
    originals: &Originals,
    settings: &CodecSettings,
    players: &mut Vec<Player>,
    progress: &mut dyn FnMut(&str),
) -> Result<CodecFigures, EvalError> {
    let spec = named.of(0).spec();
    let mut encode = Speed::default();
    let mut tokens = Vec::with_capacity(clips.len());
    for (n, clip) in clips.iter().enumerate() {
        progress(&format!("{}: encoding clip {} of {}", named.name, n + 1, clips.len()));
        let seconds = clip.samples.len() as f64 / f64::from(spec.sample_rate);
        tokens.push(encode.time(|| named.of(n).encode(&clip.samples), |_| seconds));
    }
    let mut counts = settings.levels.clone();
    counts.retain(|count| (1..=spec.levels).contains(count));
    if counts.is_empty() {
        counts.push(spec.levels);
    }
    let mut levels = Vec::with_capacity(counts.len());
    for count in counts {
        levels.push(judge_level(named, count, clips, &tokens, judges, originals, settings, players, progress)?);
    }
    Ok(CodecFigures {
        name: named.name.clone(),
        floor: named.floor,
        frame_rate: spec.frame_rate(),
        encode,
        codebooks: (0..spec.levels).map(|level| codebook_use(&tokens, level, spec.cardinality)).collect(),
        levels,
    })
}

#[expect(clippy::too_many_arguments, reason = "the inner loop of one page")]
fn judge_level(
    named: &NamedCodec<'_>,
    levels: usize,
    clips: &[TestClip],
    tokens: &[CodecTokens],
    judges: &[&dyn Judge],
    originals: &Originals,
    settings: &CodecSettings,
    players: &mut Vec<Player>,
    progress: &mut dyn FnMut(&str),
) -> Result<LevelFigures, EvalError> {
    let spec = named.of(0).spec();
    let rate = spec.sample_rate;
    let mut heard: Vec<Vec<Listening>> = judges.iter().map(|_| Vec::new()).collect();
    let mut octaves = Vec::with_capacity(clips.len());
    let (mut mel_distance, mut chroma_correlation) = (0.0, 0.0);
    let mut decode = Speed::default();
    for (n, (clip, tokens)) in clips.iter().zip(tokens).enumerate() {
        progress(&format!("{}: {levels} levels, clip {} of {}", named.name, n + 1, clips.len()));
        let start = Instant::now();
        let mut copy = named.of(n).decode(tokens, levels, settings.seed.wrapping_add(n as u64));
        decode.add(start.elapsed(), copy.len() as f64 / f64::from(rate));
        if !copy.iter().all(|sample| sample.is_finite()) {
            return Err(EvalError::NotFinite { what: format!("{}, {levels} levels, clip {}", named.name, clip.id) });
        }
        // The last token reaches beyond the end of the clip.
        copy.resize(clip.samples.len(), 0.0);
        mel_distance += originals.scales.distance(&clip.samples, &copy) / clips.len() as f64;
        let correlation = originals.chroma[n].correlation(&chromagram(&copy, rate));
        chroma_correlation += f64::from(correlation) / clips.len() as f64;
        octaves.push(octave_energy(&copy, rate));
        for (judge, heard) in judges.iter().zip(&mut heard) {
            heard.push(judge.listen(&copy, rate));
        }
        if n < settings.examples {
            let title = format!("{}, {levels} of {} levels", named.name, spec.levels);
            players.push(player(settings, clip, &title, &copy, rate));
        }
    }
    let (octave_db, octave_median_db) = octave_differences(&originals.octaves, &octaves);
    let mut judged = Vec::with_capacity(judges.len());
    for (index, judge) in judges.iter().enumerate() {
        let pairs: Vec<(Rows, Rows)> = originals.heard[index]
            .iter()
            .zip(&heard[index])
            .map(|(original, copy)| (original.tags.clone(), copy.tags.clone()))
            .collect();
        judged.push(JudgeFigures {
            judge: judge.name().to_owned(),
            tags: tag_cosine(&pairs)?,
            frechet: frechet_distance(&gather(heard[index].iter()), &originals.features[index], &settings.draws)?,
        });
    }
    Ok(LevelFigures { levels, mel_distance, chroma_correlation, octave_db, octave_median_db, judges: judged, decode })
}

/// Level of each octave in dB against the originals: of all energy together, and the median over clips.
fn octave_differences(
    originals: &[[f64; OCTAVE_COUNT]],
    copies: &[[f64; OCTAVE_COUNT]],
) -> ([f64; OCTAVE_COUNT], [f64; OCTAVE_COUNT]) {
    let decibels = |copy: f64, original: f64| 10.0 * (copy.max(1e-30) / original.max(1e-30)).log10();
    let (mut pooled, mut median) = ([0.0; OCTAVE_COUNT], [0.0; OCTAVE_COUNT]);
    for octave in 0..OCTAVE_COUNT {
        let sum = |all: &[[f64; OCTAVE_COUNT]]| all.iter().map(|energies| energies[octave]).sum::<f64>();
        let (original, copy) = (sum(originals), sum(copies));
        pooled[octave] = if original > 0.0 { decibels(copy, original) } else { 0.0 };
        let mut differences: Vec<f64> = originals
            .iter()
            .zip(copies)
            .filter(|(original, _)| original[octave] > INAUDIBLE * original.iter().copied().fold(1e-12, f64::max))
            .map(|(original, copy)| decibels(copy[octave], original[octave]))
            .collect();
        differences.sort_by(f64::total_cmp);
        median[octave] = differences.get(differences.len() / 2).copied().unwrap_or(0.0);
    }
    (pooled, median)
}

fn codebook_use(tokens: &[CodecTokens], level: usize, cardinality: usize) -> CodebookUse {
    let mut counts = vec![0usize; cardinality];
    let (mut frames, mut repeats, mut steps) = (0usize, 0usize, 0usize);
    for clip in tokens {
        let row = clip.row(level);
        for &code in row {
            counts[usize::from(code)] += 1;
        }
        frames += row.len();
        repeats += row.windows(2).filter(|pair| pair[0] == pair[1]).count();
        steps += row.len().saturating_sub(1);
    }
    let share = |count: usize| count as f64 / frames.max(1) as f64;
    let entropy: f64 = counts.iter().filter(|&&n| n > 0).map(|&n| -share(n) * share(n).ln()).sum();
    CodebookUse {
        used: counts.iter().filter(|&&n| n > 0).count() as f64 / cardinality as f64,
        perplexity: entropy.exp(),
        repeated: repeats as f64 / steps.max(1) as f64,
    }
}

fn player(settings: &CodecSettings, clip: &TestClip, title: &str, samples: &[f32], rate: u32) -> Player {
    let length = (settings.example_seconds * f64::from(rate)) as usize;
    Player {
        group: clip.id.clone(),
        title: title.to_owned(),
        caption: String::new(),
        samples: samples[..length.min(samples.len())].to_vec(),
        rate,
    }
}
