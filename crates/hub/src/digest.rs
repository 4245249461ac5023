//! Checksums of files as the hub lists them.

use std::fmt;
use std::io::Read;

use serde::Serialize;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use crate::name::is_hex;

/// Bytes read at once.
pub(crate) const BLOCK: usize = 1 << 18;

/// A checksum, in lower-case hexadecimal digits. It also names the file in the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Digest {
    /// SHA-256 of the content: large files.
    Sha256(String),
    /// SHA-1 of git's header and the content: small files.
    GitBlob(String),
}

impl Digest {
    /// Reads the digits: 64 of them or 40.
    pub(crate) fn from_digits(digits: &str) -> Option<Self> {
        if is_hex(digits, 64) {
            Some(Self::Sha256(digits.to_owned()))
        } else if is_hex(digits, 40) {
            Some(Self::GitBlob(digits.to_owned()))
        } else {
            None
        }
    }

    /// The digits alone.
    pub fn digits(&self) -> &str {
        match self {
            Self::Sha256(digits) | Self::GitBlob(digits) => digits,
        }
    }

    /// Begins to compute the checksum of this kind for a file of `size` bytes.
    pub(crate) fn begin(&self, size: u64) -> Sum {
        match self {
            Self::Sha256(_) => Sum::Sha256(Sha256::new()),
            Self::GitBlob(_) => {
                let mut sum = Sha1::new();
                sum.update(format!("blob {size}\0"));
                Sum::GitBlob(sum)
            }
        }
    }

    /// The checksum of this kind of a whole file of `size` bytes.
    pub(crate) fn of(&self, size: u64, content: &mut impl Read) -> std::io::Result<Self> {
        let mut sum = self.begin(size);
        sum.read(content)?;
        Ok(sum.finish())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(digits) => write!(f, "SHA-256 {digits}"),
            Self::GitBlob(digits) => write!(f, "git blob {digits}"),
        }
    }
}

/// A checksum being computed.
pub(crate) enum Sum {
    Sha256(Sha256),
    GitBlob(Sha1),
}

impl Sum {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(sum) => sum.update(bytes),
            Self::GitBlob(sum) => sum.update(bytes),
        }
    }

    /// Takes everything that is left in a reader; returns how many bytes that was.
    pub(crate) fn read(&mut self, content: &mut impl Read) -> std::io::Result<u64> {
        let mut block = vec![0; BLOCK];
        let mut total = 0;
        loop {
            match content.read(&mut block)? {
                0 => return Ok(total),
                count => {
                    self.update(&block[..count]);
                    total += count as u64;
                }
            }
        }
    }

    pub(crate) fn finish(self) -> Digest {
        match self {
            Self::Sha256(sum) => Digest::Sha256(format!("{:x}", sum.finalize())),
            Self::GitBlob(sum) => Digest::GitBlob(format!("{:x}", sum.finalize())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_git_and_sha256sum() {
        // `git hash-object --stdin` and `sha256sum` of "hello\n".
        for digits in [
            "ce013625030ba8dba906f756967f9e9ca394464a",
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        ] {
            let digest = Digest::from_digits(digits).unwrap();
            assert_eq!(digest.of(6, &mut &b"hello\n"[..]).unwrap(), digest);
        }
        assert_eq!(Digest::from_digits("../../etc"), None);
    }
}
