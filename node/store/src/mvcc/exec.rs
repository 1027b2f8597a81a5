//! Running commands one after another on top of a state, before any of it is written.

use crate::mvcc::State;
use crate::mvcc::behind::Written;
use crate::mvcc::index::{Change, Head};
use crate::mvcc::layout::{Live, Place, Row, RowId};
use crate::mvcc::shard::Shard;
use crate::mvcc::split::Reshape;
use crate::mvcc::txns::{Transactions, TxnChanges};
use crate::mvcc::view::{Delta, Fail, View, compare_holds, finish_range, read_revision, rows_wanted};
use crate::ops::{
    Command, Compare, Delete, KeyRange, KeyValue, Op, OpError, OpResult, Put, Range, RangeResult, Revision,
    RevisionSource, Territory, Txn, Verdict,
};
use crate::state::StateStore;
use althing_raft::entry::SnapshotMeta;
use althing_raft::ids::{GroupId, LogPosition};
use althing_raft::mutant::Mutant;
use bytes::Bytes;
use std::borrow::Cow;

/// Which branch a transaction takes, and its nested ones in order. Decided before anything is written.
#[derive(Debug)]
pub(super) struct Path {
    succeeded: bool,
    nested: Vec<Path>,
}

impl Path {
    fn branch<'t>(&self, txn: &'t Txn) -> &'t [Op] {
        if self.succeeded { &txn.success } else { &txn.failure }
    }

    /// The path that takes these branches, one for each transaction in depth-first order; `None` if they are too few.
    pub(super) fn forced(txn: &Txn, branches: &mut impl Iterator<Item = bool>) -> Option<Self> {
        let succeeded = branches.next()?;
        let mut nested = Vec::new();
        for (taken, branch) in [(succeeded, &txn.success), (!succeeded, &txn.failure)] {
            for op in branch {
                if let Op::Txn(inner) = op {
                    // Those of the other branch have theirs too.
                    let path = Self::forced(inner, branches)?;
                    if taken {
                        nested.push(path);
                    }
                }
            }
        }
        Some(Self { succeeded, nested })
    }
}

/// A state, and what the commands run so far make of it.
pub(crate) struct Exec<'a, S> {
    store: &'a S,
    state: &'a State,
    /// Current revision, without the command under way.
    pub(crate) current: i64,
    pub(crate) compacted: i64,
    pub(crate) shard: Shard,
    /// Where the batch ends.
    pub(super) position: LogPosition,
    /// Whether the configuration there is a joint one.
    pub(super) joint: bool,
    /// What the command that ends the batch makes of the group.
    pub(super) reshape: Option<Reshape>,
    pub(super) txns: Cow<'a, Transactions>,
    /// What of it has changed.
    pub(super) txn_changes: TxnChanges,
    /// Whether the command under way writes at a revision that others are beyond already.
    pub(super) late: bool,
    /// Beyond what it has: the newest revision that a range may ask for.
    pub(super) newest: Option<i64>,
    pub(crate) delta: Delta,
    /// Encoded rows, in order.
    pub(super) written: Written,
    /// Changes of the command under way: the key and its head before, to take it back.
    changed: Vec<(Bytes, Head)>,
}

impl<'a, S: StateStore> Exec<'a, S> {
    /// For a batch that ends there.
    pub(crate) fn new(store: &'a S, state: &'a State, end: &SnapshotMeta) -> Self {
        Self {
            store,
            state,
            current: state.record.current,
            compacted: state.record.compacted,
            shard: state.record.shard.clone(),
            position: end.position,
            joint: end.config.is_joint(),
            reshape: None,
            txns: Cow::Borrowed(&state.txns),
            txn_changes: TxnChanges::new(),
            late: false,
            newest: None,
            delta: Delta::new(),
            written: Written::default(),
            changed: Vec::new(),
        }
    }

    /// For transactions that write nothing.
    pub(crate) fn reading(store: &'a S, state: &'a State) -> Self {
        Self {
            newest: Some(state.newest_read()),
            ..Self::new(store, state, &state.record.meta)
        }
    }

    /// Runs one command as a whole, or takes back what it did.
    pub(crate) fn command(
        &mut self,
        command: &Command,
        stamp: Option<Revision>,
    ) -> Result<(Revision, Result<OpResult, OpError>), Fail> {
        let before = self.current;
        let result = match command {
            Command::Put(put) => self.admit(command, stamp).and_then(|()| {
                self.check_put(put)?;
                self.put(put)
            }),
            Command::Delete(delete) => self.admit(command, stamp).and_then(|()| self.delete(delete)),
            Command::Txn(txn) => self.admit(command, stamp).and_then(|()| self.txn(txn)),
            Command::Compact(revision) => self.compact(command, *revision).map_err(Fail::Op),
            Command::Shard(command) => self.shard_command(command).map(OpResult::Shard),
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
        // What was late is in its place now, and others are beyond it as before.
        self.current = self.current.max(before);
        self.late = false;
        Ok((Revision(self.current), result))
    }

    /// Whether a client's command may run here and now. In a sequenced shard everything before its stamp counts as there: what this
    /// shard does not have of it are other shards' changes, or none.
    fn admit(&mut self, command: &Command, stamp: Option<Revision>) -> Result<(), Fail> {
        // First: what a sealed shard says of other keys must not depend on whether its neighbour has taken it in here already.
        if self.shard.sealed.is_some() && !Mutant::SealedTakesCommands.active() {
            return Err(OpError::Sealed.into());
        }
        if !self.shard.owns(command) && !Mutant::ForeignKeysWritten.active() {
            return Err(OpError::WrongShard.into());
        }
        self.admit_keys(command)?;
        match (self.shard.source, stamp) {
            (RevisionSource::Dense, None) => {}
            (RevisionSource::Sequenced, Some(Revision(stamp))) if stamp > self.current => self.current = stamp - 1,
            (RevisionSource::Dense, Some(_)) | (RevisionSource::Sequenced, _) => {
                return Err(OpError::Unstamped.into());
            }
        }
        Ok(())
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

    fn compact(&mut self, command: &Command, Revision(revision): Revision) -> Result<OpResult, OpError> {
        if revision <= self.compacted {
            return Err(OpError::Compacted);
        }
        if self.shard.sealed.is_some() {
            return Err(OpError::Sealed);
        }
        match self.shard.source {
            RevisionSource::Dense if revision > self.current => return Err(OpError::FutureRevision),
            // The sequencer was asked whether there is such a revision; this shard need not have a part of it.
            RevisionSource::Dense | RevisionSource::Sequenced => {}
        }
        self.admit_keys(command)?;
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
        Ok(Verdict::all([self.verdict(compare)?]))
    }

    pub(super) fn verdict(&self, compare: &Compare) -> Result<Verdict, Fail> {
        let rows = self.view().list(&compare.keys, self.current, usize::MAX).rows;
        if rows.is_empty() {
            return Ok(Verdict::Empty(compare_holds(compare, None)));
        }
        for place in rows {
            if !compare_holds(compare, Some(&self.fetch(place)?)) {
                return Ok(Verdict::Fails);
            }
        }
        Ok(Verdict::Holds)
    }

    /// Whether a key that is there would be outside of a territory.
    pub(super) fn any_key_outside(&self, territory: &Territory) -> bool {
        let mut outside = false;
        let all = KeyRange::From(Bytes::new());
        self.view()
            .each(&all, self.current, |key, _| outside |= !territory.owns(key));
        outside
    }

    pub(super) fn group(&self) -> GroupId {
        self.state.group
    }

    fn check_txn(&self, txn: &Txn, path: &Path) -> Result<(), Fail> {
        let mut nested = path.nested.iter();
        for op in path.branch(txn) {
            match op {
                Op::Range(range) => {
                    self.read_revision(range, self.current)?;
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

    pub(super) fn check_put(&self, put: &Put) -> Result<(), Fail> {
        // Leases are not granted by this version, so no id but 0 can be valid. etcd looks at the lease before the key.
        if put.lease.is_some_and(|lease| lease != 0) {
            return Err(OpError::LeaseNotFound.into());
        }
        if (put.value.is_none() || put.lease.is_none()) && self.head(&put.key).version == 0 {
            return Err(OpError::KeyNotFound.into());
        }
        Ok(())
    }

    pub(super) fn run_txn(&mut self, txn: &Txn, path: &Path) -> Result<OpResult, Fail> {
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

    fn read_revision(&self, range: &Range, current: i64) -> Result<i64, OpError> {
        read_revision(range.revision, current, self.newest.unwrap_or(current), self.compacted)
    }

    fn range(&self, range: &Range) -> Result<RangeResult, Fail> {
        let revision = self.read_revision(range, self.revision_now())?;
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
            rows.push(change.place());
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
        let place = Place {
            source: self.state.own,
            late: self.late,
            id: RowId {
                main: self.current + 1,
                sub,
            },
        };
        let removal = live.is_none();
        let row = Row { key: key.clone(), live }.encode();
        let history = self.delta.entry(key.clone()).or_default();
        history.head = head;
        history.changes.push(Change::new(place, row.len(), removal));
        let row = if place.late {
            Row::into_late(&row, self.position.index)
        } else {
            row
        };
        self.written.of(place.late).insert(place.id, row.into());
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
            let place = change.place();
            self.written.of(place.late).remove(&place.id);
        }
    }

    fn fetch(&self, place: Place) -> Result<KeyValue, Fail> {
        let here = (place.source == self.state.own).then(|| self.written.get(place));
        let row = match here.flatten().or_else(|| self.state.waiting(place)) {
            Some(row) => Some(row.clone()),
            None => self.store.get(&self.state.key_of(place))?,
        };
        Ok(self.state.key_value(place, row)?)
    }
}
