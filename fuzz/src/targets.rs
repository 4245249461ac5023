//! The readers, with sound files to begin with and the changes that suit each.

use std::path::{Path, PathBuf};

use crate::hostile::{Change, archives, headers, pickles, readers, seeds};
use crate::shards;

/// One reader.
pub struct Target {
    pub name: &'static str,
    pub seeds: fn() -> Vec<Vec<u8>>,
    pub change: Change,
    pub read: fn(&[u8]),
}

/// All readers.
pub const TARGETS: [Target; 4] = [
    Target { name: "safetensors", seeds: seeds::safetensors, change: headers::change, read: readers::safetensors },
    Target { name: "checkpoint", seeds: seeds::checkpoints, change: archives::change, read: checkpoint },
    Target { name: "pickle", seeds: pickle_seeds, change: pickles::change, read: readers::pickle },
    Target { name: "shard", seeds: || shards::seeds(&scratch("shard")), change: headers::change, read: shard },
];

/// A file in memory of this process alone.
pub fn scratch(kind: &str) -> PathBuf {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    folder.join(format!("mambo-fuzz-{}.{kind}", std::process::id()))
}

fn pickle_seeds() -> Vec<Vec<u8>> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/model/tests/golden");
    let published = ["ssm_ttm.ckpt", "dac_original.pth"]
        .map(|name| seeds::pickle_of(&std::fs::read(golden.join(name)).expect("the golden files are there")));
    seeds::pickles().into_iter().chain(published).collect()
}

/// Beside what every checkpoint goes through, one that names the sizes of a codec is opened as one, from a file.
fn checkpoint(bytes: &[u8]) {
    readers::checkpoint(bytes);
    let name = b"encoder_rates";
    if bytes.windows(name.len()).any(|window| window == name) {
        with_file("pth", bytes, |path| {
            if let Err(error) = mambo_model::codec::dac::Dac::load(path) {
                drop(error.to_string());
            }
        });
    }
}

fn shard(bytes: &[u8]) {
    with_file("shard", bytes, shards::read);
}

fn with_file(kind: &str, bytes: &[u8], read: impl FnOnce(&Path)) {
    let path = scratch(kind);
    std::fs::write(&path, bytes).expect("there is room for a file in memory");
    read(&path);
}
