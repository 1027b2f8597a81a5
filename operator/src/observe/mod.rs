//! Looks at everything once, before anything is decided: pods, volume claims, and every member's own account.

mod claims;
mod nodes;
mod pods;

use std::collections::{BTreeMap, BTreeSet};

use althing_crds::{RaftCluster, ValidatedCluster, names};
use althing_plan::model::{Observed, Ordinal, Slot, Volume, Workload};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use crate::context::Context;
use crate::error::Error;

/// What was seen: the planner's view, and the objects that steps act on.
#[derive(Clone, Debug)]
pub(crate) struct World {
    /// For the planner.
    pub(crate) observed: Observed,
    /// Pods by ordinal.
    pub(crate) pods: BTreeMap<Ordinal, Pod>,
    /// Volume claims by ordinal.
    pub(crate) claims: BTreeMap<Ordinal, PersistentVolumeClaim>,
    /// Admin URLs of members that run.
    pub(crate) admin_urls: BTreeMap<Ordinal, String>,
}

/// The admin URL of a cluster's leader; none if nobody leads. Fails if the API server cannot be asked.
pub(crate) async fn leader_url(
    context: &Context,
    namespace: &str,
    cluster: &str,
    uid: Option<&str>,
) -> Result<Option<String>, Error> {
    let selected = ListParams::default().labels(&names::selector_string(cluster));
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let pods = pods.list(&selected).await.map_err(Error::kube("list pods"))?;
    let pods = by_ordinal(pods.items, |name| names::ordinal_of(cluster, name));
    Ok(nodes::leader_url(&context.admin, cluster, &admin_urls(&pods, uid)).await)
}

fn admin_urls(pods: &BTreeMap<Ordinal, Pod>, uid: Option<&str>) -> BTreeMap<Ordinal, String> {
    pods.iter()
        .filter(|(_, pod)| pods::workload(pod, uid) == Workload::Running)
        .filter_map(|(ordinal, pod)| pods::address(pod).map(|address| (*ordinal, nodes::admin_url(address))))
        .collect()
}

/// Looks. Fails if the API server cannot be asked: an object that was not listed is not an object that is gone.
pub(crate) async fn observe(context: &Context, raw: &RaftCluster, cluster: &ValidatedCluster) -> Result<World, Error> {
    let namespace = cluster.namespace.as_deref().unwrap_or("default");
    let selected = ListParams::default().labels(&names::selector_string(&cluster.name));
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), namespace);
    let (pods, claims) = futures::try_join!(
        async { pods.list(&selected).await.map_err(Error::kube("list pods")) },
        async { claims.list(&selected).await.map_err(Error::kube("list volume claims")) },
    )?;
    let pods = by_ordinal(pods.items, |name| names::ordinal_of(&cluster.name, name));
    let claims = by_ordinal(claims.items, |name| {
        name.strip_prefix("data-")
            .and_then(|member| names::ordinal_of(&cluster.name, member))
    });
    let admin_urls = admin_urls(&pods, cluster.uid.as_deref());
    let seen = nodes::ask(&context.admin, &cluster.name, &admin_urls).await;
    let status = raw.status.clone().unwrap_or_default();
    let ordinals: BTreeSet<Ordinal> = pods.keys().chain(claims.keys()).copied().collect();
    let slots = ordinals
        .into_iter()
        .map(|ordinal| {
            let pod = pods.get(&ordinal);
            let slot = Slot {
                volume: claims.get(&ordinal).map_or(Volume::Absent, claims::volume),
                workload: pod.map_or(Workload::Absent, |pod| pods::workload(pod, cluster.uid.as_deref())),
                workload_hash: pod.and_then(|pod| pod.annotations().get(names::ANNOTATION_WORKLOAD_HASH).cloned()),
                report: seen.reports.get(&ordinal).cloned(),
                host: pod
                    .and_then(|pod| pod.spec.as_ref())
                    .and_then(|spec| spec.node_name.clone()),
                labels: pod.map(pods::labels).unwrap_or_default(),
            };
            (ordinal, slot)
        })
        .collect();
    let retained = claims
        .iter()
        .filter(|(_, claim)| claims::made_by_another(claim, cluster.uid.as_deref()))
        .map(|(ordinal, _)| *ordinal)
        .collect();
    let observed = Observed {
        cluster_id: status.cluster_id,
        bootstrapped: status.bootstrapped,
        slots,
        retained,
        consensus: seen.consensus,
        groups: seen.groups,
        places: seen.places,
    };
    Ok(World {
        observed,
        pods,
        claims,
        admin_urls,
    })
}

fn by_ordinal<K: ResourceExt>(items: Vec<K>, ordinal: impl Fn(&str) -> Option<u32>) -> BTreeMap<Ordinal, K> {
    items
        .into_iter()
        .filter_map(|item| ordinal(&item.name_any()).map(|found| (Ordinal(found), item)))
        .collect()
}
