//! Configuration changes (Raft thesis, chapter 4), effective when handed out for apply: single-member steps, and joint
//! consensus for several members at once.

use crate::entry::{ConfigChange, ConfigStep, Payload};
use crate::ids::{Index, MemberId};
use crate::io::{DropReason, RequestId, Role};
use crate::mark::Mark;
use crate::mutant::Mutant;
use crate::progress::Progress;
use crate::raft::Raft;
use bytes::Bytes;

/// A learner may be promoted when it lacks at most this many entries: what a leader under load writes within a few
/// round trips. More, and the new vote could not help a commit for a while.
pub const PROMOTE_LAG_MAX: u64 = 1_000;

impl Raft {
    pub(crate) fn propose_config(&mut self, request: RequestId, change: ConfigChange) {
        self.stir();
        match self.check_config(&change) {
            Ok(()) => {
                self.log.push(self.term, Payload::Config(change));
                // No responders while the configuration changes.
                self.review_due = true;
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
        if !self.may_change_config() {
            Mark::ChangeRefusedInFlight.hit();
            return Err(DropReason::ConfigInFlight);
        }
        // A joint configuration is a change that is not done yet.
        let leaves = matches!(change.step, ConfigStep::LeaveJoint);
        if self.members.is_joint() && !leaves {
            return Err(DropReason::ConfigInFlight);
        }
        let valid = |valid: bool| if valid { Ok(()) } else { Err(DropReason::ConfigInvalid) };
        match &change.step {
            ConfigStep::AddLearner(member) => valid(!self.members.is_voter(*member)),
            ConfigStep::Promote(member) => {
                valid(self.members.learners.contains(member))?;
                self.check_caught_up(*member)
            }
            ConfigStep::Remove(member) => {
                let last_voter = self.members.voters.len() == 1 && self.members.voters.contains(member);
                // A leader must survive the change it commits (pitfall P12): hand over first.
                valid(self.members.contains(*member) && !last_voter && *member != self.config.id)
            }
            ConfigStep::EnterJoint(target) => {
                valid(target.fits(&self.members))?;
                let promoted = target.voters.difference(&self.members.voters);
                promoted.copied().try_for_each(|member| self.check_caught_up(member))
            }
            ConfigStep::LeaveJoint => valid(self.members.is_joint()),
        }
    }

    /// One change at a time (pitfall P8), and none before this term has committed something: two leaders with neighbouring
    /// configurations could otherwise both have a majority (Ongaro's 2015 correction to the thesis).
    fn may_change_config(&self) -> bool {
        let pending = self.log.first_config(self.emitted.next(), self.log.last_index());
        (pending.is_none() || Mutant::ChangeWhileChanging.active())
            && (self.committed_in_term() || Mutant::ChangeBeforeOwnTerm.active())
    }

    /// Whether a member is fit for a vote.
    fn check_caught_up(&self, member: MemberId) -> Result<(), DropReason> {
        let caught_up = self.progress.get(&member).is_some_and(|progress| {
            progress.matched.0 + PROMOTE_LAG_MAX >= self.log.last_index().0
                && progress.matched > Index::ZERO
                && self.now.since(progress.last_heard) < self.config.election_timeout
        });
        if caught_up || Mutant::PromoteUnready.active() {
            Ok(())
        } else {
            Mark::PromotionRefused.hit();
            Err(DropReason::LearnerBehind)
        }
    }

    /// A leader that holds a joint configuration ends it as soon as it may. Decided by what holds, not by who began it: a
    /// leader that came up in between does the same (pitfall P11).
    pub(crate) fn leave_joint(&mut self) {
        let may = self.transfer.is_none() && self.may_change_config() && !Mutant::JointIsNeverLeft.active();
        if self.members.is_joint() && may {
            let change = ConfigChange {
                request: 0,
                step: ConfigStep::LeaveJoint,
                context: Bytes::new(),
            };
            self.log.push(self.term, Payload::Config(change));
        }
    }

    /// Whether this member's own vote ends with that change.
    pub(crate) fn resigns_by(&self, step: &ConfigStep, index: Index) -> bool {
        self.is_voter() && !self.members.after(step, index).is_voter(self.config.id)
    }

    /// A change holds from now on.
    pub(crate) fn apply_config(&mut self, step: &ConfigStep, index: Index) {
        let next = self.members.after(step, index);
        if self.role == Role::Leader {
            for gone in self.members.members().difference(&next.members()) {
                // It hears of its removal from nobody else afterwards.
                self.farewell(*gone);
            }
        }
        self.members = next;
        self.settle_role();
        if self.role == Role::Leader {
            assert!(
                self.is_voter(),
                "invariant: a leader hands over before its own vote ends (pitfall P10)"
            );
            let (next, now) = (self.log.last_index().next(), self.now);
            let peers = self.peers();
            self.progress.retain(|member, _| peers.contains(member));
            self.hibernation.retain(&peers);
            for peer in peers {
                self.progress.entry(peer).or_insert_with(|| Progress::new(next, now));
            }
        }
    }
}
