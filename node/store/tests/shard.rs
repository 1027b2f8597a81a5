//! A group as one shard of several: what it owns, where its revisions come from, and what seals it.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failure of the test")]

mod common;

use althing_raft::ids::{Index, LogPosition, Term};
use althing_store::ops::{
    Command, CompareOp, CompareTarget, Delete, KeyRange, Op, OpError, OpResult, Put, Range, Revision, RevisionSource,
    ShardCommand, ShardResult, Span, Territory, Txn,
};
use althing_store::{ApplyItem, MemStore, Mvcc, StateStore, codec};
use bytes::Bytes;
use common::*;

fn territory(start: &str, end: Option<&str>, epoch: u64) -> Territory {
    Territory {
        span: Span {
            start: bytes(start),
            end: end.map(bytes),
        },
        epoch,
        ..Territory::default()
    }
}

fn shard<S: StateStore>(keys: &Keys<S>, command: ShardCommand) -> Result<ShardResult, OpError> {
    let result = keys.run(Command::Shard(command)).1?;
    let OpResult::Shard(result) = result else {
        panic!("{result:?}")
    };
    Ok(result)
}

fn settle<S: StateStore>(keys: &Keys<S>, territory: Territory, source: RevisionSource) -> i64 {
    match shard(keys, ShardCommand::Settle { territory, source }) {
        Ok(ShardResult::Settled { current }) => current.0,
        other => panic!("{other:?}"),
    }
}

fn stamped<S: StateStore>(keys: &Keys<S>, command: Command, stamp: i64) -> (i64, Result<OpResult, OpError>) {
    let stamp = Some(Revision(stamp));
    keys.apply(&[ApplyItem::Command { command, stamp }]).remove(0).unwrap()
}

#[test]
fn what_is_not_wholly_owned_is_refused_at_apply_and_at_read() {
    let keys = keys();
    settle(&keys, territory("b", Some("m"), 1), RevisionSource::Dense);
    let wrong = Err(OpError::WrongShard);
    let run = |command: Command| keys.run(command).1;
    assert_eq!(run(Command::Put(put("a", ""))), wrong);
    assert_eq!(run(Command::Put(put("m", ""))), wrong);
    let delete = |keys: KeyRange| Command::Delete(Delete { keys, prev_kv: false });
    assert_eq!(run(delete(between("c", "n"))), wrong);
    assert!(run(delete(between("b", "m"))).is_ok());
    // Also in the branch that would not run, at any depth, and in a comparison.
    let inner = Txn {
        success: vec![put_op("x", "")],
        ..Txn::default()
    };
    let nested = Txn {
        success: vec![put_op("c", "")],
        failure: vec![Op::Txn(inner)],
        ..Txn::default()
    };
    assert_eq!(run(Command::Txn(nested)), wrong);
    let compares = Txn {
        compares: vec![compare(single("z"), CompareOp::Equal, CompareTarget::Version(0))],
        success: vec![put_op("c", "")],
        ..Txn::default()
    };
    assert_eq!(run(Command::Txn(compares)), wrong);
    assert!(run(Command::Put(put("b", "1"))).is_ok());
    assert_eq!(keys.revision(), 2, "what was refused changed nothing");

    let read = |asked: KeyRange| keys.range(&Range::of(asked)).map(|found| found.count);
    assert_eq!(read(single("b")), Ok(1));
    assert_eq!(read(between("b", "m")), Ok(1));
    assert_eq!(read(single("a")), Err(OpError::WrongShard));
    assert_eq!(read(all()), Err(OpError::WrongShard));
    let part = |end: &str| KeyRange::Part {
        start: Bytes::new(),
        end: None,
        span: territory("b", Some(end), 0).span,
    };
    assert_eq!(read(part("m")), Ok(1), "of everything the part that it owns");
    assert_eq!(
        read(part("n")),
        Err(OpError::WrongShard),
        "the asker thinks it owns more"
    );
    let txn = |asked: KeyRange| Txn {
        success: vec![range_op(asked)],
        ..Txn::default()
    };
    assert!(keys.mvcc.read_txn(&txn(between("c", "d"))).unwrap().is_ok());
    assert_eq!(keys.mvcc.read_txn(&txn(all())).unwrap(), Err(OpError::WrongShard));
}

#[test]
fn only_a_newer_epoch_settles_and_no_key_may_fall_outside() {
    let store = MemStore::default();
    let keys = Keys {
        mvcc: Mvcc::open(store.clone(), G).unwrap(),
    };
    keys.put("k", "1");
    let command = |territory: Territory| ShardCommand::Settle {
        territory,
        source: RevisionSource::Sequenced,
    };
    assert_eq!(shard(&keys, command(territory("l", None, 5))), Err(OpError::Stale));
    let current = Revision(2);
    assert_eq!(
        shard(&keys, command(territory("a", Some("m"), 5))),
        Ok(ShardResult::Settled { current })
    );
    assert_eq!(
        shard(&keys, command(territory("a", None, 5))),
        Ok(ShardResult::Settled { current })
    );
    for keys in [
        &keys,
        &Keys {
            mvcc: Mvcc::open(store, G).unwrap(),
        },
    ] {
        assert_eq!(keys.mvcc.territory(), territory("a", Some("m"), 5));
        assert_eq!(keys.mvcc.source(), RevisionSource::Sequenced);
    }
}

#[test]
fn a_sequenced_shard_takes_the_revision_that_a_command_brings() {
    let keys = keys();
    assert_eq!(
        stamped(&keys, Command::Put(put("a", "")), 9).1,
        Err(OpError::Unstamped),
        "a dense one takes none"
    );
    settle(&keys, territory("", None, 1), RevisionSource::Sequenced);
    assert_eq!(keys.run(Command::Put(put("a", "1"))).1, Err(OpError::Unstamped));
    assert_eq!(stamped(&keys, Command::Put(put("a", "1")), 10).0, 10);
    assert_eq!(
        stamped(&keys, Command::Put(put("a", "2")), 10).1,
        Err(OpError::Unstamped)
    );
    assert_eq!(
        stamped(&keys, Command::Put(put("a", "2")), 7).1,
        Err(OpError::Unstamped)
    );
    assert_eq!(show(&[keys.get("a").unwrap()]), ["a=1@10/10/1"]);

    // What changes nothing leaves a hole; everything before it counts as there.
    let nothing = Command::Delete(Delete {
        keys: single("x"),
        prev_kv: false,
    });
    assert_eq!(stamped(&keys, nothing, 20).0, 19);
    let txn = Txn {
        success: vec![
            Op::Range(Range {
                revision: Some(Revision(24)),
                ..Range::of(all())
            }),
            put_op("b", "1"),
        ],
        ..Txn::default()
    };
    let (revision, result) = stamped(&keys, Command::Txn(txn.clone()), 25);
    let Ok(OpResult::Txn { results, .. }) = result else {
        panic!("{result:?}")
    };
    assert_eq!((revision, results[0].0, results[1].0), (25, Revision(24), Revision(25)));
    assert_eq!(
        stamped(
            &keys,
            Command::Put(Put {
                lease: Some(7),
                ..put("a", "")
            }),
            26
        )
        .1,
        Err(OpError::LeaseNotFound)
    );

    // Whoever reads or compacts at a revision has asked the sequencer whether there is one.
    assert_eq!(keys.get_at("a", 1000).unwrap().unwrap().value, bytes("1"));
    assert_eq!(keys.compact(500), Ok(25));
    assert_eq!(keys.get_at("a", 499), Err(OpError::Compacted));
    assert_eq!(keys.mvcc.compacted_revision(), Some(Revision(500)));
    assert_eq!(stamped(&keys, Command::Put(put("a", "3")), 501).0, 501);
    keys.sweep();
    assert_eq!(show(&[keys.get_at("a", 500).unwrap().unwrap()]), ["a=1@10/10/1"]);
}

#[test]
fn a_sealed_shard_answers_nobody_until_its_operation_unseals_it() {
    let store = MemStore::default();
    let keys = Keys {
        mvcc: Mvcc::open(store.clone(), G).unwrap(),
    };
    keys.put("a", "1");
    let at = LogPosition {
        term: Term(1),
        index: Index(2),
    };
    let seal = |operation| shard(&keys, ShardCommand::Seal { operation });
    assert_eq!(seal(7), Ok(ShardResult::Sealed { at }));
    assert!(matches!(seal(7), Ok(ShardResult::Sealed { at }) if at.index == Index(3)));
    assert_eq!(seal(8), Err(OpError::Sealed));
    let reopened = Keys {
        mvcc: Mvcc::open(store, G).unwrap(),
    };
    for keys in [&keys, &reopened] {
        assert_eq!(keys.mvcc.sealed(), Some(7));
        assert_eq!(keys.range(&Range::of(single("a"))), Err(OpError::Sealed));
        assert_eq!(keys.run(Command::Put(put("a", "2"))).1, Err(OpError::Sealed));
        assert_eq!(keys.compact(1), Err(OpError::Sealed));
        let unseal = |operation| shard(keys, ShardCommand::Unseal { operation });
        assert_eq!(unseal(8), Err(OpError::Stale));
        assert_eq!(
            (unseal(7), unseal(7)),
            (Ok(ShardResult::Unsealed), Ok(ShardResult::Unsealed))
        );
        assert_eq!(keys.put("a", "2"), 3);
    }
}

#[test]
fn tags_tell_what_takes_a_stamp_and_what_ends_a_batch() {
    let encoded = |command: &Command| {
        let mut out = Vec::new();
        codec::encode_command(command, &mut out);
        Bytes::from(out)
    };
    let delete = Delete {
        keys: all(),
        prev_kv: false,
    };
    for command in [
        Command::Put(put("a", "")),
        Command::Delete(delete),
        Command::Txn(Txn::default()),
    ] {
        assert!(codec::needs_stamp(&encoded(&command)) && !codec::ends_batch(&encoded(&command)));
    }
    let seal = Command::Shard(ShardCommand::Seal { operation: 1 });
    let unseal = Command::Shard(ShardCommand::Unseal { operation: 1 });
    for (command, ends) in [(seal, true), (unseal, false), (Command::Compact(Revision(3)), false)] {
        assert!(!codec::needs_stamp(&encoded(&command)));
        assert_eq!(codec::ends_batch(&encoded(&command)), ends);
        assert_eq!(ApplyItem::unstamped(command).ends_batch(), ends);
    }
    assert!(!codec::needs_stamp(&Bytes::new()) && !codec::ends_batch(&Bytes::from_static(b"\x01")));
}
