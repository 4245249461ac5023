//! `mambo import`: a model that others published becomes a model folder.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use mambo_model::checkpoint::ssm_ttm;
use mambo_model::generate::{CONFIG_FILE, LmFile, WEIGHTS_FILE};
use mambo_model::parameters::{Parameters, Precision};
use serde_json::json;

use super::{generate, print, print_json};

/// `mambo import`.
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Example: mambo import ssm-ttm epoch=67-step=29000.ckpt -o ssm-ttm\n\nCheckpoints of PyTorch hold programs. They are read as data: no program in them is run, and a file that refers to anything but tensors and plain data is refused. `mambo inspect FILE.ckpt` lists what a file holds."
)]
pub enum ImportCommand {
    /// The Prefix SiMBA of SSM-TTM (arXiv 2601.14786), from the Lightning checkpoint that its authors share.
    SsmTtm(SsmTtmArguments),
}

/// Flags of `mambo import ssm-ttm`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: mambo import ssm-ttm epoch=67-step=29000.ckpt -o ssm-ttm\n\nThe folder gets lm.toml and lm.safetensors, the weights as they are (f32). It is a language model alone: it reads states of the FLAN-T5-base encoder and speaks codes of DAC at 44.1 kHz. Text encoder, optimiser state and callbacks in the checkpoint are left out."
)]
pub struct SsmTtmArguments {
    /// Checkpoint file; nothing in it is run.
    file: PathBuf,
    /// Model folder to write.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Write into a folder that has content, replacing its lm.toml and lm.safetensors.
    #[arg(long)]
    force: bool,
    /// Print what was written as JSON.
    #[arg(long)]
    json: bool,
}

impl ImportCommand {
    /// Does it.
    pub fn run(self) -> Result<ExitCode> {
        match self {
            Self::SsmTtm(arguments) => arguments.run(),
        }
    }
}

impl SsmTtmArguments {
    fn run(self) -> Result<ExitCode> {
        check(&self.output, self.force)?;
        let bar = generate::progress(0);
        let model = ssm_ttm::read(&self.file, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        });
        bar.finish_and_clear();
        let model = model?;
        let (step, left_out) = (model.step, model.left_out.clone());
        let (file, parameters) =
            model.into_model().with_context(|| format!("{}: not a model of this program", self.file.display()))?;
        write(&self.output, &file, &parameters)?;
        let weights = parameters.trained_count();
        if self.json {
            print_json(&json!({
                "folder": self.output,
                "weights": weights,
                "step": step,
                "model": file.model,
                "codec": file.codec,
                "tensors left out": left_out,
            }))?;
        } else {
            let model = &file.model;
            print(format!(
                "{}: {weights} weights in {} blocks of width {} with {} state entries, {} codebook(s) of {}{}",
                self.output.display(),
                model.layers,
                model.d_model,
                model.d_state,
                model.codebooks,
                file.codec.name,
                step.map(|step| format!(", trained for {step} steps")).unwrap_or_default(),
            ))?;
            print(format!(
                "left out: {} tensors of the text encoder, {} of optimiser and callbacks, {} others",
                left_out.text_encoder, left_out.elsewhere, left_out.other_state
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What is in the way is said before a large file is read.
fn check(folder: &Path, force: bool) -> Result<()> {
    match std::fs::read_dir(folder).map(|mut content| content.next().is_some()) {
        Ok(true) if !force => bail!(
            "{} has content; choose another folder with -o, or replace its {CONFIG_FILE} and {WEIGHTS_FILE} with --force",
            folder.display()
        ),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("-o {}: cannot be a model folder", folder.display())),
    }
}

/// A new folder appears whole; in one that is there, each file is replaced whole.
fn write(folder: &Path, file: &LmFile, parameters: &Parameters) -> Result<()> {
    let failed = || format!("-o {}: cannot write the folder", folder.display());
    if folder.is_dir() {
        return Ok(file.save_as(folder, parameters, Precision::F32)?);
    }
    let mut name = folder.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let beside = folder.with_file_name(name);
    std::fs::create_dir_all(&beside).with_context(failed)?;
    file.save_as(&beside, parameters, Precision::F32)?;
    std::fs::rename(&beside, folder).with_context(failed)
}
