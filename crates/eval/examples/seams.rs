//! Whether the windows of a model's second stage and of its codec can be heard in a long piece:
//!
//!     cargo run --release --workspace --example seams -- MODEL SECONDS [PROMPT]
//!
//! A piece is written once and decoded with the windows of the model and with others, so that the same music is there with and without a
//! seam. As a control it is cut together with another seed at its seams. Exits with 1 if a seam stands out, or the control does not.
#![allow(clippy::print_stdout)]

use std::path::Path;
use std::process::ExitCode;

use mambo_eval::seams::{Comparison, Seams, seams};
use mambo_model::bundle::Bundle;
use mambo_model::codec::{DecodeStream, HouseCodec, StreamCodec};
use mambo_model::diffusion::{REFINER_FOLDER, Refiner, RefinerStream};

/// A difference that chance makes more often than this is none.
const CHANCE: f64 = 0.05;

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, seconds, rest @ ..] = arguments.as_slice() else { return Err("seams MODEL SECONDS [PROMPT]".into()) };
    let prompt = rest.first().map_or("calm ambient piano with soft strings", String::as_str);
    let folder = Path::new(folder);
    let bundle = Bundle::open(folder)?;
    let spec = bundle.codec().spec().clone();
    let count = spec.frames_for(seconds.parse()?);
    let composer = bundle.composer();
    let piece = composer.compose(prompt, &composer.sampling(), 1)?;
    let text = piece.text.clone();
    let tempo = piece.tempo;
    let frames: Vec<Vec<u16>> = piece.frames.take(count).collect();
    // Windows that end elsewhere: no multiple of the others, nor of their halves.
    let elsewhere = |window: usize| window * 7 / 10;
    let codec = HouseCodec::load(&folder.join("codec"))?;
    let mut decoding = codec.config().decoding.clone();
    decoding.window = elsewhere(decoding.window);
    let other_codec = HouseCodec::load(&folder.join("codec"))?.with_decoding(decoding);
    let (refiner, other_refiner) = match bundle.refiner() {
        Some(refiner) => {
            let mut sampling = refiner.config().sampling.clone();
            sampling.window = elsewhere(sampling.window);
            let other = Refiner::open(&folder.join(REFINER_FOLDER))?;
            (Some(refiner), Some(other.with_sampling(sampling)?))
        }
        None => (None, None),
    };
    let levels = composer.tokens().levels;
    let decode = |refiner: Option<&Refiner>, codec: &HouseCodec, seed: u64| {
        let mut stream: Box<dyn DecodeStream + '_> = match refiner {
            Some(refiner) => Box::new(RefinerStream::new(refiner, codec, levels, text.clone(), tempo, seed)),
            None => codec.decoder(levels, seed),
        };
        let windows = stream.windows(count);
        let mut samples: Vec<f32> = frames.iter().flat_map(|frame| stream.push(frame)).collect();
        samples.extend(stream.finish());
        (samples, windows)
    };
    let (sound, windows) = decode(refiner, &codec, 1);
    let (without, other_windows) = decode(other_refiner.as_ref(), &other_codec, 1);
    let (other_seed, _) = decode(refiner, &codec, 2);
    let hop = spec.hop as usize;
    let samples = |starts: &[usize]| -> Vec<usize> { starts.iter().skip(1).map(|start| start * hop).collect() };
    // Those of every stage: seams of one are no places without seams for another.
    let others: Vec<usize> = other_windows.iter().flat_map(|(_, starts)| samples(starts)).collect();
    let mut as_expected = true;
    for (name, starts) in windows {
        let places = samples(&starts);
        let mut control = sound.clone();
        for (start, end) in places.iter().zip(places.iter().skip(1).chain([&sound.len()])).step_by(2) {
            control[*start..*end].copy_from_slice(&other_seed[*start..*end]);
        }
        for (what, mono, seamless) in [("as made", &sound, true), ("cut together", &control, false)] {
            let found = seams([mono, &without], spec.sample_rate, [&places, &others], hop, 1)?;
            print(&format!("{name}, {what}"), &found);
            as_expected &= (found.flux.p.min(found.energy.p) > CHANCE) == seamless;
        }
    }
    Ok(if as_expected { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn print(what: &str, found: &Seams) {
    let line = |c: &Comparison| format!("{:+.3} there, {:+.3} elsewhere, p {:.4}", c.there, c.elsewhere, c.p);
    println!("{what}: {} seams, {} random places", found.places, found.random_places);
    println!("  spectral flux: {}", line(&found.flux));
    println!("  energy step, dB: {}", line(&found.energy));
}
