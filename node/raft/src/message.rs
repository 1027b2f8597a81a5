//! What members of one group say to each other.

use crate::entry::{Entry, SnapshotMeta};
use crate::ids::{Epoch, GroupId, Index, LogPosition, MemberId, Now, Term};
use crate::roster::{Ballot, Roster};
use bytes::Bytes;

/// A message between two members of one group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// The group it is about.
    pub group: GroupId,
    /// Sender.
    pub from: MemberId,
    /// Receiver.
    pub to: MemberId,
    /// Sender's term; for `PreVote` and a granted `PreVoteReply` the term asked for.
    pub term: Term,
    /// Its content.
    pub body: Body,
}

/// The kinds of message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    /// "Would you vote for me in `term`?" Changes nothing at the receiver.
    PreVote {
        /// End of the sender's log.
        last: LogPosition,
    },
    /// Answer to `PreVote`; a refusal carries the refuser's own term (pitfall P4).
    PreVoteReply {
        /// Whether the vote would be given.
        granted: bool,
    },
    /// "This entry is committed": from a leader to its followers when no append says so, and between one that asked for a pre-vote and
    /// one that refused, both ways. A fact in every term, so the term of the message does not matter, and nobody answers it.
    Committed {
        /// The last entry that the sender knows to be committed.
        position: LogPosition,
    },
    /// Request for a vote.
    Vote {
        /// End of the sender's log.
        last: LogPosition,
        /// Set by a leadership transfer: the receiver must not refuse because it hears a leader.
        transfer: bool,
    },
    /// Answer to `Vote`.
    VoteReply {
        /// Whether the vote was given.
        granted: bool,
    },
    /// Replication.
    Append {
        /// The entry just before `entries`.
        prev: LogPosition,
        /// Entries to append; may be empty (a probe).
        entries: Vec<Entry>,
        /// The leader's commit index.
        commit: Index,
    },
    /// The receiver's log matches the leader's up to `last`, durably.
    AppendAccepted {
        /// Last index that matches.
        last: Index,
        /// The roster of this term that the sender takes part in, durably: all its promises for older ones are dead.
        stamp: Option<Epoch>,
    },
    /// The receiver has no entry like `prev`.
    AppendRejected {
        /// Index of the `prev` that was refused; older than `match` is stale (pitfall P28).
        rejected: Index,
        /// Where the two logs may agree, at the receiver.
        hint: LogPosition,
    },
    /// Liveness, commit index and a read round in one.
    Heartbeat {
        /// `min(match, commit)` of the receiver (pitfall P29).
        commit: Index,
        /// The read round that an answer confirms; 0 for none.
        round: u64,
    },
    /// Answer to `Heartbeat`.
    HeartbeatReply {
        /// The round of the heartbeat.
        round: u64,
        /// As in `AppendAccepted`. A leader tells its roster again to whoever does not name the present one.
        stamp: Option<Epoch>,
    },
    /// A heartbeat of a leader that has nothing to do, as far as it knows: "hibernate if you have nothing to do either."
    Hibernate {
        /// The leader's commit index: the end of its log, and of the receiver's.
        commit: Index,
        /// Names the time since the leader last had something to do.
        spell: u64,
    },
    /// Answer to `Hibernate`: the sender does so from now on, until it hears of its leader.
    Hibernating {
        /// As offered.
        spell: u64,
    },
    /// "This node is there": a sign of life for all groups that hibernate, between nodes and not between members of a group. The core never
    /// sees one.
    Alive {
        /// Drawn at random at the sender's boot: what it led before, it leads no more.
        boot: u64,
    },
    /// "A snapshot for you is on its way": the bytes travel outside the core.
    Snapshot {
        /// What it covers.
        meta: SnapshotMeta,
    },
    /// Leader to its successor: start an election at once.
    TimeoutNow,
    /// A follower asks the leader for a read index.
    ReadIndex {
        /// The asker's token, unique per try (pitfall P2).
        request: u64,
    },
    /// Answer to `ReadIndex`.
    ReadIndexReply {
        /// The token.
        request: u64,
        /// Apply up to here, then read; `None`: not leader or not ready, ask again.
        index: Option<Index>,
    },
    /// A follower hands a client's commands to the leader. Sent once, never again: a retry could apply twice.
    Forward {
        /// The commands.
        commands: Vec<Bytes>,
    },
    /// The leader's roster, until its receiver is known to take part in it.
    Roster {
        /// All of it; its term is the message's.
        roster: Roster,
    },
    /// "Promise me to take part in no newer roster than this one for a lease's length."
    LeaseRequest {
        /// The roster that the sender takes part in.
        ballot: Ballot,
        /// When the sender asks, by its own clock: its lease counts from here, so no delay can stretch it (pitfall P22).
        sent: Now,
        /// The sender's boot.
        incarnation: u64,
    },
    /// The promise.
    LeaseGrant {
        /// As asked.
        ballot: Ballot,
        /// As asked.
        sent: Now,
        /// As asked.
        asker: u64,
        /// The granting member's boot.
        incarnation: u64,
    },
    /// "Count no promise of mine for any roster before this one, also not one that is still under way."
    Revoke {
        /// The roster that the sender wants to move on to.
        below: Ballot,
        /// The sender's boot.
        incarnation: u64,
    },
    /// Answer to `Revoke`: it is so.
    Revoked {
        /// As asked.
        below: Ballot,
        /// As asked.
        incarnation: u64,
    },
}
