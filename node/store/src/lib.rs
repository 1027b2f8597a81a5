//! The replicated state machine: etcd's revisions, transactions and compaction over an ordered key-value engine.
//!
//! Contract: [`Mvcc::apply`] takes committed entries in order and puts their effects and the record of having applied them
//! into one atomic batch, so a crash leaves the state after some prefix of the log, never between two entries. The same
//! entries give the same state and the same answers on every member: nothing here reads a clock, draws a random number
//! or depends on when a sweep ran. The WAL is the truth; losing this state costs time, not data.
//!
//! A group may be one shard of a keyspace: [`partition`] says what it owns and where its revisions come from, [`ops::ShardCommand`] what
//! can be done with it. Splitting and joining move no rows, see `mvcc::sources` and `mvcc::split`.
//!
//! What it is not: it knows neither leaders nor clients nor who waits for an answer, it does not check quotas (that happens
//! before a command enters the log, since members differ in free space), and it grants no leases yet.
//!
//! sled 0.34.7 is used under the ten rules that its real behaviour asks for; the module of [`SledStore`] says which and why.
//!

mod error;
mod mem;
mod mvcc;
mod pack;
mod sled_store;
mod state;

pub mod answer;
pub mod codec;
pub mod footprint;
pub mod ops;
pub mod partition;
pub mod snapshot;

pub use error::StoreError;
pub use mem::MemStore;
pub use mvcc::{
    ApplyItem, CHILD_BIRTH, CommandResult, Locks, Mvcc, RangeAnswer, StoreSize, Sweep, compare_holds, finish_range,
    groups, tidy,
};
pub use sled_store::{BARRIER_BYTES, CHUNK_BYTES, Defragmented, Opened, QUARANTINES_MAX, SledOptions, SledStore};
pub use state::{Batch, BatchOp, KeySpan, Order, Page, PageLimit, StateStore};
