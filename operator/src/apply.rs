//! Server-side apply of a cluster's objects.

use std::fmt::Debug;

use althing_crds::{Bytes, ValidatedCluster, names};
use althing_plan::model::Ordinal;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::build::{self, Resources};
use crate::context::{Context, FIELD_MANAGER};
use crate::error::{Error, is_not_found};
use crate::observe::World;

/// Applies what is not a pod or a volume. Nothing is sent if exactly this was applied last and no watch has told of a
/// change since.
pub(crate) async fn resources(
    context: &Context,
    cluster: &ValidatedCluster,
    resources: &Resources,
) -> Result<(), Error> {
    let namespace = namespace(cluster);
    let key = format!("{namespace}/{}", cluster.name);
    let content = format!("{:?} {resources:?}", cluster.uid);
    if context.applied().is(&key, &content) {
        return Ok(());
    }
    // Taken apart without `..`: a new kind does not compile until it is applied. What others refer to comes first.
    let Resources {
        service_account,
        config_map,
        peer_service,
        client_service,
        disruption_budget,
    } = resources;
    apply(context, namespace, service_account).await?;
    apply(context, namespace, config_map).await?;
    apply(context, namespace, peer_service).await?;
    apply(context, namespace, client_service).await?;
    match disruption_budget {
        Some(budget) => apply(context, namespace, budget).await?,
        None => remove_budget(context, cluster).await?,
    }
    context.applied().set(key, content);
    Ok(())
}

/// A budget that is not wanted would block drains.
async fn remove_budget(context: &Context, cluster: &ValidatedCluster) -> Result<(), Error> {
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(context.client.clone(), namespace(cluster));
    match budgets.delete(&cluster.name, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(Error::kube(format!("delete disruption budget {}", cluster.name))(error)),
    }
}

/// Keeps existing claims as declared: size (growth only, never gated on health: a full disk is what it cures), owner and
/// origin. Only once the cluster exists: before that, a claim's origin says whom to ask first.
pub(crate) async fn claims(context: &Context, cluster: &ValidatedCluster, world: &World) -> Result<(), Error> {
    if !world.observed.bootstrapped {
        return Ok(());
    }
    for (ordinal, claim) in &world.claims {
        let wanted = build::volume_claim(cluster, *ordinal);
        if claim.metadata.deletion_timestamp.is_none() && ordinal.0 < cluster.members.get() && differs(claim, &wanted) {
            claim_as_wanted(context, cluster, *ordinal, claim, wanted).await?;
        }
    }
    Ok(())
}

async fn claim_as_wanted(
    context: &Context,
    cluster: &ValidatedCluster,
    ordinal: Ordinal,
    claim: &PersistentVolumeClaim,
    mut wanted: PersistentVolumeClaim,
) -> Result<(), Error> {
    // A retained claim of an earlier cluster may be larger than what is declared now.
    if requested(claim) > requested(&wanted) {
        wanted.spec.clone_from(&claim.spec);
        if let Some(spec) = &mut wanted.spec {
            spec.volume_name = None;
            spec.volume_mode = None;
        }
    }
    tracing::info!(
        cluster = cluster.name,
        claim = names::volume(&cluster.name, ordinal.0),
        "volume claim is brought up to date"
    );
    apply(context, namespace(cluster), &wanted).await
}

fn requested(claim: &PersistentVolumeClaim) -> Option<Bytes> {
    let requests = claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?;
    requests.get("storage")?.0.parse().ok()
}

fn differs(claim: &PersistentVolumeClaim, wanted: &PersistentVolumeClaim) -> bool {
    let origin = |claim: &PersistentVolumeClaim| claim.annotations().get(names::ANNOTATION_CLUSTER_UID).cloned();
    let owners = |claim: &PersistentVolumeClaim| -> Vec<String> {
        claim.owner_references().iter().map(|owner| owner.uid.clone()).collect()
    };
    requested(claim) < requested(wanted) || origin(claim) != origin(wanted) || owners(claim) != owners(wanted)
}

async fn apply<K>(context: &Context, namespace: &str, object: &K) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(context.client.clone(), namespace);
    let name = object.name_any();
    let how = PatchParams::apply(FIELD_MANAGER).force();
    match api.patch(&name, &how, &Patch::Apply(object)).await {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::kube(format!("apply {} {name}", K::kind(&())))(error)),
    }
}

/// The cluster's namespace; resources of the API server always have one.
pub(crate) fn namespace(cluster: &ValidatedCluster) -> &str {
    cluster.namespace.as_deref().unwrap_or("default")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::fixtures::{cluster, valid};
    use serde_json::json;

    #[test]
    fn a_claim_is_touched_only_when_it_grows_or_changes_hands() {
        let now = build::volume_claim(&cluster(), Ordinal(0));
        assert!(!differs(&now, &now));
        let with = |size: &str, deleted: &str| {
            valid(
                json!({"members": 3, "version": "0.1.0", "storage": {"size": size}, "volumeRetention": {"whenDeleted": deleted}}),
            )
        };
        assert!(
            differs(&now, &build::volume_claim(&with("20Gi", "Retain"), Ordinal(0))),
            "growth"
        );
        assert!(
            !differs(&now, &build::volume_claim(&with("5Gi", "Retain"), Ordinal(0))),
            "a retained claim may be larger"
        );
        assert!(
            differs(&now, &build::volume_claim(&with("10Gi", "Delete"), Ordinal(0))),
            "owner"
        );
        let mut earlier = now.clone();
        earlier.metadata.annotations = Some([("althing.dev/cluster-uid".to_owned(), "u-0".to_owned())].into());
        assert!(differs(&earlier, &now), "origin");
    }
}
