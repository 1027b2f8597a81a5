//! Requests over several shards: writes by two-phase commit over Raft, reads at one revision.
//!
//! Contract: a write takes effect on all of its shards at one revision, or on none, whatever crashes; whoever reads sees all of it or
//! nothing. Revisions agree with real time: what ended before something else began has the smaller one. Clocks play no part.
//!
//! How a write goes ([`Transaction`]): every shard looks at its part, locks the part's keys and says what it found (`Prepare`). When all
//! have, the sequencer is asked for a revision: it is newer than everything that any of them had. What the transaction comes to is
//! written down by the shard with the smallest number (`Decide`), and that is the moment when it happens. Then every shard does its
//! part at that revision and unlocks (`Finish`). Locks are refused, never waited for, so nobody waits in a circle.
//!
//! If whoever runs it dies, locks stay. Whoever meets them for a while runs a [`Recovery`]: it asks the deciding shard to decide that
//! nothing happens, and does what that shard then says. What was decided is never decided otherwise. What the decision needs to stay
//! true when messages are late:
//!
//! * A shard is asked to prepare a transaction once. A commit is proposed only after every shard has answered, so no preparation is
//!   under way any more that could lock keys again behind the transaction's end. Whoever is not sure that a shard has prepared
//!   gives up, and begins another transaction.
//! * Nobody finishes a transaction by another decision than the one that the deciding shard has answered with. Only the transaction itself
//!   may abort without asking, and only if it has never proposed to commit.
//! * A decision is forgotten when every shard has finished.
//!
//! How a read goes ([`SnapshotRead`]): the sequencer says which revision is the newest. Then every shard makes sure that whatever
//! was given to it up to that revision is in its state or never will be (`Event::Resolve`), waits while a transaction has locked keys
//! that are read, and reads at that revision.
//!
//! What it is not: it sends nothing and knows no time. The shell proposes, asks, and says when a deadline has passed.

mod recovery;
mod snapshot;
mod transaction;

pub use recovery::{Cleanup, Recovery};
pub use snapshot::{ReadInput, ReadOutput, SnapshotRead};
pub use transaction::{Input, Order, Output, Transaction};

use crate::route::Mismatch;
use althing_raft::ids::GroupId;
use althing_store::ops::{OpError, Revision, ShardCommand, ShardResult, TxnId};
use std::time::Duration;

/// How long somebody waits at a lock before looking for what became of its transaction. One that is alive takes some milliseconds; one
/// that is slower than this is given up, which costs it another try.
pub const RECOVER_AFTER: Duration = Duration::from_secs(1);
/// How often the shell says `Tick` to what it runs, so that whatever failed is tried again.
pub const TICK: Duration = Duration::from_millis(100);

/// What became of a proposed command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It was applied.
    Did(ShardResult),
    /// It was applied, and the shard refused: it has changed nothing.
    Refused(OpError),
    /// It never was and never will be in the shard's log.
    NotDone,
    /// Nobody knows. It may have been applied, or be applied later.
    Unknown,
}

/// Which of a transaction's commands was answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// `Prepare`.
    Prepare,
    /// `Decide`.
    Decide,
    /// `Finish`.
    Finish,
    /// `Forget`.
    Forget,
}

/// A command for a shard's log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Propose {
    /// The shard.
    pub group: GroupId,
    /// Which kind it is, to be said with its answer.
    pub asked: Asked,
    /// The command.
    pub command: ShardCommand,
}

/// Why a request over several shards failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failure {
    /// As one shard would have refused it. Nothing happened.
    #[error(transparent)]
    Refused(OpError),
    /// The routes are stale or a shard is being handed over. Nothing happened: look the routes up again, and plan again.
    #[error("a shard does not own what it was asked for; nothing happened, look the routes up again")]
    Moved,
    /// Another transaction has locked some of the keys. Nothing happened: try again when it is finished, or recover it.
    #[error("transaction {txn} has locked some of the keys; nothing happened, try again")]
    Conflict {
        /// The other one.
        txn: TxnId,
        /// Who knows what becomes of it.
        coordinator: GroupId,
        /// Where it was met.
        group: GroupId,
    },
    /// A shard could not be asked, or somebody took this transaction for dead. Nothing happened: try again.
    #[error("a shard could not be asked in time; nothing happened, try again")]
    NotDone,
    /// The deadline passed. Nothing happened.
    #[error("not all shards answered in time; nothing happened")]
    TimedOut,
    /// The deadline passed, and whether anything happened is not known.
    #[error("not all shards answered in time; whether the transaction happened is not known")]
    Unknown,
    /// It happened, but somebody else finished it and the results are gone.
    #[error("the transaction happened at revision {revision}, but its results are lost")]
    Lost {
        /// When.
        revision: Revision,
    },
    /// Shards run different versions. Nothing happened, or it happened and the results make no sense.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
}

impl Failure {
    /// Why a shard refused something, for whoever asked for all of it.
    fn of(error: OpError, group: GroupId) -> Self {
        match error {
            OpError::Locked { txn, coordinator } => Self::Conflict {
                txn,
                coordinator,
                group,
            },
            OpError::WrongShard | OpError::Sealed | OpError::Stale | OpError::Unstamped => Self::Moved,
            OpError::Compacted
            | OpError::FutureRevision
            | OpError::KeyNotFound
            | OpError::LeaseNotFound
            | OpError::NoSpace => Self::Refused(error),
        }
    }
}
