//! The world: machines, network, clients and bad luck on one thread, in simulated time.
//!
//! Everything that happens is a [`Todo`] in one queue ordered by (time, sequence). Production code inside: the
//! host (`althing-shard`) with the Raft core, the log (`althing-wal`) on a disk that crashes, the state machine
//! (`althing-store`) in memory, and the peers' wire format. Simulated: clocks, links, disks' timing, threads,
//! clients and whoever runs the cluster.
//!
//! A run has two phases: chaos, then calm. After chaos everything is repaired, and the cluster must become
//! whole within a bounded time: safety alone would be satisfied by a cluster that does nothing.

mod calm;
pub(crate) mod clients;
pub(crate) mod conditions;
mod counts;
mod decision;
mod effects;
mod lease_watch;
mod links;
pub(crate) mod machine;
mod nemesis;
pub(crate) mod net;
mod operator;
mod rounds;
pub(crate) mod trace;
pub(crate) mod watch;
mod wishes;

pub use counts::Counts;
pub use decision::Case;

use crate::history::{History, Outcome, Seen};
use crate::instant::Instant;
use crate::mutant::{Mutant, Sabotage};
use crate::rng::Rng;
use crate::run::Run;
use althing_raft::entry::ConfigState;
use althing_raft::ids::{Index, LogPosition, MemberId, Now, Term};
use althing_raft::io::{RequestId, Role};
use althing_raft::roster::Footprint;
use althing_shard::{Event, WriteToken};
use althing_store::MemStore;
use althing_store::ops::{KeyRange, Range};
use althing_wal::sim_disk::SimDisk;
use bytes::Bytes;
use clients::{Clients, Current};
use conditions::{Churn, Conditions, MACHINES_MAX, MS, REST_PER_MILLE};
use decision::{Decision, Fault, Planned};
use lease_watch::LeaseWatch;
use machine::{Clock, GROUP, Machine, Parcel, Waiter};
use net::Network;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use trace::Trace;
use watch::Watch;

/// From a client to its machine.
const CLIENT_DELAY: u64 = MS / 20;
/// When a client that finds nobody looks again.
const RETRY: u64 = 100 * MS;

/// What was decided so far.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pub(crate) conditions: Option<Conditions>,
    pub(crate) faults: Vec<Decision>,
    pub(crate) operations: Vec<Planned>,
    /// How far the world has come.
    pub(crate) now: u64,
}

/// Something that will happen.
enum Todo {
    /// A host's deadline.
    Wake { machine: usize, boot: u64 },
    /// Bytes of a peer arrive.
    Arrive { to: MemberId, frame: Bytes },
    /// A snapshot arrives, or its sender learns that it did not.
    Snapshot {
        from: usize,
        from_boot: u64,
        to: MemberId,
        term: Term,
        parcel: Parcel,
        lost: bool,
        /// A repetition, whose fate the sender does not hear of.
        again: bool,
    },
    /// The log's thread has finished a sync.
    Synced { machine: usize, boot: u64 },
    /// A sabotaged log's thread says so before it has.
    SaidSynced {
        machine: usize,
        boot: u64,
        token: WriteToken,
    },
    /// The state machine's thread has finished a job.
    Worked { machine: usize, boot: u64 },
    /// Time to make the state durable.
    Checkpoint { machine: usize, boot: u64 },
    /// It is durable now.
    Checkpointed {
        machine: usize,
        boot: u64,
        store: MemStore,
        position: LogPosition,
    },
    /// A crashed machine starts again.
    Start { machine: usize },
    /// A client does its next operation.
    Client { client: usize },
    /// Its request reaches the machine.
    Request {
        machine: usize,
        boot: u64,
        client: usize,
        event: Event,
    },
    /// A client loses patience with an operation.
    GiveUp {
        client: usize,
        call: crate::history::CallId,
    },
    /// Bad luck is drawn.
    Fault,
    /// Bad luck that is already known.
    Strike(Fault),
    /// A storm of restarts goes on.
    Storm { machine: usize, times: u64, every_ns: u64 },
    /// A flapping link turns.
    Flap {
        one: usize,
        other: usize,
        times: u64,
        every_ns: u64,
    },
    /// A full disk has space again.
    DiskFreed { machine: usize },
    /// Whoever runs the cluster looks at it.
    Operate,
    /// Chaos ends.
    Calm,
    /// Is the world whole again?
    Look,
    /// A client's read looks at the state.
    Serve {
        machine: usize,
        boot: u64,
        client: usize,
        request: RequestId,
    },
}

/// What a run came to.
#[derive(Clone, Debug)]
pub(crate) struct Outcomes {
    pub(crate) violations: Vec<String>,
    pub(crate) history: History,
    pub(crate) state: BTreeMap<String, Seen>,
    pub(crate) counts: Counts,
    pub(crate) trace_hash: u64,
    pub(crate) simulated_ns: u64,
    /// Whether clocks were beyond the bound.
    pub(crate) wild: bool,
    /// Whether local reads owed the revisions of their keys only.
    pub(crate) revisions_of_keys: bool,
}

/// All of it.
pub(crate) struct World {
    conditions: Conditions,
    mutant: Option<Mutant>,
    now: u64,
    sequence: u64,
    queue: BTreeMap<(u64, u64), Todo>,
    machines: Vec<Machine>,
    net: Network,
    clients: Clients,
    /// The dice of bad luck.
    rng: Rng,
    /// The dice of whoever runs the cluster.
    operator: Rng,
    /// What was decided, also for whoever looks after a panic.
    record: Rc<RefCell<Record>>,
    watch: Watch,
    leases: LeaseWatch,
    /// Whether clocks are beyond the bound, so that what leases promise may be broken.
    wild: bool,
    trace: Trace,
    counts: Counts,
    instant: Instant,
    calm_at: Option<u64>,
    /// Machines that have served a read since.
    probed: BTreeSet<usize>,
    done: bool,
    final_state: BTreeMap<String, Seen>,
}

impl World {
    /// A world whose luck is drawn from the seed.
    pub(crate) fn drawn(run: Run, record: Rc<RefCell<Record>>) -> Self {
        let chaos_time = run.seconds.map(|seconds| u64::from(seconds) * 1000 * MS);
        let conditions = Conditions::draw(run.profile, run.seed, chaos_time);
        record.borrow_mut().conditions = Some(conditions.without_dice());
        let mut world = Self::new(run.seed, conditions, run.mutant, run.trace, record);
        world.genesis();
        world.later(world.conditions.fault_every, Todo::Fault);
        for client in 0..world.clients.all.len() {
            let think = world.clients.all[client].rng.below(world.conditions.think_max);
            world.later(think, Todo::Client { client });
        }
        world
    }

    /// A world in which everything that was decided in another one happens again.
    pub(crate) fn repeated(case: &Case, mutant: Option<Mutant>, print: bool, record: Rc<RefCell<Record>>) -> Self {
        record.borrow_mut().conditions = Some(case.conditions.clone());
        let mut world = Self::new(case.seed, case.conditions.clone(), mutant, print, record);
        world.genesis();
        for decision in &case.faults {
            world.later(decision.at_ns, Todo::Strike(decision.fault.clone()));
        }
        world.clients.plan(&case.operations);
        for client in 0..world.clients.all.len() {
            world.plan_next(client);
        }
        world
    }

    fn new(
        seed: u64,
        conditions: Conditions,
        mutant: Option<Mutant>,
        print: bool,
        record: Rc<RefCell<Record>>,
    ) -> Self {
        let mut ids = Rng::split(seed, "ids", 0);
        let machines = (0..MACHINES_MAX)
            .map(|number| {
                let mut rng = Rng::split(seed, "machine", number as u64);
                Machine {
                    member: MemberId(ids.next_u64() | 1),
                    disk: SimDisk::new(rng.next_u64()),
                    checkpoint: MemStore::default(),
                    checkpoint_at: Index::ZERO,
                    clock: Clock {
                        offset: rng.below(1 << 40),
                        since: 0,
                        drift_ppm: i64::try_from(rng.below(conditions.clock_drift_ppm + 1))
                            .expect("invariant: at most a million"),
                    },
                    process: None,
                    paused_until: 0,
                    slow: (0, 0),
                    damaged: false,
                    quiet_voted: false,
                    dies_at_install: None,
                    boot: 0,
                    wanted: number < conditions.members,
                    gone: number >= conditions.members,
                    rng,
                }
            })
            .collect();
        Self {
            net: Network::new(seed, &conditions),
            clients: Clients::new(seed, &conditions),
            rng: Rng::split(seed, "nemesis", 0),
            operator: Rng::split(seed, "operator", 0),
            record,
            watch: Watch::new(conditions.churn == Churn::Wipe),
            leases: LeaseWatch::default(),
            wild: conditions.wild(),
            trace: Trace::new(print),
            conditions,
            mutant,
            now: 0,
            sequence: 0,
            queue: BTreeMap::new(),
            machines,
            counts: Counts::default(),
            instant: Instant::default(),
            calm_at: None,
            probed: BTreeSet::new(),
            done: false,
            final_state: BTreeMap::new(),
        }
    }

    fn genesis(&mut self) {
        let first = if self.conditions.born_together {
            self.conditions.members
        } else {
            1
        };
        let members: Vec<MemberId> = self.machines[..first].iter().map(|machine| machine.member).collect();
        for machine in &self.machines[..first] {
            let (hard_state, entries) = machine::birth(&machine.disk, &self.conditions, &members);
            self.watch
                .booted(machine.member, hard_state, LogPosition::default(), &entries);
        }
        self.watch.born(ConfigState {
            voters: members.into_iter().collect(),
            ..ConfigState::default()
        });
        for machine in 0..self.conditions.members {
            self.later(0, Todo::Start { machine });
        }
        self.later(500 * MS, Todo::Operate);
        self.later(self.conditions.chaos_time, Todo::Calm);
    }

    /// Whether this rule of the shell is broken on purpose.
    fn breaks(&self, rule: Sabotage) -> bool {
        self.mutant == Some(Mutant::Shell(rule))
    }

    fn later(&mut self, wait: u64, todo: Todo) {
        self.sequence += 1;
        self.queue.insert((self.now + wait, self.sequence), todo);
    }

    /// Runs to the end: until the world is whole, a promise is broken, or time is up.
    pub(crate) fn run(mut self) -> Outcomes {
        while !self.done && self.watch.violations().is_empty() {
            let Some(((at, _), todo)) = self.queue.pop_first() else {
                break;
            };
            assert!(at >= self.now, "invariant: time does not go back");
            self.now = at;
            self.counts.events += 1;
            if let Err(stuck) = self.instant.event(at) {
                self.watch.violation(stuck);
            }
            self.record.borrow_mut().now = at;
            self.take(todo);
        }
        self.counts.elections = self.watch.elections;
        self.counts.truncations = self.watch.truncations;
        self.counts.rosters = self.leases.rosters();
        let mut counts = self.counts;
        let history = std::mem::take(&mut self.clients.recorder).finish(self.now);
        for event in &history.events {
            match event.outcome {
                Outcome::Ok { .. } => counts.ok += 1,
                Outcome::Failed { .. } => counts.failed += 1,
                Outcome::Unknown { .. } => counts.unknown += 1,
            }
        }
        Outcomes {
            violations: self.watch.violations().to_vec(),
            history,
            state: self.final_state,
            counts,
            trace_hash: self.trace.hash(),
            simulated_ns: self.now,
            wild: self.wild,
            revisions_of_keys: self.conditions.leases.is_some_and(|leases| leases.revisions_of_keys),
        }
    }

    /// The machine whose process a todo is meant for, if it still runs. A paused machine's todos wait for it.
    fn alive(&self, machine: usize, boot: u64) -> bool {
        self.machines[machine].boot == boot && self.machines[machine].process.is_some()
    }

    fn take(&mut self, todo: Todo) {
        let concerned = match &todo {
            Todo::Wake { machine, .. }
            | Todo::Synced { machine, .. }
            | Todo::SaidSynced { machine, .. }
            | Todo::Worked { machine, .. }
            | Todo::Serve { machine, .. }
            | Todo::Request { machine, .. }
            | Todo::Checkpoint { machine, .. }
            | Todo::Checkpointed { machine, .. } => Some(*machine),
            Todo::Arrive { to, .. } => self.machine_of(*to),
            Todo::Snapshot { to, .. } => self.machine_of(*to),
            Todo::Start { .. }
            | Todo::Client { .. }
            | Todo::GiveUp { .. }
            | Todo::Fault
            | Todo::Strike(_)
            | Todo::Storm { .. }
            | Todo::Flap { .. }
            | Todo::DiskFreed { .. }
            | Todo::Operate
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
                        .is_some_and(|process| process.wake_at == Some(self.now));
                // A pause makes wakes late; those are due as well.
                if due || self.alive(machine, boot) && self.overdue(machine) {
                    if let Some(process) = &mut self.machines[machine].process {
                        process.wake_at = None;
                    }
                    self.poll(machine, Vec::new());
                }
            }
            Todo::Arrive { to, frame } => self.arrive(to, frame),
            Todo::Snapshot {
                from,
                from_boot,
                to,
                term,
                parcel,
                lost,
                again,
            } => {
                let taken = self.snapshot_arrives(from, to, term, &parcel, lost);
                if !again && self.alive(from, from_boot) {
                    let covered = taken.then_some(parcel.meta.position.index);
                    let group = GROUP;
                    self.poll(from, vec![Event::SnapshotSent { group, to, covered }]);
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
                store,
                position,
            } => {
                if self.alive(machine, boot) {
                    self.checkpointed(machine, store, position);
                }
            }
            Todo::Serve {
                machine,
                boot,
                client,
                request,
            } => {
                let waits = self.clients.all[client].current.as_ref().is_some_and(|current| {
                    (current.machine, current.boot, current.request) == (machine, boot, request)
                });
                if waits && self.alive(machine, boot) {
                    self.read(client, machine);
                }
            }
            Todo::Start { machine } => self.start(machine),
            Todo::Client { client } => self.client_acts(client),
            Todo::Request {
                machine,
                boot,
                client,
                event,
            } => {
                if self.alive(machine, boot) {
                    self.request(machine, client, event);
                }
            }
            Todo::GiveUp { client, call } => {
                let waiting = self.clients.all[client]
                    .current
                    .as_ref()
                    .is_some_and(|current| current.call == call);
                if waiting {
                    self.client_ends(
                        client,
                        Outcome::Unknown {
                            error: "the client lost patience".to_owned(),
                        },
                    );
                }
            }
            Todo::Fault => self.fault(),
            Todo::Strike(fault) => self.strike(fault),
            Todo::Storm {
                machine,
                times,
                every_ns,
            } => self.storm(machine, times, every_ns),
            Todo::Flap {
                one,
                other,
                times,
                every_ns,
            } => self.flap(one, other, times, every_ns),
            Todo::DiskFreed { machine } => self.machines[machine].disk.fill(false),
            Todo::Operate => self.operate(),
            Todo::Calm => self.calm(),
            Todo::Look => self.look(),
        }
    }

    fn overdue(&self, machine: usize) -> bool {
        let wake_at = self.machines[machine]
            .process
            .as_ref()
            .and_then(|process| process.wake_at);
        wake_at.is_some_and(|at| at <= self.now)
    }

    /// The machine that holds a member's volume now; a wiped member has none.
    fn machine_of(&self, member: MemberId) -> Option<usize> {
        self.machines.iter().position(|machine| machine.member == member)
    }

    /// The machine whose process leads in the highest term, if any.
    fn leader(&self) -> Option<usize> {
        let leading = |number: usize| {
            let process = self.machines[number].process.as_ref()?;
            let soft = process.host.view(GROUP)?.raft.soft;
            (soft.role == Role::Leader).then_some((soft.term, number))
        };
        (0..self.machines.len())
            .filter_map(leading)
            .max()
            .map(|(_, number)| number)
    }

    fn client_acts(&mut self, client: usize) {
        if self.clients.all[client].left == 0 || self.clients.all[client].current.is_some() {
            return;
        }
        let running: Vec<usize> = (0..self.machines.len())
            .filter(|&machine| self.machines[machine].process.is_some())
            .collect();
        let state = &mut self.clients.all[client];
        let (machine, op) = match state.planned.front() {
            Some(_) if running.is_empty() => return self.later(RETRY, Todo::Client { client }),
            Some(_) => {
                let planned = state.planned.pop_front().expect("invariant: just looked at");
                state.left -= 1;
                // The run may have gone another way: whoever is there will do.
                let there = running.iter().find(|machine| **machine >= planned.machine);
                (*there.unwrap_or(&running[0]), planned.op)
            }
            None => {
                if !running.contains(&state.machine) || !state.rng.chance(self.conditions.sticky) {
                    match state.rng.pick(&running) {
                        Some(machine) => state.machine = *machine,
                        None => return self.later(RETRY, Todo::Client { client }),
                    }
                }
                (state.machine, self.clients.next_op(client))
            }
        };
        self.record.borrow_mut().operations.push(Planned {
            at_ns: self.now,
            client,
            machine,
            op: op.clone(),
        });
        let call = self.clients.begin(client, op.clone(), self.now);
        let patience = self.conditions.patience;
        let deadline = Now(self.machines[machine].clock.local(self.now).0 + patience);
        let boot = self.machines[machine].boot;
        let process = self.machines[machine]
            .process
            .as_mut()
            .expect("invariant: chosen among the running");
        let request = process.request(Waiter::Client(client));
        self.trace
            .note(self.now, client as u64, "client", &[machine as u64, request.0], || {
                format!("at {machine}: {op:?}")
            });
        let command = clients::command(&op);
        self.clients.all[client].current = Some(Current {
            call,
            op: op.clone(),
            machine,
            boot,
            request,
            committed: self.watch.last_committed(),
        });
        self.later(patience + 1000 * MS, Todo::GiveUp { client, call });
        let event = match command {
            Some(command) => {
                let mut bytes = Vec::new();
                althing_store::codec::encode_command(&command, &mut bytes);
                Event::Propose {
                    request,
                    group: GROUP,
                    command: Bytes::from(bytes),
                    deadline,
                }
            }
            None => Event::Read {
                request,
                group: GROUP,
                footprint: Footprint::key(Bytes::copy_from_slice(op.key().as_bytes())),
                deadline,
            },
        };
        self.later(
            CLIENT_DELAY,
            Todo::Request {
                machine,
                boot,
                client,
                event,
            },
        );
    }

    fn request(&mut self, machine: usize, client: usize, event: Event) {
        if let Event::Read { request, .. } = event
            && self.breaks(Sabotage::ReadWithoutIndex)
        {
            if let Some(process) = &mut self.machines[machine].process {
                process.open.remove(&request);
            }
            return self.read(client, machine);
        }
        self.poll(machine, vec![event]);
    }

    fn client_ends(&mut self, client: usize, outcome: Outcome) {
        let what = match &outcome {
            Outcome::Ok { .. } => "ok",
            Outcome::Failed { .. } => "failed",
            Outcome::Unknown { .. } => "unknown",
        };
        self.trace
            .note(self.now, client as u64, what, &[], || format!("{outcome:?}"));
        self.clients.end(client, outcome, self.now);
        if !self.clients.all[client].planned.is_empty() {
            self.plan_next(client);
        } else if self.clients.all[client].left > 0 {
            // Calm is for finishing, not for thinking.
            let rng = &mut self.clients.all[client].rng;
            let longest = if self.calm_at.is_some() {
                MS
            } else if rng.chance(REST_PER_MILLE) {
                self.conditions.rest_max
            } else {
                self.conditions.think_max
            };
            let think = rng.below(longest);
            self.later(think, Todo::Client { client });
        }
    }

    /// A client of a repeated run waits for its next operation's time.
    fn plan_next(&mut self, client: usize) {
        if let Some(planned) = self.clients.all[client].planned.front() {
            let wait = planned.at_ns.saturating_sub(self.now);
            self.later(wait, Todo::Client { client });
        }
    }

    /// Answers a client's read from the state of its machine, now.
    fn read(&mut self, client: usize, machine: usize) {
        let Some(current) = &self.clients.all[client].current else {
            return;
        };
        let key = Bytes::copy_from_slice(current.op.key().as_bytes());
        let Some(process) = &self.machines[machine].process else {
            return;
        };
        let outcome = match process.mvcc.range(&Range::of(KeyRange::Single(key))) {
            Ok(Ok((revision, result))) => {
                let seen = result.kvs.first().map(clients::seen);
                Outcome::Ok {
                    reply: crate::history::Reply::Get {
                        revision: revision.0,
                        seen,
                    },
                }
            }
            Ok(Err(error)) => Outcome::Failed {
                error: error.to_string(),
            },
            Err(error) => {
                self.watch.violation(format!("a read fails: {error}"));
                return;
            }
        };
        self.client_ends(client, outcome);
    }
}
