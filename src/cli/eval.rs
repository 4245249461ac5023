//! `mambo eval`: figures beside their floors and ceilings, as a table, JSON and a page to listen to.

mod codec;
mod files;
mod model;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use mambo_audio::level::read_levelled;
use mambo_data::shard::Shard;
use mambo_data::{Manifest, Split};
use mambo_eval::frechet::Draws;
use mambo_eval::{MusicnnJudge, Report};
use mambo_model::parameters::write_atomically;

use super::print;
use super::targets::refuse_taken;

/// Patches of a judge are three seconds: shorter clips say nothing.
const SHORTEST_SECONDS: f64 = 3.1;

/// `mambo eval`.
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Examples:\n  mambo eval codec models/tiny/codec --corpus corpus --floor configs/codec.toml --html codec.html\n  mambo eval model models/tiny --corpus corpus --shards shards --html model.html\n  mambo eval files generated/ reference/ --json\n\nFréchet distances and divergences are over musicnn: Mambo's own proxies, not published metrics."
)]
pub enum EvalCommand {
    /// A codec on the test split, for 1, 2, 4 and 8 levels, beside the k-means codec.
    Codec(codec::CodecArguments),
    /// A model on test captions and fixed prompts, beside bigram, uniform tokens and real tokens.
    Model(model::ModelArguments),
    /// The sound files of one folder against those of another.
    Files(files::FilesArguments),
}

/// The flag of those whose report has a plot.
#[derive(Debug, Args)]
struct PlotArgument {
    /// Write the plot of the page.
    #[arg(long, value_name = "FILE.svg", value_parser = place)]
    plot: Option<PathBuf>,
}

impl PlotArgument {
    fn write(&self, report: &Report) -> Result<()> {
        if let (Some(path), Some(plot)) = (&self.plot, report.plots.first()) {
            write_atomically(path, plot.svg.as_bytes()).with_context(|| format!("--plot {}", path.display()))?;
        }
        Ok(())
    }
}

/// Flags of every `mambo eval`.
#[derive(Debug, Args)]
struct Common {
    /// Weights of the judge (musicnn MSD); by default tagger/msd.safetensors in or near the model folder.
    #[arg(long, value_name = "FILE")]
    judge: Option<PathBuf>,
    /// Write a page with players, spectrograms and figures.
    #[arg(long, value_name = "FILE", value_parser = place)]
    html: Option<PathBuf>,
    /// Overwrite what is already where the page, the plot and the spectrograms go.
    #[arg(long)]
    force: bool,
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

/// Where a report may be written: said before hours of judging, not after.
fn place(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_dir() {
        return Err("a folder; give the name of a file".into());
    }
    match path.parent() {
        Some(folder) if folder != Path::new("") && !folder.is_dir() => {
            Err(format!("there is no folder {}; make it first", folder.display()))
        }
        _ => Ok(path),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (SHORTEST_SECONDS..=3600.0).contains(&value) => Ok(value),
        _ => Err(format!("expected seconds from {SHORTEST_SECONDS} to 3600")),
    }
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
    /// Refuses places for results that are taken: before hours of judging, not after.
    fn refuse_taken<'a>(&'a self, further: impl IntoIterator<Item = &'a PathBuf>) -> Result<()> {
        // Reports are written to devices and pipes as they are, and fill empty folders.
        let free = |place: &&PathBuf| match place.metadata() {
            Ok(there) if there.is_dir() => place.read_dir().is_ok_and(|mut content| content.next().is_none()),
            Ok(there) => !there.is_file(),
            Err(_) => false,
        };
        refuse_taken(self.html.iter().chain(further).filter(|place| !free(place)), self.force)
    }

    fn draws(&self) -> Draws {
        Draws { patches: Some(self.patches), seed: self.seed, ..Draws::default() }
    }

    fn judge(&self, near: Option<&Path>) -> Result<MusicnnJudge> {
        let path = self.judge.clone().or_else(|| find_judge(near)).context(
            "no judge found: looked for tagger/msd.safetensors in and beside the model folder and in models/; give one with --judge",
        )?;
        MusicnnJudge::load("musicnn MSD", &path).with_context(|| format!("--judge {}", path.display()))
    }

    /// Prints the figures, then writes the page: a disk that is full loses no figure.
    fn deliver(&self, report: &Report) -> Result<ExitCode> {
        print(if self.json { report.json() } else { report.text() }.trim_end())?;
        if let Some(path) = &self.html {
            report.write_html(path)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn find_judge(near: Option<&Path>) -> Option<PathBuf> {
    let here = std::env::current_dir().unwrap_or_default();
    let folders = near.into_iter().flat_map(|folder| folder.ancestors().take(3)).map(Path::to_path_buf);
    folders
        .chain(here.ancestors().map(|folder| folder.join("models").join("tiny")))
        .map(|folder| folder.join("tagger").join("msd.safetensors"))
        .find(|path| path.exists())
}

/// A line on the terminal that says what is being done.
pub fn spinner() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner());
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
        let wanted =
            track.dropped.is_none() && track.split == split && (tiers.is_empty() || tiers.contains(&track.tier));
        let whole = if wanted { (track.seconds / length) as usize } else { 0 };
        all.extend((0..whole).map(|segment| (index, segment)));
    }
    let count = all.len().min(most);
    (0..count).map(|n| all[n * all.len() / count]).collect()
}

/// First caption of every unaltered segment, by track id and segment: its shard, and its index there.
fn captions(shards: &[Shard], split: Split) -> BTreeMap<(String, usize), (&Shard, usize)> {
    let mut found = BTreeMap::new();
    for shard in shards {
        for item in (0..shard.len()).map(|index| shard.item(index)) {
            if item.track.split == split && item.version == 0 {
                found.insert((item.track.id.clone(), item.segment as usize), (shard, item.captions[0] as usize));
            }
        }
    }
    found
}

/// Sound at the given places, at corpus loudness; every file is read once.
fn cut(
    manifest: &Manifest,
    places: &[(usize, usize)],
    length: f64,
    rate: u32,
    bar: &ProgressBar,
) -> Result<Vec<Vec<f32>>> {
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

fn clip_name(manifest: &Manifest, track: usize, segment: usize) -> String {
    let track = &manifest.tracks[track];
    let title = track.attribution.title.as_deref().unwrap_or(&track.id);
    format!("{title} {} ({})", segment + 1, &track.id[..track.id.len().min(6)])
}
