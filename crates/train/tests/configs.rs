//! Every experiment file in `configs/` can be read, and costs what it says.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use mambo_model::codec::HouseCodec;
use mambo_model::diffusion::RefinerConfig;
use mambo_model::parameters::Initialiser;
use mambo_train::codec::CodecExperiment;
use mambo_train::config::LmExperiment;
use mambo_train::diffusion::DiffusionExperiment;
use mambo_train::run::read_toml;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../configs").join(name)
}

fn experiment(name: &str) -> LmExperiment {
    LmExperiment::read(&path(&format!("{name}.toml"))).unwrap()
}

/// Experiment, parameters, operations of a place in a pass forwards, operations of training on one clip.
const PAPER: [(&str, usize, u64, u64); 11] = [
    ("paper-prefix-mamba", 298_541_824, 813_105_152, 6_459_212_955_648),
    ("paper-prefix-simba", 281_042_176, 690_028_544, 5_481_492_381_696),
    ("paper-cross-simba", 302_804_768, 631_070_720, 4_914_260_705_280),
    ("paper-cross-transformer", 305_026_048, 638_517_248, 4_975_850_422_272),
    ("paper-prefix-transformer", 305_062_912, 801_308_672, 6_365_501_718_528),
    ("paper-prefix-mamba-quarter", 76_801_984, 204_849_152, 1_627_227_291_648),
    ("paper-prefix-simba-quarter", 72_427_072, 174_080_000, 1_382_797_148_160),
    ("paper-cross-simba-quarter", 81_813_984, 167_616_512, 1_305_432_588_288),
    ("paper-cross-transformer-quarter", 78_423_040, 161_202_176, 1_256_386_658_304),
    ("paper-prefix-transformer-quarter", 78_432_256, 201_900_032, 1_603_799_482_368),
    ("musicgen-small", 420_425_728, 801_243_136, 3_633_611_538_432),
];

#[test]
fn every_experiment_file_can_be_read() {
    let mut found = 0;
    for entry in std::fs::read_dir(path("")).unwrap() {
        let file = entry.unwrap().path();
        let outcome = match file.file_name().unwrap().to_str().unwrap() {
            "codec.toml" => read_toml::<CodecExperiment>(&file).map(drop),
            name if name.contains("refiner") => DiffusionExperiment::read(&file).map(drop),
            _ => LmExperiment::read(&file).map(drop),
        };
        outcome.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        found += 1;
    }
    assert!(found > PAPER.len());
}

#[test]
fn parameters_and_operations_are_exact() {
    for (name, parameters, place, clip) in PAPER {
        let experiment = experiment(name);
        let budget = experiment.budget().unwrap();
        let counts = budget.parameters;
        let (columns, text) = (budget.training.columns, budget.training.text_tokens);
        let found = (counts.total, budget.flops_per_place.total, experiment.model.clip_flops(columns, text));
        assert_eq!(found, (parameters, place, clip), "{name}");
        let parts = counts.state_space
            + counts.self_attention
            + counts.cross_attention
            + counts.channel_mixers
            + counts.norms
            + counts.embeddings
            + counts.heads
            + counts.text
            + counts.clock;
        assert_eq!(parts, counts.total, "{name}: the parts are the whole");
    }
}

#[test]
fn the_second_stage_costs_what_it_says() {
    let codec = HouseCodec::load(&path("../models/tiny/codec")).unwrap();
    let experiment = DiffusionExperiment::read(&path("refiner.toml")).unwrap();
    let refiner = experiment.refiner(&codec, 384);
    let budget = experiment.budget(&refiner);
    let drawn = refiner.parameters(&mut Initialiser::seeded(1));
    assert_eq!((budget.parameters, budget.parameters), (3_382_252, drawn.trained_count()));
    // Mamba-2 of 6 heads: 192 to gate, inputs, B, C and steps, and back; 4 taps; 32 state entries a channel.
    let scan = 192 * (192 + 256 + 6 + 192) + 4 * 256 + 3 * 192 * 32;
    // Six blocks of 7 taps, 192 to 768 and back; 64 values and 64 known ones in, 64 out.
    let frame = 2 * (6 * (7 * 192 + 2 * 192 * 768 + scan) + 3 * 64 * 192);
    assert_eq!(budget.flops_per_frame, frame);
    assert_eq!(budget.training.flops_per_step, (3 * 8 * 128 * frame) as f64);
    // Attention to 10 tokens of text: queries, scores, sums, and what is heard.
    let attends = RefinerConfig { text_heads: 4, ..refiner };
    assert_eq!(attends.flops(10), frame + 2 * 6 * (2 * 192 * 192 + 2 * 192 * 10));
}

#[test]
fn sizes_are_those_of_the_papers() {
    for (name, parameters, ..) in PAPER {
        let millions = parameters as f64 / 1e6;
        if name.ends_with("quarter") {
            let whole = experiment(name.strip_suffix("-quarter").unwrap()).budget().unwrap().parameters.total;
            let share = parameters as f64 / whole as f64;
            assert!((0.24..0.275).contains(&share), "{name}: {share} of the whole");
        } else if name == "musicgen-small" {
            // 420,371,456 with its layer norms, which have biases.
            assert!((millions / 420.371_456 - 1.0).abs() < 1e-3, "{name}: {millions} M");
        } else if name != "paper-prefix-simba" {
            assert!((millions / 300.0 - 1.0).abs() < 0.05, "{name}: {millions} M");
        }
    }
}

/// "9 % of the FLOPs of MusicGen-small" (arXiv 2601.14786), from the layers' own formulas.
#[test]
fn the_claimed_share_of_the_cost_of_musicgen_small() {
    let of = |name| experiment(name).budget().unwrap().training.flops;
    let share = of("paper-prefix-simba") / of("musicgen-small");
    assert!((0.08..0.11).contains(&share), "{share}");
}

#[test]
fn a_state_space_model_decodes_in_constant_memory_and_a_transformer_does_not() {
    for (name, ..) in PAPER {
        let constant = experiment(name).budget().unwrap().decoding.constant;
        assert_eq!(constant, name.contains("mamba") || name.contains("simba"), "{name}");
    }
    // 24 layers of 32 heads x 64 channels x 512 states and 3 x 3072 inputs of the convolution.
    let state = experiment("paper-prefix-simba").budget().unwrap().decoding.state;
    assert_eq!(state, 4 * 24 * (32 * 64 * 512 + 3 * 3072));
}
