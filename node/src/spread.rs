//! The shell of requests over several shards: runs `althing_shard::txn`'s state machines, which decide.

use crate::ask::{Ask, ReadTerms, Reply};
use crate::atlas::{Atlas, Chart};
use crate::calls::Calls;
use crate::clock::Clock;
use crate::conductor::ask_control;
use crate::control::{Control, Said};
use crate::reach::Reach;
use crate::shared::Shared;
use althing_api::keyspace::KeyspaceError;
use althing_raft::ids::{GroupId, MemberId, Now};
use althing_raft::io::Role;
use althing_shard::map::RouteTable;
use althing_shard::route::Parts;
use althing_shard::txn::{
    Answer, Cleanup, Failure, Input, Order, Output, Propose, RECOVER_AFTER, ReadInput, ReadOutput, Recovery,
    SnapshotRead, TICK, Transaction,
};
use althing_store::codec::encode_command;
use althing_store::ops::{Command, Decision, Op, OpError, OpResult, Range, RangeResult, Revision, Txn, TxnId};
use bytes::BytesMut;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Longest time that one shard may take with one command before nobody knows what became of it.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(7);
/// Longest time for the sequencer, and for a part of a read; both are asked again.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// How often what dead members left is looked for. What is there twice in a row is no transaction in its usual course.
const SWEEP_INTERVAL: Duration = Duration::from_secs(2);
/// How long locks are being freed before whoever wants them may try another way.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs requests over several shards.
pub struct Spread {
    shared: Arc<Shared>,
    atlas: Arc<Atlas>,
    reach: Arc<Reach>,
    /// This boot, in the ids of its transactions.
    nonce: u64,
    last: AtomicU64,
    /// Transactions that run here.
    alive: std::sync::Mutex<BTreeSet<TxnId>>,
    /// Transactions whose locks are being freed, and where.
    recovering: std::sync::Mutex<BTreeSet<(TxnId, GroupId)>>,
}

impl Spread {
    /// Of a node.
    #[must_use]
    pub fn new(shared: Arc<Shared>, atlas: Arc<Atlas>, reach: Arc<Reach>, nonce: u64) -> Self {
        Self {
            shared,
            atlas,
            reach,
            nonce,
            last: AtomicU64::new(0),
            alive: std::sync::Mutex::default(),
            recovering: std::sync::Mutex::default(),
        }
    }

    fn next_id(&self) -> TxnId {
        TxnId {
            member: self.shared.me,
            nonce: self.nonce,
            number: self.last.fetch_add(1, Ordering::Relaxed) + 1,
        }
    }

    fn alive(&self) -> std::sync::MutexGuard<'_, BTreeSet<TxnId>> {
        self.alive.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether a transaction is driven by this process.
    #[must_use]
    pub fn runs(&self, txn: TxnId) -> bool {
        self.alive().contains(&txn)
    }

    /// Where a group's replicas are, as far as this member knows.
    fn replicas(&self, table: &RouteTable, group: GroupId) -> Vec<MemberId> {
        let route = table.shards().iter().find(|route| route.group == group);
        match route {
            Some(route) => route.replicas.clone(),
            None => self
                .atlas
                .chart()
                .state
                .shards
                .get(&group)
                .map(|shard| shard.replicas.clone())
                .unwrap_or_default(),
        }
    }

    /// The newest revision that the keyspace's sequencer has given out (`count` 0), or the first of new ones.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub async fn stamp(&self, table: &RouteTable, count: u32) -> Result<Revision, KeyspaceError> {
        let sequencer = table.sequencer.as_ref().ok_or(KeyspaceError::NoLeader)?;
        let ask = Ask::Stamp {
            group: sequencer.group,
            count,
        };
        match self
            .reach
            .ask(sequencer.group, &sequencer.replicas, &ask, ASK_TIMEOUT)
            .await?
        {
            Reply::Stamp(revision) => Ok(revision),
            Reply::Answer(_) | Reply::Failure(_) | Reply::Control(_) => Err(KeyspaceError::Timeout),
        }
    }

    /// Writes on several shards at once. It is driven to its end also if the client goes away.
    pub async fn write(
        self: &Arc<Self>,
        table: Arc<RouteTable>,
        parts: Parts,
        order: Order,
        end: Now,
    ) -> Result<(Revision, OpResult), Failure> {
        let (told, answer) = oneshot::channel();
        let this = Arc::clone(self);
        tokio::spawn(async move { this.drive(table, parts, order, end, told).await });
        answer.await.unwrap_or(Err(Failure::Unknown))
    }

    async fn drive(
        self: Arc<Self>,
        table: Arc<RouteTable>,
        parts: Parts,
        order: Order,
        end: Now,
        told: oneshot::Sender<Result<(Revision, OpResult), Failure>>,
    ) {
        let id = self.next_id();
        self.alive().insert(id);
        let (mut txn, mut out) = Transaction::new(id, parts, order);
        let (inputs, mut happened) = mpsc::unbounded_channel();
        let mut told = Some(told);
        let mut clock = Beat::new(self.shared.clock, end);
        loop {
            for output in out.drain(..) {
                match output {
                    Output::Propose(propose) => {
                        let (this, table, inputs) = (Arc::clone(&self), Arc::clone(&table), inputs.clone());
                        tokio::spawn(async move {
                            let (group, asked) = (propose.group, propose.asked);
                            let answer = this.propose(&table, propose).await;
                            // Nobody listens if the transaction has ended.
                            let _ = inputs.send(Input::Answered { group, asked, answer });
                        });
                    }
                    Output::Stamp => {
                        let (this, table, inputs) = (Arc::clone(&self), Arc::clone(&table), inputs.clone());
                        tokio::spawn(async move {
                            let stamp = this.stamp(&table, 1).await.ok();
                            let _ = inputs.send(Input::Stamped(stamp));
                        });
                    }
                    Output::Answer(answer) => {
                        if let Some(told) = told.take() {
                            // The client may be gone.
                            let _ = told.send(answer);
                        }
                    }
                }
            }
            if txn.is_done() {
                break;
            }
            let input = tokio::select! {
                input = happened.recv() => input.expect("invariant: this task holds a sender"),
                beat = clock.next() => match beat {
                    Tick::Beat => Input::Tick,
                    Tick::Deadline => Input::Deadline,
                },
            };
            txn.step(input, &mut out);
        }
        self.alive().remove(&id);
    }

    /// Puts a command into a shard's log and says what became of it.
    async fn propose(&self, table: &RouteTable, propose: Propose) -> Answer {
        self.propose_at(&self.replicas(table, propose.group), propose).await
    }

    async fn propose_at(&self, replicas: &[MemberId], propose: Propose) -> Answer {
        let Propose { group, command, .. } = propose;
        let mut bytes = BytesMut::new();
        encode_command(&Command::Shard(command), &mut bytes);
        let ask = Ask::Execute {
            group,
            command: bytes.freeze(),
        };
        match self.reach.ask(group, replicas, &ask, COMMAND_TIMEOUT).await {
            Ok(Reply::Answer(answer)) => match answer.result {
                Ok(OpResult::Shard(result)) => Answer::Did(result),
                Ok(_) => Answer::Unknown,
                Err(error) => Answer::Refused(error),
            },
            Ok(Reply::Failure(_) | Reply::Stamp(_) | Reply::Control(_)) => Answer::Unknown,
            // Who was asked says that it never put it into the log.
            Err(
                KeyspaceError::NoLeader
                | KeyspaceError::NotLeader
                | KeyspaceError::TooManyRequests
                | KeyspaceError::TooLarge
                | KeyspaceError::Learner,
            ) => Answer::NotDone,
            Err(
                KeyspaceError::Op(_)
                | KeyspaceError::LeaderChanged
                | KeyspaceError::Timeout
                | KeyspaceError::Stopped
                | KeyspaceError::BadTransferee,
            ) => Answer::Unknown,
        }
    }

    /// Reads at one revision, on as many shards as it takes.
    pub async fn read(
        self: &Arc<Self>,
        table: &Arc<RouteTable>,
        parts: Parts,
        end: Now,
    ) -> Result<(Revision, OpResult), Failure> {
        let (mut read, mut out) = SnapshotRead::new(parts);
        let (inputs, mut happened) = mpsc::unbounded_channel();
        let mut clock = Beat::new(self.shared.clock, end);
        let mut met: BTreeMap<(GroupId, TxnId), Now> = BTreeMap::new();
        loop {
            for output in out.drain(..) {
                match output {
                    ReadOutput::Newest => {
                        let (this, table, inputs) = (Arc::clone(self), Arc::clone(table), inputs.clone());
                        tokio::spawn(async move {
                            let newest = this.stamp(&table, 0).await.ok();
                            let _ = inputs.send(ReadInput::Newest(newest));
                        });
                    }
                    ReadOutput::Read { group, ranges } => {
                        let (this, table, inputs) = (Arc::clone(self), Arc::clone(table), inputs.clone());
                        tokio::spawn(async move {
                            let answer = this.part(&table, group, ranges).await;
                            let _ = inputs.send(ReadInput::Answered { group, answer });
                        });
                    }
                    // Whoever holds the lock has some milliseconds to go; the tick asks again, and a deadline ends it.
                    ReadOutput::Blocked {
                        group,
                        txn,
                        coordinator,
                    } => {
                        let now = self.shared.clock.now();
                        let since = *met.entry((group, txn)).or_insert(now);
                        if now.since(since) >= RECOVER_AFTER {
                            let this = Arc::clone(self);
                            tokio::spawn(async move { this.recover(txn, coordinator, group).await });
                        }
                    }
                    ReadOutput::Answer(answer) => return answer,
                }
            }
            let input = tokio::select! {
                input = happened.recv() => input.expect("invariant: this task holds a sender"),
                beat = clock.next() => match beat {
                    Tick::Beat => ReadInput::Tick,
                    Tick::Deadline => ReadInput::Deadline,
                },
            };
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
            terms: ReadTerms {
                serializable: false,
                settled: true,
            },
            txn: Txn {
                success: ranges.into_iter().map(Op::Range).collect(),
                ..Txn::default()
            },
        };
        let replicas = self.replicas(table, group);
        let Ok(Reply::Answer(answer)) = self.reach.ask(group, &replicas, &ask, ASK_TIMEOUT).await else {
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

    /// Frees the locks of a transaction that nobody seems to drive, by what its deciding shard says.
    pub async fn recover(&self, txn: TxnId, coordinator: GroupId, met_at: GroupId) {
        if !self.recovering().insert((txn, met_at)) {
            return;
        }
        tracing::info!(%txn, %coordinator, shard = %met_at, "looks for what became of a transaction that holds locks");
        let end = self.shared.clock.now().after(RECOVERY_TIMEOUT);
        let (mut recovery, mut todo) = Recovery::new(txn, coordinator, met_at);
        while !recovery.is_done() && self.shared.clock.now() < end {
            let chart = self.atlas.fresh().await;
            let mut out = Vec::new();
            if chart.state.version > 0 && chart.state.is_forgotten(coordinator) {
                recovery.coordinator_is_gone(&mut out);
            }
            for propose in todo.drain(..) {
                let (group, asked) = (propose.group, propose.asked);
                let answer = self.propose_by(&chart, propose).await;
                recovery.answered(group, asked, &answer, &mut out);
            }
            if out.is_empty() && !recovery.is_done() {
                tokio::time::sleep(TICK).await;
                recovery.tick(&mut out);
            }
            todo = out;
        }
        self.recovering().remove(&(txn, met_at));
    }

    /// Brings a decision that is kept at a shard to everybody, and has it forgotten. Only for a transaction that nobody drives.
    pub async fn clean_up(&self, txn: TxnId, decision: Decision, coordinator: GroupId) {
        let chart = self.atlas.fresh().await;
        let Some(keyspace) = chart.state.shards.get(&coordinator).map(|shard| shard.keyspace) else {
            return;
        };
        let shards = chart.state.shards_of(keyspace).into_iter().map(|(group, _)| group);
        let end = self.shared.clock.now().after(RECOVERY_TIMEOUT);
        let (mut cleanup, mut todo) = Cleanup::new(txn, decision, coordinator, shards.collect());
        while !cleanup.is_done() && self.shared.clock.now() < end {
            let mut out = Vec::new();
            for propose in todo.drain(..) {
                let (group, asked) = (propose.group, propose.asked);
                let answer = self.propose_by(&chart, propose).await;
                cleanup.answered(group, asked, &answer, &mut out);
            }
            if out.is_empty() && !cleanup.is_done() {
                tokio::time::sleep(TICK).await;
                cleanup.tick(&mut out);
            }
            todo = out;
        }
    }

    /// Looks now and then for what dead members left in the shards that this one leads: locks, and decisions that nobody forgets. Runs
    /// until the task is aborted.
    pub async fn sweep(self: Arc<Self>, calls: Arc<Calls>) {
        let mut before = BTreeSet::new();
        loop {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            let mut now = BTreeSet::new();
            for (group, soft) in self.shared.softs() {
                let Some(store) = self.shared.groups.get(group).filter(|_| soft.role == Role::Leader) else {
                    continue;
                };
                if store.transactions() == 0 {
                    continue;
                }
                for (txn, coordinator) in store.prepared() {
                    now.insert((group, txn));
                    if before.contains(&(group, txn)) {
                        let this = Arc::clone(&self);
                        tokio::spawn(async move { this.recover(txn, coordinator, group).await });
                    }
                }
                for (txn, decision) in store.decided() {
                    now.insert((group, txn));
                    if before.contains(&(group, txn)) && self.is_over(&calls, txn).await {
                        self.clean_up(txn, decision, group).await;
                    }
                }
            }
            before = now;
        }
    }

    /// Whether nobody drives a transaction, now or ever again.
    async fn is_over(&self, calls: &Calls, txn: TxnId) -> bool {
        if txn.member == self.shared.me {
            return !self.runs(txn);
        }
        if !self.atlas.fresh().await.state.members.contains_key(&txn.member) {
            return true;
        }
        let control = Control::IsOver {
            nonce: txn.nonce,
            number: txn.number,
        };
        matches!(
            ask_control(calls, txn.member, &control, ASK_TIMEOUT).await,
            Ok(Said::Done)
        )
    }

    fn recovering(&self) -> std::sync::MutexGuard<'_, BTreeSet<(TxnId, GroupId)>> {
        self.recovering
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn propose_by(&self, chart: &Chart, propose: Propose) -> Answer {
        let replicas = chart
            .state
            .shards
            .get(&propose.group)
            .map(|shard| shard.replicas.clone());
        self.propose_at(&replicas.unwrap_or_default(), propose).await
    }
}

/// Ticks, and the deadline once.
struct Beat {
    clock: Clock,
    end: Option<Now>,
}

enum Tick {
    Beat,
    Deadline,
}

impl Beat {
    fn new(clock: Clock, end: Now) -> Self {
        Self { clock, end: Some(end) }
    }

    async fn next(&mut self) -> Tick {
        let left = self.end.map(|end| end.since(self.clock.now()));
        tokio::time::sleep(left.map_or(TICK, |left| left.min(TICK))).await;
        match self.end {
            Some(end) if end <= self.clock.now() => {
                self.end = None;
                Tick::Deadline
            }
            Some(_) | None => Tick::Beat,
        }
    }
}
