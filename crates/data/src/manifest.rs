//! The corpus as a JSONL file: one row a track, kept or dropped, with its source, licence,
//! attribution, split and captions. Paths are relative to the manifest's folder, so that a corpus
//! can be moved; the file is always replaced as a whole.

use crate::atomic::write_atomically;
use crate::error::DataError;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// Which part of the corpus a track belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// Learned from.
    Train,
    /// Whole tracks held out from artists of the training split: tests fit, not style transfer.
    SeenArtist,
    /// Other artists, for choosing models.
    Valid,
    /// Other artists, for final figures only.
    Test,
}

impl Split {
    /// All splits, in the order they are listed in reports.
    pub const ALL: [Self; 4] = [Self::Train, Self::SeenArtist, Self::Valid, Self::Test];

    /// The name used in files and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::SeenArtist => "seen-artist",
            Self::Valid => "valid",
            Self::Test => "test",
        }
    }

    /// Parses [`Split::name`].
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|split| split.name() == name)
    }
}

/// Who said what a caption says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CaptionSource {
    /// Tags in the file, a table, a package description.
    Metadata,
    /// A music tagging network.
    Tagger,
    /// Signal measurements.
    Measurement,
    /// A human listener.
    Person,
    /// A language model, by rephrasing or by listening.
    LanguageModel,
    /// The score the audio was rendered from: exact.
    Score,
}

/// A text about a track.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Caption {
    /// The sentence or phrase.
    pub text: String,
    /// Who said so.
    pub source: CaptionSource,
}

/// Whom to name when the track, or something learned from it, is shared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attribution {
    /// Artist, composer or performer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artist: Option<String>,
    /// Title of the work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
}

/// What a score says exactly about the audio rendered from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScoreFacts {
    /// Beats per minute, weighted by time where it changes.
    pub beats_per_minute: f64,
    /// e.g. "A minor"; absent where the notes leave it open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Instruments by sounding time, the most heard first.
    pub instruments: Vec<String>,
    /// Note onsets a second over all parts.
    pub notes_per_second: f64,
}

/// One row of the manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Track {
    /// First 16 hexadecimal digits of the content's SHA-256 (of the source's name if there is no content).
    pub id: String,
    /// The audio file, relative to the manifest's folder.
    #[serde(with = "path_text")]
    pub path: PathBuf,
    /// Where it came from: `debian:PACKAGE=VERSION:PATH`, `file:PATH`, `render:...`.
    pub source: String,
    /// SHA-256 of the file, hexadecimal; empty if it could not be read.
    pub sha256: String,
    /// SPDX expression or the owner's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// Whom to name.
    #[serde(default)]
    pub attribution: Attribution,
    /// Duration in seconds; 0 if unknown because the track was dropped.
    pub seconds: f64,
    /// Frames a second in the file.
    pub sample_rate: u32,
    /// Channels in the file.
    pub channels: u32,
    /// Part of the corpus.
    pub split: Split,
    /// Tracks that must stay in one split, usually an artist.
    pub split_group: String,
    /// Licence tier ("A" permissive, "B" share-alike, "R" rendered) or the owner's label.
    pub tier: String,
    /// Texts about the whole track.
    #[serde(default)]
    pub captions: Vec<Caption>,
    /// Short labels: genre, style, instrument, mood.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Exact musical facts, for rendered tracks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<ScoreFacts>,
    /// What happened to it on the way (mixed from stems, unexpected hash, ...).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Why the track is not used; absent for a kept track.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped: Option<String>,
}

/// The id of content with this SHA-256.
#[must_use]
pub fn id_of_sha256(sha256_hex: &str) -> String {
    sha256_hex.chars().take(16).collect()
}

/// The id of a track without content: from the name of its source.
#[must_use]
pub fn id_of_source(source: &str) -> String {
    blake3::hash(source.as_bytes()).to_hex().chars().take(16).collect()
}

/// A manifest in memory with the folder its paths are relative to.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// Folder of the manifest file.
    pub folder: PathBuf,
    /// All rows, kept and dropped.
    pub tracks: Vec<Track>,
}

impl Manifest {
    /// File name used when a folder is given.
    pub const FILE_NAME: &'static str = "manifest.jsonl";

    /// The manifest file meant by `path`: itself, or `manifest.jsonl` inside a folder.
    #[must_use]
    pub fn file_of(path: &Path) -> PathBuf {
        if path.is_dir() { path.join(Self::FILE_NAME) } else { path.to_path_buf() }
    }

    /// Reads a manifest file, or the one in a folder.
    ///
    /// # Errors
    /// The file cannot be read, or a line is not a track row (named by its number).
    pub fn load(path: &Path) -> Result<Self, DataError> {
        let file_path = Self::file_of(path);
        let file = std::fs::File::open(&file_path).map_err(DataError::io(&file_path, "open the manifest"))?;
        let mut tracks = Vec::new();
        for (index, line) in BufReader::new(file).lines().enumerate() {
            let line = line.map_err(DataError::io(&file_path, "read"))?;
            if line.trim().is_empty() {
                continue;
            }
            tracks.push(serde_json::from_str(&line).map_err(|error| DataError::Row {
                path: file_path.clone(),
                line: index + 1,
                expected: "a JSON object describing a track",
                found: error.to_string(),
            })?);
        }
        let folder = file_path.parent().map_or_else(PathBuf::new, Path::to_path_buf);
        Ok(Self { folder, tracks })
    }

    /// Writes `manifest.jsonl` into [`Manifest::folder`], as a whole or not at all.
    ///
    /// # Errors
    /// Writing fails.
    pub fn save(&self) -> Result<PathBuf, DataError> {
        let path = self.folder.join(Self::FILE_NAME);
        write_atomically(&path, |writer| {
            for track in &self.tracks {
                serde_json::to_writer(&mut *writer, track)
                    .map_err(|error| DataError::io(&path, "write")(error.into()))?;
                writer.write_all(b"\n").map_err(DataError::io(&path, "write"))?;
            }
            Ok(())
        })?;
        Ok(path)
    }

    /// Where the audio of a row lies.
    #[must_use]
    pub fn audio_path(&self, track: &Track) -> PathBuf {
        self.folder.join(&track.path)
    }

    /// The rows in use.
    pub fn kept(&self) -> impl Iterator<Item = &Track> {
        self.tracks.iter().filter(|track| track.dropped.is_none())
    }

    /// The rows in use that belong to a split.
    pub fn kept_in(&self, split: Split) -> impl Iterator<Item = &Track> {
        self.kept().filter(move |track| track.split == split)
    }

    /// Tracks and seconds of each split, and the number of dropped rows.
    #[must_use]
    pub fn summary(&self) -> ManifestSummary {
        let mut summary = ManifestSummary::default();
        for split in Split::ALL {
            let (mut tracks, mut seconds) = (0, 0.0);
            for track in self.kept_in(split) {
                tracks += 1;
                seconds += track.seconds;
            }
            if tracks > 0 {
                summary.splits.push(SplitSummary { split, tracks, seconds });
            }
        }
        summary.kept = self.kept().count();
        summary.dropped = self.tracks.len() - summary.kept;
        summary
    }
}

/// Counts over a manifest.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ManifestSummary {
    /// One entry for each split that has tracks.
    pub splits: Vec<SplitSummary>,
    /// Rows in use.
    pub kept: usize,
    /// Rows with a reason not to be used.
    pub dropped: usize,
}

/// Counts over one split.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SplitSummary {
    /// Which split.
    pub split: Split,
    /// Rows in use.
    pub tracks: usize,
    /// Their total duration.
    pub seconds: f64,
}

/// Paths as JSON text. A name that is not valid UTF-8 is kept exactly as `bytes:` and
/// percent-encoding, since such names occur in real music folders.
mod path_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::path::{Path, PathBuf};

    const BYTES_PREFIX: &str = "bytes:";

    pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        match path.to_str() {
            Some(text) if !text.starts_with(BYTES_PREFIX) => serializer.serialize_str(text),
            _ => {
                let mut text = String::from(BYTES_PREFIX);
                for &byte in path.as_os_str().as_encoded_bytes() {
                    if byte.is_ascii_graphic() && byte != b'%' {
                        text.push(char::from(byte));
                    } else {
                        text.push_str(&format!("%{byte:02x}"));
                    }
                }
                serializer.serialize_str(&text)
            }
        }
    }

    pub fn deserialize<'d, D: Deserializer<'d>>(deserializer: D) -> Result<PathBuf, D::Error> {
        let text = String::deserialize(deserializer)?;
        let Some(encoded) = text.strip_prefix(BYTES_PREFIX) else {
            return Ok(PathBuf::from(text));
        };
        let mut bytes = Vec::with_capacity(encoded.len());
        let mut rest = encoded.as_bytes();
        while let Some((&first, tail)) = rest.split_first() {
            if first == b'%' {
                let digits = tail.get(..2).and_then(|pair| std::str::from_utf8(pair).ok());
                let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
                bytes.push(byte.ok_or_else(|| D::Error::custom("a path has a broken % sequence"))?);
                rest = &tail[2..];
            } else {
                bytes.push(first);
                rest = tail;
            }
        }
        from_bytes(bytes).ok_or_else(|| D::Error::custom("this system cannot hold a path that is not UTF-8"))
    }

    #[cfg(unix)]
    #[allow(clippy::unnecessary_wraps)] // the other systems can fail
    fn from_bytes(bytes: Vec<u8>) -> Option<PathBuf> {
        use std::os::unix::ffi::OsStringExt;
        Some(std::ffi::OsString::from_vec(bytes).into())
    }

    #[cfg(not(unix))]
    fn from_bytes(bytes: Vec<u8>) -> Option<PathBuf> {
        String::from_utf8(bytes).ok().map(PathBuf::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(path: PathBuf) -> Track {
        Track {
            id: "0123456789abcdef".into(),
            path,
            source: "file:x".into(),
            sha256: String::new(),
            licence: None,
            attribution: Attribution { artist: Some("Ánna \"A\"".into()), title: None },
            seconds: 12.5,
            sample_rate: 44_100,
            channels: 2,
            split: Split::SeenArtist,
            split_group: "anna".into(),
            tier: "A".into(),
            captions: vec![Caption { text: "slow\npiano".into(), source: CaptionSource::LanguageModel }],
            tags: vec!["piano".into()],
            score: None,
            notes: vec![],
            dropped: None,
        }
    }

    #[test]
    fn rows_survive_a_round_trip_and_names_are_stable() {
        let folder = tempfile::tempdir().unwrap();
        let mut dropped = example("b.wav".into());
        dropped.dropped = Some("empty".into());
        let manifest = Manifest { folder: folder.path().into(), tracks: vec![example("a b/c%d.ogg".into()), dropped] };
        let path = manifest.save().unwrap();
        assert_eq!(Manifest::load(folder.path()).unwrap(), manifest);
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert!(text.contains("\"split\":\"seen-artist\"") && text.contains("\"source\":\"language-model\""));
        assert_eq!(
            manifest.summary().splits,
            vec![SplitSummary { split: Split::SeenArtist, tracks: 1, seconds: 12.5 }]
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_name_that_is_not_utf8_is_kept_exactly() {
        use std::os::unix::ffi::OsStringExt;
        let folder = tempfile::tempdir().unwrap();
        let name = PathBuf::from(std::ffi::OsString::from_vec(b"caf\xe9 50% \xff.wav".to_vec()));
        let manifest = Manifest { folder: folder.path().into(), tracks: vec![example(name.clone())] };
        manifest.save().unwrap();
        assert_eq!(Manifest::load(folder.path()).unwrap().tracks[0].path, name);
    }

    #[test]
    fn a_broken_row_is_named_by_its_line() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("manifest.jsonl"), "\n{\"id\": 3}\n").unwrap();
        let message = Manifest::load(folder.path()).unwrap_err().to_string();
        assert!(message.contains("line 2"), "{message}");
    }
}
