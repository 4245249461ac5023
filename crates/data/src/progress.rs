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
        (self.finished_work > 0.0)
            .then(|| self.started.elapsed().as_secs_f64() / self.finished_work * remaining)
    }
}
