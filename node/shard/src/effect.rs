//! What goes into a host and what comes out.

use crate::book::Address;
use althing_raft::entry::{ConfigChange, ConfigState, ConfigStep, HardState, SnapshotMeta};
use althing_raft::ids::{GroupId, Index, LogPosition, MemberId, Now, Term};
use althing_raft::io::{RequestId, Soft};
use althing_raft::message::Message;
use althing_raft::roster::{Footprint, ReadSpec, ReadsState, SpecError};
use althing_store::ops::Revision;
use althing_wal::GroupWrite;
use bytes::Bytes;
use std::collections::BTreeMap;

/// Numbers the writes of a host, from 1, without gaps. Said back when durable; a later one covers all earlier ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct WriteToken(pub u64);

/// Numbers the questions of a host to sequencers, from 1: one is never used twice within a boot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Ticket(pub u64);

/// What can happen to a node. Request ids are the shell's, unique within a boot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A client wants a command replicated and applied.
    Propose {
        /// Answered under this name.
        request: RequestId,
        /// The group.
        group: GroupId,
        /// Opaque to the host.
        command: Bytes,
        /// When the client stops waiting.
        deadline: Now,
    },
    /// A client wants to read what is committed now.
    Read {
        /// Answered under this name.
        request: RequestId,
        /// The group.
        group: GroupId,
        /// The keys that it looks at.
        footprint: Footprint,
        /// When the client stops waiting.
        deadline: Now,
    },
    /// Somebody wants reads answered in another way.
    SetReads {
        /// Answered under this name.
        request: RequestId,
        /// The group.
        group: GroupId,
        /// How.
        spec: ReadSpec,
        /// When the asker stops waiting.
        deadline: Now,
    },
    /// Somebody wants the configuration changed.
    Configure {
        /// Answered under this name.
        request: RequestId,
        /// The group.
        group: GroupId,
        /// The change.
        step: ConfigStep,
        /// The state machine's part.
        context: Bytes,
        /// Refuse unless this is the present configuration.
        expected: Option<Index>,
        /// When the asker stops waiting.
        deadline: Now,
    },
    /// Somebody wants leadership elsewhere.
    Transfer {
        /// Answered under this name.
        request: RequestId,
        /// The group.
        group: GroupId,
        /// To whom; `None`: to the most advanced voter.
        to: Option<MemberId>,
        /// When the asker stops waiting.
        deadline: Now,
    },
    /// Somebody wants to know when everything is settled here that a sequencer gave out before. Only a leader says so.
    Resolve {
        /// Answered under this name, by [`Done::Read`].
        request: RequestId,
        /// The group.
        group: GroupId,
        /// When the asker stops waiting.
        deadline: Now,
    },
    /// Whether commands of a group get their revisions from a sequencer: as its state machine says, at boot and whenever it
    /// applies a change of it.
    Sequenced {
        /// The group.
        group: GroupId,
        /// Whether.
        on: bool,
    },
    /// The answer to [`Effect::Stamp`], exactly one for each.
    Stamped {
        /// The group.
        group: GroupId,
        /// As asked.
        ticket: Ticket,
        /// The first of as many revisions as were asked for, without gaps, all above whatever the sequencer had given out before it
        /// was asked. `None`: it could not be asked, or did not answer; what it may have given out is never used.
        first: Option<Revision>,
    },
    /// Nobody leads a group, and this member knows that nobody else can know of it earlier: it stands at once.
    Campaign {
        /// The group.
        group: GroupId,
    },
    /// A group has left this node: its requests are refused, and [`Effect::Retired`] says what must never be forgotten of it.
    /// The shell starts a group of this id again only when all effects of the former life are done with.
    Retire {
        /// The group.
        group: GroupId,
        /// Only if its log ends here; otherwise it stays, and [`Effect::Kept`] says so.
        ends_at: Option<LogPosition>,
    },
    /// A peer sent messages.
    Messages(Vec<Message>),
    /// A peer connected and said where it lives.
    PeerSeen {
        /// It.
        member: MemberId,
        /// Its address.
        address: Address,
    },
    /// The connection to a peer broke, or its queue overflowed.
    Unreachable(MemberId),
    /// A write and all before it are durable.
    Written(WriteToken),
    /// The state machine has applied up to here.
    Applied {
        /// The group.
        group: GroupId,
        /// The last entry applied.
        position: LogPosition,
    },
    /// The state machine's member table changed, or was read at boot.
    Members {
        /// The group.
        group: GroupId,
        /// Everybody's address.
        table: BTreeMap<MemberId, Address>,
    },
    /// The state machine holds everything up to here durably.
    Checkpointed {
        /// The group.
        group: GroupId,
        /// The last entry covered.
        position: LogPosition,
    },
    /// A snapshot went out, or failed to.
    SnapshotSent {
        /// The group.
        group: GroupId,
        /// Receiver.
        to: MemberId,
        /// Last index that it covers; `None` if it failed.
        covered: Option<Index>,
    },
    /// A whole snapshot came in and lies aside.
    SnapshotReceived {
        /// The group.
        group: GroupId,
        /// Sender.
        from: MemberId,
        /// The sender's term.
        term: Term,
        /// What it covers.
        meta: SnapshotMeta,
    },
    /// The state machine is now the snapshot, durably.
    Installed {
        /// The group.
        group: GroupId,
        /// What it covers.
        meta: SnapshotMeta,
    },
}

/// What the shell must do. In order within a kind; kinds may overtake each other, except that nothing may be sent to a state
/// machine out of order (`Apply`, `Install`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Append all of it to the log, sync, then say [`Event::Written`]. At most one per turn.
    Write {
        /// Its number.
        token: WriteToken,
        /// For the log.
        writes: Vec<GroupWrite>,
    },
    /// Entries up to here may leave the log.
    Compact {
        /// The group.
        group: GroupId,
        /// The last one that may go.
        up_to: LogPosition,
    },
    /// Send these, as one piece if they fit. At most one per peer and turn.
    Send {
        /// The peer.
        to: MemberId,
        /// Messages of all groups.
        messages: Vec<Message>,
    },
    /// Apply these in order, answer their waiters, then say [`Event::Applied`].
    Apply {
        /// The group.
        group: GroupId,
        /// Committed entries, contiguous.
        items: Vec<Item>,
    },
    /// Answer a request. No other answer follows.
    Complete {
        /// The request.
        request: RequestId,
        /// Its answer.
        result: Result<Done, Refusal>,
    },
    /// Build a snapshot and stream it.
    SendSnapshot {
        /// The group.
        group: GroupId,
        /// Receiver.
        to: MemberId,
        /// This member's term, which travels along.
        term: Term,
    },
    /// Make the received snapshot the state, then say [`Event::Installed`].
    Install {
        /// The group.
        group: GroupId,
        /// Which one.
        meta: SnapshotMeta,
    },
    /// A received snapshot is of no use (stale, or not from the leader): remove it.
    Discard {
        /// The group.
        group: GroupId,
        /// Which one.
        meta: SnapshotMeta,
    },
    /// Ask the group's sequencer for revisions, then say [`Event::Stamped`]. Several may be under way.
    Stamp {
        /// The group.
        group: GroupId,
        /// Say it back.
        ticket: Ticket,
        /// So many.
        count: u32,
    },
    /// A group is gone from this host. After all writes so far, its log is to be reset to the beginning with this hard state
    /// (`GroupWrite { hard_state, reset_to: Some(LogPosition::default()), .. }`), durably before a group of this id is started again with
    /// it: a member that comes back must neither vote twice in a term nor forget what it promised.
    Retired {
        /// The group.
        group: GroupId,
        /// Term, vote and promises; nothing of the log.
        hard_state: HardState,
    },
    /// A group that was to leave has gone on since, and stays.
    Kept {
        /// The group.
        group: GroupId,
    },
    /// Everybody else, with addresses: connect to these and to no others.
    Peers(BTreeMap<MemberId, Address>),
    /// Role, leader, term or configuration changed.
    Changed {
        /// The group.
        group: GroupId,
        /// How it is now.
        soft: Soft,
    },
}

/// A committed entry on its way into the state machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Item {
    /// Where it stands.
    pub position: LogPosition,
    /// What to do.
    pub work: Work,
}

impl Item {
    /// Bytes that it counts for in the backlog's bound.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.work {
            Work::Noop => 0,
            Work::Command { command, .. } => command.len(),
            Work::Configure { change, .. } => change.context.len(),
            Work::Reads { state } => state.spec.size_bytes(),
        }
    }
}

/// What a committed entry asks of the state machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Work {
    /// Nothing but to count it as applied.
    Noop,
    /// Run a command.
    Command {
        /// Without its envelope.
        command: Bytes,
        /// The revision that it takes, if a sequencer gave it one.
        stamp: Option<Revision>,
        /// Who waits for the result at this member.
        waiter: Option<RequestId>,
    },
    /// Record a configuration and its members.
    Configure {
        /// The change, with the member's name and addresses.
        change: ConfigChange,
        /// The configuration after it.
        state: ConfigState,
    },
    /// Record how reads are answered.
    Reads {
        /// From here on.
        state: ReadsState,
    },
}

/// Good answers of the host itself; results of commands come from the state machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Done {
    /// The state machine has what was committed when the read came: read it now.
    Read {
        /// The read index.
        index: Index,
    },
    /// The configuration changed by the entry at this index.
    Configured {
        /// The new guard.
        index: Index,
    },
    /// Reads are answered as the entry at this index says.
    ReadsSet {
        /// The entry.
        index: Index,
    },
    /// Somebody else leads.
    Transferred {
        /// Who.
        leader: MemberId,
    },
}

/// Why a request came to nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// No leader showed up in time; nothing was proposed.
    #[error("no leader is known; a quorum of voters may be down")]
    NoLeader,
    /// Only the leader takes this.
    #[error("this member does not lead")]
    NotLeader {
        /// Who does, if known.
        leader: Option<MemberId>,
    },
    /// Leadership moved while the request was under way; it may have taken effect.
    #[error("the leader changed; the request may or may not have taken effect")]
    LeaderChanged,
    /// No answer in time; it may have taken effect.
    #[error("no answer in time; the request may or may not have taken effect")]
    Timeout,
    /// No revision came in time; nothing was proposed.
    #[error("the sequencer of this keyspace did not answer in time")]
    NoStamp,
    /// A queue is full.
    #[error("too many requests are under way")]
    TooManyRequests,
    /// The configuration is another one than expected.
    #[error("the configuration is now the one of index {current}")]
    Conflict {
        /// The present guard.
        current: Index,
    },
    /// Another change is under way.
    #[error("another membership change is under way")]
    ChangeInFlight,
    /// The change makes no sense now (unknown member, last voter, already there).
    #[error("the change does not fit the present configuration")]
    ChangeInvalid,
    /// How reads should be answered makes no sense.
    #[error(transparent)]
    SpecInvalid(SpecError),
    /// The learner has not caught up.
    #[error("the learner has not caught up")]
    LearnerBehind,
    /// The target is no voter, or is the only one.
    #[error("leadership cannot go there: not a voter of this shard, or no other voter")]
    BadTransferee,
    /// This member is a learner.
    #[error("this member is a learner")]
    Learner,
    /// This member is not (or no more) in the configuration.
    #[error("this member is not in the configuration of the shard")]
    NotMember,
    /// There is no such group here.
    #[error("this node has no such shard")]
    NoGroup,
}
