//! The training loop on a tiny corpus: it learns, it resumes exactly, it refuses what does not fit.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use half::f16;
use mambo_data::shard::{ShardSpec, ShardTrack, ShardWriter, TextStates};
use mambo_data::{Caption, CaptionSource, Split};
use mambo_model::backbone::{BackboneKind, ChannelMixer, SsmKind};
use mambo_model::clock::Metronome;
use mambo_model::generate::{LanguageModel, LmFile};
use mambo_model::lm::{Head, LmConfig, LossConfig, Positions};
use mambo_model::random;
use mambo_model::sampler::Sampling;
use mambo_model::tokens::CodecSpec;
use mambo_train::TrainError;
use mambo_train::config::{DataConfig, LmExperiment, LoopConfig};
use mambo_train::lm::{CodecVectors, LmOutcome, LmRun, SampleHook, run};
use mambo_train::optim::OptimConfig;
use mambo_train::track::{CURVE_FILE, METRICS_FILE};

const CODES: usize = 24;
const LEVELS: usize = 3;
const WIDTH: usize = 6;

/// Clips of a chain that steps by the clip's own stride; level 2 follows level 1. `clips` in training.
fn write_shards(folder: &Path, clips: u32) {
    let codec = CodecSpec { name: "toy".into(), sample_rate: 1000, hop: 100, levels: LEVELS, cardinality: CODES };
    let mut writer = ShardWriter::new(ShardSpec {
        codec,
        codec_hash: "h".into(),
        text_encoder: "toy".into(),
        text_encoder_hash: "h".into(),
        text_width: WIDTH,
        frames: 40,
    });
    for clip in 0..clips + 2 {
        let stride = 1 + clip % 3;
        let split = if clip < clips { Split::Train } else { Split::Valid };
        let track = writer.track(&ShardTrack { id: format!("t{clip}"), split, tier: "A".into() });
        let caption = Caption { text: format!("stride {stride}"), source: CaptionSource::Person };
        let mut rng = random::stream(u64::from(stride), "text", 0);
        let states = (0..WIDTH * (2 + stride as usize)).map(|_| f16::from_f32(random::normal(&mut rng))).collect();
        let caption = writer.caption(&caption, || Ok(TextStates { states })).unwrap();
        let length = 40 - clip % 2 * 7;
        let code = |t: u32| (clip * 5 + t * stride) % CODES as u32;
        let codes: Vec<u16> = (0..LEVELS as u32)
            .flat_map(|level| (0..length).map(move |t| ((code(t) + level * 7) % CODES as u32) as u16))
            .collect();
        let clock: Vec<u16> = (0..u64::from(length)).map(|t| Metronome::new(Some(100.0), 21.5).at(t)).collect();
        writer.item(track, 0, 0, &codes, &clock, &[caption]).unwrap();
    }
    std::fs::create_dir_all(folder).unwrap();
    writer.finish(&folder.join("a.safetensors")).unwrap();
}

fn experiment(shards: &Path, steps: u64) -> LmExperiment {
    LmExperiment {
        name: "toy".into(),
        seed: 7,
        data: DataConfig {
            shards: vec![shards.to_owned()],
            frames: 32,
            tiers: vec![],
            unaltered_only: false,
            max_text: 8,
            validate_on: vec![Split::Valid, Split::Test],
            validate_tiers: vec![],
        },
        model: LmConfig {
            codebooks: 2,
            delays: vec![0, 1],
            cardinality: CODES,
            d_model: 32,
            layers: 2,
            backbone: BackboneKind::PrefixSimba,
            ssm: SsmKind::Mamba2,
            d_state: 16,
            head_dim: 16,
            groups: 1,
            expand: 2,
            chunk: 16,
            attention_head_dim: 4,
            channel_mixer: ChannelMixer::FeedForward,
            ff_multiple: 2,
            fft_blocks: 4,
            positions: Positions::None,
            final_norm: true,
            text_width: WIDTH,
            null_tokens: 1,
            head: Head::Tied,
            codec_width: 0,
            same_again: true,
            beat_clock: true,
            echo_beats: vec![1],
            text_in_every_frame: true,
        },
        start_from: None,
        loss: LossConfig::default(),
        optim: OptimConfig { rate: 5e-3, warmup: 5, ema: 0.9, ..OptimConfig::default() },
        train: LoopConfig {
            steps,
            batch: 2,
            accumulate: 2,
            dropout: 0.1,
            caption_dropout: 0.2,
            beat_dropout: 0.5,
            input_corruption: 0.05,
            codec_vectors: true,
            bf16: false,
            checkpoint_blocks: false,
            held_inputs: 0.1,
            own_inputs: 0.1,
            log_every: 1,
            validate_every: 6,
            validate_clips: 0,
            save_every: 4,
            sample_every: 0,
            patience: 0,
        },
        sampling: Sampling { window: 0, ..Sampling::default() },
    }
}

fn vectors() -> CodecVectors {
    let mut rng = random::stream(1, "vectors", 0);
    CodecVectors { values: (0..LEVELS * CODES * 4).map(|_| random::normal(&mut rng)).collect(), width: 4 }
}

fn go(experiment: &LmExperiment, folder: &Path, sample: Option<&mut SampleHook<'_>>) -> Result<LmOutcome, TrainError> {
    run(LmRun {
        experiment,
        folder,
        codec_vectors: Some(&vectors()),
        stop: &AtomicBool::new(false),
        report: &mut |_| {},
        sample,
    })
}

fn bytes(path: PathBuf) -> Vec<u8> {
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn it_learns_two_clips_by_heart_and_generates_them() {
    let folder = tempfile::tempdir().unwrap();
    let shards = folder.path().join("shards");
    write_shards(&shards, 2);
    let mut experiment = experiment(&shards, 120);
    experiment.train.dropout = 0.0;
    experiment.train.input_corruption = 0.0;
    experiment.train.held_inputs = 0.0;
    experiment.train.own_inputs = 0.0;
    experiment.train.sample_every = 60;
    let mut sampled = Vec::new();
    let mut hook = |model: &LanguageModel, step: u64| -> Result<(), String> {
        let frames: Vec<_> =
            model.generate(None, &Sampling::default(), 1).map_err(|e| e.to_string())?.take(5).collect();
        sampled.push((step, frames.len()));
        Ok(())
    };
    let outcome = go(&experiment, &folder.path().join("run"), Some(&mut hook)).unwrap();
    assert_eq!(sampled, [(60, 5), (120, 5)]);
    assert_eq!(outcome.step, 120);
    let text = std::fs::read_to_string(folder.path().join("run").join(METRICS_FILE)).unwrap();
    let losses: Vec<f64> = text
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["train/loss"].as_f64())
        .collect();
    assert_eq!(losses.len(), 120);
    assert!(losses[0] > 2.5 && losses[119] < 0.35, "{} {}", losses[0], losses[119]);
    assert!(std::fs::read_to_string(folder.path().join("run").join(CURVE_FILE)).unwrap().contains("valid/loss"));
    // The folder it leaves behind plays what it learned: steps by the stride of the caption.
    let model = LanguageModel::open(&folder.path().join("run/last")).unwrap();
    let mut rng = random::stream(2, "text", 0);
    let caption: Vec<f32> = (0..WIDTH * 4).map(|_| f16::from_f32(random::normal(&mut rng)).to_f32()).collect();
    let greedy = Sampling { temperature: 0.0, guidance: 1.0, window: 0, ..Sampling::default() };
    let frames: Vec<_> = model.generate(Some(&caption), &greedy, 1).unwrap().take(30).collect();
    let steps = frames.windows(2).filter(|pair| (pair[1][0] + CODES as u16 - pair[0][0]) % CODES as u16 == 2).count();
    assert!(steps > 24, "{steps} of 29 steps by the stride: {frames:?}");
}

#[test]
fn a_run_cut_anywhere_and_resumed_equals_an_uninterrupted_one() {
    let folder = tempfile::tempdir().unwrap();
    let shards = folder.path().join("shards");
    write_shards(&shards, 5);
    let mut experiment = experiment(&shards, 14);
    experiment.train.sample_every = 1;
    let whole = folder.path().join("whole");
    go(&experiment, &whole, None).unwrap();
    for cut in [1, 4, 6, 9, 13] {
        let run_folder = folder.path().join(format!("cut{cut}"));
        // An error between two steps leaves what a killed process leaves: the last checkpoint, later metrics.
        let mut hook = |_: &LanguageModel, step: u64| if step == cut { Err("cut".into()) } else { Ok(()) };
        assert!(matches!(go(&experiment, &run_folder, Some(&mut hook)), Err(TrainError::Sample { .. })));
        go(&experiment, &run_folder, None).unwrap();
        assert_eq!(
            bytes(whole.join("checkpoint.safetensors")),
            bytes(run_folder.join("checkpoint.safetensors")),
            "cut {cut}"
        );
        for name in ["best", "last"] {
            let weights = |root: &Path| bytes(root.join(name).join("lm.safetensors"));
            assert_eq!(weights(&whole), weights(&run_folder), "{name}, cut {cut}");
        }
        let steps = |root: &Path| -> Vec<u64> {
            let text = std::fs::read_to_string(root.join(METRICS_FILE)).unwrap();
            text.lines()
                .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["step"].as_u64().unwrap())
                .collect()
        };
        assert_eq!(steps(&whole), steps(&run_folder), "metrics, cut {cut}");
    }
}

const CHILD: &str = "MAMBO_TEST_KILL_FOLDER";
const KILL_STEPS: u64 = 240;

/// Not a test of its own: what the killed processes run.
#[test]
fn child_of_the_kill_test() {
    let Some(folder) = std::env::var_os(CHILD) else { return };
    let folder = PathBuf::from(folder);
    go(&experiment(&folder.join("shards"), KILL_STEPS), &folder.join("run"), None).unwrap();
}

#[test]
fn twenty_kills_at_random_moments_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let shards = folder.path().join("shards");
    write_shards(&shards, 5);
    go(&experiment(&shards, KILL_STEPS), &folder.path().join("whole"), None).unwrap();
    let child = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_of_the_kill_test", "--test-threads", "1"])
            .env(CHILD, folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut rng = random::stream(3, "kill", 0);
    let mut kills = 0;
    for _ in 0..20 {
        let mut process = child();
        std::thread::sleep(Duration::from_millis(20 + random::below(&mut rng, 130) as u64));
        if process.try_wait().unwrap().is_none() {
            process.kill().unwrap();
            kills += 1;
        }
        process.wait().unwrap();
    }
    assert!(child().wait().unwrap().success());
    assert!(kills >= 10, "only {kills} kills came before the end");
    for name in ["checkpoint.safetensors", "best/lm.safetensors", "last/lm.safetensors"] {
        let (whole, killed) = (folder.path().join("whole").join(name), folder.path().join("run").join(name));
        assert_eq!(bytes(whole), bytes(killed), "{name} after {kills} kills");
    }
}

#[test]
fn stopping_saves_and_patience_ends_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let shards = folder.path().join("shards");
    write_shards(&shards, 3);
    let settings = experiment(&shards, 10);
    let stop = AtomicBool::new(false);
    let run_folder = folder.path().join("run");
    let outcome = run(LmRun {
        experiment: &settings,
        folder: &run_folder,
        codec_vectors: Some(&vectors()),
        stop: &stop,
        report: &mut |progress| stop.store(progress.done == 3, Ordering::Relaxed),
        sample: None,
    })
    .unwrap();
    assert!(outcome.stopped && outcome.step == 3);
    assert!(LmFile::load(&run_folder.join("last")).is_ok());
    let resumed = go(&settings, &run_folder, None).unwrap();
    assert!(!resumed.stopped && resumed.step == 10);
    let whole = go(&settings, &folder.path().join("whole"), None).unwrap();
    assert_eq!(whole.parameters, resumed.parameters);

    let mut impatient = experiment(&shards, 200);
    impatient.train.patience = 1;
    impatient.train.validate_every = 1;
    impatient.optim.rate = 1e-9;
    impatient.optim.weight_decay = 0.0;
    impatient.optim.ema = 0.0;
    let outcome = go(&impatient, &folder.path().join("impatient"), None).unwrap();
    assert!(outcome.step < 200 && !outcome.stopped, "{}", outcome.step);
}

#[test]
fn training_goes_on_from_another_model() {
    let folder = tempfile::tempdir().unwrap();
    let shards = folder.path().join("shards");
    write_shards(&shards, 5);
    let first = folder.path().join("first");
    let score = |outcome: &LmOutcome| outcome.scores[0].nll[0];
    let trained = go(&experiment(&shards, 60), &first, None).unwrap();
    let mut further = experiment(&shards, 1);
    further.optim.rate = 1e-9;
    further.optim.ema = 0.0;
    further.start_from = Some(first.join("last"));
    let outcome = go(&further, &folder.path().join("further"), None).unwrap();
    // Weights in the folder are f16.
    assert!((score(&outcome) - score(&trained)).abs() < 5e-3, "{} {}", score(&outcome), score(&trained));
    // Clock, echoes and text in every frame may be added, and at first change nothing; taking them away is refused.
    let mut plain = experiment(&shards, 60);
    (plain.model.beat_clock, plain.model.text_in_every_frame) = (false, false);
    plain.model.echo_beats.clear();
    let trained = go(&plain, &folder.path().join("plain"), None).unwrap();
    further.start_from = Some(folder.path().join("plain").join("last"));
    let outcome = go(&further, &folder.path().join("added"), None).unwrap();
    assert!((score(&outcome) - score(&trained)).abs() < 5e-3, "{} {}", score(&outcome), score(&trained));
    (plain.train.steps, plain.start_from) = (1, Some(first.join("last")));
    let message = go(&plain, &folder.path().join("taken"), None).unwrap_err().to_string();
    assert!(message.contains("start_from"), "{message}");
    // Of a model of two codebooks the first goes on alone.
    (further.model.codebooks, further.model.delays) = (1, vec![0]);
    further.start_from = Some(first.join("last"));
    let outcome = go(&further, &folder.path().join("outline"), None).unwrap();
    let fresh = LmExperiment { start_from: None, ..further.clone() };
    let fresh = go(&fresh, &folder.path().join("fresh"), None).unwrap();
    assert_eq!(outcome.scores[0].nll.len(), 1);
    assert!(score(&outcome) < 0.6 * score(&fresh), "{} {}", score(&outcome), score(&fresh));
    further.model.text_in_every_frame = false;
    let message = go(&further, &folder.path().join("deaf"), None).unwrap_err().to_string();
    assert!(message.contains("start_from"), "{message}");
    further.model.text_in_every_frame = true;
    further.model.layers = 1;
    let message = go(&further, &folder.path().join("other"), None).unwrap_err().to_string();
    assert!(message.contains("start_from") && message.contains("sizes"), "{message}");
}

#[test]
fn what_does_not_fit_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let shards = folder.path().join("shards");
    write_shards(&shards, 3);
    let fail = |change: &dyn Fn(&mut LmExperiment), name: &str| {
        let mut settings = experiment(&shards, 2);
        change(&mut settings);
        go(&settings, &folder.path().join(name), None).unwrap_err().to_string()
    };
    assert!(fail(&|e| e.model.cardinality = 99, "a").contains("cardinality 24"));
    assert!(fail(&|e| e.model.text_width = 99, "b").contains("text width 6"));
    assert!(fail(&|e| (e.model.codebooks, e.model.delays) = (4, vec![0; 4]), "c").contains("codebooks 3"));
    assert!(fail(&|e| e.data.shards = vec![folder.path().join("nowhere")], "d").contains("nowhere"));
    let run_folder = folder.path().join("run");
    go(&experiment(&shards, 2), &run_folder, None).unwrap();
    let mut other = experiment(&shards, 2);
    other.seed = 8;
    assert!(matches!(go(&other, &run_folder, None), Err(TrainError::OtherExperiment { .. })));
}
