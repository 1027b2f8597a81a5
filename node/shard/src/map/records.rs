//! What the meta group keeps of members, keyspaces and shards.

use crate::meta::rows;
use althing_raft::ids::{GroupId, MemberId};
use althing_raft::roster::ReadSpec;
use althing_store::partition::{Partitioning, RevisionSource, Span, Territory};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// The label whose values replicas are spread over first.
pub const ZONE_LABEL: &str = "zone";
/// The label of the machine below a member: replicas on one machine fail together.
pub const NODE_LABEL: &str = "node";

/// One keyspace. Never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct KeyspaceId(pub u32);

impl KeyspaceId {
    /// The keyspace that every cluster is born with.
    pub const DEFAULT: Self = Self(1);
}

impl fmt::Display for KeyspaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One operation on shards. Never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct OperationId(pub u64);

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A member as the meta group knows it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberRecord {
    /// `<cluster>-<ordinal>`.
    pub name: String,
    /// Where it runs: [`ZONE_LABEL`], [`NODE_LABEL`] and whatever else the operator says.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Whether it may hold replicas.
    pub state: MemberState,
}

/// Whether a member may hold replicas.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum MemberState {
    /// It may.
    #[default]
    Active,
    /// It is about to leave: its replicas go elsewhere.
    Draining,
}

/// A keyspace: an independent revision domain with its own endpoint.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyspaceRecord {
    /// Its name, unique.
    pub name: String,
    /// How keys become partition keys.
    #[serde(with = "rows::partitioning")]
    pub partitioning: Partitioning,
    /// Where its revisions come from. Never goes back to dense.
    #[serde(with = "rows::source")]
    pub source: RevisionSource,
    /// The group that gives them out. There may be one before the source is sequenced: it is being made ready then.
    #[serde(default, with = "rows::optional_group")]
    pub sequencer: Option<GroupId>,
    /// Shards wanted.
    pub shards: u32,
    /// Replicas wanted of each; `None`: on every member.
    #[serde(default)]
    pub replicas: Option<u32>,
    /// Where it is cut first (`Range` only), sorted.
    #[serde(default, with = "rows::keys")]
    pub split_keys: Vec<Bytes>,
    /// Port of its own endpoint.
    #[serde(default)]
    pub port: Option<u16>,
    /// Bytes that it may take.
    #[serde(default)]
    pub quota_bytes: Option<u64>,
    /// Whether it holds as much as it may, so that it takes no more: what the conductor last saw.
    #[serde(default)]
    pub full: bool,
    /// How linearizable reads are answered; `None`: each shard as it was last told.
    #[serde(default, with = "rows::reads")]
    pub reads: Option<ReadSpec>,
    /// Its life.
    pub state: KeyspaceState,
}

/// A keyspace's life.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum KeyspaceState {
    /// Its first shard is being made.
    #[default]
    Creating,
    /// It serves.
    Active,
    /// It serves no more; its shards are being taken down.
    Dropping,
}

/// A group of a keyspace: a shard that owns a span of partition keys, or the sequencer, which owns none.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShardRecord {
    /// The keyspace.
    pub keyspace: KeyspaceId,
    /// What it owns.
    #[serde(with = "rows::span")]
    pub span: Span,
    /// Epoch of its territory.
    pub epoch: u64,
    /// Where its replicas are, as of the last finished operation; sorted.
    #[serde(with = "rows::members")]
    pub replicas: Vec<MemberId>,
    /// Whether it gives out revisions instead of holding keys.
    #[serde(default)]
    pub sequencer: bool,
    /// The split that it came from.
    #[serde(default)]
    pub parent: Option<Lineage>,
}

/// A split: a replica of the parent that has reached this epoch has made the child's replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lineage {
    /// Which group was cut.
    #[serde(with = "rows::group")]
    pub group: GroupId,
    /// Its epoch since.
    pub epoch: u64,
}

impl ShardRecord {
    /// What its group should hold.
    #[must_use]
    pub fn territory(&self, keyspace: &KeyspaceRecord) -> Territory {
        Territory {
            partitioning: keyspace.partitioning,
            span: self.span.clone(),
            epoch: self.epoch,
        }
    }
}
