//! What clients ask of a keyspace, parsed: etcd's request semantics as types, without its wire format.

use crate::partition::{RevisionSource, Territory};
use althing_raft::ids::{GroupId, LogPosition, MemberId};
use bytes::Bytes;
use std::fmt;

/// A point in a keyspace's history. A fresh keyspace is at revision 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Revision(pub i64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One key with its value and history.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// Revision that created this generation of the key.
    pub create_revision: Revision,
    /// Revision of the last change.
    pub mod_revision: Revision,
    /// Changes since creation, from 1.
    pub version: i64,
    /// The value.
    pub value: Bytes,
    /// Attached lease, 0 for none.
    pub lease: i64,
}

/// Keys that a request is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KeyRange {
    /// One key.
    Single(Bytes),
    /// `[start, end)`; empty if `start >= end`.
    Between(Bytes, Bytes),
    /// Every key from this one on; the empty key means all keys.
    From(Bytes),
}

impl KeyRange {
    /// Whether the range holds the key.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::Single(only) => only == key,
            Self::Between(start, end) => start <= key && key < &end[..],
            Self::From(start) => start <= key,
        }
    }
}

/// What to order a range's answer by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SortTarget {
    /// By key.
    Key,
    /// By version.
    Version,
    /// By create revision.
    Create,
    /// By mod revision.
    Mod,
    /// By value, bytewise.
    Value,
}

/// A range read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Range {
    /// Which keys.
    pub keys: KeyRange,
    /// At which revision; `None` is the latest.
    pub revision: Option<Revision>,
    /// At most so many; `None` is all.
    pub limit: Option<u64>,
    /// Order; `None` is by key, ascending.
    pub sort: Option<(SortTarget, Descending)>,
    /// Leave values out.
    pub keys_only: bool,
    /// Only count.
    pub count_only: bool,
    /// Inclusive bounds on `mod_revision`, 0 for none.
    pub mod_revision: (i64, i64),
    /// Inclusive bounds on `create_revision`, 0 for none.
    pub create_revision: (i64, i64),
}

/// Whether a sort is descending.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descending(pub bool);

impl Range {
    /// All of `keys`, latest, by key.
    #[must_use]
    pub fn of(keys: KeyRange) -> Self {
        Self {
            keys,
            revision: None,
            limit: None,
            sort: None,
            keys_only: false,
            count_only: false,
            mod_revision: (0, 0),
            create_revision: (0, 0),
        }
    }
}

/// A write of one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Put {
    /// The key, not empty.
    pub key: Bytes,
    /// The value; `None` keeps the present one (`ignore_value`).
    pub value: Option<Bytes>,
    /// The lease, 0 for none; `None` keeps the present one (`ignore_lease`).
    pub lease: Option<i64>,
    /// Answer with the key as it was before.
    pub prev_kv: bool,
}

/// A removal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Delete {
    /// Which keys.
    pub keys: KeyRange,
    /// Answer with the keys as they were before.
    pub prev_kv: bool,
}

/// A comparison's operator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CompareOp {
    /// `==`
    Equal,
    /// `>`
    Greater,
    /// `<`
    Less,
    /// `!=`
    NotEqual,
}

/// What a comparison compares with. On a missing key numbers compare as 0 and values never hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CompareTarget {
    /// The key's version.
    Version(i64),
    /// Its create revision.
    Create(i64),
    /// Its mod revision.
    Mod(i64),
    /// Its value.
    Value(Bytes),
    /// Its lease.
    Lease(i64),
}

/// One comparison; over a range it must hold for every key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Compare {
    /// Which keys.
    pub keys: KeyRange,
    /// How.
    pub op: CompareOp,
    /// With what.
    pub target: CompareTarget,
}

/// A transaction: every comparison (also of nested ones) sees the state before it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Txn {
    /// All must hold; none means true.
    pub compares: Vec<Compare>,
    /// Run if they hold.
    pub success: Vec<Op>,
    /// Run if not.
    pub failure: Vec<Op>,
}

impl Txn {
    /// Whether no branch can write: such a transaction needs no log entry.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.success.iter().chain(&self.failure).all(|op| match op {
            Op::Range(_) => true,
            Op::Put(_) | Op::Delete(_) => false,
            Op::Txn(inner) => inner.read_only(),
        })
    }
}

/// One operation of a transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// Read.
    Range(Range),
    /// Write.
    Put(Put),
    /// Remove.
    Delete(Delete),
    /// Nested transaction.
    Txn(Txn),
}

/// What goes through the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Write one key.
    Put(Put),
    /// Remove keys.
    Delete(Delete),
    /// A transaction with at least one write.
    Txn(Txn),
    /// Forget history before this revision.
    Compact(Revision),
}

/// Answer to a `Range`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RangeResult {
    /// The keys.
    pub kvs: Vec<KeyValue>,
    /// Whether `limit` cut some off.
    pub more: bool,
    /// Keys in the range, whatever limit and filters say.
    pub count: i64,
}

/// Answer to one operation of a transaction, with the revision its nested header carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OpResult {
    /// Of a range.
    Range(RangeResult),
    /// Of a put: the previous key, if asked for and present.
    Put {
        /// The key before.
        prev: Option<KeyValue>,
    },
    /// Of a delete.
    Delete {
        /// How many keys went.
        deleted: i64,
        /// They, if asked for.
        prev: Vec<KeyValue>,
    },
    /// Of a transaction.
    Txn {
        /// Which branch ran.
        succeeded: bool,
        /// Its results, each with the revision of its header.
        results: Vec<(Revision, OpResult)>,
    },
    /// Of a compaction.
    Compact,
}

/// Why a well-formed request fails at the state it met. Nothing is changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpError {
    /// The revision is gone.
    #[error("required revision has been compacted")]
    Compacted,
    /// The revision is not there yet.
    #[error("required revision is a future revision")]
    FutureRevision,
    /// `ignore_value` or `ignore_lease` of a missing key.
    #[error("key not found")]
    KeyNotFound,
    /// No such lease (leases are not granted by this version, so every id but 0).
    #[error("requested lease not found")]
    LeaseNotFound,
    /// The member is short of disk and takes no writes until space is made.
    #[error("database space exceeded")]
    NoSpace,
}

/// Names a transaction across shards: never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct TxnId {
    /// Who runs it.
    pub member: MemberId,
    /// Drawn at each boot of that member.
    pub nonce: u64,
    /// Counted there.
    pub number: u64,
}

/// How a transaction across shards ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// It happens.
    Commit {
        /// At this revision.
        revision: Revision,
        /// The branch taken, one per transaction in depth-first order.
        path: Vec<bool>,
    },
    /// It never happened.
    Abort,
}

/// What the layers above ask of one group's state machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ShardCommand {
    /// Sets territory and revision source if the territory's epoch is newer.
    Settle {
        /// What it owns.
        territory: Territory,
        /// Where its revisions come from.
        source: RevisionSource,
    },
    /// Cuts everything from `at` on off into a new group.
    Split {
        /// Refused unless this is the present epoch.
        epoch: u64,
        /// Partition key.
        at: Bytes,
        /// The new group.
        child: GroupId,
    },
    /// Refuses clients from now on.
    Seal {
        /// For whom.
        operation: u64,
    },
    /// Serves them again.
    Unseal {
        /// For whom.
        operation: u64,
    },
    /// The sealed right neighbour's state joins.
    Absorb {
        /// The operation that sealed it.
        operation: u64,
        /// The neighbour.
        from: GroupId,
        /// Where it stands.
        position: LogPosition,
        /// What both own together.
        territory: Territory,
    },
    /// Locks keys for a transaction.
    Prepare {
        /// Which one.
        txn: TxnId,
        /// Whose word counts.
        coordinator: GroupId,
        /// This group's part.
        part: Txn,
    },
    /// Settles what becomes of a transaction.
    Decide {
        /// Which one.
        txn: TxnId,
        /// How it ends.
        decision: Decision,
    },
    /// Ends a transaction here.
    Finish {
        /// Which one.
        txn: TxnId,
        /// How it ends.
        decision: Decision,
    },
    /// The coordinator's record may go.
    Forget {
        /// Which one.
        txn: TxnId,
    },
}
