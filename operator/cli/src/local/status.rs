//! From the planner's judgement to the custom resources' status, as the operator writes it. Pure; time is handed in.

use althing_crds::{MemberStatus, RaftClusterStatus, ShardLayoutStatus, names};
use althing_plan::layout::LayoutAssessment;
use althing_plan::model::Observed;
use althing_plan::{Assessment, ConditionState};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Numbers of members and entries fit; what would not is shown as the largest.
fn clamp<T, U: TryFrom<T>>(value: T, most: U) -> U {
    U::try_from(value).unwrap_or(most)
}

/// The cluster's status.
pub(crate) fn cluster(
    name: &str,
    generation: Option<i64>,
    observed: &Observed,
    assessment: &Assessment,
    activity: Vec<String>,
    before: &RaftClusterStatus,
    now: &Time,
) -> RaftClusterStatus {
    let conditions = conditions(&assessment.conditions, &before.conditions, generation, now);
    let members = assessment
        .members
        .iter()
        .map(|row| MemberStatus {
            name: row.name.clone(),
            ordinal: clamp(row.ordinal.0, i32::MAX),
            member_id: row.member_id.as_ref().map(ToString::to_string),
            role: row.role.word().to_owned(),
            ready: row.ready,
            reason: row.reason.clone(),
            lag: row.lag.map(|lag| clamp(lag, i64::MAX)),
            replicas: row.replicas.map(|replicas| clamp(replicas, i32::MAX)),
            draining: row.draining,
            node: row.host.clone(),
            version: row.version.clone(),
        })
        .collect();
    RaftClusterStatus {
        observed_generation: generation,
        conditions,
        cluster_id: observed.cluster_id.clone(),
        bootstrapped: observed.bootstrapped,
        leader: assessment.leader.clone(),
        current_members: clamp(assessment.current_members, i32::MAX),
        ready_members: clamp(assessment.ready_members, i32::MAX),
        selector: Some(names::selector_string(name)),
        members,
        activity,
    }
}

/// The status of one layout.
pub(crate) fn layout(
    generation: Option<i64>,
    assessment: &LayoutAssessment,
    endpoint: &str,
    before: &ShardLayoutStatus,
    now: &Time,
) -> ShardLayoutStatus {
    let conditions = conditions(&assessment.conditions, &before.conditions, generation, now);
    match &assessment.table {
        Some(table) => ShardLayoutStatus {
            observed_generation: generation,
            conditions,
            current_shards: clamp(table.current_shards, i32::MAX),
            revisions: table.revisions.map(ToOwned::to_owned),
            endpoint: table.revisions.map(|_| endpoint.to_owned()),
            bytes: table.bytes,
            shards: table.shards.clone(),
            shards_not_listed: clamp(table.not_listed, i32::MAX),
            operations: table.operations.clone(),
        },
        // Nobody could tell: what was known stays.
        None => ShardLayoutStatus {
            observed_generation: generation,
            conditions,
            ..before.clone()
        },
    }
}

/// Conditions keep the time of their last transition.
fn conditions(states: &[ConditionState], before: &[Condition], generation: Option<i64>, now: &Time) -> Vec<Condition> {
    states
        .iter()
        .map(|state| {
            let (kind, status) = (state.kind.word(), state.status.word());
            let since = before
                .iter()
                .find(|known| known.type_ == kind && known.status == status)
                .map_or_else(|| now.clone(), |known| known.last_transition_time.clone());
            Condition {
                type_: kind.to_owned(),
                status: status.to_owned(),
                reason: state.reason.clone(),
                message: state.message.clone(),
                observed_generation: generation,
                last_transition_time: since,
            }
        })
        .collect()
}
