//! The core's only door: `Input` in, `Output` out.

use crate::entry::{
    ConfigChange, ConfigState, ConfigStep, Entry, HardState, LeaseState, Payload, ReadsChange, SnapshotMeta,
};
use crate::ids::{GroupId, Index, LogPosition, MemberId, Now, Term};
use crate::message::Message;
use crate::roster::{Ballot, Footprint, ReadsState, Roster};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::time::Duration;

/// Everything that correctness or liveness depends on; no defaults for these on purpose.
#[derive(Clone, Debug)]
pub struct Config {
    /// The group.
    pub group: GroupId,
    /// This member.
    pub id: MemberId,
    /// Shortest silence after which a follower campaigns; the longest is twice this.
    pub election_timeout: Duration,
    /// How often a leader speaks when it has nothing to say.
    pub heartbeat_interval: Duration,
    /// Seed for election jitter; the core draws no other randomness.
    pub seed: u64,
    /// Largest sum of entry sizes in one `Append`.
    pub append_bytes_max: usize,
    /// Appends under way per follower before the leader waits (flow control).
    pub inflight_appends_max: usize,
    /// Bytes of entries under way per follower before the leader waits; a single larger append may be under way alone.
    pub inflight_bytes_max: usize,
    /// Bytes of uncommitted entries above which proposals are dropped (pitfall P27).
    pub uncommitted_bytes_max: usize,
    /// How far the rate of any member's clock may be from true time, in parts per million; every lease is shorter for its holder
    /// and longer for who grants it by this much. From [`crate::roster::DRIFT_PPM_MIN`] to [`crate::roster::DRIFT_PPM_MAX`].
    pub drift_ppm: u32,
    /// Silence after which a responder no longer counts as one, so that writes go on; several heartbeats.
    pub demote_after: Duration,
    /// A group with nothing to do for so long hibernates; several heartbeats. `None`: this member never agrees to it.
    pub hibernate_after: Option<Duration>,
    /// Which keys a command writes. Pure, the same at every member and in every version, and never too little.
    pub footprint: fn(&Bytes) -> Footprint,
}

/// What a group starts from after a boot: the applied state plus the durable log behind it.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// Term, vote and commit from the WAL.
    pub hard_state: HardState,
    /// What the state machine has durably applied; the log may begin before or right after it.
    pub applied: SnapshotMeta,
    /// Position just before `entries[0]` (zero for a log from the beginning).
    pub log_start: LogPosition,
    /// The durable log, contiguous.
    pub entries: Vec<Entry>,
}

impl Start {
    /// Adds an entry, committed as the others are.
    pub fn then(&mut self, payload: Payload) {
        let last = self.entries.last().map_or(self.log_start, Entry::position);
        let index = last.index.next();
        self.entries.push(Entry {
            term: last.term,
            index,
            payload,
        });
        self.hard_state.commit = index;
    }

    /// A group that begins with a state instead of entries: a shard that was cut off another one, or a new one. Every first voter
    /// starts from the same.
    #[must_use]
    pub fn after(applied: SnapshotMeta) -> Self {
        let position = applied.position;
        Self {
            hard_state: HardState {
                term: position.term,
                vote: None,
                commit: position.index,
                lease: LeaseState::default(),
            },
            applied,
            log_start: position,
            entries: Vec::new(),
        }
    }

    /// Whether it knows no entry and no state: at most a term and a vote.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        self.entries.is_empty()
            && self.log_start == LogPosition::default()
            && self.applied.position == LogPosition::default()
    }

    /// The birth of a group whose first and only voter is `member`. Its configuration is in the log, as every later one, so
    /// that a member which joins with an empty log learns all of it. The shell makes this durable before it starts the group.
    #[must_use]
    pub fn birth(member: MemberId, context: Bytes) -> Self {
        let term = Term(1);
        let entry = |index, step| Entry {
            term,
            index,
            payload: Payload::Config(ConfigChange {
                request: 0,
                step,
                context: context.clone(),
            }),
        };
        let entries = vec![
            entry(Index(1), ConfigStep::AddLearner(member)),
            entry(Index(2), ConfigStep::Promote(member)),
        ];
        Self {
            hard_state: HardState {
                term,
                vote: None,
                commit: Index(2),
                lease: LeaseState::default(),
            },
            entries,
            ..Self::default()
        }
    }
}

/// A token of the shell, echoed in the output that answers it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId(pub u64);

/// What can happen to a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// The deadline in `Output::next_deadline` may have come.
    Tick,
    /// A peer spoke.
    Message(Message),
    /// Replicate these commands. At a follower they are forwarded to the leader, once.
    Propose(Vec<(RequestId, Bytes)>),
    /// Replicate these commands, which followers sent some time ago; only a leader takes them.
    Forwarded(Vec<Bytes>),
    /// Change the configuration; only a leader takes it.
    ProposeConfig(RequestId, ConfigChange),
    /// Answer reads in another way; only a leader takes it.
    ProposeReads(RequestId, ReadsChange),
    /// Linearizable reads want their index: each with the keys that it looks at. They came in before the `now` of this step.
    Read(Vec<(RequestId, Footprint)>),
    /// Hand leadership to a voter, or to the most advanced one.
    TransferLeader(Option<MemberId>),
    /// Ask for votes now instead of after a silence, if nobody is known to lead: somebody knows that nobody can. It asks first whether it
    /// would win, so that it disturbs nobody if that was wrong.
    Campaign,
    /// A `Persist` of this number is durable, and so is every earlier one.
    Persisted(PersistSeq),
    /// The state machine has applied up to here.
    Applied(Index),
    /// The state machine has installed a received snapshot (offered by `Output::install`).
    Installed(SnapshotMeta),
    /// The shell sent (or failed to send) a snapshot to a peer.
    SnapshotSent {
        /// Receiver.
        to: MemberId,
        /// Last index covered, `None` if it failed.
        covered: Option<Index>,
    },
    /// Entries up to here may be dropped: they are applied and durable in the state machine.
    Compact(Index),
    /// The peer's node shows no sign of life for an election timeout, or was started anew. To be said of each member's node that is silent:
    /// when it falls silent, and when this member begins to lead.
    Silent(MemberId),
    /// The peer's node shows signs of life again.
    Returned(MemberId),
    /// A connection to the peer broke: probe before streaming again.
    Unreachable(MemberId),
}

/// Numbers each `Persist` of a group, from 1, without gaps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PersistSeq(pub u64);

/// What the shell must write to the WAL, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Persist {
    /// Say it back in `Input::Persisted`.
    pub seq: PersistSeq,
    /// New hard state, if it changed.
    pub hard_state: Option<HardState>,
    /// Entries to append; `entries[0].index` may lie inside the stored log, whose tail is then replaced.
    pub entries: Vec<Entry>,
    /// The whole log is replaced by this position (a snapshot was installed).
    pub reset_to: Option<LogPosition>,
}

/// What the shell must do. Every field may be handled at once and in any order: messages that
/// must wait for a write are held back inside the core until `Input::Persisted` (pitfall P7).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[must_use]
pub struct Output {
    /// Write this.
    pub persist: Option<Persist>,
    /// Send these.
    pub messages: Vec<Message>,
    /// Apply these, in order. They are committed, and their configuration changes already hold in the core.
    pub apply: Vec<Entry>,
    /// Reads that may be served once the state machine has applied up to the index.
    pub reads: Vec<(RequestId, Index)>,
    /// Requests that will never be answered otherwise.
    pub dropped: Vec<(RequestId, DropReason)>,
    /// A peer needs a snapshot: build one from the state machine and stream it.
    pub send_snapshot: Vec<MemberId>,
    /// A snapshot announced by the leader should be installed (its bytes arrive outside the core).
    pub install: Option<SnapshotMeta>,
    /// The role, leader or configuration changed.
    pub changed: Option<Soft>,
    /// When to say `Tick` next; `None`: nothing is due.
    pub next_deadline: Option<Now>,
}

/// The volatile part of a group's state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Soft {
    /// What this member is.
    pub role: Role,
    /// Whom it follows, if it knows.
    pub leader: Option<MemberId>,
    /// Current term.
    pub term: Term,
    /// Current configuration.
    pub config: ConfigState,
}

/// Raft's roles.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Receives the log without a vote, or is not in the configuration.
    Learner,
    /// Follows.
    Follower,
    /// Asks whether it would win.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

/// Why a request came to nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DropReason {
    /// No leader is known.
    NoLeader,
    /// This member does not lead, and the request is for leaders only.
    NotLeader,
    /// Leadership was lost or handed over; the request may or may not take effect.
    LeaderChanged,
    /// Too many uncommitted bytes or waiting requests.
    Overloaded,
    /// Another membership change is not yet applied.
    ConfigInFlight,
    /// The change makes no sense for the present configuration (unknown member, last voter, ...).
    ConfigInvalid,
    /// The learner is too far behind to be promoted.
    LearnerBehind,
}

/// A follower as its leader sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProgressView {
    /// The follower.
    pub member: MemberId,
    /// Last index known to match.
    pub matched: Index,
    /// Whether it answered within an election timeout.
    pub recent_active: bool,
    /// Whether it is being sent a snapshot.
    pub snapshot: bool,
}

/// A look at a group, for status pages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    /// Role, leader, term, configuration.
    pub soft: Soft,
    /// Commit index.
    pub commit: Index,
    /// Last entry.
    pub last: LogPosition,
    /// First index still in the log.
    pub first: Index,
    /// Bytes of the log in memory.
    pub log_bytes: usize,
    /// Whether it hibernates: it sends nothing and no timer runs, until something comes.
    pub hibernates: bool,
    /// At a leader: members whose nodes are silent. The others hibernate without them.
    pub absent: BTreeSet<MemberId>,
    /// Followers and learners, at the leader; empty elsewhere.
    pub progress: Vec<ProgressView>,
    /// Read leases.
    pub lease: LeaseView,
}

/// A promise or a grant, as an onlooker sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Promise {
    /// The other side.
    pub peer: MemberId,
    /// For this roster.
    pub ballot: Ballot,
    /// Alive before this moment of this member's clock.
    pub until: Now,
}

/// How reads went, since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReadCounts {
    /// Answered from this member's state without a message.
    pub local: u64,
    /// Of these, after waiting for the newest write of their keys to commit.
    pub held: u64,
    /// Held ones that were asked of the leader after all.
    pub bounced: u64,
    /// Asked of the leader, or confirmed by a round of it.
    pub by_index: u64,
}

/// A look at read leases.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseView {
    /// The specification.
    pub reads: ReadsState,
    /// The roster that this member takes part in, as far as it knows it.
    pub roster: Option<Roster>,
    /// Its ballot, durable or about to be.
    pub adopted: Ballot,
    /// A newer one that waits for promises to die.
    pub pending: Option<Ballot>,
    /// At a leader: the roster that commits count under.
    pub minted: Option<Ballot>,
    /// Whether this member would answer a read locally now.
    pub open: bool,
    /// What it promised to others and to nobody in particular (a boot forgets whom), until when.
    pub promises: Vec<Promise>,
    /// Set after a boot: some promise to anybody may be alive until then.
    pub quarantine: Option<Now>,
    /// What others promised.
    pub grants: Vec<Promise>,
    /// Reads that wait for a write.
    pub holding: usize,
    /// Counts.
    pub counts: ReadCounts,
}
