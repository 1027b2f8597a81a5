//! Applied and not yet in the engine.
//!
//! An engine's batch costs about the same for one row and for hundreds: sled writes its buffers out, wakes its threads and waits for the
//! disk. So what is applied is kept here first, readers look here first, and the writing thread hands it to the engine now and then,
//! after it has answered. A crash loses it, and nothing by that: the engine then holds a shorter prefix of the log, which the WAL
//! keeps until a checkpoint says that the engine has it durably.

use crate::error::StoreError;
use crate::mvcc::layout::{Place, RowId};
use crate::mvcc::txns::TxnChanges;
use crate::mvcc::{MemberChanges, Mvcc, State, Writer};
use crate::state::{Batch, StateStore};
use bytes::Bytes;
use std::collections::BTreeMap;

/// New rows of the group's own slot.
#[derive(Default, Debug)]
pub(super) struct Written {
    pub(super) rows: BTreeMap<RowId, Bytes>,
    pub(super) late: BTreeMap<RowId, Bytes>,
}

impl Written {
    pub(super) fn of(&mut self, late: bool) -> &mut BTreeMap<RowId, Bytes> {
        if late { &mut self.late } else { &mut self.rows }
    }

    pub(super) fn get(&self, place: Place) -> Option<&Bytes> {
        let rows = if place.late { &self.late } else { &self.rows };
        rows.get(&place.id)
    }
}

/// Rows and members of batches that the engine does not have.
#[derive(Default)]
pub(crate) struct Pending {
    /// In order, because revisions only grow.
    rows: Vec<(RowId, Bytes)>,
    /// Those whose revisions are below some that were there before.
    late: BTreeMap<RowId, Bytes>,
    members: MemberChanges,
    txns: TxnChanges,
    bytes: usize,
    /// Whether the applied record is newer than the engine's, also if there are no rows.
    dirty: bool,
}

impl Pending {
    /// A row of the group's own slot.
    pub(super) fn get(&self, id: RowId, late: bool) -> Option<&Bytes> {
        if late {
            return self.late.get(&id);
        }
        let at = self.rows.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(&self.rows[at].1)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a batch.
    pub(super) fn add(&mut self, written: Written, members: MemberChanges, txns: TxnChanges) {
        let Written { rows, late } = written;
        self.bytes += rows.values().chain(late.values()).map(Bytes::len).sum::<usize>();
        if let (Some((last, _)), Some((first, _))) = (self.rows.last(), rows.first_key_value()) {
            assert!(
                last < first,
                "invariant: revisions only grow, {first:?} follows {last:?}"
            );
        }
        self.rows.extend(rows);
        self.late.extend(late);
        self.members.extend(members);
        self.txns.extend(txns);
        self.dirty = true;
    }
}

impl<S: StateStore> Mvcc<S> {
    /// Bytes of rows that wait for [`Mvcc::write_out`]; the caller of [`Mvcc::apply_behind`] bounds them.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.read().pending.bytes
    }

    /// Gives the engine everything that is applied, in one batch.
    ///
    /// # Errors
    /// If the engine fails: how much of it took effect is then unknown, and the process should end.
    pub fn write_out(&self) -> Result<(), StoreError> {
        self.write_pending(&self.writer())
    }

    /// The same, by who writes already.
    pub(super) fn write_pending(&self, _writer: &Writer<S>) -> Result<(), StoreError> {
        let batch = {
            let state = self.read();
            if !state.pending.dirty {
                return Ok(());
            }
            let mut batch = Batch::default();
            state.put_pending(&mut batch);
            batch
        };
        self.store.apply(batch)?;
        // Only writers add to it, and this is the one.
        self.write().pending = Pending::default();
        Ok(())
    }
}

impl State {
    /// Adds the rows that wait for the engine to a batch.
    pub(super) fn put_rows(&self, batch: &mut Batch) {
        let (slot, pending) = (self.slot(), &self.pending);
        // Revisions only grow, and a row is never written twice.
        batch.run(
            pending
                .rows
                .iter()
                .map(|(id, row)| (slot.row_key(*id).into(), row.clone())),
        );
        // Those do not: each stands for itself.
        for (id, row) in &pending.late {
            batch.put(slot.late_key(*id), row.clone());
        }
    }

    /// Adds what waits for the engine, and the record of it, to a batch.
    fn put_pending(&self, batch: &mut Batch) {
        let (slot, pending) = (self.slot(), &self.pending);
        self.put_rows(batch);
        for ((table, txn), row) in &pending.txns {
            let key = slot.txn_key(*table, *txn);
            match row {
                Some(row) => batch.put(key, row.clone()),
                None => batch.delete(key),
            }
        }
        for (member, context) in &pending.members {
            match context {
                Some(context) => batch.put(slot.member_key(*member), context.clone()),
                None => batch.delete(slot.member_key(*member)),
            }
        }
        batch.put(slot.applied_key(), self.record.encode());
    }
}
