//! The house codec with random weights: shapes, files, and the law that windows do not depend on how frames arrive.

#![allow(clippy::unwrap_used)]

use mambo_model::codec::{
    BandLayout, Codec, Decoding, HouseCodec, HouseConfig, LEVEL_CHOICES, StreamCodec, level_choice,
};
use mambo_model::diffusion::DenoiserConfig;
use mambo_model::parameters::{Initialiser, Parameters};
use mambo_model::tokens::CodecSpec;

fn small() -> (HouseConfig, Parameters) {
    let config = HouseConfig {
        spec: CodecSpec { name: "house".into(), sample_rate: 8000, hop: 512, levels: 8, cardinality: 32 },
        layout: BandLayout { window: 512, hop: 128, linear: 20, logarithmic: 12 },
        latent: 8,
        context: 1,
        flow: DenoiserConfig { width: 16, blocks: 2, kernel: 3, expansion: 2, state: 0 },
        decoding: Decoding { steps: 2, noise: 0.8, steady: 0.3, griffin_lim: 4, momentum: 0.9, window: 10, halo: 4 },
    };
    let mut parameters = config.parameters(&mut Initialiser::seeded(1));
    let mut draw = Initialiser::seeded(2);
    for name in ["project.weight", "codebooks", "mean.weight", "mean.bias", "flow.output.weight"] {
        let values = parameters.values_mut(name).expect("listed");
        let random = draw.normal(values.len(), 0.2);
        values.copy_from_slice(&random);
    }
    parameters.values_mut("bands.mean").expect("listed").fill(-1.0);
    parameters.values_mut("bands.deviation").expect("listed").fill(1.5);
    parameters.values_mut("mean.deviation").expect("listed").fill(0.3);
    (config, parameters)
}

fn tone(samples: usize) -> Vec<f32> {
    (0..samples).map(|n| 0.3 * (n as f32 * 0.2 + (n as f32 * 0.001).sin() * 30.0).sin()).collect()
}

#[test]
fn sound_to_tokens_and_back() {
    let (config, parameters) = small();
    let codec = HouseCodec::new(config, parameters);
    let sound = tone(512 * 37 + 100);
    let tokens = codec.encode(&sound);
    assert_eq!((tokens.frames, tokens.spec.levels), (38, 8));
    for levels in 1..=8 {
        let back = codec.decode(&tokens, levels, 5);
        assert_eq!(back.len(), 38 * 512);
        assert!(back.iter().all(|v| v.is_finite()) && back.iter().any(|v| v.abs() > 1e-4));
        assert_eq!(back, codec.decode(&tokens, levels, 5), "same seed, same samples");
        assert_ne!(back, codec.decode(&tokens, levels, 6), "the flow starts from the seed's noise");
    }
}

#[test]
fn a_stream_gives_what_decode_gives_as_it_goes() {
    let (config, parameters) = small();
    let codec = HouseCodec::new(config, parameters);
    let tokens = codec.encode(&tone(512 * 60));
    let whole = codec.decode(&tokens, 8, 3);
    let mut stream = codec.decoder(8, 3);
    let mut sound = Vec::new();
    let mut blocks = 0;
    for t in 0..tokens.frames {
        let block = stream.push(&tokens.frame(t));
        blocks += usize::from(!block.is_empty());
        sound.extend(block);
    }
    assert!(blocks >= 4, "sound comes while frames are still arriving: {blocks} blocks");
    sound.extend(stream.finish());
    assert_eq!(sound, whole);
}

#[test]
fn a_window_only_needs_its_context() {
    // The network sees 3 taps in 2 blocks and 1 token in the mean: far tokens change nothing.
    let (mut config, parameters) = small();
    config.decoding = Decoding { steps: 1, halo: 4, ..config.decoding };
    let codec = HouseCodec::new(config.clone(), parameters.clone());
    let tokens = codec.encode(&tone(512 * 30));
    let latents = codec.quantizer().decode(&tokens.codes, 30, 8);
    let noise: Vec<f32> = Initialiser::seeded(9).normal(30 * config.width(), 1.0);
    let whole = codec.spectrum(&latents, 3, noise.clone());
    let part = codec.spectrum(
        &latents[6 * config.latent..24 * config.latent],
        3,
        noise[6 * config.width()..24 * config.width()].to_vec(),
    );
    let (from, to) = (10 * config.width(), 20 * config.width());
    let shift = 6 * config.width();
    for (a, b) in whole[from..to].iter().zip(&part[from - shift..to - shift]) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
}

#[test]
fn a_folder_round_trips_and_a_wrong_one_is_explained() {
    let (config, parameters) = small();
    let folder = tempfile::tempdir().expect("a folder");
    HouseCodec::save(&config, &parameters, folder.path()).expect("saved");
    let codec = HouseCodec::load(folder.path()).expect("loaded");
    assert_eq!(codec.config(), &config);
    let sound = tone(512 * 12);
    let tokens = codec.encode(&sound);
    assert_eq!(codec.decode(&tokens, 8, 1).len(), 512 * 12);

    let path = folder.path().join("config.json");
    let text = std::fs::read_to_string(&path).expect("text");
    std::fs::write(&path, text.replace("\"latent\": 8", "\"latent\": 9")).expect("written");
    let message = HouseCodec::load(folder.path()).err().expect("refused").to_string();
    assert!(message.contains("project.weight") && message.contains("shape"), "{message}");
    std::fs::write(&path, text.replace("\"hop\": 128", "\"hop\": 100")).expect("written");
    let message = HouseCodec::load(folder.path()).err().expect("refused").to_string();
    assert!(message.contains("config.json") && message.contains("multiple"), "{message}");
    std::fs::write(&path, text.replace("\"latent\"", "\"lantern\"")).expect("written");
    let message = HouseCodec::load(folder.path()).err().expect("refused").to_string();
    assert!(message.contains("lantern"), "{message}");
    let message = HouseCodec::load(&folder.path().join("nothing")).err().expect("refused").to_string();
    assert!(message.contains("nothing") && message.contains("config.json"), "{message}");
}

#[test]
fn levels_map_to_trained_choices() {
    let used: Vec<usize> = (1..=8).map(|levels| LEVEL_CHOICES[level_choice(levels)]).collect();
    assert_eq!(used, [1, 2, 2, 4, 4, 4, 4, 8]);
}
