//! The program as a user meets it: exit codes, and errors that say what to do.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

fn mambo(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mambo")).args(arguments).current_dir(folder).output().unwrap()
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_verb_explains_itself() {
    let folder = tempfile::tempdir().unwrap();
    let verbs: [&[&str]; 13] = [
        &["--help"],
        &["generate", "--help"],
        &["data", "fetch", "debian", "--help"],
        &["data", "fetch", "scores", "--help"],
        &["data", "add", "--help"],
        &["data", "render", "--help"],
        &["data", "credits", "--help"],
        &["prepare", "--help"],
        &["train", "codec", "--help"],
        &["train", "lm", "--help"],
        &["eval", "codec", "--help"],
        &["eval", "model", "--help"],
        &["inspect", "--help"],
    ];
    for verb in verbs {
        let output = mambo(folder.path(), verb);
        assert_eq!(output.status.code(), Some(0), "{verb:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("Usage:"), "{verb:?}");
    }
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let folder = tempfile::tempdir().unwrap();
    let wrong: [&[&str]; 6] = [
        &[],
        &["sing"],
        &["generate", "x", "--seconds", "-3"],
        &["generate", "x", "--count", "0"],
        &["prepare", "corpus"],
        &["eval", "model", "--corpus", "corpus", "--shards", "shards", "--split", "train"],
    ];
    for arguments in wrong {
        assert_eq!(mambo(folder.path(), arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn failures_name_the_file_and_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("song.wav"), "this is no sound").unwrap();
    std::fs::write(folder.path().join("taken.wav"), "kept").unwrap();
    std::fs::write(folder.path().join("wrong.toml"), "seed = 1\nmanifest = \"corpus\"\ntempo = 3\n").unwrap();
    let cases: [(&[&str], &[&str]); 6] = [
        (&["inspect", "nothing.wav"], &["nothing.wav"]),
        (&["inspect", "song.wav"], &["song.wav"]),
        (&["generate"], &["--prompts"]),
        (&["generate", "x", "--model", "no-such-folder"], &["no-such-folder", "--model"]),
        (&["generate", "x", "--model", ".", "-o", "taken.wav"], &["taken.wav", "--force"]),
        (&["train", "codec", "wrong.toml", "-o", "run"], &["wrong.toml", "tempo"]),
    ];
    for (arguments, words) in cases {
        let output = mambo(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", error(&output));
        for word in words {
            assert!(error(&output).contains(word), "{arguments:?} should mention {word}: {}", error(&output));
        }
        for cause in ["TOML parse error", "No such file or directory"] {
            assert!(error(&output).matches(cause).count() < 2, "{arguments:?} says {cause} twice: {}", error(&output));
        }
    }
    assert_eq!(std::fs::read_to_string(folder.path().join("taken.wav")).unwrap(), "kept");
}

#[test]
fn completions_are_scripts() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let output = mambo(folder.path(), &["completions", shell]);
        assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("mambo"), "{shell}");
    }
}

#[test]
fn inspect_describes_sound_as_json() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tone.mp3");
    let samples = (0..8000).map(|n| (n as f32 * 0.1).sin() * 0.5).collect();
    // A WAV by content, whatever its name.
    let clip = mambo_audio::AudioClip::from_mono(samples, 8000);
    let mut writer = mambo_audio::AudioWriter::create(&path, mambo_audio::AudioFormat::Wav16, 8000, 1, false).unwrap();
    writer.write(&clip).unwrap();
    writer.finish().unwrap();
    let output = mambo(folder.path(), &["inspect", "tone.mp3", "--json"]);
    let facts: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((facts["sample rate"].as_u64(), facts["seconds"].as_f64()), (Some(8000), Some(1.0)));
    assert!(facts["format"].as_str().unwrap().to_lowercase().contains("wav"), "{facts}");
}
