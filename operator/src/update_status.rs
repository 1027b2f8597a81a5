//! The status of a cluster, in one place, on every way out of a reconciliation.
//!
//! Two field managers write it. What the operator must remember (`clusterId`, `bootstrapped`) belongs to one, and is only
//! written against the resource version that was read; what can be observed again belongs to the other. So a status that
//! is computed from old observations cannot wipe the memory.

use althing_crds::{MemberStatus, RaftCluster, RaftClusterStatus, names};
use althing_plan::{Assessment, ConditionState, MemberRow};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use serde_json::{Value, json};

use crate::context::Context;
use crate::error::Error;
use crate::events;

const OBSERVER: &str = "althing-operator-status";
const MEMORY: &str = "althing-operator-memory";

/// The longest message of a condition (metav1.Condition).
const MAX_MESSAGE: usize = 32768;

/// Records the cluster's id, and whether it exists. Fails if the resource has changed since it was read.
pub(crate) async fn record_cluster_id(
    context: &Context,
    raw: &RaftCluster,
    id: &str,
    bootstrapped: bool,
) -> Result<(), Error> {
    let body = json!({
        "apiVersion": RaftCluster::api_version(&()),
        "kind": RaftCluster::kind(&()),
        "metadata": {"resourceVersion": raw.resource_version(), "name": raw.name_any()},
        "status": {"clusterId": id, "bootstrapped": bootstrapped},
    });
    let how = PatchParams::apply(MEMORY).force();
    match api(context, raw)
        .patch_status(&raw.name_any(), &how, &Patch::Apply(&body))
        .await
    {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::kube(format!("record the cluster id of {}", raw.name_any()))(
            error,
        )),
    }
}

/// What a reconciliation found out.
#[derive(Clone, Debug)]
pub(crate) struct Findings {
    /// Conditions.
    pub(crate) conditions: Vec<ConditionState>,
    /// The rest of the assessment; none if nothing could be observed: the old one then stays.
    pub(crate) assessment: Option<Assessment>,
    /// Sentences.
    pub(crate) activity: Vec<String>,
}

/// Writes it, if it differs from what is there, and tells of transitions.
pub(crate) async fn update(context: &Context, raw: &RaftCluster, findings: &Findings) -> Result<(), Error> {
    let old = raw.status.clone().unwrap_or_default();
    let new = status(
        &raw.name_any(),
        raw.metadata.generation,
        &old,
        findings,
        Timestamp::now(),
    );
    if new == old {
        return Ok(());
    }
    let mut body = serde_json::to_value(&new).expect("invariant: a status is JSON");
    if let Value::Object(fields) = &mut body {
        // The memory has its own writer.
        fields.remove("clusterId");
        fields.remove("bootstrapped");
    }
    let body = json!({"apiVersion": RaftCluster::api_version(&()), "kind": RaftCluster::kind(&()), "status": body});
    let how = PatchParams::apply(OBSERVER).force();
    let written = api(context, raw)
        .patch_status(&raw.name_any(), &how, &Patch::Apply(&body))
        .await;
    events::conditions(context, raw, &old.conditions, &new.conditions).await;
    match written {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::kube(format!("update the status of {}", raw.name_any()))(error)),
    }
}

fn api(context: &Context, raw: &RaftCluster) -> Api<RaftCluster> {
    Api::namespaced(context.client.clone(), raw.namespace().as_deref().unwrap_or("default"))
}

/// The new status. Pure: the time is handed in.
fn status(
    name: &str,
    generation: Option<i64>,
    old: &RaftClusterStatus,
    findings: &Findings,
    now: Timestamp,
) -> RaftClusterStatus {
    let conditions = conditions(&old.conditions, &findings.conditions, generation, now);
    let (leader, current_members, ready_members, members) = match &findings.assessment {
        Some(seen) => (
            seen.leader.clone(),
            i32::try_from(seen.current_members).unwrap_or(i32::MAX),
            i32::try_from(seen.ready_members).unwrap_or(i32::MAX),
            seen.members.iter().map(member).collect(),
        ),
        None => (
            old.leader.clone(),
            old.current_members,
            old.ready_members,
            old.members.clone(),
        ),
    };
    RaftClusterStatus {
        observed_generation: generation,
        conditions,
        cluster_id: old.cluster_id.clone(),
        bootstrapped: old.bootstrapped,
        leader,
        current_members,
        ready_members,
        selector: Some(names::selector_string(name)),
        members,
        activity: findings.activity.clone(),
    }
}

/// Turns states into conditions; the time of the last transition moves only when the status does.
pub(crate) fn conditions(
    old: &[Condition],
    states: &[ConditionState],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    states
        .iter()
        .map(|state| {
            let status = state.status.word();
            let before = old
                .iter()
                .find(|other| other.type_ == state.kind.word() && other.status == status);
            let mut message = state.message.clone();
            if message.len() > MAX_MESSAGE {
                let end = (0..=MAX_MESSAGE)
                    .rev()
                    .find(|end| message.is_char_boundary(*end))
                    .unwrap_or(0);
                message.truncate(end);
            }
            Condition {
                type_: state.kind.word().to_owned(),
                status: status.to_owned(),
                reason: state.reason.clone(),
                message,
                observed_generation: generation,
                last_transition_time: before.map_or(Time(now), |before| before.last_transition_time.clone()),
            }
        })
        .collect()
}

fn member(row: &MemberRow) -> MemberStatus {
    MemberStatus {
        name: row.name.clone(),
        ordinal: i32::try_from(row.ordinal.0).unwrap_or(i32::MAX),
        member_id: row.member_id.as_ref().map(ToString::to_string),
        role: row.role.word().to_owned(),
        ready: row.ready,
        reason: row.reason.clone(),
        lag: row.lag.map(coarse),
        replicas: row.replicas.map(|replicas| i32::try_from(replicas).unwrap_or(i32::MAX)),
        draining: row.draining,
        node: row.host.clone(),
        version: row.version.clone(),
    }
}

/// A lag for people. Under load it changes with every observation, and each change would be a write to the API server: it
/// is told in powers of two.
fn coarse(lag: u64) -> i64 {
    let rounded = if lag < 1024 { 0 } else { 1_u64 << lag.ilog2().min(62) };
    i64::try_from(rounded).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use althing_plan::{ConditionKind, ConditionStatus};

    fn state(status: ConditionStatus, message: &str) -> ConditionState {
        ConditionState {
            kind: ConditionKind::Ready,
            status,
            reason: "R".into(),
            message: message.into(),
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    #[test]
    fn a_transition_time_moves_only_with_the_status() {
        let first = conditions(&[], &[state(ConditionStatus::False, "a")], Some(1), at(1));
        let same = conditions(&first, &[state(ConditionStatus::False, "b")], Some(2), at(2));
        assert_eq!(
            (same[0].last_transition_time.0, same[0].observed_generation),
            (at(1), Some(2))
        );
        let other = conditions(&same, &[state(ConditionStatus::True, "b")], Some(2), at(3));
        assert_eq!(other[0].last_transition_time.0, at(3));
    }

    #[test]
    fn the_memory_is_kept_and_an_unseen_cluster_keeps_its_table() {
        let old = RaftClusterStatus {
            cluster_id: Some("c1".into()),
            bootstrapped: true,
            leader: Some("orders-1".into()),
            ready_members: 3,
            ..RaftClusterStatus::default()
        };
        let findings = Findings {
            conditions: vec![state(ConditionStatus::Unknown, "x")],
            assessment: None,
            activity: vec![],
        };
        let new = status("orders", Some(4), &old, &findings, at(1));
        assert_eq!(
            (new.cluster_id.as_deref(), new.bootstrapped, new.ready_members),
            (Some("c1"), true, 3)
        );
        assert_eq!(new.observed_generation, Some(4));
    }

    #[test]
    fn a_lag_that_is_noise_writes_nothing() {
        assert_eq!([0, 1023, 1024, 5000, u64::MAX].map(coarse), [0, 0, 1024, 4096, 1 << 62]);
    }
}
