//! Which operations begin.

use crate::conductor::Subject;
use crate::conductor::draft::Draft;
use crate::conductor::view::Leader;
use crate::map::{KeyspaceId, KeyspaceRecord, KeyspaceState, MergePhase, ShardRecord, Work};
use crate::placement::Fault;
use althing_raft::ids::{GroupId, MemberId};
use althing_store::partition::{Partitioning, RevisionSource};
use bytes::Bytes;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Shards with a fault for which a better place is looked for in one plan. Each look goes over all members; there are more plans.
const LOOKS_MAX: usize = 512;

impl<'a> Draft<'a> {
    /// Begins what should happen and may: first what keeps keyspaces from serving, then what keeps data safe, then shapes, and
    /// an even load last.
    pub(super) fn choose(&mut self) {
        let keyspaces: Vec<(KeyspaceId, &KeyspaceRecord)> =
            self.state.keyspaces.iter().map(|(id, record)| (*id, record)).collect();
        for (id, keyspace) in &keyspaces {
            match keyspace.state {
                KeyspaceState::Creating => {
                    if self.shards_of(*id).is_empty() && self.may_begin() {
                        self.begin_create(*id, keyspace);
                    }
                }
                KeyspaceState::Dropping => self.take_down(*id, keyspace),
                KeyspaceState::Active => {}
            }
        }
        let healthy = self.repair();
        let mut settled = true;
        for (id, keyspace) in &keyspaces {
            match keyspace.state {
                KeyspaceState::Active => settled &= self.reshape(*id, keyspace),
                KeyspaceState::Creating | KeyspaceState::Dropping => settled = false,
            }
        }
        if healthy && settled {
            self.even_out();
        }
    }

    /// Forgets a keyspace that is being dropped. Its groups are taken down wherever they are seen from then on.
    fn take_down(&mut self, id: KeyspaceId, keyspace: &KeyspaceRecord) {
        let operations = self.state.operations.iter().filter(|(_, row)| row.keyspace == id);
        let operations: Vec<_> = operations.map(|(operation, _)| *operation).collect();
        let groups = self.state.shards.iter().filter(|(_, shard)| shard.keyspace == id);
        let groups: Vec<GroupId> = groups.map(|(group, _)| *group).collect();
        for operation in operations {
            if !self.has_room() {
                return;
            }
            self.end(operation, format!("keyspace {:?} is dropped", keyspace.name));
        }
        for group in groups {
            if !self.has_room() {
                return self.because(format!("keyspace {:?} is dropped, part by part", keyspace.name));
            }
            self.put_shard(group, None);
        }
        self.put_keyspace(id, None);
        self.because(format!("keyspace {:?} is dropped", keyspace.name));
    }

    /// A shard that an operation may begin on: it has a leader that answers and a majority that is caught up, and is what the map
    /// says.
    fn fit(&self, group: GroupId, record: &ShardRecord) -> Option<Leader<'a>> {
        let leader = self.view.leader(group)?;
        let config = &leader.seen.config;
        let settled = !config.is_joint() && config.learners.is_empty() && config.voters.iter().eq(&record.replicas);
        let known = leader.seen.territory.epoch == record.epoch && leader.seen.sealed.is_none();
        let well = || self.view.quorum_without(leader, &BTreeSet::new());
        (!self.is_busy(group) && settled && known && well()).then_some(leader)
    }

    /// Begins to move replicas that are at wrong places. Says whether there is nothing that it can do, now or soon.
    fn repair(&mut self) -> bool {
        let mut faults: Vec<(Option<Fault>, GroupId, BTreeSet<MemberId>)> = Vec::new();
        for (group, record) in &self.state.shards {
            let active = self
                .keyspace_of(record)
                .is_some_and(|keyspace| keyspace.state == KeyspaceState::Active);
            if self.is_busy(*group) || !active {
                continue;
            }
            let Some(leader) = self.view.leader(*group) else {
                self.wait(Subject::Shard(*group), "it has no leader that answers");
                continue;
            };
            let config = &leader.seen.config;
            if config.is_joint() {
                continue;
            }
            let want = self.keyspace_of(record).and_then(|keyspace| keyspace.replicas);
            let fault = self.placement.fault(&config.voters, want);
            let unclean = !config.learners.is_empty() || !config.voters.iter().eq(&record.replicas);
            if fault.is_some() || unclean {
                faults.push((fault, *group, config.voters.clone()));
            }
        }
        faults.sort_by_key(|(fault, group, _)| (fault.is_none(), *fault, *group));
        let looks = LOOKS_MAX.max(self.limits.operations);
        if faults.len() > looks {
            // What cannot be helped must not hide for ever what can.
            let turn = usize::try_from(self.view.wall_seconds()).unwrap_or_default() * looks % faults.len();
            faults.rotate_left(turn);
        }
        let mut healthy = faults.len() <= looks;
        for (fault, group, current) in faults.into_iter().take(looks) {
            let giver = self.view.leader(group).map(|leader| leader.member);
            let gives = fault.is_none_or(|fault| fault == Fault::Surplus);
            let waits = !gives && giver.is_some_and(|giver| self.copies_left(giver) == 0);
            if waits || !self.may_begin() {
                healthy = false;
            } else {
                healthy &= !self.repair_one(group, fault, &current);
            }
        }
        healthy
    }

    /// Begins to move one shard's replicas. Says whether it does or will soon.
    fn repair_one(&mut self, group: GroupId, fault: Option<Fault>, current: &BTreeSet<MemberId>) -> bool {
        let Some(record) = self.state.shards.get(&group) else {
            return false;
        };
        let Some(keyspace) = self.keyspace_of(record) else {
            return false;
        };
        let desired = self.placement.desired(group, current, keyspace.replicas);
        let leader = self.view.leader(group);
        let learners = leader.is_some_and(|leader| !leader.seen.config.learners.is_empty());
        let to: Vec<MemberId> = desired.iter().copied().collect();
        if desired == *current && !learners {
            if record.replicas != to {
                let record = ShardRecord {
                    replicas: to,
                    ..record.clone()
                };
                self.put_shard(group, Some(record));
                self.because(format!("the replicas of shard {group} are elsewhere than the map says"));
                return true;
            }
            if let Some(fault) = fault {
                self.wait(
                    Subject::Shard(group),
                    format!("{}, and there is no better place", wrong(fault)),
                );
            }
            return false;
        }
        if !self.may_copy(group, current, &desired) {
            self.wait(
                Subject::Shard(group),
                "it waits for other copies to or from its members",
            );
            return true;
        }
        let why = fault.map_or("an earlier change was left half done", wrong);
        self.begin(
            record.keyspace,
            Work::Move { group, to },
            format!("shard {group}: {why}"),
        );
        true
    }

    fn keyspace_of(&self, record: &ShardRecord) -> Option<&'a KeyspaceRecord> {
        self.state.keyspaces.get(&record.keyspace)
    }

    /// Begins splits or merges until there are as many shards as wanted. Says whether there are, and nothing is under way.
    fn reshape(&mut self, id: KeyspaceId, keyspace: &KeyspaceRecord) -> bool {
        let mut planned = self.shards_of(id).len();
        let mut quiet = true;
        for operation in self
            .state
            .operations
            .values()
            .filter(|operation| operation.keyspace == id)
        {
            match operation.work {
                Work::Split { cancelled: false, .. } => planned += 1,
                Work::Merge {
                    phase: MergePhase::Unseal,
                    ..
                }
                | Work::Split { cancelled: true, .. } => {}
                Work::Merge { .. } => planned -= 1,
                Work::Move { .. } => continue,
                Work::Create { .. } | Work::Sequence { .. } => return false,
            }
            quiet = false;
        }
        let wanted = usize::try_from(keyspace.shards).unwrap_or(usize::MAX);
        if planned < wanted {
            self.split_some(id, keyspace, wanted - planned);
        } else if planned > wanted {
            self.merge_some(id, keyspace, planned - wanted);
        }
        quiet && planned == wanted
    }

    fn split_some(&mut self, id: KeyspaceId, keyspace: &KeyspaceRecord, count: usize) {
        let shards: Vec<(GroupId, &ShardRecord, Leader<'a>)> = self
            .shards_of(id)
            .iter()
            .filter_map(|(group, record)| Some((*group, *record, self.fit(*group, record)?)))
            .collect();
        if keyspace.source == RevisionSource::Dense {
            match shards.first() {
                Some((shard, ..)) if self.may_begin() => self.begin_sequence(id, keyspace, *shard),
                Some(_) | None => self.wait(Subject::Keyspace(id), "its shard is busy; then it gets a sequencer"),
            }
            return;
        }
        let mut cuts = match keyspace.partitioning {
            Partitioning::Range => self.range_cuts(id, keyspace, &shards),
            Partitioning::Hash { slots, .. } => hash_cuts(slots, &shards),
        };
        if cuts.len() < count {
            let why = match keyspace.partitioning {
                Partitioning::Range => "or has too few keys to be cut in the middle: it waits for data",
                Partitioning::Hash { .. } => "or holds a single slot",
            };
            let (missing, busy) = (count - cuts.len(), "every other shard is busy, not as the map says");
            self.wait(
                Subject::Keyspace(id),
                format!("{missing} more shards are wanted and {busy}, {why}"),
            );
        }
        cuts.truncate(count);
        for (parent, at, why) in cuts {
            let Some(record) = self.state.shards.get(&parent) else {
                continue;
            };
            if !self.may_begin() {
                break;
            }
            let child = self.next_group();
            let work = Work::Split {
                parent,
                child,
                at,
                epoch: record.epoch,
                cancelled: false,
            };
            self.begin(id, work, format!("shard {parent} is cut: {why}"));
        }
    }

    /// Where shards may be cut, the best first, one cut per shard: at keys that somebody named, then where most is.
    fn range_cuts(
        &self,
        id: KeyspaceId,
        keyspace: &KeyspaceRecord,
        shards: &[(GroupId, &ShardRecord, Leader<'a>)],
    ) -> Vec<(GroupId, Bytes, String)> {
        let mut starts: BTreeSet<&Bytes> = self
            .shards_of(id)
            .iter()
            .map(|(_, record)| &record.span.start)
            .collect();
        for operation in self.state.operations.values() {
            if let Work::Split { at, .. } = &operation.work
                && operation.keyspace == id
            {
                starts.insert(at);
            }
        }
        let mut cuts: BTreeMap<GroupId, ()> = BTreeMap::new();
        let mut found = Vec::new();
        for key in keyspace.split_keys.iter().filter(|key| !starts.contains(key)) {
            let shard = shards.iter().find(|(_, record, _)| record.span.contains(key));
            if let Some((group, ..)) = shard
                && cuts.insert(*group, ()).is_none()
            {
                found.push((*group, key.clone(), "somebody named this key".to_owned()));
            }
        }
        let (bytes, writes) = shards.iter().fold((1, 1), |(bytes, writes), (.., leader)| {
            (bytes + leader.seen.bytes, writes + leader.seen.writes_per_second)
        });
        // Shares of the keyspace in millionths, so that bytes and writes can be added.
        let share = |part: u64, whole: u64| u128::from(part) * 1_000_000 / u128::from(whole);
        let mut by_weight: Vec<_> = shards
            .iter()
            .filter(|(group, ..)| !cuts.contains_key(group))
            .filter_map(|(group, record, leader)| {
                let at = leader.seen.middle.clone()?;
                let inside = at > record.span.start && record.span.contains(&at);
                let weight = share(leader.seen.bytes, bytes) + share(leader.seen.writes_per_second, writes);
                inside.then(|| {
                    let why = format!(
                        "it holds {} bytes and takes {} writes a second",
                        leader.seen.bytes, leader.seen.writes_per_second
                    );
                    (weight, *group, at, why)
                })
            })
            .collect();
        by_weight.sort_by_key(|(weight, group, ..)| (Reverse(*weight), *group));
        found.extend(by_weight.into_iter().map(|(_, group, at, why)| (group, at, why)));
        found
    }

    fn merge_some(&mut self, id: KeyspaceId, keyspace: &KeyspaceRecord, count: usize) {
        let shards = self.shards_of(id).to_vec();
        let mut pairs = Vec::new();
        let mut silent = None;
        for pair in shards.windows(2) {
            let [(left, left_record), (right, right_record)] = pair else {
                continue;
            };
            let (Some(left_leader), Some(right_leader)) =
                (self.fit(*left, left_record), self.fit(*right, right_record))
            else {
                continue;
            };
            if let Some(member) = self.silent_member(*left).or_else(|| self.silent_member(*right)) {
                silent = Some(member);
                continue;
            }
            let slots = match keyspace.partitioning {
                Partitioning::Range => 0,
                Partitioning::Hash { slots, .. } => {
                    slot_of(&right_record.span.end).unwrap_or(slots)
                        - slot_of(&Some(left_record.span.start.clone())).unwrap_or(0)
                }
            };
            let named = keyspace.split_keys.contains(&right_record.span.start);
            let bytes = left_leader.seen.bytes + right_leader.seen.bytes;
            pairs.push((named, slots, bytes, *left, *right));
        }
        pairs.sort_unstable();
        let mut taken = BTreeSet::new();
        let mut begun = 0;
        for (_, _, bytes, left, right) in pairs {
            if begun == count || !self.may_begin() {
                return;
            }
            let from: BTreeSet<MemberId> = self.state.shards[&right].replicas.iter().copied().collect();
            let to: BTreeSet<MemberId> = self.state.shards[&left].replicas.iter().copied().collect();
            if taken.contains(&left) || taken.contains(&right) || !self.may_copy(right, &from, &to) {
                continue;
            }
            taken.extend([left, right]);
            begun += 1;
            let work = Work::Merge {
                left,
                right,
                phase: MergePhase::Align,
            };
            let reason = format!("shards {left} and {right} become one: together they hold the least, {bytes} bytes");
            self.begin(id, work, reason);
        }
        if begun < count {
            let why = match silent {
                Some(member) => format!("member {member} does not answer"),
                None => "their neighbours are busy".to_owned(),
            };
            self.wait(
                Subject::Keyspace(id),
                format!("{} fewer shards are wanted and {why}", count - begun),
            );
        }
    }

    /// Begins moves from members that hold many replicas to members that hold few.
    fn even_out(&mut self) {
        let most = self.operations_left();
        if most == 0 || self.placement.is_even() {
            return;
        }
        let mut movable = BTreeMap::new();
        for (group, record) in &self.state.shards {
            if self.fit(*group, record).is_some() {
                movable.insert(*group, record.replicas.iter().copied().collect::<BTreeSet<_>>());
            }
        }
        let found = self
            .placement
            .relief(&movable, most, |member, given| given < self.copies_left(member));
        for relief in found {
            let mut to = movable[&relief.group].clone();
            to.remove(&relief.from);
            to.insert(relief.to);
            if !self.may_begin() || !self.may_copy(relief.group, &movable[&relief.group], &to) {
                continue;
            }
            let work = Work::Move {
                group: relief.group,
                to: to.into_iter().collect(),
            };
            let reason = format!(
                "shard {}: member {} holds more replicas than member {}",
                relief.group, relief.from, relief.to
            );
            self.begin(self.state.shards[&relief.group].keyspace, work, reason);
        }
    }
}

/// What is wrong, for a sentence.
fn wrong(fault: Fault) -> &'static str {
    match fault {
        Fault::Dead => "one of its members has been silent for long",
        Fault::Missing => "it has fewer replicas than wanted",
        Fault::Leaving => "one of its members leaves",
        Fault::Crowded => "two of its replicas would fail together",
        Fault::Surplus => "it has more replicas than wanted",
    }
}

/// The slot that a boundary between hash shards stands before; `None` at both ends.
fn slot_of(boundary: &Option<Bytes>) -> Option<u32> {
    let bytes: [u8; 4] = boundary.as_ref()?.get(..4)?.try_into().ok()?;
    Some(u32::from_be_bytes(bytes))
}

/// Hash shards are halved, the widest first, then the one that holds most.
fn hash_cuts(slots: u32, shards: &[(GroupId, &ShardRecord, Leader<'_>)]) -> Vec<(GroupId, Bytes, String)> {
    let mut cuts: Vec<_> = shards
        .iter()
        .filter_map(|(group, record, leader)| {
            let first = slot_of(&Some(record.span.start.clone())).unwrap_or(0);
            let behind = slot_of(&record.span.end).unwrap_or(slots);
            let width = behind.saturating_sub(first);
            (width > 1).then(|| (width, leader.seen.bytes, *group, first + width / 2))
        })
        .collect();
    cuts.sort_by_key(|(width, bytes, group, _)| (Reverse((*width, *bytes)), *group));
    cuts.into_iter()
        .map(|(width, _, group, at)| {
            let at = Bytes::copy_from_slice(&at.to_be_bytes());
            (group, at, format!("it holds {width} slots, the most"))
        })
        .collect()
}
