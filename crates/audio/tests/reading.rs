//! Every format that is read, by content, at the right place, in blocks.

#![allow(clippy::unwrap_used)]

mod common;

use common::{fixture, ratio, sweep};
use mambo_audio::{AudioClip, AudioFormat, AudioReader, read, read_mono, write};

/// Lossy codecs give the sweep back at the right place: not a single sample early or late.
fn assert_in_place(name: &str, clip: &AudioClip, at_least: f64) {
    let wanted = sweep(clip.sample_rate, 0.5);
    for (channel, (seen, wanted)) in clip.channels.iter().zip(&wanted.channels).enumerate() {
        // The very ends of so short a clip are the worst of every codec.
        let inner = 2000..seen.len().min(wanted.len()) - 2000;
        let here = ratio(&seen[inner.clone()], &wanted[inner.clone()]);
        assert!(here > at_least, "{name} channel {channel}: {here:.1} dB");
        for shift in [1usize, 2, 3] {
            let early = ratio(&seen[2000 + shift..inner.end], &wanted[inner.clone()]);
            let late = ratio(&seen[2000 - shift..inner.end], &wanted[inner.clone()]);
            assert!(here > early && here > late, "{name}: off by {shift}: {here:.1} {early:.1} {late:.1}");
        }
    }
}

#[test]
fn every_format_is_read_without_its_padding() {
    for (file, format, rate, frames, at_least) in [
        ("sweep.mp3", "mp3", 44_100, 22_050, 20.0),
        ("sweep.ogg", "vorbis", 44_100, 22_050, 15.0),
        ("sweep.opus", "opus", 48_000, 24_000, 15.0),
        ("sweep.m4a", "aac", 44_100, 22_050, 20.0),
        ("fast.m4a", "aac", 44_100, 22_050, 20.0),
    ] {
        let reader = AudioReader::open(&fixture(file)).unwrap();
        assert_eq!((reader.format_name(), reader.sample_rate(), reader.channel_count()), (format, rate, 2), "{file}");
        let clip = read(&fixture(file)).unwrap();
        assert_eq!((clip.frames(), clip.channel_count()), (frames, 2), "{file}");
        assert_in_place(file, &clip, at_least);
    }
}

#[test]
fn formats_that_do_not_tell_their_padding_are_read_too() {
    for (file, format, rate, channels, frames) in [
        ("sweep.aac", "aac", 44_100, 2, 22_050..26_000),
        ("mono22.mp3", "mp3", 22_050, 1, 11_025..15_000),
        ("layer2.mp2", "mp2", 16_000, 1, 8_000..11_000),
        ("surround.opus", "opus", 48_000, 6, 24_000..24_001),
    ] {
        let reader = AudioReader::open(&fixture(file)).unwrap();
        assert_eq!(
            (reader.format_name(), reader.sample_rate(), reader.channel_count()),
            (format, rate, channels),
            "{file}"
        );
        let clip = read(&fixture(file)).unwrap();
        assert!(frames.contains(&clip.frames()), "{file}: {}", clip.frames());
        let power: f32 = clip.to_mono().iter().map(|s| s * s).sum::<f32>() / clip.frames() as f32;
        assert!((0.005..0.5).contains(&power), "{file}: {power}");
    }
}

#[test]
fn lossless_formats_are_exact() {
    for (file, rate, seconds, step) in [("alac.m4a", 44_100, 0.1, 1.0 / 32_768.0), ("deep.flac", 16_000, 0.15, 0.01)] {
        let clip = read(&fixture(file)).unwrap();
        assert_eq!((clip.sample_rate, clip.channel_count()), (rate, 1), "{file}");
        let wanted = sweep(rate, seconds).to_mono();
        assert_eq!(clip.frames(), wanted.len(), "{file}");
        let worst = clip.channels[0].iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1.5 * step, "{file}: {worst}");
    }
}

#[test]
fn tags_have_the_same_names_everywhere() {
    for file in ["sweep.mp3", "sweep.ogg", "sweep.opus", "sweep.m4a"] {
        let reader = AudioReader::open(&fixture(file)).unwrap();
        for (key, value) in
            [("title", "Sweep"), ("artist", "Mambo"), ("genre", "Test"), ("date", "2026"), ("comment", "synthetic")]
        {
            assert_eq!(reader.tags().get(key).map(String::as_str), Some(value), "{file}: {:?}", reader.tags());
        }
    }
}

#[test]
fn the_name_of_a_file_does_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["a.mp3", "b.wav", "c", "d.txt", "e.flac"];
    for file in ["sweep.mp3", "sweep.ogg", "sweep.opus", "sweep.m4a", "sweep.aac", "deep.flac"] {
        let expected = read(&fixture(file)).unwrap();
        for name in names {
            let path = folder.path().join(name);
            std::fs::copy(fixture(file), &path).unwrap();
            assert_eq!(read(&path).unwrap(), expected, "{file} as {name}");
        }
    }
    let path = folder.path().join("really-a-wav.mp3");
    let clip = sweep(44_100, 0.2);
    write(&path, &clip, AudioFormat::WavF32, false).unwrap();
    assert_eq!(AudioReader::open(&path).unwrap().format_name(), "wav");
    assert_eq!(read(&path).unwrap(), clip);
}

#[test]
fn junk_and_tags_before_mpeg_audio_do_not_hide_it() {
    let folder = tempfile::tempdir().unwrap();
    let plain = std::fs::read(fixture("mono22.mp3")).unwrap();
    let expected = read(&fixture("mono22.mp3")).unwrap();
    let big_tag = [b"ID3\x04\x00\x00\x00\x02\x00\x00".to_vec(), vec![0; 2 << 14]].concat();
    for (name, before) in
        [("junk", vec![0x11; 700]), ("tag", big_tag.clone()), ("tags", [big_tag.clone(), big_tag].concat())]
    {
        let path = folder.path().join(name);
        std::fs::write(&path, [before, plain.clone()].concat()).unwrap();
        assert_eq!(read(&path).unwrap().frames(), expected.frames(), "{name}");
    }
}

#[test]
fn reading_in_one_go_equals_reading_in_blocks() {
    for file in ["sweep.mp3", "sweep.ogg", "sweep.opus", "sweep.m4a"] {
        let whole = read(&fixture(file)).unwrap();
        let mut reader = AudioReader::open(&fixture(file)).unwrap();
        let mut joined = AudioClip::empty(whole.sample_rate, whole.channel_count());
        let mut blocks = 0;
        while let Some(block) = reader.next_block().unwrap() {
            assert!(block.channels.iter().all(|channel| channel.len() == block.frames()));
            joined.append(&block);
            blocks += 1;
        }
        assert!(blocks > 1, "{file}");
        assert!(reader.next_block().unwrap().is_none());
        assert_eq!(reader.frames_read(), whole.frames() as u64);
        assert_eq!(joined, whole, "{file}");
        let mono = read_mono(&fixture(file), 16_000).unwrap();
        let other = mambo_audio::resample(&AudioClip::from_mono(whole.to_mono(), whole.sample_rate), 16_000);
        assert_eq!(mono, other.channels[0], "{file}");
        assert_eq!(mono.len(), 8_000);
    }
}

/// A WAV file of 100 frames with two channels, byte by byte.
fn raw_wav(tag: u16, bits: u16, extensible: bool, width: usize, code: impl Fn(f64) -> Vec<u8>) -> Vec<u8> {
    let mut format = Vec::new();
    format.extend((if extensible { 0xfffeu16 } else { tag }).to_le_bytes());
    format.extend(2u16.to_le_bytes());
    format.extend(8000u32.to_le_bytes());
    format.extend((8000 * 2 * width as u32).to_le_bytes());
    format.extend((2 * width as u16).to_le_bytes());
    format.extend((if extensible { 8 * width as u16 } else { bits }).to_le_bytes());
    if extensible {
        format.extend(22u16.to_le_bytes());
        format.extend(bits.to_le_bytes());
        format.extend(3u32.to_le_bytes());
        format.extend(tag.to_le_bytes());
        format.extend([0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xaa, 0, 0x38, 0x9b, 0x71]);
    }
    let data: Vec<u8> = wave().flat_map(|sample| [code(sample), code(-sample)].concat()).collect();
    let mut bytes = b"RIFF\0\0\0\0WAVE".to_vec();
    // A chunk nobody knows, of odd length, stands in between.
    bytes.extend(b"what\x03\0\0\0abc\0fmt ");
    bytes.extend((format.len() as u32).to_le_bytes());
    bytes.extend(format);
    bytes.extend(b"data");
    bytes.extend((data.len() as u32).to_le_bytes());
    bytes.extend(data);
    let size = (bytes.len() as u32 - 8).to_le_bytes();
    bytes[4..8].copy_from_slice(&size);
    bytes
}

fn wave() -> impl Iterator<Item = f64> {
    (0..100).map(|n| 0.9 * (f64::from(n) * 0.1).sin())
}

#[test]
fn all_kinds_of_wav() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.wav");
    let integer = |bits: u32, width: usize, shift: u32| {
        move |x: f64| ((x * f64::from(1u32 << (bits - 1))) as i32).wrapping_shl(shift).to_le_bytes()[..width].to_vec()
    };
    let a_law = |x: f64| {
        // The nearest of all 256 codes, by the published decoder written as a search.
        let value = |code: u8| {
            let c = code ^ 0x55;
            let (e, m) = (i32::from(c >> 4 & 7), i32::from(c & 15));
            let magnitude = if e == 0 { (m << 4) + 8 } else { ((m << 4) + 0x108) << (e - 1) };
            f64::from(if c & 0x80 != 0 { magnitude } else { -magnitude }) / 32_768.0
        };
        vec![(0..=255u8).min_by(|a, b| (value(*a) - x).abs().total_cmp(&(value(*b) - x).abs())).unwrap()]
    };
    let mu_law = |x: f64| {
        let value = |code: u8| {
            let c = !code;
            let magnitude = (((i32::from(c & 15) << 3) + 0x84) << ((c >> 4) & 7)) - 0x84;
            f64::from(if c & 0x80 != 0 { -magnitude } else { magnitude }) / 32_768.0
        };
        vec![(0..=255u8).min_by(|a, b| (value(*a) - x).abs().total_cmp(&(value(*b) - x).abs())).unwrap()]
    };
    let files: Vec<(&str, Vec<u8>, f64)> = vec![
        ("u8", raw_wav(1, 8, false, 1, |x| vec![(x * 127.0 + 128.0) as u8]), 0.02),
        ("s16", raw_wav(1, 16, false, 2, integer(16, 2, 0)), 1e-4),
        ("s24", raw_wav(1, 24, false, 3, integer(24, 3, 0)), 1e-6),
        ("s32", raw_wav(1, 32, false, 4, integer(32, 4, 0)), 1e-7),
        ("f32", raw_wav(3, 32, false, 4, |x| (x as f32).to_le_bytes().to_vec()), 1e-7),
        ("f64", raw_wav(3, 64, false, 8, |x| x.to_le_bytes().to_vec()), 1e-7),
        ("s16 ext", raw_wav(1, 16, true, 2, integer(16, 2, 0)), 1e-4),
        ("s20 in 24 ext", raw_wav(1, 20, true, 3, integer(20, 3, 4)), 1e-5),
        ("s24 in 32 ext", raw_wav(1, 24, true, 4, integer(24, 4, 8)), 1e-6),
        ("f32 ext", raw_wav(3, 32, true, 4, |x| (x as f32).to_le_bytes().to_vec()), 1e-7),
        ("a-law", raw_wav(6, 8, false, 1, a_law), 0.04),
        ("mu-law", raw_wav(7, 8, false, 1, mu_law), 0.04),
    ];
    for (name, bytes, tolerance) in files {
        std::fs::write(&path, bytes).unwrap();
        let clip = read(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((clip.frames(), clip.channel_count(), clip.sample_rate), (100, 2, 8000), "{name}");
        for (n, wanted) in wave().enumerate() {
            let (left, right) = (f64::from(clip.channels[0][n]), f64::from(clip.channels[1][n]));
            assert!(
                (left - wanted).abs() < tolerance && (right + wanted).abs() < tolerance,
                "{name} {n}: {left} {wanted}"
            );
        }
    }
}

#[test]
fn wav_tags_and_unknown_sizes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.wav");
    let mut bytes = raw_wav(1, 16, false, 2, |_| vec![1, 0]);
    // As programs write to a pipe: no sizes known.
    let data = bytes.windows(4).position(|w| w == b"data").unwrap();
    bytes[data + 4..data + 8].fill(0xff);
    bytes[4..8].fill(0xff);
    let info = b"LIST\x1e\0\0\0INFOINAM\x05\0\0\0Tune\0\0IART\x04\0\0\0Anna";
    bytes.splice(12..12, info.iter().copied());
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(read(&path).unwrap().frames(), 100);
    let reader = AudioReader::open(&path).unwrap();
    assert_eq!((reader.tags()["title"].as_str(), reader.tags()["artist"].as_str()), ("Tune", "Anna"));
}
