//! etcd's semantics, a sentence each (reference: etcd's documentation and `server/etcdserver/txn`).
#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failure of the test")]

#[path = "../common/mod.rs"]
mod common;

mod compaction;
mod machine;
mod range;
mod revisions;
mod txn;

use althing_store::ops::OpResult;

fn ranged(result: &OpResult) -> Vec<String> {
    let OpResult::Range(range) = result else {
        panic!("{result:?}")
    };
    common::show(&range.kvs)
}
