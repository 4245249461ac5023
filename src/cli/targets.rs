//! Where results go: rules that every verb with `-o` keeps.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Whether `-o` names a folder: one that is there, or a name that ends like one.
pub fn is_folder(output: &Path) -> bool {
    output.is_dir() || output.as_os_str().to_string_lossy().ends_with(['/', '\\'])
}

/// Makes the folder that `-o` names.
pub fn make_folder(output: &Path) -> Result<()> {
    std::fs::create_dir_all(output).with_context(|| format!("-o {}: cannot make the folder", output.display()))
}

/// Refuses what exists, unless it may be overwritten. Folders without content and what is no file, a device or a pipe, are free.
pub fn refuse_taken<'a>(targets: impl IntoIterator<Item = &'a PathBuf>, force: bool) -> Result<()> {
    match targets.into_iter().find(|target| !force && is_taken(target)) {
        Some(taken) => bail!("{} exists; choose another name or overwrite it with --force", taken.display()),
        None => Ok(()),
    }
}

fn is_taken(target: &Path) -> bool {
    match target.metadata() {
        Ok(there) if there.is_dir() => target.read_dir().map_or(true, |mut content| content.next().is_some()),
        Ok(there) => there.is_file(),
        // A link that leads nowhere.
        Err(_) => target.symlink_metadata().is_ok(),
    }
}
