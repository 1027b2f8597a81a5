//! Random requests over a few keys, so that they meet.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use althing_raft::ids::{GroupId, Index, LogPosition, MemberId, Term};
use althing_store::ops::{
    Command, Compare, CompareOp, CompareTarget, Decision, Delete, Descending, KeyRange, Op, Partitioning, Put, Range,
    Revision, RevisionSource, ShardCommand, SortTarget, Span, Territory, Txn, TxnId,
};
use bytes::Bytes;
use proptest::prelude::*;

fn one_of(choices: &'static [&'static [u8]]) -> impl Strategy<Value = Bytes> {
    proptest::sample::select(choices).prop_map(Bytes::from_static)
}

pub fn key() -> impl Strategy<Value = Bytes> {
    one_of(&[b"a", b"aa", b"b", b"c", b"\xff"])
}

fn value() -> impl Strategy<Value = Bytes> {
    one_of(&[b"", b"x", b"y"])
}

pub fn key_range() -> impl Strategy<Value = KeyRange> {
    prop_oneof![
        key().prop_map(KeyRange::Single),
        (key(), key()).prop_map(|(start, end)| KeyRange::Between(start, end)),
        prop_oneof![key(), Just(Bytes::new())].prop_map(KeyRange::From),
    ]
}

/// Revisions are drawn low, so that many are there and some are gone or not there yet.
fn revision() -> impl Strategy<Value = i64> {
    -1..30i64
}

fn bounds() -> impl Strategy<Value = (i64, i64)> {
    prop_oneof![3 => Just((0, 0)), 1 => (0..20i64, 0..20i64)]
}

pub fn range() -> impl Strategy<Value = Range> {
    let target = prop_oneof![
        Just(SortTarget::Key),
        Just(SortTarget::Version),
        Just(SortTarget::Create),
        Just(SortTarget::Mod),
        Just(SortTarget::Value),
    ];
    (
        key_range(),
        prop_oneof![2 => Just(None), 1 => revision().prop_map(|revision| Some(Revision(revision)))],
        proptest::option::of(0..4u64),
        proptest::option::of((target, any::<bool>().prop_map(Descending))),
        (any::<bool>(), proptest::bool::weighted(0.2)),
        (bounds(), bounds()),
    )
        .prop_map(
            |(keys, revision, limit, sort, (keys_only, count_only), (mod_revision, create_revision))| Range {
                keys,
                revision,
                limit,
                sort,
                keys_only,
                count_only,
                mod_revision,
                create_revision,
            },
        )
}

fn put() -> impl Strategy<Value = Put> {
    let lease = prop_oneof![8 => Just(Some(0)), 2 => Just(None), 1 => Just(Some(7))];
    (key(), proptest::option::weighted(0.8, value()), lease, any::<bool>()).prop_map(|(key, value, lease, prev_kv)| {
        Put {
            key,
            value,
            lease,
            prev_kv,
        }
    })
}

fn delete() -> impl Strategy<Value = Delete> {
    (key_range(), any::<bool>()).prop_map(|(keys, prev_kv)| Delete { keys, prev_kv })
}

fn compare() -> impl Strategy<Value = Compare> {
    let op = prop_oneof![
        Just(CompareOp::Equal),
        Just(CompareOp::Greater),
        Just(CompareOp::Less),
        Just(CompareOp::NotEqual)
    ];
    let target = prop_oneof![
        (0..4i64).prop_map(CompareTarget::Version),
        revision().prop_map(CompareTarget::Create),
        revision().prop_map(CompareTarget::Mod),
        value().prop_map(CompareTarget::Value),
        (0..2i64).prop_map(CompareTarget::Lease),
    ];
    (key_range(), op, target).prop_map(|(keys, op, target)| Compare { keys, op, target })
}

pub fn txn() -> impl Strategy<Value = Txn> {
    let compares = || proptest::collection::vec(compare(), 0..3);
    let leaf = prop_oneof![
        range().prop_map(Op::Range),
        put().prop_map(Op::Put),
        delete().prop_map(Op::Delete)
    ];
    let op = leaf.prop_recursive(2, 12, 3, move |op| {
        let branch = || proptest::collection::vec(op.clone(), 0..3);
        (compares(), branch(), branch()).prop_map(|(compares, success, failure)| {
            Op::Txn(Txn {
                compares,
                success,
                failure,
            })
        })
    });
    let branch = proptest::collection::vec(op, 0..5);
    (proptest::collection::vec(compare(), 0..3), branch.clone(), branch).prop_map(|(compares, success, failure)| Txn {
        compares,
        success,
        failure,
    })
}

/// A transaction of a few plain puts: it leaves most keys to others.
pub fn puts() -> impl Strategy<Value = Txn> {
    let put = (key(), value()).prop_map(|(key, value)| {
        Op::Put(Put {
            key,
            value: Some(value),
            lease: Some(0),
            prev_kv: false,
        })
    });
    proptest::collection::vec(put, 1..3).prop_map(|success| Txn {
        success,
        ..Txn::default()
    })
}

pub fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        5 => put().prop_map(Command::Put),
        3 => delete().prop_map(Command::Delete),
        4 => txn().prop_map(Command::Txn),
        1 => revision().prop_map(|revision| Command::Compact(Revision(revision))),
    ]
}

fn span() -> impl Strategy<Value = Span> {
    (key(), proptest::option::of(key())).prop_map(|(start, end)| Span { start, end })
}

/// A range's part that a shard has, too.
fn part() -> impl Strategy<Value = KeyRange> {
    (span(), span()).prop_map(|(keys, span)| KeyRange::Part {
        start: keys.start,
        end: keys.end,
        span,
    })
}

fn territory() -> impl Strategy<Value = Territory> {
    let hash = (1..20_000_u32, any::<Option<u8>>())
        .prop_map(|(slots, prefix_segments)| Partitioning::Hash { slots, prefix_segments });
    let partitioning = prop_oneof![Just(Partitioning::Range), hash];
    (partitioning, span(), any::<u64>()).prop_map(|(partitioning, span, epoch)| Territory {
        partitioning,
        span,
        epoch,
    })
}

fn decision() -> impl Strategy<Value = Decision> {
    let commit = (any::<i64>(), proptest::collection::vec(any::<bool>(), 0..5));
    let commit = commit.prop_map(|(revision, path)| Decision::Commit {
        revision: Revision(revision),
        path,
    });
    prop_oneof![commit, Just(Decision::Abort)]
}

pub fn shard_command() -> impl Strategy<Value = ShardCommand> {
    let id = || {
        any::<(u64, u64, u64)>().prop_map(|(member, nonce, number)| TxnId {
            member: MemberId(member),
            nonce,
            number,
        })
    };
    let source = prop_oneof![Just(RevisionSource::Dense), Just(RevisionSource::Sequenced)];
    prop_oneof![
        (territory(), source).prop_map(|(territory, source)| ShardCommand::Settle { territory, source }),
        (any::<u64>(), key(), any::<u64>()).prop_map(|(epoch, at, child)| ShardCommand::Split {
            epoch,
            at,
            child: GroupId(child),
        }),
        any::<u64>().prop_map(|operation| ShardCommand::Seal { operation }),
        any::<u64>().prop_map(|operation| ShardCommand::Unseal { operation }),
        (any::<[u64; 4]>(), territory()).prop_map(|([operation, from, term, index], territory)| {
            ShardCommand::Absorb {
                operation,
                from: GroupId(from),
                position: LogPosition {
                    term: Term(term),
                    index: Index(index),
                },
                territory,
            }
        }),
        (id(), any::<u64>(), txn(), part()).prop_map(|(txn, coordinator, mut part, keys)| {
            part.success.push(Op::Delete(Delete { keys, prev_kv: true }));
            ShardCommand::Prepare {
                txn,
                coordinator: GroupId(coordinator),
                part,
            }
        }),
        (id(), decision()).prop_map(|(txn, decision)| ShardCommand::Decide { txn, decision }),
        (id(), decision()).prop_map(|(txn, decision)| ShardCommand::Finish { txn, decision }),
        id().prop_map(|txn| ShardCommand::Forget { txn }),
    ]
}
