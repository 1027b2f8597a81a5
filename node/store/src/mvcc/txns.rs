//! This shard's part in transactions over several shards: what is prepared and locked, and what was decided.
//!
//! Two-phase commit over replicated logs with presumed abort. `Prepare` locks; the first `Decide` at the coordinator's group is the
//! outcome; `Finish` brings it here. Locks are for keys looked at (others may look too) and for keys that any branch may change.

use crate::codec::shard::{decode_decision, decode_prepared, encode_decision, encode_prepared};
use crate::codec::{CodecError, Reader};
use crate::mvcc::shard::{Access, each_key_of_txn};
use crate::ops::{Decision, KeyRange, Op, OpError, Revision, Txn, TxnId};
use althing_raft::ids::GroupId;
use althing_raft::mutant::Mutant;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Transactions that one shard has prepared at a time. Each is compared with every command, so that it must be few; those beyond are
/// refused as if the oldest one had locked their keys.
pub(crate) const PREPARED_MAX: usize = 1024;
/// Decisions that one coordinating shard keeps until they are forgotten. Only those whose coordinator crashed stay for long.
pub(crate) const DECISIONS_MAX: usize = 1 << 16;

/// A transaction that waits for its decision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Prepared {
    pub(crate) coordinator: GroupId,
    /// Current revision when it was prepared: its own, if it comes to one, is later.
    pub(crate) floor: i64,
    pub(crate) part: Txn,
    looked_at: Vec<KeyRange>,
    changed: Vec<KeyRange>,
}

impl Prepared {
    pub(crate) fn new(coordinator: GroupId, floor: i64, part: Txn) -> Self {
        let (mut looked_at, mut changed) = (Vec::new(), Vec::new());
        each_key_of_txn(&part, &mut |keys, access| match access {
            Access::Read => looked_at.push(keys.clone()),
            Access::Write => changed.push(keys.clone()),
        });
        Self {
            coordinator,
            floor,
            part,
            looked_at,
            changed,
        }
    }

    pub(crate) fn encode(&self) -> Bytes {
        encode_prepared(self.coordinator, self.floor, &self.part)
    }

    pub(crate) fn decode(reader: &mut Reader) -> Result<Self, CodecError> {
        let (coordinator, floor, part) = decode_prepared(reader)?;
        Ok(Self::new(coordinator, floor, part))
    }

    fn conflicts(&self, keys: &KeyRange, access: Access) -> bool {
        let touches = |locked: &Vec<KeyRange>| locked.iter().any(|locked| locked.overlaps(keys));
        touches(&self.changed) || access == Access::Write && touches(&self.looked_at)
    }

    /// Whether it reads at a revision before this one, which must then stay readable until it is finished.
    fn looks_before(&self, revision: i64) -> bool {
        fn any(txn: &Txn, revision: i64) -> bool {
            txn.success.iter().chain(&txn.failure).any(|op| match op {
                Op::Range(range) => range
                    .revision
                    .is_some_and(|Revision(asked)| asked > 0 && asked < revision),
                Op::Put(_) | Op::Delete(_) => false,
                Op::Txn(inner) => any(inner, revision),
            })
        }
        any(&self.part, revision)
    }
}

/// Which of the two tables a row is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Table {
    Prepared,
    Decided,
}

/// Rows set (`Some`) and removed (`None`).
pub(crate) type TxnChanges = BTreeMap<(Table, TxnId), Option<Bytes>>;

/// All that a shard knows about transactions over several shards.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Transactions {
    pub(crate) prepared: BTreeMap<TxnId, Arc<Prepared>>,
    pub(crate) decided: BTreeMap<TxnId, Decision>,
}

impl Transactions {
    /// Why nothing may change about the shard as a whole: the first transaction that is prepared here.
    pub(crate) fn any_prepared(&self) -> Result<(), OpError> {
        match self.prepared.first_key_value() {
            None => Ok(()),
            Some((txn, prepared)) => Err(locked(*txn, prepared.coordinator)),
        }
    }

    /// Whether keys are free for this. A read at a revision from before a transaction was prepared does not see what comes of it.
    pub(crate) fn admit(&self, keys: &KeyRange, access: Access, at: Option<Revision>) -> Result<(), OpError> {
        let careless = match access {
            Access::Read => Mutant::LockedKeysRead.active(),
            Access::Write => Mutant::LockedKeysWritten.active(),
        };
        if careless {
            return Ok(());
        }
        for (txn, prepared) in &self.prepared {
            let before = at.is_some_and(|Revision(at)| at > 0 && at <= prepared.floor);
            if !before && prepared.conflicts(keys, access) {
                return Err(locked(*txn, prepared.coordinator));
            }
        }
        Ok(())
    }

    /// The same for all keys of a transaction.
    pub(crate) fn admit_txn(&self, txn: &Txn) -> Result<(), OpError> {
        if self.prepared.is_empty() {
            return Ok(());
        }
        let mut result = Ok(());
        each_key_of_txn(txn, &mut |keys, access| {
            if result.is_ok() {
                result = self.admit(keys, access, None);
            }
        });
        result
    }

    /// Whether history before a revision may go.
    pub(crate) fn admit_compaction(&self, revision: i64) -> Result<(), OpError> {
        let looks = self
            .prepared
            .iter()
            .find(|(_, prepared)| prepared.looks_before(revision));
        looks.map_or(Ok(()), |(txn, prepared)| Err(locked(*txn, prepared.coordinator)))
    }

    /// Takes a row in, or out.
    pub(crate) fn load(&mut self, table: Table, txn: TxnId, row: Bytes) -> Result<(), CodecError> {
        let mut reader = Reader(row);
        match table {
            Table::Prepared => {
                self.prepared.insert(txn, Arc::new(Prepared::decode(&mut reader)?));
            }
            Table::Decided => {
                self.decided.insert(txn, decode_decision(&mut reader)?);
            }
        }
        reader.finish("a transaction's row")
    }

    /// All of it as rows.
    pub(crate) fn rows(&self) -> TxnChanges {
        let prepared = self.prepared.iter();
        let prepared = prepared.map(|(txn, prepared)| ((Table::Prepared, *txn), Some(prepared.encode())));
        let decided = self.decided.iter();
        let decided = decided.map(|(txn, decision)| ((Table::Decided, *txn), Some(decision_row(decision))));
        prepared.chain(decided).collect()
    }
}

pub(crate) fn decision_row(decision: &Decision) -> Bytes {
    let mut out = Vec::new();
    encode_decision(decision, &mut out);
    out.into()
}

pub(crate) fn locked(txn: TxnId, coordinator: GroupId) -> OpError {
    OpError::Locked { txn, coordinator }
}
