//! EnCodec against transformers' EncodecModel (tools/reference/encodec.py, float64), both ways of padding.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use mambo_model::codec::Codec;
use mambo_model::codec::encodec::{Encodec, EncodecError};
use mambo_model::tokens::CodecTokens;
use safetensors::SafeTensors;

/// Relative error allowed to latents, and error of a sample beside the peak.
const LIMIT: f64 = 1e-4;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

#[test]
fn latents_codes_and_samples_are_the_librarys() {
    for mode in ["encodec_reflect", "encodec_constant"] {
        let codec = Encodec::load(&golden(mode)).unwrap();
        let bytes = std::fs::read(golden(&format!("{mode}.safetensors"))).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        for clip in ["whole", "part", "short"] {
            let of = |name: &str| file.tensor(&format!("{name}_{clip}")).unwrap().data().to_vec();
            let wide = |name: &str| -> Vec<f64> {
                of(name).chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
            };
            let samples: Vec<f32> =
                of("samples").chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            let codes: Vec<u16> =
                of("codes").chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap()) as u16).collect();
            let (got, expected) = (codec.latents(&samples), wide("latents"));
            assert_eq!(got.len(), expected.len(), "{mode}, {clip}");
            let length = expected.iter().map(|value| value * value).sum::<f64>().sqrt();
            let off = got.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum::<f64>().sqrt() / length;
            assert!(off < LIMIT, "{mode}, {clip}: latents {off:.1e}");
            let tokens = codec.encode(&samples);
            assert_eq!(tokens.codes, codes, "{mode}, {clip}");
            assert_eq!(tokens, CodecTokens::new(codec.spec().clone(), codes, tokens.frames).unwrap());
            let (got, expected) = (codec.decode(&tokens, 4, 0), wide("decoded"));
            assert_eq!(got.len(), expected.len());
            let peak = expected.iter().fold(0.0f64, |peak, value| peak.max(value.abs()));
            let worst = got.iter().zip(&expected).fold(0.0f64, |worst, (a, b)| worst.max((f64::from(*a) - b).abs()));
            assert!(worst < LIMIT * peak, "{mode}, {clip}: {worst:.1e} of {peak}");
        }
    }
}

#[test]
fn what_is_not_supported_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let config = std::fs::read_to_string(golden("encodec_reflect/config.json")).unwrap();
    for (from, to, part) in [
        ("\"use_causal_conv\": false", "\"use_causal_conv\": true", "use_causal_conv"),
        ("\"normalize\": false", "\"normalize\": true", "normalize"),
        ("\"audio_channels\": 1", "\"audio_channels\": 2", "audio_channels"),
        ("\"weight_norm\"", "\"time_group_norm\"", "norm_type"),
    ] {
        assert!(config.contains(from));
        std::fs::write(folder.path().join("config.json"), config.replace(from, to)).unwrap();
        let error = Encodec::load(folder.path()).err().unwrap();
        assert!(matches!(error, EncodecError::Config { rule, .. } if rule.contains(part)));
    }
}
