//! Operations on shards, as recorded before their first step. Whoever conducts next goes on from the record.

use crate::map::KeyspaceId;
use crate::meta::rows;
use althing_raft::ids::{GroupId, LogPosition, MemberId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Something under way.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    /// In which keyspace.
    pub keyspace: KeyspaceId,
    /// What, and how far.
    pub work: Work,
    /// When it began, in seconds since 1970 by the clock of the member that conducted then. For people.
    #[serde(default)]
    pub since: u64,
    /// When its present phase began, likewise. Decides when a merge that hangs is given up, nothing else.
    #[serde(default)]
    pub phase_since: u64,
    /// Why, for people.
    #[serde(default)]
    pub reason: String,
}

/// The kinds of operation, each with its phase.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all_fields = "camelCase")]
pub enum Work {
    /// A keyspace's first shard is made on one member and grows from there.
    Create {
        /// The shard.
        #[serde(with = "rows::group")]
        group: GroupId,
        /// The only member that may ever give birth to this group: were another tried, there could be two.
        #[serde(with = "rows::member")]
        birthplace: MemberId,
        /// Where its replicas will be; sorted, the birthplace among them.
        #[serde(with = "rows::members")]
        to: Vec<MemberId>,
        /// Whether it is there.
        born: bool,
    },
    /// A dense keyspace gets a sequencer, before its only shard is cut.
    Sequence {
        /// The only shard.
        #[serde(with = "rows::group")]
        shard: GroupId,
        /// The new group that will give out revisions.
        #[serde(with = "rows::group")]
        sequencer: GroupId,
        /// As in [`Work::Create`].
        #[serde(with = "rows::member")]
        birthplace: MemberId,
        /// Where the sequencer's replicas will be; sorted, the birthplace among them.
        #[serde(with = "rows::members")]
        to: Vec<MemberId>,
        /// How far.
        phase: SequencePhase,
    },
    /// A shard is cut in two.
    Split {
        /// The shard, which keeps the left part.
        #[serde(with = "rows::group")]
        parent: GroupId,
        /// The group that gets the right part.
        #[serde(with = "rows::group")]
        child: GroupId,
        /// First partition key of the right part.
        #[serde(with = "rows::key")]
        at: Bytes,
        /// The parent's epoch before.
        epoch: u64,
        /// Whether it is to be stopped, if it is not too late.
        #[serde(default)]
        cancelled: bool,
    },
    /// A shard takes over its right neighbour.
    Merge {
        /// The one that stays.
        #[serde(with = "rows::group")]
        left: GroupId,
        /// The one that goes.
        #[serde(with = "rows::group")]
        right: GroupId,
        /// How far.
        phase: MergePhase,
    },
    /// A shard's replicas change.
    Move {
        /// The shard.
        #[serde(with = "rows::group")]
        group: GroupId,
        /// Where they will be; sorted.
        #[serde(with = "rows::members")]
        to: Vec<MemberId>,
    },
}

/// How far a keyspace is on its way to a sequencer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SequencePhase {
    /// The sequencer's group is being born.
    Birth,
    /// It gets its replicas.
    Grow,
    /// The shard takes stamped commands only from now on, and the sequencer starts above the last revision that it counted
    /// itself. There is no way back.
    Settle,
}

/// How far a merge is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all_fields = "camelCase")]
pub enum MergePhase {
    /// The right shard's replicas go where the left one's are.
    Align,
    /// The right shard stops serving.
    Seal,
    /// Every replica of it says that it has everything up to here durably.
    Confirm {
        /// The last position.
        #[serde(with = "rows::position")]
        at: LogPosition,
    },
    /// The left shard takes over. There is no way back.
    Absorb {
        /// The last position of the right shard.
        #[serde(with = "rows::position")]
        at: LogPosition,
    },
    /// The right shard serves again: the merge was given up.
    Unseal,
}

impl Work {
    /// The shards that it keeps busy.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupId> {
        match self {
            Self::Create { group, .. } | Self::Move { group, .. } => vec![*group],
            Self::Sequence { shard, sequencer, .. } => vec![*shard, *sequencer],
            Self::Split { parent, child, .. } => vec![*parent, *child],
            Self::Merge { left, right, .. } => vec![*left, *right],
        }
    }
}

impl Operation {
    /// The shards that it keeps busy.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupId> {
        self.work.groups()
    }

    /// Its kind, in one word for people.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match &self.work {
            Work::Create { .. } => "Create",
            Work::Sequence { .. } => "Sequence",
            Work::Split { .. } => "Split",
            Work::Merge { .. } => "Merge",
            Work::Move { .. } => "Move",
        }
    }

    /// Its phase, in one word for people.
    #[must_use]
    pub fn phase(&self) -> &'static str {
        match &self.work {
            Work::Create { born: false, .. } => "Birth",
            Work::Create { born: true, .. } => "Grow",
            Work::Sequence { phase, .. } => match phase {
                SequencePhase::Birth => "Birth",
                SequencePhase::Grow => "Grow",
                SequencePhase::Settle => "Settle",
            },
            Work::Split { cancelled: false, .. } => "Cut",
            Work::Split { cancelled: true, .. } => "Cancel",
            Work::Merge { phase, .. } => match phase {
                MergePhase::Align => "Align",
                MergePhase::Seal => "Seal",
                MergePhase::Confirm { .. } => "Confirm",
                MergePhase::Absorb { .. } => "Absorb",
                MergePhase::Unseal => "Cancel",
            },
            Work::Move { .. } => "Move",
        }
    }
}
