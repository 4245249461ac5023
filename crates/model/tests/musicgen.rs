//! MusicGen against transformers' (tools/reference/musicgen.py, float64): what the decoder hears of a text, logits with and
//! without it, the most likely codes of 200 steps with guidance, and their sound.
#![allow(clippy::unwrap_used)]

mod published;

use mambo_model::codec::Codec;
use mambo_model::musicgen::{MusicGen, MusicGenError};
use mambo_model::published::ConfigError;
use mambo_model::sampler::Sampling;
use mambo_model::tokens::CodecTokens;
use published::{Golden, distance, golden, worst_and_peak};

const LIMIT: f64 = 1e-4;

fn open() -> (MusicGen, Golden) {
    (MusicGen::load(&golden("musicgen")).unwrap().0, Golden::read("musicgen"))
}

#[test]
fn logits_with_and_without_the_text_are_the_librarys() {
    let (model, golden) = open();
    let heard = model.hear(&golden.ids("ids"));
    assert!(distance(&heard, &golden.wide("heard")) < LIMIT);
    let (columns, expected) = (golden.codes("columns"), golden.wide("logits"));
    let (books, codes) = (model.decoder().config().num_codebooks, model.decoder().config().vocab_size);
    let frames = columns.len() / books;
    let mut state = model.decoder().start(&[&heard, &[]]);
    // [streams, books, frames, codes]
    let mut got = vec![0.0; expected.len()];
    for frame in 0..frames {
        let column: Vec<u16> = (0..books).map(|k| columns[k * frames + frame]).collect();
        for (row, logits) in model.decoder().step(&column, &mut state).chunks_exact(codes).enumerate() {
            got[(row * frames + frame) * codes..][..codes].copy_from_slice(logits);
        }
    }
    for (got, expected) in got.chunks_exact(codes).zip(expected.chunks_exact(codes)) {
        let off = distance(got, expected);
        assert!(off < LIMIT, "{off:.1e}");
    }
}

#[test]
fn the_most_likely_codes_of_200_steps_and_their_sound_are_the_librarys() {
    let (model, codec) = MusicGen::load(&golden("musicgen")).unwrap();
    let golden = Golden::read("musicgen");
    let sampling = Sampling { temperature: 0.0, guidance: 3.0, ..Sampling::default() };
    let frames: Vec<Vec<u16>> = model.frames(&golden.ids("ids"), &sampling, 0).unwrap().take(200).collect();
    let tokens = CodecTokens::from_frames(codec.spec().clone(), &frames).unwrap();
    assert_eq!(tokens.codes, golden.codes("greedy"));
    let (worst, peak) = worst_and_peak(&codec.decode(&tokens, 4, 0), &golden.wide("sound"));
    assert!(worst < LIMIT * peak, "{worst:.1e} of {peak}");
}

#[test]
fn a_seed_draws_the_same_codes_and_another_draws_others() {
    let (model, _) = open();
    let draw = |prompt: &str, seed: u64| -> Vec<Vec<u16>> {
        model.generate(prompt, &Sampling { guidance: 3.0, ..Sampling::default() }, seed).unwrap().take(30).collect()
    };
    assert_eq!(draw("rock", 1), draw("rock", 1));
    assert_ne!(draw("rock", 1), draw("rock", 2));
    assert_ne!(draw("rock", 1), draw("", 1));
    assert!(draw("rock", 3).iter().flatten().all(|code| *code < 32));
}

#[test]
fn what_does_not_fit_is_named() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(MusicGen::load(folder.path()), Err(MusicGenError::Config(ConfigError::Io { .. }))));
    let config = std::fs::read_to_string(golden("musicgen/config.json")).unwrap();
    let write = |text: &str| std::fs::write(folder.path().join("config.json"), text).unwrap();
    write(&config.replace("\"num_codebooks\": 4", "\"num_codebooks\": 3"));
    let error = MusicGen::load(folder.path()).err().unwrap();
    assert!(
        matches!(error, MusicGenError::Config(ConfigError::Rule { rule, .. }) if rule.contains("number of codebooks")),
        "{error}"
    );
    write(&config.replace("\"activation_function\": \"gelu\"", "\"activation_function\": \"relu\""));
    let error = MusicGen::load(folder.path()).err().unwrap();
    assert!(matches!(error, MusicGenError::Config(ConfigError::Rule { rule, .. }) if rule.contains("gelu")), "{error}");
}
