//! How far a follower is, as its leader knows it. The states are etcd's.

use crate::ids::{Epoch, Index, Now};
use crate::mark::Mark;
use crate::mutant::Mutant;
use std::collections::VecDeque;

/// What may be sent to a follower.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Flow {
    /// Where the logs agree is unknown: one append at a time.
    Probe {
        /// One is under way.
        waiting: bool,
    },
    /// Optimistic pipelining: appends leave before earlier ones are answered.
    Replicate(Window),
    /// The log no longer holds what it needs.
    Snapshot,
}

/// Appends under way to one follower, oldest first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Window {
    /// The last index and the bytes of each.
    appends: VecDeque<(Index, usize)>,
    bytes: usize,
}

impl Window {
    fn push(&mut self, last: Index, bytes: usize) {
        self.appends.push_back((last, bytes));
        self.bytes += bytes;
    }

    /// The oldest counts as gone: it was answered, or nobody believes in it any more.
    pub(crate) fn forget_oldest(&mut self) {
        if let Some((_, bytes)) = self.appends.pop_front() {
            self.bytes -= bytes;
        }
    }

    fn answered(&mut self, last: Index) {
        while self.appends.front().is_some_and(|(oldest, _)| *oldest <= last) {
            self.forget_oldest();
        }
    }
}

/// One follower or learner. Invariant: `matched < next` (pitfall P28).
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    pub(crate) matched: Index,
    pub(crate) next: Index,
    pub(crate) flow: Flow,
    pub(crate) last_heard: Now,
    /// The newest read round that it confirmed.
    pub(crate) round: u64,
    /// When it did.
    pub(crate) confirmed_at: Now,
    /// `matched` when the leader last spoke up by itself.
    pub(crate) matched_at_beat: Index,
    /// The commit index that it was last told.
    pub(crate) commit_told: Index,
    /// Somebody waits there to hear that this much is committed.
    pub(crate) awaits: Index,
    /// The newest roster of this term that it is known to take part in: its copies count for commits under that one.
    pub(crate) stamp: Option<Epoch>,
    /// What it last said that it takes part in.
    pub(crate) said: Option<Epoch>,
    /// When its log last grew, or lacked nothing.
    pub(crate) advanced_at: Now,
}

impl Progress {
    pub(crate) fn new(next: Index, now: Now) -> Self {
        let flow = Flow::Probe { waiting: false };
        Self {
            matched: Index::ZERO,
            next,
            flow,
            last_heard: now,
            round: 0,
            confirmed_at: now,
            matched_at_beat: Index::ZERO,
            commit_told: Index::ZERO,
            awaits: Index::ZERO,
            stamp: None,
            said: None,
            advanced_at: now,
        }
    }

    pub(crate) fn probe(&mut self) {
        self.next = self.matched.next();
        self.flow = Flow::Probe { waiting: false };
    }

    /// How much of the leader's log counts as copied here.
    pub(crate) fn copied(&self) -> Index {
        if Mutant::CommitWhatIsSent.active() {
            self.next.prev()
        } else {
            self.matched
        }
    }

    /// Bytes that another append may carry now; 0: none may leave. A first one always may, whatever its size: an entry over the
    /// limit must not block its follower for ever. Each follower and learner has a window of its own, so none waits for
    /// another's.
    pub(crate) fn room(&self, appends_max: usize, bytes_max: usize) -> usize {
        match &self.flow {
            Flow::Probe { waiting: false } => bytes_max.max(1),
            Flow::Replicate(window) if window.appends.is_empty() => bytes_max.max(1),
            Flow::Replicate(window) => {
                let full = window.appends.len() >= appends_max || window.bytes >= bytes_max;
                if full {
                    Mark::WindowFull.hit();
                    return 0;
                }
                bytes_max - window.bytes
            }
            Flow::Probe { waiting: true } | Flow::Snapshot => 0,
        }
    }

    /// An append up to `last` with so many bytes left.
    pub(crate) fn sent(&mut self, last: Index, bytes: usize) {
        match &mut self.flow {
            Flow::Probe { waiting } => *waiting = true,
            Flow::Replicate(window) => {
                if last >= self.next {
                    window.push(last, bytes);
                    self.next = last.next();
                }
            }
            Flow::Snapshot => {}
        }
    }

    /// The follower's log matches up to `last`. Says whether that was news.
    pub(crate) fn accepted(&mut self, last: Index, log_start: Index) -> bool {
        let news = last > self.matched;
        self.matched = self.matched.max(last);
        match &mut self.flow {
            Flow::Probe { .. } => {
                self.next = self.matched.next();
                self.flow = Flow::Replicate(Window::default());
            }
            Flow::Replicate(window) => {
                window.answered(last);
                self.next = self.next.max(self.matched.next());
            }
            Flow::Snapshot => {
                self.next = self.next.max(self.matched.next());
                if self.matched >= log_start {
                    self.flow = Flow::Replicate(Window::default());
                }
            }
        }
        assert!(
            self.matched < self.next,
            "a follower's next index is beyond what it has"
        );
        news
    }

    /// A learner does not have what it acknowledged: that was the replica that was there before and left, whose last words came late. They
    /// were about entries from before it was added, all of them committed before its copy counts for anything; but it must be sent them.
    /// `agree` is where the logs may meet. Says whether an append may leave now.
    pub(crate) fn lost(&mut self, agree: Index) -> bool {
        Mark::AcknowledgedByPredecessor.hit();
        self.matched = Index::ZERO;
        if self.flow == Flow::Snapshot {
            return false;
        }
        self.next = agree.next();
        self.flow = Flow::Probe { waiting: false };
        true
    }

    /// The follower refused the append after `rejected`; `agree` is where the logs may meet.
    /// Says whether the refusal was news.
    pub(crate) fn rejected(&mut self, rejected: Index, agree: Index) -> bool {
        // What it acknowledged it has: to ask again at once would be answered the same, for ever, and twice for each message that the
        // network repeats. Nobody refuses what comes after nothing, so a refusal of that is stale too.
        let had = rejected <= self.matched;
        match &self.flow {
            Flow::Replicate(_) => {
                if had {
                    Mark::StaleRejection.hit();
                    return false;
                }
                self.probe();
            }
            Flow::Probe { .. } => {
                if had || self.next.prev() != rejected {
                    Mark::StaleRejection.hit();
                    return false;
                }
                self.next = rejected.min(agree.next()).max(self.matched.next());
                self.flow = Flow::Probe { waiting: false };
            }
            Flow::Snapshot => return false,
        }
        assert!(
            self.matched < self.next,
            "a follower's next index is beyond what it has"
        );
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_full_by_count_or_by_bytes_and_opens_with_each_answer() {
        let mut progress = Progress::new(Index(1), Now(0));
        progress.accepted(Index::ZERO, Index::ZERO);
        assert_eq!(progress.room(3, 100), 100);
        progress.sent(Index(1), 60);
        assert_eq!(progress.room(3, 100), 40);
        progress.sent(Index(2), 40);
        assert_eq!(progress.room(3, 100), 0, "full by bytes");
        progress.accepted(Index(1), Index::ZERO);
        assert_eq!(progress.room(3, 100), 60);
        progress.sent(Index(3), 1);
        progress.sent(Index(4), 1);
        assert_eq!(progress.room(3, 100), 0, "full by count");
        progress.accepted(Index(4), Index::ZERO);
        assert_eq!(progress.room(3, 100), 100);
    }

    #[test]
    fn an_entry_over_the_byte_limit_travels_alone() {
        let mut progress = Progress::new(Index(1), Now(0));
        progress.accepted(Index::ZERO, Index::ZERO);
        progress.sent(Index(1), 500);
        assert_eq!(progress.room(3, 100), 0);
        progress.accepted(Index(1), Index::ZERO);
        assert_eq!(progress.room(3, 100), 100);
        assert_eq!(progress.room(3, 0), 1, "the first one always may");
    }
}
