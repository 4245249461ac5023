//! `mambo data`: music comes into a corpus.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use mambo_data::add::{AddOptions, add};
use mambo_data::credits::{credits, table};
use mambo_data::fetch::debian::{DebianOptions, fetch_debian};
use mambo_data::fetch::scores::fetch_scores;
use mambo_data::manifest::ManifestSummary;
use mambo_data::render::{RenderOptions, render};
use mambo_data::{Manifest, Progress, Split};

use super::{print, print_json, split, tier};

/// `mambo data`.
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Examples:\n  mambo data fetch debian --tier a -o corpus\n  mambo data add ~/Music -o corpus --licence CC0-1.0\n  mambo data fetch scores -o scores\n  mambo data render --midi scores --soundfont scores/fluid-soundfont-gm/usr/share/sounds/sf2/FluidR3_GM.sf2 -o corpus-rendered\n\nEach writes manifest.jsonl, one line a track, with source, licence, split, captions and why a track was dropped."
)]
pub enum DataCommand {
    /// Fetch open music or scores from package archives; nothing is installed.
    #[command(subcommand)]
    Fetch(FetchCommand),
    /// Add a folder of your own music.
    Add(AddArguments),
    /// Play scores into captioned audio.
    Render(RenderArguments),
    /// List whom to name for the music of a corpus.
    Credits(CreditArguments),
}

/// `mambo data fetch`.
#[derive(Debug, Subcommand)]
pub enum FetchCommand {
    /// The open music in Debian 12: about 5 hours under permissive licences, 10 more under share-alike ones.
    Debian(DebianArguments),
    /// MIDI scores and a SoundFont from Debian, for `mambo data render`.
    Scores(ScoreArguments),
}

/// Licence tiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tier {
    /// Permissive licences (public domain, CC0, CC BY, MIT, BSD, Zlib).
    A,
    /// Share-alike licences, too.
    Ab,
}

/// Flags of `mambo data fetch debian`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: mambo data fetch debian --tier ab -o corpus --debs ~/packages\n\nAn interrupted fetch goes on when the same command is given again."
)]
pub struct DebianArguments {
    /// Licences to accept.
    #[arg(long, value_enum, default_value = "a")]
    tier: Tier,
    /// Corpus folder.
    #[arg(short, long, value_name = "DIR", default_value = "corpus")]
    output: PathBuf,
    /// Folder of .deb files to use before downloading.
    #[arg(long, value_name = "DIR")]
    debs: Option<PathBuf>,
    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
}

/// Flags of `mambo data fetch scores`.
#[derive(Debug, Args)]
pub struct ScoreArguments {
    /// Folder for scores and SoundFont.
    #[arg(short, long, value_name = "DIR", default_value = "scores")]
    output: PathBuf,
    /// Folder of .deb files to use before downloading.
    #[arg(long, value_name = "DIR")]
    debs: Option<PathBuf>,
    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
}

/// Flags of `mambo data add`.
#[derive(Debug, Args)]
#[command(
    after_help = "Captions are taken from song.txt or song.json beside song.mp3, from captions.csv, .jsonl or .json in any folder (path, caption, tags, title, artist, licence, split), and from the tags in the files. The music stays where it is.\n\nThe exit code is 1 if a file was dropped or a caption row was not understood; everything else is in the manifest nevertheless."
)]
pub struct AddArguments {
    /// Folder with music, searched recursively; files are judged by content, not by name.
    folder: PathBuf,
    /// Corpus folder; an existing manifest is extended.
    #[arg(short, long, value_name = "DIR", default_value = "corpus")]
    output: PathBuf,
    /// Licence of files that do not state one.
    #[arg(long, value_name = "SPDX")]
    licence: Option<String>,
    /// Label for these tracks.
    #[arg(long, default_value = "own")]
    tier: String,
    /// Share of artists (or folders) for validation, and the same again for testing.
    #[arg(long, default_value_t = 0.05)]
    held_out: f64,
    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
}

/// Flags of `mambo data render`.
#[derive(Debug, Args)]
pub struct RenderArguments {
    /// Folder with .mid, .mus or .wad files.
    #[arg(long, value_name = "DIR")]
    midi: PathBuf,
    /// SoundFont 2 file.
    #[arg(long, value_name = "FILE")]
    soundfont: PathBuf,
    /// Corpus folder.
    #[arg(short, long, value_name = "DIR", default_value = "corpus-rendered")]
    output: PathBuf,
    /// Versions of each piece: the first as written, the others with other instruments, key and tempo.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=30))]
    versions: u16,
    /// Seconds of each version.
    #[arg(long, default_value_t = 32.0)]
    seconds: f64,
    /// Seed of all choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Licence of the result; by default from licence.txt files beside scores and SoundFont.
    #[arg(long, value_name = "SPDX")]
    licence: Option<String>,
    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
}

/// Flags of `mambo data credits`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: mambo data credits corpus corpus-rendered --tiers a,r --split train > CREDITS.tsv\n\nOne line a work, columns apart by tabs: tier, licence, artist, title, source, tracks, seconds."
)]
pub struct CreditArguments {
    /// Corpus folders or manifest files.
    #[arg(required = true)]
    corpora: Vec<PathBuf>,
    /// Only these licence tiers, e.g. a,r.
    #[arg(long, value_delimiter = ',', value_name = "TIERS", value_parser = tier)]
    tiers: Vec<String>,
    /// Only these parts of the corpus.
    #[arg(long, value_delimiter = ',', value_parser = split)]
    split: Vec<Split>,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

impl CreditArguments {
    fn run(self) -> Result<ExitCode> {
        let manifests = self.corpora.iter().map(|path| Manifest::load(path)).collect::<Result<Vec<_>, _>>()?;
        let credits = credits(&manifests, &self.split, &self.tiers);
        if self.json {
            print_json(&credits)?;
        } else {
            print(table(&credits)?.trim_end())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A progress bar, and the function that moves it.
pub fn progress_bar() -> (ProgressBar, impl FnMut(&Progress)) {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {prefix} {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(0).with_style(style);
    let moving = bar.clone();
    let report = move |progress: &Progress| {
        moving.set_length(progress.total);
        moving.set_position(progress.done);
        let left = progress.seconds_left.map(|seconds| {
            format!("{} left", indicatif::HumanDuration(std::time::Duration::from_secs_f64(seconds.clamp(0.0, 1e7))))
        });
        moving.set_prefix(left.unwrap_or_default());
        moving.set_message(progress.item.clone());
    };
    (bar, report)
}

fn print_counts(counts: &ManifestSummary) -> Result<()> {
    for split in &counts.splits {
        print(format!("{:12} {:5} tracks {:8.2} h", split.split.name(), split.tracks, split.seconds / 3600.0))?;
    }
    if counts.dropped > 0 {
        print(format!("{:12} {:5} tracks (the manifest says why)", "dropped", counts.dropped))?;
    }
    Ok(())
}

/// 1 if something was left out.
fn code(all_well: bool) -> ExitCode {
    if all_well { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

impl DataCommand {
    /// Does it.
    pub fn run(self) -> Result<ExitCode> {
        match self {
            Self::Fetch(FetchCommand::Debian(arguments)) => arguments.run(),
            Self::Fetch(FetchCommand::Scores(arguments)) => arguments.run(),
            Self::Add(arguments) => arguments.run(),
            Self::Render(arguments) => arguments.run(),
            Self::Credits(arguments) => arguments.run(),
        }
    }
}

impl DebianArguments {
    fn run(self) -> Result<ExitCode> {
        let options = DebianOptions { out: self.output, with_tier_b: self.tier == Tier::Ab, debs: self.debs };
        let (bar, mut report) = progress_bar();
        let summary = fetch_debian(&options, &mut report)?;
        bar.finish_and_clear();
        if self.json {
            print_json(&summary)?;
        } else {
            print_counts(&summary.counts)?;
            print(summary.manifest.display())?;
        }
        Ok(code(summary.counts.dropped == 0))
    }
}

impl ScoreArguments {
    fn run(self) -> Result<ExitCode> {
        let (bar, mut report) = progress_bar();
        let fetched = fetch_scores(&self.output, self.debs.as_deref(), &mut report)?;
        bar.finish_and_clear();
        if self.json {
            print_json(&fetched)?;
        } else {
            print(format!(
                "mambo data render --midi {} --soundfont {}",
                fetched.scores.display(),
                fetched.sound_font.display()
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl AddArguments {
    fn run(self) -> Result<ExitCode> {
        let options = AddOptions {
            folder: self.folder,
            out: self.output,
            licence: self.licence,
            tier: self.tier,
            held_out_share: self.held_out,
        };
        let (bar, mut report) = progress_bar();
        let summary = add(&options, &mut report)?;
        bar.finish_and_clear();
        if self.json {
            print_json(&summary)?;
        } else {
            for (source, reason) in &summary.dropped {
                print(format!("dropped {source}: {reason}"))?;
            }
            for warning in &summary.warnings {
                print(format!("warning {warning}"))?;
            }
            print(format!(
                "{} tracks added ({:.2} h), {} dropped, {} other files",
                summary.kept,
                summary.seconds / 3600.0,
                summary.dropped.len(),
                summary.other_files
            ))?;
            print(summary.manifest.display())?;
        }
        Ok(code(summary.is_clean()))
    }
}

impl RenderArguments {
    fn run(self) -> Result<ExitCode> {
        let options = RenderOptions {
            scores: self.midi,
            sound_font: self.soundfont,
            out: self.output,
            versions: usize::from(self.versions),
            seconds: self.seconds,
            seed: self.seed,
            licence: self.licence,
        };
        let (bar, mut report) = progress_bar();
        let summary = render(&options, &mut report)?;
        bar.finish_and_clear();
        if self.json {
            print_json(&summary)?;
        } else {
            print(format!("{} pieces", summary.pieces))?;
            print_counts(&summary.counts)?;
            print(summary.manifest.display())?;
        }
        Ok(code(summary.counts.dropped == 0 && summary.warnings.is_empty()))
    }
}
