//! Terms, votes, deadlines and leadership transfer (Raft paper, section 5.2; Raft thesis, sections 3.10 and 9.6).

use crate::entry::Payload;
use crate::ids::{Index, LogPosition, MemberId, Term};
use crate::io::{DropReason, RequestId, Role};
use crate::mark::Mark;
use crate::message::{Body, Message};
use crate::mutant::Mutant;
use crate::progress::Progress;
use crate::raft::{Raft, Transfer};

impl Raft {
    /// Learner or follower, as the configuration says, without touching the term.
    pub(crate) fn settle_role(&mut self) {
        if matches!(self.role, Role::Learner | Role::Follower) {
            self.role = if self.is_voter() { Role::Follower } else { Role::Learner };
        }
    }

    pub(crate) fn reset_election_deadline(&mut self) {
        let known = !self.members.voters.is_empty() || self.leader.is_some();
        self.election_deadline = known.then(|| {
            let jitter = self.rng.within(self.config.election_timeout);
            self.now.after(self.config.election_timeout).after(jitter)
        });
    }

    pub(crate) fn become_follower(&mut self, term: Term, leader: Option<MemberId>) {
        assert!(term >= self.term, "terms never go backwards");
        if term > self.term {
            self.term = term;
            self.vote = None;
            self.acknowledged = Index::ZERO;
        }
        self.minted = None;
        let led = self.role == Role::Leader;
        self.role = Role::Follower;
        self.settle_role();
        self.leader = leader;
        self.hibernation.forget();
        self.stand_until = None;
        self.ballots.clear();
        self.progress.clear();
        self.transfer = None;
        if led {
            self.reads_lose_leadership();
        }
        if leader.is_none() {
            self.last_contact = None;
        }
        self.reset_election_deadline();
    }

    pub(crate) fn heard_leader(&mut self, leader: MemberId) {
        if self.leader != Some(leader) || !matches!(self.role, Role::Follower | Role::Learner) {
            assert!(
                self.role != Role::Leader,
                "two leaders in term {}: {} and {leader} (Raft's election safety is broken)",
                self.term,
                self.config.id
            );
            self.become_follower(self.term, Some(leader));
        }
        self.hibernation.asleep = false;
        self.last_contact = Some(self.now);
        self.reset_election_deadline();
    }

    /// Whether a leader was heard of so lately that a vote for another would only disturb (Raft thesis, section 4.2.3).
    fn in_lease(&self) -> bool {
        match self.role {
            Role::Leader => true,
            // Signs of life of the leader's node stand for heartbeats.
            Role::Learner | Role::Follower if self.hibernation.asleep => true,
            Role::Learner | Role::Follower | Role::PreCandidate | Role::Candidate => {
                self.leader.is_some()
                    && self
                        .last_contact
                        .is_some_and(|heard| self.now.since(heard) < self.config.election_timeout)
            }
        }
    }

    pub(crate) fn tick(&mut self) {
        if self.hibernation.asleep {
            // Only reads that wait for an answer are due here.
        } else if self.role == Role::Leader {
            self.tick_leader();
        } else if self.election_deadline.is_some_and(|deadline| deadline <= self.now) {
            self.leader = None;
            self.last_contact = None;
            if self.may_campaign() {
                self.campaign(Campaign::PreVote);
            } else {
                self.reset_election_deadline();
            }
        }
        self.reads_expire();
    }

    fn tick_leader(&mut self) {
        if self.quorum_deadline <= self.now {
            let active = self.members.is_majority(|voter| {
                voter == self.config.id
                    || self
                        .progress
                        .get(&voter)
                        .is_some_and(|progress| self.now.since(progress.last_heard) < self.config.election_timeout)
            });
            if !active {
                Mark::QuorumLost.hit();
                self.become_follower(self.term, None);
                return;
            }
            self.quorum_deadline = self.now.after(self.config.election_timeout);
        }
        if self.transfer.is_some_and(|transfer| transfer.deadline <= self.now) {
            Mark::TransferTimedOut.hit();
            self.transfer = None;
        }
        if self.heartbeat_deadline <= self.now {
            self.beat();
            self.repeat_roster();
            self.probe_stalled();
            self.note_progress();
            self.review_due = true;
        } else if self.demotion_deadline().is_none() {
            // Somebody's silence is over its bound, or nobody's is under it.
            self.review_due = true;
        }
    }

    /// A voter campaigns, but not while a committed change of the voters is still to be handed out (pitfall P8),
    /// nor while its log is being replaced.
    fn may_campaign(&self) -> bool {
        let waits = self.log.first_config(self.emitted.next(), self.commit).is_some();
        if waits {
            Mark::CampaignWaitsForChange.hit();
        }
        self.is_voter() && self.installing.is_none() && !waits
    }

    pub(crate) fn campaign_early(&mut self) {
        let waits = match self.role {
            Role::Follower | Role::PreCandidate => self.leader.is_none(),
            Role::Learner | Role::Candidate | Role::Leader => false,
        };
        if waits && self.may_campaign() {
            self.campaign(Campaign::PreVote);
        }
    }

    fn campaign(&mut self, kind: Campaign) {
        self.leader = None;
        self.hibernation.asleep = false;
        self.stand_until = None;
        self.last_contact = None;
        self.ballots.clear();
        let (term, body) = match kind {
            Campaign::PreVote => {
                self.role = Role::PreCandidate;
                (self.term.next(), Body::PreVote { last: self.log.last() })
            }
            Campaign::Vote { transfer } => {
                self.role = Role::Candidate;
                self.term = self.term.next();
                self.vote = Some(self.config.id);
                self.acknowledged = Index::ZERO;
                (
                    self.term,
                    Body::Vote {
                        last: self.log.last(),
                        transfer,
                    },
                )
            }
        };
        self.reset_election_deadline();
        match kind {
            Campaign::PreVote => {
                self.ballots.insert(self.config.id, true);
            }
            // Counted once it is durable (`own_vote_durable`): a lone voter that leads on a vote which a crash forgets would
            // lead the same term twice, with another log, and its learners would believe both.
            Campaign::Vote { .. } if Mutant::LeadBeforePersist.active() => {
                self.ballots.insert(self.config.id, true);
            }
            Campaign::Vote { .. } => {}
        }
        for peer in self.members.voting() {
            if peer != self.config.id {
                match kind {
                    Campaign::PreVote => self.send_at(peer, term, body.clone()),
                    // Its own vote must be durable before others are asked for theirs.
                    Campaign::Vote { .. } if Mutant::AskBeforePersist.active() => self.send(peer, body.clone()),
                    Campaign::Vote { .. } => self.send_durable(peer, body.clone()),
                }
            }
        }
        self.count_ballots();
    }

    /// This member's vote for itself counts from now on.
    pub(crate) fn own_vote_durable(&mut self) {
        if self.role == Role::Candidate && !self.ballots.contains_key(&self.config.id) {
            self.ballots.insert(self.config.id, true);
            self.count_ballots();
        }
    }

    fn count_ballots(&mut self) {
        let granted = |voter| self.ballots.get(&voter) == Some(&true);
        let open = |voter| self.ballots.get(&voter) != Some(&false);
        if self.members.is_majority(granted) {
            match self.role {
                Role::PreCandidate => self.campaign(Campaign::Vote { transfer: false }),
                Role::Candidate => self.become_leader(),
                Role::Learner | Role::Follower | Role::Leader => {}
            }
        } else if !self.members.is_majority(open) {
            let term = self.term;
            self.become_follower(term, None);
        }
    }

    fn become_leader(&mut self) {
        assert!(self.is_voter(), "invariant: who stands has a vote (pitfall P8)");
        self.role = Role::Leader;
        self.leader = Some(self.config.id);
        self.transfer = None;
        self.ballots.clear();
        let next = self.log.last_index().next();
        self.progress = self
            .peers()
            .into_iter()
            .map(|peer| (peer, Progress::new(next, self.now)))
            .collect();
        self.quorum_deadline = self.now.after(self.config.election_timeout);
        self.heartbeat_deadline = self.next_beat();
        self.hibernation.forget();
        self.stir();
        self.term_start = self.log.push(self.term, Payload::Noop);
        self.open_term();
        self.reads_gain_leadership();
    }

    pub(crate) fn receive(&mut self, message: Message) {
        assert!(
            message.group == self.config.group,
            "a message for group {} reached another",
            message.group
        );
        if message.to != self.config.id || message.from == self.config.id {
            return;
        }
        if self.hibernation.asleep {
            self.stir_by(&message.body);
        }
        if let Body::Committed { position } = message.body {
            self.on_committed(position);
            return;
        }
        if message.term > self.term && !self.accept_higher_term(&message) {
            return;
        }
        if message.term < self.term {
            self.answer_lower_term(&message);
            return;
        }
        if let Some(progress) = self.progress.get_mut(&message.from) {
            progress.last_heard = self.now;
            self.on_returned(message.from);
        }
        let from = message.from;
        match message.body {
            Body::PreVote { last } => self.on_pre_vote(from, message.term, last),
            // A grant in the present term was for an earlier campaign: it must not count for this one (pitfall P4).
            Body::PreVoteReply { granted: true } => Mark::StalePreVoteGrant.hit(),
            Body::PreVoteReply { granted: false } => {
                self.on_ballot(Role::PreCandidate, from, false);
                self.tell_committed(from);
            }
            Body::Committed { position } => self.on_committed(position),
            Body::Vote { last, .. } => self.on_vote(from, last),
            Body::VoteReply { granted } => self.on_ballot(Role::Candidate, from, granted),
            Body::Append { prev, entries, commit } => self.on_append(from, prev, entries, commit),
            Body::AppendAccepted { last, stamp } => {
                self.on_append_accepted(from, last);
                self.on_stamp(from, stamp);
            }
            Body::AppendRejected { rejected, hint } => self.on_append_rejected(from, rejected, hint),
            Body::Heartbeat { commit, round } => self.on_heartbeat(from, commit, round),
            Body::Hibernate { commit, spell } => self.on_hibernate(from, commit, spell),
            Body::Hibernating { spell } => self.on_hibernating(from, spell),
            Body::Alive { .. } => {}
            Body::HeartbeatReply { round, stamp } => {
                self.on_heartbeat_reply(from, round);
                self.on_stamp(from, stamp);
            }
            Body::Snapshot { meta } => self.on_snapshot(from, meta),
            Body::TimeoutNow => self.on_timeout_now(from),
            Body::ReadIndex { request } => self.on_read_index(from, request),
            Body::ReadIndexReply { request, index } => self.on_read_index_reply(from, request, index),
            Body::Forward { commands } => self.on_forward(commands),
            Body::Roster { roster } => self.on_roster(from, roster),
            Body::LeaseRequest {
                ballot,
                sent,
                incarnation,
            } => self.on_lease_request(from, ballot, sent, incarnation),
            Body::LeaseGrant {
                ballot,
                sent,
                asker,
                incarnation,
            } => self.on_lease_grant(from, ballot, sent, asker, incarnation),
            Body::Revoke { below, incarnation } => self.on_revoke(from, below, incarnation),
            Body::Revoked { below, incarnation } => self.on_revoked(from, below, incarnation),
        }
    }

    /// Whether a message from a later term is to be handled. Pre-votes and refusals of pre-votes keep their own rules.
    fn accept_higher_term(&mut self, message: &Message) -> bool {
        match &message.body {
            // The term of a granted pre-vote is the one asked for, not one that exists.
            Body::PreVoteReply { granted: true } => {
                self.on_granted_pre_vote(message.from, message.term);
                false
            }
            Body::PreVote { last } => {
                self.hear_candidate(message.from);
                if !self.in_lease() {
                    self.on_pre_vote(message.from, message.term, *last);
                }
                false
            }
            Body::Vote { transfer, .. } => {
                self.hear_candidate(message.from);
                if self.in_lease() && !transfer {
                    Mark::VoteRefusedInLease.hit();
                    return false;
                }
                self.become_follower(message.term, None);
                true
            }
            Body::Append { .. }
            | Body::Heartbeat { .. }
            | Body::Hibernate { .. }
            | Body::Snapshot { .. }
            | Body::Roster { .. } => {
                self.become_follower(message.term, Some(message.from));
                true
            }
            Body::PreVoteReply { granted: false }
            | Body::Committed { .. }
            | Body::VoteReply { .. }
            | Body::AppendAccepted { .. }
            | Body::AppendRejected { .. }
            | Body::HeartbeatReply { .. }
            | Body::Hibernating { .. }
            | Body::TimeoutNow
            | Body::ReadIndex { .. }
            | Body::ReadIndexReply { .. }
            | Body::Forward { .. }
            | Body::LeaseRequest { .. }
            | Body::LeaseGrant { .. }
            | Body::Revoke { .. }
            | Body::Revoked { .. } => {
                self.become_follower(message.term, None);
                true
            }
            Body::Alive { .. } => false,
        }
    }

    /// Silence would leave the sender stuck in its old term (pitfalls P4 and P5).
    fn answer_lower_term(&mut self, message: &Message) {
        match &message.body {
            Body::PreVote { .. } => {
                Mark::PreVoteOfLowerTerm.hit();
                self.send(message.from, Body::PreVoteReply { granted: false });
            }
            Body::Vote { .. } => self.send(message.from, Body::VoteReply { granted: false }),
            Body::Append { .. }
            | Body::Heartbeat { .. }
            | Body::Hibernate { .. }
            | Body::Snapshot { .. }
            | Body::Roster { .. } => {
                Mark::LowerTermLeaderAnswered.hit();
                self.send(message.from, Body::HeartbeatReply { round: 0, stamp: None });
            }
            // Letting go helps whoever asks, in whatever term; and it tells it of this one.
            Body::Revoke { below, incarnation } => self.on_revoke(message.from, *below, *incarnation),
            Body::PreVoteReply { .. }
            | Body::Committed { .. }
            | Body::VoteReply { .. }
            | Body::AppendAccepted { .. }
            | Body::AppendRejected { .. }
            | Body::HeartbeatReply { .. }
            | Body::Hibernating { .. }
            | Body::TimeoutNow
            | Body::ReadIndex { .. }
            | Body::ReadIndexReply { .. }
            | Body::Forward { .. }
            | Body::LeaseRequest { .. }
            | Body::LeaseGrant { .. }
            | Body::Revoked { .. }
            | Body::Alive { .. } => {}
        }
    }

    /// Tells another member what is committed here.
    ///
    /// A configuration holds when it is known to be committed, so two members of a group without a leader may go by different
    /// ones, and each may need the other's vote: one who was given a vote and does not know has the longer log, and may not
    /// stand; one who may stand has the shorter log, and is refused. Or those who left by the end of a joint configuration have
    /// longer logs than a newcomer who does not know of the end. Either lasts for ever, unless they tell each other (pitfalls P9
    /// and P10; TiKV's raft-rs does the same within its vote messages).
    fn tell_committed(&mut self, to: MemberId) {
        let index = self.commit_to_tell();
        if let Some(term) = self.log.term_at(index)
            && !Mutant::CommitIsKeptSecret.active()
        {
            let position = LogPosition { term, index };
            self.send(to, Body::Committed { position });
        }
    }

    /// A leader knows better, and a log that is being replaced does not count.
    fn on_committed(&mut self, position: LogPosition) {
        let news = position.index > self.commit && self.log.contains(position);
        if news && self.role != Role::Leader && self.installing.is_none() {
            if self.leader.is_none() {
                Mark::CommitHeardWhileStanding.hit();
            }
            let stands = matches!(self.role, Role::PreCandidate | Role::Candidate);
            let changes = self.log.first_config(self.commit.next(), position.index).is_some();
            self.commit_to(position.index);
            if stands && changes && !Mutant::StandThroughChange.active() {
                // Its ballots are of voters who may not be those who decide any more, nor this member one of them (pitfall
                // P8). It stands again as one, when it has handed out the change.
                Mark::StoodDownForChange.hit();
                self.become_follower(self.term, None);
            }
        }
    }

    fn on_pre_vote(&mut self, from: MemberId, term: Term, last: LogPosition) {
        // A grant changes nothing here, not even a deadline (pitfall P4). A learner answers: it may have been promoted
        // without knowing (pitfall P9).
        let granted = term > self.term && !self.in_lease() && !self.is_blank() && last.up_to_date_with(self.log.last());
        let reply_term = if granted { term } else { self.term };
        self.send_at(from, reply_term, Body::PreVoteReply { granted });
        if !granted {
            self.tell_committed(from);
        }
    }

    fn on_granted_pre_vote(&mut self, from: MemberId, term: Term) {
        if self.role == Role::PreCandidate && term == self.term.next() {
            self.ballots.insert(from, true);
            self.count_ballots();
        }
    }

    /// Whether it knows nothing at all. Such a replica has no vote: every voter has at least the entry that made it one. It may have been
    /// a voter before it left this group and came again; a candidate that knows of neither would take its word for that of the one it was,
    /// who had acknowledged what this one has not.
    fn is_blank(&self) -> bool {
        self.log.last() == LogPosition::default() && self.members.voting().is_empty()
    }

    fn on_vote(&mut self, from: MemberId, last: LogPosition) {
        let free = self.vote.is_none_or(|vote| vote == from) && self.leader.is_none() || Mutant::VoteTwice.active();
        let granted = free && !self.is_blank() && last.up_to_date_with(self.log.last());
        if granted {
            self.vote = Some(from);
            self.reset_election_deadline();
        }
        if granted && !Mutant::VoteBeforePersist.active() {
            self.send_durable(from, Body::VoteReply { granted });
        } else {
            self.send(from, Body::VoteReply { granted });
        }
    }

    fn on_ballot(&mut self, role: Role, from: MemberId, granted: bool) {
        if self.role == role {
            self.ballots.entry(from).or_insert(granted);
            self.count_ballots();
        }
    }

    pub(crate) fn transfer_leader(&mut self, to: Option<MemberId>) {
        if self.role != Role::Leader {
            return;
        }
        self.stir();
        let target = to.or_else(|| {
            let voters = self.progress.iter().filter(|(member, progress)| {
                self.members.voters.contains(member)
                    && self.now.since(progress.last_heard) < self.config.election_timeout
            });
            voters
                .max_by_key(|(_, progress)| progress.matched)
                .map(|(&member, _)| member)
        });
        let Some(target) = target.filter(|to| *to != self.config.id && self.members.voters.contains(to)) else {
            return;
        };
        self.transfer = Some(Transfer {
            to: target,
            deadline: self.now.after(self.config.election_timeout),
            told: false,
        });
        self.hurry_transfer();
    }

    /// Tells the successor to stand as soon as it has everything.
    pub(crate) fn hurry_transfer(&mut self) {
        let Some(transfer) = self.transfer else {
            return;
        };
        let ready = self
            .progress
            .get(&transfer.to)
            .is_some_and(|progress| progress.matched == self.log.last_index());
        if ready && !transfer.told {
            self.transfer = Some(Transfer { told: true, ..transfer });
            Mark::TransferTold.hit();
            self.send(transfer.to, Body::TimeoutNow);
        }
    }

    fn on_timeout_now(&mut self, from: MemberId) {
        if self.leader == Some(from) {
            self.stand_until = Some(self.now.after(self.config.election_timeout));
        }
    }

    /// Stands as the leader has told it to. The wish outlives the moment: a leader that hands over because of a change which
    /// has just committed is quicker than this member's own write of the commit index, without which it may not campaign
    /// (pitfall P8). It does not outlive the leader's patience.
    pub(crate) fn stand(&mut self) {
        if self.stand_until.is_some_and(|until| until <= self.now) {
            self.stand_until = None;
        }
        if self.stand_until.is_some() && self.may_campaign() {
            self.campaign(Campaign::Vote { transfer: true });
        }
    }

    pub(crate) fn refuse_all(&mut self, requests: impl IntoIterator<Item = RequestId>, reason: DropReason) {
        for request in requests {
            self.drop_request(request, reason);
        }
    }

    pub(crate) fn committed_in_term(&self) -> bool {
        self.term_start > Index::ZERO && self.commit >= self.term_start
    }
}

#[derive(Clone, Copy)]
enum Campaign {
    PreVote,
    Vote { transfer: bool },
}
