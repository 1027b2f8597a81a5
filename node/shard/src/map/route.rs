//! From keys to shards.

use crate::map::{KeyspaceId, KeyspaceRecord, KeyspaceState, ShardRecord};
use crate::meta::MetaState;
use althing_raft::ids::{GroupId, MemberId};
use althing_store::ops::KeyRange;
use althing_store::partition::{Partitioning, RevisionSource, Span, Territory};
use std::collections::BTreeMap;

/// One keyspace's shards, as some version of the map has them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouteTable {
    /// Version of the map: of two tables, the one with the larger number is newer.
    pub version: u64,
    /// The keyspace.
    pub keyspace: KeyspaceId,
    /// How keys become partition keys.
    pub partitioning: Partitioning,
    /// Where revisions come from.
    pub source: RevisionSource,
    /// Who gives them out. There may be one before the source is sequenced.
    pub sequencer: Option<Sequencer>,
    /// Whether it holds as much as it may: what needs space is refused.
    pub full: bool,
    /// The shards by span: the first begins at the beginning, each ends where the next one begins, the last one has no end.
    routes: Vec<Route>,
}

/// The group that gives out revisions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sequencer {
    /// It.
    pub group: GroupId,
    /// Where its replicas are.
    pub replicas: Vec<MemberId>,
}

/// One shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// Its group.
    pub group: GroupId,
    /// What it owns.
    pub span: Span,
    /// Epoch of its territory.
    pub epoch: u64,
    /// Where its replicas are.
    pub replicas: Vec<MemberId>,
}

impl RouteTable {
    /// The tables of all keyspaces that serve: those that have shards and are not being dropped.
    ///
    /// # Panics
    /// If the shards of a keyspace leave a gap or overlap: such a map would lose keys.
    #[must_use]
    pub fn all(state: &MetaState) -> BTreeMap<KeyspaceId, Self> {
        let mut routes: BTreeMap<KeyspaceId, Vec<Route>> = BTreeMap::new();
        for (group, shard) in state.shards.iter().filter(|(_, shard)| !shard.sequencer) {
            routes
                .entry(shard.keyspace)
                .or_default()
                .push(Route::new(*group, shard));
        }
        let table = |(id, routes): (KeyspaceId, Vec<Route>)| {
            let record = state.keyspaces.get(&id)?;
            match record.state {
                KeyspaceState::Active => Some((id, Self::new(state, id, record, routes))),
                KeyspaceState::Creating | KeyspaceState::Dropping => None,
            }
        };
        routes.into_iter().filter_map(table).collect()
    }

    fn new(state: &MetaState, keyspace: KeyspaceId, record: &KeyspaceRecord, mut routes: Vec<Route>) -> Self {
        routes.sort_by(|a, b| a.span.start.cmp(&b.span.start));
        assert!(
            partitions(&routes, &record.partitioning.whole()),
            "the shards of keyspace {keyspace} leave a gap or overlap in version {} of the map",
            state.version
        );
        let sequencer = record.sequencer.and_then(|group| {
            let replicas = state.shards.get(&group)?.replicas.clone();
            Some(Sequencer { group, replicas })
        });
        Self {
            version: state.version,
            keyspace,
            partitioning: record.partitioning,
            source: record.source,
            sequencer,
            full: record.full,
            routes,
        }
    }

    /// All shards, by span.
    #[must_use]
    pub fn shards(&self) -> &[Route] {
        &self.routes
    }

    /// The shard of a key.
    #[must_use]
    pub fn shard_of(&self, key: &[u8]) -> &Route {
        &self.routes[self.position(&self.partitioning.partition_key(key))]
    }

    /// The shards that may hold keys of a range, by span; none for an empty range.
    #[must_use]
    pub fn shards_of(&self, keys: &KeyRange) -> &[Route] {
        match (keys, self.partitioning) {
            (KeyRange::Single(key), _) => std::slice::from_ref(self.shard_of(key)),
            (KeyRange::Between(start, end), _) if start >= end => &[],
            (KeyRange::Between(start, end), Partitioning::Range) => {
                let behind = self.routes.partition_point(|route| route.span.start < end);
                &self.routes[self.position(start)..behind]
            }
            (KeyRange::From(start), Partitioning::Range) => &self.routes[self.position(start)..],
            (KeyRange::Part { span, .. }, _) => {
                let before_end = |route: &Route| span.end.as_ref().is_none_or(|end| route.span.start < end);
                &self.routes[self.position(&span.start)..self.routes.partition_point(before_end)]
            }
            (KeyRange::Between(start, _) | KeyRange::From(start), Partitioning::Hash { .. }) => {
                // Keys of one prefix stay together; any others may be anywhere.
                let first = self.shard_of(start);
                if self.territory(first).owns_all(keys) {
                    std::slice::from_ref(first)
                } else {
                    &self.routes
                }
            }
        }
    }

    /// What a shard of this table owns.
    #[must_use]
    pub fn territory(&self, route: &Route) -> Territory {
        Territory {
            partitioning: self.partitioning,
            span: route.span.clone(),
            epoch: route.epoch,
        }
    }

    fn position(&self, partition_key: &[u8]) -> usize {
        let behind = self.routes.partition_point(|route| route.span.start <= partition_key);
        behind
            .checked_sub(1)
            .expect("invariant: the first shard begins at the beginning")
    }
}

impl Route {
    fn new(group: GroupId, shard: &ShardRecord) -> Self {
        Self {
            group,
            span: shard.span.clone(),
            epoch: shard.epoch,
            replicas: shard.replicas.clone(),
        }
    }
}

/// Whether the spans, in order, are the whole without gap or overlap.
fn partitions(routes: &[Route], whole: &Span) -> bool {
    let joined = routes
        .windows(2)
        .all(|pair| pair[0].span.end.as_ref() == Some(&pair[1].span.start));
    let first = routes.first().is_some_and(|route| route.span.start == whole.start);
    let last = routes.last().is_some_and(|route| route.span.end == whole.end);
    joined && first && last
}
