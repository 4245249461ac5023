//! What is said about a rendered excerpt. Tempo and key are left to the caption composer, which knows
//! by how much an augmented version was changed.

use super::arrangement::{Arrangement, Beat};
use super::perform::draw;
use super::score::{DRUMS, Role, Score};
use crate::manifest::{Caption, CaptionSource};
use rand_chacha::ChaCha8Rng;

/// "a, b and c".
pub(crate) fn list(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

/// The voices of the chip engine that are in use.
pub(super) fn chip_instruments(score: &Score) -> Vec<String> {
    let roles = score.roles();
    let mut names = vec!["square wave synth".to_owned()];
    if roles.iter().any(|(_, role)| *role == Role::Bass) {
        names.push("triangle wave bass".into());
    }
    if score.notes.iter().any(|note| note.channel == DRUMS) {
        names.push("noise drums".into());
    }
    names
}

/// What music with these instruments is called, where nobody said so.
fn guess_style(instruments: &[String]) -> (&'static str, &'static [&'static str]) {
    let has = |words: &[&str]| instruments.iter().any(|name| words.iter().any(|word| name.contains(word)));
    let drums = has(&["drums"]);
    if drums && has(&["distorted guitar"]) {
        ("instrumental rock and metal", &["rock", "metal", "guitar", "instrumental"])
    } else if drums && has(&["overdriven guitar"]) {
        ("instrumental rock", &["rock", "guitar", "instrumental"])
    } else if has(&["synth lead", "synth bass", "square wave"]) {
        ("electronic", &["electronic", "synth", "instrumental"])
    } else if has(&["strings", "choir", "brass", "french horn", "timpani", "oboe"]) {
        ("cinematic soundtrack", &["soundtrack", "instrumental"])
    } else {
        ("instrumental", &["instrumental"])
    }
}

/// Captions in at least three phrasings, and labels.
pub(super) fn describe(
    instruments: &[String],
    arrangement: Option<&Arrangement>,
    random: &mut ChaCha8Rng,
) -> (Vec<Caption>, Vec<String>) {
    let heard = list(instruments);
    let first = instruments.first().cloned().unwrap_or_default();
    let mut texts = Vec::new();
    let mut tags: Vec<String>;
    if let Some(arrangement) = arrangement {
        let mood = || arrangement.moods[0];
        let other_mood = arrangement.moods[draw(random, arrangement.moods.len())];
        for style in arrangement.styles {
            texts.push((*style).to_owned());
            texts.push(format!("{other_mood} {style} with {heard}"));
        }
        texts.push(format!("{} {}", mood(), arrangement.styles[0]));
        texts.push(format!("{heard} playing {} {}", other_mood, arrangement.styles[0]));
        texts.push(arrangement.tags.join(", "));
        if arrangement.beat == Beat::None {
            texts.push(format!("{}, no drums, {heard}", arrangement.styles[0]));
        }
        tags = arrangement.tags.iter().map(|tag| (*tag).to_owned()).collect();
    } else {
        let (style, labels) = guess_style(instruments);
        texts.push(format!("{style} music with {heard}"));
        texts.push(format!("{style} track led by {first}"));
        texts.push(format!("{heard}, {style}, video game music"));
        tags = labels.iter().map(|tag| (*tag).to_owned()).collect();
    }
    for instrument in instruments {
        if !tags.contains(instrument) {
            tags.push(instrument.clone());
        }
    }
    let captions = texts.into_iter().map(|text| Caption { text, source: CaptionSource::Score }).collect();
    (captions, tags)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::arrangement::all;
    use rand_chacha::rand_core::SeedableRng;

    #[test]
    fn at_least_three_different_phrasings_each() {
        let instruments = ["violin".to_owned(), "harp".to_owned()];
        for arrangement in all().map(Some).chain([None]) {
            let (captions, tags) = describe(&instruments, arrangement, &mut ChaCha8Rng::seed_from_u64(2));
            let texts: std::collections::BTreeSet<&str> =
                captions.iter().map(|caption| caption.text.as_str()).collect();
            assert!(texts.len() >= 3 && tags.contains(&"harp".to_owned()));
        }
        assert_eq!(list(&["a".into(), "b".into(), "c".into()]), "a, b and c");
        assert_eq!(guess_style(&["distorted guitar".into(), "drums".into()]).0, "instrumental rock and metal");
    }
}
