//! A keyspace as this member serves it: requests find their shards, here or elsewhere.

mod maintenance;

use crate::ask::{Ask, ReadTerms, Reply};
use crate::atlas::Atlas;
use crate::local::{Local, failed};
use crate::patience::{Next, Patience};
use crate::reach::Reach;
use crate::shared::Shared;
use crate::spread::Spread;
use crate::telemetry::Tracer;
use althing_api::keyspace::{Alarm, Consistency, Header, Keyspace, KeyspaceError, MemberEntry, Status};
use althing_raft::ids::{GroupId, MemberId};
use althing_raft::io::Role;
use althing_shard::map::{KeyspaceId, Route, RouteTable};
use althing_shard::route::{Mismatch, Plan, Request, RouteError, plan};
use althing_shard::txn::Failure;
use althing_shard::{Done, Event};
use althing_store::CommandResult;
use althing_store::codec::encode_command;
use althing_store::ops::{Command, Op, OpError, OpResult, Range, RangeResult, Revision, RevisionSource, Txn};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of an encoded command; above the API's own limit, so that this is a backstop.
const COMMAND_BYTES_MAX: usize = 3 << 20;

/// What the keyspaces of a node stand on.
pub struct Ground {
    /// The node.
    pub shared: Arc<Shared>,
    /// Its groups.
    pub local: Local,
    /// Its shard map.
    pub atlas: Arc<Atlas>,
    /// Everybody else's groups.
    pub reach: Arc<Reach>,
    /// Requests over several shards.
    pub spread: Arc<Spread>,
    /// Spans of requests.
    pub tracer: Tracer,
}

/// One keyspace.
pub struct RoutedKeyspace {
    id: KeyspaceId,
    ground: Arc<Ground>,
}

/// Whether a command may need space: deletions and compaction are how space is made.
fn grows(command: &Command) -> bool {
    fn puts(ops: &[Op]) -> bool {
        ops.iter().any(|op| match op {
            Op::Put(_) => true,
            Op::Txn(inner) => puts(&inner.success) || puts(&inner.failure),
            Op::Range(_) | Op::Delete(_) => false,
        })
    }
    match command {
        Command::Put(_) => true,
        Command::Txn(txn) => puts(&txn.success) || puts(&txn.failure),
        Command::Delete(_) | Command::Compact(_) | Command::Shard(_) => false,
    }
}

impl RoutedKeyspace {
    /// A keyspace of a node.
    #[must_use]
    pub fn new(id: KeyspaceId, ground: Arc<Ground>) -> Self {
        Self { id, ground }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.ground.shared
    }

    fn table(&self) -> Result<Arc<RouteTable>, KeyspaceError> {
        let chart = self.ground.atlas.chart();
        // Without a map there is no leader yet that could have made one.
        chart.table(self.id).cloned().ok_or(KeyspaceError::NoLeader)
    }

    /// Whether what needs space is refused: for want of it on the volume, or because the keyspace holds as much as it may.
    fn short_of_space(&self) -> bool {
        self.shared().short_of_space() || self.table().is_ok_and(|table| table.full)
    }

    /// The group that stands for the keyspace where etcd has only one.
    fn first(&self) -> GroupId {
        self.table().map_or(GroupId::META, |table| table.shards()[0].group)
    }

    fn header_at(&self, revision: Revision) -> Header {
        Header {
            cluster_id: self.shared().cluster().unwrap_or_default(),
            member_id: self.shared().me.0,
            revision,
            raft_term: self.shared().term(self.first()),
        }
    }

    /// Whether this member can answer for a group by itself.
    fn is_here(&self, group: GroupId) -> bool {
        self.shared().is_voter(group)
    }

    /// Runs a command in a group.
    async fn execute_in(
        &self,
        route: &Route,
        command: Bytes,
        patience: &Patience,
    ) -> Result<CommandResult, KeyspaceError> {
        if self.is_here(route.group) {
            let (answer, timeline) = self.ground.local.execute(route.group, command).await?;
            self.ground.tracer.follow(self.shared(), &timeline);
            return Ok(answer);
        }
        let ask = Ask::Execute {
            group: route.group,
            command,
        };
        self.asked(route, &ask, patience).await
    }

    /// Reads in a group.
    async fn read_in(
        &self,
        route: &Route,
        terms: ReadTerms,
        txn: Txn,
        patience: &Patience,
    ) -> Result<CommandResult, KeyspaceError> {
        if self.is_here(route.group) && !terms.settled {
            return self.ground.local.read(route.group, terms, txn).await;
        }
        let ask = Ask::Read {
            group: route.group,
            terms,
            txn,
        };
        self.asked(route, &ask, patience).await
    }

    async fn asked(&self, route: &Route, ask: &Ask, patience: &Patience) -> Result<CommandResult, KeyspaceError> {
        let asked = self
            .ground
            .reach
            .ask(route.group, &route.replicas, ask, patience.left());
        match asked.await? {
            Reply::Answer(answer) => Ok(answer),
            Reply::Failure(failure) => Err(failure),
            Reply::Stamp(_) | Reply::Control(_) => Err(KeyspaceError::Timeout),
        }
    }

    /// How a read of a single shard must be made.
    fn terms(&self, table: &RouteTable, route: &Route, serializable: bool) -> ReadTerms {
        let sequenced = match table.source {
            RevisionSource::Dense => false,
            RevisionSource::Sequenced => true,
        };
        // Who asks for no more than its own keys' newest writes may have them from any responder.
        let settled = sequenced && !serializable && !self.ground.local.reads_own_keys(route.group);
        ReadTerms { serializable, settled }
    }

    async fn range_in(
        &self,
        table: &RouteTable,
        route: &Route,
        range: Range,
        serializable: bool,
        patience: &Patience,
    ) -> Result<(Revision, RangeResult), KeyspaceError> {
        let terms = self.terms(table, route, serializable);
        if self.is_here(route.group) && !terms.settled {
            let found = self.ground.local.range(route.group, range, serializable).await?;
            return Ok(found?);
        }
        let txn = Txn {
            success: vec![Op::Range(range)],
            ..Txn::default()
        };
        let answer = self.read_in(route, terms, txn, patience).await?;
        let revision = answer.revision;
        match answer.result? {
            OpResult::Txn { mut results, .. } => match results.pop() {
                Some((_, OpResult::Range(found))) => Ok((revision, found)),
                Some(_) | None => unreachable!("invariant: a range is answered as one"),
            },
            OpResult::Range(_)
            | OpResult::Put { .. }
            | OpResult::Delete { .. }
            | OpResult::Compact
            | OpResult::Shard(_) => {
                unreachable!("invariant: a transaction is answered as one")
            }
        }
    }

    fn patience(&self) -> Patience {
        Patience::until(self.shared().clock, self.shared().deadline())
    }

    /// Whether to try again; the failure if not.
    async fn again(&self, failure: KeyspaceError, patience: &mut Patience) -> Result<(), KeyspaceError> {
        match patience.after(failure, &self.ground.atlas).await {
            Next::Again => Ok(()),
            Next::Recover(txn, coordinator) => {
                let met_at = patience.met_at().unwrap_or(coordinator);
                self.ground.spread.recover(txn, coordinator, met_at).await;
                Ok(())
            }
            Next::Fail(failure) => Err(failure),
        }
    }

    /// Reads that touch several shards, or a revision of several.
    async fn snapshot(
        &self,
        table: &Arc<RouteTable>,
        request: Request<'_>,
        patience: &mut Patience,
    ) -> Result<(Revision, OpResult), KeyspaceError> {
        let parts = match plan(table, request) {
            Ok(Plan::Snapshot(parts)) => parts,
            Ok(Plan::One(_) | Plan::TwoPhase(_) | Plan::Everywhere(_)) => {
                unreachable!("invariant: reads of several shards are read at one revision")
            }
            Err(error) => return Err(unroutable(&error)),
        };
        let read = self.ground.spread.read(table, parts, patience.end()).await;
        read.map_err(|failure| spread_failure(failure, patience))
    }

    async fn range_over(
        &self,
        table: &Arc<RouteTable>,
        range: &Range,
        serializable: bool,
        patience: &mut Patience,
    ) -> Result<(Revision, RangeResult), KeyspaceError> {
        if serializable {
            return self.range_of_each(table, range, patience).await;
        }
        match self.snapshot(table, Request::Range(range), patience).await? {
            (revision, OpResult::Range(found)) => Ok((revision, found)),
            (
                _,
                OpResult::Put { .. }
                | OpResult::Delete { .. }
                | OpResult::Txn { .. }
                | OpResult::Compact
                | OpResult::Shard(_),
            ) => unreachable!("invariant: a range is answered as one"),
        }
    }

    /// A serializable range: what every shard has, each by itself, from whoever has it.
    async fn range_of_each(
        &self,
        table: &Arc<RouteTable>,
        range: &Range,
        patience: &Patience,
    ) -> Result<(Revision, RangeResult), KeyspaceError> {
        let parts = match plan(table, Request::Range(range)) {
            Ok(Plan::Snapshot(parts)) => parts,
            Ok(Plan::One(_) | Plan::TwoPhase(_) | Plan::Everywhere(_)) => {
                unreachable!("invariant: reads of several shards are read at one revision")
            }
            Err(error) => return Err(unroutable(&error)),
        };
        let terms = ReadTerms {
            serializable: true,
            settled: false,
        };
        let (mut results, mut newest) = (BTreeMap::new(), Revision(0));
        for (group, part) in parts.each() {
            let route = table.shards().iter().find(|route| route.group == *group);
            let route = route.expect("invariant: parts are of the table's shards");
            let answer = self.read_in(route, terms, part.clone(), patience).await?;
            newest = newest.max(answer.revision);
            results.insert(*group, answer.result?);
        }
        match parts.merge(&results, newest).map_err(|error| mismatched(&error))? {
            (_, OpResult::Range(found)) => Ok((newest, found)),
            (
                _,
                OpResult::Put { .. }
                | OpResult::Delete { .. }
                | OpResult::Txn { .. }
                | OpResult::Compact
                | OpResult::Shard(_),
            ) => unreachable!("invariant: a range is answered as one"),
        }
    }

    async fn read_txn_over(
        &self,
        table: &Arc<RouteTable>,
        txn: &Txn,
        serializable: bool,
        patience: &mut Patience,
    ) -> Result<(Revision, OpResult), KeyspaceError> {
        // One that may be old asks for less than one that may not: where there are several shards, all of them are asked.
        if let [route] = table.shards() {
            let terms = self.terms(table, route, serializable);
            let answer = self.read_in(route, terms, txn.clone(), patience).await?;
            return Ok((answer.revision, answer.result?));
        }
        self.snapshot(table, Request::ReadTxn(txn), patience).await
    }

    async fn execute_over(
        &self,
        table: &Arc<RouteTable>,
        command: &Command,
        bytes: Bytes,
        patience: &mut Patience,
    ) -> Result<(Revision, OpResult), KeyspaceError> {
        let route_of = |group: GroupId| {
            let route = table.shards().iter().find(|route| route.group == group);
            route.expect("invariant: a plan names the table's shards")
        };
        let one = match table.shards() {
            [only] => Plan::One(only.group),
            _ => plan(table, Request::Command(command)).map_err(|error| unroutable(&error))?,
        };
        match one {
            Plan::One(group) => {
                let answer = self.execute_in(route_of(group), bytes, patience).await;
                let answer = answer.inspect_err(|_| patience.met(group))?;
                if answer.result.is_err() {
                    patience.met(group);
                }
                Ok((answer.revision, answer.result?))
            }
            Plan::Snapshot(_) => unreachable!("invariant: what writes is no read"),
            Plan::TwoPhase(parts) => {
                let spread = &self.ground.spread;
                let written = spread
                    .write(Arc::clone(table), parts, patience.order(), patience.end())
                    .await;
                written.map_err(|failure| spread_failure(failure, patience))
            }
            Plan::Everywhere(groups) => self.compact(table, command, groups, bytes, patience).await,
        }
    }

    /// Compacts every shard. They forget one after another; what one has forgotten none will show (the largest counts).
    async fn compact(
        &self,
        table: &Arc<RouteTable>,
        command: &Command,
        groups: Vec<GroupId>,
        bytes: Bytes,
        patience: &Patience,
    ) -> Result<(Revision, OpResult), KeyspaceError> {
        let newest = self.ground.spread.stamp(table, 0).await?;
        if let Command::Compact(revision) = command
            && *revision > newest
        {
            return Err(OpError::FutureRevision.into());
        }
        let mut refused = None;
        for group in groups {
            let route = table.shards().iter().find(|route| route.group == group);
            let route = route.expect("invariant: a plan names the table's shards");
            match self.execute_in(route, bytes.clone(), patience).await?.result {
                Ok(_) => {}
                // By an earlier try that did not get to all of them.
                Err(OpError::Compacted) => refused = Some(OpError::Compacted),
                Err(error) => return Err(error.into()),
            }
        }
        match refused {
            None => Ok((newest, OpResult::Compact)),
            Some(error) => Err(error.into()),
        }
    }
}

/// Why a request over several shards came to nothing, in a client's words; what may be tried again, in the words for that.
fn spread_failure(failure: Failure, patience: &mut Patience) -> KeyspaceError {
    match failure {
        Failure::Refused(error) => error.into(),
        Failure::Moved => OpError::WrongShard.into(),
        Failure::Conflict {
            txn,
            coordinator,
            group,
        } => {
            patience.met(group);
            patience.take_turns();
            OpError::Locked { txn, coordinator }.into()
        }
        Failure::NotDone => KeyspaceError::NoLeader,
        Failure::TimedOut | Failure::Unknown | Failure::Lost { .. } => KeyspaceError::Timeout,
        Failure::Mismatch(error) => mismatched(&error),
    }
}

fn mismatched(error: &Mismatch) -> KeyspaceError {
    tracing::error!(%error, "a request over several shards makes no sense");
    KeyspaceError::Timeout
}

/// Too wide a request.
fn unroutable(error: &RouteError) -> KeyspaceError {
    tracing::debug!(%error, "a request cannot be routed");
    KeyspaceError::TooLarge
}

#[async_trait]
impl Keyspace for RoutedKeyspace {
    async fn range(&self, range: Range, consistency: Consistency) -> Result<(Header, RangeResult), KeyspaceError> {
        let serializable = consistency == Consistency::Serializable;
        let mut patience = self.patience();
        loop {
            let table = self.table()?;
            let tried = match table.shards_of(&range.keys) {
                // Of no keys: any shard says so.
                [] => {
                    self.range_in(&table, &table.shards()[0], range.clone(), serializable, &patience)
                        .await
                }
                // A revision that the client names must be there in all shards, or in none.
                [route] if range.revision.is_none() || table.shards().len() == 1 => {
                    self.range_in(&table, route, range.clone(), serializable, &patience)
                        .await
                }
                _ => self.range_over(&table, &range, serializable, &mut patience).await,
            };
            match tried {
                Ok((revision, found)) => return Ok((self.header_at(revision), found)),
                Err(failure) => self.again(failure, &mut patience).await?,
            }
        }
    }

    async fn read_txn(&self, txn: Txn, consistency: Consistency) -> Result<(Header, OpResult), KeyspaceError> {
        let serializable = consistency == Consistency::Serializable;
        let mut patience = self.patience();
        loop {
            let table = self.table()?;
            let tried = self.read_txn_over(&table, &txn, serializable, &mut patience).await;
            match tried {
                Ok((revision, result)) => return Ok((self.header_at(revision), result)),
                Err(failure) => self.again(failure, &mut patience).await?,
            }
        }
    }

    async fn execute(&self, command: Command) -> Result<(Header, OpResult), KeyspaceError> {
        let (shared, grows) = (self.shared(), grows(&command));
        if (grows && shared.short_of_space()) || shared.out_of_space() {
            return Err(OpError::NoSpace.into());
        }
        let mut bytes = BytesMut::new();
        encode_command(&command, &mut bytes);
        if bytes.len() > COMMAND_BYTES_MAX {
            return Err(KeyspaceError::TooLarge);
        }
        let bytes = bytes.freeze();
        let mut patience = self.patience();
        loop {
            let table = self.table()?;
            if grows && table.full {
                return Err(OpError::NoSpace.into());
            }
            let tried = self.execute_over(&table, &command, bytes.clone(), &mut patience).await;
            match tried {
                Ok((revision, result)) => return Ok((self.header_at(revision), result)),
                Err(failure) => self.again(failure, &mut patience).await?,
            }
        }
    }

    fn header(&self) -> Header {
        let store = self.ground.local.store(self.first());
        self.header_at(store.map_or(Revision(0), |store| store.current_revision()))
    }

    async fn status(&self) -> Result<(Header, Status), KeyspaceError> {
        self.status_here().await
    }

    async fn members(&self, consistency: Consistency) -> Result<(Header, Vec<MemberEntry>), KeyspaceError> {
        self.list_members(consistency).await
    }

    async fn move_leader(&self, target: u64) -> Result<Header, KeyspaceError> {
        let (group, deadline) = (self.first(), self.shared().deadline());
        let asked = self
            .shared()
            .ask_host(|request| Event::Transfer {
                request,
                group,
                to: Some(MemberId(target)),
                deadline,
            })
            .await;
        match asked.map_err(failed)? {
            Done::Transferred { leader } if leader.0 == target => Ok(self.header()),
            Done::Transferred { .. } => Err(KeyspaceError::LeaderChanged),
            Done::Read { .. } | Done::Configured { .. } | Done::ReadsSet { .. } => {
                unreachable!("invariant: a transfer is answered as one")
            }
        }
    }

    async fn defragment(&self) -> Result<Header, KeyspaceError> {
        self.defragment_engine().await
    }

    fn serving(&self) -> bool {
        self.shared().readiness().ready
    }

    fn has_leader(&self) -> bool {
        let shared = self.shared();
        let led = |group| {
            shared
                .soft(group)
                .is_none_or(|soft| soft.role == Role::Leader || soft.leader.is_some())
        };
        led(GroupId::META)
            && self
                .table()
                .is_ok_and(|table| table.shards().iter().all(|route| led(route.group)))
    }

    fn alarms(&self) -> Vec<Alarm> {
        if self.short_of_space() {
            vec![Alarm::NoSpace]
        } else {
            Vec::new()
        }
    }
}
