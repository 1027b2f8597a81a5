//! `cargo run --release -p althing-store --example split -- [keys] [range|hash]`: how long a split, and the absorption that undoes it,
//! keep their shard waiting, over sled.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a measurement reads a clock, and ends at the first failure"
)]

use althing_raft::entry::SnapshotMeta;
use althing_raft::ids::{GroupId, Index, LogPosition, Term};
use althing_store::ops::{
    Command, KeyRange, OpResult, Partitioning, Put, Range, Revision, RevisionSource, ShardCommand, ShardResult, Span,
    Territory,
};
use althing_store::{ApplyItem, Mvcc, SledOptions, SledStore};
use bytes::Bytes;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const BATCH: u64 = 1000;
const CHILD: GroupId = GroupId(2);

fn key(number: u64) -> Bytes {
    format!("/registry/pods/namespace-{:03}/pod-{number:08}", number % 500).into()
}

fn next(mvcc: &Mvcc<SledStore>, items: u64) -> SnapshotMeta {
    let mut meta = mvcc.applied();
    meta.position = LogPosition {
        term: Term(1),
        index: Index(meta.position.index.0 + items),
    };
    meta
}

fn shard(mvcc: &Mvcc<SledStore>, command: ShardCommand, neighbour: Option<&Mvcc<SledStore>>) -> ShardResult {
    let items = [ApplyItem::unstamped(Command::Shard(command))];
    let results = mvcc.apply_beside(&items, next(mvcc, 1), neighbour).unwrap();
    let OpResult::Shard(result) = results[0].clone().unwrap().result.unwrap() else {
        panic!("{results:?}")
    };
    result
}

/// Runs something while a reader asks for one key again and again: how long it took, and how long the slowest read did meanwhile.
fn beside_a_reader<T>(mvcc: &Mvcc<SledStore>, run: impl FnOnce() -> T) -> (T, Duration, Duration) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut slowest = Duration::ZERO;
            let range = Range::of(KeyRange::Single(key(0)));
            while !done.load(Ordering::Relaxed) {
                let started = Instant::now();
                drop(mvcc.range(&range).unwrap());
                slowest = slowest.max(started.elapsed());
            }
            slowest
        });
        let started = Instant::now();
        let result = run();
        let took = started.elapsed();
        done.store(true, Ordering::Relaxed);
        (result, took, reader.join().unwrap())
    })
}

fn main() {
    let mut args = std::env::args().skip(1);
    let keys: u64 = args.next().map_or(1_000_000, |keys| keys.parse().unwrap());
    let partitioning = match args.next().as_deref() {
        Some("hash") => Partitioning::Hash {
            slots: 16_384,
            prefix_segments: Some(4),
        },
        Some(_) | None => Partitioning::Range,
    };
    let dir = tempfile::tempdir().unwrap();
    let options = SledOptions { cache_bytes: 256 << 20 };
    let store = SledStore::open(dir.path(), options).unwrap().0;
    let mvcc = Mvcc::open(store.clone(), GroupId::FIRST_SHARD).unwrap();
    let territory = Territory {
        partitioning,
        epoch: 1,
        ..Territory::default()
    };
    let source = RevisionSource::Sequenced;
    shard(&mvcc, ShardCommand::Settle { territory, source }, None);
    for first in (0..keys).step_by(BATCH as usize) {
        let items: Vec<_> = (first..keys.min(first + BATCH))
            .map(|number| ApplyItem::Command {
                command: Command::Put(Put {
                    key: key(number),
                    value: Some(vec![b'x'; 100].into()),
                    lease: Some(0),
                    prev_kv: false,
                }),
                stamp: Some(Revision(number as i64 + 2)),
            })
            .collect();
        mvcc.apply(&items, next(&mvcc, items.len() as u64)).unwrap();
    }
    mvcc.checkpoint().unwrap();

    let started = Instant::now();
    let at = mvcc.middle_key().unwrap();
    println!(
        "{keys} keys, {partitioning:?}: the middle is found in {:?}",
        started.elapsed()
    );
    let split = ShardCommand::Split {
        epoch: 1,
        at,
        child: CHILD,
    };
    let (_, took, read) = beside_a_reader(&mvcc, || shard(&mvcc, split, None));
    let child = mvcc.take_born().unwrap();
    println!(
        "split into {} and {} keys: applied in {took:?}, the slowest read meanwhile {read:?}",
        mvcc.size().unwrap().keys,
        child.size().unwrap().keys,
    );
    let started = Instant::now();
    mvcc.checkpoint().unwrap();
    println!("durable {:?} later", started.elapsed());

    let started = Instant::now();
    let reopened = Mvcc::open(store, CHILD).unwrap();
    println!("the child opens in {:?}", started.elapsed());
    assert_eq!(reopened.size().unwrap().keys, child.size().unwrap().keys);
    drop(reopened);

    let ShardResult::Sealed { at } = shard(&child, ShardCommand::Seal { operation: 1 }, None) else {
        panic!("not sealed")
    };
    let absorb = ShardCommand::Absorb {
        operation: 1,
        from: CHILD,
        position: at,
        territory: Territory {
            partitioning,
            span: Span::default(),
            epoch: 3,
        },
    };
    let (_, took, read) = beside_a_reader(&mvcc, || shard(&mvcc, absorb, Some(&child)));
    println!(
        "absorbed again, {} keys: applied in {took:?}, the slowest read meanwhile {read:?}",
        mvcc.size().unwrap().keys
    );
}
