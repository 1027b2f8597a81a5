//! Conditions and the member table, from the same inputs as the plan.

use std::collections::BTreeSet;

use althing_crds::names::ordinal_of;

use crate::guard::{quorum, without_quorum};
use crate::model::{Consensus, Desired, MemberId, Observed, Ordinal, Plan, Slot, Volume, Wait, Workload};

/// The conditions of a cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ConditionKind {
    /// Everything is as declared (kstatus reads this one).
    Ready,
    /// Clients are served.
    Available,
    /// Something is being done or waited for.
    Progressing,
    /// A member is missing, or something cannot be done.
    Degraded,
    /// A majority of voters answers its leader, in the members' group and in every shard.
    QuorumHealthy,
}

impl ConditionKind {
    /// The condition's `type`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Available => "Available",
            Self::Progressing => "Progressing",
            Self::Degraded => "Degraded",
            Self::QuorumHealthy => "QuorumHealthy",
        }
    }
}

/// A condition's `status`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Nobody can tell now.
    Unknown,
}

impl ConditionStatus {
    /// The word that Kubernetes uses.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// One condition, without the time of its last transition, which only a shell knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConditionState {
    /// Which.
    pub kind: ConditionKind,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// One word for programs.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
}

/// What a member is in its configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// It leads.
    Leader,
    /// It votes.
    Voter,
    /// It follows without a vote.
    Learner,
    /// It is in no configuration, or nobody knows.
    None,
}

impl Role {
    /// The word for status and tables.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Leader => "Leader",
            Self::Voter => "Voter",
            Self::Learner => "Learner",
            Self::None => "None",
        }
    }
}

/// One line of the member table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberRow {
    /// Ordinal.
    pub ordinal: Ordinal,
    /// `<cluster>-<ordinal>`.
    pub name: String,
    /// The id that lives in its volume.
    pub member_id: Option<MemberId>,
    /// Its part in the configuration.
    pub role: Role,
    /// Whether it serves linearizable requests.
    pub ready: bool,
    /// Why not; empty when ready.
    pub reason: String,
    /// Entries that it lacks.
    pub lag: Option<u64>,
    /// Replicas of shards that it holds.
    pub replicas: Option<u32>,
    /// Whether it is being emptied of them.
    pub draining: bool,
    /// Where it runs.
    pub host: Option<String>,
    /// Version of the running program.
    pub version: Option<String>,
}

/// How a cluster is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assessment {
    /// Every condition, always all of them, in a fixed order.
    pub conditions: Vec<ConditionState>,
    /// The members, by ordinal: declared ones and those that are still there.
    pub members: Vec<MemberRow>,
    /// The leader's name.
    pub leader: Option<String>,
    /// Members that serve.
    pub ready_members: u32,
    /// Members that have a workload.
    pub current_members: u32,
}

/// Judges what was observed.
#[must_use]
pub fn assess(desired: &Desired, observed: &Observed, plan: &Plan) -> Assessment {
    let members = table(desired, observed);
    let ready_members = count(members.iter().filter(|row| row.ready));
    let current_members = count(observed.slots.values().filter(|slot| match slot.workload {
        Workload::Absent => false,
        Workload::Pending { .. }
        | Workload::Running
        | Workload::Failed { .. }
        | Workload::Ended { .. }
        | Workload::Terminating => true,
    }));
    let leader = observed
        .consensus
        .as_ref()
        .and_then(|consensus| consensus.names.get(&consensus.leader))
        .cloned();
    let conditions = vec![
        ready(desired, observed, plan, &members),
        available(observed, ready_members),
        progressing(desired, observed, plan),
        degraded(desired, observed, plan, &members),
        quorum_healthy(observed, plan),
    ];
    Assessment {
        conditions,
        members,
        leader,
        ready_members,
        current_members,
    }
}

fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).expect("invariant: a cluster has fewer than 2^32 members")
}

fn table(desired: &Desired, observed: &Observed) -> Vec<MemberRow> {
    let in_configuration = observed
        .consensus
        .iter()
        .flat_map(|consensus| consensus.names.values())
        .filter_map(|name| ordinal_of(&desired.name, name))
        .map(Ordinal);
    let ordinals: BTreeSet<Ordinal> = (0..desired.members)
        .map(Ordinal)
        .chain(
            observed
                .slots
                .iter()
                .filter(|(_, slot)| slot.workload != Workload::Absent)
                .map(|(ordinal, _)| *ordinal),
        )
        .chain(in_configuration)
        .collect();
    ordinals
        .into_iter()
        .map(|ordinal| row(desired, observed, ordinal))
        .collect()
}

fn row(desired: &Desired, observed: &Observed, ordinal: Ordinal) -> MemberRow {
    let name = ordinal.member(&desired.name);
    let slot = observed.slots.get(&ordinal);
    let report = slot.and_then(|slot| slot.report.as_ref());
    let consensus = observed.consensus.as_ref();
    let member_id = report.map(|report| report.member_id.clone()).or_else(|| {
        consensus.and_then(|c| {
            c.names
                .iter()
                .find(|(_, known)| **known == name)
                .map(|(id, _)| id.clone())
        })
    });
    let role = match (consensus, &member_id) {
        (Some(consensus), Some(id)) => role(consensus, id),
        (Some(_) | None, Some(_) | None) => Role::None,
    };
    let lag = match (consensus, &member_id) {
        (Some(consensus), Some(id)) => consensus.lag.get(id).copied(),
        (Some(_) | None, Some(_) | None) => None,
    };
    let place = match (&observed.places, &member_id) {
        (Some(places), Some(id)) => places.get(id),
        (Some(_) | None, Some(_) | None) => None,
    };
    let ready = report.is_some_and(|report| report.ready);
    MemberRow {
        replicas: place.map(|place| place.replicas),
        draining: place.is_some_and(|place| place.draining),
        reason: if ready { String::new() } else { why_not_ready(slot) },
        host: slot.and_then(|slot| slot.host.clone()),
        version: report.map(|report| report.version.clone()),
        ordinal,
        name,
        member_id,
        role,
        ready,
        lag,
    }
}

fn role(consensus: &Consensus, id: &MemberId) -> Role {
    if consensus.leader == *id {
        Role::Leader
    } else if consensus.voters.contains(id) {
        Role::Voter
    } else if consensus.learners.contains(id) {
        Role::Learner
    } else {
        Role::None
    }
}

fn why_not_ready(slot: Option<&Slot>) -> String {
    let Some(slot) = slot else {
        return "NotStarted: it has no volume and does not run".to_owned();
    };
    match (&slot.workload, &slot.volume, &slot.report) {
        (Workload::Absent, Volume::Lost { reason }, _) => format!("VolumeLost: {reason}"),
        (Workload::Absent, Volume::Absent | Volume::Present | Volume::Terminating, _) => {
            "NotStarted: it does not run".to_owned()
        }
        (
            Workload::Pending { reason, message }
            | Workload::Failed { reason, message }
            | Workload::Ended { reason, message },
            _,
            _,
        ) => format!("{reason}: {message}"),
        (Workload::Terminating, _, _) => "Terminating: it is being stopped".to_owned(),
        (Workload::Running, _, None) => "Silent: it does not answer on its admin API".to_owned(),
        (Workload::Running, _, Some(report)) => format!("NotReady: {}", report.not_ready_reason),
    }
}

fn state(kind: ConditionKind, status: ConditionStatus, reason: &str, message: String) -> ConditionState {
    ConditionState {
        kind,
        status,
        reason: reason.to_owned(),
        message,
    }
}

fn ready(desired: &Desired, observed: &Observed, plan: &Plan, members: &[MemberRow]) -> ConditionState {
    use ConditionStatus::{False, True};
    let kind = ConditionKind::Ready;
    if let Some(wait) = plan.blocked.first() {
        return state(kind, False, wait.reason, wait.message.clone());
    }
    if let Some(planned) = plan.steps.first() {
        let what = planned.step.describe(desired, observed);
        return state(kind, False, planned.step.word(), format!("{what}: {}", planned.reason));
    }
    if let Some(wait) = plan.waits.iter().find(|wait| wait.reason != "Paused") {
        return state(kind, False, wait.reason, wait.message.clone());
    }
    if let Some(lost) = without_quorum(&observed.groups) {
        return state(kind, False, "QuorumLost", lost);
    }
    let declared = usize::try_from(desired.members).expect("invariant: at most nine members");
    let voting = members
        .iter()
        .filter(|row| row.ready && matches!(row.role, Role::Leader | Role::Voter))
        .count();
    if voting == declared && members.len() == declared {
        state(
            kind,
            True,
            "AsDeclared",
            format!("all {declared} members vote and serve"),
        )
    } else {
        state(
            kind,
            False,
            "NotAsDeclared",
            format!("{voting} of {declared} members vote and serve"),
        )
    }
}

fn available(observed: &Observed, ready_members: u32) -> ConditionState {
    use ConditionStatus::{False, True};
    let kind = ConditionKind::Available;
    if observed.consensus.is_some() && ready_members > 0 {
        state(kind, True, "Serving", format!("{ready_members} members serve"))
    } else if observed.consensus.is_some() {
        state(
            kind,
            False,
            "NoMemberReady",
            "there is a leader, and no member is ready to serve yet".to_owned(),
        )
    } else if observed.bootstrapped {
        state(
            kind,
            False,
            "NoLeader",
            "no member leads, so nothing can be read or written".to_owned(),
        )
    } else {
        state(
            kind,
            False,
            "NotBootstrapped",
            "the cluster does not exist yet".to_owned(),
        )
    }
}

fn progressing(desired: &Desired, observed: &Observed, plan: &Plan) -> ConditionState {
    use ConditionStatus::{False, True};
    let kind = ConditionKind::Progressing;
    if let Some(planned) = plan.steps.first() {
        let what = planned.step.describe(desired, observed);
        state(kind, True, planned.step.word(), format!("{what}: {}", planned.reason))
    } else if let Some(wait) = plan.waits.first() {
        let status = if wait.reason == "Paused" { False } else { True };
        state(kind, status, wait.reason, wait.message.clone())
    } else if let Some(wait) = plan.blocked.first() {
        state(kind, False, wait.reason, wait.message.clone())
    } else {
        state(kind, False, "AsDeclared", "nothing is left to do".to_owned())
    }
}

fn degraded(desired: &Desired, observed: &Observed, plan: &Plan, members: &[MemberRow]) -> ConditionState {
    use ConditionStatus::{False, True};
    let kind = ConditionKind::Degraded;
    if let Some(wait) = plan.blocked.first() {
        return state(kind, True, wait.reason, wait.message.clone());
    }
    let stuck = plan
        .waits
        .iter()
        .find(|wait| matches!(wait.reason, "MemberPending" | "MemberFailing" | "QuorumLost"));
    if let Some(Wait {
        reason,
        message,
        subject: _,
    }) = stuck
    {
        return state(kind, True, reason, message.clone());
    }
    if let Some(lost) = without_quorum(&observed.groups) {
        return state(kind, True, "QuorumLost", lost);
    }
    // A member of the configuration that does not serve; one that is only on its way in or out is no damage.
    let missing = members
        .iter()
        .find(|row| row.ordinal.0 < desired.members && !row.ready && matches!(row.role, Role::Leader | Role::Voter));
    match missing {
        Some(row) if observed.bootstrapped => state(
            kind,
            True,
            "MemberNotReady",
            format!("{} does not serve ({})", row.name, row.reason),
        ),
        Some(_) | None => state(kind, False, "NoDamage", "no voter is missing".to_owned()),
    }
}

fn quorum_healthy(observed: &Observed, plan: &Plan) -> ConditionState {
    use ConditionStatus::{False, True, Unknown};
    let kind = ConditionKind::QuorumHealthy;
    match &observed.consensus {
        Some(consensus) => {
            let voters = consensus.voters.len();
            let active = consensus
                .voters
                .iter()
                .filter(|voter| consensus.active.contains(*voter))
                .count();
            let needed = quorum(voters);
            let everywhere = match observed.groups.len() {
                0 | 1 => String::new(),
                groups => format!("; each of the {groups} groups has its quorum"),
            };
            if let Some(lost) = without_quorum(&observed.groups) {
                state(kind, False, "QuorumLost", lost)
            } else if active < needed {
                state(
                    kind,
                    False,
                    "QuorumLost",
                    format!("{active} of {voters} voters answer, {needed} are needed"),
                )
            } else if active == needed && voters > 2 {
                state(
                    kind,
                    True,
                    "NoSpareVoter",
                    format!("{active} of {voters} voters answer, and all of them are needed{everywhere}"),
                )
            } else {
                state(
                    kind,
                    True,
                    "QuorumHolds",
                    format!("{active} of {voters} voters answer, {needed} are needed{everywhere}"),
                )
            }
        }
        None if !observed.bootstrapped => state(
            kind,
            Unknown,
            "NotBootstrapped",
            "the cluster does not exist yet".to_owned(),
        ),
        None => {
            let cause = plan
                .blocked
                .iter()
                .chain(&plan.waits)
                .find(|wait| matches!(wait.reason, "DataLost" | "QuorumLost" | "NoLeader"));
            match cause {
                Some(wait) => state(kind, False, wait.reason, wait.message.clone()),
                None => state(kind, False, "NoLeader", "no member leads".to_owned()),
            }
        }
    }
}
