//! The keyspace as a node serves it: requests find their shards, here or elsewhere. The steps of `node/src/keyspace.rs`,
//! `node/src/atlas.rs` and `node/src/patience.rs`.

use super::Node;
use super::call::{Ask, Failure, ReadTerms, Reply};
use super::judge::Told;
use super::local::encoded;
use crate::history::Expect;
use crate::world::clients::{compare, put};
use crate::world::conditions::MS;
use althing_raft::ids::GroupId;
use althing_raft::roster::Footprint;
use althing_shard::map::{KeyspaceId, Route, RouteTable};
use althing_shard::meta::MetaState;
use althing_shard::route::{Plan, Request, plan};
use althing_shard::txn::{self, Order};
use althing_store::CommandResult;
use althing_store::ops::{Command, KeyRange, KeyValue, Op, OpError, OpResult, Range, Revision, Txn, TxnId};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::rc::Rc;

/// First wait before another try, doubled up to the largest.
const WAIT_MIN: u64 = MS;
const WAIT_MAX: u64 = 20 * MS;
/// How long a transaction may hold its locks before whoever waits for them asks what becomes of it.
const LOCK_PATIENCE: u64 = 1000 * MS;

/// The map as a node has it.
pub(crate) struct Chart {
    revision: Revision,
    pub(crate) state: Rc<MetaState>,
    table: Option<Rc<RouteTable>>,
}

/// One request's patience.
pub(crate) struct Patience {
    end: u64,
    wait: u64,
    /// When it first met a lock that is still there, and whose.
    locked: Option<(u64, TxnId)>,
    /// Where it was last refused.
    met_at: Option<GroupId>,
    /// How its next transaction over several shards goes about them.
    order: Order,
}

impl Node {
    pub(crate) fn now(&self) -> u64 {
        self.ground.world.borrow().now
    }

    /// The newest map that this node can make by itself.
    pub(crate) fn chart(&self) -> Option<Rc<MetaState>> {
        self.read_chart();
        self.with(|process| process.chart.as_ref().map(|chart| Rc::clone(&chart.state)))?
    }

    /// Routes of the keyspace.
    pub(crate) fn table(&self) -> Option<Rc<RouteTable>> {
        self.read_chart();
        self.with(|process| process.chart.as_ref().and_then(|chart| chart.table.clone()))?
    }

    fn read_chart(&self) {
        let Ok(meta) = self.store(GroupId::META) else { return };
        let revision = meta.current_revision();
        let known = self.with(|process| process.chart.as_ref().map(|chart| chart.revision));
        if known.flatten() == Some(revision) {
            return;
        }
        let all = Range::of(KeyRange::From(Bytes::new()));
        let loaded = match meta.range(&all) {
            Ok(Ok((_, rows))) => {
                MetaState::load(rows.kvs.into_iter().map(|kv| (kv.key, kv.value))).map_err(|error| error.to_string())
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match loaded {
            Ok(state) => {
                let table = RouteTable::all(&state).remove(&KeyspaceId::DEFAULT).map(Rc::new);
                let chart = Chart {
                    revision,
                    state: Rc::new(state),
                    table,
                };
                self.with(|process| process.chart = Some(chart));
            }
            Err(error) => {
                let text = format!("the map cannot be read: {error}");
                self.ground.world.borrow_mut().violation(text);
            }
        }
    }

    fn is_voter(&self, group: GroupId) -> bool {
        let me = self.me();
        self.with(|process| {
            let soft = process.soft.get(&group);
            soft.is_some_and(|soft| soft.config.voters.contains(&me))
        }) == Some(true)
    }

    async fn ask_route(&self, route: &Route, ask: &Ask, patience: &Patience) -> Result<CommandResult, Failure> {
        let left = patience.end.saturating_sub(self.now());
        match self.reach(route.group, &route.replicas, ask, left).await? {
            Reply::Answer(answer) => Ok(answer),
            Reply::Failure(failure) => Err(failure),
            Reply::Stamp(_) | Reply::Done | Reply::View(_) => Err(Failure::Timeout),
        }
    }

    /// Runs a command in a group.
    pub(crate) async fn execute_in(
        &self,
        route: &Route,
        command: Bytes,
        patience: &Patience,
    ) -> Result<CommandResult, Failure> {
        let group = route.group;
        if self.is_voter(group) {
            return self.execute(group, command).await;
        }
        self.ask_route(route, &Ask::Execute { group, command }, patience).await
    }

    /// A plan for a request, and the routes that it was made with.
    fn plan(&self, request: Request<'_>) -> Result<(Rc<RouteTable>, Plan), Failure> {
        let table = self.table().ok_or(Failure::NoLeader)?;
        let plan = plan(&table, request).map_err(|error| Failure::No(error.to_string()))?;
        Ok((table, plan))
    }

    /// Reads, on one shard or on several at one revision.
    async fn read_planned(&self, range: &Range, patience: &mut Patience) -> Result<(Revision, Vec<KeyValue>), Failure> {
        let (table, plan) = self.plan(Request::Range(range))?;
        let (revision, result) = match plan {
            Plan::One(group) => {
                let route = route_of(&table, group);
                let txn = Txn {
                    success: vec![Op::Range(range.clone())],
                    ..Txn::default()
                };
                let terms = ReadTerms::default();
                let answer = if self.is_voter(group) {
                    self.read(group, terms, txn).await?
                } else {
                    self.ask_route(route, &Ask::Read { group, terms, txn }, patience)
                        .await?
                };
                match answer.result.map_err(Failure::Op)? {
                    OpResult::Txn { mut results, .. } => {
                        let (_, only) = results.pop().expect("invariant: one range is answered by one");
                        (answer.revision, only)
                    }
                    other @ (OpResult::Range(_)
                    | OpResult::Put { .. }
                    | OpResult::Delete { .. }
                    | OpResult::Compact
                    | OpResult::Shard(_)) => (answer.revision, other),
                }
            }
            Plan::Snapshot(parts) => {
                self.ground.world.borrow_mut().counts.snapshots += u64::from(parts.each().len() > 1);
                let read = self.spread_read(&table, parts, patience.end).await;
                read.map_err(|failure| spread_failure(failure, patience))?
            }
            Plan::TwoPhase(_) | Plan::Everywhere(_) => unreachable!("invariant: what is read writes nothing"),
        };
        match result {
            OpResult::Range(found) => Ok((revision, found.kvs)),
            OpResult::Put { .. }
            | OpResult::Delete { .. }
            | OpResult::Txn { .. }
            | OpResult::Compact
            | OpResult::Shard(_) => unreachable!("invariant: a range is answered as one"),
        }
    }

    /// Writes, on one shard or on several at one revision.
    async fn write_planned(
        &self,
        command: &Command,
        bytes: Bytes,
        patience: &mut Patience,
    ) -> Result<(Revision, OpResult), Failure> {
        let (table, plan) = self.plan(Request::Command(command))?;
        match plan {
            Plan::One(group) => {
                let answer = self.execute_in(route_of(&table, group), bytes, patience).await;
                if answer.as_ref().map_or(true, |answer| answer.result.is_err()) {
                    patience.met_at = Some(group);
                }
                let answer = answer?;
                Ok((answer.revision, answer.result.map_err(Failure::Op)?))
            }
            Plan::TwoPhase(parts) => {
                self.ground.world.borrow_mut().counts.spread += 1;
                let written = self.spread_write(&table, parts, patience.order, patience.end).await;
                written.map_err(|failure| spread_failure(failure, patience))
            }
            Plan::Snapshot(_) | Plan::Everywhere(_) => unreachable!("invariant: what writes is no read"),
        }
    }

    pub(crate) fn patience(&self) -> Patience {
        Patience {
            end: self.now() + self.ground.world.borrow().weather.patience,
            wait: WAIT_MIN,
            locked: None,
            met_at: None,
            order: Order::Together,
        }
    }

    /// After a failure that certainly had no effect: waits and says to go on, or what to tell the client.
    pub(crate) async fn again(&self, failure: Failure, patience: &mut Patience) -> Result<(), Failure> {
        let left = patience.end.saturating_sub(self.now());
        let error = match &failure {
            Failure::Op(error) => *error,
            Failure::NoLeader | Failure::NotLeader => {
                if left <= patience.wait {
                    return Err(failure);
                }
                self.pause(patience).await;
                return Ok(());
            }
            Failure::LeaderChanged
            | Failure::Timeout
            | Failure::TooManyRequests
            | Failure::Stopped
            | Failure::Learner
            | Failure::No(_) => return Err(failure),
        };
        match error {
            OpError::Compacted
            | OpError::FutureRevision
            | OpError::KeyNotFound
            | OpError::LeaseNotFound
            | OpError::NoSpace
            | OpError::Stale => return Err(failure),
            OpError::WrongShard | OpError::Sealed | OpError::Locked { .. } | OpError::Unstamped => {}
        }
        self.ground.world.borrow_mut().counts.add_refusal(error);
        if left <= patience.wait {
            // Nothing happened, and nobody says so: a client cannot tell it from a timeout.
            return Err(Failure::Timeout);
        }
        if let OpError::Locked { txn, coordinator } = error {
            let now = self.now();
            match patience.locked {
                Some((since, by)) if by == txn => {
                    if now - since >= LOCK_PATIENCE {
                        patience.locked = Some((now, txn));
                        let met_at = patience.met_at.unwrap_or(coordinator);
                        self.recover(txn, coordinator, met_at).await;
                    }
                }
                Some(_) | None => patience.locked = Some((now, txn)),
            }
        }
        self.pause(patience).await;
        if matches!(error, OpError::WrongShard | OpError::Sealed) {
            // A failure shows where the map is used: it leads to the same place again.
            let _ = self.catch_up(GroupId::META, Footprint::All).await;
        }
        Ok(())
    }

    async fn pause(&self, patience: &mut Patience) {
        self.sleep(patience.wait).await;
        patience.wait = (patience.wait * 2).min(WAIT_MAX);
    }

    /// Runs a command, wherever its shards are.
    pub(crate) async fn run_command(&self, command: &Command) -> Result<CommandResult, Failure> {
        let bytes = encoded(command);
        let mut patience = self.patience();
        loop {
            match self.write_planned(command, bytes.clone(), &mut patience).await {
                Ok((revision, result)) => {
                    return Ok(CommandResult {
                        revision,
                        result: Ok(result),
                    });
                }
                Err(failure) => self.again(failure, &mut patience).await?,
            }
        }
    }

    /// Reads a range, wherever its shards are.
    pub(crate) async fn range(&self, keys: KeyRange) -> Result<(Revision, Vec<KeyValue>), Failure> {
        let range = Range::of(keys);
        let mut patience = self.patience();
        loop {
            match self.read_planned(&range, &mut patience).await {
                Ok(found) => return Ok(found),
                Err(failure) => self.again(failure, &mut patience).await?,
            }
        }
    }

    /// Writes several keys at once.
    pub(crate) async fn transact(
        &self,
        puts: &BTreeMap<String, String>,
        expect: Option<&(String, Expect)>,
    ) -> Result<Told, Failure> {
        let answer = self.run_command(&Command::Txn(transaction(puts, expect))).await?;
        match answer.result {
            Ok(OpResult::Txn { succeeded: true, .. }) => Ok(Told::Done {
                revision: answer.revision.0,
            }),
            Ok(OpResult::Txn { succeeded: false, .. }) => Ok(Told::NotDone),
            Ok(_) | Err(_) => unreachable!("invariant: a transaction is answered as one"),
        }
    }
}

fn route_of(table: &RouteTable, group: GroupId) -> &Route {
    let route = table.shards().iter().find(|route| route.group == group);
    route.expect("invariant: a plan names the table's shards")
}

/// Why a request over several shards came to nothing, in a client's words; what may be tried again, in the words for that.
fn spread_failure(failure: txn::Failure, patience: &mut Patience) -> Failure {
    match failure {
        txn::Failure::Refused(error) => Failure::Op(error),
        txn::Failure::Moved => Failure::Op(OpError::WrongShard),
        txn::Failure::Conflict {
            txn,
            coordinator,
            group,
        } => {
            patience.met_at = Some(group);
            patience.order = Order::InTurn;
            Failure::Op(OpError::Locked { txn, coordinator })
        }
        txn::Failure::NotDone => Failure::NoLeader,
        txn::Failure::TimedOut | txn::Failure::Unknown | txn::Failure::Lost { .. } => Failure::Timeout,
        txn::Failure::Mismatch(error) => Failure::No(error.to_string()),
    }
}

/// A client's wish in the store's form.
fn transaction(puts: &BTreeMap<String, String>, expect: Option<&(String, Expect)>) -> Txn {
    Txn {
        compares: expect.iter().map(|(key, expect)| compare(key, expect)).collect(),
        success: puts.iter().map(|(key, value)| Op::Put(put(key, value))).collect(),
        failure: Vec::new(),
    }
}
