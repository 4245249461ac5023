//! Which files of a repository are brought.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use glob::Pattern;
use serde::Deserialize;

use crate::error::HubError;
use crate::listing::Listed;
use crate::name::Repository;

/// What Mambo reads, and who is to be credited; by name, in any folder.
const NEEDED: [&str; 9] = [
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "tokenizer.json",
    "lm.toml",
    "README*",
    "LICENSE*",
    "NOTICE*",
    "CREDITS*",
];
/// Ending of the lists of parts.
const INDEX: &str = ".safetensors.index.json";
/// Most bytes of such a list that are read; real ones have some 100 kB.
const LONGEST_INDEX: u64 = 1 << 26;
/// Files named when there are no weights.
const NAMED: usize = 8;

/// The files that Mambo needs, and those that patterns ask for.
#[derive(Debug)]
pub struct Choice {
    needed: Vec<Pattern>,
    more: Vec<Pattern>,
}

/// A list of parts, as far as it is read.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Choice {
    /// Also the files whose whole path matches one of the patterns; `*` also matches slashes.
    ///
    /// # Errors
    /// A pattern cannot be read.
    pub fn new(more: &[String]) -> Result<Self, HubError> {
        let read =
            |text: &str| Pattern::new(text).map_err(|source| HubError::Pattern { pattern: text.to_owned(), source });
        Ok(Self {
            needed: NEEDED.into_iter().map(read).collect::<Result<_, _>>()?,
            more: more.iter().map(|text| read(text)).collect::<Result<_, _>>()?,
        })
    }

    fn takes(&self, path: &str) -> bool {
        let name = path.rsplit('/').next().unwrap_or(path);
        self.needed.iter().any(|pattern| pattern.matches(name)) || self.more.iter().any(|pattern| pattern.matches(path))
    }

    /// The chosen ones of all files.
    ///
    /// # Errors
    /// There are no weights among them and no pattern asks for others, or a pattern matches nothing.
    pub fn of(&self, files: Vec<Listed>, repository: &Repository) -> Result<Vec<Listed>, HubError> {
        let repository = || repository.to_string();
        if let Some(pattern) = self.more.iter().find(|p| !files.iter().any(|file| p.matches(&file.path))) {
            return Err(HubError::NothingMatches { repository: repository(), pattern: pattern.to_string() });
        }
        if self.more.is_empty() && !files.iter().any(|file| file.path.ends_with(".safetensors")) {
            let mut names: Vec<&str> = files.iter().take(NAMED).map(|file| file.path.as_str()).collect();
            if files.len() > NAMED {
                names.push("more");
            }
            let found = if names.is_empty() { "no files".to_owned() } else { names.join(", ") };
            return Err(HubError::NoWeights { repository: repository(), found });
        }
        Ok(files.into_iter().filter(|file| self.takes(&file.path)).collect())
    }
}

/// Makes sure that every part of sharded weights is there; `place` says where the content of a file is.
pub(crate) fn check_parts<'a, P: AsRef<Path>>(
    files: &'a [Listed],
    place: impl Fn(&'a Listed) -> P,
) -> Result<(), HubError> {
    let names: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    for file in files.iter().filter(|file| file.path.ends_with(INDEX)) {
        let path = place(file);
        let path = path.as_ref();
        let reader = File::open(path).map_err(HubError::io(path, "open"))?.take(LONGEST_INDEX);
        let index: Index = serde_json::from_reader(BufReader::new(reader))
            .map_err(|source| HubError::Index { path: path.to_owned(), source })?;
        let folder = file.path.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
        let parts: BTreeSet<String> = index.weight_map.into_values().collect();
        if let Some(part) = parts.into_iter().find(|part| !names.contains(format!("{folder}{part}").as_str())) {
            return Err(HubError::MissingPart { index: file.path.clone(), part });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    fn chosen(more: &[&str], paths: &[&str]) -> Result<Vec<String>, HubError> {
        let more: Vec<String> = more.iter().map(|&text| text.to_owned()).collect();
        let files = paths
            .iter()
            .map(|&path| Listed { path: path.to_owned(), size: 1, digest: Digest::GitBlob("0".repeat(40)) })
            .collect();
        let files = Choice::new(&more)?.of(files, &"a/b".parse()?)?;
        Ok(files.into_iter().map(|file| file.path).collect())
    }

    const PATHS: [&str; 8] = [
        ".gitattributes",
        "README.md",
        "config.json",
        "model.safetensors",
        "pytorch_model.bin",
        "spiece.model",
        "text/tokenizer.json",
        "onnx/model.onnx",
    ];

    #[test]
    fn what_mambo_needs_is_chosen_and_pickles_are_not() {
        let needed = ["README.md", "config.json", "model.safetensors", "text/tokenizer.json"];
        assert_eq!(chosen(&[], &PATHS).unwrap(), needed);
        let more =
            ["README.md", "config.json", "model.safetensors", "spiece.model", "text/tokenizer.json", "onnx/model.onnx"];
        assert_eq!(chosen(&["spiece.model", "*.onnx"], &PATHS).unwrap(), more);
    }

    #[test]
    fn without_safetensors_a_person_chooses() {
        let without = ["config.json", "pytorch_model.bin"];
        let error = chosen(&[], &without).unwrap_err().to_string();
        assert!(error.contains("pytorch_model.bin") && error.contains("--include"), "{error}");
        assert_eq!(chosen(&["*.bin"], &without).unwrap(), without);
        assert!(matches!(chosen(&["*.gguf"], &without), Err(HubError::NothingMatches { .. })));
        assert!(matches!(chosen(&["[a"], &without), Err(HubError::Pattern { .. })));
    }
}
