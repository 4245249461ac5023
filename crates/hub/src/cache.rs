//! The folders of the cache, as the hub's Python tools have them.
//!
//! `models--ORG--NAME/blobs/CHECKSUM` holds content, `snapshots/COMMIT/...` links to it under the names of the
//! repository, `refs/REVISION` says which commit a branch or tag was at. `.locks` keeps two programs from bringing the
//! same file.

use std::fs::{DirEntry, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::error::HubError;
use crate::listing::{Listed, Listing};
use crate::name::{Repository, is_commit, stays_inside};

/// The cache at a folder, which need not exist yet.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The cache in `root`; nothing is written.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    fn folder(&self, repository: &Repository) -> PathBuf {
        self.root.join(repository.folder_name())
    }

    /// Where the content with a checksum is, or will be.
    pub(crate) fn blob(&self, repository: &Repository, digest: &Digest) -> PathBuf {
        self.folder(repository).join("blobs").join(digest.digits())
    }

    /// The file that is locked while that content is brought.
    pub(crate) fn lock(&self, repository: &Repository, digest: &Digest) -> PathBuf {
        self.root.join(".locks").join(repository.folder_name()).join(format!("{}.lock", digest.digits()))
    }

    /// The folder of a commit.
    pub(crate) fn snapshot_folder(&self, repository: &Repository, commit: &str) -> PathBuf {
        self.folder(repository).join("snapshots").join(commit)
    }

    /// The commit and folder of a revision that was brought here before.
    pub fn snapshot(&self, repository: &Repository, revision: &str) -> Option<(String, PathBuf)> {
        let commit = if is_commit(revision) {
            revision.to_owned()
        } else {
            let reference = stays_inside(revision).then(|| self.folder(repository).join("refs").join(revision))?;
            std::fs::read_to_string(reference).ok()?.trim().to_owned()
        };
        let folder = self.snapshot_folder(repository, &commit);
        (is_commit(&commit) && folder.is_dir()).then_some((commit, folder))
    }

    /// What a snapshot holds, read from its files: there is no listing without a network.
    pub(crate) fn list(&self, commit: &str, snapshot: &Path) -> Result<Listing, HubError> {
        let mut files = Vec::new();
        gather(snapshot, "", &mut files)?;
        Ok(Listing { commit: commit.to_owned(), files })
    }

    /// Gives the file its name in the snapshot.
    pub(crate) fn link(&self, repository: &Repository, commit: &str, file: &Listed) -> Result<(), HubError> {
        let path = self.snapshot_folder(repository, commit).join(&file.path);
        let up = "../".repeat(file.path.split('/').count() + 1);
        let target = PathBuf::from(format!("{up}blobs/{}", file.digest.digits()));
        if std::fs::read_link(&path).is_ok_and(|there| there == target) {
            return Ok(());
        }
        create_parent(&path)?;
        let beside = self.beside(repository);
        // One of a killed process with the same number.
        let _ = std::fs::remove_file(&beside);
        if symbolic_link(&target, &beside).is_err() {
            // File systems without links get the content once more.
            let blob = self.blob(repository, &file.digest);
            std::fs::copy(&blob, &beside).map_err(HubError::io(&beside, "copy to"))?;
        }
        std::fs::rename(&beside, &path).map_err(HubError::io(&path, "rename the finished file to"))
    }

    /// Notes which commit a branch or tag was at.
    pub(crate) fn remember(&self, repository: &Repository, revision: &str, commit: &str) -> Result<(), HubError> {
        if is_commit(revision) {
            return Ok(());
        }
        let path = self.folder(repository).join("refs").join(revision);
        create_parent(&path)?;
        let beside = self.beside(repository);
        let write = || {
            let mut file = File::create(&beside)?;
            file.write_all(commit.as_bytes())?;
            file.sync_all()
        };
        write().map_err(HubError::io(&beside, "write"))?;
        std::fs::rename(&beside, &path).map_err(HubError::io(&path, "rename the finished file to"))
    }

    /// A name for something unfinished. Not in `refs` or `snapshots`, where all files count.
    fn beside(&self, repository: &Repository) -> PathBuf {
        self.folder(repository).join(format!(".partial-{}", std::process::id()))
    }
}

/// Makes the folder that a file is in.
pub(crate) fn create_parent(path: &Path) -> Result<(), HubError> {
    let folder = path.parent().unwrap_or(path);
    std::fs::create_dir_all(folder).map_err(HubError::io(folder, "create the folder"))
}

/// All files below a folder, in the order of their names.
fn gather(folder: &Path, prefix: &str, files: &mut Vec<Listed>) -> Result<(), HubError> {
    let entries = std::fs::read_dir(folder).and_then(Iterator::collect);
    let mut entries: Vec<DirEntry> = entries.map_err(HubError::io(folder, "list"))?;
    entries.sort_by_key(DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let facts = std::fs::metadata(&path).map_err(HubError::io(&path, "read what the link points to"))?;
        if facts.is_dir() {
            gather(&path, &format!("{name}/"), files)?;
        } else {
            files.push(Listed { path: name, size: facts.len(), digest: digest_of(&path, facts.len())? });
        }
    }
    Ok(())
}

/// Content is named by its checksum; where there are no links, it is computed.
fn digest_of(path: &Path, size: u64) -> Result<Digest, HubError> {
    let target = std::fs::read_link(path).ok();
    let named =
        target.as_deref().and_then(Path::file_name).and_then(|name| Digest::from_digits(&name.to_string_lossy()));
    if let Some(digest) = named {
        return Ok(digest);
    }
    let read = || Digest::Sha256(String::new()).of(size, &mut File::open(path)?);
    read().map_err(HubError::io(path, "read"))
}

#[cfg(unix)]
fn symbolic_link(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symbolic_link(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(not(any(unix, windows)))]
fn symbolic_link(_target: &Path, _link: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}
