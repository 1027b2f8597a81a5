//! The shell around a host, as a simulation: what its threads do, and how long they take.

use super::Todo;
use super::World;
use super::clients;
use super::conditions::MS;
use super::lease_watch;
use super::machine::{self, Clock, GROUP, Job, NoStart, Waiter};
use crate::history::Outcome;
use crate::mutant::Sabotage;
use althing_raft::entry::SnapshotMeta;
use althing_raft::ids::LogPosition;
use althing_raft::io::{RequestId, Role, View};
use althing_shard::{Done, Effect, Event, Item, Refusal, Work};
use althing_store::{ApplyItem, CommandResult, MemStore};

/// Under [`Sabotage::AckBeforeSync`], how much longer a sync takes than production's: long enough for a crash.
const SABOTAGED_SYNC: u64 = 200 * MS;

/// What a process' clock shows at most when it starts.
const FIRST_TIME_MAX: u64 = 20_000 * MS;

impl World {
    /// A machine's process starts on what its disks hold.
    pub(super) fn start(&mut self, number: usize) {
        let forget_vote = self.breaks(Sabotage::ForgetVote);
        let machine = &mut self.machines[number];
        if machine.process.is_some() || machine.gone {
            return;
        }
        machine.boot += 1;
        let (boot, member) = (machine.boot, machine.member);
        if self.conditions.leases.is_some() {
            // A process' time begins when it starts, at any value: what an earlier life read from its clock means nothing.
            let before = machine.clock.local(self.now);
            machine.clock.offset = machine.rng.below(FIRST_TIME_MAX);
            machine.clock.since = self.now;
            self.leases.rebased(member, before, machine.clock.local(self.now));
        }
        match machine::start(machine, &self.conditions, self.now, forget_vote) {
            Err(NoStart::Damaged(_)) if machine.damaged => self.replace_damaged(number),
            Err(NoStart::Damaged(error) | NoStart::Broken(error)) => {
                self.watch.violation(format!("{member} cannot start: {error}"));
            }
            Err(NoStart::DiskFull) => {
                self.counts.disk_full += 1;
                self.later(500 * MS, Todo::Start { machine: number });
            }
            Ok(found) => {
                machine.damaged = false;
                self.watch
                    .booted(member, found.hard_state, found.log_start, &found.entries);
                machine.process = Some(found.process);
                let last = found.entries.last().map_or(found.log_start.index, |entry| entry.index);
                self.trace.note(self.now, number as u64, "start", &[boot, last.0], || {
                    format!("{member} boot {boot}, log {}..={last}", found.log_start.index.next())
                });
                self.later(
                    self.conditions.checkpoint_every,
                    Todo::Checkpoint { machine: number, boot },
                );
                self.poll(number, Vec::new());
            }
        }
    }

    /// A process ends without warning. What was not synced may be lost; clients never hear from it again.
    pub(super) fn crash(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        let Some(process) = machine.process.take() else {
            return;
        };
        self.counts.crashes += 1;
        if let Some(view) = process.host.view(GROUP) {
            self.counts.add_reads(view.raft.lease.counts);
        }
        self.leases.stopped(number);
        let boot = machine.boot;
        self.trace.note(self.now, number as u64, "crash", &[boot], String::new);
        // The engine keeps at least what was checkpointed, and at most everything.
        if machine.rng.chance(500) {
            machine.checkpoint = process.store.fork();
            machine.checkpoint_at = process.mvcc.applied().position.index;
        }
        drop(process);
        machine.disk.crash();
        for client in 0..self.clients.all.len() {
            let lost = self.clients.all[client]
                .current
                .as_ref()
                .is_some_and(|current| (current.machine, current.boot) == (number, boot));
            if lost {
                self.client_ends(
                    client,
                    Outcome::Unknown {
                        error: "the connection broke".to_owned(),
                    },
                );
            }
        }
    }

    /// One turn of a host.
    pub(super) fn poll(&mut self, number: usize, events: Vec<Event>) {
        let machine = &mut self.machines[number];
        let (member, local) = (machine.member, machine.clock.local(self.now));
        let Some(process) = &mut machine.process else {
            return;
        };
        let effects = match process.host.poll(local, events) {
            Ok(effects) => effects,
            Err(error) => return self.watch.violation(format!("{member} stops: {error}")),
        };
        // Writes first: messages of this turn may only promise what was durable before it, and the onlooker
        // must know the log that a new leader leads with.
        let view = process.host.view(GROUP).map(|view| view.raft);
        let asleep = view.as_ref().filter(|view| view.hibernates);
        if !std::mem::replace(&mut process.asleep, asleep.is_some()) {
            asleep
                .into_iter()
                .for_each(|view| self.watch.falls_asleep(member, view));
        }
        for effect in &effects {
            if let Effect::Write { writes, .. } = effect {
                writes.iter().for_each(|write| self.watch.wrote(member, write));
                if let Some(View { soft, commit, .. }) = &view
                    && soft.role == Role::Leader
                {
                    self.watch.leader_commits(member, soft.term, *commit);
                    writes.iter().for_each(|write| self.watch.changes(member, soft, write));
                }
            }
        }
        for effect in effects {
            self.effect(number, effect);
        }
        self.after_turn(number);
    }

    /// Looks at leases from outside of all clocks.
    fn watch_leases(&mut self, number: usize, view: View) {
        let clocks: Vec<Clock> = self.machines.iter().map(|machine| machine.clock).collect();
        let (member, now) = (self.machines[number].member, self.now);
        let seen = (view.lease, view.soft, view.commit);
        let local = |machine: usize| lease_watch::shown(&clocks, machine, now);
        let broken = self.leases.turn(number, member, seen, &local);
        broken.into_iter().for_each(|text| self.lease_broken(text));
    }

    /// Under clocks beyond the bound leases promise nothing.
    pub(super) fn lease_broken(&mut self, text: String) {
        if self.wild {
            self.counts.wild += 1;
        } else {
            self.watch.violation(text);
        }
    }

    fn after_turn(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        let boot = machine.boot;
        let Some(process) = &mut machine.process else {
            return;
        };
        if let Some(view) = process.host.view(GROUP) {
            self.watch.commits(machine.member, view.raft.commit);
            let soft = &view.raft.soft;
            self.watch.holds(machine.member, &soft.config, view.applied.index);
            if soft.role == Role::Leader {
                self.watch.leader_commits(machine.member, soft.term, view.raft.commit);
            }
        }
        let view = process.host.view(GROUP).map(|view| view.raft);
        if let Some(view) = view.filter(|_| self.conditions.leases.is_some()) {
            self.watch_leases(number, view);
        }
        let machine = &mut self.machines[number];
        let Some(process) = &mut machine.process else {
            return;
        };
        let wake_at = process
            .host
            .next_deadline()
            .map(|deadline| machine.clock.world(deadline).max(self.now));
        if wake_at != process.wake_at {
            process.wake_at = wake_at;
            if let Some(at) = wake_at {
                self.later(at - self.now, Todo::Wake { machine: number, boot });
            }
        }
    }

    fn effect(&mut self, number: usize, effect: Effect) {
        let member = self.machines[number].member;
        match effect {
            Effect::Write { token, writes } => {
                if let Some(process) = &mut self.machines[number].process {
                    process.writes.push_back((token, writes));
                }
                self.sync(number);
            }
            Effect::Compact { group, up_to } => {
                let Some(process) = &mut self.machines[number].process else {
                    return;
                };
                if let Err(error) = process.wal.compact(group, up_to) {
                    if error.is_no_space() {
                        self.counts.disk_full += 1;
                        self.crash(number);
                        return self.later(500 * MS, Todo::Start { machine: number });
                    }
                    self.watch.violation(format!("{member} cannot cut its log: {error}"));
                }
            }
            Effect::Send { to, messages } => self.send(number, to, &messages),
            Effect::Apply { group: _, items } => {
                let view = self.machines[number]
                    .process
                    .as_ref()
                    .and_then(|process| process.host.view(GROUP));
                let term = view.map(|view| view.raft.soft.term).unwrap_or_default();
                items.iter().for_each(|item| self.watch.handed(member, term, item));
                if let Some(process) = &mut self.machines[number].process {
                    process.jobs.push_back(Job::Apply(items));
                }
                self.work(number);
            }
            Effect::Install { group: _, meta } => {
                if let Some(process) = &mut self.machines[number].process {
                    process.jobs.push_back(Job::Install(meta));
                }
                self.work(number);
            }
            Effect::Discard { group: _, meta: _ } => {
                if let Some(process) = &mut self.machines[number].process {
                    process.import = None;
                }
            }
            Effect::Complete { request, result } => self.complete(number, request, result),
            Effect::SendSnapshot { group: _, to, term } => self.send_snapshot(number, to, term, false),
            Effect::Stamp { .. } => unreachable!("invariant: no group is sequenced here"),
            Effect::Retired { .. } | Effect::Kept { .. } => {
                unreachable!("invariant: no group is retired here")
            }
            // Members find each other by id here: addresses are the real shell's business.
            Effect::Peers(_) => {}
            Effect::Changed { group: _, soft } => {
                self.trace.note(
                    self.now,
                    number as u64,
                    "changed",
                    &[soft.term.0, soft.role as u64],
                    || format!("{soft:?}"),
                );
                if soft.role == Role::Leader {
                    self.watch.leads(member, soft.term);
                }
            }
        }
    }

    /// The log's thread takes everything that waits, appends it, and syncs once.
    fn sync(&mut self, number: usize) {
        let early = self.breaks(Sabotage::AckBeforeSync);
        let machine = &mut self.machines[number];
        let boot = machine.boot;
        let Some(process) = &mut machine.process else {
            return;
        };
        if !process.syncing.is_empty() || process.writes.is_empty() {
            return;
        }
        process.syncing = process.writes.drain(..).collect();
        for (_, writes) in &process.syncing {
            if let Err(error) = process.wal.append(writes) {
                if error.is_no_space() {
                    // Pitfall P19 again: the process ends, and comes back when there is space.
                    self.counts.disk_full += 1;
                    self.crash(number);
                    return self.later(500 * MS, Todo::Start { machine: number });
                }
                return self
                    .watch
                    .violation(format!("{} cannot append to its log: {error}", machine.member));
            }
        }
        let mut wait = machine
            .rng
            .between(self.conditions.sync_time.0, self.conditions.sync_time.1);
        let (slow_until, slow) = machine.slow;
        if slow_until > self.now {
            self.counts.slow_syncs += 1;
            wait = slow;
        }
        if early {
            let token = process.syncing.last().expect("invariant: there are writes").0;
            self.later(
                wait,
                Todo::SaidSynced {
                    machine: number,
                    boot,
                    token,
                },
            );
            wait += SABOTAGED_SYNC;
        }
        self.later(wait, Todo::Synced { machine: number, boot });
    }

    pub(super) fn synced(&mut self, number: usize) {
        let lies = self.breaks(Sabotage::LyingDisk);
        let machine = &mut self.machines[number];
        let member = machine.member;
        let Some(process) = &mut machine.process else {
            return;
        };
        if std::mem::take(&mut process.sync_fails) {
            machine.disk.fail_syncs(true);
        }
        if !lies && process.wal.sync().is_err() {
            // Pitfall P19: after a failed sync nothing is known, so the process ends.
            self.counts.sync_errors += 1;
            self.crash(number);
            return self.later(500 * MS, Todo::Start { machine: number });
        }
        let synced = std::mem::take(&mut process.syncing);
        let mut last = None;
        for (token, writes) in synced {
            writes.iter().for_each(|write| self.watch.synced(member, write));
            last = Some(token);
        }
        self.trace.note(
            self.now,
            number as u64,
            "synced",
            &[last.map_or(0, |token| token.0)],
            || format!("{last:?}"),
        );
        if let Some(token) = last {
            self.poll(number, vec![Event::Written(token)]);
        }
        self.sync(number);
    }

    /// The state machine's thread takes the next job.
    fn work(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        let boot = machine.boot;
        let Some(process) = &mut machine.process else {
            return;
        };
        if process.working || process.jobs.is_empty() {
            return;
        }
        process.working = true;
        let wait = machine
            .rng
            .between(self.conditions.apply_time.0, self.conditions.apply_time.1);
        self.later(wait, Todo::Worked { machine: number, boot });
    }

    pub(super) fn worked(&mut self, number: usize) {
        let Some(process) = &mut self.machines[number].process else {
            return;
        };
        process.working = false;
        let event = match process.jobs.pop_front() {
            None => None,
            Some(Job::Apply(items)) => self.apply(number, &items),
            Some(Job::Install(meta)) => self.install(number, meta),
        };
        let installed = matches!(event, Some(Event::Installed { .. }));
        if let Some(event) = event {
            self.poll(number, vec![event]);
        }
        if installed && let Some(down) = self.machines[number].dies_at_install.take() {
            // The state machine has the snapshot, and the log does not know it yet (pitfall P15).
            self.counts.install_crashes += 1;
            self.crash(number);
            return self.later(down, Todo::Start { machine: number });
        }
        self.work(number);
    }

    fn apply(&mut self, number: usize, items: &[Item]) -> Option<Event> {
        let skips = self.breaks(Sabotage::SkipCommand) && number == 0;
        let machine = &mut self.machines[number];
        let member = machine.member;
        let process = machine.process.as_mut()?;
        let SnapshotMeta {
            mut config, mut reads, ..
        } = process.mvcc.applied();
        let mut last = LogPosition::default();
        let mut work = Vec::with_capacity(items.len());
        for item in items {
            last = item.position;
            work.push(match &item.work {
                Work::Noop => ApplyItem::Noop,
                Work::Command { .. } if skips && item.position.index.0 % 20 == 0 => ApplyItem::Noop,
                Work::Command { command, .. } => match althing_store::codec::decode_command(command.clone()) {
                    Ok(command) => ApplyItem::unstamped(command),
                    Err(error) => {
                        self.watch
                            .violation(format!("{member} cannot read entry {}: {error}", item.position.index));
                        return None;
                    }
                },
                Work::Reads { state } => {
                    self.counts.read_changes += 1;
                    reads = state.clone();
                    ApplyItem::Noop
                }
                Work::Configure { change, state } => {
                    self.counts.config_changes += 1;
                    self.counts.joint_changes += u64::from(state.is_joint());
                    config = state.clone();
                    ApplyItem::Config(change.clone())
                }
            });
        }
        let results = match process.mvcc.apply(
            &work,
            SnapshotMeta {
                position: last,
                config,
                reads,
            },
        ) {
            Ok(results) => results,
            Err(error) => {
                self.watch
                    .violation(format!("{member} cannot apply up to entry {}: {error}", last.index));
                return None;
            }
        };
        self.trace
            .note(self.now, number as u64, "applied", &[last.index.0, last.term.0], || {
                format!("{} of term {}", last.index, last.term)
            });
        for (item, result) in items.iter().zip(results) {
            self.watch.answered(member, item.position.index, &result);
            if let (
                Work::Command {
                    waiter: Some(request), ..
                },
                Some(result),
            ) = (&item.work, result)
            {
                self.answer(number, *request, &result);
            }
        }
        Some(Event::Applied {
            group: GROUP,
            position: last,
        })
    }

    fn install(&mut self, number: usize, meta: SnapshotMeta) -> Option<Event> {
        let machine = &mut self.machines[number];
        let member = machine.member;
        let process = machine.process.as_mut()?;
        let installed = match process.import.take() {
            None => Err("no snapshot lies aside".to_owned()),
            Some(import) => process.mvcc.install(import).map_err(|error| error.to_string()),
        };
        match installed {
            Ok(found) if found == meta => {
                // An installation is durable, as the store's contract says.
                machine.checkpoint = process.store.fork();
                machine.checkpoint_at = meta.position.index;
                self.counts.installs += 1;
                self.trace
                    .note(self.now, number as u64, "installed", &[meta.position.index.0], || {
                        format!("{:?}", meta.position)
                    });
                Some(Event::Installed { group: GROUP, meta })
            }
            Ok(found) => {
                self.watch
                    .violation(format!("{member} installed {found:?} instead of {meta:?}"));
                None
            }
            Err(error) => {
                self.watch
                    .violation(format!("{member} cannot install a snapshot: {error}"));
                None
            }
        }
    }

    pub(super) fn checkpoint(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        let (boot, member) = (machine.boot, machine.member);
        self.later(
            self.conditions.checkpoint_every,
            Todo::Checkpoint { machine: number, boot },
        );
        let machine = &mut self.machines[number];
        let Some(process) = machine.process.as_mut() else {
            return;
        };
        match process.mvcc.checkpoint() {
            Ok(meta) => {
                let store = process.store.fork();
                let wait = machine.rng.below(self.conditions.checkpoint_time);
                self.later(
                    wait,
                    Todo::Checkpointed {
                        machine: number,
                        boot,
                        store,
                        position: meta.position,
                    },
                );
            }
            Err(error) => self.watch.violation(format!("{member} cannot checkpoint: {error}")),
        }
    }

    /// A checkpoint is durable; meanwhile the state machine has gone on, and may even have installed a snapshot.
    pub(super) fn checkpointed(&mut self, number: usize, store: MemStore, position: LogPosition) {
        let machine = &mut self.machines[number];
        if position.index >= machine.checkpoint_at {
            machine.checkpoint = store;
            machine.checkpoint_at = position.index;
            self.poll(number, vec![Event::Checkpointed { group: GROUP, position }]);
        }
    }

    /// The state machine answers a request.
    fn answer(&mut self, number: usize, request: RequestId, result: &CommandResult) {
        if let Some(Waiter::Client(client)) = self.close(number, request) {
            self.client_ends_at(client, number, request, clients::command_outcome(result));
        }
    }

    /// The host answers a request.
    fn complete(&mut self, number: usize, request: RequestId, result: Result<Done, Refusal>) {
        if let Ok(Done::Transferred { .. }) = result {
            self.counts.transfers += 1;
        }
        let client = match self.close(number, request) {
            Some(Waiter::Client(client)) => client,
            Some(Waiter::Probe { term, leader }) => return self.probed(number, (term, leader), result),
            Some(Waiter::Nobody) | None => return,
        };
        let Some(current) = self.clients.all[client].current.clone() else {
            return;
        };
        match result {
            Ok(Done::Read { index }) => {
                let boot = self.machines[number].boot;
                let waits = (current.machine, current.boot, current.request) == (number, boot, request);
                // Raft thesis, section 6.4: also the first entry of a newer leader counts, which no client sees. A read under a
                // lease owes only what was written to its key.
                if waits && self.conditions.leases.is_none() && index < current.committed {
                    self.watch.violation(format!(
                        "{} serves a read at entry {index}, which began after entry {} was committed",
                        self.machines[number].member, current.committed
                    ));
                }
                let (soonest, latest) = self.conditions.leases.map_or((0, 0), |leases| leases.serve_time);
                if waits && latest == 0 {
                    self.read(client, number);
                } else if waits {
                    // The thread that looks at the state is another one, and may come late.
                    let wait = self.machines[number].rng.between(soonest, latest);
                    self.later(
                        wait,
                        Todo::Serve {
                            machine: number,
                            boot,
                            client,
                            request,
                        },
                    );
                }
            }
            Ok(done @ (Done::Configured { .. } | Done::ReadsSet { .. } | Done::Transferred { .. })) => self
                .watch
                .violation(format!("a client's request is answered with {done:?}")),
            Err(refusal) => {
                self.client_ends_at(client, number, request, clients::refusal_outcome(&current.op, refusal));
            }
        }
    }

    /// Every request is answered exactly once.
    fn close(&mut self, number: usize, request: RequestId) -> Option<Waiter> {
        let machine = &mut self.machines[number];
        let waiter = machine.process.as_mut()?.open.remove(&request);
        if waiter.is_none() {
            self.watch
                .violation(format!("{} answers {request:?} a second time", machine.member));
        }
        waiter
    }

    /// Ends a client's operation, unless the client has long gone on to another one.
    fn client_ends_at(&mut self, client: usize, number: usize, request: RequestId, outcome: Outcome) {
        let boot = self.machines[number].boot;
        let waits = self.clients.all[client]
            .current
            .as_ref()
            .is_some_and(|current| (current.machine, current.boot, current.request) == (number, boot, request));
        if waits {
            self.client_ends(client, outcome);
        }
    }
}
