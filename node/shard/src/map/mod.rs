//! The shard map: which group holds which part of which keyspace, and where its replicas are.
//!
//! Contract: [`records`](KeyspaceRecord) are what the meta group keeps, one row each (`crate::meta` says how). A [`RouteTable`] is what
//! a node makes of them to find the shards of a request. A table may be old: then the groups themselves refuse what they do not
//! own, so a wrong route costs a second try and never gives a wrong answer.
//!
//! What it is not: it does not know what groups are really doing (that is what `crate::conductor` looks at), and it reads nothing.

mod operation;
mod records;
mod route;

pub use operation::{MergePhase, Operation, SequencePhase, Work};
pub use records::{
    KeyspaceId, KeyspaceRecord, KeyspaceState, Lineage, MemberRecord, MemberState, NODE_LABEL, OperationId,
    ShardRecord, ZONE_LABEL,
};
pub use route::{Route, RouteTable, Sequencer};
