//! Snapshots: whole or not at all.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failure of the test")]

mod common;

use althing_raft::entry::{ConfigChange, ConfigStep};
use althing_raft::ids::MemberId;
use althing_store::ops::{Range, Revision};
use althing_store::snapshot::{CHUNK_BYTES_MAX, CHUNK_BYTES_TARGET, Progress};
use althing_store::{
    ApplyItem, Batch, KeySpan, MemStore, Mvcc, Order, Page, PageLimit, SledOptions, SledStore, StateStore, StoreError,
    Sweep,
};
use bytes::Bytes;
use common::*;
use proptest::prelude::*;
use std::sync::{Arc, Mutex};

/// A group with history, a member and a compaction.
fn source() -> Keys<MemStore> {
    let keys = keys();
    let change = ConfigChange {
        request: 0,
        step: ConfigStep::AddLearner(MemberId(7)),
        context: bytes("seven"),
    };
    keys.apply(&[ApplyItem::Config(change)]);
    for round in 0..3 {
        for key in 0..40 {
            keys.put(&format!("k{key:02}"), &format!("{round}").repeat(key));
        }
    }
    keys.delete(between("k10", "k20"));
    keys.compact(60).unwrap();
    keys
}

fn chunks<S: StateStore>(keys: &Keys<S>) -> Vec<Bytes> {
    keys.mvcc.export().unwrap().map(Result::unwrap).collect()
}

/// Everything that can be read.
fn everything<S: StateStore>(mvcc: &Mvcc<S>) -> Vec<Vec<String>> {
    let from = mvcc.compacted_revision().map_or(1, |revision| revision.0.max(1));
    (from..=mvcc.current_revision().0)
        .map(|revision| {
            let range = Range {
                revision: Some(Revision(revision)),
                ..Range::of(all())
            };
            show(&mvcc.range(&range).unwrap().unwrap().1.kvs)
        })
        .collect()
}

#[test]
fn a_snapshot_brings_history_members_and_position() {
    let source = source();
    let target = Mvcc::open(MemStore::default(), G).unwrap();
    let mut import = target.import();
    assert_eq!(import.meta(), None);
    for chunk in chunks(&source) {
        import.chunk(&chunk).unwrap();
        assert_eq!(import.meta(), Some(&source.mvcc.applied()));
    }
    assert!(import.is_complete());
    assert_eq!(target.install(import).unwrap(), source.mvcc.applied());
    assert_eq!(everything(&target), everything(&source.mvcc));
    assert_eq!(target.members(), source.mvcc.members());
    assert_eq!(target.size().unwrap().revisions, source.mvcc.size().unwrap().revisions);
}

#[test]
fn an_export_is_of_one_moment_although_writing_and_compacting_go_on() {
    let source = source();
    let before = everything(&source.mvcc);
    let mut export = source.mvcc.export().unwrap();
    let mut chunks = vec![export.next_chunk().unwrap().unwrap()];
    source.put("k00", "later");
    source.delete(all());
    source.compact(source.revision()).unwrap();
    assert_eq!(
        source.mvcc.compact_step().unwrap(),
        Sweep::Paused,
        "what the export still needs is not swept"
    );
    chunks.extend(export.by_ref().map(Result::unwrap));
    drop(export);
    assert_eq!(source.mvcc.compact_step().unwrap(), Sweep::More);

    let target = Mvcc::open(MemStore::default(), G).unwrap();
    let mut import = target.import();
    chunks.iter().for_each(|chunk| import.chunk(chunk).unwrap());
    target.install(import).unwrap();
    assert_eq!(everything(&target), before);
}

#[test]
fn a_stream_that_breaks_anywhere_goes_on_from_where_the_import_stands() {
    let keys = keys();
    for key in 0..9 {
        keys.put(&format!("k{key}"), &"x".repeat(300_000));
    }
    let count = chunks(&keys).len();
    assert!(count > 5, "{count}");
    for taken in 0..=count {
        for ahead in 0..=2 {
            let mut export = keys.mvcc.export().unwrap();
            let target = Mvcc::open(MemStore::default(), G).unwrap();
            let mut import = target.import();
            for _ in 0..taken {
                import.chunk(&export.next_chunk().unwrap().unwrap()).unwrap();
            }
            // Sent, and lost on the way.
            for _ in 0..ahead {
                export.next_chunk().unwrap();
            }
            let progress = Progress::decode(import.progress().encode()).unwrap();
            assert_eq!(progress, import.progress());
            assert_eq!(progress.chunks() as usize, taken);
            export.resume(progress);
            export.by_ref().for_each(|chunk| import.chunk(&chunk.unwrap()).unwrap());
            target.install(import).unwrap();
            assert_eq!(
                everything(&target),
                everything(&keys.mvcc),
                "broken after {taken} chunks"
            );
        }
    }
}

#[test]
fn chunks_are_bounded_and_a_large_state_takes_many() {
    let keys = keys();
    for key in 0..40 {
        keys.put(&format!("k{key}"), &"x".repeat(100_000));
    }
    keys.put("large", &"x".repeat(1_500_000));
    let chunks = chunks(&keys);
    assert!(chunks.len() > 8, "{}", chunks.len());
    let over = chunks
        .iter()
        .filter(|chunk| chunk.len() > CHUNK_BYTES_TARGET + 100_000)
        .count();
    assert_eq!(over, 1, "only the row that is larger by itself");
    let oversized = Bytes::from(vec![0; CHUNK_BYTES_MAX + 1]);
    let error = Mvcc::open(MemStore::default(), G)
        .unwrap()
        .import()
        .chunk(&oversized)
        .unwrap_err();
    assert!(matches!(error, StoreError::Snapshot { .. }), "{error}");
}

#[test]
fn an_old_incomplete_or_superseded_snapshot_is_refused_and_changes_nothing() {
    let source = source();
    let chunks = chunks(&source);
    let target = Keys {
        mvcc: Mvcc::open(MemStore::default(), G).unwrap(),
    };
    target.put("mine", "1");
    let before = everything(&target.mvcc);

    let mut incomplete = target.mvcc.import();
    chunks[..chunks.len() - 1]
        .iter()
        .for_each(|chunk| incomplete.chunk(chunk).unwrap());
    assert!(matches!(
        target.mvcc.install(incomplete).unwrap_err(),
        StoreError::Snapshot { .. }
    ));

    let mut superseded = target.mvcc.import();
    chunks.iter().for_each(|chunk| superseded.chunk(chunk).unwrap());
    let _newer = target.mvcc.import();
    assert!(matches!(
        target.mvcc.install(superseded).unwrap_err(),
        StoreError::Snapshot { .. }
    ));

    let mut own = source.mvcc.import();
    chunks.iter().for_each(|chunk| own.chunk(chunk).unwrap());
    let error = source.mvcc.install(own).unwrap_err().to_string();
    assert!(error.contains("is applied"), "{error}");

    assert_eq!(everything(&target.mvcc), before);
    assert_eq!(target.put("mine", "2"), 3);
}

#[test]
fn chunks_lost_doubled_or_swapped_are_refused() {
    let chunks = chunks(&source());
    let target = Mvcc::open(MemStore::default(), G).unwrap();
    let refused = |order: &[usize]| {
        let mut import = target.import();
        order.iter().any(|at| import.chunk(&chunks[*at]).is_err())
    };
    assert_eq!(chunks.len(), 3);
    assert!(!refused(&[0, 1, 2]));
    for order in [&[1][..], &[2], &[0, 2], &[0, 0], &[0, 1, 1], &[0, 1, 2, 2]] {
        assert!(refused(order), "{order:?}");
    }
}

/// A chunk with a right checksum.
fn seal(kind: u8, seq: u32, body: &[u8]) -> Bytes {
    let mut chunk = vec![1, kind];
    chunk.extend(seq.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&chunk), body);
    chunk.extend(crc.to_le_bytes());
    chunk.extend(body);
    chunk.into()
}

#[test]
fn a_header_that_promises_four_billion_members_reserves_nothing_for_them() {
    let real = &chunks(&source())[0];
    let record_len = u32::from_le_bytes(real[10..14].try_into().unwrap()) as usize;
    let mut body = real[10..14 + record_len].to_vec();
    body.extend(u32::MAX.to_le_bytes());
    let mut import = Mvcc::open(MemStore::default(), G).unwrap().import();
    let error = import.chunk(&seal(1, 0, &body)).unwrap_err().to_string();
    assert!(error.contains("needs 8 bytes and 0 are left"), "{error}");
}

#[test]
fn rows_out_of_order_are_refused_although_the_checksum_holds() {
    let chunks = chunks(&source());
    let mut forged = [&chunks[1][..], &chunks[1][10..]].concat();
    let crc = crc32c::crc32c_append(crc32c::crc32c(&forged[..6]), &forged[10..]);
    forged[6..10].copy_from_slice(&crc.to_le_bytes());
    let target = Mvcc::open(MemStore::default(), G).unwrap();
    let mut import = target.import();
    import.chunk(&chunks[0]).unwrap();
    let error = import.chunk(&forged.into()).unwrap_err().to_string();
    assert!(error.contains("is out of order"), "{error}");
}

#[test]
fn what_an_abandoned_import_wrote_is_cleared() {
    let source = source();
    let store = MemStore::default();
    let target = Keys {
        mvcc: Mvcc::open(store.clone(), G).unwrap(),
    };
    target.put("mine", "1");
    let clean = store.size_on_disk().unwrap();
    let chunks = chunks(&source);
    let mut import = target.mvcc.import();
    import.chunk(&chunks[0]).unwrap();
    import.chunk(&chunks[1]).unwrap();
    drop(import);
    assert!(store.size_on_disk().unwrap() > clean);
    let reopened = Mvcc::open(store.fork(), G).unwrap();
    assert_eq!(reopened.size().unwrap().on_disk, clean, "by the next open");
    let _next = target.mvcc.import();
    target.sweep();
    assert_eq!(
        store.size_on_disk().unwrap(),
        clean,
        "or by the next import and the sweep"
    );
}

/// Keeps a copy of the store after every batch: each is what a crash could leave.
#[derive(Clone)]
struct Recording {
    store: MemStore,
    copies: Arc<Mutex<Vec<MemStore>>>,
}

impl StateStore for Recording {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.store.get(key)
    }

    fn scan(&self, span: &KeySpan, order: Order, limit: PageLimit) -> Result<Page, StoreError> {
        self.store.scan(span, order, limit)
    }

    fn apply(&self, batch: Batch) -> Result<(), StoreError> {
        self.store.apply(batch)?;
        self.copies.lock().unwrap().push(self.store.fork());
        Ok(())
    }

    fn checkpoint(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn size_on_disk(&self) -> Result<u64, StoreError> {
        self.store.size_on_disk()
    }
}

#[test]
fn a_crash_at_any_moment_of_an_installation_leaves_the_old_state_or_the_new_one() {
    let source = source();
    for key in 0..30 {
        source.put(&format!("large{key}"), &"x".repeat(60_000));
    }
    let recording = Recording {
        store: MemStore::default(),
        copies: Arc::default(),
    };
    let target = Keys {
        mvcc: Mvcc::open(recording.clone(), G).unwrap(),
    };
    target.put("mine", "1");
    let old = everything(&target.mvcc);
    let mut import = target.mvcc.import();
    chunks(&source).iter().for_each(|chunk| import.chunk(chunk).unwrap());
    target.mvcc.install(import).unwrap();
    target.sweep();
    let new = everything(&source.mvcc);
    assert_eq!(everything(&target.mvcc), new);

    let copies = recording.copies.lock().unwrap();
    assert!(copies.len() > 5);
    let mut seen = Vec::new();
    for copy in copies.iter() {
        let found = everything(&Mvcc::open(copy.clone(), G).unwrap());
        assert!(found == old || found == new);
        seen.push(found == new);
    }
    assert!(seen.is_sorted(), "once new, always new: {seen:?}");
    assert!(seen.contains(&false) && seen.contains(&true));
}

#[test]
fn an_installed_snapshot_survives_a_reopen_of_sled() {
    let dir = tempfile::tempdir().unwrap();
    let options = SledOptions { cache_bytes: 1 << 20 };
    let source = source();
    let store = SledStore::open(dir.path(), options).unwrap().0;
    let target = Mvcc::open(store.clone(), G).unwrap();
    for _ in 0..2 {
        source.put("more", "1");
        let mut import = target.import();
        chunks(&source).iter().for_each(|chunk| import.chunk(chunk).unwrap());
        target.install(import).unwrap();
    }
    drop((target, store));
    let store = SledStore::open(dir.path(), options).unwrap().0;
    assert_eq!(everything(&Mvcc::open(store, G).unwrap()), everything(&source.mvcc));
}

proptest! {
    #[test]
    fn arbitrary_chunks_never_panic(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
        let target = Mvcc::open(MemStore::default(), G).unwrap();
        prop_assert!(target.import().chunk(&Bytes::from(noise)).is_err());
    }

    /// Behind a checksum that holds, any body: an error that says what, or rows no larger than the chunk.
    #[test]
    fn forged_chunks_never_panic(kind in 0..5u8, after in 0..3usize, body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut import = Mvcc::open(MemStore::default(), G).unwrap().import();
        for chunk in &chunks(&source())[..after] {
            import.chunk(chunk).unwrap();
        }
        let _ = import.chunk(&seal(kind, after as u32, &body));
    }

    /// The same with bodies that begin as real ones do: lengths and counts are where the decoder expects them.
    #[test]
    fn forged_changes_of_real_chunks_never_panic(
        which in 0..3usize, changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6), keep in any::<proptest::sample::Index>(),
    ) {
        let chunks = chunks(&source());
        let store = MemStore::default();
        let mut import = Mvcc::open(store.clone(), G).unwrap().import();
        for chunk in &chunks[..which] {
            import.chunk(chunk).unwrap();
        }
        let mut body = chunks[which][10..].to_vec();
        for (at, byte) in changes {
            let at = at.index(body.len());
            body[at] = byte;
        }
        body.truncate(keep.index(body.len() + 1));
        let before = store.size_on_disk().unwrap();
        let _ = import.chunk(&seal(chunks[which][1], which as u32, &body));
        let grown = store.size_on_disk().unwrap() - before;
        prop_assert!(grown <= 4 * body.len() as u64 + 64, "{} bytes were stored for {}", grown, body.len());
    }

    #[test]
    fn a_damaged_chunk_is_refused(at in any::<proptest::sample::Index>(), bit in 0..8u8) {
        let mut chunks = chunks(&source());
        let total: usize = chunks.iter().map(Bytes::len).sum();
        let mut at = at.index(total);
        for chunk in &mut chunks {
            if at < chunk.len() {
                let mut damaged = chunk.to_vec();
                damaged[at] ^= 1 << bit;
                *chunk = damaged.into();
                break;
            }
            at -= chunk.len();
        }
        let target = Mvcc::open(MemStore::default(), G).unwrap();
        let mut import = target.import();
        prop_assert!(chunks.iter().any(|chunk| import.chunk(chunk).is_err()));
    }
}
