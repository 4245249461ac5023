//! all-MiniLM-L6-v2 against the float64 reference in tools/reference/minilm.py and the Python tokenizers package.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use mambo_model::text::minilm::{MAX_TOKENS, WIDTH};
use mambo_model::text::{MiniLm, TextEncoder, TextError};
use mambo_model::weights::{Weights, WeightsError};

const CLS: u32 = 101;
const SEP: u32 = 102;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny/text")
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

#[derive(serde::Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
}

#[derive(serde::Deserialize)]
struct Tokens {
    cases: Vec<Case>,
}

#[test]
fn token_ids_match_the_python_package() {
    let model = MiniLm::load(&folder()).unwrap();
    let tokens: Tokens = serde_json::from_str(&std::fs::read_to_string(golden("minilm_tokens.json")).unwrap()).unwrap();
    assert!(tokens.cases.len() >= 30);
    for case in &tokens.cases {
        let ids = model.token_ids(&case.text);
        assert_eq!(ids, case.ids, "{:?}", case.text);
        assert!(ids.len() <= MAX_TOKENS);
        assert_eq!((ids[0], ids[ids.len() - 1]), (CLS, SEP));
        // Whatever was typed, [PAD], [CLS], [SEP] and [MASK] do not occur inside.
        assert!(ids[1..ids.len() - 1].iter().all(|id| ![0, CLS, SEP, 103].contains(id)), "{:?}", case.text);
    }
}

#[test]
fn states_match_the_reference() {
    let model = MiniLm::load(&folder()).unwrap();
    let golden = Weights::open(&golden("minilm.safetensors")).unwrap();
    let prompts: Vec<String> = serde_json::from_str(golden.metadata("prompts").unwrap()).unwrap();
    let texts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    let encoded = model.encode(&texts);
    assert_eq!(encoded.len(), 6);
    for (index, (text, found)) in texts.iter().zip(&encoded).enumerate() {
        assert_eq!(found.states.len(), found.length * WIDTH);
        let name = format!("states.{index}");
        let expected = golden.f32(&name, golden.shape(&name).unwrap()).unwrap();
        // Of the longest text the reference keeps every eighth token.
        let step = if found.length > 64 { 8 } else { 1 };
        let kept: Vec<f32> = found.states.chunks_exact(WIDTH).step_by(step).flatten().copied().collect();
        assert_eq!(kept.len(), expected.len(), "{text:?}");
        let distance = norm(kept.iter().zip(&expected).map(|(a, b)| f64::from(a - b)));
        let relative = distance / norm(expected.iter().map(|&b| f64::from(b)));
        assert!(relative <= 1e-5, "{text:?}: states differ by {relative} from the reference on the same weights");

        let mean = found.mean();
        let published = golden.f32(&format!("mean.{index}"), &[WIDTH]).unwrap();
        let dot: f64 = mean.iter().zip(&published).map(|(a, b)| f64::from(a * b)).sum();
        let lengths = norm(mean.iter().map(|&a| f64::from(a))) * norm(published.iter().map(|&b| f64::from(b)));
        assert!(dot / lengths >= 0.999, "{text:?}: cosine {} to the embedding of the published weights", dot / lengths);
    }
}

#[test]
fn a_text_does_not_depend_on_its_neighbours() {
    let model = MiniLm::load(&folder()).unwrap();
    let texts = ["", "warm pads", "a much longer description of a song with many different instruments", "warm pads"];
    let together = model.encode(&texts);
    for (text, states) in texts.iter().zip(&together) {
        assert_eq!(&model.encode(&[text])[0], states, "{text:?}");
    }
    assert_eq!(together[0].length, 2, "the null text is [CLS] [SEP]");
    assert_ne!(together[1], together[2]);
    assert!(model.encode(&[]).is_empty());
}

#[test]
fn the_trait_is_the_encoder() {
    let model = MiniLm::load(&folder()).unwrap();
    let encoder: &dyn TextEncoder = &model;
    assert_eq!((encoder.width(), encoder.max_tokens()), (384, 128));
    assert!(encoder.identity().starts_with("all-MiniLM-L6-v2-int8-"));
    assert_eq!(encoder.encode(&["drums"]), model.encode(&["drums"]));
}

#[test]
fn meaning_is_kept() {
    let model = MiniLm::load(&folder()).unwrap();
    let states = model.encode(&["calm piano music", "a quiet piece for piano", "aggressive heavy metal guitars"]);
    let means: Vec<Vec<f32>> = states.iter().map(|states| states.mean()).collect();
    let cosine = |a: &[f32], b: &[f32]| {
        let dot: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum();
        dot / norm(a.iter().map(|&v| f64::from(v))) / norm(b.iter().map(|&v| f64::from(v)))
    };
    assert!(cosine(&means[0], &means[1]) > cosine(&means[0], &means[2]) + 0.2);
}

#[test]
fn files_that_do_not_fit_are_refused_by_name() {
    let place = tempfile::tempdir().unwrap();
    let error = MiniLm::load(place.path()).unwrap_err();
    assert!(error.to_string().contains("minilm.safetensors"), "{error}");

    let (weights, tokenizer) = (place.path().join("minilm.safetensors"), place.path().join("tokenizer.json"));
    std::fs::copy(folder().join("minilm.safetensors"), &weights).unwrap();
    assert!(matches!(MiniLm::load(place.path()), Err(TextError::Tokenizer { path, .. }) if path == tokenizer));

    let text = std::fs::read_to_string(folder().join("tokenizer.json")).unwrap();
    std::fs::write(&tokenizer, &text[..text.len() / 2]).unwrap();
    assert!(matches!(MiniLm::load(place.path()), Err(TextError::Tokenizer { .. })));

    std::fs::write(&tokenizer, format!("{text} ")).unwrap();
    assert!(matches!(MiniLm::load(place.path()), Err(TextError::OtherTokenizer { .. })));

    std::fs::write(&tokenizer, &text).unwrap();
    let mut bytes = std::fs::read(&weights).unwrap();
    let part = b"encoder.layer.3.output.dense.bias";
    let at = bytes.windows(part.len()).position(|window| window == part).unwrap();
    bytes[at + 14] = b'9';
    std::fs::write(&weights, bytes).unwrap();
    let error = MiniLm::load(place.path()).unwrap_err();
    let TextError::Weights(WeightsError::Missing { name, .. }) = &error else { panic!("{error}") };
    assert_eq!(name, "encoder.layer.3.output.dense.bias");
}
