//! From a request to the shards that answer it, and from their answers back to one.
//!
//! Contract: [`plan`] says which shards a request is about, as one [`RouteTable`] has them, and cuts it into a part for each. Each
//! part is a transaction of the request's own shape, in which whatever is another shard's is replaced by something that finds
//! nothing, so that the parts' answers lie over each other and [`Parts::merge`] puts them together: the answer is what one shard
//! with all the keys would have said. A part asks for just what its shard owns by that table; a shard that owns something else
//! refuses it, so a stale table costs a second try.
//!
//! What it is not: it runs nothing. `crate::txn` does.

mod cut;
mod merge;

use crate::map::RouteTable;
use althing_raft::ids::GroupId;
use althing_store::ops::{Command, Op, OpError, OpResult, Range, Revision, RevisionSource, Txn, Verdict};
use std::collections::BTreeMap;

/// Shards that one writing transaction may touch. Each costs two entries of its log and holds its locks until the slowest one has
/// answered; a wider one would stand in everybody's way.
pub const TXN_SHARDS_MAX: usize = 64;
/// Shards that one read may touch, so that the requests it becomes stay few enough for one node to have under way. A whole keyspace of
/// more is read by narrower ranges.
pub const READ_SHARDS_MAX: usize = 1024;

/// A request, as a client sent it.
#[derive(Clone, Copy, Debug)]
pub enum Request<'r> {
    /// A range.
    Range(&'r Range),
    /// A transaction that cannot write.
    ReadTxn(&'r Txn),
    /// Anything else.
    Command(&'r Command),
}

/// What a request takes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Plan {
    /// One shard does it as it is, by itself. Reads only where revisions are dense, see [`Plan::Snapshot`].
    One(GroupId),
    /// A read at one revision on every shard that it touches: [`crate::txn::SnapshotRead`]. In a sequenced keyspace also of a single
    /// one: a shard that has not waited for the revisions it was given before would show that a later one of another shard came first
    /// (reading y at 7, then x without 5, while a snapshot at 6 has x at 5 and not y).
    Snapshot(Parts),
    /// A write on several shards: [`crate::txn::Transaction`].
    TwoPhase(Parts),
    /// The same command on every shard, each by itself.
    Everywhere(Vec<GroupId>),
}

/// Why a request cannot be planned.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RouteError {
    /// It touches too many shards.
    #[error("the request touches {shards} shards and at most {max} may be touched at once; use narrower ranges")]
    TooManyShards {
        /// So many.
        shards: usize,
        /// Allowed.
        max: usize,
    },
    /// It is for the state machine of one shard, not for a keyspace.
    #[error("commands about a shard are not routed by keys; send them to its group")]
    NotRouted,
}

/// The answers of shards do not fit the parts that they were asked for, so that a bug or another version is at work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("shards answered {found} where {wanted} was due; they may run another version")]
pub struct Mismatch {
    /// What should have come.
    pub wanted: &'static str,
    /// What came.
    pub found: &'static str,
}

/// What a request was before it was made a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shape {
    /// A transaction.
    Txn,
    /// Something that is now the only operation of one.
    Single,
}

/// A request, cut.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parts {
    whole: Txn,
    parts: BTreeMap<GroupId, Txn>,
    shape: Shape,
}

/// What a shard said of its part before anything is done (`ShardResult::Prepared`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Prepared {
    /// For each transaction in depth-first order, what its comparisons came to.
    pub verdicts: Vec<Vec<Verdict>>,
    /// For each, what its branches (success, failure) would be refused for.
    pub errors: Vec<[Option<OpError>; 2]>,
}

/// Says what a request takes.
///
/// # Errors
/// If it touches too many shards, or is no client's.
pub fn plan(table: &RouteTable, request: Request<'_>) -> Result<Plan, RouteError> {
    let reading = |parts: Parts| match (table.source, parts.only()) {
        (RevisionSource::Dense, Some(group)) => Ok(Plan::One(group)),
        (RevisionSource::Dense | RevisionSource::Sequenced, _) => parts.at_most(READ_SHARDS_MAX).map(Plan::Snapshot),
    };
    let writing = |parts: Parts| match parts.only() {
        Some(group) => Ok(Plan::One(group)),
        None => parts.at_most(TXN_SHARDS_MAX).map(Plan::TwoPhase),
    };
    match request {
        Request::Range(range) => reading(Parts::of_op(table, Op::Range(range.clone()))),
        Request::ReadTxn(txn) => reading(Parts::of_txn(table, txn.clone())),
        Request::Command(command) => match command {
            Command::Put(put) => Ok(Plan::One(table.shard_of(&put.key).group)),
            Command::Delete(delete) => writing(Parts::of_op(table, Op::Delete(delete.clone()))),
            Command::Txn(txn) => writing(Parts::of_txn(table, txn.clone())),
            Command::Compact(_) => Ok(Plan::Everywhere(
                table.shards().iter().map(|route| route.group).collect(),
            )),
            Command::Shard(_) => Err(RouteError::NotRouted),
        },
    }
}

impl Parts {
    fn of_txn(table: &RouteTable, whole: Txn) -> Self {
        Self {
            parts: cut::cut(table, &whole),
            whole,
            shape: Shape::Txn,
        }
    }

    fn of_op(table: &RouteTable, op: Op) -> Self {
        let success = vec![op];
        let whole = Txn {
            success,
            ..Txn::default()
        };
        Self {
            shape: Shape::Single,
            ..Self::of_txn(table, whole)
        }
    }

    /// The shard, if it is only one.
    fn only(&self) -> Option<GroupId> {
        let (group, _) = self.parts.first_key_value()?;
        (self.parts.len() == 1).then_some(*group)
    }

    fn at_most(self, max: usize) -> Result<Self, RouteError> {
        match self.parts.len() {
            shards if shards > max => Err(RouteError::TooManyShards { shards, max }),
            _ => Ok(self),
        }
    }

    /// The whole request, as a transaction.
    #[must_use]
    pub fn whole(&self) -> &Txn {
        &self.whole
    }

    /// Each shard's part.
    #[must_use]
    pub fn each(&self) -> &BTreeMap<GroupId, Txn> {
        &self.parts
    }

    /// The branch that each transaction of the request takes, in depth-first order (`Decision::Commit`), from what all shards said.
    ///
    /// # Errors
    /// The inner one is what the client is told: a branch to be taken would be refused, or reads at `revision` or later, which the
    /// transaction itself is going to have. With several reasons in several shards, which one is told is not said.
    pub fn choose(
        &self,
        prepared: &BTreeMap<GroupId, Prepared>,
        revision: Revision,
    ) -> Result<Result<Vec<bool>, OpError>, Mismatch> {
        merge::choose(&self.whole, prepared, revision)
    }

    /// The answer to the request, from those of all its parts at a revision, and the revision of its header: the one before if nothing
    /// has changed.
    ///
    /// # Errors
    /// If they do not fit.
    pub fn merge(
        &self,
        results: &BTreeMap<GroupId, OpResult>,
        Revision(revision): Revision,
    ) -> Result<(Revision, OpResult), Mismatch> {
        let mut merged = merge::merge(&self.whole, results.values().collect())?;
        let unchanged = !merge::changed(&merged, Revision(revision));
        if self.shape == Shape::Single
            && let OpResult::Txn { results, .. } = &mut merged
            && let Some((_, only)) = results.pop()
        {
            merged = only;
        }
        Ok((Revision(revision - i64::from(unchanged)), merged))
    }
}
