//! All files below a folder in a fixed order, with what could not be followed.

use crate::error::DataError;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// What a walk met.
#[derive(Debug, Default)]
pub struct Walk {
    /// Regular files, also behind links.
    pub files: Vec<PathBuf>,
    /// Everything else that is no plain folder, with the reason why it is no file.
    pub refused: Vec<(PathBuf, String)>,
    /// Folders entered, including the first.
    pub folders: Vec<PathBuf>,
}

/// Walks `folder` recursively, follows links, enters no folder twice. Names beginning with a dot are
/// left out.
///
/// # Errors
/// `folder` itself cannot be listed.
pub fn files(folder: &Path) -> Result<Walk, DataError> {
    let mut walk = Walk::default();
    let mut entered = HashSet::new();
    let canonical = std::fs::canonicalize(folder).map_err(DataError::io(folder, "open the folder"))?;
    std::fs::read_dir(folder).map_err(DataError::io(folder, "list the folder"))?;
    entered.insert(canonical);
    enter(folder, &mut entered, &mut walk);
    Ok(walk)
}

fn enter(folder: &Path, entered: &mut HashSet<PathBuf>, walk: &mut Walk) {
    walk.folders.push(folder.to_path_buf());
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => {
            walk.refused.push((folder.to_path_buf(), format!("the folder cannot be listed: {error}")));
            return;
        }
    };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    // By bytes: the same everywhere, whatever the system's own order.
    paths.sort_by(|a, b| a.as_os_str().as_encoded_bytes().cmp(b.as_os_str().as_encoded_bytes()));
    for path in paths {
        if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
            continue;
        }
        // Follows links; fails for a dangling link and for links in a circle.
        let kind = match std::fs::metadata(&path) {
            Ok(metadata) => metadata.file_type(),
            Err(error) => {
                let link = std::fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.file_type().is_symlink());
                let reason = if link { format!("a link that leads nowhere: {error}") } else { error.to_string() };
                walk.refused.push((path, reason));
                continue;
            }
        };
        if kind.is_file() {
            walk.files.push(path);
        } else if kind.is_dir() {
            let canonical = std::fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
            if entered.insert(canonical) {
                enter(&path, entered, walk);
            }
        } else {
            // Opening a pipe would wait for a writer for ever.
            walk.refused.push((path, "not a regular file (a pipe, socket or device)".into()));
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn order_is_fixed_loops_end_and_odd_things_have_reasons() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        std::fs::create_dir(at("b")).unwrap();
        for name in ["c", "a", "b/d", ".hidden"] {
            std::fs::write(at(name), "x").unwrap();
        }
        symlink(root.path(), at("b/up")).unwrap();
        symlink(at("gone"), at("dangling")).unwrap();
        symlink(at("loop2"), at("loop1")).unwrap();
        symlink(at("loop1"), at("loop2")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let walk = files(root.path()).unwrap();
        assert_eq!(walk.files, [at("a"), at("b/d"), at("c")]);
        let refused: Vec<&PathBuf> = walk.refused.iter().map(|(path, _)| path).collect();
        assert_eq!(refused, [&at("dangling"), &at("loop1"), &at("loop2"), &at("socket")]);
        assert_eq!(walk.folders, [root.path().to_path_buf(), at("b")]);
        assert!(files(&at("a")).is_err() && files(&at("none")).is_err());
    }
}
