//! When the log of a group is cut.
//!
//! The log in memory serves slow followers: whoever needs an entry that is gone gets a whole snapshot instead. So a tail stays,
//! as long as it is not too large; and nothing goes that a restart of this member would need.

use althing_raft::ids::Index;

/// Entries that stay behind the applied index for slow followers (etcd's `SnapshotCatchUpEntries` has the same value).
pub const TAIL_ENTRIES: u64 = 5_000;
/// Bytes of log in memory above which the tail is given up: a snapshot is then cheaper than the memory.
pub const LOG_BYTES_MAX: usize = 64 << 20;
/// Entries that a cut must at least free, so that cuts are rare.
pub const STEP_ENTRIES: u64 = 1_000;

/// What the decision needs to know of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogFacts {
    /// First index in the log.
    pub first: Index,
    /// Bytes of the log in memory.
    pub bytes: usize,
    /// What the state machine holds durably.
    pub durable: Index,
    /// Least match index of the followers that answer; the leader's own view, `None` elsewhere.
    pub slowest_active: Option<Index>,
}

/// The last index that should leave the log now, if any.
#[must_use]
pub fn compact_to(facts: LogFacts) -> Option<Index> {
    let tail = Index(facts.durable.0.saturating_sub(TAIL_ENTRIES));
    let target = if facts.bytes > LOG_BYTES_MAX {
        facts.durable
    } else {
        facts.slowest_active.map_or(tail, |slowest| tail.min(slowest))
    };
    let freed = (target.0 + 1).saturating_sub(facts.first.0);
    (freed >= STEP_ENTRIES || (freed > 0 && facts.bytes > LOG_BYTES_MAX)).then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: LogFacts = LogFacts {
        first: Index(1),
        bytes: 1 << 20,
        durable: Index(20_000),
        slowest_active: None,
    };

    #[test]
    fn a_tail_stays_for_slow_followers() {
        assert_eq!(compact_to(FACTS), Some(Index(15_000)));
        assert_eq!(
            compact_to(LogFacts {
                slowest_active: Some(Index(9_000)),
                ..FACTS
            }),
            Some(Index(9_000))
        );
        assert_eq!(
            compact_to(LogFacts {
                slowest_active: Some(Index(19_000)),
                ..FACTS
            }),
            Some(Index(15_000))
        );
    }

    #[test]
    fn a_large_log_gives_up_its_tail_but_nothing_that_a_restart_needs() {
        let large = LogFacts {
            bytes: LOG_BYTES_MAX + 1,
            ..FACTS
        };
        assert_eq!(compact_to(large), Some(Index(20_000)));
        assert_eq!(
            compact_to(LogFacts {
                slowest_active: Some(Index(3)),
                ..large
            }),
            Some(Index(20_000))
        );
        assert_eq!(
            compact_to(LogFacts {
                durable: Index(0),
                ..large
            }),
            None
        );
    }

    #[test]
    fn small_cuts_wait() {
        assert_eq!(
            compact_to(LogFacts {
                first: Index(14_500),
                ..FACTS
            }),
            None
        );
        assert_eq!(
            compact_to(LogFacts {
                durable: Index(10),
                ..FACTS
            }),
            None
        );
    }
}
