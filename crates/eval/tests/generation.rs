//! The generation judgement with systems whose place is known: real clips, an obedient model, a deaf floor, noise.

#![allow(clippy::unwrap_used)]

mod common;

use common::{OctaveJudge, RATE, noise, tune};
use mambo_eval::EvalError;
use mambo_eval::frechet::Draws;
use mambo_eval::generation::{Generated, RealClip, Request, Role, Settings, Setup, System, evaluate, long_clips};
use mambo_eval::prompts::Prompt;

const SECONDS: f64 = 20.0;

fn real_clips() -> Vec<RealClip> {
    (0..12u64)
        .map(|n| RealClip {
            id: format!("clip {n}"),
            caption: format!("a {} tune", ["low", "middle", "high"][n as usize % 3]),
            samples: tune(n as usize % 3, SECONDS, 100 + n),
            level_one: vec![n as u16; 400],
        })
        .collect()
}

fn settings() -> Settings {
    Settings {
        seconds: SECONDS,
        clips: 12,
        draws: Draws { patches: Some(100), ..Draws::default() },
        prompts: ["low", "middle", "high"]
            .iter()
            .map(|tag| Prompt { text: format!("{tag} music"), tag: (*tag).to_owned() })
            .collect(),
        prompt_seeds: 2,
        prompt_seconds: 5.0,
        top_tags: 1,
        examples: 2,
        example_seconds: 3.0,
        ..Settings::default()
    }
}

fn setup(real: &[RealClip], settings: Settings) -> Setup<'_> {
    Setup { sample_rate: RATE, frame_rate: 21.5, real, training: &[], judge: &OctaveJudge, settings }
}

fn band(prompt: &str) -> usize {
    ["low", "middle", "high"].iter().position(|tag| prompt.contains(tag)).expect("a band")
}

fn made(samples: Vec<f32>, level_one: Vec<u16>) -> Generated {
    Generated { samples, level_one }
}

fn systems<'a>(real: &'a [RealClip]) -> Vec<System<'a>> {
    let system = |name: &str, role, generate| System {
        name: name.to_owned(),
        role,
        reads_text: matches!(role, Role::Model | Role::Bigram),
        generate,
    };
    vec![
        system(
            "model",
            Role::Model,
            Box::new(|r: &Request<'_>| {
                let tokens = (0..400).map(|n| (r.seed % 1000 + n) as u16 + 500).collect();
                Ok(made(tune(band(r.prompt), r.seconds, r.seed), tokens))
            }),
        ),
        system(
            "bigram",
            Role::Bigram,
            Box::new(|r: &Request<'_>| {
                // Deaf to text, and without a beat.
                let mut samples = tune((r.seed % 3) as usize, r.seconds, r.seed);
                let hiss = noise(samples.len(), r.seed);
                samples.iter_mut().zip(hiss).for_each(|(s, n)| *s = 0.3 * *s + 0.1 * n);
                Ok(made(samples, vec![7; 100]))
            }),
        ),
        system(
            "uniform",
            Role::Uniform,
            Box::new(|r: &Request<'_>| Ok(made(noise((r.seconds * f64::from(RATE)) as usize, r.seed), vec![900; 3]))),
        ),
        system(
            "ceiling",
            Role::Ceiling,
            Box::new(|r: &Request<'_>| {
                let clip = &real[r.real.expect("captions only")];
                Ok(made(clip.samples.iter().map(|s| 0.98 * s).collect(), clip.level_one.clone()))
            }),
        ),
    ]
}

#[test]
fn systems_come_out_in_their_order() {
    let real = real_clips();
    let copied = vec![7u16; 90];
    let training: Vec<&[u16]> = vec![&copied];
    let setup = Setup { training: &training, ..setup(&real, settings()) };
    let mut lines = 0;
    let (result, report) = evaluate(&mut systems(&real), &setup, &mut |_| lines += 1).expect("judges");
    assert!(lines > 60);
    let [model, bigram, uniform, ceiling] = &result.systems[..] else { panic!("four systems") };
    let distance = |system: &mambo_eval::generation::SystemResult| system.comparison.frechet.distance;
    assert!(distance(ceiling) < distance(model) && distance(model) < distance(bigram), "{result:#?}");
    assert!(distance(bigram) < distance(uniform));
    assert_eq!((ceiling.normalised, uniform.normalised), (Some(0.0), Some(1.0)));
    assert_eq!(model.comparison.frechet.patches, 100);
    let structure = |s: &mambo_eval::generation::SystemResult| s.comparison.structure.as_ref().expect("clips").distance;
    assert!(structure(model) < structure(uniform));
    let kl = |s: &mambo_eval::generation::SystemResult| s.comparison.divergence.expect("pairs").generated_from_real;
    assert!(kl(ceiling) < kl(model) && kl(model) < kl(uniform));
    let prompts = model.prompts.as_ref().expect("asked");
    assert_eq!((prompts.agreement, prompts.shuffled, prompts.clips), (1.0, 0.0, 6));
    assert!(bigram.prompts.as_ref().expect("asked").agreement < 0.7);
    assert!(uniform.prompts.is_none());
    // The bigram copied 90 frames of the training set, the model nothing.
    let copying = bigram.copying.as_ref().expect("tokens");
    assert!((copying.longest_seconds - 90.0 / 21.5).abs() < 1e-9 && copying.share_below_limit == 0.0);
    assert_eq!(model.copying.as_ref().expect("tokens").longest_seconds, 0.0);
    assert_eq!((model.silent, model.clipped, model.distinct), (0, 0, 12));

    let text = report.text();
    assert!(text.contains("Bars") && text.contains("halves of the real clips"), "{text}");
    let figures: serde_json::Value = serde_json::from_str(&report.json()).expect("JSON");
    assert_eq!(figures["systems"][0]["role"], "model");
    // Real and four systems on two captions, the model on three prompts.
    assert_eq!(report.players.len(), 2 * 5 + 3);
    assert!(report.players.iter().all(|player| player.samples.len() == 3 * RATE as usize));
    assert!(report.html().expect("renders").matches("<audio").count() == 13);
}

#[test]
fn rounds_have_seeds_of_their_own_and_leave_floors_alone() {
    let real = real_clips();
    let judged = |seed: u64, rounds: u64| {
        let setup = setup(&real, Settings { clips: 4, prompt_seeds: 0, seed, rounds, ..settings() });
        evaluate(&mut systems(&real), &setup, &mut |_| {}).expect("judges")
    };
    let (once, several) = (judged(7, 1), judged(7, 3));
    let [model, bigram, ..] = &several.0.systems[..] else { panic!("four systems") };
    assert!(once.0.systems[0].rounds.is_empty() && bigram.rounds.is_empty());
    assert_eq!(model.rounds.len(), 3);
    assert_eq!(model.comparison, once.0.systems[0].comparison);
    assert_eq!(model.rounds[0], model.comparison.frechet.distance);
    // The second round is the first of the next seed, to the noise of the draws of patches, of which here all are taken.
    let next = judged(8, 1).0.systems[0].comparison.frechet.distance;
    assert!((model.rounds[1] / next - 1.0).abs() < 1e-6, "{} {next}", model.rounds[1]);
    let text = several.1.text();
    assert!(text.contains("FD by seed") && !once.1.text().contains("FD by seed"), "{text}");
    assert!(several.1.plots[0].svg.contains("bigram") && several.1.plots[0].svg.matches("<circle").count() == 3 + 3);
}

#[test]
fn the_same_command_gives_the_same_figures() {
    let real = real_clips();
    let setup = setup(&real, Settings { clips: 4, prompt_seeds: 1, ..settings() });
    let run = || {
        let mut result = evaluate(&mut systems(&real)[..2], &setup, &mut |_| {}).expect("judges").0;
        result.peak_memory = None;
        result.systems.iter_mut().for_each(|system| system.speed = Default::default());
        assert!(result.systems[0].copying.is_none());
        result
    };
    assert_eq!(run(), run());
}

#[test]
fn a_clip_that_falls_apart_is_told_from_one_that_lasts() {
    let real = real_clips();
    let setup = setup(&real, settings());
    let growth = |falls_apart: bool| {
        let generate = move |r: &Request<'_>| {
            let mut samples = tune(band(r.prompt), r.seconds, r.seed);
            if falls_apart {
                let late = samples.len() / 2;
                let hiss = noise(samples.len() - late, r.seed);
                samples[late..].copy_from_slice(&hiss);
            }
            Ok(made(samples, vec![]))
        };
        let mut system =
            System { name: "model".into(), role: Role::Model, reads_text: true, generate: Box::new(generate) };
        long_clips(&mut system, &setup, 6, 120.0, &mut |_| {}).expect("judges")
    };
    let (lasting, falling) = (growth(false), growth(true));
    assert!(lasting.growth < 1.3 && falling.growth > 1.3, "{lasting:?} {falling:?}");
    assert_eq!(lasting.first.patches, lasting.last.patches);
    let [_, bars] = falling.tables();
    assert_eq!(bars.rows[0].verdict, Some(false));
}

#[test]
fn broken_systems_are_named() {
    let real = real_clips();
    let mut setup = Setup {
        sample_rate: RATE,
        frame_rate: 21.5,
        real: &real,
        training: &[],
        judge: &OctaveJudge,
        settings: settings(),
    };
    let judge = |generate: mambo_eval::generation::Generate<'_>, setup: &Setup<'_>| {
        let system = System { name: "broken".into(), role: Role::Model, reads_text: false, generate };
        evaluate(&mut [system], setup, &mut |_| {}).expect_err("broken")
    };
    let failing = judge(Box::new(|_| Err("no such model".into())), &setup);
    assert!(failing.to_string().contains("broken, clip clip 0: no such model"), "{failing}");
    let empty = judge(Box::new(|_| Ok(Generated::default())), &setup);
    assert!(matches!(empty, EvalError::TooFewPatches { .. }), "{empty}");
    let loud = judge(Box::new(|_| Ok(made(vec![f32::NAN; 90_000], vec![]))), &setup);
    assert!(matches!(loud, EvalError::NotFinite { .. }), "{loud}");
    setup.settings.prompts[0].tag = "polka".into();
    let unknown = judge(Box::new(|_| Ok(Generated::default())), &setup);
    assert!(unknown.to_string().contains("polka") && unknown.to_string().contains("middle"), "{unknown}");
}
