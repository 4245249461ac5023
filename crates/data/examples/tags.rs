#![allow(missing_docs, clippy::print_stderr, clippy::print_stdout, clippy::unwrap_used)]
use mambo_data::Manifest;
use mambo_model::listen::musicnn::Musicnn;
use rayon::prelude::*;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let manifest = Manifest::load(a[1].as_ref()).unwrap();
    let models: Vec<Musicnn> = a[2..].iter().map(|p| Musicnn::load(p.as_ref()).unwrap()).collect();
    let tracks: Vec<_> = manifest.kept().collect();
    let lines: Vec<String> = tracks
        .par_iter()
        .map(|t| {
            let mono = mambo_audio::read_mono(&manifest.audio_path(t), 16000).unwrap();
            let mono = &mono[..mono.len().min(16000 * 32)];
            let tops: Vec<String> = models
                .iter()
                .map(|m| {
                    let mean = m.analyse(mono).mean_tags().unwrap();
                    let mut v: Vec<(f32, &str)> = mean.iter().copied().zip(m.tag_names().iter().copied()).collect();
                    v.sort_by(|a, b| b.0.total_cmp(&a.0));
                    v.iter().take(6).map(|(p, n)| format!("{n} {p:.2}")).collect::<Vec<_>>().join(", ")
                })
                .collect();
            format!("{}\t{}", t.path.display(), tops.join("\t"))
        })
        .collect();
    for l in lines {
        println!("{l}");
    }
}
