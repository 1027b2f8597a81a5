//! What must always hold.

use crate::group::Replica;
use crate::world::World;
use althing_raft::ids::{GroupId, MemberId};
use althing_shard::map::{KeyspaceState, RouteTable};
use althing_shard::meta::MetaState;
use std::collections::BTreeSet;

impl World {
    /// After every change of the map.
    pub(crate) fn check_map(&self) {
        let mut busy = BTreeSet::new();
        for operation in self.meta.operations.values() {
            for group in operation.groups() {
                assert!(
                    busy.insert(group),
                    "two operations on shard {group}: {:#?}",
                    self.meta.operations
                );
            }
        }
        // Panics where spans leave a gap or overlap.
        let _ = RouteTable::all(&self.meta);
        let again = MetaState::load(self.meta.rows()).unwrap();
        assert_eq!(again, self.meta, "the rows say something else");
    }

    /// After every round.
    pub(crate) fn check(&self) {
        for (id, group) in &self.groups {
            if self.meta.is_forgotten(*id) {
                continue;
            }
            let last = group.last();
            let config = &group.now().config;
            let lacks = |member: MemberId| match (self.replica(member, *id), group.cut_by) {
                (Some(replica), _) => replica.log < last,
                // Its birth is in the log of the group that it was cut off.
                (None, Some((parent, entry))) => {
                    let has = |replica: &Replica| replica.log >= entry && replica.applied < entry;
                    last > 1 || !self.replica(member, parent).is_some_and(has)
                }
                (None, None) => true,
            };
            assert!(
                !config.is_majority(lacks),
                "a majority of {config:?} of group {id} lacks what was committed"
            );
        }
        self.check_service();
    }

    /// No key is served by two groups, or was lost.
    fn check_service(&self) {
        for ((keyspace, key), revision) in &self.acknowledged {
            let record = self.meta.keyspaces.get(keyspace);
            if record.is_none_or(|record| record.state != KeyspaceState::Active) {
                continue;
            }
            let owners: Vec<GroupId> = self
                .groups
                .iter()
                .filter(|(id, group)| {
                    let state = group.now();
                    let of = self.meta.shards.get(id).map(|shard| shard.keyspace);
                    let child = self.meta.operation_on(**id).map(|(_, operation)| operation.keyspace);
                    of.or(child) == Some(*keyspace)
                        && !self.meta.shards.get(id).is_some_and(|shard| shard.sequencer)
                        && group.leader.is_some()
                        && state.sealed.is_none()
                        && state.territory.span.contains(key)
                })
                .map(|(id, _)| *id)
                .collect();
            assert!(owners.len() <= 1, "{owners:?} all own {key:?}");
            for owner in owners {
                let found = self.groups[&owner].now().data.get(key);
                assert_eq!(found, Some(revision), "shard {owner} lost {key:?}");
            }
        }
    }

    /// What holds when everything has come to rest and all members are well.
    pub(crate) fn check_rest(&self) {
        assert!(self.meta.operations.is_empty());
        for (id, keyspace) in &self.meta.keyspaces {
            let shards = self.meta.shards_of(*id);
            assert_eq!(shards.len(), keyspace.shards as usize, "shards of {:?}", keyspace.name);
        }
        for (id, record) in &self.meta.shards {
            let state = self.groups[id].now();
            assert!(self.groups[id].leader.is_some());
            assert_eq!(state.sealed, None);
            assert_eq!(state.territory.epoch, record.epoch);
            assert_eq!(state.territory.span, record.span);
            let voters: Vec<MemberId> = state.config.voters.iter().copied().collect();
            assert_eq!(voters, record.replicas);
            assert!(state.config.learners.is_empty() && !state.config.is_joint());
            if !record.sequencer {
                assert_eq!(state.source, self.meta.keyspaces[&record.keyspace].source);
            }
        }
        for (id, member) in &self.members {
            let data = member.groups.keys().filter(|group| **group != GroupId::META);
            let held: BTreeSet<GroupId> = data.copied().collect();
            let listed = self.meta.shards.iter().filter(|(_, shard)| shard.replicas.contains(id));
            let listed: BTreeSet<GroupId> = listed.map(|(group, _)| *group).collect();
            assert_eq!(held, listed, "what member {id} holds is what the map says");
        }
        for ((keyspace, key), revision) in &self.acknowledged {
            if !self.meta.keyspaces.contains_key(keyspace) {
                continue;
            }
            let table = &RouteTable::all(&self.meta)[keyspace];
            let route = table.shards().iter().find(|route| route.span.contains(key)).unwrap();
            let found = self.groups[&route.group].now().data.get(key);
            assert_eq!(found, Some(revision), "shard {} lost {key:?}", route.group);
        }
    }

    /// How many replicas the fullest member has more than the emptiest, and likewise leaders.
    pub(crate) fn spread(&self) -> (usize, usize) {
        let fit = self.members.iter().filter(|(_, member)| member.up && member.joined);
        let fit: Vec<MemberId> = fit.map(|(id, _)| *id).collect();
        let count = |of: &dyn Fn(MemberId) -> usize| {
            let counts: Vec<usize> = fit.iter().map(|id| of(*id)).collect();
            counts.iter().max().unwrap() - counts.iter().min().unwrap()
        };
        let replicas = count(&|id| self.meta.placed_on(id).len());
        let led = |id| {
            let groups = self.meta.shards.keys().map(|group| &self.groups[group]);
            groups.filter(|group| group.leader == Some(id)).count()
        };
        let leaders = count(&led);
        (replicas, leaders)
    }
}
