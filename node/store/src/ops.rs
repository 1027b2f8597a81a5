//! What clients ask of a keyspace, parsed: etcd's request semantics as types, without its wire format.

pub use crate::partition::{Decision, Partitioning, RevisionSource, Span, Territory, TxnId};
use althing_raft::ids::{GroupId, LogPosition};
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
    /// Of the keys `[start, end)`, or from `start` on, those of a span of partition keys: what one shard has of a range that goes over
    /// several. Only the shard whose territory is just that span answers, so that no part is missing or counted twice.
    Part {
        /// First key.
        start: Bytes,
        /// First key after the range.
        end: Option<Bytes>,
        /// Which part.
        span: Span,
    },
}

impl KeyRange {
    /// Whether the range holds the key. Which part of it a key belongs to is not looked at.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::Single(only) => only == key,
            Self::Between(start, end) => start <= key && key < &end[..],
            Self::From(start) => start <= key,
            Self::Part { start, end, .. } => start <= key && end.as_ref().is_none_or(|end| key < &end[..]),
        }
    }

    /// Whether there may be a key in both. Which part of it a key belongs to is not looked at.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let ((one, until_one), (other, until_other)) = match (self.limits(), other.limits()) {
            (Ok(one), Ok(other)) => (one, other),
            (Err(key), _) => return other.contains(key),
            (_, Err(key)) => return self.contains(key),
        };
        let end = match (until_one, until_other) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        end.is_none_or(|end| one.max(other) < end)
    }

    /// First key, and first key after the range; or the only key.
    fn limits(&self) -> Result<(&Bytes, Option<&Bytes>), &Bytes> {
        match self {
            Self::Single(key) => Err(key),
            Self::Between(start, end) => Ok((start, Some(end))),
            Self::From(start) => Ok((start, None)),
            Self::Part { start, end, .. } => Ok((start, end.as_ref())),
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
    /// Something about the shard itself.
    Shard(ShardCommand),
}

/// What is done with a shard as a whole, and its part in transactions over several shards. None of these takes a stamp.
///
/// What changes the shard as a whole (`Settle`, `Split`, `Seal`, `Absorb`) is refused with `Locked` while a transaction over several
/// shards is prepared here: it is finished on the shard that it was planned for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ShardCommand {
    /// Sets territory and source of revisions, if the territory's epoch is newer than the present one. `Stale` if a key that is there would
    /// fall outside of it, or if keys would be put in order in another way in a shard that was ever cut. Of an epoch that is not newer it
    /// only answers with the current revision.
    Settle {
        /// What is to be owned.
        territory: Territory,
        /// Where revisions come from.
        source: RevisionSource,
    },
    /// Cuts everything at and after a partition key off into a new group. `Stale` unless the present epoch is `epoch`; both have the next
    /// one afterwards. Once it happened it is Ok again.
    Split {
        /// The epoch that the cut was planned for.
        epoch: u64,
        /// Where: a partition key inside the territory, a slot's first one if it is hashed.
        at: Bytes,
        /// The group to be.
        child: GroupId,
    },
    /// From here on clients are refused; the answer says where in the log "here" is. `Locked` while decisions are kept that nobody has
    /// told to forget, because who takes over would not know them. A sealed shard decides to commit nothing, so a coordinator that is
    /// no more is the same as a decision to abort.
    Seal {
        /// The operation that wants it, which alone can undo it.
        operation: u64,
    },
    /// Ends what the operation's `Seal` began. Ok if it is not sealed, `Stale` if another operation sealed it.
    Unseal {
        /// The operation.
        operation: u64,
    },
    /// The sealed right neighbour's state joins. Once it happened it is Ok again. Whoever has proposed it must never propose `Unseal` of
    /// the same operation any more: members that are behind would still join what others have let go on.
    Absorb {
        /// The operation that sealed the neighbour.
        operation: u64,
        /// The neighbour.
        from: GroupId,
        /// What every member must have applied of the neighbour's log: up to its `Seal`.
        position: LogPosition,
        /// Both territories together, with an epoch newer than either's.
        territory: Territory,
    },
    /// This shard's part of a transaction over several shards: looks at what it would do and locks its keys.
    Prepare {
        /// The transaction.
        txn: TxnId,
        /// Where its decision is kept.
        coordinator: GroupId,
        /// What of it is about this shard.
        part: Txn,
    },
    /// At the coordinator: writes down what becomes of a transaction. The first decision stands.
    Decide {
        /// The transaction.
        txn: TxnId,
        /// What is to become of it.
        decision: Decision,
    },
    /// At every participant: does what was decided, and unlocks. Ok if there is nothing to finish any more.
    Finish {
        /// The transaction.
        txn: TxnId,
        /// What was decided.
        decision: Decision,
    },
    /// At the coordinator: every participant has finished, so the decision may go.
    Forget {
        /// The transaction.
        txn: TxnId,
    },
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
    /// Of a command about the shard.
    Shard(ShardResult),
}

/// Answer to a [`ShardCommand`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ShardResult {
    /// Of `Settle`, whether it changed anything or not.
    Settled {
        /// The current revision.
        current: Revision,
    },
    /// Of `Split`.
    Split,
    /// Of `Seal`.
    Sealed {
        /// An entry that every member must have applied before the state may be taken over.
        at: LogPosition,
    },
    /// Of `Unseal`.
    Unsealed,
    /// Of `Absorb`.
    Absorbed,
    /// Of `Prepare`: what the coordinator needs to decide. Both lists have an item for each transaction of the part, in depth-first
    /// order: itself, then those nested in its success branch, then those of its failure branch.
    Prepared {
        /// What each of the transaction's comparisons came to.
        verdicts: Vec<Vec<Verdict>>,
        /// What the operations of each branch (success, failure) would be refused for, but for those of nested transactions.
        errors: Vec<[Option<OpError>; 2]>,
    },
    /// Of `Decide`: the decision that stands.
    Decided(Decision),
    /// Of `Finish`: the results of the part, if this was what ran it.
    Finished(Option<Box<OpResult>>),
    /// Of `Forget`.
    Forgotten,
}

/// What a comparison came to on one shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It holds for every key that there is.
    Holds,
    /// It does not hold for some key.
    Fails,
    /// This shard has no key in the range. If no other one has, the comparison is with a missing key and comes to this.
    Empty(bool),
}

impl Verdict {
    /// What a comparison comes to whose range goes over the shards that said this; of a single one what etcd would say.
    #[must_use]
    pub fn all(shards: impl IntoIterator<Item = Self>) -> bool {
        let (mut met, mut empty) = (false, true);
        for verdict in shards {
            match verdict {
                Self::Fails => return false,
                Self::Holds => met = true,
                Self::Empty(holds) => empty = holds,
            }
        }
        met || empty
    }
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
    /// Some of the keys belong to another shard: the route was stale. Look it up again.
    #[error("the shard does not own all of these keys; look the route up again")]
    WrongShard,
    /// The shard is being handed over. Look the route up again after a while.
    #[error("the shard is being handed over to another one; try again")]
    Sealed,
    /// A transaction over several shards is about to change some of the keys, or nothing may change while one is under way.
    #[error(
        "transaction {txn} has locked the keys and group {coordinator} knows what becomes of it; try again when it is finished"
    )]
    Locked {
        /// Which.
        txn: TxnId,
        /// Who knows what becomes of it.
        coordinator: GroupId,
    },
    /// The command has no revision from the sequencer that is still to be had, or has one where none is wanted. Propose it again.
    #[error("the command has no usable revision of the sequencer; propose it again")]
    Unstamped,
    /// The command was made for another state of the shard.
    #[error("the shard is not what the command was made for; look at it again")]
    Stale,
}
