//! What a leader does about rosters: it makes them, and it counts commits under the one it made last.
//!
//! A roster follows from the specification, the configuration and who is well. Making one needs no commit: a dead responder is
//! left out by a message (pitfall P25), not by an entry that would wait for it. While a configuration change is under way, from
//! its proposal to the end of a joint configuration, there are no responders, so that no member can count promises under a
//! configuration that others have left; whoever is no voter any more never becomes one again by a roster of before.

use crate::entry::{Entry, Payload, ReadsChange};
use crate::ids::{Epoch, Index, MemberId, Now};
use crate::io::{DropReason, RequestId, Role};
use crate::message::Body;
use crate::mutant::Mutant;
use crate::progress::{Flow, Progress};
use crate::raft::Raft;
use crate::roster::{Ballot, Footprint, ReadMode, ReadSpec, ResponderRange, Responders, Roster, Span, SpecError};
use std::collections::BTreeSet;
use std::time::Duration;

/// A member may become a responder when it lacks at most so many entries: what a leader under load writes in a round trip or two.
const RESPONDER_LAG_MAX: u64 = 256;
/// New responders wait so many heartbeats for others to join them in the same roster, if not all are there yet.
const GATHER_HEARTBEATS: u32 = 4;
/// After a responder was left out, none is added for so many leases: a flapping one must not stop writes again and again.
const DWELL_LEASES: u32 = 2;

/// The roster that a leader made last.
#[derive(Debug)]
pub(crate) struct Minted {
    pub(crate) roster: Roster,
    at: Now,
    /// The specification that it follows.
    spec: Index,
}

impl Raft {
    /// Whether this group would take such a specification.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn validate_reads(&self, spec: &ReadSpec) -> Result<(), SpecError> {
        spec.validate(self.config.heartbeat_interval, self.config.election_timeout)
    }

    pub(crate) fn propose_reads(&mut self, request: RequestId, change: ReadsChange) {
        self.stir();
        let valid = self.validate_reads(&change.spec);
        if self.role != Role::Leader {
            self.drop_request(request, DropReason::NotLeader);
        } else if self.transfer.is_some() {
            self.drop_request(request, DropReason::LeaderChanged);
        } else if valid.is_err() {
            self.drop_request(request, DropReason::ConfigInvalid);
        } else {
            self.log.push(self.term, Payload::Reads(change));
        }
    }

    /// Whether some promise may be alive somewhere. Until an entry first asks for leases there is none, and commits count as in
    /// plain Raft. Whoever promised had that entry committed before it, so it is in every later leader's log.
    fn rosters_matter(&self) -> bool {
        let asked = |entry: &Entry| matches!(entry.payload, Payload::Reads(_));
        self.reads_state.index > Index::ZERO
            || !self.lease.state.promise_max.is_zero()
            || self.log.range(self.emitted.next(), self.log.last_index()).any(asked)
    }

    /// A term begins: with a roster of its own, so that its first commit fences all earlier ones.
    pub(crate) fn open_term(&mut self) {
        self.demoted_at = None;
        if self.rosters_matter() {
            self.mint(Vec::new());
        }
    }

    /// Makes another roster if the present one is not what it should be.
    pub(crate) fn review_roster(&mut self) {
        if !std::mem::take(&mut self.review_due) || self.role != Role::Leader || self.reads_state.index == Index::ZERO {
            return;
        }
        let wanted = self.wanted_ranges();
        let Some(minted) = &self.minted else {
            return self.mint(Vec::new());
        };
        let other_terms = minted.spec != self.reads_state.index || minted.roster.config != self.members.index;
        let (now_in, wanted_in) = (minted.roster.responders(), responders_of(&wanted));
        let lost = now_in.difference(&wanted_in).next().is_some();
        let gained = wanted_in.difference(&now_in).next().is_some();
        if lost && !other_terms {
            self.demoted_at = Some(self.now);
        }
        let lease = minted.roster.lease;
        let dwelt = self
            .demoted_at
            .is_none_or(|at| self.now.since(at) >= lease * DWELL_LEASES);
        let gathered =
            self.everybody_well() || self.now.since(minted.at) >= self.config.heartbeat_interval * GATHER_HEARTBEATS;
        if other_terms || (gained && dwelt && gathered) {
            self.mint(wanted);
        } else if lost {
            // Whoever is well and new waits for its time.
            let mut kept = wanted;
            for range in &mut kept {
                range.members.retain(|member| now_in.contains(member));
            }
            self.mint(kept);
        }
    }

    /// The specification, as far as its members are well.
    fn wanted_ranges(&self) -> Vec<ResponderRange> {
        let proposed = self.log.first_config(self.emitted.next(), self.log.last_index());
        if proposed.is_some() || self.members.is_joint() || !self.committed_in_term() {
            return Vec::new();
        }
        let mut ranges = self.specified_ranges();
        for range in &mut ranges {
            range.members.retain(|member| self.is_well(*member));
        }
        ranges.retain(|range| !range.members.is_empty());
        ranges
    }

    /// The specification, as far as it names members; without the leader, who is a responder of everything.
    fn specified_ranges(&self) -> Vec<ResponderRange> {
        let spec = &self.reads_state.spec;
        let mut ranges = match (spec.mode, &spec.responders) {
            (ReadMode::ReadIndex | ReadMode::LeaderLease, _) | (ReadMode::RosterLease, Responders::None) => Vec::new(),
            (ReadMode::RosterLease, Responders::All) => vec![ResponderRange {
                span: Span::all(),
                members: self.members.voters.clone(),
            }],
            (ReadMode::RosterLease, Responders::Ranges(ranges)) => ranges.clone(),
        };
        for range in &mut ranges {
            range
                .members
                .retain(|member| *member != self.config.id && self.members.contains(*member));
        }
        ranges
    }

    fn everybody_well(&self) -> bool {
        responders_of(&self.specified_ranges())
            .into_iter()
            .all(|member| self.is_well(member))
    }

    /// Whether a member answers reads under the roster that commits count under.
    pub(crate) fn is_responder(&self, member: MemberId) -> bool {
        self.minted.as_ref().is_some_and(|minted| minted.roster.reads(member))
    }

    /// Whether commits may wait for this member.
    fn is_well(&self, member: MemberId) -> bool {
        let Some(progress) = self.progress.get(&member) else {
            return false;
        };
        let responds = self.is_responder(member);
        let patience = self.config.demote_after;
        let heard = self.now.since(progress.last_heard) < patience;
        let streams = match &progress.flow {
            Flow::Replicate { .. } => true,
            // A lost connection is probed for a moment; a new responder must stream.
            Flow::Probe { .. } => responds,
            Flow::Snapshot => false,
        };
        let lags = if responds {
            // It answers, but its log does not grow: a slow disk stops its ranges' writes as surely as a crash.
            progress.matched < self.log.last_index() && self.now.since(progress.advanced_at) >= patience
        } else {
            progress.matched.0 + RESPONDER_LAG_MAX < self.log.last_index().0
        };
        heard && streams && !lags
    }

    fn mint(&mut self, ranges: Vec<ResponderRange>) {
        let epoch = match &self.minted {
            Some(minted) => minted.roster.ballot.epoch.next(),
            None => Epoch::ZERO,
        };
        let safe = if Mutant::SkipSafeIndex.active() {
            Index::ZERO
        } else {
            // From here on nothing is committed under an older roster.
            self.term_start.max(self.commit)
        };
        let roster = Roster {
            ballot: Ballot { term: self.term, epoch },
            leader: self.config.id,
            config: self.members.index,
            lease: self.reads_state.spec.lease_length(),
            ranges,
            revisions: self.reads_state.spec.revisions,
            safe,
        };
        self.minted = Some(Minted {
            roster: roster.clone(),
            at: self.now,
            spec: self.reads_state.index,
        });
        for peer in self.peers() {
            self.send(peer, Body::Roster { roster: roster.clone() });
        }
        self.see_roster(roster);
    }

    /// Whether everybody takes part in the roster that there should be.
    pub(crate) fn roster_settled(&self) -> bool {
        let Some(minted) = &self.minted else {
            return self.reads_state.index == Index::ZERO;
        };
        let epoch = Some(minted.roster.ballot.epoch);
        let as_wished = minted.spec == self.reads_state.index
            && minted.roster.config == self.members.index
            && minted.roster.responders() == responders_of(&self.wanted_ranges());
        let absent = self.absent();
        let knows = |(member, progress): (&MemberId, &Progress)| progress.said == epoch || absent.contains(member);
        as_wished && self.stamp() == epoch && self.progress.iter().all(knows)
    }

    /// Tells the roster again to those who do not name it.
    pub(crate) fn repeat_roster(&mut self) {
        let Some(minted) = &self.minted else {
            return;
        };
        let roster = minted.roster.clone();
        for peer in self.peers() {
            let knows = self
                .progress
                .get(&peer)
                .is_some_and(|progress| progress.said == Some(roster.ballot.epoch));
            if !knows {
                self.send(peer, Body::Roster { roster: roster.clone() });
            }
        }
    }

    /// A follower names the roster that it takes part in. That its older promises are dead stays true for ever; that it still
    /// knows the roster's content does not.
    pub(crate) fn on_stamp(&mut self, from: MemberId, stamp: Option<Epoch>) {
        let present = self.minted.as_ref().map(|minted| minted.roster.ballot.epoch);
        let Some(progress) = self.progress.get_mut(&from) else {
            return;
        };
        progress.said = stamp;
        if stamp.is_some() && stamp == present && progress.stamp != stamp {
            progress.stamp = stamp;
            self.review_due = true;
            self.advance_commit();
        }
    }

    /// How far a member's copies count for a commit: those that it holds while no promise of its for an older roster lives.
    fn covered(&self, member: MemberId) -> Index {
        let ballot = self.minted.as_ref().map(|minted| minted.roster.ballot);
        if member == self.config.id {
            let stamped = ballot.is_none_or(|ballot| self.lease.durable.adopted == ballot);
            return if stamped { self.log.stable().index } else { Index::ZERO };
        }
        let Some(progress) = self.progress.get(&member) else {
            return Index::ZERO;
        };
        let stamped = ballot.is_none_or(|ballot| progress.stamp == Some(ballot.epoch));
        if stamped || Mutant::CountUnstamped.active() {
            progress.copied()
        } else {
            Index::ZERO
        }
    }

    /// The leader's commit index: the largest index that a majority holds durably under the present roster, that every responder
    /// of the written keys holds too, and that is of the leader's own term (Raft paper, section 5.4.2). The one place where this
    /// is decided; all that anybody sees follows this index.
    pub(crate) fn advance_commit(&mut self) {
        let early = Mutant::ShowUncovered.active() && !self.committed_in_term();
        let majority = self
            .members
            .reached_by_majority(|voter| match self.progress.get(&voter) {
                Some(progress) if early => progress.copied(),
                Some(_) | None if early => self.log.stable().index,
                Some(_) | None => self.covered(voter),
            });
        let candidate = if early {
            majority
        } else {
            self.held_by_responders(majority)
        };
        let own_term = self.log.term_at(candidate) == Some(self.term) || Mutant::CommitEarlierTerm.active();
        if candidate > self.commit && own_term {
            self.commit = candidate;
        }
    }

    /// The last entry up to `candidate` before one that some responder of its keys lacks. Commits go in order, so entries of other
    /// keys behind that one wait as well.
    fn held_by_responders(&self, candidate: Index) -> Index {
        let Some(roster) = self.minted.as_ref().map(|minted| &minted.roster) else {
            return candidate;
        };
        if roster.ranges.is_empty() || candidate <= self.commit || Mutant::SkipResponders.active() {
            return candidate;
        }
        let everywhere = roster.responders().into_iter().map(|member| self.covered(member)).min();
        let from = everywhere.unwrap_or(candidate).max(self.commit).next();
        let lacking = self.log.range(from, candidate).find(|entry| {
            let footprint = match &entry.payload {
                Payload::Noop | Payload::Config(_) | Payload::Reads(_) => Footprint::Spans(Vec::new()),
                Payload::Command(command) => (self.config.footprint)(command),
            };
            !roster.responders_all(&footprint, |member| self.covered(member) >= entry.index)
        });
        lacking.map_or(candidate, |entry| entry.index.prev())
    }

    /// What a leader notes at every heartbeat about who keeps up.
    pub(crate) fn note_progress(&mut self) {
        let (last, now) = (self.log.last_index(), self.now);
        for progress in self.progress.values_mut() {
            if progress.matched >= last {
                progress.advanced_at = now;
            }
        }
    }

    /// When a silent responder is to be left out at the latest.
    pub(crate) fn demotion_deadline(&self) -> Option<Now> {
        let minted = self.minted.as_ref().filter(|minted| !minted.roster.ranges.is_empty())?;
        let patience: Duration = self.config.demote_after;
        let responders = minted.roster.responders();
        let silent = responders
            .iter()
            .filter_map(|member| Some(self.progress.get(member)?.last_heard.after(patience)));
        silent.min().filter(|at| *at > self.now)
    }
}

fn responders_of(ranges: &[ResponderRange]) -> BTreeSet<MemberId> {
    ranges.iter().flat_map(|range| range.members.iter().copied()).collect()
}
