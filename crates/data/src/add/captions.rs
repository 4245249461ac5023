//! What people wrote about the files of a folder.
//!
//! Beside `song.mp3`: `song.txt` or `song.mp3.txt` (each line a caption), `song.json` or `song.mp3.json`
//! (an object). For a whole folder: `captions.csv`, `captions.jsonl`, `captions.json` (also called
//! `metadata.*`) with a `path` and any of caption, captions, tags, title, artist, licence, split.

use crate::manifest::{Caption, CaptionSource, Split};
use crate::walk::Walk;
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};
use std::path::{Component, Path, PathBuf};

/// What is said about one file.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Said {
    pub captions: Vec<Caption>,
    pub tags: Vec<String>,
    pub title: Option<String>,
    pub artist: Option<String>,
    pub licence: Option<String>,
    pub split: Option<Split>,
}

impl Said {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn merge(&mut self, other: Self) {
        for caption in other.captions {
            if !self.captions.contains(&caption) {
                self.captions.push(caption);
            }
        }
        self.tags.extend(other.tags);
        self.title = self.title.take().or(other.title);
        self.artist = self.artist.take().or(other.artist);
        self.licence = self.licence.take().or(other.licence);
        self.split = self.split.or(other.split);
    }
}

/// A file that a list names and that does not exist.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Missing {
    pub path: PathBuf,
    pub list: String,
}

/// All captions of a folder.
#[derive(Debug, Default)]
pub(super) struct CaptionBook {
    said: HashMap<PathBuf, Said>,
    caption_files: HashSet<PathBuf>,
    missing: Vec<Missing>,
}

const LIST_STEMS: [&str; 2] = ["captions", "metadata"];

fn extension_of(path: &Path) -> String {
    path.extension().map(|extension| extension.to_string_lossy().to_lowercase()).unwrap_or_default()
}

impl CaptionBook {
    /// Reads all sidecars and lists; what cannot be understood is a warning.
    pub(super) fn open(walk: &Walk, warnings: &mut Vec<String>) -> Self {
        let mut book = Self::default();
        let files: HashSet<&PathBuf> = walk.files.iter().collect();
        let mut stems: HashMap<PathBuf, Vec<&PathBuf>> = HashMap::new();
        for path in &walk.files {
            if !["txt", "json", "jsonl", "csv"].contains(&extension_of(path).as_str()) {
                stems.entry(path.with_extension("")).or_default().push(path);
            }
        }
        for path in &walk.files {
            let extension = extension_of(path);
            let is_list =
                path.file_stem().is_some_and(|stem| LIST_STEMS.iter().any(|known| stem.eq_ignore_ascii_case(known)));
            if is_list && ["csv", "jsonl", "json"].contains(&extension.as_str()) {
                book.caption_files.insert(path.clone());
                book.read_list(path, &extension, &files, warnings);
            } else if extension == "txt" || extension == "json" {
                let base = path.with_extension("");
                let targets: Vec<&PathBuf> = match files.get(&base) {
                    Some(exact) => vec![*exact],
                    None => stems.get(&base).cloned().unwrap_or_default(),
                };
                if targets.is_empty() {
                    continue;
                }
                book.caption_files.insert(path.clone());
                match read_sidecar(path, &extension) {
                    Ok(said) => targets
                        .into_iter()
                        .for_each(|target| book.said.entry(target.clone()).or_default().merge(said.clone())),
                    Err(problem) => warnings.push(format!("{}: {problem}", path.display())),
                }
            }
        }
        book
    }

    /// Whether the file was read for its captions.
    pub(super) fn is_caption_file(&self, path: &Path) -> bool {
        self.caption_files.contains(path)
    }

    /// Everything said about a file.
    pub(super) fn about(&self, path: &Path) -> Said {
        self.said.get(path).cloned().unwrap_or_default()
    }

    /// Files that lists name and that are not there.
    pub(super) fn missing(&self) -> &[Missing] {
        &self.missing
    }

    fn read_list(&mut self, list: &Path, extension: &str, files: &HashSet<&PathBuf>, warnings: &mut Vec<String>) {
        let rows = match std::fs::read(list) {
            Ok(bytes) => rows_of(&bytes, extension),
            Err(error) => vec![Err(format!("cannot read: {error}"))],
        };
        let folder = list.parent().unwrap_or(Path::new(""));
        for row in rows {
            let (place, object) = match row {
                Ok(row) => row,
                Err(problem) => {
                    warnings.push(format!("{}: {problem}", list.display()));
                    continue;
                }
            };
            let name = ["path", "file", "filename", "file_name", "audio", "location"]
                .iter()
                .find_map(|key| object.get(*key)?.as_str());
            let Some(name) = name else {
                warnings.push(format!("{}, {place}: no `path`", list.display()));
                continue;
            };
            // A list speaks about its own folder only.
            let inside =
                Path::new(name).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
            if !inside {
                warnings.push(format!("{}, {place}: the path {name:?} leads out of the folder", list.display()));
                continue;
            }
            let path: PathBuf = folder.join(name).components().filter(|part| *part != Component::CurDir).collect();
            match said_in(&object) {
                Err(problem) => warnings.push(format!("{}, {place}: {problem}", list.display())),
                Ok(said) if files.contains(&path) => self.said.entry(path).or_default().merge(said),
                Ok(_) => {
                    let list = list.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                    if !self.missing.iter().any(|known| known.path == path) {
                        self.missing.push(Missing { path, list });
                    }
                }
            }
        }
    }
}

type Row = Result<(String, Map<String, Value>), String>;

/// The rows of a list as JSON objects, with where they stand.
fn rows_of(bytes: &[u8], extension: &str) -> Vec<Row> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    match extension {
        "csv" => csv_rows(bytes),
        "jsonl" => String::from_utf8_lossy(bytes)
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty())
            .map(|(index, line)| match serde_json::from_str(line) {
                Ok(object) => Ok((format!("line {}", index + 1), object)),
                Err(error) => Err(format!("line {}: not a JSON object: {error}", index + 1)),
            })
            .collect(),
        _ => json_rows(bytes),
    }
}

fn csv_rows(bytes: &[u8]) -> Vec<Row> {
    let mut reader = csv::ReaderBuilder::new().flexible(true).trim(csv::Trim::Headers).from_reader(bytes);
    let headers: Vec<String> = match reader.byte_headers() {
        Ok(headers) => headers.iter().map(|name| String::from_utf8_lossy(name).to_lowercase()).collect(),
        Err(error) => return vec![Err(format!("line 1: {error}"))],
    };
    reader
        .byte_records()
        .map(|record| {
            let record = record.map_err(|error| error.to_string())?;
            let line = record.position().map_or(0, csv::Position::line);
            let values = record.iter().map(|value| Value::String(String::from_utf8_lossy(value).into_owned()));
            Ok((format!("line {line}"), headers.iter().cloned().zip(values).collect()))
        })
        .collect()
}

/// A list of objects, or an object from paths to captions or objects.
fn json_rows(bytes: &[u8]) -> Vec<Row> {
    match serde_json::from_slice(bytes) {
        Err(error) => vec![Err(format!("not JSON: {error}"))],
        Ok(Value::Array(items)) => items
            .into_iter()
            .enumerate()
            .map(|(index, item)| match item {
                Value::Object(object) => Ok((format!("entry {}", index + 1), object)),
                _ => Err(format!("entry {}: expected an object", index + 1)),
            })
            .collect(),
        Ok(Value::Object(entries)) => entries
            .into_iter()
            .map(|(path, entry)| {
                let mut object = match entry {
                    Value::Object(object) => object,
                    caption @ (Value::String(_) | Value::Array(_)) => {
                        Map::from_iter([("captions".to_owned(), caption)])
                    }
                    _ => return Err(format!("entry {path:?}: expected a caption or an object")),
                };
                let place = format!("entry {path:?}");
                object.entry("path").or_insert(Value::String(path));
                Ok((place, object))
            })
            .collect(),
        Ok(_) => vec![Err("expected a list or an object".into())],
    }
}

fn read_sidecar(path: &Path, extension: &str) -> Result<Said, String> {
    let bytes = std::fs::read(path).map_err(|error| format!("cannot read: {error}"))?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    if extension == "json" {
        let object: Map<String, Value> =
            serde_json::from_slice(bytes).map_err(|error| format!("not a JSON object: {error}"))?;
        return said_in(&object);
    }
    let text = String::from_utf8_lossy(bytes);
    Ok(Said {
        captions: text.lines().filter_map(|line| caption(line, CaptionSource::Person)).collect(),
        ..Said::default()
    })
}

fn caption(text: &str, source: CaptionSource) -> Option<Caption> {
    let text: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    (!text.is_empty()).then_some(Caption { text, source })
}

/// One text or a list of texts; with `separators` a text is a list, too.
fn texts(value: Option<&Value>, separators: &[char]) -> Vec<String> {
    let split = |text: &str| -> Vec<String> {
        if separators.is_empty() { vec![text.to_owned()] } else { text.split(separators).map(str::to_owned).collect() }
    };
    match value {
        Some(Value::String(text)) => split(text),
        Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).flat_map(split).collect(),
        _ => Vec::new(),
    }
    .into_iter()
    .map(|text| text.trim().to_owned())
    .filter(|text| !text.is_empty())
    .collect()
}

fn said_in(object: &Map<String, Value>) -> Result<Said, String> {
    let source = match object.get("caption_source").and_then(Value::as_str).filter(|text| !text.is_empty()) {
        None => CaptionSource::Person,
        Some(name) => serde_json::from_value(Value::String(name.to_owned())).map_err(|_| {
            format!("unknown caption_source {name:?}: metadata, tagger, measurement, person, language-model or score")
        })?,
    };
    let split = match object.get("split").and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty()) {
        None => None,
        Some(name) => Some(
            Split::from_name(name)
                .ok_or_else(|| format!("unknown split {name:?}: train, seen-artist, valid or test"))?,
        ),
    };
    let mut said = Said { split, ..Said::default() };
    for key in ["caption", "captions", "text", "description", "prompt"] {
        said.captions.extend(texts(object.get(key), &[]).iter().filter_map(|text| caption(text, source)));
    }
    for key in ["tags", "tag", "genre", "genres", "keywords", "mood", "moods", "instrument", "instruments"] {
        said.tags.extend(texts(object.get(key), &[',', ';', '|']));
    }
    let one = |keys: &[&str]| keys.iter().find_map(|key| texts(object.get(*key), &[]).into_iter().next());
    said.title = one(&["title"]);
    said.artist = one(&["artist"]);
    said.licence = one(&["licence", "license"]);
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str, text: &str) {
        std::fs::write(folder.join(name), text).unwrap();
    }

    #[test]
    fn all_ways_to_say_something_are_heard() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        for name in ["a.mp3", "b.mp3", "c.wav", "d.ogg", "e.flac"] {
            write(at, name, "");
        }
        write(at, "a.txt", "slow piano\n\n  a  second line \n");
        write(at, "b.mp3.json", r#"{"description": "loud rock", "genre": "rock;metal", "license": "CC0-1.0"}"#);
        write(
            at,
            "captions.csv",
            "Path,caption,tags,split\nc.wav,\"strings, soft\",\"calm,slow\",valid\n./d.ogg,drums,,\nx.wav,gone,,\n../y.wav,out,,\n",
        );
        write(at, "captions.jsonl", "{\"path\": \"d.ogg\", \"captions\": [\"beat\"], \"artist\": \"Ann\"}\nnonsense\n");
        write(at, "metadata.json", r#"{"e.flac": "flute", "a.mp3": {"title": "A", "split": "nowhere"}}"#);
        write(at, "readme.txt", "no sidecar of anything");
        let mut warnings = Vec::new();
        let book = CaptionBook::open(&crate::walk::files(at).unwrap(), &mut warnings);
        let captions = |name: &str| {
            book.about(&at.join(name)).captions.into_iter().map(|caption| caption.text).collect::<Vec<_>>()
        };
        assert_eq!(captions("a.mp3"), ["slow piano", "a second line"]);
        assert_eq!(captions("b.mp3"), ["loud rock"]);
        let b = book.about(&at.join("b.mp3"));
        assert_eq!((b.tags, b.licence.as_deref()), (vec!["rock".into(), "metal".into()], Some("CC0-1.0")));
        let c = book.about(&at.join("c.wav"));
        assert_eq!((c.captions[0].text.as_str(), c.tags.len(), c.split), ("strings, soft", 2, Some(Split::Valid)));
        assert_eq!(captions("d.ogg"), ["drums", "beat"]);
        assert_eq!(book.about(&at.join("d.ogg")).artist.as_deref(), Some("Ann"));
        assert_eq!(captions("e.flac"), ["flute"]);
        assert_eq!(book.missing(), [Missing { path: at.join("x.wav"), list: "captions.csv".into() }]);
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        assert!(!book.is_caption_file(&at.join("readme.txt")) && book.is_caption_file(&at.join("a.txt")));
    }
}
