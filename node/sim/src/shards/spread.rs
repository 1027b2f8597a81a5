//! Requests over several shards: the steps of `node/src/spread.rs`, around the same state machines (`althing_shard::txn`).

use super::Node;
use super::call::{Ask, Failure, ReadTerms, Reply};
use super::local::encoded;
use super::task::{Mailbox, Promise, promise, within};
use crate::mutant::Sabotage;
use crate::world::conditions::MS;
use althing_raft::ids::{GroupId, MemberId};
use althing_raft::io::Role;
use althing_raft::roster::Footprint;
use althing_shard::map::RouteTable;
use althing_shard::meta::MetaState;
use althing_shard::route::Parts;
use althing_shard::txn::{
    self, Answer, Cleanup, Input, Order, Output, Propose, ReadInput, ReadOutput, Recovery, SnapshotRead, Transaction,
};
use althing_store::ops::{Command, Decision, Op, OpError, OpResult, Range, RangeResult, Revision, Txn, TxnId};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Longest time that one shard may take with one command before nobody knows what became of it.
const COMMAND_TIMEOUT: u64 = 7_000 * MS;
/// Longest time for the sequencer, and for a part of a read; both are asked again.
const ASK_TIMEOUT: u64 = 2_000 * MS;
/// How often what dead members left is looked for.
const SWEEP_INTERVAL: u64 = 2_000 * MS;
/// How long locks are being freed before whoever wants them may try another way.
const RECOVERY_TIMEOUT: u64 = 10_000 * MS;
/// As of `althing_shard::txn`.
const TICK: u64 = 100 * MS;
const RECOVER_AFTER: u64 = 1_000 * MS;

/// Ticks, and the deadline once.
struct Beat {
    end: Option<u64>,
}

impl Beat {
    /// What comes first: something that happened, or (`None`) a tick; or the deadline, which is said once.
    async fn next<T>(&mut self, node: &Node, mailbox: &Mailbox<T>, tick: T, deadline: T) -> T {
        let left = self.end.map(|end| end.saturating_sub(node.now()));
        let wait = left.map_or(TICK, |left| left.min(TICK));
        if let Some(item) = within(mailbox.next(), node.sleep(wait)).await {
            return item;
        }
        match self.end {
            Some(end) if end <= node.now() => {
                self.end = None;
                deadline
            }
            Some(_) | None => tick,
        }
    }
}

impl Node {
    /// Where a group's replicas are, as far as this member knows.
    fn replicas(&self, table: &RouteTable, group: GroupId) -> Vec<MemberId> {
        let route = table.shards().iter().find(|route| route.group == group);
        match route {
            Some(route) => route.replicas.clone(),
            None => self.replicas_by(&self.chart().unwrap_or_default(), group),
        }
    }

    fn replicas_by(&self, state: &MetaState, group: GroupId) -> Vec<MemberId> {
        let shard = state.shards.get(&group);
        shard.map(|shard| shard.replicas.clone()).unwrap_or_default()
    }

    /// The newest revision that the keyspace's sequencer has given out (`count` 0), or the first of new ones.
    async fn stamp_of(&self, table: &RouteTable, count: u32) -> Option<Revision> {
        let sequencer = table.sequencer.as_ref()?;
        let ask = Ask::Stamp {
            group: sequencer.group,
            count,
        };
        match self
            .reach(sequencer.group, &sequencer.replicas, &ask, ASK_TIMEOUT)
            .await
        {
            Ok(Reply::Stamp(revision)) => Some(revision),
            Ok(_) | Err(_) => None,
        }
    }

    fn begin_work(&self, work: impl Future<Output = ()> + 'static) {
        self.ground.tasks.spawn(Some(self.number), work);
    }

    /// Writes on several shards at once. It is driven to its end also if the client goes away.
    pub(crate) async fn spread_write(
        &self,
        table: &Rc<RouteTable>,
        parts: Parts,
        order: Order,
        end: u64,
    ) -> Result<(Revision, OpResult), txn::Failure> {
        let (told, answer) = promise();
        let (node, table) = (self.clone(), Rc::clone(table));
        self.begin_work(async move { node.drive(table, parts, order, end, told).await });
        answer.await.unwrap_or(Err(txn::Failure::Unknown))
    }

    async fn drive(
        &self,
        table: Rc<RouteTable>,
        parts: Parts,
        order: Order,
        end: u64,
        told: Promise<Result<(Revision, OpResult), txn::Failure>>,
    ) {
        let member = self.me();
        let id = self.with(|process| {
            process.transactions += 1;
            let id = TxnId {
                member,
                nonce: process.nonce,
                number: process.transactions,
            };
            process.alive.insert(id);
            id
        });
        let Some(id) = id else { return };
        let (mut transaction, mut out) = Transaction::new(id, parts, order);
        let mailbox = Mailbox::default();
        let mut told = Some(told);
        let mut beat = Beat { end: Some(end) };
        loop {
            for output in out.drain(..) {
                match output {
                    Output::Propose(propose) => {
                        let (node, table, mailbox) = (self.clone(), Rc::clone(&table), mailbox.clone());
                        self.begin_work(async move {
                            let (group, asked) = (propose.group, propose.asked);
                            let replicas = node.replicas(&table, group);
                            let answer = node.propose_at(&replicas, propose).await;
                            mailbox.push(Input::Answered { group, asked, answer });
                        });
                    }
                    Output::Stamp => {
                        let (node, table, mailbox) = (self.clone(), Rc::clone(&table), mailbox.clone());
                        self.begin_work(async move {
                            mailbox.push(Input::Stamped(node.stamp_of(&table, 1).await));
                        });
                    }
                    Output::Answer(answer) => {
                        if let Some(told) = told.take() {
                            told.keep(answer);
                        }
                    }
                }
            }
            if transaction.is_done() {
                break;
            }
            let input = beat.next(self, &mailbox, Input::Tick, Input::Deadline).await;
            transaction.step(input, &mut out);
        }
        self.with(|process| process.alive.remove(&id));
    }

    async fn propose_at(&self, replicas: &[MemberId], propose: Propose) -> Answer {
        let Propose { group, command, .. } = propose;
        let command = encoded(&Command::Shard(command));
        let ask = Ask::Execute { group, command };
        match self.reach(group, replicas, &ask, COMMAND_TIMEOUT).await {
            Ok(Reply::Answer(answer)) => match answer.result {
                Ok(OpResult::Shard(result)) => Answer::Did(result),
                Ok(_) => Answer::Unknown,
                Err(error) => Answer::Refused(error),
            },
            Ok(Reply::Failure(_) | Reply::Stamp(_) | Reply::Done | Reply::View(_)) => Answer::Unknown,
            // Who was asked says that it never put it into the log.
            Err(Failure::NoLeader | Failure::NotLeader | Failure::TooManyRequests | Failure::Learner) => {
                Answer::NotDone
            }
            Err(Failure::Op(_) | Failure::LeaderChanged | Failure::Timeout | Failure::Stopped | Failure::No(_)) => {
                Answer::Unknown
            }
        }
    }

    /// Reads at one revision, on as many shards as it takes.
    pub(crate) async fn spread_read(
        &self,
        table: &Rc<RouteTable>,
        parts: Parts,
        end: u64,
    ) -> Result<(Revision, OpResult), txn::Failure> {
        let (mut read, mut out) = SnapshotRead::new(parts);
        let mailbox = Mailbox::default();
        let mut beat = Beat { end: Some(end) };
        let mut met: BTreeMap<(GroupId, TxnId), u64> = BTreeMap::new();
        loop {
            for output in out.drain(..) {
                match output {
                    ReadOutput::Newest => {
                        let (node, table, mailbox) = (self.clone(), Rc::clone(table), mailbox.clone());
                        self.begin_work(async move {
                            mailbox.push(ReadInput::Newest(node.stamp_of(&table, 0).await));
                        });
                    }
                    ReadOutput::Read { group, ranges } => {
                        let (node, table, mailbox) = (self.clone(), Rc::clone(table), mailbox.clone());
                        self.begin_work(async move {
                            let answer = node.part(&table, group, ranges).await;
                            mailbox.push(ReadInput::Answered { group, answer });
                        });
                    }
                    ReadOutput::Blocked {
                        group,
                        txn,
                        coordinator,
                    } => {
                        self.ground.world.borrow_mut().counts.locked += 1;
                        let now = self.now();
                        let since = *met.entry((group, txn)).or_insert(now);
                        if now - since >= RECOVER_AFTER {
                            let node = self.clone();
                            self.begin_work(async move { node.recover(txn, coordinator, group).await });
                        }
                    }
                    ReadOutput::Answer(answer) => return answer,
                }
            }
            let input = beat.next(self, &mailbox, ReadInput::Tick, ReadInput::Deadline).await;
            read.step(input, &mut out);
        }
    }

    /// What one shard has of a read, after all that was given to it is settled there.
    async fn part(
        &self,
        table: &RouteTable,
        group: GroupId,
        ranges: Vec<Range>,
    ) -> Option<Result<Vec<RangeResult>, OpError>> {
        let ask = Ask::Read {
            group,
            terms: ReadTerms { settled: true },
            txn: Txn {
                success: ranges.into_iter().map(Op::Range).collect(),
                ..Txn::default()
            },
        };
        let replicas = self.replicas(table, group);
        let Ok(Reply::Answer(answer)) = self.reach(group, &replicas, &ask, ASK_TIMEOUT).await else {
            return None;
        };
        let found = match answer.result {
            Ok(OpResult::Txn { results, .. }) => results.into_iter().map(|(_, result)| match result {
                OpResult::Range(found) => Some(found),
                OpResult::Put { .. }
                | OpResult::Delete { .. }
                | OpResult::Txn { .. }
                | OpResult::Compact
                | OpResult::Shard(_) => None,
            }),
            Ok(_) => return None,
            Err(error) => return Some(Err(error)),
        };
        found.collect::<Option<Vec<_>>>().map(Ok)
    }

    /// A map that knows every change that was made before this was called; without a quorum, what there is.
    async fn fresh_chart(&self) -> Rc<MetaState> {
        let _ = self.catch_up(GroupId::META, Footprint::All).await;
        self.chart().unwrap_or_default()
    }

    /// Frees the locks of a transaction that nobody seems to drive, by what its deciding shard says.
    pub(crate) async fn recover(&self, txn: TxnId, coordinator: GroupId, met_at: GroupId) {
        if self.with(|process| process.recovering.insert((txn, met_at))) != Some(true) {
            return;
        }
        let end = self.now() + RECOVERY_TIMEOUT;
        self.ground.world.borrow_mut().counts.recoveries += 1;
        let (mut recovery, mut todo) = Recovery::new(txn, coordinator, met_at);
        while !recovery.is_done() && self.now() < end {
            let chart = self.fresh_chart().await;
            let mut out = Vec::new();
            if chart.version > 0 && chart.is_forgotten(coordinator) {
                recovery.coordinator_is_gone(&mut out);
            }
            for propose in todo.drain(..) {
                let (group, asked) = (propose.group, propose.asked);
                let answer = self.propose_at(&self.replicas_by(&chart, group), propose).await;
                recovery.answered(group, asked, &answer, &mut out);
            }
            if out.is_empty() && !recovery.is_done() {
                self.sleep(TICK).await;
                recovery.tick(&mut out);
            }
            todo = out;
        }
        self.with(|process| process.recovering.remove(&(txn, met_at)));
    }

    /// Brings a decision that is kept at a shard to everybody, and has it forgotten. Only for a transaction that nobody drives.
    async fn clean_up(&self, txn: TxnId, decision: Decision, coordinator: GroupId) {
        let chart = self.fresh_chart().await;
        let Some(keyspace) = chart.shards.get(&coordinator).map(|shard| shard.keyspace) else {
            return;
        };
        let shards = chart.shards_of(keyspace).into_iter().map(|(group, _)| group);
        let end = self.now() + RECOVERY_TIMEOUT;
        let (mut cleanup, mut todo) = Cleanup::new(txn, decision, coordinator, shards.collect());
        while !cleanup.is_done() && self.now() < end {
            let mut out = Vec::new();
            for propose in todo.drain(..) {
                let (group, asked) = (propose.group, propose.asked);
                let answer = self.propose_at(&self.replicas_by(&chart, group), propose).await;
                cleanup.answered(group, asked, &answer, &mut out);
            }
            if out.is_empty() && !cleanup.is_done() {
                self.sleep(TICK).await;
                cleanup.tick(&mut out);
            }
            todo = out;
        }
    }

    /// Looks now and then for what dead members left in the shards that this one leads: locks, and decisions that nobody forgets.
    pub(crate) async fn sweep(&self) {
        let mut before = BTreeSet::new();
        while self.sleep(SWEEP_INTERVAL).await.is_some() {
            let led = self.with(|process| {
                let leads = |group: &GroupId| process.soft.get(group).is_some_and(|soft| soft.role == Role::Leader);
                let led = process.groups.iter().filter(|(group, _)| leads(group));
                led.map(|(group, store)| (*group, Rc::clone(store))).collect::<Vec<_>>()
            });
            let mut now = BTreeSet::new();
            for (group, store) in led.unwrap_or_default() {
                if store.transactions() == 0 {
                    continue;
                }
                for (txn, coordinator) in store.prepared() {
                    now.insert((group, txn));
                    if before.contains(&(group, txn)) {
                        let node = self.clone();
                        self.begin_work(async move { node.recover(txn, coordinator, group).await });
                    }
                }
                for (txn, decision) in store.decided() {
                    now.insert((group, txn));
                    if before.contains(&(group, txn)) && self.is_over(txn).await {
                        self.clean_up(txn, decision, group).await;
                    }
                }
            }
            before = now;
        }
    }

    /// Whether nobody drives a transaction, now or ever again.
    async fn is_over(&self, txn: TxnId) -> bool {
        if self.ground.world.borrow().breaks(Sabotage::CleanUpTheLiving) {
            return true;
        }
        if txn.member == self.me() {
            return self.is_over_here(txn.nonce, txn.number);
        }
        if !self.fresh_chart().await.members.contains_key(&txn.member) {
            return true;
        }
        let ask = Ask::IsOver {
            nonce: txn.nonce,
            number: txn.number,
        };
        matches!(self.call(txn.member, ask, ASK_TIMEOUT).await, Ok(Reply::Done))
    }

    pub(crate) fn is_over_here(&self, nonce: u64, number: u64) -> bool {
        let member = self.me();
        let id = TxnId { member, nonce, number };
        self.with(|process| !process.alive.contains(&id)) == Some(true)
    }
}
