//! The shard map and what is seen of its groups, as the contract shows them.

use super::reads::asked_reads;
use crate::shared::Shared;
use althing_admin::text::write_key;
use althing_admin::{
    KeyspaceState, KeyspaceStatus, LayoutMember, LayoutStatus, MemberState, OperationKind, OperationStatus,
    Partitioning, RevisionSource, ShardInfo, ShardKind,
};
use althing_raft::entry::ConfigState;
use althing_raft::ids::{GroupId, Index, MemberId, Term};
use althing_raft::io::Role;
use althing_shard::conductor::{GroupSeen, Observed, Pending, Subject};
use althing_shard::host::GroupView;
use althing_shard::map::{self, KeyspaceId, KeyspaceRecord, MemberRecord, Operation, OperationId, ShardRecord, Work};
use althing_shard::meta::MetaState;
use althing_store::partition;
use std::collections::{BTreeMap, BTreeSet};

/// One replica, as somebody saw it.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    term: Term,
    leads: bool,
    leader: Option<MemberId>,
    config: ConfigState,
    keys: u64,
    bytes: u64,
    revision: i64,
    lag: Option<u64>,
    hibernating: bool,
}

impl Seen {
    /// What matters of two that saw the same group: who leads knows best, and of others who has heard of more.
    fn knows(&self) -> (Term, bool, Index, i64) {
        (self.term, self.leads, self.config.index, self.revision)
    }
}

impl From<&GroupSeen> for Seen {
    fn from(seen: &GroupSeen) -> Self {
        let leads = seen.role == Role::Leader;
        let voters = seen.peers.iter().filter(|(peer, _)| seen.config.voters.contains(peer));
        let slowest = voters
            .map(|(_, peer)| seen.last.index.0.saturating_sub(peer.matched.0))
            .max();
        Self {
            term: seen.term,
            leads,
            leader: seen.leader,
            config: seen.config.clone(),
            keys: seen.keys,
            bytes: seen.bytes,
            revision: seen.revision.0,
            // A single voter lacks nothing.
            lag: leads.then_some(slowest.unwrap_or(0)),
            hibernating: seen.hibernating,
        }
    }
}

/// Who has which replicas, as far as anybody here knows.
#[derive(Debug, Default)]
pub(super) struct Sight(BTreeMap<MemberId, BTreeMap<GroupId, Seen>>);

impl Sight {
    /// What the conductor saw when it last looked.
    pub(super) fn of_conductor(observed: &Observed) -> Self {
        let member = |(id, view): (&MemberId, &althing_shard::conductor::MemberView)| {
            let groups = view.groups.iter().map(|(group, seen)| (*group, seen.into()));
            (*id, groups.collect())
        };
        Self(observed.members.iter().map(member).collect())
    }

    /// What a member that does not conduct knows: its own groups.
    pub(super) fn of_node(shared: &Shared, views: Vec<(GroupId, GroupView)>) -> Self {
        let groups = views.into_iter().map(|(group, view)| {
            let store = shared.groups.get(group);
            let size = store.as_ref().map(|store| store.rows_size()).unwrap_or_default();
            let leads = view.raft.soft.role == Role::Leader;
            let voters = view.raft.progress.iter();
            let voters = voters.filter(|peer| view.raft.soft.config.voters.contains(&peer.member));
            let slowest = voters
                .map(|peer| view.raft.last.index.0.saturating_sub(peer.matched.0))
                .max();
            let seen = Seen {
                term: view.raft.soft.term,
                leads,
                leader: view.raft.soft.leader,
                config: view.raft.soft.config.clone(),
                keys: size.keys,
                bytes: size.in_use,
                revision: store.map_or(0, |store| store.current_revision().0),
                lag: leads.then_some(slowest.unwrap_or(0)),
                hibernating: view.raft.hibernates,
            };
            (group, seen)
        });
        Self(BTreeMap::from([(shared.me, groups.collect())]))
    }

    fn group(&self, group: GroupId) -> Seen {
        let all = self.0.values().filter_map(|groups| groups.get(&group));
        all.max_by_key(|seen| seen.knows()).cloned().unwrap_or_default()
    }

    /// The groups of a member, but for the meta group's.
    fn held(&self, member: MemberId) -> impl Iterator<Item = (GroupId, &Seen)> {
        let groups = self.0.get(&member).into_iter().flatten();
        groups
            .filter(|(group, _)| **group != GroupId::META)
            .map(|(group, seen)| (*group, seen))
    }
}

/// Everything that a page about the layout is made of.
pub(super) struct View<'a> {
    /// The map.
    pub(super) state: &'a MetaState,
    /// The groups.
    pub(super) sight: Sight,
    /// What waits, where somebody knows.
    pub(super) pending: Vec<Pending>,
    /// Seconds since 1970.
    pub(super) wall_seconds: u64,
    /// The names that requests at this member find.
    pub(super) names: BTreeSet<String>,
}

impl View<'_> {
    /// All of it.
    pub(super) fn layout(&self) -> LayoutStatus {
        LayoutStatus {
            version: self.state.version,
            members: self
                .state
                .members
                .iter()
                .map(|(id, record)| self.member(*id, record))
                .collect(),
            keyspaces: self.keyspaces(),
            operations: self
                .state
                .operations
                .iter()
                .map(|(id, operation)| self.operation(*id, operation))
                .collect(),
        }
    }

    /// The keyspaces, by name.
    pub(super) fn keyspaces(&self) -> Vec<KeyspaceStatus> {
        let mut all: Vec<_> = self
            .state
            .keyspaces
            .iter()
            .map(|(id, record)| self.keyspace(*id, record))
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// One member.
    pub(super) fn member(&self, id: MemberId, record: &MemberRecord) -> LayoutMember {
        let mut groups: BTreeSet<GroupId> = self.state.placed_on(id);
        // What a silent member said when it was last heard does not count against what the group's own leader says since.
        let counts = |group: &GroupId| {
            self.state.shards.contains_key(group) && self.sight.group(*group).config.members().contains(&id)
        };
        groups.extend(self.sight.held(id).map(|(group, _)| group).filter(counts));
        LayoutMember {
            id: id.to_string(),
            name: record.name.clone(),
            labels: record.labels.clone(),
            state: match record.state {
                map::MemberState::Active => MemberState::Active,
                map::MemberState::Draining => MemberState::Draining,
            },
            replicas: count(groups.len()),
            leaders: count(self.sight.held(id).filter(|(_, seen)| seen.leads).count()),
            bytes: self.sight.held(id).map(|(_, seen)| seen.bytes).sum(),
        }
    }

    /// One keyspace with its shards.
    pub(super) fn keyspace(&self, id: KeyspaceId, record: &KeyspaceRecord) -> KeyspaceStatus {
        let partitioning = partitioning(record);
        let shards = self.state.shards_of(id);
        let shards: Vec<_> = shards
            .into_iter()
            .map(|(group, shard)| self.shard(group, shard, &partitioning))
            .collect();
        KeyspaceStatus {
            id: id.0,
            name: record.name.clone(),
            state: match record.state {
                map::KeyspaceState::Creating => KeyspaceState::Creating,
                // Until its name is found here, it would mean the default keyspace.
                map::KeyspaceState::Active if id != KeyspaceId::DEFAULT && !self.names.contains(&record.name) => {
                    KeyspaceState::Creating
                }
                map::KeyspaceState::Active => KeyspaceState::Active,
                map::KeyspaceState::Dropping => KeyspaceState::Dropping,
            },
            source: match record.source {
                partition::RevisionSource::Dense => RevisionSource::Dense,
                partition::RevisionSource::Sequenced => RevisionSource::Sequenced,
            },
            desired_shards: record.shards,
            current_shards: count(shards.len()),
            replicas: record.replicas,
            port: record.port,
            partitioning,
            quota_bytes: record.quota_bytes,
            reads: record.reads.as_ref().map(asked_reads),
            shards,
            message: self.message(id),
        }
    }

    /// What keeps a keyspace from being as asked for.
    fn message(&self, id: KeyspaceId) -> String {
        let about = |subject: &Subject| match subject {
            Subject::Keyspace(keyspace) => *keyspace == id,
            Subject::Shard(group) => self.state.shards.get(group).is_some_and(|shard| shard.keyspace == id),
            Subject::Operation(operation) => self
                .state
                .operations
                .get(operation)
                .is_some_and(|operation| operation.keyspace == id),
            Subject::Member(_) => false,
        };
        let mut reasons: Vec<&str> = self
            .pending
            .iter()
            .filter(|pending| about(&pending.subject))
            .map(|pending| pending.reason.as_str())
            .collect();
        reasons.dedup();
        /// More would be a log, not a sentence.
        const REASONS_MAX: usize = 5;
        let more = reasons.len().saturating_sub(REASONS_MAX);
        reasons.truncate(REASONS_MAX);
        let mut message = reasons.join("; ");
        if more > 0 {
            message += &format!("; and {more} more");
        }
        message
    }

    fn shard(&self, group: GroupId, shard: &ShardRecord, partitioning: &Partitioning) -> ShardInfo {
        let seen = self.sight.group(group);
        ShardInfo {
            id: group.0,
            start: partitioning.write_bound(&shard.span.start),
            end: shard
                .span
                .end
                .as_ref()
                .map(|end| partitioning.write_bound(end))
                .unwrap_or_default(),
            epoch: shard.epoch,
            leader: seen.leader.map(|leader| leader.to_string()),
            replicas: texts(&shard.replicas),
            voters: texts(&seen.config.voters),
            learners: texts(&seen.config.learners),
            keys: seen.keys,
            bytes: seen.bytes,
            revision: seen.revision,
            lag: seen.lag,
            hibernating: seen.hibernating,
            operation: self.state.operation_on(group).map(|(id, _)| id.0),
        }
    }

    /// One operation.
    pub(super) fn operation(&self, id: OperationId, operation: &Operation) -> OperationStatus {
        let keyspace = self.state.keyspaces.get(&operation.keyspace);
        OperationStatus {
            id: id.0,
            kind: match &operation.work {
                Work::Create { .. } => OperationKind::Create,
                Work::Sequence { .. } => OperationKind::Sequence,
                Work::Split { .. } => OperationKind::Split,
                Work::Merge { .. } => OperationKind::Merge,
                Work::Move { .. } => OperationKind::Move,
            },
            keyspace: keyspace.map(|record| record.name.clone()).unwrap_or_default(),
            shards: operation.groups().into_iter().map(|group| group.0).collect(),
            phase: operation.phase().to_owned(),
            reason: operation.reason.clone(),
            since_seconds: self.wall_seconds.saturating_sub(operation.since),
        }
    }
}

/// What a group is for, and the keyspace that it belongs to, as far as the map says.
pub(super) fn kind(state: &MetaState, group: GroupId) -> (Option<ShardKind>, Option<String>) {
    if group == GroupId::META {
        return (Some(ShardKind::Meta), None);
    }
    let Some(shard) = state.shards.get(&group) else {
        return (None, None);
    };
    let kind = if shard.sequencer {
        ShardKind::Sequencer
    } else {
        ShardKind::Data
    };
    let keyspace = state.keyspaces.get(&shard.keyspace);
    (Some(kind), keyspace.map(|record| record.name.clone()))
}

/// How keys are assigned to the shards of a keyspace.
fn partitioning(record: &KeyspaceRecord) -> Partitioning {
    match record.partitioning {
        partition::Partitioning::Range => Partitioning::Range {
            split_keys: record.split_keys.iter().map(|key| write_key(key)).collect(),
        },
        partition::Partitioning::Hash { slots, prefix_segments } => Partitioning::Hash { slots, prefix_segments },
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn texts<'a>(members: impl IntoIterator<Item = &'a MemberId>) -> Vec<String> {
    members.into_iter().map(ToString::to_string).collect()
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
