//! Groups come to a node and leave it, one at a time: the steps of `node/src/lifecycle.rs`.

use super::call::Failure;
use super::local::encoded;
use super::machine::{Job, Store, Writes, clear, core_config, first_write};
use super::task::promise;
use super::{Node, World};
use crate::mutant::Sabotage;
use althing_raft::entry::{ConfigState, Payload};
use althing_raft::ids::{GroupId, LogPosition, MemberId};
use althing_raft::io::Start;
use althing_shard::conductor::CloseGuard;
use althing_shard::envelope::{BootNonce, Envelope};
use althing_shard::{Event, GroupStart};
use althing_store::Mvcc;
use althing_store::ops::{Command, RevisionSource, ShardCommand, Territory};
use althing_wal::GroupWrite;
use bytes::Bytes;
use std::rc::Rc;

/// Whoever has it is the only one who opens or closes groups of a node.
struct Turn(Node);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.with(|process| match process.lifecycle_waiting.pop_front() {
            Some(next) => next.keep(()),
            None => process.lifecycle_busy = false,
        });
    }
}

fn gone(_: impl Sized) -> Failure {
    Failure::Stopped
}

/// What a group owns, as its first command. Nobody waits for it.
fn settle_entry(territory: Territory, source: RevisionSource) -> Payload {
    let command = encoded(&Command::Shard(ShardCommand::Settle { territory, source }));
    let envelope = Envelope {
        proposer: MemberId(0),
        nonce: BootNonce(0),
        sequence: 0,
        stamp: None,
        command,
    };
    Payload::Command(envelope.encode())
}

impl Node {
    async fn turn(&self) -> Option<Turn> {
        let wait = self.with(|process| {
            if process.lifecycle_busy {
                let (promise, answer) = promise();
                process.lifecycle_waiting.push_back(promise);
                Some(answer)
            } else {
                process.lifecycle_busy = true;
                None
            }
        })?;
        if let Some(answer) = wait {
            answer.await?;
        }
        Some(Turn(self.clone()))
    }

    fn is_here(&self, group: GroupId) -> bool {
        self.with(|process| process.groups.contains_key(&group)) == Some(true)
    }

    /// Gives this node an empty replica of a group that exists elsewhere; its leader fills it. Repeating it is harmless.
    pub(crate) async fn open(&self, group: GroupId) -> Result<(), Failure> {
        let _turn = self.turn().await.ok_or(Failure::Stopped)?;
        if self.is_here(group) {
            return Ok(());
        }
        let forgets = self.ground.world.borrow().breaks(Sabotage::ForgetVoteOfRetired);
        let retired = self.with(|process| process.retired.get(&group).copied()).flatten();
        let start = Start {
            hard_state: retired.filter(|_| !forgets).unwrap_or_default(),
            ..Start::default()
        };
        if retired.is_none() {
            // A state without a log is a broken volume; and a snapshot may be durable before the first entry behind it is.
            self.write(first_write(group, &start)).await?;
        }
        let store = self.fresh(group)?;
        self.with(|process| process.retired.remove(&group));
        self.ground.world.borrow_mut().counts.opened += 1;
        self.start_group(group, store, start);
        Ok(())
    }

    fn fresh(&self, group: GroupId) -> Result<Store, Failure> {
        let engine = self.with(|process| process.engine.clone()).ok_or(Failure::Stopped)?;
        Mvcc::open(engine, group).map_err(|error| {
            let text = format!("an empty state of group {group} cannot be opened: {error}");
            self.ground.world.borrow_mut().violation(text);
            Failure::Stopped
        })
    }

    /// Gives birth to a group whose only voter is this member, with what it owns as its first entry. Nothing if it is here.
    pub(crate) async fn create(
        &self,
        group: GroupId,
        territory: Territory,
        source: RevisionSource,
    ) -> Result<(), Failure> {
        let _turn = self.turn().await.ok_or(Failure::Stopped)?;
        if self.is_here(group) {
            return Ok(());
        }
        if self.with(|process| process.retired.contains_key(&group)) == Some(true) {
            return Err(Failure::No(format!("group {group} was here before")));
        }
        let me = self.me();
        let mut start = Start::birth(me, Bytes::from_static(b"somewhere:2380"));
        start.then(settle_entry(territory, source));
        let store = self.fresh(group)?;
        {
            // Before the write: after a crash it may be there.
            let mut world = self.ground.world.borrow_mut();
            world.counts.created += 1;
            world.watch(group).born(ConfigState {
                voters: [me].into(),
                ..ConfigState::default()
            });
        }
        self.write(GroupWrite {
            group,
            hard_state: Some(start.hard_state),
            reset_to: None,
            entries: start.entries.clone(),
        })
        .await?;
        self.start_group(group, store, start);
        Ok(())
    }

    /// Gives this node a replica of a new group with its first state. Repeating it is harmless.
    pub(crate) async fn begin(&self, group: GroupId, store: Store) {
        let Some(_turn) = self.turn().await else { return };
        if self.is_here(group) {
            return;
        }
        let was_here = self.with(|process| process.retired.contains_key(&group)) == Some(true);
        if was_here {
            // It came by a snapshot and left again, and its vote must not be given twice.
            if let Err(error) = clear(&store) {
                let text = format!("what was born of group {group} cannot be cleared: {error}");
                self.ground.world.borrow_mut().violation(text);
            }
            return;
        }
        let start = Start::after(store.applied());
        {
            let mut world = self.ground.world.borrow_mut();
            if !world.breaks(Sabotage::ChildBeforeDurable) {
                world.make_durable(self.number);
            }
        }
        if self.write(first_write(group, &start)).await.is_err() {
            return;
        }
        self.ground
            .world
            .borrow_mut()
            .watch(group)
            .born(start.applied.config.clone());
        self.start_group(group, store, start);
    }

    /// Removes this node's replica of a group, if the guard holds. Repeating it is harmless.
    pub(crate) async fn close_group(&self, group: GroupId, guard: CloseGuard) -> Result<(), Failure> {
        let _turn = self.turn().await.ok_or(Failure::Stopped)?;
        if !self.is_here(group) {
            return Ok(());
        }
        let careless = self.ground.world.borrow().breaks(Sabotage::CloseWithoutGuard);
        let (life, ends_at) = match guard {
            CloseGuard::Forgotten { life } => (life, None),
            CloseGuard::Unchanged { life, last } => (life, Some(last)),
        };
        let present = self.with(|process| process.lives.get(&group).copied()).flatten();
        if present != Some(life) && !careless {
            return Err(Failure::No(format!("group {group} was started anew")));
        }
        let ends_at = ends_at.filter(|_| !careless);
        let (left, hard_state) = promise();
        self.with(|process| process.leaving.insert(group, left));
        self.tell(Event::Retire { group, ends_at });
        let hard_state = hard_state.await.ok_or(Failure::Stopped)?;
        let Some(hard_state) = hard_state else {
            return Err(Failure::No(format!("group {group} has gone on since")));
        };
        {
            // Another group may have taken its state over, and needs it again to do the same after a crash, until that is durable.
            let mut world = self.ground.world.borrow_mut();
            if !world.breaks(Sabotage::CloseBeforeDurable) {
                world.make_durable(self.number);
            }
        }
        self.write(GroupWrite {
            group,
            hard_state: Some(hard_state),
            reset_to: Some(LogPosition::default()),
            entries: Vec::new(),
        })
        .await?;
        let me = self.me();
        {
            let mut world = self.ground.world.borrow_mut();
            world.counts.closed += 1;
            world
                .watch(group)
                .left(me, matches!(guard, CloseGuard::Forgotten { .. }));
        }
        let (cleared, gone_too) = promise();
        self.with(|process| process.jobs.push_back(Job::Retire(group, cleared)))
            .ok_or(Failure::Stopped)?;
        self.ground.world.borrow_mut().work(self.number);
        gone_too.await.ok_or(()).map_err(gone)?;
        self.with(|process| {
            process.durable.remove(&group);
            process.lives.remove(&group);
            process.seats.remove(&group);
            process.retired.insert(group, hard_state);
        });
        Ok(())
    }

    async fn write(&self, write: GroupWrite) -> Result<(), Failure> {
        let (done, written) = promise();
        self.with(|process| process.writes.push_back(Writes::Shell(write, done)))
            .ok_or(Failure::Stopped)?;
        self.ground.world.borrow_mut().sync(self.number);
        written.await.ok_or(Failure::Stopped)
    }

    fn start_group(&self, group: GroupId, store: Store, start: Start) {
        self.ground
            .world
            .borrow_mut()
            .start_group(self.number, group, store, start);
    }
}

impl World {
    fn start_group(&mut self, number: usize, group: GroupId, store: Store, start: Start) {
        let machine = &mut self.machines[number];
        let (member, local) = (machine.member, machine.clock.local(self.now));
        let Some(process) = &mut machine.process else { return };
        process.lives.insert(group, machine.rng.next_u64());
        process.groups.insert(group, Rc::new(store));
        let hard_state = start.hard_state;
        let (log_start, entries) = (start.log_start, start.entries.clone());
        let config = core_config(&self.weather.conditions, member, group, machine.rng.next_u64());
        process.host.add_group(local, GroupStart { config, start });
        self.trace
            .note(self.now, number as u64, "open", &[group.0], || format!("group {group}"));
        self.watch(group).booted(member, hard_state, log_start, &entries);
        let facts = self.facts(number, group);
        self.poll(number, facts.into_iter().collect());
    }
}
