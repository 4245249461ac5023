//! Arrangements: what a piece becomes when its parts are given to other instruments.
//!
//! A table, so that the words of a caption and the sound they name stand side by side.

mod band;
mod chamber;

/// What the drums do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beat {
    /// As written, on this kit (a program of the percussion bank).
    Keep(u8),
    /// No drums.
    None,
    /// One of [`PATTERNS`] on this kit; as written where the piece has no bars to play it on.
    Pattern(&'static str, u8),
}

/// Who makes the sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// The SoundFont.
    SoundFont,
    /// Pulse, triangle and noise voices like those of old game consoles.
    Chip,
}

/// A way to play a piece.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arrangement {
    /// Short name, used in file names.
    pub name: &'static str,
    /// Genre or style words, each good for one phrasing.
    pub styles: &'static [&'static str],
    /// Words for the mood.
    pub moods: &'static [&'static str],
    /// Labels.
    pub tags: &'static [&'static str],
    /// Programs for the tune; one is drawn.
    pub lead: &'static [u8],
    /// Programs for chords and figures; dealt out in turn.
    pub harmony: &'static [u8],
    /// Programs for held notes; empty: left out.
    pub pad: &'static [u8],
    /// Programs for the bass; empty: left out.
    pub bass: &'static [u8],
    /// Percussion.
    pub beat: Beat,
    /// Tempo range in beats a minute that suits the style; absent: near the written one.
    pub tempo: Option<(f64, f64)>,
    /// Chords become root and fifth.
    pub power_chords: bool,
    /// Off-beats come late.
    pub swing: bool,
    /// Factor on the duration of notes.
    pub hold: f64,
    /// Factor on the force of notes.
    pub force: f64,
    /// Range of keys that the tune is moved into by octaves.
    pub lead_range: (u8, u8),
    /// The same for harmony and pads.
    pub harmony_range: (u8, u8),
    /// Sound source.
    pub engine: Engine,
}

/// One bar of sixteenths: percussion key and hits (`x` hit, `o` soft hit, `-` rest).
pub type Pattern = &'static [(u8, &'static str)];

/// Drum patterns by name. Keys: 36 kick, 38 snare, 37 rim, 39 clap, 42 closed hat, 46 open hat, 49
/// crash, 51 ride, 44 pedal hat, 70 maracas, 54 tambourine, 64 low conga, 63 high conga.
pub const PATTERNS: &[(&str, Pattern)] = &[
    ("rock", &[(36, "x-------x-x-----"), (38, "----x-------x---"), (42, "x-o-x-o-x-o-x-o-")]),
    (
        "metal",
        &[(36, "x-xxx-xxx-xxx-xx"), (38, "----x-------x---"), (49, "x---------------"), (51, "x---x---x---x---")],
    ),
    ("punk", &[(36, "x---x-x-x---x-x-"), (38, "--x---x---x---x-"), (46, "x-x-x-x-x-x-x-x-")]),
    (
        "house",
        &[(36, "x---x---x---x---"), (39, "----x-------x---"), (46, "--x---x---x---x-"), (42, "o-o-o-o-o-o-o-o-")],
    ),
    (
        "techno",
        &[(36, "x---x---x---x---"), (42, "--x---x---x---x-"), (38, "----o--o----o-o-"), (70, "oooooooooooooooo")],
    ),
    ("breakbeat", &[(36, "x-x-------xx----"), (38, "----x--o-o--x--o"), (42, "x-x-x-x-x-x-x-x-")]),
    ("hiphop", &[(36, "x------x--x-----"), (38, "----x-------x---"), (42, "x-x-x-x-x-x-x-xx")]),
    ("jazz", &[(51, "x---x-ox--x-x-ox"), (44, "----x-------x---"), (36, "o-------o-------")]),
    ("funk", &[(36, "x-x-------x--x--"), (38, "----x--o-o--x---"), (42, "xxxxx-xxxxxxx-xx")]),
    ("blues", &[(36, "x-------x-------"), (38, "----x-------x---"), (51, "x-o-x-o-x-o-x-o-")]),
    ("country", &[(36, "x-------x-------"), (37, "----x-------x---"), (42, "x-o-x-o-x-o-x-o-")]),
    (
        "reggae",
        &[(36, "--------x-------"), (37, "--------x-------"), (42, "--x---x---x---x-"), (54, "----x-------x---")],
    ),
    (
        "latin",
        &[
            (36, "x-----x-x-----x-"),
            (37, "x--x--x---x--x--"),
            (63, "--x---x---x---xx"),
            (64, "-------x-------x"),
            (70, "x-x-x-x-x-x-x-x-"),
        ],
    ),
    ("ballad", &[(36, "x-------x-o-----"), (37, "----x-------x---"), (42, "x-o-x-o-x-o-x-o-")]),
];

const PLAIN: Arrangement = Arrangement {
    name: "",
    styles: &[],
    moods: &[],
    tags: &[],
    lead: &[0],
    harmony: &[0],
    pad: &[],
    bass: &[],
    beat: Beat::None,
    tempo: None,
    power_chords: false,
    swing: false,
    hold: 1.0,
    force: 1.0,
    lead_range: (60, 88),
    harmony_range: (48, 76),
    engine: Engine::SoundFont,
};

/// How many arrangements there are.
pub const COUNT: usize = band::ARRANGEMENTS.len() + chamber::ARRANGEMENTS.len();

/// All arrangements.
pub fn all() -> impl Iterator<Item = &'static Arrangement> {
    band::ARRANGEMENTS.iter().chain(chamber::ARRANGEMENTS)
}

/// The arrangement of a number, counted round.
#[must_use]
pub fn numbered(index: usize) -> &'static Arrangement {
    let index = index % COUNT;
    band::ARRANGEMENTS.get(index).unwrap_or_else(|| &chamber::ARRANGEMENTS[index - band::ARRANGEMENTS.len()])
}

/// A pattern by name.
#[must_use]
pub fn pattern(name: &str) -> Option<Pattern> {
    PATTERNS.iter().find(|(known, _)| *known == name).map(|(_, pattern)| *pattern)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_fit_together() {
        for arrangement in all() {
            assert!(arrangement.styles.len() >= 2 && !arrangement.moods.is_empty() && !arrangement.tags.is_empty());
            assert!(!arrangement.lead.is_empty() && !arrangement.harmony.is_empty());
            assert!(arrangement.lead_range.1 - arrangement.lead_range.0 >= 12);
            assert!(arrangement.harmony_range.1 - arrangement.harmony_range.0 >= 12);
            if let Beat::Pattern(name, _) = arrangement.beat {
                assert!(pattern(name).is_some(), "{name}");
            }
            assert_eq!(all().filter(|other| other.name == arrangement.name).count(), 1);
        }
        for (name, pattern) in PATTERNS {
            assert!(
                pattern.iter().all(|(_, hits)| hits.len() == 16 && hits.chars().all(|c| "xo-".contains(c))),
                "{name}"
            );
        }
    }
}
