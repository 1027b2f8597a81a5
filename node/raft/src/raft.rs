//! One group's state machine: dispatch by input, and the end of every step.

use crate::entry::{ConfigState, Entry, HardState, LeaseState, Payload, SnapshotMeta};
use crate::gate::Gate;
use crate::hibernate::Hibernation;
use crate::ids::{Index, LogPosition, MemberId, Now, Term};
use crate::io::{
    Config, DropReason, Input, Output, Persist, PersistSeq, ProgressView, RequestId, Role, Soft, Start, View,
};
use crate::lease::Lease;
use crate::log::Log;
use crate::mark::Mark;
use crate::message::{Body, Message};
use crate::mint::Minted;
use crate::mutant::Mutant;
use crate::progress::{Flow, Progress};
use crate::read::Reads;
use crate::rng::Rng;
use crate::roster::{DRIFT_PPM_MAX, DRIFT_PPM_MIN, ReadsState};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A leadership transfer under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    pub(crate) to: MemberId,
    pub(crate) deadline: Now,
    /// `TimeoutNow` left: leadership may be gone any moment (pitfall P23).
    pub(crate) told: bool,
}

/// A write under way, and what it makes durable.
#[derive(Clone, Copy, Debug)]
struct Write {
    seq: PersistSeq,
    /// End of the log.
    last: LogPosition,
    commit: Index,
    /// With it, the vote of that term.
    term: Term,
    lease: LeaseState,
}

/// Consensus of one group at one member. See the crate's documentation for the shell's duties.
#[derive(Debug)]
pub struct Raft {
    pub(crate) config: Config,
    pub(crate) rng: Rng,
    pub(crate) now: Now,

    pub(crate) term: Term,
    pub(crate) vote: Option<MemberId>,
    pub(crate) role: Role,
    pub(crate) leader: Option<MemberId>,
    pub(crate) members: ConfigState,
    /// How reads are to be answered, as of the last entry handed out.
    pub(crate) reads_state: ReadsState,

    pub(crate) log: Log,
    pub(crate) commit: Index,
    /// Last entry handed out for apply; configuration changes up to here hold.
    pub(crate) emitted: Index,
    pub(crate) applied: Index,
    pub(crate) installing: Option<SnapshotMeta>,

    pub(crate) election_deadline: Option<Now>,
    pub(crate) last_contact: Option<Now>,
    pub(crate) heartbeat_deadline: Now,
    pub(crate) quorum_deadline: Now,
    /// At a leader: when followers are told what is committed, if no append did.
    pub(crate) news_at: Option<Now>,
    pub(crate) ballots: BTreeMap<MemberId, bool>,
    pub(crate) progress: BTreeMap<MemberId, Progress>,
    /// The leader's own first entry: nothing is read before it commits (pitfall P1).
    pub(crate) term_start: Index,
    pub(crate) transfer: Option<Transfer>,
    /// The leader told this member to stand for election; until then it tries.
    pub(crate) stand_until: Option<Now>,
    pub(crate) reads: Reads,
    pub(crate) gate: Gate,
    pub(crate) lease: Lease,
    /// At a leader: the roster that commits count under.
    pub(crate) minted: Option<Minted>,
    /// Whether the roster may have to change.
    pub(crate) review_due: bool,
    /// When this leader last left a responder out.
    pub(crate) demoted_at: Option<Now>,
    /// What this follower last acknowledged to the leader of the present term.
    pub(crate) acknowledged: Index,
    pub(crate) hibernation: Hibernation,

    hard_state_written: HardState,
    persist_next: PersistSeq,
    persisted: PersistSeq,
    writes: VecDeque<Write>,
    /// Commit index that a restart will know of.
    commit_durable: Index,
    /// A committed configuration change that waits for the commit index to be durable.
    config_waits: Option<Index>,
    /// This member leads, and the next change to hand out ends its vote.
    resigns: bool,
    reset_to: Option<LogPosition>,
    /// Messages that wait for a write (pitfall P7).
    held: VecDeque<(PersistSeq, Message)>,
    /// Messages that wait for the write which this step is about to ask for.
    held_now: Vec<Message>,
    soft_said: Option<Soft>,
    pub(crate) out: Output,
}

impl Raft {
    /// A group as its WAL and state machine left it. The output's entries (committed but not known applied) must be
    /// handled like any other.
    ///
    /// # Panics
    /// If the parts contradict each other: a hole in the log, or an applied index outside of it. If the drift bound is out of its
    /// range.
    pub fn new(config: Config, start: Start, now: Now) -> (Self, Output) {
        assert!(
            (DRIFT_PPM_MIN..=DRIFT_PPM_MAX).contains(&config.drift_ppm),
            "a drift bound of {} ppm is out of range",
            config.drift_ppm
        );
        let mut log = Log::recovered(start.log_start, start.entries);
        let at = start.applied.position;
        let applied = at.index;
        assert!(
            applied >= log.start().index,
            "applied index {applied} lies before the log, which begins at {}: the state machine must be rebuilt first",
            log.first_index(),
        );
        // A crash between the installation of a snapshot and the write that resets the log leaves a log which ends before the
        // snapshot, or contradicts it. What is applied is committed, so the log gives way (pitfall P15).
        let behind_snapshot = !log.contains(at);
        if behind_snapshot {
            Mark::BootBehindSnapshot.hit();
            log.reset(at);
        }
        // Pitfall P16: what is applied was committed, whatever the last hard state says.
        let known = start.hard_state.commit;
        let commit = if Mutant::CommitBelowApplied.active() {
            known
        } else {
            known.max(applied)
        };
        let commit = commit.min(log.last_index());
        if known < applied {
            Mark::BootCommitRaised.hit();
        }
        let lease = Lease::booted(start.hard_state.lease, &start.applied.config, config.id, now);
        let mut raft = Self {
            rng: Rng::new(config.seed),
            now,
            term: start.hard_state.term.max(log.last().term),
            vote: start.hard_state.vote,
            role: Role::Learner,
            leader: None,
            members: start.applied.config,
            reads_state: start.applied.reads,
            log,
            commit,
            emitted: if Mutant::ApplyAgain.active() {
                applied.prev()
            } else {
                applied
            },
            applied,
            installing: None,
            election_deadline: None,
            last_contact: None,
            heartbeat_deadline: now,
            quorum_deadline: now,
            news_at: None,
            ballots: BTreeMap::new(),
            progress: BTreeMap::new(),
            term_start: Index::ZERO,
            transfer: None,
            stand_until: None,
            reads: Reads::new(config.seed),
            gate: Gate::default(),
            lease,
            minted: None,
            review_due: false,
            demoted_at: None,
            acknowledged: Index::ZERO,
            hibernation: Hibernation::new(now),
            hard_state_written: start.hard_state,
            persist_next: PersistSeq(1),
            persisted: PersistSeq(0),
            writes: VecDeque::new(),
            commit_durable: commit,
            config_waits: None,
            resigns: false,
            reset_to: behind_snapshot.then_some(at),
            held: VecDeque::new(),
            held_now: Vec::new(),
            soft_said: None,
            out: Output::default(),
            config,
        };
        if raft.term > start.hard_state.term {
            raft.vote = None;
        }
        raft.settle_role();
        raft.emit();
        raft.reset_election_deadline();
        let me = raft.config.id;
        if raft.members.is_majority(|voter| voter == me) {
            // Nobody else could lead: waiting out a timeout would only delay a single member's start.
            raft.election_deadline = Some(now);
        }
        let out = raft.finish();
        (raft, out)
    }

    /// Takes one input and says what to do. `now` was read after whatever the input carries had come in. It should never go
    /// backwards; an earlier value counts as the latest seen, and voids all leases.
    pub fn step(&mut self, now: Now, input: Input) -> Output {
        self.watch_clock(now);
        self.now = self.now.max(now);
        match input {
            Input::Tick => self.tick(),
            Input::Message(message) => self.receive(message),
            Input::Propose(commands) => self.propose(commands),
            Input::Forwarded(commands) => self.on_forward(commands),
            Input::ProposeConfig(request, change) => self.propose_config(request, change),
            Input::ProposeReads(request, change) => self.propose_reads(request, change),
            Input::Read(reads) => self.read(reads),
            Input::TransferLeader(to) => self.transfer_leader(to),
            Input::Campaign => self.campaign_early(),
            Input::Persisted(seq) => self.on_persisted(seq),
            Input::Applied(index) => self.on_applied(index),
            Input::Installed(meta) => self.on_installed(meta),
            Input::SnapshotSent { to, covered } => self.on_snapshot_sent(to, covered),
            Input::Compact(index) => self.log.compact(index.min(self.applied)),
            Input::Silent(peer) => self.on_silent(peer),
            Input::Returned(peer) => self.on_returned(peer),
            Input::Unreachable(peer) => self.on_unreachable(peer),
        }
        self.finish()
    }

    /// When `Input::Tick` is due next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Now> {
        let role = if self.hibernation.asleep {
            None
        } else if self.role == Role::Leader {
            let transfer = self.transfer.map_or(self.quorum_deadline, |transfer| transfer.deadline);
            let demotion = self.demotion_deadline().unwrap_or(self.quorum_deadline);
            let beat = self.heartbeat_deadline.min(self.quorum_deadline);
            let news = self.news_at.unwrap_or(self.quorum_deadline);
            Some(beat.min(transfer).min(demotion).min(news))
        } else {
            self.election_deadline
        };
        let reads = self.reads.deadline().into_iter().chain(self.held_deadline());
        let reads = reads.chain(self.gather_deadline());
        role.into_iter().chain(reads).chain(self.lease_deadline()).min()
    }

    /// A look inside, for status pages and tests.
    #[must_use]
    pub fn view(&self) -> View {
        let progress = if self.role == Role::Leader {
            self.progress
                .iter()
                .map(|(&member, progress)| ProgressView {
                    member,
                    matched: progress.matched,
                    recent_active: self.now.since(progress.last_heard) < self.config.election_timeout,
                    snapshot: progress.flow == Flow::Snapshot,
                })
                .collect()
        } else {
            Vec::new()
        };
        View {
            soft: self.soft(),
            commit: self.commit,
            last: self.log.last(),
            first: self.log.first_index(),
            log_bytes: self.log.bytes(),
            hibernates: self.hibernates(),
            absent: self.absent(),
            progress,
            lease: self.lease_view(),
        }
    }

    /// The entry at an index, while the log holds it.
    #[must_use]
    pub fn entry(&self, index: Index) -> Option<&Entry> {
        self.log.get(index)
    }

    /// End of the log.
    #[must_use]
    pub fn last(&self) -> LogPosition {
        self.log.last()
    }

    /// Term, vote and promises as of now, whether or not they are written yet.
    #[must_use]
    pub fn hard_state(&self) -> HardState {
        HardState {
            term: self.term,
            vote: self.vote,
            commit: self.commit,
            lease: self.lease.state,
        }
    }

    /// Where the log begins: everything up to here is compacted away.
    #[must_use]
    pub fn log_start(&self) -> LogPosition {
        self.log.start()
    }

    pub(crate) fn soft(&self) -> Soft {
        Soft {
            role: self.role,
            leader: self.leader,
            term: self.term,
            config: self.members.clone(),
        }
    }

    /// The next heartbeat. The groups of a node beat together, so that what they say to one peer leaves as one piece.
    pub(crate) fn next_beat(&self) -> Now {
        let interval = u64::try_from(self.config.heartbeat_interval.as_nanos())
            .unwrap_or(u64::MAX)
            .max(1);
        let passed = Now(self.now.0 - self.now.0 % interval);
        passed.after(self.config.heartbeat_interval)
    }

    pub(crate) fn writes_under_way(&self) -> bool {
        !self.writes.is_empty() || self.log.has_unwritten()
    }

    pub(crate) fn is_voter(&self) -> bool {
        self.members.is_voter(self.config.id)
    }

    /// Every member but this one.
    pub(crate) fn peers(&self) -> BTreeSet<MemberId> {
        let mut peers = self.members.members();
        peers.remove(&self.config.id);
        peers
    }

    pub(crate) fn drop_request(&mut self, request: RequestId, reason: DropReason) {
        self.out.dropped.push((request, reason));
    }

    fn message(&self, to: MemberId, term: Term, body: Body) -> Message {
        Message {
            group: self.config.group,
            from: self.config.id,
            to,
            term,
            body,
        }
    }

    /// Sends something that promises nothing.
    pub(crate) fn send(&mut self, to: MemberId, body: Body) {
        self.send_at(to, self.term, body);
    }

    /// The same with another term than the current one (pre-votes).
    pub(crate) fn send_at(&mut self, to: MemberId, term: Term, body: Body) {
        let message = self.message(to, term, body);
        self.out.messages.push(message);
    }

    /// Sends something that promises what is being written: it leaves once all writes so far are durable.
    pub(crate) fn send_durable(&mut self, to: MemberId, body: Body) {
        let message = self.message(to, self.term, body);
        self.held_now.push(message);
    }

    fn on_persisted(&mut self, seq: PersistSeq) {
        assert!(seq < self.persist_next, "write {seq:?} was never asked for");
        self.persisted = self.persisted.max(seq);
        let mut term_durable = None;
        let mut lease_durable = None;
        while let Some(write) = self.writes.front() {
            if write.seq > self.persisted {
                break;
            }
            self.log.persisted(write.last);
            self.commit_durable = self.commit_durable.max(write.commit);
            term_durable = Some(write.term);
            lease_durable = Some(write.lease);
            self.writes.pop_front();
        }
        if term_durable == Some(self.term) {
            self.own_vote_durable();
        }
        while let Some((number, _)) = self.held.front() {
            if *number > self.persisted {
                break;
            }
            let (_, message) = self.held.pop_front().expect("invariant: the front was just seen");
            // A promise made in an earlier term helps nobody any more.
            if message.term == self.term {
                self.out.messages.push(message);
            } else {
                Mark::HeldPromiseDropped.hit();
            }
        }
        if let Some(durable) = lease_durable {
            self.lease_durable(durable);
        }
        if self.role == Role::Leader {
            self.advance_commit();
        }
    }

    fn on_applied(&mut self, index: Index) {
        assert!(
            index <= self.emitted,
            "index {index} was applied before it was handed out"
        );
        self.applied = self.applied.max(index);
    }

    /// The commit index that others may hear of. A leader first makes sure that it will remember a configuration change itself:
    /// if only a member which the change removes knew that it is committed, that one would no longer campaign, and its longer log
    /// would refuse everybody else.
    pub(crate) fn commit_to_tell(&self) -> Index {
        self.config_waits.map_or(self.commit, Index::prev)
    }

    /// Hands out what is committed and durable here, and lets its configuration changes hold. A change holds only once its
    /// commit is durable: a member that forgot in a crash that somebody was removed would need the removed one's vote,
    /// perhaps for ever. And a leader lets no change hold that ends its own vote: it says so, and hands over first
    /// (pitfalls P10 and P12).
    fn emit(&mut self) {
        self.resigns = false;
        loop {
            let safe = if Mutant::ForgetfulChange.active() {
                self.commit
            } else {
                self.commit_durable
            };
            self.config_waits = self.log.first_config(self.emitted.max(safe).next(), self.commit);
            if self.config_waits.is_some() {
                Mark::ChangeWaitsForDisk.hit();
            }
            let ready = self.commit.min(self.log.stable().index);
            let mut to = self.config_waits.map_or(ready, |index| ready.min(index.prev()));
            // One change at a time: what comes behind it is handed out under the configuration that it makes.
            if let Some(change) = self.log.first_config(self.emitted.next(), to) {
                to = change;
                self.resigns = self.role == Role::Leader && self.resigns_at(change);
                if self.resigns {
                    to = change.prev();
                }
            }
            // What comes while a snapshot is being installed is in it, and would reach the state machine after it.
            if to <= self.emitted || self.installing.is_some() {
                return;
            }
            let entries: Vec<Entry> = self.log.range(self.emitted.next(), to).cloned().collect();
            assert!(
                entries.first().map(|entry| entry.index) == Some(self.emitted.next()),
                "entry {} is to be applied, but the log begins at {}",
                self.emitted.next(),
                self.log.first_index(),
            );
            self.emitted = to;
            for entry in &entries {
                match &entry.payload {
                    Payload::Noop => self.review_due = true,
                    Payload::Command(_) => {}
                    Payload::Config(change) => {
                        self.apply_config(&change.step, entry.index);
                        self.review_due = true;
                    }
                    Payload::Reads(change) => {
                        self.reads_state = ReadsState {
                            spec: change.spec.clone(),
                            index: entry.index,
                        };
                        self.review_due = true;
                    }
                }
            }
            self.out.apply.extend(entries);
            if self.role == Role::Leader {
                // A smaller configuration may need fewer copies, and fewer members to confirm a round.
                self.advance_commit();
                self.confirm_rounds();
            }
        }
    }

    fn resigns_at(&self, index: Index) -> bool {
        match self.log.get(index).map(|entry| &entry.payload) {
            Some(Payload::Config(change)) => self.resigns_by(&change.step, index),
            Some(Payload::Noop | Payload::Command(_) | Payload::Reads(_)) | None => false,
        }
    }

    fn finish(&mut self) -> Output {
        self.emit();
        self.stand();
        self.review_roster();
        self.settle_roster();
        self.settle_held();
        self.reads_ready();
        if self.role == Role::Leader {
            if self.resigns && self.transfer.is_none() {
                self.transfer_leader(None);
            }
            self.leave_joint();
            self.replicate();
            self.tell_commit();
        }
        self.renew();
        self.persist();
        let same = self.soft_said.as_ref().is_some_and(|said| {
            (said.role, said.leader, said.term, said.config.index)
                == (self.role, self.leader, self.term, self.members.index)
                && said.config == self.members
        });
        if !same {
            self.soft_said = Some(self.soft());
            self.out.changed.clone_from(&self.soft_said);
        }
        assert!(
            self.emitted <= self.commit && self.commit <= self.log.last_index(),
            "commit index beyond the log"
        );
        let mut out = std::mem::take(&mut self.out);
        out.next_deadline = self.next_deadline();
        out
    }

    fn persist(&mut self) {
        let hard_state = self.hard_state();
        let leased = hard_state.lease != self.hard_state_written.lease;
        let voted = (hard_state.term, hard_state.vote) != (self.hard_state_written.term, self.hard_state_written.vote);
        let config_waits = self
            .config_waits
            .is_some_and(|index| index > self.hard_state_written.commit);
        if voted || leased || config_waits || self.log.has_unwritten() || self.reset_to.is_some() {
            let seq = self.persist_next;
            self.persist_next = PersistSeq(seq.0 + 1);
            // The commit index rides along with other writes. It is a hint, and worth a write of its own only for the sake
            // of a configuration change.
            let hard_state = (hard_state != self.hard_state_written).then_some(hard_state);
            if let Some(state) = hard_state {
                assert!(state.term >= self.hard_state_written.term, "terms never go backwards");
                self.hard_state_written = state;
            }
            let entries = self.log.take_unwritten();
            let (last, commit, term, lease) = (self.log.last(), self.commit, self.term, self.lease.state);
            self.writes.push_back(Write {
                seq,
                last,
                commit,
                term,
                lease,
            });
            self.out.persist = Some(Persist {
                seq,
                hard_state,
                entries,
                reset_to: self.reset_to.take(),
            });
        }
        let latest = PersistSeq(self.persist_next.0 - 1);
        for message in self.held_now.drain(..) {
            if self.persisted >= latest {
                self.out.messages.push(message);
            } else {
                self.held.push_back((latest, message));
            }
        }
    }

    fn on_installed(&mut self, meta: SnapshotMeta) {
        let Some(expected) = self.installing.take() else {
            return;
        };
        assert!(
            expected.position == meta.position,
            "another snapshot was installed than was offered"
        );
        assert!(
            meta.position.index > self.commit,
            "appends are refused while a snapshot is installed"
        );
        // Pitfall P13: log, membership and commit index change in this one step.
        self.log.reset(meta.position);
        self.reset_to = Some(meta.position);
        self.commit = meta.position.index;
        self.commit_durable = meta.position.index;
        self.emitted = meta.position.index;
        self.applied = meta.position.index;
        if !Mutant::SnapshotWithoutMembers.active() {
            self.members = meta.config;
        }
        self.reads_state = meta.reads;
        self.settle_role();
        if let Some(leader) = self.leader {
            self.send_accepted(leader, meta.position.index);
        }
    }
}
