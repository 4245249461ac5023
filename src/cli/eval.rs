//! `mambo eval`: figures beside their floors and ceilings, as a table, JSON and a page to listen to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use mambo_audio::level::read_levelled;
use mambo_audio::limiter::Limiter;
use mambo_audio::read::read_mono;
use mambo_data::shard::Shard;
use mambo_data::{Manifest, Split};
use mambo_eval::codec_report::{CodecSettings, NamedCodec, TestClip, codec_report, write_spectrograms};
use mambo_eval::error::SystemError;
use mambo_eval::files::{compare_files, files_report};
use mambo_eval::floors::uniform_tokens;
use mambo_eval::frechet::Draws;
use mambo_eval::generation::{Generated, RealClip, Role, Settings, Setup, System, evaluate};
use mambo_eval::prompts::{fixed_prompts, parse_prompts};
use mambo_eval::{ClipSet, Judge, MusicnnJudge, Report};
use mambo_model::bundle::Bundle;
use mambo_model::codec::{Codec, HouseCodec};
use mambo_model::random;
use mambo_model::tokens::CodecSpec;
use mambo_train::bigram::KneserNeyBigram;
use mambo_train::codec::CodecExperiment;
use mambo_train::run::read_toml;

use super::generate::default_model;
use super::print;

/// Patches of a judge are three seconds: shorter clips say nothing.
const SHORTEST_SECONDS: f64 = 3.1;
/// Ceiling of true peaks in what `generate` writes, dBFS.
const CEILING: f32 = -1.0;

/// `mambo eval`.
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  mambo eval codec models/tiny/codec --corpus corpus --floor configs/codec-tiny.toml --html codec.html\n  mambo eval model models/tiny --corpus corpus --shards shards --html model.html\n  mambo eval files generated/ reference/ --json\n\nFréchet distances and divergences are over musicnn: Mambo's own proxies, not published metrics.")]
pub enum EvalCommand {
    /// A codec on the test split, for 1, 2, 4 and 8 levels, beside the k-means codec.
    Codec(CodecArguments),
    /// A model on test captions and fixed prompts, beside bigram, uniform tokens and real tokens.
    Model(ModelArguments),
    /// The sound files of one folder against those of another.
    Files(FilesArguments),
}

/// Flags of every `mambo eval`.
#[derive(Debug, Args)]
struct Common {
    /// Weights of the judge (musicnn MSD); by default tagger/msd.safetensors in or near the model folder.
    #[arg(long, value_name = "FILE")]
    judge: Option<PathBuf>,
    /// Write a page with players, spectrograms and figures.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
    /// Seed of draws and of generated clips.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Patches (3 s of sound) a side in Fréchet distances; fewer where there are fewer.
    #[arg(long, default_value_t = 600)]
    patches: usize,
}

/// Flags of `mambo eval codec`.
#[derive(Debug, Args)]
pub struct CodecArguments {
    /// Codec folder.
    codec: PathBuf,
    /// Corpus: folder or manifest file.
    #[arg(long, value_name = "DIR")]
    corpus: PathBuf,
    /// Experiment file of the codec: fits the k-means floor codec to the same training music.
    #[arg(long, value_name = "FILE")]
    floor: Option<PathBuf>,
    /// Only these licence tiers.
    #[arg(long, value_delimiter = ',')]
    tiers: Vec<String>,
    /// Part of the corpus.
    #[arg(long, default_value = "test", value_parser = split)]
    split: Split,
    /// Most clips.
    #[arg(long, default_value_t = 60)]
    clips: usize,
    /// Length of a clip in seconds.
    #[arg(long, default_value_t = 30.0, value_parser = seconds)]
    seconds: f64,
    /// Second judge (musicnn MTT, the tagger of captions), reported beside the first.
    #[arg(long, value_name = "FILE")]
    second_judge: Option<PathBuf>,
    /// Write the plot.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Write spectrograms of originals and reconstructions.
    #[arg(long, value_name = "DIR")]
    spectrograms: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

/// Flags of `mambo eval model`.
#[derive(Debug, Args)]
pub struct ModelArguments {
    /// Model folder; by default models/tiny.
    model: Option<PathBuf>,
    /// Corpus: folder or manifest file with the real music.
    #[arg(long, value_name = "DIR")]
    corpus: PathBuf,
    /// Prepared shards: captions of the test split, tokens of the training split.
    #[arg(long, value_name = "DIR")]
    shards: PathBuf,
    /// Length of a segment as given to `mambo prepare`.
    #[arg(long, default_value_t = 30.0, value_parser = seconds)]
    segment_seconds: f64,
    /// Length of the clips in seconds.
    #[arg(long, default_value_t = 30.0, value_parser = seconds)]
    seconds: f64,
    /// Clips of each system.
    #[arg(long, default_value_t = 64)]
    clips: usize,
    /// Prompts in lines `tag<TAB>prompt` instead of the fixed ones.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Seeds a prompt; 0 leaves the prompts out.
    #[arg(long, default_value_t = 4)]
    prompt_seeds: usize,
    #[command(flatten)]
    common: Common,
}

/// Flags of `mambo eval files`.
#[derive(Debug, Args)]
pub struct FilesArguments {
    /// Folder with the sound to judge.
    judged: PathBuf,
    /// Folder with the sound to compare with; files of the same name are pairs.
    reference: PathBuf,
    /// Files are cut into clips of this length in seconds.
    #[arg(long, default_value_t = 30.0, value_parser = seconds)]
    seconds: f64,
    #[command(flatten)]
    common: Common,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (SHORTEST_SECONDS..=3600.0).contains(&value) => Ok(value),
        _ => Err(format!("expected seconds from {SHORTEST_SECONDS} to 3600")),
    }
}

fn split(text: &str) -> Result<Split, String> {
    Split::from_name(text).ok_or_else(|| format!("expected one of {}", Split::ALL.map(Split::name).join(", ")))
}

impl EvalCommand {
    /// Judges.
    pub fn run(self) -> Result<ExitCode> {
        match self {
            Self::Codec(arguments) => arguments.run(),
            Self::Model(arguments) => arguments.run(),
            Self::Files(arguments) => arguments.run(),
        }
    }
}

impl Common {
    fn draws(&self) -> Draws {
        Draws { patches: Some(self.patches), seed: self.seed, ..Draws::default() }
    }

    fn judge(&self, near: Option<&Path>) -> Result<MusicnnJudge> {
        let path = self.judge.clone().or_else(|| find_judge(near)).context(
            "no judge found: looked for tagger/msd.safetensors in and beside the model folder and in models/; give one with --judge",
        )?;
        MusicnnJudge::load("musicnn MSD", &path).with_context(|| format!("--judge {}", path.display()))
    }

    fn deliver(&self, report: &Report) -> Result<ExitCode> {
        if let Some(path) = &self.html {
            report.write_html(path)?;
        }
        print(if self.json { report.json() } else { report.text() }.trim_end())?;
        Ok(ExitCode::SUCCESS)
    }
}

fn find_judge(near: Option<&Path>) -> Option<PathBuf> {
    let here = std::env::current_dir().unwrap_or_default();
    let folders = near.into_iter().flat_map(|folder| folder.ancestors().take(3)).map(Path::to_path_buf);
    folders
        .chain(here.ancestors().map(|folder| folder.join("models")))
        .map(|folder| folder.join("tagger").join("msd.safetensors"))
        .find(|path| path.exists())
}

/// A line on the terminal that says what is being done.
fn spinner() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
    ProgressBar::new_spinner().with_style(style)
}

fn step(bar: &ProgressBar) -> impl FnMut(&str) {
    let bar = bar.clone();
    move |line| {
        bar.set_message(line.to_owned());
        bar.tick();
    }
}

/// Places (track, segment) spread evenly over all segments of `length` seconds of a split.
fn places(manifest: &Manifest, split: Split, tiers: &[String], length: f64, most: usize) -> Vec<(usize, usize)> {
    let mut all = Vec::new();
    for (index, track) in manifest.tracks.iter().enumerate() {
        let wanted = track.dropped.is_none() && track.split == split && (tiers.is_empty() || tiers.contains(&track.tier));
        let whole = if wanted { (track.seconds / length) as usize } else { 0 };
        all.extend((0..whole).map(|segment| (index, segment)));
    }
    let count = all.len().min(most);
    (0..count).map(|n| all[n * all.len() / count]).collect()
}

/// Sound at the given places, at corpus loudness; every file is read once.
fn cut(manifest: &Manifest, places: &[(usize, usize)], length: f64, rate: u32, bar: &ProgressBar) -> Result<Vec<Vec<f32>>> {
    let samples = (length * f64::from(rate)) as usize;
    let mut clips = Vec::with_capacity(places.len());
    for same in places.chunk_by(|a, b| a.0 == b.0) {
        let path = manifest.audio_path(&manifest.tracks[same[0].0]);
        step(bar)(&format!("reading {}", path.display()));
        let mono = read_levelled(&path, rate)?;
        for (_, segment) in same {
            let start = (segment * samples).min(mono.len());
            clips.push(mono[start..(start + samples).min(mono.len())].to_vec());
        }
    }
    Ok(clips)
}

impl CodecArguments {
    fn run(self) -> Result<ExitCode> {
        let bar = spinner();
        let codec = HouseCodec::load(&self.codec)?;
        let rate = codec.spec().sample_rate;
        let judge = self.common.judge(Some(&self.codec))?;
        let second = match &self.second_judge {
            Some(path) => Some(MusicnnJudge::load("musicnn MTT", path).with_context(|| format!("--second-judge {}", path.display()))?),
            None => None,
        };
        let manifest = Manifest::load(&self.corpus)?;
        let places = places(&manifest, self.split, &self.tiers, self.seconds, self.clips);
        if places.is_empty() {
            bail!("{}: no track of the split {} is as long as {} s", self.corpus.display(), self.split.name(), self.seconds);
        }
        let clips: Vec<TestClip> = places
            .iter()
            .zip(cut(&manifest, &places, self.seconds, rate, &bar)?)
            .map(|((track, segment), samples)| TestClip { id: clip_name(&manifest, *track, *segment), samples })
            .collect();
        let floor = match &self.floor {
            Some(path) => {
                let mut experiment: CodecExperiment = read_toml(path)?;
                experiment.manifest.clone_from(&self.corpus);
                step(&bar)("fitting the k-means codec");
                Some(mambo_train::codec::floor(&experiment)?)
            }
            None => None,
        };
        let mut codecs = vec![NamedCodec { name: codec.spec().name.clone(), codec: &codec }];
        if let Some(floor) = &floor {
            codecs.push(NamedCodec { name: floor.spec().name.clone(), codec: floor });
        }
        let mut judges: Vec<&dyn Judge> = vec![&judge];
        judges.extend(second.as_ref().map(|judge| judge as &dyn Judge));
        let settings = CodecSettings { seed: self.common.seed, draws: self.common.draws(), ..CodecSettings::default() };
        let (_, report) = codec_report(&codecs, &clips, &judges, &settings, &mut step(&bar))?;
        bar.finish_and_clear();
        if let Some(folder) = &self.spectrograms {
            write_spectrograms(&report, folder)?;
        }
        if let (Some(path), Some(plot)) = (&self.plot, report.plots.first()) {
            std::fs::write(path, &plot.svg).with_context(|| path.display().to_string())?;
        }
        self.common.deliver(&report)
    }
}

fn clip_name(manifest: &Manifest, track: usize, segment: usize) -> String {
    let track = &manifest.tracks[track];
    let title = track.attribution.title.as_deref().unwrap_or(&track.id);
    format!("{title} {} ({})", segment + 1, &track.id[..track.id.len().min(6)])
}

/// First caption of every unaltered segment, by track id and segment.
fn captions(shards: &[Shard], split: Split) -> BTreeMap<(String, usize), String> {
    let mut found = BTreeMap::new();
    for shard in shards {
        for item in (0..shard.len()).map(|index| shard.item(index)) {
            if item.track.split == split && item.version == 0 {
                let text = shard.header().captions[item.captions[0] as usize].text.clone();
                found.insert((item.track.id.clone(), item.segment as usize), text);
            }
        }
    }
    found
}

/// First-codebook tokens of the training split, an item each.
fn training_tokens(shards: &[Shard]) -> Vec<&[u16]> {
    let items = shards.iter().flat_map(|shard| (0..shard.len()).map(|index| shard.item(index)));
    items.filter(|item| item.track.split == Split::Train).map(|item| &item.codes_kt[..item.length]).collect()
}

/// Frames of K codes become sound the way `generate` makes it: streamed, limited.
fn render(codec: &HouseCodec, frames: impl Iterator<Item = Vec<u16>>, levels: usize, seed: u64, seconds: f64) -> Generated {
    let rate = codec.spec().sample_rate;
    let mut limiter = Limiter::new(rate, CEILING);
    let mut stream = codec.stream(levels, seed);
    let (mut samples, mut level_one) = (Vec::new(), Vec::new());
    for frame in frames {
        level_one.push(frame[0]);
        samples.extend(limiter.push(&stream.push(&frame)));
    }
    samples.extend(limiter.push(&stream.finish()));
    samples.extend(limiter.finish());
    samples.truncate((seconds * f64::from(rate)) as usize);
    Generated { samples, level_one }
}

impl ModelArguments {
    fn run(self) -> Result<ExitCode> {
        let bar = spinner();
        let folder = self.model.clone().map_or_else(default_model, Ok)?;
        let bundle = Bundle::open(&folder)?;
        let judge = self.common.judge(Some(&folder))?;
        let shards = Shard::open_folder(&self.shards)?;
        let training = training_tokens(&shards);
        let real = self.real_clips(&shards, bundle.codec(), &bar)?;
        let spec = bundle.codec().spec().clone();
        let settings = Settings {
            seconds: self.seconds,
            clips: self.clips,
            seed: self.common.seed,
            draws: self.common.draws(),
            prompts: match &self.prompts {
                Some(path) => {
                    let text = std::fs::read_to_string(path).with_context(|| format!("--prompts {}", path.display()))?;
                    parse_prompts(&text).map_err(|line| anyhow::anyhow!("--prompts {}: line {line} is not tag<TAB>prompt", path.display()))?
                }
                None => fixed_prompts(),
            },
            prompt_seeds: self.prompt_seeds,
            ..Settings::default()
        };
        let setup = Setup {
            sample_rate: spec.sample_rate,
            frame_rate: spec.frame_rate(),
            real: &real,
            training: &training,
            judge: &judge,
            settings,
        };
        let mut systems = systems(&bundle, &real, &training, &spec);
        let (_, report) = evaluate(&mut systems, &setup, &mut step(&bar))?;
        bar.finish_and_clear();
        self.common.deliver(&report)
    }

    /// Real test segments with the captions they were given in the shards.
    fn real_clips(&self, shards: &[Shard], codec: &HouseCodec, bar: &ProgressBar) -> Result<Vec<RealClip>> {
        let manifest = Manifest::load(&self.corpus)?;
        let captions = captions(shards, Split::Test);
        let mut places = places(&manifest, Split::Test, &[], self.segment_seconds, usize::MAX);
        places.retain(|(track, segment)| captions.contains_key(&(manifest.tracks[*track].id.clone(), *segment)));
        if places.is_empty() {
            bail!(
                "no test segment of {} has a caption in {}; prepare this corpus, with --segment-seconds as then",
                self.corpus.display(),
                self.shards.display()
            );
        }
        let count = places.len().min(self.clips);
        let places: Vec<(usize, usize)> = (0..count).map(|n| places[n * places.len() / count]).collect();
        let sounds = cut(&manifest, &places, self.segment_seconds, codec.spec().sample_rate, bar)?;
        let clip = |((track, segment), samples): (&(usize, usize), Vec<f32>)| RealClip {
            id: clip_name(&manifest, *track, *segment),
            caption: captions[&(manifest.tracks[*track].id.clone(), *segment)].clone(),
            level_one: codec.encode(&samples).row(0).to_vec(),
            samples,
        };
        Ok(places.iter().zip(sounds).map(clip).collect())
    }
}

/// The model, the bigram over first-codebook tokens, uniform tokens, and the real tokens decoded; all but the bigram
/// with as many codebooks as the model writes.
fn systems<'a>(bundle: &'a Bundle, real: &'a [RealClip], training: &[&[u16]], spec: &CodecSpec) -> Vec<System<'a>> {
    let levels = bundle.language().file.model.codebooks;
    let codec = bundle.codec();
    let spec = CodecSpec { levels, ..spec.clone() };
    let bigram = KneserNeyBigram::fit(training, spec.cardinality);
    let system = |name: String, role, generate| System { name, role, reads_text: role == Role::Model, generate };
    let (model_spec, bigram_spec) = (spec.clone(), spec.clone());
    vec![
        system("model".into(), Role::Model, Box::new(move |request| {
            let prompt = request.prompt.trim();
            let states = (!prompt.is_empty()).then(|| bundle.text().encode(&[prompt]).remove(0));
            let language = bundle.language();
            let text = states.as_ref().map(|s| s.states.as_slice());
            let frames = language.generate(text, &language.file.sampling, request.seed).map_err(SystemError::from)?;
            let frames = frames.take(model_spec.frames_for(request.seconds));
            Ok(render(codec, frames, levels, request.seed, request.seconds))
        })),
        system("bigram, 1 level".into(), Role::Bigram, Box::new(move |request| {
            let mut rng = random::stream(request.seed, "bigram", 0);
            let codes = bigram.sample(bigram_spec.frames_for(request.seconds), &mut rng);
            Ok(render(codec, codes.into_iter().map(|code| vec![code]), 1, request.seed, request.seconds))
        })),
        system("uniform tokens".into(), Role::Uniform, Box::new(move |request| {
            let tokens = uniform_tokens(&spec, spec.frames_for(request.seconds), request.seed);
            let frames = (0..tokens.frames).map(|t| tokens.frame(t));
            Ok(render(codec, frames, levels, request.seed, request.seconds))
        })),
        system("real tokens".into(), Role::Ceiling, Box::new(move |request| {
            let clip = request.real.map(|index| &real[index]).ok_or("real tokens need a real clip")?;
            let tokens = codec.encode(&clip.samples);
            let frames = (0..tokens.frames).map(|t| tokens.frame(t)[..levels].to_vec());
            Ok(render(codec, frames, levels, request.seed, request.seconds))
        })),
    ]
}

impl FilesArguments {
    fn run(self) -> Result<ExitCode> {
        let bar = spinner();
        let judge = self.common.judge(None)?;
        let judged = self.listen(&self.judged, &judge, &bar)?;
        let reference = self.listen(&self.reference, &judge, &bar)?;
        let found = compare_files(&judged, &reference, &self.common.draws())?;
        bar.finish_and_clear();
        self.common.deliver(&files_report(&found, &judged, &reference, judge.name()))
    }

    /// Judges every sound file below a folder; others are named in the log and left out.
    fn listen(&self, folder: &Path, judge: &MusicnnJudge, bar: &ProgressBar) -> Result<ClipSet> {
        const RATE: u32 = 44_100;
        let mut set = ClipSet::new(&folder.display().to_string());
        let length = (self.seconds * f64::from(RATE)) as usize;
        for path in files_below(folder)? {
            step(bar)(&format!("listening to {}", path.display()));
            let mono = match read_mono(&path, RATE) {
                Ok(mono) => mono,
                Err(error) => {
                    tracing::warn!("skipped: {error}");
                    continue;
                }
            };
            let name = path.strip_prefix(folder).unwrap_or(&path).with_extension("");
            for (n, clip) in mono.chunks(length).enumerate() {
                if clip.len() as f64 >= SHORTEST_SECONDS * f64::from(RATE) {
                    set.add(&format!("{} {}", name.display(), n + 1), clip, RATE, judge)?;
                }
            }
        }
        if set.clips.is_empty() {
            bail!("{}: no sound of {SHORTEST_SECONDS} s or more", folder.display());
        }
        Ok(set)
    }
}

/// All files below a folder, in the order of their names.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)
        .with_context(|| folder.display().to_string())?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    entries.sort();
    let mut files = Vec::new();
    for path in entries {
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}
