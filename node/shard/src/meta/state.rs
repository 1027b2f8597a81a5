//! All rows together.

use crate::map::{KeyspaceId, KeyspaceRecord, MemberRecord, Operation, OperationId, ShardRecord};
use crate::meta::rows;
use crate::meta::{Counters, MetaChange, MetaError};
use althing_raft::ids::{GroupId, MemberId};
use bytes::Bytes;
use std::collections::BTreeMap;

/// The row that counts changes, as a decimal number: every change compares and swaps it.
pub const VERSION_KEY: &[u8] = b"version";
/// The row of [`Counters`].
pub(crate) const COUNTERS_KEY: &[u8] = b"counters";

const MEMBERS: &str = "members/";
const KEYSPACES: &str = "keyspaces/";
const SHARDS: &str = "shards/";
const OPERATIONS: &str = "operations/";

pub(crate) fn version_value(version: u64) -> Bytes {
    Bytes::from(version.to_string())
}

pub(crate) fn member_key(id: MemberId) -> Bytes {
    Bytes::from(format!("{MEMBERS}{id}"))
}

pub(crate) fn keyspace_key(id: KeyspaceId) -> Bytes {
    Bytes::from(format!("{KEYSPACES}{id}"))
}

pub(crate) fn shard_key(id: GroupId) -> Bytes {
    Bytes::from(format!("{SHARDS}{id}"))
}

pub(crate) fn operation_key(id: OperationId) -> Bytes {
    Bytes::from(format!("{OPERATIONS}{id}"))
}

/// Everything that the meta group knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MetaState {
    /// Changes so far. 0: nothing was ever written, the cluster has no map yet.
    pub version: u64,
    /// Members.
    pub members: BTreeMap<MemberId, MemberRecord>,
    /// Keyspaces.
    pub keyspaces: BTreeMap<KeyspaceId, KeyspaceRecord>,
    /// Shards and sequencers.
    pub shards: BTreeMap<GroupId, ShardRecord>,
    /// What is under way.
    pub operations: BTreeMap<OperationId, Operation>,
    /// The next free numbers.
    pub counters: Counters,
}

impl Default for MetaState {
    fn default() -> Self {
        Self {
            version: 0,
            members: BTreeMap::new(),
            keyspaces: BTreeMap::new(),
            shards: BTreeMap::new(),
            operations: BTreeMap::new(),
            counters: Counters {
                next_group: GroupId::FIRST_SHARD.0,
                next_keyspace: KeyspaceId::DEFAULT.0,
                next_operation: 1,
            },
        }
    }
}

impl MetaState {
    /// Reads all rows of the meta group's keyspace, in any order. Rows under keys that this version does not know are passed over.
    ///
    /// # Errors
    /// If a row is damaged or of a newer format, or if rows contradict each other.
    pub fn load<K: AsRef<[u8]>, V: AsRef<[u8]>>(all: impl IntoIterator<Item = (K, V)>) -> Result<Self, MetaError> {
        let mut state = Self::default();
        for (key, value) in all {
            state.load_row(key.as_ref(), value.as_ref())?;
        }
        state.check()?;
        Ok(state)
    }

    fn load_row(&mut self, key: &[u8], value: &[u8]) -> Result<(), MetaError> {
        // Keys are text; anything else is not ours.
        let Ok(name) = std::str::from_utf8(key) else {
            return Ok(());
        };
        if key == VERSION_KEY {
            let text = std::str::from_utf8(value).unwrap_or_default();
            self.version = rows::number(key, text)?;
        } else if key == COUNTERS_KEY {
            self.counters = rows::decode(key, value)?;
        } else if let Some(id) = name.strip_prefix(MEMBERS) {
            self.members
                .insert(rows::named_member(key, id)?, rows::decode(key, value)?);
        } else if let Some(id) = name.strip_prefix(KEYSPACES) {
            self.keyspaces
                .insert(KeyspaceId(rows::number(key, id)?), rows::decode(key, value)?);
        } else if let Some(id) = name.strip_prefix(SHARDS) {
            self.shards
                .insert(GroupId(rows::number(key, id)?), rows::decode(key, value)?);
        } else if let Some(id) = name.strip_prefix(OPERATIONS) {
            self.operations
                .insert(OperationId(rows::number(key, id)?), rows::decode(key, value)?);
        }
        Ok(())
    }

    /// What everything else relies on.
    fn check(&self) -> Result<(), MetaError> {
        let contradiction = |what: String| Err(MetaError::Contradiction { what });
        let Counters {
            next_group,
            next_keyspace,
            next_operation,
        } = self.counters;
        for (group, shard) in &self.shards {
            if group.0 >= next_group {
                return contradiction(format!(
                    "shard {group} is there and {next_group} counts as the next free number"
                ));
            }
            if !self.keyspaces.contains_key(&shard.keyspace) {
                return contradiction(format!(
                    "shard {group} is of keyspace {}, which is not there",
                    shard.keyspace
                ));
            }
        }
        if let Some(id) = self.keyspaces.keys().find(|id| id.0 >= next_keyspace) {
            return contradiction(format!(
                "keyspace {id} is there and {next_keyspace} counts as the next free number"
            ));
        }
        if let Some(id) = self.operations.keys().find(|id| id.0 >= next_operation) {
            return contradiction(format!(
                "operation {id} is there and {next_operation} counts as the next free number"
            ));
        }
        Ok(())
    }

    /// All rows, as [`MetaState::load`] reads them.
    #[must_use]
    pub fn rows(&self) -> Vec<(Bytes, Bytes)> {
        let mut out = vec![
            (Bytes::from_static(VERSION_KEY), version_value(self.version)),
            (Bytes::from_static(COUNTERS_KEY), rows::encode(&self.counters)),
        ];
        out.extend(
            self.members
                .iter()
                .map(|(id, row)| (member_key(*id), rows::encode(row))),
        );
        out.extend(
            self.keyspaces
                .iter()
                .map(|(id, row)| (keyspace_key(*id), rows::encode(row))),
        );
        out.extend(self.shards.iter().map(|(id, row)| (shard_key(*id), rows::encode(row))));
        out.extend(
            self.operations
                .iter()
                .map(|(id, row)| (operation_key(*id), rows::encode(row))),
        );
        out
    }

    /// What the rows will say once the change has happened.
    pub fn apply(&mut self, change: &MetaChange) {
        overlay(&mut self.members, &change.members);
        overlay(&mut self.keyspaces, &change.keyspaces);
        overlay(&mut self.shards, &change.shards);
        overlay(&mut self.operations, &change.operations);
        self.counters = change.counters.unwrap_or(self.counters);
        self.version += 1;
    }

    /// A keyspace by its name.
    #[must_use]
    pub fn keyspace(&self, name: &str) -> Option<(KeyspaceId, &KeyspaceRecord)> {
        let found = self.keyspaces.iter().find(|(_, record)| record.name == name);
        found.map(|(id, record)| (*id, record))
    }

    /// The shards of a keyspace that hold keys, by span.
    #[must_use]
    pub fn shards_of(&self, keyspace: KeyspaceId) -> Vec<(GroupId, &ShardRecord)> {
        let mut shards: Vec<_> = self
            .shards
            .iter()
            .filter(|(_, shard)| shard.keyspace == keyspace && !shard.sequencer)
            .map(|(group, shard)| (*group, shard))
            .collect();
        shards.sort_by(|(_, a), (_, b)| a.span.start.cmp(&b.span.start));
        shards
    }

    /// The operation that keeps a shard busy.
    #[must_use]
    pub fn operation_on(&self, group: GroupId) -> Option<(OperationId, &Operation)> {
        let found = self
            .operations
            .iter()
            .find(|(_, operation)| operation.groups().contains(&group));
        found.map(|(id, operation)| (*id, operation))
    }

    /// Whether a group had its number once and the map has done with it. Numbers are taken in the same change that first
    /// names a group, and never again; so this stays true for ever, and an old state says no rather than a wrong yes.
    #[must_use]
    pub fn is_forgotten(&self, group: GroupId) -> bool {
        group != GroupId::META
            && group.0 < self.counters.next_group
            && !self.shards.contains_key(&group)
            && self.operation_on(group).is_none()
    }
}

fn overlay<K: Ord + Copy, V: Clone>(rows: &mut BTreeMap<K, V>, change: &BTreeMap<K, Option<V>>) {
    for (key, row) in change {
        match row {
            Some(row) => rows.insert(*key, row.clone()),
            None => rows.remove(key),
        };
    }
}
