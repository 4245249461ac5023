//! A codec trained from nothing on made-up sound: it learns, and an interrupted run ends in the same bytes.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::atomic::AtomicBool;

use mambo_audio::{AudioClip, AudioFormat, AudioWriter};
use mambo_model::codec::{BandLayout, Codec, Decoding, HouseCodec, HouseConfig};
use mambo_model::diffusion::DenoiserConfig;
use mambo_model::tokens::CodecSpec;
use mambo_train::codec::{CodecExperiment, CodecTrainError, FitConfig, FlowTrainConfig, floor, run};
use mambo_train::optim::OptimConfig;

const RATE: u32 = 8000;

/// Melodies of four decaying partials, different for every seed.
fn melody(seed: u32, seconds: u32) -> Vec<f32> {
    (0..RATE * seconds)
        .map(|n| {
            let note = n / (RATE / 4);
            let pitch = 110.0 * 2f32.powf(((note * 7 + seed * 5) % 24) as f32 / 12.0);
            let within = (n % (RATE / 4)) as f32 / RATE as f32;
            let phase = std::f32::consts::TAU * pitch * n as f32 / RATE as f32;
            (1..=4).map(|k| (phase * k as f32).sin() / k as f32).sum::<f32>() * 0.2 * (-6.0 * within).exp()
        })
        .collect()
}

fn corpus(folder: &Path) {
    let mut rows = String::new();
    for (index, split) in ["train", "train", "train", "valid"].into_iter().enumerate() {
        let name = format!("{index}.wav");
        let mut writer = AudioWriter::create(&folder.join(&name), AudioFormat::Wav16, RATE, 1, false).expect("a file");
        writer.write(&AudioClip::from_mono(melody(index as u32, 12), RATE)).expect("written");
        writer.finish().expect("finished");
        let row = serde_json::json!({
            "id": index.to_string(), "path": name, "source": name, "sha256": "", "attribution": {},
            "seconds": 12.0, "sample_rate": RATE, "channels": 1, "split": split, "split_group": "made-up", "tier": "T",
            "captions": [], "tags": [],
        });
        rows.push_str(&format!("{row}\n"));
    }
    std::fs::write(folder.join("manifest.jsonl"), rows).expect("a manifest");
}

fn experiment(corpus: &Path) -> CodecExperiment {
    CodecExperiment {
        seed: 3,
        manifest: corpus.to_owned(),
        tiers: Vec::new(),
        codec: HouseConfig {
            spec: CodecSpec { name: "house".into(), sample_rate: RATE, hop: 512, levels: 8, cardinality: 24 },
            layout: BandLayout { window: 512, hop: 128, linear: 40, logarithmic: 16 },
            latent: 12,
            context: 1,
            flow: DenoiserConfig { width: 32, blocks: 2, kernel: 3, expansion: 2, state: 0 },
            decoding: Decoding { window: 40, halo: 8, ..Decoding::default() },
        },
        fit: FitConfig { speeds: vec![1.0, 1.06], tokens: 5000, rounds: 5, ..FitConfig::default() },
        flow: FlowTrainConfig { steps: 40, batch: 4, tokens: 24, every: 20, bf16: false },
        optim: OptimConfig { rate: 2e-3, warmup: 5, ema: 0.9, ..OptimConfig::default() },
    }
}

/// Cosine of two spectra, each value of every frame counted.
fn likeness(codec: &HouseCodec, a: &[f32], b: &[f32]) -> f64 {
    let (a, b) = (codec.features(a), codec.features(b));
    let dot = |x: &[f32], y: &[f32]| -> f64 { x.iter().zip(y).map(|(x, y)| f64::from(x * y)).sum() };
    dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
}

#[test]
fn it_learns_and_resumes_to_the_same_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    corpus(folder.path());
    let experiment = experiment(folder.path());
    let go_on = AtomicBool::new(false);
    let whole = run(&experiment, &folder.path().join("whole"), &go_on).expect("trained");
    assert_eq!((whole.step, whole.stopped), (40, false));
    assert!(whole.validation < 0.98, "the flow learns: validation loss {}", whole.validation);

    let stop = AtomicBool::new(true);
    let parts = folder.path().join("parts");
    let first = run(&experiment, &parts, &stop).expect("a step");
    assert!(first.stopped && first.step == 1);
    let second = run(&experiment, &parts, &go_on).expect("the rest");
    let read = |summary: &Path| std::fs::read(summary.join("codec.safetensors")).expect("weights");
    assert!(read(&whole.folder) == read(&second.folder), "an interrupted run ends in the same weights");

    let codec = HouseCodec::load(&whole.folder).expect("loads");
    let unheard = melody(3, 12);
    let tokens = codec.encode(&unheard);
    let (one, eight) = (codec.decode(&tokens, 1, 0), codec.decode(&tokens, 8, 0));
    let (rough, fine) = (likeness(&codec, &unheard, &one), likeness(&codec, &unheard, &eight));
    assert!(rough > 0.3 && fine > rough + 0.05, "one level {rough:.3}, eight {fine:.3}");

    let kmeans = floor(&experiment).expect("the floor codec");
    let back = kmeans.decode(&kmeans.encode(&unheard), 8, 0);
    assert!(likeness(&codec, &unheard, &back) > 0.3);
}

#[test]
fn too_little_music_is_explained() {
    let folder = tempfile::tempdir().expect("a folder");
    corpus(folder.path());
    let mut experiment = experiment(folder.path());
    experiment.codec.spec.cardinality = 60_000;
    let error = run(&experiment, &folder.path().join("run"), &AtomicBool::new(false)).expect_err("too little");
    assert!(matches!(error, CodecTrainError::TooLittle { split: "train", .. }), "{error}");
    assert!(error.to_string().contains("manifest.jsonl"), "{error}");
}
