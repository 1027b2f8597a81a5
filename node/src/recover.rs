//! What a boot found on the disk, and what may be started from it. Pure.

use crate::lifecycle::first_write;
use althing_raft::entry::SnapshotMeta;
use althing_raft::ids::{GroupId, LogPosition};
use althing_raft::io::Start;
use althing_store::CHILD_BIRTH;
use althing_wal::{GroupWrite, RecoveredGroup};

/// What a group can start from: a log and a state that fit together.
#[derive(Clone, Debug)]
pub struct Found {
    /// For the core.
    pub start: Start,
    /// To be written before the group starts: the state is a snapshot that the log does not know of yet.
    pub repair: Option<GroupWrite>,
    /// The state is of a replica that has left: it is to be cleared.
    pub stale_state: bool,
}

/// Why log and state cannot be started from.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecoverError {
    /// The log is gone although the state says that there was one.
    #[error(
        "the state of shard {group} has applied {applied} entries and the log knows nothing of the shard. A member that forgets its votes \
         could break its cluster: remove it from the cluster and start it with an empty volume"
    )]
    LogLost {
        /// The group.
        group: GroupId,
        /// What was applied.
        applied: u64,
    },
    /// The state is gone and the log does not reach back to the beginning.
    #[error(
        "the state of shard {group} stands at entry {applied} and the log begins after {log_start}: the state was lost and cannot be rebuilt here. \
         Remove this member from the cluster and start it with an empty volume; it will get everything from the leader"
    )]
    StateLost {
        /// The group.
        group: GroupId,
        /// What the state has.
        applied: u64,
        /// Where the log begins.
        log_start: u64,
    },
}

/// Judges what was found; `None`: nothing was ever written.
///
/// # Errors
/// If starting from it could lose data or break a promise.
pub fn judge(
    group: GroupId,
    log: Option<RecoveredGroup>,
    applied: SnapshotMeta,
) -> Result<Option<Found>, RecoverError> {
    let at = applied.position;
    let Some(mut log) = log else {
        return if at.index.0 == 0 {
            Ok(None)
        } else if at == CHILD_BIRTH {
            // Its state is written before its log begins, and the crash came in between: it has promised nothing to anybody.
            let start = Start::after(applied);
            let repair = Some(first_write(group, &start));
            Ok(Some(Found {
                start,
                repair,
                stale_state: false,
            }))
        } else {
            Err(RecoverError::LogLost {
                group,
                applied: at.index.0,
            })
        };
    };
    if at.index < log.log_start.index {
        return Err(RecoverError::StateLost {
            group,
            applied: at.index.0,
            log_start: log.log_start.index.0,
        });
    }
    if log.last() == LogPosition::default() && at.index.0 > 0 {
        // A replica that leaves has its log emptied first and its state cleared afterwards, and the crash came in between. To start from
        // the state would bring an old configuration back to life, without what this member has acknowledged since (and the state
        // may be older than it was). The other way to get here, a first snapshot that the log has not been told of, loses nothing:
        // nothing was acknowledged yet.
        let start = Start {
            hard_state: log.hard_state,
            ..Start::default()
        };
        return Ok(Some(Found {
            start,
            repair: None,
            stale_state: true,
        }));
    }
    let mut repair = None;
    if at.index > log.last().index {
        // A snapshot became the state and the crash came before the log was reset to it (pitfalls P13, P15). Everything in the
        // log is older, and what the snapshot covers is committed.
        if at.term > log.hard_state.term {
            log.hard_state.term = at.term;
            log.hard_state.vote = None;
        }
        log.hard_state.commit = at.index;
        log.log_start = at;
        log.entries.clear();
        repair = Some(GroupWrite {
            group,
            hard_state: Some(log.hard_state),
            reset_to: Some(at),
            entries: Vec::new(),
        });
    }
    let RecoveredGroup {
        hard_state,
        log_start,
        entries,
    } = log;
    Ok(Some(Found {
        start: Start {
            hard_state,
            applied,
            log_start,
            entries,
        },
        repair,
        stale_state: false,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use althing_raft::entry::{Entry, HardState, Payload};
    use althing_raft::ids::{Index, LogPosition, MemberId, Term};

    const GROUP: GroupId = GroupId::FIRST_SHARD;

    fn at(term: u64, index: u64) -> LogPosition {
        LogPosition {
            term: Term(term),
            index: Index(index),
        }
    }

    fn applied(term: u64, index: u64) -> SnapshotMeta {
        SnapshotMeta {
            position: at(term, index),
            ..SnapshotMeta::default()
        }
    }

    fn log(start: u64, last: u64) -> RecoveredGroup {
        let entries = (start + 1..=last).map(|index| Entry {
            term: Term(2),
            index: Index(index),
            payload: Payload::Noop,
        });
        RecoveredGroup {
            hard_state: HardState {
                term: Term(2),
                vote: Some(MemberId(1)),
                commit: Index(last),
                ..HardState::default()
            },
            log_start: at(2, start),
            entries: entries.collect(),
        }
    }

    #[test]
    fn a_state_within_the_log_starts_with_the_whole_log() {
        let Ok(Some(Found {
            start, repair: None, ..
        })) = judge(GROUP, Some(log(5, 9)), applied(2, 7))
        else {
            panic!()
        };
        assert_eq!(
            (start.entries.len(), start.log_start, start.applied.position),
            (4, at(2, 5), at(2, 7))
        );
    }

    #[test]
    fn a_snapshot_that_the_log_does_not_know_resets_it_and_keeps_the_vote_of_its_term() {
        let Ok(Some(Found {
            start,
            repair: Some(repair),
            ..
        })) = judge(GROUP, Some(log(0, 3)), applied(2, 8))
        else {
            panic!()
        };
        assert!(start.entries.is_empty());
        assert_eq!(
            (repair.reset_to, start.hard_state.vote),
            (Some(at(2, 8)), Some(MemberId(1)))
        );
        let Ok(Some(Found { start, .. })) = judge(GROUP, Some(log(0, 3)), applied(4, 8)) else {
            panic!()
        };
        assert_eq!((start.hard_state.term, start.hard_state.vote), (Term(4), None));
    }

    #[test]
    fn a_lost_log_or_a_lost_state_is_never_papered_over() {
        assert!(matches!(judge(GROUP, None, applied(0, 0)), Ok(None)));
        assert!(matches!(
            judge(GROUP, None, applied(2, 3)),
            Err(RecoverError::LogLost { applied: 3, .. })
        ));
        assert!(matches!(
            judge(GROUP, Some(log(5, 9)), applied(0, 0)),
            Err(RecoverError::StateLost { log_start: 5, .. })
        ));
    }

    #[test]
    fn a_replica_that_left_does_not_come_back_by_the_state_that_a_crash_kept() {
        let left = RecoveredGroup {
            hard_state: HardState {
                term: Term(7),
                vote: Some(MemberId(2)),
                ..HardState::default()
            },
            ..RecoveredGroup::default()
        };
        for state in [applied(5, 40), applied(1, 1)] {
            let Ok(Some(found)) = judge(GROUP, Some(left.clone()), state) else {
                panic!()
            };
            assert!(found.stale_state && found.repair.is_none() && found.start.is_blank());
            assert_eq!(
                (found.start.hard_state.term, found.start.hard_state.vote),
                (Term(7), Some(MemberId(2))),
                "it never votes twice in a term"
            );
        }
    }

    #[test]
    fn a_shard_that_was_cut_off_begins_with_its_state_if_the_crash_came_before_its_log() {
        let Ok(Some(found)) = judge(GROUP, None, applied(1, 1)) else {
            panic!()
        };
        assert_eq!(found.start.log_start, CHILD_BIRTH);
        assert_eq!(found.repair.map(|repair| repair.reset_to), Some(Some(CHILD_BIRTH)));
    }
}
