//! `mambo prepare`: manifest -> segments -> augmented versions -> codec tokens, captions, text states
//! -> shards.
//!
//! Work is cut into units of a few tracks; each unit is one shard and one record, both written whole or
//! not at all, under names that contain a hash of everything that went into them. So a finished unit is
//! recognised after a kill, parts can run on different machines, and the same input gives the same bytes.

mod networks;
mod segments;

use crate::atomic::write_bytes_atomically;
use crate::augment::Alteration;
use crate::caption::{Measured, SegmentFacts, compose};
use crate::error::DataError;
use crate::manifest::{Caption, Manifest, Split, Track};
use crate::progress::{Clock, Progress, Report};
use crate::shard::{ShardSpec, ShardTrack, ShardWriter, TextStates};
use mambo_audio::{AudioClip, analysis};
use mambo_model::clock;
use mambo_model::codec::Codec;
use mambo_model::tokens::CodecSpec;
use rayon::prelude::*;
use segments::SegmentReader;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

pub use networks::Networks;

/// Changes when prepared data would differ for the same options.
const RECIPE: u32 = 3;
/// Rate that taggers listen at.
pub const TAGGER_RATE: u32 = 16_000;
/// Tracks in a unit.
const TRACKS_PER_UNIT: usize = 8;
/// Texts given to the text encoder at once.
const TEXTS_AT_ONCE: usize = 32;
/// Segments below this peak are silence.
const SILENCE: f32 = 1e-3;
/// Beats less regular than this are not given a tempo.
const MIN_TEMPO_STRENGTH: f32 = 0.12;
/// Pulses less regular than this give the beat clock nothing to count.
const MIN_CLOCK_STRENGTH: f32 = 0.2;
/// Keys less certain than this are not named.
const MIN_KEY_CONFIDENCE: f32 = 0.45;

/// What to prepare.
#[derive(Debug, Clone, PartialEq)]
pub struct PrepareOptions {
    /// Manifest files, or folders with one.
    pub manifests: Vec<PathBuf>,
    /// Folder for shards.
    pub out: PathBuf,
    /// Length of a segment.
    pub segment_seconds: f64,
    /// Shorter remainders are left out.
    pub min_seconds: f64,
    /// Versions of each training segment; the first is unaltered. Other splits have only that one.
    pub versions: u32,
    /// Only these licence tiers; empty: all.
    pub tiers: Vec<String>,
    /// Seed of augmentation and captions.
    pub seed: u64,
    /// This process does part `part` of `parts`, counted from 1.
    pub part: usize,
    /// Number of parts.
    pub parts: usize,
}

/// Gives tags with probabilities for mono samples at [`TAGGER_RATE`], or says why not.
pub type TagStage<'a> = dyn Fn(&[f32]) -> Result<Vec<(String, f32)>, String> + Sync + 'a;
/// Gives the hidden states of texts, in their order, or says why not.
pub type TextStage<'a> = dyn Fn(&[&str]) -> Result<Vec<TextStates>, String> + Sync + 'a;

/// The networks used on the way, each with a hash of its weights.
pub struct Stages<'a> {
    /// Sound to tokens.
    pub codec: &'a dyn Codec,
    /// Hash of the codec's weights.
    pub codec_hash: String,
    /// Music tagger; absent: captions do without.
    pub tagger: Option<&'a TagStage<'a>>,
    /// Name and hash of the tagger.
    pub tagger_hash: String,
    /// Text encoder.
    pub text: &'a TextStage<'a>,
    /// Its name.
    pub text_name: String,
    /// Hash of its weights.
    pub text_hash: String,
    /// Width of its states.
    pub text_width: usize,
}

/// A track that gave nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedTrack {
    /// Id in the manifest.
    pub id: String,
    /// Its source.
    pub source: String,
    /// Why.
    pub reason: String,
}

/// What is remembered of a finished unit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct UnitRecord {
    items: usize,
    /// Seconds of unaltered music by split.
    seconds: BTreeMap<Split, f64>,
    silent_segments: usize,
    captions: usize,
    dropped: Vec<DroppedTrack>,
}

/// What was prepared, over all finished units.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PrepareSummary {
    /// Folder with the shards.
    pub out: PathBuf,
    /// Units done, and all there are (other parts do the rest).
    pub units: (usize, usize),
    /// Items in the shards: segments times versions.
    pub items: usize,
    /// Different captions, by shard.
    pub captions: usize,
    /// Seconds of unaltered music by split.
    pub seconds: BTreeMap<Split, f64>,
    /// Segments left out because they are silent.
    pub silent_segments: usize,
    /// Tracks that gave nothing, with the reason.
    pub dropped: Vec<DroppedTrack>,
}

struct Unit<'a> {
    /// File name without extension.
    name: String,
    tracks: Vec<(&'a Manifest, &'a Track)>,
    seconds: f64,
}

/// One version of one segment.
struct Prepared {
    segment: u32,
    version: u32,
    codes: Vec<u16>,
    clock: Vec<u16>,
    captions: Vec<Caption>,
}

/// What a track gave.
struct TrackResult {
    items: Vec<Prepared>,
    seconds: f64,
    silent_segments: usize,
}

/// Prepares the corpus (this part of it).
///
/// # Errors
/// Options that make no sense, an unreadable manifest, a folder that cannot be written or holds shards of
/// other data, a text encoder that fails. A bad track is recorded, not an error.
pub fn prepare(
    options: &PrepareOptions,
    stages: &Stages<'_>,
    report: &mut Report<'_>,
) -> Result<PrepareSummary, DataError> {
    check(options, stages)?;
    let manifests = options.manifests.iter().map(|path| Manifest::load(path)).collect::<Result<Vec<_>, _>>()?;
    let units = plan(options, stages, &manifests);
    std::fs::create_dir_all(&options.out).map_err(DataError::io(&options.out, "create the shard folder"))?;
    refuse_foreign_shards(&options.out, &units)?;

    let mine: Vec<&Unit<'_>> = units.iter().skip(options.part - 1).step_by(options.parts).collect();
    let mut clock = Clock::start();
    let mut remaining: f64 = mine.iter().map(|unit| unit.seconds).sum();
    for (done, unit) in mine.iter().enumerate() {
        report(&Progress {
            stage: "prepare",
            item: unit.tracks[0].1.path.display().to_string(),
            done: done as u64,
            total: mine.len() as u64,
            seconds_left: clock.seconds_left(remaining),
        });
        if read_record(&options.out, &unit.name).is_none() {
            prepare_unit(options, stages, unit)?;
            clock.add(unit.seconds);
        }
        remaining -= unit.seconds;
    }
    let total = mine.len() as u64;
    report(&Progress { stage: "prepare", item: "done".into(), done: total, total, seconds_left: Some(0.0) });
    finish(options, &manifests, &units)
}

fn check(options: &PrepareOptions, stages: &Stages<'_>) -> Result<(), DataError> {
    let refuse = |what, problem: String| Err(DataError::Argument { what, problem });
    if !(options.segment_seconds.is_finite() && options.segment_seconds >= 1.0 && options.segment_seconds <= 600.0) {
        return refuse("segment length", format!("{} s; give 1 to 600 s", options.segment_seconds));
    }
    if options.versions == 0 {
        return refuse("versions", "0; give at least 1 (1: no augmentation)".into());
    }
    if options.part == 0 || options.part > options.parts {
        return refuse("part", format!("{}/{}; give 1/n to n/n", options.part, options.parts));
    }
    if stages.text_width == 0 {
        return refuse("text encoder", "its states have no width".into());
    }
    Ok(())
}

fn plan<'a>(options: &PrepareOptions, stages: &Stages<'_>, manifests: &'a [Manifest]) -> Vec<Unit<'a>> {
    let tracks: Vec<(&Manifest, &Track)> = manifests
        .iter()
        .flat_map(|manifest| manifest.kept().map(move |track| (manifest, track)))
        .filter(|(_, track)| options.tiers.is_empty() || options.tiers.contains(&track.tier))
        .collect();
    let spec = stages.codec.spec();
    let recipe = format!(
        "{RECIPE} {} {} {} {} {spec:?} {} {} {} {} {}",
        options.segment_seconds,
        options.min_seconds,
        options.versions,
        options.seed,
        stages.codec_hash,
        stages.tagger_hash,
        stages.tagger.is_some(),
        stages.text_name,
        stages.text_hash,
    );
    tracks
        .chunks(TRACKS_PER_UNIT)
        .enumerate()
        .map(|(index, tracks)| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(recipe.as_bytes());
            for (_, track) in tracks {
                // Everything of the row that can change a shard; not where the file lies.
                let facts =
                    (&track.id, &track.sha256, track.split, &track.tier, &track.captions, &track.tags, &track.score);
                hasher.update(format!("{facts:?}").as_bytes());
            }
            let hash: String = hasher.finalize().to_hex().chars().take(12).collect();
            let versions = |track: &Track| if track.split == Split::Train { f64::from(options.versions) } else { 1.0 };
            let seconds = tracks.iter().map(|(_, track)| track.seconds * versions(track)).sum();
            Unit { name: format!("{index:05}-{hash}"), tracks: tracks.to_vec(), seconds }
        })
        .collect()
}

/// Shards of another corpus, codec or recipe in the same folder would be mixed in by training.
fn refuse_foreign_shards(out: &Path, units: &[Unit<'_>]) -> Result<(), DataError> {
    for path in crate::walk::files(out)?.files {
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let shard = path.extension().is_some_and(|extension| extension == "safetensors");
        if shard && !units.iter().any(|unit| unit.name == stem) {
            return Err(DataError::format(
                &path,
                "only shards of this corpus, codec and recipe in the output folder",
                "a shard of other data; give another folder or remove the old shards",
            ));
        }
    }
    Ok(())
}

fn record_path(out: &Path, unit: &str) -> PathBuf {
    out.join(format!("{unit}.json"))
}

/// The record of a finished unit. It is written after the shard, so it vouches for it.
fn read_record(out: &Path, unit: &str) -> Option<UnitRecord> {
    let record: UnitRecord = serde_json::from_slice(&std::fs::read(record_path(out, unit)).ok()?).ok()?;
    (record.items == 0 || out.join(format!("{unit}.safetensors")).is_file()).then_some(record)
}

fn prepare_unit(options: &PrepareOptions, stages: &Stages<'_>, unit: &Unit<'_>) -> Result<(), DataError> {
    let results: Vec<Result<TrackResult, DataError>> = unit
        .tracks
        .par_iter()
        .map(|(manifest, track)| prepare_track(options, stages, &manifest.audio_path(track), track))
        .collect();
    let spec = stages.codec.spec();
    let mut writer = ShardWriter::new(ShardSpec {
        codec: spec.clone(),
        codec_hash: stages.codec_hash.clone(),
        text_encoder: stages.text_name.clone(),
        text_encoder_hash: stages.text_hash.clone(),
        text_width: stages.text_width,
        frames: segment_samples(options, stages) / spec.hop as usize,
    });
    let texts = results.iter().flatten().flat_map(|result| &result.items).flat_map(|item| &item.captions);
    let mut states = encode_texts(stages, texts.map(|caption| caption.text.as_str()))?;
    let mut record = UnitRecord::default();
    for ((_, track), result) in unit.tracks.iter().zip(results) {
        let drop = |reason: String| DroppedTrack { id: track.id.clone(), source: track.source.clone(), reason };
        match result {
            Err(error) => record.dropped.push(drop(error.to_string())),
            Ok(result) if result.items.is_empty() => {
                record.dropped.push(drop(format!("no segment of at least {} s with sound", options.min_seconds)));
            }
            Ok(result) => {
                record.silent_segments += result.silent_segments;
                *record.seconds.entry(track.split).or_default() += result.seconds;
                let place =
                    writer.track(&ShardTrack { id: track.id.clone(), split: track.split, tier: track.tier.clone() });
                for item in result.items {
                    let mut captions = Vec::with_capacity(item.captions.len());
                    for caption in &item.captions {
                        let of_text = || {
                            states.remove(&caption.text).ok_or_else(|| DataError::Stage {
                                stage: "text encoder",
                                subject: caption.text.clone(),
                                message: "it gave no states".into(),
                            })
                        };
                        captions.push(writer.caption(caption, of_text)?);
                    }
                    writer.item(place, item.segment, item.version, &item.codes, &item.clock, &captions)?;
                }
            }
        }
    }
    for dropped in &record.dropped {
        tracing::warn!("{}: {}", dropped.source, dropped.reason);
    }
    record.items = writer.len();
    record.captions = writer.captions();
    if !writer.is_empty() {
        writer.finish(&options.out.join(format!("{}.safetensors", unit.name)))?;
    }
    let path = record_path(&options.out, &unit.name);
    let text = serde_json::to_vec(&record).map_err(|error| DataError::io(&path, "write")(error.into()))?;
    write_bytes_atomically(&path, &text)
}

/// The states of all different texts.
fn encode_texts<'t>(
    stages: &Stages<'_>,
    texts: impl Iterator<Item = &'t str>,
) -> Result<HashMap<String, TextStates>, DataError> {
    let mut different: Vec<&str> = texts.collect();
    // Sorted by length, so that texts of one call need little padding.
    different.sort_by_key(|text| (text.len(), *text));
    different.dedup();
    let mut states = HashMap::with_capacity(different.len());
    for chunk in different.chunks(TEXTS_AT_ONCE) {
        let fail =
            |message: String| DataError::Stage { stage: "text encoder", subject: format!("{:?}", chunk[0]), message };
        let encoded = (stages.text)(chunk).map_err(fail)?;
        if encoded.len() != chunk.len() {
            return Err(fail(format!("{} results for {} texts", encoded.len(), chunk.len())));
        }
        states.extend(chunk.iter().map(|text| (*text).to_owned()).zip(encoded));
    }
    Ok(states)
}

/// Samples of a segment: whole codec frames, so that no frame is half padding.
fn segment_samples(options: &PrepareOptions, stages: &Stages<'_>) -> usize {
    let spec = stages.codec.spec();
    let hop = spec.hop as usize;
    ((options.segment_seconds * f64::from(spec.sample_rate)) as usize / hop).max(1) * hop
}

fn prepare_track(
    options: &PrepareOptions,
    stages: &Stages<'_>,
    path: &Path,
    track: &Track,
) -> Result<TrackResult, DataError> {
    let spec = stages.codec.spec();
    let rate = spec.sample_rate;
    let frames = segment_samples(options, stages);
    let least = ((options.min_seconds * f64::from(rate)) as usize).clamp(spec.hop as usize, frames);
    let versions = if track.split == Split::Train { options.versions } else { 1 };
    let mut result = TrackResult { items: Vec::new(), seconds: 0.0, silent_segments: 0 };
    let mut reader = SegmentReader::open(path, rate, frames)?;
    let mut segment = 0;
    while let Some(window) = reader.next_window()? {
        let base = &window[..frames.min(window.len())];
        if base.len() < least {
            break;
        }
        if base.iter().fold(0.0_f32, |peak, sample| peak.max(sample.abs())) < SILENCE {
            result.silent_segments += 1;
            segment += 1;
            continue;
        }
        let facts = facts_of(stages, track, base, rate)?;
        result.seconds += base.len() as f64 / f64::from(rate);
        for version in 0..versions {
            let change = Alteration::of_version(options.seed, &track.id, segment, version);
            // Near the end of a track there may be nothing to shift into.
            let shift = ((change.offset * frames as f64) as usize)
                .min(window.len().saturating_sub(change.source_frames(least)));
            let source = &window[shift..];
            let source = &source[..source.len().min(change.source_frames(frames) + 2)];
            let mut sound = change.apply(source, rate);
            sound.truncate(frames.min(sound.len() / spec.hop as usize * spec.hop as usize));
            if sound.is_empty() || (version > 0 && sound.len() < least / 2) {
                continue;
            }
            let name = format!("{}:{segment}:{version}", track.id);
            let captions = compose(&facts, &change, options.seed, &name);
            let codes = stages.codec.encode(&sound).codes;
            let clock = clock_of(&sound, spec, codes.len() / spec.levels);
            result.items.push(Prepared { segment, version, codes, clock, captions });
        }
        segment += 1;
    }
    Ok(result)
}

/// The beat clock of some codec frames, read at the middle of each.
fn clock_of(sound: &[f32], codec: &CodecSpec, frames: usize) -> Vec<u16> {
    let Some(beats) = analysis::track_beats(sound, codec.sample_rate, MIN_CLOCK_STRENGTH) else {
        return vec![clock::NO_BEAT; frames];
    };
    let seconds = codec.hop as f32 / codec.sample_rate as f32;
    (0..frames).map(|frame| clock::ticks(f64::from(beats.position((frame as f32 + 0.5) * seconds)))).collect()
}

/// Everything that can be said about an unaltered segment.
fn facts_of(stages: &Stages<'_>, track: &Track, base: &[f32], rate: u32) -> Result<SegmentFacts, DataError> {
    let mut facts = SegmentFacts::of_track(track);
    if let Some(tagger) = stages.tagger {
        let clip = AudioClip::from_mono(base.to_vec(), rate);
        let slow = mambo_audio::resample(&clip, TAGGER_RATE).to_mono();
        facts.tags = tagger(&slow).map_err(|message| DataError::Stage {
            stage: "tagger",
            subject: track.source.clone(),
            message,
        })?;
    }
    let measured = analysis::analyse(base, rate);
    let loudness = mambo_audio::measure(&AudioClip::from_mono(base.to_vec(), rate)).integrated_lufs;
    facts.measured = Measured {
        beats_per_minute: measured
            .tempo
            .filter(|tempo| tempo.strength >= MIN_TEMPO_STRENGTH)
            .map(|tempo| f64::from(tempo.beats_per_minute)),
        key: measured.key.filter(|key| key.confidence >= MIN_KEY_CONFIDENCE).map(|key| key.name()),
        loudness: loudness.is_finite().then_some(loudness),
        brightness_hz: Some(f64::from(measured.brightness_hz)),
        onsets_per_second: Some(f64::from(measured.onset_density)),
    };
    if let Some(score) = &track.score {
        facts.measured.beats_per_minute = Some(score.beats_per_minute);
        facts.measured.key.clone_from(&score.key);
    }
    Ok(facts)
}

/// Sums up the records; once all parts are done, writes the manifest with the reasons.
fn finish(options: &PrepareOptions, manifests: &[Manifest], units: &[Unit<'_>]) -> Result<PrepareSummary, DataError> {
    let records: Vec<UnitRecord> = units.iter().filter_map(|unit| read_record(&options.out, &unit.name)).collect();
    let mut summary = PrepareSummary {
        out: options.out.clone(),
        units: (records.len(), units.len()),
        items: records.iter().map(|record| record.items).sum(),
        captions: records.iter().map(|record| record.captions).sum(),
        seconds: BTreeMap::new(),
        silent_segments: records.iter().map(|record| record.silent_segments).sum(),
        dropped: Vec::new(),
    };
    for record in records {
        for (split, seconds) in record.seconds {
            *summary.seconds.entry(split).or_default() += seconds;
        }
        summary.dropped.extend(record.dropped);
    }
    if summary.units.0 == summary.units.1 {
        let reasons: HashMap<&str, &str> =
            summary.dropped.iter().map(|track| (track.id.as_str(), track.reason.as_str())).collect();
        let mut all = Manifest { folder: options.out.clone(), tracks: Vec::new() };
        for manifest in manifests {
            for track in &manifest.tracks {
                let path = manifest.audio_path(track);
                let path = std::path::absolute(&path).map_err(DataError::io(&path, "find"))?;
                let mut track = Track { path, ..track.clone() };
                if track.dropped.is_none() {
                    track.dropped = reasons.get(track.id.as_str()).map(|reason| (*reason).to_owned());
                }
                all.tracks.push(track);
            }
        }
        all.save()?;
    }
    Ok(summary)
}

#[cfg(test)]
mod tests;
