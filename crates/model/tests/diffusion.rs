//! The second stage against an independent version in float64 PyTorch (tools/reference/diffusion.py), and its laws: guidance 0 is
//! the model without a text, a seed decides everything, how frames are pushed changes nothing, windows meet without a seam.
#![allow(clippy::unwrap_used)]

mod published;

use burn::tensor::Device;
use mambo_model::clock::Metronome;
use mambo_model::codec::dac::Dac;
use mambo_model::codec::{Codec, DecodeStream, StreamCodec};
use mambo_model::diffusion::{
    DenoiserConfig, Heard, Moments, Objective, RefinedCodec, Refiner, RefinerConfig, RefinerError, RefinerSampling,
    RefinerStream, Solver, Statistics,
};
use mambo_model::parameters::Initialiser;
use published::{Golden, distance, golden};

/// Relative error allowed to what is computed in f32.
const LIMIT: f64 = 1e-4;
const DETAIL: usize = 12;
const FRAMES: usize = 23;

fn check(name: &str, solvers: &[(Solver, usize)]) {
    let (file, folder) = (Golden::read(name), golden(name));
    let [outline, text, noise] = ["outline", "text", "noise"].map(|part| file.narrow(part));
    let set = |index: usize| noise[index * FRAMES * DETAIL..][..FRAMES * DETAIL].to_vec();
    let refiner = Refiner::open(&folder).unwrap();
    // All four at once: texts of different lengths in one batch.
    let told = [(true, true), (true, false), (false, true), (false, false)];
    let heard = told.map(|(outline, heard)| Heard { outline, text: heard.then_some(text.as_slice()) });
    let noisy: Vec<f32> = (0..4).flat_map(set).collect();
    let answers: Vec<f32> =
        refiner.answer(noisy, outline.repeat(4), &[0.37; 4], &heard).into_data().try_into_vec().unwrap();
    for (place, answer) in answers.chunks_exact(FRAMES * DETAIL).enumerate() {
        let off = distance(answer, &file.wide(&format!("answer_{place}")));
        assert!(off < LIMIT, "{name}, answer {place}: {off:.1e}");
    }
    for &(solver, steps) in solvers {
        let sampling = RefinerSampling { solver, steps, ..Refiner::open(&folder).unwrap().config().sampling.clone() };
        let refiner = Refiner::open(&folder).unwrap().with_sampling(sampling).unwrap();
        for (end, text) in [("", Some(text.as_slice())), ("_untold", None)] {
            let painted = refiner.paint(&outline, None, text, set);
            let off = distance(&painted, &file.wide(&format!("{}{end}", solver.name())));
            assert!(off < LIMIT, "{name}, {solver:?}{end}: {off:.1e}");
        }
        let sampling = RefinerSampling { strength: 0.6, ..refiner.config().sampling.clone() };
        let refiner = refiner.with_sampling(sampling).unwrap();
        let painted = refiner.paint(&outline, Some(file.narrow("sketch")), Some(&text), set);
        let off = distance(&painted, &file.wide(&format!("{}_sketched", solver.name())));
        assert!(off < LIMIT, "{name}, {solver:?} from a sketch: {off:.1e}");
    }
}

#[test]
fn rectified_flow_and_its_samplers_are_the_references() {
    let solvers =
        [(Solver::Euler, 4), (Solver::Ddim, 7), (Solver::Heun, 5), (Solver::DpmSolver, 6), (Solver::Ancestral, 9)];
    check("refiner_flow", &solvers);
}

#[test]
fn v_prediction_and_its_samplers_are_the_references() {
    check("refiner_v", &[(Solver::Ancestral, 100), (Solver::Ddim, 10), (Solver::DpmSolver, 8)]);
}

#[test]
fn guidance_of_0_is_the_model_without_the_condition() {
    let file = Golden::read("refiner_v");
    let [outline, text, noise] = ["outline", "text", "noise"].map(|part| file.narrow(part));
    let set = |index: usize| noise[index * FRAMES * DETAIL..][..FRAMES * DETAIL].to_vec();
    let paint = |guidance: f32, outline_guidance: f32, outline: &[f32], text: Option<&[f32]>| {
        let refiner = Refiner::open(&golden("refiner_v")).unwrap();
        let sampling = refiner.config().sampling.clone();
        let sampling = RefinerSampling { guidance, outline_guidance, ..sampling };
        refiner.with_sampling(sampling).unwrap().paint(outline, None, text, set)
    };
    let text = Some(text.as_slice());
    assert_eq!(paint(0.0, 1.0, &outline, text), paint(1.0, 1.0, &outline, None));
    assert_eq!(paint(0.0, 1.5, &outline, text), paint(3.0, 1.5, &outline, None));
    // Without both, neither text nor outline changes anything.
    let other: Vec<f32> = outline.iter().map(|value| 1.0 - value).collect();
    assert_eq!(paint(0.0, 0.0, &outline, text), paint(0.0, 0.0, &other, None));
    assert_ne!(paint(1.0, 1.0, &outline, text), paint(1.0, 1.0, &outline, None));
    assert_ne!(paint(1.0, 1.0, &outline, None), paint(1.0, 1.0, &other, None));
}

#[test]
fn what_is_measured_goes_with_the_weights() {
    let mut draw = Initialiser::seeded(9);
    let (config, mut parameters) = RefinerConfig::load(&golden("refiner_v")).unwrap();
    // The second value lies elsewhere and is wider, the third never changes.
    let mut rows: Vec<f32> = draw.normal(400 * DETAIL, 1.0);
    for row in rows.chunks_exact_mut(DETAIL) {
        row[1] = 10.0 * row[1] - 4.0;
        row[2] = 5.0;
    }
    let (mut detail, mut outline) = (Moments::new(DETAIL), Moments::new(config.outline_width));
    rows.chunks_exact(DETAIL).for_each(|row| detail.add(row));
    outline.add(&vec![1.0; config.outline_width]);
    Statistics { detail, outline, text_deviation: 1.0 }.store(&mut parameters);
    Refiner::new(config, &parameters, &Device::flex()).normalise_detail(&mut rows);
    let mean = |column: usize, power: i32| {
        rows.chunks_exact(DETAIL).map(|row| f64::from(row[column].powi(power))).sum::<f64>() / 400.0
    };
    for column in [0, 1] {
        assert!(mean(column, 1).abs() < 1e-5 && (mean(column, 2) - 1.0).abs() < 1e-5, "{column}");
    }
    assert!(mean(2, 2) < 1e-9);
}

#[test]
fn gain_scales_what_is_painted_around_its_mean() {
    let (config, mut parameters) = RefinerConfig::load(&golden("refiner_flow")).unwrap();
    parameters.values_mut("detail.mean").unwrap().fill(3.0);
    let frames = 12;
    let outline = vec![0.5; frames * config.outline_width];
    let painted = |gain: f32| {
        let sampling = RefinerSampling { gain, ..config.sampling.clone() };
        let refiner = Refiner::new(config.clone(), &parameters, &Device::flex()).with_sampling(sampling).unwrap();
        refiner.paint(&outline, None, None, |_| Initialiser::seeded(7).normal(frames * DETAIL, 1.0))
    };
    for (plain, scaled) in painted(1.0).into_iter().zip(painted(1.25)) {
        assert!((1.25 * (plain - 3.0) - (scaled - 3.0)).abs() < 1e-5, "{plain} became {scaled}");
    }
}

/// A second stage for the small DAC, with drawn weights whose answers are not all zero.
fn for_dac(dac: &Dac, objective: Objective, solver: Solver) -> Refiner {
    let known = dac.refinable().unwrap();
    let config = RefinerConfig {
        codec: dac.spec().clone(),
        outline_width: known.outline_width(),
        detail_width: known.detail_width(),
        text_width: 10,
        text_heads: 0,
        objective,
        network: DenoiserConfig { width: 16, blocks: 2, kernel: 3, expansion: 2, state: 0 },
        sampling: RefinerSampling { solver, steps: 4, window: 32, halo: 8, ..RefinerSampling::default() },
    };
    let mut draw = Initialiser::seeded(3);
    let mut parameters = config.parameters(&mut draw);
    let output = parameters.values_mut("refiner.output.weight").unwrap();
    output.copy_from_slice(&draw.normal(output.len(), 0.2));
    Refiner::new(config, &parameters, &Device::flex())
}

#[test]
fn pushes_change_nothing_and_the_seed_everything() {
    let dac = Dac::load(&golden("dac")).unwrap();
    let known = dac.refinable().unwrap();
    let codes: Vec<u16> = (0..150).map(|n| (n * n % 32) as u16).collect();
    for (objective, solver) in [(Objective::Flow, Solver::Euler), (Objective::VPrediction, Solver::Ancestral)] {
        let refiner = for_dac(&dac, objective, solver);
        let decode = |frames: usize, seed: u64| {
            let mut stream: Box<dyn DecodeStream + '_> =
                Box::new(RefinerStream::new(&refiner, known, 1, None, None, seed));
            let mut samples: Vec<f32> = codes[..frames].iter().flat_map(|code| stream.push(&[*code])).collect();
            samples.extend(stream.finish());
            samples
        };
        let all = decode(150, 1);
        assert_eq!((all.len(), &all), (150 * 8, &decode(150, 1)));
        assert_ne!(all, decode(150, 2));
        // What lies beyond the look-ahead has no say.
        assert_eq!(all[..64 * 8 - 200], decode(120, 1)[..64 * 8 - 200]);
        let codec = RefinedCodec::new(known, &refiner, None);
        let tokens = codec.encode(&vec![0.1; 150 * 8]);
        let untold = codec.decode(&tokens, 1, 1);
        assert_eq!((tokens.spec.levels, untold.len()), (1, 150 * 8));
        assert_ne!(RefinedCodec::new(known, &refiner, Some(vec![0.5; 30])).decode(&tokens, 1, 1), untold);
    }
}

#[test]
fn with_a_beat_what_is_played_again_is_painted_again() {
    let dac = Dac::load(&golden("dac")).unwrap();
    let known = dac.refinable().unwrap();
    // Eight frames a beat, of which each is like the one before it.
    let tempo = Some(60.0 * dac.spec().frame_rate() as f32 / 8.0);
    let sound = |beat_noise: f32| {
        let refiner = for_dac(&dac, Objective::Flow, Solver::Euler);
        let sampling = RefinerSampling { beat_noise, ..refiner.config().sampling.clone() };
        let refiner = refiner.with_sampling(sampling).unwrap();
        let mut stream: Box<dyn DecodeStream + '_> = Box::new(RefinerStream::new(&refiner, known, 1, None, tempo, 1));
        let mut samples: Vec<f32> = (0..96).flat_map(|n| stream.push(&[n % 8])).collect();
        samples.extend(stream.finish());
        samples
    };
    let beat = 8 * 8;
    let change = |samples: &[f32]| -> f32 {
        let (here, later) = (&samples[4 * beat..6 * beat], &samples[5 * beat..7 * beat]);
        here.iter().zip(later).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt()
    };
    let (none, some, all) = (change(&sound(0.0)), change(&sound(0.5)), change(&sound(1.0)));
    assert!(all < 1e-4 * none && all < 0.1 * some && some < 0.9 * none, "{none} {some} {all}");
    let refiner = for_dac(&dac, Objective::Flow, Solver::Euler);
    let sampling = RefinerSampling { beat_noise: 1.5, ..refiner.config().sampling.clone() };
    assert!(refiner.with_sampling(sampling).err().unwrap().contains("beat_noise"));
}

#[test]
fn painting_may_begin_with_a_sketch() {
    for (name, solver) in [("refiner_flow", Solver::DpmSolver), ("refiner_v", Solver::Ancestral)] {
        let file = Golden::read(name);
        let [outline, noise] = ["outline", "noise"].map(|part| file.narrow(part));
        let goal = file.wide(solver.name());
        let sketch: Vec<f32> = goal.iter().map(|value| *value as f32).collect();
        let set = |index: usize| noise[index * FRAMES * DETAIL..][..FRAMES * DETAIL].to_vec();
        let paint = |strength: f32, sketch: Option<&[f32]>| {
            let refiner = Refiner::open(&golden(name)).unwrap();
            let sampling = RefinerSampling { strength, solver, steps: 4, ..refiner.config().sampling.clone() };
            let refiner = refiner.with_sampling(sampling).unwrap();
            refiner.paint(&outline, sketch.map(<[f32]>::to_vec), None, set)
        };
        // From noise alone there is nothing of it; the later it begins, the nearer it stays.
        let free = paint(1.0, None);
        assert_eq!((paint(1.0, Some(&sketch)), paint(0.5, None)), (free.clone(), free));
        let away = [0.9, 0.5, 0.01].map(|strength| distance(&paint(strength, Some(&sketch)), &goal));
        assert!(away[0] > away[1] && away[1] > away[2] && away[2] < 0.05, "{name}: {away:?}");
    }
}

#[test]
fn what_else_was_written_is_the_sketch() {
    let dac = Dac::load(&golden("dac")).unwrap();
    let known = dac.refinable().unwrap();
    let levels = dac.spec().levels;
    let decode = |strength: f32, levels: usize, second: u16| {
        let refiner = for_dac(&dac, Objective::Flow, Solver::Euler);
        let sampling = RefinerSampling { strength, ..refiner.config().sampling.clone() };
        let refiner = refiner.with_sampling(sampling).unwrap();
        let mut stream: Box<dyn DecodeStream + '_> =
            Box::new(RefinerStream::new(&refiner, known, levels, None, None, 1));
        let frame = |n: u16| -> Vec<u16> { (0..levels as u16).map(|level| (n + level * second) % 32).collect() };
        let mut samples: Vec<f32> = (0..60).flat_map(|n| stream.push(&frame(n))).collect();
        samples.extend(stream.finish());
        samples
    };
    let alone = decode(1.0, 1, 3);
    // From noise alone, or where nothing else was written, the further levels have no say.
    assert_eq!(alone, decode(1.0, levels, 3));
    assert_eq!(alone, decode(0.5, 1, 3));
    for some in [2, levels] {
        assert_ne!(decode(0.5, some, 3), decode(0.5, some, 4));
    }
    let refiner = for_dac(&dac, Objective::Flow, Solver::Euler);
    let sampling = RefinerSampling { strength: 0.0, ..refiner.config().sampling.clone() };
    assert!(refiner.with_sampling(sampling).err().unwrap().contains("strength"));
}

#[test]
fn outline_and_detail_of_codes_are_what_the_codec_decodes() {
    let dac = Dac::load(&golden("dac")).unwrap();
    let known = dac.refinable().unwrap();
    let samples = Golden::read("dac").narrow("samples");
    let tokens = dac.encode(&samples);
    let mut stream = known.painted(0, &Metronome::default());
    let mut got = Vec::new();
    for frame in 0..tokens.frames {
        let codes = tokens.frame(frame);
        got.extend(stream.push(codes[0], &known.detail(&codes)));
    }
    got.extend(stream.finish());
    assert_eq!(got, dac.decode(&tokens, 4, 0));
}

#[test]
fn a_folder_that_cannot_be_is_refused_with_the_rule() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("refiner.toml");
    let refused = || Refiner::open(place.path()).err().unwrap();
    assert!(matches!(refused(), RefinerError::Io { .. }));
    let text = std::fs::read_to_string(golden("refiner_flow/refiner.toml")).unwrap();
    for (from, to, part) in [
        ("steps = 4", "steps = 0", "steps must be"),
        ("objective = \"flow\"", "objective = \"v-prediction\"", "v-prediction takes"),
        ("kernel = 3", "kernel = 4", "kernel (odd)"),
        ("text_heads = 0", "text_heads = 3", "text_heads must divide"),
        ("halo = 4", "halo = 4\nwings = 2", "wings"),
        ("detail_width = 12", "detail_width = 13", "cannot read the weights"),
    ] {
        assert!(text.contains(from), "{from}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        let error = refused();
        assert!(error.to_string().contains(part) && error.to_string().contains("refiner."), "{to}: {error}");
    }
    std::fs::copy(golden("refiner_flow/refiner.safetensors"), place.path().join("refiner.safetensors")).unwrap();
    assert!(refused().to_string().contains("expected [13"), "{}", refused());
}
