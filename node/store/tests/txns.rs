//! A shard's part in transactions over several shards.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failure of the test")]

mod common;

use althing_raft::ids::{GroupId, MemberId};
use althing_store::ops::{
    Command, CompareOp, CompareTarget, Decision, Delete, KeyRange, Op, OpError, OpResult, Put, Range, Revision,
    RevisionSource, ShardCommand, ShardResult, Territory, Txn, TxnId, Verdict,
};
use althing_store::{ApplyItem, Locks, MemStore, Mvcc, StateStore};
use common::*;

const COORDINATOR: GroupId = GroupId(9);

fn id(number: u64) -> TxnId {
    TxnId {
        member: MemberId(5),
        nonce: 3,
        number,
    }
}

fn locked(number: u64) -> OpError {
    OpError::Locked {
        txn: id(number),
        coordinator: COORDINATOR,
    }
}

fn shard<S: StateStore>(keys: &Keys<S>, command: ShardCommand) -> Result<ShardResult, OpError> {
    let result = keys.run(Command::Shard(command)).1?;
    let OpResult::Shard(result) = result else {
        panic!("{result:?}")
    };
    Ok(result)
}

fn stamped<S: StateStore>(keys: &Keys<S>, command: Command, stamp: i64) -> Result<OpResult, OpError> {
    let stamp = Some(Revision(stamp));
    keys.apply(&[ApplyItem::Command { command, stamp }])
        .remove(0)
        .unwrap()
        .1
}

fn put_at<S: StateStore>(keys: &Keys<S>, key: &str, value: &str, stamp: i64) -> Result<OpResult, OpError> {
    stamped(keys, Command::Put(put(key, value)), stamp)
}

fn prepare<S: StateStore>(keys: &Keys<S>, number: u64, part: Txn) -> Result<ShardResult, OpError> {
    shard(
        keys,
        ShardCommand::Prepare {
            txn: id(number),
            coordinator: COORDINATOR,
            part,
        },
    )
}

fn finish<S: StateStore>(keys: &Keys<S>, number: u64, decision: Decision) -> Result<ShardResult, OpError> {
    let txn = id(number);
    shard(keys, ShardCommand::Finish { txn, decision })
}

fn commit(revision: i64, path: &[bool]) -> Decision {
    Decision::Commit {
        revision: Revision(revision),
        path: path.to_vec(),
    }
}

fn sequenced(store: MemStore) -> Keys<MemStore> {
    let keys = Keys {
        mvcc: Mvcc::open(store, G).unwrap(),
    };
    let territory = Territory {
        epoch: 1,
        ..Territory::default()
    };
    let source = RevisionSource::Sequenced;
    shard(&keys, ShardCommand::Settle { territory, source }).unwrap();
    keys
}

fn puts(key: &str, value: &str) -> Txn {
    Txn {
        success: vec![put_op(key, value)],
        ..Txn::default()
    }
}

#[test]
fn what_is_prepared_is_locked_for_all_but_serializable_reads_and_reads_of_the_past() {
    let keys = sequenced(MemStore::default());
    put_at(&keys, "a", "1", 10).unwrap();
    put_at(&keys, "b", "1", 11).unwrap();
    let part = Txn {
        compares: vec![compare(single("c"), CompareOp::Equal, CompareTarget::Version(0))],
        success: vec![put_op("a", "2"), range_op(between("x", "z"))],
        failure: vec![delete_op(between("m", "n"))],
    };
    prepare(&keys, 1, part).unwrap();
    assert_eq!(keys.mvcc.prepared(), [(id(1), COORDINATOR)]);

    // What may be changed, in whichever branch.
    assert_eq!(put_at(&keys, "a", "3", 20), Err(locked(1)));
    assert_eq!(put_at(&keys, "m1", "3", 21), Err(locked(1)));
    let read = |asked: KeyRange| keys.range(&Range::of(asked)).map(|found| found.count);
    assert_eq!((read(single("a")), read(all())), (Err(locked(1)), Err(locked(1))));
    let txn = Txn {
        success: vec![range_op(single("a"))],
        ..Txn::default()
    };
    assert_eq!(keys.mvcc.read_txn(&txn).unwrap(), Err(locked(1)));
    // What was looked at may be looked at.
    assert_eq!((read(single("c")), read(between("x", "y"))), (Ok(0), Ok(0)));
    assert_eq!(put_at(&keys, "c", "1", 22), Err(locked(1)));
    assert_eq!(put_at(&keys, "y", "1", 23), Err(locked(1)));
    // And all else.
    assert!(put_at(&keys, "b", "2", 24).is_ok());
    assert_eq!(read(single("b")), Ok(1));

    let now = Range::of(single("a"));
    let (_, found) = keys.mvcc.range_with(&now, Locks::Ignore).unwrap().unwrap();
    assert_eq!(show(&found.kvs), ["a=1@10/10/1"]);
    assert!(keys.mvcc.read_txn_with(&txn, Locks::Ignore).unwrap().is_ok());
    let found = keys.mvcc.try_range_with(&now, Locks::Ignore).unwrap().unwrap();
    assert_eq!(found.unwrap().1.count, 1);
    // It comes to a revision after all that was there when it was prepared.
    assert!(keys.get_at("a", 11).unwrap().is_some());
    assert_eq!(keys.get_at("a", 12), Err(locked(1)));

    assert_eq!(finish(&keys, 1, Decision::Abort), Ok(ShardResult::Finished(None)));
    assert_eq!(read(all()), Ok(2));
    assert!(keys.mvcc.prepared().is_empty());
}

#[test]
fn a_coordinator_hears_what_every_branch_would_come_to() {
    let keys = sequenced(MemStore::default());
    put_at(&keys, "a", "1", 10).unwrap();
    put_at(&keys, "aa", "2", 11).unwrap();
    keys.compact(5).unwrap();
    let kept = Op::Put(Put {
        value: None,
        ..put("new", "")
    });
    let leased = Op::Put(Put {
        lease: Some(3),
        ..put("a", "")
    });
    let old = Op::Range(Range {
        revision: Some(Revision(4)),
        ..Range::of(single("a"))
    });
    let inner = Txn {
        compares: vec![compare(
            between("x", "z"),
            CompareOp::Greater,
            CompareTarget::Version(0),
        )],
        success: vec![leased],
        failure: vec![old, kept.clone()],
    };
    let part = Txn {
        compares: vec![
            compare(single("a"), CompareOp::Equal, CompareTarget::Version(1)),
            compare(between("a", "b"), CompareOp::Equal, CompareTarget::Value(bytes("1"))),
            compare(single("b"), CompareOp::Equal, CompareTarget::Version(0)),
        ],
        success: vec![put_op("a", "")],
        failure: vec![Op::Txn(inner), kept],
    };
    let expected = ShardResult::Prepared {
        verdicts: vec![
            vec![Verdict::Holds, Verdict::Fails, Verdict::Empty(true)],
            vec![Verdict::Empty(false)],
        ],
        errors: vec![
            [None, Some(OpError::KeyNotFound)],
            [Some(OpError::LeaseNotFound), Some(OpError::Compacted)],
        ],
    };
    assert_eq!(prepare(&keys, 1, part.clone()), Ok(expected.clone()));
    assert_eq!(prepare(&keys, 1, part), Ok(expected), "and hears it again");
}

#[test]
fn a_comparison_over_several_shards_fails_on_one_or_is_with_a_missing_key_on_all() {
    use Verdict::{Empty, Fails, Holds};
    for (verdicts, holds) in [
        (vec![Holds, Empty(false)], true),
        (vec![Empty(true), Fails], false),
        (vec![Empty(false), Empty(false)], false),
        (vec![Empty(true), Empty(true)], true),
        (vec![Empty(false)], false),
        (vec![], true),
    ] {
        assert_eq!(Verdict::all(verdicts.clone()), holds, "{verdicts:?}");
    }
}

#[test]
fn a_commit_runs_the_branches_that_were_chosen_at_its_revision_and_once() {
    let keys = sequenced(MemStore::default());
    put_at(&keys, "a", "1", 10).unwrap();
    let inner = Txn {
        // It does not hold here; the other shards' comparisons do not matter to this one.
        compares: vec![compare(single("a"), CompareOp::Equal, CompareTarget::Version(7))],
        success: vec![put_op("c", "nested")],
        failure: vec![put_op("c", "other")],
    };
    let part = Txn {
        success: vec![put_op("a", "2"), Op::Txn(inner)],
        failure: vec![Op::Txn(Txn::default()), put_op("z", "1")],
        ..Txn::default()
    };
    prepare(&keys, 1, part.clone()).unwrap();
    assert_eq!(
        finish(&keys, 1, commit(30, &[true, true])),
        Err(OpError::Stale),
        "three transactions"
    );
    // Others go on meanwhile, and are beyond its revision when it is finished.
    put_at(&keys, "b", "1", 40).unwrap();
    let done = finish(&keys, 1, commit(30, &[true, true, false]));
    let Ok(ShardResult::Finished(Some(result))) = done else {
        panic!("{done:?}")
    };
    let OpResult::Txn {
        succeeded: true,
        results,
    } = *result
    else {
        panic!("{result:?}")
    };
    assert_eq!(results[0].0, Revision(30));
    assert_eq!(
        show(&keys.range(&Range::of(all())).unwrap().kvs),
        ["a=2@10/30/2", "b=1@40/40/1", "c=nested@30/30/1"]
    );
    assert_eq!(keys.revision(), 40);
    assert_eq!(keys.get_at("c", 29), Ok(None));

    // Once more, and once more from the beginning.
    let again = || finish(&keys, 1, commit(30, &[true, true, false]));
    assert_eq!(again(), Ok(ShardResult::Finished(None)));
    put_at(&keys, "a", "3", 41).unwrap();
    prepare(&keys, 1, part).unwrap();
    assert_eq!(again(), Ok(ShardResult::Finished(None)));
    assert_eq!(show(&[keys.get("a").unwrap()]), ["a=3@10/41/3"]);
}

#[test]
fn the_first_decision_stands_until_it_is_forgotten() {
    let keys = sequenced(MemStore::default());
    let decide = |number, decision| {
        shard(
            &keys,
            ShardCommand::Decide {
                txn: id(number),
                decision,
            },
        )
    };
    let committed = commit(20, &[true]);
    assert_eq!(
        decide(1, committed.clone()),
        Ok(ShardResult::Decided(committed.clone()))
    );
    assert_eq!(decide(1, Decision::Abort), Ok(ShardResult::Decided(committed.clone())));
    assert_eq!(decide(2, Decision::Abort), Ok(ShardResult::Decided(Decision::Abort)));
    assert_eq!(decide(2, committed.clone()), Ok(ShardResult::Decided(Decision::Abort)));
    // Somebody may still ask, and who takes over would not know.
    let seal = || shard(&keys, ShardCommand::Seal { operation: 1 });
    let kept = OpError::Locked {
        txn: id(1),
        coordinator: G,
    };
    assert_eq!(seal(), Err(kept));
    for number in [1, 2, 3] {
        let forgotten = shard(&keys, ShardCommand::Forget { txn: id(number) });
        assert_eq!(forgotten, Ok(ShardResult::Forgotten));
    }
    assert!(seal().is_ok());
    assert_eq!(
        decide(3, committed),
        Err(OpError::Sealed),
        "a sealed shard decides nothing"
    );
}

#[test]
fn nothing_about_the_shard_changes_while_a_transaction_is_prepared() {
    let keys = sequenced(MemStore::default());
    put_at(&keys, "a", "1", 10).unwrap();
    let part = Txn {
        success: vec![
            put_op("a", "2"),
            Op::Range(Range {
                revision: Some(Revision(8)),
                ..Range::of(single("b"))
            }),
        ],
        ..Txn::default()
    };
    prepare(&keys, 1, part).unwrap();
    let territory = |epoch| Territory {
        epoch,
        ..Territory::default()
    };
    let source = RevisionSource::Sequenced;
    let settle = |epoch| {
        let territory = territory(epoch);
        ShardCommand::Settle { territory, source }
    };
    let split = ShardCommand::Split {
        epoch: 1,
        at: bytes("b"),
        child: GroupId(2),
    };
    for command in [split, ShardCommand::Seal { operation: 1 }, settle(2)] {
        assert_eq!(shard(&keys, command), Err(locked(1)));
    }
    assert!(shard(&keys, settle(1)).is_ok(), "this changes nothing");
    assert_eq!(keys.compact(9), Err(locked(1)), "it is to read at 8");
    assert!(keys.compact(8).is_ok());
    assert_eq!(prepare(&keys, 2, puts("a", "3")), Err(locked(1)));
    finish(&keys, 1, commit(20, &[true])).unwrap();
    assert!(keys.compact(9).is_ok());
    assert!(shard(&keys, settle(2)).is_ok());
}

#[test]
fn a_dense_or_sealed_shard_and_one_without_the_keys_prepare_nothing() {
    let dense = keys();
    assert_eq!(prepare(&dense, 1, puts("a", "1")), Err(OpError::Unstamped));
    let decision = Decision::Abort;
    assert_eq!(
        shard(&dense, ShardCommand::Decide { txn: id(1), decision }),
        Err(OpError::Unstamped)
    );
    let keys = sequenced(MemStore::default());
    let mut territory = keys.mvcc.territory();
    territory.span.end = Some(bytes("m"));
    territory.epoch = 2;
    let source = RevisionSource::Sequenced;
    shard(&keys, ShardCommand::Settle { territory, source }).unwrap();
    assert_eq!(prepare(&keys, 1, puts("z", "1")), Err(OpError::WrongShard));
    shard(&keys, ShardCommand::Seal { operation: 1 }).unwrap();
    assert_eq!(prepare(&keys, 1, puts("a", "1")), Err(OpError::Sealed));
}

#[test]
fn a_sealed_shard_decides_to_abort_and_never_to_commit() {
    let keys = sequenced(MemStore::default());
    shard(&keys, ShardCommand::Seal { operation: 1 }).unwrap();
    let decide = |number, decision| ShardCommand::Decide {
        txn: id(number),
        decision,
    };
    let committed = commit(20, &[true]);
    assert_eq!(shard(&keys, decide(1, committed.clone())), Err(OpError::Sealed));
    let aborted = Ok(ShardResult::Decided(Decision::Abort));
    assert_eq!(shard(&keys, decide(1, Decision::Abort)), aborted);
    assert_eq!(shard(&keys, decide(1, committed.clone())), aborted, "the first stands");
    shard(&keys, ShardCommand::Unseal { operation: 1 }).unwrap();
    assert_eq!(
        shard(&keys, decide(1, committed)),
        aborted,
        "whether it serves again or not"
    );
}

#[test]
fn a_reopened_or_copied_shard_knows_what_is_prepared_decided_and_late() {
    let store = MemStore::default();
    let keys = sequenced(store.clone());
    put_at(&keys, "a", "1", 10).unwrap();
    prepare(&keys, 1, puts("a", "2")).unwrap();
    prepare(&keys, 2, puts("b", "2")).unwrap();
    put_at(&keys, "c", "1", 30).unwrap();
    let committed = commit(20, &[true]);
    shard(
        &keys,
        ShardCommand::Decide {
            txn: id(1),
            decision: committed.clone(),
        },
    )
    .unwrap();
    finish(&keys, 1, committed.clone()).unwrap();
    // What a copy is of, and what is late after that.
    let export = keys.mvcc.export().unwrap();
    finish(&keys, 2, commit(25, &[true])).unwrap();
    let chunks: Vec<_> = export.map(Result::unwrap).collect();

    let copy = Mvcc::open(MemStore::default(), G).unwrap();
    let mut import = copy.import();
    chunks.iter().for_each(|chunk| import.chunk(chunk).unwrap());
    copy.install(import).unwrap();
    let copy = Keys { mvcc: copy };
    assert_eq!(copy.mvcc.prepared(), [(id(2), COORDINATOR)]);
    assert_eq!(copy.range(&Range::of(single("b"))), Err(locked(2)));
    finish(&copy, 2, commit(25, &[true])).unwrap();

    let reopened = Keys {
        mvcc: Mvcc::open(store.fork(), G).unwrap(),
    };
    let size = |keys: &Keys<MemStore>| {
        let size = keys.mvcc.size().unwrap();
        (size.in_use, size.keys, size.revisions)
    };
    let expected = size(&reopened);
    for keys in [&keys, &reopened, &copy] {
        assert_eq!(
            show(&keys.range(&Range::of(all())).unwrap().kvs),
            ["a=2@10/20/2", "b=2@25/25/1", "c=1@30/30/1"]
        );
        assert_eq!(keys.get_at("b", 24), Ok(None));
        let ask = ShardCommand::Decide {
            txn: id(1),
            decision: Decision::Abort,
        };
        assert_eq!(shard(keys, ask), Ok(ShardResult::Decided(committed.clone())));
        assert_eq!(size(keys), expected);
        // Late rows are swept as others are.
        let delete = Delete {
            keys: all(),
            prev_kv: false,
        };
        stamped(keys, Command::Delete(delete), 40).unwrap();
        put_at(keys, "d", "1", 41).unwrap();
        keys.compact(41).unwrap();
        keys.sweep();
        assert_eq!(keys.mvcc.size().unwrap().revisions, 1);
    }
}
