//! A thousand members, ten thousand shards: how long a plan takes, how much moves, and that it ends.

use althing_raft::entry::ConfigState;
use althing_raft::ids::{GroupId, Index, LogPosition, MemberId, Now, Term};
use althing_raft::io::Role;
use althing_raft::roster::ReadSpec;
use althing_shard::conductor::{Action, GroupSeen, Limits, MemberView, Observed, PeerSeen, Plan, conduct};
use althing_shard::map::{KeyspaceId, KeyspaceRecord, MemberRecord, MemberState, ShardRecord};
use althing_shard::meta::MetaState;
use althing_shard::placement::{Placement, Site};
use althing_store::ops::Revision;
use althing_store::partition::{RevisionSource, Span, Territory};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const MEMBERS: u64 = 1_000;
const SHARDS: u64 = 10_000;
const REPLICAS: u64 = 3;
const ZONES: u64 = 10;
/// Wide limits: what converges with them converges with narrow ones, later.
const LIMITS: Limits = Limits {
    operations: 1_000,
    transfers: 1_000,
    closes: 10_000,
    ..Limits::PRODUCTION
};

/// A cluster whose members do at once what they are told.
struct Cluster {
    state: MetaState,
    seen: Observed,
    now: Now,
    plans: Vec<Duration>,
    actions: usize,
    /// Replicas brought to members.
    copies: usize,
}

/// Time for people; no assertion looks at it.
#[allow(clippy::disallowed_methods, reason = "the test measures, it does not decide")]
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = std::time::Instant::now();
    let result = work();
    (result, start.elapsed())
}

fn record(id: u64) -> MemberRecord {
    MemberRecord {
        name: format!("m-{id}"),
        labels: BTreeMap::from([("zone".to_owned(), format!("z{}", id % ZONES))]),
        state: MemberState::Active,
    }
}

fn boundary(number: u64) -> Bytes {
    Bytes::from(format!("{number:05}"))
}

impl Cluster {
    /// Every shard where rendezvous hashing with zones puts it, one after another.
    fn new() -> (Self, Duration) {
        let mut state = MetaState::default();
        let members: BTreeMap<MemberId, MemberRecord> = (1..=MEMBERS).map(|id| (MemberId(id), record(id))).collect();
        let change = state.genesis(&members).unwrap();
        state.apply(&change);
        let keyspace: &mut KeyspaceRecord = state.keyspaces.get_mut(&KeyspaceId::DEFAULT).unwrap();
        keyspace.shards = u32::try_from(SHARDS).unwrap();
        keyspace.replicas = Some(u32::try_from(REPLICAS).unwrap());
        keyspace.source = RevisionSource::Sequenced;
        state.shards.clear();
        let sites = members.iter().map(|(id, record)| (*id, Site::of(record))).collect();
        let mut placement = Placement::new(sites);
        let nowhere = BTreeSet::new();
        let (placed, time) = timed(|| {
            let place = |id| {
                let placed = placement.desired(GroupId(id), &nowhere, Some(3));
                placement.shift(&nowhere, &placed);
                (GroupId(id), placed)
            };
            (1..=SHARDS).map(place).collect::<BTreeMap<_, _>>()
        });
        for (group, replicas) in &placed {
            let shard = ShardRecord {
                keyspace: KeyspaceId::DEFAULT,
                span: Span {
                    start: if group.0 == 1 { Bytes::new() } else { boundary(group.0) },
                    end: (group.0 < SHARDS).then(|| boundary(group.0 + 1)),
                },
                epoch: 1,
                replicas: replicas.iter().copied().collect(),
                sequencer: false,
                parent: None,
            };
            state.shards.insert(*group, shard);
        }
        state.counters.next_group = SHARDS + 1;
        let mut cluster = Self {
            state,
            seen: Observed::default(),
            now: Now(1_000_000_000_000),
            plans: Vec::new(),
            actions: 0,
            copies: 0,
        };
        cluster.seen.since = cluster.now;
        for id in 1..=MEMBERS {
            cluster.join(id);
        }
        for (group, shard) in cluster.state.shards.clone() {
            let config = ConfigState {
                voters: shard.replicas.iter().copied().collect(),
                ..ConfigState::default()
            };
            let leader = shard.replicas[usize::try_from(group.0 % REPLICAS).unwrap()];
            for member in &shard.replicas {
                cluster.put(*member, group, &config, Some(leader), 1);
            }
        }
        (cluster, time)
    }

    fn join(&mut self, id: u64) {
        let record = record(id);
        let view = MemberView {
            name: record.name,
            labels: record.labels,
            heard: Some(self.now),
            ..MemberView::default()
        };
        self.seen.members.insert(MemberId(id), view);
    }

    fn groups(&mut self, member: MemberId) -> &mut BTreeMap<GroupId, GroupSeen> {
        &mut self.seen.members.get_mut(&member).unwrap().groups
    }

    /// A replica with everything up to `index`.
    fn put(&mut self, member: MemberId, group: GroupId, config: &ConfigState, leader: Option<MemberId>, index: u64) {
        let position = LogPosition {
            term: Term(1),
            index: Index(index),
        };
        let peer = PeerSeen {
            matched: Index(index),
            active: true,
            snapshot: false,
        };
        let leads = leader == Some(member);
        let peers = config.members().into_iter().filter(|peer| *peer != member && leads);
        let shard = &self.state.shards[&group];
        let seen = GroupSeen {
            life: 1,
            role: if leads { Role::Leader } else { Role::Follower },
            leader,
            term: Term(1),
            config: config.clone(),
            applied: position,
            last: position,
            durable: position,
            peers: peers.map(|member| (member, peer)).collect(),
            hibernating: true,
            reads: ReadSpec::default(),
            territory: Territory {
                span: shard.span.clone(),
                epoch: shard.epoch,
                ..Territory::default()
            },
            source: RevisionSource::Sequenced,
            revision: Revision(1),
            sealed: None,
            transactions: 0,
            ceiling: None,
            bytes: 1_000,
            keys: 10,
            writes_per_second: 0,
            middle: None,
        };
        self.groups(member).insert(group, seen);
    }

    fn reconfigure(&mut self, group: GroupId, leader: MemberId, config: &ConfigState) {
        let before = self.groups(leader)[&group].config.members();
        for member in before.union(&config.members()) {
            self.put(*member, group, config, Some(leader), config.index.0.max(1));
        }
    }

    fn plan(&mut self) -> Plan {
        let (plan, time) = timed(|| conduct(&self.state, &self.seen, self.now, &LIMITS));
        self.plans.push(time);
        plan
    }

    /// Plans and does until nothing is left.
    fn settle(&mut self) -> usize {
        for round in 0..10_000 {
            let plan = self.plan();
            if plan.steps.is_empty() {
                return round;
            }
            self.actions += plan.steps.len();
            for step in plan.steps {
                self.execute(step.action);
            }
        }
        panic!("no rest");
    }

    fn execute(&mut self, action: Action) {
        match action {
            Action::Change(change) => self.state.apply(&change),
            Action::Open { member, group } => {
                self.copies += 1;
                self.put(member, group, &ConfigState::default(), None, 0);
            }
            Action::Close { member, group, .. } => {
                self.groups(member).remove(&group);
            }
            Action::Configure {
                leader,
                group,
                step,
                expected,
                ..
            } => {
                let present = self.groups(leader)[&group].config.clone();
                assert_eq!(present.index, expected);
                let mut next = present.after(&step, Index(present.index.0 + 1));
                next.outgoing.clear();
                self.reconfigure(group, leader, &next);
            }
            Action::Transfer { leader, group, to } => {
                let config = self.groups(leader)[&group].config.clone();
                self.reconfigure(group, to, &config);
            }
            Action::Create { .. }
            | Action::Command { .. }
            | Action::Reads { .. }
            | Action::ConfirmSealed { .. }
            | Action::StartSequencer { .. } => panic!("nothing but replicas should change: {action:?}"),
        }
    }

    fn loads(&self) -> (usize, usize) {
        let mut loads: BTreeMap<MemberId, usize> = self
            .state
            .members
            .iter()
            .filter(|(_, record)| record.state == MemberState::Active)
            .map(|(id, _)| (*id, 0))
            .collect();
        for shard in self.state.shards.values() {
            for member in &shard.replicas {
                *loads.get_mut(member).unwrap() += 1;
            }
        }
        (*loads.values().min().unwrap(), *loads.values().max().unwrap())
    }

    fn tell(&mut self, what: &str, rounds: usize, least: usize) {
        let total: Duration = self.plans.iter().sum();
        let longest = self.plans.iter().max().unwrap();
        println!(
            "{what}: {rounds} rounds, {} actions, {} replicas moved (at least {least} have to); {} plans, {:?} each, {longest:?} at most; loads {:?}",
            self.actions,
            self.copies,
            self.plans.len(),
            total / u32::try_from(self.plans.len()).unwrap(),
            self.loads(),
        );
        (self.actions, self.copies) = (0, 0);
        self.plans.clear();
    }

    fn check(&self) {
        assert!(self.state.operations.is_empty());
        let sites = self
            .state
            .members
            .iter()
            .map(|(id, record)| (*id, Site::of(record)))
            .collect();
        let placement = Placement::new(sites);
        for (group, shard) in &self.state.shards {
            assert_eq!(shard.replicas.len() as u64, REPLICAS);
            let zones: BTreeSet<&Option<String>> = shard
                .replicas
                .iter()
                .map(|member| &placement.sites()[member].zone)
                .collect();
            assert_eq!(
                zones.len() as u64,
                REPLICAS,
                "shard {group} has two replicas in one zone"
            );
        }
    }
}

#[test]
fn a_thousand_members_with_ten_thousand_shards_converge_and_move_the_least() {
    let (mut cluster, time) = Cluster::new();
    let (fewest, most) = cluster.loads();
    println!(
        "placing {SHARDS} shards of {REPLICAS} replicas on {MEMBERS} members from scratch: {time:?}, loads {fewest} to {most}"
    );
    assert!(most - fewest <= 2, "{fewest} to {most}");
    let rounds = cluster.settle();
    cluster.tell("at rest", rounds, 0);
    cluster.check();

    // One member more: it gets its share, from others, and nothing else moves.
    cluster.join(MEMBERS + 1);
    let rounds = cluster.settle();
    let share = usize::try_from(SHARDS * REPLICAS / (MEMBERS + 1)).unwrap();
    let moved = cluster.copies;
    cluster.tell("one member more", rounds, share);
    cluster.check();
    assert!(
        (share - 1..=share + 1).contains(&moved),
        "{moved} replicas moved, its share is {share}"
    );

    // One member leaves: what it held goes elsewhere, and nothing else moves.
    let leaver = MemberId(7);
    let held = cluster.state.placed_on(leaver).len();
    let change = cluster.state.set_member_state(leaver, MemberState::Draining).unwrap();
    cluster.state.apply(&change);
    let rounds = cluster.settle();
    let moved = cluster.copies;
    cluster.tell("one member drained", rounds, held);
    assert!(cluster.state.placed_on(leaver).is_empty());
    cluster.state.members.remove(&leaver);
    cluster.seen.members.remove(&leaver);
    cluster.check();
    assert!(
        (held..=held + held / 10).contains(&moved),
        "{moved} replicas moved, the leaver held {held}"
    );

    // One member dies: likewise, after a while.
    let victim = MemberId(500);
    let held = cluster.state.placed_on(victim).len();
    cluster.now = cluster.now.after(LIMITS.replace_after * 2);
    for (id, view) in &mut cluster.seen.members {
        if *id != victim {
            view.heard = Some(cluster.now);
        }
    }
    for group in cluster.state.placed_on(victim) {
        let replicas = cluster.state.shards[&group].replicas.clone();
        let heir = replicas.iter().copied().find(|member| *member != victim).unwrap();
        let config = cluster.groups(heir)[&group].config.clone();
        if cluster.groups(victim)[&group].role == Role::Leader {
            cluster.reconfigure(group, heir, &config);
        }
    }
    let rounds = cluster.settle();
    let moved = cluster.copies;
    cluster.tell("one member dead", rounds, held);
    assert!(cluster.state.placed_on(victim).is_empty());
    assert!(
        (held..=held + held / 10).contains(&moved),
        "{moved} replicas moved, the victim held {held}"
    );
}
