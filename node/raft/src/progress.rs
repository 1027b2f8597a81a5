//! How far a follower is, as its leader knows it. The states are etcd's.

use crate::ids::{Index, Now};
use std::collections::VecDeque;

/// What may be sent to a follower.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Flow {
    /// Where the logs agree is unknown: one append at a time.
    Probe {
        /// One is under way.
        waiting: bool,
    },
    /// Optimistic pipelining; the last index of every append under way.
    Replicate {
        /// They, oldest first.
        inflight: VecDeque<Index>,
    },
    /// The log no longer holds what it needs.
    Snapshot,
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
    /// `matched` when the leader last spoke up by itself.
    pub(crate) matched_at_beat: Index,
    /// The commit index that it was last told.
    pub(crate) commit_told: Index,
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
            matched_at_beat: Index::ZERO,
            commit_told: Index::ZERO,
        }
    }

    pub(crate) fn probe(&mut self) {
        self.next = self.matched.next();
        self.flow = Flow::Probe { waiting: false };
    }

    /// Whether another append may leave now.
    pub(crate) fn may_send(&self, inflight_max: usize) -> bool {
        match &self.flow {
            Flow::Probe { waiting } => !waiting,
            Flow::Replicate { inflight } => inflight.len() < inflight_max,
            Flow::Snapshot => false,
        }
    }

    /// An append up to `last` left.
    pub(crate) fn sent(&mut self, last: Index) {
        match &mut self.flow {
            Flow::Probe { waiting } => *waiting = true,
            Flow::Replicate { inflight } => {
                if last >= self.next {
                    inflight.push_back(last);
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
                self.flow = Flow::Replicate {
                    inflight: VecDeque::new(),
                };
            }
            Flow::Replicate { inflight } => {
                while inflight.front().is_some_and(|&oldest| oldest <= last) {
                    inflight.pop_front();
                }
                self.next = self.next.max(self.matched.next());
            }
            Flow::Snapshot => {
                self.next = self.next.max(self.matched.next());
                if self.matched >= log_start {
                    self.flow = Flow::Replicate {
                        inflight: VecDeque::new(),
                    };
                }
            }
        }
        assert!(
            self.matched < self.next,
            "a follower's next index is beyond what it has"
        );
        news
    }

    /// The follower refused the append after `rejected`; `agree` is where the logs may meet.
    /// Says whether the refusal was news.
    pub(crate) fn rejected(&mut self, rejected: Index, agree: Index) -> bool {
        match &self.flow {
            Flow::Replicate { .. } => {
                if rejected <= self.matched {
                    return false;
                }
                self.probe();
            }
            Flow::Probe { .. } => {
                if self.next.prev() != rejected {
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
