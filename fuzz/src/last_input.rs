//! The file in hand, in a mapped file that outlives a crash of the program.

use std::fs::OpenOptions;
use std::path::PathBuf;

use memmap2::MmapMut;

use crate::hostile::MOST_BYTES;

/// Room for the length and the longest file.
const ROOM: usize = 8 + 4 * MOST_BYTES;

pub struct LastInput {
    path: PathBuf,
    map: MmapMut,
}

impl LastInput {
    pub fn new(target: &str, seed: u64) -> Self {
        let path = std::env::temp_dir().join(format!("mambo-fuzz-{target}-{seed}.last"));
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.expect("a file for the last input");
        file.set_len(ROOM as u64).expect("room for the last input");
        // SAFETY: the file was just made, and no other program writes or shortens it.
        let map = unsafe { MmapMut::map_mut(&file) }.expect("a map of the last input");
        Self { path, map }
    }

    /// Writes a file, after its length.
    pub fn store(&mut self, file: &[u8]) {
        let length = file.len().min(ROOM - 8);
        self.map[..8].copy_from_slice(&(length as u64).to_le_bytes());
        self.map[8..8 + length].copy_from_slice(&file[..length]);
    }

    /// The input that a program was reading when it ended.
    pub fn restore(bytes: &[u8]) -> Option<&[u8]> {
        let (length, rest) = bytes.split_first_chunk::<8>()?;
        rest.get(..u64::from_le_bytes(*length) as usize)
    }

    /// Nothing crashed.
    pub fn remove(self) {
        drop(self.map);
        let _ = std::fs::remove_file(self.path);
    }
}
