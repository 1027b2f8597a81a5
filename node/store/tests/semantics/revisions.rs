//! Revisions (2.1): what counts as a change, and what a key remembers.

use crate::common::*;
use althing_store::ops::{Command, Delete, OpResult, Put, Range, Txn};

#[test]
fn a_fresh_keyspace_is_at_revision_one() {
    assert_eq!(keys().revision(), 1);
}

#[test]
fn each_mutating_request_is_one_revision() {
    let keys = keys();
    assert_eq!(keys.put("a", "1"), 2);
    assert_eq!(keys.put("a", "1"), 3, "an identical value is a change all the same");
    assert_eq!(keys.delete(single("a")), (4, 1));
}

#[test]
fn create_revision_stays_and_version_counts_until_the_key_is_deleted() {
    let keys = keys();
    keys.put("a", "x");
    keys.put("a", "y");
    assert_eq!(show(&[keys.get("a").unwrap()]), ["a=y@2/3/2"]);
    keys.delete(single("a"));
    assert_eq!(keys.get("a"), None);
    keys.put("a", "z");
    assert_eq!(show(&[keys.get("a").unwrap()]), ["a=z@5/5/1"]);
}

#[test]
fn a_delete_that_matches_nothing_changes_no_revision() {
    let keys = keys();
    keys.put("a", "1");
    assert_eq!(keys.delete(between("b", "c")), (2, 0));
    assert_eq!(keys.revision(), 2);
}

#[test]
fn a_txn_that_changes_nothing_changes_no_revision() {
    let keys = keys();
    keys.put("a", "1");
    let txn = Txn {
        success: vec![range_op(all()), delete_op(single("nope"))],
        ..Txn::default()
    };
    let (revision, succeeded, results) = keys.txn(txn);
    assert_eq!((revision, succeeded, keys.revision()), (2, true, 2));
    assert_eq!(
        results.iter().map(|(revision, _)| *revision).collect::<Vec<_>>(),
        [2, 2]
    );
}

#[test]
fn all_changes_of_a_request_share_its_revision() {
    let keys = keys();
    let txn = Txn {
        success: vec![put_op("b", "1"), put_op("a", "2")],
        ..Txn::default()
    };
    assert_eq!(keys.txn(txn).0, 2);
    assert_eq!(
        show(&keys.range(&Range::of(all())).unwrap().kvs),
        ["a=2@2/2/1", "b=1@2/2/1"]
    );
    assert_eq!(keys.delete(all()), (3, 2));
}

#[test]
fn prev_kv_is_the_key_before_and_nothing_for_a_new_key() {
    let keys = keys();
    let with_prev = |value: &str| {
        Command::Put(Put {
            prev_kv: true,
            ..put("a", value)
        })
    };
    assert_eq!(keys.run(with_prev("1")).1, Ok(OpResult::Put { prev: None }));
    let Ok(OpResult::Put { prev: Some(prev) }) = keys.run(with_prev("2")).1 else {
        panic!("no prev")
    };
    assert_eq!(show(&[prev]), ["a=1@2/2/1"]);
    keys.put("b", "x");
    let deleted = keys
        .run(Command::Delete(Delete {
            keys: all(),
            prev_kv: true,
        }))
        .1;
    let Ok(OpResult::Delete { deleted: 2, prev }) = deleted else {
        panic!("{deleted:?}")
    };
    assert_eq!(show(&prev), ["a=2@2/3/2", "b=x@4/4/1"]);
    assert_eq!(
        keys.run(with_prev("3")).1,
        Ok(OpResult::Put { prev: None }),
        "a deleted key is not there"
    );
}
