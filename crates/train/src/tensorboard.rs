//! TensorBoard event files, written by hand: TFRecord frames around `tensorflow.Event` messages.
//!
//! Frame: length u64, masked CRC-32C of it, payload, masked CRC-32C of the payload (little-endian).
//! Source: tensorflow/core/lib/io/record_writer and tensorflow/core/util/event.proto.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Appends scalars to one event file.
pub struct EventWriter {
    file: BufWriter<File>,
}

impl EventWriter {
    /// A new event file in `folder`; TensorBoard reads all files of a folder as one run. `stamp` is the
    /// time in seconds, and part of the name as TensorBoard expects.
    pub fn create(folder: &Path, stamp: f64) -> io::Result<Self> {
        let mut name = format!("events.out.tfevents.{:010}.mambo", stamp as u64);
        while folder.join(&name).exists() {
            name.push_str(".next");
        }
        let mut writer = Self { file: BufWriter::new(File::create(folder.join(name))?) };
        let mut event = Vec::new();
        double_field(&mut event, 1, stamp);
        bytes_field(&mut event, 3, b"brain.Event:2");
        writer.record(&event)?;
        Ok(writer)
    }

    /// Appends named values at `step`.
    pub fn scalars<'a>(
        &mut self,
        stamp: f64,
        step: u64,
        values: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> io::Result<()> {
        let mut summary = Vec::new();
        for (name, value) in values {
            let mut entry = Vec::new();
            bytes_field(&mut entry, 1, name.as_bytes());
            entry.push(2 << 3 | 5);
            entry.extend_from_slice(&(value as f32).to_le_bytes());
            bytes_field(&mut summary, 1, &entry);
        }
        let mut event = Vec::new();
        double_field(&mut event, 1, stamp);
        event.push(2 << 3);
        varint(&mut event, step);
        bytes_field(&mut event, 5, &summary);
        self.record(&event)?;
        self.file.flush()
    }

    fn record(&mut self, payload: &[u8]) -> io::Result<()> {
        let length = (payload.len() as u64).to_le_bytes();
        self.file.write_all(&length)?;
        self.file.write_all(&masked_crc(&length).to_le_bytes())?;
        self.file.write_all(payload)?;
        self.file.write_all(&masked_crc(payload).to_le_bytes())
    }
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn bytes_field(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn double_field(out: &mut Vec<u8>, field: u8, value: f64) {
    out.push(field << 3 | 1);
    out.extend_from_slice(&value.to_le_bytes());
}

/// CRC-32C (Castagnoli, reflected), rotated and shifted so that a CRC of a CRC is no weak spot.
fn masked_crc(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    (!crc).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_matches_the_published_one() {
        // RFC 3720, B.4: 32 zero bytes have CRC-32C 0x8a9136aa.
        let expected = 0x8a91_36aa_u32.rotate_right(15).wrapping_add(0xa282_ead8);
        assert_eq!(masked_crc(&[0; 32]), expected);
    }

    #[test]
    fn records_are_framed_and_the_scalar_is_inside() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(folder.path(), 12.5).unwrap();
        writer.scalars(13.5, 300, [("train/loss", 0.25)]).unwrap();
        let path = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        let bytes = std::fs::read(path).unwrap();
        let mut payloads = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            let crc = u32::from_le_bytes(bytes[at + 8..at + 12].try_into().unwrap());
            assert_eq!(crc, masked_crc(&bytes[at..at + 8]));
            let payload = &bytes[at + 12..at + 12 + length];
            let crc = u32::from_le_bytes(bytes[at + 12 + length..at + 16 + length].try_into().unwrap());
            assert_eq!(crc, masked_crc(payload));
            payloads.push(payload.to_vec());
            at += 16 + length;
        }
        assert_eq!(payloads.len(), 2);
        assert!(payloads[0].ends_with(b"brain.Event:2"));
        // wall_time 13.5, step 300 = 0xac 0x02, summary { value { tag, simple_value 0.25 } }
        let mut expected = vec![0x09];
        expected.extend_from_slice(&13.5_f64.to_le_bytes());
        expected.extend_from_slice(&[0x10, 0xac, 0x02, 0x2a, 19, 0x0a, 17, 0x0a, 10]);
        expected.extend_from_slice(b"train/loss");
        expected.push(0x15);
        expected.extend_from_slice(&0.25_f32.to_le_bytes());
        assert_eq!(payloads[1], expected);
    }
}
