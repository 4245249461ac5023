//! What can go wrong while judging.

use std::path::{Path, PathBuf};

/// An error from a system under test, whatever its type.
pub type SystemError = Box<dyn std::error::Error + Send + Sync>;

/// A rule of evaluation that an input broke.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A covariance needs at least two rows.
    #[error("{what}: {found} patches, at least 2 are needed (a patch is 3 s of sound); judge more or longer clips")]
    TooFewPatches {
        /// Which side of which comparison.
        what: String,
        /// Patches present.
        found: usize,
    },
    /// The two sides do not measure the same thing.
    #[error("rows of {found} values compared with rows of {expected}; both sides must come from the same judge")]
    Width {
        /// Width of the first side.
        expected: usize,
        /// Width of the second side.
        found: usize,
    },
    /// No clips to judge.
    #[error("no clips to judge: {what}")]
    NoClips {
        /// What is empty.
        what: String,
    },
    /// A number that is not finite came out of a system or a judge.
    #[error("{what} holds a value that is not finite; check the system that made it")]
    NotFinite {
        /// Where it stands.
        what: String,
    },
    /// The system under test failed.
    #[error("{system}, clip {clip}: {source}")]
    System {
        /// Name of the system.
        system: String,
        /// Which clip.
        clip: String,
        /// Its own error.
        #[source]
        source: SystemError,
    },
    /// A tag that the judge does not know.
    #[error("the judge {judge} knows no tag {tag:?}; its tags are: {known}")]
    UnknownTag {
        /// Name of the judge.
        judge: String,
        /// The tag.
        tag: String,
        /// All tags.
        known: String,
    },
    /// A file could not be written or read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A figure or picture could not be drawn or encoded.
    #[error("{what} could not be encoded: {reason}")]
    Encode {
        /// What.
        what: String,
        /// Why.
        reason: String,
    },
}

impl EvalError {
    /// Wraps an input or output error with the path.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}
