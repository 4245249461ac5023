//! DAC against transformers' DacModel (tools/reference/dac.py) and the original package (tools/reference/dac_original.py),
//! both in float64, and its laws: windows change nothing, neither do
//! the pushes of a stream.
#![allow(clippy::unwrap_used)]

mod checkpoints;
mod published;

use std::path::Path;

use checkpoints::{Tensor, floats, lightning, piece};

use mambo_model::codec::dac::{Dac, DacConfig, DacError};
use mambo_model::codec::{self, Codec, StreamCodec};
use mambo_model::published::ConfigError;
use mambo_model::tokens::CodecTokens;
use published::{Golden, distance, golden, worst_and_peak};

/// Relative error allowed to what is computed in f32, and error of a sample beside the peak.
const LIMIT: f64 = 1e-4;

fn dac() -> Dac {
    Dac::load(&golden("dac")).unwrap()
}

fn check_encoding(dac: &Dac, golden: &Golden) {
    let (tokens, projections) = dac.encode_with_projections(&golden.narrow("samples"));
    assert_eq!(tokens.codes, golden.codes("codes"));
    let off = distance(&projections, &golden.wide("projections"));
    assert!(off < LIMIT, "projections: {off:.1e}");
    assert_eq!(dac.tokens_of(&projections, 4), tokens);
}

fn check_decoding(dac: &Dac, golden: &Golden, levels: usize, name: &str) {
    let codes = golden.codes("codes");
    let frames = codes.len() / 4;
    let got = dac.decode(&CodecTokens::new(dac.spec().clone(), codes, frames).unwrap(), levels, 0);
    let (worst, peak) = worst_and_peak(&got, &golden.wide(name));
    assert!(peak > 0.1 && worst < LIMIT * peak, "{levels} levels: {worst:.1e} of {peak}");
}

#[test]
fn a_folder_of_hugging_face_gives_what_its_library_gives() {
    let (dac, golden) = (dac(), Golden::read("dac"));
    let off = distance(&dac.latents(&golden.narrow("samples")), &golden.wide("latents"));
    assert!(off < LIMIT, "latents: {off:.1e}");
    check_encoding(&dac, &golden);
    check_decoding(&dac, &golden, 1, "decoded_1");
    check_decoding(&dac, &golden, 4, "decoded_4");
}

#[test]
fn the_original_checkpoint_gives_what_the_original_package_gives() {
    let (dac, golden) = (Dac::load(&golden("dac_original.pth")).unwrap(), Golden::read("dac_original"));
    check_encoding(&dac, &golden);
    check_decoding(&dac, &golden, 4, "decoded");
}

/// A window ends at token 256; what the first 200 tokens give alone, up to what a neighbour reaches, they give in it.
#[test]
fn what_comes_later_changes_nothing_before_its_reach() {
    let (dac, samples) = (dac(), Golden::read("dac").narrow("samples"));
    let whole = dac.encode(&samples);
    let part = dac.encode(&samples[..8 * 200]);
    for level in 0..4 {
        assert_eq!(whole.row(level)[..180], part.row(level)[..180]);
    }
    let sound = dac.decode(&whole, 4, 0);
    let mut stream = dac.decoder(4, 0);
    let mut pushed: Vec<f32> = (0..150).flat_map(|t| stream.push(&whole.frame(t))).collect();
    pushed.extend(stream.finish());
    assert_eq!(pushed.len(), 150 * 8);
    assert_eq!(sound[..120 * 8], pushed[..120 * 8]);
}

#[test]
fn whatever_codec_a_path_holds_is_opened() {
    for (place, name) in [("dac", "dac"), ("dac_original.pth", "dac"), ("encodec_reflect", "encodec")] {
        let codec = codec::open(&golden(place)).unwrap();
        let (rows, width) = codec.codebooks();
        assert_eq!((codec.spec().name.as_str(), rows.len()), (name, codec.spec().levels * 32 * width));
        let tokens = codec.encode(&[0.1; 900]);
        let mut stream = codec.decoder(2, 0);
        let mut samples: Vec<f32> = (0..tokens.frames).flat_map(|t| stream.push(&tokens.frame(t))).collect();
        samples.extend(stream.finish());
        assert_eq!(samples, codec.decode(&tokens, 2, 0));
    }
}

#[test]
fn a_folder_that_is_no_dac_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let message = |folder: &Path| Dac::load(folder).err().unwrap().to_string();
    assert!(message(folder.path()).contains("config.json"));
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    assert!(message(folder.path()).contains("encoder_hidden_size"));
    let config = std::fs::read_to_string(golden("dac/config.json")).unwrap();
    std::fs::write(folder.path().join("config.json"), config.replace("\"n_codebooks\": 4", "\"n_codebooks\": 0"))
        .unwrap();
    assert!(
        matches!(Dac::load(folder.path()), Err(DacError::Config(ConfigError::Rule { rule, .. })) if rule.contains("n_codebooks"))
    );
    std::fs::write(folder.path().join("config.json"), config.replace("\"n_codebooks\": 4", "\"n_codebooks\": 5"))
        .unwrap();
    std::fs::copy(golden("dac/model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    assert!(message(folder.path()).contains("quantizer.quantizers.4.in_proj.weight is missing"));
}

#[test]
fn sizes_beyond_measure_are_refused_by_name() {
    let long = DacConfig { downsampling_ratios: vec![64; 3], upsampling_ratios: vec![64; 3], ..DacConfig::default() };
    assert!(long.broken_rule().unwrap().contains("at most 65536 samples a token"));
    assert_eq!(DacConfig::default().broken_rule(), None);
    // A list of strides without end is not looked through for each of them.
    let rates = [b"](".to_vec(), b"K\x02".repeat(200_000), b"e".to_vec()].concat();
    let size = |name: &'static str| (name, piece::int(2));
    let mut sizes = vec![("encoder_rates", rates.clone()), ("decoder_rates", rates)];
    sizes.extend(
        ["encoder_dim", "decoder_dim", "n_codebooks", "codebook_size", "codebook_dim", "sample_rate"].map(size),
    );
    let metadata = piece::dictionary(&[("kwargs", piece::dictionary(&sizes))]);
    let state = [("a", Tensor::plain("0", &[1]))];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.pth");
    std::fs::write(&path, lightning(&state, &[("0", floats([1.0]))], &[("metadata", metadata)])).unwrap();
    let error = Dac::load(&path).err().unwrap().to_string();
    assert!(error.contains("downsampling_ratios: 1 to 8"), "{error}");
}
