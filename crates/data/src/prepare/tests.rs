//! Prepare with simple stand-ins for the networks: the pipeline's own laws.

use super::*;
use crate::manifest::{Attribution, CaptionSource};
use crate::shard::Shard;
use half::f16;
use mambo_audio::{AudioFormat, AudioWriter};
use mambo_model::tokens::{CodecSpec, CodecTokens};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Two levels from the mean square of each frame: enough to see that sound arrives.
struct Meter {
    spec: CodecSpec,
}

impl Codec for Meter {
    fn spec(&self) -> &CodecSpec {
        &self.spec
    }

    fn encode(&self, mono: &[f32]) -> CodecTokens {
        let levels: Vec<u16> = mono
            .chunks(self.spec.hop as usize)
            .map(|frame| {
                (frame.iter().map(|sample| sample * sample).sum::<f32>() / frame.len() as f32 * 2000.0) as u16 % 1024
            })
            .collect();
        let frames = levels.len();
        CodecTokens { spec: self.spec.clone(), codes: [levels.clone(), levels].concat(), frames }
    }

    fn decode(&self, tokens: &CodecTokens, _levels: usize, _seed: u64) -> Vec<f32> {
        vec![0.0; tokens.frames * self.spec.hop as usize]
    }
}

fn meter() -> Meter {
    Meter { spec: CodecSpec { name: "meter".into(), sample_rate: 8000, hop: 400, levels: 2, cardinality: 1024 } }
}

fn wav(path: &Path, rate: u32, seconds: f64, frequency: f64) {
    let samples = (0..(seconds * f64::from(rate)) as usize)
        .map(|i| (0.4 * (i as f64 * frequency * std::f64::consts::TAU / f64::from(rate)).sin()) as f32)
        .collect();
    let mut writer = AudioWriter::create(path, AudioFormat::Wav16, rate, 1, true).unwrap();
    writer.write(&AudioClip::from_mono(samples, rate)).unwrap();
    writer.finish().unwrap();
}

fn corpus(folder: &Path, tracks: usize) -> PathBuf {
    let rows = (0..tracks)
        .map(|index| {
            let path = PathBuf::from(format!("{index}.wav"));
            match index % 5 {
                3 => std::fs::write(folder.join(&path), "no sound").unwrap(),
                4 => wav(&folder.join(&path), 8000, 1.0, 200.0),
                kind => wav(
                    &folder.join(&path),
                    [8000, 11_025, 16_000][kind],
                    9.0 + index as f64 * 0.3,
                    150.0 + 30.0 * index as f64,
                ),
            }
            Track {
                id: format!("id{index}"),
                path,
                source: format!("file:{index}"),
                sha256: index.to_string(),
                licence: None,
                attribution: Attribution::default(),
                seconds: 10.0,
                sample_rate: 8000,
                channels: 1,
                split: if index % 7 == 0 { Split::Test } else { Split::Train },
                split_group: index.to_string(),
                tier: "A".into(),
                captions: vec![Caption { text: "a tone".into(), source: CaptionSource::Person }],
                tags: vec!["tone".into()],
                score: None,
                notes: vec![],
                dropped: None,
            }
        })
        .collect();
    Manifest { folder: folder.into(), tracks: rows }.save().unwrap()
}

fn options(manifest: &Path, out: &Path) -> PrepareOptions {
    PrepareOptions {
        manifests: vec![manifest.into()],
        out: out.into(),
        segment_seconds: 4.0,
        min_seconds: 2.0,
        versions: 3,
        tiers: vec![],
        seed: 1,
        part: 1,
        parts: 1,
    }
}

/// Runs prepare, failing in the text encoder on call number `fail_at`.
fn run(options: &PrepareOptions, calls: &AtomicUsize, fail_at: usize) -> Result<PrepareSummary, DataError> {
    let codec = meter();
    let tagger = |sound: &[f32]| {
        assert!(!sound.is_empty());
        Ok(vec![("techno".to_owned(), 0.8), ("strings".to_owned(), 0.3)])
    };
    let text = |texts: &[&str]| {
        if calls.fetch_add(1, Ordering::SeqCst) == fail_at {
            return Err("pulled the plug".to_owned());
        }
        let states =
            |text: &&str| TextStates { states: vec![f16::from_f32(text.len() as f32); 2 * text.split(' ').count()] };
        Ok(texts.iter().map(states).collect())
    };
    let stages = Stages {
        codec: &codec,
        codec_hash: "m".into(),
        tagger: Some(&tagger),
        tagger_hash: "t".into(),
        text: &text,
        text_name: "count".into(),
        text_hash: "x".into(),
        text_width: 2,
    };
    prepare(options, &stages, &mut |_| {})
}

/// Names and bytes of all shards and records.
fn content(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let walk = crate::walk::files(folder).unwrap();
    walk.files
        .iter()
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(path).unwrap()))
        .collect()
}

#[test]
fn interrupted_split_and_repeated_runs_give_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = corpus(folder.path(), 20);
    let at = |name: &str| options(&manifest, &folder.path().join(name));
    let summary = run(&at("once"), &AtomicUsize::new(0), usize::MAX).unwrap();
    let expected = content(&folder.path().join("once"));
    assert_eq!(summary.units, (3, 3));
    assert_eq!(expected.len(), 3 + 3 + 1, "shards, records, manifest");

    // Each restart survives a few more calls; finished units are not done again.
    let mut calls_needed = 0;
    for attempt in 0.. {
        let calls = AtomicUsize::new(0);
        let result = run(&at("often"), &calls, attempt);
        calls_needed += calls.load(Ordering::SeqCst);
        if result.is_ok() {
            assert_eq!(run(&at("often"), &AtomicUsize::new(0), 0).unwrap().items, summary.items, "nothing left to do");
            break;
        }
    }
    assert!(calls_needed > 3);
    let mut often = content(&folder.path().join("often"));
    assert!(often.remove("manifest.jsonl").is_some());
    let mut once = expected.clone();
    once.remove("manifest.jsonl");
    assert_eq!(often, once);

    for part in [2, 1] {
        let parts = PrepareOptions { part, parts: 2, ..at("parts") };
        run(&parts, &AtomicUsize::new(0), usize::MAX).unwrap();
    }
    let mut parts = content(&folder.path().join("parts"));
    assert!(parts.remove("manifest.jsonl").is_some());
    assert_eq!(parts, once);
}

#[test]
fn bad_tracks_are_named_and_good_ones_become_items() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = corpus(folder.path(), 10);
    let out = folder.path().join("out");
    let summary = run(&options(&manifest, &out), &AtomicUsize::new(0), usize::MAX).unwrap();
    let dropped: Vec<&str> = summary.dropped.iter().map(|track| track.id.as_str()).collect();
    assert_eq!(dropped, ["id3", "id4", "id8", "id9"]);
    assert!(summary.dropped[1].reason.contains("at least 2 s"), "{:?}", summary.dropped);
    let rows = Manifest::load(&out).unwrap();
    assert_eq!(rows.tracks.iter().filter(|track| track.dropped.is_some()).count(), 4);

    let shards = Shard::open_folders(&[&out]).unwrap();
    let items: Vec<_> = shards.iter().flat_map(|shard| (0..shard.len()).map(move |index| shard.item(index))).collect();
    assert_eq!(items.len(), summary.items);
    for item in &items {
        assert!(item.captions.len() >= 3 && item.length <= 80);
        assert!(item.codes_kt[..item.length].iter().all(|&code| code > 5), "a tone everywhere");
        let training = item.track.split == Split::Train;
        assert!(training || item.version == 0);
    }
    // 9 s and more: two whole segments and, from 10 s on, a remainder.
    let of = |id: &str| items.iter().filter(|item| item.track.id == id).count();
    assert_eq!((of("id0"), of("id1")), (2, 6));
    assert!(of("id6") == 9, "{}", of("id6"));
}

#[test]
fn foreign_shards_and_wrong_options_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = corpus(folder.path(), 2);
    let out = folder.path().join("out");
    run(&options(&manifest, &out), &AtomicUsize::new(0), usize::MAX).unwrap();
    let other = PrepareOptions { seed: 2, ..options(&manifest, &out) };
    assert!(run(&other, &AtomicUsize::new(0), usize::MAX).unwrap_err().to_string().contains("other data"));
    for wrong in [
        PrepareOptions { part: 3, parts: 2, ..options(&manifest, &out) },
        PrepareOptions { versions: 0, ..options(&manifest, &out) },
        PrepareOptions { segment_seconds: f64::NAN, ..options(&manifest, &out) },
    ] {
        assert!(matches!(run(&wrong, &AtomicUsize::new(0), usize::MAX), Err(DataError::Argument { .. })));
    }
}

#[test]
fn the_clock_counts_the_beats_of_the_sound_and_none_in_a_tone() {
    let codec = meter().spec;
    let rate = codec.sample_rate as usize;
    // A short burst of a high tone every half second.
    let burst = |i: usize| 0.8 * (-((i % (rate / 2)) as f32) / 200.0).exp() * (i as f32 * 2.1).sin();
    let beating: Vec<f32> = (0..20 * rate).map(burst).collect();
    let frames = 20 * rate / codec.hop as usize;
    let clock = clock_of(&beating, &codec, frames);
    let tempo = clock::tempo(&clock, codec.frame_rate() as f32).unwrap();
    assert!((tempo - 120.0).abs() < 2.0 && clock.len() == frames, "{tempo}");
    let tone: Vec<f32> = (0..20 * rate).map(|i| (i as f32 * 0.2).sin()).collect();
    assert_eq!(clock_of(&tone, &codec, frames), vec![clock::NO_BEAT; frames]);
}
