//! Names from outside: of repositories, revisions, and files in them. Each becomes part of a path here.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::error::HubError;

/// Longest name of a repository on the hub.
const LONGEST_NAME: usize = 96;

/// A repository by name, `ORG/NAME`. Its parts are plain words, safe in paths and addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub struct Repository {
    owner: String,
    name: String,
}

impl Repository {
    /// Its folder in the cache.
    pub(crate) fn folder_name(&self) -> String {
        format!("models--{}--{}", self.owner, self.name)
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

impl From<Repository> for String {
    fn from(repository: Repository) -> Self {
        repository.to_string()
    }
}

impl FromStr for Repository {
    type Err = HubError;

    /// # Errors
    /// The text is not two words with a slash between, in the characters that the hub allows.
    fn from_str(text: &str) -> Result<Self, HubError> {
        let word = |word: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !word.is_empty()
                && word.chars().all(allowed)
                && !word.starts_with(['-', '.'])
                && !word.ends_with(['-', '.'])
                && !word.contains("--")
                && !word.contains("..")
        };
        match text.split_once('/') {
            Some((owner, name)) if text.len() <= LONGEST_NAME && word(owner) && word(name) => {
                Ok(Self { owner: owner.to_owned(), name: name.to_owned() })
            }
            _ => Err(HubError::RepositoryName { name: text.to_owned() }),
        }
    }
}

/// True for a relative path that stays in its folder on every system: no `..`, root, drive, backslash or control
/// character.
pub(crate) fn stays_inside(path: &str) -> bool {
    !path.contains(['\\', ':'])
        && !path.chars().any(char::is_control)
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

/// True for the full name of a commit.
pub(crate) fn is_commit(text: &str) -> bool {
    is_hex(text, 40)
}

/// True for `length` digits of a lower-case hexadecimal number.
pub(crate) fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_two_plain_words() {
        for good in ["facebook/musicgen-small", "descript/dac_44khz", "a/b.c", "sentence-transformers/all-MiniLM-L6-v2"]
        {
            assert_eq!(good.parse::<Repository>().unwrap().to_string(), good);
        }
        for bad in ["", "one", "a/b/c", "/b", "a/", "../b", "a/..", "./a", "a b/c", "a/b--c", "a\\b/c", "-a/b", "C:/b"]
        {
            assert!(bad.parse::<Repository>().is_err(), "{bad}");
        }
        assert!(format!("a/{}", "b".repeat(95)).parse::<Repository>().is_err());
    }

    #[test]
    fn paths_stay_inside() {
        for good in ["config.json", "text/model.safetensors", "refs/pr/1", "..a/b..", "a b"] {
            assert!(stays_inside(good), "{good}");
        }
        for bad in ["", "..", "../a", "a/../b", "/etc/passwd", "a//b", "a/", "./a", "a\\b", "C:a", "a\0", "a\nb"] {
            assert!(!stays_inside(bad), "{bad:?}");
        }
    }

    #[test]
    fn commits_are_forty_digits() {
        assert!(is_commit(&"0f".repeat(20)));
        assert!(!is_commit(&"0F".repeat(20)) && !is_commit("main") && !is_commit(&"0".repeat(41)));
    }
}
