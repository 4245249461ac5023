//! What is written is what is read; files appear whole or not at all.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::sync::{Arc, Mutex};

use common::{ratio, sweep};
use mambo_audio::{AudioClip, AudioFormat, AudioReader, AudioWriter, read, write};

const FORMATS: [AudioFormat; 4] = [AudioFormat::Wav16, AudioFormat::Wav24, AudioFormat::WavF32, AudioFormat::Flac];

fn channels(count: usize) -> AudioClip {
    let two = sweep(44_100, 0.3);
    AudioClip { sample_rate: 44_100, channels: (0..count).map(|c| two.channels[c % 2].clone()).collect() }
}

#[test]
fn round_trips() {
    let folder = tempfile::tempdir().unwrap();
    for format in FORMATS {
        for count in [1, 2, 3, 6] {
            let path = folder.path().join(format!("{format:?}-{count}.{}", format.extension()));
            let clip = channels(count);
            write(&path, &clip, format, false).unwrap();
            let back = read(&path).unwrap();
            assert_eq!((back.sample_rate, back.channel_count(), back.frames()), (44_100, count, clip.frames()));
            let least = match format {
                AudioFormat::WavF32 => 250.0,
                AudioFormat::Wav24 => 130.0,
                _ => 80.0,
            };
            for (seen, wanted) in back.channels.iter().zip(&clip.channels) {
                assert!(ratio(seen, wanted) > least, "{format:?}: {}", ratio(seen, wanted));
            }
            // What was read is written again without another loss.
            let again = folder.path().join("again");
            write(&again, &back, format, true).unwrap();
            assert_eq!(std::fs::read(&again).unwrap(), std::fs::read(&path).unwrap(), "{format:?}");
        }
    }
}

#[test]
fn others_can_read_our_wav() {
    let folder = tempfile::tempdir().unwrap();
    for (format, bits, float) in
        [(AudioFormat::Wav16, 16, false), (AudioFormat::Wav24, 24, false), (AudioFormat::WavF32, 32, true)]
    {
        for count in [1, 2, 6] {
            let path = folder.path().join("x.wav");
            let clip = channels(count);
            write(&path, &clip, format, true).unwrap();
            let mut reader = hound::WavReader::open(&path).unwrap();
            let spec = reader.spec();
            assert_eq!((spec.bits_per_sample, spec.channels, spec.sample_rate), (bits, count as u16, 44_100));
            assert_eq!(spec.sample_format == hound::SampleFormat::Float, float);
            assert_eq!(reader.duration() as usize, clip.frames());
            let scale = if float { 1.0 } else { (1u32 << (bits - 1)) as f32 };
            let samples: Vec<f32> = if float {
                reader.samples::<f32>().map(Result::unwrap).collect()
            } else {
                reader.samples::<i32>().map(|s| s.unwrap() as f32 / scale).collect()
            };
            for (n, frame) in samples.chunks(count).enumerate() {
                for (channel, sample) in frame.iter().enumerate() {
                    assert!((sample - clip.channels[channel][n]).abs() <= 2.0 / scale);
                }
            }
        }
    }
}

#[test]
fn blocks_do_not_change_a_byte() {
    let folder = tempfile::tempdir().unwrap();
    let clip = sweep(44_100, 0.4);
    for format in FORMATS {
        let whole = folder.path().join("whole");
        write(&whole, &clip, format, true).unwrap();
        let parts = folder.path().join("parts");
        let mut writer = AudioWriter::create(&parts, format, 44_100, 2, true).unwrap();
        let mut at = 0;
        for size in [0, 1, 4095, 4096, 4097, usize::MAX] {
            let end = at + size.min(clip.frames() - at);
            let block = clip.channels.iter().map(|channel| channel[at..end].to_vec()).collect();
            writer.write(&AudioClip { sample_rate: 44_100, channels: block }).unwrap();
            at = end;
        }
        assert_eq!(writer.frames_written(), clip.frames() as u64);
        writer.finish().unwrap();
        assert_eq!(std::fs::read(&whole).unwrap(), std::fs::read(&parts).unwrap(), "{format:?}");
    }
}

#[test]
fn a_file_appears_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("song.wav");
    let part = folder.path().join("song.wav.part");
    let clip = sweep(44_100, 0.1);
    let mut writer = AudioWriter::create(&path, AudioFormat::Wav16, 44_100, 2, false).unwrap();
    writer.write(&clip).unwrap();
    assert!(part.exists() && !path.exists());
    drop(writer);
    assert!(!part.exists() && !path.exists());

    std::fs::write(&path, "precious").unwrap();
    let error = write(&path, &clip, AudioFormat::Wav16, false).unwrap_err();
    assert_eq!(error.kind(), "exists");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    drop(AudioWriter::create(&path, AudioFormat::Wav16, 44_100, 2, true).unwrap());
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    write(&path, &clip, AudioFormat::Wav16, true).unwrap();
    assert_eq!(read(&path).unwrap().frames(), clip.frames());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn finish_leaves_a_valid_file_at_any_point() {
    let folder = tempfile::tempdir().unwrap();
    let clip = sweep(44_100, 0.3);
    for format in FORMATS {
        for frames in [1, 100, 5000] {
            let path = folder.path().join("short");
            let mut writer = AudioWriter::create(&path, format, 44_100, 2, true).unwrap();
            let block = clip.channels.iter().map(|channel| channel[..frames].to_vec()).collect();
            writer.write(&AudioClip { sample_rate: 44_100, channels: block }).unwrap();
            writer.finish().unwrap();
            assert_eq!(read(&path).unwrap().frames(), frames, "{format:?}");
        }
        let path = folder.path().join("nothing");
        AudioWriter::create(&path, format, 44_100, 2, true).unwrap().finish().unwrap();
        assert_eq!(read(&path).unwrap_err().kind(), "no samples", "{format:?}");
    }
}

#[derive(Clone, Default)]
struct Pipe(Arc<Mutex<Vec<u8>>>);

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_stream_is_a_valid_file_of_unknown_length() {
    let folder = tempfile::tempdir().unwrap();
    let clip = sweep(44_100, 0.2);
    for format in FORMATS {
        let pipe = Pipe::default();
        let mut writer = AudioWriter::to_stream(Box::new(pipe.clone()), "-", format, 44_100, 2).unwrap();
        writer.write(&clip).unwrap();
        writer.finish().unwrap();
        let bytes = pipe.0.lock().unwrap().clone();
        if format != AudioFormat::Flac {
            assert_eq!(bytes[4..8], [0xff; 4]);
            let data = bytes.windows(4).position(|w| w == b"data").unwrap();
            assert_eq!(bytes[data + 4..data + 8], [0xff; 4]);
        }
        let path = folder.path().join("piped");
        std::fs::write(&path, bytes).unwrap();
        let reader = AudioReader::open(&path).unwrap();
        assert_eq!(reader.channel_count(), 2);
        assert_eq!(read(&path).unwrap().frames(), clip.frames(), "{format:?}");
    }
}

#[test]
fn what_cannot_be_written_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    let kind = |format, rate, count| AudioWriter::create(&path, format, rate, count, true).err().unwrap().kind();
    assert_eq!(kind(AudioFormat::Wav16, 44_100, 0), "unwritable");
    assert_eq!(kind(AudioFormat::Wav16, 3_000_000_000, 1), "unwritable");
    assert_eq!(kind(AudioFormat::Flac, 44_100, 9), "unwritable");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let nowhere = folder.path().join("no/such/folder.wav");
    assert_eq!(AudioWriter::create(&nowhere, AudioFormat::Wav16, 44_100, 1, true).err().unwrap().kind(), "unwritable");
    assert_eq!(
        AudioWriter::create(folder.path(), AudioFormat::Wav16, 44_100, 1, true).err().unwrap().kind(),
        "directory"
    );
    let mut writer = AudioWriter::create(&path, AudioFormat::Wav16, 44_100, 1, true).unwrap();
    assert_eq!(writer.write(&sweep(44_100, 0.1)).unwrap_err().kind(), "unwritable");
    assert_eq!(writer.write(&AudioClip::from_mono(vec![f32::NAN], 44_100)).unwrap_err().kind(), "unwritable");
    writer.write(&AudioClip::from_mono(vec![2.0, -2.0, 0.5], 44_100)).unwrap();
    assert_eq!(writer.clipped(), 2);
    writer.finish().unwrap();
    assert_eq!(read(&path).unwrap().channels[0], [32_767.0 / 32_768.0, -1.0, 0.5]);
}
