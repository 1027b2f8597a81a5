//! New groups: a keyspace's first shard, and its sequencer.

use crate::conductor::align::Aligned;
use crate::conductor::draft::Draft;
use crate::conductor::{Action, Subject};
use crate::map::{KeyspaceId, KeyspaceRecord, KeyspaceState, Operation, OperationId, SequencePhase, ShardRecord, Work};
use althing_raft::ids::{GroupId, MemberId};
use althing_store::ops::ShardCommand;
use althing_store::partition::{Partitioning, RevisionSource, Territory};
use std::collections::BTreeSet;

/// Epoch of a group's first territory that its map gave it. Groups older than maps are at 0.
const FIRST_EPOCH: u64 = 1;

impl Draft<'_> {
    /// Begins to make the first shard of a keyspace.
    pub(super) fn begin_create(&mut self, id: KeyspaceId, keyspace: &KeyspaceRecord) {
        let Some((group, birthplace, to)) = self.site_for_group(id, keyspace) else {
            return;
        };
        let shard = ShardRecord {
            keyspace: id,
            span: keyspace.partitioning.whole(),
            epoch: FIRST_EPOCH,
            replicas: vec![birthplace],
            sequencer: false,
            parent: None,
        };
        self.put_shard(group, Some(shard));
        let work = Work::Create {
            group,
            birthplace,
            to,
            born: false,
        };
        let reason = format!("keyspace {:?} gets its first shard, {group}", keyspace.name);
        self.begin(id, work, reason);
    }

    /// Begins to give a dense keyspace a sequencer.
    pub(super) fn begin_sequence(&mut self, id: KeyspaceId, keyspace: &KeyspaceRecord, shard: GroupId) {
        let Some((group, birthplace, to)) = self.site_for_group(id, keyspace) else {
            return;
        };
        let record = ShardRecord {
            keyspace: id,
            span: sequencer_territory().span,
            epoch: FIRST_EPOCH,
            replicas: vec![birthplace],
            sequencer: true,
            parent: None,
        };
        self.put_shard(group, Some(record));
        let work = Work::Sequence {
            shard,
            sequencer: group,
            birthplace,
            to,
            phase: SequencePhase::Birth,
        };
        let reason = format!(
            "keyspace {:?} is to have more shards than one, which take their revisions from a sequencer, {group}",
            keyspace.name
        );
        self.begin(id, work, reason);
    }

    /// A number for a new group, where it is born, and where its replicas will be.
    fn site_for_group(
        &mut self,
        id: KeyspaceId,
        keyspace: &KeyspaceRecord,
    ) -> Option<(GroupId, MemberId, Vec<MemberId>)> {
        let group = GroupId(self.next_group_number());
        let reachable = |member: &MemberId| self.view.reachable(*member);
        let to = self.placement.desired(group, &BTreeSet::new(), keyspace.replicas);
        let to: Vec<MemberId> = to.into_iter().filter(reachable).collect();
        let Some(birthplace) = to.first().copied() else {
            self.wait(Subject::Keyspace(id), "no member that may hold replicas answers");
            return None;
        };
        Some((self.next_group(), birthplace, to))
    }

    pub(super) fn drive_create(&mut self, id: OperationId, operation: &Operation) {
        let Work::Create {
            group,
            birthplace,
            to,
            born,
        } = &operation.work
        else {
            return;
        };
        let (Some(keyspace), Some(shard)) = (
            self.state.keyspaces.get(&operation.keyspace),
            self.state.shards.get(group),
        ) else {
            return self.end(id, format!("shard {group} is not wanted any more"));
        };
        if !*born {
            let territory = shard.territory(keyspace);
            match self.give_birth(*group, *birthplace, territory) {
                Birth::Done => {
                    let work = Work::Create {
                        group: *group,
                        birthplace: *birthplace,
                        to: to.clone(),
                        born: true,
                    };
                    self.advance(id, operation, work, format!("shard {group} is there"));
                }
                Birth::NotYet => {}
                Birth::Hopeless => {
                    self.put_shard(*group, None);
                    self.end(
                        id,
                        format!("shard {group} cannot be made at {birthplace}: it does not answer"),
                    );
                }
            }
            return;
        }
        let target = self.still_possible(*group, to);
        match self.align(*group, &target, Subject::Operation(id)) {
            Aligned::NotYet => {}
            Aligned::Yes => {
                let shard = ShardRecord {
                    replicas: target.into_iter().collect(),
                    ..shard.clone()
                };
                self.put_shard(*group, Some(shard));
                let keyspace = KeyspaceRecord {
                    state: KeyspaceState::Active,
                    ..keyspace.clone()
                };
                let reason = format!("keyspace {:?} can serve", keyspace.name);
                self.put_keyspace(operation.keyspace, Some(keyspace));
                self.end(id, reason);
            }
        }
    }

    pub(super) fn drive_sequence(&mut self, id: OperationId, operation: &Operation) {
        let Work::Sequence {
            shard,
            sequencer,
            birthplace,
            to,
            phase,
        } = &operation.work
        else {
            return;
        };
        let (Some(keyspace), Some(record)) = (
            self.state.keyspaces.get(&operation.keyspace),
            self.state.shards.get(sequencer),
        ) else {
            return self.end(id, format!("sequencer {sequencer} is not wanted any more"));
        };
        let next = |phase| Work::Sequence {
            shard: *shard,
            sequencer: *sequencer,
            birthplace: *birthplace,
            to: to.clone(),
            phase,
        };
        match phase {
            SequencePhase::Birth => match self.give_birth(*sequencer, *birthplace, sequencer_territory()) {
                Birth::Done => {
                    let reason = format!("sequencer {sequencer} is there");
                    self.advance(id, operation, next(SequencePhase::Grow), reason);
                }
                Birth::NotYet => {}
                Birth::Hopeless => {
                    self.put_shard(*sequencer, None);
                    self.end(
                        id,
                        format!("sequencer {sequencer} cannot be made at {birthplace}: it does not answer"),
                    );
                }
            },
            SequencePhase::Grow => {
                let target = self.still_possible(*sequencer, to);
                match self.align(*sequencer, &target, Subject::Operation(id)) {
                    Aligned::NotYet => {}
                    Aligned::Yes => {
                        let record = ShardRecord {
                            replicas: target.into_iter().collect(),
                            ..record.clone()
                        };
                        self.put_shard(*sequencer, Some(record));
                        // Every node has to know whom to ask before the shard begins to need it.
                        let keyspace = KeyspaceRecord {
                            sequencer: Some(*sequencer),
                            ..keyspace.clone()
                        };
                        self.put_keyspace(operation.keyspace, Some(keyspace));
                        let reason = format!("sequencer {sequencer} has its replicas");
                        self.advance(id, operation, next(SequencePhase::Settle), reason);
                    }
                }
            }
            SequencePhase::Settle => self.drive_settle(id, operation.keyspace, keyspace, *shard, *sequencer),
        }
    }

    /// The shard is told to count no more; the sequencer starts above what it counted; then the map says so. Between the first
    /// and the second, writes wait for a stamp that nobody gives yet, so no revision is ever given twice.
    fn drive_settle(
        &mut self,
        id: OperationId,
        keyspace_id: KeyspaceId,
        keyspace: &KeyspaceRecord,
        shard: GroupId,
        sequencer: GroupId,
    ) {
        let Some(record) = self.state.shards.get(&shard) else {
            return self.end(id, format!("shard {shard} is not there any more"));
        };
        let Some(leader) = self.view.leader(shard) else {
            return self.wait(
                Subject::Operation(id),
                format!("shard {shard} has no leader that answers"),
            );
        };
        match leader.seen.source {
            RevisionSource::Dense => {
                let territory = Territory {
                    epoch: record.epoch + 1,
                    ..record.territory(keyspace)
                };
                let command = ShardCommand::Settle {
                    territory,
                    source: RevisionSource::Sequenced,
                };
                let reason = format!("shard {shard} takes its revisions from sequencer {sequencer} from now on");
                self.act(
                    Action::Command {
                        leader: leader.member,
                        group: shard,
                        command,
                    },
                    reason,
                );
            }
            RevisionSource::Sequenced => {
                let Some(giver) = self.view.leader(sequencer) else {
                    return self.wait(
                        Subject::Operation(id),
                        format!("sequencer {sequencer} has no leader that answers"),
                    );
                };
                // The shard counts no more, so this is not less than the last revision that it counted. Only this action ever starts a
                // sequencer: one that has a ceiling was started above some such revision.
                let above = leader.seen.revision;
                if giver.seen.ceiling.is_none() {
                    let action = Action::StartSequencer {
                        leader: giver.member,
                        group: sequencer,
                        above,
                    };
                    return self.act(action, format!("revisions up to {above} are given out already"));
                }
                let record = ShardRecord {
                    epoch: leader.seen.territory.epoch.max(record.epoch),
                    ..record.clone()
                };
                self.put_shard(shard, Some(record));
                let keyspace = KeyspaceRecord {
                    source: RevisionSource::Sequenced,
                    ..keyspace.clone()
                };
                let reason = format!("keyspace {:?} has a sequencer", keyspace.name);
                self.put_keyspace(keyspace_id, Some(keyspace));
                self.end(id, reason);
            }
        }
    }

    fn give_birth(&mut self, group: GroupId, birthplace: MemberId, territory: Territory) -> Birth {
        if !self.view.reachable(birthplace) {
            // Perhaps it is there and perhaps not: nobody will ever ask, since another number is used next.
            return Birth::Hopeless;
        }
        if self.view.replica(birthplace, group).is_some() {
            return Birth::Done;
        }
        let action = Action::Create {
            member: birthplace,
            group,
            territory,
            source: RevisionSource::Dense,
        };
        self.act(action, format!("group {group} is born at member {birthplace}"));
        Birth::NotYet
    }

    /// Of the members that should get a replica, those that have one or answer; the others come later, by a move.
    fn still_possible(&self, group: GroupId, to: &[MemberId]) -> BTreeSet<MemberId> {
        let config = self.view.leader(group).map(|leader| &leader.seen.config);
        let voter = |member: MemberId| config.is_some_and(|config| config.is_voter(member));
        let possible = |member: &MemberId| voter(*member) || self.view.reachable(*member);
        to.iter().copied().filter(possible).collect()
    }
}

enum Birth {
    Done,
    NotYet,
    Hopeless,
}

/// A sequencer holds its ceiling as a key like any other, and nobody routes to it by key.
fn sequencer_territory() -> Territory {
    Territory {
        partitioning: Partitioning::Range,
        span: Partitioning::Range.whole(),
        epoch: FIRST_EPOCH,
    }
}
