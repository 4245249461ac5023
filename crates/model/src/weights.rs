//! Opening safetensors files that may be wrong: every length, shape and type is checked before use, and
//! what does not fit is an error that names the file and the tensor.
//!
//! A loader reads each tensor it knows by name and shape and then calls [`Weights::finish`], so that a file
//! with too many tensors is refused like one with too few. Source of the format: safetensors 0.8.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// Tensors that a message names at most.
const MOST_NAMED: usize = 8;

/// Why a weights file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file cannot be read.
    #[error("{path}: cannot read the weights: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A directory, pipe or device stands where a file is needed.
    #[error("{path}: expected a weights file, found something that is not a plain file", path = path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The header or the layout breaks the format.
    #[error("{path}: not a sound safetensors file ({reason}); copy or convert it again", path = path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A tensor of the network is not in the file.
    #[error("{path}: tensor {name} is missing; the file belongs to another model or version", path = path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// The file holds tensors that the network does not have.
    #[error("{path}: unexpected {names}; the file belongs to another model or version", path = path.display())]
    Unexpected {
        /// The file.
        path: PathBuf,
        /// The first of them, and how many more there are.
        names: String,
    },
    /// A tensor has another shape than the network needs.
    #[error("{path}: tensor {name} has shape {found:?}, expected {expected:?}", path = path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape of the network.
        expected: Vec<usize>,
    },
    /// A tensor has an element type that cannot be read as the wanted one.
    #[error("{path}: tensor {name} holds {found}, expected {expected}", path = path.display())]
    ElementType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The type in the file.
        found: String,
        /// The types that would do.
        expected: &'static str,
    },
    /// A tensor holds an infinite value or a NaN.
    #[error("{path}: tensor {name} holds a value that is not finite; the file is damaged", path = path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A metadata entry is absent or says something else.
    #[error("{path}: metadata entry {key:?} is {found:?}, expected {expected}", path = path.display())]
    Metadata {
        /// The file.
        path: PathBuf,
        /// The entry.
        key: String,
        /// Its value, if present.
        found: Option<String>,
        /// What would do.
        expected: String,
    },
}

/// Requires that no tensor of the file at `path` is left unread.
///
/// # Errors
/// [`WeightsError::Unexpected`], which names them.
pub(crate) fn require_none<'a>(path: &Path, unread: impl Iterator<Item = &'a str>) -> Result<(), WeightsError> {
    let names: Vec<&str> = unread.collect();
    // Names from a file may hold anything, what steers a terminal included.
    let first: Vec<String> = names.iter().take(MOST_NAMED).map(|name| name.escape_debug().to_string()).collect();
    let first = first.join(", ");
    let names = match names.len() {
        0 => return Ok(()),
        1 => format!("tensor {first}"),
        2..=MOST_NAMED => format!("tensors {first}"),
        all => format!("tensors {first} and {} more", all - MOST_NAMED),
    };
    Err(WeightsError::Unexpected { path: path.to_owned(), names })
}

/// The weight of a weight-normed layer, `g v / |v|`, the length taken over all axes but the first: one of `lengths` (g) for
/// each of as many rows of `weight` (v), which becomes it.
pub fn join_weight_norm(lengths: &[f32], weight: &mut [f32]) {
    let row = weight.len() / lengths.len().max(1);
    for (row, length) in weight.chunks_exact_mut(row.max(1)).zip(lengths) {
        let norm = row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        let factor = (f64::from(*length) / norm) as f32;
        row.iter_mut().for_each(|value| *value *= factor);
    }
}

/// Which file each tensor is in, by the names of both.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Place and type of one tensor.
#[derive(Debug)]
struct Entry {
    file: usize,
    element: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
    used: AtomicBool,
}

/// A safetensors file, or several that belong together, held in memory, the layout checked.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    files: Vec<Vec<u8>>,
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

impl Weights {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// [`WeightsError::Io`], [`WeightsError::NotAFile`] or [`WeightsError::Format`].
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let failed = |source| WeightsError::Io { path: path.to_owned(), source };
        if !std::fs::metadata(path).map_err(failed)?.is_file() {
            return Err(WeightsError::NotAFile { path: path.to_owned() });
        }
        Self::from_bytes(path, std::fs::read(path).map_err(failed)?)
    }

    /// Reads the weights of a folder as Hugging Face has it: `model.safetensors`, or the files that
    /// `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// As [`Weights::open`]; [`WeightsError::Format`] for an index that is none.
    pub fn open_folder(folder: &Path) -> Result<Self, WeightsError> {
        let single = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        if single.exists() || !index.exists() {
            return Self::open(&single);
        }
        let failed = |reason: String| WeightsError::Format { path: index.clone(), reason };
        let text = std::fs::read(&index).map_err(|source| WeightsError::Io { path: index.clone(), source })?;
        let parts: Index = serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))?;
        let mut all =
            Self { path: index.clone(), files: Vec::new(), entries: BTreeMap::new(), metadata: BTreeMap::new() };
        for name in parts.weight_map.into_values().collect::<BTreeSet<String>>() {
            if Path::new(&name).file_name() != Some(name.as_ref()) {
                return Err(failed(format!("{name:?} is no file of this folder")));
            }
            let part = Self::open(&folder.join(&name))?;
            for (tensor, mut entry) in part.entries {
                entry.file = all.files.len();
                if all.entries.contains_key(&tensor) {
                    return Err(failed(format!("tensor {tensor} is in two files")));
                }
                all.entries.insert(tensor, entry);
            }
            all.files.extend(part.files);
        }
        Ok(all)
    }

    /// Checks the content of a file; `path` is only used in messages.
    ///
    /// # Errors
    /// [`WeightsError::Format`].
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self, WeightsError> {
        let (header, layout) = SafeTensors::read_metadata(&bytes)
            .map_err(|error| WeightsError::Format { path: path.to_owned(), reason: error.to_string() })?;
        // The reader has checked that the ranges are in bounds, do not overlap and fit shapes and types.
        let data_start = 8 + header;
        let entries = layout
            .tensors()
            .into_iter()
            .map(|(name, info)| {
                let (begin, end) = info.data_offsets;
                let entry = Entry {
                    file: 0,
                    element: info.dtype,
                    shape: info.shape.clone(),
                    bytes: data_start + begin..data_start + end,
                    used: AtomicBool::new(false),
                };
                (name, entry)
            })
            .collect();
        let metadata = layout.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
        Ok(Self { path: path.to_owned(), files: vec![bytes], entries, metadata })
    }

    /// The path given at opening.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// SHA-256 of the file, or of all files in the order of their names, in hexadecimal.
    pub fn sha256(&self) -> String {
        let mut hasher = Sha256::new();
        self.files.iter().for_each(|file| hasher.update(file));
        hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Name, element type and shape of every tensor, by name.
    pub fn entries(&self) -> impl Iterator<Item = (&str, String, &[usize])> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), format!("{:?}", entry.element), entry.shape.as_slice()))
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Shape of a tensor, if present. Does not count as a use.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// A metadata entry of the header.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// Requires the metadata entry `key` to be `expected`.
    ///
    /// # Errors
    /// [`WeightsError::Metadata`].
    pub fn expect_metadata(&self, key: &str, expected: &str) -> Result<(), WeightsError> {
        if self.metadata(key) == Some(expected) {
            return Ok(());
        }
        Err(self.wrong_metadata(key, format!("{expected:?}")))
    }

    /// The error that says what metadata entry `key` should have been.
    pub fn wrong_metadata(&self, key: &str, expected: impl Into<String>) -> WeightsError {
        WeightsError::Metadata {
            path: self.path.clone(),
            key: key.to_owned(),
            found: self.metadata(key).map(str::to_owned),
            expected: expected.into(),
        }
    }

    /// A tensor of f32, f16 or bf16 as f32, row-major, all values finite.
    ///
    /// # Errors
    /// [`WeightsError::Missing`], [`WeightsError::Shape`], [`WeightsError::ElementType`], [`WeightsError::NotFinite`].
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        let entry = self.entry(name, shape)?;
        let bytes = self.bytes(entry);
        let pairs = || bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
        let values = match entry.element {
            Dtype::F32 => {
                bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect()
            }
            Dtype::F16 => {
                let halves: Vec<f16> = pairs().map(f16::from_le_bytes).collect();
                let mut values = vec![0.0; halves.len()];
                halves.convert_to_f32_slice(&mut values);
                values
            }
            Dtype::BF16 => pairs().map(|pair| bf16::from_le_bytes(pair).to_f32()).collect::<Vec<f32>>(),
            other => return Err(self.wrong_type(name, other, "F32, F16 or BF16")),
        };
        if values.iter().all(|value| value.is_finite()) {
            Ok(values)
        } else {
            Err(WeightsError::NotFinite { path: self.path.clone(), name: name.to_owned() })
        }
    }

    /// A tensor of u16, row-major.
    ///
    /// # Errors
    /// [`WeightsError::Missing`], [`WeightsError::Shape`], [`WeightsError::ElementType`].
    pub fn u16(&self, name: &str, shape: &[usize]) -> Result<Vec<u16>, WeightsError> {
        let entry = self.entry(name, shape)?;
        match entry.element {
            Dtype::U16 => {
                let pairs = self.bytes(entry).chunks_exact(2);
                Ok(pairs.map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect())
            }
            other => Err(self.wrong_type(name, other, "U16")),
        }
    }

    /// A tensor of bytes with sign, row-major, as it lies in the file.
    ///
    /// # Errors
    /// [`WeightsError::Missing`], [`WeightsError::Shape`], [`WeightsError::ElementType`].
    pub fn i8(&self, name: &str, shape: &[usize]) -> Result<&[i8], WeightsError> {
        let entry = self.entry(name, shape)?;
        match entry.element {
            Dtype::I8 => Ok(bytemuck::cast_slice(self.bytes(entry))),
            other => Err(self.wrong_type(name, other, "I8")),
        }
    }

    /// Whether a tensor `name` is there and holds bytes with sign.
    pub fn is_int8(&self, name: &str) -> bool {
        self.entries.get(name).is_some_and(|entry| entry.element == Dtype::I8)
    }

    /// A matrix stored as int8 `name` `[rows, columns]` with factors `name.scale` `[rows, groups]`, one for each
    /// run of `columns / groups` values; the file chooses the number of groups.
    ///
    /// # Errors
    /// As [`Weights::i8`] and [`Weights::f32`]; [`WeightsError::Shape`] too where the groups do not divide a row.
    pub fn quantised(&self, name: &str, rows: usize, columns: usize) -> Result<QuantisedRows<'_>, WeightsError> {
        let values = self.i8(name, &[rows, columns])?;
        let scale_name = format!("{name}.scale");
        let groups = match self.shape(&scale_name) {
            Some(&[_, groups]) if groups > 0 && columns.is_multiple_of(groups) => groups,
            _ => 1,
        };
        let scales = self.f32(&scale_name, &[rows, groups])?;
        Ok(QuantisedRows { columns, groups, values, scales })
    }

    /// Counts all tensors whose names begin with `prefix` as read: parts of a larger model that are not needed.
    pub fn ignore(&self, prefix: &str) {
        let others = self.entries.range(prefix.to_owned()..).take_while(|(name, _)| name.starts_with(prefix));
        others.for_each(|(_, entry)| entry.used.store(true, Ordering::Relaxed));
    }

    /// Requires that every tensor of the file has been read.
    ///
    /// # Errors
    /// [`WeightsError::Unexpected`] with those that have not.
    pub fn finish(&self) -> Result<(), WeightsError> {
        let unused = self.entries.iter().filter(|(_, entry)| !entry.used.load(Ordering::Relaxed));
        require_none(&self.path, unused.map(|(name, _)| name.as_str()))
    }

    fn bytes(&self, entry: &Entry) -> &[u8] {
        &self.files[entry.file][entry.bytes.clone()]
    }

    fn entry(&self, name: &str, shape: &[usize]) -> Result<&Entry, WeightsError> {
        let entry = self
            .entries
            .get(name)
            .ok_or_else(|| WeightsError::Missing { path: self.path.clone(), name: name.to_owned() })?;
        if entry.shape != shape {
            return Err(WeightsError::Shape {
                path: self.path.clone(),
                name: name.to_owned(),
                found: entry.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        entry.used.store(true, Ordering::Relaxed);
        Ok(entry)
    }

    fn wrong_type(&self, name: &str, found: Dtype, expected: &'static str) -> WeightsError {
        WeightsError::ElementType {
            path: self.path.clone(),
            name: name.to_owned(),
            found: format!("{found:?}"),
            expected,
        }
    }
}

/// A borrowed int8 matrix; each row is cut into `groups` runs with a factor each.
#[derive(Debug, Clone)]
pub struct QuantisedRows<'file> {
    /// Elements of a row.
    pub columns: usize,
    /// Factors of a row; divides `columns`.
    pub groups: usize,
    /// Row-major values.
    pub values: &'file [i8],
    /// Row-major factors, `[rows, groups]`.
    pub scales: Vec<f32>,
}

impl QuantisedRows<'_> {
    /// Row `row` as f32 values.
    pub fn row(&self, row: usize) -> impl Iterator<Item = f32> {
        let values = &self.values[row * self.columns..(row + 1) * self.columns];
        let scales = &self.scales[row * self.groups..(row + 1) * self.groups];
        values
            // A row of no columns has no runs.
            .chunks_exact((self.columns / self.groups).max(1))
            .zip(scales)
            .flat_map(|(run, &scale)| run.iter().map(move |&value| f32::from(value) * scale))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    fn open(bytes: Vec<u8>) -> Result<Weights, WeightsError> {
        Weights::from_bytes(Path::new("some/file.safetensors"), bytes)
    }

    fn sample() -> Weights {
        let header = r#"{"__metadata__":{"format":"x-1"},
            "a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
            "h":{"dtype":"F16","shape":[1,2],"data_offsets":[8,12]},
            "q":{"dtype":"I8","shape":[2,2],"data_offsets":[12,16]},
            "q.scale":{"dtype":"F32","shape":[2,1],"data_offsets":[16,24]}}"#;
        let mut data = Vec::new();
        data.extend([1.5f32, -2.0].iter().flat_map(|v| v.to_le_bytes()));
        data.extend([0.5f32, -4.0].iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()));
        data.extend([127u8, 0, 255, 128]);
        data.extend([0.5f32, 2.0].iter().flat_map(|v| v.to_le_bytes()));
        open(file(header, &data)).unwrap()
    }

    #[test]
    fn reads_each_element_type() {
        let weights = sample();
        assert_eq!(weights.f32("a", &[2]).unwrap(), [1.5, -2.0]);
        assert_eq!(weights.f32("h", &[1, 2]).unwrap(), [0.5, -4.0]);
        let matrix = weights.quantised("q", 2, 2).unwrap();
        assert_eq!(matrix.row(0).collect::<Vec<_>>(), [63.5, 0.0]);
        assert_eq!(matrix.row(1).collect::<Vec<_>>(), [-2.0, -256.0]);
        weights.finish().unwrap();
        weights.expect_metadata("format", "x-1").unwrap();
    }

    #[test]
    fn names_what_is_wrong() {
        let weights = sample();
        assert!(matches!(weights.f32("b", &[2]), Err(WeightsError::Missing { name, .. }) if name == "b"));
        assert!(matches!(weights.f32("a", &[3]), Err(WeightsError::Shape { found, .. }) if found == [2]));
        assert!(matches!(weights.f32("q", &[2, 2]), Err(WeightsError::ElementType { .. })));
        assert!(matches!(weights.i8("a", &[2]), Err(WeightsError::ElementType { .. })));
        assert!(matches!(weights.expect_metadata("format", "x-2"), Err(WeightsError::Metadata { .. })));
        weights.f32("a", &[2]).unwrap();
        let error = weights.finish().unwrap_err();
        assert!(
            error.to_string().contains("some/file.safetensors") && error.to_string().contains("tensors h, q.scale"),
            "{error}"
        );
    }

    #[test]
    fn names_in_messages_do_not_steer_a_terminal() {
        let header = r#"{"\u001b[2Jgone":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        let message = open(file(header, &[0; 4])).unwrap().finish().unwrap_err().to_string();
        assert!(message.contains(r"\u{1b}[2Jgone") && !message.contains('\u{1b}'), "{message:?}");
    }

    #[test]
    fn groups_have_factors_of_their_own() {
        let matrix = QuantisedRows {
            columns: 4,
            groups: 2,
            values: &[1, 2, 3, 4, 5, 6, 7, 8],
            scales: vec![1.0, 10.0, 0.5, 2.0],
        };
        assert_eq!(matrix.row(1).collect::<Vec<_>>(), [2.5, 3.0, 14.0, 16.0]);
        let header = r#"{"q":{"dtype":"I8","shape":[1,4],"data_offsets":[0,4]},
            "q.scale":{"dtype":"F32","shape":[1,3],"data_offsets":[4,16]}}"#;
        let weights = open(file(header, &[0; 16])).unwrap();
        assert!(matches!(weights.quantised("q", 1, 4), Err(WeightsError::Shape { name, .. }) if name == "q.scale"));
    }

    #[test]
    fn a_row_of_no_columns_has_no_values() {
        let header = r#"{"q":{"dtype":"I8","shape":[1,0],"data_offsets":[0,0]},
            "q.scale":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}"#;
        let weights = open(file(header, &[0; 4])).unwrap();
        assert_eq!(weights.quantised("q", 1, 0).unwrap().row(0).count(), 0);
    }

    #[test]
    fn refuses_values_that_are_not_finite() {
        let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        let weights = open(file(header, &f32::NAN.to_le_bytes())).unwrap();
        assert!(matches!(weights.f32("a", &[1]), Err(WeightsError::NotFinite { .. })));
    }

    #[test]
    fn files_that_belong_together_are_read_as_one() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
        let one = |name: &str, value: f32| {
            let header = format!(r#"{{"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#);
            file(&header, &value.to_le_bytes())
        };
        write("1.safetensors", &one("a", 1.5));
        write("2.safetensors", &one("b", -2.0));
        let index = r#"{"metadata": {}, "weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#;
        write("model.safetensors.index.json", index.as_bytes());
        let weights = Weights::open_folder(folder.path()).unwrap();
        assert_eq!(weights.f32("b", &[1]).unwrap(), [-2.0]);
        assert!(weights.finish().unwrap_err().to_string().contains("tensor a"));
        assert_eq!(weights.f32("a", &[1]).unwrap(), [1.5]);
        weights.finish().unwrap();
        write("2.safetensors", &one("a", -2.0));
        assert!(Weights::open_folder(folder.path()).unwrap_err().to_string().contains("tensor a is in two files"));
        for outside in ["../1.safetensors", "/etc/passwd", "", ".."] {
            let index = format!(r#"{{"weight_map": {{"a": {outside:?}}}}}"#);
            write("model.safetensors.index.json", index.as_bytes());
            let error = Weights::open_folder(folder.path()).unwrap_err().to_string();
            assert!(error.contains("no file of this folder"), "{error}");
        }
        let many: Vec<String> =
            (0..11).map(|n| format!(r#""t{n:02}":{{"dtype":"I8","shape":[0],"data_offsets":[0,0]}}"#)).collect();
        let error = open(file(&format!("{{{}}}", many.join(",")), &[])).unwrap().finish().unwrap_err().to_string();
        assert!(error.contains("t07 and 3 more"), "{error}");
    }

    #[test]
    fn lying_lengths_are_errors() {
        let sound = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let cases = [
            Vec::new(),
            vec![1, 2, 3],
            file(sound, &[0; 7]),
            file(sound, &[0; 9]),
            u64::MAX.to_le_bytes().to_vec(),
            (1u64 << 40).to_le_bytes().to_vec(),
            file("{", &[]),
            file(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, &[0; 8]),
            file(r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, &[0; 8]),
            file(r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,8]}}"#, &[0; 8]),
            file(
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[18446744073709551608,18446744073709551615]}}"#,
                &[0; 8],
            ),
            file(r#"{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}"#, &[0; 8]),
        ];
        for (index, bytes) in cases.into_iter().enumerate() {
            assert!(matches!(open(bytes), Err(WeightsError::Format { .. })), "case {index}");
        }
        assert!(matches!(Weights::open(Path::new("/")), Err(WeightsError::NotAFile { .. })));
        assert!(matches!(Weights::open(Path::new("/no/such/file")), Err(WeightsError::Io { .. })));
    }
}
