//! When a node that ended is started again. Pure; time is handed in.

use std::time::Duration;

/// The first restart comes at once, so that a killed node is missed for as short as can be.
const FIRST: Duration = Duration::from_millis(100);
/// A node that cannot start (its port is taken, its disk is full) is tried no more often than this.
const LONGEST: Duration = Duration::from_secs(10);
/// A node that ran this long was well; the next crash counts as the first.
const FORGIVEN_AFTER: Duration = Duration::from_secs(30);

/// How often in a row a node ended soon after its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Restarts {
    failures: u32,
}

impl Restarts {
    /// A process ended after running `ran`: how long to wait before the next.
    pub(crate) fn ended(&mut self, ran: Duration) -> Duration {
        self.failures = if ran >= FORGIVEN_AFTER {
            1
        } else {
            self.failures.saturating_add(1)
        };
        let doublings = (self.failures - 1).min(16);
        FIRST.saturating_mul(1 << doublings).min(LONGEST)
    }

    /// Whether it ends again and again, rather than having been killed once.
    pub(crate) fn looping(self) -> bool {
        self.failures >= 3
    }

    /// How many times in a row it ended.
    pub(crate) fn failures(self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_its_bound_and_is_forgiven_by_a_long_run() {
        let mut restarts = Restarts::default();
        let waits: Vec<u128> = (0..9)
            .map(|_| restarts.ended(Duration::from_millis(5)).as_millis())
            .collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert!(restarts.looping());
        assert_eq!(restarts.ended(FORGIVEN_AFTER), FIRST);
        assert!(!restarts.looping());
    }

    #[test]
    fn any_number_of_crashes_is_survived() {
        let mut restarts = Restarts { failures: u32::MAX };
        assert_eq!(restarts.ended(Duration::ZERO), LONGEST);
    }
}
