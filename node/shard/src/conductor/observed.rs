//! What members say of themselves and their groups, gathered by whoever conducts.

use althing_raft::entry::ConfigState;
use althing_raft::ids::{GroupId, Index, LogPosition, MemberId, Now, Term};
use althing_raft::io::Role;
use althing_raft::roster::ReadSpec;
use althing_store::ops::Revision;
use althing_store::partition::{RevisionSource, Territory};
use bytes::Bytes;
use std::collections::BTreeMap;

/// Everything seen. Old views do no harm (every action is checked again where it happens) but a plan made of them comes to little.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Observed {
    /// When this conductor began to look. A member that it never heard from counts as silent since then.
    pub since: Now,
    /// Seconds since 1970 by the wall clock of this member. Recorded with operations for people, and decides when a hanging merge
    /// is given up; never more.
    pub wall_seconds: u64,
    /// Members of the meta group's configuration, voters and learners: those that exist.
    pub members: BTreeMap<MemberId, MemberView>,
}

/// One member.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MemberView {
    /// Its name.
    pub name: String,
    /// Labels that it was started with.
    pub labels: BTreeMap<String, String>,
    /// What the member tables of groups say of it (name and addresses), as it goes into a configuration change.
    pub context: Bytes,
    /// When it last answered, by the clock of the conductor.
    pub heard: Option<Now>,
    /// Its groups at that time, group 0 too.
    pub groups: BTreeMap<GroupId, GroupSeen>,
}

/// One replica, as its own member sees it. All of it is of one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupSeen {
    /// Names this start of the replica: another number after every restart of the process and every time that it is opened anew.
    pub life: u64,
    /// Its role.
    pub role: Role,
    /// Whom it follows.
    pub leader: Option<MemberId>,
    /// Its term.
    pub term: Term,
    /// The configuration as of `applied`.
    pub config: ConfigState,
    /// What its state machine has applied.
    pub applied: LogPosition,
    /// The end of its log.
    pub last: LogPosition,
    /// What its state machine holds durably.
    pub durable: LogPosition,
    /// The other replicas, at the leader; empty elsewhere.
    pub peers: BTreeMap<MemberId, PeerSeen>,
    /// Whether it sleeps: then every replica has everything, and `peers` is as it was when it fell asleep.
    pub hibernating: bool,
    /// How reads are answered.
    pub reads: ReadSpec,
    /// What it owns.
    pub territory: Territory,
    /// Where its revisions come from.
    pub source: RevisionSource,
    /// Its current revision.
    pub revision: Revision,
    /// The operation that sealed it.
    pub sealed: Option<u64>,
    /// Transactions across shards that it has prepared and not finished, and decisions that it has to remember.
    pub transactions: usize,
    /// Of a sequencer: the ceiling of what it may give out; `None`: it was not started.
    pub ceiling: Option<Revision>,
    /// Bytes of its rows.
    pub bytes: u64,
    /// Its keys.
    pub keys: u64,
    /// Writes in the last second or so.
    pub writes_per_second: u64,
    /// The partition key that halves its bytes; `None`: too few keys, or not known here (it costs a walk, so only leaders look).
    pub middle: Option<Bytes>,
}

/// Another replica, as the leader sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PeerSeen {
    /// Last index known to match.
    pub matched: Index,
    /// Whether it answered within an election timeout.
    pub active: bool,
    /// Whether it is being sent a snapshot.
    pub snapshot: bool,
}
