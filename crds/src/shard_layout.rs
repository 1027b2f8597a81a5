//! `ShardLayout`: one keyspace and its shards.

#![allow(
    unreachable_pub,
    reason = "the derives write `pub` items of their own into this private module"
)]

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::status::ShardLayoutStatus;

/// One keyspace of a cluster and how it is cut into shards.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "althing.dev",
    version = "v1alpha1",
    kind = "ShardLayout",
    plural = "shardlayouts",
    shortname = "shl",
    category = "althing",
    namespaced,
    status = "ShardLayoutStatus",
    derive = "PartialEq",
    doc = "One keyspace of a RaftCluster and how it is cut into shards.",
    scale(spec_replicas_path = ".spec.shards", status_replicas_path = ".status.currentShards"),
    selectable = ".spec.clusterRef.name",
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.clusterRef.name"),
    printcolumn(name = "Keyspace", type_ = "string", json_path = ".spec.keyspace"),
    printcolumn(name = "Shards", type_ = "integer", json_path = ".spec.shards"),
    printcolumn(name = "Current", type_ = "integer", json_path = ".status.currentShards"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("size(self.metadata.name) <= 40").message("metadata.name must be at most 40 characters"),
    cel
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.partitioning) || !has(self.partitioning.range) || size(self.partitioning.range.splitKeys) < self.shards")
    .message("spec.partitioning.range.splitKeys: n keys cut the keyspace into n + 1 ranges, which is more than spec.shards; with one shard, leave splitKeys empty"))]
pub struct ShardLayoutSpec {
    /// The cluster, in the same namespace.
    pub cluster_ref: ClusterRef,
    /// The keyspace: an etcd revision domain of its own.
    #[serde(default = "default_keyspace")]
    #[schemars(length(min = 1, max = 40))]
    #[x_kube(
        validation = Rule::new("self == oldSelf").message("spec.keyspace cannot change; make another ShardLayout for another keyspace"),
        validation = Rule::new("self == 'default'")
            .message("spec.keyspace: this release has one keyspace; write `keyspace: default` or leave it out")
    )]
    pub keyspace: String,
    /// How many shards.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    #[x_kube(validation = Rule::new("self == 1")
        .message("spec.shards: this release runs one shard for each keyspace; write `shards: 1`"))]
    pub shards: i32,
    /// Replicas of each shard: an odd number, at most the cluster's members. Not given: every member holds one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 9))]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 9 && self % 2 == 1")
        .message("spec.replicas must be 1, 3, 5, 7 or 9"))]
    pub replicas: Option<i32>,
    /// How keys are assigned to shards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitioning: Option<Partitioning>,
    /// How reads are made linearizable.
    #[serde(default)]
    pub reads: Reads,
}

fn default_keyspace() -> String {
    crate::names::DEFAULT_KEYSPACE.to_owned()
}

fn one() -> i32 {
    1
}

/// A cluster in the same namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterRef {
    /// Its name.
    #[schemars(length(min = 1, max = 40))]
    #[x_kube(validation = Rule::new("self == oldSelf")
        .message("spec.clusterRef.name cannot change: a keyspace lives in one cluster; make another ShardLayout"))]
    pub name: String,
}

/// How keys are assigned to shards: exactly one of the two.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.range) != has(self.hash)")
    .message("spec.partitioning takes exactly one of `range: {splitKeys: [...]}` and `hash: {slots: 16384}`"))]
pub struct Partitioning {
    /// By ranges of the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<RangePartitioning>,
    /// By a hash of the key's prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<HashPartitioning>,
}

/// Ranges of the key.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RangePartitioning {
    /// Where ranges begin, in ascending order, without the first (which begins at the empty key).
    #[serde(default)]
    #[schemars(length(max = 1024), inner(length(min = 1, max = 1024)))]
    pub split_keys: Vec<String>,
}

/// A hash of the key's prefix.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HashPartitioning {
    /// Hash slots.
    #[schemars(range(min = 1, max = 65536))]
    pub slots: i32,
    /// How many `/`-separated segments of the key are hashed; the whole key if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub prefix_segments: Option<i32>,
}

/// How reads are made linearizable.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.mode == 'ReadIndex'")
    .message("spec.reads.mode: this release confirms every read with a quorum; write `reads: {mode: ReadIndex}` or leave spec.reads out"))]
pub struct Reads {
    /// The protocol.
    #[serde(default)]
    pub mode: ReadMode,
}

/// The protocol of linearizable reads.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadMode {
    /// The leader confirms its leadership with a heartbeat round, then the member reads locally.
    #[default]
    ReadIndex,
    /// The leader reads locally under a lease.
    LeaderLease,
    /// Every responder reads locally under a roster lease.
    RosterLease,
}
