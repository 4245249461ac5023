//! `mambo eval files`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::ProgressBar;
use mambo_audio::read_mono;
use mambo_eval::files::{compare_files, files_report};
use mambo_eval::{ClipSet, Judge, MusicnnJudge};

use super::{Common, SHORTEST_SECONDS, seconds, spinner, step};

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

impl FilesArguments {
    /// Judges the files.
    pub fn run(self) -> Result<ExitCode> {
        self.common.refuse_taken([])?;
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
