//! Shards that were tampered with, some ten thousand: none makes the reader panic, and what opens is what it must be.
#![allow(clippy::unwrap_used)] // test code

#[path = "../../model/tests/checkpoints/mod.rs"]
mod checkpoints;
#[path = "../../model/tests/hostile/mod.rs"]
mod hostile;
mod shards;

use hostile::{Random, headers};
use std::path::Path;

#[test]
fn no_shard_makes_its_reader_panic() {
    // In memory where the system has a place for it: twenty thousand files are much work for a disk.
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let path = folder.path().join("hostile.safetensors");
    let files = shards::seeds(&path);
    let mut random = Random(1);
    for _ in 0..20_000 {
        let mut file = random.pick(&files).clone();
        let other = random.pick(&files).clone();
        random.changes(headers::change, &mut file, &other);
        std::fs::write(&path, &file).unwrap();
        shards::read(&path);
    }
}
