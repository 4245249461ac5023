//! Files that were tampered with, some ten thousand of each kind: none makes a reader panic. `fuzz/` draws millions from the
//! same changes and also measures what each file costs.
#![allow(clippy::unwrap_used)]

mod checkpoints;
mod hostile;

use std::path::Path;

use checkpoints::archive;
use hostile::{Change, Random, archives, headers, pickles, readers, seeds};
use mambo_model::checkpoint::{CheckpointError, ssm_ttm};
use mambo_model::weights::Weights;

/// Reads as many changed files as `count`; what was changed before is changed again for some depth.
fn tamper(mut files: Vec<Vec<u8>>, change: Change, read: fn(&[u8]), count: usize) {
    let (mut random, sound) = (Random(1), files.len());
    files.iter().for_each(|file| read(file));
    for n in 0..count {
        let mut file = random.pick(&files).clone();
        let other = random.pick(&files).clone();
        random.changes(change, &mut file, &other);
        read(&file);
        // A small pool that keeps its sound files.
        match files.len() < 4 * sound {
            true => files.push(file),
            false => files[sound + n % (3 * sound)] = file,
        }
    }
}

#[test]
fn what_changes_begin_with_is_sound() {
    for file in seeds::safetensors() {
        Weights::from_bytes(Path::new("seed"), file).unwrap();
    }
    let files = seeds::checkpoints();
    // The last one is the first with a 64-bit end.
    for file in files[..3].iter().chain(files.last()) {
        checkpoints::open(file.clone()).unwrap();
    }
    let model = ssm_ttm::read_from(checkpoints::open(files[1].clone()).unwrap(), &mut |_, _| {}).unwrap();
    assert_eq!((model.sizes.d_model, model.sizes.d_state, model.sizes.inner), (1, 1, 64));
    let sound = seeds::pickles().into_iter().filter(|pickle| {
        // A pickle with a tensor lacks its storage here, which is noticed when all of it has been read.
        !matches!(
            checkpoints::open(archive(pickle)),
            Err(CheckpointError::Refused { .. } | CheckpointError::Pickle { .. })
        )
    });
    assert_eq!(sound.count(), 5);
}

#[test]
fn no_safetensors_file_makes_its_reader_panic() {
    tamper(seeds::safetensors(), headers::change, readers::safetensors, 20_000);
}

#[test]
fn no_checkpoint_makes_its_reader_panic() {
    tamper(seeds::checkpoints(), archives::change, readers::checkpoint, 20_000);
}

#[test]
fn no_pickle_makes_its_reader_panic() {
    let mut files = seeds::pickles();
    files.push(seeds::pickle_of(&std::fs::read(checkpoints::golden("ssm_ttm.ckpt")).unwrap()));
    tamper(files, pickles::change, readers::pickle, 20_000);
}
