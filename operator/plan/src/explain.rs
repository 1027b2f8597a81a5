//! A plan as sentences, for `althing why`, Events and conditions.

use crate::model::{Desired, MemberId, Observed, Plan, Step};

impl Step {
    /// One word for programs: reason of an Event or condition.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::RecordClusterId => "RecordClusterId",
            Self::CreateVolume(_) => "CreateVolume",
            Self::StartMember(_) => "StartMember",
            Self::StopMember(_) => "StopMember",
            Self::DeleteVolume(_) => "DeleteVolume",
            Self::Bootstrap { .. } => "Bootstrap",
            Self::RecordBootstrapped => "RecordBootstrapped",
            Self::AdoptCluster { .. } => "AdoptCluster",
            Self::AddLearner { .. } => "AddLearner",
            Self::Promote { .. } => "Promote",
            Self::TransferLeader { .. } => "TransferLeader",
            Self::Drain { .. } => "Drain",
            Self::Undrain { .. } => "Undrain",
            Self::RemoveMember { .. } => "RemoveMember",
        }
    }

    /// The name of the member that the step is about, if it is about one.
    #[must_use]
    pub fn member(&self, desired: &Desired, observed: &Observed) -> Option<String> {
        match self {
            Self::RecordClusterId | Self::RecordBootstrapped | Self::AdoptCluster { .. } => None,
            Self::CreateVolume(ordinal)
            | Self::StartMember(ordinal)
            | Self::StopMember(ordinal)
            | Self::DeleteVolume(ordinal)
            | Self::Bootstrap { ordinal, .. }
            | Self::AddLearner { ordinal, .. } => Some(ordinal.member(&desired.name)),
            Self::Promote { member, .. }
            | Self::RemoveMember { member, .. }
            | Self::Drain { member }
            | Self::Undrain { member } => name_of(desired, observed, member),
            Self::TransferLeader { from, to: _ } => name_of(desired, observed, from),
        }
    }

    /// What the step does, as a clause with names instead of ids: "remove orders-2 (8e9e05c52164694d)".
    #[must_use]
    pub fn describe(&self, desired: &Desired, observed: &Observed) -> String {
        let who = |id: &MemberId| member(desired, observed, id);
        match self {
            Self::RecordClusterId => "choose a cluster id".to_owned(),
            Self::CreateVolume(ordinal) => {
                format!("create the volume of {}", ordinal.member(&desired.name))
            }
            Self::StartMember(ordinal) => format!("start {}", ordinal.member(&desired.name)),
            Self::StopMember(ordinal) => format!("stop {}", ordinal.member(&desired.name)),
            Self::DeleteVolume(ordinal) => {
                format!("delete the volume of {}", ordinal.member(&desired.name))
            }
            Self::Bootstrap { ordinal, cluster_id } => {
                format!("bootstrap cluster {cluster_id} on {}", ordinal.member(&desired.name))
            }
            Self::RecordBootstrapped => "record that the cluster exists".to_owned(),
            Self::AdoptCluster { cluster_id } => format!("take over cluster {cluster_id}"),
            Self::AddLearner {
                ordinal,
                member,
                expected_config_index: _,
            } => {
                format!("add {} ({member}) as a learner", ordinal.member(&desired.name))
            }
            Self::Promote {
                member,
                expected_config_index: _,
            } => format!("give {} its vote", who(member)),
            Self::TransferLeader { from, to } => {
                format!("move leadership from {} to {}", who(from), who(to))
            }
            Self::Drain { member } => format!("empty {} of replicas", who(member)),
            Self::Undrain { member } => format!("let {} take replicas again", who(member)),
            Self::RemoveMember {
                member,
                expected_config_index: _,
            } => format!("remove {}", who(member)),
        }
    }
}

fn member(desired: &Desired, observed: &Observed, id: &MemberId) -> String {
    match name_of(desired, observed, id) {
        Some(name) => format!("{name} ({id})"),
        None => id.to_string(),
    }
}

fn name_of(desired: &Desired, observed: &Observed, id: &MemberId) -> Option<String> {
    let by_consensus = observed
        .consensus
        .as_ref()
        .and_then(|consensus| consensus.names.get(id))
        .cloned();
    by_consensus.or_else(|| {
        observed
            .slots
            .iter()
            .find(|(_, slot)| slot.report.as_ref().is_some_and(|report| report.member_id == *id))
            .map(|(ordinal, _)| ordinal.member(&desired.name))
    })
}

/// What is being done, waited for and impossible, one sentence each; empty when everything is as declared.
#[must_use]
pub fn explain(desired: &Desired, observed: &Observed, plan: &Plan) -> Vec<String> {
    let blocked = plan
        .blocked
        .iter()
        .map(|wait| format!("Blocked ({}): {}.", wait.reason, wait.message));
    let steps = plan.steps.iter().map(|planned| {
        format!(
            "Doing: {}, because {}.",
            planned.step.describe(desired, observed),
            planned.reason
        )
    });
    let waits = plan
        .waits
        .iter()
        .map(|wait| format!("Waiting ({}): {}.", wait.reason, wait.message));
    blocked.chain(steps).chain(waits).collect()
}
