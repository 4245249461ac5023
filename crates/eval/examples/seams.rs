//! Whether the windows of a model's second stage and of its codec can be heard in a long piece:
//!
//!     cargo run --release --workspace --example seams -- MODEL SECONDS [PROMPT]
//!
//! A piece is written once and decoded with two seeds. Where windows of the first meet, it is compared with other places where
//! tokens meet; as a control the two are cut together there. Exits with 1 if a seam stands out, or the control does not.
#![allow(clippy::print_stdout)]

use std::path::Path;
use std::process::ExitCode;

use mambo_eval::seams::{Comparison, Seams, seams};
use mambo_model::bundle::Bundle;
use mambo_model::codec::{HouseCodec, window_starts};

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
    let frames: Vec<Vec<u16>> = piece.frames.take(count).collect();
    let decode = |seed: u64| {
        let mut stream = bundle.decoder(text.clone(), seed);
        let mut samples: Vec<f32> = frames.iter().flat_map(|frame| stream.push(frame)).collect();
        samples.extend(stream.finish());
        samples
    };
    let (sound, other) = (decode(1), decode(2));
    let codec_window = HouseCodec::load(&folder.join("codec"))?.config().decoding.window;
    let refiner_window = bundle.refiner().map(|refiner| refiner.config().sampling.window);
    let mut as_expected = true;
    for (name, window) in [("second stage", refiner_window), ("codec", Some(codec_window))] {
        let Some(window) = window else { continue };
        let places: Vec<usize> =
            window_starts(window, count).into_iter().skip(1).map(|start| start * spec.hop as usize).collect();
        let mut control = sound.clone();
        for (start, end) in places.iter().zip(places.iter().skip(1).chain([&sound.len()])).step_by(2) {
            control[*start..*end].copy_from_slice(&other[*start..*end]);
        }
        for (what, mono, seamless) in [("as made", &sound, true), ("cut together", &control, false)] {
            let found = seams(mono, spec.sample_rate, &places, spec.hop as usize, 1)?;
            print(&format!("{name}, {what}"), &found);
            as_expected &= (found.flux.p.min(found.energy.p) > CHANCE) == seamless;
        }
    }
    Ok(if as_expected { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn print(what: &str, found: &Seams) {
    let line = |c: &Comparison| format!("{:.3} there, {:.3} elsewhere, p {:.4}", c.there, c.elsewhere, c.p);
    println!("{what}: {} seams, {} random places", found.places, found.random_places);
    println!("  spectral flux: {}", line(&found.flux));
    println!("  energy step, dB: {}", line(&found.energy));
}
