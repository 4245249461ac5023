//! `mambo pull`: a model of the Hugging Face hub comes to this machine.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use mambo_hub::{Cache, Progress, Repository, Request, Settings};

use super::{print, print_json};

/// Flags of `mambo pull`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  mambo pull descript/dac_44khz\n  mambo pull facebook/encodec_32khz -o models/encodec\n  mambo pull google/flan-t5-base --include spiece.model\n  mambo prepare corpus -o shards --codec descript/dac_44khz --text models/tiny/text    (after the first)\n\nPrints the folder, for --model, --codec and --text; these also take ORG/NAME of what was pulled. Brings weights (safetensors), sizes, tokenizer, card and licence, checks every checksum, and goes on where a cut download stopped. The cache is that of Hugging Face's Python tools: HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean the same here."
)]
pub struct PullArguments {
    /// Repository, e.g. descript/dac_44khz.
    #[arg(value_name = "ORG/NAME", value_parser = repository)]
    repository: Repository,
    /// Branch, tag or commit.
    #[arg(long, default_value = "main")]
    revision: String,
    /// Also files whose path matches; * also matches slashes. Several may be given.
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// Also copy the files to this folder.
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Overwrite files of that folder that have other content.
    #[arg(long, requires = "output")]
    force: bool,
    /// Use only what is here already; ask nothing of the network.
    #[arg(long)]
    offline: bool,
    /// Print what is here as JSON.
    #[arg(long)]
    json: bool,
}

fn repository(text: &str) -> Result<Repository, String> {
    text.parse().map_err(|error: mambo_hub::HubError| error.to_string())
}

impl PullArguments {
    /// Brings it.
    pub fn run(self) -> Result<ExitCode> {
        let mut settings = Settings::from_environment()?;
        settings.offline |= self.offline;
        let request = Request {
            repository: self.repository,
            revision: self.revision,
            include: self.include,
            output: self.output,
            force: self.force,
        };
        let bar = bar();
        let pulled = mambo_hub::pull(&settings, &request, &mut |progress| show(&bar, progress));
        bar.finish_and_clear();
        let pulled = pulled?;
        if self.json {
            print_json(&pulled)?;
        } else {
            let size: u64 = pulled.files.iter().map(|file| file.size).sum();
            tracing::info!(
                "{} at {}: {} files, {}, of which {} came over the network",
                pulled.repository,
                &pulled.commit[..12],
                pulled.files.len(),
                HumanBytes(size),
                HumanBytes(pulled.downloaded)
            );
            print(pulled.folder.display())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A bar for bytes; the time left is of what comes over the network, not of what was here.
fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{bar:30} {bytes} of {total_bytes}, {binary_bytes_per_sec}, {eta} left  {wide_msg}",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}

fn show(bar: &ProgressBar, progress: Progress<'_>) {
    bar.set_length(progress.total);
    bar.set_position(progress.here);
    if progress.came == 0 {
        bar.reset_eta();
    }
    if bar.message() != progress.file {
        bar.set_message(progress.file.to_owned());
    }
}

/// The folder or file that a flag names. Where there is none of that name, but a repository of that name was pulled, its
/// folder in the cache.
pub fn resolve(path: &Path) -> Result<PathBuf> {
    let named = path.to_str().and_then(|text| text.parse::<Repository>().ok());
    let Some(repository) = named.filter(|_| !path.exists()) else { return Ok(path.to_owned()) };
    match Cache::new(&Settings::from_environment()?.cache).snapshot(&repository, "main") {
        Some((_, folder)) => Ok(folder),
        None => bail!(
            "{repository}: no file or folder here, and no repository of that name was pulled; if it is one of the Hugging Face hub, bring it with `mambo pull {repository}`"
        ),
    }
}
