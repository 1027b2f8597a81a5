//! Read leases: who promised what to whom, and how a member moves from one roster to the next.
//!
//! A promise of S to P for ballot `b` says: "until it is dead I take part in no roster after `b`". P asks and counts its lease
//! from the moment it *asked*, shortened by the drift bound; S counts its promise from the moment it answered, lengthened by it.
//! Asking comes before answering, so the promise outlives the lease whatever the network does (option A' of the study). Each side
//! reads its own clock only.
//!
//! Moving on, in this order: a newer roster of the present term's leader is seen; nothing is promised for the old one any more and
//! whoever holds a promise is told to let go; when every promise is dead (let go, or run out by this member's clock) the new
//! ballot is adopted, durably; only then do acknowledgements carry its stamp and are promises made for it. Voting and
//! replication are never blocked by any of this.
//!
//! Why no write can be missed: a commit under `b'` needs a majority stamped `b'`; a member that reads locally under `b < b'`
//! needs promises of a majority for `b`. Some voter is in both, and its stamp says that its promise was dead before.
//!
//! A boot forgets to whom it had promised, so it holds itself bound to everybody for the longest time that it ever
//! promised (pitfall P24); the ballot itself is durable. Promises for the same ballot may go on at once.

use crate::entry::{ConfigState, LeaseState};
use crate::ids::{Index, MemberId, Now};
use crate::io::{LeaseView, Promise, Role};
use crate::message::Body;
use crate::mutant::Mutant;
use crate::raft::Raft;
use crate::roster::{Ballot, Roster};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A clock that moves on by more than this between two steps of a running member was set, or stood still (a suspended virtual
/// machine): nothing that was timed before is trusted. Far above any pause that a healthy node makes.
const CLOCK_JUMP: Duration = Duration::from_secs(60);
const MILLION: u32 = 1_000_000;

/// A promise that this member holds.
#[derive(Clone, Copy, Debug)]
struct Grant {
    ballot: Ballot,
    /// When it was asked for.
    sent: Now,
}

/// Promises of an earlier life, to nobody knows whom.
#[derive(Clone, Debug)]
struct Quarantine {
    until: Now,
    /// Who may hold one; `None` if members of an earlier configuration may.
    holders: Option<BTreeSet<MemberId>>,
    /// Whoever let go of them since.
    released: BTreeSet<MemberId>,
}

#[derive(Debug, Default)]
pub(crate) struct Lease {
    /// What must be durable before anybody hears of it.
    pub(crate) state: LeaseState,
    /// What is.
    pub(crate) durable: LeaseState,
    /// The adopted roster; unknown after a boot until its leader says it again.
    pub(crate) roster: Option<Roster>,
    /// A newer one, waiting for promises to die.
    pub(crate) pending: Option<Roster>,
    /// Promises for `adopted`, and when they are dead.
    promises: BTreeMap<MemberId, Now>,
    quarantine: Option<Quarantine>,
    grants: BTreeMap<MemberId, Grant>,
    /// Of each granting member: nothing of before this boot and ballot counts any more.
    fences: BTreeMap<MemberId, (u64, Ballot)>,
    /// When to ask for promises again.
    renew_at: Option<Now>,
    /// When to ask again to be let go.
    revoke_at: Option<Now>,
    /// The clock is behind an earlier reading: time cannot be told.
    clock_back: bool,
    /// Nothing asked for up to this moment counts.
    void: Option<Now>,
}

impl Lease {
    /// After a boot.
    pub(crate) fn booted(stored: LeaseState, members: &ConfigState, me: MemberId, now: Now) -> Self {
        let mut state = stored;
        let quarantine = (!stored.promise_max.is_zero() && !Mutant::SkipQuarantine.active()).then(|| Quarantine {
            until: now.after(stored.promise_max),
            holders: (stored.config == members.index).then(|| {
                let mut holders = members.members();
                holders.remove(&me);
                holders
            }),
            released: BTreeSet::new(),
        });
        if stored.incarnation > 0 {
            state.incarnation += 1;
        }
        if Mutant::ForgetBallot.active() {
            state.adopted = Ballot::default();
        }
        Self {
            state,
            durable: stored,
            quarantine,
            ..Self::default()
        }
    }

    pub(crate) fn adopted(&self) -> Ballot {
        self.state.adopted
    }
}

impl Raft {
    /// A lease as long as its holder may count on.
    fn lease_held(&self, length: Duration) -> Duration {
        if Mutant::NoDriftMargin.active() {
            return length;
        }
        length * (MILLION - self.config.drift_ppm) / MILLION
    }

    /// A lease as long as the promise behind it lasts.
    fn lease_promised(&self, length: Duration) -> Duration {
        if Mutant::NoDriftMargin.active() {
            return length;
        }
        length * (MILLION + self.config.drift_ppm) / MILLION
    }

    /// A clock that goes back or jumps: what was timed by it is void, and promises are as unknown as after a boot.
    pub(crate) fn watch_clock(&mut self, now: Now) {
        let back = now < self.now;
        self.lease.clock_back = back;
        if !back && now.since(self.now) <= CLOCK_JUMP {
            return;
        }
        self.lease.grants.clear();
        self.lease.void = Some(self.now);
        if !back && !self.lease.state.promise_max.is_zero() {
            self.lease.quarantine = Some(Quarantine {
                until: now.after(self.lease.state.promise_max),
                holders: match &self.lease.quarantine {
                    Some(quarantine) => quarantine.holders.clone(),
                    None => Some(self.lease.promises.keys().copied().collect()),
                },
                released: BTreeSet::new(),
            });
        }
    }

    /// The stamp of this member's acknowledgements.
    pub(crate) fn stamp(&self) -> Option<crate::ids::Epoch> {
        if Mutant::StampEarly.active()
            && let Some(pending) = &self.lease.pending
        {
            return Some(pending.ballot.epoch);
        }
        let adopted = self.lease.adopted();
        let known = self.lease.roster.is_some() && self.lease.durable == self.lease.state;
        (known && adopted.term == self.term).then_some(adopted.epoch)
    }

    /// The present leader's roster.
    pub(crate) fn on_roster(&mut self, from: MemberId, roster: Roster) {
        self.heard_leader(from);
        if roster.ballot.term == self.term && roster.leader == from {
            self.see_roster(roster);
        }
    }

    pub(crate) fn see_roster(&mut self, roster: Roster) {
        let adopted = self.lease.adopted();
        if roster.ballot == adopted {
            // Known by name since before a boot; now also by content.
            if self.lease.roster.is_none() && self.lease.pending.is_none() {
                self.lease.roster = Some(roster);
                self.lease.renew_at = Some(self.now);
            }
            return;
        }
        let newest = self.lease.pending.as_ref().map_or(adopted, |pending| pending.ballot);
        if roster.ballot <= newest {
            return;
        }
        self.lease.pending = Some(roster);
        self.lease.revoke_at = Some(self.now);
        if Mutant::ForgetPromises.active() {
            self.lease.promises.clear();
        }
        self.settle_roster();
    }

    /// Adopts the pending roster if every promise for older ones is dead; else asks, now and then, to be let go.
    pub(crate) fn settle_roster(&mut self) {
        let now = self.now;
        self.lease.promises.retain(|_, until| *until > now);
        if self.lease.pending.is_none() && self.lease.quarantine.is_none() {
            return;
        }
        let all_let_go = |quarantine: &Quarantine| {
            let holders = quarantine.holders.as_ref();
            holders.is_some_and(|holders| holders.is_subset(&quarantine.released))
        };
        let over = |quarantine: &Quarantine| quarantine.until <= now || all_let_go(quarantine);
        if self.lease.quarantine.as_ref().is_some_and(over) {
            self.lease.quarantine = None;
        }
        let Some(pending) = &self.lease.pending else {
            return;
        };
        if self.lease.promises.is_empty() && self.lease.quarantine.is_none() {
            self.adopt();
        } else if self.lease.revoke_at.is_some_and(|at| at <= now) {
            let body = Body::Revoke {
                below: pending.ballot,
                incarnation: self.lease.state.incarnation,
            };
            let mut bound: BTreeSet<MemberId> = self.lease.promises.keys().copied().collect();
            if let Some(quarantine) = &self.lease.quarantine {
                bound.extend(
                    quarantine
                        .holders
                        .iter()
                        .flatten()
                        .filter(|holder| !quarantine.released.contains(holder)),
                );
            }
            self.lease.revoke_at = Some(now.after(self.config.heartbeat_interval));
            for peer in bound {
                // Its boot must be durable before it is named: a later boot would use the same number.
                if self.lease.durable.incarnation == self.lease.state.incarnation {
                    self.send(peer, body.clone());
                } else {
                    self.send_durable(peer, body.clone());
                }
            }
        }
    }

    fn adopt(&mut self) {
        let Some(roster) = self.lease.pending.take() else {
            return;
        };
        assert!(
            self.lease.promises.is_empty(),
            "roster {} is adopted with live promises for an older one",
            roster.ballot
        );
        let promise = self.lease_promised(roster.lease);
        let state = &mut self.lease.state;
        assert!(roster.ballot > state.adopted, "rosters never go back");
        state.adopted = roster.ballot;
        state.incarnation = state.incarnation.max(1);
        state.promise_max = state.promise_max.max(promise);
        state.config = roster.config;
        self.lease.grants.clear();
        self.lease.revoke_at = None;
        self.lease.renew_at = Some(self.now);
        self.lease.roster = Some(roster);
    }

    /// A write made this durable.
    pub(crate) fn lease_durable(&mut self, durable: LeaseState) {
        let news = durable != self.lease.durable;
        self.lease.durable = durable;
        if !news || self.stamp().is_none() {
            return;
        }
        if let (Role::Follower | Role::Learner, Some(leader)) = (self.role, self.leader) {
            // The leader waits for this stamp: its commits count only stamped copies.
            self.send_accepted(leader, self.acknowledged.max(self.commit));
        }
    }

    /// Whether this member is on its way to another roster, or to have its state durable.
    pub(crate) fn lease_moves(&self) -> bool {
        self.lease.pending.is_some() || self.lease.durable != self.lease.state
    }

    /// Whether this member should hold promises now. Not after `TimeoutNow` has left (pitfalls P3 and P23).
    fn wants_lease(&self) -> Option<&Roster> {
        let roster = self.lease.roster.as_ref()?;
        let ballot = self.lease.adopted();
        let follows = match self.role {
            Role::Leader => self.transfer.is_none_or(|transfer| !transfer.told),
            Role::Follower | Role::Learner => self.leader == Some(roster.leader),
            Role::PreCandidate | Role::Candidate => false,
        };
        let wanted = !roster.lease.is_zero()
            && roster.ballot == ballot
            && ballot.term == self.term
            && self.lease.pending.is_none()
            && roster.reads(self.config.id)
            && self.members.contains(self.config.id)
            && self.lease.durable == self.lease.state
            && !self.lease.clock_back
            && !self.hibernation.asleep
            && self.installing.is_none();
        (wanted && follows).then_some(roster)
    }

    /// Asks every voter for its promise, once a heartbeat.
    pub(crate) fn renew(&mut self) {
        let due = self.lease.renew_at.is_some_and(|at| at <= self.now);
        if !due || self.wants_lease().is_none() {
            return;
        }
        self.lease.renew_at = Some(self.next_beat());
        for peer in self.peers() {
            self.send(
                peer,
                Body::LeaseRequest {
                    ballot: self.lease.adopted(),
                    sent: self.now,
                    incarnation: self.lease.state.incarnation,
                },
            );
        }
    }

    pub(crate) fn on_lease_request(&mut self, from: MemberId, ballot: Ballot, sent: Now, asker: u64) {
        let Some(roster) = self.lease.roster.as_ref() else {
            return;
        };
        let grants = self.lease.pending.is_none()
            && ballot == self.lease.adopted()
            && ballot.term == self.term
            && self.lease.durable == self.lease.state
            && !roster.lease.is_zero()
            && roster.reads(from)
            && self.members.contains(from)
            && (self.is_voter() || Mutant::CountLearners.active());
        if !grants {
            return;
        }
        let until = self.now.after(self.lease_promised(roster.lease));
        // The promise begins before its message leaves, and is never cut short.
        let promise = self.lease.promises.entry(from).or_insert(until);
        *promise = until.max(*promise);
        self.send(
            from,
            Body::LeaseGrant {
                ballot,
                sent,
                asker,
                incarnation: self.lease.state.incarnation,
            },
        );
    }

    pub(crate) fn on_lease_grant(&mut self, from: MemberId, ballot: Ballot, sent: Now, asker: u64, incarnation: u64) {
        if asker != self.lease.state.incarnation && !Mutant::SkipIncarnation.active() {
            // Its time was read from an earlier life's clock.
            return;
        }
        let fenced = self
            .lease
            .fences
            .get(&from)
            .is_some_and(|(boot, below)| incarnation < *boot || (incarnation == *boot && ballot < *below));
        let void = self.lease.void.is_some_and(|void| sent <= void) || self.lease.clock_back;
        let other = ballot != self.lease.adopted() || self.lease.pending.is_some();
        if (fenced && !Mutant::AcceptLateGrant.active()) || void || other {
            return;
        }
        let sent = if Mutant::AnchorAtReceipt.active() {
            self.now
        } else {
            sent
        };
        let grant = self.lease.grants.entry(from).or_insert(Grant { ballot, sent });
        if (grant.ballot, grant.sent) < (ballot, sent) {
            *grant = Grant { ballot, sent };
        }
    }

    /// Also of a sender in an earlier term: letting go is always safe.
    pub(crate) fn on_revoke(&mut self, from: MemberId, below: Ballot, incarnation: u64) {
        let fence = self.lease.fences.entry(from).or_insert((incarnation, below));
        *fence = (*fence).max((incarnation, below));
        if self.lease.grants.get(&from).is_some_and(|grant| grant.ballot < below) {
            self.lease.grants.remove(&from);
        }
        self.send(from, Body::Revoked { below, incarnation });
    }

    pub(crate) fn on_revoked(&mut self, from: MemberId, below: Ballot, incarnation: u64) {
        let mine = incarnation == self.lease.state.incarnation && self.lease.pending.is_some();
        if mine && below > self.lease.adopted() {
            self.lease.promises.remove(&from);
            if let Some(quarantine) = &mut self.lease.quarantine {
                quarantine.released.insert(from);
            }
        }
    }

    /// Whether a majority of the voters has promised, for the adopted roster, and every promise is still good at the `now` of
    /// this step. A deadline is never trusted to a timer (defect D5).
    pub(crate) fn holds_lease(&self) -> bool {
        let Some(roster) = self.wants_lease() else {
            return false;
        };
        // Majorities of neighbouring configurations meet; those of others may not.
        if roster.config != self.members.index {
            return false;
        }
        let length = self.lease_held(roster.lease);
        let granted = |voter| {
            if voter == self.config.id {
                return true;
            }
            self.lease.grants.get(&voter).is_some_and(|grant| {
                grant.ballot == roster.ballot && (self.now < grant.sent.after(length) || Mutant::IgnoreExpiry.active())
            })
        };
        if Mutant::CountLearners.active() {
            let counted = self.peers().into_iter().filter(|peer| granted(*peer)).count() + 1;
            return counted > self.members.voters.len() / 2;
        }
        self.members.is_majority(granted)
    }

    /// When something about leases must happen.
    pub(crate) fn lease_deadline(&self) -> Option<Now> {
        let renew = self.wants_lease().and(self.lease.renew_at);
        let leave = self.lease.pending.as_ref().and_then(|_| {
            let promises = self.lease.promises.values().copied().min();
            let quarantine = self.lease.quarantine.as_ref().map(|quarantine| quarantine.until);
            promises.into_iter().chain(quarantine).chain(self.lease.revoke_at).min()
        });
        renew.into_iter().chain(leave).min()
    }

    pub(crate) fn lease_view(&self) -> LeaseView {
        let adopted = self.lease.adopted();
        let held = self
            .lease
            .roster
            .as_ref()
            .map_or(Duration::ZERO, |roster| self.lease_held(roster.lease));
        let promises = self.lease.promises.iter().map(|(&peer, &until)| Promise {
            peer,
            ballot: adopted,
            until,
        });
        let grants = self.lease.grants.iter().map(|(&peer, grant)| Promise {
            peer,
            ballot: grant.ballot,
            until: grant.sent.after(held),
        });
        LeaseView {
            reads: self.reads_state.clone(),
            roster: self.lease.roster.clone(),
            adopted,
            pending: self.lease.pending.as_ref().map(|pending| pending.ballot),
            minted: self.minted.as_ref().map(|minted| minted.roster.ballot),
            open: self.gate_open(),
            promises: promises.collect(),
            quarantine: self.lease.quarantine.as_ref().map(|quarantine| quarantine.until),
            grants: grants.collect(),
            holding: self.gate.holding(),
            counts: self.gate.counts,
        }
    }

    /// The safe index of the adopted roster.
    pub(crate) fn safe_index(&self) -> Option<Index> {
        self.lease.roster.as_ref().map(|roster| roster.safe)
    }
}
