//! One group inside a host.

use super::stamps::Stamps;
use crate::effect::{Done, WriteToken};
use crate::envelope::Envelope;
use crate::policy::{CutPolicy, LogFacts, compact_to};
use althing_raft::Raft;
use althing_raft::entry::{ConfigState, ConfigStep, Entry, Payload, SnapshotMeta};
use althing_raft::ids::{Index, LogPosition, Now};
use althing_raft::io::{RequestId, Role, Soft};
use althing_raft::message::Message;
use althing_raft::mutant::Mutant;
use althing_raft::roster::Footprint;
use althing_store::codec::ends_batch;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// One group: its core, and who waits for what.
pub(super) struct Group {
    pub(super) raft: Raft,
    pub(super) soft: Soft,
    /// What the state machine has.
    pub(super) applied: LogPosition,
    /// The configuration as of the last entry handed to the state machine.
    pub(super) config: ConfigState,
    /// Proposals that wait for a leader or for the end of the turn, with their envelopes.
    pub(super) held: Vec<(RequestId, Bytes)>,
    pub(super) held_bytes: usize,
    /// Commands of followers' clients that wait for a write under way to end.
    pub(super) forwarded: Vec<Message>,
    pub(super) forwarded_bytes: usize,
    /// What came in waits for this write and all before it, not for a moment.
    pub(super) gate: Option<WriteToken>,
    /// Before this moment nothing that the core refused is tried again.
    pub(super) hold_until: Now,
    /// The same for reads.
    pub(super) read_hold_until: Now,
    /// Reads that wait for the end of the turn, or for a leader. The core keeps those that it was given.
    pub(super) reads: Vec<(RequestId, Footprint)>,
    pub(super) transfers: Vec<RequestId>,
    /// Commands that wait for revisions, in a sequenced group.
    pub(super) stamps: Stamps,
    /// The newest entry that whoever is added must not apply: one that cut the group in two or joined another one with it (the other group
    /// is not there any more), or one that took a member away (`CutPolicy::behind_removals`). The log is cut behind it first.
    pub(super) reshaped: Index,
    /// Answers that wait for the state machine.
    after_apply: BTreeMap<Index, Vec<(RequestId, Done)>>,
    /// Batches on their way through the state machine: last position, whose requests it answers, bytes.
    applying: VecDeque<(LogPosition, Vec<RequestId>, usize)>,
    pub(super) backlog_bytes: usize,
    /// The core's next deadline.
    pub(super) deadline: Option<Now>,
    /// What stands in the host's schedule.
    pub(super) scheduled: Option<Now>,
}

impl Group {
    pub(super) fn new(raft: Raft, applied: SnapshotMeta) -> Self {
        Self {
            soft: raft.view().soft,
            raft,
            applied: applied.position,
            config: applied.config,
            held: Vec::new(),
            held_bytes: 0,
            forwarded: Vec::new(),
            forwarded_bytes: 0,
            gate: None,
            hold_until: Now::default(),
            read_hold_until: Now::default(),
            reads: Vec::new(),
            transfers: Vec::new(),
            stamps: Stamps::default(),
            reshaped: Index::ZERO,
            after_apply: BTreeMap::new(),
            applying: VecDeque::new(),
            backlog_bytes: 0,
            deadline: None,
            scheduled: None,
        }
    }

    pub(super) fn hold(&mut self, request: RequestId, envelope: Bytes) {
        self.held_bytes += envelope.len();
        self.held.push((request, envelope));
    }

    /// Nobody waits for it any more.
    pub(super) fn forget(&mut self, request: RequestId) {
        self.held.retain(|(held, _)| *held != request);
        self.held_bytes = self.held.iter().map(|(_, envelope)| envelope.len()).sum();
        self.reads.retain(|(read, _)| *read != request);
        self.transfers.retain(|transfer| *transfer != request);
        self.stamps.forget(request);
    }

    /// Whom the state machine answers, as soon as it has what it was handed.
    pub(super) fn answered_by_apply(&self) -> BTreeSet<RequestId> {
        let answers = self.applying.iter().flat_map(|(_, requests, _)| requests);
        answers.copied().collect()
    }

    /// A batch goes to the state machine.
    pub(super) fn handed(&mut self, last: LogPosition, answers: Vec<RequestId>, bytes: usize) {
        self.applying.push_back((last, answers, bytes));
        self.backlog_bytes += bytes;
    }

    /// Answers with `done` once the state machine has applied `index`; at once if it has.
    pub(super) fn after(&mut self, index: Index, request: RequestId, done: Done) -> Option<Done> {
        if index <= self.applied.index || (Mutant::ReadBeforeApply.active() && matches!(done, Done::Read { .. })) {
            return Some(done);
        }
        self.after_apply.entry(index).or_default().push((request, done));
        None
    }

    /// Who was answered by the state machine, and who is to be answered now.
    pub(super) fn applied(&mut self, position: LogPosition) -> (Vec<RequestId>, Vec<(RequestId, Done)>) {
        assert!(
            position.index >= self.applied.index,
            "invariant: the state machine never goes back"
        );
        self.applied = position;
        let mut answered = Vec::new();
        while self
            .applying
            .front()
            .is_some_and(|(last, ..)| last.index <= position.index)
        {
            let (_, requests, bytes) = self.applying.pop_front().expect("invariant: just looked at");
            self.backlog_bytes -= bytes;
            answered.extend(requests);
        }
        let later = self.after_apply.split_off(&position.index.next());
        let ready = std::mem::replace(&mut self.after_apply, later)
            .into_values()
            .flatten()
            .collect();
        (answered, ready)
    }

    /// A snapshot became the state: what the log was before is nobody's business.
    pub(super) fn installed(&mut self, meta: &SnapshotMeta) {
        self.config = meta.config.clone();
    }

    /// The last index that should leave the log now that `durable` is durable in the state machine, if any.
    pub(super) fn cut(&self, policy: CutPolicy, durable: LogPosition) -> Option<Index> {
        let view = self.raft.view();
        let slowest_active = view
            .progress
            .iter()
            .filter(|peer| peer.recent_active)
            .map(|peer| peer.matched)
            .min();
        let facts = LogFacts {
            first: view.first,
            bytes: view.log_bytes,
            durable: if Mutant::CompactUndurable.active() {
                self.applied.index
            } else {
                durable.index
            },
            slowest_active,
        };
        let usual = compact_to(policy, facts);
        // Whoever answers gets to it by the log first: a snapshot in its place would not bring the group that was cut off.
        let all_there = slowest_active.is_none_or(|slowest| slowest >= self.reshaped);
        let due = self.reshaped >= facts.first && self.reshaped <= facts.durable && all_there;
        usual.max(due.then_some(self.reshaped))
    }

    /// Whether the log still holds an entry that whoever is added must not apply.
    pub(super) fn holds_reshaping(&self) -> bool {
        self.reshaped > self.raft.log_start().index
    }

    /// Notes what the log holds of a former life.
    pub(super) fn look_for_reshaping(&mut self, entries: &[Entry], behind_removals: bool) {
        let reshaping = |entry: &&Entry| match &entry.payload {
            Payload::Command(envelope) => {
                Envelope::decode(envelope.clone()).is_ok_and(|envelope| ends_batch(&envelope.command))
            }
            Payload::Config(change) => behind_removals && removes(&change.step),
            Payload::Noop | Payload::Reads(_) => false,
        };
        let newest = entries.iter().rev().find(reshaping);
        self.reshaped = newest.map_or(Index::ZERO, |entry| entry.index);
    }

    /// When something must happen here without an event.
    pub(super) fn wake_at(&self) -> Option<Now> {
        let led = self.soft.leader.is_some();
        let held = !(self.held.is_empty() && self.forwarded.is_empty());
        let hold = (led && self.gate.is_none() && held).then_some(self.hold_until);
        let read = (led && !self.reads.is_empty()).then_some(self.read_hold_until);
        let ask = (self.soft.role == Role::Leader).then(|| self.stamps.ask_deadline());
        let ask = ask.flatten();
        self.deadline.into_iter().chain(hold).chain(read).chain(ask).min()
    }
}

/// Whether a change may take somebody away.
pub(super) fn removes(step: &ConfigStep) -> bool {
    match step {
        ConfigStep::AddLearner(_) | ConfigStep::Promote(_) => false,
        ConfigStep::Remove(_) | ConfigStep::EnterJoint(_) | ConfigStep::LeaveJoint => true,
    }
}
