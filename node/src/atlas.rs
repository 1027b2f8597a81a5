//! The shard map as this member has it: a member of the meta group always has one, old or new.

use crate::conductor::load;
use crate::local::Local;
use althing_raft::ids::{GroupId, MemberId};
use althing_raft::roster::Footprint;
use althing_shard::map::{KeyspaceId, KeyspaceState, MemberState, RouteTable};
use althing_shard::meta::MetaState;
use althing_store::ops::Revision;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// One version of the map, ready for use.
#[derive(Debug, Default)]
pub struct Chart {
    /// The meta group's revision that it was made from.
    revision: Revision,
    /// The map itself.
    pub state: MetaState,
    /// Routes of every keyspace that serves.
    tables: BTreeMap<KeyspaceId, Arc<RouteTable>>,
}

impl Chart {
    /// The routes of a keyspace; `None` if it does not serve (yet, or any more).
    #[must_use]
    pub fn table(&self, keyspace: KeyspaceId) -> Option<&Arc<RouteTable>> {
        self.tables.get(&keyspace)
    }

    /// All keyspaces that serve.
    pub fn tables(&self) -> impl Iterator<Item = (KeyspaceId, &Arc<RouteTable>)> {
        self.tables.iter().map(|(keyspace, table)| (*keyspace, table))
    }

    /// The keyspace of a group, and the sequencer of that.
    #[must_use]
    pub fn sequencer_of(&self, group: GroupId) -> Option<(GroupId, &[MemberId])> {
        let keyspace = self.state.shards.get(&group)?.keyspace;
        let sequencer = self.state.keyspaces.get(&keyspace)?.sequencer?;
        let replicas = &self.state.shards.get(&sequencer)?.replicas;
        Some((sequencer, replicas))
    }

    /// The groups that a member should serve: those that it is listed for, those that are on their way to it, and those of keyspaces
    /// that are everywhere.
    #[must_use]
    pub fn groups_for(&self, member: MemberId) -> BTreeSet<GroupId> {
        let mut groups = self.state.placed_on(member);
        let active = self.state.members.get(&member).map(|record| record.state) == Some(MemberState::Active);
        if active {
            let everywhere = self.state.shards.iter().filter(|(_, shard)| {
                let keyspace = self.state.keyspaces.get(&shard.keyspace);
                keyspace.is_some_and(|keyspace| keyspace.replicas.is_none() && keyspace.state == KeyspaceState::Active)
            });
            groups.extend(everywhere.map(|(group, _)| *group));
        }
        groups
    }
}

/// Keeps a chart as new as this member's copy of the meta group.
pub struct Atlas {
    local: Local,
    chart: RwLock<Arc<Chart>>,
    /// One reads the rows while others go on with what there is.
    reading: Mutex<()>,
}

impl Atlas {
    /// Over the groups of a node.
    #[must_use]
    pub fn new(local: Local) -> Self {
        Self {
            local,
            chart: RwLock::default(),
            reading: Mutex::default(),
        }
    }

    /// The newest chart that this member can make by itself.
    #[must_use]
    pub fn chart(&self) -> Arc<Chart> {
        let present = Arc::clone(&self.chart.read().unwrap_or_else(PoisonError::into_inner));
        let Ok(meta) = self.local.store(GroupId::META) else {
            return present;
        };
        let revision = meta.current_revision();
        if revision == present.revision {
            return present;
        }
        let Ok(_reading) = self.reading.try_lock() else {
            return present;
        };
        let state = match load(&self.local) {
            Ok(state) => state,
            Err(error) => {
                tracing::error!(%error, "the shard map cannot be read; requests go where they went before");
                return present;
            }
        };
        let tables = RouteTable::all(&state);
        let chart = Arc::new(Chart {
            revision,
            tables: tables.into_iter().map(|(id, table)| (id, Arc::new(table))).collect(),
            state,
        });
        *self.chart.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&chart);
        chart
    }

    /// A chart that knows every change that was made before this was called; without a quorum, what there is.
    pub async fn fresh(&self) -> Arc<Chart> {
        // A failure shows where the chart is used: it leads to the same place again.
        let _ = self.local.shared().catch_up(GroupId::META, Footprint::All).await;
        self.chart()
    }
}
