//! A repository, or what Mambo needs of it, becomes a folder on this machine.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::cache::{Cache, create_parent};
use crate::choice::{Choice, check_parts};
use crate::client::Client;
use crate::download::bring;
use crate::error::HubError;
use crate::listing::Listed;
use crate::name::{Repository, stays_inside};
use crate::settings::Settings;

/// What to bring.
#[derive(Debug, Clone)]
pub struct Request {
    /// Repository.
    pub repository: Repository,
    /// Branch, tag or commit.
    pub revision: String,
    /// Patterns of files beside those that Mambo needs.
    pub include: Vec<String>,
    /// Also copy the files to this folder.
    pub output: Option<PathBuf>,
    /// Overwrite files of that folder that have other content.
    pub force: bool,
}

/// How far a pull is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// File in hand.
    pub file: &'a str,
    /// Bytes that are here, of all files.
    pub here: u64,
    /// Those of them that came over the network in this run.
    pub came: u64,
    /// Bytes of all files.
    pub total: u64,
}

/// A repository on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pulled {
    /// Repository.
    pub repository: Repository,
    /// Branch, tag or commit as asked for.
    pub revision: String,
    /// Commit that this was.
    pub commit: String,
    /// Folder with the files.
    pub folder: PathBuf,
    /// The files.
    pub files: Vec<Listed>,
    /// Bytes that came over the network.
    pub downloaded: u64,
}

/// Brings a repository into the cache, and to the output folder if one is given. Files that are here are not asked for
/// again. A snapshot appears when all its files are here and checked.
///
/// # Errors
/// A name, the network, the server's answer, a checksum or the disk is at fault; see [`HubError`]. What was downloaded
/// of a file is kept for the next time, unless its checksum is wrong.
pub fn pull(settings: &Settings, request: &Request, report: &mut dyn FnMut(Progress<'_>)) -> Result<Pulled, HubError> {
    let Request { repository, revision, .. } = request;
    if !stays_inside(revision) {
        return Err(HubError::RevisionName { revision: revision.clone() });
    }
    let choice = Choice::new(&request.include)?;
    let cache = Cache::new(&settings.cache);
    let mut downloaded = 0;
    let (commit, files) = if settings.offline {
        let cached = cache.snapshot(repository, revision);
        let (commit, snapshot) = cached.ok_or_else(|| HubError::NotCached {
            repository: repository.to_string(),
            revision: revision.clone(),
            cache: settings.cache.clone(),
        })?;
        let listing = cache.list(&commit, &snapshot)?;
        let files = choice.of(listing.files, repository)?;
        check_output(request, &files)?;
        check_parts(&files, |file| snapshot.join(&file.path))?;
        (commit, files)
    } else {
        let client = Client::new(settings, repository, revision)?;
        let listing = client.listing()?;
        let files = choice.of(listing.files, repository)?;
        check_output(request, &files)?;
        downloaded = bring_all(&client, &cache, repository, &listing.commit, &files, report)?;
        check_parts(&files, |file| cache.blob(repository, &file.digest))?;
        for file in &files {
            cache.link(repository, &listing.commit, file)?;
        }
        cache.remember(repository, revision, &listing.commit)?;
        (listing.commit, files)
    };
    let snapshot = cache.snapshot_folder(repository, &commit);
    if let Some(folder) = &request.output {
        for file in &files {
            copy(&snapshot.join(&file.path), &folder.join(&file.path), file, request.force)?;
        }
    }
    Ok(Pulled {
        repository: repository.clone(),
        revision: revision.clone(),
        commit,
        folder: request.output.clone().unwrap_or(snapshot),
        files,
        downloaded,
    })
}

fn bring_all(
    client: &Client<'_>,
    cache: &Cache,
    repository: &Repository,
    commit: &str,
    files: &[Listed],
    report: &mut dyn FnMut(Progress<'_>),
) -> Result<u64, HubError> {
    let total = files.iter().fold(0u64, |sum, file| sum.saturating_add(file.size));
    let (mut finished, mut came) = (0u64, 0);
    for file in files {
        let mut first = None;
        let mut tell = |of_file: u64| {
            let began = *first.get_or_insert(of_file);
            let came = came + of_file.saturating_sub(began);
            report(Progress { file: &file.path, here: finished.saturating_add(of_file), came, total });
        };
        came += bring(client, cache, repository, commit, file, &mut tell)?;
        finished = finished.saturating_add(file.size);
        tracing::debug!("{}: {} bytes, {}", file.path, file.size, file.digest);
    }
    Ok(came)
}

/// Says what is in the way before anything is downloaded.
fn check_output(request: &Request, files: &[Listed]) -> Result<(), HubError> {
    let Some(folder) = &request.output else { return Ok(()) };
    for file in files {
        let path = folder.join(&file.path);
        if !request.force && path.exists() && !holds(&path, file)? {
            return Err(HubError::Exists { path });
        }
    }
    Ok(())
}

/// True if the file has this content already.
fn holds(path: &Path, file: &Listed) -> Result<bool, HubError> {
    let facts = std::fs::metadata(path).map_err(HubError::io(path, "read"))?;
    if !facts.is_file() || facts.len() != file.size {
        return Ok(false);
    }
    let read = || file.digest.of(file.size, &mut File::open(path)?);
    Ok(read().map_err(HubError::io(path, "read"))? == file.digest)
}

/// Copies a file of the cache; never a link to it, so that whoever edits the copy spares the cache.
fn copy(from: &Path, to: &Path, file: &Listed, force: bool) -> Result<(), HubError> {
    if to.exists() && holds(to, file)? {
        return Ok(());
    }
    create_parent(to)?;
    let folder = to.parent().unwrap_or(to);
    let beside = tempfile::Builder::new()
        .prefix(".partial-")
        .tempfile_in(folder)
        .map_err(HubError::io(folder, "create a temporary file in"))?;
    let filled = std::fs::copy(from, beside.path()).and_then(|_| beside.as_file().sync_all());
    filled.map_err(|error| match error.kind() {
        std::io::ErrorKind::StorageFull => HubError::DiskFull { path: to.to_owned(), missing: file.size },
        _ => HubError::io(to, "write")(error),
    })?;
    let named = if force { beside.persist(to) } else { beside.persist_noclobber(to) };
    named.map(|_| ()).map_err(|error| HubError::io(to, "rename the finished file to")(error.error))
}
