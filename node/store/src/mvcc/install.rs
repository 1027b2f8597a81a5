//! Snapshots out of and into a group's state.

use crate::error::StoreError;
use crate::mvcc::Mvcc;
use crate::mvcc::layout::{Slot, slot_key};
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
        Ok(Export::new(self.store.clone(), &state, Arc::clone(&self.exports)))
    }

    /// Begins to receive a snapshot. One at a time: an earlier import that was not installed is void.
    #[must_use]
    pub fn import(&self) -> Import<S> {
        let mut writer = self.writer();
        if let Some(abandoned) = writer.importing.take() {
            writer.stale_slots.push(abandoned);
        }
        writer.last_slot += 1;
        let number = writer.last_slot;
        writer.importing = Some(number);
        Import::new(
            self.store.clone(),
            Slot {
                group: self.group,
                number,
            },
        )
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
        let mut batch = Batch::default();
        batch.put(slot.applied_key(), import.state.record.encode());
        for (member, context) in &import.state.members {
            batch.put(slot.member_key(*member), context.clone());
        }
        batch.put(slot_key(self.group), slot.number.to_le_bytes().to_vec());
        self.store.apply(batch)?;
        self.store.checkpoint()?;

        let old = {
            let mut state = self.write();
            std::mem::replace(&mut *state, import.state).slot()
        };
        writer.importing = None;
        writer.sweep = None;
        writer.stale_slots.push(old.number);
        Ok(meta)
    }
}
