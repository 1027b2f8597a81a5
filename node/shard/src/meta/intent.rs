//! What somebody wishes, checked against the map and made a change of it. The conductor does the rest.

use crate::map::{
    KeyspaceId, KeyspaceRecord, KeyspaceState, MemberRecord, MemberState, MergePhase, Operation, OperationId,
    SequencePhase, ShardRecord, Work,
};
use crate::meta::{Counters, MetaChange, MetaError, MetaState};
use althing_raft::ids::{GroupId, MemberId};
use althing_raft::roster::ReadSpec;
use althing_store::partition::{Partitioning, RevisionSource};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// Keyspaces of a cluster: each costs a group and an endpoint on every node.
pub const KEYSPACES_MAX: usize = 256;
/// Shards of a keyspace: the map of all of them is in every node's memory and read as a whole.
pub const SHARDS_MAX: u32 = 16_384;
/// Replicas of a shard that vote. More make every commit slower and no cluster safer.
pub const REPLICAS_MAX: u32 = 7;
/// Slots of a keyspace: far more than shards, so that these stay of a size; still a small number.
pub const SLOTS_MAX: u32 = 1 << 20;
/// Keys that somebody may want a keyspace cut at.
pub const SPLIT_KEYS_MAX: usize = 1_024;
/// Bytes of one of them: etcd's keys are rarely longer than this, and a boundary is copied often.
const SPLIT_KEY_BYTES_MAX: usize = 1_024;
/// Characters of a name: a DNS label, because it becomes one.
const NAME_CHARS_MAX: usize = 63;
/// Labels of a member, and bytes of each name and value: they are for placement, not for notes.
const LABELS_MAX: usize = 64;
const LABEL_BYTES_MAX: usize = 256;

/// What somebody wants of a keyspace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct KeyspaceSpec {
    /// Shards, at least one.
    pub shards: u32,
    /// Replicas of each; `None`: on every member.
    pub replicas: Option<u32>,
    /// How keys become partition keys; `None`: as it is, or by range.
    pub partitioning: Option<Partitioning>,
    /// Where it is cut first.
    pub split_keys: Vec<Bytes>,
    /// Port of its own endpoint.
    pub port: Option<u16>,
    /// Bytes that it may take.
    pub quota_bytes: Option<u64>,
    /// How linearizable reads are answered.
    pub reads: Option<ReadSpec>,
}

fn change_keyspace(
    state: &MetaState,
    id: KeyspaceId,
    record: &KeyspaceRecord,
    wanted: KeyspaceRecord,
) -> Result<MetaChange, MetaError> {
    match record.state {
        KeyspaceState::Creating | KeyspaceState::Active => {}
        KeyspaceState::Dropping => {
            return Err(MetaError::Dropping {
                name: record.name.clone(),
                keyspace: id,
            });
        }
    }
    let mut change = MetaChange::default();
    if wanted.partitioning != record.partitioning {
        // One shard owns every key whatever the partitioning, so nothing moves; the epoch says that its territory is another.
        let shards = state.shards_of(id);
        let busy = state.operations.values().any(|operation| operation.keyspace == id);
        match shards.as_slice() {
            [] | [_] if !busy => {}
            _ => {
                return Err(invalid(
                    "partitioning",
                    format!(
                        "{:?} cannot change while keyspace {:?} has {} shards or an operation is under way; scale it to 1 shard first",
                        record.partitioning,
                        record.name,
                        shards.len()
                    ),
                ));
            }
        }
        for (group, shard) in shards {
            let shard = ShardRecord {
                span: wanted.partitioning.whole(),
                epoch: shard.epoch + 1,
                ..shard.clone()
            };
            change.shards.insert(group, Some(shard));
        }
    }
    if wanted != *record {
        change.keyspaces.insert(id, Some(wanted));
    }
    Ok(change)
}

fn invalid(field: &'static str, what: String) -> MetaError {
    MetaError::Invalid { field, what }
}

fn check_name(name: &str) -> Result<(), MetaError> {
    let letter = |char: char| char.is_ascii_lowercase() || char.is_ascii_digit();
    let ends = name.starts_with(letter) && name.ends_with(letter);
    if ends && name.len() <= NAME_CHARS_MAX && name.chars().all(|char| letter(char) || char == '-') {
        return Ok(());
    }
    Err(invalid(
        "name",
        format!("{name:?} must be 1 to {NAME_CHARS_MAX} small letters, digits and inner dashes"),
    ))
}

fn check_spec(spec: &KeyspaceSpec, partitioning: Partitioning) -> Result<(), MetaError> {
    let shards_most = match partitioning {
        Partitioning::Range => SHARDS_MAX,
        Partitioning::Hash { slots, .. } => {
            if slots == 0 || slots > SLOTS_MAX {
                return Err(invalid("slots", format!("{slots} must be from 1 to {SLOTS_MAX}")));
            }
            SHARDS_MAX.min(slots)
        }
    };
    if spec.shards == 0 || spec.shards > shards_most {
        return Err(invalid(
            "shards",
            format!("{} must be from 1 to {shards_most}", spec.shards),
        ));
    }
    if let Some(replicas) = spec.replicas
        && (replicas == 0 || replicas > REPLICAS_MAX)
    {
        return Err(invalid(
            "replicas",
            format!("{replicas} must be from 1 to {REPLICAS_MAX}"),
        ));
    }
    let hashed = partitioning != Partitioning::Range;
    if hashed && !spec.split_keys.is_empty() {
        return Err(invalid(
            "splitKeys",
            "only a keyspace partitioned by range is cut at keys".to_owned(),
        ));
    }
    if spec.split_keys.len() > SPLIT_KEYS_MAX {
        return Err(invalid(
            "splitKeys",
            format!(
                "{} are too many, at most {SPLIT_KEYS_MAX} are allowed",
                spec.split_keys.len()
            ),
        ));
    }
    let odd = |key: &&Bytes| key.is_empty() || key.len() > SPLIT_KEY_BYTES_MAX;
    if let Some(key) = spec.split_keys.iter().find(odd) {
        return Err(invalid(
            "splitKeys",
            format!("one has {} bytes, it must have 1 to {SPLIT_KEY_BYTES_MAX}", key.len()),
        ));
    }
    match spec.quota_bytes {
        Some(0) => Err(invalid(
            "quotaBytes",
            "0 leaves no room; leave it out for no limit".to_owned(),
        )),
        Some(_) | None => Ok(()),
    }
}

impl MetaState {
    /// The first map: one keyspace `default` of one shard, which is [`GroupId::FIRST_SHARD`] and there already, on these members.
    ///
    /// # Errors
    /// If there is a map, or no member.
    pub fn genesis(&self, members: &BTreeMap<MemberId, MemberRecord>) -> Result<MetaChange, MetaError> {
        if self.version > 0 {
            return Err(MetaError::Exists { version: self.version });
        }
        if members.is_empty() {
            return Err(MetaError::Invalid {
                field: "members",
                what: "a map needs at least one member".to_owned(),
            });
        }
        let keyspace = KeyspaceRecord {
            name: "default".to_owned(),
            partitioning: Partitioning::Range,
            source: RevisionSource::Dense,
            sequencer: None,
            shards: 1,
            replicas: None,
            split_keys: Vec::new(),
            port: None,
            quota_bytes: None,
            full: false,
            reads: None,
            state: KeyspaceState::Active,
        };
        let shard = ShardRecord {
            keyspace: KeyspaceId::DEFAULT,
            span: keyspace.partitioning.whole(),
            // A group that never heard of territories owns everything at epoch 0.
            epoch: 0,
            replicas: members.keys().copied().collect(),
            sequencer: false,
            parent: None,
        };
        Ok(MetaChange {
            members: members.iter().map(|(id, record)| (*id, Some(record.clone()))).collect(),
            keyspaces: BTreeMap::from([(KeyspaceId::DEFAULT, Some(keyspace))]),
            shards: BTreeMap::from([(GroupId::FIRST_SHARD, Some(shard))]),
            operations: BTreeMap::new(),
            counters: Some(Counters {
                next_group: GroupId::FIRST_SHARD.0 + 1,
                next_keyspace: KeyspaceId::DEFAULT.0 + 1,
                next_operation: 1,
            }),
        })
    }

    /// Makes a keyspace, or changes what is wanted of it. An empty change: it is so already.
    ///
    /// # Errors
    /// If the wish makes no sense, or cannot be had: how a keyspace is partitioned can only change while it has one shard.
    pub fn put_keyspace(&self, name: &str, spec: &KeyspaceSpec) -> Result<MetaChange, MetaError> {
        let present = self.keyspace(name);
        let partitioning = spec
            .partitioning
            .or(present.map(|(_, record)| record.partitioning))
            .unwrap_or_default();
        check_name(name)?;
        check_spec(spec, partitioning)?;
        if let Some(port) = spec.port {
            let other = self
                .keyspaces
                .values()
                .find(|other| other.name != name && other.port == Some(port));
            if let Some(other) = other {
                return Err(MetaError::Taken {
                    what: format!("port {port}"),
                    other: other.name.clone(),
                });
            }
        }
        let mut split_keys = spec.split_keys.clone();
        split_keys.sort();
        split_keys.dedup();
        let wanted = KeyspaceRecord {
            name: name.to_owned(),
            partitioning,
            source: present.map_or(RevisionSource::Dense, |(_, record)| record.source),
            sequencer: present.and_then(|(_, record)| record.sequencer),
            shards: spec.shards,
            replicas: spec.replicas,
            split_keys,
            port: spec.port,
            quota_bytes: spec.quota_bytes,
            full: present.is_some_and(|(_, record)| record.full),
            reads: spec.reads.clone(),
            state: present.map_or(KeyspaceState::Creating, |(_, record)| record.state),
        };
        match present {
            Some((id, record)) => change_keyspace(self, id, record, wanted),
            None if self.keyspaces.len() >= KEYSPACES_MAX => Err(invalid(
                "name",
                format!("there are {KEYSPACES_MAX} keyspaces, which is the most; drop one first"),
            )),
            None => Ok(MetaChange {
                keyspaces: BTreeMap::from([(KeyspaceId(self.counters.next_keyspace), Some(wanted))]),
                counters: Some(Counters {
                    next_keyspace: self.counters.next_keyspace + 1,
                    ..self.counters
                }),
                ..MetaChange::default()
            }),
        }
    }

    /// Drops a keyspace with everything in it. An empty change: it is going already.
    ///
    /// # Errors
    /// If there is none, or it is the default one.
    pub fn drop_keyspace(&self, name: &str) -> Result<MetaChange, MetaError> {
        let (id, record) = self
            .keyspace(name)
            .ok_or_else(|| MetaError::NoKeyspace { name: name.to_owned() })?;
        if id == KeyspaceId::DEFAULT {
            return Err(invalid(
                "name",
                format!("keyspace {name:?} is the cluster's own and cannot be dropped"),
            ));
        }
        let mut change = MetaChange::default();
        if record.state != KeyspaceState::Dropping {
            let record = KeyspaceRecord {
                state: KeyspaceState::Dropping,
                ..record.clone()
            };
            change.keyspaces.insert(id, Some(record));
        }
        Ok(change)
    }

    /// Takes all replicas from a member, or (`Active`) lets it have some again. An empty change: it is so already.
    ///
    /// # Errors
    /// If there is no such member.
    pub fn set_member_state(&self, member: MemberId, state: MemberState) -> Result<MetaChange, MetaError> {
        self.change_member(member, |record| record.state = state)
    }

    /// Says where a member runs. An empty change: it is so already.
    ///
    /// # Errors
    /// If there is no such member, or labels are too many or too long.
    pub fn set_labels(&self, member: MemberId, labels: BTreeMap<String, String>) -> Result<MetaChange, MetaError> {
        let long = |text: &String| text.len() > LABEL_BYTES_MAX;
        if labels.len() > LABELS_MAX || labels.iter().any(|(name, value)| long(name) || long(value)) {
            return Err(invalid(
                "labels",
                format!("a member has at most {LABELS_MAX}, each name and value of at most {LABEL_BYTES_MAX} bytes"),
            ));
        }
        self.change_member(member, |record| record.labels = labels)
    }

    fn change_member(&self, member: MemberId, edit: impl FnOnce(&mut MemberRecord)) -> Result<MetaChange, MetaError> {
        let present = self.members.get(&member).ok_or(MetaError::NoMember { member })?;
        let mut record = present.clone();
        edit(&mut record);
        let mut change = MetaChange::default();
        if record != *present {
            change.members.insert(member, Some(record));
        }
        Ok(change)
    }

    /// Stops an operation and goes back to what was before. What the conductor still finds necessary it begins again.
    ///
    /// # Errors
    /// If there is no such operation, or it is past the point of no return.
    pub fn cancel(&self, operation: OperationId) -> Result<MetaChange, MetaError> {
        let present = self
            .operations
            .get(&operation)
            .ok_or(MetaError::NoOperation { operation })?;
        let late = |why| Err(MetaError::TooLate { operation, why });
        let work = match &present.work {
            Work::Create { .. } => return late("a keyspace without its first shard is of no use; drop the keyspace"),
            Work::Sequence { phase, .. } => match phase {
                SequencePhase::Birth | SequencePhase::Grow => None,
                SequencePhase::Settle => return late("the shard takes its revisions from the sequencer now"),
            },
            // Whether the cut or the cancellation comes first is decided in the shard's own log.
            Work::Split { .. } => Some(present.work.clone().cancelled()),
            Work::Merge { left, right, phase } => match phase {
                MergePhase::Align => None,
                MergePhase::Seal | MergePhase::Confirm { .. } | MergePhase::Unseal => Some(Work::Merge {
                    left: *left,
                    right: *right,
                    phase: MergePhase::Unseal,
                }),
                MergePhase::Absorb { .. } => return late("the left shard takes over"),
            },
            Work::Move { .. } => None,
        };
        Ok(self.end_or_continue(operation, present, work))
    }

    fn end_or_continue(&self, id: OperationId, present: &Operation, work: Option<Work>) -> MetaChange {
        let mut change = MetaChange::default();
        if let Work::Sequence { sequencer, .. } = &present.work {
            change.shards.insert(*sequencer, None);
            if let Some(record) = self.keyspaces.get(&present.keyspace) {
                let record = KeyspaceRecord {
                    sequencer: None,
                    ..record.clone()
                };
                change.keyspaces.insert(present.keyspace, Some(record));
            }
        }
        let row = work.map(|work| Operation {
            work,
            ..present.clone()
        });
        if row.as_ref() != Some(present) {
            change.operations.insert(id, row);
        }
        change
    }

    /// The groups that have or get a replica on a member, as far as the map knows. A member leaves the cluster when there are
    /// none and it says itself that it holds none.
    #[must_use]
    pub fn placed_on(&self, member: MemberId) -> BTreeSet<GroupId> {
        let listed = self.shards.iter().filter(|(_, shard)| shard.replicas.contains(&member));
        let mut groups: BTreeSet<GroupId> = listed.map(|(group, _)| *group).collect();
        for operation in self.operations.values() {
            let target = match &operation.work {
                Work::Move { group, to } | Work::Create { group, to, .. } => Some((*group, to)),
                Work::Sequence { sequencer, to, .. } => Some((*sequencer, to)),
                Work::Split { .. } | Work::Merge { .. } => None,
            };
            if let Some((group, to)) = target
                && to.contains(&member)
            {
                groups.insert(group);
            }
        }
        groups
    }
}

impl Work {
    /// A split that should not happen any more; anything else as it is.
    fn cancelled(mut self) -> Self {
        if let Self::Split { cancelled, .. } = &mut self {
            *cancelled = true;
        }
        self
    }
}
