//! Flags that change how codes are drawn and detail is painted; what is left out stays as the model folder says.

use anyhow::{Context as _, Result};
use clap::Args;
use mambo_model::bundle::Bundle;
use mambo_model::diffusion::{RefinerSampling, Solver};
use mambo_model::sampler::Sampling;

/// Sampling flags of `mambo generate` and `mambo eval model`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling (by default as the model folder says)")]
pub struct SamplingArguments {
    /// Above 1 is bolder, below 1 safer; 0 always takes the likeliest code.
    #[arg(long)]
    temperature: Option<f32>,
    /// The same for the codebooks after the first: more life in the sound, the same tune.
    #[arg(long)]
    fine_temperature: Option<f32>,
    /// Draw among this many likeliest codes; 0 for all.
    #[arg(long)]
    top_k: Option<usize>,
    /// Draw among the fewest codes that together reach this probability; 1 for all.
    #[arg(long)]
    top_p: Option<f32>,
    /// How strictly the prompt is followed; 1 is plain, 0 ignores it.
    #[arg(long)]
    guidance: Option<f32>,
    /// How strictly the beat is followed; 1 is plain.
    #[arg(long)]
    beat_guidance: Option<f32>,
    /// Above 0 moves on sooner, below 0 holds longer.
    #[arg(long, allow_negative_numbers = true)]
    hold_penalty: Option<f32>,
    /// Above 0 spreads over more codes, so that the music moves more.
    #[arg(long, allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,
    /// Above 0 repeats more of what was played one beat or bar before, below 0 less.
    #[arg(long, allow_negative_numbers = true)]
    echo: Option<f32>,
    /// Beats a minute, 40 to 240; 0 for music without a beat; by default what the prompt suggests.
    #[arg(long, value_name = "BPM")]
    tempo: Option<f32>,
}

impl SamplingArguments {
    /// The settings of a model folder with what was given on the command line.
    pub fn over(&self, folder: &Sampling) -> Sampling {
        let folder = folder.clone();
        Sampling {
            temperature: self.temperature.unwrap_or(folder.temperature),
            fine_temperature: self.fine_temperature.or(folder.fine_temperature),
            top_k: self.top_k.unwrap_or(folder.top_k),
            top_p: self.top_p.unwrap_or(folder.top_p),
            guidance: self.guidance.unwrap_or(folder.guidance),
            beat_guidance: self.beat_guidance.unwrap_or(folder.beat_guidance),
            hold_penalty: self.hold_penalty.unwrap_or(folder.hold_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(folder.frequency_penalty),
            echo: self.echo.unwrap_or(folder.echo),
            tempo: self.tempo.or(folder.tempo),
            ..folder
        }
    }
}

/// Flags of the second stage, where a model folder has one.
#[derive(Debug, Args)]
#[command(next_help_heading = "Second stage")]
pub struct RefiningArguments {
    /// Leave it out, where the model folder has one: hear what the language model wrote, decoded as it is.
    #[arg(long)]
    stage1_only: bool,
    #[command(flatten)]
    settings: RefinerArguments,
}

/// How the second stage paints.
#[derive(Debug, Default, PartialEq, Args)]
#[command(next_help_heading = "Second stage")]
pub struct RefinerArguments {
    /// Steps from noise to detail.
    #[arg(long, value_name = "N")]
    refine_steps: Option<usize>,
    /// How a step is made: euler, heun, ddim, dpm-solver or ancestral, as far as the objective allows.
    #[arg(long, value_name = "NAME", value_parser = solver)]
    refine_solver: Option<Solver>,
    /// How strictly detail follows the prompt; 1 is plain, 0 ignores it.
    #[arg(long, value_name = "SCALE")]
    refine_guidance: Option<f32>,
    /// How strictly detail follows the outline; 1 is plain.
    #[arg(long, value_name = "SCALE")]
    refine_outline_guidance: Option<f32>,
    /// Scale of the noise that detail begins as; below 1 is cleaner.
    #[arg(long, value_name = "SCALE")]
    refine_noise: Option<f32>,
    /// Share of that noise, 0 to 1, which comes back with every beat: above 0, what is played again sounds more alike.
    #[arg(long, value_name = "SHARE")]
    refine_beat_noise: Option<f32>,
    /// Where painting begins: 1 with noise alone, below 1 more and more with the finer levels that the language model wrote.
    #[arg(long, value_name = "STRENGTH")]
    refine_strength: Option<f32>,
    /// Scale of what was painted, around its mean: few steps leave it too even.
    #[arg(long, value_name = "SCALE")]
    refine_gain: Option<f32>,
}

fn solver(name: &str) -> Result<Solver, String> {
    Solver::from_name(name).ok_or_else(|| format!("expected one of {}", Solver::ALL.map(Solver::name).join(", ")))
}

impl RefinerArguments {
    /// The settings of a second stage with what was given on the command line.
    pub fn over(&self, folder: &RefinerSampling) -> RefinerSampling {
        RefinerSampling {
            steps: self.refine_steps.unwrap_or(folder.steps),
            solver: self.refine_solver.unwrap_or(folder.solver),
            guidance: self.refine_guidance.unwrap_or(folder.guidance),
            outline_guidance: self.refine_outline_guidance.unwrap_or(folder.outline_guidance),
            noise: self.refine_noise.unwrap_or(folder.noise),
            beat_noise: self.refine_beat_noise.unwrap_or(folder.beat_noise),
            strength: self.refine_strength.unwrap_or(folder.strength),
            gain: self.refine_gain.unwrap_or(folder.gain),
            ..folder.clone()
        }
    }
}

impl RefiningArguments {
    /// The model with these settings.
    ///
    /// # Errors
    /// A setting out of range.
    pub fn apply(&self, bundle: Bundle) -> Result<Bundle> {
        if self.stage1_only {
            return Ok(bundle.without_refiner());
        }
        let settings = bundle.refiner().map(|refiner| self.settings.over(&refiner.config().sampling));
        Ok(match settings {
            Some(settings) => bundle.with_refining(settings).context("a --refine flag does not fit")?,
            None => {
                if self.settings != RefinerArguments::default() {
                    tracing::warn!("the model has no second stage: the --refine flags change nothing");
                }
                bundle
            }
        })
    }
}
