//! Running commands one after another on top of a state, before any of it is written.

use crate::mvcc::State;
use crate::mvcc::index::{Change, Head};
use crate::mvcc::layout::{Live, Row, RowId};
use crate::mvcc::view::{Delta, Fail, View, compare_holds, finish_range, read_revision, rows_wanted};
use crate::ops::{
    Command, Compare, Delete, KeyRange, KeyValue, Op, OpError, OpResult, Put, Range, RangeResult, Revision, Txn,
};
use crate::state::StateStore;
use bytes::Bytes;
use std::collections::BTreeMap;

/// Which branch a transaction takes, and its nested ones in order. Decided before anything is written.
#[derive(Debug)]
struct Path {
    succeeded: bool,
    nested: Vec<Path>,
}

impl Path {
    fn branch<'t>(&self, txn: &'t Txn) -> &'t [Op] {
        if self.succeeded { &txn.success } else { &txn.failure }
    }
}

/// A state, and what the commands run so far make of it.
pub(crate) struct Exec<'a, S> {
    store: &'a S,
    state: &'a State,
    /// Current revision, without the command under way.
    pub(crate) current: i64,
    pub(crate) compacted: i64,
    pub(crate) delta: Delta,
    /// Encoded rows, in order.
    pub(crate) rows: BTreeMap<RowId, Bytes>,
    /// Changes of the command under way: the key and its head before, to take it back.
    changed: Vec<(Bytes, Head)>,
}

impl<'a, S: StateStore> Exec<'a, S> {
    pub(crate) fn new(store: &'a S, state: &'a State) -> Self {
        Self {
            store,
            state,
            current: state.record.current,
            compacted: state.record.compacted,
            delta: Delta::new(),
            rows: BTreeMap::new(),
            changed: Vec::new(),
        }
    }

    /// Runs one command as a whole, or takes back what it did.
    pub(crate) fn command(&mut self, command: &Command) -> Result<(Revision, Result<OpResult, OpError>), Fail> {
        let result = match command {
            Command::Put(put) => self.check_put(put).and_then(|()| self.put(put)),
            Command::Delete(delete) => self.delete(delete),
            Command::Txn(txn) => self.txn(txn),
            Command::Compact(revision) => self.compact(*revision).map_err(Fail::Op),
        };
        let result = match result {
            Ok(result) => {
                self.current = self.revision_now();
                self.changed.clear();
                Ok(result)
            }
            Err(Fail::Op(error)) => {
                self.take_back();
                Err(error)
            }
            Err(Fail::Store(error)) => return Err(Fail::Store(error)),
        };
        Ok((Revision(self.current), result))
    }

    /// Runs a transaction: comparisons and checks first, on the state before it, so that it never stops half-way.
    pub(crate) fn txn(&mut self, txn: &Txn) -> Result<OpResult, Fail> {
        let path = self.choose(txn)?;
        self.check_txn(txn, &path)?;
        self.run_txn(txn, &path)
    }

    /// The revision that the command under way has made, or the current one while it changed nothing.
    fn revision_now(&self) -> i64 {
        if self.changed.is_empty() {
            self.current
        } else {
            self.current + 1
        }
    }

    fn view(&self) -> View<'_> {
        View {
            index: &self.state.index,
            delta: Some(&self.delta),
        }
    }

    fn compact(&mut self, Revision(revision): Revision) -> Result<OpResult, OpError> {
        if revision <= self.compacted {
            return Err(OpError::Compacted);
        }
        if revision > self.current {
            return Err(OpError::FutureRevision);
        }
        self.compacted = revision;
        Ok(OpResult::Compact)
    }

    fn choose(&self, txn: &Txn) -> Result<Path, Fail> {
        let mut succeeded = true;
        for compare in &txn.compares {
            if !self.compare(compare)? {
                succeeded = false;
                break;
            }
        }
        let mut path = Path {
            succeeded,
            nested: Vec::new(),
        };
        for op in path.branch(txn) {
            if let Op::Txn(inner) = op {
                path.nested.push(self.choose(inner)?);
            }
        }
        Ok(path)
    }

    fn compare(&self, compare: &Compare) -> Result<bool, Fail> {
        let rows = self.view().list(&compare.keys, self.current, usize::MAX).rows;
        if rows.is_empty() {
            return Ok(compare_holds(compare, None));
        }
        for id in rows {
            if !compare_holds(compare, Some(&self.fetch(id)?)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn check_txn(&self, txn: &Txn, path: &Path) -> Result<(), Fail> {
        let mut nested = path.nested.iter();
        for op in path.branch(txn) {
            match op {
                Op::Range(range) => {
                    read_revision(range.revision, self.current, self.compacted)?;
                }
                Op::Put(put) => self.check_put(put)?,
                Op::Delete(_) => {}
                Op::Txn(inner) => {
                    let path = nested.next().expect("invariant: a path for every nested transaction");
                    self.check_txn(inner, path)?;
                }
            }
        }
        Ok(())
    }

    fn check_put(&self, put: &Put) -> Result<(), Fail> {
        // Leases are not granted by this version, so no id but 0 can be valid. etcd looks at the lease before the key.
        if put.lease.is_some_and(|lease| lease != 0) {
            return Err(OpError::LeaseNotFound.into());
        }
        if (put.value.is_none() || put.lease.is_none()) && self.head(&put.key).version == 0 {
            return Err(OpError::KeyNotFound.into());
        }
        Ok(())
    }

    fn run_txn(&mut self, txn: &Txn, path: &Path) -> Result<OpResult, Fail> {
        let mut nested = path.nested.iter();
        let mut results = Vec::new();
        for op in path.branch(txn) {
            results.push(match op {
                Op::Range(range) => (Revision(self.revision_now()), OpResult::Range(self.range(range)?)),
                Op::Put(put) => {
                    let result = self.put(put)?;
                    (Revision(self.revision_now()), result)
                }
                Op::Delete(delete) => {
                    let result = self.delete(delete)?;
                    (Revision(self.revision_now()), result)
                }
                Op::Txn(inner) => {
                    let path = nested.next().expect("invariant: a path for every nested transaction");
                    // etcd leaves the header of a nested transaction empty.
                    (Revision(0), self.run_txn(inner, path)?)
                }
            });
        }
        Ok(OpResult::Txn {
            succeeded: path.succeeded,
            results,
        })
    }

    fn range(&self, range: &Range) -> Result<RangeResult, Fail> {
        let revision = read_revision(range.revision, self.revision_now(), self.compacted)?;
        let listing = self.view().list(&range.keys, revision, rows_wanted(range));
        let kvs = listing
            .rows
            .into_iter()
            .map(|id| self.fetch(id))
            .collect::<Result<_, _>>()?;
        Ok(finish_range(range, kvs, listing.count))
    }

    fn put(&mut self, put: &Put) -> Result<OpResult, Fail> {
        let before = if put.prev_kv || put.value.is_none() || put.lease.is_none() {
            let rows = self
                .view()
                .list(&KeyRange::Single(put.key.clone()), self.revision_now(), 1)
                .rows;
            rows.first().map(|id| self.fetch(*id)).transpose()?
        } else {
            None
        };
        let (value, lease) = match (&put.value, put.lease, &before) {
            (Some(value), Some(lease), _) => (value.clone(), lease),
            (value, lease, Some(before)) => (
                value.clone().unwrap_or_else(|| before.value.clone()),
                lease.unwrap_or(before.lease),
            ),
            (_, _, None) => return Err(OpError::KeyNotFound.into()),
        };
        let was = self.head(&put.key);
        let main = self.current + 1;
        let head = if was.version == 0 {
            Head {
                create: main,
                version: 1,
            }
        } else {
            Head {
                create: was.create,
                version: was.version + 1,
            }
        };
        self.change(
            &put.key,
            was,
            head,
            Some(Live {
                create: head.create,
                version: head.version,
                lease,
                value,
            }),
        );
        Ok(OpResult::Put {
            prev: before.filter(|_| put.prev_kv),
        })
    }

    fn delete(&mut self, delete: &Delete) -> Result<OpResult, Fail> {
        let mut keys = Vec::new();
        let mut rows = Vec::new();
        self.view().each(&delete.keys, self.revision_now(), |key, change| {
            keys.push(Bytes::copy_from_slice(key));
            rows.push(change.id());
        });
        let prev = if delete.prev_kv {
            rows.into_iter().map(|id| self.fetch(id)).collect::<Result<_, _>>()?
        } else {
            Vec::new()
        };
        for key in &keys {
            let was = self.head(key);
            self.change(key, was, Head::default(), None);
        }
        Ok(OpResult::Delete {
            deleted: i64::try_from(keys.len()).expect("invariant: keys fit in memory"),
            prev,
        })
    }

    fn head(&self, key: &[u8]) -> Head {
        let history = self.delta.get(key).or_else(|| self.state.index.get(key));
        history.map_or_else(Head::default, |history| history.head)
    }

    /// Adds a change to a key; the caller has looked up its head before.
    fn change(&mut self, key: &Bytes, was: Head, head: Head, live: Option<Live>) {
        let sub = u32::try_from(self.changed.len()).expect("invariant: a command changes fewer than 2^32 keys");
        let id = RowId {
            main: self.current + 1,
            sub,
        };
        let removal = live.is_none();
        let row = Row { key: key.clone(), live }.encode();
        let history = self.delta.entry(key.clone()).or_default();
        history.head = head;
        history.changes.push(Change::new(id, row.len(), removal));
        self.rows.insert(id, row.into());
        self.changed.push((key.clone(), was));
    }

    /// Undoes the command under way.
    fn take_back(&mut self) {
        while let Some((key, before)) = self.changed.pop() {
            let history = self
                .delta
                .get_mut(&key)
                .expect("invariant: a changed key has a history");
            let change = history.changes.pop().expect("invariant: and a change in it");
            history.head = before;
            if history.changes.is_empty() {
                self.delta.remove(&key);
            }
            self.rows.remove(&change.id());
        }
    }

    fn fetch(&self, id: RowId) -> Result<KeyValue, Fail> {
        let row = match self.rows.get(&id).or_else(|| self.state.pending.get(id)) {
            Some(row) => Some(row.clone()),
            None => self.store.get(&self.state.slot.row_key(id))?,
        };
        Ok(self.state.key_value(id, row)?)
    }
}
