//! Raft groups without Raft: one log per group, and how much of it each replica has.

use althing_raft::entry::ConfigState;
use althing_raft::ids::{GroupId, Index, LogPosition, MemberId, Term};
use althing_raft::roster::ReadSpec;
use althing_store::ops::Revision;
use althing_store::partition::{RevisionSource, Territory};
use bytes::Bytes;
use std::collections::BTreeMap;

/// A group: what it was after each entry of its log.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// `states[i]`: after entry `i`; `states[0]`: of a replica that has nothing.
    pub(crate) states: Vec<State>,
    pub(crate) terms: Vec<u64>,
    pub(crate) term: u64,
    pub(crate) leader: Option<MemberId>,
    /// The entry of another group that makes its replicas.
    pub(crate) cut_by: Option<(GroupId, usize)>,
    /// Of a sequencer: the last revision that it gave out.
    pub(crate) given: i64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    pub(crate) config: ConfigState,
    pub(crate) territory: Territory,
    pub(crate) source: RevisionSource,
    pub(crate) revision: Revision,
    pub(crate) sealed: Option<u64>,
    pub(crate) ceiling: Option<Revision>,
    pub(crate) reads: ReadSpec,
    /// Partition keys and the revisions that wrote them last.
    pub(crate) data: BTreeMap<Bytes, i64>,
    /// What else applying this entry does at a replica.
    pub(crate) does: Does,
}

/// What applying an entry does beside its own group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Does {
    #[default]
    Nothing,
    /// Makes the child's replica.
    Split(GroupId),
    /// Takes the local replica of another group.
    Absorb {
        from: GroupId,
        position: LogPosition,
        operation: u64,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Replica {
    pub(crate) life: u64,
    pub(crate) log: usize,
    pub(crate) applied: usize,
    pub(crate) durable: usize,
}

impl Group {
    pub(crate) fn born(state: State, leader: Option<MemberId>) -> Self {
        Self {
            states: vec![State::default(), state],
            terms: vec![0, 1],
            term: 1,
            leader,
            cut_by: None,
            given: 0,
        }
    }

    pub(crate) fn last(&self) -> usize {
        self.states.len() - 1
    }

    pub(crate) fn now(&self) -> &State {
        &self.states[self.last()]
    }

    pub(crate) fn position(&self, at: usize) -> LogPosition {
        LogPosition {
            term: Term(self.terms[at]),
            index: Index(at as u64),
        }
    }
}

impl Replica {
    pub(crate) fn empty(life: u64) -> Self {
        Self {
            life,
            log: 0,
            applied: 0,
            durable: 0,
        }
    }

    /// With everything up to here.
    pub(crate) fn at(life: u64, index: usize) -> Self {
        Self {
            life,
            log: index,
            applied: index,
            durable: index,
        }
    }
}
