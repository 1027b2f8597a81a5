//! A keyspace as a whole map for every revision.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use althing_store::ops::{
    Command, Compare, CompareOp, CompareTarget, KeyValue, Op, OpError, OpResult, Put, Range, RangeResult, Revision,
    SortTarget, Txn,
};
use bytes::Bytes;
use std::cmp::Ordering;
use std::collections::BTreeMap;

pub type Map = BTreeMap<Bytes, KeyValue>;

#[derive(Clone)]
pub struct Model {
    /// The state from each revision that changed anything on.
    maps: BTreeMap<i64, Map>,
    pub current: i64,
    pub compacted: i64,
}

/// A transaction under way: the state it makes, and whether it changed anything.
pub struct Working {
    pub map: Map,
    pub changed: bool,
}

impl Model {
    pub fn new() -> Self {
        Self {
            maps: BTreeMap::from([(0, Map::new())]),
            current: 1,
            compacted: -1,
        }
    }

    pub fn now(&self) -> &Map {
        self.at(i64::MAX)
    }

    pub fn at(&self, revision: i64) -> &Map {
        self.maps.range(..=revision).next_back().unwrap().1
    }

    fn check_revision(&self, revision: Option<Revision>) -> Result<(), OpError> {
        match revision {
            Some(Revision(revision)) if revision > self.current => Err(OpError::FutureRevision),
            Some(Revision(revision)) if revision > 0 && revision < self.compacted => Err(OpError::Compacted),
            None | Some(_) => Ok(()),
        }
    }

    pub fn range(&self, range: &Range, latest: &Map) -> Result<RangeResult, OpError> {
        self.check_revision(range.revision)?;
        let map = match range.revision {
            Some(Revision(revision)) if revision > 0 => self.at(revision),
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

    pub fn check(&self, op: &Op) -> Result<(), OpError> {
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

    pub fn run(&self, op: &Op, work: &mut Working) -> Result<(Revision, OpResult), OpError> {
        let main = Revision(self.current + 1);
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
        Ok((if work.changed { main } else { Revision(self.current) }, result))
    }

    /// `stamp`: the revision that it is to have, if not the next one.
    pub fn command(&mut self, command: &Command, stamp: Option<i64>) -> (i64, Result<OpResult, OpError>) {
        if let Some(stamp) = stamp {
            self.current = stamp - 1;
        }
        let op = match command {
            Command::Put(put) => Op::Put(put.clone()),
            Command::Delete(delete) => Op::Delete(delete.clone()),
            Command::Txn(txn) => Op::Txn(txn.clone()),
            Command::Compact(Revision(revision)) => {
                let result = if *revision <= self.compacted {
                    Err(OpError::Compacted)
                } else if *revision > self.current {
                    Err(OpError::FutureRevision)
                } else {
                    self.compacted = *revision;
                    Ok(OpResult::Compact)
                };
                return (self.current, result);
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
            self.current += 1;
            self.maps.insert(self.current, work.map);
        }
        (self.current, result)
    }
}
