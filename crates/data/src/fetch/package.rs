//! One Debian package: getting its file, and taking a few files out of it without installing anything.

use crate::error::DataError;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const ADVICE: &str = "fetching needs a Debian or Ubuntu system (apt-get and dpkg-deb); elsewhere run it in a \
                      debian:bookworm container, or add a folder of your own music with `mambo data add DIR`";

/// What was taken out of a package.
#[derive(Debug, Default)]
pub(super) struct Extraction {
    /// SHA-256 of each file written, by its table path.
    pub hashes: BTreeMap<String, String>,
    /// Wanted files that the package does not have.
    pub missing: Vec<String>,
    /// Version of the package file.
    pub version: String,
}

fn run(program: &'static str, command: &mut Command, subject: &str) -> Result<String, DataError> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| missing_or(program, subject, error))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(DataError::ProgramFailed { program, subject: subject.to_owned(), message: last_line(&output.stderr) })
}

fn last_line(standard_error: &[u8]) -> String {
    let text = String::from_utf8_lossy(standard_error);
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message").trim().to_owned()
}

fn missing_or(program: &'static str, subject: &str, error: std::io::Error) -> DataError {
    if error.kind() == std::io::ErrorKind::NotFound {
        DataError::ProgramMissing { program, advice: ADVICE }
    } else {
        DataError::ProgramFailed { program, subject: subject.to_owned(), message: error.to_string() }
    }
}

/// The package's file in a folder of package files, if there is one.
fn find_in(folder: &Path, package: &str) -> Result<Option<PathBuf>, DataError> {
    let prefix = format!("{package}_");
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .map_err(DataError::io(folder, "list the package folder"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            name.starts_with(&prefix) && name.ends_with(".deb")
        })
        .collect();
    found.sort();
    Ok(found.pop())
}

/// The package's file: from `debs` if it is there, else downloaded by apt into `download_folder`.
pub(super) fn obtain(
    package: &str,
    version: &str,
    debs: Option<&Path>,
    download_folder: &Path,
) -> Result<PathBuf, DataError> {
    if let Some(folder) = debs
        && let Some(path) = find_in(folder, package)?
    {
        return Ok(path);
    }
    let download = |name: &str| {
        run("apt-get", Command::new("apt-get").args(["download", name]).current_dir(download_folder), name)
    };
    // The exact version first; the archive may have moved on.
    match download(&format!("{package}={version}")) {
        Ok(_) => {}
        Err(DataError::ProgramFailed { .. }) => {
            download(package)?;
        }
        Err(other) => return Err(other),
    }
    find_in(download_folder, package)?.ok_or_else(|| DataError::ProgramFailed {
        program: "apt-get",
        subject: package.to_owned(),
        message: "it reported success but left no .deb file".into(),
    })
}

/// Where a table path is kept under the package's own folder: zip members in a folder named like the zip.
pub(super) fn local_path(table_path: &str) -> PathBuf {
    table_path.split(['/', '!']).filter(|part| !part.is_empty() && *part != "." && *part != "..").collect()
}

/// Copies a stream to `target` (whole or not at all) and returns its SHA-256.
fn copy_hashed(source: &mut dyn Read, target: &Path) -> Result<String, DataError> {
    let mut hasher = Sha256::new();
    crate::atomic::write_atomically(target, |writer| {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let count = source.read(&mut buffer).map_err(DataError::io(target, "extract"))?;
            if count == 0 {
                return Ok(());
            }
            hasher.update(&buffer[..count]);
            writer.write_all(&buffer[..count]).map_err(DataError::io(target, "write"))?;
        }
    })?;
    Ok(hexadecimal(&hasher.finalize()))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of a file, hexadecimal.
///
/// # Errors
/// The file cannot be read.
pub(crate) fn sha256_of(path: &Path) -> Result<String, DataError> {
    let mut file = std::fs::File::open(path).map_err(DataError::io(path, "open"))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = file.read(&mut buffer).map_err(DataError::io(path, "read"))?;
        if count == 0 {
            return Ok(hexadecimal(&hasher.finalize()));
        }
        hasher.update(&buffer[..count]);
    }
}

/// SHA-256 of text, hexadecimal.
pub(crate) fn sha256_of_text(text: &str) -> String {
    hexadecimal(&Sha256::digest(text.as_bytes()))
}

/// Takes the wanted files (table paths) and the copyright file out of a package file.
pub(super) fn extract(deb: &Path, package: &str, wanted: &[&str], folder: &Path) -> Result<Extraction, DataError> {
    let version = run("dpkg-deb", Command::new("dpkg-deb").arg("-f").arg(deb).arg("Version"), package)?;
    let mut plain: BTreeSet<&str> = BTreeSet::new();
    let mut zipped: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for path in wanted {
        match path.split_once('!') {
            Some((archive, _)) => zipped.entry(archive).or_default().push(path),
            None => {
                plain.insert(path);
            }
        }
    }
    let copyright = format!("usr/share/doc/{package}/copyright");
    let mut extraction = Extraction { version: version.trim().to_owned(), ..Extraction::default() };

    let mut child = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| missing_or("dpkg-deb", package, error))?;
    let stream = child.stdout.take();
    let walked: Result<(), DataError> = stream.map_or(Ok(()), |stream| {
        let mut archive = tar::Archive::new(std::io::BufReader::with_capacity(1 << 18, stream));
        for entry in archive.entries().map_err(DataError::io(deb, "read"))? {
            let mut entry = entry.map_err(DataError::io(deb, "read"))?;
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let name = name.trim_start_matches("./");
            if name == copyright {
                copy_hashed(&mut entry, &folder.join("copyright"))?;
            } else if plain.contains(name) {
                let hash = copy_hashed(&mut entry, &folder.join(local_path(name)))?;
                extraction.hashes.insert(name.to_owned(), hash);
            } else if let Some(members) = zipped.get(name) {
                extract_members(&mut entry, members, folder, &mut extraction)?;
            }
        }
        Ok(())
    });
    if walked.is_err() {
        // The reader went away; without this the child would wait for it.
        let _ = child.kill();
    }
    let output = child.wait_with_output().map_err(|error| missing_or("dpkg-deb", package, error))?;
    walked?;
    if !output.status.success() {
        let message = last_line(&output.stderr);
        return Err(DataError::ProgramFailed { program: "dpkg-deb", subject: deb.display().to_string(), message });
    }
    extraction.missing =
        wanted.iter().filter(|path| !extraction.hashes.contains_key(**path)).map(|path| (*path).to_owned()).collect();
    Ok(extraction)
}

/// Zip archives need seeking, so the archive is unpacked to a temporary file first.
fn extract_members(
    archive: &mut dyn Read,
    members: &[&str],
    folder: &Path,
    extraction: &mut Extraction,
) -> Result<(), DataError> {
    std::fs::create_dir_all(folder).map_err(DataError::io(folder, "create the folder"))?;
    let mut temporary = tempfile::tempfile_in(folder).map_err(DataError::io(folder, "create a temporary file in"))?;
    std::io::copy(archive, &mut temporary).map_err(DataError::io(folder, "unpack an archive into"))?;
    let as_io = |error: zip::result::ZipError| DataError::io(folder, "read a zip archive for")(error.into());
    let mut zip = zip::ZipArchive::new(std::io::BufReader::new(temporary)).map_err(as_io)?;
    for member in members {
        let Some((_, inner)) = member.split_once('!') else { continue };
        match zip.by_name(inner) {
            Ok(mut file) => {
                let hash = copy_hashed(&mut file, &folder.join(local_path(member)))?;
                extraction.hashes.insert((*member).to_owned(), hash);
            }
            Err(zip::result::ZipError::FileNotFound) => {}
            Err(error) => return Err(as_io(error)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_paths_stay_inside_the_folder() {
        assert_eq!(local_path("usr/a.pk3!music/b.ogg"), PathBuf::from("usr/a.pk3/music/b.ogg"));
        assert_eq!(local_path("/../../etc/x"), PathBuf::from("etc/x"));
    }
}
