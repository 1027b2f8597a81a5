//! The state machine against a model that keeps a whole map for every revision.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failure of the test")]

#[path = "common/arb.rs"]
mod arb;
mod common;

use althing_store::ops::{
    Command, Compare, CompareOp, CompareTarget, KeyRange, KeyValue, Op, OpError, OpResult, Put, Range, RangeResult,
    Revision, SortTarget, Txn,
};
use althing_store::{ApplyItem, MemStore, Mvcc, SledOptions, SledStore, StateStore};
use bytes::Bytes;
use common::*;
use proptest::prelude::*;
use std::cmp::Ordering;
use std::collections::BTreeMap;

type Map = BTreeMap<Bytes, KeyValue>;

/// `maps[r - 1]` is the state at revision `r`.
#[derive(Clone)]
struct Model {
    maps: Vec<Map>,
    compacted: i64,
}

/// A transaction under way: the state it makes, and whether it changed anything.
struct Working {
    map: Map,
    changed: bool,
}

impl Model {
    fn new() -> Self {
        Self {
            maps: vec![Map::new()],
            compacted: -1,
        }
    }

    fn current(&self) -> i64 {
        self.maps.len() as i64
    }

    fn now(&self) -> &Map {
        self.maps.last().unwrap()
    }

    fn check_revision(&self, revision: Option<Revision>) -> Result<(), OpError> {
        match revision {
            Some(Revision(revision)) if revision > self.current() => Err(OpError::FutureRevision),
            Some(Revision(revision)) if revision > 0 && revision < self.compacted => Err(OpError::Compacted),
            None | Some(_) => Ok(()),
        }
    }

    fn range(&self, range: &Range, latest: &Map) -> Result<RangeResult, OpError> {
        self.check_revision(range.revision)?;
        let map = match range.revision {
            Some(Revision(revision)) if revision > 0 => &self.maps[revision as usize - 1],
            None | Some(_) => latest,
        };
        let inside: Vec<_> = map
            .values()
            .filter(|kv| range.keys.contains(&kv.key))
            .cloned()
            .collect();
        let count = inside.len() as i64;
        if range.count_only {
            return Ok(RangeResult {
                kvs: vec![],
                more: false,
                count,
            });
        }
        let ok = |revision: Revision, (min, max): (i64, i64)| revision.0 >= min && (max == 0 || revision.0 <= max);
        let mut kvs: Vec<_> = inside
            .into_iter()
            .filter(|kv| ok(kv.mod_revision, range.mod_revision) && ok(kv.create_revision, range.create_revision))
            .collect();
        if let Some((target, descending)) = range.sort {
            let number = |kv: &KeyValue| match target {
                SortTarget::Version => kv.version,
                SortTarget::Create => kv.create_revision.0,
                SortTarget::Mod => kv.mod_revision.0,
                SortTarget::Key | SortTarget::Value => 0,
            };
            let text = |kv: &KeyValue| match target {
                SortTarget::Key => kv.key.clone(),
                SortTarget::Value => kv.value.clone(),
                SortTarget::Version | SortTarget::Create | SortTarget::Mod => Bytes::new(),
            };
            kvs.sort_by(|left, right| {
                let order = (number(left), text(left)).cmp(&(number(right), text(right)));
                if descending.0 { order.reverse() } else { order }
            });
        }
        let limit = range.limit.map_or(usize::MAX, |limit| limit as usize);
        let more = kvs.len() > limit;
        kvs.truncate(limit);
        if range.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        Ok(RangeResult { kvs, more, count })
    }

    fn holds(&self, compare: &Compare) -> bool {
        let one = |kv: Option<&KeyValue>| {
            let zero = KeyValue::default();
            let kv_or_zero = kv.unwrap_or(&zero);
            let order = match &compare.target {
                CompareTarget::Version(with) => kv_or_zero.version.cmp(with),
                CompareTarget::Create(with) => kv_or_zero.create_revision.0.cmp(with),
                CompareTarget::Mod(with) => kv_or_zero.mod_revision.0.cmp(with),
                CompareTarget::Lease(with) => kv_or_zero.lease.cmp(with),
                CompareTarget::Value(_) if kv.is_none() => return false,
                CompareTarget::Value(with) => kv_or_zero.value.cmp(with),
            };
            match compare.op {
                CompareOp::Equal => order == Ordering::Equal,
                CompareOp::NotEqual => order != Ordering::Equal,
                CompareOp::Less => order == Ordering::Less,
                CompareOp::Greater => order == Ordering::Greater,
            }
        };
        let mut inside = self
            .now()
            .values()
            .filter(|kv| compare.keys.contains(&kv.key))
            .peekable();
        if inside.peek().is_none() {
            one(None)
        } else {
            inside.all(|kv| one(Some(kv)))
        }
    }

    fn branch<'t>(&self, txn: &'t Txn) -> (bool, &'t [Op]) {
        let succeeded = txn.compares.iter().all(|compare| self.holds(compare));
        (succeeded, if succeeded { &txn.success } else { &txn.failure })
    }

    fn check(&self, op: &Op) -> Result<(), OpError> {
        match op {
            Op::Range(range) => self.check_revision(range.revision),
            Op::Delete(_) => Ok(()),
            Op::Put(Put { lease: Some(lease), .. }) if *lease != 0 => Err(OpError::LeaseNotFound),
            Op::Put(put) if (put.value.is_none() || put.lease.is_none()) && !self.now().contains_key(&put.key) => {
                Err(OpError::KeyNotFound)
            }
            Op::Put(_) => Ok(()),
            Op::Txn(inner) => self.branch(inner).1.iter().try_for_each(|op| self.check(op)),
        }
    }

    fn run(&self, op: &Op, work: &mut Working) -> Result<(Revision, OpResult), OpError> {
        let main = Revision(self.current() + 1);
        let result = match op {
            Op::Range(range) => OpResult::Range(self.range(range, &work.map)?),
            Op::Put(put) => {
                let before = work.map.get(&put.key).cloned();
                let kept = |kept: bool| {
                    if kept {
                        before.clone().ok_or(OpError::KeyNotFound).map(Some)
                    } else {
                        Ok(None)
                    }
                };
                let (kept_value, kept_lease) = (kept(put.value.is_none())?, kept(put.lease.is_none())?);
                let kv = KeyValue {
                    key: put.key.clone(),
                    create_revision: before.as_ref().map_or(main, |kv| kv.create_revision),
                    mod_revision: main,
                    version: before.as_ref().map_or(1, |kv| kv.version + 1),
                    value: kept_value.map_or_else(|| put.value.clone().unwrap_or_default(), |kv| kv.value),
                    lease: kept_lease.map_or_else(|| put.lease.unwrap_or_default(), |kv| kv.lease),
                };
                work.map.insert(put.key.clone(), kv);
                work.changed = true;
                OpResult::Put {
                    prev: before.filter(|_| put.prev_kv),
                }
            }
            Op::Delete(delete) => {
                let gone: Vec<_> = work
                    .map
                    .values()
                    .filter(|kv| delete.keys.contains(&kv.key))
                    .cloned()
                    .collect();
                work.map.retain(|key, _| !delete.keys.contains(key));
                work.changed |= !gone.is_empty();
                let deleted = gone.len() as i64;
                OpResult::Delete {
                    deleted,
                    prev: if delete.prev_kv { gone } else { vec![] },
                }
            }
            Op::Txn(inner) => {
                let (succeeded, branch) = self.branch(inner);
                let results = branch.iter().map(|op| self.run(op, work)).collect::<Result<_, _>>()?;
                return Ok((Revision(0), OpResult::Txn { succeeded, results }));
            }
        };
        Ok((if work.changed { main } else { Revision(self.current()) }, result))
    }

    fn command(&mut self, command: &Command) -> (i64, Result<OpResult, OpError>) {
        let op = match command {
            Command::Put(put) => Op::Put(put.clone()),
            Command::Delete(delete) => Op::Delete(delete.clone()),
            Command::Txn(txn) => Op::Txn(txn.clone()),
            Command::Compact(Revision(revision)) => {
                let result = if *revision <= self.compacted {
                    Err(OpError::Compacted)
                } else if *revision > self.current() {
                    Err(OpError::FutureRevision)
                } else {
                    self.compacted = *revision;
                    Ok(OpResult::Compact)
                };
                return (self.current(), result);
            }
            Command::Shard(command) => unreachable!("{command:?} is not drawn here"),
        };
        let mut work = Working {
            map: self.now().clone(),
            changed: false,
        };
        let result = self
            .check(&op)
            .and_then(|()| self.run(&op, &mut work))
            .map(|(_, result)| result);
        if result.is_ok() && work.changed {
            self.maps.push(work.map);
        }
        (self.current(), result)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Apply(Vec<Command>),
    Range(Range),
    Sweep,
    Reopen,
    Snapshot,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => proptest::collection::vec(arb::command(), 1..4).prop_map(Step::Apply),
        4 => arb::range().prop_map(Step::Range),
        1 => Just(Step::Sweep),
        1 => Just(Step::Reopen),
        1 => Just(Step::Snapshot),
    ];
    proptest::collection::vec(step, 1..25)
}

/// Runs the steps on a store and on the model. `other` makes an empty store to send snapshots to.
fn run<S: StateStore>(steps: Vec<Step>, store: S, mut other: impl FnMut() -> S) -> Result<(), TestCaseError> {
    let mut model = Model::new();
    let mut store = store;
    let mut keys = Keys {
        mvcc: Mvcc::open(store.clone(), G).unwrap(),
    };
    for step in steps {
        match step {
            Step::Apply(commands) => {
                let expected: Vec<_> = commands.iter().map(|command| Some(model.command(command))).collect();
                let items: Vec<_> = commands.into_iter().map(ApplyItem::unstamped).collect();
                prop_assert_eq!(keys.apply(&items), expected);
            }
            Step::Range(range) => {
                let expected = model.range(&range, model.now());
                prop_assert_eq!(keys.range(&range), expected);
                let txn = Txn {
                    success: vec![Op::Range(range)],
                    ..Txn::default()
                };
                let expected = model.check(&txn.success[0]).map(|()| {
                    let mut work = Working {
                        map: model.now().clone(),
                        changed: false,
                    };
                    (
                        Revision(model.current()),
                        model.run(&Op::Txn(txn.clone()), &mut work).unwrap().1,
                    )
                });
                prop_assert_eq!(keys.mvcc.read_txn(&txn).unwrap(), expected);
            }
            Step::Sweep => keys.sweep(),
            Step::Reopen => {
                keys = Keys {
                    mvcc: Mvcc::open(store.clone(), G).unwrap(),
                }
            }
            Step::Snapshot if keys.mvcc.applied().position.index.0 == 0 => {}
            Step::Snapshot => {
                let target = other();
                let fresh = Mvcc::open(target.clone(), G).unwrap();
                let mut import = fresh.import();
                for chunk in keys.mvcc.export().unwrap() {
                    import.chunk(&chunk.unwrap()).unwrap();
                }
                prop_assert_eq!(fresh.install(import).unwrap(), keys.mvcc.applied());
                prop_assert_eq!(fresh.size().unwrap().in_use, keys.mvcc.size().unwrap().in_use);
                store = target;
                keys = Keys { mvcc: fresh };
            }
        }
        prop_assert_eq!(keys.revision(), model.current());
        prop_assert_eq!(keys.mvcc.size().unwrap().keys, model.now().len() as u64);
    }
    // Everything still readable reads as it was, before and after whatever a sweep drops, and after a reopen.
    for pass in 0..3 {
        for revision in model.compacted.max(1)..=model.current() {
            let range = Range {
                revision: Some(Revision(revision)),
                ..Range::of(KeyRange::From(Bytes::new()))
            };
            prop_assert_eq!(
                keys.range(&range),
                model.range(&range, model.now()),
                "revision {} in pass {}",
                revision,
                pass
            );
        }
        if pass == 0 {
            keys.sweep();
        } else {
            keys = Keys {
                mvcc: Mvcc::open(store.clone(), G).unwrap(),
            };
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn in_memory_it_does_what_the_model_does(steps in steps()) {
        run(steps, MemStore::default(), MemStore::default)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 25, ..ProptestConfig::default() })]

    #[test]
    fn over_sled_it_does_what_the_model_does(steps in steps()) {
        let dirs = std::cell::RefCell::new(Vec::new());
        let open = || {
            let dir = tempfile::tempdir().unwrap();
            let store = SledStore::open(dir.path(), SledOptions { cache_bytes: 1 << 20 }).unwrap().0;
            dirs.borrow_mut().push(dir);
            store
        };
        run(steps, open(), open)?;
    }
}
