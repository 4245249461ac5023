//! `mambo train`: one TOML file is one experiment.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use mambo_audio::{AudioClip, AudioFormat, AudioWriter};
use mambo_data::Progress;
use mambo_model::bundle::{Bundle, Request};
use mambo_model::codec::{self, DecodeStream};
use mambo_model::composer::PromptedLm;
use mambo_model::diffusion::{Refiner, RefinerStream};
use mambo_model::generate::LanguageModel;
use mambo_model::text;
use mambo_train::codec::CodecExperiment;
use mambo_train::config::LmExperiment;
use mambo_train::diffusion::{DiffusionExperiment, DiffusionRun};
use mambo_train::lm::{CodecVectors, LmRun};
use mambo_train::run::read_toml;
use serde_json::json;

use super::{print, print_json, resolve, resolve_some};

/// Set by Ctrl-C: the run saves after the step in hand and stops.
static STOP: AtomicBool = AtomicBool::new(false);

/// `mambo train`.
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Examples:\n  mambo train codec configs/codec-tiny.toml -o runs/codec\n  mambo train lm configs/lm-tiny.toml -o runs/lm --codec runs/codec/codec\n  mambo train diffusion configs/refiner.toml -o runs/refiner --codec runs/codec/codec\n\nA run that was interrupted goes on when the same command is given again."
)]
pub enum TrainCommand {
    /// The codec: fits the tokeniser, then trains its decoder.
    Codec(CodecArguments),
    /// The language model over the tokens of a prepared corpus.
    Lm(LmArguments),
    /// The second stage: paints the levels that a language model of one level leaves out.
    Diffusion(DiffusionArguments),
}

/// Flags of `mambo train codec`.
#[derive(Debug, Args)]
pub struct CodecArguments {
    /// Experiment file.
    experiment: PathBuf,
    /// Run folder: checkpoint, metrics, loss curve, and the finished codec in `codec/`.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
}

/// Flags of `mambo train lm`.
#[derive(Debug, Args)]
pub struct LmArguments {
    /// Experiment file.
    experiment: PathBuf,
    /// Run folder: checkpoint, metrics, loss curve, samples, and the model in `best/` (best validation) and `last/`.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Codec folder: gives the centroids that embeddings start from, and makes samples audible.
    #[arg(long, value_name = "DIR")]
    codec: Option<PathBuf>,
    /// Text encoder folder, for samples.
    #[arg(long, value_name = "DIR")]
    text: Option<PathBuf>,
    /// Prompt of the samples.
    #[arg(long, default_value = "calm piano and strings")]
    sample_prompt: String,
    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
}

/// Flags of `mambo train diffusion`.
#[derive(Debug, Args)]
pub struct DiffusionArguments {
    /// Experiment file.
    experiment: PathBuf,
    /// Run folder: checkpoint, metrics, loss curve, samples, and the finished second stage in `refiner/`, which a model folder
    /// takes as it is.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Codec folder: the one that the shards were prepared with.
    #[arg(long, value_name = "DIR")]
    codec: PathBuf,
    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
}

impl TrainCommand {
    /// Trains.
    pub fn run(self) -> Result<ExitCode> {
        ctrlc::set_handler(|| {
            if STOP.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
        })
        .context("cannot listen for Ctrl-C")?;
        match self {
            Self::Codec(arguments) => arguments.run(),
            Self::Lm(arguments) => arguments.run(),
            Self::Diffusion(arguments) => arguments.run(),
        }
    }
}

impl CodecArguments {
    fn run(self) -> Result<ExitCode> {
        let experiment: CodecExperiment = read_toml(&self.experiment)?;
        let summary = mambo_train::codec::run(&experiment, &self.output, &STOP)?;
        if self.json {
            print_json(&summary)?;
        } else if summary.stopped {
            print(format!("stopped at step {}; the same command goes on from there", summary.step))?;
        } else {
            print(format!("codec in {} (validation loss {:.4})", summary.folder.display(), summary.validation))?;
        }
        Ok(if summary.stopped { ExitCode::from(1) } else { ExitCode::SUCCESS })
    }
}

impl LmArguments {
    fn run(self) -> Result<ExitCode> {
        let experiment = LmExperiment::read(&self.experiment)?;
        let (codec, text) = (resolve_some(self.codec.as_deref())?, resolve_some(self.text.as_deref())?);
        let vectors = match &codec {
            Some(folder) => {
                let (values, width) = codec::open(folder)?.codebooks();
                Some(CodecVectors { values, width })
            }
            None => None,
        };
        let samples = self.output.join("samples");
        let sampler = match (&codec, &text, experiment.train.sample_every) {
            (Some(codec), Some(text), 1..) => Some((codec.clone(), text.clone())),
            _ => None,
        };
        let mut make = |model: &LanguageModel, step: u64| {
            let Some((codec, text)) = &sampler else { return Ok(()) };
            sample(model, codec, text, &self.sample_prompt, &samples.join(format!("step-{step:06}.wav")))
                .map_err(|error| format!("{error:#}"))
        };
        let mut report = |progress: &Progress| tracing::info!("{progress}");
        let outcome = mambo_train::lm::run(LmRun {
            experiment: &experiment,
            folder: &self.output,
            codec_vectors: vectors.as_ref(),
            stop: &STOP,
            report: &mut report,
            sample: Some(&mut make),
        })?;
        if self.json {
            let scores: Vec<_> = outcome
                .scores
                .iter()
                .map(|s| json!({"split": s.split.name(), "nll": s.nll, "level_1_perplexity": s.level_1_perplexity()}))
                .collect();
            print_json(
                &json!({"step": outcome.step, "best": outcome.best, "stopped": outcome.stopped, "scores": scores}),
            )?;
        } else {
            for score in &outcome.scores {
                print(format!("{}: level-1 perplexity {:.2}", score.split.name(), score.level_1_perplexity()))?;
            }
            let ending = if outcome.stopped { "stopped; the same command goes on from here" } else { "finished" };
            print(format!("{ending} at step {}; model in {}", outcome.step, self.output.join("best").display()))?;
        }
        Ok(if outcome.stopped { ExitCode::from(1) } else { ExitCode::SUCCESS })
    }
}

impl DiffusionArguments {
    fn run(self) -> Result<ExitCode> {
        let experiment = DiffusionExperiment::read(&self.experiment)?;
        let codec = codec::open(&resolve(&self.codec)?)?;
        let known = codec.refinable().with_context(|| {
            format!("--codec {}: the codec {} has no levels that could be painted", self.codec.display(), codec.spec())
        })?;
        let samples = self.output.join("samples");
        let mut make = |refiner: &Refiner, codes: &[u16], text: &[f32], step: u64| {
            let text = (!text.is_empty()).then(|| text.to_vec());
            let mut stream: Box<dyn DecodeStream + '_> = Box::new(RefinerStream::new(refiner, known, 1, text, None, 0));
            let mut sound: Vec<f32> = codes.iter().flat_map(|code| stream.push(&[*code])).collect();
            sound.extend(stream.finish());
            let clip = AudioClip::from_mono(sound, known.spec().sample_rate);
            std::fs::create_dir_all(&samples).map_err(|error| format!("{}: {error}", samples.display()))?;
            let file = samples.join(format!("step-{step:06}.wav"));
            mambo_audio::write(&file, &clip, AudioFormat::Wav16, true).map_err(|error| error.to_string())
        };
        let mut report = |progress: &Progress| tracing::info!("{progress}");
        let outcome = mambo_train::diffusion::run(DiffusionRun {
            experiment: &experiment,
            folder: &self.output,
            codec: known,
            stop: &STOP,
            report: &mut report,
            sample: Some(&mut make),
        })?;
        if self.json {
            print_json(&outcome)?;
        } else {
            let loss = outcome.validation.map_or(String::new(), |loss| format!(" (validation loss {loss:.4})"));
            let ending = if outcome.stopped { "stopped; the same command goes on from here" } else { "finished" };
            print(format!("{ending} at step {}{loss}; second stage in {}", outcome.step, outcome.folder.display()))?;
        }
        Ok(if outcome.stopped { ExitCode::from(1) } else { ExitCode::SUCCESS })
    }
}

/// Ten seconds of the model in training, through the path that `generate` takes.
fn sample(model: &LanguageModel, codec: &Path, text_folder: &Path, prompt: &str, file: &Path) -> Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let composer = PromptedLm::new(model.clone(), text::open(text_folder)?)
        .with_context(|| format!("--text {}", text_folder.display()))?;
    let bundle = Bundle::new(Box::new(composer), codec::open(codec)?);
    let request = Request {
        prompt: prompt.to_owned(),
        seconds: 10.0,
        seed: 0,
        sampling: model.file.sampling.clone(),
        fade: 1.0,
        even: true,
    };
    let mut writer = AudioWriter::create(file, AudioFormat::Wav16, bundle.sample_rate(), 1, true)?;
    for block in bundle.clip(&request)? {
        writer.write(&AudioClip::from_mono(block, bundle.sample_rate()))?;
    }
    Ok(writer.finish()?)
}
