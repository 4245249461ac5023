//! EnCodec against transformers' EncodecModel (tools/reference/encodec.py, float64), both ways of padding.
#![allow(clippy::unwrap_used)]

mod published;

use mambo_model::codec::Codec;
use mambo_model::codec::encodec::{Encodec, EncodecError};
use mambo_model::published::ConfigError;
use mambo_model::tokens::CodecTokens;
use published::{Golden, distance, golden, worst_and_peak};

/// Relative error allowed to latents, and error of a sample beside the peak.
const LIMIT: f64 = 1e-4;

#[test]
fn latents_codes_and_samples_are_the_librarys() {
    for mode in ["encodec_reflect", "encodec_constant"] {
        let codec = Encodec::load(&golden(mode)).unwrap();
        let file = Golden::read(mode);
        for clip in ["whole", "part", "short"] {
            let name = |part: &str| format!("{part}_{clip}");
            let (samples, codes) = (file.narrow(&name("samples")), file.codes(&name("codes")));
            let off = distance(&codec.latents(&samples), &file.wide(&name("latents")));
            assert!(off < LIMIT, "{mode}, {clip}: latents {off:.1e}");
            let tokens = codec.encode(&samples);
            assert_eq!(tokens.codes, codes, "{mode}, {clip}");
            assert_eq!(tokens, CodecTokens::new(codec.spec().clone(), codes, tokens.frames).unwrap());
            let (worst, peak) = worst_and_peak(&codec.decode(&tokens, 4, 0), &file.wide(&name("decoded")));
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
        assert!(matches!(error, EncodecError::Config(ConfigError::Rule { rule, .. }) if rule.contains(part)));
    }
}
