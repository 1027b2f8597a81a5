//! The seam below the gRPC services: what a keyspace can do, without wire formats or consensus.

use althing_store::ops::{Command, OpError, OpResult, Range, RangeResult, Revision, Txn};
use async_trait::async_trait;

/// Whether a read must see every acknowledged write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Consistency {
    /// It must.
    Linearizable,
    /// The member's own applied state will do; answered without leader or quorum.
    Serializable,
}

/// What every answer's header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The cluster.
    pub cluster_id: u64,
    /// The member that answers.
    pub member_id: u64,
    /// Its current revision (for a write: the revision of the write).
    pub revision: Revision,
    /// Its Raft term.
    pub raft_term: u64,
}

/// Why a request got no answer of the state machine.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyspaceError {
    /// The state machine refused.
    #[error(transparent)]
    Op(#[from] OpError),
    /// No leader is known.
    #[error("no leader")]
    NoLeader,
    /// The leader changed while the request was under way; a write may have taken effect.
    #[error("leader changed")]
    LeaderChanged,
    /// No answer in time; a write may have taken effect.
    #[error("request timed out")]
    Timeout,
    /// Limits of queues or uncommitted bytes.
    #[error("too many requests")]
    TooManyRequests,
    /// The command is larger than the limit.
    #[error("request is too large")]
    TooLarge,
    /// The member has not joined a cluster, or is a learner, or shuts down.
    #[error("server stopped")]
    Stopped,
    /// This member is a learner; only serializable reads work here.
    #[error("rpc not supported for learner")]
    Learner,
    /// For maintenance calls that only a leader takes.
    #[error("not leader")]
    NotLeader,
    /// The named member is unknown or has no vote.
    #[error("bad leader transferee")]
    BadTransferee,
}

/// A condition that etcd has an alarm for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Alarm {
    /// This member is short of disk, and writes are refused.
    NoSpace,
    /// This member's state is not what its log says.
    Corrupt,
}

/// Answer to `Maintenance.Status`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// Bytes of the state store on disk.
    pub db_size: i64,
    /// Bytes of it in use.
    pub db_size_in_use: i64,
    /// Bytes that the keyspace may take; 0: the volume is the limit.
    pub db_size_quota: i64,
    /// Leader's member id, 0 if unknown.
    pub leader: u64,
    /// Commit index.
    pub raft_index: u64,
    /// Term.
    pub raft_term: u64,
    /// Applied index.
    pub raft_applied_index: u64,
    /// Conditions that an operator should know of, as text.
    pub errors: Vec<String>,
    /// Whether this member is a learner.
    pub is_learner: bool,
}

/// One member, as `Cluster.MemberList` lists it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberEntry {
    /// Id.
    pub id: u64,
    /// Name.
    pub name: String,
    /// Peer URLs.
    pub peer_urls: Vec<String>,
    /// Client URLs: clients that sync their endpoints connect to these.
    pub client_urls: Vec<String>,
    /// Whether it is a learner.
    pub is_learner: bool,
}

/// One keyspace as its gRPC endpoint sees it. Cheap to clone behind an `Arc`; every call is bounded in time
/// by the implementation.
#[async_trait]
pub trait Keyspace: Send + Sync + 'static {
    /// Reads a range.
    async fn range(&self, range: Range, consistency: Consistency) -> Result<(Header, RangeResult), KeyspaceError>;

    /// Runs a transaction that cannot write.
    async fn read_txn(&self, txn: Txn, consistency: Consistency) -> Result<(Header, OpResult), KeyspaceError>;

    /// Replicates and applies a command; returns when this member has applied it.
    async fn execute(&self, command: Command) -> Result<(Header, OpResult), KeyspaceError>;

    /// The present header, without any consistency.
    fn header(&self) -> Header;

    /// The member's state.
    async fn status(&self) -> Result<(Header, Status), KeyspaceError>;

    /// The members; linearizable unless asked otherwise.
    async fn members(&self, consistency: Consistency) -> Result<(Header, Vec<MemberEntry>), KeyspaceError>;

    /// Hands leadership to a member; only the leader takes it.
    async fn move_leader(&self, target: u64) -> Result<Header, KeyspaceError>;

    /// Gives space that deletions left behind back to the volume. Blocks nobody for long.
    async fn defragment(&self) -> Result<Header, KeyspaceError> {
        Ok(self.header())
    }

    /// Whether this member can answer linearizable requests, for the health service.
    fn serving(&self) -> bool;

    /// Whether a leader is known, for clients that ask to fail at once if not (metadata `hasleader`).
    fn has_leader(&self) -> bool {
        self.serving()
    }

    /// This member's own alarms; they clear by themselves when their cause is gone.
    fn alarms(&self) -> Vec<Alarm> {
        Vec::new()
    }
}
