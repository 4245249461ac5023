//! The model that comes with the repository, through the program: same seed, same bytes; sound, and not too much of it.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use mambo_audio::analysis::chroma_correlation;
use mambo_audio::{AudioClip, measure, read};

fn generate(arguments: &[&str]) -> Output {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join("tiny");
    let output = Command::new(env!("CARGO_BIN_EXE_mambo"))
        .args(["generate", "--model", model.to_str().unwrap(), "--seconds", "6"])
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn file(folder: &Path, name: &str) -> (PathBuf, String) {
    let path = folder.join(name);
    let text = path.to_str().unwrap().to_owned();
    (path, text)
}

#[test]
fn a_seed_decides_every_byte_and_another_prompt_or_seed_is_another_clip() {
    let folder = tempfile::tempdir().unwrap();
    let mut clips = Vec::new();
    for (name, prompt, seed) in [
        ("a.wav", "calm piano", "1"),
        ("again.wav", "calm piano", "1"),
        ("other-seed.wav", "calm piano", "2"),
        ("other-prompt.wav", "fast techno", "1"),
        ("no-prompt.wav", "", "1"),
    ] {
        let (path, text) = file(folder.path(), name);
        generate(&[prompt, "--seed", seed, "-o", &text]);
        let clip = read(&path).unwrap();
        assert_eq!((clip.frames(), clip.sample_rate), (6 * 44_100, 44_100), "{name}");
        let loudness = measure(&clip);
        assert!(loudness.true_peak_dbfs < 0.0 && loudness.true_peak_dbfs > -40.0, "{name}: {loudness:?}");
        clips.push(std::fs::read(path).unwrap());
    }
    assert_eq!(clips[0], clips[1]);
    let mut different = clips.clone();
    different.sort();
    different.dedup();
    assert_eq!(different.len(), clips.len() - 1);
    // The same samples go to standard output while they are made; only the length in the header is not known there.
    let streamed = generate(&["calm piano", "--seed", "1", "-o", "-"]).stdout;
    let samples = 6 * 44_100 * 2;
    assert_eq!(streamed.len(), clips[0].len());
    assert_eq!(streamed[streamed.len() - samples..], clips[0][clips[0].len() - samples..]);
}

#[test]
fn the_second_stage_is_heard_unless_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let clip = |name: &str, more: &[&str]| {
        let (path, text) = file(folder.path(), name);
        generate(&[&["calm piano", "-o", &text], more].concat());
        read(&path).unwrap()
    };
    let painted = clip("painted.wav", &["--seed", "1"]);
    let outline = clip("outline.wav", &["--seed", "1", "--stage1-only"]);
    let guided = clip("guided.wav", &["--seed", "1", "--refine-guidance", "2"]);
    let other = clip("other.wav", &["--seed", "2", "--stage1-only"]);
    assert!(painted.channels != outline.channels && painted.channels != guided.channels);
    // Other detail, the same notes at the same time.
    let alike = |clip: &AudioClip| chroma_correlation(&painted.channels[0], &clip.channels[0], 44_100);
    let found = (alike(&outline), alike(&other));
    assert!(found.0 > found.1 + 0.1, "{found:?}");
}

#[test]
fn prompts_from_a_file_make_numbered_clips() {
    let folder = tempfile::tempdir().unwrap();
    let (path, prompts) = file(folder.path(), "prompts.txt");
    std::fs::write(path, "# two\ndark ambient\n\nchiptune melody\n").unwrap();
    let (clips, out) = file(folder.path(), "clips/");
    let output = generate(&["--prompts", &prompts, "--seed", "3", "--format", "flac", "-o", &out, "--json"]);
    let made: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(made.as_array().unwrap().len(), 2);
    for name in ["clip-001.flac", "clip-002.flac"] {
        assert_eq!(read(&clips.join(name)).unwrap().frames(), 6 * 44_100);
    }
}

#[test]
fn a_tempo_is_kept_or_left_out_as_asked() {
    let folder = tempfile::tempdir().unwrap();
    let mut clips = Vec::new();
    for (name, asked, expected) in [("140.wav", "140", Some(140.0)), ("none.wav", "0", None)] {
        let (path, text) = file(folder.path(), name);
        let output = generate(&["techno", "--seed", "1", "--tempo", asked, "-o", &text, "--json"]);
        let made: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(made[0]["tempo"].as_f64(), expected);
        clips.push(std::fs::read(path).unwrap());
    }
    assert_ne!(clips[0], clips[1]);
}
