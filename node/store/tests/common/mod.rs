//! A keyspace to poke at, and short words for requests.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use althing_raft::entry::SnapshotMeta;
use althing_raft::ids::{GroupId, Index, LogPosition, Term};
use althing_store::ops::{
    Command, Compare, CompareOp, CompareTarget, Delete, KeyRange, KeyValue, Op, OpError, OpResult, Put, Range,
    RangeResult, Revision, Txn,
};
use althing_store::{ApplyItem, MemStore, Mvcc, StateStore, Sweep};
use bytes::Bytes;

pub const G: GroupId = GroupId::FIRST_SHARD;

pub struct Keys<S> {
    pub mvcc: Mvcc<S>,
}

pub fn keys() -> Keys<MemStore> {
    Keys {
        mvcc: Mvcc::open(MemStore::default(), G).unwrap(),
    }
}

pub fn meta(index: u64) -> SnapshotMeta {
    SnapshotMeta {
        position: LogPosition {
            term: Term(1),
            index: Index(index),
        },
        ..SnapshotMeta::default()
    }
}

impl<S: StateStore> Keys<S> {
    pub fn apply(&self, items: &[ApplyItem]) -> Vec<Option<(i64, Result<OpResult, OpError>)>> {
        let index = self.mvcc.applied().position.index.0 + items.len() as u64;
        let results = self.mvcc.apply(items, meta(index)).unwrap();
        results
            .into_iter()
            .map(|result| result.map(|result| (result.revision.0, result.result)))
            .collect()
    }

    pub fn run(&self, command: Command) -> (i64, Result<OpResult, OpError>) {
        self.apply(&[ApplyItem::unstamped(command)]).remove(0).unwrap()
    }

    pub fn put(&self, key: &str, value: &str) -> i64 {
        self.run(Command::Put(put(key, value))).0
    }

    pub fn delete(&self, keys: KeyRange) -> (i64, i64) {
        match self.run(Command::Delete(Delete { keys, prev_kv: false })) {
            (revision, Ok(OpResult::Delete { deleted, .. })) => (revision, deleted),
            other => panic!("{other:?}"),
        }
    }

    pub fn txn(&self, txn: Txn) -> (i64, bool, Vec<(i64, OpResult)>) {
        match self.run(Command::Txn(txn)) {
            (revision, Ok(OpResult::Txn { succeeded, results })) => (
                revision,
                succeeded,
                results
                    .into_iter()
                    .map(|(revision, result)| (revision.0, result))
                    .collect(),
            ),
            other => panic!("{other:?}"),
        }
    }

    pub fn compact(&self, revision: i64) -> Result<i64, OpError> {
        let (revision, result) = self.run(Command::Compact(Revision(revision)));
        result.map(|_| revision)
    }

    pub fn sweep(&self) {
        while self.mvcc.compact_step().unwrap() == Sweep::More {}
    }

    pub fn range(&self, range: &Range) -> Result<RangeResult, OpError> {
        self.mvcc.range(range).unwrap().map(|(_, result)| result)
    }

    pub fn get(&self, key: &str) -> Option<KeyValue> {
        self.range(&Range::of(single(key))).unwrap().kvs.pop()
    }

    pub fn get_at(&self, key: &str, revision: i64) -> Result<Option<KeyValue>, OpError> {
        self.range(&Range {
            revision: Some(Revision(revision)),
            ..Range::of(single(key))
        })
        .map(|mut result| result.kvs.pop())
    }

    pub fn revision(&self) -> i64 {
        self.mvcc.current_revision().0
    }
}

pub fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub fn single(key: &str) -> KeyRange {
    KeyRange::Single(bytes(key))
}

pub fn between(start: &str, end: &str) -> KeyRange {
    KeyRange::Between(bytes(start), bytes(end))
}

pub fn all() -> KeyRange {
    KeyRange::From(Bytes::new())
}

pub fn put(key: &str, value: &str) -> Put {
    Put {
        key: bytes(key),
        value: Some(bytes(value)),
        lease: Some(0),
        prev_kv: false,
    }
}

pub fn put_op(key: &str, value: &str) -> Op {
    Op::Put(put(key, value))
}

pub fn delete_op(keys: KeyRange) -> Op {
    Op::Delete(Delete { keys, prev_kv: false })
}

pub fn range_op(keys: KeyRange) -> Op {
    Op::Range(Range::of(keys))
}

pub fn compare(keys: KeyRange, op: CompareOp, target: CompareTarget) -> Compare {
    Compare { keys, op, target }
}

/// Rows as `key=value@create/mod/version`.
pub fn show(kvs: &[KeyValue]) -> Vec<String> {
    kvs.iter()
        .map(|kv| {
            let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
            format!(
                "{}={}@{}/{}/{}",
                text(&kv.key),
                text(&kv.value),
                kv.create_revision,
                kv.mod_revision,
                kv.version
            )
        })
        .collect()
}
