//! Published models at full size against the reference libraries: what tools/soak/published.py wrote, read by the loaders.
//!
//!     cargo run --release --workspace --example published_parity -- dac FOLDER/dac
//!
//! First makes every weight that comes from the hash again and compares it with the file; then a line for each result, and
//! exit code 1 if one misses its bar. Parts: dac (a folder or a .pth), t5, encodec, musicgen.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

#[path = "../tests/published/mod.rs"]
mod published;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::ExitCode;

use mambo_model::codec::Codec;
use mambo_model::codec::dac::Dac;
use mambo_model::codec::encodec::Encodec;
use mambo_model::musicgen::MusicGen;
use mambo_model::sampler::Sampling;
use mambo_model::text::T5;
use mambo_model::tokens::CodecTokens;
use mambo_model::weights::Weights;
use published::{Golden, distance, worst_and_peak};
use rayon::prelude::*;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Relative error of tensors, and error of a sample beside the peak.
const LIMIT: f64 = 1e-4;
/// Lead of the reference's code over the second below which another is no mistake.
const TIE: f64 = 1e-5;
const STEPS: usize = 200;

/// Prints a line a result and remembers misses.
#[derive(Default)]
struct Report {
    missed: bool,
}

impl Report {
    fn line(&mut self, name: &str, value: String, holds: bool) {
        self.missed |= !holds;
        println!("{name:<34} {value:<60} {}", if holds { "ok" } else { "MISSED" });
    }

    fn error(&mut self, name: &str, off: f64) {
        self.line(name, format!("{off:.1e} of {LIMIT:.0e}"), off <= LIMIT);
    }

    fn sound(&mut self, name: &str, got: &[f32], expected: &[f64]) {
        let (worst, peak) = worst_and_peak(got, expected);
        let value = format!("{:.1e} of the peak, {peak:.3}; bar {LIMIT:.0e}", worst / peak);
        self.line(name, value, (0.1..1.0).contains(&peak) && worst <= LIMIT * peak);
    }

    /// `used_at_least`: codes that the reference must use for the comparison to mean something.
    fn codes(&mut self, name: &str, got: &[u16], expected: &[u16], leads: &[f64], used_at_least: usize) {
        assert_eq!((got.len(), leads.len()), (expected.len(), expected.len()));
        let wrong: Vec<f64> =
            got.iter().zip(expected).zip(leads).filter(|((a, b), _)| a != b).map(|(_, lead)| *lead).collect();
        let worst = wrong.iter().copied().fold(0.0, f64::max);
        let used = expected.iter().collect::<BTreeSet<_>>().len();
        let value = format!("{} of {} differ, by leads up to {worst:.1e}; {used} used", wrong.len(), got.len());
        self.line(name, value, worst < TIE && used >= used_at_least);
    }
}

/// Every bit of a u32 over all others.
fn mixed(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x85eb_ca6b);
    x ^= x >> 13;
    x = x.wrapping_mul(0xc2b2_ae35);
    x ^ (x >> 16)
}

/// A weight: its tensor's name and its place in it decide.
fn hashed(name: &str, place: usize, [base, scale]: [f32; 2]) -> f32 {
    let seed = name.bytes().fold(0x811c_9dc5u32, |sum, byte| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let bits = mixed(mixed(place as u32) ^ seed);
    base + scale * ((bits >> 8) as f32 * 2f32.powi(-23) - 1.0)
}

fn check_weights(folder: &Path, golden: &Golden, report: &mut Report) {
    let recipes: BTreeMap<String, [f32; 2]> = serde_json::from_str(&golden.note("recipes")).unwrap();
    if recipes.is_empty() {
        return;
    }
    let file = Weights::open(&folder.join("model.safetensors")).unwrap();
    let mut count = 0;
    let mut wrong = 0;
    for (name, recipe) in &recipes {
        let stored = file.f32(name, file.shape(name).unwrap()).unwrap();
        count += stored.len();
        let differ = |(place, value): (usize, &f32)| value.to_bits() != hashed(name, place, *recipe).to_bits();
        wrong += stored.par_iter().enumerate().filter(|pair| differ(*pair)).count();
    }
    let all: usize = file.entries().map(|(_, _, shape)| shape.iter().product::<usize>()).sum();
    let value = format!("{wrong} of {count} differ; {} values in all", all);
    report.line("weights made again", value, wrong == 0 && 2 * count > all);
}

/// Rows of a tensor of `count` rows.
fn rows<T>(values: &[T], count: usize) -> impl Iterator<Item = &[T]> {
    values.chunks_exact(values.len() / count)
}

fn dac(path: &Path, golden: &Golden, report: &mut Report) {
    let dac = Dac::load(path).unwrap();
    let (levels, size) = (dac.config().n_codebooks, dac.config().codebook_size);
    let samples = golden.narrow("samples");
    let latents: Vec<f64> = golden.narrow("latents").iter().map(|value| f64::from(*value)).collect();
    report.error("latents", distance(&dac.latents(&samples), &latents));
    let (codes, leads) = (golden.codes("codes"), golden.wide("leads"));
    let (rests, projections) = (golden.narrow("rests"), golden.wide("projections"));
    let lines = rows(&codes, levels).zip(rows(&leads, levels));
    let inputs = rows(&rests, levels).zip(rows(&projections, levels));
    for (level, ((codes, leads), (rest, expected))) in lines.zip(inputs).enumerate() {
        let (chosen, projected) = dac.level_codes(level, rest);
        report.error(&format!("level {level}: projections"), distance(&projected, expected));
        report.codes(&format!("level {level}: codes"), &chosen, codes, leads, size / 2);
    }
    let tokens = dac.encode(&samples);
    let same = tokens.codes.iter().zip(&codes).filter(|(a, b)| a == b).count();
    println!("from samples to codes: {same} of {} equal", codes.len());
    let tokens = CodecTokens::new(dac.spec().clone(), codes, tokens.frames).unwrap();
    report.sound("decoded", &dac.decode(&tokens, levels, 0), &golden.wide("decoded"));
}

fn encodec(folder: &Path, golden: &Golden, report: &mut Report) {
    let codec = Encodec::load(folder).unwrap();
    let levels = codec.spec().levels;
    let samples = golden.narrow("samples");
    let latents: Vec<f64> = golden.narrow("latents").iter().map(|value| f64::from(*value)).collect();
    report.error("latents", distance(&codec.latents(&samples), &latents));
    let (codes, leads, rests) = (golden.codes("codes"), golden.wide("leads"), golden.narrow("rests"));
    let lines = rows(&codes, levels).zip(rows(&leads, levels)).zip(rows(&rests, levels));
    for (level, ((codes, leads), rest)) in lines.enumerate() {
        report.codes(&format!("level {level}: codes"), &codec.level_codes(level, rest), codes, leads, codes.len() / 4);
    }
    let tokens = codec.encode(&samples);
    let same = tokens.codes.iter().zip(&codes).filter(|(a, b)| a == b).count();
    println!("from samples to codes: {same} of {} equal", codes.len());
    let tokens = CodecTokens::new(codec.spec().clone(), codes, tokens.frames).unwrap();
    report.sound("decoded", &codec.decode(&tokens, levels, 0), &golden.wide("decoded"));
}

fn t5(folder: &Path, golden: &Golden, report: &mut Report) {
    let t5 = T5::load(folder).unwrap();
    for length in [1, 7, 64, 512] {
        let ids = golden.ids(&format!("ids_{length}"));
        let heard = golden.ids(&format!("heard_{length}"))[0] as usize;
        let states = |heard: usize| t5.network().forward(&[(&ids, heard)]);
        let off = distance(&states(length), &golden.wide(&format!("states_{length}")));
        report.error(&format!("{length} tokens"), off);
        let off = distance(&states(heard), &golden.wide(&format!("masked_{length}")));
        report.error(&format!("{length} tokens, {heard} of them heard"), off);
    }
}

fn musicgen(folder: &Path, golden: &Golden, report: &mut Report) {
    let (model, codec) = MusicGen::load(folder).unwrap();
    let ids = golden.ids("ids");
    let heard = model.hear(&ids);
    report.error("heard of the text", distance(&heard, &golden.wide("heard")));
    let (columns, expected) = (golden.codes("columns"), golden.wide("logits"));
    let books = model.decoder().config().num_codebooks;
    let steps = columns.len() / books;
    let mut state = model.decoder().start(&[&heard, &[]]);
    let off = |(column, expected): (&[u16], &[f64])| distance(&model.decoder().step(column, &mut state), expected);
    let worst = columns.chunks_exact(books).zip(rows(&expected, steps)).map(off).fold(0.0, f64::max);
    report.error(&format!("logits, worst of {steps} steps"), worst);
    let sampling = Sampling { temperature: 0.0, guidance: 3.0, ..Sampling::default() };
    let frames: Vec<Vec<u16>> = model.frames(&ids, &sampling, 0).unwrap().take(STEPS).collect();
    let tokens = CodecTokens::from_frames(codec.spec().clone(), &frames).unwrap();
    let greedy = golden.codes("greedy");
    let wrong = tokens.codes.iter().zip(&greedy).filter(|(a, b)| a != b).count();
    let used = greedy.iter().collect::<BTreeSet<_>>().len();
    let value = format!("{wrong} of {} differ; {used} codes used", greedy.len());
    report.line(&format!("greedy codes of {STEPS} frames"), value, wrong == 0);
    let tokens = CodecTokens::new(tokens.spec.clone(), greedy, STEPS).unwrap();
    report.sound("their sound", &codec.decode(&tokens, books, 0), &golden.wide("sound"));
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [part, path] = &arguments[..] else {
        println!("published_parity PART FOLDER; parts: dac, t5, encodec, musicgen");
        return ExitCode::from(2);
    };
    let path = Path::new(path);
    let folder = if path.is_file() { path.parent().unwrap() } else { path };
    let golden = Golden::open(&folder.join("expected.safetensors"));
    let mut report = Report::default();
    check_weights(folder, &golden, &mut report);
    match part.as_str() {
        "dac" => dac(path, &golden, &mut report),
        "t5" => t5(path, &golden, &mut report),
        "encodec" => encodec(path, &golden, &mut report),
        "musicgen" => musicgen(path, &golden, &mut report),
        other => panic!("no part {other}"),
    }
    if report.missed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
