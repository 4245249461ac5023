//! The table of open music in Debian 12 that comes with the crate, and how its songs are split.
//!
//! The table's own split (by artist group) is fixed. Within its training groups whole tracks are held
//! out as `seen-artist`, chosen by hash over the whole table, so that fetching less never moves a track.

use crate::error::DataError;
use crate::manifest::Split;
use std::collections::BTreeMap;
use std::path::Path;

const TABLE: &str = include_str!("../../debian_music.tsv");
const HEADER: &str = "tier\tpackage\tversion\tpath\tbytes\tsha256\tseconds\tsample_rate\tchannels\tlicence\ttitle\tartist\tsplit_group\tsplit\tgenre\tstyle_words";
/// Share of a training group's duration that is held out.
const HELD_OUT_SHARE: f64 = 0.08;
/// Smaller groups are too small to give a track away.
const HELD_OUT_MIN_TRACKS: usize = 5;

/// One file of the table.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the names are those of the table's columns
pub struct Row {
    pub tier: String,
    pub package: String,
    pub version: String,
    /// Path inside the package; `a!b` is `b` inside the zip file `a`.
    pub path: String,
    pub bytes: u64,
    pub sha256: String,
    pub seconds: f64,
    pub sample_rate: u32,
    pub channels: u32,
    pub licence: String,
    pub title: String,
    pub artist: String,
    pub split_group: String,
    pub split: Split,
    pub genre: String,
    pub style_words: String,
}

impl Row {
    /// Whether the file is one stem of a song, to be summed with its siblings.
    #[must_use]
    pub fn is_stem(&self) -> bool {
        self.title.contains("stem") && self.title.contains('[')
    }

    /// What makes rows one song: the folder for stems, the file for all others.
    fn song(&self) -> (String, String) {
        let song =
            if self.is_stem() { self.path.rsplit_once('/').map_or("", |(folder, _)| folder) } else { &self.path };
        (self.package.clone(), song.to_owned())
    }

    /// Title without stem remarks.
    #[must_use]
    pub fn song_title(&self) -> &str {
        if self.is_stem() { self.title.split('[').next().unwrap_or("").trim() } else { &self.title }
    }
}

/// A field may be quoted like in CSV, with doubled quotes inside.
fn unquote(field: &str) -> String {
    match field.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(inner) => inner.replace("\"\"", "\""),
        None => field.to_owned(),
    }
}

fn parse_row(line: &str) -> Option<Row> {
    let fields: Vec<String> = line.split('\t').map(unquote).collect();
    let [
        tier,
        package,
        version,
        path,
        bytes,
        sha256,
        seconds,
        sample_rate,
        channels,
        licence,
        title,
        artist,
        split_group,
        split,
        genre,
        style_words,
    ]: [String; 16] = fields.try_into().ok()?;
    Some(Row {
        bytes: bytes.parse().ok()?,
        seconds: seconds.parse().ok()?,
        sample_rate: sample_rate.parse().ok()?,
        channels: channels.parse().ok()?,
        split: Split::from_name(&split)?,
        tier,
        package,
        version,
        path,
        sha256,
        licence,
        title,
        artist,
        split_group,
        genre,
        style_words,
    })
}

/// All files of the table, with the table's own split.
///
/// # Errors
/// The embedded table is damaged (its line is named).
pub fn rows() -> Result<Vec<Row>, DataError> {
    let broken = |line: usize, found: &str| DataError::Row {
        path: Path::new("debian_music.tsv").into(),
        line,
        expected: "16 tab-separated columns",
        found: found.to_owned(),
    };
    let mut lines = TABLE.lines();
    let header = lines.next().unwrap_or_default();
    if header != HEADER {
        return Err(broken(1, header));
    }
    lines.enumerate().map(|(index, line)| parse_row(line).ok_or_else(|| broken(index + 2, line))).collect()
}

/// A song: one row, or several stems of the same length.
#[derive(Debug, Clone, PartialEq)]
pub struct Song {
    /// Its files; more than one only for stems.
    pub rows: Vec<Row>,
    /// Part of the corpus, after holding out.
    pub split: Split,
}

impl Song {
    /// The row that speaks for the song.
    #[must_use]
    pub fn first(&self) -> &Row {
        &self.rows[0]
    }
}

/// Letters before the first digit or bracket: "theme1 raw" and "theme2" are called alike, and may
/// be versions of one piece.
fn name_root(row: &Row) -> String {
    let end = row.song_title().find(|c: char| c.is_ascii_digit() || "([".contains(c)).unwrap_or(row.song_title().len());
    row.song_title()[..end].chars().filter(|c| c.is_alphabetic()).flat_map(char::to_lowercase).collect()
}

/// The songs of the whole table in its order, split with tracks held out.
///
/// # Errors
/// As [`rows`].
pub fn songs() -> Result<Vec<Song>, DataError> {
    let mut songs: Vec<Song> = Vec::new();
    let mut place: BTreeMap<(String, String), usize> = BTreeMap::new();
    for row in rows()? {
        match place.entry(row.song()) {
            std::collections::btree_map::Entry::Occupied(entry) => songs[*entry.get()].rows.push(row),
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(songs.len());
                songs.push(Song { split: row.split, rows: vec![row] });
            }
        }
    }
    hold_out(&mut songs);
    Ok(songs)
}

fn hold_out(songs: &mut [Song]) {
    // Tiers are separate groups: a model trained on one tier alone needs its own held-out tracks.
    let mut groups: BTreeMap<(String, String), Vec<usize>> = BTreeMap::new();
    for (index, song) in songs.iter().enumerate() {
        if song.split == Split::Train {
            let row = song.first();
            groups.entry((row.tier.clone(), row.split_group.clone())).or_default().push(index);
        }
    }
    for members in groups.values().filter(|members| members.len() >= HELD_OUT_MIN_TRACKS) {
        let total: f64 = members.iter().map(|&index| songs[index].first().seconds).sum();
        let roots: Vec<String> = members.iter().map(|&index| name_root(songs[index].first())).collect();
        let mut candidates: Vec<(bool, [u8; 32], usize)> = members
            .iter()
            .zip(&roots)
            .map(|(&index, root)| {
                // Versions of one piece in both splits would make the held-out one easy.
                let has_sibling = roots.iter().filter(|other| *other == root).count() > 1;
                let row = songs[index].first();
                (has_sibling, *blake3::hash(format!("{}:{}", row.package, row.path).as_bytes()).as_bytes(), index)
            })
            .collect();
        candidates.sort();
        let mut held = 0.0;
        for (_, _, index) in candidates {
            let seconds = songs[index].first().seconds;
            // Half a track over the share is closer to it than half a track under it.
            if held == 0.0 || held + seconds / 2.0 <= total * HELD_OUT_SHARE {
                held += seconds;
                songs[index].split = Split::SeenArtist;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read_and_stems_become_songs() {
        let rows = rows().unwrap();
        let songs = songs().unwrap();
        assert_eq!(rows.len(), 321);
        let stems = rows.iter().filter(|row| row.is_stem()).count();
        assert!(stems >= 16, "{stems}");
        assert_eq!(songs.len(), rows.len() - stems / 2);
        assert!(songs.iter().all(|song| song.rows.len() == if song.first().is_stem() { 2 } else { 1 }));
        assert!(rows.iter().any(|row| row.artist == "Christian \"Crystan\" Hoffmann"));
        assert_eq!(
            songs.iter().find(|song| song.first().is_stem()).unwrap().first().song_title(),
            "Escape from chaosland"
        );
    }

    #[test]
    fn about_eight_percent_of_large_training_groups_is_held_out_and_nothing_else_moves() {
        let songs = songs().unwrap();
        let mut groups: BTreeMap<(&str, &str), Vec<&Song>> = BTreeMap::new();
        for song in &songs {
            if song.split == Split::SeenArtist {
                assert_eq!(song.first().split, Split::Train);
            } else {
                assert_eq!(song.split, song.first().split);
            }
            if song.first().split == Split::Train {
                groups.entry((&song.first().tier, &song.first().split_group)).or_default().push(song);
            }
        }
        let (mut held_seconds, mut all_seconds) = (0.0, 0.0);
        for members in groups.values() {
            let held = members.iter().filter(|song| song.split == Split::SeenArtist).count();
            assert_eq!(held > 0, members.len() >= HELD_OUT_MIN_TRACKS);
            for song in members {
                all_seconds += song.first().seconds;
                if song.split == Split::SeenArtist {
                    held_seconds += song.first().seconds;
                }
            }
        }
        let share = held_seconds / all_seconds;
        assert!((0.05..0.11).contains(&share), "{share}");
    }
}
