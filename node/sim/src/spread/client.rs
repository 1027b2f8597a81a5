//! Who asks: a process that runs one request at a time, its transactions and reads, and what it frees of others.

use crate::rng::Rng;
use althing_raft::ids::GroupId;
use althing_shard::txn::{Asked, Cleanup, Recovery, SnapshotRead, Transaction};
use althing_store::ops::{
    Command, Compare, CompareOp, CompareTarget, Delete, KeyRange, Op, OpError, OpResult, Put, Range, Revision, Txn,
    TxnId,
};
use bytes::Bytes;
use std::collections::BTreeMap;

/// What a client asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Request {
    Write(Command),
    Read(Range),
}

/// What it was told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// Nothing, or that nobody knows.
    Unknown,
    /// That certainly nothing happened.
    Nothing,
    /// As one shard would have refused it.
    Refused(OpError),
    /// The answer.
    Done(Revision, OpResult),
    /// That it happened then, but not what came of it.
    Happened(Revision),
}

/// One request.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) request: Request,
    pub(super) invoked: u64,
    /// When the client was told, in the order of everything that happened.
    pub(super) ended: Option<u64>,
    pub(super) outcome: Outcome,
}

/// Something that goes on.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "a client has a handful")]
pub(super) enum Task {
    Write,
    Spread {
        transaction: Transaction,
        /// With `StampAfterPrepare` broken: the revision that was asked for too early, and whether it is wanted.
        early: Option<Revision>,
        wanted: bool,
    },
    Read(SnapshotRead),
    Recovery(Recovery),
    Cleanup(Cleanup),
}

/// What a call is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CallKind {
    Write,
    Propose(Asked),
    Read,
    Newest,
    Stamp,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) task: u64,
    pub(super) group: GroupId,
    pub(super) kind: CallKind,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Client {
    /// Rises with each life.
    pub(super) life: u64,
    pub(super) alive: bool,
    /// The request under way, and its task.
    pub(super) current: Option<(usize, u64)>,
    pub(super) tasks: BTreeMap<u64, Task>,
    pub(super) calls: BTreeMap<u64, Call>,
    /// Where it believes leaders to be.
    pub(super) guess: BTreeMap<GroupId, usize>,
    /// How fast its clock goes, in thousandths.
    pub(super) rate: u64,
    /// Locks that it has met, and when first.
    pub(super) met: BTreeMap<TxnId, u64>,
    /// What it does next, for workloads in steps.
    pub(super) step: u64,
    /// Its key of the lock that clients fight for.
    pub(super) lock: String,
}

/// Keys, two a shard.
pub(super) const KEYS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

pub(super) fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub(super) fn put(key: &str, value: &str) -> Put {
    Put {
        key: bytes(key),
        value: Some(bytes(value)),
        lease: Some(0),
        prev_kv: false,
    }
}

fn key(rng: &mut Rng) -> &'static str {
    rng.pick(&KEYS).expect("there are keys")
}

fn keys(rng: &mut Rng) -> KeyRange {
    match rng.below(12) {
        0 => KeyRange::From(Bytes::new()),
        1 | 2 => {
            let (one, other) = (key(rng), key(rng));
            KeyRange::Between(bytes(one.min(other)), bytes(one.max(other)))
        }
        _ => KeyRange::Single(bytes(key(rng))),
    }
}

fn compare(rng: &mut Rng) -> Compare {
    let number = rng.below(4) as i64;
    let target = match rng.below(3) {
        0 => CompareTarget::Version(number),
        1 => CompareTarget::Create(number * 40),
        _ => CompareTarget::Value(bytes(&(rng.below(100)).to_string())),
    };
    let op = match rng.below(3) {
        0 => CompareOp::Equal,
        1 => CompareOp::Less,
        _ => CompareOp::NotEqual,
    };
    let keys = keys(rng);
    Compare { keys, op, target }
}

fn ops(rng: &mut Rng, value: &str, most: u64, depth: u32) -> Vec<Op> {
    let mut ops = Vec::new();
    let mut free: Vec<&str> = KEYS.to_vec();
    for _ in 0..rng.between(1, most) {
        match rng.below(if depth == 0 { 9 } else { 10 }) {
            0 | 1 => ops.push(Op::Range(Range::of(keys(rng)))),
            2 => ops.push(Op::Delete(Delete {
                keys: keys(rng),
                prev_kv: rng.chance(500),
            })),
            9 => ops.push(Op::Txn(txn(rng, value, depth - 1))),
            _ => {
                let key = free.remove(rng.below(free.len() as u64) as usize);
                ops.push(Op::Put(Put {
                    prev_kv: rng.chance(300),
                    ..put(key, value)
                }));
            }
        }
    }
    ops
}

pub(super) fn txn(rng: &mut Rng, value: &str, depth: u32) -> Txn {
    let compares = (0..rng.below(3)).map(|_| compare(rng)).collect();
    Txn {
        compares,
        success: ops(rng, value, 4, depth),
        failure: ops(rng, value, 3, depth),
    }
}

/// Anything that a client may ask for.
pub(super) fn anything(rng: &mut Rng, value: &str) -> Request {
    match rng.below(10) {
        0..=2 => Request::Read(Range::of(keys(rng))),
        3..=5 => Request::Write(Command::Put(Put {
            prev_kv: rng.chance(300),
            ..put(key(rng), value)
        })),
        6 => Request::Write(Command::Delete(Delete {
            keys: keys(rng),
            prev_kv: true,
        })),
        _ => {
            let txn = txn(rng, value, 1);
            if txn.read_only() {
                return Request::Read(Range::of(KeyRange::From(Bytes::new())));
            }
            Request::Write(Command::Txn(txn))
        }
    }
}
