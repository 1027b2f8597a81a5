//! Compaction (2.6): what is gone at once, and what the sweep deletes later.

use crate::common::*;
use althing_store::ops::{Command, OpError, Range, Revision};
use althing_store::{ApplyItem, MemStore, Mvcc, Sweep};

#[test]
fn compaction_holds_at_once_and_its_own_revision_stays_readable() {
    let keys = keys();
    for value in ["1", "2", "3"] {
        keys.put("a", value);
    }
    assert_eq!(keys.compact(3), Ok(4), "the reply has the current revision");
    for _ in 0..2 {
        assert_eq!(keys.get_at("a", 2), Err(OpError::Compacted));
        assert_eq!(keys.get_at("a", 1), Err(OpError::Compacted));
        assert_eq!(show(&[keys.get_at("a", 3).unwrap().unwrap()]), ["a=2@2/3/2"]);
        assert_eq!(show(&[keys.get_at("a", 4).unwrap().unwrap()]), ["a=3@2/4/3"]);
        keys.sweep();
    }
    assert_eq!(keys.mvcc.compacted_revision(), Some(Revision(3)));
}

#[test]
fn compacting_again_at_or_before_the_same_revision_or_in_the_future_fails() {
    let keys = keys();
    assert_eq!(keys.compact(9), Err(OpError::FutureRevision));
    assert_eq!(keys.compact(0), Ok(1), "a fresh keyspace can be compacted at 0, once");
    assert_eq!(keys.compact(0), Err(OpError::Compacted));
    assert_eq!(keys.compact(1), Ok(1));
    assert_eq!(keys.compact(1), Err(OpError::Compacted));
    assert_eq!(keys.compact(2), Err(OpError::FutureRevision));
    assert_eq!(keys.get_at("a", 1), Ok(None), "revision 1 is still readable");
}

#[test]
fn the_sweep_keeps_what_can_still_be_read_and_drops_the_rest() {
    let keys = keys();
    for round in 0..3 {
        for key in ["a", "b", "c"] {
            keys.put(key, &format!("{key}{round}"));
        }
    }
    keys.delete(single("b")); // 11
    keys.delete(single("c")); // 12
    keys.put("c", "again"); // 13
    assert_eq!(keys.mvcc.size().unwrap().revisions, 12);
    keys.compact(12).unwrap();
    keys.sweep();
    let size = keys.mvcc.size().unwrap();
    // a's last put, c's removal at exactly 12 (a watch may start there), c's put at 13.
    assert_eq!((size.revisions, size.keys), (3, 2));
    assert_eq!(
        show(&keys.range(&Range::of(all())).unwrap().kvs),
        ["a=a2@2/8/3", "c=again@13/13/1"]
    );
    assert_eq!(keys.get_at("c", 12), Ok(None));
    keys.compact(13).unwrap();
    keys.sweep();
    assert_eq!(keys.mvcc.size().unwrap().revisions, 2);
}

#[test]
fn a_long_history_is_swept_in_bounded_steps() {
    let keys = keys();
    let items: Vec<_> = (0..5000)
        .map(|at| ApplyItem::unstamped(Command::Put(put("hot", &at.to_string()))))
        .collect();
    keys.apply(&items);
    keys.compact(5001).unwrap();
    let mut steps = 0;
    while keys.mvcc.compact_step().unwrap() == Sweep::More {
        steps += 1;
        let left = keys.mvcc.size().unwrap().revisions;
        assert!(left >= 5000u64.saturating_sub(steps * 64), "step {steps} left {left}");
        assert_eq!(show(&[keys.get("hot").unwrap()]), ["hot=4999@2/5001/5000"]);
    }
    assert_eq!(keys.mvcc.size().unwrap().revisions, 1);
    assert_eq!(steps, 79, "64 rows a step");
}

#[test]
fn a_sweep_that_a_crash_cut_short_is_done_again() {
    let store = MemStore::default();
    let keys = Keys {
        mvcc: Mvcc::open(store.clone(), G).unwrap(),
    };
    let items: Vec<_> = (0..3000)
        .map(|at| ApplyItem::unstamped(Command::Put(put("hot", &at.to_string()))))
        .collect();
    keys.apply(&items);
    keys.compact(3001).unwrap();
    assert_eq!(keys.mvcc.compact_step().unwrap(), Sweep::More);
    let reopened = Keys {
        mvcc: Mvcc::open(store.fork(), G).unwrap(),
    };
    assert_eq!(reopened.get_at("hot", 3000), Err(OpError::Compacted));
    reopened.sweep();
    assert_eq!(reopened.mvcc.size().unwrap().revisions, 1);
}
