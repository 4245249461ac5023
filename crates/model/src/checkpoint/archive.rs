//! The zip archive that a PyTorch checkpoint is: its directory, and ranges of bytes of its entries.
//!
//! PyTorch stores every entry as it is, so that a tensor is a range of the file. Laws: nothing is decompressed; an
//! entry lies inside the file and overlaps no other; no allocation is larger than the bytes that are there. Source:
//! PKWARE APPNOTE 6.3.10, sections 4.3.7, 4.3.12 and 4.3.14 to 4.3.16.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use super::shown;

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const WIDE_END: u32 = 0x0606_4b50;
const WIDE_LOCATOR: u32 = 0x0706_4b50;

const LOCAL_LENGTH: usize = 30;
const CENTRAL_LENGTH: usize = 46;
const END_LENGTH: u64 = 22;
const WIDE_END_LENGTH: u64 = 56;
const WIDE_LOCATOR_LENGTH: u64 = 20;

/// Extra field with the 64-bit sizes of an entry.
const WIDE_EXTRA: usize = 1;
/// First bit of an entry's flags.
const ENCRYPTED: usize = 1;
/// Longest directory that is read: some 200 000 entries, where the published sizes with optimiser state have 1400.
const MOST_DIRECTORY: u64 = 1 << 24;

/// Why an archive was refused.
#[derive(Debug)]
pub(super) enum ArchiveError {
    /// The system's reason.
    Io(io::Error),
    /// What breaks the format.
    Unsound(String),
}

impl From<io::Error> for ArchiveError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn unsound<T>(reason: impl Into<String>) -> Result<T, ArchiveError> {
    Err(ArchiveError::Unsound(reason.into()))
}

/// Little-endian number of `N` bytes at `at`; the caller has checked that it is there.
fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + N].iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn size(bytes: &[u8], at: usize) -> usize {
    number::<2>(bytes, at) as usize
}

/// An archive whose directory has been checked.
#[derive(Debug)]
pub(super) struct Archive<R> {
    source: R,
    length: u64,
    entries: BTreeMap<String, Range<u64>>,
}

/// Where the directory lies and how many entries it has.
struct Directory {
    start: u64,
    length: u64,
    count: u64,
}

/// One record of the directory.
struct Record {
    name: String,
    flags: usize,
    header: u64,
    length: u64,
}

impl<R: Read + Seek> Archive<R> {
    pub(super) fn open(mut source: R) -> Result<Self, ArchiveError> {
        let length = source.seek(SeekFrom::End(0))?;
        let mut archive = Self { source, length, entries: BTreeMap::new() };
        let directory = archive.directory()?;
        let records = archive.records(&directory)?;
        let mut taken = Vec::with_capacity(records.len());
        for record in records {
            let bytes = archive.locate(&record)?;
            if bytes.end > directory.start {
                return unsound(format!("the entry {} runs into the directory", shown(&record.name)));
            }
            taken.push((record.header, bytes.end, record.name.clone()));
            if archive.entries.insert(record.name.clone(), bytes).is_some() {
                return unsound(format!("two entries are called {}", shown(&record.name)));
            }
        }
        taken.sort();
        if let Some(pair) = taken.windows(2).find(|pair| pair[0].1 > pair[1].0) {
            return unsound(format!("the entries {} and {} overlap", shown(&pair[0].2), shown(&pair[1].2)));
        }
        Ok(archive)
    }

    /// Bytes of the whole file.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Names of all entries, sorted.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Where the bytes of an entry lie in the file.
    pub(super) fn entry(&self, name: &str) -> Option<Range<u64>> {
        self.entries.get(name).cloned()
    }

    /// Bytes of the file, which must lie inside it.
    pub(super) fn read(&mut self, start: u64, length: usize) -> Result<Vec<u8>, ArchiveError> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.length) {
            return unsound("it breaks off in the middle");
        }
        let mut bytes = vec![0; length];
        self.source.seek(SeekFrom::Start(start))?;
        self.source.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads the end record. PyTorch writes no comment behind it, and a 64-bit copy before it.
    fn directory(&mut self) -> Result<Directory, ArchiveError> {
        let Some(end) = self.length.checked_sub(END_LENGTH) else {
            return unsound("it is too short to be one");
        };
        let bytes = self.read(end, END_LENGTH as usize)?;
        if number::<4>(&bytes, 0) != u64::from(END) || size(&bytes, 20) != 0 {
            return unsound("its end is not there: the file is cut off, or is no zip archive");
        }
        let narrow = Directory {
            start: number::<4>(&bytes, 16),
            length: number::<4>(&bytes, 12),
            count: number::<2>(&bytes, 10),
        };
        let (directory, limit) = match self.wide_directory(end)? {
            Some((wide, limit)) => (wide, limit),
            None => (narrow, end),
        };
        if directory.start.checked_add(directory.length) != Some(limit) {
            return unsound("its directory is not where its end says");
        }
        if directory.length > MOST_DIRECTORY {
            return unsound(format!("its directory has {} bytes", directory.length));
        }
        if directory.count > directory.length / CENTRAL_LENGTH as u64 {
            return unsound(format!("its directory is too short for the {} entries it claims", directory.count));
        }
        Ok(directory)
    }

    fn wide_directory(&mut self, end: u64) -> Result<Option<(Directory, u64)>, ArchiveError> {
        let Some(locator) = end.checked_sub(WIDE_LOCATOR_LENGTH) else { return Ok(None) };
        let bytes = self.read(locator, WIDE_LOCATOR_LENGTH as usize)?;
        if number::<4>(&bytes, 0) != u64::from(WIDE_LOCATOR) {
            return Ok(None);
        }
        let start = number::<8>(&bytes, 8);
        if start.checked_add(WIDE_END_LENGTH) != Some(locator) {
            return unsound("its 64-bit end is not where it says");
        }
        let bytes = self.read(start, WIDE_END_LENGTH as usize)?;
        if number::<4>(&bytes, 0) != u64::from(WIDE_END) {
            return unsound("its 64-bit end is damaged");
        }
        let directory = Directory {
            start: number::<8>(&bytes, 48),
            length: number::<8>(&bytes, 40),
            count: number::<8>(&bytes, 32),
        };
        Ok(Some((directory, start)))
    }

    fn records(&mut self, directory: &Directory) -> Result<Vec<Record>, ArchiveError> {
        let bytes = self.read(directory.start, directory.length as usize)?;
        let mut rest = bytes.as_slice();
        let mut records = Vec::new();
        for _ in 0..directory.count {
            let (record, after) = record(rest)?;
            records.push(record);
            rest = after;
        }
        match rest.is_empty() {
            true => Ok(records),
            false => unsound("its directory has more entries than it claims"),
        }
    }

    /// Where the bytes of an entry lie: behind its own header, which must agree with the directory.
    fn locate(&mut self, record: &Record) -> Result<Range<u64>, ArchiveError> {
        let bytes = self.read(record.header, LOCAL_LENGTH)?;
        let (name_length, extra_length) = (size(&bytes, 26), size(&bytes, 28));
        let name = self.read(record.header + LOCAL_LENGTH as u64, name_length)?;
        let agrees = number::<4>(&bytes, 0) == u64::from(LOCAL)
            && size(&bytes, 6) == record.flags
            && size(&bytes, 8) == 0
            && name == record.name.as_bytes();
        if !agrees {
            return unsound(format!("the entry {} is not where the directory says", shown(&record.name)));
        }
        let start = record.header + (LOCAL_LENGTH + name_length + extra_length) as u64;
        match start.checked_add(record.length) {
            Some(end) if end <= self.length => Ok(start..end),
            _ => unsound(format!("the entry {} claims {} bytes", shown(&record.name), record.length)),
        }
    }
}

/// Takes one record off the directory.
fn record(bytes: &[u8]) -> Result<(Record, &[u8]), ArchiveError> {
    if bytes.len() < CENTRAL_LENGTH || number::<4>(bytes, 0) != u64::from(CENTRAL) {
        return unsound("its directory is damaged");
    }
    let (name_length, extra_length, comment_length) = (size(bytes, 28), size(bytes, 30), size(bytes, 32));
    let total = CENTRAL_LENGTH + name_length + extra_length + comment_length;
    if bytes.len() < total {
        return unsound("its directory breaks off");
    }
    let (name, extra) = bytes[CENTRAL_LENGTH..CENTRAL_LENGTH + name_length + extra_length].split_at(name_length);
    let Ok(name) = std::str::from_utf8(name) else {
        return unsound("the name of an entry is not UTF-8");
    };
    let flags = size(bytes, 8);
    if size(bytes, 10) != 0 || flags & ENCRYPTED != 0 {
        return unsound(format!(
            "the entry {} is compressed or encrypted (method {}); PyTorch stores entries as they are",
            shown(name),
            size(bytes, 10)
        ));
    }
    // The 64-bit field holds, in this order, those of the numbers that are all ones.
    let mut wide = wide_numbers(extra);
    let mut widened = [number::<4>(bytes, 24), number::<4>(bytes, 20), number::<4>(bytes, 42)];
    for value in widened.iter_mut().filter(|value| **value == u64::from(u32::MAX)) {
        let Some((first, rest)) = wide.split_first_chunk::<8>() else {
            return unsound(format!("the entry {} lacks its 64-bit sizes", shown(name)));
        };
        *value = u64::from_le_bytes(*first);
        wide = rest;
    }
    let [length, stored, header] = widened;
    if length != stored {
        return unsound(format!("the entry {} has {stored} bytes and claims {length}", shown(name)));
    }
    Ok((Record { name: name.to_owned(), flags, header, length }, &bytes[total..]))
}

/// The content of the 64-bit extra field, empty if there is none.
fn wide_numbers(mut extra: &[u8]) -> &[u8] {
    while extra.len() >= 4 {
        let (kind, length) = (size(extra, 0), size(extra, 2));
        let Some(content) = extra.get(4..4 + length) else { break };
        if kind == WIDE_EXTRA {
            return content;
        }
        extra = &extra[4 + length..];
    }
    &[]
}
