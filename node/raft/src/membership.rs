//! Single-member configuration changes (Raft thesis, chapter 4), effective when handed out for apply.

use crate::entry::{ConfigChange, ConfigStep, Payload};
use crate::ids::Index;
use crate::io::{DropReason, RequestId, Role};
use crate::progress::Progress;
use crate::raft::Raft;

/// A learner may be promoted when it lacks at most this many entries: what a leader under load writes within a few
/// round trips. More, and the new vote could not help a commit for a while.
pub const PROMOTE_LAG_MAX: u64 = 1_000;

impl Raft {
    pub(crate) fn propose_config(&mut self, request: RequestId, change: ConfigChange) {
        match self.check_config(&change) {
            Ok(()) => {
                self.log.push(self.term, Payload::Config(change));
            }
            Err(reason) => self.drop_request(request, reason),
        }
    }

    fn check_config(&self, change: &ConfigChange) -> Result<(), DropReason> {
        if self.role != Role::Leader {
            return Err(DropReason::NotLeader);
        }
        if self.transfer.is_some() {
            return Err(DropReason::LeaderChanged);
        }
        // One at a time (pitfall P8), and none before this term has committed something: two leaders with
        // neighbouring configurations could otherwise both have a majority (Ongaro's 2015 correction to the thesis).
        let pending = self
            .log
            .range(self.emitted.next(), self.log.last_index())
            .any(|entry| matches!(entry.payload, Payload::Config(_)));
        if pending || !self.committed_in_term() {
            return Err(DropReason::ConfigInFlight);
        }
        match change.step {
            ConfigStep::AddLearner(member) if self.members.voters.contains(&member) => Err(DropReason::ConfigInvalid),
            ConfigStep::AddLearner(_) => Ok(()),
            ConfigStep::Promote(member) => {
                if !self.members.learners.contains(&member) {
                    return Err(DropReason::ConfigInvalid);
                }
                let caught_up = self.progress.get(&member).is_some_and(|progress| {
                    progress.matched.0 + PROMOTE_LAG_MAX >= self.log.last_index().0
                        && progress.matched > Index::ZERO
                        && self.now.since(progress.last_heard) < self.config.election_timeout
                });
                if caught_up {
                    Ok(())
                } else {
                    Err(DropReason::LearnerBehind)
                }
            }
            ConfigStep::Remove(member) => {
                let last_voter = self.members.voters.len() == 1 && self.members.voters.contains(&member);
                // A leader must survive the change it commits (pitfall P12): hand over first.
                if !self.members.contains(member) || last_voter || member == self.config.id {
                    Err(DropReason::ConfigInvalid)
                } else {
                    Ok(())
                }
            }
        }
    }

    pub(crate) fn apply_config(&mut self, step: ConfigStep, index: Index) {
        match step {
            ConfigStep::AddLearner(member) => {
                if !self.members.voters.contains(&member) {
                    self.members.learners.insert(member);
                }
            }
            ConfigStep::Promote(member) => {
                if self.members.learners.remove(&member) {
                    self.members.voters.insert(member);
                }
            }
            ConfigStep::Remove(member) => {
                self.members.learners.remove(&member);
                self.members.voters.remove(&member);
                assert!(
                    !self.members.voters.is_empty(),
                    "a configuration without voters was committed"
                );
                if self.role == Role::Leader {
                    // It hears of its removal from nobody else afterwards.
                    self.farewell(member);
                }
            }
        }
        self.members.index = index;
        self.settle_role();
        if self.role == Role::Leader {
            if self.is_voter() {
                let (next, now) = (self.log.last_index().next(), self.now);
                let peers = self.peers();
                self.progress.retain(|member, _| peers.contains(member));
                for peer in peers {
                    self.progress.entry(peer).or_insert_with(|| Progress::new(next, now));
                }
            } else {
                self.step_down_removed();
            }
        }
    }
}
