//! What becomes of the rows.

use crate::map::{KeyspaceId, KeyspaceRecord, MemberRecord, Operation, OperationId, ShardRecord};
use crate::meta::rows;
use crate::meta::state::{
    COUNTERS_KEY, VERSION_KEY, keyspace_key, member_key, operation_key, shard_key, version_value,
};
use althing_raft::ids::{GroupId, MemberId};
use althing_store::ops::{Compare, CompareOp, CompareTarget, Delete, KeyRange, Op, Put, Txn};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The next free numbers. They only rise: what had a number once is never mistaken for something else.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// Of groups.
    pub next_group: u64,
    /// Of keyspaces.
    pub next_keyspace: u32,
    /// Of operations.
    pub next_operation: u64,
}

/// Rows to write (`Some`) and to remove (`None`), all at once.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MetaChange {
    /// Members.
    pub members: BTreeMap<MemberId, Option<MemberRecord>>,
    /// Keyspaces.
    pub keyspaces: BTreeMap<KeyspaceId, Option<KeyspaceRecord>>,
    /// Shards and sequencers.
    pub shards: BTreeMap<GroupId, Option<ShardRecord>>,
    /// Operations.
    pub operations: BTreeMap<OperationId, Option<Operation>>,
    /// The next free numbers, if some were taken.
    pub counters: Option<Counters>,
}

impl MetaChange {
    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Rows that it writes or removes.
    #[must_use]
    pub fn rows(&self) -> usize {
        let counters = usize::from(self.counters.is_some());
        self.members.len() + self.keyspaces.len() + self.shards.len() + self.operations.len() + counters
    }

    /// A transaction of the meta group's keyspace that makes this change if the map still has that version, and nothing
    /// otherwise (it answers `succeeded: false` then: load again and think again). Version 0: there is no map yet.
    #[must_use]
    pub fn into_txn(self, expected_version: u64) -> Txn {
        let target = match expected_version {
            0 => CompareTarget::Version(0),
            version => CompareTarget::Value(version_value(version)),
        };
        let compare = Compare {
            keys: KeyRange::Single(Bytes::from_static(VERSION_KEY)),
            op: CompareOp::Equal,
            target,
        };
        let mut success = vec![put(
            Bytes::from_static(VERSION_KEY),
            version_value(expected_version + 1),
        )];
        success.extend(self.members.iter().map(|(id, row)| write(member_key(*id), row)));
        success.extend(self.keyspaces.iter().map(|(id, row)| write(keyspace_key(*id), row)));
        success.extend(self.shards.iter().map(|(id, row)| write(shard_key(*id), row)));
        success.extend(self.operations.iter().map(|(id, row)| write(operation_key(*id), row)));
        success.extend(
            self.counters
                .iter()
                .map(|counters| put(Bytes::from_static(COUNTERS_KEY), rows::encode(counters))),
        );
        Txn {
            compares: vec![compare],
            success,
            failure: Vec::new(),
        }
    }
}

fn write<T: Serialize>(key: Bytes, row: &Option<T>) -> Op {
    match row {
        Some(row) => put(key, rows::encode(row)),
        None => Op::Delete(Delete {
            keys: KeyRange::Single(key),
            prev_kv: false,
        }),
    }
}

fn put(key: Bytes, value: Bytes) -> Op {
    Op::Put(Put {
        key,
        value: Some(value),
        lease: Some(0),
        prev_kv: false,
    })
}
