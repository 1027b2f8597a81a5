//! Hibernation: a group that has nothing to do stops its heartbeats and timers, at every member.
//!
//! A leader that has had nothing to do for a while, and whose followers have all that it has, offers to hibernate in place of a
//! heartbeat. A follower that agrees stops its timer and says so; the leader stops its own when everybody has agreed. Until then it
//! goes on offering, so a lost word costs nothing.
//!
//! Whoever hibernates trusts that its leader is there as long as the leader's *node* shows signs of life, which the shell watches
//! once per pair of nodes, whatever the number of groups ([`Input::Silent`](crate::io::Input::Silent)). Such a sign is worth a heartbeat, no more: terms,
//! votes and quorums are as ever. In particular a leader that hibernates has confirmed nothing and answers no read before a round; and it
//! asks nobody for promises, so its followers' leases run out as if it had died, and read locally again after it woke.
//!
//! Members whose nodes are silent do not keep the others awake for as long as they are away: a majority that has everything hibernates
//! without them. They learn what they missed when they come back, because that wakes the leader, and so does their own standing for
//! election.
//!
//! Each member wakes by anything that a client wants of it, a leader also by what a peer wants, a follower also by any word of its leader,
//! and both by a node's silence (pitfall P26: the silence is looked at again and again, not only when it begins). A follower lets its
//! leader go at once if that one's node is silent or was started anew, or if it stands for election itself: then it leads no more.

use crate::ids::{Index, MemberId, Now};
use crate::io::Role;
use crate::mark::Mark;
use crate::message::Body;
use crate::mutant::Mutant;
use crate::progress::Flow;
use crate::raft::Raft;
use std::collections::BTreeSet;

#[derive(Debug)]
pub(crate) struct Hibernation {
    /// No timer runs here.
    pub(crate) asleep: bool,
    /// When somebody last wanted something of this member.
    active_at: Now,
    /// At a leader: names the time since it last had something to do. Who agreed to an earlier offer may have woken since.
    idle_spell: u64,
    /// Who agreed to the offers of this spell.
    agreed: BTreeSet<MemberId>,
    /// At a leader: whose nodes are silent, and nothing of them came since.
    absent: BTreeSet<MemberId>,
}

impl Hibernation {
    pub(crate) fn new(now: Now) -> Self {
        Self {
            asleep: false,
            active_at: now,
            idle_spell: 0,
            agreed: BTreeSet::new(),
            absent: BTreeSet::new(),
        }
    }

    /// Who is no member is not missed.
    pub(crate) fn retain(&mut self, peers: &BTreeSet<MemberId>) {
        self.absent.retain(|member| peers.contains(member));
    }

    /// A leadership begins, or ends: who is absent is to be told anew.
    pub(crate) fn forget(&mut self) {
        self.asleep = false;
        self.absent.clear();
    }
}

impl Raft {
    /// Members without which this leader hibernates.
    pub(crate) fn absent(&self) -> BTreeSet<MemberId> {
        self.hibernation.absent.clone()
    }

    /// Whether this member hibernates: nothing is due here, and nothing leaves, until something comes.
    #[must_use]
    pub fn hibernates(&self) -> bool {
        self.hibernation.asleep
    }

    /// Somebody wants something.
    pub(crate) fn stir(&mut self) {
        self.hibernation.active_at = self.now;
        self.hibernation.idle_spell += 1;
        self.hibernation.agreed.clear();
        if self.hibernation.asleep {
            if self.role == Role::Leader {
                self.wake_leader();
            } else {
                // It passes the wish on. Should that be lost, or its leader not be there any more, its timer ends as ever.
                self.hibernation.asleep = false;
                self.last_contact = Some(self.now);
                self.reset_election_deadline();
            }
        }
    }

    /// As when its leadership began: everybody counts as heard from just now, and hears from it at once.
    fn wake_leader(&mut self) {
        Mark::LeaderWoke.hit();
        self.hibernation.asleep = false;
        let now = self.now;
        for progress in self.progress.values_mut() {
            progress.last_heard = now;
            progress.advanced_at = now;
        }
        self.quorum_deadline = now.after(self.config.election_timeout);
        self.broadcast_heartbeat();
    }

    fn idle_long_enough(&self) -> bool {
        let idle = self.now.since(self.hibernation.active_at);
        self.config.hibernate_after.is_some_and(|after| idle >= after)
    }

    /// Whether nothing is under way here but what timers would do.
    fn quiet(&self) -> bool {
        let last = self.log.last_index();
        self.idle_long_enough()
            && self.commit == last
            && self.emitted == last
            && self.applied == last
            && self.installing.is_none()
            && self.stand_until.is_none()
            && self.reads.count == 0
            && !self.writes_under_way()
            && !self.lease_moves()
    }

    /// Whether a leader may stop: a majority is there, and everybody who is has everything.
    fn may_hibernate(&self) -> bool {
        let last = self.log.last_index();
        let timeout = self.config.election_timeout;
        let complete = |peer: &MemberId| {
            self.progress.get(peer).is_some_and(|progress| {
                let streams = matches!(progress.flow, Flow::Replicate(_));
                let has_all = progress.matched == last && streams || Mutant::HibernateWithLaggard.active();
                has_all && self.now.since(progress.last_heard) < timeout
            })
        };
        self.role == Role::Leader
            && self.committed_in_term()
            && self.transfer.is_none()
            && !self.members.is_joint()
            && self.quiet()
            && self.roster_settled()
            && !self.reads.asks_wait()
            && self
                .members
                .is_majority(|voter| !self.hibernation.absent.contains(&voter))
            && self.peers().difference(&self.hibernation.absent).all(complete)
    }

    /// A leader's heartbeat is due: an offer takes its place where possible.
    pub(crate) fn beat(&mut self) {
        if !self.may_hibernate() {
            self.hibernation.agreed.clear();
            return self.broadcast_heartbeat();
        }
        self.heartbeat_deadline = self.next_beat();
        let (commit, spell, round) = (self.commit, self.hibernation.idle_spell, self.reads.newest_round());
        for peer in self.peers() {
            if let Some(progress) = self.progress.get_mut(&peer) {
                // Pitfall P29. Who is absent may lack something, and must not sleep over it should it hear this.
                let commit = commit.min(progress.matched);
                progress.commit_told = progress.commit_told.max(commit);
                let offer = Body::Hibernate { commit, spell };
                let beat = Body::Heartbeat { commit, round };
                let absent = self.hibernation.absent.contains(&peer);
                self.send(peer, if absent { beat } else { offer });
            }
        }
        self.fall_asleep();
    }

    /// A leader stops when everybody has.
    fn fall_asleep(&mut self) {
        let present: BTreeSet<_> = self.peers().difference(&self.hibernation.absent).copied().collect();
        let agreed = present.is_subset(&self.hibernation.agreed) || Mutant::HibernateUnasked.active();
        if agreed && self.may_hibernate() {
            Mark::Hibernated.hit();
            self.hibernation.asleep = true;
        }
    }

    /// The leader offers to hibernate. It counts as a heartbeat; who does not agree answers as to one.
    pub(crate) fn on_hibernate(&mut self, from: MemberId, commit: Index, spell: u64) {
        self.heard_leader(from);
        self.hear_commit(commit);
        if self.quiet() && (self.commit == commit || Mutant::HibernateWithLaggard.active()) {
            self.hibernation.asleep = true;
            self.election_deadline = None;
            self.send(from, Body::Hibernating { spell });
        } else {
            let stamp = self.stamp();
            self.send(from, Body::HeartbeatReply { round: 0, stamp });
        }
    }

    pub(crate) fn on_hibernating(&mut self, from: MemberId, spell: u64) {
        if self.role == Role::Leader && !self.hibernation.asleep && spell == self.hibernation.idle_spell {
            self.hibernation.agreed.insert(from);
            self.fall_asleep();
        }
    }

    /// What a message means to a member that hibernates, before anything else.
    pub(crate) fn stir_by(&mut self, body: &Body) {
        let wanted = match body {
            // Somebody misses its leader, or wants something of it.
            Body::PreVote { .. }
            | Body::Vote { .. }
            | Body::Forward { .. }
            | Body::ReadIndex { .. }
            | Body::AppendRejected { .. } => true,
            // Answers may be late, and belong to what is done. What only a leader says wakes a follower when it is taken.
            Body::PreVoteReply { .. }
            | Body::VoteReply { .. }
            | Body::Committed { .. }
            | Body::Append { .. }
            | Body::AppendAccepted { .. }
            | Body::Heartbeat { .. }
            | Body::HeartbeatReply { .. }
            | Body::Hibernate { .. }
            | Body::Hibernating { .. }
            | Body::Snapshot { .. }
            | Body::TimeoutNow
            | Body::ReadIndexReply { .. }
            | Body::Roster { .. }
            // Promises are asked for and let go by themselves, not because somebody reads.
            | Body::LeaseRequest { .. }
            | Body::LeaseGrant { .. }
            | Body::Revoke { .. }
            | Body::Revoked { .. }
            // Of nodes, not of groups.
            | Body::Alive { .. } => false,
        };
        if wanted && self.role == Role::Leader {
            self.stir();
        }
    }

    /// The node of that member shows no sign of life, or has been started anew.
    pub(crate) fn on_silent(&mut self, peer: MemberId) {
        if Mutant::SleepThroughSilence.active() {
            return;
        }
        if self.role == Role::Leader && peer != self.config.id && self.members.contains(peer) {
            self.hibernation.absent.insert(peer);
            if self.hibernation.asleep {
                // Whether it still leads, the next rounds will tell.
                self.stir();
            }
        } else if self.hibernation.asleep && self.leader == Some(peer) {
            self.let_leader_go();
        }
    }

    /// That member said something, or its node shows signs of life again.
    pub(crate) fn on_returned(&mut self, peer: MemberId) {
        if self.hibernation.absent.remove(&peer) && self.hibernation.asleep && !Mutant::SleepThroughReturn.active() {
            self.stir();
        }
    }

    /// Somebody stands for election in a later term. If it is the one that this member trusts in its sleep, that one leads no more.
    pub(crate) fn hear_candidate(&mut self, candidate: MemberId) {
        if self.hibernation.asleep && self.leader == Some(candidate) {
            self.let_leader_go();
        }
    }

    /// A member that hibernates learns that its leader leads no more. Soon it stands, but not all members and groups at once.
    pub(crate) fn let_leader_go(&mut self) {
        Mark::FollowerWokeWithoutLeader.hit();
        self.hibernation.asleep = false;
        self.leader = None;
        self.last_contact = None;
        let jitter = self.rng.within(self.config.election_timeout);
        self.election_deadline = Some(self.now.after(jitter));
    }
}
