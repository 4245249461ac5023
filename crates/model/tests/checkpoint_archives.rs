//! Archives and files that are not what they claim: each is an error, and none costs more than it is long.
#![allow(clippy::unwrap_used)]

mod checkpoints;

use checkpoints::{Tensor, archive, floats, golden, lightning, open, piece, zip};
use mambo_model::checkpoint::{CheckpointError, ssm_ttm};
use proptest::prelude::*;

/// Bytes of address space that all tests of this file may take together beyond those of a first good read: far below
/// any claim that a file makes here.
#[cfg(target_os = "linux")]
const ROOM: u64 = 400 << 20;

/// Highest address space of this process so far.
#[cfg(target_os = "linux")]
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmPeak:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// How far it has risen since. The kernel notes the highest one late, so while other threads give memory back it may fall a little.
#[cfg(target_os = "linux")]
fn grown(before: u64) -> u64 {
    peak().saturating_sub(before)
}

fn read(bytes: Vec<u8>) -> Result<ssm_ttm::SsmTtm, CheckpointError> {
    ssm_ttm::read_from(open(bytes)?, &mut |_, _| {})
}

fn good() -> Vec<u8> {
    std::fs::read(golden("ssm_ttm.ckpt")).unwrap()
}

#[track_caller]
fn reason(bytes: Vec<u8>) -> String {
    match open(bytes) {
        Err(CheckpointError::Archive { reason, .. }) => reason,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was accepted"),
    }
}

#[test]
fn what_is_no_archive_says_so() {
    assert!(reason(Vec::new()).contains("too short"));
    assert!(reason(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.".repeat(9)).contains("no zip archive"));
    assert!(reason(zip(&[])).contains("no data.pkl"));
    assert!(reason(zip(&[("archive/version", b"3\n")])).contains("no data.pkl"));
    let pickle = piece::whole(b"}");
    assert!(reason(zip(&[("a/data.pkl", &pickle), ("b/data.pkl", &pickle)])).contains("more than one data.pkl"));
    assert!(reason(zip(&[("a/data.pkl", &pickle), ("a/byteorder", b"big")])).contains("little-endian"));
    assert!(reason(zip(&[("a/data.pkl", &pickle), ("a/data.pkl", &pickle)])).contains("two entries"));
    assert!(matches!(open(zip(&[("a/data.pkl", &vec![b'N'; (1 << 24) + 1])])), Err(CheckpointError::Archive { .. })));
    let folder = tempfile::tempdir().unwrap();
    let none = |path: &std::path::Path| ssm_ttm::read(path, &mut |_, _| {}).unwrap_err();
    assert!(matches!(none(folder.path()), CheckpointError::NotAFile { .. }));
    assert!(matches!(none(&folder.path().join("none")), CheckpointError::Io { .. }));
}

#[test]
fn entries_that_lie_are_refused() {
    let (first, second) = (piece::whole(b"}"), [7_u8; 5]);
    let bytes = zip(&[("a/data.pkl", &first), ("a/data/0", &second)]);
    assert!(open(bytes.clone()).is_ok());
    let directory = bytes.len() - 22 - (46 + 10) - (46 + 8);
    let (record, after) = (directory, directory + 46 + 10);
    let patched = |at: usize, with: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        reason(bytes)
    };
    // Deflate, the method of bombs, and encryption.
    assert!(patched(record + 10, &[8, 0]).contains("compressed or encrypted (method 8)"));
    assert!(patched(record + 8, &[1, 0]).contains("encrypted"));
    // The second record points at the first entry's header, then into its content.
    assert!(patched(after + 42, &[0; 4]).contains("not where the directory says"));
    assert!(patched(after + 42, &[40, 0, 0, 0]).contains("not where the directory says"));
    // Longer than stored, longer than the file, into the directory, into the next entry.
    assert!(patched(record + 24, &[9]).contains("claims 9"));
    let both = |length: u32| [length.to_le_bytes(), length.to_le_bytes()].concat();
    assert!(patched(after + 20, &both(u32::MAX - 1)).contains("claims 4294967294 bytes"));
    assert!(patched(after + 20, &both(6)).contains("runs into the directory"));
    assert!(patched(record + 20, &both(5)).contains("overlap"));
    assert!(patched(record + 20, &both(u32::MAX)).contains("64-bit sizes"));
    // The local header says something else than the directory.
    assert!(patched(0, b"PK\x03\x05").contains("not where the directory says"));
    assert!(patched(8, &[8]).contains("not where the directory says"));
    assert!(patched(30, b"b").contains("not where the directory says"));
    // The directory has more, fewer or longer records than it says, or lies elsewhere.
    let end = bytes.len() - 22;
    assert!(patched(end + 10, &[1]).contains("more entries than it claims"));
    assert!(patched(end + 10, &[0xff, 0xff]).contains("too short for the 65535 entries"));
    assert!(patched(record + 28, &[0xff, 0xff]).contains("breaks off"));
    assert!(patched(record, b"XX").contains("damaged"));
    assert!(patched(record + 46, &[0xff]).contains("not UTF-8"));
    assert!(patched(end + 16, &[1]).contains("not where its end says"));
    assert!(patched(end + 20, &[1]).contains("cut off"));
}

#[test]
fn overlapping_entries_are_refused() {
    // The second entry's header lies in the content of the first.
    let inner = zip(&[("a/x", b"content")]);
    let bytes = zip(&[("a/data.pkl", &inner), ("a/x", b"content")]);
    let outer = bytes.len() - 22 - (46 + 10) - (46 + 3);
    let header = 30 + 10_u32;
    let mut overlapping = bytes.clone();
    overlapping[outer + 56 + 42..][..4].copy_from_slice(&header.to_le_bytes());
    assert!(reason(overlapping).contains("the entries a/data.pkl and a/x overlap"));
}

#[test]
fn every_cut_is_an_error() {
    let bytes = good();
    let cuts = (0..400).map(|n| n * bytes.len() / 400).chain(bytes.len() - 100..bytes.len());
    for cut in cuts {
        let error = read(bytes[..cut].to_vec()).unwrap_err();
        assert!(matches!(error, CheckpointError::Archive { .. }), "{cut}: {error}");
    }
    // What stands before the archive moves everything.
    assert!(read([b"xx".to_vec(), bytes].concat()).is_err());
}

#[test]
fn a_claimed_length_is_no_allocation() {
    #[cfg(target_os = "linux")]
    let before = {
        read(good()).unwrap();
        peak()
    };
    for huge in [1_u32 << 30, i32::MAX as u32, u32::MAX] {
        for opcode in *b"XB\x8b" {
            let pickle = piece::whole(&[&[opcode][..], &huge.to_le_bytes()].concat());
            assert!(matches!(open(archive(&pickle)), Err(CheckpointError::Pickle { .. })), "{opcode:#x} {huge}");
        }
        // A place in the memo is a name, not a size.
        assert!(open(archive(&piece::whole(&[&b"Nr"[..], &huge.to_le_bytes()].concat()))).is_ok());
    }
    for huge in [1_u64 << 31, 0xffff_fff0, 1 << 40, u64::MAX >> 1, u64::MAX] {
        for opcode in [0x8d_u8, 0x8e, 0x96, 0x95] {
            let pickle = piece::whole(&[&[opcode][..], &huge.to_le_bytes()].concat());
            assert!(matches!(open(archive(&pickle)), Err(CheckpointError::Pickle { .. })), "{opcode:#x} {huge}");
        }
        let count = (huge >> 1) as i64;
        let tensor = Tensor { count, shape: vec![count], ..Tensor::plain("0", &[1]) };
        assert!(open(lightning(&[("a", tensor)], &[("0", floats([1.0]))], &[])).is_err());
    }
    // A stride of zero claims any number of values from one: refused when they are to be read.
    let repeated = |key: &str, shape: &[i64]| Tensor {
        count: 1,
        shape: shape.into(),
        strides: vec![0; shape.len()],
        ..Tensor::plain(key, &[1])
    };
    let state: Vec<(String, Tensor)> =
        published().into_iter().map(|(name, shape)| (name, repeated("0", &shape))).collect();
    let state: Vec<(&str, Tensor)> = state.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    let error = read(lightning(&state, &[("0", floats([1.0]))], &[])).unwrap_err();
    // The count of the paper's model with one codebook: sizes and names of the published file are understood.
    assert!(error.to_string().contains("281042176"), "{error}");
    #[cfg(target_os = "linux")]
    assert!(grown(before) < ROOM, "{} bytes", grown(before));
}

/// A hundred kilobytes of pickle in which one thing stands in very many places: none may cost the product of both.
#[test]
fn what_is_shared_is_no_allocation() {
    let with = |value: &[u8]| archive(&piece::whole(&[&b"}\x8c\x10hyper_parameters"[..], value, b"s"].concat()));
    #[cfg(target_os = "linux")]
    let before = {
        read(good()).unwrap();
        peak()
    };
    // A long name that each of many storages would copy.
    let name = [piece::text(&"0".repeat(1 << 16)), b"q\x000".to_vec()].concat();
    let storage = b"(\x8c\x07storagectorch\nFloatStorage\nh\x00\x8c\x03cpuK\x00tQ0".repeat(10_000);
    let error = open(archive(&piece::whole(&[name, storage, b"}".to_vec()].concat()))).unwrap_err();
    assert!(error.to_string().contains("the name of a storage has 65536 bytes"), "{error}");
    // Attributes that each of many objects would list.
    let attributes = [b"}(".to_vec(), b"\x8c\x01aK\x01".repeat(4000), b"uq\x000".to_vec()].concat();
    let objects = b"cargparse\nNamespace\n)\x81h\x00b".repeat(4000);
    let listed = open(with(&[attributes, b"](".to_vec(), objects, b"e".to_vec()].concat())).unwrap();
    assert_eq!(listed.plain("hyper_parameters").unwrap().len(), 4000);
    // A long text that a listing would copy to each of its places.
    let texts =
        [piece::text(&"x".repeat(1 << 16)), b"q\x000](".to_vec(), b"h\x00".repeat(40_000), b"e".to_vec()].concat();
    let error = open(with(&texts)).unwrap().plain("hyper_parameters").unwrap_err();
    assert!(error.to_string().contains("repeats a few texts under hyper_parameters"), "{error}");
    // A key that is written eight times as long as it is stored.
    let keys =
        [piece::text(&"\u{e000}".repeat(100)), b"q\x000}(".to_vec(), b"h\x00K\x01".repeat(30_000), b"u".to_vec()];
    let error = open(with(&keys.concat())).unwrap().plain("hyper_parameters").unwrap_err();
    assert!(error.to_string().contains("too long to be listed"), "{error}");
    #[cfg(target_os = "linux")]
    assert!(grown(before) < ROOM, "{} bytes", grown(before));
}

/// Names and shapes of the published file with one codebook.
fn published() -> Vec<(String, Vec<i64>)> {
    let mut all: Vec<(String, Vec<i64>)> = Vec::new();
    let mut add = |name: String, shape: &[i64]| all.push((format!("music_model.{name}"), shape.into()));
    add("condition_norm.weight".into(), &[1024]);
    add("condition_norm.bias".into(), &[1024]);
    add("condition_linear.weight".into(), &[1024, 768]);
    add("condition_linear.bias".into(), &[1024]);
    add("embedding.0.weight".into(), &[1025, 1024]);
    add("lm_head.0.weight".into(), &[1025, 1024]);
    for i in 0..24 {
        add(format!("backbone.{i}.mamba.norm.weight"), &[1024]);
        add(format!("backbone.{i}.mamba.mamba.in_proj.weight"), &[5152, 1024]);
        add(format!("backbone.{i}.mamba.mamba.conv1d.weight"), &[3072, 1, 4]);
        add(format!("backbone.{i}.mamba.mamba.conv1d.bias"), &[3072]);
        for name in ["dt_bias", "A_log", "D"] {
            add(format!("backbone.{i}.mamba.mamba.{name}"), &[32]);
        }
        add(format!("backbone.{i}.mamba.mamba.norm.weight"), &[2048]);
        add(format!("backbone.{i}.mamba.mamba.out_proj.weight"), &[1024, 2048]);
        add(format!("backbone.{i}.ff.norm.weight"), &[1024]);
        add(format!("backbone.{i}.ff.feed_forward.0.weight"), &[2048, 1024]);
        add(format!("backbone.{i}.ff.feed_forward.0.bias"), &[2048]);
        add(format!("backbone.{i}.ff.feed_forward.3.weight"), &[1024, 2048]);
        add(format!("backbone.{i}.ff.feed_forward.3.bias"), &[1024]);
    }
    all
}

/// One change to a file.
#[derive(Debug, Clone)]
enum Change {
    Set(u8),
    Insert(u8),
    Remove,
    /// Copies some bytes to here from another place.
    Copy(usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => any::<u8>().prop_map(Change::Set),
        1 => any::<u8>().prop_map(Change::Insert),
        1 => Just(Change::Remove),
        2 => (any::<usize>(), 1_usize..64).prop_map(|(from, length)| Change::Copy(from, length)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]
    /// Most changes go where the structure is: the pickle at the beginning, the directory at the end.
    #[test]
    fn no_change_of_the_file_panics(
        changes in prop::collection::vec((0_usize..3, any::<usize>(), change()), 1..6)
    ) {
        let mut bytes = good();
        for (region, at, change) in changes {
            let length = bytes.len();
            let at = match region {
                0 => at % 11_000,
                1 => length - 1 - at % 9_000,
                _ => at % length,
            };
            match change {
                Change::Set(value) => bytes[at] = value,
                Change::Insert(value) => bytes.insert(at, value),
                Change::Remove => drop(bytes.remove(at)),
                Change::Copy(from, count) => {
                    let from = from % length;
                    let count = count.min(length - from).min(length - at);
                    bytes.copy_within(from..from + count, at);
                }
            }
        }
        #[cfg(target_os = "linux")]
        let before = peak();
        let _ = read(bytes);
        #[cfg(target_os = "linux")]
        prop_assert!(grown(before) < ROOM, "{} bytes", grown(before));
    }
}
