//! Txn (2.3): comparisons, branches, and never half a transaction.

use crate::common::*;
use crate::ranged;
use althing_store::ops::{
    Command, CompareOp, CompareTarget, KeyRange, Op, OpError, OpResult, Put, Range, Revision, Txn,
};
use bytes::Bytes;

#[test]
fn no_comparisons_mean_success() {
    let (_, succeeded, _) = keys().txn(Txn {
        success: vec![put_op("a", "1")],
        ..Txn::default()
    });
    assert!(succeeded);
}

#[test]
fn comparisons_hold_as_etcd_says() {
    use CompareOp::{Equal, Greater, Less, NotEqual};
    use CompareTarget::{Create, Lease, Mod, Value, Version};
    let keys = keys();
    keys.put("a", "m");
    keys.put("b", "m");
    keys.put("b", "n");
    let cases = [
        (single("a"), Equal, Version(1), true),
        (single("a"), Equal, Create(2), true),
        (single("b"), Equal, Mod(4), true),
        (single("b"), Greater, Mod(3), true),
        (single("b"), Greater, Mod(4), false),
        (single("b"), Less, Mod(5), true),
        (single("b"), NotEqual, Create(3), false),
        (single("a"), Equal, Lease(0), true),
        (single("a"), Equal, Value(bytes("m")), true),
        (single("a"), Less, Value(bytes("n")), true),
        (single("a"), NotEqual, Value(bytes("m")), false),
        // A missing key compares as 0, but its value with nothing.
        (single("x"), Equal, Version(0), true),
        (single("x"), Equal, Create(0), true),
        (single("x"), Less, Mod(1), true),
        (single("x"), Equal, Lease(0), true),
        (single("x"), Equal, Value(Bytes::new()), false),
        (single("x"), NotEqual, Value(bytes("m")), false),
        // Over a range it must hold for every key; an empty range is a missing key.
        (all(), Greater, Create(1), true),
        (all(), Equal, Version(1), false),
        (all(), Equal, Value(bytes("m")), false),
        (between("x", "z"), Equal, Create(0), true),
        (between("x", "z"), NotEqual, Value(bytes("m")), false),
    ];
    for (range, op, target, expected) in cases {
        let txn = Txn {
            compares: vec![compare(range, op, target)],
            ..Txn::default()
        };
        let answer = keys.mvcc.read_txn(&txn).unwrap().unwrap().1;
        assert!(
            matches!(answer, OpResult::Txn { succeeded, .. } if succeeded == expected),
            "{txn:?}"
        );
    }
}

#[test]
fn all_comparisons_must_hold_and_the_failure_branch_runs_otherwise() {
    let keys = keys();
    keys.put("a", "1");
    let txn = Txn {
        compares: vec![
            compare(single("a"), CompareOp::Equal, CompareTarget::Version(1)),
            compare(single("a"), CompareOp::Equal, CompareTarget::Version(2)),
        ],
        success: vec![put_op("won", "")],
        failure: vec![put_op("lost", ""), range_op(single("a"))],
    };
    let (revision, succeeded, results) = keys.txn(txn);
    assert_eq!((revision, succeeded), (3, false));
    assert_eq!(ranged(&results[1].1), ["a=1@2/2/1"]);
    assert_eq!((keys.get("won"), keys.get("lost").is_some()), (None, true));
}

#[test]
fn operations_see_what_earlier_ones_of_the_same_txn_did() {
    let keys = keys();
    keys.put("a", "old");
    let txn = Txn {
        success: vec![
            range_op(all()),
            put_op("b", "new"),
            range_op(all()),
            delete_op(single("a")),
            range_op(all()),
            put_op("c", "newer"),
            Op::Range(Range {
                limit: Some(1),
                ..Range::of(all())
            }),
        ],
        ..Txn::default()
    };
    let (revision, _, results) = keys.txn(txn);
    assert_eq!(revision, 3);
    let revisions: Vec<_> = results.iter().map(|(revision, _)| *revision).collect();
    assert_eq!(
        revisions,
        [2, 3, 3, 3, 3, 3, 3],
        "the first range shows the revision before the first change"
    );
    assert_eq!(ranged(&results[0].1), ["a=old@2/2/1"]);
    assert_eq!(ranged(&results[2].1), ["a=old@2/2/1", "b=new@3/3/1"]);
    assert_eq!(ranged(&results[4].1), ["b=new@3/3/1"]);
    assert_eq!(ranged(&results[6].1), ["b=new@3/3/1"]);
    assert!(matches!(&results[6].1, OpResult::Range(range) if range.more && range.count == 2));
}

#[test]
fn nested_comparisons_see_the_state_before_the_txn() {
    let keys = keys();
    let inner = Txn {
        compares: vec![compare(single("a"), CompareOp::Equal, CompareTarget::Version(0))],
        success: vec![put_op("inner", "yes")],
        failure: vec![put_op("inner", "no")],
    };
    let txn = Txn {
        success: vec![put_op("a", "1"), Op::Txn(inner), range_op(all())],
        ..Txn::default()
    };
    let (_, _, results) = keys.txn(txn);
    assert!(
        matches!(&results[1], (0, OpResult::Txn { succeeded: true, .. })),
        "{results:?}"
    );
    assert_eq!(ranged(&results[2].1), ["a=1@2/2/1", "inner=yes@2/2/1"]);
}

#[test]
fn two_nested_txns_take_their_own_branches() {
    let keys = keys();
    keys.put("a", "1");
    let nested = |version: i64, name: &str| {
        Op::Txn(Txn {
            compares: vec![compare(single("a"), CompareOp::Equal, CompareTarget::Version(version))],
            success: vec![Op::Txn(Txn {
                success: vec![put_op(name, "success")],
                ..Txn::default()
            })],
            failure: vec![put_op(name, "failure")],
        })
    };
    keys.txn(Txn {
        success: vec![nested(1, "x"), nested(2, "y"), nested(1, "z")],
        ..Txn::default()
    });
    let found = show(&keys.range(&Range::of(KeyRange::From(bytes("x")))).unwrap().kvs);
    assert_eq!(found, ["x=success@3/3/1", "y=failure@3/3/1", "z=success@3/3/1"]);
}

#[test]
fn a_txn_is_checked_before_it_runs_so_that_it_never_half_fails() {
    let keys = keys();
    keys.put("a", "1");
    keys.put("a", "2");
    keys.compact(3).unwrap();
    let range_at = |revision| {
        Op::Range(Range {
            revision: Some(Revision(revision)),
            ..Range::of(all())
        })
    };
    let bad = [
        (range_at(9), OpError::FutureRevision),
        (range_at(4), OpError::FutureRevision),
        (range_at(2), OpError::Compacted),
        (
            Op::Put(Put {
                value: None,
                ..put("nope", "")
            }),
            OpError::KeyNotFound,
        ),
        (
            Op::Put(Put {
                lease: None,
                ..put("nope", "")
            }),
            OpError::KeyNotFound,
        ),
        (
            Op::Put(Put {
                lease: Some(7),
                ..put("b", "")
            }),
            OpError::LeaseNotFound,
        ),
    ];
    for (op, error) in bad {
        let nested = Op::Txn(Txn {
            success: vec![op.clone()],
            ..Txn::default()
        });
        for last in [op, nested] {
            let txn = Txn {
                success: vec![put_op("x", "1"), last],
                ..Txn::default()
            };
            assert_eq!(keys.run(Command::Txn(txn)), (3, Err(error)));
        }
        assert_eq!((keys.get("x"), keys.revision()), (None, 3));
    }
    // On the branch that is not taken nothing is checked.
    let txn = Txn {
        success: vec![put_op("x", "1")],
        failure: vec![range_at(9)],
        ..Txn::default()
    };
    assert_eq!(keys.txn(txn).0, 4);
}

#[test]
fn a_failure_that_no_check_foresees_takes_everything_back() {
    let keys = keys();
    keys.put("a", "1");
    // The API refuses such a txn (it deletes and puts one key); the state machine still must not tear.
    let txn = Txn {
        success: vec![
            put_op("b", "1"),
            delete_op(single("a")),
            Op::Put(Put {
                value: None,
                ..put("a", "")
            }),
        ],
        ..Txn::default()
    };
    assert_eq!(keys.run(Command::Txn(txn)), (2, Err(OpError::KeyNotFound)));
    assert_eq!(show(&keys.range(&Range::of(all())).unwrap().kvs), ["a=1@2/2/1"]);
    assert_eq!(keys.put("a", "2"), 3);
    assert_eq!(show(&[keys.get("a").unwrap()]), ["a=2@2/3/2"]);
}

#[test]
fn ignore_value_keeps_the_value_and_ignore_lease_the_lease() {
    let keys = keys();
    keys.put("a", "kept");
    assert_eq!(
        keys.run(Command::Put(Put {
            value: None,
            ..put("a", "")
        })),
        (3, Ok(OpResult::Put { prev: None }))
    );
    assert_eq!(show(&[keys.get("a").unwrap()]), ["a=kept@2/3/2"]);
    let kept_lease = Command::Put(Put {
        lease: None,
        ..put("a", "new")
    });
    assert_eq!(keys.run(kept_lease), (4, Ok(OpResult::Put { prev: None })));
    assert_eq!(show(&[keys.get("a").unwrap()]), ["a=new@2/4/3"]);
    for put in [
        Put {
            value: None,
            ..put("b", "")
        },
        Put {
            lease: None,
            ..put("b", "")
        },
    ] {
        assert_eq!(keys.run(Command::Put(put)), (4, Err(OpError::KeyNotFound)));
    }
}

#[test]
fn a_put_with_an_unknown_lease_changes_nothing() {
    let keys = keys();
    assert_eq!(
        keys.run(Command::Put(Put {
            lease: Some(5),
            ..put("a", "1")
        })),
        (1, Err(OpError::LeaseNotFound))
    );
    assert_eq!((keys.get("a"), keys.revision()), (None, 1));
}

#[test]
fn a_read_only_txn_reads_one_state() {
    let keys = keys();
    keys.put("a", "1");
    keys.put("a", "2");
    let txn = Txn {
        success: vec![
            range_op(single("a")),
            Op::Range(Range {
                revision: Some(Revision(2)),
                ..Range::of(single("a"))
            }),
            Op::Txn(Txn {
                success: vec![range_op(all())],
                ..Txn::default()
            }),
        ],
        ..Txn::default()
    };
    let (revision, OpResult::Txn { results, .. }) = keys.mvcc.read_txn(&txn).unwrap().unwrap() else {
        panic!("no txn")
    };
    assert_eq!(revision, Revision(3));
    assert_eq!(results[0].0, Revision(3));
    assert_eq!(ranged(&results[0].1), ["a=2@2/3/2"]);
    assert_eq!(ranged(&results[1].1), ["a=1@2/2/1"]);
    let future = Txn {
        success: vec![Op::Range(Range {
            revision: Some(Revision(4)),
            ..Range::of(all())
        })],
        ..Txn::default()
    };
    assert_eq!(keys.mvcc.read_txn(&future).unwrap(), Err(OpError::FutureRevision));
}
