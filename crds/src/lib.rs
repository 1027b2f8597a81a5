//! The custom resources of Althing: `RaftCluster` (the members of a cluster) and `ShardLayout` (one keyspace and
//! its shards), group `althing.dev/v1alpha1`.
//!
//! Contract: a value that the API server accepts has passed the CEL rules in this crate, and [`ValidatedCluster`] and
//! [`ValidatedLayout`] run the very same rules again, so that a laptop without an API server refuses the same YAML with
//! the same words. Nothing behind a `Validated*` type reads a raw spec. `crdgen` writes the YAML of the chart.
//!
//! Not here: what to do about a resource (`althing-plan`), and talking to Kubernetes (`althing-operator`).

pub mod generate;
pub mod names;
mod pod_template;
mod quantity;
mod raft_cluster;
mod shard_layout;
mod status;
mod validated;

pub use pod_template::PodTemplate;
pub use quantity::{Bytes, QuantityError};
pub use raft_cluster::{
    ImageOverride, Otlp, PullPolicy, RaftCluster, RaftClusterSpec, Retention, Storage, Telemetry, Tls, TlsMode,
    VolumeRetention,
};
pub use shard_layout::{
    ClusterRef, DeletionPolicy, HashPartitioning, Partitioning, RangePartitioning, ReadMode, ReadResponders,
    ReadRevisions, Reads, ShardLayout, ShardLayoutSpec,
};
pub use status::{LayoutOperation, MemberStatus, RaftClusterStatus, ShardLayoutStatus, ShardState};
pub use validated::{
    InvalidResource, MemberCount, Partitioned, Problem, ValidatedCluster, ValidatedLayout, VolumePolicy,
};
