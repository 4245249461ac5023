//! `mambo data fetch debian`: the music files of the embedded table, taken out of Debian packages.
//!
//! Nothing is installed. Files are verified by SHA-256; a file of another package version is kept with
//! a note. Finished packages are remembered, so an interrupted fetch continues where it stopped.

use super::package::{extract, local_path, obtain, sha256_of, sha256_of_text};
use super::table::{Row, Song, songs};
use crate::error::DataError;
use crate::manifest::{
    Attribution, Caption, CaptionSource, Manifest, ManifestSummary, Track, id_of_sha256, id_of_source,
};
use crate::progress::{Clock, Progress, Report};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What to fetch and where to.
#[derive(Debug, Clone)]
pub struct DebianOptions {
    /// The corpus folder; gets `manifest.jsonl` and one folder a package.
    pub out: PathBuf,
    /// Also the share-alike tier B; the permissive tier A always.
    pub with_tier_b: bool,
    /// Folder with already downloaded `.deb` files, looked into before downloading.
    pub debs: Option<PathBuf>,
}

/// What a fetch brought.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FetchSummary {
    /// Where the manifest is.
    pub manifest: PathBuf,
    /// Counts over it.
    pub counts: ManifestSummary,
    /// Things a person should know: other versions, missing files.
    pub warnings: Vec<String>,
}

/// What is remembered of an extracted package, beside its files.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PackageRecord {
    version: String,
    /// SHA-256 by table path.
    files: BTreeMap<String, String>,
}

/// Genre tags in the files that say where the music is used, not what it is.
const NO_GENRES: [&str; 5] = ["Game", "Music", "Sound FX", "VGM", "Widelands"];
const RECORD_NAME: &str = "extracted.json";

/// Fetches the music, writes the manifest, and says what came.
///
/// # Errors
/// `apt-get` or `dpkg-deb` is missing where needed, or the corpus folder cannot be written. A package
/// that cannot be had is not an error: its tracks are recorded as dropped, with the reason.
pub fn fetch_debian(options: &DebianOptions, report: &mut Report<'_>) -> Result<FetchSummary, DataError> {
    std::fs::create_dir_all(&options.out).map_err(DataError::io(&options.out, "create the corpus folder"))?;
    let songs: Vec<Song> =
        songs()?.into_iter().filter(|song| options.with_tier_b || song.first().tier == "A").collect();
    let mut packages: Vec<(String, Vec<&Song>)> = Vec::new();
    for song in &songs {
        match packages.iter_mut().find(|(name, _)| *name == song.first().package) {
            Some((_, members)) => members.push(song),
            None => packages.push((song.first().package.clone(), vec![song])),
        }
    }
    let mut clock = Clock::start();
    let mut warnings = Vec::new();
    let mut tracks = Vec::new();
    let total = packages.len() as u64;
    for (done, (package, songs)) in packages.iter().enumerate() {
        let seconds_left = clock.seconds_left((packages.len() - done) as f64);
        report(&Progress { stage: "fetch", item: package.clone(), done: done as u64, total, seconds_left });
        let rows: Vec<&Row> = songs.iter().flat_map(|song| &song.rows).collect();
        let folder = options.out.join(package);
        match bring_package(package, &rows, &folder, options) {
            Ok((record, fresh)) => {
                if fresh {
                    clock.add(1.0);
                }
                for song in songs {
                    tracks.push(track_of(song, &record, &options.out, &mut warnings)?);
                }
            }
            Err(error @ (DataError::ProgramMissing { .. } | DataError::Io { .. })) => return Err(error),
            Err(error) => {
                warnings.push(format!("{package}: {error}"));
                tracks.extend(songs.iter().map(|song| dropped(song, &error.to_string())));
            }
        }
    }
    report(&Progress { stage: "fetch", item: "manifest".into(), done: total, total, seconds_left: None });
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    let manifest = Manifest { folder: options.out.clone(), tracks };
    let path = manifest.save()?;
    Ok(FetchSummary { manifest: path, counts: manifest.summary(), warnings })
}

/// Makes sure that the package's files are in `folder`; true if they had to be extracted.
fn bring_package(
    package: &str,
    rows: &[&Row],
    folder: &Path,
    options: &DebianOptions,
) -> Result<(PackageRecord, bool), DataError> {
    if let Some(record) = verified_record(folder, rows) {
        return Ok((record, false));
    }
    let download_folder = tempfile::Builder::new()
        .prefix(".download-")
        .tempdir_in(&options.out)
        .map_err(DataError::io(&options.out, "create a temporary folder in"))?;
    let version = &rows[0].version;
    let deb = obtain(package, version, options.debs.as_deref(), download_folder.path())?;
    let wanted: Vec<&str> = rows.iter().map(|row| row.path.as_str()).collect();
    let extraction = extract(&deb, package, &wanted, folder)?;
    let record = PackageRecord { version: extraction.version, files: extraction.hashes };
    let text = serde_json::to_vec_pretty(&record).map_err(|error| DataError::io(folder, "write")(error.into()))?;
    crate::atomic::write_bytes_atomically(&folder.join(RECORD_NAME), &text)?;
    Ok((record, true))
}

/// The record of an earlier extraction, if all wanted files are still there with the same content.
fn verified_record(folder: &Path, rows: &[&Row]) -> Option<PackageRecord> {
    let text = std::fs::read(folder.join(RECORD_NAME)).ok()?;
    let record: PackageRecord = serde_json::from_slice(&text).ok()?;
    for row in rows {
        let expected = record.files.get(&row.path)?;
        if sha256_of(&folder.join(local_path(&row.path))).ok()? != *expected {
            return None;
        }
    }
    Some(record)
}

fn source_of(row: &Row, version: &str) -> String {
    format!("debian:{}={version}:{}", row.package, row.path)
}

/// The manifest row of a song before anything is known about its files.
fn bare_track(song: &Song, version: &str) -> Track {
    let row = song.first();
    let source = source_of(row, version);
    let mut tags: Vec<String> = Vec::new();
    let genre = if NO_GENRES.contains(&row.genre.as_str()) { "" } else { &row.genre };
    for words in [genre, &row.style_words] {
        for tag in words.split([',', ';', '/', '+']).map(str::trim).filter(|tag| !tag.is_empty()) {
            let tag = tag.to_lowercase();
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
    }
    let captions = [genre, &row.style_words]
        .into_iter()
        .filter(|text| !text.is_empty())
        .map(|text| Caption { text: text.to_owned(), source: CaptionSource::Metadata })
        .collect();
    let present = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Track {
        id: id_of_source(&source),
        path: Path::new(&row.package).join(local_path(&row.path)),
        source,
        sha256: String::new(),
        licence: present(&row.licence),
        attribution: Attribution { artist: present(&row.artist), title: present(row.song_title()) },
        seconds: row.seconds,
        sample_rate: row.sample_rate,
        channels: row.channels,
        split: song.split,
        split_group: row.split_group.clone(),
        tier: row.tier.clone(),
        captions,
        tags,
        score: None,
        notes: Vec::new(),
        dropped: None,
    }
}

fn dropped(song: &Song, reason: &str) -> Track {
    let mut track = bare_track(song, &song.first().version);
    track.dropped = Some(reason.to_owned());
    track
}

fn track_of(song: &Song, record: &PackageRecord, out: &Path, warnings: &mut Vec<String>) -> Result<Track, DataError> {
    let mut track = bare_track(song, &record.version);
    for row in &song.rows {
        let Some(hash) = record.files.get(&row.path) else {
            let reason = format!("package version {} has no file {}", record.version, row.path);
            warnings.push(format!("{}: {reason}", row.package));
            track.dropped = Some(reason);
            return Ok(track);
        };
        if *hash != row.sha256 {
            let note = format!(
                "content differs from the table: package version {} here, {} there; kept",
                record.version, row.version
            );
            warnings.push(format!("{}: {}: {note}", row.package, row.path));
            track.notes.push(note);
        }
        track.sha256.clone_from(hash);
    }
    if song.rows.len() > 1 {
        mix_song(song, record, out, &mut track)?;
    }
    track.id = id_of_sha256(&track.sha256);
    if !track.notes.is_empty() && track.dropped.is_none() {
        measure_again(out, &mut track);
    }
    Ok(track)
}

/// Sums the stems of a song into one file beside them.
fn mix_song(song: &Song, record: &PackageRecord, out: &Path, track: &mut Track) -> Result<(), DataError> {
    let package_folder = out.join(&song.first().package);
    let stems: Vec<PathBuf> = song.rows.iter().map(|row| package_folder.join(local_path(&row.path))).collect();
    // Named by the stems' content, so that an existing mix is known to be of these stems.
    let contents: Vec<&str> =
        song.rows.iter().filter_map(|row| record.files.get(&row.path).map(String::as_str)).collect();
    let name = format!("mix-{}.flac", id_of_sha256(&sha256_of_text(&contents.join("+"))));
    let relative = track.path.with_file_name(name);
    let target = out.join(&relative);
    if !target.is_file()
        && let Err(reason) = super::mix::mix_stems(&stems, &target)
    {
        track.dropped = Some(format!("the stems cannot be mixed: {reason}"));
        return Ok(());
    }
    track.path = relative;
    track.sha256 = sha256_of(&target)?;
    let names: Vec<&str> = song.rows.iter().map(|row| row.path.rsplit('/').next().unwrap_or(&row.path)).collect();
    track.notes.push(format!("mixed from the stems {}", names.join(" and ")));
    Ok(())
}

/// Replaces the table's duration, rate and channels where the file is not the table's.
fn measure_again(out: &Path, track: &mut Track) {
    match crate::probe::probe(&out.join(&track.path)) {
        Ok(facts) => {
            track.seconds = facts.seconds;
            track.sample_rate = facts.sample_rate;
            track.channels = facts.channels;
        }
        Err(reason) => track.dropped = Some(reason.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_that_cannot_be_had_is_recorded_not_fatal() {
        let song = &songs().unwrap()[0];
        let track = dropped(song, "no network");
        assert_eq!(track.dropped.as_deref(), Some("no network"));
        assert_eq!(track.licence.as_deref(), Some("BSD-2-Clause"));
        assert_eq!(track.tags, ["techno arcade"]);
    }

    #[test]
    fn another_content_is_kept_with_a_note_and_a_missing_file_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let song = songs().unwrap().into_iter().find(|song| song.rows.len() == 1).unwrap();
        let mut record = PackageRecord { version: "9".into(), files: BTreeMap::new() };
        let mut warnings = Vec::new();
        let track = track_of(&song, &record, folder.path(), &mut warnings).unwrap();
        assert!(track.dropped.unwrap().contains("has no file"));
        let path = folder.path().join(&song.first().package).join(local_path(&song.first().path));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut wav = mambo_audio::AudioWriter::create(&path, mambo_audio::AudioFormat::Wav16, 8000, 1, false).unwrap();
        wav.write(&mambo_audio::AudioClip { sample_rate: 8000, channels: vec![vec![0.25; 4000]] }).unwrap();
        wav.finish().unwrap();
        record.files.insert(song.first().path.clone(), "ab".repeat(32));
        let track = track_of(&song, &record, folder.path(), &mut warnings).unwrap();
        assert_eq!((track.dropped, track.sample_rate, track.seconds), (None, 8000, 0.5));
        assert!(track.notes[0].contains("differs from the table"));
        assert_eq!(warnings.len(), 2);
    }
}
