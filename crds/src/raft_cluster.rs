//! `RaftCluster`: the members of a cluster.

#![allow(
    unreachable_pub,
    reason = "the derives write `pub` items of their own into this private module"
)]

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pod_template::PodTemplate;
use crate::status::RaftClusterStatus;

/// A replicated, etcd-compatible key-value cluster.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "althing.dev",
    version = "v1alpha1",
    kind = "RaftCluster",
    plural = "raftclusters",
    shortname = "rcl",
    category = "althing",
    namespaced,
    status = "RaftClusterStatus",
    derive = "PartialEq",
    doc = "A replicated, etcd-compatible key-value cluster: its members, their version, volumes and placement.",
    scale(
        spec_replicas_path = ".spec.members",
        status_replicas_path = ".status.currentMembers",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Members", type_ = "integer", json_path = ".spec.members"),
    printcolumn(name = "Serving", type_ = "integer", json_path = ".status.readyMembers", description = "members that serve"),
    printcolumn(name = "Version", type_ = "string", json_path = ".spec.version"),
    printcolumn(name = "Leader", type_ = "string", json_path = ".status.leader"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(
        name = "Message", type_ = "string", priority = 1,
        json_path = ".status.conditions[?(@.type=='Ready')].message"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("size(self.metadata.name) <= 40")
        .message("metadata.name must be at most 40 characters: pods, volumes and services add to it"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name must be a DNS label such as orders or orders-eu: small letters, digits and '-', starting with a letter; services are named after it"),
    cel
)]
#[serde(rename_all = "camelCase")]
pub struct RaftClusterSpec {
    /// How many members: an odd number from 1 to 9.
    #[schemars(range(min = 1, max = 9))]
    #[x_kube(
        validation = Rule::new("self >= 1 && self <= 9").message("spec.members must be 1, 3, 5, 7 or 9"),
        validation = Rule::new("self % 2 == 1")
            .message("spec.members must be odd; write 1, 3, 5, 7 or 9: an even number tolerates no more failures than one member fewer")
    )]
    pub members: i32,
    /// Version of the members' program, the tag of their image.
    #[schemars(length(max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]+[.][0-9]+[.][0-9]+(-[0-9A-Za-z.-]+)?$')")
        .message("spec.version must be a version such as 0.1.0 or 0.2.0-rc.1, without a leading v"))]
    pub version: String,
    /// Where the members' image comes from, if not from the operator's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageOverride>,
    /// The members' volumes.
    pub storage: Storage,
    /// Encryption on the wire.
    #[serde(default)]
    pub tls: Tls,
    /// Traces.
    #[serde(default)]
    pub telemetry: Telemetry,
    /// Placement and size of the members' pods.
    #[serde(default)]
    pub pod_template: PodTemplate,
    /// While true, the operator changes nothing; status is still kept.
    #[serde(default)]
    pub paused: bool,
    /// What becomes of volumes that are no longer needed.
    #[serde(default)]
    pub volume_retention: VolumeRetention,
}

/// Where the members' image comes from.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageOverride {
    /// Registry and repository, without tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub repository: Option<String>,
    /// Tag; `spec.version` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub tag: Option<String>,
    /// When to pull.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_policy: Option<PullPolicy>,
}

/// When an image is pulled.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullPolicy {
    /// At every start.
    Always,
    /// If the node does not have it.
    IfNotPresent,
    /// Never: it must be on the node.
    Never,
}

/// A member's volume.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)")
    .message("spec.storage.storageClassName cannot change: volumes stay in the class they were made in; make a new cluster to use another class"))]
pub struct Storage {
    /// Size of each volume. It can grow, if the storage class allows expansion; it cannot shrink.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(
        validation = Rule::new("isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))")
            .message("spec.storage.size must be a positive quantity such as 10Gi"),
        validation = Rule::new("!isQuantity(self) || !isQuantity(oldSelf) || quantity(self).compareTo(quantity(oldSelf)) >= 0")
            .message("spec.storage.size can grow but not shrink: volumes cannot be made smaller; write the old size or a larger one")
    )]
    pub size: String,
    /// Storage class; the Kubernetes cluster's default if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub storage_class_name: Option<String>,
}

/// Encryption on the wire.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.mode == 'Disabled'")
    .message("spec.tls.mode: this release serves without TLS only; write `tls: {mode: Disabled}` or leave spec.tls out"))]
pub struct Tls {
    /// Who makes the certificates.
    #[serde(default)]
    pub mode: TlsMode,
}

/// Who makes the certificates.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TlsMode {
    /// The operator.
    Auto,
    /// cert-manager.
    CertManager,
    /// A person, in a Secret.
    Provided,
    /// Nobody: traffic is in the clear.
    #[default]
    Disabled,
}

/// Traces.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Telemetry {
    /// Where traces go; nowhere if not given. Metrics are always served for Prometheus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub otlp: Option<Otlp>,
    /// The part of requests that is traced, from 0 to 1.
    #[serde(default = "default_sample_ratio")]
    #[schemars(range(min = 0.0, max = 1.0))]
    #[x_kube(validation = Rule::new("self >= 0.0 && self <= 1.0")
        .message("spec.telemetry.sampleRatio must be from 0 to 1, such as 0.05 for one request in twenty"))]
    pub sample_ratio: f64,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            otlp: None,
            sample_ratio: default_sample_ratio(),
        }
    }
}

fn default_sample_ratio() -> f64 {
    0.05
}

/// An OTLP collector.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Otlp {
    /// Its gRPC URL.
    #[schemars(length(max = 256))]
    #[x_kube(validation = Rule::new("self.startsWith('http://') || self.startsWith('https://')")
        .message("spec.telemetry.otlp.endpoint must be a URL of an OTLP gRPC collector such as http://otel-collector:4317"))]
    pub endpoint: String,
}

/// What becomes of volumes that are no longer needed (the same words as a StatefulSet's
/// `persistentVolumeClaimRetentionPolicy`).
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeRetention {
    /// When a member is removed by scaling down. The data are copies of what the others hold.
    #[serde(default = "delete")]
    pub when_scaled: Retention,
    /// When the cluster is deleted. A cluster of the same name takes retained volumes over.
    #[serde(default = "retain")]
    pub when_deleted: Retention,
}

impl Default for VolumeRetention {
    fn default() -> Self {
        Self {
            when_scaled: delete(),
            when_deleted: retain(),
        }
    }
}

fn delete() -> Retention {
    Retention::Delete
}

fn retain() -> Retention {
    Retention::Retain
}

/// Whether a volume is kept.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Retention {
    /// Kept until a person deletes it.
    Retain,
    /// Deleted.
    Delete,
}
