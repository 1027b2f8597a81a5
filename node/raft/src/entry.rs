//! What a log holds: entries, hard state, configuration.

use crate::ids::{Index, LogPosition, MemberId, Term};
use crate::mutant::Mutant;
use crate::roster::{Ballot, ReadSpec, ReadsState};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::time::Duration;

/// One log entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Term in which a leader created it.
    pub term: Term,
    /// Its place in the log.
    pub index: Index,
    /// What it says.
    pub payload: Payload,
}

impl Entry {
    /// Where it stands.
    #[must_use]
    pub fn position(&self) -> LogPosition {
        LogPosition {
            term: self.term,
            index: self.index,
        }
    }

    /// Bytes that it counts for in every size limit.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        /// Term, index, kind and length prefix.
        const OVERHEAD_BYTES: usize = 24;
        OVERHEAD_BYTES
            + match &self.payload {
                Payload::Noop => 0,
                Payload::Command(bytes) => bytes.len(),
                Payload::Config(change) => change.size_bytes(),
                Payload::Reads(change) => change.spec.size_bytes(),
            }
    }
}

/// The content of an entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Payload {
    /// A new leader's first entry: committing it commits what earlier terms left (pitfall P1).
    Noop,
    /// A command of the state machine, opaque to consensus.
    Command(Bytes),
    /// A change of the configuration.
    Config(ConfigChange),
    /// A change of how reads are answered.
    Reads(ReadsChange),
}

/// Another way to answer reads, effective when applied. Any number may be under way: the last one holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadsChange {
    /// Names the request, so that whoever asked can be answered when it is applied; 0 if nobody waits.
    pub request: u64,
    /// What is wanted from now on.
    pub spec: ReadSpec,
}

/// One step of a membership change. One at a time per group, effective when applied (pitfall P8).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigChange {
    /// Names the request, so that whoever asked can be answered when it is applied; 0 if nobody waits.
    pub request: u64,
    /// What changes.
    pub step: ConfigStep,
    /// The state machine's part, opaque to consensus: the member's name and addresses.
    pub context: Bytes,
}

impl ConfigChange {
    fn size_bytes(&self) -> usize {
        let named = match &self.step {
            ConfigStep::AddLearner(_) | ConfigStep::Promote(_) | ConfigStep::Remove(_) => 1,
            ConfigStep::EnterJoint(target) => target.voters.len() + target.learners.len(),
            ConfigStep::LeaveJoint => 0,
        };
        24 + named * size_of::<MemberId>() + self.context.len()
    }
}

/// The kinds of change: single-member steps, and joint consensus for several members at once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ConfigStep {
    /// Adds a member that receives the log and has no vote. Of a present learner: updates its context only.
    AddLearner(MemberId),
    /// Gives a learner its vote.
    Promote(MemberId),
    /// Removes a voter or a learner.
    Remove(MemberId),
    /// Moves to the target through a joint configuration, in which the voters of before and the target's must both agree
    /// (Raft thesis, section 4.3). The leader leaves it by itself.
    EnterJoint(JointTarget),
    /// Ends a joint configuration: the target alone holds. Proposed by leaders only (pitfall P11).
    LeaveJoint,
}

/// Everybody who belongs after a joint change. Only present members may be named: a newcomer is added as a learner first,
/// which brings its addresses and its log. Whoever is not named leaves; a voter among the learners loses its vote.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct JointTarget {
    /// Members with a vote; at least one.
    pub voters: BTreeSet<MemberId>,
    /// Members without one; none of the voters.
    pub learners: BTreeSet<MemberId>,
}

/// Who belongs to a group. What follows from a change is in `config.rs`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ConfigState {
    /// Members with a vote. While the configuration is joint: those of its target.
    pub voters: BTreeSet<MemberId>,
    /// While the configuration is joint, the voters of before; otherwise empty. Each half must agree by itself.
    pub outgoing: BTreeSet<MemberId>,
    /// Members without a vote; those who are also in `outgoing` have theirs until the joint configuration is left.
    pub learners: BTreeSet<MemberId>,
    /// Index of the entry that made it; 0 for the one a group is born with.
    pub index: Index,
}

impl ConfigState {
    /// Whether these members decide: a majority of the voters is among them, and of the outgoing voters too.
    #[must_use]
    pub fn is_majority(&self, counts: impl Fn(MemberId) -> bool) -> bool {
        self.reached_by_majority(|member| u8::from(counts(member))) > 0
    }

    /// The largest value that a majority of the voters has reached, in both halves of a joint configuration; the default
    /// value if there is no voter. The one place that knows how votes, copies and confirmations are counted.
    #[must_use]
    pub fn reached_by_majority<T: Ord + Copy + Default>(&self, reached: impl Fn(MemberId) -> T) -> T {
        let half = |voters: &BTreeSet<MemberId>| {
            let mut values: Vec<T> = voters.iter().map(|voter| reached(*voter)).collect();
            values.sort_unstable_by(|a, b| b.cmp(a));
            let spared = usize::from(Mutant::HalfIsMajority.active() && !values.is_empty());
            values.get((voters.len() - spared) / 2).copied().unwrap_or_default()
        };
        let incoming = half(&self.voters);
        if self.is_joint() && !Mutant::JointCountsOneHalf.active() {
            incoming.min(half(&self.outgoing))
        } else {
            incoming
        }
    }
}

/// What must be durable before a vote or an acknowledgement leaves (Raft paper, figure 2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HardState {
    /// Latest term seen.
    pub term: Term,
    /// Who got this member's vote in `term`.
    pub vote: Option<MemberId>,
    /// Known commit index; a hint, recoverable (pitfall P16).
    pub commit: Index,
    /// What this member promised about rosters.
    pub lease: LeaseState,
}

/// The durable part of read leases. All zero in a group that never had any.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LeaseState {
    /// Boots of this member since its group had leases: tells a grant of this life from an earlier one's.
    pub incarnation: u64,
    /// The newest roster that this member takes part in. Never goes back, also not in a crash: whoever said that its
    /// promises for older rosters are dead must not make new ones.
    pub adopted: Ballot,
    /// Longest time for which it ever promised anything. A boot waits so long, because it forgot to whom (pitfall P24).
    pub promise_max: Duration,
    /// The configuration that the adopted roster was made for: only its members can hold promises.
    pub config: Index,
}

/// The state a group starts from: what a snapshot or the applied state machine says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SnapshotMeta {
    /// Last entry that it covers.
    pub position: LogPosition,
    /// Configuration as of that entry.
    pub config: ConfigState,
    /// How reads are answered as of that entry.
    pub reads: ReadsState,
}
