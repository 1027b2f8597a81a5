//! A replicated group reduced to what matters here: a log that is committed in order and may lose its leader.

use crate::spread::world::NODES;
use althing_raft::entry::SnapshotMeta;
use althing_raft::ids::{GroupId, Index, LogPosition, Term};
use althing_store::ops::{Command, Revision};
use althing_store::{ApplyItem, CommandResult, MemStore, Mvcc};
use std::collections::{BTreeMap, VecDeque};

/// Who waits for an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Waiter {
    /// A client's call.
    Call { client: usize, call: u64 },
    /// A client's call, with a revision out of a ticket of the leader.
    Stamped {
        client: usize,
        call: u64,
        ticket: u64,
        record: usize,
    },
    /// A sequencer's raise.
    Raise { attempt: u64 },
}

/// An entry that is not committed.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) command: Command,
    pub(super) stamp: Option<Revision>,
    pub(super) waiter: Waiter,
}

pub(super) struct Group {
    pub(super) id: GroupId,
    /// What is committed, applied.
    pub(super) mvcc: Mvcc<MemStore>,
    pub(super) term: u64,
    /// Who leads, unless an election is on.
    pub(super) leader: Option<usize>,
    /// Who believes to lead, and in which term.
    pub(super) believes: [Option<u64>; NODES],
    pub(super) log: VecDeque<Entry>,
    /// What replaced leaders have that do not know of it.
    pub(super) stale: BTreeMap<usize, Mvcc<MemStore>>,
}

impl Group {
    pub(super) fn new(id: GroupId) -> Self {
        Self {
            id,
            mvcc: Mvcc::open(MemStore::default(), id).expect("memory opens"),
            term: 0,
            leader: None,
            believes: [None; NODES],
            log: VecDeque::new(),
            stale: BTreeMap::new(),
        }
    }

    /// Whether a node leads in truth.
    pub(super) fn leads(&self, node: usize) -> bool {
        self.leader == Some(node) && self.believes[node] == Some(self.term)
    }

    /// What a node reads.
    pub(super) fn state_of(&self, node: usize) -> &Mvcc<MemStore> {
        match self.stale.get(&node) {
            Some(stale) if !self.leads(node) => stale,
            Some(_) | None => &self.mvcc,
        }
    }

    /// Freezes what a leader has that is being replaced.
    pub(super) fn freeze(&mut self, node: usize) {
        let copy = self.mvcc.engine().fork();
        let copy = Mvcc::open(copy, self.id).expect("memory opens");
        self.stale.insert(node, copy);
    }

    pub(super) fn apply(&self, command: Command, stamp: Option<Revision>) -> CommandResult {
        let position = LogPosition {
            term: Term(self.term.max(1)),
            index: Index(self.mvcc.applied().position.index.0 + 1),
        };
        let applied = SnapshotMeta {
            position,
            ..SnapshotMeta::default()
        };
        let mut results = self
            .mvcc
            .apply(&[ApplyItem::Command { command, stamp }], applied)
            .expect("memory writes");
        results.pop().flatten().expect("a command has a result")
    }
}
