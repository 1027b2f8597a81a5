//! The Kubernetes objects of a cluster, built from a validated spec: pure, and each with a golden test.

mod config_map;
mod disruption_budget;
mod pod;
mod service;
mod service_account;
mod volume;
mod workload_hash;

use std::collections::BTreeMap;

use althing_crds::{RaftCluster, ValidatedCluster, names};
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;

pub(crate) use pod::{CONTAINER, pod};
pub(crate) use volume::volume_claim;
pub(crate) use workload_hash::workload_hash;

/// Every object of a cluster that is neither a pod nor a volume. `apply` takes it apart field by field, so that a new
/// kind does not compile before it is applied.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Resources {
    pub(crate) service_account: ServiceAccount,
    pub(crate) config_map: ConfigMap,
    pub(crate) peer_service: Service,
    pub(crate) client_service: Service,
    /// None where a budget could only block drains.
    pub(crate) disruption_budget: Option<PodDisruptionBudget>,
}

/// What of a cluster's state its objects follow.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Follows {
    /// Voters of the members' configuration now.
    pub(crate) voters: usize,
    /// Voters that every shard can spare; none if nobody could tell.
    pub(crate) spare: Option<usize>,
    /// Ports of keyspaces.
    pub(crate) ports: Vec<(String, u16)>,
}

/// Builds them.
pub(crate) fn resources(cluster: &ValidatedCluster, follows: &Follows) -> Resources {
    Resources {
        service_account: service_account::service_account(cluster),
        config_map: config_map::config_map(cluster),
        peer_service: service::peers(cluster),
        client_service: service::clients(cluster, &follows.ports),
        disruption_budget: disruption_budget::disruption_budget(cluster, follows.voters, follows.spare),
    }
}

/// Metadata of an object that belongs to the cluster and goes with it.
fn metadata(cluster: &ValidatedCluster, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: cluster.namespace.clone(),
        labels: Some(names::labels(&cluster.name)),
        owner_references: owner(cluster).map(|owner| vec![owner]),
        ..ObjectMeta::default()
    }
}

/// The cluster as owner; none before it has a uid.
fn owner(cluster: &ValidatedCluster) -> Option<OwnerReference> {
    cluster.uid.as_ref().map(|uid| OwnerReference {
        api_version: RaftCluster::api_version(&()).into_owned(),
        kind: RaftCluster::kind(&()).into_owned(),
        name: cluster.name.clone(),
        uid: uid.clone(),
        controller: Some(true),
        block_owner_deletion: None,
    })
}

/// A map of one entry.
fn one(key: &str, value: String) -> BTreeMap<String, String> {
    BTreeMap::from([(key.to_owned(), value)])
}

#[cfg(test)]
pub(crate) mod fixtures {
    use althing_crds::{PullPolicy, RaftCluster, ValidatedCluster};
    use serde_json::{Value, json};

    use crate::settings::NodeImage;

    pub(crate) fn raw(spec: Value) -> RaftCluster {
        serde_json::from_value(json!({
            "apiVersion": "althing.dev/v1alpha1", "kind": "RaftCluster",
            "metadata": {"name": "orders", "namespace": "shop", "uid": "u-1", "generation": 2},
            "spec": spec
        }))
        .expect("the fixture has the shape of a RaftCluster")
    }

    pub(crate) fn cluster() -> ValidatedCluster {
        valid(json!({"members": 3, "version": "0.1.0", "storage": {"size": "10Gi"}}))
    }

    pub(crate) fn valid(spec: Value) -> ValidatedCluster {
        ValidatedCluster::try_from(&raw(spec)).expect("the fixture is valid")
    }

    pub(crate) fn image() -> NodeImage {
        NodeImage {
            reference: "localhost/althing-node:0.1.0".into(),
            pull_policy: PullPolicy::IfNotPresent,
        }
    }

    pub(crate) fn yaml(object: &impl serde::Serialize) -> String {
        // Through JSON, so that the keys are sorted as `kubectl get -o yaml` shows them.
        serde_saphyr::to_string(&serde_json::to_value(object).expect("JSON")).expect("YAML")
    }
}
