//! The HTTP admin contract of a node: paths and JSON shapes, shared by the node that serves it and by the
//! operator and the CLI that call it. With feature `client`, a small client.
//!
//! Not here: serving (in `althing-node`), deciding what to ask (in `althing-plan`).
//! Member ids are strings of sixteen hex digits everywhere, as etcd prints them: JSON numbers lose bits.

#[cfg(feature = "client")]
pub mod client;
mod layout;
pub mod text;

pub use layout::{
    KeyspaceList, KeyspaceRequest, KeyspaceState, KeyspaceStatus, LabelsRequest, LayoutMember, LayoutStatus,
    MAX_SHARDS, MemberState, OperationKind, OperationStatus, Partitioning, RevisionSource, ShardInfo, ShardKind,
};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Paths, so that server, client and OpenAPI page cannot disagree.
pub mod paths {
    /// The process is alive.
    pub const HEALTHZ: &str = "/healthz";
    /// The member serves linearizable requests.
    pub const READYZ: &str = "/readyz";
    /// Prometheus metrics.
    pub const METRICS: &str = "/metrics";
    /// `NodeStatus`.
    pub const STATUS: &str = "/v1/status";
    /// POST `BootstrapRequest`.
    pub const BOOTSTRAP: &str = "/v1/bootstrap";
    /// GET `MemberList`; POST `AddLearnerRequest`.
    pub const MEMBERS: &str = "/v1/members";
    /// DELETE, with `expectedConfigIndex` as a query parameter. Refused with `Conflict` while the member holds replicas.
    pub const MEMBER: &str = "/v1/members/{id}";
    /// POST `ConfigGuard`.
    pub const PROMOTE: &str = "/v1/members/{id}/promote";
    /// POST and DELETE: `LayoutMember`. Whether the member is emptied of replicas.
    pub const DRAIN: &str = "/v1/members/{id}/drain";
    /// PUT `LabelsRequest`: `LayoutMember`.
    pub const LABELS: &str = "/v1/members/{id}/labels";
    /// GET `LayoutStatus`.
    pub const LAYOUT: &str = "/v1/layout";
    /// GET `KeyspaceList`.
    pub const KEYSPACES: &str = "/v1/keyspaces";
    /// PUT `KeyspaceRequest`, DELETE: `KeyspaceStatus`.
    pub const KEYSPACE: &str = "/v1/keyspaces/{name}";
    /// DELETE: the operation is given up, if nothing of it is beyond return; `OperationStatus`.
    pub const OPERATION: &str = "/v1/operations/{id}";
    /// GET `ShardList`.
    pub const SHARDS: &str = "/v1/shards";
    /// POST `TransferLeaderRequest`.
    pub const TRANSFER_LEADER: &str = "/v1/shards/{id}/transfer-leader";
    /// PUT `ReadsRequest`.
    pub const READS: &str = "/v1/shards/{id}/reads";
    /// The OpenAPI document.
    pub const OPENAPI: &str = "/openapi.json";
}

/// What a node says of itself. Always answered, also without cluster, leader or quorum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Its name, `<cluster>-<ordinal>`.
    pub name: String,
    /// Its member id, drawn at the volume's first boot.
    pub member_id: String,
    /// The cluster it belongs to; none before bootstrap or before a leader adds it.
    pub cluster_id: Option<String>,
    /// Version of the program.
    pub version: String,
    /// Where peers reach it, `host:port`.
    pub peer_address: String,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
    /// Where the admin API is reached, a URL.
    pub admin_url: String,
    /// Whether it serves linearizable requests (the same as `/readyz`).
    pub ready: bool,
    /// Why not, for a person. Of a ready member: what else a person should know (a full volume), mostly empty.
    pub not_ready_reason: String,
    /// Seconds since the process started.
    pub uptime_seconds: u64,
    /// Disk usage of the volume.
    pub storage: StorageStatus,
    /// Its Raft groups.
    pub shards: Vec<ShardStatus>,
}

/// Disk usage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StorageStatus {
    /// Bytes of the write-ahead log.
    pub wal_bytes: u64,
    /// Bytes of the state store.
    pub state_bytes: u64,
    /// Bytes free on the volume.
    pub free_bytes: u64,
}

/// One Raft group as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShardStatus {
    /// Group id.
    pub id: u64,
    /// This node's role: Learner, Follower, PreCandidate, Candidate or Leader.
    pub role: String,
    /// Leader's member id, if known.
    pub leader: Option<String>,
    /// Term.
    pub term: u64,
    /// Commit index.
    pub commit_index: u64,
    /// Applied index.
    pub applied_index: u64,
    /// Last index of the log.
    pub last_index: u64,
    /// Revision of its keyspace.
    pub revision: i64,
    /// Index of the entry that made the present configuration: the guard of a change.
    pub config_index: u64,
    /// Voters.
    pub voters: Vec<String>,
    /// Learners.
    pub learners: Vec<String>,
    /// How far each peer is, at the leader only.
    pub progress: Vec<PeerProgress>,
    /// How linearizable reads are answered; absent from nodes that know of one way only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reads: Option<ReadsStatus>,
    /// What it is for; absent from nodes that have one group only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<ShardKind>,
    /// Name of its keyspace, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyspace: Option<String>,
    /// Bytes of its state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Keys that it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<u64>,
    /// Whether it sleeps for want of work. A sleeping leader's `progress` tells who was active when it fell asleep, kept
    /// up by what the node hears from its peers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hibernating: Option<bool>,
}

/// How linearizable reads can be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ReadMode {
    /// By a round of messages of the leader.
    ReadIndex,
    /// By the leader alone, while it holds leases.
    LeaderLease,
    /// By every responder alone, while it holds leases.
    RosterLease,
}

/// What the revision beside a read's answer tells, where a responder answers by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum Revisions {
    /// Nobody has seen a newer one: a local read waits for every write under way. What Kubernetes needs.
    #[default]
    Current,
    /// It may be older than one seen elsewhere: a local read waits for writes of its own keys only.
    OfKeys,
}

/// Which members answer reads of which keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReadRange {
    /// First key.
    pub start: String,
    /// First key behind the range; absent: all keys from `start` on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
    /// Member ids.
    pub members: Vec<String>,
}

/// Asks for another way to answer reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReadsRequest {
    /// The way.
    pub mode: ReadMode,
    /// Responders by range; absent: every voter, for all keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranges: Option<Vec<ReadRange>>,
    /// What revisions tell. Default `Current`; ranges that do not hold all keys need `OfKeys`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revisions: Option<Revisions>,
    /// Length of a lease in milliseconds: for so long a dead responder may stop writes. Default 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_millis: Option<u64>,
}

/// How linearizable reads are answered here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReadsStatus {
    /// The way that is asked for.
    pub mode: ReadMode,
    /// What revisions tell.
    pub revisions: Revisions,
    /// Length of a lease in milliseconds.
    pub lease_millis: u64,
    /// Index of the entry that asked for it; 0: nobody did.
    pub spec_index: u64,
    /// The roster that this member takes part in, `term.epoch`; absent if it knows none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roster: Option<String>,
    /// Its responders beside the leader.
    pub responders: Vec<String>,
    /// Whether this member would answer a read without a message now.
    pub local: bool,
    /// Reads answered so, since the start.
    pub local_reads: u64,
    /// Of these, held for a write of their keys.
    pub held_reads: u64,
    /// Held ones that asked the leader after all.
    pub bounced_reads: u64,
    /// Reads that needed the leader.
    pub index_reads: u64,
}

/// A peer as the leader sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PeerProgress {
    /// Its member id.
    pub member_id: String,
    /// Last index known to match.
    pub match_index: u64,
    /// Entries it lacks.
    pub lag: u64,
    /// Whether it answered within an election timeout.
    pub recent_active: bool,
}

/// Makes an empty node the first member of a new cluster. Repeating it with the same id is harmless;
/// a node of another cluster refuses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BootstrapRequest {
    /// The new cluster's id, sixteen hex digits.
    pub cluster_id: String,
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// Member id.
    pub id: String,
    /// Name.
    pub name: String,
    /// `host:port` for peers.
    pub peer_address: String,
    /// URLs for clients.
    pub client_urls: Vec<String>,
    /// Whether it is a learner.
    pub learner: bool,
}

/// The members as of `config_index`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberList {
    /// The configuration's index.
    pub config_index: u64,
    /// The members.
    pub members: Vec<Member>,
}

/// Asks for a new learner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AddLearnerRequest {
    /// Its member id, as its own `/v1/status` says.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Where peers reach it.
    pub peer_address: String,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
    /// Refuse if the configuration is not the one the asker saw.
    pub expected_config_index: Option<u64>,
}

/// Refuse a change if the configuration is not the one the asker saw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigGuard {
    /// The index the asker saw.
    pub expected_config_index: Option<u64>,
}

/// The shards of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShardList {
    /// They.
    pub shards: Vec<ShardStatus>,
}

/// Moves a shard's leadership.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TransferLeaderRequest {
    /// To this member; none lets the leader choose the most advanced voter.
    pub to: Option<String>,
}

/// Every error's body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// A word for programs.
    pub reason: ProblemReason,
    /// A sentence for people: what failed and what to do.
    pub message: String,
    /// For `NotLeader`: the leader's member id, if known.
    pub leader: Option<String>,
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ProblemReason {
    /// Malformed (400).
    Invalid,
    /// No such member, shard, keyspace or operation (404).
    NotFound,
    /// Ask the leader (421).
    NotLeader,
    /// The configuration or the layout changed, or a change is under way: look again (409). Also what cannot be changed, and
    /// a member that still holds replicas: the message says which.
    Conflict,
    /// The learner is not caught up yet (409): ask again later.
    LearnerBehind,
    /// No leader, or no answer in time (503).
    Unavailable,
    /// The node belongs to another cluster (409).
    OtherCluster,
}
