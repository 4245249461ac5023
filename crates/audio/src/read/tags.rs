//! Tags of all formats under one set of lower-case keys.

use std::collections::BTreeMap;

use symphonia::core::meta::{MetadataRevision, RawValue, StandardTag, Tag};

/// Longest text that is kept, in bytes.
const MAX_TEXT: usize = 16 * 1024;

/// Adds a tag. Several values of one key are joined by "; ".
pub(super) fn add(tags: &mut BTreeMap<String, String>, key: &str, value: &str) {
    let value = value.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    if key.is_empty() || key.len() > 64 || value.is_empty() || value.len() > MAX_TEXT {
        return;
    }
    let present = tags.entry(key.to_lowercase()).or_default();
    if present.is_empty() {
        value.clone_into(present);
    } else if !present.split("; ").any(|old| old == value) && present.len() + value.len() < MAX_TEXT {
        present.push_str("; ");
        present.push_str(value);
    }
}

/// Adds the texts of a RIFF `LIST` chunk of type `INFO`.
pub(super) fn from_riff_info(chunk: &[u8], tags: &mut BTreeMap<String, String>) {
    let Some(mut rest) = chunk.strip_prefix(b"INFO") else { return };
    while rest.len() >= 8 {
        let size = u32::from_le_bytes([rest[4], rest[5], rest[6], rest[7]]) as usize;
        let key = match &rest[..4] {
            b"INAM" => "title",
            b"IART" => "artist",
            b"IPRD" => "album",
            b"IGNR" => "genre",
            b"ICRD" => "date",
            b"ICMT" => "comment",
            b"ITRK" | b"IPRT" => "track",
            b"ICOP" => "copyright",
            _ => "",
        };
        let text = &rest[8..rest.len().min(size.saturating_add(8))];
        add(tags, key, &String::from_utf8_lossy(text));
        rest = rest.get(8usize.saturating_add(size).saturating_add(size & 1)..).unwrap_or(&[]);
    }
}

/// Adds what symphonia found.
pub(super) fn from_revision(revision: &MetadataRevision, tags: &mut BTreeMap<String, String>) {
    let per_track = revision.per_track.iter().flat_map(|track| &track.metadata.tags);
    for tag in revision.media.tags.iter().chain(per_track) {
        match standard(tag) {
            Some((key, value)) => add(tags, key, &value),
            None => add(tags, raw_key(tag), &tag.raw.value.to_string()),
        }
    }
}

/// The key of a tag without a common name. ID3v2 keeps the user's own keys in the description of `TXXX` frames.
fn raw_key(tag: &Tag) -> &str {
    let described = || {
        tag.raw.sub_fields.as_deref()?.iter().find_map(|field| match &field.value {
            RawValue::String(text) if field.field.eq_ignore_ascii_case("description") => Some(text.as_str()),
            _ => None,
        })
    };
    match tag.raw.key.as_str() {
        "TXXX" => described().unwrap_or("TXXX"),
        key => key,
    }
}

fn standard(tag: &Tag) -> Option<(&'static str, String)> {
    use StandardTag::*;
    let text = |key, value: &str| Some((key, value.to_string()));
    match tag.std.as_ref()? {
        TrackTitle(value) => text("title", value),
        Artist(value) => text("artist", value),
        Album(value) => text("album", value),
        AlbumArtist(value) => text("albumartist", value),
        Composer(value) => text("composer", value),
        Performer(value) => text("performer", value),
        Genre(value) => text("genre", value),
        Mood(value) => text("mood", value),
        Comment(value) => text("comment", value),
        Description(value) => text("description", value),
        Copyright(value) => text("copyright", value),
        License(value) => text("license", value),
        Lyrics(value) => text("lyrics", value),
        InitialKey(value) => text("key", value),
        Encoder(value) => text("encoder", value),
        RecordingDate(value) | ReleaseDate(value) | OriginalReleaseDate(value) => text("date", value),
        RecordingYear(year) | ReleaseYear(year) => Some(("date", year.to_string())),
        Bpm(value) => Some(("bpm", value.to_string())),
        TrackNumber(value) => Some(("track", value.to_string())),
        TrackTotal(value) => Some(("tracktotal", value.to_string())),
        DiscNumber(value) => Some(("disc", value.to_string())),
        _ => None,
    }
}
