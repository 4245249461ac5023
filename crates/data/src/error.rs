//! The errors of this crate: each names the file, what was expected, what was found and what to do.

use std::path::{Path, PathBuf};

/// Everything that can stop a corpus operation. A single bad track never does: it is recorded as
/// dropped in the manifest with its reason.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The operating system refused a file operation.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What was being done, e.g. "read".
        action: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A manifest, caption list or table has a row that cannot be understood.
    #[error("{}, line {line}: expected {expected}, found {found}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What a row must be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A binary file (shard, WAD, MIDI, SoundFont) breaks its format.
    #[error("{}: expected {expected}, found {found}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What the format demands.
        expected: String,
        /// What the file has.
        found: String,
    },
    /// A program of the system is needed and absent.
    #[error("the program `{program}` is not installed: {advice}")]
    ProgramMissing {
        /// Name of the program.
        program: &'static str,
        /// What to do instead.
        advice: &'static str,
    },
    /// A program of the system ran and failed.
    #[error("`{program}` failed for {subject}: {message}")]
    ProgramFailed {
        /// Name of the program.
        program: &'static str,
        /// What it was asked to do.
        subject: String,
        /// The last line it wrote to standard error.
        message: String,
    },
    /// Sound could not be read or written.
    #[error(transparent)]
    Audio(#[from] mambo_audio::AudioError),
    /// An argument makes no sense.
    #[error("{what}: {problem}")]
    Argument {
        /// Which argument.
        what: &'static str,
        /// Why it is refused and what to give instead.
        problem: String,
    },
    /// A stage given by the caller (tokeniser, tagger, text encoder) failed.
    #[error("{stage} failed for {subject}: {message}")]
    Stage {
        /// Which stage.
        stage: &'static str,
        /// The track or text.
        subject: String,
        /// Its own message.
        message: String,
    },
}

impl DataError {
    /// Wraps a system error with its path and the attempted action.
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, action, source }
    }

    /// A format violation.
    pub(crate) fn format(path: &Path, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self::Format { path: path.to_path_buf(), expected: expected.into(), found: found.into() }
    }
}
