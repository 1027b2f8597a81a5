//! What is always to be done: replicas that are missing or left over, members that come and go, territories and reads that groups
//! have not heard of, leaders where too many are.

use crate::conductor::draft::Draft;
use crate::conductor::view::Leader;
use crate::conductor::{Action, CloseGuard, GroupSeen, Subject};
use crate::map::{KeyspaceState, MemberRecord, MemberState, OperationId, SequencePhase, ShardRecord, Work};
use althing_raft::ids::{GroupId, MemberId};
use althing_store::ops::ShardCommand;
use althing_store::partition::RevisionSource;
use std::collections::{BTreeMap, BTreeSet};

impl<'a> Draft<'a> {
    /// The map's members are those of the meta group, with the labels that they were started with.
    pub(super) fn tend_members(&mut self) {
        for (member, view) in self.view.members() {
            if !self.has_room() {
                return;
            }
            let present = self.state.members.get(member);
            let mut record = present.cloned().unwrap_or(MemberRecord {
                state: MemberState::Active,
                ..MemberRecord::default()
            });
            if !view.name.is_empty() {
                record.name.clone_from(&view.name);
            }
            let labels = view.labels.iter().map(|(name, value)| (name.clone(), value.clone()));
            record.labels.extend(labels);
            if present != Some(&record) {
                let verb = if present.is_some() {
                    "is described anew"
                } else {
                    "joins"
                };
                let reason = format!("member {member} {verb}");
                self.put_member(*member, Some(record), reason);
            }
        }
        for member in self.state.members.keys() {
            let gone = !self.view.members().contains_key(member);
            if gone && self.has_room() && self.state.placed_on(*member).is_empty() {
                self.put_member(*member, None, format!("member {member} has left the cluster"));
            }
        }
    }

    /// What single groups lack, whether or not an operation is under way.
    pub(super) fn tend_groups(&mut self) {
        let mut unborn = BTreeSet::new();
        for operation in self.state.operations.values() {
            match &operation.work {
                Work::Create { group, born: false, .. } => unborn.insert(*group),
                Work::Sequence {
                    sequencer,
                    phase: SequencePhase::Birth,
                    ..
                } => unborn.insert(*sequencer),
                Work::Create { .. }
                | Work::Sequence { .. }
                | Work::Split { .. }
                | Work::Merge { .. }
                | Work::Move { .. } => false,
            };
        }
        for (group, record) in self.state.shards.iter().filter(|(group, _)| !unborn.contains(group)) {
            let leader = self.view.leader(*group);
            let expected: BTreeSet<MemberId> = match leader {
                Some(leader) => leader.seen.config.members(),
                None => record.replicas.iter().copied().collect(),
            };
            for member in expected {
                if self.view.reachable(member)
                    && self.view.replica(member, *group).is_none()
                    && self.may_open(member, *group)
                {
                    let action = Action::Open { member, group: *group };
                    self.act(action, format!("member {member} lacks its replica of shard {group}"));
                }
            }
            if let Some(leader) = leader {
                self.tend_seal(*group, leader);
            }
            if !self.is_busy(*group) {
                self.tend_idle(*group, record);
            }
        }
    }

    /// A replica that comes from a split is made by the split itself, as soon as that member gets there: an empty one before would
    /// be in its way. Where the parent came by snapshot, it never gets there.
    pub(super) fn may_open(&self, member: MemberId, group: GroupId) -> bool {
        let parent = self.state.shards.get(&group).and_then(|record| record.parent);
        let Some(parent) = parent else {
            return true;
        };
        match self.view.replica(member, parent.group) {
            Some(seen) => seen.territory.epoch >= parent.epoch,
            // It may get the parent yet, from a split of its own, and walk through this one then.
            None => {
                let config = self.view.leader(parent.group).map(|leader| &leader.seen.config);
                let listed = self.state.shards.get(&parent.group);
                let expected = config.is_some_and(|config| config.contains(member))
                    || listed.is_some_and(|record| record.replicas.contains(&member));
                !expected
            }
        }
    }

    /// A seal that came late, for an operation that is over. Its number was taken once and its row is gone, which stays so; a number
    /// that is not taken yet would be a newer map's.
    fn tend_seal(&mut self, group: GroupId, leader: Leader<'_>) {
        let Some(operation) = leader.seen.sealed else {
            return;
        };
        let known = self.state.operations.contains_key(&OperationId(operation));
        if !known && operation < self.state.counters.next_operation {
            let command = ShardCommand::Unseal { operation };
            let reason = format!("shard {group} is still sealed for operation {operation}, which is over");
            self.command(leader, group, command, reason);
        }
    }

    fn tend_idle(&mut self, group: GroupId, record: &ShardRecord) {
        let (Some(leader), Some(keyspace)) = (self.view.leader(group), self.state.keyspaces.get(&record.keyspace))
        else {
            return;
        };
        if keyspace.state != KeyspaceState::Active {
            return;
        }
        let seen = &leader.seen.territory;
        if seen.epoch < record.epoch {
            let source = if record.sequencer {
                RevisionSource::Dense
            } else {
                keyspace.source
            };
            let territory = record.territory(keyspace);
            let command = ShardCommand::Settle { territory, source };
            self.command(
                leader,
                group,
                command,
                format!("shard {group} has not heard of its territory"),
            );
        } else if seen.epoch > record.epoch {
            self.wait(
                Subject::Shard(group),
                format!("its territory has epoch {}, the map knows {}", seen.epoch, record.epoch),
            );
        }
        if let Some(spec) = &keyspace.reads
            && !record.sequencer
            && *spec != leader.seen.reads
        {
            let action = Action::Reads {
                leader: leader.member,
                group,
                spec: spec.clone(),
            };
            let reason = format!("keyspace {:?} wants reads of shard {group} answered so", keyspace.name);
            self.act(action, reason);
        }
    }

    /// Takes down replicas that nobody needs.
    pub(super) fn tend_leftovers(&mut self) {
        let mut closed = 0;
        for (member, view) in self.view.members() {
            if !self.view.reachable(*member) {
                continue;
            }
            for (group, seen) in &view.groups {
                if closed == self.limits.closes {
                    return;
                }
                if let Some((guard, reason)) = self.leftover(*member, *group, seen, &view.groups) {
                    closed += 1;
                    let action = Action::Close {
                        member: *member,
                        group: *group,
                        guard,
                    };
                    self.act(action, reason);
                }
            }
        }
    }

    fn leftover(
        &self,
        member: MemberId,
        group: GroupId,
        seen: &GroupSeen,
        others: &BTreeMap<GroupId, GroupSeen>,
    ) -> Option<(CloseGuard, String)> {
        if self.is_busy(group) {
            return None;
        }
        let Some(record) = self.state.shards.get(&group) else {
            // A shard that took this one over needs it until it has come to that entry of its log, on every member.
            let behind = |(other, seen): (&GroupId, &GroupSeen)| {
                let record = self.state.shards.get(other);
                record.is_some_and(|record| seen.territory.epoch < record.epoch)
            };
            let forgotten = self.state.is_forgotten(group) && !others.iter().any(behind);
            let guard = CloseGuard::Forgotten { life: seen.life };
            return forgotten.then(|| (guard, format!("shard {group} is no more")));
        };
        let leader = self.view.leader(group);
        let member_now = leader.is_some_and(|leader| leader.seen.config.contains(member));
        if member_now || record.replicas.contains(&member) {
            return None;
        }
        // Whatever this replica acknowledged is committed by others, among whom it has no vote.
        let covers = |other: &GroupSeen| !other.config.contains(member) && other.applied.up_to_date_with(seen.last);
        let mut witnesses: BTreeSet<MemberId> = record.replicas.iter().copied().collect();
        witnesses.insert(member);
        self.view.replicas(group, &witnesses).any(covers).then(|| {
            let guard = CloseGuard::Unchanged {
                life: seen.life,
                last: seen.last,
            };
            (guard, format!("member {member} holds shard {group} no more"))
        })
    }

    /// Hands over leaderships from members that lead much to members that lead at least two shards fewer, so that this ends.
    pub(super) fn tend_leaders(&mut self) {
        let mut led: BTreeMap<MemberId, usize> = BTreeMap::new();
        for (member, site) in self.placement.sites() {
            if site.active && site.reachable {
                led.insert(*member, 0);
            }
        }
        for group in self.state.shards.keys() {
            if let Some(leader) = self.view.leader(*group)
                && let Some(count) = led.get_mut(&leader.member)
            {
                *count += 1;
            }
        }
        if led.values().max().unwrap_or(&0) < &(led.values().min().unwrap_or(&0) + 2) {
            return;
        }
        let mut idle: BTreeMap<MemberId, Vec<GroupId>> = BTreeMap::new();
        for group in self.state.shards.keys() {
            if let Some(leader) = self.view.leader(*group)
                && !self.is_busy(*group)
                && !leader.seen.config.is_joint()
            {
                idle.entry(leader.member).or_default().push(*group);
            }
        }
        let mut busiest: Vec<(usize, MemberId)> = led.iter().map(|(member, count)| (*count, *member)).collect();
        busiest.sort_unstable_by(|a, b| b.cmp(a));
        let mut left = self.limits.transfers;
        for (count, member) in busiest {
            let groups = idle.remove(&member).unwrap_or_default();
            for group in groups {
                if left == 0 {
                    return;
                }
                let Some(leader) = self.view.leader(group) else {
                    continue;
                };
                let heirs = leader.seen.config.voters.iter().copied();
                let heirs = heirs.filter_map(|heir| Some((*led.get(&heir)?, heir)));
                let heirs = heirs.filter(|(_, heir)| self.view.caught_up(leader, *heir));
                let Some((least, to)) = heirs.min() else {
                    continue;
                };
                if led.get(&member).copied().unwrap_or(count) < least + 2 {
                    continue;
                }
                left -= 1;
                *led.entry(member).or_default() -= 1;
                *led.entry(to).or_default() += 1;
                let action = Action::Transfer {
                    leader: member,
                    group,
                    to,
                };
                self.act(action, format!("member {member} leads more shards than member {to}"));
            }
        }
    }
}
