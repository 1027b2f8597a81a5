//! The only place of the node that turns clocks into the core's time.

use althing_raft::ids::Now;
use std::time::{Duration, Instant, SystemTime};

/// Monotonic time since the process started, and the wall clock of that moment for traces.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
    started_at: SystemTime,
}

#[expect(clippy::disallowed_methods, reason = "the shell's clock")]
impl Clock {
    /// Starts it.
    #[must_use]
    pub fn start() -> Self {
        Self {
            started: Instant::now(),
            started_at: SystemTime::now(),
        }
    }

    /// Now, for the core.
    #[must_use]
    pub fn now(&self) -> Now {
        Now::default().after(self.started.elapsed())
    }

    /// Now, for measuring.
    #[must_use]
    pub fn instant(&self) -> Instant {
        Instant::now()
    }

    /// The moment that the core means.
    #[must_use]
    pub fn instant_of(&self, now: Now) -> Instant {
        self.started + Duration::from_nanos(now.0)
    }

    /// The wall clock at a moment of this process, good enough for traces.
    #[must_use]
    pub fn wall_of(&self, moment: Instant) -> SystemTime {
        self.started_at + moment.saturating_duration_since(self.started)
    }

    /// Time since the start.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }
}
