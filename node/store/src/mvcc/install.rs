//! Snapshots out of and into a group's state.

use crate::error::StoreError;
use crate::mvcc::layout::{Slot, slot_key};
use crate::mvcc::refs::SlotRecord;
use crate::mvcc::{Mvcc, Writer};
use crate::snapshot::{Export, Import};
use crate::state::{Batch, StateStore};
use althing_raft::entry::SnapshotMeta;
use std::sync::Arc;

impl<S: StateStore> Mvcc<S> {
    /// A consistent snapshot of what is applied now. Writing goes on beside it; sweeping pauses until it is dropped.
    ///
    /// # Errors
    /// If the engine fails to take in what it does not have yet.
    pub fn export(&self) -> Result<Export<S>, StoreError> {
        // Nobody applies in between: the snapshot covers what the engine has.
        let writer = self.writer();
        self.write_pending(&writer)?;
        let state = self.read();
        Export::new(self.store.clone(), &state, Arc::clone(&writer.exports))
    }

    /// Begins to receive a snapshot. One at a time: an earlier import that was not installed is void.
    #[must_use]
    pub fn import(&self) -> Import<S> {
        self.begin_import(&mut self.writer())
    }

    fn begin_import(&self, writer: &mut Writer<S>) -> Import<S> {
        let slot = |number| Slot {
            group: self.group,
            number,
        };
        if let Some(abandoned) = writer.importing.take() {
            writer.stale_slots.push(slot(abandoned));
        }
        writer.last_slot += 1;
        writer.importing = Some(writer.last_slot);
        Import::new(self.store.clone(), slot(writer.last_slot))
    }

    /// Copies all rows that lie in several slots into one new slot: for a group whose rows would otherwise lie in too many. It takes as
    /// long as taking in a snapshot, and no member needs it at the same time as another.
    pub(super) fn consolidate(&self, writer: &mut Writer<S>) -> Result<(), StoreError> {
        self.write_pending(writer)?;
        let export = Export::new(self.store.clone(), &self.read(), Arc::clone(&writer.exports))?;
        let mut import = self.begin_import(writer);
        for chunk in export {
            import.chunk(&chunk?)?;
        }
        self.replace(writer, import)
    }

    /// Makes a complete import the state.
    fn replace(&self, writer: &mut Writer<S>, import: Import<S>) -> Result<(), StoreError> {
        let state = import.state;
        let slot = state.slot();
        let mut batch = Batch::default();
        state.put_tables(&state.record, slot, &mut batch);
        self.read().delete_refs(&mut batch);
        let record = SlotRecord::Here {
            own: slot.number,
            inherited: Vec::new(),
        };
        batch.put(slot_key(self.group), record.encode());
        self.store.apply(batch)?;
        self.store.checkpoint()?;
        let old = std::mem::replace(&mut *self.write(), state);
        writer.importing = None;
        writer.sweep = None;
        self.leave_behind(writer, old)
    }

    /// Makes a complete import the state, atomically and durably, and says what the state is now. The WAL's log may be
    /// reset to its position after this, and not before (pitfall P15). Call `compact_step` to clear what was there.
    ///
    /// # Errors
    /// `Snapshot` if it is incomplete, void, or not newer than what is applied (pitfall P13): nothing has changed then.
    /// Otherwise the engine failed and the process should end; after a restart the old state or the new one is there.
    pub fn install(&self, import: Import<S>) -> Result<SnapshotMeta, StoreError> {
        let mut writer = self.writer();
        let refuse = |what: String| StoreError::Snapshot {
            group: self.group,
            what,
        };
        if !import.is_complete() {
            return Err(refuse("its end has not come".to_owned()));
        }
        let slot = import.state.slot();
        if writer.importing != Some(slot.number) {
            return Err(refuse("another import was begun after it".to_owned()));
        }
        let meta = import.state.record.meta.clone();
        let applied = self.applied().position;
        if meta.position.index <= applied.index {
            return Err(refuse(format!(
                "it covers {} and {} is applied",
                meta.position.index, applied.index
            )));
        }
        self.replace(&mut writer, import)?;
        Ok(meta)
    }
}
