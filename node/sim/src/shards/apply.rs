//! The state machines' thread: one job after another, each taking a while.

use super::judge;
use super::machine::{self, Job, Said};
use super::{Errand, Todo, World};
use althing_raft::entry::SnapshotMeta;
use althing_raft::ids::GroupId;
use althing_shard::{Event, Item, Work};
use althing_store::ops::{Command, ShardCommand};
use althing_store::{ApplyItem, CommandResult, StoreError, codec};
use std::rc::Rc;

/// Chance that a job leaves a copy of the engine that a crash may go back to.
const TORN_PER_MILLE: u64 = 100;

impl World {
    /// The state machines' thread takes the next job.
    pub(super) fn work(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        let boot = machine.boot;
        let Some(process) = &mut machine.process else {
            return;
        };
        if process.working || process.jobs.is_empty() {
            return;
        }
        process.working = true;
        let (soonest, latest) = self.weather.conditions.apply_time;
        let wait = machine.rng.between(soonest, latest);
        self.later(wait, Todo::Worked { machine: number, boot });
    }

    pub(super) fn worked(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        let torn = machine.rng.chance(TORN_PER_MILLE);
        let Some(process) = &mut machine.process else {
            return;
        };
        process.working = false;
        if torn {
            machine.copies += 1;
            process.torn = Some((machine.copies, process.engine.fork()));
        }
        match process.jobs.pop_front() {
            None => {}
            Some(Job::Apply(group, items)) => self.apply_all(number, group, &items),
            Some(Job::Install(group, meta)) => self.install(number, group, meta),
            Some(Job::Retire(group, promise)) => {
                process.imports.remove(&group);
                let cleared = process.groups.remove(&group).map(|store| machine::clear(&store));
                match cleared {
                    None | Some(Ok(())) => promise.keep(()),
                    Some(Err(error)) => {
                        self.violation(format!("the state of group {group} cannot be cleared: {error}"))
                    }
                }
            }
        }
        self.work(number);
    }

    fn apply_all(&mut self, number: usize, group: GroupId, items: &[Item]) {
        let member = self.machines[number].member;
        let ends = |item: &Item| match &item.work {
            Work::Command { command, .. } => codec::ends_batch(command),
            Work::Noop | Work::Reads { .. } | Work::Configure { .. } => false,
        };
        // A sealed state shows the judge nothing, not even what came before in its batch.
        let seals = |item: &Item| match &item.work {
            Work::Command { command, .. } => matches!(
                codec::decode_command(command.clone()),
                Ok(Command::Shard(ShardCommand::Seal { .. }))
            ),
            Work::Noop | Work::Reads { .. } | Work::Configure { .. } => false,
        };
        for batch in items.chunk_by(|before, after| !ends(before) && !seals(after)) {
            match self.apply(number, group, batch) {
                Ok(events) => self.poll(number, events),
                Err(error) => {
                    let text = format!("{member} cannot apply entries of group {group}: {error}");
                    return self.violation(text);
                }
            }
        }
    }

    fn apply(&mut self, number: usize, group: GroupId, items: &[Item]) -> Result<Vec<Event>, StoreError> {
        let machine = &mut self.machines[number];
        let (member, boot) = (machine.member, machine.boot);
        let process = machine
            .process
            .as_mut()
            .expect("invariant: only a running process applies");
        let store = Rc::clone(
            process
                .groups
                .get(&group)
                .expect("invariant: a group that has entries has a state machine"),
        );
        let mut meta = store.applied();
        let mut work = Vec::with_capacity(items.len());
        let mut facts_changed = false;
        for item in items {
            meta.position = item.position;
            work.push(match &item.work {
                Work::Noop => ApplyItem::Noop,
                Work::Command { command, stamp, .. } => match codec::decode_command(command.clone()) {
                    Ok(command) => {
                        facts_changed |= matches!(command, Command::Shard(_));
                        ApplyItem::Command { command, stamp: *stamp }
                    }
                    Err(error) => {
                        let index = item.position.index;
                        self.violation(format!("{member} cannot read entry {index} of group {group}: {error}"));
                        return Ok(Vec::new());
                    }
                },
                Work::Reads { state } => {
                    meta.reads = state.clone();
                    ApplyItem::Noop
                }
                Work::Configure { change, state } => {
                    self.counts.config_changes += 1;
                    self.counts.joint_changes += u64::from(state.is_joint());
                    meta.config = state.clone();
                    ApplyItem::Config(change.clone())
                }
            });
        }
        let position = meta.position;
        let results = match store.apply_beside(&work, meta.clone(), None) {
            Err(StoreError::Neighbour { from, .. }) if process.groups.contains_key(&from) => {
                let neighbour = Rc::clone(&process.groups[&from]);
                store.apply_beside(&work, meta, Some(&*neighbour))
            }
            results => results,
        }?;
        store.write_out()?;
        let _ = store.compact_step()?;
        self.trace.note(
            self.now,
            number as u64,
            "applied",
            &[group.0, position.index.0, position.term.0],
            || format!("group {group}: {} of term {}: {work:?}", position.index, position.term),
        );
        let born = store.take_born();
        let stores: Vec<&machine::Store> = std::iter::once(&*store).chain(&born).collect();
        for ((item, applied), result) in items.iter().zip(&work).zip(results) {
            self.watch(group).answered(member, item.position.index, &result);
            let Some(result) = result else { continue };
            if let Work::Command { waiter, .. } = &item.work {
                self.judge_result(group, &stores, applied, &result);
                if let Some(promise) = waiter.and_then(|request| self.close(number, request)) {
                    promise.keep(Said::Applied(result));
                }
            }
        }
        let child = work.last().and_then(|item| match item {
            ApplyItem::Command {
                command: Command::Shard(ShardCommand::Split { child, .. }),
                ..
            } => Some(*child),
            ApplyItem::Command { .. } | ApplyItem::Noop | ApplyItem::Config(_) => None,
        });
        if let (Some(child), Some(born)) = (child, born) {
            self.counts.births += 1;
            self.errands.push(Errand::Begin {
                machine: number,
                boot,
                group: child,
                store: born,
            });
        }
        let mut events = vec![Event::Applied { group, position }];
        if facts_changed {
            events.extend(self.facts(number, group));
            self.look_at_territories();
        }
        Ok(events)
    }

    fn judge_result(&mut self, group: GroupId, stores: &[&machine::Store], item: &ApplyItem, result: &CommandResult) {
        if group != GroupId::META
            && let Some(revision) = judge::written(item, result)
            && let Some(text) = self.judge.applied(group, stores, revision)
        {
            self.violation(text);
        }
    }

    fn install(&mut self, number: usize, group: GroupId, meta: SnapshotMeta) {
        let machine = &mut self.machines[number];
        let member = machine.member;
        let Some(process) = &mut machine.process else { return };
        let store = process.groups.get(&group);
        let installed = match (process.imports.remove(&group), store) {
            (Some(import), Some(store)) => store.install(import).map_err(|error| error.to_string()),
            (None, _) | (_, None) => Err("no snapshot lies aside".to_owned()),
        };
        match installed {
            Ok(found) if found == meta => {
                self.counts.installs += 1;
                // An installation is durable, as the store's contract says.
                self.make_durable(number);
                self.trace.note(
                    self.now,
                    number as u64,
                    "installed",
                    &[group.0, meta.position.index.0],
                    || format!("group {group}: {:?}", meta.position),
                );
                let mut events = vec![Event::Installed { group, meta }];
                events.extend(self.facts(number, group));
                self.poll(number, events);
            }
            Ok(found) => self.violation(format!("{member} installed {found:?} instead of {meta:?}")),
            Err(error) => self.violation(format!("{member} cannot install a snapshot of group {group}: {error}")),
        }
    }
}
