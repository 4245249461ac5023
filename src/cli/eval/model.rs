//! `mambo eval model`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use indicatif::ProgressBar;
use mambo_audio::master::Master;
use mambo_data::batch::{BatchOptions, BatchSource};
use mambo_data::shard::Shard;
use mambo_data::{Manifest, Split};
use mambo_eval::error::SystemError;
use mambo_eval::floors::uniform_tokens;
use mambo_eval::generation::{Generate, Generated, RealClip, Role, Settings, Setup, System, evaluate, long_clips};
use mambo_eval::prompts::{fixed_prompts, parse_prompts};
use mambo_eval::report::{FigureTable, Report, number};
use mambo_model::bundle::Bundle;
use mambo_model::codec::{DecodeStream, StreamCodec};
use mambo_model::generate::{CONFIG_FILE, LmFile};
use mambo_model::random;
use mambo_model::sampler::Sampling;
use mambo_model::tokens::CodecSpec;
use mambo_train::bigram::KneserNeyBigram;
use mambo_train::lm::score_model;
use serde_json::json;

use super::super::generate::default_model;
use super::super::sampling::{RefiningArguments, SamplingArguments};
use super::super::{resolve, resolve_some, tier};
use super::{Common, PlotArgument, captions, clip_name, cut, places, seconds, spinner, step};

/// Most that the model's level-1 perplexity may be of the bigram's.
const SEEN_ARTIST_RATIO: f64 = 0.8;
/// The same for artists that were never heard.
const TEST_RATIO: f64 = 0.9;

/// Flags of `mambo eval model`.
#[derive(Debug, Args)]
pub struct ModelArguments {
    /// Model folder, ours or a MusicGen's; by default models/tiny.
    model: Option<PathBuf>,
    /// Codec folder, instead of codec/ in the model folder.
    #[arg(long, value_name = "DIR")]
    codec: Option<PathBuf>,
    /// Text encoder folder, instead of text/ in the model folder.
    #[arg(long, value_name = "DIR")]
    text: Option<PathBuf>,
    /// Other model folders to judge beside it, as they are; their codecs must have the same sample rate.
    #[arg(long, value_name = "MODEL", num_args = 1..)]
    beside: Vec<PathBuf>,
    /// Corpus: folder or manifest file with the real music.
    #[arg(long, value_name = "DIR")]
    corpus: PathBuf,
    /// Prepared shards, one or more folders: captions of the split, tokens of the training split.
    #[arg(long, value_name = "DIR", required = true, num_args = 1..)]
    shards: Vec<PathBuf>,
    /// Only real music of these licence tiers.
    #[arg(long, value_delimiter = ',', value_parser = tier)]
    tiers: Vec<String>,
    /// Which split the real music is from; choose settings on `valid`, quote figures on `test`.
    #[arg(long, default_value = "test", value_parser = split)]
    split: Split,
    /// Leave out the floors and the ceiling: a quick look at the model alone.
    #[arg(long)]
    model_only: bool,
    /// Length of a segment as given to `mambo prepare`.
    #[arg(long, default_value_t = 30.0, value_parser = seconds)]
    segment_seconds: f64,
    /// Length of the clips in seconds.
    #[arg(long, default_value_t = 30.0, value_parser = seconds)]
    seconds: f64,
    /// Clips of each system.
    #[arg(long, default_value_t = 64)]
    clips: usize,
    /// Seeds of the clips: with several, the Fréchet distance of each and their spread.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// Prompts in lines `tag<TAB>prompt` instead of the fixed ones.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Seeds a prompt; 0 leaves the prompts out.
    #[arg(long, default_value_t = 4)]
    prompt_seeds: usize,
    /// Also make this many long clips, and compare their last minute with their first 30 s.
    #[arg(long, default_value_t = 0)]
    long_clips: usize,
    /// Length of a long clip in seconds.
    #[arg(long, default_value_t = 600.0, value_parser = seconds)]
    long_seconds: f64,
    #[command(flatten)]
    plot: PlotArgument,
    #[command(flatten)]
    common: Common,
    // Last: a heading goes for every flag after it.
    #[command(flatten)]
    sampling: SamplingArguments,
    #[command(flatten)]
    refining: RefiningArguments,
}

fn split(name: &str) -> Result<Split, String> {
    let known = [Split::Test, Split::Valid, Split::SeenArtist];
    known.into_iter().find(|split| split.name() == name).ok_or_else(|| "expected test, valid or seen-artist".into())
}

/// First-codebook tokens of the training split, an item each.
fn training_tokens(shards: &[Shard]) -> Vec<&[u16]> {
    let items = shards.iter().flat_map(|shard| (0..shard.len()).map(|index| shard.item(index)));
    items.filter(|item| item.track.split == Split::Train).map(|item| &item.codes_kt[..item.length]).collect()
}

/// Frames of codes become sound the way `generate` makes it: streamed and mastered.
fn render(
    mut stream: Box<dyn DecodeStream + '_>,
    frames: impl Iterator<Item = Vec<u16>>,
    rate: u32,
    seconds: f64,
) -> Generated {
    let mut master = Master::new(rate, true);
    let (mut samples, mut level_one) = (Vec::new(), Vec::new());
    for frame in frames {
        level_one.push(frame[0]);
        samples.extend(master.push(&stream.push(&frame)));
    }
    samples.extend(master.push(&stream.finish()));
    samples.extend(master.finish());
    samples.truncate((seconds * f64::from(rate)) as usize);
    Generated { samples, level_one }
}

impl ModelArguments {
    /// Judges the model.
    pub fn run(self) -> Result<ExitCode> {
        self.common.refuse_taken(&self.plot.plot)?;
        let bar = spinner();
        let folder = self.model.as_deref().map_or_else(default_model, resolve)?;
        let (codec, text) = (resolve_some(self.codec.as_deref())?, resolve_some(self.text.as_deref())?);
        let bundle = self.refining.apply(Bundle::open_with(&folder, codec.as_deref(), text.as_deref())?)?;
        let judge = self.common.judge(Some(&folder))?;
        let shards = Arc::new(Shard::open_folders(&self.shards)?);
        let spec = bundle.codec().spec().clone();
        // Before any music is read: a wrong name is told at once.
        let others = self.others(spec.sample_rate)?;
        // Tokens of another codec say nothing about this model's: no bigram, no search for copies, no perplexity.
        let same_tokens = shards.iter().all(|shard| shard.header().spec.codec == spec);
        if !same_tokens {
            tracing::info!("the shards hold tokens of another codec: only their captions are used");
        }
        let training = if same_tokens { training_tokens(&shards) } else { Vec::new() };
        let real = self.real_clips(&shards, bundle.codec(), &bar)?;
        let settings = Settings {
            seconds: self.seconds,
            clips: self.clips,
            seed: self.common.seed,
            rounds: self.seeds,
            draws: self.common.draws(),
            prompts: match &self.prompts {
                Some(path) => {
                    let text =
                        std::fs::read_to_string(path).with_context(|| format!("--prompts {}", path.display()))?;
                    parse_prompts(&text)
                        .map_err(|line| anyhow!("--prompts {}: line {line} is not tag<TAB>prompt", path.display()))?
                }
                None => fixed_prompts(),
            },
            prompt_seeds: self.prompt_seeds,
            ..Settings::default()
        };
        let setup = Setup {
            sample_rate: spec.sample_rate,
            frame_rate: spec.frame_rate(),
            real: &real,
            training: &training,
            judge: &judge,
            settings,
        };
        let bigram = same_tokens.then(|| KneserNeyBigram::fit(&training, spec.cardinality));
        let sampling = self.sampling.over(&bundle.composer().sampling());
        let mut systems = systems(&bundle, sampling, &real, bigram.as_ref(), &spec);
        if self.model_only {
            systems.retain(|system| system.role == Role::Model);
        }
        systems.extend(others.iter().map(|(name, bundle)| {
            let sampling = bundle.composer().sampling();
            System { name: name.clone(), role: Role::Other, reads_text: true, generate: generate(bundle, sampling) }
        }));
        let (_, mut report) = evaluate(&mut systems, &setup, &mut step(&bar))?;
        if self.long_clips > 0
            && let Some(model) = systems.iter_mut().find(|system| system.role == Role::Model)
        {
            let length = long_clips(model, &setup, self.long_clips, self.long_seconds, &mut step(&bar))?;
            report.tables.extend(length.tables());
            if let Some(all) = report.figures.as_object_mut() {
                all.insert("length".into(), json!(length));
            }
        }
        if let (Some(bigram), true) = (&bigram, folder.join(CONFIG_FILE).exists()) {
            step(&bar)("perplexity");
            self.perplexities(&folder, &shards, bigram, &mut report)?;
        }
        bar.finish_and_clear();
        let outcome = self.common.deliver(&report)?;
        self.plot.write(&report)?;
        Ok(outcome)
    }

    /// The models to judge beside the first, by the names of their folders.
    fn others(&self, rate: u32) -> Result<Vec<(String, Bundle)>> {
        let mut others = Vec::with_capacity(self.beside.len());
        for path in &self.beside {
            let bundle = Bundle::open(&resolve(path)?)?;
            if bundle.sample_rate() != rate {
                bail!(
                    "--beside {}: it makes sound at {} Hz, the model at {rate} Hz",
                    path.display(),
                    bundle.sample_rate()
                );
            }
            let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
            others.push((name, bundle));
        }
        Ok(others)
    }

    /// Level-1 perplexity on held-out real music beside the bigram's, as a table and bars of the report.
    fn perplexities(
        &self,
        folder: &Path,
        shards: &Arc<Vec<Shard>>,
        bigram: &KneserNeyBigram,
        report: &mut Report,
    ) -> Result<()> {
        let (file, parameters) = LmFile::load(folder)?;
        let mut table = FigureTable::new("Perplexity of level 1", &["split", "model", "bigram", "ratio"]);
        let mut bars = FigureTable::new("Bars: language model", &["what", "value", "bar", ""]);
        let mut figures = Vec::new();
        for (split, most) in [(Split::SeenArtist, SEEN_ARTIST_RATIO), (Split::Test, TEST_RATIO)] {
            let options = BatchOptions {
                splits: vec![split],
                tiers: self.tiers.clone(),
                unaltered_only: true,
                batch: 8,
                frames: shards[0].header().spec.frames,
                levels: file.model.codebooks,
                max_text: 64,
                seed: self.common.seed,
            };
            let Ok(source) = BatchSource::new(Arc::clone(shards), options) else { continue };
            let own = score_model(&file.model, &parameters, split, &source).level_1_perplexity();
            let items = source.items().iter().map(|&(shard, index)| shards[shard].item(index));
            let floor = bigram.perplexity(&items.map(|item| &item.codes_kt[..item.length]).collect::<Vec<_>>());
            let ratio = own / floor;
            table.row(vec![split.name().to_owned(), number(own), number(floor), number(ratio)]);
            let what = format!("perplexity over the bigram's, {}", split.name());
            bars.bar(&what, number(ratio), &format!("at most {most}"), ratio <= most);
            figures.push(json!({"split": split.name(), "model": own, "bigram": floor, "ratio": ratio}));
        }
        report.tables.extend([table, bars]);
        if let Some(all) = report.figures.as_object_mut() {
            all.insert("level_1_perplexity".into(), json!(figures));
        }
        Ok(())
    }

    /// Real segments of the split with the captions they were given in the shards.
    fn real_clips(&self, shards: &[Shard], codec: &dyn StreamCodec, bar: &ProgressBar) -> Result<Vec<RealClip>> {
        let manifest = Manifest::load(&self.corpus)?;
        let captions = captions(shards, self.split);
        let mut places = places(&manifest, self.split, &self.tiers, self.segment_seconds, usize::MAX);
        places.retain(|(track, segment)| captions.contains_key(&(manifest.tracks[*track].id.clone(), *segment)));
        if places.is_empty() {
            bail!(
                "no {} segment of {} has a caption in {}; prepare this corpus, with --segment-seconds as then",
                self.split.name(),
                self.corpus.display(),
                self.shards.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ")
            );
        }
        let count = places.len().min(self.clips);
        let places: Vec<(usize, usize)> = (0..count).map(|n| places[n * places.len() / count]).collect();
        let sounds = cut(&manifest, &places, self.segment_seconds, codec.spec().sample_rate, bar)?;
        let clip = |((track, segment), samples): (&(usize, usize), Vec<f32>)| {
            let (shard, caption) = captions[&(manifest.tracks[*track].id.clone(), *segment)];
            RealClip {
                id: clip_name(&manifest, *track, *segment),
                caption: shard.header().captions[caption].text.clone(),
                level_one: codec.encode(&samples).row(0).to_vec(),
                samples,
            }
        };
        Ok(places.iter().zip(sounds).map(clip).collect())
    }
}

/// How a model makes a clip.
fn generate(bundle: &Bundle, sampling: Sampling) -> Generate<'_> {
    let (spec, rate) = (bundle.codec().spec().clone(), bundle.sample_rate());
    Box::new(move |request| {
        let piece = bundle.composer().compose(request.prompt, &sampling, request.seed).map_err(SystemError::from)?;
        let frames = piece.frames.take(spec.frames_for(request.seconds));
        Ok(render(bundle.decoder(piece.text, piece.tempo, request.seed), frames, rate, request.seconds))
    })
}

/// A running decoder for a seed.
type Decoder<'a> = Box<dyn Fn(u64) -> Box<dyn DecodeStream + 'a> + 'a>;

/// The model, the bigram over first-codebook tokens, uniform tokens, and the real tokens decoded; all but the bigram
/// with as many codebooks as the model writes. With a second stage, the real tokens have all levels, and the real outline is
/// refined too: what the second stage does to a first one without fault.
fn systems<'a>(
    bundle: &'a Bundle,
    sampling: Sampling,
    real: &'a [RealClip],
    bigram: Option<&'a KneserNeyBigram>,
    spec: &CodecSpec,
) -> Vec<System<'a>> {
    let levels = bundle.composer().tokens().levels;
    let (codec, rate) = (bundle.codec(), spec.sample_rate);
    let refined = bundle.refiner().is_some();
    let ceiling = if refined { spec.levels } else { levels };
    let spec = CodecSpec { levels, ..spec.clone() };
    let system =
        |name: &str, role, generate| System { name: name.into(), role, reads_text: role == Role::Model, generate };
    let bigram_spec = spec.clone();
    let mut systems = vec![system("model", Role::Model, generate(bundle, sampling))];
    systems.extend(bigram.map(|bigram| {
        system(
            "bigram, 1 level",
            Role::Bigram,
            Box::new(move |request| {
                let mut rng = random::stream(request.seed, "bigram", 0);
                let codes = bigram.sample(bigram_spec.frames_for(request.seconds), &mut rng);
                let frames = codes.into_iter().map(|code| vec![code]);
                Ok(render(codec.decoder(1, request.seed), frames, rate, request.seconds))
            }),
        )
    }));
    systems.push(system(
        "uniform tokens",
        Role::Uniform,
        Box::new(move |request| {
            let tokens = uniform_tokens(&spec, spec.frames_for(request.seconds), request.seed);
            let frames = (0..tokens.frames).map(|t| tokens.frame(t));
            Ok(render(codec.decoder(levels, request.seed), frames, rate, request.seconds))
        }),
    ));
    let of_real = |name: &str, role, decoder: Decoder<'a>| {
        system(
            name,
            role,
            Box::new(move |request| {
                let clip = request.real.map(|index| &real[index]).ok_or("real tokens need a real clip")?;
                let tokens = codec.encode(&clip.samples);
                let frames = (0..tokens.frames).map(|t| tokens.frame(t));
                Ok(render(decoder(request.seed), frames, rate, request.seconds))
            }),
        )
    };
    systems.push(of_real("real tokens", Role::Ceiling, Box::new(move |seed| codec.decoder(ceiling, seed))));
    if refined {
        let decoder: Decoder<'a> = Box::new(move |seed| bundle.decoder(None, None, seed));
        systems.push(of_real("real outline, refined", Role::Other, decoder));
    }
    systems
}
