//! What members of one group say to each other.

use crate::entry::{Entry, SnapshotMeta};
use crate::ids::{GroupId, Index, LogPosition, MemberId, Term};
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
}
