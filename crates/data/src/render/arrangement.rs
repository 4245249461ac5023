//! Arrangements: what a piece becomes when its parts are given to other instruments.
//!
//! A table, so that the words of a caption and the sound they name stand side by side.

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
    ("metal", &[(36, "x-xxx-xxx-xxx-xx"), (38, "----x-------x---"), (49, "x---------------"), (51, "x---x---x---x---")]),
    ("punk", &[(36, "x---x-x-x---x-x-"), (38, "--x---x---x---x-"), (46, "x-x-x-x-x-x-x-x-")]),
    ("house", &[(36, "x---x---x---x---"), (39, "----x-------x---"), (46, "--x---x---x---x-"), (42, "o-o-o-o-o-o-o-o-")]),
    ("techno", &[(36, "x---x---x---x---"), (42, "--x---x---x---x-"), (38, "----o--o----o-o-"), (70, "oooooooooooooooo")]),
    ("breakbeat", &[(36, "x-x-------xx----"), (38, "----x--o-o--x--o"), (42, "x-x-x-x-x-x-x-x-")]),
    ("hiphop", &[(36, "x------x--x-----"), (38, "----x-------x---"), (42, "x-x-x-x-x-x-x-xx")]),
    ("jazz", &[(51, "x---x-ox--x-x-ox"), (44, "----x-------x---"), (36, "o-------o-------")]),
    ("funk", &[(36, "x-x-------x--x--"), (38, "----x--o-o--x---"), (42, "xxxxx-xxxxxxx-xx")]),
    ("blues", &[(36, "x-------x-------"), (38, "----x-------x---"), (51, "x-o-x-o-x-o-x-o-")]),
    ("country", &[(36, "x-------x-------"), (37, "----x-------x---"), (42, "x-o-x-o-x-o-x-o-")]),
    ("reggae", &[(36, "--------x-------"), (37, "--------x-------"), (42, "--x---x---x---x-"), (54, "----x-------x---")]),
    ("latin", &[(36, "x-----x-x-----x-"), (37, "x--x--x---x--x--"), (63, "--x---x---x---xx"), (64, "-------x-------x"), (70, "x-x-x-x-x-x-x-x-")]),
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

/// All arrangements.
pub const ARRANGEMENTS: &[Arrangement] = &[
    Arrangement { name: "piano", styles: &["solo piano", "classical piano piece"], moods: &["expressive", "gentle"], tags: &["piano", "solo", "classical", "instrumental"], bass: &[0], tempo: Some((70.0, 130.0)), harmony_range: (40, 79), ..PLAIN },
    Arrangement { name: "soft-piano", styles: &["slow soft piano ballad", "calm piano music"], moods: &["calm", "melancholic", "quiet"], tags: &["piano", "slow", "soft", "chillout"], pad: &[89], bass: &[0], tempo: Some((56.0, 76.0)), hold: 1.4, force: 0.62, harmony_range: (45, 76), ..PLAIN },
    Arrangement { name: "metal", styles: &["heavy metal", "metal", "hard rock and metal"], moods: &["aggressive", "heavy", "driving"], tags: &["metal", "heavy metal", "hard rock", "guitar", "loud", "fast"], lead: &[30, 29], harmony: &[30], bass: &[34], beat: Beat::Pattern("metal", 16), tempo: Some((120.0, 176.0)), power_chords: true, force: 1.25, lead_range: (60, 84), harmony_range: (40, 62), ..PLAIN },
    Arrangement { name: "rock", styles: &["rock", "classic rock", "guitar rock"], moods: &["energetic", "driving"], tags: &["rock", "classic rock", "guitar", "drums"], lead: &[29, 30], harmony: &[29, 27], bass: &[33, 34], beat: Beat::Pattern("rock", 8), tempo: Some((104.0, 146.0)), power_chords: true, force: 1.1, lead_range: (57, 84), harmony_range: (40, 67), ..PLAIN },
    Arrangement { name: "punk", styles: &["fast punk rock", "punk"], moods: &["raw", "fast", "rebellious"], tags: &["punk", "rock", "guitar", "fast", "loud"], lead: &[29], harmony: &[30, 29], bass: &[34], beat: Beat::Pattern("punk", 16), tempo: Some((160.0, 196.0)), power_chords: true, force: 1.25, lead_range: (57, 81), harmony_range: (40, 62), ..PLAIN },
    Arrangement { name: "house", styles: &["house", "electronic dance", "dance music"], moods: &["upbeat", "danceable"], tags: &["electronic", "dance", "house", "synth", "beat"], lead: &[81, 90], harmony: &[4, 90], pad: &[50, 89], bass: &[38], beat: Beat::Pattern("house", 25), tempo: Some((118.0, 128.0)), ..PLAIN },
    Arrangement { name: "techno", styles: &["techno", "electronic", "electronica"], moods: &["hypnotic", "dark", "pounding"], tags: &["techno", "electronic", "electronica", "synth", "beat", "fast"], lead: &[81, 80], harmony: &[81, 87], pad: &[95, 90], bass: &[39, 38], beat: Beat::Pattern("techno", 25), tempo: Some((128.0, 144.0)), force: 1.1, ..PLAIN },
    Arrangement { name: "breakbeat", styles: &["drum and bass", "breakbeat electronica"], moods: &["fast", "energetic"], tags: &["electronic", "drum and bass", "electro", "fast", "beats"], lead: &[87, 81], harmony: &[90, 5], pad: &[89, 94], bass: &[39], beat: Beat::Pattern("breakbeat", 24), tempo: Some((160.0, 176.0)), ..PLAIN },
    Arrangement { name: "hiphop", styles: &["hip-hop beat", "lo-fi hip-hop"], moods: &["laid-back", "chill"], tags: &["hip-hop", "beats", "chillout", "electric piano"], lead: &[11, 4], harmony: &[4, 5], pad: &[89], bass: &[33, 38], beat: Beat::Pattern("hiphop", 25), tempo: Some((78.0, 94.0)), force: 0.85, ..PLAIN },
    Arrangement { name: "ambient", styles: &["ambient", "ambient pads", "ambient soundscape"], moods: &["calm", "floating", "spacious"], tags: &["ambient", "slow", "synth", "chillout", "new age", "quiet"], lead: &[88, 94], harmony: &[89, 91], pad: &[89, 95], bass: &[89], tempo: Some((48.0, 66.0)), hold: 2.6, force: 0.6, ..PLAIN },
    Arrangement { name: "new-age", styles: &["new age", "meditative new age"], moods: &["peaceful", "dreamy"], tags: &["new age", "ambient", "flute", "harp", "soft"], lead: &[75, 73], harmony: &[46, 98], pad: &[88, 91], bass: &[], tempo: Some((58.0, 78.0)), hold: 1.6, force: 0.7, ..PLAIN },
    Arrangement { name: "jazz-trio", styles: &["jazz trio", "swinging jazz", "piano jazz"], moods: &["relaxed", "swinging"], tags: &["jazz", "piano", "drums", "double bass"], lead: &[0], harmony: &[0], bass: &[32], beat: Beat::Pattern("jazz", 32), tempo: Some((110.0, 168.0)), swing: true, force: 0.85, harmony_range: (50, 74), ..PLAIN },
    Arrangement { name: "jazz-sax", styles: &["jazz with saxophone", "organ jazz", "soul jazz"], moods: &["smooth", "smoky"], tags: &["jazz", "saxophone", "organ", "soul"], lead: &[66, 65], harmony: &[17, 26], bass: &[32], beat: Beat::Pattern("jazz", 40), tempo: Some((92.0, 140.0)), swing: true, force: 0.9, lead_range: (52, 79), ..PLAIN },
    Arrangement { name: "blues", styles: &["blues", "electric blues"], moods: &["gritty", "slow"], tags: &["blues", "guitar", "harmonica"], lead: &[22, 29], harmony: &[27, 18], bass: &[33], beat: Beat::Pattern("blues", 8), tempo: Some((70.0, 104.0)), swing: true, force: 0.95, lead_range: (55, 79), ..PLAIN },
    Arrangement { name: "folk", styles: &["acoustic folk", "folk", "acoustic guitar folk"], moods: &["warm", "intimate"], tags: &["folk", "acoustic", "guitar", "acoustic guitar"], lead: &[73, 25], harmony: &[25, 24], pad: &[48], bass: &[32], tempo: Some((84.0, 120.0)), force: 0.8, ..PLAIN },
    Arrangement { name: "guitar-solo", styles: &["solo acoustic guitar", "classical guitar"], moods: &["intimate", "quiet"], tags: &["guitar", "acoustic", "solo", "classical", "soft"], lead: &[24, 25], harmony: &[24, 25], bass: &[24], tempo: Some((70.0, 112.0)), force: 0.8, lead_range: (55, 81), harmony_range: (43, 70), ..PLAIN },
    Arrangement { name: "country", styles: &["country", "bluegrass and country"], moods: &["cheerful", "rustic"], tags: &["country", "banjo", "fiddle", "acoustic"], lead: &[110, 105], harmony: &[105, 25], bass: &[32], beat: Beat::Pattern("country", 0), tempo: Some((104.0, 148.0)), ..PLAIN },
    Arrangement { name: "funk", styles: &["funk", "groovy funk", "soul and funk"], moods: &["groovy", "funky"], tags: &["funk", "soul", "bass", "dance"], lead: &[61, 65], harmony: &[28, 7], pad: &[16], bass: &[36], beat: Beat::Pattern("funk", 8), tempo: Some((94.0, 116.0)), hold: 0.6, ..PLAIN },
    Arrangement { name: "reggae", styles: &["reggae", "dub reggae"], moods: &["sunny", "relaxed"], tags: &["reggae", "guitar", "organ"], lead: &[114, 22], harmony: &[28, 16], bass: &[33], beat: Beat::Pattern("reggae", 0), tempo: Some((72.0, 92.0)), ..PLAIN },
    Arrangement { name: "latin", styles: &["latin", "latin dance music"], moods: &["festive", "lively"], tags: &["latin", "trumpet", "percussion", "dance"], lead: &[56, 73], harmony: &[0, 24], bass: &[32], beat: Beat::Pattern("latin", 0), tempo: Some((96.0, 128.0)), ..PLAIN },
    Arrangement { name: "strings", styles: &["orchestral strings", "classical strings", "string orchestra"], moods: &["dramatic", "emotional"], tags: &["strings", "violin", "cello", "classical", "orchestra"], lead: &[40, 48], harmony: &[48, 41], pad: &[49], bass: &[42, 43], tempo: Some((66.0, 116.0)), hold: 1.2, ..PLAIN },
    Arrangement { name: "orchestra", styles: &["epic orchestral", "cinematic orchestra", "film score"], moods: &["heroic", "epic", "dramatic"], tags: &["orchestral", "soundtrack", "classical", "brass", "strings", "loud"], lead: &[56, 60], harmony: &[48, 61], pad: &[52, 49], bass: &[43], beat: Beat::Keep(48), force: 1.2, ..PLAIN },
    Arrangement { name: "baroque", styles: &["baroque harpsichord", "baroque chamber music"], moods: &["ornate", "lively"], tags: &["harpsichord", "classical", "baroque"], lead: &[6, 68], harmony: &[6], pad: &[48], bass: &[6, 42], tempo: Some((84.0, 124.0)), ..PLAIN },
    Arrangement { name: "harp-flute", styles: &["harp and flute duet", "gentle chamber music"], moods: &["delicate", "peaceful"], tags: &["harp", "flute", "classical", "soft", "solo"], lead: &[73], harmony: &[46], bass: &[46], tempo: Some((66.0, 100.0)), force: 0.75, harmony_range: (45, 79), ..PLAIN },
    Arrangement { name: "cello", styles: &["cello solo with piano", "chamber music for cello"], moods: &["mournful", "emotional"], tags: &["cello", "classical", "piano", "slow"], lead: &[42], harmony: &[0], bass: &[0], tempo: Some((56.0, 84.0)), hold: 1.2, force: 0.85, lead_range: (43, 69), ..PLAIN },
    Arrangement { name: "church-organ", styles: &["church organ music", "organ hymn"], moods: &["solemn", "majestic"], tags: &["organ", "classical", "church"], lead: &[19], harmony: &[19], bass: &[19], tempo: Some((60.0, 96.0)), hold: 1.3, harmony_range: (48, 76), ..PLAIN },
    Arrangement { name: "choir", styles: &["choir", "choral music"], moods: &["sacred", "ethereal", "solemn"], tags: &["choir", "choral", "vocal", "voice", "classical"], lead: &[52, 53], harmony: &[52], pad: &[52, 19], bass: &[52], tempo: Some((52.0, 84.0)), hold: 1.6, force: 0.9, lead_range: (60, 81), ..PLAIN },
    Arrangement { name: "sitar", styles: &["indian music with sitar", "indian classical"], moods: &["hypnotic", "exotic"], tags: &["indian", "sitar", "world"], lead: &[104], harmony: &[104, 108], pad: &[89], bass: &[], beat: Beat::Pattern("latin", 48), tempo: Some((70.0, 116.0)), ..PLAIN },
    Arrangement { name: "celtic", styles: &["celtic folk", "irish folk dance"], moods: &["lively", "festive"], tags: &["folk", "celtic", "fiddle", "flute"], lead: &[110, 72], harmony: &[25, 21], pad: &[109], bass: &[32], tempo: Some((108.0, 144.0)), ..PLAIN },
    Arrangement { name: "music-box", styles: &["music box lullaby", "music box"], moods: &["innocent", "tender"], tags: &["music box", "soft", "quiet", "slow"], lead: &[10], harmony: &[10, 8], bass: &[], tempo: Some((64.0, 96.0)), force: 0.75, lead_range: (72, 96), harmony_range: (60, 88), ..PLAIN },
    Arrangement { name: "vibraphone", styles: &["mallet percussion ensemble", "minimal marimba and vibraphone"], moods: &["playful", "hypnotic"], tags: &["marimba", "vibraphone", "percussion", "instrumental"], lead: &[11, 13], harmony: &[12, 11], bass: &[12], tempo: Some((88.0, 132.0)), ..PLAIN },
    Arrangement { name: "synthwave", styles: &["synthwave", "eighties synth pop", "retro electronic"], moods: &["nostalgic", "neon"], tags: &["synth", "electronic", "pop", "80s"], lead: &[80, 81], harmony: &[62, 90], pad: &[50, 89], bass: &[38], beat: Beat::Pattern("rock", 24), tempo: Some((96.0, 120.0)), ..PLAIN },
    Arrangement { name: "pop", styles: &["pop", "light pop", "pop ballad"], moods: &["bright", "cheerful"], tags: &["pop", "piano", "guitar"], lead: &[0, 73], harmony: &[25, 0], pad: &[48], bass: &[33], beat: Beat::Pattern("ballad", 0), tempo: Some((88.0, 120.0)), ..PLAIN },
    Arrangement { name: "chiptune", styles: &["8-bit chiptune", "chiptune", "retro video game music"], moods: &["playful", "nostalgic", "bouncy"], tags: &["chiptune", "8-bit", "electronic", "video game"], lead: &[80], harmony: &[80], pad: &[80], bass: &[80], beat: Beat::Keep(0), tempo: Some((110.0, 160.0)), engine: Engine::Chip, ..PLAIN },
];

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
        for arrangement in ARRANGEMENTS {
            assert!(arrangement.styles.len() >= 2 && !arrangement.moods.is_empty() && !arrangement.tags.is_empty());
            assert!(!arrangement.lead.is_empty() && !arrangement.harmony.is_empty());
            assert!(arrangement.lead_range.1 - arrangement.lead_range.0 >= 12);
            assert!(arrangement.harmony_range.1 - arrangement.harmony_range.0 >= 12);
            if let Beat::Pattern(name, _) = arrangement.beat {
                assert!(pattern(name).is_some(), "{name}");
            }
            assert_eq!(ARRANGEMENTS.iter().filter(|other| other.name == arrangement.name).count(), 1);
        }
        for (name, pattern) in PATTERNS {
            assert!(pattern.iter().all(|(_, hits)| hits.len() == 16 && hits.chars().all(|c| "xo-".contains(c))), "{name}");
        }
    }
}
