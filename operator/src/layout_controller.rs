//! One reconciliation of a `ShardLayout`. In this release a cluster has one shard, which the members themselves hold: the
//! layout is checked against its cluster and mirrors how that shard is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use althing_crds::{RaftCluster, ShardLayout, ShardLayoutStatus, ShardState, ValidatedLayout};
use althing_plan::view::SHARD;
use althing_plan::{ConditionKind, ConditionState, ConditionStatus};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::core::DeserializeGuard;
use kube::runtime::controller::Action;
use kube::{Api, Resource, ResourceExt};
use serde_json::json;

use crate::context::{Context, FIELD_MANAGER};
use crate::error::{Cure, Error};
use crate::{events, update_status};

/// The kind, in metrics and keys.
pub(crate) const KIND: &str = "ShardLayout";

/// The cluster's watch tells of changes; this is for one that was missed.
const SETTLED: Duration = Duration::from_secs(60);
/// An invalid resource waits for its edit.
const INVALID: Duration = Duration::from_secs(300);

/// Reconciles one layout.
pub(crate) async fn reconcile(
    guarded: Arc<DeserializeGuard<ShardLayout>>,
    context: Arc<Context>,
) -> Result<Action, Error> {
    let started = Instant::now();
    let outcome = turn(&guarded, &context).await;
    context.metrics.reconciled(
        KIND,
        outcome.as_ref().map_or_else(Error::word, |_| "ok"),
        started.elapsed(),
    );
    if outcome.is_ok() {
        context.succeeded(&key(&guarded));
    }
    outcome
}

/// What follows an error.
pub(crate) fn error_policy(
    guarded: Arc<DeserializeGuard<ShardLayout>>,
    error: &Error,
    context: Arc<Context>,
) -> Action {
    tracing::warn!(layout = guarded.name_any(), %error, "cannot reconcile");
    match error.cure() {
        Cure::Edit => Action::requeue(INVALID),
        Cure::LookAgain | Cure::Retry => Action::requeue(context.failed(&key(&guarded))),
    }
}

fn key(guarded: &DeserializeGuard<ShardLayout>) -> String {
    format!(
        "{KIND}/{}/{}",
        guarded.namespace().unwrap_or_default(),
        guarded.name_any()
    )
}

async fn turn(guarded: &DeserializeGuard<ShardLayout>, context: &Context) -> Result<Action, Error> {
    let raw = guarded.0.as_ref().map_err(|invalid| Error::Unreadable {
        kind: KIND,
        name: guarded.name_any(),
        message: invalid.error.clone(),
    })?;
    if raw.meta().deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let namespace = raw.namespace().unwrap_or_else(|| "default".to_owned());
    let layout = match ValidatedLayout::try_from(raw) {
        Ok(layout) => layout,
        Err(error) => {
            let message = error.to_string();
            write(
                context,
                raw,
                &namespace,
                judged(ConditionStatus::False, "Invalid", &message, true),
                None,
            )
            .await?;
            return Err(error.into());
        }
    };
    let clusters: Api<RaftCluster> = Api::namespaced(context.client.clone(), &namespace);
    let doing = format!("read RaftCluster {}", layout.cluster);
    let cluster = clusters.get_opt(&layout.cluster).await.map_err(Error::kube(doing))?;
    let (conditions, shard) = judge(&layout, cluster.as_ref());
    write(context, raw, &namespace, conditions, shard).await?;
    Ok(Action::requeue(SETTLED))
}

/// How a layout is, from its cluster. Pure.
fn judge(layout: &ValidatedLayout, cluster: Option<&RaftCluster>) -> (Vec<ConditionState>, Option<ShardState>) {
    let Some(cluster) = cluster else {
        let message = format!(
            "there is no RaftCluster {} in this namespace; create it, or make a layout that names another",
            layout.cluster
        );
        return (judged(ConditionStatus::False, "ClusterNotFound", &message, true), None);
    };
    let status = cluster.status.clone().unwrap_or_default();
    let members = cluster.spec.members;
    if let Some(replicas) = layout
        .replicas
        .filter(|replicas| i64::from(*replicas) != i64::from(members))
    {
        let message = format!(
            "spec.replicas is {replicas}, and in this release every one of the cluster's {members} members holds a replica; leave spec.replicas out, or write {members}"
        );
        return (
            judged(ConditionStatus::False, "ReplicasNotSupported", &message, true),
            shard(&status),
        );
    }
    match &status.leader {
        Some(leader) => {
            let message = format!("keyspace {} is one shard, led by {leader}", layout.keyspace);
            (
                judged(ConditionStatus::True, "Serving", &message, false),
                shard(&status),
            )
        }
        None => {
            let message = format!("RaftCluster {} has no leader: see its conditions", layout.cluster);
            (
                judged(ConditionStatus::False, "NoLeader", &message, status.bootstrapped),
                shard(&status),
            )
        }
    }
}

fn shard(status: &althing_crds::RaftClusterStatus) -> Option<ShardState> {
    status.bootstrapped.then(|| ShardState {
        id: i64::try_from(SHARD).expect("invariant: the first shard is 1"),
        leader: status.leader.clone(),
        voters: status
            .members
            .iter()
            .filter(|member| matches!(member.role.as_str(), "Leader" | "Voter"))
            .map(|member| member.name.clone())
            .collect(),
    })
}

fn judged(ready: ConditionStatus, reason: &str, message: &str, degraded: bool) -> Vec<ConditionState> {
    let state = |kind, status| ConditionState {
        kind,
        status,
        reason: reason.to_owned(),
        message: message.to_owned(),
    };
    let degraded = if degraded {
        ConditionStatus::True
    } else {
        ConditionStatus::False
    };
    let progressing = match (ready, degraded) {
        (ConditionStatus::False, ConditionStatus::False) => ConditionStatus::True,
        (ConditionStatus::True | ConditionStatus::False | ConditionStatus::Unknown, _) => ConditionStatus::False,
    };
    vec![
        state(ConditionKind::Ready, ready),
        state(ConditionKind::Progressing, progressing),
        state(ConditionKind::Degraded, degraded),
    ]
}

async fn write(
    context: &Context,
    raw: &ShardLayout,
    namespace: &str,
    states: Vec<ConditionState>,
    shard: Option<ShardState>,
) -> Result<(), Error> {
    let old = raw.status.clone().unwrap_or_default();
    let new = ShardLayoutStatus {
        observed_generation: raw.meta().generation,
        conditions: update_status::conditions(&old.conditions, &states, raw.meta().generation, Timestamp::now()),
        current_shards: i32::from(shard.is_some()),
        shards: shard.into_iter().collect(),
    };
    if new == old {
        return Ok(());
    }
    let name = raw.name_any();
    let layouts: Api<ShardLayout> = Api::namespaced(context.client.clone(), namespace);
    let body = json!({"apiVersion": ShardLayout::api_version(&()), "kind": ShardLayout::kind(&()), "status": new});
    let how = PatchParams::apply(FIELD_MANAGER).force();
    let written = layouts.patch_status(&name, &how, &Patch::Apply(&body)).await;
    events::conditions(context, raw, &old.conditions, &new.conditions).await;
    written
        .map(drop)
        .map_err(Error::kube(format!("update the status of ShardLayout {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn layout(spec: Value) -> ValidatedLayout {
        let raw: ShardLayout = serde_json::from_value(json!({
            "apiVersion": "althing.dev/v1alpha1", "kind": "ShardLayout", "metadata": {"name": "orders"}, "spec": spec
        }))
        .expect("a layout");
        ValidatedLayout::try_from(&raw).expect("valid")
    }

    fn cluster(status: Value) -> RaftCluster {
        let mut raw =
            crate::build::fixtures::raw(json!({"members": 3, "version": "0.1.0", "storage": {"size": "1Gi"}}));
        raw.status = Some(serde_json::from_value(status).expect("a status"));
        raw
    }

    fn ready(conditions: &[ConditionState]) -> (ConditionStatus, &str) {
        (conditions[0].status, conditions[0].reason.as_str())
    }

    #[test]
    fn a_layout_without_its_cluster_says_which_one_is_missing() {
        let (conditions, shard) = judge(&layout(json!({"clusterRef": {"name": "orders"}})), None);
        assert_eq!(ready(&conditions), (ConditionStatus::False, "ClusterNotFound"));
        assert!(conditions[0].message.contains("no RaftCluster orders") && shard.is_none());
    }

    #[test]
    fn a_layout_mirrors_leader_and_voters() {
        let seen = cluster(json!({"bootstrapped": true, "leader": "orders-1", "members": [
            {"name": "orders-0", "ordinal": 0, "role": "Voter", "ready": true},
            {"name": "orders-1", "ordinal": 1, "role": "Leader", "ready": true},
            {"name": "orders-2", "ordinal": 2, "role": "Learner", "ready": false}
        ]}));
        let (conditions, shard) = judge(&layout(json!({"clusterRef": {"name": "orders"}})), Some(&seen));
        assert_eq!(ready(&conditions), (ConditionStatus::True, "Serving"));
        let shard = shard.expect("one shard");
        assert_eq!(
            (shard.leader.as_deref(), shard.voters),
            (Some("orders-1"), vec!["orders-0".into(), "orders-1".into()])
        );
    }

    #[test]
    fn replicas_that_are_not_the_members_are_refused_by_name() {
        let seen = cluster(json!({"bootstrapped": true, "leader": "orders-1"}));
        let (conditions, _) = judge(
            &layout(json!({"clusterRef": {"name": "orders"}, "replicas": 5})),
            Some(&seen),
        );
        assert_eq!(ready(&conditions), (ConditionStatus::False, "ReplicasNotSupported"));
        assert!(conditions[0].message.contains("write 3"), "{}", conditions[0].message);
    }
}
