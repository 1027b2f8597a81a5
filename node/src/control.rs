//! What the conductor asks of members, as JSON: small, rare, and read by people when something is odd.
//!
//! The forms mirror `althing_shard::conductor`'s. Every one carries what must still be true when it happens.

use althing_raft::entry::{ConfigState, ConfigStep, JointTarget};
use althing_raft::ids::{GroupId, Index, LogPosition, MemberId, Term};
use althing_raft::io::Role;
use althing_raft::roster::ReadSpec;
use althing_raft::spec_codec::{decode_spec, encode_spec};
use althing_shard::conductor::{CloseGuard, GroupSeen, PeerSeen};
use althing_store::ops::Revision;
use althing_store::partition::{Partitioning, RevisionSource, Span, Territory};
use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One thing to do, or to tell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Control {
    /// Tell how your groups are; of those whose number is given, only if they are not as they were then.
    Observe {
        /// What the asker knows: a group's number by its id.
        known: BTreeMap<u64, u64>,
    },
    /// Open an empty replica.
    Open {
        /// Of which group.
        group: u64,
    },
    /// Give birth to a group.
    Create {
        /// Which.
        group: u64,
        /// What it owns.
        territory: TerritoryForm,
        /// Whether its revisions come from a sequencer.
        sequenced: bool,
    },
    /// Take a replica down.
    Close {
        /// Of which group.
        group: u64,
        /// The start of the replica, which it must be still.
        life: u64,
        /// The end of its log, where it must end still; absent if the map has done with the group.
        last: Option<PositionForm>,
    },
    /// Change a configuration that you lead.
    Configure {
        /// Of which group.
        group: u64,
        /// The change.
        step: StepForm,
        /// Index of the present one.
        expected: u64,
        /// For a newcomer: its name and addresses.
        context: Vec<u8>,
    },
    /// Hand leadership over.
    Transfer {
        /// Of which group.
        group: u64,
        /// To whom.
        to: u64,
    },
    /// Answer reads in another way.
    Reads {
        /// In which group.
        group: u64,
        /// How, as in the log.
        spec: Vec<u8>,
    },
    /// Make a sealed group's state durable.
    ConfirmSealed {
        /// Which.
        group: u64,
        /// Up to here at least.
        at: PositionForm,
    },
    /// Say `Done` if you do not drive this transaction over several shards, now or ever again.
    IsOver {
        /// Boot in which it began.
        nonce: u64,
        /// Its number.
        number: u64,
    },
    /// Let a sequencer give out revisions.
    StartSequencer {
        /// Which.
        group: u64,
        /// Above this one.
        above: i64,
    },
}

/// What is said to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Said {
    /// It is done.
    Done,
    /// It is not, and why.
    No(String),
    /// How things are.
    View(Box<ViewForm>),
}

/// A member's groups.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ViewForm {
    /// Its name.
    pub name: String,
    /// Where it runs.
    pub labels: BTreeMap<String, String>,
    /// All its groups, each with a number that changes whenever what is told of it does.
    pub groups: BTreeMap<u64, u64>,
    /// Those that the asker does not know as they are.
    pub changed: Vec<GroupForm>,
}

/// A position in a log: term and index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PositionForm(u64, u64);

impl From<LogPosition> for PositionForm {
    fn from(position: LogPosition) -> Self {
        Self(position.term.0, position.index.0)
    }
}

impl From<PositionForm> for LogPosition {
    fn from(PositionForm(term, index): PositionForm) -> Self {
        Self {
            term: Term(term),
            index: Index(index),
        }
    }
}

/// A territory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TerritoryForm {
    hash: Option<(u32, Option<u8>)>,
    start: Vec<u8>,
    end: Option<Vec<u8>>,
    epoch: u64,
}

impl From<&Territory> for TerritoryForm {
    fn from(territory: &Territory) -> Self {
        Self {
            hash: match territory.partitioning {
                Partitioning::Range => None,
                Partitioning::Hash { slots, prefix_segments } => Some((slots, prefix_segments)),
            },
            start: territory.span.start.to_vec(),
            end: territory.span.end.as_ref().map(|end| end.to_vec()),
            epoch: territory.epoch,
        }
    }
}

impl From<TerritoryForm> for Territory {
    fn from(form: TerritoryForm) -> Self {
        Self {
            partitioning: match form.hash {
                None => Partitioning::Range,
                Some((slots, prefix_segments)) => Partitioning::Hash { slots, prefix_segments },
            },
            span: Span {
                start: form.start.into(),
                end: form.end.map(Bytes::from),
            },
            epoch: form.epoch,
        }
    }
}

/// A step of a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepForm {
    /// Another learner.
    AddLearner(u64),
    /// A learner gets its vote.
    Promote(u64),
    /// Somebody goes.
    Remove(u64),
    /// Several change at once.
    EnterJoint(Vec<u64>, Vec<u64>),
    /// The end of that.
    LeaveJoint,
}

fn numbers<'a>(members: impl IntoIterator<Item = &'a MemberId>) -> Vec<u64> {
    members.into_iter().map(|member| member.0).collect()
}

fn members<T: FromIterator<MemberId>>(numbers: Vec<u64>) -> T {
    numbers.into_iter().map(MemberId).collect()
}

impl From<&ConfigStep> for StepForm {
    fn from(step: &ConfigStep) -> Self {
        match step {
            ConfigStep::AddLearner(member) => Self::AddLearner(member.0),
            ConfigStep::Promote(member) => Self::Promote(member.0),
            ConfigStep::Remove(member) => Self::Remove(member.0),
            ConfigStep::EnterJoint(JointTarget { voters, learners }) => {
                Self::EnterJoint(numbers(voters), numbers(learners))
            }
            ConfigStep::LeaveJoint => Self::LeaveJoint,
        }
    }
}

impl From<StepForm> for ConfigStep {
    fn from(form: StepForm) -> Self {
        match form {
            StepForm::AddLearner(member) => Self::AddLearner(MemberId(member)),
            StepForm::Promote(member) => Self::Promote(MemberId(member)),
            StepForm::Remove(member) => Self::Remove(MemberId(member)),
            StepForm::EnterJoint(voters, learners) => Self::EnterJoint(JointTarget {
                voters: members(voters),
                learners: members(learners),
            }),
            StepForm::LeaveJoint => Self::LeaveJoint,
        }
    }
}

/// A configuration.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ConfigForm {
    voters: Vec<u64>,
    outgoing: Vec<u64>,
    learners: Vec<u64>,
    index: u64,
}

impl From<&ConfigState> for ConfigForm {
    fn from(config: &ConfigState) -> Self {
        Self {
            voters: numbers(&config.voters),
            outgoing: numbers(&config.outgoing),
            learners: numbers(&config.learners),
            index: config.index.0,
        }
    }
}

impl From<ConfigForm> for ConfigState {
    fn from(form: ConfigForm) -> Self {
        Self {
            voters: members(form.voters),
            outgoing: members(form.outgoing),
            learners: members(form.learners),
            index: Index(form.index),
        }
    }
}

/// A role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RoleForm {
    /// No vote.
    Learner,
    /// Follows.
    Follower,
    /// Asks.
    PreCandidate,
    /// Stands.
    Candidate,
    /// Leads.
    Leader,
}

impl From<Role> for RoleForm {
    fn from(role: Role) -> Self {
        match role {
            Role::Learner => Self::Learner,
            Role::Follower => Self::Follower,
            Role::PreCandidate => Self::PreCandidate,
            Role::Candidate => Self::Candidate,
            Role::Leader => Self::Leader,
        }
    }
}

impl From<RoleForm> for Role {
    fn from(form: RoleForm) -> Self {
        match form {
            RoleForm::Learner => Self::Learner,
            RoleForm::Follower => Self::Follower,
            RoleForm::PreCandidate => Self::PreCandidate,
            RoleForm::Candidate => Self::Candidate,
            RoleForm::Leader => Self::Leader,
        }
    }
}

/// One replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GroupForm {
    /// Of which group.
    pub group: u64,
    life: u64,
    role: RoleForm,
    leader: Option<u64>,
    term: u64,
    config: ConfigForm,
    applied: PositionForm,
    last: PositionForm,
    durable: PositionForm,
    /// Member, last index known to match, whether it answers, whether it gets a snapshot.
    peers: Vec<(u64, u64, bool, bool)>,
    hibernating: bool,
    reads: Vec<u8>,
    territory: TerritoryForm,
    sequenced: bool,
    revision: i64,
    sealed: Option<u64>,
    transactions: usize,
    ceiling: Option<i64>,
    bytes: u64,
    keys: u64,
    writes_per_second: u64,
    middle: Option<Vec<u8>>,
}

/// As bytes of the log.
#[must_use]
pub fn spec_bytes(spec: &ReadSpec) -> Vec<u8> {
    let mut out = BytesMut::new();
    encode_spec(spec, &mut out);
    out.to_vec()
}

/// From bytes of the log; what cannot be read counts as the default, as with a member that knows fewer ways.
#[must_use]
pub fn spec_of(bytes: Vec<u8>) -> ReadSpec {
    decode_spec(&mut Bytes::from(bytes)).unwrap_or_default()
}

impl GroupForm {
    /// What is told of a replica.
    #[must_use]
    pub fn new(group: GroupId, seen: &GroupSeen) -> Self {
        Self {
            group: group.0,
            life: seen.life,
            role: seen.role.into(),
            leader: seen.leader.map(|leader| leader.0),
            term: seen.term.0,
            config: (&seen.config).into(),
            applied: seen.applied.into(),
            last: seen.last.into(),
            durable: seen.durable.into(),
            peers: seen
                .peers
                .iter()
                .map(|(member, peer)| (member.0, peer.matched.0, peer.active, peer.snapshot))
                .collect(),
            hibernating: seen.hibernating,
            reads: spec_bytes(&seen.reads),
            territory: (&seen.territory).into(),
            sequenced: seen.source == RevisionSource::Sequenced,
            revision: seen.revision.0,
            sealed: seen.sealed,
            transactions: seen.transactions,
            ceiling: seen.ceiling.map(|ceiling| ceiling.0),
            bytes: seen.bytes,
            keys: seen.keys,
            writes_per_second: seen.writes_per_second,
            middle: seen.middle.as_ref().map(|middle| middle.to_vec()),
        }
    }
}

impl From<GroupForm> for GroupSeen {
    fn from(form: GroupForm) -> Self {
        Self {
            life: form.life,
            role: form.role.into(),
            leader: form.leader.map(MemberId),
            term: Term(form.term),
            config: form.config.into(),
            applied: form.applied.into(),
            last: form.last.into(),
            durable: form.durable.into(),
            peers: form
                .peers
                .into_iter()
                .map(|(member, matched, active, snapshot)| {
                    let seen = PeerSeen {
                        matched: Index(matched),
                        active,
                        snapshot,
                    };
                    (MemberId(member), seen)
                })
                .collect(),
            hibernating: form.hibernating,
            reads: spec_of(form.reads),
            territory: form.territory.into(),
            source: source(form.sequenced),
            revision: Revision(form.revision),
            sealed: form.sealed,
            transactions: form.transactions,
            ceiling: form.ceiling.map(Revision),
            bytes: form.bytes,
            keys: form.keys,
            writes_per_second: form.writes_per_second,
            middle: form.middle.map(Bytes::from),
        }
    }
}

/// Where revisions come from.
#[must_use]
pub fn source(sequenced: bool) -> RevisionSource {
    if sequenced {
        RevisionSource::Sequenced
    } else {
        RevisionSource::Dense
    }
}

/// What must hold before a replica is taken down.
#[must_use]
pub fn guard_form(guard: CloseGuard) -> (u64, Option<PositionForm>) {
    match guard {
        CloseGuard::Forgotten { life } => (life, None),
        CloseGuard::Unchanged { life, last } => (life, Some(last.into())),
    }
}
