//! Proposals, appends, heartbeats and snapshots (Raft paper, sections 5.3 and 7).

use crate::entry::{Entry, Payload, SnapshotMeta};
use crate::ids::{Index, LogPosition, MemberId};
use crate::io::{DropReason, RequestId, Role};
use crate::mark::Mark;
use crate::message::Body;
use crate::mutant::Mutant;
use crate::progress::{Flow, Progress};
use crate::raft::Raft;
use bytes::Bytes;
use std::time::Duration;

/// How long the news that something is committed waits for an append that carries it: a client that waited for it sends its next
/// command sooner, and a message less to every follower is a wake-up less. Watches at followers see an event that much later.
const NEWS_DELAY: Duration = Duration::from_millis(1);

impl Raft {
    pub(crate) fn uncommitted_bytes(&self) -> usize {
        self.log.bytes_after(self.commit)
    }

    pub(crate) fn propose(&mut self, commands: Vec<(RequestId, Bytes)>) {
        self.stir();
        let requests = || commands.iter().map(|(request, _)| *request).collect::<Vec<_>>();
        match (self.role, self.leader) {
            (Role::Leader, _) if self.transfer.is_some() => {
                self.refuse_all(requests(), DropReason::LeaderChanged);
            }
            (Role::Leader, _) => {
                let mut room = self
                    .config
                    .uncommitted_bytes_max
                    .saturating_sub(self.uncommitted_bytes());
                for (request, command) in commands {
                    if command.len() > room {
                        Mark::ProposalOverLimit.hit();
                        self.drop_request(request, DropReason::Overloaded);
                    } else {
                        room -= command.len();
                        self.log.push(self.term, Payload::Command(command));
                    }
                }
            }
            (Role::Learner | Role::Follower | Role::PreCandidate | Role::Candidate, Some(leader)) => {
                let commands = commands.into_iter().map(|(_, command)| command).collect();
                self.send(leader, Body::Forward { commands });
            }
            (Role::Learner | Role::Follower | Role::PreCandidate | Role::Candidate, None) => {
                self.refuse_all(requests(), DropReason::NoLeader);
            }
        }
    }

    /// Commands that a follower's clients sent. What cannot be taken is dropped: the follower's client learns by its
    /// deadline that the outcome is unknown.
    pub(crate) fn on_forward(&mut self, commands: Vec<Bytes>) {
        if self.role != Role::Leader || self.transfer.is_some() {
            Mark::ForwardDropped.hit();
            return;
        }
        self.stir();
        let mut room = self
            .config
            .uncommitted_bytes_max
            .saturating_sub(self.uncommitted_bytes());
        for command in commands {
            if command.len() <= room {
                room -= command.len();
                self.log.push(self.term, Payload::Command(command));
            }
        }
        // Their clients wait at followers.
        let last = self.log.last_index();
        self.progress.values_mut().for_each(|progress| progress.awaits = last);
    }

    /// Sends every follower what it lacks and flow control allows.
    pub(crate) fn replicate(&mut self) {
        for peer in self.peers() {
            self.replicate_to(peer, false);
        }
        self.hurry_transfer();
    }

    /// With `probe`, an append leaves even if it carries nothing.
    fn replicate_to(&mut self, peer: MemberId, probe: bool) {
        let mut probe = probe;
        let commit = self.commit_to_tell();
        loop {
            let Some(progress) = self.progress.get_mut(&peer) else {
                return;
            };
            let (last, next) = (self.log.last_index(), progress.next);
            // A probe asks where the logs agree, so it leaves also when there is nothing to carry.
            let asks = probe || (matches!(progress.flow, Flow::Probe { .. }) && progress.matched < last);
            let room = progress.room(self.config.inflight_appends_max, self.config.inflight_bytes_max);
            if (next > last && !asks) || room == 0 {
                return;
            }
            let Some(prev_term) = self.log.term_at(next.prev()) else {
                // Only a peer that answers is worth a snapshot.
                if self.now.since(progress.last_heard) < self.config.election_timeout {
                    Mark::SnapshotNeeded.hit();
                    progress.flow = Flow::Snapshot;
                    self.out.send_snapshot.push(peer);
                }
                return;
            };
            let prev = LogPosition {
                term: prev_term,
                index: next.prev(),
            };
            let entries = self.log.slice(next, self.config.append_bytes_max.min(room));
            let end = entries.last().map_or(prev.index, |entry| entry.index);
            progress.sent(end, entries.iter().map(Entry::size_bytes).sum());
            progress.commit_told = progress.commit_told.max(commit.min(end));
            self.send(peer, Body::Append { prev, entries, commit });
            probe = false;
        }
    }

    pub(crate) fn broadcast_heartbeat(&mut self) {
        self.heartbeat_deadline = self.next_beat();
        for peer in self.peers() {
            self.heartbeat_to(peer);
        }
    }

    pub(crate) fn heartbeat_to(&mut self, peer: MemberId) {
        let round = self.reads.newest_round();
        let told = self.commit_to_tell();
        if let Some(progress) = self.progress.get_mut(&peer) {
            // Pitfall P29: never beyond what the follower is known to have.
            let commit = if Mutant::HeartbeatBeyondMatch.active() {
                told
            } else {
                told.min(progress.matched)
            };
            progress.commit_told = progress.commit_told.max(commit);
            self.send(peer, Body::Heartbeat { commit, round });
        }
    }

    /// Tells followers of a new commit index when no append does, and the next append is not waited for any longer: at once where
    /// somebody waits for it. Unlike a heartbeat it asks for no answer, so nobody is woken by one; should it be lost, the
    /// heartbeat makes it good.
    pub(crate) fn tell_commit(&mut self) {
        let told = self.commit_to_tell();
        let lacks = |progress: &Progress| told.min(progress.matched) > progress.commit_told;
        if !self.progress.values().any(lacks) {
            self.news_at = None;
            return;
        }
        let due = *self.news_at.get_or_insert(self.now.after(NEWS_DELAY)) <= self.now;
        for peer in self.peers() {
            let reads = self.is_responder(peer);
            let Some(progress) = self.progress.get_mut(&peer) else {
                continue;
            };
            let index = told.min(progress.matched);
            let awaited = reads || progress.awaits > progress.commit_told;
            if lacks(progress)
                && (due || awaited)
                && let Some(term) = self.log.term_at(index)
            {
                progress.commit_told = index;
                let position = LogPosition { term, index };
                self.send(peer, Body::Committed { position });
            }
        }
        if due {
            self.news_at = None;
        }
    }

    /// The last of a pipeline of appends may be lost without a trace: a follower that made no progress since the last
    /// beat is asked whether it has them all. A refusal then turns it back to probing.
    pub(crate) fn probe_stalled(&mut self) {
        let last = self.log.last_index();
        for peer in self.peers() {
            let Some(progress) = self.progress.get_mut(&peer) else {
                continue;
            };
            let stalled = progress.matched < last && progress.matched == progress.matched_at_beat;
            progress.matched_at_beat = progress.matched;
            if let Flow::Replicate(window) = &mut progress.flow
                && stalled
            {
                Mark::StalledFollowerProbed.hit();
                window.forget_oldest();
                self.replicate_to(peer, true);
            }
        }
    }

    /// One more append for a member that is about to leave the configuration: it carries the commit index of its removal.
    pub(crate) fn farewell(&mut self, peer: MemberId) {
        if let Some(progress) = self.progress.get(&peer)
            && let Some(term) = self.log.term_at(progress.next.prev())
        {
            Mark::Farewell.hit();
            let prev = LogPosition {
                term,
                index: progress.next.prev(),
            };
            let entries = self.log.slice(progress.next, self.config.append_bytes_max);
            let commit = self.commit_to_tell();
            self.send(peer, Body::Append { prev, entries, commit });
        }
    }

    pub(crate) fn on_append(&mut self, from: MemberId, prev: LogPosition, entries: Vec<Entry>, commit: Index) {
        self.heard_leader(from);
        if self.installing.is_some() {
            Mark::AppendWhileInstalling.hit();
            return;
        }
        if prev.index < self.commit {
            Mark::AppendBelowCommit.hit();
            self.send_accepted(from, self.commit);
            return;
        }
        if self.log.contains(prev) || Mutant::AppendWithoutMatch.active() {
            let last = entries.last().map_or(prev.index, |entry| entry.index);
            self.log.append_after_match(entries, self.commit);
            self.commit_to(commit.min(last));
            self.send_accepted(from, last);
        } else {
            let hint = self.log.last_at_most(prev.index, prev.term);
            self.send(
                from,
                Body::AppendRejected {
                    rejected: prev.index,
                    hint,
                },
            );
        }
    }

    /// Acknowledges the log up to `last`, once it is durable, with this member's stamp.
    pub(crate) fn send_accepted(&mut self, leader: MemberId, last: Index) {
        self.acknowledged = self.acknowledged.max(last);
        let stamp = self.stamp();
        let body = Body::AppendAccepted { last, stamp };
        if Mutant::AckBeforePersist.active() {
            self.send(leader, body);
        } else {
            self.send_durable(leader, body);
        }
    }

    /// The leader says how far it has committed what this log has. Of what it has not it may speak only to the replica that was here
    /// before and left: its message was under way meanwhile. What this log has since is that leader's too, so that much is true.
    pub(crate) fn hear_commit(&mut self, index: Index) {
        if self.installing.is_none() {
            self.commit_to(index.min(self.log.last_index()));
        }
    }

    pub(crate) fn commit_to(&mut self, index: Index) {
        if index > self.commit {
            assert!(
                index <= self.log.last_index(),
                "the leader commits {index}, which this log does not have"
            );
            self.commit = index;
        }
    }

    pub(crate) fn on_append_accepted(&mut self, from: MemberId, last: Index) {
        if self.role != Role::Leader {
            return;
        }
        assert!(
            last <= self.log.last_index(),
            "{from} accepted {last}, which its leader never wrote"
        );
        let log_start = self.log.start().index;
        let Some(progress) = self.progress.get_mut(&from) else {
            return;
        };
        if progress.accepted(last, log_start) {
            progress.advanced_at = self.now;
            self.advance_commit();
        }
    }

    pub(crate) fn on_append_rejected(&mut self, from: MemberId, rejected: Index, hint: LogPosition) {
        if self.role != Role::Leader {
            return;
        }
        // Where this log last had a term that the follower may have too.
        let agree = self.log.last_at_most(hint.index, hint.term);
        let agree = if agree.index < self.log.start().index {
            hint.index
        } else {
            agree.index
        };
        let voter = self.members.is_voter(from);
        let Some(progress) = self.progress.get_mut(&from) else {
            return;
        };
        let agree = agree.min(hint.index);
        let news = if !voter && hint.index < progress.matched {
            progress.lost(agree)
        } else {
            progress.rejected(rejected, agree)
        };
        if news {
            self.replicate_to(from, true);
        }
    }

    pub(crate) fn on_heartbeat(&mut self, from: MemberId, commit: Index, round: u64) {
        self.heard_leader(from);
        self.hear_commit(commit);
        let stamp = self.stamp();
        self.send(from, Body::HeartbeatReply { round, stamp });
    }

    pub(crate) fn on_heartbeat_reply(&mut self, from: MemberId, round: u64) {
        if self.role != Role::Leader {
            return;
        }
        let Some(progress) = self.progress.get_mut(&from) else {
            return;
        };
        let round = if Mutant::ReadByOldRound.active() {
            self.reads.newest_round()
        } else {
            round
        };
        if round > progress.round {
            (progress.round, progress.confirmed_at) = (round, self.now);
        }
        if let Flow::Probe { waiting } = &mut progress.flow {
            // Its append or the answer may be lost; the next one may go.
            *waiting = false;
        }
        self.confirm_rounds();
    }

    pub(crate) fn on_snapshot(&mut self, from: MemberId, meta: SnapshotMeta) {
        self.heard_leader(from);
        if self.installing.is_some() {
            return;
        }
        if self.log.contains(meta.position) && !Mutant::SnapshotOverLongerLog.active() {
            Mark::SnapshotOfKnownEntries.hit();
            // The log has it all, and perhaps acknowledged entries behind it that a reset would lose (pitfall P13).
            self.commit_to(meta.position.index);
        }
        if meta.position.index <= self.commit {
            self.send_accepted(from, self.commit);
            return;
        }
        self.installing = Some(meta.clone());
        self.out.install = Some(meta);
    }

    pub(crate) fn on_snapshot_sent(&mut self, to: MemberId, covered: Option<Index>) {
        if self.role != Role::Leader {
            return;
        }
        let Some(progress) = self.progress.get_mut(&to) else {
            return;
        };
        if progress.flow == Flow::Snapshot {
            progress.probe();
            if let Some(covered) = covered {
                progress.next = progress.next.max(covered.next());
            }
        }
    }

    pub(crate) fn on_unreachable(&mut self, peer: MemberId) {
        if let Some(progress) = self.progress.get_mut(&peer)
            && matches!(progress.flow, Flow::Replicate(_))
        {
            progress.probe();
        }
    }
}
