//! `mambo data add DIR`: anyone's own folder becomes part of a corpus.
//!
//! Every file is judged by its content, read to its end, and either kept or recorded as dropped with
//! the reason. Captions come from sidecar files, caption lists and the tags in the files. The music
//! stays where it is; only the manifest is written.

mod captions;

use crate::error::DataError;
use crate::fetch::sha256_of;
use crate::manifest::{
    Attribution, Caption, CaptionSource, Manifest, ManifestSummary, Split, Track, id_of_sha256, id_of_source,
};
use crate::probe::{FileFacts, probe};
use crate::progress::{Clock, Progress, Report};
use captions::{CaptionBook, Said};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Names that promise sound: such a file is recorded even if it turns out to hold none.
const SOUND_EXTENSIONS: [&str; 21] = [
    "mp3", "mp2", "flac", "ogg", "oga", "opus", "m4a", "mp4", "aac", "wav", "wave", "aif", "aiff", "wma", "ape", "wv",
    "mka", "caf", "au", "alac", "webm",
];
/// Shorter files teach nothing.
const MIN_SECONDS: f64 = 1.0;
/// Samples below this are silence.
const SILENCE: f32 = 1e-4;

/// What to add and how.
#[derive(Debug, Clone)]
pub struct AddOptions {
    /// The folder with music, searched recursively.
    pub folder: PathBuf,
    /// Corpus folder whose manifest gets the tracks; an existing manifest is extended.
    pub out: PathBuf,
    /// Licence of files that do not say their own.
    pub licence: Option<String>,
    /// Label for the tracks.
    pub tier: String,
    /// Share of groups (artists, folders) for validation, and the same for testing.
    pub held_out_share: f64,
}

/// What was added.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AddSummary {
    /// Where the manifest is.
    pub manifest: PathBuf,
    /// Tracks of this folder in use.
    pub kept: usize,
    /// Seconds in use.
    pub seconds: f64,
    /// Source and reason of each track of this folder that is not used.
    pub dropped: Vec<(String, String)>,
    /// Files that neither are nor claim to be sound.
    pub other_files: usize,
    /// Broken rows in caption lists and similar.
    pub warnings: Vec<String>,
    /// Counts over the whole manifest.
    pub counts: ManifestSummary,
}

impl AddSummary {
    /// Whether everything was usable; the exit code says so.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.dropped.is_empty() && self.warnings.is_empty()
    }
}

/// Adds a folder to a corpus.
///
/// # Errors
/// The folder cannot be listed, an existing manifest is damaged, or the new one cannot be written. A bad
/// file is never an error.
pub fn add(options: &AddOptions, report: &mut Report<'_>) -> Result<AddSummary, DataError> {
    let walk = crate::walk::files(&options.folder)?;
    std::fs::create_dir_all(&options.out).map_err(DataError::io(&options.out, "create the corpus folder"))?;
    let mut warnings = Vec::new();
    let book = CaptionBook::open(&walk, &mut warnings);
    let root = absolute(&options.folder)?;
    let candidates: Vec<&PathBuf> = walk.files.iter().filter(|path| !book.is_caption_file(path)).collect();

    let mut tracks = Vec::new();
    let mut other_files = 0;
    let mut clock = Clock::start();
    let total = candidates.len() as u64;
    let at_once = rayon::current_num_threads().max(1) * 4;
    for (index, chunk) in candidates.chunks(at_once).enumerate() {
        let done = index * at_once;
        let seconds_left = clock.seconds_left((candidates.len() - done) as f64);
        let item = chunk[0].display().to_string();
        report(&Progress { stage: "add", item, done: done as u64, total, seconds_left });
        let judged: Vec<Option<Track>> = chunk.par_iter().map(|path| judge(path, &root, options, &book)).collect();
        other_files += judged.iter().filter(|track| track.is_none()).count();
        tracks.extend(judged.into_iter().flatten());
        clock.add(chunk.len() as f64);
    }
    for (path, reason) in &walk.refused {
        tracks.push(dropped_track(path, &root, options, reason));
    }
    for folder in walk.folders.iter().filter(|folder| claims_sound(folder)) {
        tracks.push(dropped_track(folder, &root, options, "a folder, not a sound file (its content is searched)"));
    }
    for missing in book.missing() {
        tracks.push(dropped_track(
            &missing.path,
            &root,
            options,
            &format!("named in {}, but there is no such file", missing.list),
        ));
    }
    drop_duplicates(&mut tracks);
    hold_out(&mut tracks, options.held_out_share);

    let kept: Vec<&Track> = tracks.iter().filter(|track| track.dropped.is_none()).collect();
    let mut summary = AddSummary {
        manifest: PathBuf::new(),
        kept: kept.len(),
        seconds: kept.iter().map(|track| track.seconds).sum(),
        dropped: tracks.iter().filter_map(|track| Some((track.source.clone(), track.dropped.clone()?))).collect(),
        other_files,
        warnings,
        counts: ManifestSummary::default(),
    };
    let manifest = merged(&options.out, tracks)?;
    summary.manifest = manifest.save()?;
    summary.counts = manifest.summary();
    report(&Progress { stage: "add", item: "manifest".into(), done: total, total, seconds_left: None });
    Ok(summary)
}

/// The rows of an existing manifest, with those of the same source replaced.
fn merged(out: &Path, tracks: Vec<Track>) -> Result<Manifest, DataError> {
    let mut manifest = if Manifest::file_of(out).is_file() {
        Manifest::load(out)?
    } else {
        Manifest { folder: out.to_path_buf(), tracks: Vec::new() }
    };
    out.clone_into(&mut manifest.folder);
    let fresh: std::collections::HashSet<&str> = tracks.iter().map(|track| track.source.as_str()).collect();
    manifest.tracks.retain(|track| !fresh.contains(track.source.as_str()));
    manifest.tracks.extend(tracks);
    Ok(manifest)
}

fn absolute(path: &Path) -> Result<PathBuf, DataError> {
    std::fs::canonicalize(path).map_err(DataError::io(path, "open the folder"))
}

fn claims_sound(path: &Path) -> bool {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    extension.is_some_and(|extension| SOUND_EXTENSIONS.contains(&extension.as_str()))
}

/// The path with the folder given by the user made absolute; links inside it are left as they are.
fn absolute_within(path: &Path, root: &Path, options: &AddOptions) -> PathBuf {
    path.strip_prefix(&options.folder).map_or_else(|_| path.to_path_buf(), |inside| root.join(inside))
}

fn bare_track(path: &Path, root: &Path, options: &AddOptions) -> Track {
    let path = absolute_within(path, root, options);
    let inside = path.strip_prefix(root).unwrap_or(&path);
    let folder = inside.parent().filter(|folder| !folder.as_os_str().is_empty());
    let group = folder.unwrap_or(inside).to_string_lossy().into_owned();
    let source = format!("file:{}", path.to_string_lossy());
    Track {
        id: id_of_source(&source),
        source,
        sha256: String::new(),
        licence: options.licence.clone(),
        attribution: Attribution::default(),
        seconds: 0.0,
        sample_rate: 0,
        channels: 0,
        split: Split::Train,
        split_group: group,
        tier: options.tier.clone(),
        captions: Vec::new(),
        tags: Vec::new(),
        score: None,
        notes: Vec::new(),
        dropped: None,
        path,
    }
}

fn dropped_track(path: &Path, root: &Path, options: &AddOptions, reason: &str) -> Track {
    Track { dropped: Some(reason.to_owned()), ..bare_track(path, root, options) }
}

/// Reads a file through; a decoder that panics on it counts as a reason, not as an end of the run.
fn probe_safely(path: &Path) -> Result<FileFacts, String> {
    std::panic::catch_unwind(|| probe(path))
        .map_err(|_| "the decoder gave up on it".to_owned())?
        .map_err(|error| error.to_string())
}

/// The track of a file; `None` if it neither is nor claims to be sound.
fn judge(path: &Path, root: &Path, options: &AddOptions, book: &CaptionBook) -> Option<Track> {
    let said = book.about(path);
    let facts = match probe_safely(path) {
        Ok(facts) => facts,
        Err(_) if !claims_sound(path) && said.is_empty() => return None,
        Err(reason) => return Some(dropped_track(path, root, options, &reason)),
    };
    let mut track = bare_track(path, root, options);
    track.seconds = facts.seconds;
    track.sample_rate = facts.sample_rate;
    track.channels = facts.channels;
    match sha256_of(path) {
        Ok(hash) => {
            track.id = id_of_sha256(&hash);
            track.sha256 = hash;
        }
        Err(error) => track.dropped = Some(error.to_string()),
    }
    if facts.seconds < MIN_SECONDS {
        track.dropped = Some(format!("too short: {:.2} s, at least {MIN_SECONDS} s are needed", facts.seconds));
    } else if facts.peak < SILENCE {
        track.dropped = Some("silent from beginning to end".into());
    }
    describe(&mut track, &facts, said);
    Some(track)
}

/// Puts together what the file itself and the people around it say.
fn describe(track: &mut Track, facts: &FileFacts, said: Said) {
    let tag = |name: &str| facts.tags.get(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
    track.attribution =
        Attribution { artist: said.artist.or_else(|| tag("artist")), title: said.title.or_else(|| tag("title")) };
    if let Some(licence) = said.licence.or_else(|| tag("license")).or_else(|| tag("licence")) {
        track.licence = Some(licence);
    }
    if let Some(artist) = &track.attribution.artist {
        track.split_group = format!("artist:{}", artist.to_lowercase());
    }
    track.captions = said.captions;
    let mut add_tag = |text: &str| {
        let text = text.trim().to_lowercase();
        if !text.is_empty() && !track.tags.contains(&text) {
            track.tags.push(text);
        }
    };
    said.tags.iter().for_each(|tag| add_tag(tag));
    if let Some(genre) = tag("genre") {
        genre.split([',', ';', '/']).for_each(&mut add_tag);
        track.captions.push(Caption { text: genre, source: CaptionSource::Metadata });
    }
    if let Some(split) = said.split {
        track.split = split;
        track.notes.push(FIXED_SPLIT.into());
    }
}

/// Note on tracks whose split a caption list gives.
const FIXED_SPLIT: &str = "split given by its caption";

fn drop_duplicates(tracks: &mut [Track]) {
    let mut first: HashMap<String, String> = HashMap::new();
    for track in tracks.iter_mut().filter(|track| track.dropped.is_none()) {
        match first.get(&track.sha256) {
            Some(other) => track.dropped = Some(format!("the same content as {other}")),
            None => {
                first.insert(track.sha256.clone(), track.source.clone());
            }
        }
    }
}

/// A number in 0..1 that depends only on the text.
fn chance(text: &str) -> f64 {
    let bytes = *blake3::hash(text.as_bytes()).as_bytes();
    u64::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], 0]) as f64
        / (1_u64 << 56) as f64
}

/// Splits by group; within larger training groups single tracks are `seen-artist`.
fn hold_out(tracks: &mut [Track], share: f64) {
    let mut sizes: HashMap<String, usize> = HashMap::new();
    for track in tracks.iter().filter(|track| track.dropped.is_none()) {
        *sizes.entry(track.split_group.clone()).or_default() += 1;
    }
    // One group alone cannot be split from itself: everything stays in training.
    let many = sizes.len() > 2;
    for track in tracks.iter_mut().filter(|track| !track.notes.iter().any(|note| note == FIXED_SPLIT)) {
        let group = chance(&track.split_group);
        track.split = if many && group < share {
            Split::Test
        } else if many && group < 2.0 * share {
            Split::Valid
        } else if sizes.get(&track.split_group).is_some_and(|&size| size >= 5) && chance(&track.id) < share {
            Split::SeenArtist
        } else {
            Split::Train
        };
    }
}
