//! Checkpoints written by hand: archives of stored entries, and pickles put together opcode by opcode.
// Each test file uses its part.
#![allow(dead_code)]

use std::io::Cursor;
use std::path::{Path, PathBuf};

use mambo_model::checkpoint::{Checkpoint, CheckpointError};

/// The file that PyTorch pickled; see tools/reference/ssm_ttm.py.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Checks bytes as if they were a file.
pub fn open(bytes: Vec<u8>) -> Result<Checkpoint<Cursor<Vec<u8>>>, CheckpointError> {
    Checkpoint::from_source(Path::new("some/file.ckpt"), Cursor::new(bytes))
}

/// A zip archive of stored entries, as small as the format allows.
pub fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in entries {
        let header = bytes.len() as u32;
        let length = (content.len() as u32).to_le_bytes();
        let mut common = vec![0; 10];
        common.extend([0; 4]);
        common.extend(length);
        common.extend(length);
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        bytes.extend(b"PK\x03\x04");
        bytes.extend(&common);
        bytes.extend(name.as_bytes());
        bytes.extend(*content);
        directory.extend(b"PK\x01\x02\0\0");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend(header.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let count = (entries.len() as u16).to_le_bytes();
    let start = (bytes.len() as u32).to_le_bytes();
    bytes.extend(&directory);
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    bytes.extend(count);
    bytes.extend(count);
    bytes.extend((directory.len() as u32).to_le_bytes());
    bytes.extend(start);
    bytes.extend([0, 0]);
    bytes
}

/// An archive with one pickle and no numbers.
pub fn archive(pickle: &[u8]) -> Vec<u8> {
    zip(&[("archive/data.pkl", pickle), ("archive/version", b"3\n")])
}

/// Pieces of pickles; each leaves one value on the stack.
pub mod piece {
    pub fn text(text: &str) -> Vec<u8> {
        let mut bytes = vec![b'X'];
        bytes.extend((text.len() as u32).to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes
    }

    pub fn int(number: i64) -> Vec<u8> {
        let mut bytes = vec![0x8a, 8];
        bytes.extend(number.to_le_bytes());
        bytes
    }

    pub fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
        [b"(".to_vec(), items.concat(), b"t".to_vec()].concat()
    }

    pub fn dictionary(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let entries: Vec<u8> = entries.iter().flat_map(|(key, value)| [text(key), value.clone()].concat()).collect();
        [b"}(".to_vec(), entries, b"u".to_vec()].concat()
    }

    /// The whole pickle of one value.
    pub fn whole(value: &[u8]) -> Vec<u8> {
        [b"\x80\x02", value, b"."].concat()
    }
}

/// A tensor as a pickle describes it.
#[derive(Debug, Clone)]
pub struct Tensor {
    pub class: &'static str,
    pub key: String,
    /// Numbers that the storage claims.
    pub count: i64,
    pub offset: i64,
    pub shape: Vec<i64>,
    pub strides: Vec<i64>,
}

impl Tensor {
    /// Row-major f32 in a storage of its own.
    pub fn plain(key: &str, shape: &[i64]) -> Self {
        let mut strides = vec![1; shape.len()];
        for i in (1..shape.len()).rev() {
            strides[i - 1] = strides[i] * shape[i];
        }
        let count = shape.iter().product();
        Self { class: "FloatStorage", key: key.into(), count, offset: 0, shape: shape.into(), strides }
    }

    pub fn pickle(&self) -> Vec<u8> {
        let numbers =
            |numbers: &[i64]| piece::tuple(&numbers.iter().map(|&number| piece::int(number)).collect::<Vec<_>>());
        let class = format!("ctorch\n{}\n", self.class).into_bytes();
        let id = [piece::text("storage"), class, piece::text(&self.key), piece::text("cpu"), piece::int(self.count)];
        let storage = [piece::tuple(&id), b"Q".to_vec()].concat();
        let hooks = b"ccollections\nOrderedDict\n)R".to_vec();
        let arguments =
            [storage, piece::int(self.offset), numbers(&self.shape), numbers(&self.strides), b"\x89".to_vec(), hooks];
        [b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec(), piece::tuple(&arguments), b"R".to_vec()].concat()
    }
}

/// A Lightning checkpoint with this state dictionary, these storages, and more entries beside the state.
pub fn lightning(state: &[(&str, Tensor)], storages: &[(&str, Vec<u8>)], more: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let state: Vec<(&str, Vec<u8>)> = state.iter().map(|(name, tensor)| (*name, tensor.pickle())).collect();
    let mut entries = vec![("epoch", piece::int(1)), ("state_dict", piece::dictionary(&state))];
    entries.extend(more.iter().cloned());
    let pickle = piece::whole(&piece::dictionary(&entries));
    let names: Vec<String> = storages.iter().map(|(key, _)| format!("archive/data/{key}")).collect();
    let mut files = vec![("archive/data.pkl", pickle.as_slice()), ("archive/byteorder", b"little")];
    files.extend(names.iter().zip(storages).map(|(name, (_, bytes))| (name.as_str(), bytes.as_slice())));
    zip(&files)
}

pub fn floats(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}
