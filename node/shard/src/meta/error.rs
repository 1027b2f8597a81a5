//! Why a wish about the shard map is refused, or the map cannot be read.

use crate::map::{KeyspaceId, OperationId};
use althing_raft::ids::MemberId;

/// Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MetaError {
    /// A row is not what its key says.
    #[error("row {key} of the meta group is unreadable: {what}; start the version that wrote it, or restore the row")]
    Row {
        /// Its key, printable.
        key: String,
        /// What is wrong.
        what: String,
    },
    /// A row of a newer version.
    #[error("row {key} of the meta group has format {found}, this version knows up to {known}; start a newer version")]
    Format {
        /// Its key, printable.
        key: String,
        /// Its format.
        found: u32,
        /// The newest one that can be read.
        known: u32,
    },
    /// Rows contradict each other.
    #[error("the meta group's rows contradict each other: {what}")]
    Contradiction {
        /// What was found.
        what: String,
    },
    /// There is a map already.
    #[error("the shard map exists already (version {version})")]
    Exists {
        /// Its version.
        version: u64,
    },
    /// No keyspace of that name.
    #[error("there is no keyspace {name:?}")]
    NoKeyspace {
        /// The name.
        name: String,
    },
    /// No such member.
    #[error("member {member} is not known to the shard map")]
    NoMember {
        /// The id.
        member: MemberId,
    },
    /// No such operation: it may have ended.
    #[error("there is no operation {operation}; it may have ended")]
    NoOperation {
        /// The id.
        operation: OperationId,
    },
    /// It is past the point of no return, or there is nothing to go back to.
    #[error("operation {operation} cannot be cancelled any more: {why}")]
    TooLate {
        /// The id.
        operation: OperationId,
        /// Why not.
        why: &'static str,
    },
    /// A value that makes no sense.
    #[error("{field}: {what}")]
    Invalid {
        /// Which one.
        field: &'static str,
        /// What is wrong, with what would do.
        what: String,
    },
    /// Something else has it.
    #[error("{what} belongs to keyspace {other:?} already")]
    Taken {
        /// What is taken.
        what: String,
        /// By which keyspace.
        other: String,
    },
    /// The keyspace is going.
    #[error("keyspace {name:?} ({keyspace}) is being dropped; wait until it is gone")]
    Dropping {
        /// Its name.
        name: String,
        /// Its id.
        keyspace: KeyspaceId,
    },
}
