//! Sound in memory and in files.
