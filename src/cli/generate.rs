//! `mambo generate`: a sentence becomes a sound file.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use mambo_audio::{AudioClip, AudioFormat, AudioWriter};
use mambo_model::bundle::{Bundle, Request};
use serde::Serialize;

use super::sampling::{RefiningArguments, SamplingArguments};
use super::targets::{is_folder, make_folder, refuse_taken};
use super::{player, print, print_json, resolve, resolve_some};

/// Set by Ctrl-C: the clip in the making is faded out and kept, later ones are not begun.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Flags of `mambo generate`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  mambo generate \"calm piano over soft strings\" -o piano.wav\n  mambo generate \"fast techno\" --count 3 --seed 7 -o techno.flac    (techno-1.flac, techno-2.flac, techno-3.flac)\n  mambo generate --prompts prompts.txt --seconds 20 -o clips/\n  mambo generate \"dark ambient\" -o - | aplay"
)]
pub struct GenerateArguments {
    /// What it should sound like; several prompts make several clips.
    prompt: Vec<String>,
    /// File to write; a folder (ending in /) gets numbered files; - is standard output (WAV).
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Length of each clip in seconds.
    #[arg(long, default_value_t = 30.0, value_parser = seconds)]
    seconds: f64,
    /// Same seed, same bytes; a clip's number is added to it. Random when left out, and printed.
    #[arg(long)]
    seed: Option<u64>,
    /// Clips for each prompt.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    count: u32,
    /// Text file with one prompt a line (empty lines and lines that start with # are skipped).
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Sound format; by default what the file name says, else 16-bit WAV.
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Model folder, ours or a MusicGen's; by default models/tiny here, above here, or beside the program.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Codec folder, instead of codec/ in the model folder.
    #[arg(long, value_name = "DIR")]
    codec: Option<PathBuf>,
    /// Text encoder folder, instead of text/ in the model folder.
    #[arg(long, value_name = "DIR")]
    text: Option<PathBuf>,
    /// Seconds of fade-out.
    #[arg(long, default_value_t = 2.0, value_parser = fade)]
    fade: f64,
    /// Leave loud and quiet parts as the model makes them, instead of drawing them together.
    #[arg(long)]
    keep_dynamics: bool,
    /// Play while it is made.
    #[arg(long)]
    play: bool,
    /// Overwrite files that exist.
    #[arg(long)]
    force: bool,
    /// Print what was made as JSON.
    #[arg(long)]
    json: bool,
    // Last: a heading goes for every flag after it.
    #[command(flatten)]
    sampling: SamplingArguments,
    #[command(flatten)]
    refining: RefiningArguments,
}

/// Formats of `--format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// 16-bit WAV.
    Wav,
    /// 24-bit WAV.
    Wav24,
    /// 32-bit float WAV.
    Wavf32,
    /// FLAC.
    Flac,
}

impl Format {
    fn audio(self) -> AudioFormat {
        match self {
            Self::Wav => AudioFormat::Wav16,
            Self::Wav24 => AudioFormat::Wav24,
            Self::Wavf32 => AudioFormat::WavF32,
            Self::Flac => AudioFormat::Flac,
        }
    }

    /// Ending of a file's name.
    pub fn extension(self) -> &'static str {
        if self == Self::Flac { "flac" } else { "wav" }
    }

    /// The format that was asked for, else what the file's name says.
    pub fn of(asked: Option<Self>, target: &Path) -> Result<AudioFormat> {
        if let Some(format) = asked {
            return Ok(format.audio());
        }
        match target.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).as_deref() {
            Some("flac") => Ok(AudioFormat::Flac),
            Some("wav") | None => Ok(AudioFormat::Wav16),
            Some(other) => bail!("{}: cannot write .{other}; use .wav or .flac, or say --format", target.display()),
        }
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.1..=86_400.0).contains(&value) => Ok(value),
        _ => Err("expected seconds from 0.1 to 86400".into()),
    }
}

fn fade(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=60.0).contains(&value) => Ok(value),
        _ => Err("expected seconds from 0 to 60".into()),
    }
}

/// One finished clip, as printed.
#[derive(Debug, Serialize)]
struct Made {
    file: String,
    prompt: String,
    seed: u64,
    /// Beats a minute; absent without a beat.
    tempo: Option<f32>,
    seconds: f64,
    wall_seconds: f64,
    interrupted: bool,
}

impl GenerateArguments {
    /// Makes the clips.
    pub fn run(self) -> Result<ExitCode> {
        let prompts = self.all_prompts()?;
        let folder = self.model.as_deref().map_or_else(default_model, resolve)?;
        let targets = self.targets(prompts.len())?;
        let started = Instant::now();
        let (codec, text) = (resolve_some(self.codec.as_deref())?, resolve_some(self.text.as_deref())?);
        let bundle = self.refining.apply(Bundle::open_with(&folder, codec.as_deref(), text.as_deref())?)?;
        tracing::debug!(seconds = started.elapsed().as_secs_f64(), "model loaded");
        // A second Ctrl-C ends the program at once.
        ctrlc::set_handler(|| {
            if INTERRUPTED.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
        })
        .context("cannot listen for Ctrl-C")?;
        let base = self.seed.unwrap_or_else(random_seed);
        let mut made = Vec::new();
        for (index, target) in targets.iter().enumerate() {
            let prompt = &prompts[index / self.count as usize];
            let clip = self.make(&bundle, prompt, base.wrapping_add(index as u64), target)?;
            if !self.json && target.as_os_str() != "-" {
                let tempo = clip.tempo.map_or("no beat".to_owned(), |tempo| format!("{tempo:.0} bpm"));
                print(format!(
                    "{}  {:.1} s in {:.1} s, seed {}, {tempo}",
                    clip.file, clip.seconds, clip.wall_seconds, clip.seed
                ))?;
            }
            made.push(clip);
            if INTERRUPTED.load(Ordering::SeqCst) {
                break;
            }
        }
        if self.json {
            print_json(&made)?;
        }
        Ok(if INTERRUPTED.load(Ordering::SeqCst) { ExitCode::from(1) } else { ExitCode::SUCCESS })
    }

    fn all_prompts(&self) -> Result<Vec<String>> {
        let mut prompts = self.prompt.clone();
        if let Some(path) = &self.prompts {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("--prompts {}: cannot be read as UTF-8 text", path.display()))?;
            prompts
                .extend(text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).map(String::from));
        }
        if prompts.is_empty() {
            bail!("no prompt; give one in quotes, or a file with --prompts (\"\" makes music of any kind)");
        }
        Ok(prompts)
    }

    fn extension(&self) -> &'static str {
        self.format.map_or("wav", Format::extension)
    }

    /// The file of every clip, checked before anything is made.
    fn targets(&self, prompts: usize) -> Result<Vec<PathBuf>> {
        let count = prompts * self.count as usize;
        let output = self.output.clone().unwrap_or_else(|| PathBuf::from(format!("mambo.{}", self.extension())));
        if output.as_os_str() == "-" {
            if count > 1 {
                bail!("-o - takes a single clip, {count} were asked for");
            }
            if self.json {
                bail!("--json and -o - would both write to standard output");
            }
            return Ok(vec![output]);
        }
        let targets: Vec<PathBuf> = if is_folder(&output) {
            make_folder(&output)?;
            (1..=count).map(|n| output.join(format!("clip-{n:03}.{}", self.extension()))).collect()
        } else if count == 1 {
            vec![output]
        } else {
            let stem = output.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let extension =
                output.extension().map_or(self.extension().to_owned(), |e| e.to_string_lossy().into_owned());
            (1..=count).map(|n| output.with_file_name(format!("{stem}-{n}.{extension}"))).collect()
        };
        refuse_taken(&targets, self.force)?;
        Ok(targets)
    }

    fn make(&self, bundle: &Bundle, prompt: &str, seed: u64, target: &Path) -> Result<Made> {
        let started = Instant::now();
        let sampling = self.sampling.over(&bundle.composer().sampling());
        let request = Request {
            prompt: prompt.to_owned(),
            seconds: self.seconds,
            seed,
            sampling,
            fade: self.fade,
            even: !self.keep_dynamics,
        };
        let rate = bundle.sample_rate();
        let standard_output = target.as_os_str() == "-";
        let mut writer = if standard_output {
            let format = self.format.map_or(AudioFormat::Wav16, Format::audio);
            AudioWriter::to_stream(Box::new(std::io::stdout()), "standard output", format, rate, 1)?
        } else {
            AudioWriter::create(target, Format::of(self.format, target)?, rate, 1, self.force)?
        };
        let mut playing = if self.play { Some(player::start()?) } else { None };
        let mut speaker = match playing.as_mut().and_then(|child| child.stdin.take()) {
            Some(pipe) => Some(AudioWriter::to_stream(Box::new(pipe), "the player", AudioFormat::Wav16, rate, 1)?),
            None => None,
        };
        let mut clip = bundle.clip(&request)?;
        let bar = progress(clip.samples() as u64);
        let mut samples = 0;
        while let Some(block) = clip.next() {
            samples += block.len();
            let block = AudioClip::from_mono(block, rate);
            writer.write(&block)?;
            if let Some(speaker) = &mut speaker {
                speaker.write(&block)?;
            }
            bar.set_position(samples as u64);
            if INTERRUPTED.load(Ordering::SeqCst) {
                clip.stop();
            }
        }
        bar.finish_and_clear();
        writer.finish()?;
        if let Some(speaker) = speaker {
            speaker.finish()?;
        }
        if let Some(mut child) = playing {
            child.wait().context("the player ended badly")?;
        }
        Ok(Made {
            file: target.display().to_string(),
            prompt: prompt.to_owned(),
            seed,
            tempo: clip.tempo(),
            seconds: samples as f64 / f64::from(rate),
            wall_seconds: started.elapsed().as_secs_f64(),
            interrupted: INTERRUPTED.load(Ordering::SeqCst),
        })
    }
}

/// A bar for work of `total` units.
pub fn progress(total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {percent:>3} %  {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style)
}

fn random_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    (now.as_nanos() as u64 ^ u64::from(std::process::id()) << 32) % 1_000_000_000
}

/// `models/tiny` in this folder or one above it, or above the program itself.
pub fn default_model() -> Result<PathBuf> {
    let here = std::env::current_dir().unwrap_or_default();
    let program = std::env::current_exe().unwrap_or_default();
    let found = here
        .ancestors()
        .chain(program.ancestors())
        .map(|folder| folder.join("models").join("tiny"))
        .find(|folder| folder.join(mambo_model::generate::CONFIG_FILE).exists());
    found.with_context(|| {
        format!(
            "no model found: looked for models/tiny in and above {}; give a model folder with --model",
            here.display()
        )
    })
}
