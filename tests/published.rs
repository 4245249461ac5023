//! Published parts through the program: a language model over DAC tokens and T5 states is trained and heard, a MusicGen is
//! one more model, and sound goes through codecs to files and back. All weights are random, in the published layouts.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use mambo_audio::{AudioClip, AudioFormat, read, write};

fn golden(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/model/tests/golden").join(name);
    folder.to_str().unwrap().to_owned()
}

fn mambo(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mambo")).args(arguments).current_dir(folder).output().unwrap()
}

/// Runs what must go well; what it printed.
fn done(folder: &Path, arguments: &[&str]) -> String {
    let output = mambo(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs what must fail; the message.
fn failed(folder: &Path, arguments: &[&str]) -> String {
    let output = mambo(folder, arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A tone that rises with the number, with some life in it.
fn song(folder: &Path, name: &str, number: usize, rate: u32, seconds: f64) -> PathBuf {
    let samples = (0..(seconds * f64::from(rate)) as usize).map(|n| {
        let time = n as f32 / rate as f32;
        let beat = 1.0 - (2.0 * time).fract();
        beat * (std::f32::consts::TAU * (150.0 + 60.0 * number as f32) * time).sin() * 0.5
    });
    let path = folder.join(name);
    write(&path, &AudioClip::from_mono(samples.collect(), rate), AudioFormat::Wav16, true).unwrap();
    path
}

/// The small DAC at a low rate, so that a second has a thousand frames and not five.
fn slow_dac(folder: &Path) -> String {
    let dac = folder.join("dac");
    std::fs::create_dir(&dac).unwrap();
    let config = std::fs::read_to_string(Path::new(&golden("dac")).join("config.json")).unwrap();
    assert!(config.contains("\"sampling_rate\": 44100"));
    std::fs::write(dac.join("config.json"), config.replace("\"sampling_rate\": 44100", "\"sampling_rate\": 8000"))
        .unwrap();
    std::fs::copy(Path::new(&golden("dac")).join("model.safetensors"), dac.join("model.safetensors")).unwrap();
    dac.to_str().unwrap().to_owned()
}

const EXPERIMENT: &str = r#"
name = "DAC tokens"
seed = 1
[data]
shards = ["shards"]
frames = 200
validate_on = ["valid"]
[model]
backbone = "cross_simba"
codebooks = 4
delays = [0, 1, 2, 3]
cardinality = 32
d_model = 32
layers = 2
d_state = 16
head_dim = 16
attention_head_dim = 16
text_width = 48
head = "free"
[optim]
rate = 1e-2
[train]
steps = 30
batch = 2
codec_vectors = true
log_every = 10
validate_every = 15
sample_every = 15
"#;

#[test]
fn a_language_model_over_dac_tokens_and_t5_states_is_trained_and_heard() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    let (dac, text) = (slow_dac(folder), golden("flan_t5"));
    std::fs::create_dir(folder.join("music")).unwrap();
    for (n, split) in ["train", "train", "valid"].iter().enumerate() {
        song(&folder.join("music"), &format!("{n}.wav"), n, 8000, 3.0);
        let about = format!(r#"{{"caption": "song {n}", "split": "{split}", "artist": "{n}"}}"#);
        std::fs::write(folder.join("music").join(format!("{n}.json")), about).unwrap();
    }
    done(folder, &["data", "add", "music", "-o", "corpus", "--licence", "CC0-1.0"]);
    let prepare = ["prepare", "corpus", "-o", "shards", "--codec", &dac, "--text", &text];
    let sizes = ["--seconds", "2", "--min-seconds", "1", "--versions", "2"];
    done(folder, &[&prepare[..], &sizes].concat());
    std::fs::write(folder.join("lm.toml"), EXPERIMENT).unwrap();
    done(folder, &["train", "lm", "lm.toml", "-o", "run", "--codec", &dac, "--text", &text]);
    let metrics = std::fs::read_to_string(folder.join("run/metrics.jsonl")).unwrap();
    let losses: Vec<f64> = metrics
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()?["train/loss"].as_f64())
        .collect();
    assert!(losses.len() == 3 && losses[2] < 0.95 * losses[0], "{losses:?}");
    assert_eq!(read(&folder.join("run/samples/step-000015.wav")).unwrap().sample_rate, 8000);
    let with = ["generate", "song", "--model", "run/best", "--codec", &dac, "--seconds", "1", "--seed", "1"];
    done(folder, &[&with[..], &["--text", &text, "-o", "one.wav"]].concat());
    let clip = read(&folder.join("one.wav")).unwrap();
    assert_eq!((clip.frames(), clip.sample_rate), (8000, 8000));
    assert!(clip.channels[0].iter().any(|sample| sample.abs() > 0.01));
    // With codec and text encoder inside, the folder needs nothing else.
    for (part, from) in [("codec", &dac), ("text", &text)] {
        std::fs::create_dir(folder.join("run/best").join(part)).unwrap();
        for name in ["config.json", "model.safetensors", "tokenizer.json"] {
            let _ = std::fs::copy(Path::new(from).join(name), folder.join("run/best").join(part).join(name));
        }
    }
    let alone = ["generate", "song", "--model", "run/best", "--seconds", "1", "--seed", "1", "-o", "two.wav"];
    done(folder, &alone);
    assert_eq!(std::fs::read(folder.join("one.wav")).unwrap(), std::fs::read(folder.join("two.wav")).unwrap());
    let facts = done(folder, &["inspect", "run/best"]);
    assert!(facts.contains("published dac folder"), "{facts}");
    // Parts that do not fit are named.
    let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
    let (text, codec) = (other.join("text"), other.join("codec"));
    let message = failed(folder, &[&alone[..8], &["--text", text.to_str().unwrap(), "-o", "three.wav"]].concat());
    assert!(message.contains("width 48") && message.contains("384"), "{message}");
    let message = failed(folder, &[&alone[..8], &["--codec", codec.to_str().unwrap(), "-o", "three.wav"]].concat());
    assert!(message.contains("dac (8000 Hz") && message.contains("house (44100 Hz"), "{message}");
}

#[test]
fn a_musicgen_is_one_more_model() {
    let place = tempfile::tempdir().unwrap();
    let (folder, model) = (place.path(), golden("musicgen"));
    let make = |seed: &str, name: &str| {
        done(folder, &["generate", "rock", "--model", &model, "--seconds", "1", "--seed", seed, "-o", name]);
        std::fs::read(folder.join(name)).unwrap()
    };
    let first = make("1", "a.wav");
    assert_eq!(first, make("1", "b.wav"));
    assert_ne!(first, make("2", "c.wav"));
    assert_eq!(read(&folder.join("a.wav")).unwrap().frames() as u32, read(&folder.join("a.wav")).unwrap().sample_rate);
    let facts = done(folder, &["inspect", &model]);
    assert!(facts.contains("published musicgen folder") && facts.contains("text width"), "{facts}");
    let message = failed(folder, &["generate", "rock", "--model", &model, "--codec", &model, "-o", "d.wav"]);
    assert!(message.contains("leave --codec and --text out"), "{message}");
    // Its codec and its text encoder serve by themselves too.
    song(folder, "song.wav", 1, 16_000, 0.2);
    done(folder, &["codec", "encode", "song.wav", "--codec", &model, "-o", "song.safetensors"]);
    done(folder, &["codec", "decode", "song.safetensors", "--codec", &model, "-o", "again.wav"]);
    assert_eq!(read(&folder.join("again.wav")).unwrap().sample_rate, 32_000);
    assert_eq!(mambo_model::text::open(Path::new(&model)).unwrap().name(), "T5");
    // Tensors that are too many are named.
    let broken = folder.join("broken");
    std::fs::create_dir(&broken).unwrap();
    let config = std::fs::read_to_string(Path::new(&model).join("config.json")).unwrap();
    let layers = "\"num_hidden_layers\": ";
    let at = config.find(layers).unwrap() + layers.len();
    std::fs::write(broken.join("config.json"), format!("{}1{}", &config[..at], &config[at + 1..])).unwrap();
    for name in ["model.safetensors", "tokenizer.json"] {
        std::fs::copy(Path::new(&model).join(name), broken.join(name)).unwrap();
    }
    let message = failed(folder, &["inspect", "broken"]);
    assert!(message.contains("unexpected tensors") && message.contains("layers.1."), "{message}");
}

#[test]
fn sound_goes_through_codecs_to_files_and_back() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    let dac = slow_dac(folder);
    song(folder, "a.wav", 1, 16_000, 1.3);
    song(folder, "b.wav", 2, 8000, 0.5);
    done(folder, &["codec", "encode", "a.wav", "b.wav", "--codec", &dac, "-o", "tokens/"]);
    let facts = done(folder, &["inspect", "tokens/a.safetensors"]);
    assert!(facts.contains("codec tokens") && facts.contains("frames: 1300"), "{facts}");
    let decode = ["codec", "decode", "tokens/a.safetensors", "--codec", &dac];
    done(folder, &[&decode[..], &["-o", "all.wav"]].concat());
    let json = done(folder, &[&decode[..], &["--levels", "2", "-o", "two.flac", "--json"]].concat());
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((json[0]["levels"].as_u64(), json[0]["codes_used"].as_array().map(Vec::len)), (Some(2), Some(2)));
    let [all, two] = ["all.wav", "two.flac"].map(|name| read(&folder.join(name)).unwrap());
    assert_eq!((all.frames(), two.frames()), (10_400, 10_400));
    assert_ne!(all.channels, two.channels);
    for (arguments, part) in [
        (&["codec", "decode", "a.wav"][..], "a.wav"),
        (&[&decode[..], &["-o", "all.wav"]].concat(), "--force"),
        (&[&decode[..], &["--levels", "5", "-o", "y.wav"]].concat(), "has only 4"),
        (&["codec", "encode", "a.wav", "b.wav", "--codec", &dac, "-o", "one"], "need a folder"),
        (&["codec", "encode", "a.wav", "tokens/../a.wav", "--codec", &dac], "would both become"),
        (&["codec", "decode", "tokens/a.safetensors", "--codec", &golden("dac"), "-o", "x.wav"], "another codec"),
    ] {
        let message = failed(folder, arguments);
        assert!(message.contains(part), "{arguments:?}: {message}");
    }
}
