//! Invariants of read leases, by global true time: what no member can know, since each has only its own clock.
//!
//! Numbers are those of the study's list (I2 to I13). The onlooker keeps what members forget: a promise given before a
//! crash binds until it is dead.

use super::machine::Clock;
use althing_raft::ids::{Index, MemberId, Now};
use althing_raft::io::{LeaseView, Role, Soft};
use althing_raft::message::{Body, Message};
use althing_raft::roster::{Ballot, Roster};
use std::collections::{BTreeMap, BTreeSet};

/// A member as it was after its last turn.
#[derive(Clone, Debug)]
struct Seen {
    member: MemberId,
    lease: LeaseView,
    soft: Soft,
    commit: Index,
}

/// The onlooker.
#[derive(Debug, Default)]
pub(crate) struct LeaseWatch {
    /// By machine; running ones only.
    seen: BTreeMap<usize, Seen>,
    /// Every promise that is not known to be dead: who gave it to whom, for what, until when by the giver's clock.
    promised: BTreeMap<(MemberId, MemberId), (Ballot, Now)>,
    rosters: BTreeMap<Ballot, Roster>,
    /// The newest roster that each running member was seen to take part in, and of each member the newest that it ever named.
    adopted: BTreeMap<MemberId, Ballot>,
    named: BTreeMap<MemberId, Ballot>,
}

impl LeaseWatch {
    pub(crate) fn rosters(&self) -> u64 {
        self.rosters.len() as u64
    }

    pub(crate) fn stopped(&mut self, machine: usize) {
        // What was not durable yet, nobody has heard of.
        if let Some(seen) = self.seen.remove(&machine) {
            self.adopted.remove(&seen.member);
        }
    }

    /// A member's clock has another zero from now on: what was timed by it moves along.
    pub(crate) fn rebased(&mut self, member: MemberId, before: Now, after: Now) {
        for ((giver, _), (_, until)) in &mut self.promised {
            if *giver == member {
                *until = Now(after.0 + until.0.saturating_sub(before.0));
            }
        }
    }

    /// A member says something at `local` of its clock. Checks I7: no stamp while an older promise lives.
    pub(crate) fn sent(&mut self, message: &Message, local: Now) -> Option<String> {
        match &message.body {
            Body::Revoked { below, .. } => {
                // Whoever says this counts that promise no more, in this life or any other.
                let dead = |(ballot, _): &(Ballot, Now)| ballot < below;
                if self.promised.get(&(message.to, message.from)).is_some_and(dead) {
                    self.promised.remove(&(message.to, message.from));
                }
                None
            }
            Body::AppendAccepted { stamp: Some(epoch), .. } | Body::HeartbeatReply { stamp: Some(epoch), .. } => {
                let stamped = Ballot {
                    term: message.term,
                    epoch: *epoch,
                };
                let named = self.named.entry(message.from).or_default();
                *named = stamped.max(*named);
                let bound = self.promised.iter().find(|((giver, _), (ballot, until))| {
                    *giver == message.from && *ballot < stamped && *until > local
                });
                bound.map(|((giver, holder), (ballot, until))| {
                    format!("I7: {giver} stamps {stamped} at {local:?} and is bound to {holder} for {ballot} until {until:?}")
                })
            }
            Body::AppendAccepted { stamp: None, .. }
            | Body::HeartbeatReply { stamp: None, .. }
            | Body::PreVote { .. }
            | Body::PreVoteReply { .. }
            | Body::Committed { .. }
            | Body::Vote { .. }
            | Body::VoteReply { .. }
            | Body::Append { .. }
            | Body::AppendRejected { .. }
            | Body::Heartbeat { .. }
            | Body::Hibernate { .. }
            | Body::Hibernating { .. }
            | Body::Alive { .. }
            | Body::Snapshot { .. }
            | Body::TimeoutNow
            | Body::ReadIndex { .. }
            | Body::ReadIndexReply { .. }
            | Body::Forward { .. }
            | Body::Roster { .. }
            | Body::LeaseRequest { .. }
            | Body::LeaseGrant { .. }
            | Body::Revoke { .. } => None,
        }
    }

    /// A member has taken a turn. Says what is broken now, and how far a leader's commit index moved under which roster.
    pub(crate) fn turn(
        &mut self,
        machine: usize,
        member: MemberId,
        (lease, soft, commit): (LeaseView, Soft, Index),
        local: &dyn Fn(usize) -> Now,
    ) -> Vec<String> {
        let mut broken = Vec::new();
        let ballot = lease.adopted;
        let named = self.named.get(&member).copied().unwrap_or_default();
        let before = self.adopted.insert(member, ballot).unwrap_or_default().max(named);
        if ballot < before {
            broken.push(format!("I4: {member} goes back from roster {before} to {ballot}"));
        }
        if let Some(roster) = &lease.roster {
            let first = self.rosters.entry(roster.ballot).or_insert_with(|| roster.clone());
            if first != roster {
                broken.push(format!(
                    "I2: two rosters have the ballot {ballot}: {first:?} and {roster:?}"
                ));
            }
            let strangers = roster.config == soft.config.index
                && roster
                    .responders()
                    .iter()
                    .any(|responder| !soft.config.contains(*responder));
            if strangers {
                broken.push(format!("I13: {roster:?} has responders outside of {:?}", soft.config));
            }
        }
        let known = self.seen.get(&machine).map(|seen| seen.lease.promises.clone());
        for promise in &lease.promises {
            if known.as_ref().is_some_and(|known| known.contains(promise)) {
                // Whoever holds it may have let it go since, and its giver not have heard of that yet.
                continue;
            }
            let now = local(machine);
            let other = self
                .promised
                .insert((member, promise.peer), (promise.ballot, promise.until))
                .filter(|(ballot, until)| *ballot != promise.ballot && *until > now);
            if let Some((ballot, _)) = other {
                let (peer, new) = (promise.peer, promise.ballot);
                broken.push(format!(
                    "I4: {member} is bound to {peer} for {ballot} and promises {new}"
                ));
            }
        }
        if lease.open {
            let safe = lease.roster.as_ref().map(|roster| roster.safe);
            if ballot.term != soft.term || lease.pending.is_some() || safe.is_none_or(|safe| commit < safe) {
                broken.push(format!("I12: {member} reads locally under {ballot} with {lease:?}"));
            }
        }
        // A turn commits first and makes another roster after: what counts is the one before.
        let before = self.seen.get(&machine);
        let committed = before.map_or(commit, |seen| seen.commit) < commit;
        let minted = before.and_then(|seen| seen.lease.minted).min(lease.minted);
        let leads = soft.role == Role::Leader;
        self.seen.insert(
            machine,
            Seen {
                member,
                lease,
                soft,
                commit,
            },
        );
        broken.extend(self.open_rosters(local));
        if let Some(minted) = minted.filter(|_| leads && committed) {
            let older = self.seen.iter().find(|(number, seen)| {
                **number != machine && seen.lease.adopted < minted && self.open(**number, local)
            });
            if let Some((_, seen)) = older {
                broken.push(format!(
                    "I6: {member} commits {commit} under {minted} while {} reads locally under {}",
                    seen.member, seen.lease.adopted
                ));
            }
        }
        broken
    }

    /// Whether a machine would answer a read from its own state at this true moment.
    fn open(&self, machine: usize, local: &dyn Fn(usize) -> Now) -> bool {
        let Some(seen) = self.seen.get(&machine).filter(|seen| seen.lease.open) else {
            return false;
        };
        let now = local(machine);
        let granted = |voter| {
            voter == seen.member
                || seen
                    .lease
                    .grants
                    .iter()
                    .any(|grant| grant.peer == voter && grant.ballot == seen.lease.adopted && now < grant.until)
        };
        seen.soft.config.is_majority(granted)
    }

    /// I3 and I5: every promise that counts is kept by whoever gave it, and one roster at most is in use.
    fn open_rosters(&self, local: &dyn Fn(usize) -> Now) -> Vec<String> {
        let open: Vec<usize> = self
            .seen
            .keys()
            .copied()
            .filter(|&machine| self.open(machine, local))
            .collect();
        let ballots: BTreeSet<Ballot> = open.iter().map(|machine| self.seen[machine].lease.adopted).collect();
        let mut broken = Vec::new();
        if ballots.len() > 1 {
            broken.push(format!("I5: local reads under {ballots:?} at once"));
        }
        for machine in open {
            let holder = &self.seen[&machine];
            for grant in &holder.lease.grants {
                let Some((giver, seen)) = self.seen.iter().find(|(_, seen)| seen.member == grant.peer) else {
                    continue;
                };
                if grant.until <= local(machine) || grant.ballot != holder.lease.adopted {
                    continue;
                }
                let now = local(*giver);
                let promise = seen.lease.promises.iter().find(|promise| promise.peer == holder.member);
                let kept = promise.is_some_and(|promise| promise.ballot == grant.ballot && promise.until > now);
                let quarantined = seen.lease.quarantine.is_some_and(|until| until > now);
                let excused = quarantined && seen.lease.adopted <= grant.ballot;
                if !kept && !excused {
                    broken.push(format!(
                        "I3: {} counts a promise of {} for {}, which is not bound",
                        holder.member, grant.peer, grant.ballot
                    ));
                }
            }
        }
        broken
    }
}

/// What a machine's clock shows, for the closures above.
pub(crate) fn shown(clocks: &[Clock], machine: usize, now: u64) -> Now {
    clocks[machine].local(now)
}
