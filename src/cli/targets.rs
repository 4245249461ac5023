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

/// Refuses what exists, unless it may be overwritten.
pub fn refuse_taken<'a>(targets: impl IntoIterator<Item = &'a PathBuf>, force: bool) -> Result<()> {
    match targets.into_iter().find(|target| target.symlink_metadata().is_ok() && !force) {
        Some(taken) => bail!("{} exists; choose another name or overwrite it with --force", taken.display()),
        None => Ok(()),
    }
}
