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
    let verbs: &[&[&str]] = &[
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
        &["train", "diffusion", "--help"],
        &["eval", "codec", "--help"],
        &["eval", "model", "--help"],
        &["codec", "encode", "--help"],
        &["codec", "decode", "--help"],
        &["import", "--help"],
        &["import", "ssm-ttm", "--help"],
        #[cfg(feature = "hub")]
        &["pull", "--help"],
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
    let wrong: &[&[&str]] = &[
        &[],
        &["sing"],
        &["generate", "x", "--seconds", "-3"],
        &["generate", "x", "--count", "0"],
        &["prepare", "corpus"],
        &["codec", "encode"],
        &["codec", "decode", "a.safetensors", "--levels", "0"],
        &["import", "file.ckpt"],
        &["import", "ssm-ttm", "file.ckpt"],
        &["eval", "model", "--corpus", "corpus", "--shards", "shards", "--split", "train"],
        &["eval", "files", ".", ".", "--html", "no-such-folder/page.html"],
        &["eval", "codec", ".", "--corpus", "corpus", "--plot", "."],
        &["pull"],
        &["pull", "one-word"],
        &["pull", "../escape"],
        &["pull", "org/name", "--force"],
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
    let cases: [(&[&str], &[&str]); 7] = [
        (&["inspect", "nothing.wav"], &["nothing.wav"]),
        (&["inspect", "song.wav"], &["song.wav"]),
        (&["generate"], &["--prompts"]),
        (&["generate", "x", "--model", "no-such-folder"], &["no-such-folder", "--model"]),
        (&["generate", "x", "--model", ".", "-o", "taken.wav"], &["taken.wav", "--force"]),
        (&["eval", "files", ".", ".", "--html", "taken.wav"], &["taken.wav", "--force"]),
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

/// A tiny checkpoint in the published layout.
const CHECKPOINT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/crates/model/tests/golden/ssm_ttm.ckpt");

#[test]
fn inspect_describes_second_stages_and_experiments() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let facts = |path: &str| -> serde_json::Value {
        serde_json::from_slice(&mambo(root, &["inspect", path, "--json"]).stdout).unwrap()
    };
    let (folder, file) = (facts("crates/model/tests/golden/refiner_v"), facts("configs/refiner.toml"));
    assert_eq!((&folder["kind"], &folder["shape"]["text_heads"]), (&"second-stage folder".into(), &2.into()));
    assert_eq!((&file["kind"], &file["cost"]["parameters"]), (&"second-stage experiment".into(), &3_382_252.into()));
    let codec = facts("configs/codec.toml");
    assert_eq!((&codec["kind"], &codec["shape"]["spec"]["hop"]), (&"codec experiment".into(), &2048.into()));
    let other = mambo(root, &["inspect", "configs/refiner.toml", "--codec", "models/tiny/text"]);
    assert_eq!(other.status.code(), Some(1));
    assert!(error(&other).contains("models/tiny/text"), "{}", error(&other));
}

#[test]
fn import_writes_a_model_folder_and_spares_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let import = |more: &[&str]| {
        mambo(folder.path(), &[&["import", "ssm-ttm", CHECKPOINT, "--output", "models/new"], more].concat())
    };
    // The folder above is made too.
    let output = import(&[]);
    assert!(output.status.success(), "{}", error(&output));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    for word in ["models/new", "2 blocks of width 32", "21500 steps", "left out: 3 tensors of the text encoder, 61 of"]
    {
        assert!(said.contains(word), "{said} should mention {word}");
    }
    let made = folder.path().join("models/new");
    let names = || {
        let mut names: Vec<_> = made.read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(), ["lm.safetensors", "lm.toml"]);
    assert_eq!(folder.path().join("models").read_dir().unwrap().count(), 1, "nothing is left beside it");
    let facts: serde_json::Value =
        serde_json::from_slice(&mambo(folder.path(), &["inspect", "models/new", "--json"]).stdout).unwrap();
    assert_eq!(facts["language model"]["shape"]["head"], "published");

    std::fs::write(made.join("notes.txt"), "mine").unwrap();
    std::fs::write(made.join("lm.toml"), "mine").unwrap();
    let refused = import(&[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(error(&refused).contains("--force"), "{}", error(&refused));
    assert_eq!(std::fs::read_to_string(made.join("lm.toml")).unwrap(), "mine");
    let output = import(&["--force", "--json"]);
    let facts: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((facts["step"].as_u64(), facts["model"]["codebooks"].as_u64()), (Some(21_500), Some(2)));
    assert_eq!(std::fs::read_to_string(made.join("notes.txt")).unwrap(), "mine");
    assert!(std::fs::read_to_string(made.join("lm.toml")).unwrap().contains("prefix_simba"));
}

#[test]
fn a_checkpoint_is_listed_and_one_with_a_program_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let output = mambo(folder.path(), &["inspect", CHECKPOINT]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    for line in [
        "hyper_parameters.config.model.d_state: 16",
        "  state_dict.music_model.embedding.1.weight  [17,32]  F32",
        "  optimizer_states.0.state.0.exp_avg  [32]  F32",
    ] {
        assert!(said.lines().any(|said| said == line), "{said} should have the line {line}");
    }
    // The name of a dictionary class becomes, byte for byte, that of a way to run a program.
    let bytes = std::fs::read(CHECKPOINT).unwrap();
    let (data, program) = (b"ccollections\nOrderedDict\n", b"csubprocess\ncheck_output\n");
    let at = bytes.windows(data.len()).position(|window| window == data).unwrap();
    let hostile = [&bytes[..at], program, &bytes[at + data.len()..]].concat();
    std::fs::write(folder.path().join("hostile.ckpt"), hostile).unwrap();
    for arguments in [&["inspect", "hostile.ckpt"][..], &["import", "ssm-ttm", "hostile.ckpt", "-o", "made"]] {
        let output = mambo(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        for word in ["hostile.ckpt", "`subprocess.check_output`", "nothing was run"] {
            assert!(error(&output).contains(word), "{arguments:?}: {}", error(&output));
        }
    }
    assert!(!folder.path().join("made").exists());
}
