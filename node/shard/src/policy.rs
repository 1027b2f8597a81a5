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

/// How much of a log stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CutPolicy {
    /// Entries that stay behind the applied index for slow followers.
    pub tail_entries: u64,
    /// Bytes of log in memory above which the tail is given up.
    pub log_bytes_max: usize,
    /// Entries that a cut must at least free.
    pub step_entries: u64,
    /// Nobody is added to a group (but for group 0, whose members never come back under the same id) before its log is cut behind the last
    /// change that took somebody away. A member that was there before would read the log from its beginning, and be a voter again on
    /// the way, without what it had acknowledged.
    pub behind_removals: bool,
}

impl CutPolicy {
    /// What production uses. The simulator cuts far more often.
    pub const PRODUCTION: Self = Self {
        tail_entries: TAIL_ENTRIES,
        log_bytes_max: LOG_BYTES_MAX,
        step_entries: STEP_ENTRIES,
        behind_removals: true,
    };
}

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
pub fn compact_to(policy: CutPolicy, facts: LogFacts) -> Option<Index> {
    let tail = Index(facts.durable.0.saturating_sub(policy.tail_entries));
    let large = facts.bytes > policy.log_bytes_max;
    let target = if large {
        facts.durable
    } else {
        facts.slowest_active.map_or(tail, |slowest| tail.min(slowest))
    };
    let freed = (target.0 + 1).saturating_sub(facts.first.0);
    (freed >= policy.step_entries || (freed > 0 && large)).then_some(target)
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

    fn cut(facts: LogFacts) -> Option<Index> {
        compact_to(CutPolicy::PRODUCTION, facts)
    }

    #[test]
    fn a_tail_stays_for_slow_followers() {
        assert_eq!(cut(FACTS), Some(Index(15_000)));
        assert_eq!(
            cut(LogFacts {
                slowest_active: Some(Index(9_000)),
                ..FACTS
            }),
            Some(Index(9_000))
        );
        assert_eq!(
            cut(LogFacts {
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
        assert_eq!(cut(large), Some(Index(20_000)));
        assert_eq!(
            cut(LogFacts {
                slowest_active: Some(Index(3)),
                ..large
            }),
            Some(Index(20_000))
        );
        assert_eq!(
            cut(LogFacts {
                durable: Index(0),
                ..large
            }),
            None
        );
    }

    #[test]
    fn small_cuts_wait() {
        assert_eq!(
            cut(LogFacts {
                first: Index(14_500),
                ..FACTS
            }),
            None
        );
        assert_eq!(
            cut(LogFacts {
                durable: Index(10),
                ..FACTS
            }),
            None
        );
    }
}
