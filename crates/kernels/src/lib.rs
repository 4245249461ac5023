//! Fast CPU operations on slices, each beside its plain version.
