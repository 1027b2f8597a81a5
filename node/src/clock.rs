//! The only place of the node that turns clocks into the core's time.
//!
//! The core's time is `CLOCK_BOOTTIME`: monotonic, and it goes on while the machine is suspended. Read leases depend on that: a
//! clock that stands still during a suspend would let a woken member believe in leases that have long run out (pitfall P22).
//! What a clock inside a virtual machine does while the whole machine is frozen is beyond any clock of this kind; the bound on
//! drift does not cover it.

use althing_raft::ids::Now;
use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant, SystemTime};

/// Time since the process started, and the wall clock of that moment for traces.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Of `CLOCK_BOOTTIME`.
    booted: Duration,
    started: Instant,
    started_at: SystemTime,
}

/// Time since the machine booted, suspends included.
fn boottime() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).expect("invariant: time since boot is not negative");
    let nanos = u32::try_from(time.tv_nsec).expect("invariant: below a second");
    Duration::new(seconds, nanos)
}

#[expect(clippy::disallowed_methods, reason = "the shell's clock")]
impl Clock {
    /// Starts it.
    #[must_use]
    pub fn start() -> Self {
        Self {
            booted: boottime(),
            started: Instant::now(),
            started_at: SystemTime::now(),
        }
    }

    /// Now, for the core.
    #[must_use]
    pub fn now(&self) -> Now {
        Now::default().after(boottime().saturating_sub(self.booted))
    }

    /// Now, for measuring.
    #[must_use]
    pub fn instant(&self) -> Instant {
        Instant::now()
    }

    /// When to wake for a moment of the core, as the measuring clock will show it. The two differ by suspends only.
    #[must_use]
    pub fn instant_of(&self, now: Now) -> Instant {
        let left = Duration::from_nanos(now.0.saturating_sub(self.now().0));
        Instant::now() + left
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
