//! One file: downloaded beside its place, gone on with after a cut, checked, renamed.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::cache::{Cache, create_parent};
use crate::client::{Client, network};
use crate::digest::{BLOCK, Digest, Sum};
use crate::error::HubError;
use crate::listing::Listed;
use crate::name::Repository;

/// Brings the content of a file into the cache, unless it is there; returns how many bytes came over the network.
/// `report` is told how many bytes of the file are here.
pub(crate) fn bring(
    client: &Client<'_>,
    cache: &Cache,
    repository: &Repository,
    commit: &str,
    file: &Listed,
    report: &mut dyn FnMut(u64),
) -> Result<u64, HubError> {
    let blob = cache.blob(repository, &file.digest);
    if is_here(&blob, file) {
        report(file.size);
        return Ok(0);
    }
    create_parent(&blob)?;
    let _lock = lock(&cache.lock(repository, &file.digest), file)?;
    if is_here(&blob, file) {
        report(file.size);
        return Ok(0);
    }
    let mut partial = Partial::open(&blob, file)?;
    let begun_before = partial.here > 0;
    let mut came = partial.fetch(client, commit, report)?;
    let mut found = partial.finished_sum();
    if found != file.digest && begun_before {
        // What an earlier run left may be at fault, e.g. after a power cut.
        tracing::warn!("{}: what was here from an earlier download is damaged, starting over", file.path);
        partial.clear()?;
        came += partial.fetch(client, commit, report)?;
        found = partial.finished_sum();
    }
    if found != file.digest {
        partial.discard()?;
        let (expected, found) = (file.digest.to_string(), found.to_string());
        return Err(HubError::Checksum { file: file.path.clone(), expected, found });
    }
    partial.keep(&blob)?;
    Ok(came)
}

/// Content is renamed to its checksum only after it was checked; a look at its size is enough.
fn is_here(blob: &Path, file: &Listed) -> bool {
    std::fs::metadata(blob).is_ok_and(|facts| facts.is_file() && facts.len() == file.size)
}

/// Keeps other programs, also the hub's Python tools, from bringing the same content. Given up when dropped.
fn lock(path: &Path, file: &Listed) -> Result<File, HubError> {
    create_parent(path)?;
    let lock = OpenOptions::new().create(true).truncate(false).write(true).open(path);
    let lock = lock.map_err(HubError::io(path, "create"))?;
    match lock.try_lock() {
        Err(std::fs::TryLockError::WouldBlock) => {
            tracing::info!("{}: waiting for another download of it", file.path);
            lock.lock().map_err(HubError::io(path, "lock"))?;
        }
        // A file system without locks; two downloads at once would end in a wrong checksum, no worse.
        Err(std::fs::TryLockError::Error(error)) => tracing::debug!("{}: cannot be locked: {error}", path.display()),
        Ok(()) => (),
    }
    Ok(lock)
}

/// A file being downloaded.
struct Partial<'a> {
    file: &'a Listed,
    path: PathBuf,
    disk: File,
    /// Bytes on disk, all of them in `sum`.
    here: u64,
    sum: Sum,
}

impl<'a> Partial<'a> {
    /// With what an earlier run left.
    fn open(blob: &Path, file: &'a Listed) -> Result<Self, HubError> {
        let mut path = blob.as_os_str().to_owned();
        path.push(".incomplete");
        let path = PathBuf::from(path);
        let disk = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
        let mut disk = disk.map_err(HubError::io(&path, "create"))?;
        let mut sum = file.digest.begin(file.size);
        let here = sum.read(&mut disk).map_err(HubError::io(&path, "read"))?;
        let mut partial = Self { file, path, disk, here, sum };
        if here > file.size {
            partial.clear()?;
        }
        Ok(partial)
    }

    /// Throws away what is here.
    fn clear(&mut self) -> Result<(), HubError> {
        self.disk
            .set_len(0)
            .and_then(|()| self.disk.seek(SeekFrom::Start(0)))
            .map_err(HubError::io(&self.path, "empty"))?;
        self.here = 0;
        self.sum = self.file.digest.begin(self.file.size);
        Ok(())
    }

    /// Asks for the rest until all of it is here; returns how many bytes came.
    fn fetch(&mut self, client: &Client<'_>, commit: &str, report: &mut dyn FnMut(u64)) -> Result<u64, HubError> {
        report(self.here);
        let (mut came, mut attempt, mut most) = (0, 0, self.here);
        while self.here < self.file.size {
            match self.fetch_once(client, commit, &mut came, report) {
                Ok(()) => (),
                // Nothing comes after what is here: the file is shorter than it was listed.
                Err(HubError::Status { status: 416, .. }) => {
                    let error = self.short();
                    self.clear()?;
                    return Err(error);
                }
                Err(error) if error.may_pass() => {
                    attempt = if self.here > most { 0 } else { attempt + 1 };
                    most = most.max(self.here);
                    tracing::info!("{error}");
                    if !client.pause(attempt) {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(came)
    }

    fn fetch_once(
        &mut self,
        client: &Client<'_>,
        commit: &str,
        came: &mut u64,
        report: &mut dyn FnMut(u64),
    ) -> Result<(), HubError> {
        let (address, response) = client.content(commit, &self.file.path, self.here)?;
        let range = response.headers().get("content-range").and_then(|value| value.to_str().ok());
        let goes_on =
            response.status() == 206 && range.is_some_and(|r| r.starts_with(&format!("bytes {}-", self.here)));
        if self.here > 0 && !goes_on {
            self.clear()?;
        }
        // The listed size bounds what is written, the checksum decides whether it is right.
        let mut body = response.into_body().into_reader().take(self.file.size - self.here);
        let mut block = vec![0; BLOCK];
        loop {
            let count = body.read(&mut block).map_err(|error| network(&address, ureq::Error::from(error)))?;
            if count == 0 {
                break;
            }
            self.disk.write_all(&block[..count]).map_err(|error| self.full_or(error))?;
            self.sum.update(&block[..count]);
            self.here += count as u64;
            *came += count as u64;
            report(self.here);
        }
        if self.here < self.file.size {
            return Err(self.short());
        }
        Ok(())
    }

    fn short(&self) -> HubError {
        HubError::Short { file: self.file.path.clone(), expected: self.file.size, found: self.here }
    }

    fn full_or(&self, error: std::io::Error) -> HubError {
        if error.kind() == std::io::ErrorKind::StorageFull {
            HubError::DiskFull { path: self.path.clone(), missing: self.file.size - self.here }
        } else {
            HubError::io(&self.path, "write")(error)
        }
    }

    /// The checksum of what is here.
    fn finished_sum(&mut self) -> Digest {
        std::mem::replace(&mut self.sum, self.file.digest.begin(self.file.size)).finish()
    }

    fn discard(self) -> Result<(), HubError> {
        std::fs::remove_file(&self.path).map_err(HubError::io(&self.path, "remove"))
    }

    /// Gives the finished file its name.
    fn keep(self, blob: &Path) -> Result<(), HubError> {
        self.disk.sync_all().map_err(|error| self.full_or(error))?;
        std::fs::rename(&self.path, blob).map_err(HubError::io(blob, "rename the finished file to"))
    }
}
