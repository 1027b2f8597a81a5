//! Specs that have passed every rule: the only form that the operator and the CLI act on.

use std::fmt;

use althing_admin::text::read_key;
use kube::{Resource, ResourceExt};

use crate::pod_template::PodTemplate;
use crate::quantity::Bytes;
use crate::raft_cluster::{ImageOverride, RaftCluster, Retention, Telemetry, TlsMode};
use crate::shard_layout::{DeletionPolicy, Partitioning, Reads, ShardLayout};

/// How many members a cluster has: odd, 1 to 9.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct MemberCount(u32);

impl MemberCount {
    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

/// One rule that a resource breaks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// Where, as a JSON path.
    pub path: String,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Most messages name their field already.
        if self.path.is_empty() || self.message.starts_with("spec.") || self.message.starts_with("metadata.") {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

/// A resource that breaks rules; all of them are listed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{kind} {name} is invalid: {}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct InvalidResource {
    /// Kind.
    pub kind: &'static str,
    /// Name.
    pub name: String,
    /// What is wrong; never empty.
    pub problems: Vec<Problem>,
}

/// The members' volumes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumePolicy {
    /// Size, as written.
    pub size: String,
    /// Size.
    pub bytes: Bytes,
    /// Storage class, if not the default.
    pub storage_class_name: Option<String>,
    /// After scaling down.
    pub when_scaled: Retention,
    /// After deletion of the cluster.
    pub when_deleted: Retention,
}

/// A `RaftCluster` that has passed every rule.
#[derive(Clone, PartialEq, Debug)]
pub struct ValidatedCluster {
    /// Name, a DNS label of at most 40 characters.
    pub name: String,
    /// Namespace; none for a file that names none.
    pub namespace: Option<String>,
    /// Uid; none outside Kubernetes.
    pub uid: Option<String>,
    /// Generation; none outside Kubernetes.
    pub generation: Option<i64>,
    /// It is being deleted.
    pub deleting: bool,
    /// How many members.
    pub members: MemberCount,
    /// Version of the members.
    pub version: String,
    /// Image, where it differs from the operator's default.
    pub image: ImageOverride,
    /// Volumes.
    pub volumes: VolumePolicy,
    /// Traces.
    pub telemetry: Telemetry,
    /// Placement and size of pods.
    pub pod_template: PodTemplate,
    /// Change nothing.
    pub paused: bool,
}

impl TryFrom<&RaftCluster> for ValidatedCluster {
    type Error = InvalidResource;

    fn try_from(raw: &RaftCluster) -> Result<Self, Self::Error> {
        let name = raw.name_any();
        let mut problems = cel_problems(raw.validate_cel());
        let spec = &raw.spec;
        let members = u32::try_from(spec.members)
            .ok()
            .filter(|count| (1..=9).contains(count) && count % 2 == 1);
        if members.is_none() {
            note(&mut problems, "spec.members", "spec.members must be 1, 3, 5, 7 or 9");
        }
        let bytes = spec.storage.size.parse::<Bytes>();
        if let Err(error) = &bytes {
            note(&mut problems, "spec.storage.size", &error.to_string());
        }
        match spec.tls.mode {
            TlsMode::Disabled => {}
            TlsMode::Auto | TlsMode::CertManager | TlsMode::Provided => {
                note(
                    &mut problems,
                    "spec.tls",
                    "spec.tls.mode: this release serves without TLS only; write `tls: {mode: Disabled}`",
                );
            }
        }
        match (members, bytes) {
            (Some(members), Ok(bytes)) if problems.is_empty() => Ok(Self {
                namespace: raw.namespace(),
                uid: raw.uid(),
                generation: raw.meta().generation,
                deleting: raw.meta().deletion_timestamp.is_some(),
                members: MemberCount(members),
                version: spec.version.clone(),
                image: spec.image.clone().unwrap_or_default(),
                volumes: VolumePolicy {
                    size: spec.storage.size.clone(),
                    bytes,
                    storage_class_name: spec.storage.storage_class_name.clone(),
                    when_scaled: spec.volume_retention.when_scaled,
                    when_deleted: spec.volume_retention.when_deleted,
                },
                telemetry: spec.telemetry.clone(),
                pod_template: spec.pod_template.clone(),
                paused: spec.paused,
                name,
            }),
            (Some(_) | None, Ok(_) | Err(_)) => Err(InvalidResource {
                kind: "RaftCluster",
                name,
                problems,
            }),
        }
    }
}

/// How keys are assigned to shards.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Partitioned {
    /// By ranges of the key.
    Range {
        /// Where ranges shall begin, as written.
        split_keys: Vec<String>,
    },
    /// By a hash of the key's prefix.
    Hash {
        /// Hash slots.
        slots: u32,
        /// Segments that are hashed; the whole key if none.
        prefix_segments: Option<u8>,
    },
}

/// A `ShardLayout` that has passed every rule.
#[derive(Clone, PartialEq, Debug)]
pub struct ValidatedLayout {
    /// Name.
    pub name: String,
    /// Namespace; none for a file that names none.
    pub namespace: Option<String>,
    /// Generation; none outside Kubernetes.
    pub generation: Option<i64>,
    /// It is being deleted.
    pub deleting: bool,
    /// The cluster's name, in the same namespace.
    pub cluster: String,
    /// Keyspace.
    pub keyspace: String,
    /// How many shards.
    pub shards: u32,
    /// Replicas of each; every member if none.
    pub replicas: Option<u32>,
    /// How keys are assigned.
    pub partitioning: Partitioned,
    /// The keyspace's own port.
    pub port: Option<u16>,
    /// The most that its shards hold together.
    pub quota: Option<Bytes>,
    /// How reads are made linearizable; as it is if none.
    pub reads: Option<Reads>,
    /// What becomes of the keyspace afterwards.
    pub deletion_policy: DeletionPolicy,
}

impl TryFrom<&ShardLayout> for ValidatedLayout {
    type Error = InvalidResource;

    fn try_from(raw: &ShardLayout) -> Result<Self, Self::Error> {
        let name = raw.name_any();
        let mut problems = cel_problems(raw.validate_cel());
        let spec = &raw.spec;
        let shards = u32::try_from(spec.shards).ok();
        let replicas = spec.replicas.map(u32::try_from).transpose().ok();
        let port = spec.port.map(u16::try_from).transpose().ok();
        let quota = spec.quota.as_deref().map(str::parse::<Bytes>).transpose();
        if let Err(error) = &quota {
            note(&mut problems, "spec.quota", &error.to_string());
        }
        let partitioning = partitioned(spec.partitioning.as_ref(), &mut problems);
        match (shards, replicas, port, quota, partitioning) {
            (Some(shards), Some(replicas), Some(port), Ok(quota), Some(partitioning)) if problems.is_empty() => {
                Ok(Self {
                    namespace: raw.namespace(),
                    generation: raw.meta().generation,
                    deleting: raw.meta().deletion_timestamp.is_some(),
                    cluster: spec.cluster_ref.name.clone(),
                    keyspace: spec.keyspace.clone(),
                    shards,
                    replicas,
                    partitioning,
                    port,
                    quota,
                    reads: spec.reads.clone(),
                    deletion_policy: spec.deletion_policy,
                    name,
                })
            }
            // What does not convert breaks a rule, so there is a problem to tell.
            (_, _, _, Ok(_) | Err(_), _) => Err(InvalidResource {
                kind: "ShardLayout",
                name,
                problems,
            }),
        }
    }
}

fn partitioned(raw: Option<&Partitioning>, problems: &mut Vec<Problem>) -> Option<Partitioned> {
    const SPLIT_KEYS: &str = "spec.partitioning.range.splitKeys";
    let range = |split_keys: Vec<String>| Some(Partitioned::Range { split_keys });
    let Some(raw) = raw else {
        return range(Vec::new());
    };
    match (&raw.range, &raw.hash) {
        (_, Some(hash)) => Some(Partitioned::Hash {
            slots: u32::try_from(hash.slots).ok()?,
            prefix_segments: hash.prefix_segments.map(u8::try_from).transpose().ok()?,
        }),
        (Some(split), None) => {
            let keys: Result<Vec<Vec<u8>>, _> = split.split_keys.iter().map(|key| read_key(key)).collect();
            match keys {
                Ok(keys) if keys.is_sorted_by(|a, b| a < b) => {}
                Ok(_) => note(problems, SPLIT_KEYS, "splitKeys must be in ascending order, each once"),
                Err(error) => note(problems, SPLIT_KEYS, &error.to_string()),
            }
            range(split.split_keys.clone())
        }
        (None, None) => range(Vec::new()),
    }
}

fn cel_problems(outcome: Result<(), kube::core::cel::ValidationErrors>) -> Vec<Problem> {
    match outcome {
        Ok(()) => Vec::new(),
        Err(errors) => errors
            .into_vec()
            .into_iter()
            .map(|error| Problem {
                path: error.field_path,
                message: error.message,
            })
            .collect(),
    }
}

/// Adds what CEL has not said of this field already.
fn note(problems: &mut Vec<Problem>, path: &str, message: &str) {
    if !problems.iter().any(|known| known.path.trim_start_matches('.') == path) {
        problems.push(Problem {
            path: path.to_owned(),
            message: message.to_owned(),
        });
    }
}
