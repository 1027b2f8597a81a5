//! Cutting a transaction along shards.

use crate::map::{Route, RouteTable};
use althing_raft::ids::GroupId;
use althing_store::ops::{Compare, Delete, KeyRange, Op, Put, Range, SortTarget, Territory, Txn};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// Keys that nobody has: every shard owns all of them.
fn nothing() -> KeyRange {
    KeyRange::Between(Bytes::new(), Bytes::new())
}

/// A part for each shard that the transaction touches; for the first one of the keyspace if it touches none.
pub(super) fn cut(table: &RouteTable, txn: &Txn) -> BTreeMap<GroupId, Txn> {
    let mut groups = BTreeSet::new();
    touched(table, txn, &mut groups);
    if groups.is_empty() {
        groups.extend(table.shards().first().map(|route| route.group));
    }
    // The usual case needs no cutting: a transaction of one shard asks for what that shard owns.
    match groups.first() {
        Some(group) if groups.len() == 1 => BTreeMap::from([(*group, txn.clone())]),
        _ => groups
            .into_iter()
            .map(|group| (group, part(table, group, txn)))
            .collect(),
    }
}

/// What of the keys each shard has: the shard, and what to ask it for.
fn owners(table: &RouteTable, keys: &KeyRange) -> Vec<(GroupId, KeyRange)> {
    let (start, end) = match keys {
        KeyRange::Single(key) => return vec![(table.shard_of(key).group, keys.clone())],
        KeyRange::Between(start, end) => (start, Some(end)),
        KeyRange::From(start) => (start, None),
        KeyRange::Part { start, end, .. } => (start, end.as_ref()),
    };
    let shards = table.shards_of(keys);
    if let Some(all) = shards.iter().find(|route| territory(table, route).owns_all(keys)) {
        return vec![(all.group, keys.clone())];
    }
    let part = |route: &Route| KeyRange::Part {
        start: start.clone(),
        end: end.cloned(),
        span: route.span.clone(),
    };
    shards.iter().map(|route| (route.group, part(route))).collect()
}

fn territory(table: &RouteTable, route: &Route) -> Territory {
    Territory {
        partitioning: table.partitioning,
        span: route.span.clone(),
        epoch: route.epoch,
    }
}

fn touched(table: &RouteTable, txn: &Txn, groups: &mut BTreeSet<GroupId>) {
    let mut add = |keys: &KeyRange| groups.extend(owners(table, keys).into_iter().map(|(group, _)| group));
    txn.compares.iter().for_each(|compare| add(&compare.keys));
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            Op::Range(range) => add(&range.keys),
            Op::Put(put) => add(&KeyRange::Single(put.key.clone())),
            Op::Delete(delete) => add(&delete.keys),
            Op::Txn(_) => {}
        }
    }
    for op in txn.success.iter().chain(&txn.failure) {
        if let Op::Txn(inner) = op {
            touched(table, inner, groups);
        }
    }
}

/// What is one shard's of a transaction, in the same shape.
fn part(table: &RouteTable, group: GroupId, txn: &Txn) -> Txn {
    let mine = |keys: &KeyRange| {
        let owners = owners(table, keys);
        // No key can be in it, but its revision may have to be refused.
        let nobodys = owners.is_empty().then(|| (group, keys.clone()));
        owners.into_iter().find(|(owner, _)| *owner == group).or(nobodys)
    };
    let compare = |compare: &Compare| Compare {
        // The same comparison of nothing comes to what all others come to who have nothing.
        keys: mine(&compare.keys).map_or_else(nothing, |(_, keys)| keys),
        ..compare.clone()
    };
    let op = |op: &Op| {
        let of_another = || Op::Range(Range::of(nothing()));
        match op {
            Op::Range(range) => mine(&range.keys).map_or_else(of_another, |(_, keys)| Op::Range(asked(range, keys))),
            Op::Put(Put { key, .. }) if table.shard_of(key).group == group => op.clone(),
            Op::Put(_) => of_another(),
            Op::Delete(Delete { keys, prev_kv }) => {
                let delete = |keys| {
                    Op::Delete(Delete {
                        keys,
                        prev_kv: *prev_kv,
                    })
                };
                mine(keys).map_or_else(of_another, |(_, keys)| delete(keys))
            }
            Op::Txn(inner) => Op::Txn(part(table, group, inner)),
        }
    };
    Txn {
        compares: txn.compares.iter().map(compare).collect(),
        success: txn.success.iter().map(op).collect(),
        failure: txn.failure.iter().map(op).collect(),
    }
}

/// The range that one shard is asked for. What it cuts off is never among the first of all.
fn asked(range: &Range, keys: KeyRange) -> Range {
    let by_value = match range.sort {
        Some((SortTarget::Value, _)) => true,
        Some((SortTarget::Key | SortTarget::Version | SortTarget::Create | SortTarget::Mod, _)) | None => false,
    };
    Range {
        keys,
        // Whoever puts the answers in order needs what they are ordered by.
        keys_only: range.keys_only && !by_value,
        ..range.clone()
    }
}
