//! From the planner's judgement to the custom resources' status, as the operator writes it. Pure; time is handed in.

use althing_crds::{MemberStatus, RaftClusterStatus, ShardLayoutStatus, ShardState, names};
use althing_plan::Assessment;
use althing_plan::model::Observed;
use althing_plan::view::SHARD;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Numbers of members and entries fit; what would not is shown as the largest.
fn clamp<T, U: TryFrom<T>>(value: T, most: U) -> U {
    U::try_from(value).unwrap_or(most)
}

/// The cluster's status. Conditions keep the time of their last transition from `before`.
pub(crate) fn cluster(
    name: &str,
    generation: Option<i64>,
    observed: &Observed,
    assessment: &Assessment,
    activity: Vec<String>,
    before: &RaftClusterStatus,
    now: &Time,
) -> RaftClusterStatus {
    let conditions = assessment
        .conditions
        .iter()
        .map(|condition| {
            let (kind, status) = (condition.kind.word(), condition.status.word());
            let since = before
                .conditions
                .iter()
                .find(|known| known.type_ == kind && known.status == status)
                .map_or_else(|| now.clone(), |known| known.last_transition_time.clone());
            Condition {
                type_: kind.to_owned(),
                status: status.to_owned(),
                reason: condition.reason.clone(),
                message: condition.message.clone(),
                observed_generation: generation,
                last_transition_time: since,
            }
        })
        .collect();
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

/// The status of a cluster's layout: this release has one shard, which every member holds. It is as ready as its cluster is
/// available.
pub(crate) fn layout(
    generation: Option<i64>,
    observed: &Observed,
    cluster: &RaftClusterStatus,
    before: &ShardLayoutStatus,
    now: &Time,
) -> ShardLayoutStatus {
    let available = cluster
        .conditions
        .iter()
        .find(|condition| condition.type_ == "Available");
    let conditions = available
        .map(|available| {
            let since = before
                .conditions
                .iter()
                .find(|known| known.status == available.status)
                .map_or_else(|| now.clone(), |known| known.last_transition_time.clone());
            Condition {
                type_: "Ready".to_owned(),
                observed_generation: generation,
                last_transition_time: since,
                ..available.clone()
            }
        })
        .into_iter()
        .collect();
    let name_of = |id| {
        observed
            .consensus
            .as_ref()
            .and_then(|consensus| consensus.names.get(id))
            .cloned()
    };
    let shards = observed.consensus.iter().map(|consensus| ShardState {
        id: clamp(SHARD, i64::MAX),
        leader: name_of(&consensus.leader),
        voters: {
            let mut voters: Vec<String> = consensus
                .voters
                .iter()
                .map(|id| name_of(id).unwrap_or_else(|| id.to_string()))
                .collect();
            voters.sort_unstable();
            voters
        },
    });
    ShardLayoutStatus {
        observed_generation: generation,
        conditions,
        current_shards: i32::from(observed.bootstrapped),
        shards: shards.collect(),
    }
}
