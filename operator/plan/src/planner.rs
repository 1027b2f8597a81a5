//! The order of work, and the part of it that needs no consensus: workloads and volumes.
//!
//! 1. clear away, create and start (a lost pod gets its volume back at once, whatever else is wrong);
//! 2. bootstrap, once;
//! 3. one change of the configuration: repair, then growth, then shrinking;
//! 4. what no configuration knows any more is stopped, and its volume deleted;
//! 5. restarts for a changed workload, one voter at a time.
//!
//! A wait never keeps unrelated later work from being done.

use std::collections::BTreeSet;

use crate::model::{Desired, Observed, Ordinal, Plan, Planned, Slot, Step, Volume, Wait, Workload};
use crate::{bootstrap, membership, rollout};

/// Decides what to do now.
#[must_use]
pub fn plan(desired: &Desired, observed: &Observed) -> Plan {
    let mut draft = Draft::new(desired, observed);
    if desired.deleting {
        draft.wait(
            &desired.name,
            "Deleting",
            "the cluster is being deleted; garbage collection removes what it owns".into(),
        );
    } else if desired.paused {
        draft.wait(
            &desired.name,
            "Paused",
            "spec.paused is true: nothing is changed until it is false".into(),
        );
    } else {
        workloads(&mut draft);
        if observed.bootstrapped {
            match &observed.consensus {
                Some(consensus) => {
                    membership::change(&mut draft, consensus);
                    membership::clear_leftovers(&mut draft, consensus);
                }
                None => bootstrap::explain_missing_leader(&mut draft),
            }
            rollout::restart(&mut draft);
        } else {
            bootstrap::create(&mut draft);
            rollout::restart(&mut draft);
        }
    }
    draft.finish()
}

/// Reasons of a workload that is merely on its way: nothing is wrong yet.
const STARTING: [&str; 3] = ["Starting", "ContainerCreating", "PodInitializing"];

/// A plan in the making.
pub(crate) struct Draft<'a> {
    pub(crate) desired: &'a Desired,
    pub(crate) observed: &'a Observed,
    plan: Plan,
    /// Ordinals whose workload a step of this plan already starts or stops.
    touched: BTreeSet<Ordinal>,
    changes_configuration: bool,
}

impl<'a> Draft<'a> {
    fn new(desired: &'a Desired, observed: &'a Observed) -> Self {
        Self {
            desired,
            observed,
            plan: Plan::default(),
            touched: BTreeSet::new(),
            changes_configuration: false,
        }
    }

    pub(crate) fn name(&self, ordinal: Ordinal) -> String {
        ordinal.member(&self.desired.name)
    }

    pub(crate) fn is_desired(&self, ordinal: Ordinal) -> bool {
        ordinal.0 < self.desired.members
    }

    pub(crate) fn desired_ordinals(&self) -> impl DoubleEndedIterator<Item = Ordinal> + use<> {
        (0..self.desired.members).map(Ordinal)
    }

    pub(crate) fn touched(&self, ordinal: Ordinal) -> bool {
        self.touched.contains(&ordinal)
    }

    /// Whether a step of this plan already asks the leader for something.
    pub(crate) fn changes_configuration(&self) -> bool {
        self.changes_configuration
    }

    pub(crate) fn step(&mut self, step: Step, reason: String) {
        match &step {
            Step::StartMember(ordinal) | Step::StopMember(ordinal) => {
                self.touched.insert(*ordinal);
            }
            Step::AddLearner { .. }
            | Step::Promote { .. }
            | Step::RemoveMember { .. }
            | Step::TransferLeader { .. } => {
                assert!(
                    !self.changes_configuration,
                    "invariant: one request to the leader in a plan"
                );
                self.changes_configuration = true;
            }
            // Not a change of the configuration: it may go with one.
            Step::Drain { .. } | Step::Undrain { .. } => {}
            Step::RecordClusterId
            | Step::RecordBootstrapped
            | Step::AdoptCluster { .. }
            | Step::CreateVolume(_)
            | Step::DeleteVolume(_)
            | Step::Bootstrap { .. } => {}
        }
        self.plan.steps.push(Planned { step, reason });
    }

    pub(crate) fn wait(&mut self, subject: &str, reason: &'static str, message: String) {
        push_once(
            &mut self.plan.waits,
            Wait {
                subject: subject.to_owned(),
                reason,
                message,
            },
        );
    }

    pub(crate) fn block(&mut self, subject: &str, reason: &'static str, message: String) {
        push_once(
            &mut self.plan.blocked,
            Wait {
                subject: subject.to_owned(),
                reason,
                message,
            },
        );
    }

    fn finish(mut self) -> Plan {
        self.plan.done = self.plan.steps.is_empty() && self.plan.waits.is_empty() && self.plan.blocked.is_empty();
        self.plan
    }
}

fn push_once(list: &mut Vec<Wait>, wait: Wait) {
    if !list.contains(&wait) {
        list.push(wait);
    }
}

/// Gives every desired ordinal a volume and a workload. Nothing is gated on health: this is what restores it.
fn workloads(draft: &mut Draft<'_>) {
    for ordinal in draft.desired_ordinals() {
        let name = draft.name(ordinal);
        let Some(slot) = draft.observed.slots.get(&ordinal) else {
            draft.step(Step::CreateVolume(ordinal), format!("{name} has no volume"));
            draft.step(
                Step::StartMember(ordinal),
                format!("{name} is declared and does not run"),
            );
            continue;
        };
        volume(draft, ordinal, &name, slot);
        workload(draft, ordinal, &name, slot);
    }
}

fn volume(draft: &mut Draft<'_>, ordinal: Ordinal, name: &str, slot: &Slot) {
    match (&slot.volume, &slot.workload) {
        (Volume::Present, _) => {}
        (Volume::Absent, Workload::Absent | Workload::Pending { .. }) => {
            draft.step(Step::CreateVolume(ordinal), format!("{name} has no volume"));
        }
        (
            Volume::Absent | Volume::Lost { .. },
            Workload::Running | Workload::Failed { .. } | Workload::Ended { .. } | Workload::Terminating,
        )
        | (Volume::Lost { .. }, Workload::Absent | Workload::Pending { .. }) => {
            // Whether its member must leave the configuration first is `membership`'s to say.
        }
        (Volume::Terminating, _) => {
            draft.wait(
                name,
                "VolumeTerminating",
                format!("the volume of {name} is being deleted; a new one follows"),
            );
        }
    }
}

fn workload(draft: &mut Draft<'_>, ordinal: Ordinal, name: &str, slot: &Slot) {
    match &slot.workload {
        Workload::Absent => match &slot.volume {
            Volume::Absent | Volume::Present => {
                draft.step(
                    Step::StartMember(ordinal),
                    format!("{name} is declared and does not run"),
                );
            }
            Volume::Terminating | Volume::Lost { .. } => {}
        },
        Workload::Pending { reason, message } if STARTING.contains(&reason.as_str()) => {
            draft.wait(
                name,
                "MemberStarting",
                format!("{name} is being started ({reason}): {message}"),
            );
        }
        Workload::Pending { reason, message } => {
            draft.wait(
                name,
                "MemberPending",
                format!("{name} cannot start yet ({reason}): {message}"),
            );
        }
        Workload::Failed { reason, message } => {
            draft.wait(
                name,
                "MemberFailing",
                format!("{name} does not stay up ({reason}): {message}"),
            );
        }
        Workload::Ended { reason, message } => {
            draft.step(
                Step::StopMember(ordinal),
                format!("{name} ended ({reason}: {message}) and is started anew"),
            );
        }
        Workload::Terminating => {
            draft.wait(name, "MemberTerminating", format!("{name} is being stopped"));
        }
        Workload::Running => match &slot.report {
            None => draft.wait(
                name,
                "MemberSilent",
                format!("{name} runs and does not answer on its admin API yet"),
            ),
            Some(report) if !report.ready => {
                draft.wait(
                    name,
                    "MemberNotReady",
                    format!("{name} is not ready: {}", report.not_ready_reason),
                );
            }
            Some(_) => {}
        },
    }
}
