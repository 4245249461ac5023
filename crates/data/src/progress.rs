//! What a long job tells the person who waits for it.

/// One report of a running job.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// What is being done, e.g. "fetch" or "prepare".
    pub stage: &'static str,
    /// The thing in hand: a package, a file, a track.
    pub item: String,
    /// Finished units.
    pub done: u64,
    /// All units.
    pub total: u64,
    /// Estimated seconds to the end, once there is something to estimate from.
    pub seconds_left: Option<f64>,
}

/// Receives [`Progress`]; called from the thread that started the job.
pub type Report<'a> = dyn FnMut(&Progress) + 'a;

/// Estimates the time left from the work done since the start of this process.
#[derive(Debug)]
pub struct Clock {
    started: std::time::Instant,
    finished_work: f64,
}

impl Clock {
    /// Starts counting now.
    #[must_use]
    pub fn start() -> Self {
        Self { started: std::time::Instant::now(), finished_work: 0.0 }
    }

    /// Adds `work` (in any unit) that this process really did; skipped work is not added, since it
    /// says nothing about speed.
    pub fn add(&mut self, work: f64) {
        self.finished_work += work;
    }

    /// Seconds that `remaining` work will take at the speed so far.
    #[must_use]
    pub fn seconds_left(&self, remaining: f64) -> Option<f64> {
        (self.finished_work > 0.0).then(|| self.started.elapsed().as_secs_f64() / self.finished_work * remaining)
    }
}

impl std::fmt::Display for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{} {}", self.stage, self.done, self.total, self.item)?;
        match self.seconds_left {
            Some(seconds) if seconds >= 5400.0 => write!(f, ", {:.1} h left", seconds / 3600.0),
            Some(seconds) if seconds >= 90.0 => write!(f, ", {:.0} min left", seconds / 60.0),
            Some(seconds) => write!(f, ", {seconds:.0} s left"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_is_readable() {
        let progress =
            |seconds_left| Progress { stage: "fetch", item: "x".into(), done: 1, total: 4, seconds_left }.to_string();
        assert_eq!(progress(None), "fetch 1/4 x");
        assert_eq!(progress(Some(30.0)), "fetch 1/4 x, 30 s left");
        assert_eq!(progress(Some(600.0)), "fetch 1/4 x, 10 min left");
        assert_eq!(progress(Some(7200.0)), "fetch 1/4 x, 2.0 h left");
    }

    #[test]
    fn skipped_work_does_not_count() {
        let mut clock = Clock::start();
        assert_eq!(clock.seconds_left(5.0), None);
        clock.add(1.0);
        assert!(clock.seconds_left(5.0).unwrap() >= 0.0);
    }
}
