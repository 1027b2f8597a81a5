//! Restarts for a changed workload (version, settings, resources).
//!
//! What does not run costs nothing to replace, so a bad revision can always be superseded. Voters that serve are
//! restarted one at a time, followers first, the leader last and after handing over, and only while all the others serve
//! and their quorum does not need the one that stops. A cluster of one is restarted too: there is nobody to hand over to,
//! and a person asked for it.

use crate::guard::{Short, may_stop, needed_by};
use crate::model::{Consensus, MemberId, Ordinal, Slot, Step, Volume, Workload};
use crate::planner::Draft;

/// Adds restarts.
pub(crate) fn restart(draft: &mut Draft<'_>) {
    let outdated: Vec<(Ordinal, &Slot)> = draft
        .observed
        .slots
        .iter()
        .filter(|(ordinal, slot)| {
            draft.is_desired(**ordinal)
                && slot
                    .workload_hash
                    .as_ref()
                    .is_some_and(|hash| *hash != draft.desired.workload_hash)
        })
        .map(|(ordinal, slot)| (*ordinal, slot))
        .collect();
    let mut serving = Vec::new();
    for (ordinal, slot) in outdated {
        if draft.touched(ordinal) {
            continue;
        }
        match &slot.workload {
            Workload::Pending { .. } | Workload::Failed { .. } => {
                let name = draft.name(ordinal);
                let why = format!(
                    "{name} does not run and its declaration has changed (version {})",
                    draft.desired.version
                );
                draft.step(Step::StopMember(ordinal), why);
            }
            Workload::Running => serving.push((ordinal, slot)),
            Workload::Absent | Workload::Ended { .. } | Workload::Terminating => {}
        }
    }
    if let (Some(consensus), false) = (&draft.observed.consensus, serving.is_empty()) {
        restart_one(draft, consensus, &serving);
    } else if !draft.observed.bootstrapped {
        // Nothing has joined: nothing holds data.
        for (ordinal, slot) in serving {
            if slot.report.as_ref().is_none_or(|report| report.cluster_id.is_none())
                && draft.observed.cluster_id.is_none()
            {
                let name = draft.name(ordinal);
                draft.step(
                    Step::StopMember(ordinal),
                    format!("{name} has not joined and its declaration has changed"),
                );
            }
        }
    }
}

fn restart_one(draft: &mut Draft<'_>, consensus: &Consensus, serving: &[(Ordinal, &Slot)]) {
    // A voter that does not answer (or no voter) first, then followers from the highest ordinal, then the leader.
    let rank = |slot: &Slot| match id_of(slot) {
        Some(id) if *id == consensus.leader => 2,
        Some(id) if consensus.voters.contains(id) && consensus.active.contains(id) => 1,
        Some(_) | None => 0,
    };
    let Some((ordinal, slot)) = serving
        .iter()
        .min_by_key(|(ordinal, slot)| (rank(slot), std::cmp::Reverse(*ordinal)))
        .copied()
    else {
        return;
    };
    let name = draft.name(ordinal);
    let why = format!(
        "the declaration of {name} has changed (version {})",
        draft.desired.version
    );
    if draft.changes_configuration() {
        // The change counts on everyone who answers now, and a learner may be a voter when it is through.
        let message = format!("{name} restarts with its new declaration when the configuration has settled");
        draft.wait(&name, "RestartPending", message);
        return;
    }
    // Of a member that does not answer nobody knows whether the leader still counts on it: its name tells.
    let id = id_of(slot).or_else(|| id_by_name(consensus, &name));
    let Some(id) = id.filter(|id| consensus.voters.contains(*id)) else {
        draft.step(Step::StopMember(ordinal), why);
        return;
    };
    if consensus.voters.len() == 1 && draft.desired.members == 1 {
        draft.step(
            Step::StopMember(ordinal),
            format!("{why}; it is the only voter, so the cluster is down while it restarts"),
        );
        return;
    }
    if consensus.active.contains(id)
        && let Some(other) = unsettled(draft, ordinal)
    {
        let message = format!("{name} restarts with its new declaration when {other} serves");
        draft.wait(&name, "RestartPending", message);
        return;
    }
    if let Err(Short { active, needed }) = may_stop(consensus, id) {
        draft.block(
            &name,
            "WouldLoseQuorum",
            format!("{why}, but while it restarts only {active} voters would answer and {needed} are needed"),
        );
        return;
    }
    if let Some(needed) = needed_by(&draft.observed.groups, id) {
        let message = format!("{name} restarts with its new declaration when every shard can spare it: {needed}");
        draft.wait(&name, "ShardAtRisk", message);
        return;
    }
    if *id == consensus.leader {
        hand_over(draft, consensus, ordinal, id, &why);
    } else {
        draft.step(Step::StopMember(ordinal), why);
    }
}

fn hand_over(draft: &mut Draft<'_>, consensus: &Consensus, ordinal: Ordinal, id: &MemberId, why: &str) {
    let heir = draft
        .observed
        .slots
        .iter()
        .filter(|(other, slot)| {
            **other != ordinal
                && draft.is_desired(**other)
                && slot.workload_hash.as_deref() == Some(&draft.desired.workload_hash)
        })
        .filter_map(|(_, slot)| id_of(slot))
        .find(|heir| consensus.voters.contains(*heir) && consensus.caught_up.contains(*heir));
    let name = draft.name(ordinal);
    match heir {
        Some(heir) => {
            draft.step(
                Step::TransferLeader {
                    from: id.clone(),
                    to: heir.clone(),
                },
                format!("{why}, and it leads"),
            );
        }
        None => draft.wait(
            &name,
            "NoSuccessor",
            format!("{name} leads and no restarted voter has caught up to take over"),
        ),
    }
}

/// Another declared member that does not serve yet.
fn unsettled(draft: &Draft<'_>, ordinal: Ordinal) -> Option<String> {
    let consensus = draft.observed.consensus.as_ref()?;
    draft
        .desired_ordinals()
        .filter(|other| *other != ordinal)
        .find(|other| {
            !draft.observed.slots.get(other).is_some_and(|slot| {
                slot.volume == Volume::Present
                    && slot.report.as_ref().is_some_and(|report| {
                        report.ready
                            && consensus.voters.contains(&report.member_id)
                            && consensus.caught_up.contains(&report.member_id)
                    })
            })
        })
        .map(|other| draft.name(other))
}

fn id_of(slot: &Slot) -> Option<&MemberId> {
    slot.report.as_ref().map(|report| &report.member_id)
}

fn id_by_name<'a>(consensus: &'a Consensus, name: &str) -> Option<&'a MemberId> {
    consensus
        .names
        .iter()
        .find(|(id, known)| *known == name && consensus.voters.contains(*id))
        .map(|(id, _)| id)
}
