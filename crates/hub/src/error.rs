//! What can go wrong, and what to do about it.

use std::path::{Path, PathBuf};

/// Why a repository is not on this machine.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Not the name of a repository.
    #[error("{name:?} does not name a repository of the hub; expected ORG/NAME, e.g. facebook/encodec_32khz")]
    RepositoryName {
        /// As given.
        name: String,
    },
    /// Not the name of a branch, tag or commit.
    #[error("--revision {revision:?}: expected the name of a branch or tag, or a commit")]
    RevisionName {
        /// As given.
        revision: String,
    },
    /// A pattern of file names that is none.
    #[error("--include {pattern}: {source}; expected a pattern such as *.json")]
    Pattern {
        /// As given.
        pattern: String,
        /// Cause.
        source: glob::PatternError,
    },
    /// The endpoint is no web address.
    #[error("HF_ENDPOINT is {endpoint:?}; expected an address that starts with https:// or http://")]
    Endpoint {
        /// As given.
        endpoint: String,
    },
    /// There is no place for the cache.
    #[error("no home folder to keep the cache in; set HF_HUB_CACHE to a folder")]
    NoHome,
    /// No server could prove who it is.
    #[error(
        "this system has no certificates of authorities to know servers by; install them (Debian: ca-certificates), or set SSL_CERT_FILE to a file of them"
    )]
    NoAuthorities,
    /// Unknown to the hub, or hidden.
    #[error(
        "{endpoint} shows no repository {repository}: it does not exist, or is private; check the name, or set HF_TOKEN to a token that may read it"
    )]
    NoSuchRepository {
        /// Its name.
        repository: String,
        /// Address that was asked.
        endpoint: String,
    },
    /// The repository is there, the revision is not.
    #[error("{repository} has no revision {revision:?}; give a branch, tag or commit of it with --revision")]
    NoSuchRevision {
        /// Its name.
        repository: String,
        /// As asked for.
        revision: String,
    },
    /// Not for this account.
    #[error(
        "{endpoint}/{repository}: access refused (HTTP {status}{detail}); if the page asks to accept terms, accept them there, and set HF_TOKEN to a valid token of an account that may read it"
    )]
    Refused {
        /// Its name.
        repository: String,
        /// Address that was asked.
        endpoint: String,
        /// 401 or 403.
        status: u16,
        /// What the server said about it, after a comma; or nothing.
        detail: String,
    },
    /// Another answer than the one asked for.
    #[error("{address}: the server answered HTTP {status}{detail}; try again later")]
    Status {
        /// Address that was asked.
        address: String,
        /// Status code.
        status: u16,
        /// What the server said about it, after a comma; or nothing.
        detail: String,
    },
    /// The server cannot be reached, or the connection was cut.
    #[error(
        "{address}: {source}; check the network (and HF_ENDPOINT, HTTPS_PROXY if set), then give the same command again: what has come is kept. --offline uses what is here"
    )]
    Network {
        /// Address that was asked.
        address: String,
        /// Cause.
        source: Box<ureq::Error>,
    },
    /// The listing of a repository cannot be used.
    #[error("{address}: not the listing of a repository: {reason}")]
    Listing {
        /// Address that was asked.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A listed file would be written outside its folder.
    #[error("{repository} lists the file {path:?}, a path that leaves its folder; nothing was downloaded")]
    Path {
        /// Its name.
        repository: String,
        /// As listed.
        path: String,
    },
    /// There are weights, but none that are safe to read.
    #[error(
        "{repository} has no *.safetensors; it has {found}. Ask for what you want with --include GLOB (pickles such as *.bin and *.ckpt are never fetched unasked)"
    )]
    NoWeights {
        /// Its name.
        repository: String,
        /// Names of the first files.
        found: String,
    },
    /// A pattern that no file matches.
    #[error("--include {pattern}: {repository} has no such file")]
    NothingMatches {
        /// Its name.
        repository: String,
        /// As given.
        pattern: String,
    },
    /// The content is not the one that the hub lists.
    #[error(
        "{file}: wrong checksum, nothing of it was kept: expected {expected}, found {found}; try again, and if it stays so, the server or something on the way alters the file"
    )]
    Checksum {
        /// Path in the repository.
        file: String,
        /// As listed.
        expected: String,
        /// Of what came.
        found: String,
    },
    /// The server's answer ends before the file does.
    #[error("{file}: {found} of {expected} bytes came; give the same command again to go on from there")]
    Short {
        /// Path in the repository.
        file: String,
        /// Bytes as listed.
        expected: u64,
        /// Bytes that came.
        found: u64,
    },
    /// A part of sharded weights is missing.
    #[error("{index} names the part {part}, which is not there; is the repository complete?")]
    MissingPart {
        /// File that lists the parts.
        index: String,
        /// The part.
        part: String,
    },
    /// The list of parts is none.
    #[error("{path}: not an index of safetensors: {source}")]
    Index {
        /// File.
        path: PathBuf,
        /// Cause.
        source: serde_json::Error,
    },
    /// Offline, and not in the cache.
    #[error(
        "{repository} (revision {revision}) is not in {cache}; bring it without --offline and HF_HUB_OFFLINE first"
    )]
    NotCached {
        /// Its name.
        repository: String,
        /// As asked for.
        revision: String,
        /// Folder of the cache.
        cache: PathBuf,
    },
    /// A file is in the way.
    #[error("{path} exists with other content; choose another folder with -o, or overwrite it with --force")]
    Exists {
        /// File.
        path: PathBuf,
    },
    /// The disk is full.
    #[error(
        "{path}: the disk is full, {missing} more bytes are needed; free some, or set HF_HUB_CACHE to a folder elsewhere. What has come is kept"
    )]
    DiskFull {
        /// File.
        path: PathBuf,
        /// Bytes still to come.
        missing: u64,
    },
    /// A file of this machine cannot be read or written.
    #[error("{path}: cannot {doing}: {source}")]
    Io {
        /// File.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// Cause.
        source: std::io::Error,
    },
}

impl HubError {
    /// For `map_err`: what was tried with which file.
    pub(crate) fn io(path: &Path, doing: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, doing, source }
    }

    /// True if the same request may well succeed in a moment.
    pub(crate) fn may_pass(&self) -> bool {
        use std::io::ErrorKind::{
            BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, TimedOut, UnexpectedEof, WouldBlock,
        };
        match self {
            Self::Short { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..),
            Self::Network { source, .. } => match source.as_ref() {
                // An unknown host, a refused connection or certificate stays what it is.
                ureq::Error::Io(error) => matches!(
                    error.kind(),
                    BrokenPipe
                        | ConnectionAborted
                        | ConnectionReset
                        | NotConnected
                        | TimedOut
                        | UnexpectedEof
                        | WouldBlock
                ),
                ureq::Error::Timeout(_) | ureq::Error::Protocol(_) | ureq::Error::ConnectionFailed => true,
                _ => false,
            },
            _ => false,
        }
    }
}
