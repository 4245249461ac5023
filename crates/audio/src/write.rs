//! Writing WAV and FLAC, block after block.
//!
//! A file is written beside its place under the name `NAME.part`, and moved there when it is whole: a reader
//! never sees half a file, and an old one is not lost. What `finish` leaves is a valid file however few blocks
//! came before it.

mod flac;
mod samples;
mod wav;

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::{AudioClip, AudioError};

/// What can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AudioFormat {
    /// WAV, 16-bit integers, with triangular dither.
    Wav16,
    /// WAV, 24-bit integers.
    Wav24,
    /// WAV, 32-bit floats: exactly the samples given.
    WavF32,
    /// FLAC, 16-bit integers, with triangular dither.
    Flac,
}

impl AudioFormat {
    /// The format with this name (`wav`, `wav16`, `wav24`, `wavf32`, `flac`), in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        match name.to_lowercase().as_str() {
            "wav" | "wav16" => Some(Self::Wav16),
            "wav24" => Some(Self::Wav24),
            "wavf32" => Some(Self::WavF32),
            "flac" => Some(Self::Flac),
            _ => None,
        }
    }

    /// Usual ending of a file name, without the dot.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Flac => "flac",
            _ => "wav",
        }
    }
}

enum Encoder {
    Wav(Box<wav::WavEncoder>),
    Flac(Box<flac::FlacEncoder>),
}

enum Output {
    File(BufWriter<File>),
    Stream(Box<dyn Write + Send>),
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Output::File(file) => file.write(bytes),
            Output::Stream(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Output::File(file) => file.flush(),
            Output::Stream(stream) => stream.flush(),
        }
    }
}

/// A sound file being written.
pub struct AudioWriter {
    path: PathBuf,
    /// Name while the file is not whole; removed unless finished.
    part: Option<PathBuf>,
    overwrite: bool,
    sample_rate: u32,
    channels: usize,
    encoder: Encoder,
    output: Output,
    frames: u64,
    bytes: Vec<u8>,
}

impl AudioWriter {
    /// Starts a file.
    ///
    /// # Errors
    /// If it exists and `overwrite` is false, the place cannot be written, or the format cannot hold the rate
    /// or the channels.
    pub fn create(
        path: &Path,
        format: AudioFormat,
        sample_rate: u32,
        channels: usize,
        overwrite: bool,
    ) -> Result<Self, AudioError> {
        if path.is_dir() {
            return Err(AudioError::Directory { path: path.into() });
        }
        if !overwrite && path.symlink_metadata().is_ok() {
            return Err(AudioError::Exists { path: path.into() });
        }
        let encoder = new_encoder(path, format, sample_rate, channels)?;
        let mut name = path
            .file_name()
            .ok_or_else(|| AudioError::Unwritable { path: path.into(), reason: "it names no file".into() })?
            .to_owned();
        name.push(".part");
        let part = path.with_file_name(name);
        let file = File::create(&part).map_err(|source| AudioError::Write { path: part.clone(), source })?;
        let output = Output::File(BufWriter::with_capacity(1 << 17, file));
        Self::start(path, Some(part), overwrite, sample_rate, channels, encoder, output)
    }

    /// Starts a stream that cannot be moved back in, such as standard output. `name` stands for it in errors.
    /// A WAV header then carries the size 0xFFFFFFFF, which says that the sound lasts to the end of the stream.
    ///
    /// # Errors
    /// If the stream cannot be written, or the format cannot hold the rate or the channels.
    pub fn to_stream(
        stream: Box<dyn Write + Send>,
        name: &str,
        format: AudioFormat,
        sample_rate: u32,
        channels: usize,
    ) -> Result<Self, AudioError> {
        let path = Path::new(name);
        let encoder = new_encoder(path, format, sample_rate, channels)?;
        Self::start(path, None, true, sample_rate, channels, encoder, Output::Stream(stream))
    }

    fn start(
        path: &Path,
        part: Option<PathBuf>,
        overwrite: bool,
        sample_rate: u32,
        channels: usize,
        encoder: Encoder,
        output: Output,
    ) -> Result<Self, AudioError> {
        let path = path.to_path_buf();
        let mut writer =
            Self { path, part, overwrite, sample_rate, channels, encoder, output, frames: 0, bytes: Vec::new() };
        let header = match &writer.encoder {
            Encoder::Wav(encoder) => encoder.header(None),
            Encoder::Flac(encoder) => encoder.header(),
        };
        writer.output.write_all(&header).map_err(|source| writer.write_error(source))?;
        Ok(writer)
    }

    /// Appends samples. Values beyond full scale are clipped (and counted) in the integer formats.
    ///
    /// # Errors
    /// If the clip has another rate or number of channels, a sample is not finite, or the disk is full.
    pub fn write(&mut self, clip: &AudioClip) -> Result<(), AudioError> {
        if (clip.sample_rate, clip.channel_count()) != (self.sample_rate, self.channels) {
            return Err(self.unwritable(format!(
                "a block of {} channels at {} Hz in a file of {} channels at {} Hz",
                clip.channel_count(),
                clip.sample_rate,
                self.channels,
                self.sample_rate
            )));
        }
        if clip.channels.iter().flatten().any(|sample| !sample.is_finite()) {
            return Err(self.unwritable("a sample that is not a finite number".into()));
        }
        self.bytes.clear();
        match &mut self.encoder {
            Encoder::Wav(encoder) => encoder.encode(clip, &mut self.bytes),
            Encoder::Flac(encoder) => {
                let coded = encoder.encode(clip, &mut self.bytes);
                coded.map_err(|reason| self.unwritable(reason))?;
            }
        }
        self.frames += clip.frames() as u64;
        self.output.write_all(&self.bytes).map_err(|source| self.write_error(source))
    }

    /// Samples per channel written so far.
    pub fn frames_written(&self) -> u64 {
        self.frames
    }

    /// Samples beyond full scale so far, which were clipped. Always 0 for floats.
    pub fn clipped(&self) -> u64 {
        match &self.encoder {
            Encoder::Wav(encoder) => encoder.clipped(),
            Encoder::Flac(encoder) => encoder.clipped(),
        }
    }

    /// Completes the header, brings everything to the disk and gives the file its name.
    ///
    /// # Errors
    /// If the disk is full, or the file has come to exist meanwhile and may not be overwritten.
    pub fn finish(mut self) -> Result<(), AudioError> {
        self.bytes.clear();
        let header = match &mut self.encoder {
            Encoder::Wav(encoder) => {
                encoder.pad(&mut self.bytes);
                encoder.header(Some(self.frames))
            }
            Encoder::Flac(encoder) => {
                let coded = encoder.finish(&mut self.bytes);
                let header = encoder.header();
                coded.map_err(|reason| self.unwritable(reason))?;
                header
            }
        };
        if self.clipped() > 0 {
            tracing::warn!(path = %self.path.display(), samples = self.clipped(), "clipped samples beyond full scale");
        }
        self.complete(&header).map_err(|source| self.write_error(source))?;
        let Some(part) = self.part.clone() else { return Ok(()) };
        if !self.overwrite && self.path.symlink_metadata().is_ok() {
            return Err(AudioError::Exists { path: self.path.clone() });
        }
        std::fs::rename(&part, &self.path).map_err(|source| self.write_error(source))?;
        self.part = None;
        // The name itself reaches the disk with its directory. Not every system can do that.
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Ok(directory) = File::open(directory.unwrap_or(Path::new("."))) {
            let _ = directory.sync_all();
        }
        Ok(())
    }

    fn complete(&mut self, header: &[u8]) -> std::io::Result<()> {
        self.output.write_all(&self.bytes)?;
        self.output.flush()?;
        if let Output::File(file) = &mut self.output {
            file.seek(SeekFrom::Start(0))?;
            file.write_all(header)?;
            file.flush()?;
            file.get_ref().sync_all()?;
        }
        Ok(())
    }

    fn write_error(&self, source: std::io::Error) -> AudioError {
        AudioError::Write { path: self.path.clone(), source }
    }

    fn unwritable(&self, reason: String) -> AudioError {
        AudioError::Unwritable { path: self.path.clone(), reason }
    }
}

impl Drop for AudioWriter {
    fn drop(&mut self) {
        if let Some(part) = &self.part {
            let _ = std::fs::remove_file(part);
        }
    }
}

fn new_encoder(path: &Path, format: AudioFormat, sample_rate: u32, channels: usize) -> Result<Encoder, AudioError> {
    let unwritable = |reason| AudioError::Unwritable { path: path.into(), reason };
    if channels == 0 || channels > crate::read::MAX_CHANNELS {
        return Err(unwritable(format!("{channels} channels")));
    }
    if !crate::read::SAMPLE_RATES.contains(&sample_rate) {
        return Err(unwritable(format!("a sample rate of {sample_rate} Hz")));
    }
    Ok(match format {
        AudioFormat::Flac => {
            Encoder::Flac(Box::new(flac::FlacEncoder::new(sample_rate, channels).map_err(unwritable)?))
        }
        _ => Encoder::Wav(Box::new(wav::WavEncoder::new(format, sample_rate, channels))),
    })
}

/// Writes a whole clip to a file.
///
/// # Errors
/// As [`AudioWriter`].
pub fn write(path: &Path, clip: &AudioClip, format: AudioFormat, overwrite: bool) -> Result<(), AudioError> {
    let mut writer = AudioWriter::create(path, format, clip.sample_rate, clip.channel_count(), overwrite)?;
    writer.write(clip)?;
    writer.finish()
}
