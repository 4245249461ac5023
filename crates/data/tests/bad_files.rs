//! Crafted files through `add` and `prepare`: no panic, each bad one with its reason, all good ones kept.
#![cfg(unix)]
#![allow(clippy::unwrap_used)] // test code

use half::f16;
use mambo_audio::{AudioClip, AudioFormat, AudioWriter};
use mambo_data::add::{AddOptions, add};
use mambo_data::prepare::{PrepareOptions, PrepareSummary, Stages, prepare};
use mambo_data::shard::TextStates;
use mambo_data::{Manifest, Split};
use mambo_model::codec::Codec;
use mambo_model::tokens::{CodecSpec, CodecTokens};
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// A WAV file from its parts.
struct Wav {
    tag: u16,
    channels: u16,
    rate: u32,
    bits: u16,
    data: Vec<u8>,
    riff_size: Option<u32>,
    data_size: Option<u32>,
}

impl Wav {
    fn new(tag: u16, channels: u16, rate: u32, bits: u16, data: Vec<u8>) -> Self {
        Self { tag, channels, rate, bits, data, riff_size: None, data_size: None }
    }

    fn bytes(&self) -> Vec<u8> {
        let frame = u32::from(self.channels) * u32::from(self.bits) / 8;
        let mut out = b"RIFF".to_vec();
        out.extend(self.riff_size.unwrap_or(self.data.len() as u32 + 36).to_le_bytes());
        out.extend(b"WAVEfmt \x10\0\0\0");
        out.extend(self.tag.to_le_bytes());
        out.extend(self.channels.to_le_bytes());
        out.extend(self.rate.to_le_bytes());
        out.extend(self.rate.wrapping_mul(frame).to_le_bytes());
        out.extend((frame as u16).to_le_bytes());
        out.extend(self.bits.to_le_bytes());
        out.extend(b"data");
        out.extend(self.data_size.unwrap_or(self.data.len() as u32).to_le_bytes());
        out.extend(&self.data);
        out
    }
}

/// 16-bit samples of a tone.
fn tone(rate: u32, seconds: f64, frequency: f64) -> Vec<u8> {
    (0..(seconds * f64::from(rate)) as usize)
        .flat_map(|i| {
            (((i as f64 * frequency * std::f64::consts::TAU / f64::from(rate)).sin() * 12_000.0) as i16).to_le_bytes()
        })
        .collect()
}

fn good_wav(frequency: f64) -> Vec<u8> {
    Wav::new(1, 1, 16_000, 16, tone(16_000, 3.0, frequency)).bytes()
}

fn noise(length: usize, seed: u8) -> Vec<u8> {
    byte_stream(seed).take(length).collect()
}

/// A simple stream of bytes; quality does not matter here.
fn byte_stream(seed: u8) -> impl Iterator<Item = u8> {
    let mut state = u32::from(seed).wrapping_mul(2_654_435_761).wrapping_add(1);
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 11) as u8
    })
}

fn with_prefix(prefix: &[u8], length: usize, seed: u8) -> Vec<u8> {
    [prefix.to_vec(), noise(length, seed)].concat()
}

fn floats(values: impl Iterator<Item = f32>) -> Vec<u8> {
    values.flat_map(f32::to_le_bytes).collect()
}

/// Files that must be dropped.
fn bad_files() -> Vec<(&'static str, Vec<u8>)> {
    let sound = tone(16_000, 3.0, 300.0);
    let wav = |tag, channels, rate, bits| Wav::new(tag, channels, rate, bits, sound.clone()).bytes();
    let mut no_data = good_wav(100.0);
    no_data.truncate(36);
    let mut no_format = b"RIFF\x24\0\0\0WAVEdata\x10\0\0\0".to_vec();
    no_format.extend([0; 16]);
    let cut = good_wav(110.0);
    let nan = floats((0..48_000).map(|i| if i == 30_000 { f32::NAN } else { 0.1 }));
    let infinite = floats((0..48_000).map(|i| if i == 40_000 { f32::INFINITY } else { 0.1 }));
    vec![
        ("empty.mp3", vec![]),
        ("one-byte.wav", vec![b'R']),
        ("text.mp3", b"this is not music, it only says so\n".repeat(50)),
        ("page.flac", b"<!DOCTYPE html><html><body>404 Not Found</body></html>".to_vec()),
        ("zeros.mp3", vec![0; 65_536]),
        ("ones.mp3", vec![0xff; 65_536]),
        ("noise.mp3", noise(50_000, 1)),
        ("noise.ogg", noise(50_000, 2)),
        ("riff-only.wav", b"RIFF".to_vec()),
        ("no-data.wav", no_data),
        ("no-format.wav", no_format),
        ("no-frames.wav", Wav::new(1, 1, 16_000, 16, vec![]).bytes()),
        ("cut.wav", cut[..cut.len() / 2].to_vec()),
        (
            "lying.wav",
            Wav {
                data_size: Some(2_000_000_000),
                riff_size: Some(2_000_000_036),
                ..Wav::new(1, 2, 44_100, 16, sound.clone())
            }
            .bytes(),
        ),
        ("no-channels.wav", wav(1, 0, 16_000, 16)),
        ("many-channels.wav", wav(1, 65_535, 16_000, 16)),
        ("three-gigahertz.wav", wav(1, 1, 3_000_000_000, 16)),
        ("no-rate.wav", wav(1, 1, 0, 16)),
        ("no-bits.wav", wav(1, 1, 16_000, 0)),
        ("many-bits.wav", wav(1, 1, 16_000, 200)),
        ("odd-codec.wav", wav(0x7777, 1, 16_000, 16)),
        ("nan.wav", Wav::new(3, 1, 16_000, 32, nan).bytes()),
        ("infinite.wav", Wav::new(3, 1, 16_000, 32, infinite).bytes()),
        ("short.wav", Wav::new(1, 1, 16_000, 16, tone(16_000, 0.01, 500.0)).bytes()),
        ("silent.wav", Wav::new(1, 1, 16_000, 16, vec![0; 96_000]).bytes()),
        ("magic.flac", b"fLaC".to_vec()),
        ("garbage.flac", with_prefix(b"fLaC\x80\0\0\x22", 40_000, 3)),
        ("magic.ogg", b"OggS".to_vec()),
        ("garbage.ogg", with_prefix(b"OggS\0\x02\0\0\0\0\0\0\0\0", 40_000, 4)),
        (
            "head.opus",
            with_prefix(b"OggS\0\x02\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\x01\x13OpusHead\x01\0", 9_000, 5),
        ),
        ("tag-only.mp3", b"ID3\x04\0\0\x7f\x7f\x7f\x7f".to_vec()),
        ("tag-and-noise.mp3", with_prefix(b"ID3\x04\0\0\0\0\0\x0a", 30_000, 6)),
        ("type-only.m4a", b"\0\0\0\x18ftypM4A \0\0\0\0M4A mp42".to_vec()),
        ("huge-box.m4a", with_prefix(b"\0\0\0\x18ftypM4A \0\0\0\0M4A mp42\xff\xff\xff\xf0moov", 5_000, 7)),
        ("endless-box.m4a", with_prefix(b"\0\0\0\x18ftypM4A \0\0\0\0M4A mp42\0\0\0\x08moov\0\0\0\x01mdat", 5_000, 8)),
        ("frames.aac", with_prefix(&[0xff, 0xf1, 0x50, 0x80, 0x02, 0x1f, 0xfc], 20_000, 9)),
        ("picture.wav", with_prefix(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", 4_000, 10)),
        ("archive.ogg", with_prefix(b"PK\x03\x04\x14\0\0\0\x08\0", 4_000, 11)),
        ("compressed.flac", with_prefix(b"\x1f\x8b\x08\0\0\0\0\0", 4_000, 12)),
        ("program.mp3", with_prefix(b"\x7fELF\x02\x01\x01", 4_000, 13)),
        ("apple.aiff", with_prefix(b"FORM\0\0\x10\0AIFFCOMM", 4_000, 14)),
        ("copy.wav", good_wav(440.0)),
    ]
}

/// Files that must be kept, by name (not always text) and content.
fn good_files() -> Vec<(Vec<u8>, Vec<u8>)> {
    let eight_bit: Vec<u8> = (0..24_000).map(|i| (128.0 + 90.0 * (f64::from(i) * 0.3).sin()) as u8).collect();
    let mut with_junk = good_wav(450.0);
    with_junk.splice(36..36, b"LIST\x05\0\0\0abcde\0".iter().copied());
    let stereo = tone(48_000, 4.0, 470.0);
    vec![
        (b"a-good.wav".to_vec(), good_wav(440.0)),
        (b"wave-named.mp3".to_vec(), good_wav(441.0)),
        (b"no-extension".to_vec(), good_wav(442.0)),
        (b"data.dat".to_vec(), good_wav(443.0)),
        (b"caf\xe9 \xff.wav".to_vec(), good_wav(444.0)),
        ("line\nbreak \u{1f3b5}.wav".as_bytes().to_vec(), good_wav(445.0)),
        (b"-o --help.wav".to_vec(), good_wav(446.0)),
        (b"UPPER.WAV".to_vec(), good_wav(447.0)),
        (
            b"float.wav".to_vec(),
            Wav::new(3, 1, 22_050, 32, floats((0..66_150).map(|i| (i as f32 * 0.2).sin() * 0.5))).bytes(),
        ),
        (b"eight-bit.wav".to_vec(), Wav::new(1, 1, 8_000, 8, eight_bit).bytes()),
        (b"stereo.wav".to_vec(), Wav::new(1, 2, 48_000, 16, stereo).bytes()),
        (b"junk-chunk.wav".to_vec(), with_junk),
    ]
}

struct Corpus {
    root: tempfile::TempDir,
    bad: Vec<PathBuf>,
    good: Vec<PathBuf>,
}

fn build() -> Corpus {
    let root = tempfile::tempdir().unwrap();
    let music = root.path().join("music");
    std::fs::create_dir_all(music.join("deep/er/still")).unwrap();
    let mut corpus = Corpus { root, bad: Vec::new(), good: Vec::new() };
    for (name, bytes) in bad_files() {
        std::fs::write(music.join(name), bytes).unwrap();
        corpus.bad.push(music.join(name));
    }
    for (name, bytes) in good_files() {
        let path = music.join(std::ffi::OsString::from_vec(name));
        std::fs::write(&path, bytes).unwrap();
        corpus.good.push(path);
    }
    // Things that are no files.
    std::fs::create_dir(music.join("folder.mp3")).unwrap();
    symlink(music.join("nowhere.wav"), music.join("dangling.mp3")).unwrap();
    symlink(music.join("circle2.wav"), music.join("circle1.wav")).unwrap();
    symlink(music.join("circle1.wav"), music.join("circle2.wav")).unwrap();
    symlink(music.join("itself.ogg"), music.join("itself.ogg")).unwrap();
    symlink(&music, music.join("deep/er/still/up")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(music.join("pipe.mp3")).status().unwrap().success());
    for name in ["folder.mp3", "dangling.mp3", "circle1.wav", "circle2.wav", "itself.ogg", "pipe.mp3"] {
        corpus.bad.push(music.join(name));
    }
    // A whole FLAC, half of it, and one behind a link from outside.
    let flac = |path: &Path, frequency: f32| {
        let samples = (0..66_150).map(|i| (i as f32 * frequency).sin() * 0.4).collect();
        let mut writer = AudioWriter::create(path, AudioFormat::Flac, 22_050, 1, false).unwrap();
        writer.write(&AudioClip::from_mono(samples, 22_050)).unwrap();
        writer.finish().unwrap();
    };
    flac(&music.join("deep/whole.flac"), 0.11);
    let bytes = std::fs::read(music.join("deep/whole.flac")).unwrap();
    std::fs::write(music.join("half.flac"), &bytes[..bytes.len() / 2]).unwrap();
    corpus.bad.push(music.join("half.flac"));
    flac(&corpus.root.path().join("outside.flac"), 0.13);
    symlink(corpus.root.path().join("outside.flac"), music.join("deep/linked.ogg")).unwrap();
    corpus.good.extend([music.join("deep/whole.flac"), music.join("deep/linked.ogg")]);
    // What people wrote, partly broken; and files that are nobody's music.
    std::fs::write(music.join("a-good.txt"), "a clear steady tone\n").unwrap();
    std::fs::write(music.join("stereo.json"), "{broken").unwrap();
    std::fs::write(
        music.join("captions.csv"),
        "path,caption\nUPPER.WAV,loud tone\ngone.wav,nothing\n../outside.flac,escape\n",
    )
    .unwrap();
    corpus.bad.push(music.join("gone.wav"));
    std::fs::write(music.join("cover.jpg"), noise(500, 20)).unwrap();
    std::fs::write(music.join("notes.md"), "hello").unwrap();
    corpus
}

/// One level: the loudness of each frame.
struct Meter(CodecSpec);

impl Codec for Meter {
    fn spec(&self) -> &CodecSpec {
        &self.0
    }

    fn encode(&self, mono: &[f32]) -> CodecTokens {
        let codes: Vec<u16> =
            mono.chunks(self.0.hop as usize).map(|frame| (frame[0].abs() * 100.0) as u16 % 1024).collect();
        CodecTokens { spec: self.0.clone(), frames: codes.len(), codes }
    }

    fn decode(&self, tokens: &CodecTokens, _levels: usize, _seed: u64) -> Vec<f32> {
        vec![0.0; tokens.frames * self.0.hop as usize]
    }
}

fn prepare_with_meter(manifest: &Path, out: &Path) -> PrepareSummary {
    let codec = Meter(CodecSpec { name: "meter".into(), sample_rate: 16_000, hop: 800, levels: 1, cardinality: 1024 });
    let text = |texts: &[&str]| {
        Ok(texts.iter().map(|text| TextStates { states: vec![f16::from_f32(text.len() as f32)] }).collect())
    };
    let stages = Stages {
        codec: &codec,
        codec_hash: String::new(),
        tagger: None,
        tagger_hash: String::new(),
        text: &text,
        text_name: "length".into(),
        text_hash: String::new(),
        text_width: 1,
    };
    let options = PrepareOptions {
        manifests: vec![manifest.into()],
        out: out.into(),
        segment_seconds: 5.0,
        min_seconds: 1.0,
        versions: 2,
        tiers: vec![],
        seed: 1,
        part: 1,
        parts: 1,
    };
    prepare(&options, &stages, &mut |_| {}).unwrap()
}

#[test]
fn every_bad_file_has_its_reason_and_every_good_one_is_kept() {
    let corpus = build();
    assert!(corpus.bad.len() >= 40, "{}", corpus.bad.len());
    let out = corpus.root.path().join("corpus");
    let options = AddOptions {
        folder: corpus.root.path().join("music"),
        out: out.clone(),
        licence: Some("CC0-1.0".into()),
        tier: "own".into(),
        held_out_share: 0.1,
    };
    let summary = add(&options, &mut |_| {}).unwrap();
    let manifest = Manifest::load(&out).unwrap();
    let canonical = std::fs::canonicalize(&options.folder).unwrap();
    let reasons: BTreeMap<PathBuf, Option<&String>> =
        manifest.tracks.iter().map(|track| (track.path.clone(), track.dropped.as_ref())).collect();
    let absolute = |path: &PathBuf| canonical.join(path.strip_prefix(&options.folder).unwrap());
    for path in &corpus.good {
        assert_eq!(reasons.get(&absolute(path)), Some(&None), "{}", path.display());
    }
    for path in &corpus.bad {
        let reason =
            reasons.get(&absolute(path)).unwrap_or_else(|| panic!("{} is not in the manifest", path.display()));
        assert!(reason.is_some_and(|reason| reason.len() > 8), "{}: {reason:?}", path.display());
    }
    assert_eq!((summary.kept, summary.dropped.len()), (corpus.good.len(), corpus.bad.len()));
    assert_eq!(manifest.tracks.len(), corpus.good.len() + corpus.bad.len());
    assert!(!summary.is_clean());
    assert_eq!(summary.warnings.len(), 2, "{:?}", summary.warnings);
    assert_eq!(summary.other_files, 2, "cover.jpg and notes.md");
    let said =
        |name: &str| manifest.tracks.iter().find(|track| track.path.ends_with(name)).unwrap().captions[0].text.clone();
    assert_eq!((said("a-good.wav").as_str(), said("UPPER.WAV").as_str()), ("a clear steady tone", "loud tone"));

    // Adding again changes nothing.
    let before = std::fs::read(&summary.manifest).unwrap();
    add(&options, &mut |_| {}).unwrap();
    assert_eq!(std::fs::read(&summary.manifest).unwrap(), before);

    // Prepare takes the good ones ...
    let prepared = prepare_with_meter(&out, &corpus.root.path().join("shards"));
    assert_eq!(prepared.dropped, []);
    assert!(prepared.items >= corpus.good.len());

    // ... and judges for itself when a manifest claims that everything is good.
    let mut claims = manifest.clone();
    claims.folder = corpus.root.path().join("claims");
    for track in &mut claims.tracks {
        track.dropped = None;
        track.split = Split::Train;
    }
    let prepared = prepare_with_meter(&claims.save().unwrap(), &corpus.root.path().join("shards2"));
    let dropped: Vec<&str> = prepared.dropped.iter().map(|track| track.id.as_str()).collect();
    for track in &claims.tracks {
        let bad = reasons[&track.path].is_some();
        // A copy of another file is no damage, and one of a good file has that file's id.
        let copy = track.path.ends_with("copy.wav") || track.path.ends_with("a-good.wav");
        assert!(copy || dropped.contains(&track.id.as_str()) == bad, "{}", track.path.display());
    }
    assert!(prepared.dropped.iter().all(|track| track.reason.len() > 8));
}
