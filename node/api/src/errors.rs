//! What clients are told: code and text of every refusal, exactly as etcd says it.
//!
//! Go clients match the text alone, Java and Rust clients code and text, so a changed letter is a broken client.
//! Source: etcd 3.6, `api/v3rpc/rpctypes/error.go`.

use crate::keyspace::KeyspaceError;
use althing_store::ops::OpError;
use tonic::{Code, Status};

/// Why a request is refused before it reaches the keyspace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RequestError {
    /// A key is empty.
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    /// An operation of a transaction has nothing in it. (etcd's text for this is the one of a missing key.)
    #[error("etcdserver: key not found")]
    EmptyOp,
    /// `ignore_value` with a value.
    #[error("etcdserver: value is provided")]
    ValueProvided,
    /// `ignore_lease` with a lease.
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    /// Too many comparisons or operations on one level, or over all levels.
    #[error("etcdserver: too many operations in txn request")]
    TooManyOps,
    /// One key would be changed twice at one revision.
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    /// A sort that this API version does not know.
    #[error("etcdserver: invalid sort option")]
    InvalidSortOption,
    /// A comparison that this API version does not know. (etcd takes it as true, which nobody can want.)
    #[error("etcdserver: invalid compare option")]
    InvalidCompareOption,
    /// More bytes than [`crate::server::Limits::max_request_bytes`].
    #[error("etcdserver: request is too large")]
    TooLarge,
}

impl From<RequestError> for Status {
    fn from(error: RequestError) -> Self {
        Self::new(Code::InvalidArgument, error.to_string())
    }
}

/// The status for a request that the keyspace did not answer.
#[must_use]
pub fn status_of(error: &KeyspaceError) -> Status {
    let (code, text) = match error {
        KeyspaceError::Op(op) => match op {
            OpError::Compacted => (
                Code::OutOfRange,
                "etcdserver: mvcc: required revision has been compacted",
            ),
            OpError::FutureRevision => (
                Code::OutOfRange,
                "etcdserver: mvcc: required revision is a future revision",
            ),
            OpError::KeyNotFound => (Code::InvalidArgument, "etcdserver: key not found"),
            OpError::LeaseNotFound => (Code::NotFound, "etcdserver: requested lease not found"),
            OpError::NoSpace => (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
            // Whoever routes requests to shards tries these again. A client that meets one all the same may do so too: nothing was done.
            OpError::WrongShard | OpError::Sealed | OpError::Locked { .. } | OpError::Unstamped | OpError::Stale => {
                (Code::Unavailable, "etcdserver: the shard is moving, try again")
            }
        },
        KeyspaceError::NoLeader => (Code::Unavailable, "etcdserver: no leader"),
        KeyspaceError::LeaderChanged => (Code::Unavailable, "etcdserver: leader changed"),
        KeyspaceError::Timeout => (Code::Unavailable, "etcdserver: request timed out"),
        KeyspaceError::TooManyRequests => (Code::ResourceExhausted, "etcdserver: too many requests"),
        KeyspaceError::TooLarge => (Code::InvalidArgument, "etcdserver: request is too large"),
        KeyspaceError::Stopped => (Code::Unavailable, "etcdserver: server stopped"),
        KeyspaceError::Learner => (Code::FailedPrecondition, "etcdserver: rpc not supported for learner"),
        KeyspaceError::NotLeader => (Code::FailedPrecondition, "etcdserver: not leader"),
        KeyspaceError::BadTransferee => (Code::FailedPrecondition, "etcdserver: bad leader transferee"),
    };
    Status::new(code, text)
}

/// The status for an RPC that is declared and not answered, with what to do instead.
pub(crate) fn unsupported(rpc: &str, instead: &str) -> Status {
    Status::new(
        Code::Unimplemented,
        format!("etcdserver: {rpc} is not supported by this Althing release; {instead}"),
    )
}

/// The status for an answer whose kind does not fit its question: a defect of the keyspace behind the services.
pub(crate) fn mismatched(rpc: &str) -> Status {
    Status::new(
        Code::Internal,
        format!("etcdserver: {rpc} was answered with another operation's result; please report this"),
    )
}
