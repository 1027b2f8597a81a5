//! A keyspace in memory: its shards' state machines, and the same keys in one.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use althing_raft::entry::SnapshotMeta;
use althing_raft::ids::{GroupId, Index, LogPosition, MemberId, Term};
use althing_shard::map::{KeyspaceId, KeyspaceRecord, MemberRecord, RouteTable, ShardRecord};
use althing_shard::meta::MetaState;
use althing_store::ops::{Command, OpError, OpResult, Revision, ShardCommand};
use althing_store::partition::{Partitioning, RevisionSource, Span, Territory};
use althing_store::{ApplyItem, MemStore, Mvcc};
use bytes::Bytes;
use std::collections::BTreeMap;

/// The group of the first shard; the others have smaller numbers.
pub const FIRST: GroupId = GroupId(10_000);

/// The map of a sequenced keyspace, cut at these partition keys.
pub fn table(partitioning: Partitioning, cuts: &[Bytes]) -> RouteTable {
    let mut state = MetaState::default();
    let members = BTreeMap::from([(MemberId(1), MemberRecord::default())]);
    let change = state.genesis(&members).unwrap();
    state.apply(&change);
    let record = state.keyspaces[&KeyspaceId::DEFAULT].clone();
    let record = KeyspaceRecord {
        partitioning,
        source: RevisionSource::Sequenced,
        ..record
    };
    state.keyspaces.insert(KeyspaceId::DEFAULT, record);
    let first = state.shards.remove(&GroupId::FIRST_SHARD).unwrap();
    let mut cuts: Vec<_> = cuts
        .iter()
        .filter(|cut| partitioning.may_cut_at(cut))
        .cloned()
        .collect();
    cuts.sort();
    cuts.dedup();
    let starts = std::iter::once(Bytes::new()).chain(cuts.iter().cloned());
    let ends = cuts.iter().cloned().map(Some).chain([None]);
    for (number, (start, end)) in starts.zip(ends).enumerate() {
        let span = Span { start, end };
        // Group numbers say nothing about the order of spans.
        let group = GroupId(FIRST.0 - number as u64);
        let shard = ShardRecord {
            span,
            epoch: 1,
            ..first.clone()
        };
        state.shards.insert(group, shard);
    }
    state.counters.next_group = FIRST.0 + 1;
    RouteTable::all(&state).remove(&KeyspaceId::DEFAULT).unwrap()
}

/// One state machine, with entries applied one after another.
pub struct Shard(pub Mvcc<MemStore>);

impl Shard {
    /// Settled on a territory, and sequenced.
    pub fn new(group: GroupId, partitioning: Partitioning, span: Span) -> Self {
        let shard = Self(Mvcc::open(MemStore::default(), group).unwrap());
        let territory = Territory {
            partitioning,
            span,
            epoch: 1,
        };
        let source = RevisionSource::Sequenced;
        shard
            .shard(ShardCommand::Settle { territory, source })
            .expect("nobody has used it");
        shard
    }

    pub fn apply(&self, command: Command, stamp: Option<Revision>) -> (Revision, Result<OpResult, OpError>) {
        let position = LogPosition {
            term: Term(1),
            index: Index(self.0.applied().position.index.0 + 1),
        };
        let applied = SnapshotMeta {
            position,
            ..SnapshotMeta::default()
        };
        let results = self.0.apply(&[ApplyItem::Command { command, stamp }], applied);
        let result = results.unwrap().remove(0).unwrap();
        (result.revision, result.result)
    }

    pub fn shard(&self, command: ShardCommand) -> Result<althing_store::ops::ShardResult, OpError> {
        match self.apply(Command::Shard(command), None).1? {
            OpResult::Shard(result) => Ok(result),
            other => panic!("{other:?}"),
        }
    }
}

/// All shards of a table.
pub fn shards(table: &RouteTable) -> BTreeMap<GroupId, Shard> {
    let shard = |route: &althing_shard::map::Route| {
        let shard = Shard::new(route.group, table.partitioning, route.span.clone());
        (route.group, shard)
    };
    table.shards().iter().map(shard).collect()
}

/// One shard with everything.
pub fn flat(table: &RouteTable) -> Shard {
    Shard::new(GroupId::FIRST_SHARD, table.partitioning, Span::default())
}
