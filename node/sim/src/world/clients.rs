//! Clients: each does one operation after the other at some machine, and writes down what it was told.

use super::conditions::Conditions;
use super::decision::Planned;
use crate::history::{CallId, ClientId, Expect, Op, Outcome, Recorder, Reply, Seen};
use crate::rng::Rng;
use althing_raft::ids::Index;
use althing_raft::io::RequestId;
use althing_shard::Refusal;
use althing_store::CommandResult;
use althing_store::ops::{
    Command, Compare, CompareOp, CompareTarget, Delete, KeyRange, KeyValue, Op as StoreOp, OpResult, Put, Range,
    Revision, Txn,
};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// What a client waits for.
#[derive(Clone, Debug)]
pub(crate) struct Current {
    pub(crate) call: CallId,
    pub(crate) op: Op,
    pub(crate) machine: usize,
    pub(crate) boot: u64,
    pub(crate) request: RequestId,
    /// The last entry that anybody had seen committed when it began.
    pub(crate) committed: Index,
}

/// One client.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) rng: Rng,
    pub(crate) left: u32,
    pub(crate) machine: usize,
    pub(crate) current: Option<Current>,
    /// In a repeated run, what it will do.
    pub(crate) planned: VecDeque<Planned>,
    written: u32,
    /// What it saw last of each key, for compare-and-swap.
    known: BTreeMap<String, Seen>,
}

/// All clients and their common notebook.
#[derive(Debug)]
pub(crate) struct Clients {
    pub(crate) all: Vec<Client>,
    pub(crate) recorder: Recorder,
    keys: u64,
    reads_per_mille: u64,
}

impl Clients {
    pub(crate) fn new(seed: u64, conditions: &Conditions) -> Self {
        let client = |number: u32| Client {
            rng: Rng::split(seed, "client", u64::from(number)),
            left: conditions.operations,
            machine: 0,
            current: None,
            planned: VecDeque::new(),
            written: 0,
            known: BTreeMap::new(),
        };
        Self {
            all: (0..conditions.clients).map(client).collect(),
            recorder: Recorder::default(),
            keys: conditions.keys,
            reads_per_mille: conditions.leases.map_or(0, |leases| leases.reads_per_mille),
        }
    }

    pub(crate) fn idle(&self) -> bool {
        self.all
            .iter()
            .all(|client| client.left == 0 && client.current.is_none())
    }

    /// In a repeated run, clients do what is planned and nothing else.
    pub(crate) fn plan(&mut self, operations: &[Planned]) {
        for client in &mut self.all {
            client.left = 0;
        }
        for operation in operations {
            if let Some(client) = self.all.get_mut(operation.client) {
                client.planned.push_back(operation.clone());
                client.left += 1;
            }
        }
    }

    /// No client does more than so many operations from now on.
    pub(crate) fn finish_soon(&mut self, operations: u32) {
        for client in &mut self.all {
            client.left = client.left.min(operations);
            client.planned.truncate(client.left as usize);
        }
    }

    /// The next operation of a client.
    pub(crate) fn next_op(&mut self, number: usize) -> Op {
        let client = &mut self.all[number];
        client.left -= 1;
        let key = format!("k{}", client.rng.below(self.keys));
        if self.reads_per_mille > 0 && client.rng.chance(self.reads_per_mille) {
            return Op::Get { key };
        }
        match client.rng.below(20) {
            0..7 => Op::Put {
                value: client.value(number),
                key,
            },
            7..15 => Op::Get { key },
            15..17 => Op::Delete { key },
            _ => {
                let expect = match client.known.get(&key) {
                    Some(seen) if client.rng.chance(500) => Expect::Value(seen.value.clone()),
                    Some(seen) => Expect::ModRevision(seen.mod_revision),
                    None => Expect::Absent,
                };
                Op::CompareAndSwap {
                    value: client.value(number),
                    key,
                    expect,
                }
            }
        }
    }

    pub(crate) fn begin(&mut self, number: usize, op: Op, now: u64) -> CallId {
        let client = ClientId(u32::try_from(number).expect("invariant: few clients"));
        self.recorder.invoke(client, op, now)
    }

    /// A client's operation ended.
    pub(crate) fn end(&mut self, number: usize, outcome: Outcome, now: u64) {
        let client = &mut self.all[number];
        let Some(current) = client.current.take() else {
            return;
        };
        if let Outcome::Ok { reply } = &outcome {
            client.learn(&current.op, reply);
        }
        self.recorder.complete(current.call, outcome, now);
    }
}

impl Client {
    fn value(&mut self, number: usize) -> String {
        self.written += 1;
        format!("{number}-{}", self.written)
    }

    fn learn(&mut self, op: &Op, reply: &Reply) {
        let seen = match (op, reply) {
            (_, Reply::Get { seen, .. } | Reply::NotSwapped { seen, .. }) => seen.clone(),
            (
                Op::Put { value, .. } | Op::CompareAndSwap { value, .. },
                Reply::Put { revision } | Reply::Swapped { revision },
            ) => Some(Seen {
                value: value.clone(),
                mod_revision: *revision,
                version: 0,
            }),
            (Op::Get { .. } | Op::Delete { .. } | Op::Put { .. } | Op::CompareAndSwap { .. }, _) => None,
        };
        match seen {
            Some(seen) => self.known.insert(op.key().to_owned(), seen),
            None => self.known.remove(op.key()),
        };
    }
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn single(key: &str) -> KeyRange {
    KeyRange::Single(bytes(key))
}

/// The store's form of a write.
pub(crate) fn put(key: &str, value: &str) -> Put {
    Put {
        key: bytes(key),
        value: Some(bytes(value)),
        lease: Some(0),
        prev_kv: false,
    }
}

/// The store's form of a comparison.
pub(crate) fn compare(key: &str, expect: &Expect) -> Compare {
    Compare {
        keys: single(key),
        op: CompareOp::Equal,
        target: match expect {
            Expect::Absent => CompareTarget::Mod(0),
            Expect::ModRevision(revision) => CompareTarget::Mod(*revision),
            Expect::Value(value) => CompareTarget::Value(bytes(value)),
        },
    }
}

/// The store's form of an operation; `None` for a read, which needs no entry.
pub(crate) fn command(op: &Op) -> Option<Command> {
    Some(match op {
        Op::Get { .. } => return None,
        Op::Put { key, value } => Command::Put(put(key, value)),
        Op::Delete { key } => Command::Delete(Delete {
            keys: single(key),
            prev_kv: false,
        }),
        Op::CompareAndSwap { key, expect, value } => Command::Txn(Txn {
            compares: vec![compare(key, expect)],
            success: vec![StoreOp::Put(put(key, value))],
            failure: vec![StoreOp::Range(Range::of(single(key)))],
        }),
    })
}

/// A key as the history shows it.
pub(crate) fn seen(kv: &KeyValue) -> Seen {
    Seen {
        value: String::from_utf8_lossy(&kv.value).into_owned(),
        mod_revision: kv.mod_revision.0,
        version: kv.version,
    }
}

/// The answer to a command, as its client sees it.
pub(crate) fn command_outcome(result: &CommandResult) -> Outcome {
    let failed = |error: String| Outcome::Failed { error };
    match (&result.result, reply_of(result)) {
        (Err(error), _) => failed(error.to_string()),
        (Ok(_), Some(reply)) => Outcome::Ok { reply },
        (Ok(_), None) => failed("another kind of answer".to_owned()),
    }
}

/// What a command answered that was not refused; `None` if it is no answer to any operation of a client.
pub(crate) fn reply_of(result: &CommandResult) -> Option<Reply> {
    let Revision(revision) = result.revision;
    Some(match result.result.as_ref().ok()? {
        OpResult::Put { .. } => Reply::Put { revision },
        OpResult::Delete { deleted, .. } => Reply::Delete {
            revision,
            deleted: *deleted > 0,
        },
        OpResult::Txn { succeeded: true, .. } => Reply::Swapped { revision },
        OpResult::Txn {
            succeeded: false,
            results,
        } => {
            let kv = match results.first() {
                Some((_, OpResult::Range(range))) => range.kvs.first(),
                Some((
                    _,
                    OpResult::Put { .. }
                    | OpResult::Delete { .. }
                    | OpResult::Txn { .. }
                    | OpResult::Compact
                    | OpResult::Shard(_),
                ))
                | None => None,
            };
            Reply::NotSwapped {
                revision,
                seen: kv.map(seen),
            }
        }
        OpResult::Range(_) | OpResult::Compact | OpResult::Shard(_) => return None,
    })
}

/// What a refusal means for its client. `Failed` is a promise: the command will never take effect.
pub(crate) fn refusal_outcome(op: &Op, refusal: Refusal) -> Outcome {
    let error = refusal.to_string();
    let read = command(op).is_none();
    match refusal {
        Refusal::LeaderChanged | Refusal::Timeout if !read => Outcome::Unknown { error },
        Refusal::LeaderChanged
        | Refusal::Timeout
        | Refusal::NoLeader
        | Refusal::NoStamp
        | Refusal::NotLeader { .. }
        | Refusal::TooManyRequests
        | Refusal::Conflict { .. }
        | Refusal::ChangeInFlight
        | Refusal::ChangeInvalid
        | Refusal::LearnerBehind
        | Refusal::BadTransferee
        | Refusal::SpecInvalid(_)
        | Refusal::Learner
        | Refusal::NotMember
        | Refusal::NoGroup => Outcome::Failed { error },
    }
}
