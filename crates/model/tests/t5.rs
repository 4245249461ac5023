//! T5 encoders against transformers' (tools/reference/t5.py, float64), and the tokenizer against sentencepiece.
#![allow(clippy::unwrap_used)]

mod published;

use std::path::Path;

use mambo_model::published::ConfigError;
use mambo_model::text::t5::{MAX_TOKENS, T5, T5Config, T5Network};
use mambo_model::text::{TextEncoder, TextError};
use mambo_model::weights::Weights;
use published::{Golden, distance, golden};

/// Relative error allowed in f32.
const LIMIT: f64 = 1e-4;

fn network(name: &str) -> T5Network {
    let config: T5Config = serde_json::from_slice(&std::fs::read(golden(name).join("config.json")).unwrap()).unwrap();
    let file = Weights::open(&golden(name).join("model.safetensors")).unwrap();
    let network = T5Network::read(config, &file, "").unwrap();
    file.finish().unwrap();
    network
}

#[test]
fn states_are_the_librarys_at_every_length_and_beside_padding() {
    for name in ["t5", "flan_t5"] {
        let network = network(name);
        let file = Golden::read(name);
        // Token ids and states of a case.
        let case = |case: &str| (file.ids(&format!("ids_{case}")), file.wide(&format!("states_{case}")));
        let cases: Vec<_> = [1, 2, 7, 60, 300, 512].map(|length| case(&length.to_string())).into();
        for (ids, expected) in &cases {
            let off = distance(&network.forward(&[(ids, ids.len())]), expected);
            assert!(off < LIMIT, "{name}, {} tokens: {off:.1e}", ids.len());
        }
        // All in one call: a text's states do not depend on the others.
        let texts: Vec<(&[u32], usize)> = cases.iter().map(|(ids, _)| (ids.as_slice(), ids.len())).collect();
        let together: Vec<f64> = cases.iter().flat_map(|(_, states)| states.iter().copied()).collect();
        assert!(distance(&network.forward(&texts), &together) < LIMIT, "{name}, together");
        let (ids, expected) = case("padded");
        let off = distance(&network.forward(&[(&ids, 7)]), &expected);
        assert!(off < LIMIT, "{name}, padded: {off:.1e}");
    }
}

#[derive(serde::Deserialize)]
struct Prompt {
    text: String,
    ids: Vec<u32>,
}

#[test]
fn token_ids_are_sentencepieces() {
    let t5 = T5::load(&golden("flan_t5")).unwrap();
    let prompts: Vec<Prompt> = serde_json::from_slice(&std::fs::read(golden("t5_tokens.json")).unwrap()).unwrap();
    assert_eq!(prompts.len(), 1000);
    let mut wrong = Vec::new();
    for Prompt { text, mut ids } in prompts {
        if ids.len() > MAX_TOKENS {
            ids.truncate(MAX_TOKENS - 1);
            ids.push(1);
        }
        let got = t5.token_ids(&text);
        if got != ids {
            wrong.push(format!("{text:?}: {got:?} against {ids:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} prompts differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn control_tokens_in_a_text_are_ordinary_text() {
    let t5 = T5::load(&golden("flan_t5")).unwrap();
    for text in ["</s>", "a </s> b", "<pad><unk>", "<extra_id_0>"] {
        let ids = t5.token_ids(text);
        assert!(ids[..ids.len() - 1].iter().all(|id| ![0, 1].contains(id) && *id < 1000), "{text}: {ids:?}");
        assert_eq!(ids.last(), Some(&1));
    }
    assert_eq!(t5.token_ids(""), [1]);
}

#[test]
fn texts_are_encoded_apart_and_what_is_wrong_is_named() {
    let t5 = T5::load(&golden("flan_t5")).unwrap();
    let both = t5.encode(&["dark ambient", "rock"]);
    assert_eq!(both[1], t5.encode(&["rock"])[0]);
    assert_eq!(both[0].states.len(), both[0].length * t5.width());
    let folder = tempfile::tempdir().unwrap();
    let message = |folder: &Path| T5::load(folder).err().unwrap().to_string();
    assert!(message(folder.path()).contains("config.json"));
    let config = std::fs::read_to_string(golden("flan_t5/config.json")).unwrap();
    std::fs::write(folder.path().join("config.json"), config.replace("gated-gelu", "gated-silu")).unwrap();
    assert!(
        matches!(T5::load(folder.path()), Err(TextError::Config(ConfigError::Rule { rule, .. })) if rule.contains("gated-gelu"))
    );
    std::fs::write(folder.path().join("config.json"), config.replace("\"num_layers\": 3", "\"num_layers\": 4"))
        .unwrap();
    for file in ["model.safetensors", "tokenizer.json"] {
        std::fs::copy(golden("flan_t5").join(file), folder.path().join(file)).unwrap();
    }
    assert!(message(folder.path()).contains("encoder.block.3.layer.0"));
}
