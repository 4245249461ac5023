//! Captions of a segment from metadata, a tagger and measurements, in several phrasings.
//!
//! What a version changed is said as changed: tempo words, beats a minute, key, loudness. The same
//! facts and seed always give the same captions.

use crate::augment::Alteration;
use crate::manifest::{Caption, CaptionSource, Track};
use crate::render::list_words;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Tags below this probability are not mentioned.
const MIN_PROBABILITY: f32 = 0.12;
/// The same where a score says what plays: a tagger must be sure to add something.
const MIN_PROBABILITY_BESIDE_SCORE: f32 = 0.35;
/// Captions of one version at most; other versions of the segment get others.
const MAX_CAPTIONS: usize = 5;
/// Tags mentioned at most.
const MAX_TAGS: usize = 6;

/// What was measured in the unaltered segment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Measured {
    /// Beats a minute, where a beat is clear.
    pub beats_per_minute: Option<f64>,
    /// Key by name ("A flat minor"), where it is clear.
    pub key: Option<String>,
    /// Integrated loudness in LUFS, after the track was brought to the corpus loudness.
    pub loudness: Option<f64>,
    /// Spectral centroid in Hz.
    pub brightness_hz: Option<f64>,
    /// Note onsets a second.
    pub onsets_per_second: Option<f64>,
}

/// Everything known about a segment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SegmentFacts {
    /// From the manifest: captions of the whole track.
    pub said: Vec<Caption>,
    /// From the manifest: labels.
    pub labels: Vec<String>,
    /// From the score, the most heard first.
    pub instruments: Vec<String>,
    /// From the tagger: name and probability.
    pub tags: Vec<(String, f32)>,
    /// From the signal.
    pub measured: Measured,
}

impl SegmentFacts {
    /// What the manifest says; the rest is filled in by the caller.
    #[must_use]
    pub fn of_track(track: &Track) -> Self {
        Self {
            said: track.captions.clone(),
            labels: track.tags.clone(),
            instruments: track.score.as_ref().map(|score| score.instruments.clone()).unwrap_or_default(),
            ..Self::default()
        }
    }
}

/// What a tag is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Style,
    Instrument,
    Voice,
    /// Said better by measurements, or says nothing.
    Ignored,
}

/// The word to use for a tag of the MagnaTagATune vocabulary (which has many near-duplicates), and
/// what it is about. Unknown tags are style words.
fn understand(tag: &str) -> (&str, Kind) {
    match tag {
        "classic" => ("classical", Kind::Style),
        "beat" | "beats" => ("a strong beat", Kind::Instrument),
        "no vocals" | "no vocal" | "no voice" => ("instrumental", Kind::Style),
        "vocal" | "vocals" | "voice" | "singing" => ("vocals", Kind::Voice),
        "male" | "man" | "male vocal" | "male voice" => ("male vocals", Kind::Voice),
        "female" | "woman" | "female vocal" | "female voice" => ("female vocals", Kind::Voice),
        "choir" | "choral" => ("choir", Kind::Voice),
        "slow" | "fast" | "loud" | "quiet" | "soft" => (tag, Kind::Ignored),
        "guitar" | "strings" | "drums" | "piano" | "violin" | "synth" | "harpsichord" | "flute" | "sitar" | "harp"
        | "cello" => (tag, Kind::Instrument),
        other => (other, Kind::Style),
    }
}

/// The word for a tempo.
#[must_use]
pub fn tempo_word(beats_per_minute: f64) -> &'static str {
    match beats_per_minute {
        bpm if bpm < 66.0 => "very slow",
        bpm if bpm < 90.0 => "slow",
        bpm if bpm < 112.0 => "mid-tempo",
        bpm if bpm < 132.0 => "upbeat",
        bpm if bpm < 160.0 => "fast",
        _ => "very fast",
    }
}

/// Beside the common loudness that all tracks are brought to.
fn loudness_word(lufs: f64) -> Option<&'static str> {
    (lufs > -12.5).then_some("loud").or((lufs < -21.0).then_some("quiet"))
}

fn brightness_word(hertz: f64) -> Option<&'static str> {
    (hertz > 3200.0).then_some("bright").or((hertz < 1100.0).then_some("dark"))
}

fn density_word(per_second: f64) -> Option<&'static str> {
    (per_second > 6.5).then_some("busy").or((per_second < 1.5).then_some("sparse"))
}

/// A key name moved by semitones.
fn transposed(name: &str, semitones: i32) -> Option<String> {
    let (tonic, mode) = name.rsplit_once(' ')?;
    let place = crate::render::score::PITCH_NAMES.iter().position(|known| *known == tonic)? as i32;
    Some(format!("{} {mode}", crate::render::score::PITCH_NAMES[(place + semitones).rem_euclid(12) as usize]))
}

/// Style labels that fit a caption: the shorter part of a long package description.
fn styles(facts: &SegmentFacts, random: &mut ChaCha8Rng) -> Vec<String> {
    let mut labels: Vec<String> = facts
        .labels
        .iter()
        .map(|label| label.split('(').next().unwrap_or("").trim_matches([' ', ')', '.']).to_owned())
        .filter(|label| !label.is_empty() && label.len() < 40 && !facts.instruments.contains(label))
        .collect();
    labels.dedup();
    // A longer list describes a whole album, not this piece: what the tagger hears too goes first, and
    // of the others a few at a time.
    let heard = |label: &str| {
        let same = |tag: &str| understand(tag).1 == Kind::Style && label.contains(understand(tag).0);
        facts.tags.iter().filter(|(tag, _)| same(tag)).map(|(_, probability)| *probability).fold(0.0, f32::max)
    };
    while labels.len() > 2 {
        let least = labels.iter().map(|label| heard(label)).fold(f32::INFINITY, f32::min);
        let worst: Vec<usize> = (0..labels.len()).filter(|&place| heard(&labels[place]) <= least).collect();
        labels.remove(worst[below(random, worst.len())]);
    }
    labels
}

fn below(random: &mut ChaCha8Rng, limit: usize) -> usize {
    ((u128::from(random.next_u64()) * limit.max(1) as u128) >> 64) as usize
}

/// The words of one version, sorted by what they are about.
struct Words {
    styles: Vec<String>,
    tagged_styles: Vec<String>,
    instruments: Vec<String>,
    voices: Vec<String>,
    tempo: Option<&'static str>,
    beats: Option<String>,
    key: Option<String>,
    characters: Vec<&'static str>,
}

impl Words {
    fn of(facts: &SegmentFacts, change: &Alteration, random: &mut ChaCha8Rng) -> Self {
        let measured = &facts.measured;
        let bpm = measured.beats_per_minute.map(|bpm| bpm * change.speed);
        let semitones = change.semitones.round() as i32;
        let whole = (change.semitones - change.semitones.round()).abs() < 1e-6;
        let key = measured.key.as_ref().and_then(|name| transposed(name, semitones));
        let pitch = 2.0_f64.powf(change.semitones / 12.0);
        let characters = [
            measured.loudness.and_then(|lufs| loudness_word(lufs + change.gain_db)),
            measured.brightness_hz.and_then(|hertz| brightness_word(hertz * pitch)),
            measured.onsets_per_second.and_then(|density| density_word(density * change.speed)),
        ];
        let mut words = Self {
            styles: styles(facts, random),
            tagged_styles: Vec::new(),
            instruments: facts.instruments.clone(),
            voices: Vec::new(),
            tempo: bpm.map(tempo_word),
            // To the nearest five: estimates are no better, and people type round numbers.
            beats: bpm.map(|bpm| format!("{:.0} bpm", (bpm / 5.0).round() * 5.0)),
            key: key.filter(|_| whole),
            characters: characters.into_iter().flatten().collect(),
        };
        let least = if facts.instruments.is_empty() { MIN_PROBABILITY } else { MIN_PROBABILITY_BESIDE_SCORE };
        let mut tags: Vec<&(String, f32)> =
            facts.tags.iter().filter(|(_, probability)| *probability >= least).collect();
        tags.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        for (tag, _) in tags.into_iter().take(MAX_TAGS) {
            let (word, kind) = understand(tag);
            let group = match kind {
                Kind::Style => &mut words.tagged_styles,
                // Where a score names the instruments, a tagger's guess can only be worse.
                Kind::Instrument if facts.instruments.is_empty() => &mut words.instruments,
                Kind::Voice => &mut words.voices,
                _ => continue,
            };
            if !group.iter().any(|known| known == word) {
                group.push(word.to_owned());
            }
        }
        if !words.voices.is_empty() {
            words.tagged_styles.retain(|word| word != "instrumental");
        }
        words
    }

    /// Instruments and voices together.
    fn heard(&self) -> Vec<String> {
        self.instruments.iter().chain(&self.voices).take(4).cloned().collect()
    }

    /// The style in a few words: what the tagger heard, else what the metadata says.
    fn style(&self, tagged_first: bool) -> String {
        let (first, second) =
            if tagged_first { (&self.tagged_styles, &self.styles) } else { (&self.styles, &self.tagged_styles) };
        let chosen = if first.is_empty() { second } else { first };
        if chosen.is_empty() { String::new() } else { chosen.iter().take(2).cloned().collect::<Vec<_>>().join(" ") }
    }
}

/// Joins what is there with commas.
fn comma_list(parts: impl IntoIterator<Item = Option<String>>) -> String {
    let mut seen: Vec<String> = Vec::new();
    for part in parts.into_iter().flatten().filter(|part| !part.is_empty()) {
        if !seen.contains(&part) {
            seen.push(part);
        }
    }
    seen.join(", ")
}

/// Words with single spaces, leaving out what is empty.
fn sentence(parts: &[&str]) -> String {
    parts.iter().flat_map(|part| part.split_whitespace()).collect::<Vec<_>>().join(" ")
}

fn article(text: &str) -> &'static str {
    if text.starts_with(['a', 'e', 'i', 'o', 'u', '8']) { "an" } else { "a" }
}

/// Captions of one version of a segment: at least three, all different.
#[must_use]
pub fn compose(facts: &SegmentFacts, change: &Alteration, seed: u64, name: &str) -> Vec<Caption> {
    let key = blake3::hash(format!("caption:{seed}:{name}").as_bytes());
    let mut random = ChaCha8Rng::from_seed(*key.as_bytes());
    let words = Words::of(facts, change, &mut random);
    let heard = words.heard();
    let with = if heard.is_empty() { String::new() } else { format!("with {}", list_words(&heard)) };
    let tempo = words.tempo.unwrap_or("");
    let mood =
        if words.characters.is_empty() { "" } else { words.characters[below(&mut random, words.characters.len())] };
    let source = if facts.tags.is_empty() { CaptionSource::Metadata } else { CaptionSource::Tagger };
    let mut captions: Vec<Caption> = Vec::new();
    let mut say = |text: String, source: CaptionSource| {
        let known = captions.iter().any(|caption| caption.text == text);
        if text.split_whitespace().count() >= 1 && !known {
            captions.push(Caption { text, source });
        }
    };

    // As labels.
    let labels = words.tagged_styles.iter().chain(&words.styles).take(4).cloned().map(Some);
    let sound = heard.iter().cloned().map(Some);
    let figures = [words.tempo.map(str::to_owned), words.beats.clone()];
    say(comma_list(labels.chain(sound).chain(figures)), source);
    // As a plain request.
    say(sentence(&[tempo, &words.style(true), "music", &with]), source);
    // As a full description.
    let description = sentence(&[mood, tempo, &words.style(false)]);
    let place =
        [words.key.as_ref().map(|key| format!("in {key}")), words.beats.as_ref().map(|beats| format!("at {beats}"))];
    let place: Vec<String> = place.into_iter().flatten().collect();
    say(sentence(&[article(&description), &description, "piece", &with, &place.join(" ")]), source);
    // The instruments first.
    if !heard.is_empty() {
        say(sentence(&[&list_words(&heard), "playing", tempo, &words.style(true), "music"]), source);
    }
    // The style alone, as people type it.
    say(sentence(&[&words.style(true), &with]), source);
    // The measurements alone.
    let measured = words.characters.iter().map(|word| Some((*word).to_owned()));
    let measured =
        comma_list(measured.chain([words.tempo.map(str::to_owned), words.key.clone(), Some(words.style(false))]));
    say(measured, CaptionSource::Measurement);
    // What was said about the track, as it was said and with the tempo.
    // A long list of styles in the metadata is about the album.
    let about_album = |caption: &Caption| {
        caption.source == CaptionSource::Metadata && caption.text.matches([',', '/', ';']).count() >= 2
    };
    let fits = |caption: &&Caption| caption.text.len() < 400 && !about_album(caption);
    let spoken: Vec<&Caption> = facts.said.iter().filter(fits).collect();
    for _ in 0..spoken.len().min(3) {
        let caption = spoken[below(&mut random, spoken.len())];
        say(caption.text.clone(), caption.source);
        if !tempo.is_empty() {
            say(format!("{}, {tempo}", caption.text), caption.source);
        }
    }
    while captions.len() > MAX_CAPTIONS {
        captions.remove(below(&mut random, captions.len()));
    }
    // Nothing at all is known of some music; the number of phrasings still holds.
    for text in ["music", "a piece of music", "a recording of music"] {
        if captions.len() < 3 {
            captions.push(Caption { text: text.into(), source: CaptionSource::Metadata });
        }
    }
    captions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> SegmentFacts {
        SegmentFacts {
            said: vec![Caption { text: "hard techno shmup".into(), source: CaptionSource::Metadata }],
            labels: vec!["techno".into()],
            instruments: vec![],
            tags: vec![
                ("techno".into(), 0.7),
                ("beat".into(), 0.5),
                ("beats".into(), 0.4),
                ("synth".into(), 0.3),
                ("fast".into(), 0.3),
                ("flute".into(), 0.05),
            ],
            measured: Measured {
                beats_per_minute: Some(125.0),
                key: Some("A minor".into()),
                loudness: Some(-10.5),
                brightness_hz: Some(4000.0),
                onsets_per_second: Some(4.0),
            },
        }
    }

    fn texts(facts: &SegmentFacts, change: &Alteration, name: &str) -> Vec<String> {
        compose(facts, change, 1, name).into_iter().map(|caption| caption.text).collect()
    }

    /// The captions of many versions: all phrasings.
    fn all_texts(facts: &SegmentFacts, change: &Alteration) -> Vec<String> {
        (0..40).flat_map(|name| texts(facts, change, &name.to_string())).collect()
    }

    #[test]
    fn several_different_phrasings_that_repeat() {
        let one = texts(&facts(), &Alteration::NONE, "x");
        assert_eq!(one, texts(&facts(), &Alteration::NONE, "x"));
        let different: std::collections::BTreeSet<&String> = one.iter().collect();
        assert!(one.len() == MAX_CAPTIONS && different.len() == one.len(), "{one:#?}");
        let one = all_texts(&facts(), &Alteration::NONE);
        let all = one.join("\n");
        assert!(all.contains("techno") && all.contains("synth") && all.contains("125 bpm") && all.contains("A minor"));
        assert!(!all.contains("flute") && all.matches("a strong beat, a strong beat").count() == 0);
        assert!(one.contains(&"hard techno shmup".to_owned()));
    }

    #[test]
    fn words_follow_the_alteration() {
        let change = Alteration { semitones: 2.0, speed: 1.1, gain_db: -12.0, offset: 0.0 };
        let all = all_texts(&facts(), &change).join("\n");
        assert!(all.contains("140 bpm") && all.contains("B minor") && all.contains("fast"), "{all}");
        assert!(!all.contains("A minor") && !all.contains("loud") && !all.contains("upbeat"));
        assert_eq!(transposed("B flat major", 3).as_deref(), Some("C sharp major"));
        assert_eq!(transposed("C major", -1).as_deref(), Some("B major"));
    }

    #[test]
    fn knowing_nothing_still_gives_three_captions() {
        assert!(texts(&SegmentFacts::default(), &Alteration::NONE, "x").len() >= 3);
    }

    #[test]
    fn of_many_labels_those_that_are_heard_are_used() {
        let labels = ["space ambient", "orchestral sci-fi", "electronic", "battle"].map(str::to_owned).to_vec();
        let facts = SegmentFacts {
            labels,
            tags: vec![("ambient".into(), 0.6), ("electronic".into(), 0.2)],
            said: vec![],
            ..facts()
        };
        let all = all_texts(&facts, &Alteration::NONE).join("\n");
        assert!(all.contains("space ambient") && !all.contains("battle") && !all.contains("orchestral"));
    }

    #[test]
    fn a_score_is_believed_more_than_a_tagger() {
        let facts = SegmentFacts { instruments: vec!["cello".into()], tags: vec![("guitar".into(), 0.9)], ..facts() };
        let all = all_texts(&facts, &Alteration::NONE).join("\n");
        assert!(all.contains("cello") && !all.contains("guitar"));
    }

    #[test]
    fn tempo_words_rise() {
        let words: Vec<&str> = [50.0, 80.0, 100.0, 120.0, 140.0, 180.0].map(tempo_word).to_vec();
        assert_eq!(words, ["very slow", "slow", "mid-tempo", "upbeat", "fast", "very fast"]);
    }
}
