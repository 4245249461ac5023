//! Files that are wrong in every way we know: each gives an error that names it and says why, and none panics.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::{fixture, sweep};
use mambo_audio::{AudioFormat, AudioReader, read, write};

fn wav(tag: u16, channels: u16, rate: u32, bits: u16, data: &[u8]) -> Vec<u8> {
    let block = channels.wrapping_mul(bits / 8);
    let mut bytes = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0".to_vec();
    bytes.extend(tag.to_le_bytes());
    bytes.extend(channels.to_le_bytes());
    bytes.extend(rate.to_le_bytes());
    bytes.extend(rate.wrapping_mul(u32::from(block)).to_le_bytes());
    bytes.extend(block.to_le_bytes());
    bytes.extend(bits.to_le_bytes());
    bytes.extend(b"data");
    bytes.extend((data.len() as u32).to_le_bytes());
    bytes.extend(data);
    let size = (bytes.len() as u32 - 8).to_le_bytes();
    bytes[4..8].copy_from_slice(&size);
    bytes
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn cut(mut bytes: Vec<u8>, part: f64) -> Vec<u8> {
    bytes.truncate((bytes.len() as f64 * part) as usize);
    bytes
}

fn set(mut bytes: Vec<u8>, at: usize, new: &[u8]) -> Vec<u8> {
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

fn noise(length: usize, mut state: u32) -> Vec<u8> {
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}

/// Name, content, and the reasons that are right.
fn crafted(folder: &Path) -> Vec<(&'static str, Vec<u8>, &'static [&'static str])> {
    let second = vec![1u8; 16_000];
    let good = wav(1, 1, 8000, 16, &second);
    let data_size = 40;
    let flac_path = folder.join("good.flac");
    write(&flac_path, &sweep(44_100, 1.0), AudioFormat::Flac, true).unwrap();
    let flac = std::fs::read(&flac_path).unwrap();
    let load = |name: &str| std::fs::read(fixture(name)).unwrap();
    let (mp3, ogg, opus, m4a, fast) =
        (load("sweep.mp3"), load("sweep.ogg"), load("sweep.opus"), load("sweep.m4a"), load("fast.m4a"));
    let moov = m4a.windows(4).position(|w| w == b"moov").unwrap() - 4;
    let mut not_finite = vec![0.1f32; 30_000];
    not_finite[20_000] = f32::NAN;
    let mut endless = vec![0.1f32; 100];
    endless[7] = f32::INFINITY;
    let id3 = b"ID3\x04\0\0\0\0\x10\0".to_vec();
    vec![
        ("empty.wav", vec![], &["empty"]),
        ("three-bytes.wav", b"RIF".to_vec(), &["unknown format"]),
        ("text.mp3", b"These are the lyrics of a song,\nnot the song.\n".repeat(50), &["unknown format"]),
        ("picture.ogg", [b"\x89PNG\r\n\x1a\n".to_vec(), noise(4000, 1)].concat(), &["unknown format"]),
        ("archive.flac", [b"PK\x03\x04".to_vec(), noise(4000, 2)].concat(), &["unknown format"]),
        ("score.mid", b"MThd\0\0\0\x06\0\0\0\x01\0\x60MTrk\0\0\0\x04\0\xff\x2f\0".to_vec(), &["unknown format"]),
        ("zeros.mp3", vec![0; 100_000], &["unknown format"]),
        ("noise.mp3", noise(100_000, 3), &["unknown format", "malformed", "no samples"]),
        ("video.avi", [b"RIFF\xff\0\0\0AVI LIST".to_vec(), noise(500, 4)].concat(), &["unknown format"]),
        ("film.webm", [b"\x1a\x45\xdf\xa3".to_vec(), noise(500, 5)].concat(), &["unknown format"]),
        ("cut.wav", cut(good.clone(), 0.5), &["truncated"]),
        ("cut-in-header.wav", good[..30].to_vec(), &["malformed", "truncated"]),
        ("only-riff.wav", good[..12].to_vec(), &["malformed"]),
        ("no-data.wav", good[..36].to_vec(), &["malformed"]),
        ("no-format.wav", [&good[..12], &good[36..]].concat(), &["malformed"]),
        ("no-samples.wav", wav(1, 1, 8000, 16, &[]), &["no samples"]),
        ("half-a-sample.wav", wav(1, 2, 8000, 16, &[1, 2, 3]), &["no samples"]),
        ("no-channels.wav", wav(1, 0, 8000, 16, &second), &["no channels"]),
        ("channels.wav", wav(1, 60_000, 8000, 16, &second), &["too many channels"]),
        ("3-ghz.wav", wav(1, 1, 3_000_000_000, 16, &second), &["sample rate"]),
        ("0-hz.wav", wav(1, 1, 0, 16, &second), &["sample rate"]),
        ("100-hz.wav", wav(1, 1, 100, 16, &second), &["sample rate"]),
        ("no-bits.wav", wav(1, 1, 8000, 0, &second), &["malformed"]),
        ("48-bits.wav", wav(1, 1, 8000, 48, &second), &["malformed"]),
        ("half-floats.wav", wav(3, 1, 8000, 16, &second), &["malformed"]),
        ("mp3-inside.wav", wav(0x55, 1, 8000, 16, &second), &["unsupported"]),
        ("strange.wav", wav(0x1234, 1, 8000, 16, &second), &["unsupported"]),
        ("nan.wav", wav(3, 1, 8000, 32, &floats(&not_finite)), &["not finite"]),
        ("infinite.wav", wav(3, 1, 8000, 32, &floats(&endless)), &["not finite"]),
        ("lying-data.wav", set(good.clone(), data_size, &0x7000_0000u32.to_le_bytes()), &["truncated"]),
        ("lying-chunk.wav", set(good.clone(), 16, &0xffff_fff0u32.to_le_bytes()), &["malformed", "unsupported"]),
        ("cut.flac", cut(flac.clone(), 0.5), &["truncated"]),
        ("header-only.flac", flac[..42].to_vec(), &["no samples", "truncated", "malformed"]),
        ("marker-only.flac", flac[..4].to_vec(), &["malformed"]),
        ("no-frames.flac", set(flac.clone(), 42, &vec![0; flac.len() - 42]), &["malformed", "truncated", "no samples"]),
        ("lying-length.flac", set(flac.clone(), 22, &[0xff; 4]), &["truncated"]),
        ("0-hz.flac", set(flac.clone(), 18, &[0, 0, 0x02]), &["malformed", "sample rate", "unsupported"]),
        ("cut.ogg", cut(ogg.clone(), 0.7), &["truncated"]),
        ("first-page.ogg", ogg[..58].to_vec(), &["malformed", "truncated", "no audio track"]),
        (
            "noise-behind.ogg",
            [ogg[..58].to_vec(), noise(5000, 6)].concat(),
            &["malformed", "truncated", "no audio track"],
        ),
        ("no-codec.ogg", set(ogg.clone(), 29, b"nothing"), &["no audio track", "malformed", "unsupported"]),
        ("cut.opus", cut(opus.clone(), 0.6), &["truncated"]),
        (
            "no-channels.opus",
            set(opus.clone(), 37, &[0]),
            &["no channels", "no audio track", "malformed", "unsupported"],
        ),
        ("tag-only.mp3", [id3.clone(), vec![0; 2048]].concat(), &["unknown format"]),
        ("lying-tag.mp3", [b"ID3\x04\0\0\x7f\x7f\x7f\x7f".to_vec(), mp3.clone()].concat(), &["unknown format"]),
        ("cut.mp3", cut(mp3.clone(), 0.5), &["truncated"]),
        (
            "noise-behind.mp3",
            [mp3[..1200].to_vec(), noise(20_000, 7)].concat(),
            &["malformed", "truncated", "unknown format"],
        ),
        ("cut.m4a", cut(fast.clone(), 0.6), &["truncated"]),
        ("no-index.m4a", m4a[..moov].to_vec(), &["malformed", "truncated", "unsupported", "no audio track"]),
        (
            "lying-atom.m4a",
            set(m4a.clone(), moov, &0xffff_ff00u32.to_be_bytes()),
            &["malformed", "truncated", "unsupported", "no audio track"],
        ),
        (
            "no-sound.m4a",
            set(m4a.clone(), m4a.windows(4).position(|w| w == b"mp4a").unwrap(), b"tx3g"),
            &["no audio track", "malformed", "unsupported"],
        ),
    ]
}

#[test]
fn each_bad_file_is_refused_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let files = crafted(folder.path());
    assert!(files.len() >= 40);
    let mut wrong = Vec::new();
    for (name, bytes, reasons) in &files {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        match read(&path) {
            Ok(clip) => wrong.push(format!("{name}: read {} frames", clip.frames())),
            Err(error) => {
                let text = error.to_string();
                if !reasons.contains(&error.kind()) || !text.contains(name) || error.path() != path {
                    wrong.push(format!("{name}: {} ({text}), expected {reasons:?}", error.kind()));
                }
                if text.contains("the decoder failed") {
                    wrong.push(format!("{name}: a decoder panicked"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn things_that_are_no_files() {
    let folder = tempfile::tempdir().unwrap();
    let kind = |path: &Path| read(path).unwrap_err().kind();
    assert_eq!(kind(&folder.path().join("nothing.wav")), "missing");
    assert_eq!(kind(folder.path()), "directory");
    #[cfg(unix)]
    {
        let link = folder.path().join("link.mp3");
        std::os::unix::fs::symlink("gone.mp3", &link).unwrap();
        assert_eq!(kind(&link), "dangling link");
        assert!(read(&link).unwrap_err().to_string().contains("gone.mp3"));
        let good = folder.path().join("good.mp3");
        std::os::unix::fs::symlink(fixture("sweep.mp3"), &good).unwrap();
        assert!(read(&good).is_ok());
        assert_eq!(kind(Path::new("/dev/null")), "not a file");
    }
}

#[test]
fn what_stands_before_the_damage_is_given_out_and_the_place_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.wav");
    let bytes = wav(1, 1, 8000, 16, &vec![1; 64_000]);
    std::fs::write(&path, &bytes[..44 + 24_000]).unwrap();
    let mut reader = AudioReader::open(&path).unwrap();
    let mut frames = 0;
    let error = loop {
        match reader.next_block() {
            Ok(Some(block)) => frames += block.frames(),
            Ok(None) => panic!("the end came without an error"),
            Err(error) => break error,
        }
    };
    assert_eq!(frames, 12_000);
    assert!(error.to_string().contains("it ends at 1.50 s of 4.00 s"), "{error}");
    assert!(reader.next_block().unwrap().is_none());
    // Of an MP4 file whose index stands in front, what is there is read too.
    let fast = std::fs::read(fixture("fast.m4a")).unwrap();
    std::fs::write(&path, cut(fast, 0.8)).unwrap();
    let mut reader = AudioReader::open(&path).unwrap();
    let mut frames = 0;
    let error = loop {
        match reader.next_block() {
            Ok(Some(block)) => frames += block.frames(),
            Ok(None) => panic!("the end came without an error"),
            Err(error) => break error,
        }
    };
    assert!(frames > 8_000, "{frames}");
    assert_eq!(error.kind(), "truncated");
}

/// Damage of every sort to every format: sound or an error comes out, quickly, and never a value that is not
/// finite.
#[test]
fn random_damage_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged");
    let mut state = 99u32;
    let mut random = |below: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % below.max(1)
    };
    let (mut fine, mut refused) = (0, 0);
    for file in [
        "sweep.mp3",
        "sweep.ogg",
        "sweep.opus",
        "surround.opus",
        "sweep.m4a",
        "fast.m4a",
        "sweep.aac",
        "deep.flac",
        "alac.m4a",
        "layer2.mp2",
    ] {
        let whole = std::fs::read(fixture(file)).unwrap();
        for round in 0..60 {
            let mut bytes = whole.clone();
            // Early bytes hold the headers: half of the damage goes there.
            for _ in 0..1 + round % 4 {
                let reach = if random(2) == 0 { 200 } else { bytes.len() };
                let at = random(reach.min(bytes.len()));
                match random(4) {
                    0 => bytes[at] ^= 1 << random(8),
                    1 => bytes[at] = [0, 0xff, 0x7f, 0x80][random(4)],
                    2 => drop(bytes.drain(at..(at + random(40)).min(whole.len()).min(bytes.len()).max(at))),
                    _ => bytes.truncate(at.max(16)),
                }
            }
            std::fs::write(&path, &bytes).unwrap();
            match read(&path) {
                Ok(clip) => {
                    assert!(clip.channels.iter().flatten().all(|sample| sample.is_finite()));
                    fine += 1;
                }
                Err(error) => {
                    assert!(error.to_string().contains("damaged"));
                    refused += 1;
                }
            }
        }
    }
    assert!(fine > 50 && refused > 50, "{fine} {refused}");
}
