//! Linearizable reads by read index (Raft thesis, section 6.4), batched: all reads of a step share one round.

use crate::ids::{Index, MemberId, Now};
use crate::io::{DropReason, RequestId, Role};
use crate::mark::Mark;
use crate::message::Body;
use crate::mutant::Mutant;
use crate::raft::Raft;
use std::cmp::Reverse;
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

/// Reads that may wait at one member: far above what clients of one process keep open, far below what hurts.
pub(crate) const READS_MAX: usize = 65_536;
/// Rounds, or questions of a follower, under way. Reads that come meanwhile gather and share the next one.
const ROUNDS_MAX: usize = 4;
/// How long reads gather while a round is under way. A round within a site is over before, and then the next one starts at once with
/// all that came: fewer, larger rounds. Between sites it is nothing beside the round itself, and several overlap.
const ROUND_GAP: Duration = Duration::from_millis(1);
/// Askers among peers that may wait at a leader; each stands for a whole batch of one follower.
const PEER_ASKS_MAX: usize = 4_096;
/// A read that found no answer after so many election timeouts is given up: no leader, or none reachable.
const PATIENCE_ELECTION_TIMEOUTS: u32 = 5;

/// A round: one exchange of heartbeats proves that this leader led after the reads came in.
///
/// It asks no more members than it takes, the quickest of late: whoever is not asked is not woken, and where one client reads at a time
/// that is a good part of what a read costs. Whether they are as quick now is not known, so after `ROUND_GAP` everybody is asked.
#[derive(Debug)]
struct Round {
    id: u64,
    index: Index,
    local: Vec<(RequestId, Now)>,
    peers: Vec<(MemberId, u64)>,
}

/// A batch that a follower asked its leader about.
#[derive(Debug)]
struct Asked {
    requests: Vec<(RequestId, Now)>,
    /// Of every question about this batch. Any of the answers will do, since all these reads came before the first question:
    /// where a round takes longer than a question waits for it, the answers to the newest one alone would all come too late.
    /// As many as fit into the patience of a read.
    tokens: Vec<u64>,
    again_at: Now,
}

#[derive(Debug)]
pub(crate) struct Reads {
    /// In no round and not asked about yet.
    waiting: VecDeque<(RequestId, Now)>,
    peers_waiting: Vec<(MemberId, u64)>,
    rounds: VecDeque<Round>,
    round: u64,
    /// When the newest round is put to everybody, if that was not done yet.
    widens_at: Option<Now>,
    asked: Vec<Asked>,
    asked_leader: Option<MemberId>,
    /// When the latest round, or first question about a batch, began.
    began: Now,
    /// Never used twice, also not by an earlier boot: it starts at random (pitfall P2).
    token: u64,
    /// All reads of this member that are not answered, held ones (`crate::gate`) as well.
    pub(crate) count: usize,
    patience: Option<Duration>,
}

impl Reads {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            waiting: VecDeque::new(),
            peers_waiting: Vec::new(),
            rounds: VecDeque::new(),
            round: 0,
            widens_at: None,
            asked: Vec::new(),
            asked_leader: None,
            began: Now::default(),
            token: seed.rotate_left(17) >> 1,
            count: 0,
            patience: None,
        }
    }

    pub(crate) fn newest_round(&self) -> u64 {
        self.round
    }

    /// When something here must be looked at.
    pub(crate) fn deadline(&self) -> Option<Now> {
        let oldest = self.waiting.iter().map(|(_, since)| *since).min();
        let given_up = oldest.and_then(|since| self.patience.map(|patience| since.after(patience)));
        let again = self.asked.iter().map(|asked| asked.again_at).min();
        given_up.into_iter().chain(again).chain(self.widens_at).min()
    }

    /// Whether peers wait for an index.
    pub(crate) fn asks_wait(&self) -> bool {
        !self.peers_waiting.is_empty() || !self.rounds.is_empty()
    }

    fn requeue_asked(&mut self) {
        for asked in std::mem::take(&mut self.asked) {
            self.waiting.extend(asked.requests);
        }
    }
}

impl Raft {
    /// Takes a read whose place in `READS_MAX` is free.
    pub(crate) fn read_index(&mut self, request: RequestId) {
        self.reads.patience = Some(self.config.election_timeout * PATIENCE_ELECTION_TIMEOUTS);
        self.reads.count += 1;
        self.reads.waiting.push_back((request, self.now));
    }

    pub(crate) fn on_read_index(&mut self, from: MemberId, request: u64) {
        if self.role == Role::Leader && self.reads.peers_waiting.len() < PEER_ASKS_MAX {
            self.stir();
            self.reads.peers_waiting.push((from, request));
        } else {
            self.send(from, Body::ReadIndexReply { request, index: None });
        }
    }

    pub(crate) fn on_read_index_reply(&mut self, from: MemberId, request: u64, index: Option<Index>) {
        // A refusal is left to the deadline: asking the same member again at once would only spin.
        let about = |asked: &Asked| {
            if Mutant::ReadByNewestQuestion.active() {
                asked.tokens.last() == Some(&request)
            } else {
                asked.tokens.contains(&request)
            }
        };
        if self.leader == Some(from)
            && let Some(index) = index
            && let Some(place) = self.reads.asked.iter().position(about)
        {
            let asked = self.reads.asked.remove(place);
            if asked.tokens.last() != Some(&request) {
                Mark::ReadAnsweredLate.hit();
            }
            self.answer(asked.requests, index);
        }
    }

    fn answer(&mut self, requests: Vec<(RequestId, Now)>, index: Index) {
        self.reads.count -= requests.len();
        self.out
            .reads
            .extend(requests.into_iter().map(|(request, _)| (request, index)));
    }

    /// Starts what can start, once per step: one round at a leader, one question at a follower.
    pub(crate) fn reads_ready(&mut self) {
        match (self.role, self.leader) {
            (Role::Leader, _) => {
                self.start_round();
                self.widen_round();
            }
            (Role::Learner | Role::Follower, Some(leader)) => self.ask(leader),
            (Role::Learner | Role::Follower | Role::PreCandidate | Role::Candidate, _) => {}
        }
    }

    /// Whether reads wait for company, with so many rounds or questions under way.
    fn gathers(&self, under_way: usize) -> bool {
        under_way >= ROUNDS_MAX || (under_way > 0 && self.now < self.reads.began.after(ROUND_GAP))
    }

    /// When gathered reads go on although nothing has come. A full set of rounds ends by an answer, not by time.
    pub(crate) fn gather_deadline(&self) -> Option<Now> {
        let (may, waits, under_way) = match self.role {
            Role::Leader => (
                self.committed_in_term(),
                !(self.reads.waiting.is_empty() && self.reads.peers_waiting.is_empty()),
                self.reads.rounds.len(),
            ),
            Role::Learner | Role::Follower => (
                self.leader.is_some(),
                !self.reads.waiting.is_empty(),
                self.reads.asked.len(),
            ),
            Role::PreCandidate | Role::Candidate => return None,
        };
        (may && waits && (1..ROUNDS_MAX).contains(&under_way)).then(|| self.reads.began.after(ROUND_GAP))
    }

    fn start_round(&mut self) {
        if self.reads.waiting.is_empty() && self.reads.peers_waiting.is_empty() {
            return;
        }
        // Pitfall P1: before its no-op commits, a leader does not know what is committed.
        if !self.committed_in_term() && !Mutant::ReadBeforeOwnTerm.active() {
            Mark::ReadWaitsForOwnTerm.hit();
            return;
        }
        if self.gate_open() {
            // A lease at the `now` of this step says what a round would: nobody has committed anything else.
            let index = self.commit;
            let local = self.reads.waiting.drain(..).collect();
            self.answer(local, index);
            for (peer, request) in std::mem::take(&mut self.reads.peers_waiting) {
                self.tell_read_index(peer, request, index);
            }
            return;
        }
        // A follower that asks shows, as an answer to a heartbeat would, that it knew of no later term after its reads came. Where
        // the two of us are a majority, nobody else need be asked: in a group of three, a follower's reads cost two messages.
        let (witnesses, peers): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.reads.peers_waiting)
                .into_iter()
                .partition(|(peer, _)| {
                    self.members
                        .is_majority(|voter| voter == self.config.id || voter == *peer)
                });
        for (peer, request) in witnesses {
            self.tell_read_index(peer, request, self.commit);
        }
        self.reads.peers_waiting = peers;
        let nothing = self.reads.waiting.is_empty() && self.reads.peers_waiting.is_empty();
        if nothing || self.gathers(self.reads.rounds.len()) {
            return;
        }
        self.reads.began = self.now;
        self.reads.round += 1;
        let round = Round {
            id: self.reads.round,
            index: self.commit,
            local: self.reads.waiting.drain(..).collect(),
            peers: std::mem::take(&mut self.reads.peers_waiting),
        };
        self.reads.rounds.push_back(round);
        if self.members.is_majority(|voter| voter == self.config.id) {
            self.confirm_rounds();
        } else {
            self.ask_for_round();
        }
    }

    fn ask_for_round(&mut self) {
        self.reads.widens_at = Some(self.now);
        // While an earlier one waits for its answer, those that were asked are not quick.
        if self.reads.rounds.len() == 1 {
            self.reads.widens_at = Some(self.now.after(ROUND_GAP));
            for peer in self.quickest_majority() {
                self.heartbeat_to(peer);
            }
        }
    }

    /// As few voters as make a majority with this one; first those that confirmed the newest round, and of those who did it sooner.
    fn quickest_majority(&self) -> BTreeSet<MemberId> {
        let mut voters: Vec<_> = self.progress.iter().collect();
        voters.sort_by_key(|(peer, progress)| (Reverse(progress.round), progress.confirmed_at, **peer));
        let mut chosen = BTreeSet::new();
        for (peer, _) in voters {
            if self
                .members
                .is_majority(|voter| voter == self.config.id || chosen.contains(&voter))
            {
                break;
            }
            if self.members.is_voter(*peer) {
                chosen.insert(*peer);
            }
        }
        chosen
    }

    /// Asks everybody who was not asked, or did not answer, when the newest round takes too long.
    fn widen_round(&mut self) {
        if self.reads.widens_at.is_none_or(|at| at > self.now) {
            return;
        }
        Mark::RoundWidened.hit();
        self.reads.widens_at = None;
        for peer in self.peers() {
            self.heartbeat_to(peer);
        }
    }

    /// Answers every round that a majority has confirmed. A later round confirms the earlier ones.
    pub(crate) fn confirm_rounds(&mut self) {
        let newest = self.reads.round;
        let confirmed = self.members.reached_by_majority(|voter| {
            if voter == self.config.id || Mutant::ReadUnconfirmed.active() {
                newest
            } else {
                self.progress.get(&voter).map_or(0, |progress| progress.round)
            }
        });
        while self.reads.rounds.front().is_some_and(|round| round.id <= confirmed) {
            let round = self
                .reads
                .rounds
                .pop_front()
                .expect("invariant: the front was just seen");
            self.answer(round.local, round.index);
            for (peer, request) in round.peers {
                self.tell_read_index(peer, request, round.index);
            }
        }
        if self.reads.rounds.is_empty() {
            self.reads.widens_at = None;
        }
    }

    fn tell_read_index(&mut self, peer: MemberId, request: u64, index: Index) {
        if let Some(progress) = self.progress.get_mut(&peer) {
            progress.awaits = progress.awaits.max(index);
        }
        let index = Some(index);
        self.send(peer, Body::ReadIndexReply { request, index });
    }

    fn ask(&mut self, leader: MemberId) {
        if self.reads.asked_leader != Some(leader) {
            // Another leader: a new question, with a new token (pitfall P2).
            self.reads.requeue_asked();
            self.reads.asked_leader = Some(leader);
        }
        if self.reads.waiting.is_empty() || self.gathers(self.reads.asked.len()) {
            return;
        }
        self.reads.began = self.now;
        let batch = Asked {
            requests: self.reads.waiting.drain(..).collect(),
            tokens: Vec::new(),
            again_at: self.now,
        };
        self.question(leader, batch);
    }

    /// Asks about a batch, the first time or again.
    fn question(&mut self, leader: MemberId, mut batch: Asked) {
        self.reads.token = self.reads.token.wrapping_add(1);
        let request = self.reads.token;
        batch.tokens.push(request);
        batch.again_at = self.now.after(self.config.election_timeout / 2);
        self.reads.asked.push(batch);
        self.send(leader, Body::ReadIndex { request });
    }

    /// A read is idempotent: what a lost leadership leaves open is asked of the next leader (pitfall P3).
    pub(crate) fn reads_lose_leadership(&mut self) {
        for round in std::mem::take(&mut self.reads.rounds) {
            Mark::ReadsMoveToNextLeader.hit();
            if Mutant::ReadAfterLostLeadership.active() {
                self.answer(round.local, round.index);
                continue;
            }
            self.reads.waiting.extend(round.local);
        }
        self.reads.widens_at = None;
        self.reads.peers_waiting.clear();
        self.reads.asked_leader = None;
    }

    pub(crate) fn reads_gain_leadership(&mut self) {
        self.reads.requeue_asked();
    }

    pub(crate) fn reads_expire(&mut self) {
        let Some(patience) = self.reads.patience else {
            return;
        };
        let now = self.now;
        let mut given_up = Vec::new();
        let mut give_up = |requests: Vec<(RequestId, Now)>| -> Vec<_> {
            let (old, kept): (Vec<_>, Vec<_>) = requests
                .into_iter()
                .partition(|(_, since)| now.since(*since) >= patience);
            given_up.extend(old.into_iter().map(|(request, _)| request));
            kept
        };
        let waiting = give_up(self.reads.waiting.drain(..).collect());
        self.reads.waiting = waiting.into();
        let (due, asked): (Vec<_>, Vec<_>) = std::mem::take(&mut self.reads.asked)
            .into_iter()
            .partition(|asked| asked.again_at <= now);
        self.reads.asked = asked;
        for mut batch in due {
            batch.requests = give_up(batch.requests);
            if batch.requests.is_empty() {
                continue;
            }
            Mark::ReadAskedAgain.hit();
            match self.leader {
                Some(leader) if self.reads.asked_leader == Some(leader) => self.question(leader, batch),
                Some(_) | None => self.reads.waiting.extend(batch.requests),
            }
        }
        self.reads.count -= given_up.len();
        if !given_up.is_empty() {
            Mark::ReadGivenUp.hit();
        }
        self.refuse_all(given_up, DropReason::NoLeader);
    }
}
