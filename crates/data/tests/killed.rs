//! `prepare` killed with SIGKILL at random moments, twenty times: the shards are those of one undisturbed run.
#![cfg(unix)]
#![allow(clippy::unwrap_used)] // test code

use half::f16;
use mambo_audio::{AudioClip, AudioFormat, AudioWriter};
use mambo_data::manifest::{Attribution, Manifest, Split, Track};
use mambo_data::prepare::{PrepareOptions, Stages, prepare};
use mambo_data::shard::TextStates;
use mambo_model::codec::Codec;
use mambo_model::tokens::{CodecSpec, CodecTokens};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the child works; set only for the child.
const FOLDER: &str = "MAMBO_TEST_KILLED_FOLDER";
const KILLS: usize = 20;

/// A codec that takes its time.
struct Slow(CodecSpec);

impl Codec for Slow {
    fn spec(&self) -> &CodecSpec {
        &self.0
    }

    fn encode(&self, mono: &[f32]) -> CodecTokens {
        std::thread::sleep(Duration::from_millis(2));
        let codes: Vec<u16> =
            mono.chunks(self.0.hop as usize).map(|frame| (frame[0].abs() * 500.0) as u16 % 1024).collect();
        CodecTokens { spec: self.0.clone(), frames: codes.len(), codes }
    }

    fn decode(&self, tokens: &CodecTokens, _levels: usize, _seed: u64) -> Vec<f32> {
        vec![0.0; tokens.frames * self.0.hop as usize]
    }
}

fn run(folder: &Path, out: &Path) {
    let codec = Slow(CodecSpec { name: "slow".into(), sample_rate: 8_000, hop: 400, levels: 1, cardinality: 1024 });
    let text = |texts: &[&str]| {
        Ok(texts.iter().map(|text| TextStates { states: vec![f16::from_f32(text.len() as f32)] }).collect())
    };
    let stages = Stages {
        codec: &codec,
        codec_hash: String::new(),
        tagger: None,
        tagger_hash: String::new(),
        text: &text,
        text_name: "length".into(),
        text_hash: String::new(),
        text_width: 1,
    };
    let options = PrepareOptions {
        manifests: vec![folder.into()],
        out: out.into(),
        segment_seconds: 3.0,
        min_seconds: 1.0,
        versions: 4,
        tiers: vec![],
        seed: 3,
        part: 1,
        parts: 1,
    };
    prepare(&options, &stages, &mut |_| {}).unwrap();
}

/// Not a test of its own: what the parent starts and kills.
#[test]
fn child() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        let folder = PathBuf::from(folder);
        run(&folder, &folder.join("killed"));
    }
}

fn corpus(folder: &Path) {
    let tracks = (0..40)
        .map(|index: u32| {
            let path = PathBuf::from(format!("{index}.wav"));
            let pitch = 0.05 + 0.004 * index as f32;
            let samples = (0..64_000 + index as usize * 500).map(|i| (i as f32 * pitch).sin() * 0.3).collect();
            let mut writer = AudioWriter::create(&folder.join(&path), AudioFormat::Wav16, 8_000, 1, false).unwrap();
            writer.write(&AudioClip::from_mono(samples, 8_000)).unwrap();
            writer.finish().unwrap();
            Track {
                id: format!("{index:016}"),
                path,
                source: format!("file:{index}"),
                sha256: String::new(),
                licence: None,
                attribution: Attribution::default(),
                seconds: 8.0,
                sample_rate: 8_000,
                channels: 1,
                split: Split::Train,
                split_group: String::new(),
                tier: "own".into(),
                captions: vec![],
                tags: vec!["tone".into()],
                score: None,
                notes: vec![],
                dropped: None,
            }
        })
        .collect();
    Manifest { folder: folder.into(), tracks }.save().unwrap();
}

/// Names and bytes of all finished files.
fn content(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let walk = mambo_data::walk::files(folder).unwrap();
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    walk.files.iter().map(|path| (name(path), std::fs::read(path).unwrap())).collect()
}

#[test]
fn twenty_kills_change_no_byte() {
    let folder = tempfile::tempdir().unwrap();
    corpus(folder.path());
    let started = std::time::Instant::now();
    run(folder.path(), &folder.path().join("undisturbed"));
    let whole = started.elapsed();
    let program = std::env::current_exe().unwrap();
    let start = || {
        let mut command = std::process::Command::new(&program);
        command.args(["--exact", "child"]).env(FOLDER, folder.path()).stdout(std::process::Stdio::null());
        command.stderr(std::process::Stdio::null()).spawn().unwrap()
    };
    let mut kills = 0;
    let mut seed = 7_u64;
    while kills < KILLS {
        let mut process = start();
        // Between nothing and most of a run, so that some moments fall into writing.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(whole.mul_f64((seed >> 40) as f64 / (1 << 24) as f64 * 0.8));
        process.kill().unwrap();
        process.wait().unwrap();
        kills += 1;
        if kills % 5 == 0 {
            // Begin anew now and then, or the last kills would meet a finished corpus.
            let _ = std::fs::remove_dir_all(folder.path().join("killed"));
        }
    }
    let mut process = start();
    std::thread::sleep(whole.mul_f64(0.4));
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(start().wait().unwrap().success());
    let (killed, undisturbed) = (content(&folder.path().join("killed")), content(&folder.path().join("undisturbed")));
    assert_eq!(killed.keys().collect::<Vec<_>>(), undisturbed.keys().collect::<Vec<_>>());
    assert!(killed == undisturbed, "a file differs");
    assert_eq!(undisturbed.keys().filter(|name| name.ends_with(".safetensors")).count(), 5);
}
