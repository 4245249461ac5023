//! Judging systems that make music from text: a model, its floors and its ceiling, on the captions of real clips and
//! on fixed prompts. One page: real clips; each system's clips; comparisons at equal numbers of patches; bars.

use mambo_model::random;
use serde::Serialize;

use crate::clip_set::{ClipSet, SetComparison, compare};
use crate::copying::{CopyReport, copy_report};
use crate::error::SystemError;
use crate::frechet::{self, Draws, Frechet};
use crate::judge::Judge;
use crate::prompts::{Prompt, fixed_prompts};
use crate::report::{Player, Report};
use crate::resources::{Speed, peak_memory};
use crate::tags::{PromptAgreement, PromptedClip, prompt_agreement};
use crate::{EvalError, structure};

mod figures;
mod length;
mod plot;

pub use length::{LengthResult, long_clips};

/// What a system is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Request<'a> {
    /// The text.
    pub prompt: &'a str,
    /// Length in seconds.
    pub seconds: f64,
    /// Seed: the same seed must give the same clip.
    pub seed: u64,
    /// Which real clip the caption belongs to; `None` for the fixed prompts. Only a ceiling may look at it.
    pub real: Option<usize>,
}

/// What a system made.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Generated {
    /// Mono samples at the rate of the setup.
    pub samples: Vec<f32>,
    /// Tokens of the first codebook; empty where there are none.
    pub level_one: Vec<u16>,
}

/// A system's way to make a clip.
pub type Generate<'a> = Box<dyn FnMut(&Request<'_>) -> Result<Generated, SystemError> + 'a>;

/// What a system stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The one to judge.
    Model,
    /// Tokens of a bigram model, decoded: a floor.
    Bigram,
    /// Uniform tokens, decoded: the lowest floor.
    Uniform,
    /// Tokens of the real clips, decoded: as good as the codec lets anything be.
    Ceiling,
    /// Anything else to compare with.
    Other,
}

/// A system under test.
pub struct System<'a> {
    /// Name in the report.
    pub name: String,
    /// What it stands for.
    pub role: Role,
    /// Whether to ask it the fixed prompts as well.
    pub reads_text: bool,
    /// How it makes a clip.
    pub generate: Generate<'a>,
}

/// A real clip of the test split.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RealClip {
    /// Name, unique among the clips.
    pub id: String,
    /// Its caption, the prompt for every system.
    pub caption: String,
    /// Mono samples.
    pub samples: Vec<f32>,
    /// Tokens of its first codebook; empty where there are none.
    pub level_one: Vec<u16>,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Length of a clip in seconds.
    pub seconds: f64,
    /// Clips a system on test captions; more than there are real clips go around again with another seed.
    pub clips: usize,
    /// Seed of everything.
    pub seed: u64,
    /// Rounds of clips on test captions, each with a seed of its own, for the systems that are no floor and no ceiling; everything
    /// but their spread is judged by the first.
    pub rounds: u64,
    /// How patches are drawn for Fréchet distances.
    pub draws: Draws,
    /// Prompts that name a tag.
    pub prompts: Vec<Prompt>,
    /// Seeds a prompt.
    pub prompt_seeds: usize,
    /// Length of a clip for these prompts in seconds.
    pub prompt_seconds: f64,
    /// Tags that count as the judge's top.
    pub top_tags: usize,
    /// A copied run of this length in seconds is too long.
    pub copy_limit_seconds: f64,
    /// Clips a system kept for listening.
    pub examples: usize,
    /// Seconds of each kept.
    pub example_seconds: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            seconds: 30.0,
            clips: 64,
            seed: 0,
            rounds: 1,
            draws: Draws { patches: Some(600), ..Draws::default() },
            prompts: fixed_prompts(),
            prompt_seeds: 4,
            prompt_seconds: 12.0,
            top_tags: 5,
            copy_limit_seconds: 4.0,
            examples: 4,
            example_seconds: 15.0,
        }
    }
}

/// Everything a judgement rests on.
pub struct Setup<'a> {
    /// Rate of all samples in Hz.
    pub sample_rate: u32,
    /// Token frames a second.
    pub frame_rate: f64,
    /// Real clips of the test split.
    pub real: &'a [RealClip],
    /// First-codebook tokens of the training set, a slice a sequence.
    pub training: &'a [&'a [u16]],
    /// Who listens.
    pub judge: &'a dyn Judge,
    /// What to do.
    pub settings: Settings,
}

/// Figures of one system.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SystemResult {
    /// Name of the system.
    pub name: String,
    /// What it stands for.
    pub role: Role,
    /// Clips made for test captions.
    pub clips: usize,
    /// Distances from the real clips.
    pub comparison: SetComparison,
    /// The Fréchet distance of every round, if there were several.
    pub rounds: Vec<f64>,
    /// `(FD - FD of the ceiling) / (FD of uniform tokens - FD of the ceiling)`: 0 at the ceiling, 1 at the floor.
    pub normalised: Option<f64>,
    /// Agreement with the prompts.
    pub prompts: Option<PromptAgreement>,
    /// What was copied from the training set; absent where there are no tokens.
    pub copying: Option<CopyReport>,
    /// Time taken.
    pub speed: Speed,
    /// Clips without sound.
    pub silent: usize,
    /// Clips whose true peak reaches full scale.
    pub clipped: usize,
    /// Clips unlike all others.
    pub distinct: usize,
}

/// Figures of all systems.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GenerationResult {
    /// Name of the judge.
    pub judge: String,
    /// Seconds a clip.
    pub seconds: f64,
    /// Number of real clips.
    pub real_clips: usize,
    /// Distance between halves of the real clips, at their own number of patches.
    pub real_halves: Option<Frechet>,
    /// Structure distance between halves of the real clips.
    pub real_structure_halves: Option<f64>,
    /// What the real test clips share with the training set.
    pub real_copying: Option<CopyReport>,
    /// The systems, in the order given.
    pub systems: Vec<SystemResult>,
    /// Highest memory of this process in bytes, everything included.
    pub peak_memory: Option<u64>,
}

struct Made {
    /// Clips on captions, a set a round; the first is judged in every way.
    sets: Vec<ClipSet>,
    prompted: Vec<PromptedClip>,
    level_one: Vec<Vec<u16>>,
    speed: Speed,
}

/// Judges all systems; `progress` hears a line about each clip. Returns the figures and the report.
pub fn evaluate(
    systems: &mut [System<'_>],
    setup: &Setup<'_>,
    progress: &mut dyn FnMut(&str),
) -> Result<(GenerationResult, Report), EvalError> {
    let tags = prompt_tags(setup)?;
    if setup.real.is_empty() || systems.is_empty() {
        return Err(EvalError::NoClips { what: "the test split is empty, or no system was given".into() });
    }
    let mut players = Vec::new();
    let real = judge_real(setup, &mut players, progress)?;
    let mut made = Vec::with_capacity(systems.len());
    for system in systems.iter_mut() {
        made.push(judge_system(system, setup, &tags, &mut players, progress)?);
    }
    let sets = made.iter().flat_map(|made| &made.sets);
    let counts = sets.map(|set| set.features.count()).chain([real.features.count()]);
    let patches = counts.min().unwrap_or(0).min(setup.settings.draws.patches.unwrap_or(usize::MAX));
    let draws = Draws { patches: Some(patches), ..setup.settings.draws };
    progress("comparing");
    let mut results = Vec::with_capacity(systems.len());
    for (system, made) in systems.iter().zip(&made) {
        results.push(system_result(system, made, &real, setup, &draws)?);
    }
    normalise(&mut results);
    let real_tokens: Vec<Vec<u16>> =
        setup.real.iter().map(|clip| clip.level_one.clone()).filter(|tokens| !tokens.is_empty()).collect();
    let rows = real.structure_rows();
    let result = GenerationResult {
        judge: setup.judge.name().to_owned(),
        seconds: setup.settings.seconds,
        real_clips: setup.real.len(),
        real_halves: (real.features.count() >= 4)
            .then(|| frechet::halves_distance(&real.features, &setup.settings.draws))
            .transpose()?,
        real_structure_halves: (rows.len() >= 4)
            .then(|| structure::halves_distance(&rows, draws.count, draws.seed))
            .transpose()?,
        real_copying: copying(&real_tokens, setup),
        systems: results,
        peak_memory: peak_memory(),
    };
    players.sort_by(|a, b| a.group.cmp(&b.group));
    let report = figures::report(&result, players)?;
    Ok((result, report))
}

/// Index of each prompt's tag among the judge's.
fn prompt_tags(setup: &Setup<'_>) -> Result<Vec<usize>, EvalError> {
    let names = setup.judge.tag_names();
    let find = |prompt: &Prompt| {
        names.iter().position(|name| *name == prompt.tag).ok_or_else(|| EvalError::UnknownTag {
            judge: setup.judge.name().to_owned(),
            tag: prompt.tag.clone(),
            known: names.join(", "),
        })
    };
    setup.settings.prompts.iter().map(find).collect()
}

fn judge_real(
    setup: &Setup<'_>,
    players: &mut Vec<Player>,
    progress: &mut dyn FnMut(&str),
) -> Result<ClipSet, EvalError> {
    let mut set = ClipSet::new("real");
    let length = (setup.settings.seconds * f64::from(setup.sample_rate)) as usize;
    for (n, clip) in setup.real.iter().enumerate() {
        progress(&format!("real: clip {} of {}", n + 1, setup.real.len()));
        let samples = &clip.samples[..length.min(clip.samples.len())];
        set.add(&clip.id, samples, setup.sample_rate, setup.judge)?;
        if n < setup.settings.examples {
            players.push(player(setup, &caption_group(n, &clip.caption), "real", "", samples));
        }
    }
    Ok(set)
}

fn judge_system(
    system: &mut System<'_>,
    setup: &Setup<'_>,
    tags: &[usize],
    players: &mut Vec<Player>,
    progress: &mut dyn FnMut(&str),
) -> Result<Made, EvalError> {
    let settings = &setup.settings;
    let mut made = Made { sets: Vec::new(), prompted: Vec::new(), level_one: Vec::new(), speed: Speed::default() };
    let rounds = if matches!(system.role, Role::Model | Role::Other) { settings.rounds.max(1) } else { 1 };
    for round in 0..rounds {
        let mut set = ClipSet::new(&system.name);
        let name =
            if rounds > 1 { format!("{}, round {} of {rounds}", system.name, round + 1) } else { system.name.clone() };
        for n in 0..settings.clips {
            progress(&format!("{name}: clip {} of {}", n + 1, settings.clips));
            let index = n % setup.real.len();
            let real = &setup.real[index];
            let request = Request {
                prompt: &real.caption,
                seconds: settings.seconds,
                seed: clip_seed(settings.seed.wrapping_add(round), "captions", n),
                real: Some(index),
            };
            let clip = make(system, setup, &request, &real.id, &mut made.speed)?;
            set.add(&real.id, &clip.samples, setup.sample_rate, setup.judge)?;
            if round > 0 {
                continue;
            }
            if n < settings.examples.min(setup.real.len()) {
                let group = caption_group(index, &real.caption);
                players.push(player(setup, &group, &system.name, "", &clip.samples));
            }
            made.level_one.push(clip.level_one);
        }
        made.sets.push(set);
    }
    let prompts = if system.reads_text { settings.prompts.as_slice() } else { &[] };
    for (prompt_index, (prompt, &tag)) in prompts.iter().zip(tags).enumerate() {
        for seed in 0..settings.prompt_seeds {
            progress(&format!("{}: prompt {} of {}, seed {seed}", system.name, prompt_index + 1, prompts.len()));
            let request = Request {
                prompt: &prompt.text,
                seconds: settings.prompt_seconds,
                seed: clip_seed(settings.seed, "prompts", seed * prompts.len() + prompt_index),
                real: None,
            };
            let clip = make(system, setup, &request, &prompt.text, &mut made.speed)?;
            let heard = setup.judge.listen(&clip.samples, setup.sample_rate);
            let mean_tags = heard.tags.mean().ok_or_else(|| EvalError::TooFewPatches {
                what: format!("{}, prompt {:?}", system.name, prompt.text),
                found: 0,
            })?;
            made.prompted.push(PromptedClip { prompt: prompt_index, tag, mean_tags });
            if seed == 0 && system.role == Role::Model {
                let group = format!("prompt {:02}: {}", prompt_index + 1, prompt.text);
                players.push(player(setup, &group, &system.name, &format!("names {:?}", prompt.tag), &clip.samples));
            }
        }
    }
    Ok(made)
}

fn make(
    system: &mut System<'_>,
    setup: &Setup<'_>,
    request: &Request<'_>,
    clip: &str,
    speed: &mut Speed,
) -> Result<Generated, EvalError> {
    let generate = &mut system.generate;
    let made = speed.time(
        || generate(request),
        |made| made.as_ref().map_or(0.0, |clip| clip.samples.len() as f64 / f64::from(setup.sample_rate)),
    );
    made.map_err(|source| EvalError::System { system: system.name.clone(), clip: clip.to_owned(), source })
}

fn system_result(
    system: &System<'_>,
    made: &Made,
    real: &ClipSet,
    setup: &Setup<'_>,
    draws: &Draws,
) -> Result<SystemResult, EvalError> {
    let names = setup.judge.tag_names();
    let [set, further @ ..] = made.sets.as_slice() else { unreachable!("every system has a first round") };
    let comparison = compare(set, real, draws)?;
    let mut rounds = Vec::new();
    if !further.is_empty() {
        rounds.push(comparison.frechet.distance);
    }
    for set in further {
        rounds.push(frechet::frechet_distance(&set.features, &real.features, draws)?.distance);
    }
    Ok(SystemResult {
        name: system.name.clone(),
        role: system.role,
        clips: set.clips.len(),
        comparison,
        rounds,
        normalised: None,
        prompts: if made.prompted.is_empty() {
            None
        } else {
            Some(prompt_agreement(&made.prompted, names, setup.settings.top_tags)?)
        },
        copying: copying(&made.level_one, setup),
        speed: made.speed,
        silent: set.silent(),
        clipped: set.clipped(),
        distinct: set.distinct(),
    })
}

fn copying(clips: &[Vec<u16>], setup: &Setup<'_>) -> Option<CopyReport> {
    if setup.training.is_empty() || clips.is_empty() || clips.iter().any(Vec::is_empty) {
        return None;
    }
    Some(copy_report(clips, setup.training, setup.frame_rate, setup.settings.copy_limit_seconds))
}

fn normalise(results: &mut [SystemResult]) {
    let distance = |role: Role| results.iter().find(|r| r.role == role).map(|r| r.comparison.frechet.distance);
    let (Some(ceiling), Some(uniform)) = (distance(Role::Ceiling), distance(Role::Uniform)) else { return };
    if uniform <= ceiling {
        return;
    }
    for result in results {
        result.normalised = Some((result.comparison.frechet.distance - ceiling) / (uniform - ceiling));
    }
}

/// Every clip its own seed, the same for all systems.
fn clip_seed(seed: u64, name: &str, index: usize) -> u64 {
    let mut rng = random::stream(seed, name, index as u64);
    // Seeds below 2^53 survive JSON.
    random::below(&mut rng, 1 << 24) as u64 * (1 << 24) + random::below(&mut rng, 1 << 24) as u64
}

fn caption_group(index: usize, caption: &str) -> String {
    format!("caption {:02}: {caption}", index + 1)
}

fn player(setup: &Setup<'_>, group: &str, title: &str, caption: &str, samples: &[f32]) -> Player {
    let length = (setup.settings.example_seconds * f64::from(setup.sample_rate)) as usize;
    Player {
        group: group.to_owned(),
        title: title.to_owned(),
        caption: caption.to_owned(),
        samples: samples[..length.min(samples.len())].to_vec(),
        rate: setup.sample_rate,
    }
}
