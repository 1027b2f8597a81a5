//! A keyspace of several shards against one state machine with all the keys: the same requests at the same revisions must have the
//! same answers.
#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a panic is this test's failure"
)]

#[path = "../../store/tests/common/arb.rs"]
mod arb;
mod common;

use althing_raft::ids::{GroupId, MemberId};
use althing_shard::map::RouteTable;
use althing_shard::route::{Parts, Plan, READ_SHARDS_MAX, Request, RouteError, TXN_SHARDS_MAX, plan};
use althing_shard::txn::{
    self, Failure, Input, Order, Output, Propose, ReadInput, ReadOutput, SnapshotRead, Transaction,
};
use althing_store::ops::{
    Command, Delete, KeyRange, Op, OpError, OpResult, Put, Range, Revision, ShardCommand, Txn, TxnId,
};
use althing_store::partition::Partitioning;
use bytes::Bytes;
use common::{FIRST, Shard, flat, shards, table};
use proptest::prelude::*;
use std::collections::BTreeMap;

type Answer = Result<(Revision, OpResult), OpError>;

struct Keyspace {
    table: RouteTable,
    shards: BTreeMap<GroupId, Shard>,
    /// Transactions over several shards so far.
    spread: u64,
}

impl Keyspace {
    fn new(table: RouteTable) -> Self {
        let shards = shards(&table);
        Self {
            table,
            shards,
            spread: 0,
        }
    }

    fn run(&mut self, command: &Command, stamp: Revision) -> Answer {
        match plan(&self.table, Request::Command(command)).unwrap() {
            Plan::One(group) => {
                let (revision, result) = self.shards[&group].apply(command.clone(), Some(stamp));
                result.map(|result| (revision, result))
            }
            Plan::TwoPhase(parts) => self.spread(parts, stamp),
            Plan::Everywhere(groups) => {
                assert!(groups.iter().eq(self.table.shards().iter().map(|route| &route.group)));
                let answers = groups
                    .iter()
                    .map(|group| self.shards[group].apply(command.clone(), None).1);
                let answers: Vec<_> = answers.collect();
                assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{answers:?}");
                answers[0].clone().map(|result| (stamp, result))
            }
            Plan::Snapshot(parts) => panic!("a write as a read: {parts:?}"),
        }
    }

    /// Two phases, without anything in between.
    fn spread(&mut self, parts: Parts, revision: Revision) -> Answer {
        self.spread += 1;
        assert!(parts.each().len() > 1);
        let id = TxnId {
            member: MemberId(1),
            nonce: 1,
            number: self.spread,
        };
        let order = if self.spread.is_multiple_of(2) {
            Order::Together
        } else {
            Order::InTurn
        };
        let (mut transaction, mut todo) = Transaction::new(id, parts, order);
        let mut answers = Vec::new();
        while let Some(output) = todo.pop() {
            let input = match output {
                Output::Propose(Propose { group, asked, command }) => {
                    let answer = match self.shards[&group].shard(command) {
                        Ok(result) => txn::Answer::Did(result),
                        Err(error) => txn::Answer::Refused(error),
                    };
                    Input::Answered { group, asked, answer }
                }
                Output::Stamp => Input::Stamped(Some(revision)),
                Output::Answer(answer) => {
                    answers.push(answer);
                    continue;
                }
            };
            transaction.step(input, &mut todo);
        }
        assert!(transaction.is_done() && answers.len() == 1, "{transaction:?}");
        for shard in self.shards.values() {
            assert_eq!((shard.0.prepared(), shard.0.decided()), (vec![], vec![]));
        }
        refusal(answers.remove(0))
    }

    /// What a snapshot at a revision finds.
    fn read(&self, request: Request<'_>, newest: Revision) -> Answer {
        let parts = match plan(&self.table, request).unwrap() {
            Plan::Snapshot(parts) => parts,
            other => panic!("{other:?}"),
        };
        let (mut read, mut todo) = SnapshotRead::new(parts);
        let mut answers = Vec::new();
        while let Some(output) = todo.pop() {
            let input = match output {
                ReadOutput::Newest => ReadInput::Newest(Some(newest)),
                ReadOutput::Read { group, ranges } => {
                    let mut found = ranges.iter().map(|range| self.shards[&group].0.range(range).unwrap());
                    let answer = found.try_fold(Vec::new(), |mut all, found| {
                        all.push(found?.1);
                        Ok(all)
                    });
                    let answer = Some(answer);
                    ReadInput::Answered { group, answer }
                }
                ReadOutput::Blocked { .. } => panic!("nothing is locked"),
                ReadOutput::Answer(answer) => {
                    answers.push(answer);
                    continue;
                }
            };
            read.step(input, &mut todo);
        }
        assert!(read.is_done() && answers.len() == 1, "{read:?}");
        refusal(answers.remove(0))
    }
}

/// What a client may be told where nothing goes wrong.
fn refusal(answer: Result<(Revision, OpResult), Failure>) -> Answer {
    answer.map_err(|failure| match failure {
        Failure::Refused(error) => error,
        other => panic!("{other:?}"),
    })
}

#[derive(Clone, Debug)]
enum Step {
    Run { command: Command, gap: i64 },
    Read(Range),
    ReadTxn(Txn),
}

/// What etcd never lets through: a put of a key that the same transaction deletes, which would keep a value that is gone.
fn keeps_what_it_deletes(command: &Command) -> bool {
    fn collect<'t>(txn: &'t Txn, kept: &mut Vec<&'t Bytes>, deleted: &mut Vec<&'t KeyRange>) {
        for op in txn.success.iter().chain(&txn.failure) {
            match op {
                Op::Put(put) if put.value.is_none() || put.lease.is_none() => kept.push(&put.key),
                Op::Delete(delete) => deleted.push(&delete.keys),
                Op::Txn(inner) => collect(inner, kept, deleted),
                Op::Range(_) | Op::Put(_) => {}
            }
        }
    }
    let (mut kept, mut deleted) = (Vec::new(), Vec::new());
    if let Command::Txn(txn) = command {
        collect(txn, &mut kept, &mut deleted);
    }
    kept.iter().any(|key| deleted.iter().any(|keys| keys.contains(key)))
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let command = arb::command().prop_filter("no client sends it", |command| !keeps_what_it_deletes(command));
    let run = (command, 1..3i64).prop_map(|(command, gap)| Step::Run { command, gap });
    let look = arb::txn().prop_map(|mut txn| {
        only_look(&mut txn);
        Step::ReadTxn(txn)
    });
    proptest::collection::vec(
        prop_oneof![6 => run, 3 => arb::range().prop_map(Step::Read), 1 => look],
        1..30,
    )
}

/// Makes reads of all writes.
fn only_look(txn: &mut Txn) {
    for op in txn.success.iter_mut().chain(&mut txn.failure) {
        match op {
            Op::Put(put) => *op = Op::Range(Range::of(KeyRange::Single(put.key.clone()))),
            Op::Delete(delete) => *op = Op::Range(Range::of(delete.keys.clone())),
            Op::Txn(inner) => only_look(inner),
            Op::Range(_) => {}
        }
    }
}

/// The same answer as of another revision of the keyspace.
fn as_of(newest: Revision, result: OpResult) -> OpResult {
    match result {
        OpResult::Txn { succeeded, results } => {
            let results = results.into_iter().map(|(revision, result)| {
                let revision = if revision.0 == 0 { revision } else { newest };
                (revision, as_of(newest, result))
            });
            let results = results.collect();
            OpResult::Txn { succeeded, results }
        }
        other => other,
    }
}

/// Reads at a revision that was not given out are refused by whoever knows the sequencer, not by a shard.
fn asks_the_future(result: &Answer, expected: &Answer) -> bool {
    *result == Err(OpError::FutureRevision) && *expected != Err(OpError::FutureRevision)
}

fn by_range() -> impl Strategy<Value = RouteTable> {
    const CUTS: [&[u8]; 7] = [b"a\0", b"aa", b"b", b"bb", b"c", b"\xff", b"\xff\xff"];
    let cut = proptest::sample::select(&CUTS[..]);
    proptest::collection::vec(cut.prop_map(Bytes::from_static), 0..5).prop_map(|cuts| table(Partitioning::Range, &cuts))
}

fn by_hash() -> impl Strategy<Value = RouteTable> {
    let cuts = proptest::collection::vec(1..16u32, 0..5);
    (cuts, proptest::option::of(1..2u8)).prop_map(|(cuts, prefix_segments)| {
        let cuts: Vec<_> = cuts
            .into_iter()
            .map(|cut| Bytes::copy_from_slice(&cut.to_be_bytes()))
            .collect();
        let slots = 16;
        table(Partitioning::Hash { slots, prefix_segments }, &cuts)
    })
}

/// Whether a request could be refused for more than one reason, of which any may be told.
fn same(flat: &Answer, spread: &Answer) -> bool {
    match (flat, spread) {
        (Err(_), Err(_)) => true,
        (flat, spread) => flat == spread,
    }
}

fn check(table: RouteTable, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let flat = flat(&table);
    let mut keyspace = Keyspace::new(table);
    let mut newest = Revision(1);
    for step in steps {
        match step {
            Step::Run { command, gap } => {
                if let Command::Compact(revision) = command
                    && revision > newest
                {
                    // The sequencer says that there is no such revision; no shard is asked.
                    continue;
                }
                let stamp = Revision(newest.0 + gap);
                let is_compaction = matches!(command, Command::Compact(_));
                let (revision, result) = flat.apply(command.clone(), (!is_compaction).then_some(stamp));
                let expected = result.map(|result| (if is_compaction { stamp } else { revision }, result));
                let found = keyspace.run(&command, stamp);
                prop_assert!(
                    same(&expected, &found),
                    "{command:?}: {expected:?}, shards said {found:?}"
                );
                if !is_compaction {
                    newest = stamp;
                }
            }
            Step::Read(range) => {
                let at = at(&range, newest);
                let expected = match range.revision {
                    Some(asked) if asked > newest => Err(OpError::FutureRevision),
                    Some(_) | None => flat.0.range(&at).unwrap(),
                };
                let expected = expected.map(|(_, result)| (newest, OpResult::Range(result)));
                prop_assert_eq!(expected, keyspace.read(Request::Range(&range), newest), "{:?}", range);
            }
            Step::ReadTxn(txn) => {
                let expected = flat.0.read_txn(&txn).unwrap();
                let expected = expected.map(|(_, result)| (newest, as_of(newest, result)));
                let found = keyspace.read(Request::ReadTxn(&txn), newest);
                if !asks_the_future(&found, &expected) {
                    prop_assert!(same(&expected, &found), "{txn:?}: {expected:?}, shards said {found:?}");
                }
            }
        }
    }
    for revision in 1..=newest.0 {
        let all = Range {
            revision: Some(Revision(revision)),
            ..Range::of(KeyRange::From(Bytes::new()))
        };
        let expected = flat.0.range(&all).unwrap();
        let expected = expected.map(|(_, result)| (newest, OpResult::Range(result)));
        prop_assert_eq!(expected, keyspace.read(Request::Range(&all), newest), "at {}", revision);
    }
    Ok(())
}

/// The range at the revision that a snapshot of now would read it at.
fn at(range: &Range, newest: Revision) -> Range {
    Range {
        revision: range.revision.filter(|asked| asked.0 > 0).or(Some(newest)),
        ..range.clone()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, max_shrink_iters: 20000, ..ProptestConfig::default() })]

    #[test]
    fn shards_by_range_answer_as_one(table in by_range(), steps in steps()) {
        check(table, steps)?;
    }

    #[test]
    fn shards_by_hash_answer_as_one(table in by_hash(), steps in steps()) {
        check(table, steps)?;
    }
}

fn wide(shards: usize) -> RouteTable {
    let cuts: Vec<_> = (1..shards as u32)
        .map(|cut| Bytes::copy_from_slice(&cut.to_be_bytes()))
        .collect();
    table(Partitioning::Range, &cuts)
}

fn everything() -> KeyRange {
    KeyRange::From(Bytes::new())
}

#[test]
fn too_many_shards_are_refused_before_anything_is_asked() {
    let range = Range::of(everything());
    let delete = Command::Delete(Delete {
        keys: everything(),
        prev_kv: false,
    });
    let most = wide(TXN_SHARDS_MAX);
    assert!(matches!(plan(&most, Request::Command(&delete)), Ok(Plan::TwoPhase(_))));
    let (shards, max) = (TXN_SHARDS_MAX + 1, TXN_SHARDS_MAX);
    let refused = Err(RouteError::TooManyShards { shards, max });
    assert_eq!(plan(&wide(shards), Request::Command(&delete)), refused);
    assert!(matches!(
        plan(&wide(READ_SHARDS_MAX), Request::Range(&range)),
        Ok(Plan::Snapshot(_))
    ));
    let (shards, max) = (READ_SHARDS_MAX + 1, READ_SHARDS_MAX);
    let refused = Err(RouteError::TooManyShards { shards, max });
    assert_eq!(plan(&wide(shards), Request::Range(&range)), refused);
    // Every shard forgets by itself.
    let compact = Command::Compact(Revision(9));
    assert!(
        matches!(plan(&wide(shards), Request::Command(&compact)), Ok(Plan::Everywhere(groups)) if groups.len() == shards)
    );
}

#[test]
fn what_touches_one_shard_or_none_is_cut_for_one() {
    let table = table(Partitioning::Range, &[Bytes::from_static(b"m")]);
    let key = |text: &'static str| Bytes::from_static(text.as_bytes());
    let put = |text| {
        Op::Put(Put {
            key: key(text),
            value: Some(key("v")),
            lease: Some(0),
            prev_kv: false,
        })
    };
    let planned = |success: Vec<Op>| {
        let command = Command::Txn(Txn {
            success,
            ..Txn::default()
        });
        plan(&table, Request::Command(&command)).unwrap()
    };
    assert_eq!(planned(vec![put("a"), put("b")]), Plan::One(FIRST));
    assert_eq!(planned(vec![put("x")]), Plan::One(GroupId(FIRST.0 - 1)));
    assert_eq!(planned(vec![]), Plan::One(FIRST));
    let Plan::TwoPhase(parts) = planned(vec![put("a"), put("x")]) else {
        panic!("two shards");
    };
    let nothing = || Op::Range(Range::of(KeyRange::Between(Bytes::new(), Bytes::new())));
    assert_eq!(parts.each()[&FIRST].success, vec![put("a"), nothing()]);
    assert_eq!(parts.each()[&GroupId(FIRST.0 - 1)].success, vec![nothing(), put("x")]);
    let operation = 1;
    let seal = Command::Shard(ShardCommand::Seal { operation });
    assert_eq!(plan(&table, Request::Command(&seal)), Err(RouteError::NotRouted));
}
