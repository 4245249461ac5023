//! `mambo data render`: scores become audio of which instruments, tempo and key are known exactly.
//!
//! Each piece is played as written and in several arrangements (other instruments, drums, key, tempo);
//! of each version one excerpt is kept. It teaches what words mean; real music stays the measure.

pub mod arrangement;
mod chip;
mod gm;
pub mod midi;
pub mod perform;
pub mod score;
mod synth;
pub mod wad;
mod words;

pub(crate) use words::list as list_words;

use crate::error::DataError;
use crate::fetch::sha256_of;
use crate::manifest::{Attribution, Manifest, ManifestSummary, ScoreFacts, Split, Track, id_of_sha256, id_of_source};
use crate::progress::{Clock, Progress, Report};
use arrangement::{Arrangement, Engine};
use mambo_audio::{AudioClip, AudioFormat};
use perform::Performance;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rayon::prelude::*;
use rustysynth::SoundFont;
use score::Score;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rate of rendered audio in Hz.
const RATE: u32 = 44_100;
/// Loudness that every excerpt is brought to, where its peaks allow it.
const TARGET_LUFS: f64 = -16.0;
/// Largest sample after that.
const PEAK: f32 = 0.891;
/// A file beside scores or SoundFont (or above them) whose first line is their licence.
pub const LICENCE_FILE: &str = "licence.txt";

/// What to render.
#[derive(Debug, Clone)]
pub struct RenderOptions {
    /// Folder with `.mid`, `.mus` and `.wad` files, searched recursively; read by content.
    pub scores: PathBuf,
    /// SoundFont 2 file.
    pub sound_font: PathBuf,
    /// Corpus folder; gets `manifest.jsonl` and the audio.
    pub out: PathBuf,
    /// Versions of each piece; the first is as written.
    pub versions: usize,
    /// Length of an excerpt.
    pub seconds: f64,
    /// Seed of all choices.
    pub seed: u64,
    /// Licence of the result; absent: from [`LICENCE_FILE`]s.
    pub licence: Option<String>,
}

/// What was rendered.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RenderSummary {
    /// Where the manifest is.
    pub manifest: PathBuf,
    /// Different pieces found.
    pub pieces: usize,
    /// Counts over the manifest.
    pub counts: ManifestSummary,
    /// Files that are no scores, pieces that are too empty.
    pub warnings: Vec<String>,
}

/// A piece and where it lies.
struct Piece {
    score: Score,
    /// Unique, usable in a file name.
    name: String,
    path: PathBuf,
    licence: Option<String>,
}

/// Renders everything and writes the manifest. Versions already there are kept.
///
/// # Errors
/// The folders or the SoundFont cannot be used, or there is no score at all. A damaged score is a warning.
pub fn render(options: &RenderOptions, report: &mut Report<'_>) -> Result<RenderSummary, DataError> {
    let mut warnings = Vec::new();
    let pieces = find_pieces(&options.scores, &mut warnings)?;
    if pieces.is_empty() {
        return Err(DataError::format(&options.scores, "scores (.mid, .mus, .wad) in this folder", "none"));
    }
    let font = synth::load_sound_font(&options.sound_font)?;
    let font_licence = licence_near(&options.sound_font);
    std::fs::create_dir_all(&options.out).map_err(DataError::io(&options.out, "create the corpus folder"))?;
    let known: BTreeMap<String, Track> = Manifest::load(&options.out)
        .map(|manifest| manifest.tracks.into_iter().map(|track| (track.source.clone(), track)).collect())
        .unwrap_or_default();

    let mut clock = Clock::start();
    let mut tracks = Vec::new();
    let total = pieces.len() as u64;
    // A few pieces at a time: progress for the person, order for the manifest.
    let at_once = rayon::current_num_threads().max(1);
    for (chunk_index, chunk) in pieces.chunks(at_once).enumerate() {
        let done = chunk_index * at_once;
        let seconds_left = clock.seconds_left((pieces.len() - done) as f64);
        report(&Progress { stage: "render", item: chunk[0].name.clone(), done: done as u64, total, seconds_left });
        let rendered: Vec<Result<Vec<Track>, DataError>> = chunk
            .par_iter()
            .enumerate()
            .map(|(place, piece)| render_piece(options, &font, font_licence.as_deref(), piece, done + place, &known))
            .collect();
        for result in rendered {
            tracks.extend(result?);
        }
        clock.add(chunk.len() as f64);
        // So that a killed run keeps what it has; rows of pieces still to come stay known.
        save(
            options,
            &tracks,
            known.values().filter(|track| !tracks.iter().any(|done: &Track| done.source == track.source)),
        )?;
    }
    report(&Progress { stage: "render", item: "manifest".into(), done: total, total, seconds_left: None });
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let (manifest, path) = save(options, &tracks, std::iter::empty())?;
    Ok(RenderSummary { manifest: path, pieces: pieces.len(), counts: manifest.summary(), warnings })
}

fn save<'a>(
    options: &RenderOptions,
    tracks: &[Track],
    others: impl Iterator<Item = &'a Track>,
) -> Result<(Manifest, PathBuf), DataError> {
    let mut all = tracks.to_vec();
    all.extend(others.cloned());
    let manifest = Manifest { folder: options.out.clone(), tracks: all };
    let path = manifest.save()?;
    Ok((manifest, path))
}

/// The first line of the nearest licence file, looking upwards.
fn licence_near(path: &Path) -> Option<String> {
    path.ancestors().skip(1).find_map(|folder| {
        let text = std::fs::read_to_string(folder.join(LICENCE_FILE)).ok()?;
        Some(text.lines().next()?.trim().to_owned())
    })
}

/// All different pieces in a folder, in the order of their paths.
fn find_pieces(folder: &Path, warnings: &mut Vec<String>) -> Result<Vec<Piece>, DataError> {
    let mut pieces = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for path in crate::walk::files(folder)?.files {
        let extension =
            path.extension().map(|extension| extension.to_string_lossy().to_lowercase()).unwrap_or_default();
        if !["mid", "midi", "mus", "wad"].contains(&extension.as_str()) {
            continue;
        }
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) => {
                warnings.push(format!("{}: cannot read: {error}", path.display()));
                continue;
            }
        };
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let lumps = if wad::is_wad(&bytes) {
            match wad::music_lumps(&path, &bytes) {
                Ok(lumps) => lumps.into_iter().map(|lump| (format!("{stem}-{}", lump.name), lump.bytes)).collect(),
                Err(error) => {
                    warnings.push(error.to_string());
                    continue;
                }
            }
        } else {
            vec![(stem, bytes)]
        };
        for (name, bytes) in lumps {
            if !seen.insert(blake3::hash(&bytes)) {
                continue;
            }
            match midi::read_score(&path, &name, &bytes) {
                Ok(score) => {
                    let name: String = name
                        .chars()
                        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
                        .collect();
                    let unique = if pieces.iter().any(|piece: &Piece| piece.name == name) {
                        format!("{name}-{}", pieces.len())
                    } else {
                        name
                    };
                    pieces.push(Piece { score, name: unique, path: path.clone(), licence: licence_near(&path) });
                }
                Err(error) => warnings.push(format!("{name}: {error}")),
            }
        }
    }
    Ok(pieces)
}

/// The arrangements of a piece: dealt out so that over the pieces all are used equally often.
fn arrangements_of(piece: usize, versions: usize) -> Vec<Option<&'static Arrangement>> {
    let others = versions.saturating_sub(1);
    // Steps that share no factor with the table's length visit all of it.
    let step = 13;
    std::iter::once(None)
        .chain((0..others).map(|version| Some(arrangement::numbered((piece * others + version) * step))))
        .take(versions)
        .collect()
}

fn render_piece(
    options: &RenderOptions,
    font: &Arc<SoundFont>,
    font_licence: Option<&str>,
    piece: &Piece,
    piece_index: usize,
    known: &BTreeMap<String, Track>,
) -> Result<Vec<Track>, DataError> {
    let mut tracks = Vec::new();
    for (version, arrangement) in arrangements_of(piece_index, options.versions).into_iter().enumerate() {
        let style = arrangement.map_or("as-written", |arrangement| arrangement.name);
        let source = format!("render:{}:{style}:{version}:{}s:seed{}", piece.name, options.seconds, options.seed);
        let relative = PathBuf::from("audio").join(format!("{}-{version}-{style}.flac", piece.name));
        let path = options.out.join(&relative);
        let mut random = ChaCha8Rng::from_seed(*blake3::hash(source.as_bytes()).as_bytes());
        let whole = match arrangement {
            None => perform::as_written(&piece.score, &mut random),
            Some(arrangement) => perform::arranged(&piece.score, arrangement, &mut random),
        };
        let mut track = bare_track(options, piece, font_licence, &source, relative);
        match perform::excerpt(&whole, options.seconds, &mut random) {
            None => track.dropped = Some("too few notes for an excerpt".into()),
            Some(excerpt) => {
                describe(&mut track, &excerpt, arrangement, &mut random);
                let hash = blake3::hash(format!("{excerpt:?}").as_bytes()).to_hex();
                track.notes.push(format!("performance {}", &hash[..16]));
                let same = known.get(&source).filter(|known| known.notes == track.notes && !known.sha256.is_empty());
                match same.filter(|known| sha256_of(&path).is_ok_and(|hash| hash == known.sha256)) {
                    Some(known) => {
                        track.seconds = known.seconds;
                        track.channels = known.channels;
                        track.sha256.clone_from(&known.sha256);
                    }
                    None => write_audio(&mut track, &path, &play(font, &excerpt, options.seconds)?)?,
                }
                track.id = id_of_sha256(&track.sha256);
            }
        }
        tracks.push(track);
    }
    Ok(tracks)
}

fn write_audio(track: &mut Track, path: &Path, clip: &AudioClip) -> Result<(), DataError> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(DataError::io(folder, "create the folder"))?;
    }
    mambo_audio::write(path, clip, AudioFormat::Flac, true)?;
    track.seconds = clip.seconds();
    track.channels = clip.channel_count() as u32;
    track.sha256 = sha256_of(path)?;
    Ok(())
}

fn bare_track(
    options: &RenderOptions,
    piece: &Piece,
    font_licence: Option<&str>,
    source: &str,
    path: PathBuf,
) -> Track {
    let licence = options.licence.clone().or_else(|| match (piece.licence.as_deref(), font_licence) {
        (Some(score), Some(font)) if score != font => Some(format!("{score} AND {font}")),
        (score, font) => score.or(font).map(str::to_owned),
    });
    let file = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    // All versions of a piece stay together; about a twelfth of the pieces is held out.
    let held_out = blake3::hash(piece.name.as_bytes()).as_bytes()[0].is_multiple_of(12);
    Track {
        id: id_of_source(source),
        path,
        source: source.to_owned(),
        sha256: String::new(),
        licence,
        attribution: Attribution { artist: None, title: Some(piece.score.title.clone()) },
        seconds: 0.0,
        sample_rate: RATE,
        channels: 0,
        split: if held_out { Split::SeenArtist } else { Split::Train },
        split_group: format!("score:{}", piece.name),
        tier: "R".into(),
        captions: Vec::new(),
        tags: Vec::new(),
        score: None,
        notes: vec![format!("rendered from {} with {}", file(&piece.path), file(&options.sound_font))],
        dropped: None,
    }
}

fn describe(track: &mut Track, excerpt: &Performance, arrangement: Option<&Arrangement>, random: &mut ChaCha8Rng) {
    let mut instruments = excerpt.score.instruments();
    if excerpt.engine == Engine::Chip {
        instruments = words::chip_instruments(&excerpt.score);
    }
    let (captions, tags) = words::describe(&instruments, arrangement, random);
    track.captions = captions;
    track.tags = tags;
    track.score = Some(ScoreFacts {
        beats_per_minute: (excerpt.score.beats_per_minute() * excerpt.felt * 10.0).round() / 10.0,
        key: excerpt.score.key(),
        instruments,
        notes_per_second: (excerpt.score.notes_per_second() * 100.0).round() / 100.0,
    });
}

/// Plays, fades the ends and brings to the common loudness.
fn play(font: &Arc<SoundFont>, excerpt: &Performance, seconds: f64) -> Result<AudioClip, DataError> {
    let channels = match excerpt.engine {
        Engine::SoundFont => synth::play(font, &excerpt.score, RATE, seconds)?.to_vec(),
        Engine::Chip => vec![chip::play(&excerpt.score, RATE, seconds)],
    };
    let mut clip = AudioClip { sample_rate: RATE, channels };
    let loudness = mambo_audio::measure(&clip);
    let peak = clip.channels.iter().flatten().fold(1e-6_f32, |peak, sample| peak.max(sample.abs()));
    let wanted = if loudness.integrated_lufs.is_finite() {
        10.0_f64.powf((TARGET_LUFS - loudness.integrated_lufs) / 20.0) as f32
    } else {
        1.0
    };
    let gain = wanted.min(PEAK / peak);
    let (fade_in, fade_out) = (RATE as usize / 200, RATE as usize / 20);
    for channel in &mut clip.channels {
        let frames = channel.len();
        for (index, sample) in channel.iter_mut().enumerate() {
            let rising = (index as f32 / fade_in as f32).min(1.0);
            let falling = ((frames - index) as f32 / fade_out as f32).min(1.0);
            *sample *= gain * rising * falling;
        }
    }
    Ok(clip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_arrangements_are_used_and_a_piece_never_gets_one_twice() {
        let mut counts = BTreeMap::new();
        for piece in 0..94 {
            let dealt = arrangements_of(piece, 4);
            assert_eq!((dealt.len(), dealt[0]), (4, None));
            let names: Vec<&str> = dealt.iter().flatten().map(|arrangement| arrangement.name).collect();
            assert!(names[0] != names[1] && names[1] != names[2] && names[0] != names[2]);
            names.into_iter().for_each(|name| *counts.entry(name).or_insert(0) += 1);
        }
        assert_eq!(counts.len(), arrangement::COUNT);
        assert!(counts.values().all(|&count| (7..=10).contains(&count)), "{counts:?}");
    }
}
