//! Members, groups, time and chance.

use crate::group::{Does, Group, Replica, State};
use althing_raft::entry::ConfigState;
use althing_raft::ids::{GroupId, MemberId, Now};
use althing_shard::conductor::{Action, Limits, Observed, Plan, conduct};
use althing_shard::map::{KeyspaceId, MemberRecord, RouteTable, Work};
use althing_shard::meta::{MetaChange, MetaState};
use althing_store::ops::Revision;
use althing_store::partition::RevisionSource;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// One round of looking and doing.
pub(crate) const STEP: Duration = Duration::from_millis(500);

/// What goes wrong, in percent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) lose: u64,
    pub(crate) repeat: u64,
    /// Actions that arrive once more long after, when much has changed.
    pub(crate) late: u64,
    /// Rounds that an action may take to arrive.
    pub(crate) delay: u64,
    /// Plans made from an old state by somebody who does not know yet that it was replaced.
    pub(crate) stale: u64,
    /// Per round: a member dies, a dead one returns.
    pub(crate) die: u64,
    pub(crate) rise: u64,
    /// Per round and group: the leader loses its office.
    pub(crate) depose: u64,
    /// Per round and replica: it stays behind.
    pub(crate) lag: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) up: bool,
    /// Whether it is in the meta group's configuration.
    pub(crate) joined: bool,
    pub(crate) groups: BTreeMap<GroupId, Replica>,
    /// Groups that it ever had.
    pub(crate) had: BTreeSet<GroupId>,
}

pub(crate) struct World {
    rng: u64,
    pub(crate) now: Now,
    pub(crate) limits: Limits,
    pub(crate) faults: Faults,
    pub(crate) members: BTreeMap<MemberId, Member>,
    pub(crate) groups: BTreeMap<GroupId, Group>,
    pub(crate) meta: MetaState,
    pub(crate) observed: Observed,
    /// What earlier conductors planned from.
    past: VecDeque<(MetaState, Observed, Now)>,
    pub(crate) queue: Vec<(Now, Action, u64)>,
    lives: u64,
    /// Whether clients write.
    pub(crate) clients: bool,
    /// What clients were told: partition keys with their revisions.
    pub(crate) acknowledged: BTreeMap<(KeyspaceId, Bytes), i64>,
    pub(crate) newest: BTreeMap<KeyspaceId, i64>,
    pub(crate) refused: u64,
    pub(crate) actions: u64,
    /// Replicas brought to members.
    pub(crate) copies: u64,
    /// Operations that ended, by kind and outcome.
    pub(crate) ended: BTreeMap<&'static str, u64>,
    /// What is done wrong on purpose.
    pub(crate) mutant: Option<Mutant>,
}

/// A rule of the actions' contracts that is broken on purpose: the world must notice, or its silence proves nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mutant {
    /// The map changes whatever its version.
    AnyVersion,
    /// A replica is taken down although its log has grown, or it is another one by now.
    CloseAnyway,
    /// Who is asked to make a sealed state durable says so without having it.
    ConfirmBlindly,
    /// A shard is cut whatever its epoch.
    AnyEpoch,
    /// A group may be born at a member that had it before.
    BornAgain,
    /// A sequencer starts from the beginning.
    StartFromZero,
}

/// How an operation ended, by what the map says of its shards then.
fn outcome(work: &Work, change: &MetaChange) -> &'static str {
    let row = |group: &GroupId| change.shards.get(group);
    match work {
        Work::Create { .. } if !change.keyspaces.is_empty() => "create",
        Work::Create { .. } => "create given up",
        Work::Sequence { shard, .. } if row(shard).is_some() => "sequence",
        Work::Sequence { .. } => "sequence given up",
        Work::Split { child, .. } if row(child).is_some() => "split",
        Work::Split { .. } => "split given up",
        Work::Merge { right, .. } if row(right) == Some(&None) => "merge",
        Work::Merge { .. } => "merge given up",
        Work::Move { group, .. } if row(group).is_some() => "move",
        Work::Move { .. } => "move given up",
    }
}

impl World {
    pub(crate) fn new(seed: u64, members: u64) -> Self {
        let mut world = Self {
            rng: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            now: Now(1_000_000_000_000),
            limits: Limits {
                replace_after: Duration::from_secs(30),
                ..Limits::PRODUCTION
            },
            faults: Faults::default(),
            members: BTreeMap::new(),
            groups: BTreeMap::new(),
            meta: MetaState::default(),
            observed: Observed::default(),
            past: VecDeque::new(),
            queue: Vec::new(),
            lives: 0,
            clients: true,
            acknowledged: BTreeMap::new(),
            newest: BTreeMap::new(),
            refused: 0,
            actions: 0,
            copies: 0,
            ended: BTreeMap::new(),
            mutant: None,
        };
        world.observed.since = world.now;
        for id in 1..=members {
            world.join(id, &[]);
        }
        world.genesis();
        world
    }

    /// The first shard is on the first member, as bootstrap leaves it.
    fn genesis(&mut self) {
        let first = MemberId(1);
        let records = BTreeMap::from([(
            first,
            MemberRecord {
                name: "m-1".to_owned(),
                ..MemberRecord::default()
            },
        )]);
        let change = self.meta.genesis(&records).unwrap();
        self.meta.apply(&change);
        let state = State {
            config: ConfigState {
                voters: BTreeSet::from([first]),
                ..ConfigState::default()
            },
            revision: Revision(1),
            ..State::default()
        };
        self.birth(GroupId::FIRST_SHARD, first, state);
        // The meta group is on all members from the beginning; the conductor leaves it alone.
        let meta = State {
            config: ConfigState {
                voters: self.members.keys().copied().collect(),
                ..ConfigState::default()
            },
            ..State::default()
        };
        self.groups.insert(GroupId::META, Group::born(meta, Some(first)));
        for member in self.members.values_mut() {
            self.lives += 1;
            member.groups.insert(GroupId::META, Replica::at(self.lives, 1));
        }
    }

    pub(crate) fn join(&mut self, id: u64, labels: &[(&str, &str)]) {
        let member = Member {
            name: format!("m-{id}"),
            labels: labels
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            up: true,
            joined: true,
            groups: BTreeMap::new(),
            had: BTreeSet::new(),
        };
        self.members.insert(MemberId(id), member);
    }

    pub(crate) fn birth(&mut self, group: GroupId, member: MemberId, state: State) {
        assert!(!self.groups.contains_key(&group), "group {group} is born twice");
        self.groups.insert(group, Group::born(state, Some(member)));
        let life = self.life();
        let member = self.members.get_mut(&member).unwrap();
        member.groups.insert(group, Replica::at(life, 1));
        member.had.insert(group);
    }

    pub(crate) fn random(&mut self, below: u64) -> u64 {
        // xorshift64* (Vigna, 2016)
        self.rng ^= self.rng >> 12;
        self.rng ^= self.rng << 25;
        self.rng ^= self.rng >> 27;
        (self.rng.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below.max(1)
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        percent > 0 && self.random(100) < percent
    }

    pub(crate) fn life(&mut self) -> u64 {
        self.lives += 1;
        self.lives
    }

    pub(crate) fn up(&self, member: MemberId) -> bool {
        self.members.get(&member).is_some_and(|member| member.up)
    }

    pub(crate) fn replica(&self, member: MemberId, group: GroupId) -> Option<&Replica> {
        self.members.get(&member)?.groups.get(&group)
    }

    fn replica_mut(&mut self, member: MemberId, group: GroupId) -> Option<&mut Replica> {
        self.members.get_mut(&member)?.groups.get_mut(&group)
    }

    /// A wish, as the admin API takes it.
    pub(crate) fn wish(&mut self, change: MetaChange) {
        if !change.is_empty() {
            self.change(&change);
        }
    }

    pub(crate) fn change(&mut self, change: &MetaChange) {
        for id in change
            .operations
            .iter()
            .filter(|(_, row)| row.is_none())
            .map(|(id, _)| id)
        {
            if let Some(operation) = self.meta.operations.get(id) {
                *self.ended.entry(outcome(&operation.work, change)).or_default() += 1;
            }
        }
        self.meta.apply(change);
        self.check_map();
    }

    /// One round: time, faults, Raft, clients, the conductor, its actions.
    pub(crate) fn step(&mut self) -> Plan {
        self.now = self.now.after(STEP);
        self.fate();
        self.raft();
        for _ in 0..3 {
            if self.clients {
                self.client();
            }
        }
        self.look();
        let plan = self.plan();
        self.deliver();
        self.check();
        plan
    }

    fn fate(&mut self) {
        let faults = self.faults;
        let ids: Vec<MemberId> = self.members.keys().copied().collect();
        for id in ids {
            let change = if self.up(id) { faults.die } else { faults.rise };
            if self.chance(change) {
                self.flip(id);
            }
        }
    }

    pub(crate) fn flip(&mut self, id: MemberId) {
        let first_life = self.lives;
        let member = self.members.get_mut(&id).unwrap();
        member.up = !member.up;
        // Every replica begins a new life when the process does. What was applied and not durable is applied again.
        for (number, replica) in member.groups.values_mut().enumerate() {
            replica.life = first_life + 1 + number as u64;
        }
        self.lives += member.groups.len() as u64;
    }

    /// Who conducts, from what it knows, and what becomes of its wishes.
    fn plan(&mut self) -> Plan {
        let present = (self.meta.clone(), self.observed.clone(), self.now);
        self.past.push_back(present);
        if self.past.len() > 12 {
            self.past.pop_front();
        }
        if self.chance(self.faults.stale) {
            let which = self.random(self.past.len() as u64) as usize;
            let (state, seen, now) = self.past[which].clone();
            let plan = conduct(&state, &seen, now, &self.limits);
            self.send(&plan, state.version);
        }
        let plan = conduct(&self.meta, &self.observed, self.now, &self.limits);
        self.send(&plan, self.meta.version);
        plan
    }

    fn send(&mut self, plan: &Plan, version: u64) {
        let faults = self.faults;
        for step in &plan.steps {
            self.actions += 1;
            if self.chance(faults.lose) {
                continue;
            }
            if self.chance(faults.late) {
                let delay = u32::try_from(20 + self.random(60)).unwrap();
                self.queue
                    .push((self.now.after(STEP * delay), step.action.clone(), version));
            }
            let times = if self.chance(faults.repeat) { 2 } else { 1 };
            for _ in 0..times {
                let delay = u32::try_from(self.random(faults.delay + 1)).unwrap();
                self.queue
                    .push((self.now.after(STEP * delay), step.action.clone(), version));
            }
        }
    }

    fn deliver(&mut self) {
        let now = self.now;
        let (due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.queue)
            .into_iter()
            .partition(|(due, ..)| *due <= now);
        self.queue = later;
        for (_, action, version) in due {
            self.execute(action, version);
        }
    }

    /// Elections, replication, applying.
    fn raft(&mut self) {
        let ids: Vec<GroupId> = self.groups.keys().copied().collect();
        for id in ids {
            self.elect(id);
            self.replicate(id);
        }
    }

    fn elect(&mut self, id: GroupId) {
        if self.meta.is_forgotten(id) {
            // It is being taken down, and whatever it still does nobody looks at.
            return;
        }
        let depose = self.faults.depose;
        let deposed = self.chance(depose);
        let group = &self.groups[&id];
        let last = group.last();
        let config = group.now().config.clone();
        let fit = |member: MemberId| self.up(member) && self.replica(member, id).is_some();
        if let Some(leader) = group.leader {
            if fit(leader) && config.is_voter(leader) && config.is_majority(fit) && !deposed {
                if config.is_joint() {
                    let mut next = group.now().clone();
                    next.config.outgoing.clear();
                    next.config.index = althing_raft::ids::Index(last as u64 + 1);
                    self.commit(id, next);
                }
                return;
            }
            self.groups.get_mut(&id).unwrap().leader = None;
            return;
        }
        if !config.is_majority(fit) {
            return;
        }
        // Whoever has all that is committed can win.
        let able = |member: &MemberId| fit(*member) && self.replica(*member, id).unwrap().log == last;
        let candidates: Vec<MemberId> = config.voting().into_iter().filter(able).collect();
        assert!(
            !candidates.is_empty(),
            "group {id} has a quorum of {config:?} and nobody in it has everything that was committed"
        );
        let winner = candidates[self.random(candidates.len() as u64) as usize];
        let group = self.groups.get_mut(&id).unwrap();
        group.term += 1;
        group.leader = Some(winner);
        let next = State {
            does: Does::Nothing,
            ..group.now().clone()
        };
        self.commit(id, next);
    }

    /// Appends an entry, if a majority can have it. Says whether.
    pub(crate) fn commit(&mut self, id: GroupId, state: State) -> bool {
        let lag = self.faults.lag;
        let group = &self.groups[&id];
        let Some(leader) = group.leader else {
            return false;
        };
        let last = group.last();
        let config = group.now().config.clone();
        let fit = |member: MemberId| self.up(member) && self.replica(member, id).is_some();
        if !fit(leader) || !config.is_majority(fit) {
            return false;
        }
        let mut having = BTreeSet::from([leader]);
        let fitting: Vec<MemberId> = config.members().into_iter().filter(|member| fit(*member)).collect();
        for member in &fitting {
            if !self.chance(lag) {
                having.insert(*member);
            }
        }
        if !config.is_majority(|member| having.contains(&member)) {
            having.extend(fitting);
        }
        let group = self.groups.get_mut(&id).unwrap();
        group.states.push(state);
        group.terms.push(group.term);
        for member in having {
            self.replica_mut(member, id).unwrap().log = last + 1;
        }
        self.apply(leader, id, last + 1);
        true
    }

    fn replicate(&mut self, id: GroupId) {
        let last = self.groups[&id].last();
        let config = self.groups[&id].now().config.clone();
        let led = self.groups[&id].leader.is_some();
        let holders: Vec<MemberId> = self
            .members
            .iter()
            .filter(|(_, member)| member.up && member.groups.contains_key(&id))
            .map(|(member, _)| *member)
            .collect();
        for member in holders {
            if self.chance(self.faults.lag) {
                continue;
            }
            if led && config.contains(member) {
                let replica = self.replica(member, id).unwrap();
                let empty = replica.applied == 0;
                let behind = last - replica.log;
                // What a member acknowledged it applies: a cut that lies in its log is not overtaken by a snapshot.
                let cut = |at: usize| matches!(self.groups[&id].states[at].does, Does::Split(_));
                let cuts = (replica.applied + 1..=replica.log).any(cut);
                self.replica_mut(member, id).unwrap().log = last;
                // Who has nothing, or fell too far behind, gets a snapshot: the state without the way to it.
                if empty || (behind >= 3 && !cuts && self.chance(self.faults.lag)) {
                    let replica = self.replica_mut(member, id).unwrap();
                    (replica.applied, replica.durable) = (last, last);
                }
            }
            let replica = self.replica(member, id).unwrap();
            if replica.applied == 0 {
                // A newcomer never walks through old cuts and mergers: logs are cut behind these, so it gets a snapshot.
                continue;
            }
            let up_to = replica.log;
            self.apply(member, id, up_to);
            if self.chance(30) {
                let replica = self.replica_mut(member, id).unwrap();
                replica.durable = replica.applied;
            }
        }
    }

    /// Applies entries one by one, with what they do to other groups at that member.
    fn apply(&mut self, member: MemberId, id: GroupId, up_to: usize) {
        let from = self.replica(member, id).unwrap().applied;
        for at in from + 1..=up_to {
            match self.groups[&id].states[at].does.clone() {
                Does::Nothing => {}
                Does::Split(child) => {
                    let life = self.life();
                    let holder = self.members.get_mut(&member).unwrap();
                    let old = holder.groups.insert(child, Replica::at(life, 1));
                    assert!(
                        old.is_none(),
                        "member {member} has a replica of {child} before it comes to the split that makes it"
                    );
                    holder.had.insert(child);
                }
                Does::Absorb {
                    from,
                    position,
                    operation,
                } => {
                    let has = self.replica(member, from).is_some_and(|right| {
                        let group = &self.groups[&from];
                        let sealed = group.states[right.applied].sealed == Some(operation);
                        sealed && group.position(right.applied).up_to_date_with(position)
                    });
                    if !has {
                        // An order that came late made it a learner, and it has to begin anew; nobody counted on it.
                        assert!(
                            !self.groups[&id].states[at].config.is_voter(member),
                            "member {member} is to absorb {from} into {id} and has not all of it"
                        );
                        let life = self.life();
                        *self.replica_mut(member, id).unwrap() = Replica::empty(life);
                        return;
                    }
                }
            }
            self.replica_mut(member, id).unwrap().applied = at;
        }
    }

    /// A client writes some key, by the newest map.
    fn client(&mut self) {
        let tables = RouteTable::all(&self.meta);
        let Some(which) = tables.len().checked_sub(1) else {
            return;
        };
        let which = self.random(which as u64 + 1) as usize;
        let Some((keyspace, table)) = tables.into_iter().nth(which) else {
            return;
        };
        let key = Bytes::from(format!("{:03}", self.random(200)));
        let partition_key = table.partitioning.partition_key(&key);
        let id = table.shard_of(&key).group;
        let Some(group) = self.groups.get(&id) else {
            return;
        };
        let state = group.now();
        if !state.territory.owns(&key) || state.sealed.is_some() || group.leader.is_none() {
            self.refused += 1;
            return;
        }
        let revision = match state.source {
            RevisionSource::Dense => state.revision.0 + 1,
            RevisionSource::Sequenced => match self.stamp(table.sequencer.map(|sequencer| sequencer.group)) {
                Some(revision) => revision,
                None => {
                    self.refused += 1;
                    return;
                }
            },
        };
        let mut next = State {
            revision: Revision(revision),
            does: Does::Nothing,
            ..self.groups[&id].now().clone()
        };
        next.data.insert(partition_key.clone(), revision);
        if self.commit(id, next) {
            let newest = self.newest.entry(keyspace).or_default();
            assert!(
                revision > *newest,
                "revision {revision} of keyspace {keyspace} comes after {newest}"
            );
            *newest = revision;
            self.acknowledged.insert((keyspace, partition_key), revision);
        }
    }

    fn stamp(&mut self, sequencer: Option<GroupId>) -> Option<i64> {
        let group = self.groups.get_mut(&sequencer?)?;
        group.leader?;
        group.now().ceiling?;
        group.given += 1;
        Some(group.given)
    }

    /// Rounds until nothing is left to do and nothing is under way.
    pub(crate) fn settle(&mut self, most: usize) -> usize {
        for round in 1..=most {
            // What arrives in a round is looked at in the next one.
            let quiet = self.queue.is_empty();
            let plan = self.step();
            if quiet && plan.steps.is_empty() {
                return round;
            }
        }
        let plan = conduct(&self.meta, &self.observed, self.now, &self.limits);
        panic!(
            "no rest after {most} rounds: {:#?} with operations {:#?}",
            plan, self.meta.operations
        );
    }
}
