//! One node with the shards of a keyspace, and who splits, joins and moves them and coordinates transactions.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use crate::arb;
use crate::common::{Keys, meta};
use crate::flat::{Map, Model};
use althing_raft::ids::{GroupId, Index, MemberId};
use althing_store::ops::{
    Command, Compare, Decision, KeyRange, Op, OpError, OpResult, Partitioning, Range, Revision, RevisionSource,
    ShardCommand, ShardResult, Span, Territory, Txn, TxnId, Verdict,
};
use althing_store::{
    ApplyItem, Batch, CHILD_BIRTH, KeySpan, Locks, MemStore, Mvcc, Order, Page, PageLimit, StateStore, StoreError,
    Sweep, groups, tidy,
};
use bytes::Bytes;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

const FIRST: GroupId = GroupId::FIRST_SHARD;

/// An engine that remembers its batches, so that any prefix of them can be what a crash leaves.
#[derive(Clone, Default)]
pub struct Journal {
    store: MemStore,
    batches: Arc<Mutex<Vec<Batch>>>,
}

impl Journal {
    /// What a crash leaves: `kept` 255ths of the batches.
    pub fn crash(&self, kept: u8) -> Self {
        let batches = self.batches.lock().unwrap();
        let crashed = Self::default();
        for batch in &batches[..batches.len() * usize::from(kept) / 255] {
            crashed.apply(batch.clone()).unwrap();
        }
        crashed
    }
}

impl StateStore for Journal {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.store.get(key)
    }

    fn scan(&self, span: &KeySpan, order: Order, limit: PageLimit) -> Result<Page, StoreError> {
        self.store.scan(span, order, limit)
    }

    fn apply(&self, batch: Batch) -> Result<(), StoreError> {
        self.batches.lock().unwrap().push(batch.clone());
        self.store.apply(batch)
    }

    fn checkpoint(&self) -> Result<(), StoreError> {
        self.store.checkpoint()
    }

    fn size_on_disk(&self) -> Result<u64, StoreError> {
        self.store.size_on_disk()
    }
}

#[derive(Clone, Debug)]
pub enum Step {
    /// A command goes to the shards that it is about.
    Run(Command),
    /// ... or to some shard, whether that has the keys or not.
    Misroute(Command, u8),
    /// A transaction over several shards is prepared, and left so for now.
    Prepare(Txn),
    /// Those that are prepared are decided, and finished on some shards only.
    Decide {
        commit: bool,
        finish: u8,
    },
    /// They are finished everywhere.
    Finish,
    Read(Range),
    Split(u8, Bytes, u8),
    Merge(u8),
    /// A shard leaves the node, and comes back by a snapshot.
    Bounce(u8),
    Compact(i64),
    Sweep(u8),
    WriteOut(u8),
    Crash(u8),
}

pub fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        10 => arb::command().prop_map(Step::Run),
        1 => (arb::command(), any::<u8>()).prop_map(|(command, shard)| Step::Misroute(command, shard)),
        3 => arb::txn().prop_map(Step::Prepare),
        3 => arb::puts().prop_map(Step::Prepare),
        3 => (proptest::bool::weighted(0.8), any::<u8>())
            .prop_map(|(commit, finish)| Step::Decide { commit, finish }),
        2 => Just(Step::Finish),
        4 => arb::range().prop_map(Step::Read),
        3 => (any::<u8>(), arb::key(), any::<u8>()).prop_map(|(shard, at, slot)| Step::Split(shard, at, slot)),
        2 => any::<u8>().prop_map(Step::Merge),
        1 => any::<u8>().prop_map(Step::Bounce),
        1 => (1..40i64).prop_map(Step::Compact),
        1 => any::<u8>().prop_map(Step::Sweep),
        1 => any::<u8>().prop_map(Step::WriteOut),
        2 => any::<u8>().prop_map(Step::Crash),
    ];
    proptest::collection::vec(step, 1..40)
}

/// A transaction on its way.
struct Flight {
    id: TxnId,
    whole: Txn,
    shards: Vec<GroupId>,
    verdicts: Vec<Vec<Vec<Verdict>>>,
    errors: Vec<Vec<[Option<OpError>; 2]>>,
    decision: Option<Decision>,
}

struct World<S> {
    store: S,
    groups: BTreeMap<GroupId, Keys<S>>,
    /// Everything that a group was ever given, from the first index that its log has.
    logs: BTreeMap<GroupId, (u64, Vec<ApplyItem>)>,
    /// What each covers, and its chunks, oldest first: a later one may say nothing of a group that was cut off before.
    snapshots: BTreeMap<GroupId, Vec<(Index, Vec<Bytes>)>>,
    /// Groups that are no more.
    dead: BTreeSet<GroupId>,
    model: Model,
    stamp: i64,
    operation: u64,
    flights: Vec<Flight>,
}

fn nothing() -> KeyRange {
    KeyRange::Between(Bytes::from_static(b"b"), Bytes::from_static(b"a"))
}

/// What of a range is about a shard.
fn clip(keys: &KeyRange, territory: &Territory) -> KeyRange {
    let hashed = territory.partitioning != Partitioning::Range;
    let (start, end) = match keys {
        KeyRange::Single(key) if territory.owns(key) => return keys.clone(),
        KeyRange::Single(_) => return nothing(),
        KeyRange::Between(start, end) if start >= end => return nothing(),
        KeyRange::Between(start, end) => (start.clone(), Some(end.clone())),
        KeyRange::From(start) => (start.clone(), None),
        KeyRange::Part { .. } => panic!("{keys:?}"),
    };
    if hashed {
        let span = territory.span.clone();
        return KeyRange::Part { start, end, span };
    }
    match (Span { start, end }).and(&territory.span) {
        None => nothing(),
        Some(Span { start, end: Some(end) }) => KeyRange::Between(start, end),
        Some(Span { start, end: None }) => KeyRange::From(start),
    }
}

/// What of a transaction is about a shard, in the shape of the whole.
fn part_of(txn: &Txn, territory: &Territory) -> Txn {
    let branch = |ops: &Vec<Op>| {
        ops.iter()
            .map(|op| match op {
                Op::Put(put) if territory.owns(&put.key) => op.clone(),
                Op::Put(_) => Op::Range(Range::of(nothing())),
                Op::Range(range) => Op::Range(Range {
                    keys: clip(&range.keys, territory),
                    ..range.clone()
                }),
                Op::Delete(delete) => {
                    let mut delete = delete.clone();
                    delete.keys = clip(&delete.keys, territory);
                    Op::Delete(delete)
                }
                Op::Txn(inner) => Op::Txn(part_of(inner, territory)),
            })
            .collect()
    };
    let compares = txn.compares.iter().map(|compare| Compare {
        keys: clip(&compare.keys, territory),
        ..compare.clone()
    });
    Txn {
        compares: compares.collect(),
        success: branch(&txn.success),
        failure: branch(&txn.failure),
    }
}

/// What a coordinator or whoever parses requests refuses before: reads at revisions that are not there yet, and keys that are removed
/// and then put as they were.
fn without_refused(txn: &mut Txn, current: i64) {
    fn deletes(txn: &Txn) -> bool {
        txn.success.iter().chain(&txn.failure).any(|op| match op {
            Op::Delete(_) => true,
            Op::Txn(inner) => deletes(inner),
            Op::Put(_) | Op::Range(_) => false,
        })
    }
    fn clean(txn: &mut Txn, current: i64, deletes: bool) {
        for op in txn.success.iter_mut().chain(&mut txn.failure) {
            match op {
                Op::Range(range) => range.revision = range.revision.filter(|revision| revision.0 <= current),
                Op::Txn(inner) => clean(inner, current, deletes),
                Op::Put(put) if deletes => {
                    put.value.get_or_insert_default();
                    put.lease.get_or_insert_default();
                }
                Op::Put(_) | Op::Delete(_) => {}
            }
        }
    }
    let deletes = deletes(txn);
    clean(txn, current, deletes);
}

/// Whether nothing that runs on this path would be refused. Takes one transaction's items off the front of both lists, and those nested in it.
fn path_is_free(
    txn: &Txn,
    path: &mut impl Iterator<Item = bool>,
    errors: &mut impl Iterator<Item = [bool; 2]>,
    runs: bool,
) -> bool {
    let (taken, [success, failure]) = (path.next().unwrap(), errors.next().unwrap());
    let mut free = !runs || !(if taken { success } else { failure });
    for (branch, ops) in [(true, &txn.success), (false, &txn.failure)] {
        for op in ops {
            if let Op::Txn(inner) = op {
                free &= path_is_free(inner, path, errors, runs && branch == taken);
            }
        }
    }
    free
}

fn size_of(results: &OpResult) -> i64 {
    match results {
        OpResult::Range(found) => found.count,
        OpResult::Delete { deleted, .. } => *deleted,
        OpResult::Txn { results, .. } => results.iter().map(|(_, result)| size_of(result)).sum(),
        OpResult::Put { .. } | OpResult::Compact | OpResult::Shard(_) => 0,
    }
}

impl<S: StateStore> World<S> {
    fn new(store: S, partitioning: Partitioning) -> Self {
        let mvcc = Mvcc::open(store.clone(), FIRST).unwrap();
        let mut world = Self {
            store,
            groups: BTreeMap::from([(FIRST, Keys { mvcc })]),
            logs: BTreeMap::from([(FIRST, (1, Vec::new()))]),
            snapshots: BTreeMap::new(),
            dead: BTreeSet::new(),
            model: Model::new(),
            stamp: 1,
            operation: 0,
            flights: Vec::new(),
        };
        let territory = Territory {
            partitioning,
            epoch: 1,
            ..Territory::default()
        };
        let source = RevisionSource::Sequenced;
        world.shard(FIRST, ShardCommand::Settle { territory, source }).unwrap();
        world
    }

    /// Live shards in the order of their spans.
    fn shards(&self) -> Vec<GroupId> {
        let mut shards: Vec<_> = self.groups.keys().filter(|group| !self.dead.contains(group)).collect();
        shards.sort_by_key(|group| self.territory(**group).span.start);
        shards.into_iter().copied().collect()
    }

    fn territory(&self, group: GroupId) -> Territory {
        self.groups[&group].mvcc.territory()
    }

    /// Applies the next entry of a group's log; `None` if it cannot be yet.
    fn step(&mut self, group: GroupId) -> Option<Option<(i64, Result<OpResult, OpError>)>> {
        let next = self.groups.get(&group)?.mvcc.applied().position.index.next();
        let (first, log) = &self.logs[&group];
        let item = log.get(usize::try_from(next.0.checked_sub(*first)?).unwrap())?.clone();
        let neighbour = match &item {
            ApplyItem::Command {
                command: Command::Shard(ShardCommand::Absorb { from, .. }),
                ..
            } => self.groups.get(from).map(|keys| &keys.mvcc),
            ApplyItem::Command { .. } | ApplyItem::Noop | ApplyItem::Config(_) => None,
        };
        let mvcc = &self.groups[&group].mvcc;
        let results = match mvcc.apply_beside(&[item], meta(next.0), neighbour) {
            Ok(results) => results,
            Err(StoreError::Neighbour { .. }) => return None,
            Err(error) => panic!("{error}"),
        };
        if let Some(born) = mvcc.take_born() {
            let child = born.group();
            self.logs
                .entry(child)
                .or_insert((CHILD_BIRTH.index.next().0, Vec::new()));
            self.groups.insert(child, Keys { mvcc: born });
        }
        let result = results.into_iter().next().unwrap();
        Some(result.map(|result| (result.revision.0, result.result)))
    }

    fn give(&mut self, group: GroupId, command: Command, stamp: Option<i64>) -> (i64, Result<OpResult, OpError>) {
        let stamp = stamp.map(Revision);
        let (_, log) = self.logs.get_mut(&group).unwrap();
        log.push(ApplyItem::Command { command, stamp });
        self.step(group).expect("it is the next one").unwrap()
    }

    fn shard(&mut self, group: GroupId, command: ShardCommand) -> Result<ShardResult, OpError> {
        let result = self.give(group, Command::Shard(command), None).1?;
        let OpResult::Shard(result) = result else {
            panic!("{result:?}")
        };
        Ok(result)
    }

    fn next_stamp(&mut self) -> i64 {
        self.stamp += 1;
        self.stamp
    }

    /// Everything after a crash: what the engine has, and what the logs say after that.
    fn recover(&mut self, store: S) {
        self.groups.clear();
        self.store = store;
        tidy(&self.store).unwrap();
        for group in groups(&self.store).unwrap().into_iter().chain([FIRST]) {
            let mvcc = Mvcc::open(self.store.clone(), group).unwrap();
            self.groups.insert(group, Keys { mvcc });
        }
        loop {
            let known: Vec<_> = self.logs.keys().copied().collect();
            let known_again = known.clone();
            let mut moved = false;
            for group in &known {
                while self.step(*group).is_some() {
                    moved = true;
                }
            }
            // Who cannot go on by its log has a snapshot.
            let stuck = known.into_iter().find(|group| {
                let last = self.logs[group].0 + self.logs[group].1.len() as u64 - 1;
                let applied = self
                    .groups
                    .get(group)
                    .map_or(Index(0), |keys| keys.mvcc.applied().position.index);
                !self.dead.contains(group) && applied.0 < last
            });
            match stuck {
                None => break,
                Some(_) if moved => {}
                // Or it waits for a neighbour that has left for a moment, or for good after it had joined.
                Some(group) => {
                    let mut missing = [group].into_iter().chain(known_again);
                    let found = missing.find_map(|group| Some((group, self.newer_snapshot(group)?)));
                    let (group, chunks) = found.unwrap();
                    self.import(group, chunks);
                }
            }
        }
        for group in self.dead.clone() {
            self.bury(group);
        }
    }

    /// The oldest one that covers more than is applied.
    fn newer_snapshot(&self, group: GroupId) -> Option<Vec<Bytes>> {
        let applied = self.groups.get(&group).map(|keys| keys.mvcc.applied().position.index);
        let mut all = self.snapshots.get(&group)?.iter();
        let newer = all.find(|(at, _)| applied.is_none_or(|applied| *at > applied));
        newer.map(|(_, chunks)| chunks.clone())
    }

    fn import(&mut self, group: GroupId, chunks: Vec<Bytes>) {
        let store = self.store.clone();
        let keys = self.groups.entry(group).or_insert_with(|| Keys {
            mvcc: Mvcc::open(store, group).unwrap(),
        });
        let mut import = keys.mvcc.import();
        for chunk in &chunks {
            import.chunk(chunk).unwrap();
        }
        keys.mvcc.install(import).unwrap();
    }

    fn bury(&mut self, group: GroupId) {
        self.dead.insert(group);
        if let Some(keys) = self.groups.remove(&group) {
            keys.mvcc.retire().unwrap();
            keys.sweep();
        }
    }

    fn run(&mut self, command: Command) -> Result<(), TestCaseError> {
        if let Command::Compact(Revision(revision)) = command {
            return self.compact(revision);
        }
        let txn = match &command {
            Command::Put(put) => Txn {
                success: vec![Op::Put(put.clone())],
                ..Txn::default()
            },
            Command::Delete(delete) => Txn {
                success: vec![Op::Delete(delete.clone())],
                ..Txn::default()
            },
            Command::Txn(txn) => txn.clone(),
            Command::Compact(_) | Command::Shard(_) => panic!("{command:?}"),
        };
        let stamp = self.next_stamp();
        let mut answer = None;
        for group in self.shards() {
            let (revision, result) = self.give(group, command.clone(), Some(stamp));
            match result {
                Err(OpError::WrongShard) => {}
                Err(OpError::Locked { txn, coordinator }) => {
                    let flight = self.flights.iter().find(|flight| flight.id == txn);
                    prop_assert_eq!(flight.map(|flight| flight.shards[0]), Some(coordinator));
                    return Ok(());
                }
                result => {
                    answer = Some((revision, result));
                    break;
                }
            }
        }
        match answer {
            Some(answer) => {
                let expected = self.model.command(&command, Some(stamp));
                prop_assert_eq!(answer, expected);
            }
            // Over several shards, all at once. Earlier ones may be in the way.
            None => {
                if self.prepare(txn)? {
                    let last = self.flights.len() - 1;
                    self.decide(last, true)?;
                    self.finish(last, u8::MAX)?;
                    self.flights.pop();
                }
            }
        }
        Ok(())
    }

    /// Whether all shards have prepared it.
    fn prepare(&mut self, mut whole: Txn) -> Result<bool, TestCaseError> {
        without_refused(&mut whole, self.model.current);
        let shards = self.shards();
        let id = TxnId {
            member: MemberId(7),
            nonce: 1,
            number: self.next_stamp() as u64,
        };
        let mut flight = Flight {
            id,
            whole,
            shards: shards.clone(),
            verdicts: Vec::new(),
            errors: Vec::new(),
            decision: None,
        };
        for group in &shards {
            let part = part_of(&flight.whole, &self.territory(*group));
            let command = ShardCommand::Prepare {
                txn: id,
                coordinator: shards[0],
                part,
            };
            let answer = self.shard(*group, command.clone());
            match answer.clone() {
                Ok(ShardResult::Prepared { verdicts, errors }) => {
                    flight.verdicts.push(verdicts);
                    flight.errors.push(errors);
                }
                Err(OpError::Locked { .. }) => {
                    prop_assert!(!self.flights.is_empty());
                    flight.decision = Some(Decision::Abort);
                    self.flights.push(flight);
                    let last = self.flights.len() - 1;
                    self.finish(last, u8::MAX)?;
                    self.flights.pop();
                    return Ok(false);
                }
                other => panic!("{other:?}"),
            }
            prop_assert_eq!(self.shard(*group, command), answer, "preparing it again says the same");
        }
        self.flights.push(flight);
        Ok(true)
    }

    /// Decides a transaction, and does in the model what it comes to.
    fn decide(&mut self, at: usize, commit: bool) -> Result<(), TestCaseError> {
        if self.flights[at].decision.is_some() {
            return Ok(());
        }
        let stamp = self.next_stamp();
        let flight = &self.flights[at];
        let transactions = flight.errors[0].len();
        let bits = (0..transactions).map(|number| {
            (0..flight.verdicts[0][number].len())
                .all(|compare| Verdict::all(flight.verdicts.iter().map(|shard| shard[number][compare])))
        });
        let path: Vec<bool> = bits.collect();
        let errors = (0..transactions)
            .map(|number| [0, 1].map(|branch| flight.errors.iter().any(|shard| shard[number][branch].is_some())));
        let errors: Vec<_> = errors.collect();
        let free = path_is_free(&flight.whole, &mut path.iter().copied(), &mut errors.into_iter(), true);
        let decision = if commit && free {
            Decision::Commit {
                revision: Revision(stamp),
                path,
            }
        } else {
            Decision::Abort
        };
        if commit {
            let (_, result) = self.model.command(&Command::Txn(flight.whole.clone()), Some(stamp));
            prop_assert_eq!(result.is_ok(), free);
        }
        let (txn, coordinator) = (flight.id, flight.shards[0]);
        self.flights[at].decision = Some(decision.clone());
        let decided = self.shard(
            coordinator,
            ShardCommand::Decide {
                txn,
                decision: decision.clone(),
            },
        );
        prop_assert_eq!(decided, Ok(ShardResult::Decided(decision.clone())));
        let late = ShardCommand::Decide {
            txn,
            decision: Decision::Abort,
        };
        prop_assert_eq!(
            self.shard(coordinator, late),
            Ok(ShardResult::Decided(decision)),
            "the first one stands"
        );
        Ok(())
    }

    /// Brings a decision to some of the shards.
    fn finish(&mut self, at: usize, shards: u8) -> Result<(), TestCaseError> {
        let flight = &self.flights[at];
        let (txn, decision) = (flight.id, flight.decision.clone().unwrap());
        let groups = flight.shards.clone();
        let mut results = Vec::new();
        for (number, group) in groups.iter().enumerate() {
            if shards >> (number % 8) & 1 == 1 {
                let decision = decision.clone();
                match self.shard(*group, ShardCommand::Finish { txn, decision }) {
                    Ok(ShardResult::Finished(result)) => results.extend(result),
                    other => panic!("{other:?}"),
                }
            }
        }
        if shards == u8::MAX {
            self.shard(groups[0], ShardCommand::Forget { txn }).unwrap();
        }
        Ok(())
    }

    fn finish_all(&mut self) -> Result<(), TestCaseError> {
        while !self.flights.is_empty() {
            self.decide(0, true)?;
            self.finish(0, u8::MAX)?;
            self.flights.remove(0);
        }
        Ok(())
    }

    fn compact(&mut self, revision: i64) -> Result<(), TestCaseError> {
        let revision = revision.min(self.model.current);
        if !self.flights.is_empty() || revision <= self.model.compacted {
            return Ok(());
        }
        for group in self.shards() {
            let (_, result) = self.give(group, Command::Compact(Revision(revision)), None);
            prop_assert_eq!(result, Ok(OpResult::Compact));
        }
        self.model.compacted = revision;
        Ok(())
    }

    fn split(&mut self, shard: u8, at: &Bytes, slot: u8) -> Result<(), TestCaseError> {
        let shards = self.shards();
        let group = shards[usize::from(shard) % shards.len()];
        let territory = self.territory(group);
        let at = match territory.partitioning {
            Partitioning::Range => at.clone(),
            Partitioning::Hash { slots, .. } => Bytes::copy_from_slice(&(u32::from(slot) % slots).to_be_bytes()),
        };
        let child = GroupId(self.logs.keys().max().unwrap().0 + 1);
        let (epoch, possible) = (territory.epoch, territory.cut(&at).is_some());
        let command = ShardCommand::Split { epoch, at, child };
        match self.shard(group, command.clone()) {
            Ok(ShardResult::Split) => {
                prop_assert!(possible && self.groups.contains_key(&child));
                prop_assert_eq!(self.shard(group, command), Ok(ShardResult::Split));
            }
            Err(OpError::Locked { .. }) => prop_assert!(!self.flights.is_empty()),
            Err(OpError::Stale) => prop_assert!(!possible),
            other => panic!("{other:?}"),
        }
        Ok(())
    }

    fn merge(&mut self, shard: u8) -> Result<(), TestCaseError> {
        let shards = self.shards();
        if shards.len() < 2 || !self.flights.is_empty() {
            return Ok(());
        }
        let at = usize::from(shard) % (shards.len() - 1);
        let (left, right) = (shards[at], shards[at + 1]);
        self.operation += 1;
        let operation = self.operation;
        let Ok(ShardResult::Sealed { at: position }) = self.shard(right, ShardCommand::Seal { operation }) else {
            panic!("not sealed")
        };
        let (mut territory, its) = (self.territory(left), self.territory(right));
        territory.epoch = territory.epoch.max(its.epoch) + 1;
        territory.span.end = its.span.end;
        let command = ShardCommand::Absorb {
            operation,
            from: right,
            position,
            territory,
        };
        prop_assert_eq!(self.shard(left, command), Ok(ShardResult::Absorbed));
        self.bury(right);
        Ok(())
    }

    fn bounce(&mut self, shard: u8) {
        let shards = self.shards();
        let group = shards[usize::from(shard) % shards.len()];
        let keys = self.groups.remove(&group).unwrap();
        let chunks: Vec<_> = keys.mvcc.export().unwrap().map(Result::unwrap).collect();
        let snapshots = self.snapshots.entry(group).or_default();
        snapshots.push((keys.mvcc.applied().position.index, chunks.clone()));
        keys.mvcc.retire().unwrap();
        // Not to the end always: a crash may come first.
        for _ in 0..shard {
            if keys.mvcc.compact_step().unwrap() == Sweep::Done {
                break;
            }
        }
        drop(keys);
        self.import(group, chunks);
    }

    /// All shards' part of everything at a revision. What is locked is read as it is, if nothing of it is to come.
    fn everything(&self, revision: Option<i64>, locks: Locks) -> Result<Map, OpError> {
        let mut found = Map::new();
        for group in self.shards() {
            let territory = self.territory(group);
            let range = Range {
                revision: revision.map(Revision),
                ..Range::of(clip(&KeyRange::From(Bytes::new()), &territory))
            };
            let answer = self.groups[&group].mvcc.range_with(&range, locks).unwrap();
            let (_, result) = answer?;
            assert_eq!(result.count, result.kvs.len() as i64);
            found.extend(result.kvs.into_iter().map(|kv| (kv.key.clone(), kv)));
        }
        Ok(found)
    }

    fn read(&self, range: &Range) -> Result<(), TestCaseError> {
        let expected = self.model.range(range, self.model.now());
        if expected == Err(OpError::FutureRevision) {
            return Ok(());
        }
        for group in self.shards() {
            let territory = self.territory(group);
            let answer = self.groups[&group].mvcc.range(range).unwrap().map(|(_, result)| result);
            match answer {
                Err(OpError::WrongShard) => prop_assert!(!territory.owns_all(&range.keys)),
                Err(OpError::Locked { .. }) => prop_assert!(!self.flights.is_empty()),
                answer => {
                    // An empty range is anybody's.
                    prop_assert!(territory.owns_all(&range.keys));
                    prop_assert_eq!(&answer, &expected);
                }
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let mut end = Some(Bytes::new());
        for group in self.shards() {
            let Span { start, end: next } = self.territory(group).span;
            prop_assert_eq!(Some(start), end, "a gap or an overlap before {}", group);
            end = next;
        }
        prop_assert_eq!(end, None);
        match self.everything(None, Locks::Heed) {
            Ok(found) => prop_assert_eq!(&found, self.model.now()),
            Err(error) => prop_assert!(
                matches!(error, OpError::Locked { .. }) && !self.flights.is_empty(),
                "{}",
                error
            ),
        }
        if self.flights.is_empty() {
            let keys: u64 = self
                .shards()
                .iter()
                .map(|group| self.groups[group].mvcc.size().unwrap().keys)
                .sum();
            prop_assert_eq!(keys, self.model.now().len() as u64);
        }
        Ok(())
    }
}

/// Runs the steps; `crash` says what is left of an engine.
pub fn run<S: StateStore>(
    steps: Vec<Step>,
    partitioning: Partitioning,
    store: S,
    crash: impl Fn(&S, u8) -> S,
) -> Result<(), TestCaseError> {
    let mut world = World::new(store, partitioning);
    for step in steps {
        match step {
            Step::Run(command) => world.run(command)?,
            Step::Misroute(command, shard) => {
                let shards = world.shards();
                let group = shards[usize::from(shard) % shards.len()];
                let elsewhere = match &command {
                    Command::Put(put) => !world.territory(group).owns(&put.key),
                    Command::Delete(delete) => !world.territory(group).owns_all(&delete.keys),
                    Command::Txn(_) | Command::Compact(_) | Command::Shard(_) => false,
                };
                if elsewhere {
                    let stamp = world.next_stamp();
                    let (_, result) = world.give(group, command, Some(stamp));
                    prop_assert_eq!(result, Err(OpError::WrongShard));
                }
            }
            Step::Prepare(txn) => drop(world.prepare(txn)?),
            Step::Decide { commit, finish } => {
                for at in 0..world.flights.len() {
                    world.decide(at, commit)?;
                    world.finish(at, finish & !1)?;
                }
            }
            Step::Finish => world.finish_all()?,
            Step::Read(range) => world.read(&range)?,
            Step::Split(shard, at, slot) => world.split(shard, &at, slot)?,
            Step::Merge(shard) => world.merge(shard)?,
            Step::Bounce(shard) => world.bounce(shard),
            Step::Compact(revision) => world.compact(revision)?,
            Step::Sweep(steps) => {
                for keys in world.groups.values() {
                    for _ in 0..steps {
                        if keys.mvcc.compact_step().unwrap() != Sweep::More {
                            break;
                        }
                    }
                }
            }
            Step::WriteOut(shard) => {
                let shards = world.shards();
                let group = shards[usize::from(shard) % shards.len()];
                world.groups[&group].mvcc.write_out().unwrap();
            }
            Step::Crash(kept) => {
                let store = crash(&world.store, kept);
                world.recover(store);
            }
        }
        world.check()?;
    }
    world.finish_all()?;
    // Everything still readable reads as it was, before and after whatever a sweep drops, and after a crash that keeps all.
    for pass in 0..3 {
        for revision in world.model.compacted.max(1)..=world.stamp {
            let found = world.everything(Some(revision), Locks::Heed);
            prop_assert_eq!(
                found.as_ref(),
                Ok(world.model.at(revision)),
                "revision {} in pass {}",
                revision,
                pass
            );
        }
        if pass == 0 {
            world.groups.values().for_each(Keys::sweep);
        } else {
            for keys in world.groups.values() {
                keys.mvcc.write_out().unwrap();
            }
            let store = crash(&world.store, u8::MAX);
            world.recover(store);
        }
    }
    Ok(())
}
