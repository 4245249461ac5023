//! Whole files or none: written under a temporary name in the same folder, synced, renamed.

use crate::error::DataError;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Writes `path` through `fill`; on any error or a kill the old file (or none) stays.
///
/// # Errors
/// The folder cannot be created, or writing, syncing or renaming fails, or `fill` does.
pub fn write_atomically(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(folder).map_err(DataError::io(folder, "create the folder"))?;
    let temporary = tempfile::Builder::new()
        .prefix(".partial-")
        .tempfile_in(folder)
        .map_err(DataError::io(folder, "create a temporary file"))?;
    let (file, name) = temporary.into_parts();
    let mut writer = BufWriter::with_capacity(1 << 16, file);
    fill(&mut writer)?;
    writer.flush().map_err(DataError::io(path, "write"))?;
    let file = writer.into_inner().map_err(|error| DataError::io(path, "write")(error.into_error()))?;
    make_world_readable(&file).map_err(DataError::io(path, "set the permissions of"))?;
    file.sync_all().map_err(DataError::io(path, "sync"))?;
    name.persist(path).map_err(|error| DataError::io(path, "rename the finished file to")(error.error))?;
    Ok(())
}

/// Temporary files are private by default; a corpus file is an ordinary one.
#[cfg(unix)]
fn make_world_readable(file: &File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn make_world_readable(_file: &File) -> std::io::Result<()> {
    Ok(())
}

/// Same as [`write_atomically`] for bytes already in memory.
///
/// # Errors
/// As [`write_atomically`].
pub fn write_bytes_atomically(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    write_atomically(path, |writer| writer.write_all(bytes).map_err(DataError::io(path, "write")))
}
