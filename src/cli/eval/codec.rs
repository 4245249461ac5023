//! `mambo eval codec`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use mambo_data::shard::Shard;
use mambo_data::{Manifest, Split};
use mambo_eval::codec_report::{CodecSettings, NamedCodec, TestClip, codec_report, write_spectrograms};
use mambo_eval::{Judge, MusicnnJudge};
use mambo_model::codec::{self, Codec};
use mambo_model::diffusion::{RefinedCodec, Refiner};
use mambo_train::codec::CodecExperiment;
use mambo_train::run::read_toml;

use super::super::sampling::RefinerArguments;
use super::super::{resolve, split, tier};
use super::{Common, PlotArgument, captions, clip_name, cut, places, seconds, spinner, step};

/// Flags of `mambo eval codec`.
#[derive(Debug, Args)]
pub struct CodecArguments {
    /// Codec folder.
    codec: PathBuf,
    /// Corpus: folder or manifest file.
    #[arg(long, value_name = "DIR")]
    corpus: PathBuf,
    /// Experiment file of the codec: fits the k-means floor codec to the same training music.
    #[arg(long, value_name = "FILE")]
    floor: Option<PathBuf>,
    /// Second-stage folder: the first level alone, with its detail painted, is judged too.
    #[arg(long, value_name = "DIR")]
    refiner: Option<PathBuf>,
    /// Prepared shards, one or more folders: the second stage hears the captions that the clips have there; else it hears no text.
    #[arg(long, value_delimiter = ',', value_name = "DIR", requires = "refiner")]
    shards: Vec<PathBuf>,
    /// Numbers of levels to decode, e.g. 1,8; by default 1, 2, 4 and so on, and all.
    #[arg(long, value_delimiter = ',', value_name = "LEVELS", value_parser = clap::value_parser!(u16).range(1..=64))]
    levels: Vec<u16>,
    /// Only these licence tiers.
    #[arg(long, value_delimiter = ',', value_parser = tier)]
    tiers: Vec<String>,
    /// Part of the corpus.
    #[arg(long, default_value = "test", value_parser = split)]
    split: Split,
    /// Most clips.
    #[arg(long, default_value_t = 60)]
    clips: usize,
    /// Length of a clip in seconds.
    #[arg(long, default_value_t = 30.0, value_parser = seconds)]
    seconds: f64,
    /// Second judge (musicnn MTT, the tagger of captions), reported beside the first.
    #[arg(long, value_name = "FILE")]
    second_judge: Option<PathBuf>,
    /// Write spectrograms of originals and reconstructions.
    #[arg(long, value_name = "DIR")]
    spectrograms: Option<PathBuf>,
    #[command(flatten)]
    plot: PlotArgument,
    #[command(flatten)]
    common: Common,
    // Last: its heading goes for every flag after it.
    #[command(flatten)]
    refining: RefinerArguments,
}

impl CodecArguments {
    /// Judges the codec.
    pub fn run(self) -> Result<ExitCode> {
        self.common.refuse_taken(self.plot.plot.iter().chain(&self.spectrograms))?;
        let bar = spinner();
        let codec = codec::open(&resolve(&self.codec)?)?;
        let rate = codec.spec().sample_rate;
        let judge = self.common.judge(Some(&self.codec))?;
        let second = match &self.second_judge {
            Some(path) => Some(
                MusicnnJudge::load("musicnn MTT", path)
                    .with_context(|| format!("--second-judge {}", path.display()))?,
            ),
            None => None,
        };
        let manifest = Manifest::load(&self.corpus)?;
        let places = places(&manifest, self.split, &self.tiers, self.seconds, self.clips);
        if places.is_empty() {
            bail!(
                "{}: no track of the split {} is as long as {} s",
                self.corpus.display(),
                self.split.name(),
                self.seconds
            );
        }
        // Before any music is read: what is wrong with a flag is told at once.
        let mut levels: Vec<usize> = self.levels.iter().copied().map(usize::from).collect();
        let all = codec.spec().levels;
        if let Some(more) = levels.iter().find(|levels| **levels > all) {
            bail!("--levels {more}: the codec {} has {all}", codec.spec().name);
        }
        if levels.is_empty() {
            levels = (0..).map(|power| 1 << power).take_while(|levels| *levels < all).chain([all]).collect();
        }
        let refiner = match &self.refiner {
            Some(folder) => {
                let refiner = Refiner::open(folder)?;
                let settings = self.refining.over(&refiner.config().sampling);
                let refiner = refiner.with_sampling(settings).map_err(|rule| anyhow!("second stage: {rule}"))?;
                let known = codec.refinable().filter(|_| refiner.config().codec == *codec.spec());
                let known = known.with_context(|| {
                    let (made, found) = (&refiner.config().codec, codec.spec());
                    format!("--refiner {}: it was trained for the codec {made}, this is {found}", folder.display())
                })?;
                Some((known, refiner))
            }
            None => None,
        };
        let refined: Vec<RefinedCodec<'_>> = match &refiner {
            Some((codec, refiner)) => {
                let texts = self.texts(&manifest, &places, refiner.config().text_width)?;
                texts.into_iter().map(|text| RefinedCodec::new(*codec, refiner, text)).collect()
            }
            None => Vec::new(),
        };
        let clips: Vec<TestClip> = places
            .iter()
            .zip(cut(&manifest, &places, self.seconds, rate, &bar)?)
            .map(|((track, segment), samples)| TestClip { id: clip_name(&manifest, *track, *segment), samples })
            .collect();
        let floor = match &self.floor {
            Some(path) => {
                let mut experiment: CodecExperiment = read_toml(path)?;
                experiment.manifest.clone_from(&self.corpus);
                step(&bar)("fitting the k-means codec");
                Some(mambo_train::codec::floor(&experiment)?)
            }
            None => None,
        };
        let mut codecs =
            vec![NamedCodec { name: codec.spec().name.clone(), codecs: vec![codec.as_ref()], floor: false }];
        if let Some(floor) = &floor {
            codecs.push(NamedCodec { name: floor.spec().name.clone(), codecs: vec![floor], floor: true });
        }
        if let Some(first) = refined.first() {
            let each = refined.iter().map(|codec| codec as &dyn Codec).collect();
            codecs.push(NamedCodec { name: first.spec().name.clone(), codecs: each, floor: false });
        }
        let mut judges: Vec<&dyn Judge> = vec![&judge];
        judges.extend(second.as_ref().map(|judge| judge as &dyn Judge));
        let (seed, draws) = (self.common.seed, self.common.draws());
        let settings = CodecSettings { levels, seed, draws, ..CodecSettings::default() };
        let (_, report) = codec_report(&codecs, &clips, &judges, &settings, &mut step(&bar))?;
        bar.finish_and_clear();
        let outcome = self.common.deliver(&report)?;
        self.plot.write(&report)?;
        if let Some(folder) = &self.spectrograms {
            write_spectrograms(&report, folder)?;
        }
        Ok(outcome)
    }

    /// States of the caption of each clip, `[tokens, width]`; none without shards.
    fn texts(&self, manifest: &Manifest, places: &[(usize, usize)], width: usize) -> Result<Vec<Option<Vec<f32>>>> {
        if self.shards.is_empty() {
            return Ok(vec![None; places.len()]);
        }
        let shards = Shard::open_folders(&self.shards)?;
        let captions = captions(&shards, self.split);
        places
            .iter()
            .map(|(track, segment)| {
                let found = captions.get(&(manifest.tracks[*track].id.clone(), *segment));
                let (shard, caption) = found.with_context(|| {
                    let clip = clip_name(manifest, *track, *segment);
                    format!("--shards: {clip} has no caption there; prepare this corpus, with --segment-seconds as --seconds here")
                })?;
                if shard.header().spec.text_width != width {
                    let found = shard.header().spec.text_width;
                    bail!("--shards: text states are {found} wide, the second stage hears states of width {width}");
                }
                Ok(Some(shard.text_states(*caption).iter().map(|state| state.to_f32()).collect()))
            })
            .collect()
    }
}
