//! MusicGen against transformers' (tools/reference/musicgen.py, float64): what the decoder hears of a text, logits with and
//! without it, the most likely codes of 200 steps with guidance, and their sound.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use mambo_model::codec::Codec;
use mambo_model::musicgen::{MusicGen, MusicGenError};
use mambo_model::sampler::Sampling;
use mambo_model::tokens::CodecTokens;
use safetensors::SafeTensors;

const LIMIT: f64 = 1e-4;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

struct Golden(Vec<u8>);

impl Golden {
    fn bytes(&self, name: &str) -> Vec<u8> {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().data().to_vec()
    }

    fn whole(&self, name: &str) -> Vec<u32> {
        self.bytes(name).chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap()) as u32).collect()
    }

    fn wide(&self, name: &str) -> Vec<f64> {
        self.bytes(name).chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

fn open() -> (MusicGen, Golden) {
    let bytes = std::fs::read(golden("musicgen.safetensors")).unwrap();
    (MusicGen::load(&golden("musicgen")).unwrap(), Golden(bytes))
}

fn distance(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let length = expected.iter().map(|value| value * value).sum::<f64>().sqrt();
    got.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum::<f64>().sqrt() / length
}

#[test]
fn logits_with_and_without_the_text_are_the_librarys() {
    let (model, golden) = open();
    let heard = model.hear(&golden.whole("ids"));
    assert!(distance(&heard, &golden.wide("heard")) < LIMIT);
    let (columns, expected) = (golden.whole("columns"), golden.wide("logits"));
    let (books, codes) = (model.decoder().config().num_codebooks, model.decoder().config().vocab_size);
    let frames = columns.len() / books;
    let mut state = model.decoder().start(&[&heard, &[]]);
    // [streams, books, frames, codes]
    let mut got = vec![0.0; expected.len()];
    for frame in 0..frames {
        let column: Vec<u16> = (0..books).map(|k| columns[k * frames + frame] as u16).collect();
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
    let (model, golden) = open();
    let expected: Vec<u16> = golden.whole("greedy").iter().map(|code| *code as u16).collect();
    let sampling = Sampling { temperature: 0.0, guidance: 3.0, ..Sampling::default() };
    let frames: Vec<Vec<u16>> = model.frames(&golden.whole("ids"), &sampling, 0).unwrap().take(200).collect();
    let tokens = CodecTokens::from_frames(model.codec().spec().clone(), &frames).unwrap();
    assert_eq!(tokens.codes, expected);
    let (got, expected) = (model.codec().decode(&tokens, 4, 0), golden.wide("sound"));
    let peak = expected.iter().fold(0.0f64, |peak, value| peak.max(value.abs()));
    let worst = got.iter().zip(&expected).fold(0.0f64, |worst, (a, b)| worst.max((f64::from(*a) - b).abs()));
    assert!(got.len() == expected.len() && worst < LIMIT * peak, "{worst:.1e} of {peak}");
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
    assert!(matches!(MusicGen::load(folder.path()), Err(MusicGenError::Io { .. })));
    let config = std::fs::read_to_string(golden("musicgen/config.json")).unwrap();
    let write = |text: &str| std::fs::write(folder.path().join("config.json"), text).unwrap();
    write(&config.replace("\"num_codebooks\": 4", "\"num_codebooks\": 3"));
    let error = MusicGen::load(folder.path()).err().unwrap();
    assert!(matches!(error, MusicGenError::Config { rule, .. } if rule.contains("number of codebooks")), "{error}");
    write(&config.replace("\"activation_function\": \"gelu\"", "\"activation_function\": \"relu\""));
    let error = MusicGen::load(folder.path()).err().unwrap();
    assert!(matches!(error, MusicGenError::Config { rule, .. } if rule.contains("gelu")), "{error}");
}
