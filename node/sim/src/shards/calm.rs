//! The end of a run: everything is repaired, and the cluster must become what the map says.

use super::judge::keys_of;
use super::{Errand, Todo, World};
use crate::world::conditions::MS;
use althing_raft::ids::{GroupId, MemberId};
use althing_shard::conductor::Plan;
use althing_shard::map::{KeyspaceId, RouteTable};
use althing_shard::meta::MetaState;
use althing_store::ops::{KeyRange, Range, RevisionSource};
use bytes::Bytes;
use std::collections::BTreeSet;

/// How long a calm world may take to become whole: for several operations on shards one after the other, and for slow disks.
const CALM_MAX: u64 = 240_000 * MS;
/// How often a calm world is looked at.
const CALM_LOOK: u64 = 200 * MS;

impl World {
    /// Notes what a conductor thinks of.
    pub(super) fn note_plan(&mut self, plan: &Plan, state: &MetaState) {
        let sequencers = state.shards.iter().filter(|(_, shard)| shard.sequencer);
        self.sequencers.extend(sequencers.map(|(group, _)| *group));
        let now = self.now;
        self.trace
            .note(now, 0, "plan", &[state.version, plan.steps.len() as u64], || {
                let steps = plan.steps.iter().map(|step| format!("\n      {}", step.reason));
                let waits = plan
                    .pending
                    .iter()
                    .map(|pending| format!("\n      waits: {}", pending.reason));
                format!("version {}{}", state.version, steps.chain(waits).collect::<String>())
            });
    }

    /// Chaos is over: everything is repaired.
    pub(super) fn calm(&mut self) {
        self.trace.note(self.now, 0, "calm", &[], String::new);
        self.calm_at = Some(self.now);
        self.net.calm();
        for number in 0..self.machines.len() {
            let machine = &mut self.machines[number];
            machine.clock.change(self.now, 0);
            machine.paused_until = 0;
            machine.slow = (0, 0);
            machine.disk.fill(false);
            self.start(number);
        }
        self.errands.push(Errand::LastWish);
        self.later(CALM_LOOK, Todo::Look);
    }

    pub(super) fn look(&mut self) {
        match self.whole() {
            Ok(()) => {
                self.compare_states();
                self.done = true;
            }
            Err(reason) => {
                let calm_at = self.calm_at.unwrap_or(self.now);
                if self.now - calm_at > CALM_MAX {
                    self.violation(format!("liveness: long after all is repaired, {reason}"));
                } else {
                    self.later(CALM_LOOK, Todo::Look);
                }
            }
        }
    }

    /// The map as whoever leads the meta group has applied it.
    fn map(&self) -> Result<MetaState, String> {
        let leader = self.leader(GroupId::META).ok_or("nobody leads the meta group")?;
        let process = self.machines[leader].process.as_ref().ok_or("the conductor is down")?;
        let store = process.groups.get(&GroupId::META).ok_or("there is no meta group")?;
        let (_, rows) = store
            .range(&Range::of(KeyRange::From(Bytes::new())))
            .map_err(|error| error.to_string())?
            .map_err(|error| error.to_string())?;
        MetaState::load(rows.kvs.into_iter().map(|kv| (kv.key, kv.value))).map_err(|error| error.to_string())
    }

    /// Whether everything is as the map says and all work is done; else what is missing.
    fn whole(&self) -> Result<(), String> {
        if self.clients_busy > 0 {
            return Err(format!("{} clients are not done", self.clients_busy));
        }
        if !self.last_wish {
            return Err("nobody could say what is wanted in the end".to_owned());
        }
        let map = self.map()?;
        if let Some((id, operation)) = map.operations.first_key_value() {
            return Err(format!("operation {id} is under way: {operation:?}"));
        }
        let keyspace = map.keyspaces.get(&KeyspaceId::DEFAULT).ok_or("there is no keyspace")?;
        let shards = map.shards_of(KeyspaceId::DEFAULT).len();
        // Keys may be too few to cut between.
        if shards > keyspace.shards as usize {
            return Err(format!("there are {shards} shards and {} are wanted", keyspace.shards));
        }
        for machine in &self.machines {
            let process = machine.process.as_ref().ok_or(format!("{} is down", machine.member))?;
            if !process.open.is_empty() {
                return Err(format!("{} owes answers to {:?}", machine.member, process.open.keys()));
            }
            let extra = process.groups.keys().find(|group| {
                let listed = map.shards.get(group);
                **group != GroupId::META && !listed.is_some_and(|shard| shard.replicas.contains(&machine.member))
            });
            if let Some(group) = extra {
                return Err(format!("{} still has group {group}", machine.member));
            }
        }
        let everybody: BTreeSet<MemberId> = self.machines.iter().map(|machine| machine.member).collect();
        self.group_is_whole(GroupId::META, &everybody)?;
        for (group, shard) in &map.shards {
            self.group_is_whole(*group, &shard.replicas.iter().copied().collect())?;
        }
        if keyspace.source == RevisionSource::Sequenced && keyspace.sequencer.is_none() {
            return Err("the keyspace has no sequencer".to_owned());
        }
        Ok(())
    }

    fn group_is_whole(&self, group: GroupId, replicas: &BTreeSet<MemberId>) -> Result<(), String> {
        let leader = self.leader(group).ok_or(format!("nobody leads group {group}"))?;
        let view = self.view(leader, group).ok_or(format!("group {group} has gone"))?;
        let config = &view.raft.soft.config;
        if config.voters != *replicas || !config.learners.is_empty() || config.is_joint() {
            return Err(format!("group {group} has {config:?} and should have {replicas:?}"));
        }
        for machine in self
            .machines
            .iter()
            .filter(|machine| replicas.contains(&machine.member))
        {
            let process = machine.process.as_ref().ok_or(format!("{} is down", machine.member))?;
            let seen = process
                .host
                .view(group)
                .ok_or(format!("{} has no group {group}", machine.member))?;
            if seen.raft.soft.leader != Some(self.machines[leader].member) || seen.applied != view.raft.last {
                return Err(format!(
                    "{} has applied {:?} of group {group}, whose leader has {:?}",
                    machine.member, seen.applied, view.raft.last
                ));
            }
            let store = process
                .groups
                .get(&group)
                .ok_or(format!("group {group} has no state"))?;
            if store.sealed().is_some() || store.transactions() > 0 {
                return Err(format!(
                    "group {group} is sealed by {:?} and has {} transactions",
                    store.sealed(),
                    store.transactions()
                ));
            }
        }
        Ok(())
    }

    /// All replicas of a group have applied the same, so all must hold the same; together they hold each key once.
    fn compare_states(&mut self) {
        let map = match self.map() {
            Ok(map) => map,
            Err(error) => return self.violation(error),
        };
        // Panics if they leave a gap or overlap.
        let tables = RouteTable::all(&map);
        let Some(table) = tables.get(&KeyspaceId::DEFAULT) else {
            return self.violation("the keyspace serves no more".to_owned());
        };
        self.counts.shards += table.shards().len() as u64;
        for route in table.shards() {
            let mut first = None;
            for number in 0..self.machines.len() {
                let machine = &self.machines[number];
                let member = machine.member;
                let Some(store) = machine
                    .process
                    .as_ref()
                    .and_then(|process| process.groups.get(&route.group))
                else {
                    continue;
                };
                let territory = store.territory();
                if territory.span != route.span {
                    let text = format!(
                        "group {} owns {:?} at {member}, and the map says {:?}",
                        route.group, territory.span, route.span
                    );
                    return self.violation(text);
                }
                let state = (keys_of(store, None), store.current_revision(), territory);
                if first.get_or_insert_with(|| state.clone()) != &state {
                    let text = format!("{member} holds another state of group {} than others", route.group);
                    return self.violation(text);
                }
            }
            let keys = first.and_then(|(keys, _, _)| keys).unwrap_or_default();
            for (key, seen) in keys {
                if self.judge.final_keys.insert(key.clone(), seen).is_some() {
                    self.violation(format!("key {key} is in two groups"));
                }
            }
        }
    }
}
