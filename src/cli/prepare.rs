//! `mambo prepare`: a corpus becomes captioned token shards.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use mambo_data::prepare::{Networks, PrepareOptions};

use super::data::progress_bar;
use super::{print, print_json, resolve, tier};

/// Flags of `mambo prepare`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  mambo prepare corpus -o shards --codec runs/codec/codec --text models/tiny/text --tagger models/tiny/tagger/mtt.safetensors\n  mambo prepare corpus corpus-rendered -o shards --codec runs/codec/codec --text models/tiny/text --part 2/8\n\nAn interrupted run goes on when the same command is given again; parts may run on different machines.\nThe exit code is 1 if a track could not be used; shards/manifest.jsonl says why."
)]
pub struct PrepareArguments {
    /// Corpus folders or manifest files.
    #[arg(required = true, value_name = "CORPUS")]
    corpora: Vec<PathBuf>,
    /// Folder for shards.
    #[arg(short, long, value_name = "DIR", default_value = "shards")]
    output: PathBuf,
    /// Codec folder.
    #[arg(long, value_name = "DIR")]
    codec: PathBuf,
    /// Text encoder folder.
    #[arg(long, value_name = "DIR")]
    text: PathBuf,
    /// Tagger file (musicnn MTT); without one, captions come from metadata and measurements alone.
    #[arg(long, value_name = "FILE")]
    tagger: Option<PathBuf>,
    /// Seconds of a segment.
    #[arg(long, default_value_t = 30.0)]
    seconds: f64,
    /// Shorter remainders of tracks are left out.
    #[arg(long, default_value_t = 8.0)]
    min_seconds: f64,
    /// Versions of each training segment: one unaltered, the others with changed pitch, tempo, gain, offset.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    versions: u32,
    /// Only tracks of these licence tiers, e.g. a,r.
    #[arg(long, value_delimiter = ',', value_name = "TIERS", value_parser = tier)]
    tiers: Vec<String>,
    /// Seed of augmentation and captions.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// This process does part I of N.
    #[arg(long, value_name = "I/N", default_value = "1/1", value_parser = part)]
    part: (usize, usize),
    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
}

fn part(text: &str) -> Result<(usize, usize), String> {
    let (part, parts) = text.split_once('/').ok_or("expected I/N, e.g. 1/4")?;
    let number = |text: &str| text.parse::<usize>().map_err(|error| format!("{text:?}: {error}"));
    let (part, parts) = (number(part)?, number(parts)?);
    if part == 0 || part > parts {
        Err(format!("part {part} of {parts} does not exist; count from 1"))
    } else {
        Ok((part, parts))
    }
}

impl PrepareArguments {
    /// Prepares.
    pub fn run(self) -> Result<ExitCode> {
        let networks = Networks::open(&resolve(&self.codec)?, self.tagger.as_deref(), &resolve(&self.text)?)?;
        let options = PrepareOptions {
            manifests: self.corpora,
            out: self.output,
            segment_seconds: self.seconds,
            min_seconds: self.min_seconds,
            versions: self.versions,
            tiers: self.tiers,
            seed: self.seed,
            part: self.part.0,
            parts: self.part.1,
        };
        let (bar, mut report) = progress_bar();
        let summary = networks.prepare(&options, &mut report).context("prepare stopped; what is finished is kept")?;
        bar.finish_and_clear();
        if self.json {
            print_json(&summary)?;
        } else {
            for (split, seconds) in &summary.seconds {
                print(format!("{:12} {:8.2} h", split.name(), seconds / 3600.0))?;
            }
            for track in &summary.dropped {
                print(format!("dropped {}: {}", track.source, track.reason))?;
            }
            print(format!(
                "{} items with {} captions in {} of {} units; {} silent segments and {} tracks left out",
                summary.items,
                summary.captions,
                summary.units.0,
                summary.units.1,
                summary.silent_segments,
                summary.dropped.len()
            ))?;
            print(summary.out.display())?;
        }
        Ok(if summary.dropped.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }
}
