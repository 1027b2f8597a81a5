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
use althing_store::CommandResult;
use althing_store::ops::{
    Command, KeyRange, KeyValue, Op, OpError, OpResult, Range, Revision, RevisionSource, Span, Txn, TxnId,
};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::rc::Rc;

/// First wait before another try, doubled up to the largest.
const WAIT_MIN: u64 = MS;
const WAIT_MAX: u64 = 20 * MS;
/// How long a transaction may hold its locks before whoever waits for them asks what becomes of it.
pub(crate) const LOCK_PATIENCE: u64 = 1000 * MS;

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
}

impl Node {
    fn now(&self) -> u64 {
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

    async fn read_in(
        &self,
        route: &Route,
        terms: ReadTerms,
        range: Range,
        patience: &Patience,
    ) -> Result<(Revision, Vec<KeyValue>), Failure> {
        let group = route.group;
        let txn = Txn {
            success: vec![Op::Range(range)],
            ..Txn::default()
        };
        let answer = if self.is_voter(group) && terms.at.is_none() {
            self.read(group, terms, txn).await?
        } else {
            self.ask_route(route, &Ask::Read { group, terms, txn }, patience)
                .await?
        };
        match answer.result.map_err(Failure::Op)? {
            OpResult::Txn { mut results, .. } => match results.pop() {
                Some((_, OpResult::Range(found))) => Ok((answer.revision, found.kvs)),
                Some(_) | None => unreachable!("invariant: a range is answered as one"),
            },
            OpResult::Range(_)
            | OpResult::Put { .. }
            | OpResult::Delete { .. }
            | OpResult::Compact
            | OpResult::Shard(_) => unreachable!("invariant: a transaction is answered as one"),
        }
    }

    pub(crate) fn patience(&self) -> Patience {
        Patience {
            end: self.now() + self.ground.world.borrow().weather.patience,
            wait: WAIT_MIN,
            locked: None,
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
                        self.recover(txn, coordinator).await;
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

    /// Runs a command of one key, wherever its shard is.
    pub(crate) async fn run_one(&self, key: &[u8], command: &Command) -> Result<CommandResult, Failure> {
        let bytes = encoded(command);
        let mut patience = self.patience();
        loop {
            let tried = match self.table() {
                None => Err(Failure::NoLeader),
                Some(table) => {
                    let tried = self.execute_in(table.shard_of(key), bytes.clone(), &patience).await;
                    tried.and_then(|answer| match answer.result {
                        Ok(_) => Ok(answer),
                        Err(error) => Err(Failure::Op(error)),
                    })
                }
            };
            match tried {
                Ok(answer) => return Ok(answer),
                Err(failure) => self.again(failure, &mut patience).await?,
            }
        }
    }

    /// Reads one key, wherever its shard is.
    pub(crate) async fn get(&self, key: Bytes) -> Result<(Revision, Option<KeyValue>), Failure> {
        let mut patience = self.patience();
        loop {
            let tried = match self.table() {
                None => Err(Failure::NoLeader),
                Some(table) => {
                    let range = Range::of(KeyRange::Single(key.clone()));
                    let route = table.shard_of(&key);
                    self.read_in(route, ReadTerms::default(), range, &patience).await
                }
            };
            match tried {
                Ok((revision, mut kvs)) => return Ok((revision, kvs.pop())),
                Err(failure) => self.again(failure, &mut patience).await?,
            }
        }
    }

    /// Reads all keys as of one moment.
    pub(crate) async fn all_keys(&self) -> Result<(Revision, Vec<KeyValue>), Failure> {
        let mut patience = self.patience();
        loop {
            let tried = match self.table() {
                None => Err(Failure::NoLeader),
                Some(table) => self.range_over(&table, &patience).await,
            };
            match tried {
                Ok(found) => return Ok(found),
                Err(failure) => self.again(failure, &mut patience).await?,
            }
        }
    }

    async fn range_over(&self, table: &RouteTable, patience: &Patience) -> Result<(Revision, Vec<KeyValue>), Failure> {
        let part = |span: &Span| {
            Range::of(KeyRange::Part {
                start: Bytes::new(),
                end: None,
                span: span.clone(),
            })
        };
        if let ([route], RevisionSource::Dense) = (table.shards(), table.source) {
            let range = Range::of(KeyRange::From(Bytes::new()));
            return self.read_in(route, ReadTerms::default(), range, patience).await;
        }
        let sequencer = table.sequencer.as_ref().ok_or(Failure::NoLeader)?;
        let ask = Ask::Stamp {
            group: sequencer.group,
            count: 0,
        };
        let left = patience.end.saturating_sub(self.now());
        let Reply::Stamp(at) = self.reach(sequencer.group, &sequencer.replicas, &ask, left).await? else {
            return Err(Failure::Timeout);
        };
        let terms = ReadTerms { at: Some(at) };
        let mut all = Vec::new();
        for route in table.shards() {
            let (_, kvs) = self.read_in(route, terms, part(&route.span), patience).await?;
            all.extend(kvs);
        }
        self.ground.world.borrow_mut().counts.snapshots += u64::from(table.shards().len() > 1);
        Ok((at, all))
    }

    /// Writes several keys at once.
    pub(crate) async fn transact(
        &self,
        puts: &BTreeMap<String, String>,
        expect: Option<&(String, Expect)>,
    ) -> Result<Told, Failure> {
        let txn = transaction(puts, expect);
        let command = Command::Txn(txn);
        let bytes = encoded(&command);
        let mut patience = self.patience();
        loop {
            let tried = match self.table() {
                None => Err(Failure::NoLeader),
                Some(table) => {
                    let keys = puts.keys().chain(expect.map(|(key, _)| key));
                    let mut routes: Vec<&Route> = keys.map(|key| table.shard_of(key.as_bytes())).collect();
                    routes.dedup_by_key(|route| route.group);
                    match routes[..] {
                        [route] => self.execute_in(route, bytes.clone(), &patience).await,
                        _ => return Err(Failure::No("it is about several shards".to_owned())),
                    }
                }
            };
            let tried = tried.and_then(|answer| {
                answer
                    .result
                    .map_err(Failure::Op)
                    .map(|result| (answer.revision, result))
            });
            match tried {
                Ok((Revision(revision), OpResult::Txn { succeeded: true, .. })) => return Ok(Told::Done { revision }),
                Ok((_, OpResult::Txn { succeeded: false, .. })) => return Ok(Told::NotDone),
                Ok(_) => unreachable!("invariant: a transaction is answered as one"),
                Err(failure) => self.again(failure, &mut patience).await?,
            }
        }
    }

    /// Asks what becomes of a transaction whose coordinator says nothing.
    async fn recover(&self, _txn: TxnId, _coordinator: GroupId) {}
}

/// A client's wish in the store's form.
fn transaction(puts: &BTreeMap<String, String>, expect: Option<&(String, Expect)>) -> Txn {
    Txn {
        compares: expect.iter().map(|(key, expect)| compare(key, expect)).collect(),
        success: puts.iter().map(|(key, value)| Op::Put(put(key, value))).collect(),
        failure: Vec::new(),
    }
}
