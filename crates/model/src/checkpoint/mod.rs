//! PyTorch checkpoints, read as data: a zip archive with one pickle, and an entry for the numbers of each storage.
//!
//! `torch.load` runs the pickle, which may do anything a Python program can. Here every pickle of the archive is read by
//! a machine that only builds values, and the first name that is not on a short list is an error before anything else
//! happens. Laws: nothing in a file is ever run; no file panics, recurses or costs more memory than a fixed amount and
//! the tensors that are asked for; numbers are read only for those. Source of the layout: files written by PyTorch 2.11
//! and Lightning 2.6.

mod archive;
mod globals;
mod opcode;
mod pickle;
pub mod ssm_ttm;
mod tensor;
mod value;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use archive::{Archive, ArchiveError};
use pickle::{Fault, Pickle};
use value::{Id, Value};

use crate::weights::WeightsError;

pub use globals::ElementType;
pub use tensor::StoredTensor;

/// Longest piece of a name from a file that is shown.
const MOST_SHOWN: usize = 100;

/// Why a checkpoint was refused.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file cannot be read.
    #[error("{path}: cannot read the checkpoint: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A directory, pipe or device stands where a file is needed.
    #[error("{path}: expected a checkpoint file, found something that is not a plain file", path = path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The archive breaks its format, or is not what PyTorch writes.
    #[error("{path}: not a sound PyTorch checkpoint: {reason}; download or copy it again", path = path.display())]
    Archive {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A pickle in the archive refers to something other than tensors and plain data.
    #[error("{path}: {entry} refers to {what}; only tensors and plain data are read, nothing was run", path = path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// The pickle.
        entry: String,
        /// What it refers to.
        what: String,
    },
    /// A pickle in the archive breaks its format.
    #[error("{path}: {entry} is damaged at byte {at}: {reason}; download or copy the file again", path = path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
        /// The pickle.
        entry: String,
        /// Where in it.
        at: usize,
        /// What is wrong.
        reason: String,
    },
    /// The checkpoint is sound and holds something else.
    #[error("{path}: {reason}", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is expected and what was found.
        reason: String,
    },
    /// A tensor is missing, unexpected, or not what the network needs.
    #[error(transparent)]
    Tensor(#[from] WeightsError),
}

/// A text from a file as it may be shown: nothing that moves a cursor, and not too long.
fn shown(text: &str) -> String {
    let mut shown = String::new();
    for character in text.chars().take(MOST_SHOWN) {
        match character {
            '\'' | '"' => shown.push(character),
            other => shown.extend(other.escape_debug()),
        }
    }
    if text.chars().nth(MOST_SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

/// A checkpoint whose archive and pickles have been checked. Numbers are still in the file.
#[derive(Debug)]
pub struct Checkpoint<R = File> {
    path: PathBuf,
    archive: Archive<R>,
    /// The folder that all entries of the archive are in.
    folder: String,
    pickle: Pickle,
}

/// Something plain that stands in a checkpoint.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[serde(untagged)]
pub enum Plain {
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f64),
    /// A text.
    Text(String),
}

impl std::fmt::Display for Plain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bool(truth) => write!(f, "{truth}"),
            Self::Int(number) => write!(f, "{number}"),
            Self::Float(number) => write!(f, "{number}"),
            Self::Text(text) => write!(f, "\"{}\"", shown(text)),
        }
    }
}

impl Checkpoint<File> {
    /// Opens and checks a file.
    ///
    /// # Errors
    /// All but [`CheckpointError::Content`] and [`CheckpointError::Tensor`].
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let failed = |source| CheckpointError::Io { path: path.to_owned(), source };
        if !std::fs::metadata(path).map_err(failed)?.is_file() {
            return Err(CheckpointError::NotAFile { path: path.to_owned() });
        }
        Self::from_source(path, File::open(path).map_err(failed)?)
    }
}

impl<R: Read + Seek> Checkpoint<R> {
    /// Checks the content of a file; `path` is only used in messages.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_source(path: &Path, source: R) -> Result<Self, CheckpointError> {
        let mut archive = Archive::open(source).map_err(|error| wrong(path, error))?;
        let unsound = |reason: &str| CheckpointError::Archive { path: path.to_owned(), reason: reason.to_owned() };
        let pickles: Vec<String> = archive.names().filter(|name| name.ends_with(".pkl")).map(str::to_owned).collect();
        let mut main = None;
        for name in pickles {
            let read = read_pickle(path, &mut archive, &name)?;
            if let Some(folder) = name.strip_suffix("/data.pkl")
                && main.replace((folder.to_owned(), read)).is_some()
            {
                return Err(unsound("it holds more than one data.pkl"));
            }
        }
        let Some((folder, pickle)) = main else {
            return Err(unsound("it holds no data.pkl"));
        };
        let mut checkpoint = Self { path: path.to_owned(), archive, folder, pickle };
        checkpoint.check_storages()?;
        Ok(checkpoint)
    }

    /// Every storage must be an entry of the size it claims, in the byte order that is read here.
    fn check_storages(&mut self) -> Result<(), CheckpointError> {
        let unsound = |reason: String| CheckpointError::Archive { path: self.path.clone(), reason };
        for value in self.pickle.values.all() {
            let Value::Storage(storage) = value else { continue };
            let entry = self.archive.entry(&format!("{}/data/{}", self.folder, storage.key));
            let held = entry.map_or(0, |bytes| bytes.end - bytes.start);
            if held != storage.bytes as u64 {
                let (key, claimed) = (shown(&storage.key), storage.bytes);
                return Err(unsound(format!("storage {key} claims {claimed} bytes, {held} are there")));
            }
        }
        if let Some(order) = self.archive.entry(&format!("{}/byteorder", self.folder)) {
            let length = (order.end - order.start).min(8) as usize;
            if self.archive.read(order.start, length).map_err(|error| wrong(&self.path, error))? != b"little" {
                return Err(CheckpointError::Archive {
                    path: self.path.clone(),
                    reason: "its numbers are not little-endian".into(),
                });
            }
        }
        Ok(())
    }

    /// The path given at opening.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the file.
    pub fn length(&self) -> u64 {
        self.archive.length()
    }

    /// Number of tensors of the whole checkpoint. One that stands in several places counts once.
    pub fn tensor_count(&self) -> usize {
        self.pickle.values.all().filter(|value| matches!(value, Value::Tensor(_))).count()
    }

    /// Every tensor with its path of keys and positions, such as `optimizer_states.0.state.3.exp_avg`.
    ///
    /// # Errors
    /// [`CheckpointError::Content`] for names beyond all measure.
    pub fn tensors(&self) -> Result<Vec<(String, &StoredTensor)>, CheckpointError> {
        let leaves = self.leaves(self.pickle.root)?.into_iter();
        Ok(leaves
            .filter_map(|(name, value)| if let Value::Tensor(tensor) = value { Some((name, &**tensor)) } else { None })
            .collect())
    }

    /// Numbers, texts and truth values under a key of the checkpoint, with their paths; the path of a single value is empty.
    ///
    /// # Errors
    /// [`CheckpointError::Content`] for names or texts beyond all measure.
    pub fn plain(&self, key: &str) -> Result<Vec<(String, Plain)>, CheckpointError> {
        let Some(id) = self.pickle.values.under(self.pickle.root, key) else { return Ok(Vec::new()) };
        // A text may stand in any number of places, and each place gets a copy; in earnest they are parts of the pickle.
        let mut room = pickle::MOST_BYTES;
        let mut found = Vec::new();
        for (name, value) in self.leaves(id)? {
            if let Value::Text(text) = value {
                room = room.checked_sub(text.len() as u64).ok_or_else(|| {
                    self.content(format!("it repeats a few texts under {} beyond measure", shown(key)))
                })?;
            }
            found.extend(plain(value).map(|value| (name, value)));
        }
        Ok(found)
    }

    fn leaves(&self, id: Id) -> Result<Vec<(String, &Value)>, CheckpointError> {
        self.pickle
            .values
            .leaves(id)
            .ok_or_else(|| self.content("the names of its values are too long to be listed: they nest deep or repeat"))
    }

    /// The tensors of `state_dict` by name.
    ///
    /// # Errors
    /// [`CheckpointError::Content`] without a state dictionary of tensors.
    pub fn state_dict(&self) -> Result<BTreeMap<&str, &StoredTensor>, CheckpointError> {
        let values = &self.pickle.values;
        let Some(state) = values.under(self.pickle.root, "state_dict") else {
            return Err(self.content("it has no `state_dict`: this is no Lightning checkpoint"));
        };
        let mut tensors = BTreeMap::new();
        for (key, value) in values.entries(state) {
            match (values.text(key), values.get(value)) {
                (Some(name), Value::Tensor(tensor)) => tensors.insert(name, &**tensor),
                (Some(name), other) => {
                    return Err(self.content(format!("{} in its `state_dict` is {}", shown(name), other.kind())));
                }
                (None, _) => return Err(self.content("a name in its `state_dict` is no text")),
            };
        }
        match tensors.is_empty() {
            true => Err(self.content("its `state_dict` holds no tensor")),
            false => Ok(tensors),
        }
    }

    /// Reads a tensor as f32, row-major.
    ///
    /// # Errors
    /// [`CheckpointError::Io`]; [`CheckpointError::Content`] for more numbers than the file has bytes;
    /// [`CheckpointError::Tensor`] for numbers that are no floating-point numbers or not finite.
    pub fn read(&mut self, name: &str, tensor: &StoredTensor) -> Result<Vec<f32>, CheckpointError> {
        // Strides of 0 let one number pass for any number of them. In earnest a number takes a byte at least.
        if tensor.count() as u64 > self.length() {
            return Err(self.content(format!("{} repeats few numbers {} times", shown(name), tensor.count())));
        }
        let entry = self.archive.entry(&format!("{}/data/{}", self.folder, tensor.key()));
        let start = entry.map_or(0, |bytes| bytes.start);
        let (path, name) = (self.path.clone(), shown(name));
        match tensor.read(&mut self.archive, start).map_err(|error| wrong(&path, error))? {
            None => {
                let found = tensor.element().to_string();
                Err(WeightsError::ElementType { path, name, found, expected: "F64, F32, F16 or BF16" }.into())
            }
            Some(values) if values.iter().all(|value| value.is_finite()) => Ok(values),
            Some(_) => Err(WeightsError::NotFinite { path, name }.into()),
        }
    }

    fn content(&self, reason: impl Into<String>) -> CheckpointError {
        CheckpointError::Content { path: self.path.clone(), reason: reason.into() }
    }
}

fn wrong(path: &Path, error: ArchiveError) -> CheckpointError {
    let path = path.to_owned();
    match error {
        ArchiveError::Io(source) => CheckpointError::Io { path, source },
        ArchiveError::Unsound(reason) => CheckpointError::Archive { path, reason },
    }
}

fn read_pickle<R: Read + Seek>(path: &Path, archive: &mut Archive<R>, name: &str) -> Result<Pickle, CheckpointError> {
    let (path, entry) = (path.to_owned(), shown(name));
    let place = archive.entry(name).unwrap_or_default();
    let length = place.end - place.start;
    if length > pickle::MOST_BYTES {
        return Err(CheckpointError::Archive { path, reason: format!("{entry} has {length} bytes") });
    }
    let bytes = archive.read(place.start, length as usize).map_err(|error| wrong(&path, error))?;
    pickle::read(&bytes).map_err(|fault| match fault {
        Fault::Refused(what) => CheckpointError::Refused { path, entry, what },
        Fault::Broken { at, reason } => CheckpointError::Pickle { path, entry, at, reason },
    })
}

fn plain(value: &Value) -> Option<Plain> {
    match value {
        Value::Bool(truth) => Some(Plain::Bool(*truth)),
        Value::Int(number) => Some(Plain::Int(*number)),
        Value::Float(number) => Some(Plain::Float(*number)),
        Value::Text(text) => Some(Plain::Text(text.to_string())),
        _ => None,
    }
}
