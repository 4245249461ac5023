//! Laws of the language model: one pass == start and steps, padding, null text, decoding, generation.
#![allow(clippy::unwrap_used)]

#[path = "laws/closeness.rs"]
mod closeness;

use std::sync::Arc;

use burn::tensor::Device;
use closeness::{assert_close, floats, noise};
use mambo_model::backbone::{BackboneKind, ChannelMixer, Dropout, SsmKind};
use mambo_model::clock::{Metronome, NO_BEAT, tempo_of_class, whole_frames};
use mambo_model::generate::{Generator, LmFile};
use mambo_model::lm::{
    Columns, Head, Lm, LmConfig, LossConfig, Pass, Positions, Targets, TextBatch, checkpointed_gradients, echoes, loss,
};
use mambo_model::parameters::{Initialiser, Parameters};
use mambo_model::random;
use mambo_model::sampler::Sampling;
use mambo_model::stepper::{Column, Stepper};
use mambo_model::tokens::CodecSpec;

fn config(head: Head, codebooks: usize) -> LmConfig {
    LmConfig {
        codebooks,
        delays: (0..codebooks).collect(),
        cardinality: 40,
        d_model: 32,
        layers: 2,
        backbone: BackboneKind::PrefixSimba,
        ssm: SsmKind::Mamba2,
        d_state: 16,
        head_dim: 16,
        groups: 1,
        expand: 2,
        chunk: 8,
        attention_head_dim: 16,
        channel_mixer: ChannelMixer::FeedForward,
        ff_multiple: 2,
        fft_blocks: 4,
        positions: Positions::None,
        final_norm: true,
        text_width: 12,
        null_tokens: 2,
        head,
        codec_width: 5,
        same_again: true,
        beat_clock: true,
        echo_beats: vec![1, 2],
        text_in_every_frame: true,
    }
}

/// Every backbone and option, with the house's own additions and without.
fn variants() -> Vec<LmConfig> {
    let base = config(Head::Tied, 2);
    let mut all: Vec<LmConfig> =
        BackboneKind::ALL.iter().map(|&backbone| LmConfig { backbone, ..base.clone() }).collect();
    all.push(LmConfig { groups: 2, head: Head::Factored, ..base.clone() });
    all.push(LmConfig { ssm: SsmKind::Mamba1, head: Head::Free, ..base.clone() });
    all.push(LmConfig { channel_mixer: ChannelMixer::EinFft, head: Head::Free, codebooks: 1, delays: vec![0], ..base });
    let published = |backbone| LmConfig {
        backbone,
        head: Head::Published,
        positions: Positions::Sinusoidal,
        final_norm: false,
        null_tokens: 0,
        codec_width: 0,
        same_again: false,
        beat_clock: false,
        echo_beats: Vec::new(),
        text_in_every_frame: false,
        ..config(Head::Published, 3)
    };
    all.extend(BackboneKind::ALL.map(published));
    all
}

/// Parameters with everything that starts at zero moved away from it, so that no path is silent.
fn lively(config: &LmConfig, seed: u64) -> Parameters {
    let vectors = noise(seed + 3, config.codebooks * config.cardinality * config.codec_width);
    let mut parameters = config.init(&vectors, &mut Initialiser::seeded(seed)).unwrap();
    for (i, parameter) in parameters.list_mut().iter_mut().enumerate() {
        if parameter.values.iter().all(|&value| value == 0.0) || parameter.name.ends_with("dt_bias") {
            let draws = noise(seed + 50 + i as u64, parameter.values.len());
            parameter.values.iter_mut().zip(draws).for_each(|(value, draw)| *value += 0.3 * draw);
        }
    }
    parameters
}

fn random_codes(config: &LmConfig, seed: u64, count: usize) -> Vec<u16> {
    let mut rng = random::stream(seed, "codes", 0);
    (0..count).map(|_| random::below(&mut rng, config.cardinality + 1) as u16).collect()
}

/// A clock that runs through the end of its cycle, or none for every third clip.
fn clock(clips: usize, frames: usize) -> Vec<u16> {
    let tempo = |clip: usize| (clip % 3 != 2).then_some(100.0 + clip as f32);
    let clip = |clip| (0..frames as u64).map(move |t| Metronome::new(tempo(clip), 21.5).at(t + 198));
    (0..clips).flat_map(clip).collect()
}

const FRAME_RATE: f32 = 21.5;
/// A beat of 11 frames.
const TEMPO: f32 = 60.0 * 21.5 / 11.0;

#[test]
fn model_in_one_pass_equals_start_and_steps_and_the_slice_decoder() {
    for config in variants() {
        let codebooks = config.codebooks;
        let parameters = lively(&config, 4);
        let model = Lm::new(&config, &parameters.bind(&Device::flex()));
        let frames = 30;
        let codes = random_codes(&config, 8, codebooks * frames);
        let clock = clock(1, frames);
        let echo = echoes(&config, &codes, &clock, 1);
        let columns = Columns { codes: &codes, clock: &clock, echoes: &echo };
        let heard = echo.iter().any(|&code| code != config.special());
        assert_eq!(heard, !config.echo_beats.is_empty(), "some lag reaches back");
        let caption = noise(2, 7 * config.text_width);
        for text in [Some(caption.as_slice()), None] {
            let batch = TextBatch::new(&config, &[text]);
            let whole = model.forward_with_text(&batch, columns, &mut Dropout::off());
            let (after, _) = model.forward(columns, 1, model.start(&batch));
            let stepper = Stepper::new(&config, &parameters);
            let mut slices = stepper.start(text);
            assert_eq!(whole.tempo.is_some(), config.beat_clock);
            if let Some(tempo) = &whole.tempo {
                assert_close("tempo", &floats(tempo), &stepper.tempo(&slices).unwrap(), 3e-3);
            }
            let mut state = model.start(&batch);
            for t in 0..frames {
                let column: Vec<u16> = (0..codebooks).map(|k| codes[k * frames + t]).collect();
                let back: Vec<u16> = echo.chunks_exact(frames).map(|row| row[t]).collect();
                let read = Columns { codes: &column, clock: &clock[t..=t], echoes: &back };
                let (logits, next) = model.step(read, 1, state);
                let read = Column { codes: &column, ticks: clock[t], echoes: &back };
                let decoded = stepper.step(read, &mut slices);
                state = next;
                for k in 0..codebooks {
                    let expected = floats(&whole.logits[k].clone().narrow(0, t, 1));
                    assert_close("start and forward", &expected, &floats(&after[k].clone().narrow(0, t, 1)), 1e-4);
                    assert_close("steps", &expected, &floats(&logits[k]), 1e-4);
                    assert_close("slices", &expected, &decoded[k], 3e-3);
                }
            }
        }
    }
}

#[test]
fn streams_decoded_together_equal_streams_decoded_alone() {
    for config in variants() {
        let stepper = Stepper::new(&config, &lively(&config, 4));
        let caption = noise(2, 3 * config.text_width);
        let mut both = stepper.start(Some(&caption)).join(stepper.start(None));
        let (mut one, mut two) = (stepper.start(Some(&caption)), stepper.start(None));
        for t in 0..9 {
            let column = random_codes(&config, t, config.codebooks);
            let echoes = random_codes(&config, 20 + t, config.echo_beats.len() * config.codebooks);
            let read = Column { codes: &column, ticks: 100 * t as u16, echoes: &echoes };
            let together = stepper.step(read, &mut both);
            let (a, b) = (stepper.step(read, &mut one), stepper.step(read, &mut two));
            for k in 0..config.codebooks {
                assert_close("first", &together[k][..40], &a[k], 1e-5);
                assert_close("second", &together[k][40..], &b[k], 1e-5);
            }
        }
    }
}

#[test]
fn a_stream_without_beat_hears_neither_clock_nor_echoes() {
    let config = config(Head::Tied, 2);
    let stepper = Stepper::new(&config, &lively(&config, 4));
    let caption = noise(2, 3 * config.text_width);
    let mut both = stepper.start(Some(&caption)).join(stepper.start(None).without_beat());
    let (mut with, mut without) = (stepper.start(Some(&caption)), stepper.start(None));
    for t in 0..9 {
        let column = random_codes(&config, t, 2);
        let (echoes, none) = (random_codes(&config, 20 + t, 4), [config.special(); 4]);
        let read = Column { codes: &column, ticks: 100 * t as u16, echoes: &echoes };
        let together = stepper.step(read, &mut both);
        let a = stepper.step(read, &mut with);
        let b = stepper.step(Column { ticks: NO_BEAT, echoes: &none, ..read }, &mut without);
        for k in 0..2 {
            assert_close("with", &together[k][..40], &a[k], 1e-5);
            assert_close("without", &together[k][40..], &b[k], 1e-5);
        }
    }
    let stepper = Arc::new(stepper);
    let frames = |beat_guidance, tempo| -> Vec<_> {
        let sampling = Sampling { beat_guidance, tempo: Some(tempo), ..sampling() };
        Generator::new(stepper.clone(), FRAME_RATE, Some(&caption), &sampling, 1).unwrap().take(60).collect()
    };
    assert_ne!(frames(2.0, TEMPO), frames(1.0, TEMPO));
    assert_eq!(frames(2.0, 0.0), frames(1.0, 0.0), "without a beat there is nothing to lead away from");
}

#[test]
fn text_padding_and_neighbours_in_the_batch_change_nothing() {
    let device = Device::flex().autodiff();
    for config in variants() {
        let parameters = lively(&config, 9);
        let books = config.codebooks;
        let (short, long) = (noise(1, 2 * config.text_width), noise(2, 9 * config.text_width));
        let (codes, clock) = (random_codes(&config, 3, 2 * books * 10), clock(2, 10));
        let echo = echoes(&config, &codes, &clock, 2);
        let alone = |text: Option<&[f32]>, clip: usize, length: usize| {
            let part = |values: &[u16], clip: usize| {
                let size = values.len() / 2;
                values[size * clip..size * (clip + 1)].to_vec()
            };
            let (codes, clock, echoes) = (part(&codes, clip), part(&clock, clip), part(&echo, clip));
            let bound = parameters.bind(&device);
            let model = Lm::new(&config, &bound);
            let batch = TextBatch::padded(&config, &[text], length);
            let columns = Columns { codes: &codes, clock: &clock, echoes: &echoes };
            let output = model.forward_with_text(&batch, columns, &mut Dropout::off());
            let values: Vec<Vec<f32>> = output.logits.iter().map(floats).collect();
            let targets = Targets { codes: &codes, tempo: &[3], batch: 1 };
            let loss = loss(&config, &LossConfig::default(), &output, targets);
            (values, bound.gradients(loss.total.backward()))
        };
        for text in [Some(short.as_slice()), None] {
            let (exact, exact_gradients) = alone(text, 0, 0);
            let (padded, padded_gradients) = alone(text, 0, 23);
            for k in 0..books {
                assert_close("padded", &exact[k], &padded[k], 1e-5);
            }
            for ((a, b), parameter) in exact_gradients.iter().zip(&padded_gradients).zip(parameters.list()) {
                assert_close(&parameter.name, a, b, 1e-3);
            }
        }
        let model = Lm::new(&config, &parameters.bind(&Device::flex()));
        let batch = TextBatch::new(&config, &[Some(&short), Some(&long)]);
        let columns = Columns { codes: &codes, clock: &clock, echoes: &echo };
        let both = model.forward_with_text(&batch, columns, &mut Dropout::off()).logits;
        let (first, _) = alone(Some(&short), 0, 0);
        let (second, _) = alone(Some(&long), 1, 0);
        for k in 0..books {
            assert_close("first of two", &first[k], &floats(&both[k].clone().narrow(0, 0, 10)), 1e-4);
            assert_close("second of two", &second[k], &floats(&both[k].clone().narrow(0, 10, 10)), 1e-4);
        }
    }
}

#[test]
fn checkpointed_gradients_equal_those_of_one_pass() {
    for config in variants() {
        let parameters = lively(&config, 9);
        let caption = noise(1, 4 * config.text_width);
        let (codes, clock) = (random_codes(&config, 3, 2 * config.codebooks * 10), clock(2, 10));
        let echo = echoes(&config, &codes, &clock, 2);
        let pass = Pass {
            text: &TextBatch::new(&config, &[Some(&caption), None]),
            columns: Columns { codes: &codes, clock: &clock, echoes: &echo },
            targets: Targets { codes: &codes, tempo: &[3, 5], batch: 2 },
            loss: &LossConfig { label_smoothing: 0.1, ..LossConfig::default() },
        };
        let dropout = || Dropout::new(0.3, random::stream(5, "dropout", 0));
        let (checkpointed, found) = checkpointed_gradients(&config, &parameters, pass, dropout());
        let bound = parameters.bind(&Device::flex().autodiff());
        let output = Lm::new(&config, &bound).forward_with_text(pass.text, pass.columns, &mut dropout());
        let whole = loss(&config, pass.loss, &output, pass.targets);
        assert_close("loss", &floats(&checkpointed.total), &floats(&whole.total), 1e-6);
        assert_eq!(checkpointed.counts, whole.counts);
        let expected = bound.gradients(whole.total.backward());
        for ((a, b), parameter) in found.iter().zip(&expected).zip(parameters.list()) {
            assert_close(&parameter.name, a, b, 1e-5);
        }
    }
}

#[test]
fn a_dropped_caption_trains_the_null_text_and_nothing_of_the_text_path() {
    let config = config(Head::Tied, 1);
    let parameters = lively(&config, 9);
    let codes = random_codes(&config, 3, 10);
    let text = noise(1, 4 * config.text_width);
    for caption in [None, Some(text.as_slice())] {
        let bound = parameters.bind(&Device::flex().autodiff());
        let model = Lm::new(&config, &bound);
        let clock = clock(1, 10);
        let echo = random_codes(&config, 5, 2 * 10);
        let columns = Columns { codes: &codes, clock: &clock, echoes: &echo };
        let output = model.forward_with_text(&TextBatch::new(&config, &[caption]), columns, &mut Dropout::off());
        let targets = Targets { codes: &codes, tempo: &[0], batch: 1 };
        let total = loss(&config, &LossConfig::default(), &output, targets).total;
        let gradients = bound.gradients(total.backward());
        let moved = |name: &str| {
            let at = parameters.list().iter().position(|parameter| parameter.name == name).unwrap();
            gradients[at].iter().any(|value| value.abs() > 1e-9)
        };
        assert_eq!(moved("null_prefix"), caption.is_none());
        assert_eq!(moved("condition_linear.weight"), caption.is_some());
        assert!(moved("embedding.0.weight") && moved("same_again.0.weight") && moved("codec_head.0"));
        assert!(moved("clock.weight") && moved("tempo_head.weight") && moved("told.weight"));
        assert!(moved("echo.1.weight") && moved("echo_gate.0.weight") && moved("echo_gate.0.bias"));
    }
}

#[test]
fn loss_ignores_specials_and_counts_codes() {
    let config = config(Head::Free, 2);
    let model = Lm::new(&config, &lively(&config, 1).bind(&Device::flex()));
    let codes = random_codes(&config, 3, 2 * 6);
    let clock = clock(1, 6);
    let echo = echoes(&config, &codes, &clock, 1);
    let columns = Columns { codes: &codes, clock: &clock, echoes: &echo };
    let output = model.forward_with_text(&TextBatch::new(&config, &[None]), columns, &mut Dropout::off());
    let targets = [1, 2, 40, 3, 4, 5, 40, 40, 6, 7, 8, 9];
    let options = LossConfig { label_smoothing: 0.1, level_weights: vec![3.0, 1.0], tempo_weight: 0.5 };
    let result = loss(&config, &options, &output, Targets { codes: &targets, tempo: &[7], batch: 1 });
    assert_eq!(result.counts, [5, 4]);
    let mut total = 0.0;
    for k in 0..2 {
        let rows = floats(&output.logits[k]);
        let (mut nll, mut smooth) = (0.0_f64, 0.0_f64);
        for (row, &target) in rows.chunks(40).zip(&targets[k * 6..]) {
            if target == 40 {
                continue;
            }
            let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            nll += sum.ln() - f64::from(row[usize::from(target)]);
            smooth += row.iter().map(|&x| sum.ln() - f64::from(x)).sum::<f64>() / 40.0;
        }
        assert!((result.nll[k] - nll).abs() < 1e-3, "{} {nll}", result.nll[k]);
        total += [0.75, 0.25][k] * (0.9 * nll + 0.1 * smooth) / result.counts[k] as f64;
    }
    let tempo = floats(&output.tempo.unwrap());
    let sum: f64 = tempo.iter().map(|&x| f64::from(x).exp()).sum();
    total += 0.5 * (sum.ln() - f64::from(tempo[7]));
    let found = f64::from(floats(&result.total)[0]);
    assert!((found - total).abs() < 1e-4, "{found} {total}");
}

fn sampling() -> Sampling {
    Sampling {
        top_p: 1.0,
        hold_penalty: 0.5,
        tempo: Some(TEMPO),
        window: 30,
        opening: 12,
        overlap: 4,
        ..Sampling::default()
    }
}

#[test]
fn generation_repeats_by_seed_never_yields_specials_and_keeps_its_size() {
    let config = config(Head::Tied, 3);
    let stepper = Arc::new(Stepper::new(&config, &lively(&config, 4)));
    let text = noise(2, 3 * config.text_width);
    let make = |seed: u64| Generator::new(stepper.clone(), FRAME_RATE, Some(&text), &sampling(), seed).unwrap();
    let first: Vec<_> = make(1).take(100).collect();
    assert_eq!(first, make(1).take(100).collect::<Vec<_>>());
    assert_ne!(first, make(2).take(100).collect::<Vec<_>>());
    assert_eq!(first[..40], make(1).take(40).collect::<Vec<_>>());
    assert!(first.iter().flatten().all(|&code| code < 40));
    // The size goes up and down with the strands that fade, and repeats with the turns: a beat of 11 frames fits once.
    let mut generator = make(3);
    let bytes: Vec<usize> = (0..120).map(|_| (generator.next().unwrap().len(), generator.state_bytes()).1).collect();
    assert!((40..120).all(|at| bytes[at] == bytes[at - 11]), "{bytes:?}");
}

#[test]
fn a_frequency_penalty_spreads_over_more_codes_and_an_echo_repeats_a_beat() {
    let config = config(Head::Tied, 2);
    let stepper = Arc::new(Stepper::new(&config, &lively(&config, 4)));
    let frames = |frequency_penalty, echo| -> Vec<u16> {
        let sampling = Sampling { frequency_penalty, echo, hold_penalty: 0.0, guidance: 1.0, window: 0, ..sampling() };
        let frames = Generator::new(stepper.clone(), FRAME_RATE, None, &sampling, 1).unwrap();
        frames.take(400).map(|frame| frame[0]).collect()
    };
    // How often the commonest code comes, and how often the code of a beat of 11 frames before comes again.
    let commonest = |codes: &[u16]| (0..40).map(|code| codes.iter().filter(|&&c| c == code).count()).max().unwrap();
    let repeats = |codes: &[u16]| codes.iter().zip(&codes[11..]).filter(|(a, b)| a == b).count();
    let (plain, spread, echoed) = (frames(0.0, 0.0), frames(30.0, 0.0), frames(0.0, 3.0));
    assert!(commonest(&spread) < commonest(&plain), "{} {}", commonest(&spread), commonest(&plain));
    assert!(repeats(&echoed) > repeats(&plain) + 40, "{} {}", repeats(&echoed), repeats(&plain));
}

#[test]
fn a_tempo_is_drawn_by_seed_from_the_text_or_taken_as_given() {
    let config = config(Head::Tied, 1);
    let mut parameters = lively(&config, 4);
    let head = parameters.list_mut().iter_mut().find(|parameter| parameter.name == "tempo_head.weight").unwrap();
    head.values.fill(0.0);
    let bias = parameters.list_mut().iter_mut().find(|parameter| parameter.name == "tempo_head.bias").unwrap();
    (bias.values[0], bias.values[20], bias.values[30]) = (30.0, 30.0, 30.0);
    let stepper = Arc::new(Stepper::new(&config, &parameters));
    let tempo = |tempo, seed| {
        let sampling = Sampling { tempo, guidance: 1.0, ..sampling() };
        Generator::new(stepper.clone(), FRAME_RATE, None, &sampling, seed).unwrap().tempo()
    };
    let drawn: Vec<Option<f32>> = (0..20).map(|seed| tempo(None, seed)).collect();
    assert_eq!(drawn, (0..20).map(|seed| tempo(None, seed)).collect::<Vec<_>>());
    for class in [0, 20, 30] {
        let expected = tempo_of_class(class).map(|tempo| whole_frames(tempo, FRAME_RATE));
        assert!(drawn.contains(&expected), "class {class} of {drawn:?}");
    }
    assert_eq!(tempo(Some(0.0), 1), None);
    assert_eq!(tempo(Some(140.0), 1), Some(140.0));
}

#[test]
fn generated_frames_score_as_the_columns_that_were_read() {
    // Without turns and guidance: greedy frames must be the argmax under teacher forcing.
    let config = config(Head::Free, 3);
    let parameters = lively(&config, 6);
    let stepper = Arc::new(Stepper::new(&config, &parameters));
    let greedy = Sampling { temperature: 0.0, guidance: 1.0, hold_penalty: 0.0, window: 0, ..sampling() };
    let frames: Vec<_> = Generator::new(stepper, FRAME_RATE, None, &greedy, 1).unwrap().take(40).collect();
    let codes: Vec<u16> = (0..3).flat_map(|k| frames.iter().map(move |frame| frame[k])).collect();
    let delayed = config.pattern().apply(&codes, 40, 40);
    let columns = 42;
    let model = Lm::new(&config, &parameters.bind(&Device::flex()));
    let mut inputs = vec![40; 3 * 40];
    for k in 0..3 {
        inputs[k * 40 + 1..(k + 1) * 40].copy_from_slice(&delayed[k * columns..k * columns + 39]);
    }
    let clock: Vec<u16> = (0..40).map(|t| Metronome::new(Some(TEMPO), FRAME_RATE).at(t)).collect();
    let echo = echoes(&config, &inputs, &clock, 1);
    let read = Columns { codes: &inputs, clock: &clock, echoes: &echo };
    let logits = model.forward_with_text(&TextBatch::new(&config, &[None]), read, &mut Dropout::off()).logits;
    for k in 0..3 {
        for (t, row) in floats(&logits[k]).chunks(40).enumerate().skip(k) {
            let best = (0..40).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
            assert_eq!(best, usize::from(delayed[k * columns + t]), "codebook {k}, column {t}");
        }
    }
}

#[test]
fn a_turn_goes_back_on_the_beat_to_the_end_of_the_opening() {
    let config = config(Head::Tied, 2);
    let stepper = Arc::new(Stepper::new(&config, &lively(&config, 4)));
    let text = noise(2, 3 * config.text_width);
    // Greedy, so that another continuation of the same opening is the same one. A beat is 11 frames, the model counts in
    // four bars of four: of 48 frames after the opening the last whole beat is the 44th.
    let sampling = Sampling {
        temperature: 0.0,
        frequency_penalty: 2.0,
        frequency_frames: 20,
        window: 60,
        opening: 12,
        overlap: 0,
        ..sampling()
    };
    let make = |sampling: &Sampling| -> Vec<_> {
        Generator::new(stepper.clone(), FRAME_RATE, Some(&text), sampling, 1).unwrap().take(200).collect()
    };
    let (turning, straight) = (make(&sampling), make(&Sampling { window: 0, ..sampling.clone() }));
    // Codebook 1 of a frame is in the next column, so the frame before a turn has it from the new strand already.
    assert_eq!(turning[..55], straight[..55]);
    assert_ne!(turning[..100], straight[..100]);
    assert!((56..200).all(|at| turning[at] == turning[at - 44]));
}

#[test]
fn strands_fade_into_one_another_over_the_overlap() {
    let config = config(Head::Tied, 1);
    let stepper = Arc::new(Stepper::new(&config, &lively(&config, 4)));
    let greedy = Sampling {
        temperature: 0.0,
        guidance: 1.0,
        hold_penalty: 0.0,
        tempo: Some(0.0),
        window: 40,
        opening: 12,
        overlap: 12,
        ..sampling()
    };
    let none = [config.special(); 2];
    let step = |state: &mut _, code| {
        stepper.step(Column { codes: &[code], ticks: NO_BEAT, echoes: &none }, state).remove(0)[..40].to_vec()
    };
    // Several texts: the likeliest code of one mixture can be that of a wrong one by chance.
    for text in (2..18).map(|seed| noise(seed, 3 * config.text_width)) {
        let frames = Generator::new(stepper.clone(), FRAME_RATE, Some(&text), &greedy, 1).unwrap();
        let codes: Vec<u16> = frames.take(50).map(|frame| frame[0]).collect();
        // The opening is codes 0..12; the turn comes before code 28, so that code 39 is the last to be mixed.
        let mut old = stepper.start(Some(&text));
        let (mut new, mut last) = (old.clone(), config.special());
        let mut before_new = last;
        for (at, &code) in codes.iter().enumerate() {
            if at == 12 {
                (new, before_new) = (old.clone(), last);
            }
            let mixed = match at {
                ..28 => step(&mut old, last),
                28..40 => {
                    let share = (at - 27) as f32 / 13.0;
                    let pairs = step(&mut new, before_new).into_iter().zip(step(&mut old, last));
                    pairs.map(|(new, old)| share * new + (1.0 - share) * old).collect()
                }
                _ => step(&mut new, before_new),
            };
            let best = (0..40).max_by(|&a, &b| mixed[a].total_cmp(&mixed[b])).unwrap();
            assert_eq!(best, usize::from(code), "code {at}");
            last = code;
            if at >= 28 {
                before_new = code;
            }
        }
    }
}

#[test]
fn a_model_folder_round_trips_and_names_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(Head::Factored, 2);
    let parameters = lively(&config, 4);
    let codec = CodecSpec { name: "x".into(), sample_rate: 44_100, hop: 2048, levels: 8, cardinality: 40 };
    let file = LmFile { model: config, codec, sampling: sampling() };
    file.save(folder.path(), &parameters).unwrap();
    let (loaded, weights) = LmFile::load(folder.path()).unwrap();
    assert_eq!(loaded, file);
    for (a, b) in weights.list().iter().zip(parameters.list()) {
        assert_eq!((&a.name, &a.shape), (&b.name, &b.shape));
        assert_close(&a.name, &b.values, &a.values, 1e-3);
    }
    let path = folder.path().join("lm.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("d_model = 32", "d_model = 16")).unwrap();
    let message = LmFile::load(folder.path()).unwrap_err().to_string();
    assert!(message.contains("lm.safetensors"), "{message}");
    for (from, to) in [
        ("d_model = 32", "d_model = 4000000000"),
        ("cardinality = 40", "cardinality = 65000"),
        ("layers = 2", "layers = 60000"),
    ] {
        std::fs::write(&path, text.replace(from, to)).unwrap();
        assert!(LmFile::load(folder.path()).is_err(), "{to} must be refused at once");
    }
    std::fs::write(&path, text.replace("layers = 2", "layers = 2\nheads = 3")).unwrap();
    let message = LmFile::load(folder.path()).unwrap_err().to_string();
    assert!(message.contains("lm.toml") && message.contains("heads"), "{message}");
}
