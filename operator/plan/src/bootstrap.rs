//! How a cluster comes to be, once.
//!
//! Intent is recorded before the act (`RecordClusterId`), the act names the recorded id (`Bootstrap`), and the fact is
//! recorded after (`RecordBootstrapped`). No other member joins before the fact is recorded, so a crash at any point
//! leaves at most one member with data. Volumes that are older than the declaration are asked first.

use std::collections::{BTreeMap, BTreeSet};

use crate::guard::quorum;
use crate::model::{Ordinal, Report, Step, Volume, Workload};
use crate::planner::Draft;

/// The member that a new cluster starts from.
const FIRST: Ordinal = Ordinal(0);

/// Steps until `bootstrapped` is true.
pub(crate) fn create(draft: &mut Draft<'_>) {
    clear_never_joined(draft);
    let observed = draft.observed;
    let cluster = draft.desired.name.clone();
    let found: BTreeMap<&String, Vec<Ordinal>> = observed
        .slots
        .iter()
        .filter_map(|(ordinal, slot)| {
            slot.report
                .as_ref()
                .and_then(|report| report.cluster_id.as_ref())
                .map(|id| (id, *ordinal))
        })
        .fold(BTreeMap::new(), |mut found, (id, ordinal)| {
            found.entry(id).or_insert_with(Vec::new).push(ordinal);
            found
        });
    match (&observed.cluster_id, found.iter().next(), found.len()) {
        (_, Some(_), 2..) => {
            let seen: Vec<String> = found
                .iter()
                .map(|(id, of)| format!("{id} in {}", names(draft, of).join(" and ")))
                .collect();
            draft.block(
                &cluster,
                "OtherCluster",
                format!(
                    "the volumes hold different clusters ({}); delete the volumes that are not wanted",
                    seen.join(", ")
                ),
            );
        }
        (None, Some((id, of)), _) => {
            draft.step(
                Step::AdoptCluster {
                    cluster_id: (*id).clone(),
                },
                format!(
                    "{} kept the cluster {id} in retained volumes",
                    names(draft, of).join(" and ")
                ),
            );
        }
        (Some(recorded), Some((id, of)), _) if recorded == *id => {
            draft.step(
                Step::RecordBootstrapped,
                format!("{} is a member of {id}", names(draft, of).join(" and ")),
            );
        }
        (Some(recorded), Some((id, of)), _) => {
            let of = names(draft, of).join(" and ");
            draft.block(
                &cluster,
                "OtherCluster",
                format!("the volume of {of} holds the cluster {id}, not {recorded}; delete that volume to go on without its data"),
            );
        }
        (recorded, None, _) => found_nothing(draft, recorded.as_ref()),
    }
}

fn found_nothing(draft: &mut Draft<'_>, recorded: Option<&String>) {
    let observed = draft.observed;
    let silent: Vec<Ordinal> = observed
        .retained
        .iter()
        .copied()
        .filter(|ordinal| {
            observed.slots.get(ordinal).is_some_and(|slot| {
                slot.report.is_none()
                    && match &slot.volume {
                        Volume::Present => true,
                        Volume::Absent | Volume::Terminating | Volume::Lost { .. } => false,
                    }
            })
        })
        .collect();
    if let Some(outside) = silent.iter().find(|ordinal| !draft.is_desired(**ordinal)) {
        let name = draft.name(*outside);
        draft.block(
            &name,
            "RetainedVolume",
            format!("the volume of {name} is older than this cluster and may hold data, but spec.members is too small to start {name}; raise spec.members, or delete the volume"),
        );
        return;
    }
    if !silent.is_empty() {
        for ordinal in silent {
            let name = draft.name(ordinal);
            draft.wait(&name, "RetainedVolume", format!("the volume of {name} is older than this cluster; {name} must say whether it holds data before anything is bootstrapped"));
        }
        return;
    }
    let Some(cluster_id) = recorded else {
        draft.step(
            Step::RecordClusterId,
            "a new cluster needs an id before anything acts on it".into(),
        );
        return;
    };
    let first = draft.name(FIRST);
    match observed.slots.get(&FIRST).and_then(|slot| slot.report.as_ref()) {
        Some(_) => draft.step(
            Step::Bootstrap {
                ordinal: FIRST,
                cluster_id: cluster_id.clone(),
            },
            format!("{first} is empty and is the first member of the new cluster {cluster_id}"),
        ),
        None => draft.wait(
            &first,
            "FirstMember",
            format!("{first} must run before the cluster can be bootstrapped"),
        ),
    }
}

/// A member beyond the declared number that never joined holds no data.
fn clear_never_joined(draft: &mut Draft<'_>) {
    let observed = draft.observed;
    for (ordinal, slot) in &observed.slots {
        let joined = slot.report.as_ref().is_some_and(|report| report.cluster_id.is_some());
        if !draft.is_desired(*ordinal) && !joined && !observed.retained.contains(ordinal) {
            crate::membership::clear(draft, *ordinal, slot, "it is beyond spec.members and never joined");
        }
    }
}

/// The cluster exists and nobody leads it: bring back whoever may vote, and say what is known.
pub(crate) fn explain_missing_leader(draft: &mut Draft<'_>) {
    let observed = draft.observed;
    start_possible_voters(draft);
    let cluster = draft.desired.name.clone();
    let reports: Vec<&Report> = observed
        .slots
        .values()
        .filter_map(|slot| slot.report.as_ref())
        .collect();
    let slots = observed
        .slots
        .keys()
        .copied()
        .chain(draft.desired_ordinals())
        .collect::<BTreeSet<_>>()
        .len();
    let joined = reports
        .iter()
        .filter(|report| report.cluster_id == observed.cluster_id)
        .count();
    if joined == 0 && reports.len() == slots {
        draft.block(
            &cluster,
            "DataLost",
            "every member answers and none of them holds the cluster's data; it is never bootstrapped a second time: restore a backup into a new cluster".into(),
        );
    } else if joined < quorum(slots) {
        draft.wait(
            &cluster,
            "QuorumLost",
            format!(
                "{joined} of {slots} members answer, {} are needed; bring the others back with their volumes",
                quorum(slots)
            ),
        );
    } else {
        draft.wait(
            &cluster,
            "NoLeader",
            format!("{joined} of {slots} members answer and none leads yet; an election takes a second or two"),
        );
    }
}

/// Members beyond the declared number may still have a vote, and without a quorum nobody can take it from them: their
/// pods are needed until there is a leader again. (Who votes is not known here: only the leader's word counts.)
fn start_possible_voters(draft: &mut Draft<'_>) {
    let observed = draft.observed;
    for (ordinal, slot) in &observed.slots {
        if !draft.is_desired(*ordinal) && slot.volume == Volume::Present && slot.workload == Workload::Absent {
            let name = draft.name(*ordinal);
            let why = format!("nobody leads, and {name} may have a vote although it is beyond spec.members");
            draft.step(Step::StartMember(*ordinal), why);
        }
    }
}

fn names(draft: &Draft<'_>, ordinals: &[Ordinal]) -> Vec<String> {
    ordinals.iter().map(|ordinal| draft.name(*ordinal)).collect()
}
