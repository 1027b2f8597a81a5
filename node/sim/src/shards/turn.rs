//! The shell around a host of many groups: what its threads do, and how long they take.

use super::machine::{self, Job, NoStart, Said, Writes};
use super::{Errand, Todo, World};
use crate::mutant::Sabotage;
use crate::world::conditions::MS;
use althing_raft::ids::{GroupId, LogPosition};
use althing_raft::io::Role;
use althing_shard::host::GroupView;
use althing_shard::{Effect, Event};
use althing_store::MemStore;
use althing_store::ops::RevisionSource;
use std::collections::{BTreeMap, BTreeSet};

/// Under [`Sabotage::AckBeforeSync`], how much longer a sync takes than production's: long enough for a crash.
const SABOTAGED_SYNC: u64 = 200 * MS;
/// How long a process that ended by itself is down.
const DOWN: u64 = 500 * MS;

impl World {
    /// A machine's process starts on what its disks hold.
    pub(super) fn start(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        if machine.process.is_some() {
            return;
        }
        machine.boot += 1;
        let (boot, member) = (machine.boot, machine.member);
        match machine::start(machine, &self.weather.conditions, self.now) {
            Err(NoStart::Broken(error)) => self.violation(format!("{member} cannot start: {error}")),
            Err(NoStart::DiskFull) => {
                self.counts.disk_full += 1;
                self.later(DOWN, Todo::Start { machine: number });
            }
            Ok((process, found)) => {
                for found in &found {
                    let watch = self.watch(found.group);
                    watch.booted(member, found.hard_state, found.log_start, &found.entries);
                }
                // Of some the log was emptied before the crash, and nobody got to say so.
                let gone: Vec<GroupId> = process.retired.keys().copied().collect();
                for group in gone {
                    self.watch(group).left(member, false);
                }
                self.trace
                    .note(self.now, number as u64, "start", &[boot, found.len() as u64], || {
                        format!("{member} boot {boot}, {} groups", found.len())
                    });
                let groups: Vec<GroupId> = process.groups.keys().copied().collect();
                self.machines[number].process = Some(process);
                let every = self.weather.conditions.checkpoint_every;
                self.later(every, Todo::Checkpoint { machine: number, boot });
                let facts = groups.iter().filter_map(|group| self.facts(number, *group)).collect();
                self.poll(number, facts);
                self.errands.push(Errand::Started { machine: number, boot });
            }
        }
    }

    /// A process ends without warning. What was not synced may be lost; whoever waits for it hears that.
    pub(super) fn crash(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        let Some(mut process) = machine.process.take() else {
            return;
        };
        self.counts.crashes += 1;
        let boot = machine.boot;
        self.trace.note(self.now, number as u64, "crash", &[boot], String::new);
        // The engine keeps at least what was checkpointed, and at most everything.
        match (machine.rng.below(4), process.torn.take()) {
            (0 | 1, _) => machine.checkpoint = process.engine.fork(),
            (2, Some((number, torn))) if number > machine.checkpoint_number => machine.checkpoint = torn,
            (_, _) => {}
        }
        machine.copies += 1;
        machine.checkpoint_number = machine.copies;
        drop(process);
        machine.disk.crash();
        self.ended.push(number);
    }

    /// A process that cannot write ends (pitfall P19), and comes back when there is space.
    fn full(&mut self, number: usize) {
        self.counts.disk_full += 1;
        self.crash(number);
        self.later(DOWN, Todo::Start { machine: number });
    }

    /// Whether the commands of a group need revisions, for its host.
    pub(super) fn facts(&self, number: usize, group: GroupId) -> Option<Event> {
        let process = self.machines[number].process.as_ref()?;
        let on = process.groups.get(&group)?.source() == RevisionSource::Sequenced;
        Some(Event::Sequenced { group, on })
    }

    pub(super) fn view(&self, number: usize, group: GroupId) -> Option<GroupView> {
        self.machines[number].process.as_ref()?.host.view(group)
    }

    /// One turn of a host.
    pub(super) fn poll(&mut self, number: usize, events: Vec<Event>) {
        let machine = &mut self.machines[number];
        let (member, local) = (machine.member, machine.clock.local(self.now));
        let Some(process) = &mut machine.process else {
            return;
        };
        let applied = events.iter().filter_map(|event| match event {
            Event::Applied { group, .. } | Event::Installed { group, .. } => Some(*group),
            Event::Propose { .. }
            | Event::Read { .. }
            | Event::SetReads { .. }
            | Event::Configure { .. }
            | Event::Transfer { .. }
            | Event::Resolve { .. }
            | Event::Sequenced { .. }
            | Event::Stamped { .. }
            | Event::Retire { .. }
            | Event::Campaign { .. }
            | Event::Messages(_)
            | Event::PeerSeen { .. }
            | Event::Unreachable(_)
            | Event::Written(_)
            | Event::Members { .. }
            | Event::Checkpointed { .. }
            | Event::SnapshotSent { .. }
            | Event::SnapshotReceived { .. } => None,
        });
        let mut touched: BTreeSet<GroupId> = applied.collect();
        let effects = match process.host.poll(local, events) {
            Ok(effects) => effects,
            Err(error) => return self.violation(format!("{member} stops: {error}")),
        };
        // Writes first: messages of this turn may only promise what was durable before it, and the onlooker must know the log that a
        // new leader leads with.
        for effect in &effects {
            if let Effect::Write { writes, .. } = effect {
                for write in writes {
                    let view = self.view(number, write.group).map(|view| view.raft);
                    let watch = self.watch(write.group);
                    watch.wrote(member, write);
                    if let Some(view) = view.filter(|view| view.soft.role == Role::Leader) {
                        watch.leader_commits(member, view.soft.term, view.commit);
                        watch.changes(member, &view.soft, write);
                    }
                }
            }
        }
        effects.iter().for_each(|effect| touch(effect, &mut touched));
        for effect in effects {
            self.effect(number, effect);
        }
        self.after_turn(number, &touched);
    }

    fn after_turn(&mut self, number: usize, touched: &BTreeSet<GroupId>) {
        let machine = &self.machines[number];
        let (member, boot) = (machine.member, machine.boot);
        let Some(process) = &machine.process else {
            return;
        };
        let views: Vec<(GroupId, GroupView)> = touched
            .iter()
            .filter_map(|group| Some((*group, process.host.view(*group)?)))
            .collect();
        for (group, view) in views {
            let watch = self.watch(group);
            watch.commits(member, view.raft.commit);
            let soft = &view.raft.soft;
            watch.holds(member, &soft.config, view.applied.index);
            if soft.role == Role::Leader {
                watch.leader_commits(member, soft.term, view.raft.commit);
            }
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
        let machine = &mut self.machines[number];
        let (member, boot) = (machine.member, machine.boot);
        let Some(process) = &mut machine.process else {
            return;
        };
        match effect {
            Effect::Write { token, writes } => {
                process.writes.push_back(Writes::Host(token, writes));
                self.sync(number);
            }
            Effect::Compact { group, up_to } => match process.wal.compact(group, up_to) {
                Ok(()) => {}
                Err(error) if error.is_no_space() => self.full(number),
                Err(error) => self.violation(format!("{member} cannot cut its log: {error}")),
            },
            Effect::Send { to, messages } => self.send(number, to, &messages),
            Effect::Apply { group, items } => {
                let term = process.host.view(group).map(|view| view.raft.soft.term);
                process.jobs.push_back(Job::Apply(group, items.clone()));
                let watch = self.watch(group);
                let term = term.unwrap_or_default();
                items.iter().for_each(|item| watch.handed(member, term, item));
                self.work(number);
            }
            Effect::Install { group, meta } => {
                process.jobs.push_back(Job::Install(group, meta));
                self.work(number);
            }
            Effect::Discard { group, meta: _ } => drop(process.imports.remove(&group)),
            Effect::Complete { request, result } => {
                if let Some(promise) = self.close(number, request) {
                    promise.keep(Said::Host(result));
                }
            }
            Effect::SendSnapshot { group, to, term } => self.send_snapshot(number, group, to, term),
            Effect::Stamp { group, ticket, count } => self.errands.push(Errand::Stamp {
                machine: number,
                boot,
                group,
                ticket,
                count,
            }),
            Effect::Retired { group, hard_state } => {
                process.soft.remove(&group);
                if let Some(promise) = process.leaving.remove(&group) {
                    promise.keep(Some(hard_state));
                }
            }
            Effect::Kept { group } => {
                if let Some(promise) = process.leaving.remove(&group) {
                    promise.keep(None);
                }
            }
            // Members find each other by id here: addresses are the real shell's business.
            Effect::Peers(_) => {}
            Effect::Changed { group, soft } => {
                process.soft.insert(group, soft.clone());
                self.trace.note(
                    self.now,
                    number as u64,
                    "changed",
                    &[group.0, soft.term.0, soft.role as u64],
                    || format!("group {group}: {soft:?}"),
                );
                if soft.role == Role::Leader {
                    self.watch(group).leads(member, soft.term);
                }
            }
        }
    }

    /// The log's thread takes everything that waits, appends it, and syncs once.
    pub(super) fn sync(&mut self, number: usize) {
        let early = self.breaks(Sabotage::AckBeforeSync);
        let machine = &mut self.machines[number];
        let (boot, member) = (machine.boot, machine.member);
        let Some(process) = &mut machine.process else {
            return;
        };
        if !process.syncing.is_empty() || process.writes.is_empty() {
            return;
        }
        process.syncing = process.writes.drain(..).collect();
        for writes in &process.syncing {
            let writes = match writes {
                Writes::Host(_, writes) => writes.as_slice(),
                Writes::Shell(write, _) => std::slice::from_ref(write),
            };
            match process.wal.append(writes) {
                Ok(()) => {}
                Err(error) if error.is_no_space() => return self.full(number),
                Err(error) => return self.violation(format!("{member} cannot append to its log: {error}")),
            }
        }
        let (soonest, latest) = self.weather.conditions.sync_time;
        let mut wait = machine.rng.between(soonest, latest);
        let (slow_until, slow) = machine.slow;
        if slow_until > self.now {
            self.counts.slow_syncs += 1;
            wait = slow;
        }
        let tokens = process.syncing.iter().rev().find_map(|writes| match writes {
            Writes::Host(token, _) => Some(*token),
            Writes::Shell(..) => None,
        });
        if let Some(token) = tokens.filter(|_| early) {
            let said = Todo::SaidSynced {
                machine: number,
                boot,
                token,
            };
            self.later(wait, said);
            wait += SABOTAGED_SYNC;
        }
        self.later(wait, Todo::Synced { machine: number, boot });
    }

    pub(super) fn synced(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        let member = machine.member;
        let Some(process) = &mut machine.process else {
            return;
        };
        if std::mem::take(&mut process.sync_fails) {
            machine.disk.fail_syncs(true);
        }
        if process.wal.sync().is_err() {
            // Pitfall P19: after a failed sync nothing is known, so the process ends.
            self.counts.sync_errors += 1;
            self.crash(number);
            return self.later(DOWN, Todo::Start { machine: number });
        }
        let mut last = None;
        for writes in std::mem::take(&mut process.syncing) {
            match writes {
                Writes::Host(token, writes) => {
                    for write in &writes {
                        self.watch(write.group).synced(member, write);
                    }
                    last = Some(token);
                }
                Writes::Shell(_, promise) => promise.keep(()),
            }
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

    /// What the engine holds now is what a crash leaves at least.
    pub(super) fn make_durable(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        if let Some(process) = &machine.process {
            machine.checkpoint = process.engine.fork();
            machine.copies += 1;
            machine.checkpoint_number = machine.copies;
        }
    }

    pub(super) fn checkpoint(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        let boot = machine.boot;
        let Some(process) = machine.process.as_mut() else {
            return;
        };
        let mut positions = BTreeMap::new();
        for (group, store) in &process.groups {
            let life = process.lives.get(group).copied().unwrap_or_default();
            positions.insert(*group, (life, store.applied().position));
        }
        let engine = process.engine.fork();
        machine.copies += 1;
        let wait = machine.rng.below(self.weather.conditions.checkpoint_time);
        let done = Todo::Checkpointed {
            machine: number,
            boot,
            engine,
            number: machine.copies,
            positions,
        };
        self.later(wait, done);
        let every = self.weather.conditions.checkpoint_every;
        self.later(every, Todo::Checkpoint { machine: number, boot });
    }

    /// A checkpoint is durable; meanwhile the state machines have gone on, and later copies may have been made durable.
    pub(super) fn checkpointed(
        &mut self,
        number: usize,
        engine: MemStore,
        copy: u64,
        positions: BTreeMap<GroupId, (u64, LogPosition)>,
    ) {
        let machine = &mut self.machines[number];
        if copy > machine.checkpoint_number {
            machine.checkpoint = engine;
            machine.checkpoint_number = copy;
        }
        let Some(process) = &mut machine.process else { return };
        let mut events = Vec::new();
        for (group, (life, position)) in positions {
            if process.lives.get(&group) == Some(&life) && process.groups.contains_key(&group) {
                let durable = process.durable.entry(group).or_default();
                if position.index > durable.index {
                    *durable = position;
                }
                events.push(Event::Checkpointed { group, position });
            }
        }
        self.poll(number, events);
    }

    /// Every request is answered exactly once.
    pub(super) fn close(
        &mut self,
        number: usize,
        request: althing_raft::io::RequestId,
    ) -> Option<super::task::Promise<Said>> {
        let machine = &mut self.machines[number];
        let member = machine.member;
        match machine.process.as_mut()?.open.remove(&request) {
            Some(promise) => promise,
            None => {
                self.violation(format!("{member} answers {request:?} a second time"));
                None
            }
        }
    }
}

/// Whose commit index, configuration or role an effect tells of.
fn touch(effect: &Effect, touched: &mut BTreeSet<GroupId>) {
    match effect {
        Effect::Write { writes, .. } => touched.extend(writes.iter().map(|write| write.group)),
        Effect::Apply { group, .. } | Effect::Install { group, .. } | Effect::Changed { group, .. } => {
            touched.insert(*group);
        }
        Effect::Compact { .. }
        | Effect::Send { .. }
        | Effect::Complete { .. }
        | Effect::SendSnapshot { .. }
        | Effect::Discard { .. }
        | Effect::Stamp { .. }
        | Effect::Retired { .. }
        | Effect::Kept { .. }
        | Effect::Peers(_) => {}
    }
}
