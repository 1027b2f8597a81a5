//! Everything together, in one queue of events.

use crate::rng::Rng;
use crate::spread::client::{Call, Client, Record};
use crate::spread::event::{Asker, Body, Event, Reply};
use crate::spread::group::Group;
use crate::spread::leader::{Leader, Stamped};
use crate::spread::{Counts, Rule, Run, Violation};
use althing_raft::ids::{GroupId, MemberId};
use althing_raft::io::RequestId;
use althing_shard::map::{KeyspaceId, KeyspaceRecord, MemberRecord, RouteTable, ShardRecord};
use althing_shard::meta::MetaState;
use althing_shard::sequencer::{self, Sequencer};
use althing_store::ops::{Command, Partitioning, Revision, RevisionSource, ShardCommand, Span, Territory, TxnId};
use bytes::Bytes;
use std::collections::BTreeMap;

/// Replicas of every group.
pub(super) const NODES: usize = 3;
/// Clients.
pub(super) const CLIENTS: usize = 5;
/// Requests of a run.
const REQUESTS: usize = 120;
/// Events after which a run that does not come to rest is given up.
const EVENTS_MAX: u64 = 400_000;
pub(super) const SEQUENCER: GroupId = GroupId(1);

pub(super) const MS: u64 = 1000;
/// The slowest message.
pub(super) const LATEST: u64 = 30 * MS;

/// How bad things are, in thousandths; some are left out in some runs (swarm testing, Groce et al., ISSTA 2012).
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    /// Messages that are lost, come twice, or come very late.
    pub(super) loss: u64,
    pub(super) repeat: u64,
    pub(super) slow: u64,
    /// Steps of a transaction after which its client dies.
    pub(super) die: u64,
    /// Microseconds between accidents, at most.
    pub(super) pause: u64,
}

impl Weather {
    fn draw(rng: &mut Rng) -> Self {
        let mut one_of = |choices: &[u64]| *rng.pick(choices).expect("there are choices");
        Self {
            loss: one_of(&[0, 5, 30]),
            repeat: one_of(&[0, 20, 100]),
            slow: one_of(&[0, 10, 60]),
            die: one_of(&[0, 3, 15]),
            pause: one_of(&[15, 40, 150]) * MS,
        }
    }
}

pub(super) struct World {
    pub(super) run: Run,
    pub(super) weather: Weather,
    pub(super) rng: Rng,
    pub(super) now: u64,
    /// Counts everything that happens, so that no two moments are equal.
    pub(super) moment: u64,
    pub(super) queue: BTreeMap<(u64, u64), Event>,
    pub(super) table: RouteTable,
    pub(super) groups: BTreeMap<GroupId, Group>,
    pub(super) leaders: BTreeMap<(GroupId, usize), Leader>,
    pub(super) sequencers: Vec<Sequencer>,
    pub(super) askers: BTreeMap<RequestId, Asker>,
    /// With `StampsDieWithLeadership` broken: what goes into the log when a node leads again.
    pub(super) stash: BTreeMap<(GroupId, usize), Stamped>,
    pub(super) clients: Vec<Client>,
    pub(super) records: Vec<Record>,
    pub(super) txns: BTreeMap<TxnId, usize>,
    /// What took effect, by revision: the request.
    pub(super) effects: BTreeMap<Revision, usize>,
    pub(super) counts: Counts,
    pub(super) violation: Option<Violation>,
    /// Who has the lock that clients fight for.
    pub(super) holder: Option<usize>,
    /// Whether anything goes wrong.
    pub(super) chaos: bool,
    pub(super) numbers: u64,
}

/// A sequenced keyspace of four shards with two keys each, or hashed.
fn table(hashed: bool) -> RouteTable {
    let mut state = MetaState::default();
    let members = BTreeMap::from([(MemberId(1), MemberRecord::default())]);
    let change = state.genesis(&members).expect("a fresh map takes a genesis");
    state.apply(&change);
    let (partitioning, cuts) = if hashed {
        let slots = Partitioning::Hash {
            slots: 64,
            prefix_segments: Some(2),
        };
        let cut = |slot: u32| Bytes::copy_from_slice(&slot.to_be_bytes());
        (slots, [16, 32, 48].map(cut))
    } else {
        let cuts = [&b"c"[..], b"e", b"g"];
        (Partitioning::Range, cuts.map(Bytes::from_static))
    };
    let record = KeyspaceRecord {
        partitioning,
        source: RevisionSource::Sequenced,
        ..state.keyspaces[&KeyspaceId::DEFAULT].clone()
    };
    state.keyspaces.insert(KeyspaceId::DEFAULT, record);
    let first = state.shards.remove(&GroupId::FIRST_SHARD).expect("a shard was born");
    let starts = std::iter::once(Bytes::new()).chain(cuts.iter().cloned());
    let ends = cuts.iter().cloned().map(Some).chain([None]);
    for (number, (start, end)) in starts.zip(ends).enumerate() {
        let shard = ShardRecord {
            span: Span { start, end },
            epoch: 1,
            ..first.clone()
        };
        state.shards.insert(GroupId(10 - number as u64), shard);
    }
    state.counters.next_group = 11;
    let mut tables = RouteTable::all(&state);
    tables.remove(&KeyspaceId::DEFAULT).expect("the keyspace serves")
}

impl World {
    pub(super) fn new(run: Run, mut rng: Rng) -> Self {
        let table = table(rng.chance(500));
        let mut groups = BTreeMap::from([(SEQUENCER, Group::new(SEQUENCER))]);
        let start = Command::Txn(sequencer::start(Revision(1)));
        groups[&SEQUENCER].apply(start, None);
        for route in table.shards() {
            let group = Group::new(route.group);
            let territory = Territory {
                partitioning: table.partitioning,
                span: route.span.clone(),
                epoch: route.epoch,
            };
            let source = RevisionSource::Sequenced;
            group.apply(Command::Shard(ShardCommand::Settle { territory, source }), None);
            groups.insert(route.group, group);
        }
        let mut world = Self {
            run,
            weather: Weather::draw(&mut rng),
            rng,
            now: 0,
            moment: 0,
            queue: BTreeMap::new(),
            table,
            groups,
            leaders: BTreeMap::new(),
            sequencers: vec![Sequencer::default(); NODES],
            askers: BTreeMap::new(),
            stash: BTreeMap::new(),
            clients: vec![Client::default(); CLIENTS],
            records: Vec::new(),
            txns: BTreeMap::new(),
            effects: BTreeMap::new(),
            counts: Counts::default(),
            violation: None,
            holder: None,
            chaos: true,
            numbers: 0,
        };
        for group in world.groups.keys().copied().collect::<Vec<_>>() {
            world.at(0, Event::Elect { group });
        }
        for client in 0..CLIENTS {
            // Clocks from half to twice as fast.
            world.clients[client].rate = world.rng.between(500, 2000);
            world.at(0, Event::Reborn { client });
        }
        world.at(5 * MS, Event::Nemesis);
        world
    }

    pub(super) fn shards(&self) -> impl Iterator<Item = &Group> {
        self.groups.values().filter(|group| group.id != SEQUENCER)
    }

    pub(super) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub(super) fn is_chaos(&self) -> bool {
        self.chaos
    }

    pub(super) fn broken(&self, rule: Rule) -> bool {
        self.run.broken == Some(rule)
    }

    /// Whether there are requests left to make.
    pub(super) fn goes_on(&self) -> bool {
        self.records.len() < REQUESTS
    }

    pub(super) fn now(&self) -> u64 {
        self.now
    }

    pub(super) fn at(&mut self, delay: u64, event: Event) {
        let number = self.number();
        self.queue.insert((self.now + delay, number), event);
    }

    /// After so long by a client's own clock.
    pub(super) fn by_clock(&mut self, client: usize, delay: u64, event: Event) {
        let delay = delay * self.clients[client].rate / 1000;
        self.at(delay, event);
    }

    /// How long a message takes.
    pub(super) fn delay(&mut self) -> u64 {
        if self.chaos && self.rng.chance(self.weather.slow) {
            self.rng.between(3 * MS, LATEST)
        } else if self.chaos && self.rng.chance(150) {
            self.rng.between(500, 3 * MS)
        } else {
            self.rng.between(50, 400)
        }
    }

    /// Sends a message, which may be lost, and may come twice if that is no harm by what is promised.
    pub(super) fn send(&mut self, event: Event, twice: bool) {
        if self.chaos && self.rng.chance(self.weather.loss) {
            return;
        }
        if self.chaos && twice && self.rng.chance(self.weather.repeat) {
            let delay = self.delay();
            self.at(delay, event.clone());
        }
        let delay = self.delay();
        self.at(delay, event);
    }

    /// Bad weather, until all requests were made.
    pub(super) fn chaos(&mut self) -> Result<(), Violation> {
        self.until(|world| !world.goes_on() && world.clients.iter().all(|client| client.current.is_none()))
    }

    /// Good weather, until nothing is left to do; then whatever dead clients left is ended.
    pub(super) fn calm(&mut self) -> Result<(), Violation> {
        self.chaos = false;
        for group in self.groups.keys().copied().collect::<Vec<_>>() {
            self.at(0, Event::Elect { group });
        }
        // Whatever is still under way arrives.
        let end = self.now + LATEST + MS;
        self.at(LATEST + 2 * MS, Event::Nemesis);
        self.until(|world| world.now > end)?;
        let rests = |world: &Self| world.clients.iter().all(|client| client.tasks.is_empty());
        self.until(|world| rests(world) && world.clients.iter().all(|client| client.alive))?;
        self.free_all();
        self.until(rests)?;
        self.forget_all();
        self.until(rests)?;
        for group in self.shards() {
            if !group.mvcc.prepared().is_empty() || !group.mvcc.decided().is_empty() {
                let (id, mvcc) = (group.id, &group.mvcc);
                let text = format!("shard {id} still holds {:?} and {:?}", mvcc.prepared(), mvcc.decided());
                return Err(Violation(text));
            }
        }
        Ok(())
    }

    fn until(&mut self, done: impl Fn(&Self) -> bool) -> Result<(), Violation> {
        while !done(self) {
            let Some(((at, _), event)) = self.queue.pop_first() else {
                return Err(Violation(
                    "nothing is left to happen, and something is left to do".to_owned(),
                ));
            };
            self.now = at;
            self.moment += 1;
            self.counts.events += 1;
            if self.counts.events > EVENTS_MAX {
                let tasks: Vec<_> = self
                    .clients
                    .iter()
                    .map(|client| (client.current, &client.tasks))
                    .collect();
                return Err(Violation(format!("{EVENTS_MAX} events and no end: {tasks:?}")));
            }
            self.happen(event);
            if let Some(violation) = self.violation.take() {
                return Err(violation);
            }
        }
        Ok(())
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::ToNode {
                node,
                group,
                client,
                life,
                call,
                record,
                body,
            } => self.arrive(node, group, (client, life, call), record, body),
            Event::ToClient {
                client,
                life,
                call,
                reply,
            } => {
                if self.lives(client, life) {
                    self.replied(client, call, reply);
                }
            }
            Event::Ask { node, asker, count } => {
                let request = RequestId(self.number());
                self.askers.insert(request, asker);
                self.sequence(node, sequencer::Input::Request { request, count });
            }
            Event::Told {
                group,
                node,
                term,
                question,
                first,
            } => self.told(group, node, term, question, first),
            Event::Commit { group, term } => self.commit(group, term),
            Event::Check { group, node, round } => {
                let of = &self.groups[&group];
                let led = of.leads(node).then_some(of.term);
                let delay = self.delay();
                self.at(
                    delay,
                    Event::Checked {
                        group,
                        node,
                        round,
                        led,
                    },
                );
            }
            Event::Checked {
                group,
                node,
                round,
                led,
            } => self.checked(group, node, round, led),
            Event::Raised { node, attempt, done } => self.sequence(node, sequencer::Input::Raised { attempt, done }),
            Event::Restart { node } => {
                if self.groups[&SEQUENCER].leads(node) {
                    self.counts_up(node);
                }
            }
            Event::Elect { group } => self.elect(group),
            Event::Elected { group, term, node } => self.elected(group, term, node),
            Event::Learns { group, node, term } => self.learns(group, node, term),
            Event::LeaderTick { group, node, term } => {
                let Some(leader) = self
                    .leaders
                    .get_mut(&(group, node))
                    .filter(|leader| leader.term == term)
                else {
                    return;
                };
                let questions = leader.again();
                self.ask(group, node, term, questions);
                self.at(5 * MS, Event::LeaderTick { group, node, term });
            }
            Event::Timeout { client, life, call } => {
                if self.lives(client, life) {
                    self.timed_out(client, call);
                }
            }
            Event::Deadline { client, life, task } => {
                if self.lives(client, life) {
                    self.deadline(client, task);
                }
            }
            Event::Tick { client, life } => {
                if self.lives(client, life) {
                    self.by_clock(client, 2 * MS, Event::Tick { client, life });
                    self.tick(client);
                }
            }
            Event::Next { client, life } => {
                if self.lives(client, life) {
                    self.next(client);
                }
            }
            Event::Reborn { client } => {
                let life = self.number();
                let this = &mut self.clients[client];
                this.life = life;
                this.alive = true;
                self.by_clock(client, 2 * MS, Event::Tick { client, life });
                self.by_clock(client, MS, Event::Next { client, life });
            }
            Event::Nemesis => self.nemesis(),
        }
    }

    pub(super) fn lives(&self, client: usize, life: u64) -> bool {
        self.clients[client].alive && self.clients[client].life == life
    }

    /// Begins what follows a request.
    pub(super) fn rest(&mut self, client: usize) {
        let life = self.clients[client].life;
        let pause = self.rng.below(4 * MS);
        self.by_clock(client, pause, Event::Next { client, life });
    }

    pub(super) fn arm_deadline(&mut self, client: usize, task: u64) {
        let life = self.clients[client].life;
        let wait = self.rng.between(15 * MS, 80 * MS);
        self.by_clock(client, wait, Event::Deadline { client, life, task });
    }

    pub(super) fn elect_now(&mut self, group: GroupId) {
        self.at(0, Event::Elect { group });
    }

    /// Asks a group something.
    pub(super) fn call(&mut self, client: usize, call: Call, record: usize, body: Body) {
        let number = self.number();
        let this = &mut self.clients[client];
        this.calls.insert(number, call);
        let (life, group) = (this.life, call.group);
        let node = *this.guess.entry(group).or_insert(0);
        // The network repeats nothing by itself; what clients may repeat comes twice now and then.
        let twice = match &body {
            Body::Write(_) | Body::Propose(ShardCommand::Prepare { .. }) => false,
            Body::Propose(_) | Body::Read(_) | Body::Revisions(_) => true,
        };
        let event = Event::ToNode {
            node,
            group,
            client,
            life,
            call: number,
            record,
            body,
        };
        self.send(event, twice);
        let wait = self.rng.between(4 * MS, 15 * MS);
        let call = number;
        self.by_clock(client, wait, Event::Timeout { client, life, call });
    }

    pub(super) fn sequencer_group(&self) -> GroupId {
        SEQUENCER
    }

    pub(super) fn reply(&mut self, client: usize, call: u64, life: u64, reply: Reply) {
        let event = Event::ToClient {
            client,
            life,
            call,
            reply,
        };
        self.send(event, true);
    }

    pub(super) fn group(&self, group: GroupId) -> &Group {
        &self.groups[&group]
    }
}
