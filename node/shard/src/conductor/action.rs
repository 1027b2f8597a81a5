//! What the shell is asked for. Every action may be lost, repeated and late: each says what must still be true when it happens.

use crate::map::{KeyspaceId, OperationId};
use crate::meta::MetaChange;
use althing_raft::entry::ConfigStep;
use althing_raft::ids::{GroupId, Index, LogPosition, MemberId};
use althing_raft::roster::ReadSpec;
use althing_store::ops::{Revision, ShardCommand};
use althing_store::partition::{RevisionSource, Territory};
use bytes::Bytes;

/// What to do now.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[must_use]
pub struct Plan {
    /// In order of urgency. Any part of it may be done, in any order and at the same time.
    pub steps: Vec<Step>,
    /// What should happen and cannot yet.
    pub pending: Vec<Pending>,
}

/// One action.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// What.
    pub action: Action,
    /// A sentence for people.
    pub reason: String,
}

/// Something that waits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pending {
    /// What it is about.
    pub subject: Subject,
    /// A sentence for people: what it waits for.
    pub reason: String,
}

/// What a sentence is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Subject {
    /// A keyspace.
    Keyspace(KeyspaceId),
    /// A shard without an operation.
    Shard(GroupId),
    /// An operation.
    Operation(OperationId),
    /// A member.
    Member(MemberId),
}

/// The kinds of action.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Change the map, if its version is still the one planned with: `change.into_txn(state.version)`. At most one per plan. What
    /// follows from it is in the next plan, after it has taken effect.
    Change(MetaChange),
    /// Start an empty replica, which waits for its leader. Nothing if the member has the group.
    Open {
        /// Where.
        member: MemberId,
        /// Which group.
        group: GroupId,
    },
    /// Give birth to a group whose first and only voter is this member. Nothing if the member has the group; refused if it ever
    /// had it (its log remembers), because the group may live on elsewhere.
    Create {
        /// Where.
        member: MemberId,
        /// Which group.
        group: GroupId,
        /// What it owns.
        territory: Territory,
        /// Where its revisions come from.
        source: RevisionSource,
    },
    /// Take a replica down and clear its state, if the guard holds where it is.
    Close {
        /// Where.
        member: MemberId,
        /// Which group.
        group: GroupId,
        /// What must hold.
        guard: CloseGuard,
    },
    /// Change a configuration, if it is still the one expected.
    Configure {
        /// Who leads.
        leader: MemberId,
        /// The group.
        group: GroupId,
        /// The change.
        step: ConfigStep,
        /// Index of the present configuration.
        expected: Index,
        /// For a newcomer: its name and addresses.
        context: Bytes,
    },
    /// Hand leadership over.
    Transfer {
        /// Who leads.
        leader: MemberId,
        /// The group.
        group: GroupId,
        /// To whom.
        to: MemberId,
    },
    /// Propose a command. It carries its own guard (an epoch or an operation).
    Command {
        /// Who leads.
        leader: MemberId,
        /// The group.
        group: GroupId,
        /// The command.
        command: ShardCommand,
    },
    /// Answer reads in another way.
    Reads {
        /// Who leads.
        leader: MemberId,
        /// The group.
        group: GroupId,
        /// How.
        spec: ReadSpec,
    },
    /// Make a sealed group's state durable up to here. That it is done shows as [`durable`](super::GroupSeen::durable).
    ConfirmSealed {
        /// Where.
        member: MemberId,
        /// The group.
        group: GroupId,
        /// Up to where at least.
        at: LogPosition,
    },
    /// Let a sequencer give out revisions above this one. Never takes back what it gave out: of several such actions, the
    /// largest counts.
    StartSequencer {
        /// Who leads it.
        leader: MemberId,
        /// The sequencer.
        group: GroupId,
        /// The last revision that was given out without it.
        above: Revision,
    },
}

/// What must hold at a member before it takes a replica down. Taking down a voter that has acknowledged something loses it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseGuard {
    /// The map has done with the group (`MetaState::is_forgotten`), and that stays so for ever; but it is the same start of the replica. A
    /// start may find another group of the node back at an entry that takes this one's state over, and needs it again.
    Forgotten {
        /// The start ([`life`](super::GroupSeen::life)).
        life: u64,
    },
    /// It is the same start of the replica and its log still ends here. All that it ever acknowledged up to here is committed by a
    /// configuration without its vote, so losing it takes nothing from any quorum, even if it was made a member again since.
    Unchanged {
        /// The start ([`life`](super::GroupSeen::life)).
        life: u64,
        /// The end of the log ([`last`](super::GroupSeen::last)).
        last: LogPosition,
    },
}
