//! The second stage's training loop on a tiny corpus: it learns what follows from the outline, it resumes exactly, it refuses
//! what does not fit.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use half::f16;
use mambo_data::shard::{ShardSpec, ShardTrack, ShardWriter, TextStates};
use mambo_data::{Caption, CaptionSource, Split};
use mambo_model::clock::NO_BEAT;
use mambo_model::codec::dac::Dac;
use mambo_model::codec::{Codec, StreamCodec};
use mambo_model::diffusion::{DenoiserConfig, Objective, Refiner, RefinerSampling, Solver};
use mambo_model::random;
use mambo_model::tokens::CodecSpec;
use mambo_train::TrainError;
use mambo_train::config::DataConfig;
use mambo_train::diffusion::{
    DiffusionExperiment, DiffusionOutcome, DiffusionRun, LoopConfig, ModelConfig, Times, run,
};
use mambo_train::optim::OptimConfig;

const WIDTH: usize = 6;
const FRAMES: usize = 40;

fn dac() -> Dac {
    Dac::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden/dac")).unwrap()
}

/// The later levels of a frame, as they follow from the first.
fn later(code: u16, level: u16) -> u16 {
    (code * 3 + level * 5) % 32
}

fn write_shards(folder: &Path, codec: &CodecSpec) {
    let mut writer = ShardWriter::new(ShardSpec {
        codec: codec.clone(),
        codec_hash: "h".into(),
        text_encoder: "toy".into(),
        text_encoder_hash: "h".into(),
        text_width: WIDTH,
        frames: FRAMES,
    });
    for clip in 0..10u16 {
        let split = if clip < 8 { Split::Train } else { Split::Valid };
        let track = writer.track(&ShardTrack { id: format!("t{clip}"), split, tier: "A".into() });
        let caption = Caption { text: format!("clip {clip}"), source: CaptionSource::Person };
        let states = (0..3 * WIDTH).map(|n| f16::from_f32((n as f32 + f32::from(clip)).sin())).collect();
        let caption = writer.caption(&caption, || Ok(TextStates { states })).unwrap();
        let length = FRAMES - usize::from(clip % 3);
        let mut rng = random::stream(u64::from(clip), "codes", 0);
        let first: Vec<u16> = (0..length).map(|_| random::below(&mut rng, 32) as u16).collect();
        let codes: Vec<u16> = (0..codec.levels as u16)
            .flat_map(|level| first.iter().map(move |code| if level == 0 { *code } else { later(*code, level) }))
            .collect();
        writer.item(track, 0, 0, &codes, &vec![NO_BEAT; length], &[caption]).unwrap();
    }
    std::fs::create_dir_all(folder).unwrap();
    writer.finish(&folder.join("a.safetensors")).unwrap();
}

fn experiment(shards: PathBuf, objective: Objective, steps: u64) -> DiffusionExperiment {
    let solver = if objective == Objective::Flow { Solver::Euler } else { Solver::Ddim };
    DiffusionExperiment {
        name: "toy".into(),
        seed: 7,
        data: DataConfig {
            shards: vec![shards],
            frames: 32,
            tiers: vec![],
            unaltered_only: false,
            max_text: 8,
            validate_on: vec![Split::Valid],
            validate_tiers: vec![],
        },
        model: ModelConfig {
            objective,
            text_heads: 2,
            network: DenoiserConfig { width: 32, blocks: 2, kernel: 3, expansion: 2, state: 4 },
        },
        start_from: None,
        optim: OptimConfig { rate: 1e-2, warmup: 5, ema: 0.9, ..OptimConfig::default() },
        train: LoopConfig {
            steps,
            batch: 4,
            text_dropout: 0.2,
            outline_dropout: 0.1,
            times: if objective == Objective::Flow { Times::Middle } else { Times::Uniform },
            bf16: false,
            log_every: 1,
            validate_every: 10,
            save_every: 4,
            sample_every: 0,
        },
        sampling: RefinerSampling { solver, steps: 8, ..RefinerSampling::default() },
    }
}

/// Runs, to be stopped after so many steps.
fn go(experiment: &DiffusionExperiment, folder: &Path, most: u64) -> Result<DiffusionOutcome, TrainError> {
    let (codec, stop) = (dac(), AtomicBool::new(false));
    run(DiffusionRun {
        experiment,
        folder,
        codec: codec.refinable().unwrap(),
        stop: &stop,
        report: &mut |progress| stop.store(progress.done >= most, Ordering::Relaxed),
        sample: None,
    })
}

#[test]
fn what_follows_from_the_outline_is_learned_and_painted() {
    let place = tempfile::tempdir().unwrap();
    let codec = dac();
    write_shards(&place.path().join("shards"), codec.spec());
    for (objective, name) in [(Objective::Flow, "flow"), (Objective::VPrediction, "v")] {
        let experiment = experiment(place.path().join("shards"), objective, 500);
        let outcome = go(&experiment, &place.path().join(name), u64::MAX).unwrap();
        // Without the outline the best answer leaves about all of the unit variance.
        let loss = outcome.validation.unwrap();
        assert!(loss < 0.2, "{name}: {loss}");
        let refiner = Refiner::open(&outcome.folder).unwrap();
        let known = codec.refinable().unwrap();
        let codes: Vec<u16> = (0..60).map(|t| (t * 11 % 32) as u16).collect();
        let outline: Vec<f32> = codes.iter().flat_map(|code| known.outline(*code)).collect();
        let width = known.detail_width();
        let mut rng = random::stream(1, "noise", 0);
        let noise: Vec<f32> = (0..60 * width).map(|_| random::normal(&mut rng)).collect();
        let painted = refiner.paint(&outline, None, None, |_| noise.clone());
        let right = codes.iter().zip(painted.chunks_exact(width)).filter(|(code, detail)| {
            let mut projections = known.outline(**code);
            projections.extend_from_slice(detail);
            let got = codec.tokens_of(&projections, 4).codes;
            (1..4).all(|level| got[level as usize] == later(**code, level))
        });
        let right = right.count();
        assert!(right > 30, "{name}: {right} of 60 frames");
    }
}

#[test]
fn a_stopped_run_goes_on_as_if_it_had_never_stopped() {
    let place = tempfile::tempdir().unwrap();
    write_shards(&place.path().join("shards"), dac().spec());
    let experiment = experiment(place.path().join("shards"), Objective::Flow, 14);
    let whole = go(&experiment, &place.path().join("whole"), u64::MAX).unwrap();
    let folder = place.path().join("parts");
    let first = go(&experiment, &folder, 6).unwrap();
    assert!((first.stopped, first.step) == (true, 6) && first.parameters != whole.parameters);
    let second = go(&experiment, &folder, u64::MAX).unwrap();
    assert_eq!((second.stopped, second.step), (false, 14));
    assert_eq!(second.parameters, whole.parameters);
    for file in ["refiner.toml", "refiner.safetensors"] {
        let [a, b] = [&whole, &second].map(|outcome| std::fs::read(outcome.folder.join(file)).unwrap());
        assert_eq!(a, b, "{file}");
    }
}

#[test]
fn a_run_can_start_from_another() {
    let place = tempfile::tempdir().unwrap();
    write_shards(&place.path().join("shards"), dac().spec());
    let first =
        go(&experiment(place.path().join("shards"), Objective::Flow, 300), &place.path().join("first"), u64::MAX);
    let first = first.unwrap();
    let mut further = experiment(place.path().join("shards"), Objective::Flow, 3);
    further.optim.rate = 1e-4;
    let fresh = go(&further, &place.path().join("fresh"), u64::MAX).unwrap();
    further.start_from = Some(first.folder.clone());
    let second = go(&further, &place.path().join("second"), u64::MAX).unwrap();
    let [first_loss, fresh, second] = [&first, &fresh, &second].map(|outcome| outcome.validation.unwrap());
    assert!(second < fresh - 0.3 && (second - first_loss).abs() < 0.05, "{first_loss}, {fresh}, {second}");
    further.model.network.width = 64;
    let error = go(&further, &place.path().join("third"), u64::MAX).unwrap_err().to_string();
    assert!(error.contains("start_from") && error.contains("other sizes"), "{error}");
}

#[test]
fn what_does_not_fit_is_named() {
    let place = tempfile::tempdir().unwrap();
    let other = CodecSpec { name: "other".into(), ..dac().spec().clone() };
    write_shards(&place.path().join("shards"), &other);
    let right = experiment(place.path().join("shards"), Objective::Flow, 2);
    let error = go(&right, &place.path().join("run"), 9).unwrap_err().to_string();
    assert!(error.contains("other (44100 Hz") && error.contains("dac (44100 Hz"), "{error}");
    type Change = fn(&mut DiffusionExperiment);
    let changes: [(Change, &str); 6] = [
        (|e| e.train.steps = 0, "train.steps"),
        (|e| e.train.text_dropout = 1.5, "train.text_dropout"),
        (|e| e.model.network.kernel = 2, "model.network"),
        (|e| e.model.network.width = 40, "a multiple of 32"),
        (|e| e.model.objective = Objective::VPrediction, "v-prediction takes"),
        (|e| e.optim.rate = -1.0, "optim.rate"),
    ];
    for (change, part) in changes {
        let mut wrong = right.clone();
        change(&mut wrong);
        let error = go(&wrong, &place.path().join("run"), 9).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}
