//! What a run costs: wall time against audio time, and memory.

use std::time::{Duration, Instant};

use serde::Serialize;

/// Highest resident memory of this process so far in bytes (`VmHWM`); `None` where the system does not tell.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// Time taken for some seconds of audio.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Speed {
    /// Wall time in seconds.
    pub wall_seconds: f64,
    /// Audio made or read in seconds.
    pub audio_seconds: f64,
}

impl Speed {
    /// Runs `work` and adds its wall time, and the seconds of audio that `measure` says it made.
    pub fn time<T>(&mut self, work: impl FnOnce() -> T, measure: impl FnOnce(&T) -> f64) -> T {
        let start = Instant::now();
        let result = work();
        self.add(start.elapsed(), measure(&result));
        result
    }

    /// Adds a measured piece of work.
    pub fn add(&mut self, wall: Duration, audio_seconds: f64) {
        self.wall_seconds += wall.as_secs_f64();
        self.audio_seconds += audio_seconds;
    }

    /// Seconds of audio per second of wall time; 0 where nothing was timed.
    pub fn times_real_time(&self) -> f64 {
        if self.wall_seconds > 0.0 { self.audio_seconds / self.wall_seconds } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peak_memory_sees_a_large_buffer() {
        let Some(before) = peak_memory() else { return };
        let buffer = vec![1u8; 64 << 20];
        assert!(buffer.iter().step_by(4096).map(|&b| u64::from(b)).sum::<u64>() > 0);
        let after = peak_memory().expect("told before");
        assert!(after >= before && after >= 64 << 20, "{before} {after}");
    }

    #[test]
    fn speed_adds_up() {
        let mut speed = Speed::default();
        assert_eq!(speed.times_real_time(), 0.0);
        speed.add(Duration::from_secs(2), 30.0);
        speed.add(Duration::from_secs(1), 30.0);
        assert_eq!(speed.times_real_time(), 20.0);
    }
}
