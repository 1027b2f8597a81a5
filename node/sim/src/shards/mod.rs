//! The world of many shards: machines with many groups each, a map, whoever conducts, and clients whose routes may be old.
//!
//! As in the world of one group (`crate::world`) everything that happens is a [`Todo`] in one queue ordered by (time, sequence), and
//! production code is inside: the hosts with their Raft cores, the log on a disk that crashes, the state machines, the pure
//! conductor and the wire format of peers. What production does in asynchronous shells is done here by tasks (`task`) that follow the
//! same steps: calls between nodes, life cycle of groups, sequencers, routes, the conductor's shell.
//!
//! What a run came to is judged by `judge`, from what state machines applied and from what clients were told.

mod apply;
mod call;
mod calm;
mod client;
mod conductor;
mod judge;
mod keyspace;
mod lifecycle;
mod local;
mod machine;
mod nemesis;
mod observe;
mod sequencer;
mod spread;
mod task;
mod territories;
mod turn;
mod weather;

use crate::instant::Instant;
use crate::mutant::{Mutant, Sabotage};
use crate::rng::Rng;
use crate::run::Run;
use crate::world::Counts;
use crate::world::conditions::MS;
use crate::world::machine::{Clock, Parcel};
use crate::world::net::Network;
use crate::world::trace::Trace;
use crate::world::watch::Watch;
use althing_raft::entry::ConfigState;
use althing_raft::ids::{GroupId, LogPosition, MemberId, Term};
use althing_shard::{Event, Ticket, WriteToken};
use althing_store::MemStore;
use althing_wal::sim_disk::SimDisk;
use bytes::Bytes;
use call::{Ask, CallError, Reply};
use judge::Judge;
use machine::Machine;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use task::{Answer, Promise, Tasks, promise};
use weather::Weather;

/// Something that will happen.
pub(crate) enum Todo {
    /// A host's deadline.
    Wake { machine: usize, boot: u64 },
    /// A host has something to take in.
    Tell { machine: usize, boot: u64, event: Event },
    /// Bytes of a peer arrive.
    Arrive { to: usize, frame: Bytes },
    /// A snapshot arrives, or its sender learns that it did not.
    Snapshot {
        from: usize,
        from_boot: u64,
        to: usize,
        group: GroupId,
        term: Term,
        parcel: Parcel,
        lost: bool,
    },
    /// A call arrives.
    Call {
        from: usize,
        to: usize,
        ask: Ask,
        reply: Promise<Result<Reply, CallError>>,
    },
    /// Its answer arrives.
    Reply {
        from: usize,
        boot: u64,
        answer: Result<Reply, CallError>,
        reply: Promise<Result<Reply, CallError>>,
    },
    /// The log's thread has finished a sync.
    Synced { machine: usize, boot: u64 },
    /// A sabotaged log's thread says so before it has.
    SaidSynced {
        machine: usize,
        boot: u64,
        token: WriteToken,
    },
    /// The state machines' thread has finished a job.
    Worked { machine: usize, boot: u64 },
    /// Time to make the states durable.
    Checkpoint { machine: usize, boot: u64 },
    /// They are durable now.
    Checkpointed {
        machine: usize,
        boot: u64,
        engine: MemStore,
        number: u64,
        positions: BTreeMap<GroupId, (u64, LogPosition)>,
    },
    /// A crashed machine starts again.
    Start { machine: usize },
    /// Somebody has waited long enough.
    Timer {
        machine: Option<usize>,
        promise: Promise<()>,
    },
    /// Bad luck is drawn.
    Fault,
    /// A full disk has space again.
    DiskFreed { machine: usize },
    /// Somebody wishes for another map.
    Wish,
    /// Chaos ends.
    Calm,
    /// Is the world whole again?
    Look,
}

/// What tasks are to be begun by what happened.
#[expect(clippy::large_enum_variant, reason = "a handful at a time")]
enum Errand {
    /// A host wants revisions.
    Stamp {
        machine: usize,
        boot: u64,
        group: GroupId,
        ticket: Ticket,
        count: u32,
    },
    /// A call is to be answered.
    Answer {
        from: usize,
        to: usize,
        ask: Ask,
        reply: Promise<Result<Reply, CallError>>,
    },
    /// A state machine gave birth to another.
    Begin {
        machine: usize,
        boot: u64,
        group: GroupId,
        store: machine::Store,
    },
    /// A process began.
    Started { machine: usize, boot: u64 },
    /// Somebody wishes for another map.
    Wish,
    /// And for the last one.
    LastWish,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub(crate) struct Outcomes {
    pub(crate) violations: Vec<String>,
    pub(crate) counts: Counts,
    pub(crate) trace_hash: u64,
    pub(crate) simulated_ns: u64,
}

/// All of it, but for tasks.
pub(crate) struct World {
    pub(crate) weather: Weather,
    mutant: Option<Mutant>,
    pub(crate) now: u64,
    sequence: u64,
    queue: BTreeMap<(u64, u64), Todo>,
    errands: Vec<Errand>,
    /// Machines whose process has just ended.
    ended: Vec<usize>,
    pub(crate) machines: Vec<Machine>,
    net: Network,
    rng: Rng,
    watches: BTreeMap<GroupId, Watch>,
    /// Groups that hold no keys but a ceiling.
    sequencers: BTreeSet<GroupId>,
    pub(crate) judge: Judge,
    pub(crate) trace: Trace,
    pub(crate) counts: Counts,
    instant: Instant,
    /// Promises broken that no group's onlooker sees.
    violations: Vec<String>,
    calm_at: Option<u64>,
    /// It is known what is wanted in the end.
    last_wish: bool,
    /// Clients that have not finished.
    pub(crate) clients_busy: usize,
    done: bool,
}

/// All of it.
pub(crate) struct Ground {
    pub(crate) world: RefCell<World>,
    pub(crate) tasks: Tasks,
    seed: u64,
}

/// One life of one node, for its tasks.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) ground: Rc<Ground>,
    pub(crate) number: usize,
    pub(crate) boot: u64,
}

/// Runs a seed to the end.
pub(crate) fn run(run: Run, now: &Rc<Cell<u64>>) -> Outcomes {
    let ground = Rc::new(Ground {
        world: RefCell::new(World::new(run)),
        tasks: Tasks::default(),
        seed: run.seed,
    });
    ground.world.borrow_mut().genesis();
    for client in 0..ground.world.borrow().weather.clients() {
        let there = Rc::clone(&ground);
        ground
            .tasks
            .spawn(None, async move { client::act(there, client).await });
    }
    ground.drive(now);
    // Tasks know the ground that they stand on.
    ground.tasks.end();
    let mut world = ground.world.borrow_mut();
    world.outcomes()
}

impl Ground {
    fn drive(self: &Rc<Self>, now: &Cell<u64>) {
        loop {
            self.settle();
            let mut world = self.world.borrow_mut();
            if world.done || world.broken() {
                return;
            }
            let Some(((at, _), todo)) = world.queue.pop_first() else {
                return;
            };
            assert!(at >= world.now, "invariant: time does not go back");
            world.now = at;
            now.set(at);
            world.counts.events += 1;
            if let Err(stuck) = world.instant.event(at) {
                world.violation(stuck);
            }
            world.take(todo);
        }
    }

    /// Lets tasks do what they can.
    fn settle(self: &Rc<Self>) {
        loop {
            let (ended, errands) = {
                let mut world = self.world.borrow_mut();
                (std::mem::take(&mut world.ended), std::mem::take(&mut world.errands))
            };
            let idle = ended.is_empty() && errands.is_empty();
            ended.into_iter().for_each(|machine| self.tasks.end_of(machine));
            errands.into_iter().for_each(|errand| self.begin(errand));
            self.tasks.run();
            if idle && self.world.borrow().errands.is_empty() {
                return;
            }
        }
    }

    fn begin(self: &Rc<Self>, errand: Errand) {
        match errand {
            Errand::Stamp {
                machine,
                boot,
                group,
                ticket,
                count,
            } => {
                if let Some(node) = self.node(machine, boot) {
                    self.tasks
                        .spawn(Some(machine), async move { node.stamp(group, ticket, count).await });
                }
            }
            Errand::Answer { from, to, ask, reply } => {
                let boot = self.world.borrow().machines[to].boot;
                if let Some(node) = self.node(to, boot) {
                    self.tasks.spawn(Some(to), async move {
                        let answer = node.answer(ask).await;
                        node.ground.world.borrow_mut().send_reply(to, from, Ok(answer), reply);
                    });
                }
            }
            Errand::Begin {
                machine,
                boot,
                group,
                store,
            } => {
                if let Some(node) = self.node(machine, boot) {
                    self.tasks
                        .spawn(Some(machine), async move { node.begin(group, store).await });
                }
            }
            Errand::Started { machine, boot } => {
                if let Some(node) = self.node(machine, boot) {
                    let sweeper = node.clone();
                    self.tasks.spawn(Some(machine), async move { node.conduct().await });
                    self.tasks.spawn(Some(machine), async move { sweeper.sweep().await });
                }
            }
            Errand::Wish => {
                let there = Rc::clone(self);
                self.tasks.spawn(None, async move { conductor::wish(there).await });
            }
            Errand::LastWish => {
                let there = Rc::clone(self);
                self.tasks.spawn(None, async move { conductor::last_wish(there).await });
            }
        }
    }

    fn node(self: &Rc<Self>, number: usize, boot: u64) -> Option<Node> {
        let alive = self.world.borrow().alive(number, boot);
        alive.then(|| Node {
            ground: Rc::clone(self),
            number,
            boot,
        })
    }

    /// So much later.
    pub(crate) fn sleep(&self, machine: Option<usize>, wait: u64) -> Answer<()> {
        let (promise, answer) = promise();
        self.world.borrow_mut().later(wait, Todo::Timer { machine, promise });
        answer
    }
}

impl World {
    fn new(run: Run) -> Self {
        let seed = run.seed;
        let chaos_time = run.seconds.map(|seconds| u64::from(seconds) * 1000 * MS);
        let weather = Weather::draw(seed, chaos_time);
        let mut ids = Rng::split(seed, "ids", 0);
        let machines = (0..weather.conditions.members)
            .map(|number| {
                let mut rng = Rng::split(seed, "machine", number as u64);
                Machine {
                    member: MemberId(ids.next_u64() | 1),
                    disk: SimDisk::new(rng.next_u64()),
                    checkpoint: MemStore::default(),
                    checkpoint_number: 0,
                    copies: 0,
                    clock: Clock {
                        offset: rng.below(1 << 40),
                        since: 0,
                        drift_ppm: i64::try_from(rng.below(weather.conditions.clock_drift_ppm + 1))
                            .expect("invariant: at most a million"),
                    },
                    process: None,
                    paused_until: 0,
                    boot: 0,
                    slow: (0, 0),
                    rng,
                }
            })
            .collect();
        Self {
            net: Network::new(seed, &weather.conditions),
            rng: Rng::split(seed, "nemesis", 0),
            judge: Judge::default(),
            trace: Trace::new(run.trace),
            weather,
            mutant: run.mutant,
            now: 0,
            sequence: 0,
            queue: BTreeMap::new(),
            errands: Vec::new(),
            ended: Vec::new(),
            machines,
            watches: BTreeMap::new(),
            sequencers: BTreeSet::new(),
            counts: Counts::default(),
            instant: Instant::default(),
            violations: Vec::new(),
            calm_at: None,
            last_wish: false,
            clients_busy: 0,
            done: false,
        }
    }

    /// The meta group and the first shard are born on every machine.
    fn genesis(&mut self) {
        let members: Vec<MemberId> = self.machines.iter().map(|machine| machine.member).collect();
        for group in [GroupId::META, GroupId::FIRST_SHARD] {
            let config = ConfigState {
                voters: members.iter().copied().collect(),
                ..ConfigState::default()
            };
            self.watch(group).born(config);
            for number in 0..self.machines.len() {
                let machine = &self.machines[number];
                let (hard_state, entries) =
                    crate::world::machine::birth_of(group, &machine.disk, &self.weather.conditions, &members);
                let member = machine.member;
                self.watch(group)
                    .booted(member, hard_state, LogPosition::default(), &entries);
            }
        }
        for machine in 0..self.machines.len() {
            self.later(0, Todo::Start { machine });
        }
        self.clients_busy = self.weather.clients();
        self.later(self.weather.wish_every, Todo::Wish);
        self.later(self.weather.conditions.fault_every, Todo::Fault);
        self.later(self.weather.conditions.chaos_time, Todo::Calm);
    }

    pub(crate) fn breaks(&self, rule: Sabotage) -> bool {
        self.mutant == Some(Mutant::Shell(rule))
    }

    pub(crate) fn later(&mut self, wait: u64, todo: Todo) {
        self.sequence += 1;
        self.queue.insert((self.now + wait, self.sequence), todo);
    }

    /// The onlooker of a group.
    fn watch(&mut self, group: GroupId) -> &mut Watch {
        self.watches.entry(group).or_insert_with(|| Watch::new(false))
    }

    pub(crate) fn violation(&mut self, text: String) {
        self.violations.push(text);
    }

    fn broken(&self) -> bool {
        !self.violations.is_empty() || self.watches.values().any(|watch| !watch.violations().is_empty())
    }

    fn outcomes(&mut self) -> Outcomes {
        let of_groups = self.watches.iter().flat_map(|(group, watch)| {
            let named = move |text: &String| format!("group {group}: {text}");
            watch.violations().iter().map(named)
        });
        let mut violations: Vec<String> = self.violations.iter().cloned().chain(of_groups).collect();
        violations.extend(self.judge.verdict(self.done, self.now, &mut self.counts));
        for watch in self.watches.values() {
            self.counts.elections += watch.elections;
            self.counts.truncations += watch.truncations;
        }
        Outcomes {
            violations,
            counts: self.counts,
            trace_hash: self.trace.hash(),
            simulated_ns: self.now,
        }
    }

    pub(crate) fn alive(&self, machine: usize, boot: u64) -> bool {
        self.machines[machine].boot == boot && self.machines[machine].process.is_some()
    }

    fn machine_of(&self, member: MemberId) -> Option<usize> {
        self.machines.iter().position(|machine| machine.member == member)
    }

    fn take(&mut self, todo: Todo) {
        let concerned = match &todo {
            Todo::Wake { machine, .. }
            | Todo::Tell { machine, .. }
            | Todo::Synced { machine, .. }
            | Todo::SaidSynced { machine, .. }
            | Todo::Worked { machine, .. }
            | Todo::Checkpoint { machine, .. }
            | Todo::Checkpointed { machine, .. }
            | Todo::Timer {
                machine: Some(machine), ..
            } => Some(*machine),
            Todo::Arrive { to, .. } | Todo::Snapshot { to, .. } | Todo::Call { to, .. } => Some(*to),
            Todo::Reply { from, .. } => Some(*from),
            Todo::Timer { machine: None, .. }
            | Todo::Start { .. }
            | Todo::Fault
            | Todo::DiskFreed { .. }
            | Todo::Wish
            | Todo::Calm
            | Todo::Look => None,
        };
        if let Some(until) = concerned
            .map(|machine| self.machines[machine].paused_until)
            .filter(|until| *until > self.now)
        {
            return self.later(until - self.now, todo);
        }
        match todo {
            Todo::Wake { machine, boot } => {
                let due = self.alive(machine, boot)
                    && self.machines[machine]
                        .process
                        .as_ref()
                        .is_some_and(|process| process.wake_at.is_some_and(|at| at <= self.now));
                if due {
                    if let Some(process) = &mut self.machines[machine].process {
                        process.wake_at = None;
                    }
                    self.poll(machine, Vec::new());
                }
            }
            Todo::Tell { machine, boot, event } => {
                if self.alive(machine, boot) {
                    self.poll(machine, vec![event]);
                }
            }
            Todo::Arrive { to, frame } => self.arrive(to, frame),
            Todo::Snapshot {
                from,
                from_boot,
                to,
                group,
                term,
                parcel,
                lost,
            } => {
                let taken = !lost && self.net.reaches(from, to) && self.take_parcel(to, from, group, term, &parcel);
                if self.alive(from, from_boot) {
                    let covered = taken.then_some(parcel.meta.position.index);
                    let to = self.machines[to].member;
                    self.poll(from, vec![Event::SnapshotSent { group, to, covered }]);
                }
            }
            Todo::Call { from, to, ask, reply } => self.called(from, to, ask, reply),
            Todo::Reply {
                from,
                boot,
                answer,
                reply,
            } => {
                if self.alive(from, boot) {
                    reply.keep(answer);
                }
            }
            Todo::Synced { machine, boot } => {
                if self.alive(machine, boot) {
                    self.synced(machine);
                }
            }
            Todo::SaidSynced { machine, boot, token } => {
                if self.alive(machine, boot) {
                    self.poll(machine, vec![Event::Written(token)]);
                }
            }
            Todo::Worked { machine, boot } => {
                if self.alive(machine, boot) {
                    self.worked(machine);
                }
            }
            Todo::Checkpoint { machine, boot } => {
                if self.alive(machine, boot) {
                    self.checkpoint(machine);
                }
            }
            Todo::Checkpointed {
                machine,
                boot,
                engine,
                number,
                positions,
            } => {
                if self.alive(machine, boot) {
                    self.checkpointed(machine, engine, number, positions);
                }
            }
            Todo::Start { machine } => self.start(machine),
            Todo::Timer { promise, .. } => promise.keep(()),
            Todo::Fault => self.fault(),
            Todo::DiskFreed { machine } => self.machines[machine].disk.fill(false),
            Todo::Wish => {
                if self.calm_at.is_none() {
                    self.errands.push(Errand::Wish);
                    let wait = self.rng.between(MS, 2 * self.weather.wish_every);
                    self.later(wait, Todo::Wish);
                }
            }
            Todo::Calm => self.calm(),
            Todo::Look => self.look(),
        }
    }
}
