//! Whom to name: one line for every work that a model learned from, as licences with attribution ask.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::error::DataError;
use crate::manifest::{Manifest, Split, Track};

/// One work.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Credit {
    /// Licence tier.
    pub tier: String,
    /// Licence, empty if nobody said.
    pub licence: String,
    /// Artist, empty if unknown.
    pub artist: String,
    /// Title, empty if unknown.
    pub title: String,
    /// Where it came from; of rendered music the score and what played it.
    pub source: String,
    /// Tracks made from it: 1, or the number of rendered versions.
    pub tracks: usize,
    /// Their length in seconds, all together.
    pub seconds: f64,
}

/// The works behind the kept tracks of some splits and tiers (empty: all), in the order of their sources. Versions
/// rendered from one score are one work.
#[must_use]
pub fn credits(manifests: &[Manifest], splits: &[Split], tiers: &[String]) -> Vec<Credit> {
    let mut works: BTreeMap<String, Credit> = BTreeMap::new();
    let wanted = |track: &&Track| {
        (splits.is_empty() || splits.contains(&track.split)) && (tiers.is_empty() || tiers.contains(&track.tier))
    };
    for track in manifests.iter().flat_map(Manifest::kept).filter(wanted) {
        let source = match &track.score {
            Some(_) => {
                let played = track.notes.iter().find(|note| note.starts_with("rendered from"));
                format!("{}, {}", track.split_group, played.map_or("rendered", String::as_str))
            }
            None => track.source.clone(),
        };
        let work = works.entry(source.clone()).or_insert_with(|| Credit {
            tier: track.tier.clone(),
            licence: track.licence.clone().unwrap_or_default(),
            artist: track.attribution.artist.clone().unwrap_or_default(),
            title: track.attribution.title.clone().unwrap_or_default(),
            source,
            tracks: 0,
            seconds: 0.0,
        });
        work.tracks += 1;
        work.seconds += track.seconds;
    }
    works.into_values().collect()
}

/// The credits as a table with tabs between the columns and a heading.
///
/// # Errors
/// A cell cannot be written, which does not happen in memory.
pub fn table(credits: &[Credit]) -> Result<String, DataError> {
    let fail = |problem: String| DataError::Argument { what: "credits", problem };
    let mut writer = csv::WriterBuilder::new().delimiter(b'\t').from_writer(Vec::new());
    for credit in credits {
        let rounded = Credit { seconds: credit.seconds.round(), ..credit.clone() };
        writer.serialize(rounded).map_err(|error| fail(error.to_string()))?;
    }
    let bytes = writer.into_inner().map_err(|error| fail(error.to_string()))?;
    String::from_utf8(bytes).map_err(|error| fail(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Attribution, ScoreFacts};

    fn track(source: &str, tier: &str, split: Split, rendered: bool) -> Track {
        Track {
            id: source.into(),
            path: "x.ogg".into(),
            source: source.into(),
            sha256: String::new(),
            licence: Some("CC-BY-4.0".into()),
            attribution: Attribution { artist: Some("Ann\tLee".into()), title: Some("Song".into()) },
            seconds: 10.4,
            sample_rate: 44_100,
            channels: 2,
            split,
            split_group: "score:tune".into(),
            tier: tier.into(),
            captions: vec![],
            tags: vec![],
            score: rendered.then(|| ScoreFacts {
                beats_per_minute: 100.0,
                key: None,
                instruments: vec![],
                notes_per_second: 1.0,
            }),
            notes: vec!["rendered from a.wad with b.sf2".into()],
            dropped: None,
        }
    }

    #[test]
    fn works_are_named_once_and_only_what_was_heard() {
        let mut dropped = track("debian:d", "A", Split::Train, false);
        dropped.dropped = Some("broken".into());
        let manifest = Manifest {
            folder: ".".into(),
            tracks: vec![
                track("debian:b", "A", Split::Train, false),
                track("debian:a", "A", Split::Train, false),
                track("debian:c", "A", Split::Test, false),
                track("debian:e", "B", Split::Train, false),
                dropped,
                track("render:1", "R", Split::Train, true),
                track("render:2", "R", Split::Train, true),
            ],
        };
        let found = credits(&[manifest], &[Split::Train], &["A".into(), "R".into()]);
        let sources: Vec<&str> = found.iter().map(|credit| credit.source.as_str()).collect();
        assert_eq!(sources, ["debian:a", "debian:b", "score:tune, rendered from a.wad with b.sf2"]);
        assert_eq!((found[2].tracks, found[2].seconds), (2, 20.8));
        let text = table(&found).unwrap();
        assert!(text.starts_with("tier\tlicence\tartist\ttitle\tsource\ttracks\tseconds\n"));
        assert_eq!(text.lines().count(), 4);
        assert!(text.contains("\"Ann\tLee\"") && text.ends_with("\t2\t21.0\n"), "{text}");
    }
}
