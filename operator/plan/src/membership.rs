//! One change of the configuration at a time: repair, then growth, then shrinking.

use althing_crds::names::ordinal_of;

use crate::guard::{Short, may_remove, needed_by, quorum};
use crate::model::{Consensus, MemberId, Ordinal, Place, Report, Slot, Step, Volume, Workload};
use crate::planner::Draft;

/// A member of the configuration and where it lives.
#[derive(Clone, Copy)]
struct Placed<'a> {
    id: &'a MemberId,
    ordinal: Ordinal,
    slot: Option<&'a Slot>,
    voter: bool,
}

/// Adds at most one step that asks the leader for something.
pub(crate) fn change<'a>(draft: &mut Draft<'a>, consensus: &'a Consensus) {
    let placed = placed(draft, consensus);
    let sound = &sound(draft, consensus, &placed);
    undrain(draft, &placed);
    repair(draft, sound, &placed);
    if !draft.changes_configuration() {
        add(draft, sound);
    }
    if !draft.changes_configuration() {
        promote(draft, sound, &placed);
    }
    if !draft.changes_configuration() {
        shrink(draft, sound, &placed);
    }
    if !draft.changes_configuration() {
        start_needed_voters(draft, &placed);
    }
}

/// The configuration without counting on members that answer now and will lose their data: a volume that is being deleted
/// goes with its pod, at any time.
fn sound(draft: &Draft<'_>, consensus: &Consensus, placed: &[Placed<'_>]) -> Consensus {
    let mut sound = consensus.clone();
    for member in placed {
        if gone(draft, member).is_some() {
            sound.active.remove(member.id);
        }
    }
    sound
}

/// What a member holds; none if it holds nothing that the map knows of.
fn place<'a>(draft: &Draft<'a>, member: &MemberId) -> Option<&'a Place> {
    draft.observed.places.as_ref()?.get(member)
}

/// Whether the member is there, by its own word: of one that is silent, the data may be gone.
fn answers(draft: &Draft<'_>, member: &Placed<'_>) -> bool {
    let report = member.slot.and_then(reported);
    report.is_some_and(|report| report.member_id == *member.id) && gone(draft, member).is_none()
}

/// Whether a member stays that can take what the others hold.
fn has_home(draft: &Draft<'_>, placed: &[Placed<'_>]) -> bool {
    placed
        .iter()
        .any(|member| member.voter && draft.is_desired(member.ordinal) && answers(draft, member))
}

/// Members that were being emptied and are needed again: the declared number has gone up meanwhile, or the data of those
/// that should take over are gone.
fn undrain(draft: &mut Draft<'_>, placed: &[Placed<'_>]) {
    let home = has_home(draft, placed);
    for member in placed {
        let draining = place(draft, member.id).is_some_and(|place| place.draining);
        let desired = draft.is_desired(member.ordinal);
        if draining && answers(draft, member) && (desired || !home) {
            let name = draft.name(member.ordinal);
            let why = if desired {
                format!("{name} is declared and stays")
            } else {
                format!("no member that stays can take what {name} holds now")
            };
            draft.step(
                Step::Undrain {
                    member: member.id.clone(),
                },
                why,
            );
        }
    }
}

/// Whether the member holds no replicas any more; has it emptied, if nobody did yet.
fn drained(draft: &mut Draft<'_>, placed: &[Placed<'_>], member: &Placed<'_>, why: &str) -> bool {
    let name = draft.name(member.ordinal);
    let Some(place) = place(draft, member.id) else {
        return true;
    };
    if !draft.is_desired(member.ordinal) && gone(draft, member).is_none() && !has_home(draft, placed) {
        draft.wait(
            &name,
            "NoHome",
            format!("{why}, and leaves when a member that stays can take what it holds"),
        );
        return false;
    }
    let (replicas, plural) = (place.replicas, if place.replicas == 1 { "" } else { "s" });
    if !place.draining {
        draft.step(
            Step::Drain {
                member: member.id.clone(),
            },
            why.to_owned(),
        );
        return false;
    }
    if replicas > 0 {
        draft.wait(
            &name,
            "Draining",
            format!("{name} still holds {replicas} replica{plural}; it leaves when other members have taken over"),
        );
    }
    replicas == 0
}

/// A voter beyond the declared number whose pod is gone, while it cannot be removed: its vote is needed.
fn start_needed_voters(draft: &mut Draft<'_>, placed: &[Placed<'_>]) {
    for member in placed {
        let stopped = member
            .slot
            .is_some_and(|slot| slot.volume == Volume::Present && slot.workload == Workload::Absent);
        if member.voter && stopped && !draft.is_desired(member.ordinal) {
            let name = draft.name(member.ordinal);
            let why = format!("{name} still has a vote that cannot be taken from it now");
            draft.step(Step::StartMember(member.ordinal), why);
        }
    }
}

fn placed<'a>(draft: &mut Draft<'a>, consensus: &'a Consensus) -> Vec<Placed<'a>> {
    let observed = draft.observed;
    let mut placed = Vec::new();
    for id in consensus.voters.iter().chain(&consensus.learners) {
        let by_name = consensus
            .names
            .get(id)
            .and_then(|name| ordinal_of(&draft.desired.name, name))
            .map(Ordinal);
        let by_report = || {
            observed
                .slots
                .iter()
                .find(|(_, slot)| reported(slot).is_some_and(|report| report.member_id == *id))
                .map(|(o, _)| *o)
        };
        match by_name.or_else(by_report) {
            Some(ordinal) => placed.push(Placed {
                id,
                ordinal,
                slot: observed.slots.get(&ordinal),
                voter: consensus.voters.contains(id),
            }),
            None => draft.block(
                &draft.desired.name.clone(),
                "UnknownMember",
                format!("the configuration has a member {id} that is none of this cluster's pods; remove it through the admin API if nobody needs it"),
            ),
        }
    }
    placed
}

/// Why a member of the configuration will not come back with its data.
fn gone(draft: &Draft<'_>, member: &Placed<'_>) -> Option<String> {
    let name = draft.name(member.ordinal);
    let Some(slot) = member.slot else {
        return Some(format!("{name} has lost its volume"));
    };
    match (&slot.volume, &slot.report) {
        (_, Some(report)) if report.member_id != *member.id => Some(format!(
            "{name} came back empty, as another member, {}",
            report.member_id
        )),
        (Volume::Absent, _) => Some(format!("{name} has lost its volume")),
        (Volume::Lost { reason }, _) => Some(format!("the data of {name} is gone: {reason}")),
        (Volume::Terminating, _) => Some(format!("the volume of {name} is being deleted")),
        (Volume::Present, _) => None,
    }
}

fn repair(draft: &mut Draft<'_>, consensus: &Consensus, placed: &[Placed<'_>]) {
    let mut lost: Vec<(&Placed<'_>, String)> = placed
        .iter()
        .filter_map(|member| gone(draft, member).map(|why| (member, why)))
        .collect();
    // Learners and members that do not answer cost nothing.
    lost.sort_by_key(|(member, _)| (member.voter, consensus.active.contains(member.id), member.ordinal));
    for (member, why) in &lost {
        if draft.changes_configuration() {
            return;
        }
        if consensus.voters.len() == 1 && member.voter {
            let name = draft.name(member.ordinal);
            draft.block(
                &name,
                "LastVoter",
                format!("{why}, and it is the only voter: the data cannot be saved by removing it; take a backup now"),
            );
        } else {
            remove(draft, consensus, placed, member, why);
        }
    }
    // A volume that is gone while its workload still runs: the workload goes once its member has left.
    for (ordinal, slot) in &draft.observed.slots {
        let in_configuration = placed
            .iter()
            .any(|member| member.ordinal == *ordinal && still_there(member));
        if draft.is_desired(*ordinal) && !in_configuration {
            replace_volume(draft, *ordinal, slot);
        }
    }
}

/// Whether the slot's present volume belongs to this member of the configuration, as far as is known.
fn still_there(member: &Placed<'_>) -> bool {
    member
        .slot
        .and_then(reported)
        .is_none_or(|report| report.member_id == *member.id)
}

fn replace_volume(draft: &mut Draft<'_>, ordinal: Ordinal, slot: &Slot) {
    let name = draft.name(ordinal);
    let lost = match &slot.volume {
        Volume::Present => return,
        Volume::Absent | Volume::Terminating => false,
        Volume::Lost { .. } => true,
    };
    match &slot.workload {
        Workload::Running | Workload::Failed { .. } if !draft.touched(ordinal) => {
            draft.step(
                Step::StopMember(ordinal),
                format!("{name} has no volume any more and starts anew with an empty one"),
            );
        }
        Workload::Pending { .. } if lost && !draft.touched(ordinal) => {
            draft.step(
                Step::StopMember(ordinal),
                format!("{name} waits for a volume that is gone"),
            );
        }
        Workload::Absent
        | Workload::Pending { .. }
        | Workload::Running
        | Workload::Failed { .. }
        | Workload::Ended { .. }
        | Workload::Terminating => {}
    }
    if lost {
        draft.step(
            Step::DeleteVolume(ordinal),
            format!("the data of {name} is gone, and it needs a new volume"),
        );
    }
}

fn add(draft: &mut Draft<'_>, consensus: &Consensus) {
    let observed = draft.observed;
    for ordinal in draft.desired_ordinals() {
        let Some(slot) = observed.slots.get(&ordinal) else {
            continue;
        };
        let Some(report) = reported(slot) else {
            continue;
        };
        if consensus.voters.contains(&report.member_id) || consensus.learners.contains(&report.member_id) {
            continue;
        }
        let name = draft.name(ordinal);
        match (&report.cluster_id, &observed.cluster_id) {
            (None, _) => {
                if !draft.changes_configuration() {
                    draft.step(
                        Step::AddLearner {
                            ordinal,
                            member: report.member_id.clone(),
                            expected_config_index: consensus.config_index,
                        },
                        format!("{name} runs and is not in the configuration yet"),
                    );
                }
            }
            (Some(theirs), Some(ours)) if theirs == ours => former_member(draft, ordinal, slot, report),
            (Some(theirs), _) => draft.block(
                &name,
                "OtherCluster",
                format!(
                    "the volume of {name} holds the cluster {theirs}; delete the volume if that data is not needed"
                ),
            ),
        }
    }
}

/// A volume whose member has left the configuration. Its id is not used again (a removed member's log proves nothing),
/// so the slot needs an empty volume.
fn former_member(draft: &mut Draft<'_>, ordinal: Ordinal, slot: &Slot, report: &Report) {
    let name = draft.name(ordinal);
    if draft.desired.keep_volumes {
        draft.block(
            &name,
            "RetainedVolume",
            format!("the volume of {name} was retained from member {}, which has left the cluster; delete the volume to let {name} join again", report.member_id),
        );
    } else if !draft.touched(ordinal) {
        match slot.volume {
            Volume::Present => {
                let why = format!(
                    "{name} still has the volume of member {}, which has left the cluster",
                    report.member_id
                );
                draft.step(Step::StopMember(ordinal), why.clone());
                draft.step(Step::DeleteVolume(ordinal), why);
            }
            Volume::Absent | Volume::Terminating | Volume::Lost { .. } => {}
        }
    }
}

fn promote(draft: &mut Draft<'_>, consensus: &Consensus, placed: &[Placed<'_>]) {
    let learners: Vec<&Placed<'_>> = placed
        .iter()
        .filter(|member| !member.voter && draft.is_desired(member.ordinal) && still_there(member))
        .collect();
    for learner in learners {
        let name = draft.name(learner.ordinal);
        if !consensus.active.contains(learner.id) {
            draft.wait(
                &name,
                "LearnerSilent",
                format!("{name} is a learner and does not answer the leader"),
            );
        } else if !consensus.caught_up.contains(learner.id) {
            let lag = consensus
                .lag
                .get(learner.id)
                .map_or_else(|| "an unknown number of".to_owned(), ToString::to_string);
            draft.wait(
                &name,
                "LearnerBehind",
                format!("{name} is a learner and still lacks {lag} entries"),
            );
        } else if !draft.changes_configuration() {
            let voters = consensus.voters.len() + 1;
            let active = consensus
                .voters
                .iter()
                .filter(|voter| consensus.active.contains(*voter))
                .count()
                + 1;
            if active >= quorum(voters) {
                draft.step(
                    Step::Promote {
                        member: learner.id.clone(),
                        expected_config_index: consensus.config_index,
                    },
                    format!("{name} has caught up"),
                );
            } else {
                draft.block(
                    &name,
                    "WouldLoseQuorum",
                    format!(
                        "with {name} as a voter, {active} of {voters} voters would answer and {} would be needed",
                        quorum(voters)
                    ),
                );
            }
        }
    }
}

fn shrink(draft: &mut Draft<'_>, consensus: &Consensus, placed: &[Placed<'_>]) {
    let mut victims: Vec<&Placed<'_>> = placed
        .iter()
        .filter(|member| !draft.is_desired(member.ordinal))
        .collect();
    let growing = placed
        .iter()
        .find(|member| !member.voter && draft.is_desired(member.ordinal) && consensus.active.contains(member.id));
    if let (Some(growing), Some(_)) = (growing, victims.first()) {
        let name = draft.name(growing.ordinal);
        draft.wait(
            &name,
            "FinishingGrowth",
            format!("{name} becomes a voter before others leave"),
        );
        return;
    }
    // Learners and members that do not answer first: they cost nothing. Then the highest ordinal.
    victims.sort_by_key(|member| {
        (
            member.voter,
            consensus.active.contains(member.id),
            std::cmp::Reverse(member.ordinal),
        )
    });
    let why = |draft: &Draft<'_>, victim: &Placed<'_>| {
        format!(
            "spec.members is {} and {} is beyond it",
            draft.desired.members,
            draft.name(victim.ordinal)
        )
    };
    let Some((first, rest)) = victims.split_first() else {
        return;
    };
    let reason = why(draft, first);
    remove(draft, consensus, placed, first, &reason);
    if may_remove(consensus, first.id).is_ok() {
        // All at once, so that nothing moves from one that leaves to another that leaves.
        for victim in rest {
            let reason = why(draft, victim);
            drained(draft, placed, victim, &reason);
        }
    }
}

/// Removes one member: leadership first, and only while the rest keeps its quorum.
fn remove(draft: &mut Draft<'_>, consensus: &Consensus, placed: &[Placed<'_>], member: &Placed<'_>, why: &str) {
    let name = draft.name(member.ordinal);
    match may_remove(consensus, member.id) {
        Err(Short { active, needed }) => {
            let down: Vec<String> = placed
                .iter()
                .filter(|other| other.voter && other.id != member.id && !consensus.active.contains(other.id))
                .map(|other| draft.name(other.ordinal))
                .collect();
            let cure = if down.is_empty() {
                "add members first".to_owned()
            } else {
                format!("bring back {} first", down.join(" and "))
            };
            draft.block(
                &name,
                "WouldLoseQuorum",
                format!("{why}, but without {name} only {active} voters would answer and {needed} are needed; {cure}"),
            );
        }
        Ok(()) if !drained(draft, placed, member, why) => {}
        Ok(()) if consensus.leader == *member.id => transfer(draft, consensus, placed, member, why),
        Ok(()) => draft.step(
            Step::RemoveMember {
                member: member.id.clone(),
                expected_config_index: consensus.config_index,
            },
            why.to_owned(),
        ),
    }
}

fn transfer(draft: &mut Draft<'_>, consensus: &Consensus, placed: &[Placed<'_>], member: &Placed<'_>, why: &str) {
    let name = draft.name(member.ordinal);
    let heir = placed
        .iter()
        .filter(|other| other.id != member.id && other.voter && consensus.caught_up.contains(other.id))
        .min_by_key(|other| {
            (
                !draft.is_desired(other.ordinal),
                gone(draft, other).is_some(),
                other.ordinal,
            )
        });
    match heir {
        Some(heir) => draft.step(
            Step::TransferLeader {
                from: member.id.clone(),
                to: heir.id.clone(),
            },
            format!("{why}, and it leads"),
        ),
        None => draft.wait(
            &name,
            "NoSuccessor",
            format!("{name} leads and no other voter has caught up to take over"),
        ),
    }
}

/// Stops what no configuration knows any more and is not declared, then deletes its volume, if it is not to be kept.
pub(crate) fn clear_leftovers(draft: &mut Draft<'_>, consensus: &Consensus) {
    let observed = draft.observed;
    for (ordinal, slot) in &observed.slots {
        let named = consensus
            .voters
            .iter()
            .chain(&consensus.learners)
            .any(|id| consensus.names.get(id).is_none_or(|name| *name == draft.name(*ordinal)));
        let reports_in = reported(slot).is_some_and(|report| {
            consensus.voters.contains(&report.member_id) || consensus.learners.contains(&report.member_id)
        });
        if !draft.is_desired(*ordinal) && !named && !reports_in {
            clear(draft, *ordinal, slot, "it has left the configuration");
        }
    }
}

/// Stops a member and deletes its volume by policy.
pub(crate) fn clear(draft: &mut Draft<'_>, ordinal: Ordinal, slot: &Slot, why: &str) {
    let name = draft.name(ordinal);
    let needed = reported(slot).and_then(|report| needed_by(&draft.observed.groups, &report.member_id));
    match &slot.workload {
        Workload::Pending { .. } | Workload::Running | Workload::Failed { .. } | Workload::Ended { .. } => match needed
        {
            Some(needed) => {
                draft.wait(
                    &name,
                    "ShardAtRisk",
                    format!("{name} is to be stopped ({why}), but {needed}"),
                );
            }
            None => draft.step(Step::StopMember(ordinal), format!("{name} is not needed: {why}")),
        },
        Workload::Terminating => draft.wait(&name, "MemberTerminating", format!("{name} is being stopped")),
        Workload::Absent => match &slot.volume {
            Volume::Present | Volume::Lost { .. } if !draft.desired.keep_volumes => {
                draft.step(
                    Step::DeleteVolume(ordinal),
                    format!("the volume of {name} is not needed: {why}"),
                );
            }
            Volume::Terminating => {
                draft.wait(
                    &name,
                    "VolumeTerminating",
                    format!("the volume of {name} is being deleted"),
                );
            }
            Volume::Present | Volume::Lost { .. } | Volume::Absent => {}
        },
    }
}

fn reported(slot: &Slot) -> Option<&Report> {
    slot.report.as_ref()
}
