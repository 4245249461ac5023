//! `mambo inspect`: what a file or folder is and what is in it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use mambo_audio::AudioReader;
use mambo_data::Manifest;
use mambo_data::shard::Shard;
use mambo_model::checkpoint::Checkpoint;
use mambo_model::codec::{Codec, HouseCodec, TokenFile};
use mambo_model::diffusion::{REFINER_FOLDER, RefinerConfig};
use mambo_model::generate::{CONFIG_FILE, LmFile};
use mambo_model::musicgen::MusicGen;
use mambo_model::parameters::{Initialiser, Parameters, Role};
use mambo_model::published::model_type;
use mambo_model::text::{T5, TextEncoder};
use mambo_model::weights::Weights;
use mambo_train::codec::CodecExperiment;
use mambo_train::config::LmExperiment;
use mambo_train::diffusion::DiffusionExperiment;
use mambo_train::run::read_toml;
use serde_json::{Map, Number, Value, json};

use super::generate::default_model;
use super::{print, print_json, resolve};

/// Flags of `mambo inspect`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  mambo inspect models/tiny\n  mambo inspect corpus/manifest.jsonl\n  mambo inspect configs/paper-prefix-simba.toml --against configs/musicgen-small.toml\n  mambo inspect song.ogg --json\n  mambo inspect epoch=67-step=29000.ckpt\n\nNothing in a checkpoint is run; one that refers to anything but tensors and plain data is refused."
)]
pub struct InspectArguments {
    /// A model or codec folder, ours or published, an experiment file, a manifest, a shard, codec tokens, any safetensors file, a
    /// PyTorch checkpoint, or a sound file.
    path: PathBuf,
    /// A second experiment file: says what share of its cost the first one has.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Codec of a second-stage experiment, by whose widths its cost goes; by default that of models/tiny.
    #[arg(long, value_name = "DIR")]
    codec: Option<PathBuf>,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

impl InspectArguments {
    /// Explains the path.
    pub fn run(self) -> Result<ExitCode> {
        let facts = match &self.against {
            Some(other) => compared(&self.path, other)?,
            None => describe(&resolve(&self.path)?, self.codec.as_deref())?,
        };
        if self.json {
            print_json(&facts)?;
        } else {
            show(&facts, 0)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Prints nested facts as indented lines.
fn show(value: &Value, depth: usize) -> Result<()> {
    let Value::Object(entries) = value else { return print(value) };
    for (key, value) in entries {
        let indent = "  ".repeat(depth);
        match value {
            Value::Object(_) => {
                print(format!("{indent}{key}:"))?;
                show(value, depth + 1)?;
            }
            Value::String(text) => print(format!("{indent}{key}: {text}"))?,
            Value::Array(rows) if !rows.is_empty() && rows.iter().all(Value::is_object) => {
                print(format!("{indent}{key}:"))?;
                rows.iter()
                    .filter_map(Value::as_object)
                    .try_for_each(|row| print(format!("{indent}  {}", line(row))))?;
            }
            Value::Number(number) => print(format!("{indent}{key}: {}", readable(number)))?,
            other => print(format!("{indent}{key}: {other}"))?,
        }
    }
    Ok(())
}

/// The values of a row of a table.
fn line(row: &Map<String, Value>) -> String {
    let cells = row.values().map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    cells.collect::<Vec<_>>().join("  ")
}

/// Long whole numbers in groups of three, long fractions as powers of ten.
fn readable(number: &Number) -> String {
    match (number.as_u64(), number.as_f64()) {
        (Some(whole), _) if whole >= 10_000 => {
            let digits = whole.to_string();
            let groups = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy);
            groups.collect::<Vec<_>>().join(",")
        }
        (None, Some(value)) if value >= 1e6 => format!("{value:.3e}"),
        _ => number.to_string(),
    }
}

/// What is there; `codec_folder` is that of a second-stage experiment.
fn describe(path: &Path, codec_folder: Option<&Path>) -> Result<Value> {
    if path.is_dir() {
        if path.join(CONFIG_FILE).exists() {
            return model(path);
        }
        if path.join("codec.safetensors").exists() {
            return codec(path);
        }
        if path.join("refiner.safetensors").exists() {
            return refiner(path);
        }
        if let Some(kind) = model_type(path) {
            return published(path, &kind);
        }
        if path.join(Manifest::FILE_NAME).exists() {
            return manifest(path);
        }
        bail!("{}: a folder without {CONFIG_FILE}, codec.safetensors or {}", path.display(), Manifest::FILE_NAME);
    }
    let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    match extension.as_deref() {
        Some("jsonl") => manifest(path),
        Some("toml") => experiment(path, codec_folder),
        Some("safetensors") => {
            if let Ok(shard) = Shard::open(path) {
                return Ok(shard_facts(&shard));
            }
            TokenFile::open(path).map_or_else(|_| tensors(path), |file| Ok(token_facts(&file)))
        }
        Some("ckpt" | "pt" | "pth") => checkpoint(path),
        _ => sound(path),
    }
}

fn count(parameters: &Parameters) -> Value {
    let fixed: usize = parameters.list().iter().filter(|p| p.role == Role::Buffer).map(|p| p.values.len()).sum();
    json!({"trained": parameters.trained_count(), "fixed": fixed})
}

fn model(path: &Path) -> Result<Value> {
    let (file, parameters) = LmFile::load(path)?;
    let mut facts = json!({
        "kind": "model folder",
        "language model": {"shape": serde_json::to_value(&file.model)?, "parameters": count(&parameters)},
        "tokens": serde_json::to_value(&file.codec)?,
        "sampling": serde_json::to_value(&file.sampling)?,
    });
    let inner = path.join("codec");
    if inner.is_dir() {
        facts["codec"] = describe(&inner, None)?;
    }
    let inner = path.join(REFINER_FOLDER);
    if inner.is_dir() {
        facts["second stage"] = refiner(&inner)?;
    }
    Ok(facts)
}

fn refiner(path: &Path) -> Result<Value> {
    let (config, parameters) = RefinerConfig::load(path)?;
    Ok(json!({
        "kind": "second-stage folder",
        "shape": serde_json::to_value(&config)?,
        "parameters": count(&parameters),
    }))
}

/// Codecs have no model in their experiments, and only second stages a network in it.
fn experiment(path: &Path, codec: Option<&Path>) -> Result<Value> {
    let file: Value = read_toml(path)?;
    if file.get("manifest").is_some() {
        codec_experiment(path)
    } else if file["model"].get("network").is_some() {
        second_stage_experiment(path, codec)
    } else {
        language_model_experiment(path)
    }
}

fn codec_experiment(path: &Path) -> Result<Value> {
    let experiment: CodecExperiment = read_toml(path)?;
    Ok(json!({
        "kind": "codec experiment",
        "shape": serde_json::to_value(&experiment.codec)?,
        "parameters": count(&experiment.codec.parameters(&mut Initialiser::blank())),
    }))
}

fn second_stage_experiment(path: &Path, codec: Option<&Path>) -> Result<Value> {
    let experiment = DiffusionExperiment::read(path)?;
    let bundle = default_model()?;
    let text_width = LmFile::load(&bundle)?.0.model.text_width;
    let folder = codec.map_or_else(|| Ok(bundle.join("codec")), resolve)?;
    let codec = mambo_model::codec::open(&folder)?;
    let Some(codec) = codec.refinable() else {
        bail!("--codec {}: the codec {} has no levels that could be painted", folder.display(), codec.spec());
    };
    let refiner = experiment.refiner(codec, text_width);
    Ok(json!({
        "kind": "second-stage experiment",
        "name": experiment.name,
        "shape": serde_json::to_value(&refiner)?,
        "cost": serde_json::to_value(experiment.budget(&refiner))?,
    }))
}

fn language_model_experiment(path: &Path) -> Result<Value> {
    let experiment = LmExperiment::read(path)?;
    Ok(json!({
        "kind": "language model experiment",
        "name": experiment.name,
        "shape": serde_json::to_value(&experiment.model)?,
        "cost": serde_json::to_value(experiment.budget()?)?,
    }))
}

/// The first experiment's costs as shares of the second's.
fn compared(path: &Path, other: &Path) -> Result<Value> {
    let (ours, theirs) = (LmExperiment::read(path)?.budget()?, LmExperiment::read(other)?.budget()?);
    let share = |ours: f64, theirs: f64| ours / theirs;
    let mut facts = language_model_experiment(path)?;
    facts["share of the other"] = json!({
        "other": other.display().to_string(),
        "parameters": share(ours.parameters.total as f64, theirs.parameters.total as f64),
        "training flops": share(ours.training.flops, theirs.training.flops),
        "flops per decoded column": share(
            ours.flops_per_decoded_column.total as f64,
            theirs.flops_per_decoded_column.total as f64,
        ),
        "state of a stream": share(ours.decoding.state as f64, theirs.decoding.state as f64),
    });
    Ok(facts)
}

fn codec(path: &Path) -> Result<Value> {
    let codec = HouseCodec::load(path)?;
    Ok(json!({
        "kind": "codec folder",
        "shape": serde_json::to_value(codec.config())?,
        "frames per second": codec.config().spec.frame_rate(),
        "parameters": count(codec.parameters()),
    }))
}

/// A model in the layout of another library, opened as it would be for use.
fn published(path: &Path, kind: &str) -> Result<Value> {
    let mut facts = json!({"kind": format!("published {kind} folder")});
    match kind {
        "dac" | "encodec" => {
            let codec = mambo_model::codec::open(path)?;
            facts["tokens"] = serde_json::to_value(codec.spec())?;
            facts["frames per second"] = json!(codec.spec().frame_rate());
            facts["codebook width"] = json!(codec.codebooks().1);
        }
        "t5" => {
            let encoder = T5::load(path)?;
            facts["width"] = json!(encoder.width());
            facts["layers"] = json!(encoder.network().config().num_layers);
            facts["most tokens"] = json!(encoder.max_tokens());
            facts["identity"] = json!(encoder.identity());
        }
        "musicgen" => {
            let (model, codec) = MusicGen::load(path)?;
            let config = model.decoder().config();
            facts["width"] = json!(config.hidden_size);
            facts["layers"] = json!(config.num_hidden_layers);
            facts["text width"] = json!(model.text().width());
            facts["tokens"] = serde_json::to_value(codec.spec())?;
            facts["frames per second"] = json!(codec.spec().frame_rate());
        }
        other => bail!(
            "{}: a folder of kind {other}, which Mambo does not read; it reads dac, encodec, t5 and musicgen",
            path.display()
        ),
    }
    let weights = Weights::open_folder(path)?;
    let values: usize = weights.entries().map(|(_, _, shape)| shape.iter().product::<usize>()).sum();
    facts["values in the file"] = json!(values);
    Ok(facts)
}

fn token_facts(file: &TokenFile) -> Value {
    let spec = &file.tokens.spec;
    json!({
        "kind": "codec tokens",
        "tokens": serde_json::to_value(spec).unwrap_or_default(),
        "frames": file.tokens.frames,
        "seconds": file.samples as f64 / f64::from(spec.sample_rate),
        "codec": file.codec,
    })
}

fn manifest(path: &Path) -> Result<Value> {
    let manifest = Manifest::load(path)?;
    Ok(
        json!({"kind": "manifest", "tracks": manifest.tracks.len(), "summary": serde_json::to_value(manifest.summary())?}),
    )
}

fn shard_facts(shard: &Shard) -> Value {
    json!({"kind": "shard", "items": shard.len(), "header": serde_json::to_value(shard.header()).unwrap_or_default()})
}

fn tensors(path: &Path) -> Result<Value> {
    let file = Weights::open(path)?;
    let list: Vec<Value> =
        file.entries().map(|(name, kind, shape)| json!({"name": name, "type": kind, "shape": shape})).collect();
    Ok(json!({"kind": "safetensors", "tensors": list}))
}

fn checkpoint(path: &Path) -> Result<Value> {
    let file = Checkpoint::open(path)?;
    let mut facts = json!({"kind": "PyTorch checkpoint"});
    for key in ["pytorch-lightning_version", "epoch", "global_step", "hyper_parameters"] {
        for (path, value) in file.plain(key)? {
            let name = if path.is_empty() { key.to_owned() } else { format!("{key}.{path}") };
            facts[name] = serde_json::to_value(value)?;
        }
    }
    let list = file
        .tensors()?
        .into_iter()
        .map(|(name, tensor)| json!({"name": name, "type": tensor.element().to_string(), "shape": tensor.shape()}));
    facts["tensors"] = list.collect();
    Ok(facts)
}

fn sound(path: &Path) -> Result<Value> {
    let mut reader = AudioReader::open(path)?;
    let mut frames = 0usize;
    while let Some(block) = reader.next_block()? {
        frames += block.frames();
    }
    Ok(json!({
        "kind": "sound",
        "format": reader.format_name(),
        "sample rate": reader.sample_rate(),
        "channels": reader.channel_count(),
        "seconds": frames as f64 / f64::from(reader.sample_rate()),
        "tags": serde_json::to_value(reader.tags())?,
    }))
}
