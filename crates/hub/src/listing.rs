//! What a repository holds at a commit, as the hub tells it. Nothing in it is trusted.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::HubError;
use crate::name::{Repository, is_commit, stays_inside};

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Path in the repository, with slashes.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// Checksum of the content.
    pub digest: Digest,
}

/// The files of a repository at a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Full name of the commit.
    pub commit: String,
    /// All files.
    pub files: Vec<Listed>,
}

/// The hub's answer, as far as it is read.
#[derive(Deserialize)]
struct Answer {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Large>,
}

/// Set for files that are not in git itself.
#[derive(Deserialize)]
struct Large {
    #[serde(alias = "oid")]
    sha256: String,
    size: u64,
}

impl Listing {
    /// Reads the hub's answer, which came from `address`.
    ///
    /// # Errors
    /// It is no listing, lacks checksums, or holds a path that leaves the folder.
    pub(crate) fn parse(json: &[u8], repository: &Repository, address: &str) -> Result<Self, HubError> {
        let wrong = |reason: String| HubError::Listing { address: address.to_owned(), reason };
        let answer: Answer = serde_json::from_slice(json).map_err(|error| wrong(error.to_string()))?;
        if !is_commit(&answer.sha) {
            return Err(wrong(format!("expected a commit of 40 digits, found {:?}", answer.sha)));
        }
        let mut files = Vec::new();
        for file in answer.siblings {
            let path = file.rfilename;
            if !stays_inside(&path) {
                return Err(HubError::Path { repository: repository.to_string(), path });
            }
            let (digits, size) = match (file.lfs, file.blob_id, file.size) {
                (Some(large), _, _) => (large.sha256, large.size),
                (None, Some(blob), Some(size)) => (blob, size),
                _ => return Err(wrong(format!("no size and checksum of {path:?}"))),
            };
            let Some(digest) = Digest::from_digits(&digits) else {
                return Err(wrong(format!("expected a checksum of {path:?}, found {digits:?}")));
            };
            files.push(Listed { path, size, digest });
        }
        Ok(Self { commit: answer.sha, files })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn parse(sha: &str, sibling: &str) -> Result<Listing, HubError> {
        let json = format!(r#"{{"id": "a/b", "sha": "{sha}", "siblings": [{sibling}]}}"#);
        Listing::parse(json.as_bytes(), &"a/b".parse()?, "http://x/")
    }

    #[test]
    fn large_files_have_sha256_and_small_ones_git_names() {
        let small = format!(r#"{{"rfilename": "config.json", "size": 3, "blobId": "{COMMIT}"}}"#);
        let sum = "ab".repeat(32);
        let large = format!(
            r#"{{"rfilename": "text/m.safetensors", "size": 9, "blobId": "{COMMIT}", "lfs": {{"sha256": "{sum}", "size": 9, "pointerSize": 130}}}}"#
        );
        let listing = parse(COMMIT, &format!("{small}, {large}")).unwrap();
        assert_eq!(listing.files[0].digest, Digest::GitBlob(COMMIT.into()));
        assert_eq!(listing.files[1].digest, Digest::Sha256(sum));
        assert_eq!(listing.files[1].size, 9);
    }

    #[test]
    fn what_becomes_a_path_is_checked() {
        let file = |name: &str, blob: &str| format!(r#"{{"rfilename": "{name}", "size": 3, "blobId": "{blob}"}}"#);
        for name in ["../x", "/x", "a/../../x", "a\\\\x", "", "C:x", "a/", "x\\u0000"] {
            assert!(matches!(parse(COMMIT, &file(name, COMMIT)), Err(HubError::Path { .. })), "{name}");
        }
        assert!(matches!(parse(COMMIT, &file("x", "../../x")), Err(HubError::Listing { .. })));
        assert!(matches!(parse("../../x", &file("x", COMMIT)), Err(HubError::Listing { .. })));
        assert!(matches!(parse(COMMIT, r#"{"rfilename": "x"}"#), Err(HubError::Listing { .. })));
        assert!(matches!(parse(COMMIT, r#"{"rfilename": "x", "size": -1}"#), Err(HubError::Listing { .. })));
    }
}
