//! `mambo codec`: sound files to codec tokens and back.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use mambo_audio::{AudioClip, AudioWriter, MonoReader};
use mambo_model::codec::{self, StreamCodec, TokenFile};
use mambo_model::tokens::{CodecSpec, CodecTokens};
use serde::Serialize;

use super::eval::spinner;
use super::generate::{Format, default_model};
use super::targets::{is_folder, make_folder, refuse_taken};
use super::{print, print_json, resolve};

/// `mambo codec`.
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Examples:\n  mambo codec encode song.flac -o song.safetensors\n  mambo codec decode song.safetensors --levels 2 -o song-2.wav\n  mambo codec encode album/*.ogg --codec dac_44khz -o tokens/\n\nA codec is the folder of a house codec, of a DAC or EnCodec as Hugging Face has it, or the original weights of a DAC (.pth). Files of any length take constant memory; codecs are mono, channels are mixed."
)]
pub enum CodecCommand {
    /// Sound to tokens.
    Encode(EncodeArguments),
    /// Tokens to sound.
    Decode(DecodeArguments),
}

/// Flags of both.
#[derive(Debug, Args)]
struct Common {
    /// File to write; a folder (ending in /) for several files; by default a file here with the input's name.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Codec folder or file; by default the one in models/tiny.
    #[arg(long, value_name = "DIR")]
    codec: Option<PathBuf>,
    /// Only the first N levels; by default all there are.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    levels: Option<u8>,
    /// Overwrite files that exist.
    #[arg(long)]
    force: bool,
    /// Print what was done as JSON.
    #[arg(long)]
    json: bool,
}

/// Flags of `mambo codec encode`.
#[derive(Debug, Args)]
pub struct EncodeArguments {
    /// Sound files.
    #[arg(required = true, value_name = "SOUND")]
    inputs: Vec<PathBuf>,
    #[command(flatten)]
    common: Common,
}

/// Flags of `mambo codec decode`.
#[derive(Debug, Args)]
pub struct DecodeArguments {
    /// Files that `mambo codec encode` wrote.
    #[arg(required = true, value_name = "TOKENS")]
    inputs: Vec<PathBuf>,
    /// Sound format; by default what the file name says, else 16-bit WAV.
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Seed of the house codec's decoder; the others draw nothing.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    common: Common,
}

/// One file done, as printed.
#[derive(Debug, Serialize)]
struct Done {
    file: String,
    seconds: f64,
    frames: usize,
    levels: usize,
    /// Of the codes without any further packing.
    kilobits_per_second: f64,
    /// Different codes of each level that occur.
    codes_used: Vec<usize>,
}

impl Done {
    fn new(file: &Path, tokens: &CodecTokens, samples: u64) -> Self {
        let spec = &tokens.spec;
        let used = |level: usize| {
            let mut seen = vec![false; spec.cardinality];
            tokens.row(level).iter().for_each(|code| seen[usize::from(*code)] = true);
            seen.into_iter().filter(|seen| *seen).count()
        };
        Self {
            file: file.display().to_string(),
            seconds: samples as f64 / f64::from(spec.sample_rate),
            frames: tokens.frames,
            levels: spec.levels,
            kilobits_per_second: spec.frame_rate() * spec.levels as f64 * (spec.cardinality as f64).log2() / 1000.0,
            codes_used: (0..spec.levels).map(used).collect(),
        }
    }
}

impl CodecCommand {
    /// Encodes or decodes.
    pub fn run(self) -> Result<ExitCode> {
        match self {
            Self::Encode(arguments) => arguments.run(),
            Self::Decode(arguments) => arguments.run(),
        }
    }
}

impl Common {
    fn open(&self) -> Result<(PathBuf, Box<dyn StreamCodec>)> {
        let path = match &self.codec {
            Some(path) => resolve(path)?,
            None => default_model()?.join("codec"),
        };
        let codec = codec::open(&path)?;
        Ok((path, codec))
    }

    /// Levels to keep of those there are.
    fn levels(&self, most: usize, of: &Path) -> Result<usize> {
        match self.levels.map(usize::from) {
            Some(levels) if levels > most => bail!("--levels {levels}: {} has only {most}", of.display()),
            levels => Ok(levels.unwrap_or(most)),
        }
    }

    /// The file of every input, checked before anything is done.
    fn targets(&self, inputs: &[PathBuf], extension: &str) -> Result<Vec<PathBuf>> {
        let output = self.output.clone().unwrap_or_default();
        let is_folder = is_folder(&output);
        let target = |input: &PathBuf| {
            let name = PathBuf::from(input.file_name().unwrap_or_default()).with_extension(extension);
            if is_folder { output.join(name) } else { name }
        };
        let targets: Vec<PathBuf> = match (&self.output, inputs) {
            (Some(_), [_]) if !is_folder => vec![output.clone()],
            (Some(_), _) if !is_folder => {
                bail!("-o {}: {} files need a folder, with a / at the end", output.display(), inputs.len())
            }
            _ => inputs.iter().map(target).collect(),
        };
        for (n, target) in targets.iter().enumerate() {
            if let Some(other) = targets[..n].iter().position(|other| other == target) {
                let [a, b] = [&inputs[other], &inputs[n]].map(|path| path.display());
                bail!("{a} and {b} would both become {}; do them one after the other", target.display());
            }
        }
        refuse_taken(&targets, self.force)?;
        if is_folder {
            make_folder(&output)?;
        }
        Ok(targets)
    }

    fn deliver(&self, done: &[Done]) -> Result<ExitCode> {
        if self.json {
            print_json(&done)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn show(&self, done: &Done, rate: f64) -> Result<()> {
        if self.json {
            return Ok(());
        }
        print(format!(
            "{}  {:.1} s, {} levels, {:.2} kbit/s, {rate:.1} x real time",
            done.file, done.seconds, done.levels, done.kilobits_per_second
        ))
    }
}

/// Says on the terminal how far a file is.
fn tell(bar: &ProgressBar, file: &Path, samples: u64, rate: u32) {
    bar.set_message(format!("{}: {:.0} s", file.display(), samples as f64 / f64::from(rate)));
    bar.tick();
}

impl EncodeArguments {
    fn run(self) -> Result<ExitCode> {
        let targets = self.common.targets(&self.inputs, "safetensors")?;
        let (path, codec) = self.common.open()?;
        let levels = self.common.levels(codec.spec().levels, &path)?;
        let fingerprint = codec::fingerprint(codec.as_ref());
        let mut all = Vec::new();
        for (input, target) in self.inputs.iter().zip(&targets) {
            let started = std::time::Instant::now();
            let (tokens, samples) = encode(codec.as_ref(), levels, input)?;
            let done = Done::new(target, &tokens, samples);
            TokenFile { tokens, samples, codec: fingerprint.clone() }.save(target)?;
            self.common.show(&done, done.seconds / started.elapsed().as_secs_f64())?;
            all.push(done);
        }
        self.common.deliver(&all)
    }
}

/// The first levels of a sound file, and its samples at the codec's rate.
fn encode(codec: &dyn StreamCodec, levels: usize, input: &Path) -> Result<(CodecTokens, u64)> {
    let spec = codec.spec();
    let mut reader = MonoReader::open(input, spec.sample_rate)?;
    let mut stream = codec.encoder();
    let (mut codes, mut samples) = (Vec::new(), 0);
    let bar = spinner();
    let keep =
        |new: Vec<u16>| new.chunks_exact(spec.levels).flat_map(|frame| frame[..levels].to_vec()).collect::<Vec<_>>();
    while let Some(block) = reader.next_block()? {
        samples += block.len() as u64;
        codes.extend(keep(stream.push(&block)));
        tell(&bar, input, samples, spec.sample_rate);
    }
    codes.extend(keep(stream.finish()));
    bar.finish_and_clear();
    let frames: Vec<&[u16]> = codes.chunks_exact(levels).collect();
    Ok((CodecTokens::from_frames(CodecSpec { levels, ..spec.clone() }, &frames)?, samples))
}

impl DecodeArguments {
    fn run(self) -> Result<ExitCode> {
        let extension = self.format.unwrap_or(Format::Wav).extension();
        let targets = self.common.targets(&self.inputs, extension)?;
        let (path, codec) = self.common.open()?;
        let fingerprint = codec::fingerprint(codec.as_ref());
        let mut all = Vec::new();
        for (input, target) in self.inputs.iter().zip(&targets) {
            let started = std::time::Instant::now();
            let file = TokenFile::open(input)?;
            if file.codec != fingerprint {
                bail!(
                    "{}: these tokens are those of another codec ({}) than {}; give theirs with --codec",
                    input.display(),
                    file.tokens.spec.name,
                    path.display()
                );
            }
            let levels = self.common.levels(file.tokens.spec.levels, input)?;
            let tokens = file.tokens.first_levels(levels)?;
            self.decode(codec.as_ref(), &tokens, file.samples, target)?;
            let done = Done::new(target, &tokens, file.samples);
            self.common.show(&done, done.seconds / started.elapsed().as_secs_f64())?;
            all.push(done);
        }
        self.common.deliver(&all)
    }

    fn decode(&self, codec: &dyn StreamCodec, tokens: &CodecTokens, samples: u64, target: &Path) -> Result<()> {
        let rate = codec.spec().sample_rate;
        let format = Format::of(self.format, target)?;
        let mut writer = AudioWriter::create(target, format, rate, 1, self.common.force)?;
        let mut stream = codec.decoder(tokens.spec.levels, self.seed);
        let bar = spinner();
        let mut left = samples;
        let mut take = |mut block: Vec<f32>| {
            block.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            left -= block.len() as u64;
            if block.is_empty() {
                return Ok(());
            }
            tell(&bar, target, samples - left, rate);
            writer.write(&AudioClip::from_mono(block, rate))
        };
        for frame in 0..tokens.frames {
            take(stream.push(&tokens.frame(frame)))?;
        }
        take(stream.finish())?;
        bar.finish_and_clear();
        Ok(writer.finish()?)
    }
}
