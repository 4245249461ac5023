//! The fixed prompts of the text bar. Each names one tag of the judge (musicnn MSD) in plain words; they were written
//! before any model was judged by them and are not to be changed to please one.

/// A prompt and the tag it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// What the model is asked for.
    pub text: String,
    /// The tag it names, as the judge spells it.
    pub tag: String,
}

const FIXED: [(&str, &str); 20] = [
    ("ambient", "calm ambient music with slow, wide pads"),
    ("ambient", "dark ambient soundscape, drifting through empty space"),
    ("electronic", "energetic electronic music with a driving synth line"),
    ("electronic", "retro electronic game music with quick arpeggios"),
    ("dance", "dance track with a steady kick on every beat"),
    ("dance", "fast dance music with a pulsing bass"),
    ("rock", "loud rock with drums, bass and a catchy riff"),
    ("rock", "slow, heavy rock groove"),
    ("metal", "aggressive metal with fast double bass drums"),
    ("metal", "epic metal with distorted riffs"),
    ("acoustic", "soft acoustic piece, warm and close"),
    ("acoustic", "acoustic strumming by a campfire"),
    ("folk", "gentle folk tune from the countryside"),
    ("folk", "lively folk melody for a village feast"),
    ("chillout", "relaxed chillout with a slow beat"),
    ("instrumental", "instrumental film music with strings and horns"),
    ("electronica", "moody electronica with soft glitches"),
    ("experimental", "experimental piece of strange textures and noise"),
    ("jazz", "late-night jazz with walking bass and brushes"),
    ("funk", "funk groove with slap bass and tight drums"),
];

/// The 20 fixed prompts over 13 tags.
pub fn fixed_prompts() -> Vec<Prompt> {
    FIXED.iter().map(|(tag, text)| Prompt { text: (*text).to_owned(), tag: (*tag).to_owned() }).collect()
}

/// Reads prompts from lines `tag<TAB>text`; empty lines and lines that start with `#` are skipped. The error is
/// the number of the first line that has no tab.
pub fn parse_prompts(text: &str) -> Result<Vec<Prompt>, usize> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    lines
        .map(|(number, line)| {
            let (tag, text) = line.split_once('\t').ok_or(number + 1)?;
            Ok(Prompt { text: text.trim().to_owned(), tag: tag.trim().to_owned() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mambo_model::listen::tags::MSD_TAGS;

    #[test]
    fn fixed_prompts_name_their_tag_and_no_other_prompts() {
        let prompts = fixed_prompts();
        let mut tags: Vec<&str> = prompts.iter().map(|prompt| prompt.tag.as_str()).collect();
        for prompt in &prompts {
            assert!(MSD_TAGS.contains(&prompt.tag.as_str()), "{prompt:?}");
            assert!(prompt.text.split(|c: char| !c.is_alphanumeric()).any(|word| word == prompt.tag), "{prompt:?}");
        }
        tags.sort_unstable();
        tags.dedup();
        assert!(prompts.len() == 20 && tags.len() >= 10);
    }

    #[test]
    fn prompt_files() {
        let parsed = parse_prompts("# mine\n\nrock\ta rock song\n").expect("well formed");
        assert_eq!(parsed, [Prompt { text: "a rock song".into(), tag: "rock".into() }]);
        assert_eq!(parse_prompts("rock\tx\nno tab"), Err(2));
    }
}
