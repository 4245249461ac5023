//! Sound as bytes for a page: 16-bit WAV.

const HEADER_BYTES: u32 = 36;

/// MIME type and bytes of mono samples at `rate` Hz; values beyond full scale are clipped.
pub(super) fn encode_sound(samples: &[f32], rate: u32) -> (&'static str, Vec<u8>) {
    let data_bytes = 2 * samples.len() as u32;
    let mut bytes = Vec::with_capacity((HEADER_BYTES + 8 + data_bytes) as usize);
    bytes.extend(b"RIFF");
    bytes.extend((HEADER_BYTES + data_bytes).to_le_bytes());
    bytes.extend(b"WAVEfmt ");
    bytes.extend(16u32.to_le_bytes());
    // PCM, one channel.
    bytes.extend([1, 0, 1, 0]);
    bytes.extend(rate.to_le_bytes());
    bytes.extend((2 * rate).to_le_bytes());
    // Bytes a frame, bits a sample.
    bytes.extend([2, 0, 16, 0]);
    bytes.extend(b"data");
    bytes.extend(data_bytes.to_le_bytes());
    for sample in samples {
        bytes.extend(((sample.clamp(-1.0, 1.0) * 32_767.0).round() as i16).to_le_bytes());
    }
    ("audio/wav", bytes)
}
