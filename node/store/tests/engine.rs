//! What every engine promises, and what sled needs on top.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failure of the test")]

mod common;

use althing_store::{
    Batch, CHUNK_BYTES, KeySpan, MemStore, Mvcc, Opened, Order, PageLimit, QUARANTINES_MAX, SledOptions, SledStore,
    StateStore, StoreError,
};
use bytes::Bytes;
use common::*;
use std::path::Path;

const OPTIONS: SledOptions = SledOptions { cache_bytes: 8 << 20 };

fn sled(dir: &Path) -> (SledStore, Opened) {
    SledStore::open(dir, OPTIONS).unwrap()
}

fn keys_of<S: StateStore>(store: &S, span: &KeySpan, order: Order, limit: PageLimit) -> Vec<String> {
    let page = store.scan(span, order, limit).unwrap();
    page.iter()
        .map(|(key, _)| String::from_utf8_lossy(key).into_owned())
        .collect()
}

fn batch(puts: &[(&str, &[u8])], deletes: &[&str]) -> Batch {
    let mut batch = Batch::default();
    for (key, value) in puts {
        batch.put(bytes(key), Bytes::copy_from_slice(value));
    }
    for key in deletes {
        batch.delete(bytes(key));
    }
    batch
}

fn an_engine_keeps_its_contract<S: StateStore>(store: &S) {
    store
        .apply(batch(&[("a", b"1"), ("ab", b"2"), ("b", b"3"), ("c", b"")], &[]))
        .unwrap();
    assert_eq!(store.get(b"a").unwrap(), Some(bytes("1")));
    assert_eq!(store.get(b"c").unwrap(), Some(Bytes::new()));
    assert_eq!(store.get(b"nope").unwrap(), None);
    store.apply(batch(&[("a", b"4"), ("d", b"5")], &["b", "nope"])).unwrap();
    assert_eq!(store.get(b"a").unwrap(), Some(bytes("4")));
    assert_eq!(store.get(b"b").unwrap(), None);

    let everything = KeySpan {
        start: Bytes::new(),
        end: None,
    };
    assert_eq!(
        keys_of(store, &everything, Order::Forward, PageLimit::WALK),
        ["a", "ab", "c", "d"]
    );
    assert_eq!(
        keys_of(store, &everything, Order::Backward, PageLimit::WALK),
        ["d", "c", "ab", "a"]
    );
    assert_eq!(
        keys_of(store, &KeySpan::prefix(b"a"), Order::Forward, PageLimit::WALK),
        ["a", "ab"]
    );
    let middle = KeySpan {
        start: bytes("ab"),
        end: Some(bytes("d")),
    };
    assert_eq!(keys_of(store, &middle, Order::Backward, PageLimit::WALK), ["c", "ab"]);
    let backwards = KeySpan {
        start: bytes("d"),
        end: Some(bytes("a")),
    };
    assert_eq!(keys_of(store, &backwards, Order::Forward, PageLimit::WALK), [""; 0]);
    let two = PageLimit {
        rows: 2,
        ..PageLimit::WALK
    };
    assert_eq!(keys_of(store, &everything, Order::Forward, two), ["a", "ab"]);
    let tiny = PageLimit {
        bytes: 1,
        ..PageLimit::WALK
    };
    assert_eq!(
        keys_of(store, &everything, Order::Forward, tiny),
        ["a"],
        "the first row always fits"
    );

    // Values of every size around the chunk's, written over each other and deleted.
    for len in [
        CHUNK_BYTES - 1,
        CHUNK_BYTES,
        CHUNK_BYTES + 1,
        3 * CHUNK_BYTES,
        3 * CHUNK_BYTES + 7,
        10,
    ] {
        let value: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        store.apply(batch(&[("large", &value)], &[])).unwrap();
        assert_eq!(store.get(b"large").unwrap().unwrap(), value, "{len}");
        let page = store
            .scan(&KeySpan::prefix(b"large"), Order::Forward, PageLimit::WALK)
            .unwrap();
        assert_eq!(page, [(bytes("large"), Bytes::from(value))]);
    }
    let value = vec![7; 5 * CHUNK_BYTES];
    store.apply(batch(&[("large", &value)], &[])).unwrap();
    store.apply(batch(&[], &["large"])).unwrap();
    assert_eq!(store.get(b"large").unwrap(), None);
    assert_eq!(
        keys_of(store, &everything, Order::Forward, PageLimit::WALK),
        ["a", "ab", "c", "d"],
        "no chunk shows"
    );

    store.clear(&KeySpan::prefix(b"a")).unwrap();
    assert_eq!(keys_of(store, &everything, Order::Forward, PageLimit::WALK), ["c", "d"]);
    store.checkpoint().unwrap();
    assert!(store.size_on_disk().unwrap() > 0);
}

#[test]
fn the_engine_in_memory_keeps_the_contract() {
    an_engine_keeps_its_contract(&MemStore::default());
}

#[test]
fn sled_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let (store, opened) = sled(dir.path());
    assert_eq!(opened, Opened::Created);
    an_engine_keeps_its_contract(&store);
    drop(store);
    let (store, opened) = sled(dir.path());
    assert_eq!(opened, Opened::Existing);
    assert_eq!(store.get(b"d").unwrap(), Some(bytes("5")));
}

#[test]
fn the_span_of_a_prefix_ends_where_the_prefix_does() {
    assert_eq!(KeySpan::prefix(b"a").end, Some(bytes("b")));
    assert_eq!(KeySpan::prefix(b"a\xff\xff").end, Some(bytes("b")));
    assert_eq!(KeySpan::prefix(b"\xff").end, None);
    assert_eq!(KeySpan::prefix(b"").end, None);
}

#[test]
fn large_values_never_become_blob_files() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = sled(dir.path());
    let keys = Keys {
        mvcc: Mvcc::open(store.clone(), G).unwrap(),
    };
    let large = "x".repeat(1 << 20);
    for at in 0..24 {
        keys.put(&format!("large{at}"), &large);
        keys.put(&format!("middle{at}"), &large[..CHUNK_BYTES - 100]);
        keys.put(&format!("small{at}"), &large[..20_000]);
    }
    keys.delete(between("large3", "large7"));
    keys.compact(keys.revision()).unwrap();
    keys.sweep();
    keys.mvcc.checkpoint().unwrap();
    assert_eq!(store.blob_files().unwrap(), 0);
    assert_eq!(keys.get("large8").unwrap().value.len(), 1 << 20);
}

#[test]
fn a_store_whose_creation_was_cut_short_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("sled")).unwrap();
    std::fs::write(dir.path().join("sled/conf"), b"half").unwrap();
    let (store, opened) = sled(dir.path());
    assert_eq!(opened, Opened::Created);
    store.apply(batch(&[("a", b"1")], &[])).unwrap();
    drop(store);
    assert_eq!(sled(dir.path()).1, Opened::Existing);
}

#[test]
fn a_store_that_is_still_closing_is_waited_for_and_never_taken_for_damaged() {
    let dir = tempfile::tempdir().unwrap();
    drop(sled(dir.path()));
    let held = std::fs::File::open(dir.path().join("sled/db")).unwrap();
    // Blocks until the store above has closed, on whichever thread.
    held.lock().unwrap();
    let error = SledStore::open(dir.path(), OPTIONS).err().unwrap();
    assert!(!error.is_damage(), "{error}");
    held.unlock().unwrap();
    assert_eq!(sled(dir.path()).1, Opened::Existing);
}

#[test]
fn a_damaged_store_goes_into_quarantine_and_an_empty_one_takes_its_place() {
    let dir = tempfile::tempdir().unwrap();
    for round in 1..=QUARANTINES_MAX + 2 {
        let (store, _) = sled(dir.path());
        store.apply(batch(&[("a", b"1")], &[])).unwrap();
        drop(store);
        std::fs::write(dir.path().join("sled/conf"), b"this is not a sled configuration").unwrap();
        let (store, opened) = sled(dir.path());
        let Opened::Quarantined { path, reason } = opened else {
            panic!("{opened:?}")
        };
        assert!(path.ends_with(format!("quarantine-{round}")), "{path:?}");
        assert!(
            reason.contains("cannot open") || reason.contains("panicked"),
            "{reason}"
        );
        assert_eq!(store.get(b"a").unwrap(), None);
    }
    let kept = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|item| item.unwrap().file_name().into_string().unwrap());
    assert_eq!(
        kept.filter(|name| name.starts_with("quarantine-")).count(),
        QUARANTINES_MAX
    );
}

#[test]
fn a_store_of_another_version_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    drop(sled(dir.path()));
    std::fs::write(dir.path().join("FORMAT"), "althing-store 3\n").unwrap();
    let error = SledStore::open(dir.path(), OPTIONS).err().unwrap();
    assert!(
        matches!(&error, StoreError::Version { found, .. } if found == "althing-store 3"),
        "{error}"
    );
}

#[test]
fn two_processes_never_share_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = sled(dir.path());
    assert!(matches!(
        SledStore::open(dir.path(), OPTIONS).err(),
        Some(StoreError::Locked { .. })
    ));
    drop(store);
    assert_eq!(sled(dir.path()).1, Opened::Existing);
}

#[test]
fn a_damaged_row_is_found_at_open() {
    let store = MemStore::default();
    let keys = Keys {
        mvcc: Mvcc::open(store.clone(), G).unwrap(),
    };
    keys.put("a", "1");
    let everything = KeySpan {
        start: Bytes::new(),
        end: None,
    };
    for (key, value) in store.scan(&everything, Order::Forward, PageLimit::WALK).unwrap() {
        let damaged = store.fork();
        damaged
            .apply(Batch(vec![althing_store::BatchOp::Put(
                key,
                value.slice(..value.len() - 25),
            )]))
            .unwrap();
        let error = Mvcc::open(damaged, G).err().expect("cut rows must not open");
        assert!(matches!(error, StoreError::Unreadable { .. }), "{error}");
    }
}

fn numbered(number: u32) -> Bytes {
    Bytes::from(format!("r{number:05}"))
}

/// What is there, by scan in both directions and by single reads of every number up to `to`.
fn present<S: StateStore>(store: &S, from: u32, to: u32) -> Vec<(Bytes, Bytes)> {
    let span = KeySpan {
        start: numbered(from),
        end: Some(numbered(to)),
    };
    let forward = store.scan(&span, Order::Forward, PageLimit::WALK).unwrap();
    let mut backward = store.scan(&span, Order::Backward, PageLimit::WALK).unwrap();
    backward.reverse();
    assert_eq!(forward, backward);
    let single: Vec<_> = (from..to)
        .filter_map(|number| Some((numbered(number), store.get(&numbered(number)).unwrap()?)))
        .collect();
    assert_eq!(forward, single);
    forward
}

#[test]
fn runs_of_rows_are_read_and_removed_one_by_one_and_take_few_rows_of_the_engine() {
    let dir = tempfile::tempdir().unwrap();
    let (packed, _) = sled(dir.path());
    let plain = MemStore::default();
    let row = |number: u32| {
        // Some too large for a pack, some too large for one row, most small.
        let bytes = match number % 50 {
            7 => 3_000,
            8 => CHUNK_BYTES + 1,
            small => small as usize * 9,
        };
        (numbered(number), Bytes::from(vec![b'v'; bytes]))
    };
    let apply = |batch: Batch| {
        packed.apply(batch.clone()).unwrap();
        plain.apply(batch).unwrap();
    };
    let mut at = 10;
    for length in [1, 2, 40, 300, 1] {
        let mut batch = Batch::default();
        batch.put(bytes("a"), numbered(at));
        batch.run((at..at + length).map(row));
        apply(batch);
        at += length;
    }
    assert_eq!(present(&packed, 0, at + 5), present(&plain, 0, at + 5));
    for (from, to) in [(11, 13), (30, 31), (60, 200), (349, 354), (0, 5)] {
        assert_eq!(present(&packed, from, to), present(&plain, from, to), "{from} to {to}");
    }
    // From the middle of packs, their first and last rows, whole packs, and rows that are not there.
    for gone in [
        vec![10, 11, 12],
        vec![100, 102, 104],
        (150..260).collect(),
        vec![353, 9_999],
        (0..at).collect(),
    ] {
        let mut batch = Batch::default();
        gone.iter().for_each(|number| batch.delete(numbered(*number)));
        apply(batch);
        assert_eq!(
            present(&packed, 0, at + 5),
            present(&plain, 0, at + 5),
            "without {gone:?}"
        );
    }
    assert_eq!(packed.get(b"a").unwrap(), plain.get(b"a").unwrap());
    packed.checkpoint().unwrap();
    assert_eq!(packed.blob_files().unwrap(), 0);
}

#[test]
fn a_store_of_the_version_before_is_read_and_then_marked_as_this_one() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = sled(dir.path());
    store.apply(batch(&[("a", b"1")], &[])).unwrap();
    store.checkpoint().unwrap();
    drop(store);
    let marker = dir.path().join("FORMAT");
    std::fs::write(&marker, "althing-store 1\n").unwrap();
    let (store, opened) = sled(dir.path());
    assert_eq!(opened, Opened::Existing);
    assert_eq!(store.get(b"a").unwrap(), Some(bytes("1")));
    assert_eq!(std::fs::read_to_string(&marker).unwrap(), "althing-store 2\n");
}

fn rows(store: &SledStore) -> Vec<(Bytes, Bytes)> {
    let everything = KeySpan {
        start: Bytes::new(),
        end: None,
    };
    let mut all = Vec::new();
    let mut span = everything;
    loop {
        let page = store.scan(&span, Order::Forward, PageLimit::WALK).unwrap();
        let Some((last, _)) = page.last() else { return all };
        span.start = [&last[..], &[0]].concat().into();
        all.extend(page);
    }
}

fn databases(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir)
        .unwrap()
        .map(|item| item.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("sled")).collect()
}

#[test]
fn defragmenting_gives_space_back_and_keeps_every_row() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = sled(dir.path());
    let value = vec![7; 3_000];
    for at in 0..4_000u32 {
        store.apply(batch(&[(&format!("key{at:05}"), &value)], &[])).unwrap();
    }
    store.apply(batch(&[("large", &vec![9; 100_000])], &[])).unwrap();
    for at in 0..3_900u32 {
        store.apply(batch(&[], &[&format!("key{at:05}")])).unwrap();
    }
    store.checkpoint().unwrap();
    let before = rows(&store);
    let done = store.defragment(OPTIONS, || true).unwrap();
    assert!(done.after * 4 < done.before, "{done:?}");
    assert_eq!(rows(&store), before);
    assert_eq!(databases(dir.path()), ["sled-1"]);
    store.apply(batch(&[("later", b"1")], &[])).unwrap();
    store.checkpoint().unwrap();
    drop(store);
    let (store, opened) = sled(dir.path());
    assert_eq!(opened, Opened::Existing);
    assert_eq!(store.get(b"later").unwrap(), Some(bytes("1")));
    assert_eq!(rows(&store).len(), before.len() + 1);
    store.defragment(OPTIONS, || true).unwrap();
    assert_eq!(databases(dir.path()), ["sled-2"]);
}

#[test]
fn writing_and_reading_go_on_while_a_store_is_defragmented() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = sled(dir.path());
    for at in 0..20_000u32 {
        store.apply(batch(&[(&format!("key{at:05}"), b"old")], &[])).unwrap();
    }
    let writer = store.clone();
    let mut written = 0u32;
    // Between every two pages: a change before the cursor, one behind it, a new key, a removal, a read of each.
    let done = store
        .defragment(OPTIONS, || {
            let (low, high) = (format!("key{written:05}"), format!("key{:05}", 19_999 - written));
            writer
                .apply(batch(
                    &[(&low, b"new"), (&high, b"new"), (&format!("more{written}"), b"new")],
                    &[],
                ))
                .unwrap();
            let gone = format!("key{:05}", 10_000 + written);
            writer.apply(batch(&[], &[&gone])).unwrap();
            assert_eq!(writer.get(low.as_bytes()).unwrap(), Some(bytes("new")));
            assert_eq!(writer.get(gone.as_bytes()).unwrap(), None);
            written += 1;
            true
        })
        .unwrap();
    assert!(written > 20 && done.rows > 19_000, "{written} pages, {done:?}");
    drop(writer);
    let after = rows(&store);
    drop(store);
    let (store, _) = sled(dir.path());
    assert_eq!(rows(&store), after);
    assert_eq!(after.len(), 20_000);
    let changed = after.iter().filter(|(_, value)| value == "new").count();
    assert_eq!(changed, 3 * written as usize);
}

#[test]
fn a_defragmentation_that_is_broken_off_leaves_the_store_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = sled(dir.path());
    for at in 0..5_000u32 {
        store.apply(batch(&[(&format!("key{at:05}"), b"1")], &[])).unwrap();
    }
    let before = rows(&store);
    let mut pages = 0;
    let error = store
        .defragment(OPTIONS, || {
            pages += 1;
            pages < 4
        })
        .unwrap_err();
    assert!(matches!(error, StoreError::Defragment { .. }), "{error}");
    assert_eq!(databases(dir.path()), ["sled"]);
    store.apply(batch(&[("later", b"1")], &[])).unwrap();
    assert_eq!(rows(&store).len(), before.len() + 1);
}

#[test]
fn a_crash_at_any_step_of_a_defragmentation_leaves_one_good_store() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = sled(dir.path());
    store.apply(batch(&[("a", b"1")], &[])).unwrap();
    drop(store);
    // Before the swap of the marker: a copy beside the store, whole or not.
    for leftover in ["sled-1/blobs", "sled-7"] {
        std::fs::create_dir_all(dir.path().join(leftover)).unwrap();
    }
    std::fs::write(dir.path().join("sled-1/conf"), b"half").unwrap();
    let (store, opened) = sled(dir.path());
    assert_eq!(opened, Opened::Existing);
    assert_eq!(databases(dir.path()), ["sled"]);
    store.defragment(OPTIONS, || true).unwrap();
    drop(store);
    // After it: the old store beside the new one.
    std::fs::create_dir_all(dir.path().join("sled/blobs")).unwrap();
    let (store, opened) = sled(dir.path());
    assert_eq!(opened, Opened::Existing);
    assert_eq!(store.get(b"a").unwrap(), Some(bytes("1")));
    assert_eq!(databases(dir.path()), ["sled-1"]);
    drop(store);
    // And damage to a defragmented store is quarantined like any other.
    std::fs::write(dir.path().join("sled-1/conf"), b"this is not a sled configuration").unwrap();
    let (_store, opened) = sled(dir.path());
    assert!(matches!(opened, Opened::Quarantined { .. }), "{opened:?}");
    assert_eq!(databases(dir.path()), ["sled"]);
}
