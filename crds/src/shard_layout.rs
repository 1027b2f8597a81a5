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
#[x_kube(
    validation = Rule::new("!has(self.partitioning) || !has(self.partitioning.range) || size(self.partitioning.range.splitKeys) < self.shards")
        .message("spec.partitioning.range.splitKeys: n keys cut the keyspace into n + 1 ranges, which is more than spec.shards; name fewer keys or ask for more shards (with one shard, leave splitKeys empty)"),
    validation = Rule::new("!has(self.partitioning) || !has(self.partitioning.hash) || self.shards <= self.partitioning.hash.slots")
        .message("spec.shards is more than spec.partitioning.hash.slots: every shard needs a slot; ask for fewer shards (slots cannot change)"),
    validation = Rule::new("(has(self.partitioning) && has(self.partitioning.hash)) == (has(oldSelf.partitioning) && has(oldSelf.partitioning.hash))")
        .message("spec.partitioning cannot change between range (also: not given) and hash: it says where every key lives; make another ShardLayout with another keyspace and copy the data"),
    validation = Rule::new("!has(self.deletionPolicy) || self.deletionPolicy == 'Retain' || self.keyspace != 'default'")
        .message("spec.deletionPolicy: the keyspace default lives as long as its RaftCluster and cannot be deleted alone; write Retain or leave it out")
)]
pub struct ShardLayoutSpec {
    /// The cluster, in the same namespace.
    pub cluster_ref: ClusterRef,
    /// The keyspace: an etcd revision domain of its own. Every cluster has `default`; any other name makes another one. A
    /// keyspace has one ShardLayout.
    #[serde(default = "default_keyspace")]
    #[schemars(length(min = 1, max = 40))]
    #[x_kube(
        validation = Rule::new("self == oldSelf").message("spec.keyspace cannot change; make another ShardLayout for another keyspace"),
        validation = Rule::new("size(self) <= 40 && self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
            .message("spec.keyspace must be a DNS label of at most 40 characters such as default or audit-eu: small letters, digits and '-', beginning and ending with a letter or digit")
    )]
    pub keyspace: String,
    /// How many shards, 1 to 1024. More are made by splits, fewer by merges, while it serves.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1024))]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 1024").message("spec.shards must be from 1 to 1024"))]
    pub shards: i32,
    /// Replicas of each shard: an odd number. Not given: every member holds one. More than the cluster has members means every
    /// member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 9))]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 9 && self % 2 == 1")
        .message("spec.replicas must be 1, 3, 5, 7 or 9"))]
    pub replicas: Option<i32>,
    /// How keys are assigned to shards; by range if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitioning: Option<Partitioning>,
    /// A port where the members serve this keyspace only; the cluster's Service has it too. Without one, the keyspace is
    /// reached at the cluster's own port by a host whose first label is the keyspace's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1024, max = 65535))]
    #[x_kube(
        validation = Rule::new("self >= 1024 && self <= 65535").message("spec.port must be from 1024 to 65535, such as 2479"),
        validation = Rule::new("!(self in [2379, 2380, 2381])")
            .message("spec.port cannot be 2379, 2380 or 2381: the members use them for clients, peers and admin; write another one such as 2479")
    )]
    pub port: Option<i32>,
    /// The most that the keyspace's shards hold together, such as 8Gi. Writes beyond it are refused, as etcd does when out of
    /// space; deletes and compactions are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new("isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))")
        .message("spec.quota must be a positive quantity such as 8Gi"))]
    pub quota: Option<String>,
    /// How every shard answers linearizable reads. Not given: as it was asked through the admin API, else by ReadIndex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reads: Option<Reads>,
    /// What becomes of the keyspace when this ShardLayout is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

fn default_keyspace() -> String {
    crate::names::DEFAULT_KEYSPACE.to_owned()
}

fn one() -> i32 {
    1
}

/// What becomes of a keyspace whose ShardLayout is deleted.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeletionPolicy {
    /// It stays as it is, with its data. A ShardLayout of the same keyspace takes it over.
    #[default]
    Retain,
    /// It is dropped, with its data.
    Delete,
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
    /// Where ranges shall begin, in ascending order, without the first (which begins at the empty key). A byte that is no
    /// text is written `\x00`, a backslash `\\`. Where there are fewer than shards, the rest is cut by size and load.
    #[serde(default)]
    #[schemars(length(max = 1023), inner(length(min = 1, max = 1024)))]
    pub split_keys: Vec<String>,
}

/// A hash of the key's prefix.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.prefixSegments) == has(oldSelf.prefixSegments) && (!has(self.prefixSegments) || self.prefixSegments == oldSelf.prefixSegments)")
    .message("spec.partitioning.hash.prefixSegments cannot change: it says where every key lives; make another ShardLayout with another keyspace and copy the data"))]
pub struct HashPartitioning {
    /// Hash slots.
    #[schemars(range(min = 1, max = 65536))]
    #[x_kube(
        validation = Rule::new("self >= 1 && self <= 65536")
            .message("spec.partitioning.hash.slots must be from 1 to 65536, such as 16384"),
        validation = Rule::new("self == oldSelf")
            .message("spec.partitioning.hash.slots cannot change: it says where every key lives; make another ShardLayout with another keyspace and copy the data")
    )]
    pub slots: i32,
    /// How many `/`-separated segments of the key are hashed; the whole key if not given. Keys with the same segments stay in
    /// one shard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 16")
        .message("spec.partitioning.hash.prefixSegments must be from 1 to 16"))]
    pub prefix_segments: Option<i32>,
}

/// How linearizable reads are answered.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.mode != 'ReadIndex' || (!has(self.responders) && !has(self.revisions) && !has(self.leaseMillis))")
    .message("spec.reads: responders, revisions and leaseMillis belong to leases; leave them out, or write `mode: RosterLease` or `mode: LeaderLease`"))]
pub struct Reads {
    /// The protocol.
    #[serde(default)]
    pub mode: ReadMode,
    /// Which replicas answer by themselves under a roster lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub responders: Option<ReadResponders>,
    /// What the revision beside an answer tells, where a replica answers by itself; Current if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revisions: Option<ReadRevisions>,
    /// Length of a lease in milliseconds: for so long a responder that dies may stop writes. 1000 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 100, max = 60000))]
    #[x_kube(validation = Rule::new("self >= 100 && self <= 60000")
        .message("spec.reads.leaseMillis must be from 100 to 60000, such as 1000"))]
    pub lease_millis: Option<i32>,
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

/// Which replicas answer by themselves.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadResponders {
    /// All that vote.
    #[default]
    All,
}

/// What the revision beside an answer tells.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadRevisions {
    /// Nobody has seen a newer one: a local read waits for every write under way. What Kubernetes needs.
    #[default]
    Current,
    /// It may be older than one seen elsewhere: a local read waits for writes of its own keys only.
    OfKeys,
}
