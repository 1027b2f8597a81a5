//! What a group that is all of its keyspace has written since the first version, byte by byte: its rows, its records and its snapshots.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failure of the test")]

mod common;

use althing_raft::entry::{ConfigChange, ConfigStep};
use althing_raft::ids::MemberId;
use althing_store::ops::{Op, Put, Txn};
use althing_store::{ApplyItem, KeySpan, MemStore, Mvcc, Order, PageLimit, StateStore};
use common::*;

fn dump(store: &MemStore) -> Vec<u8> {
    let limit = PageLimit {
        rows: usize::MAX,
        bytes: usize::MAX,
    };
    let rows = store.scan(&KeySpan::prefix(&[]), Order::Forward, limit).unwrap();
    rows.into_iter()
        .flat_map(|(key, value)| [key, value])
        .flatten()
        .collect()
}

/// FNV-1a, so that a page of hex is one line.
fn digest(bytes: &[u8]) -> String {
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325, mix);
    format!("{} bytes, {hash:016x}", bytes.len())
}

#[test]
fn a_group_that_is_all_of_its_keyspace_is_written_as_it_always_was() {
    let store = MemStore::default();
    let keys = Keys {
        mvcc: Mvcc::open(store.clone(), G).unwrap(),
    };
    keys.apply(&[ApplyItem::Config(ConfigChange {
        request: 0,
        step: ConfigStep::AddLearner(MemberId(7)),
        context: bytes("seven"),
    })]);
    for number in 0..30 {
        keys.put(&format!("key-{}", number % 7), &format!("value {number}"));
    }
    keys.delete(between("key-2", "key-4"));
    let txn = Txn {
        success: vec![
            put_op("a", "1"),
            delete_op(single("key-5")),
            Op::Put(Put {
                value: None,
                ..put("key-6", "")
            }),
        ],
        ..Txn::default()
    };
    keys.txn(txn);
    keys.compact(20).unwrap();
    expect_test::expect!["2396 bytes, 6842f1f277bd1f71"].assert_eq(&digest(&dump(&store)));
    keys.sweep();
    expect_test::expect!["1578 bytes, 6ab7d02b7a41f3c0"].assert_eq(&digest(&dump(&store)));

    let chunks: Vec<_> = keys.mvcc.export().unwrap().map(Result::unwrap).collect();
    expect_test::expect!["1370 bytes, d5bce5307f102b4d"].assert_eq(&digest(&chunks.concat()));
    let copy = MemStore::default();
    let mvcc = Mvcc::open(copy.clone(), G).unwrap();
    let mut import = mvcc.import();
    chunks.iter().for_each(|chunk| import.chunk(chunk).unwrap());
    mvcc.install(import).unwrap();
    expect_test::expect!["1591 bytes, 4ec025debec0067e"].assert_eq(&digest(&dump(&copy)));
}
