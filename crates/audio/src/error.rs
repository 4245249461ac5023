//! Everything that can be wrong with a sound file, one variant per broken rule.

use std::path::{Path, PathBuf};

/// Why a sound could not be read or written. Every variant names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AudioError {
    /// Nothing exists under this name.
    #[error("{path}: no such file", path = .path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A symbolic link whose target does not exist.
    #[error("{path}: a link to {target}, which does not exist", path = .path.display(), target = .target.display())]
    DanglingLink {
        /// The link.
        path: PathBuf,
        /// Where it points.
        target: PathBuf,
    },
    /// A directory where a file is needed.
    #[error("{path}: a directory, not a sound file", path = .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// A socket, pipe or device where a file is needed.
    #[error("{path}: not a regular file", path = .path.display())]
    NotAFile {
        /// The thing.
        path: PathBuf,
    },
    /// A file of no bytes.
    #[error("{path}: the file is empty", path = .path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The operating system refused to read.
    #[error("{path}: cannot be read: {source}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The content is none of the known sound formats.
    #[error("{path}: not a sound file of a known kind ({found}); known: wav, flac, mp3, ogg vorbis, opus, m4a/aac", path = .path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// What the content looks like.
        found: String,
    },
    /// A container without sound in it.
    #[error("{path}: the {format} file holds no audio track", path = .path.display())]
    NoAudioTrack {
        /// The file.
        path: PathBuf,
        /// The format.
        format: &'static str,
    },
    /// A known container with an encoding that cannot be decoded here.
    #[error("{path}: {format}: {what} is not supported", path = .path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The format.
        format: &'static str,
        /// The encoding or feature.
        what: String,
    },
    /// The content breaks the rules of its format.
    #[error("{path}: damaged {format} file at {seconds:.2} s: {reason}", path = .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The format.
        format: &'static str,
        /// How much could be decoded before, in seconds.
        seconds: f64,
        /// Which rule is broken.
        reason: String,
    },
    /// The file ends before what its header promises.
    #[error("{path}: truncated {format} file: it ends at {seconds:.2} s{expected}", path = .path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The format.
        format: &'static str,
        /// How much could be decoded, in seconds.
        seconds: f64,
        /// " of N s" where the header says how long it should be, else empty.
        expected: String,
    },
    /// A header that names no channel.
    #[error("{path}: the header says zero channels", path = .path.display())]
    NoChannels {
        /// The file.
        path: PathBuf,
    },
    /// More channels than any music has.
    #[error("{path}: {found} channels; at most {limit} are read", path = .path.display(), limit = crate::read::MAX_CHANNELS)]
    TooManyChannels {
        /// The file.
        path: PathBuf,
        /// Channels in the header.
        found: usize,
    },
    /// A sample rate no music has.
    #[error("{path}: a sample rate of {found} Hz; expected {low} to {high} Hz", path = .path.display(), low = crate::read::SAMPLE_RATES.start(), high = crate::read::SAMPLE_RATES.end())]
    SampleRate {
        /// The file.
        path: PathBuf,
        /// Rate in the header.
        found: u32,
    },
    /// A sample that is not a number or infinite.
    #[error("{path}: a sample that is not a finite number at {seconds:.3} s, channel {channel}", path = .path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// Where, in seconds.
        seconds: f64,
        /// Which channel, from 0.
        channel: usize,
    },
    /// A well-formed file with no sound in it.
    #[error("{path}: the {format} file holds no samples", path = .path.display())]
    NoSamples {
        /// The file.
        path: PathBuf,
        /// The format.
        format: &'static str,
    },
    /// Refusal to write over a file.
    #[error("{path}: already exists; allow overwriting or choose another name", path = .path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The operating system refused to write.
    #[error("{path}: cannot be written: {source}", path = .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Sound that does not fit what is being written, or a format that cannot hold it.
    #[error("{path}: cannot be written: {reason}", path = .path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
}

impl AudioError {
    /// The file it is about.
    pub fn path(&self) -> &Path {
        use AudioError::*;
        match self {
            Missing { path }
            | DanglingLink { path, .. }
            | Directory { path }
            | NotAFile { path }
            | Empty { path }
            | Read { path, .. }
            | UnknownFormat { path, .. }
            | NoAudioTrack { path, .. }
            | Unsupported { path, .. }
            | Malformed { path, .. }
            | Truncated { path, .. }
            | NoChannels { path }
            | TooManyChannels { path, .. }
            | SampleRate { path, .. }
            | NotFinite { path, .. }
            | NoSamples { path, .. }
            | Exists { path }
            | Write { path, .. }
            | Unwritable { path, .. } => path,
        }
    }

    /// The rule in one or two words, for tables and manifests.
    pub fn kind(&self) -> &'static str {
        use AudioError::*;
        match self {
            Missing { .. } => "missing",
            DanglingLink { .. } => "dangling link",
            Directory { .. } => "directory",
            NotAFile { .. } => "not a file",
            Empty { .. } => "empty",
            Read { .. } => "unreadable",
            UnknownFormat { .. } => "unknown format",
            NoAudioTrack { .. } => "no audio track",
            Unsupported { .. } => "unsupported",
            Malformed { .. } => "malformed",
            Truncated { .. } => "truncated",
            NoChannels { .. } => "no channels",
            TooManyChannels { .. } => "too many channels",
            SampleRate { .. } => "sample rate",
            NotFinite { .. } => "not finite",
            NoSamples { .. } => "no samples",
            Exists { .. } => "exists",
            Write { .. } => "unwritable",
            Unwritable { .. } => "unwritable",
        }
    }
}
