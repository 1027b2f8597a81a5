//! What clients do with answers: they drive the production state machines.

use crate::spread::client::{Call, CallKind, Outcome, Record, Request, Task, anything};
use crate::spread::event::{Body, Reply};
use crate::spread::world::{NODES, World};
use crate::spread::{Rule, Workload};
use althing_raft::ids::{GroupId, MemberId};
use althing_shard::route::{self, Plan};
use althing_shard::txn::{
    Answer, Asked, Cleanup, Failure, Input, Order, Output, Propose, ReadInput, ReadOutput, Recovery, SnapshotRead,
    Transaction,
};
use althing_store::ops::{Decision, OpError, OpResult, Revision, ShardCommand, ShardResult, TxnId};
use std::collections::BTreeSet;

/// How long a client minds a lock before it frees it, in simulated microseconds by its own clock.
const PATIENCE: u64 = 60_000;
/// Sometimes it frees what is alive.
const IMPATIENCE: u64 = 4_000;

impl World {
    /// A client that rests makes its next request.
    pub(super) fn next(&mut self, client: usize) {
        if !self.goes_on() || self.clients[client].current.is_some() {
            return;
        }
        let request = match self.run.workload {
            Workload::Mixed => {
                let value = self.records.len().to_string();
                anything(&mut self.rng, &value)
            }
            Workload::LongFork => self.long_fork(client),
            Workload::IdleRead => self.idle_read(client),
            Workload::Mutex => self.mutex(client),
        };
        self.begin(client, request);
    }

    fn begin(&mut self, client: usize, request: Request) {
        let record = self.records.len();
        let planned = match &request {
            Request::Write(command) => route::plan(&self.table, route::Request::Command(command)),
            Request::Read(range) => route::plan(&self.table, route::Request::Range(range)),
        };
        self.records.push(Record {
            request: request.clone(),
            invoked: self.moment,
            ended: None,
            outcome: Outcome::Unknown,
        });
        let task = self.number();
        self.clients[client].current = Some((record, task));
        self.arm_deadline(client, task);
        match (planned.expect("four shards are not too many"), request) {
            (Plan::One(group), Request::Write(command)) => {
                self.clients[client].tasks.insert(task, Task::Write);
                let kind = CallKind::Write;
                self.call(client, Call { task, group, kind }, record, Body::Write(command));
            }
            (Plan::TwoPhase(parts), Request::Write(_)) => {
                let id = TxnId {
                    member: MemberId(client as u64),
                    nonce: self.clients[client].life,
                    number: record as u64,
                };
                self.txns.insert(id, record);
                let order = if self.rng.chance(500) {
                    Order::Together
                } else {
                    Order::InTurn
                };
                let (transaction, outputs) = Transaction::new(id, parts, order);
                let spread = Task::Spread {
                    transaction,
                    early: None,
                    wanted: false,
                };
                self.clients[client].tasks.insert(task, spread);
                if self.broken(Rule::StampAfterPrepare) {
                    self.ask_for(client, task, CallKind::Stamp);
                }
                self.carry_out(client, task, outputs);
            }
            (Plan::Snapshot(parts), Request::Read(_)) => {
                let (read, outputs) = SnapshotRead::new(parts);
                self.clients[client].tasks.insert(task, Task::Read(read));
                self.look(client, task, outputs);
            }
            (plan, request) => unreachable!("{request:?} is planned as {plan:?}"),
        }
    }

    /// Ends the client's request.
    fn tell(&mut self, client: usize, task: u64, outcome: Outcome) {
        let Some((record, _)) = self.clients[client].current.take_if(|(_, of)| *of == task) else {
            return;
        };
        match &outcome {
            Outcome::Unknown => self.counts.unknown += 1,
            Outcome::Nothing | Outcome::Refused(_) => self.counts.refused += 1,
            Outcome::Done(..) | Outcome::Happened(_) => self.counts.done += 1,
        }
        self.moment += 1;
        let moment = self.moment;
        let of = &mut self.records[record];
        of.ended = Some(moment);
        of.outcome = outcome;
        let of = of.clone();
        self.counts.reads += u64::from(matches!(
            (&of.request, &of.outcome),
            (Request::Read(_), Outcome::Done(..))
        ));
        self.heard(client, &of);
        self.rest(client);
    }

    fn ask_for(&mut self, client: usize, task: u64, kind: CallKind) {
        let group = self.sequencer_group();
        let count = u32::from(kind == CallKind::Stamp);
        self.call(client, Call { task, group, kind }, 0, Body::Revisions(count));
    }

    fn propose_all(&mut self, client: usize, task: u64, proposals: Vec<Propose>) {
        for Propose { group, asked, command } in proposals {
            let kind = CallKind::Propose(asked);
            self.call(client, Call { task, group, kind }, 0, Body::Propose(command));
        }
    }

    /// Does what a transaction says.
    fn carry_out(&mut self, client: usize, task: u64, outputs: Vec<Output>) {
        for output in outputs {
            // Between any two steps its client may die.
            if self.rng.chance(self.weather.die) && self.is_chaos() {
                return self.crash(client);
            }
            match output {
                Output::Propose(propose) => {
                    if self.broken(Rule::AckAfterDecision)
                        && let ShardCommand::Decide {
                            decision: Decision::Commit { revision, .. },
                            ..
                        } = &propose.command
                    {
                        self.tell(client, task, Outcome::Happened(*revision));
                    }
                    self.propose_all(client, task, vec![propose]);
                }
                Output::Stamp => {
                    if let Some(Task::Spread { early, wanted, .. }) = self.clients[client].tasks.get_mut(&task)
                        && self.run.broken == Some(Rule::StampAfterPrepare)
                    {
                        *wanted = true;
                        if let Some(revision) = early.take() {
                            self.stamped(client, task, Some(revision));
                        }
                    } else {
                        self.ask_for(client, task, CallKind::Stamp);
                    }
                }
                Output::Answer(answer) => {
                    let outcome = match answer {
                        Ok((revision, result)) => Outcome::Done(revision, result),
                        Err(Failure::Unknown) => Outcome::Unknown,
                        Err(Failure::Lost { revision }) => Outcome::Happened(revision),
                        Err(Failure::Refused(error)) => Outcome::Refused(error),
                        Err(Failure::Conflict {
                            txn,
                            coordinator,
                            group,
                        }) => {
                            self.meet(client, txn, coordinator, group);
                            Outcome::Nothing
                        }
                        Err(Failure::NotDone | Failure::TimedOut) => Outcome::Nothing,
                        Err(failure @ (Failure::Moved | Failure::Mismatch(_))) => {
                            // Moved: a command's revision was overtaken. Nothing else moves here.
                            assert_eq!(failure, Failure::Moved, "invariant: all shards run this version");
                            Outcome::Nothing
                        }
                    };
                    self.tell(client, task, outcome);
                }
            }
        }
        if let Some(Task::Spread { transaction, .. }) = self.clients[client].tasks.get(&task)
            && transaction.is_done()
        {
            self.clients[client].tasks.remove(&task);
        }
    }

    fn step(&mut self, client: usize, task: u64, input: Input) {
        let mut out = Vec::new();
        if let Some(Task::Spread { transaction, .. }) = self.clients[client].tasks.get_mut(&task) {
            transaction.step(input, &mut out);
            self.carry_out(client, task, out);
        }
    }

    fn stamped(&mut self, client: usize, task: u64, revision: Option<Revision>) {
        self.step(client, task, Input::Stamped(revision));
    }

    /// Does what a read says.
    fn look(&mut self, client: usize, task: u64, outputs: Vec<ReadOutput>) {
        for output in outputs {
            match output {
                ReadOutput::Newest => self.ask_for(client, task, CallKind::Newest),
                ReadOutput::Read { group, ranges } => {
                    let kind = CallKind::Read;
                    self.call(client, Call { task, group, kind }, 0, Body::Read(ranges));
                }
                ReadOutput::Blocked {
                    group,
                    txn,
                    coordinator,
                } => {
                    self.counts.blocked += 1;
                    self.meet(client, txn, coordinator, group);
                }
                ReadOutput::Answer(answer) => {
                    let outcome = match answer {
                        Ok((revision, result)) => Outcome::Done(revision, result),
                        Err(Failure::TimedOut) => Outcome::Nothing,
                        Err(other) => unreachable!("a read of everything that is there fails by {other}"),
                    };
                    self.tell(client, task, outcome);
                    self.clients[client].tasks.remove(&task);
                }
            }
        }
    }

    fn step_read(&mut self, client: usize, task: u64, input: ReadInput) {
        let mut out = Vec::new();
        if let Some(Task::Read(read)) = self.clients[client].tasks.get_mut(&task) {
            read.step(input, &mut out);
            self.look(client, task, out);
        }
    }

    /// A lock is in the way. If it has been for a while, it is freed.
    fn meet(&mut self, client: usize, txn: TxnId, coordinator: GroupId, group: GroupId) {
        let now = self.now();
        let since = *self.clients[client].met.entry(txn).or_insert(now);
        let most = if self.rng.chance(100) { IMPATIENCE } else { PATIENCE };
        let patience = self.rng.below(most) * self.clients[client].rate / 1000;
        if now - since < patience {
            return;
        }
        let task = self.number();
        let (mut recovery, mut proposals) = Recovery::new(txn, coordinator, group);
        if self.broken(Rule::RecoveryAsks) {
            // As if the deciding shard were certainly gone.
            proposals.clear();
            recovery.coordinator_is_gone(&mut proposals);
        }
        self.counts.recovered.0 += 1;
        self.clients[client].tasks.insert(task, Task::Recovery(recovery));
        self.propose_all(client, task, proposals);
    }

    pub(super) fn replied(&mut self, client: usize, number: u64, reply: Reply) {
        let Some(call) = self.clients[client].calls.remove(&number) else {
            return;
        };
        if matches!(reply, Reply::NotLeader) {
            self.look_elsewhere(client, call.group);
        }
        let answer = match &reply {
            Reply::NotLeader => Answer::NotDone,
            Reply::Applied(_, Ok(OpResult::Shard(result))) => Answer::Did(result.clone()),
            Reply::Applied(_, Err(error)) => Answer::Refused(*error),
            Reply::Applied(..) | Reply::Read(_) | Reply::Revision(_) => Answer::Unknown,
        };
        match (call.kind, reply) {
            (CallKind::Propose(asked), _) => self.proposed(client, call, asked, answer),
            (CallKind::Newest, Reply::Revision(newest)) => {
                if newest.is_none() {
                    self.look_elsewhere(client, call.group);
                }
                self.step_read(client, call.task, ReadInput::Newest(newest));
            }
            (CallKind::Newest, _) => self.step_read(client, call.task, ReadInput::Newest(None)),
            (CallKind::Stamp, Reply::Revision(first)) => {
                if first.is_none() {
                    self.look_elsewhere(client, call.group);
                }
                self.given(client, call.task, first);
            }
            (CallKind::Stamp, _) => self.given(client, call.task, None),
            (CallKind::Read, Reply::Read(found)) => {
                let (group, answer) = (call.group, Some(found));
                self.step_read(client, call.task, ReadInput::Answered { group, answer });
            }
            (CallKind::Read, _) => {
                let (group, answer) = (call.group, None);
                self.step_read(client, call.task, ReadInput::Answered { group, answer });
            }
            (CallKind::Write, Reply::Applied(revision, Ok(result))) => {
                self.end_write(client, call.task, Outcome::Done(revision, result));
            }
            (CallKind::Write, Reply::Applied(_, Err(error))) => {
                if let OpError::Locked { txn, coordinator } = error {
                    self.meet(client, txn, coordinator, call.group);
                }
                self.end_write(client, call.task, Outcome::Nothing);
            }
            (CallKind::Write, Reply::NotLeader) => self.end_write(client, call.task, Outcome::Nothing),
            (CallKind::Write, Reply::Read(_) | Reply::Revision(_)) => unreachable!("a write is not a read"),
        }
    }

    fn look_elsewhere(&mut self, client: usize, group: GroupId) {
        let leader = self.group(group).leader;
        let node = match leader {
            Some(leader) if self.rng.chance(700) => leader,
            Some(_) | None => self.rng.below(NODES as u64) as usize,
        };
        self.clients[client].guess.insert(group, node);
    }

    fn end_write(&mut self, client: usize, task: u64, outcome: Outcome) {
        self.clients[client].tasks.remove(&task);
        self.tell(client, task, outcome);
    }

    /// A revision for a transaction has come, or none.
    fn given(&mut self, client: usize, task: u64, first: Option<Revision>) {
        if self.broken(Rule::StampAfterPrepare)
            && let Some(Task::Spread { early, wanted, .. }) = self.clients[client].tasks.get_mut(&task)
            && !*wanted
        {
            *early = first;
            return;
        }
        self.stamped(client, task, first);
    }

    fn proposed(&mut self, client: usize, call: Call, asked: Asked, answer: Answer) {
        let Call { task, group, .. } = call;
        let mut out = Vec::new();
        let done = match self.clients[client].tasks.get_mut(&task) {
            Some(Task::Spread { transaction, .. }) => {
                let id = transaction.id();
                let coordinator = transaction.coordinator();
                let committed = matches!(&answer, Answer::Did(ShardResult::Decided(Decision::Commit { .. })));
                self.step(client, task, Input::Answered { group, asked, answer });
                if committed && self.broken(Rule::ForgetLast) && self.clients[client].alive {
                    let command = ShardCommand::Forget { txn: id };
                    let kind = CallKind::Propose(Asked::Forget);
                    let group = coordinator;
                    self.call(client, Call { task, group, kind }, 0, Body::Propose(command));
                }
                return;
            }
            Some(Task::Recovery(recovery)) => {
                if matches!(&answer, Answer::Did(ShardResult::Decided(Decision::Commit { .. }))) {
                    self.counts.recovered.1 += 1;
                }
                recovery.answered(group, asked, &answer, &mut out);
                recovery.is_done()
            }
            Some(Task::Cleanup(cleanup)) => {
                cleanup.answered(group, asked, &answer, &mut out);
                cleanup.is_done()
            }
            Some(Task::Write | Task::Read(_)) | None => return,
        };
        if done {
            self.clients[client].tasks.remove(&task);
        }
        self.propose_all(client, task, out);
    }

    pub(super) fn timed_out(&mut self, client: usize, number: u64) {
        let Some(call) = self.clients[client].calls.remove(&number) else {
            return;
        };
        self.look_elsewhere(client, call.group);
        match call.kind {
            CallKind::Propose(asked) => self.proposed(client, call, asked, Answer::Unknown),
            CallKind::Newest => self.step_read(client, call.task, ReadInput::Newest(None)),
            CallKind::Stamp => self.given(client, call.task, None),
            CallKind::Read => {
                let (group, answer) = (call.group, None);
                self.step_read(client, call.task, ReadInput::Answered { group, answer });
            }
            CallKind::Write => self.end_write(client, call.task, Outcome::Unknown),
        }
    }

    pub(super) fn deadline(&mut self, client: usize, task: u64) {
        match self.clients[client].tasks.get(&task) {
            Some(Task::Spread { .. }) => self.step(client, task, Input::Deadline),
            Some(Task::Read(_)) => self.step_read(client, task, ReadInput::Deadline),
            Some(Task::Write) => self.end_write(client, task, Outcome::Unknown),
            Some(Task::Recovery(_) | Task::Cleanup(_)) | None => {}
        }
    }

    pub(super) fn tick(&mut self, client: usize) {
        for task in self.clients[client].tasks.keys().copied().collect::<Vec<_>>() {
            let mut out = Vec::new();
            match self.clients[client].tasks.get_mut(&task) {
                Some(Task::Spread { .. }) => self.step(client, task, Input::Tick),
                Some(Task::Read(_)) => self.step_read(client, task, ReadInput::Tick),
                Some(Task::Recovery(recovery)) => recovery.tick(&mut out),
                Some(Task::Cleanup(cleanup)) => cleanup.tick(&mut out),
                Some(Task::Write) | None => {}
            }
            self.propose_all(client, task, out);
        }
        if self.broken(Rule::ForgetTheDead) && self.is_chaos() && self.rng.chance(200) {
            self.forget_all();
        }
    }

    fn somebody(&self) -> usize {
        let alive = self.clients.iter().position(|client| client.alive);
        alive.expect("somebody lives")
    }

    /// Frees all locks.
    pub(super) fn free_all(&mut self) {
        let mut held = Vec::new();
        for group in self.shards() {
            held.extend(group.mvcc.prepared().into_iter().map(|(txn, by)| (txn, by, group.id)));
        }
        let client = self.somebody();
        for (txn, coordinator, group) in held {
            let task = self.number();
            let (recovery, proposals) = Recovery::new(txn, coordinator, group);
            self.clients[client].tasks.insert(task, Task::Recovery(recovery));
            self.propose_all(client, task, proposals);
        }
    }

    /// Has all decisions forgotten.
    pub(super) fn forget_all(&mut self) {
        let mut kept = Vec::new();
        for group in self.shards() {
            kept.extend(
                group
                    .mvcc
                    .decided()
                    .into_iter()
                    .map(|(txn, decision)| (txn, decision, group.id)),
            );
        }
        let all: BTreeSet<GroupId> = self.shards().map(|group| group.id).collect();
        let client = self.somebody();
        for (txn, decision, coordinator) in kept {
            let task = self.number();
            let (cleanup, proposals) = Cleanup::new(txn, decision, coordinator, all.clone());
            self.clients[client].tasks.insert(task, Task::Cleanup(cleanup));
            self.propose_all(client, task, proposals);
        }
    }
}
