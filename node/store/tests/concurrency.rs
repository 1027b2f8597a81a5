//! Readers beside the writer see whole revisions, whatever is swept or installed meanwhile.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failure of the test")]

mod common;

use althing_store::ops::{Command, Op, Range, Revision, Txn};
use althing_store::{ApplyItem, MemStore, Mvcc, SledOptions, SledStore, StateStore, Sweep};
use common::*;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Ends the other threads when one ends, also by a panic.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Writes `left` and `right` equal in every revision, compacts, sweeps and installs snapshots, while readers compare them.
fn readers_see_whole_revisions<S: StateStore>(store: S, rounds: u64) {
    let keys = Keys {
        mvcc: Mvcc::open(store, G).unwrap(),
    };
    let other = self::keys();
    let done = AtomicBool::new(false);
    let reads = AtomicU64::new(0);
    let both = |value: &str| {
        Command::Txn(Txn {
            success: vec![put_op("left", value), put_op("right", value)],
            ..Txn::default()
        })
    };
    keys.apply(&[ApplyItem::unstamped(both("start"))]);
    std::thread::scope(|scope| {
        for txn_reads in [false, true] {
            let (keys, done, reads) = (&keys, &done, &reads);
            scope.spawn(move || {
                let _end = SetOnDrop(done);
                let mut newest = Revision(0);
                while !done.load(Ordering::Acquire) {
                    let range = Range::of(between("l", "s"));
                    let (revision, kvs) = if txn_reads {
                        let txn = Txn {
                            success: vec![Op::Range(range)],
                            ..Txn::default()
                        };
                        let (revision, result) = keys.mvcc.read_txn(&txn).unwrap().unwrap();
                        let althing_store::ops::OpResult::Txn { mut results, .. } = result else {
                            panic!("{result:?}")
                        };
                        let Some((_, althing_store::ops::OpResult::Range(result))) = results.pop() else {
                            panic!("no range")
                        };
                        (revision, result.kvs)
                    } else {
                        let (revision, result) = keys.mvcc.range(&range).unwrap().unwrap();
                        (revision, result.kvs)
                    };
                    assert_eq!(kvs.len(), 2);
                    assert_eq!(
                        (&kvs[0].value, kvs[0].mod_revision),
                        (&kvs[1].value, kvs[1].mod_revision)
                    );
                    assert!(revision >= newest, "revisions never go back");
                    assert!(kvs[0].mod_revision <= revision);
                    newest = revision;
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // The writer, on this thread. It ends by what it did, not by the clock.
        let _end = SetOnDrop(&done);
        for round in 0..rounds {
            let items: Vec<_> = (0..20)
                .map(|at| ApplyItem::unstamped(both(&format!("{round}.{at}"))))
                .collect();
            keys.apply(&items);
            keys.compact(keys.revision()).unwrap();
            while keys.mvcc.compact_step().unwrap() == Sweep::More {}
            if round % 4 == 3 {
                // The other member gets ahead by a snapshot and more writes, and sends one back.
                let mut import = other.mvcc.import();
                keys.mvcc
                    .export()
                    .unwrap()
                    .for_each(|chunk| import.chunk(&chunk.unwrap()).unwrap());
                other.mvcc.install(import).unwrap();
                other.apply(&[ApplyItem::unstamped(both(&format!("{round} from the other")))]);
                let mut import = keys.mvcc.import();
                other
                    .mvcc
                    .export()
                    .unwrap()
                    .for_each(|chunk| import.chunk(&chunk.unwrap()).unwrap());
                keys.mvcc.install(import).unwrap();
                keys.sweep();
            }
        }
        // On a machine with one free core the readers may not have had a turn yet.
        while reads.load(Ordering::Relaxed) < 50 && !done.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
    });
}

#[test]
fn readers_see_whole_revisions_in_memory() {
    readers_see_whole_revisions(MemStore::default(), 400);
}

#[test]
fn readers_see_whole_revisions_over_sled() {
    let dir = tempfile::tempdir().unwrap();
    readers_see_whole_revisions(
        SledStore::open(dir.path(), SledOptions { cache_bytes: 1 << 20 })
            .unwrap()
            .0,
        60,
    );
}
