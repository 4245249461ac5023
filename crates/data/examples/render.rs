#![allow(missing_docs, clippy::print_stderr)]
use mambo_data::render::{RenderOptions, render};
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let options = RenderOptions {
        scores: a[1].clone().into(),
        sound_font: a[2].clone().into(),
        out: a[3].clone().into(),
        versions: 4,
        seconds: 32.0,
        seed: 1,
        licence: None,
    };
    let summary = render(&options, &mut |p| eprintln!("{p:?}")).expect("render");
    eprintln!("{summary:#?}");
}
