//! Scores and a SoundFont from Debian, for `mambo data render`: the MIDI pieces inside the WAD
//! archives of `freedoom` and `freedm`, and FluidR3 GM.

use super::package::{extract, local_path, obtain, sha256_of};
use crate::error::DataError;
use crate::progress::{Progress, Report};
use crate::render::LICENCE_FILE;
use std::path::{Path, PathBuf};

/// Package, version the table of music was made with, licence, files.
const SOURCES: &[(&str, &str, &str, &[&str])] = &[
    (
        "freedoom",
        "0.12.1-2",
        "BSD-3-Clause",
        &["usr/share/games/doom/freedoom1.wad", "usr/share/games/doom/freedoom2.wad"],
    ),
    ("freedm", "0.12.1-2", "BSD-3-Clause", &["usr/share/games/doom/freedm.wad"]),
    ("fluid-soundfont-gm", "3.1-5.3", "MIT", &["usr/share/sounds/sf2/FluidR3_GM.sf2"]),
];

/// Where things are after [`fetch_scores`].
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FetchedScores {
    /// Folder to give as `--midi`.
    pub scores: PathBuf,
    /// File to give as `--soundfont`.
    pub sound_font: PathBuf,
}

/// Takes scores and SoundFont out of their packages into `out`, with copyright and licence beside them.
///
/// # Errors
/// A package cannot be had or lacks a file, or the folder cannot be written.
pub fn fetch_scores(out: &Path, debs: Option<&Path>, report: &mut Report<'_>) -> Result<FetchedScores, DataError> {
    std::fs::create_dir_all(out).map_err(DataError::io(out, "create the folder"))?;
    for (done, (package, version, licence, files)) in SOURCES.iter().enumerate() {
        let total = SOURCES.len() as u64;
        report(&Progress { stage: "fetch", item: (*package).to_owned(), done: done as u64, total, seconds_left: None });
        let folder = out.join(package);
        // The licence file is written last, so it marks a finished package.
        let finished = folder.join(LICENCE_FILE).is_file()
            && files.iter().all(|file| sha256_of(&folder.join(local_path(file))).is_ok());
        if finished {
            continue;
        }
        let download = tempfile::Builder::new()
            .prefix(".download-")
            .tempdir_in(out)
            .map_err(DataError::io(out, "create a temporary folder in"))?;
        let deb = obtain(package, version, debs, download.path())?;
        let extraction = extract(&deb, package, files, &folder)?;
        if let Some(missing) = extraction.missing.first() {
            return Err(DataError::format(
                &deb,
                format!("a file {missing}"),
                format!("none in version {}", extraction.version),
            ));
        }
        crate::atomic::write_bytes_atomically(&folder.join(LICENCE_FILE), format!("{licence}\n").as_bytes())?;
    }
    let (package, _, _, files) = SOURCES[SOURCES.len() - 1];
    Ok(FetchedScores { scores: out.to_path_buf(), sound_font: out.join(package).join(local_path(files[0])) })
}
