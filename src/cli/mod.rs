//! Flags, one file per verb. No logic: each verb fills a typed config, calls the library once, prints.

mod codec;
mod data;
mod eval;
mod generate;
mod import;
mod inspect;
mod player;
mod prepare;
#[cfg(feature = "hub")]
mod pull;
mod sampling;
mod targets;
mod train;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};
use mambo_data::Split;

/// Open text-to-music with state-space models.
#[derive(Debug, Parser)]
#[command(name = "mambo", version, propagate_version = true, arg_required_else_help = true)]
#[command(
    after_help = "Examples:\n  mambo generate \"calm piano over soft strings\" -o piano.wav\n  mambo generate \"fast techno\" --seconds 60 --seed 7 -o techno.flac\n  mambo data fetch debian --tier a -o corpus\n\nExit codes: 0 done, 1 failed or something was skipped, 2 wrong usage."
)]
pub struct Arguments {
    /// Tell more (twice: everything).
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Tell only errors.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make music from a sentence.
    Generate(generate::GenerateArguments),
    /// Gather music: fetch free music, add your own, render scores.
    #[command(subcommand)]
    Data(data::DataCommand),
    /// Turn a corpus into captioned token shards for training.
    Prepare(prepare::PrepareArguments),
    /// Train a codec, a language model or a second stage.
    #[command(subcommand)]
    Train(train::TrainCommand),
    /// Measure a codec or a model beside its floors and ceilings.
    #[command(subcommand)]
    Eval(eval::EvalCommand),
    /// Turn sound files into codec tokens and back.
    #[command(subcommand)]
    Codec(codec::CodecCommand),
    /// Turn a model that others published into a model folder.
    #[command(subcommand)]
    Import(import::ImportCommand),
    /// Bring a model from the Hugging Face hub to this machine.
    #[cfg(feature = "hub")]
    Pull(pull::PullArguments),
    /// Explain a file or folder that Mambo reads or writes.
    Inspect(inspect::InspectArguments),
    /// Print a completion script for a shell.
    #[command(after_help = "Example: mambo completions bash > ~/.local/share/bash-completion/completions/mambo")]
    Completions {
        /// Shell to write it for.
        shell: clap_complete::Shell,
    },
}

impl Command {
    /// Does it; the code says whether everything went well.
    pub fn run(self) -> Result<ExitCode> {
        match self {
            Self::Generate(arguments) => arguments.run(),
            Self::Data(command) => command.run(),
            Self::Prepare(arguments) => arguments.run(),
            Self::Train(command) => command.run(),
            Self::Eval(command) => command.run(),
            Self::Codec(command) => command.run(),
            Self::Import(command) => command.run(),
            #[cfg(feature = "hub")]
            Self::Pull(arguments) => arguments.run(),
            Self::Inspect(arguments) => arguments.run(),
            Self::Completions { shell } => {
                clap_complete::generate(shell, &mut Arguments::command(), "mambo", &mut std::io::stdout());
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// The folder or file that a flag names; a repository's name stands for its folder in the cache.
#[cfg(feature = "hub")]
use pull::resolve;

/// The folder or file that a flag names.
#[cfg(not(feature = "hub"))]
fn resolve(path: &std::path::Path) -> Result<std::path::PathBuf> {
    Ok(path.to_owned())
}

/// The same for a flag that may be left out.
fn resolve_some(path: Option<&std::path::Path>) -> Result<Option<std::path::PathBuf>> {
    path.map(resolve).transpose()
}

/// A part of the corpus by name.
fn split(text: &str) -> Result<Split, String> {
    Split::from_name(text).ok_or_else(|| format!("expected one of {}", Split::ALL.map(Split::name).join(", ")))
}

/// A licence tier. Those of the table are capital letters; people type them small.
fn tier(text: &str) -> Result<String, String> {
    Ok(if text.len() == 1 { text.to_uppercase() } else { text.to_owned() })
}

/// Logs to stderr; stdout is for results.
pub fn start_logging(verbose: u8, quiet: bool) {
    let level = match (quiet, verbose) {
        (true, _) => "error",
        (_, 0) => "info",
        (_, 1) => "debug",
        _ => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("MAMBO_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(format!("warn,mambo={level},mambo_audio={level},mambo_data={level},mambo_model={level},mambo_train={level},mambo_eval={level},mambo_hub={level}")));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .without_time()
        .init();
}

/// Prints an error with its causes. A reader that closed our output is no failure.
pub fn report(error: &anyhow::Error) -> ExitCode {
    let closed = error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    });
    if closed {
        return ExitCode::SUCCESS;
    }
    // Many errors of the libraries say their cause themselves; it is not to be read twice.
    let mut message = error.to_string();
    for cause in error.chain().skip(1).map(|cause| cause.to_string()) {
        if !message.contains(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    let _ = writeln!(std::io::stderr(), "mambo: {}", message.trim_end());
    ExitCode::from(1)
}

/// Prints a line of results to stdout.
pub fn print(line: impl std::fmt::Display) -> Result<()> {
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}

/// Prints results as one JSON document.
pub fn print_json(value: &impl serde::Serialize) -> Result<()> {
    print(serde_json::to_string_pretty(value)?)
}
