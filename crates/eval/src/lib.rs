//! Judging: distances, structure, text agreement, report.
