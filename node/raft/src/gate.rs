//! The read gate: which linearizable reads this member answers from its own state, and from which index on.
//!
//! A read that cannot be answered here asks for a read index (`read`); a lease only ever saves messages, it never makes a read fail.
//!
//! # Time
//! The shell gathers reads first and reads the clock after, so the `now` of a step is later than the invocation of every read in
//! it. A lease that is good at that `now` means: every write acknowledged before `now`, hence before any of these reads was
//! invoked, is in this log. The read point is taken from the log after that, and the state machine is read at or behind the
//! read point later still. So nothing needs to be checked again before the answer leaves, and a pause anywhere is harmless
//! (pitfall P21): the process may sleep between the check and the answer, and the answer still holds all that the check promised.
//!
//! # Holding
//! A responder's newest write of a key may be uncommitted here and acknowledged already at the leader. The read waits until it is
//! committed, for that entry only, so a stream of writes cannot starve it. It is bounced to the read index when the roster
//! changes, the lease is lost, or it waited for too long.

use crate::ids::{Index, Now};
use crate::io::{DropReason, ReadCounts, RequestId, Role};
use crate::mutant::Mutant;
use crate::raft::Raft;
use crate::read::READS_MAX;
use crate::roster::{Ballot, Footprint, Revisions};
use crate::touched::Touched;
use std::collections::BTreeMap;
use std::time::Duration;

/// Reads that may be held at one member; more ask the leader at once.
const HELD_MAX: usize = 16_384;

/// Reads that wait for a write to commit, and what they need to know of the log.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    held: BTreeMap<Index, Vec<(RequestId, Now)>>,
    /// All of `held` came under this roster.
    held_under: Ballot,
    touched: Touched,
    pub(crate) counts: ReadCounts,
}

impl Gate {
    pub(crate) fn holding(&self) -> usize {
        self.held.values().map(Vec::len).sum()
    }
}

impl Raft {
    /// Whether this member may answer reads by itself at the `now` of this step (the stable condition of the study): it holds a
    /// lease, and has everything that could have been committed under older rosters.
    pub(crate) fn gate_open(&self) -> bool {
        let caught_up = self.safe_index().is_some_and(|safe| self.commit >= safe) || Mutant::SkipSafeIndex.active();
        caught_up && self.holds_lease()
    }

    pub(crate) fn read(&mut self, reads: Vec<(RequestId, Footprint)>) {
        if self.hibernation.asleep && self.role == Role::Leader && Mutant::ReadAsleep.active() {
            let index = self.commit;
            return self
                .out
                .reads
                .extend(reads.into_iter().map(|(request, _)| (request, index)));
        }
        self.stir();
        let open = self.gate_open() && self.follow_log();
        for (request, footprint) in reads {
            if self.reads.count >= READS_MAX {
                self.drop_request(request, DropReason::Overloaded);
                continue;
            }
            let point = if open { self.read_point(&footprint) } else { None };
            match point {
                Some(index) if index <= self.commit => {
                    self.gate.counts.local += 1;
                    self.out.reads.push((request, index));
                }
                Some(index) if self.gate.holding() < HELD_MAX => self.hold(request, index),
                Some(_) | None => {
                    self.gate.counts.by_index += 1;
                    self.read_index(request);
                }
            }
        }
    }

    /// Only responders need to know who wrote which key.
    fn follow_log(&mut self) -> bool {
        if self.role == Role::Leader {
            return true;
        }
        let mut touched = std::mem::take(&mut self.gate.touched);
        let followed = touched.follow(&self.log, self.applied, &self.config);
        self.gate.touched = touched;
        followed
    }

    /// Where a read of these keys must be at least; `None`: it is not for this member to say.
    fn read_point(&self, footprint: &Footprint) -> Option<Index> {
        if self.role == Role::Leader {
            // Nobody else commits under this roster, and nobody hears of a commit before this member.
            return Some(self.commit);
        }
        let roster = self.lease.roster.as_ref()?;
        let footprint = match roster.revisions {
            // The revision is one more key, which every write writes.
            Revisions::Current => &Footprint::All,
            Revisions::OfKeys => footprint,
        };
        let newest = self.gate.touched.newest(footprint);
        let newest = if Mutant::CommittedOnly.active() {
            newest.min(self.commit)
        } else {
            newest
        };
        roster
            .answers(self.config.id, footprint)
            .then_some(newest.max(roster.safe))
    }

    fn hold(&mut self, request: RequestId, index: Index) {
        self.gate.held_under = self.lease.adopted();
        self.gate.held.entry(index).or_default().push((request, self.now));
        self.reads.count += 1;
    }

    fn hold_time(&self) -> Duration {
        self.config.election_timeout / 2
    }

    /// Answers held reads whose write has committed, and sends those on that should not wait any more.
    pub(crate) fn settle_held(&mut self) {
        if self.gate.held.is_empty() {
            return;
        }
        let later = self.gate.held.split_off(&self.commit.next());
        for (index, reads) in std::mem::replace(&mut self.gate.held, later) {
            self.reads.count -= reads.len();
            self.gate.counts.local += reads.len() as u64;
            self.gate.counts.held += reads.len() as u64;
            self.out
                .reads
                .extend(reads.into_iter().map(|(request, _)| (request, index)));
        }
        let stays = self.gate.held_under == self.lease.adopted() && self.gate_open();
        let (now, patience) = (self.now, self.hold_time());
        let mut bounced = Vec::new();
        self.gate.held.retain(|_, reads| {
            reads.retain(|(request, since)| {
                let keep = stays && now.since(*since) < patience;
                if !keep {
                    bounced.push(*request);
                }
                keep
            });
            !reads.is_empty()
        });
        self.reads.count -= bounced.len();
        self.gate.counts.bounced += bounced.len() as u64;
        self.gate.counts.by_index += bounced.len() as u64;
        for request in bounced {
            self.read_index(request);
        }
    }

    pub(crate) fn held_deadline(&self) -> Option<Now> {
        let oldest = self.gate.held.values().flatten().map(|(_, since)| *since).min()?;
        Some(oldest.after(self.hold_time()))
    }
}
