//! Music lumps inside the WAD archives of Doom-like games.
//!
//! Layout: `IWAD` or `PWAD`, number of lumps, place of the directory (u32, little-endian); a directory
//! entry is place, size, name of 8 bytes. Music is in lumps called `D_...`.

use crate::error::DataError;
use std::path::Path;

/// A named piece of bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Lump {
    /// e.g. `D_E1M1`.
    pub name: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

fn u32_at(bytes: &[u8], place: usize) -> Option<usize> {
    let four: [u8; 4] = bytes.get(place..place.checked_add(4)?)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(four)).ok()
}

/// Whether the content begins like a WAD archive.
#[must_use]
pub fn is_wad(bytes: &[u8]) -> bool {
    bytes.starts_with(b"IWAD") || bytes.starts_with(b"PWAD")
}

/// The music lumps in the order of the directory.
///
/// # Errors
/// The directory or a music lump reaches beyond the file.
pub fn music_lumps(path: &Path, bytes: &[u8]) -> Result<Vec<Lump>, DataError> {
    let cut = |found: &str| DataError::format(path, "a WAD archive with all lumps inside the file", found);
    let count = u32_at(bytes, 4).ok_or_else(|| cut("a cut header"))?;
    let directory = u32_at(bytes, 8).ok_or_else(|| cut("a cut header"))?;
    let mut lumps = Vec::new();
    for index in 0..count {
        let entry = index.checked_mul(16).and_then(|offset| directory.checked_add(offset));
        let entry =
            entry.and_then(|start| bytes.get(start..start.checked_add(16)?)).ok_or_else(|| cut("a cut directory"))?;
        let name: String = entry[8..].iter().take_while(|&&byte| byte != 0).map(|&byte| char::from(byte)).collect();
        if !name.starts_with("D_") {
            continue;
        }
        let (start, size) = (u32_at(entry, 0).unwrap_or(0), u32_at(entry, 4).unwrap_or(0));
        let content = start.checked_add(size).and_then(|end| bytes.get(start..end));
        let content = content.ok_or_else(|| cut(&format!("lump {name} outside the file")))?;
        lumps.push(Lump { name, bytes: content.to_vec() });
    }
    Ok(lumps)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive() -> Vec<u8> {
        let mut bytes = b"PWAD\x02\0\0\0\x0f\0\0\0abc".to_vec();
        for (start, size, name) in [(12_u32, 3_u32, b"D_X\0\0\0\0\0"), (12, 1, b"OTHER\0\0\0")] {
            bytes.extend(start.to_le_bytes());
            bytes.extend(size.to_le_bytes());
            bytes.extend(name);
        }
        bytes
    }

    #[test]
    fn music_lumps_are_found_and_lies_are_errors() {
        let path = Path::new("x.wad");
        let bytes = archive();
        assert!(is_wad(&bytes));
        assert_eq!(music_lumps(path, &bytes).unwrap(), [Lump { name: "D_X".into(), bytes: b"abc".to_vec() }]);
        for length in 0..bytes.len() {
            assert!(music_lumps(path, &bytes[..length]).is_err());
        }
        let mut lying = archive();
        lying[19] = 0xff;
        assert!(music_lumps(path, &lying).is_err());
    }
}
