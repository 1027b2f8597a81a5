//! What the operator reports.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Status of a `RaftCluster`. Written by the operator only; `clusterId` and `bootstrapped` are its memory, the rest can
/// be observed again.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RaftClusterStatus {
    /// The generation of the spec that the rest of the status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Available, Progressing, Degraded, QuorumHealthy.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The cluster's id, sixteen hex digits; recorded before the first member is bootstrapped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// The cluster was seen to exist. It is never bootstrapped again.
    pub bootstrapped: bool,
    /// The leader's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// Members that have a pod: what the scale subresource reports.
    pub current_members: i32,
    /// Members that serve.
    pub ready_members: i32,
    /// Selects the members' pods, for the scale subresource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// The members, by ordinal.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub members: Vec<MemberStatus>,
    /// What is being done or waited for, one sentence each; empty when all is as declared.
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub activity: Vec<String>,
}

/// One member.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    /// `<cluster>-<ordinal>`.
    pub name: String,
    /// Ordinal.
    pub ordinal: i32,
    /// The id that lives in its volume; none before its first boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member_id: Option<String>,
    /// Leader, Voter, Learner or None.
    pub role: String,
    /// Whether it serves linearizable requests.
    pub ready: bool,
    /// Why not, or what is going on; empty when ready.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Log entries that it lacks, as the leader sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<i64>,
    /// Replicas of shards that it holds; none if nobody could tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Whether it is being emptied of replicas.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub draining: bool,
    /// The Kubernetes node or machine that it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Version of the running program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// Status of a `ShardLayout`.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ShardLayoutStatus {
    /// The generation of the spec that the rest of the status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Progressing, Degraded.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Shards that exist: what the scale subresource reports.
    pub current_shards: i32,
    /// Where the keyspace's revisions come from: Dense or Sequenced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revisions: Option<String>,
    /// Where clients reach the keyspace, `host:port`; absent where only a name tells it apart (a host whose first label is the
    /// keyspace's name leads to it).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Bytes of all shards together, coarsely.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,
    /// The shards, in order of their ranges; of many, those that need attention first.
    #[schemars(length(max = 128))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["id"]))]
    pub shards: Vec<ShardState>,
    /// Shards that exist and are not listed, because there are too many for one object.
    #[serde(skip_serializing_if = "is_zero")]
    pub shards_not_listed: i32,
    /// What is being done to the shards, oldest first.
    #[schemars(length(max = 16))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["id"]))]
    pub operations: Vec<LayoutOperation>,
}

fn is_zero(number: &i32) -> bool {
    *number == 0
}

impl ShardLayoutStatus {
    /// The most shards that are listed: with a few hundred bytes each, the object stays small enough to be written often.
    pub const MAX_SHARDS: usize = 128;
    /// The most operations that are listed; the cluster itself runs few at a time.
    pub const MAX_OPERATIONS: usize = 16;
}

/// One shard.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShardState {
    /// Raft group.
    pub id: i64,
    /// What it holds: the first key, and the first that it does not hold; of a hash keyspace, slots.
    #[serde(default)]
    pub range: String,
    /// Serving, Starting, NoLeader, Splitting, Merging, Moving, or Behind.
    #[serde(default)]
    pub state: String,
    /// The leader's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// Names of the voters.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub voters: Vec<String>,
    /// Bytes that it holds, coarsely.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,
    /// Log entries that its slowest voter lacks, coarsely.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<i64>,
    /// Whether it sleeps for want of work.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hibernating: bool,
}

/// Something that is being done to the shards.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayoutOperation {
    /// Its number, for `althing` and the admin API.
    pub id: i64,
    /// Split, Merge, Move, Create, Sequence or Drop.
    pub kind: String,
    /// The shards that it is about.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub shards: Vec<i64>,
    /// How far it is.
    #[serde(default)]
    pub phase: String,
    /// Why it is done.
    #[serde(default)]
    pub reason: String,
}
