//! Reading sound files, recognised by their content and never by their name.
//!
//! Blocks are decoded as they are asked for: memory does not grow with the length of a file, and no length
//! field of a header is trusted for an allocation. What comes out is finite, has 1 to 32 channels and a
//! sample rate of 1 kHz to 1 MHz; everything else is an [`AudioError`] that names the file.

mod mp4;
mod opus;
mod packets;
mod sniff;
mod tags;
mod wav;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::{AudioClip, AudioError, Resampler};
use sniff::Content;

/// Channels above this number are refused.
pub const MAX_CHANNELS: usize = 32;
/// Sample rates outside this range, in Hz, are refused.
pub const SAMPLE_RATES: RangeInclusive<u32> = 1_000..=1_000_000;

/// What went wrong inside a decoder, before the file's name and the position are added.
#[derive(Debug)]
enum Fault {
    Read(std::io::Error),
    Malformed(String),
    Unsupported(String),
    /// With the promised number of frames, where there is one.
    Truncated(Option<u64>),
    NoAudioTrack,
    NoSamples,
    NoChannels,
    TooManyChannels(usize),
    SampleRate(u32),
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::UnexpectedEof { Fault::Truncated(None) } else { Fault::Read(error) }
    }
}

/// The properties of an opened stream.
struct Opened {
    format: &'static str,
    sample_rate: u32,
    channels: usize,
    tags: BTreeMap<String, String>,
    source: Box<dyn Source>,
}

/// A stream that decodes block after block.
trait Source: Send {
    /// The next samples, planar, every channel of the same length; `None` at the end.
    fn next(&mut self) -> Result<Option<Vec<Vec<f32>>>, Fault>;
}

/// A sound file being read.
pub struct AudioReader {
    path: PathBuf,
    opened: Opened,
    frames: u64,
    finished: bool,
}

impl std::fmt::Debug for AudioReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AudioReader")
            .field("path", &self.path)
            .field("format", &self.opened.format)
            .field("sample_rate", &self.opened.sample_rate)
            .field("channels", &self.opened.channels)
            .finish_non_exhaustive()
    }
}

impl AudioReader {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// If there is no such file, or it is no sound that can be read.
    pub fn open(path: &Path) -> Result<Self, AudioError> {
        let file = open_file(path)?;
        let mut format = "sound";
        let opened = guarded(|| open_content(file, &mut format));
        let opened = opened.map_err(|fault| match fault {
            Failure::Unknown(found) => AudioError::UnknownFormat { path: path.into(), found },
            Failure::Fault(fault) => name_fault(fault, path, format, 0, 0),
        })?;
        if opened.channels == 0 {
            return Err(AudioError::NoChannels { path: path.into() });
        }
        if opened.channels > MAX_CHANNELS {
            return Err(AudioError::TooManyChannels { path: path.into(), found: opened.channels });
        }
        if !SAMPLE_RATES.contains(&opened.sample_rate) {
            return Err(AudioError::SampleRate { path: path.into(), found: opened.sample_rate });
        }
        Ok(Self { path: path.into(), opened, frames: 0, finished: false })
    }

    /// Samples per second of each channel, in Hz.
    pub fn sample_rate(&self) -> u32 {
        self.opened.sample_rate
    }

    /// Number of channels.
    pub fn channel_count(&self) -> usize {
        self.opened.channels
    }

    /// What the content is: `wav`, `flac`, `mp3`, `vorbis`, `opus`, `aac`, ...
    pub fn format_name(&self) -> &str {
        self.opened.format
    }

    /// Tags under lower-case keys: `title`, `artist`, `album`, `genre`, `date`, `comment`, `track`, ...
    pub fn tags(&self) -> &BTreeMap<String, String> {
        &self.opened.tags
    }

    /// Samples per channel given out so far.
    pub fn frames_read(&self) -> u64 {
        self.frames
    }

    /// The next block (at most some seconds long), or `None` at the end.
    ///
    /// # Errors
    /// If the file is damaged or truncated: what was given out before is good. After an error, `None`.
    pub fn next_block(&mut self) -> Result<Option<AudioClip>, AudioError> {
        if self.finished {
            return Ok(None);
        }
        let result = self.decode_block();
        self.finished = !matches!(result, Ok(Some(_)));
        result
    }

    fn decode_block(&mut self) -> Result<Option<AudioClip>, AudioError> {
        let format = self.opened.format;
        loop {
            let source = &mut self.opened.source;
            let block = guarded(|| source.next())
                .map_err(|fault| name_fault(fault, &self.path, format, self.frames, self.opened.sample_rate))?;
            let Some(channels) = block else {
                if self.frames == 0 {
                    return Err(AudioError::NoSamples { path: self.path.clone(), format });
                }
                return Ok(None);
            };
            let clip = AudioClip { sample_rate: self.opened.sample_rate, channels };
            if clip.frames() == 0 {
                continue;
            }
            for (channel, samples) in clip.channels.iter().enumerate() {
                // A sum of absolute values is finite exactly when all are (blocks are short enough).
                if !samples.iter().map(|sample| f64::from(sample.abs())).sum::<f64>().is_finite() {
                    let at = samples.iter().position(|sample| !sample.is_finite()).unwrap_or(0);
                    let seconds = (self.frames + at as u64) as f64 / f64::from(clip.sample_rate);
                    return Err(AudioError::NotFinite { path: self.path.clone(), seconds, channel });
                }
            }
            self.frames += clip.frames() as u64;
            return Ok(Some(clip));
        }
    }
}

/// Reads a whole file.
///
/// # Errors
/// As [`AudioReader::open`] and [`AudioReader::next_block`].
pub fn read(path: &Path) -> Result<AudioClip, AudioError> {
    let mut reader = AudioReader::open(path)?;
    let mut clip = AudioClip::empty(reader.sample_rate(), reader.channel_count());
    while let Some(block) = reader.next_block()? {
        clip.append(&block);
    }
    Ok(clip)
}

/// A file as one channel (the mean of all) at a wanted rate, block by block.
pub struct MonoReader {
    reader: AudioReader,
    rate: u32,
    /// `None` when the file is at its end.
    resampler: Option<Resampler>,
}

impl MonoReader {
    /// Opens a file to be read at `rate` Hz.
    ///
    /// # Errors
    /// As [`AudioReader::open`].
    pub fn open(path: &Path, rate: u32) -> Result<Self, AudioError> {
        let reader = AudioReader::open(path)?;
        let resampler = Some(Resampler::new(reader.sample_rate(), rate, 1));
        Ok(Self { reader, rate, resampler })
    }

    /// The next samples, perhaps none yet; `None` at the end.
    ///
    /// # Errors
    /// As [`AudioReader::next_block`].
    pub fn next_block(&mut self) -> Result<Option<Vec<f32>>, AudioError> {
        let Some(mut resampler) = self.resampler.take() else { return Ok(None) };
        let Some(block) = self.reader.next_block()? else {
            return Ok(resampler.finish().channels.into_iter().next());
        };
        let ready = resampler.push(&AudioClip::from_mono(block.to_mono(), self.reader.sample_rate()));
        self.resampler = Some(resampler);
        Ok(ready.channels.into_iter().next())
    }

    /// Samples a second.
    pub fn rate(&self) -> u32 {
        self.rate
    }
}

/// Reads a whole file as one channel (the mean of all) at `rate` Hz. Decoding, mixing and resampling go block
/// by block.
///
/// # Errors
/// As [`AudioReader::open`] and [`AudioReader::next_block`].
pub fn read_mono(path: &Path, rate: u32) -> Result<Vec<f32>, AudioError> {
    let mut reader = MonoReader::open(path, rate)?;
    let mut samples = Vec::new();
    while let Some(block) = reader.next_block()? {
        samples.extend_from_slice(&block);
    }
    Ok(samples)
}

fn open_file(path: &Path) -> Result<File, AudioError> {
    let read_error = |source| AudioError::Read { path: path.into(), source };
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(match std::fs::read_link(path) {
                Ok(target) => AudioError::DanglingLink { path: path.into(), target },
                Err(_) => AudioError::Missing { path: path.into() },
            });
        }
        Err(source) => return Err(read_error(source)),
    };
    if metadata.is_dir() {
        return Err(AudioError::Directory { path: path.into() });
    }
    if !metadata.is_file() {
        return Err(AudioError::NotAFile { path: path.into() });
    }
    if metadata.len() == 0 {
        return Err(AudioError::Empty { path: path.into() });
    }
    File::open(path).map_err(read_error)
}

enum Failure {
    Unknown(String),
    Fault(Fault),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Failure::Fault(fault)
    }
}

impl From<String> for Fault {
    fn from(reason: String) -> Self {
        Fault::Malformed(reason)
    }
}

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Failure::Fault(Fault::Malformed(reason))
    }
}

fn open_content(mut file: File, format: &mut &'static str) -> Result<Opened, Failure> {
    let content = sniff::sniff(&mut file).map_err(Fault::from)?;
    file.seek(SeekFrom::Start(0)).map_err(Fault::from)?;
    Ok(match content {
        Content::Unknown(found) => return Err(Failure::Unknown(found)),
        Content::Wav => {
            *format = "wav";
            wav::open(file)?
        }
        Content::Packets(kind, start) => {
            *format = kind.name();
            packets::open(file, kind, start)?
        }
    })
}

/// Runs a decoder step. A panic in a decoder is a damaged file to us: the last line of defence against files
/// that no parser foresaw.
fn guarded<T, E: From<String>>(step: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    catch_unwind(AssertUnwindSafe(step)).unwrap_or_else(|_| Err(E::from("the decoder failed on it".to_string())))
}

fn name_fault(fault: Fault, path: &Path, format: &'static str, frames: u64, rate: u32) -> AudioError {
    let path = path.to_path_buf();
    let seconds = frames as f64 / f64::from(rate.max(1));
    match fault {
        Fault::Read(source) => AudioError::Read { path, source },
        Fault::Malformed(reason) => AudioError::Malformed { path, format, seconds, reason },
        Fault::Unsupported(what) => AudioError::Unsupported { path, format, what },
        Fault::Truncated(promised) => {
            let expected = promised
                .filter(|_| rate > 0)
                .map_or(String::new(), |promised| format!(" of {:.2} s", promised as f64 / f64::from(rate)));
            AudioError::Truncated { path, format, seconds, expected }
        }
        Fault::NoAudioTrack => AudioError::NoAudioTrack { path, format },
        Fault::NoSamples => AudioError::NoSamples { path, format },
        Fault::NoChannels => AudioError::NoChannels { path },
        Fault::TooManyChannels(found) => AudioError::TooManyChannels { path, found },
        Fault::SampleRate(found) => AudioError::SampleRate { path, found },
    }
}
