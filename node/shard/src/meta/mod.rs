//! The meta group's state: members, keyspaces, shards and operations, as rows of an ordinary keyspace.
//!
//! Contract: [`MetaState::load`] reads the rows, its intents ([`MetaState::put_keyspace`] and others) say what somebody's wish makes of them, and
//! [`MetaChange::into_txn`] makes a compare-and-swap of it on the one key [`VERSION_KEY`]. So two writers never both succeed from
//! the same state, whoever believes to be in charge; everything that a wish was checked against still holds when it takes effect.
//! Rows are JSON under readable keys, so that `etcdctl` shows them. Each says its format: fields that this version does not
//! know are passed over, a format that it does not know is refused.
//!
//! What it is not: it does no IO, and it decides nothing about what operations do next (that is `crate::conductor`).

mod change;
mod error;
mod intent;
pub(crate) mod rows;
mod state;

pub use change::{Counters, MetaChange};
pub use error::MetaError;
pub use intent::{KEYSPACES_MAX, KeyspaceSpec, REPLICAS_MAX, SHARDS_MAX, SLOTS_MAX, SPLIT_KEYS_MAX};
pub use rows::{FORMAT, printable, unprintable};
pub use state::{MetaState, VERSION_KEY};
