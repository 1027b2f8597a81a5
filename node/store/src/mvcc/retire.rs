//! What is deleted: history that compaction made unreachable, states that a snapshot replaced, groups that left.

use crate::error::StoreError;
use crate::mvcc::index::{Index, SweepCursor};
use crate::mvcc::layout::{Slot, slot_key};
use crate::mvcc::refs::SlotRecord;
use crate::mvcc::sources::Source;
use crate::mvcc::{Mvcc, State, Sweep, Writer};
use crate::state::{Batch, KeySpan, PageLimit, REMOVALS_MAX, StateStore};
use std::collections::BTreeSet;

/// Keys that one `compact_step` looks at: about a millisecond of the index's lock.
const SWEEP_KEYS_MAX: usize = 4096;
/// Rows that it deletes at most: a batch that the engine can make durable as a whole.
const SWEEP_ROWS_MAX: usize = REMOVALS_MAX;
/// Rows of a leftover that it looks at: most may lie in slots that go as a whole.
const LEFTOVER_ROWS_MAX: usize = SWEEP_ROWS_MAX;

/// Rows of a state that is no more, in slots that others still refer to.
pub(super) struct Leftover {
    index: Index,
    /// The slot of each source, if its rows must go one by one.
    slots: Vec<Option<Slot>>,
}

impl Leftover {
    /// Of rows that all lie in such slots.
    pub(super) fn of_shared(sources: Vec<Source>, index: Index) -> Self {
        Self {
            index,
            slots: sources.into_iter().map(|source| Some(source.slot)).collect(),
        }
    }
}

impl State {
    /// Adds to a batch that the group refers to no slot but its own any more.
    pub(super) fn delete_refs(&self, batch: &mut Batch) {
        for slot in self.inherited_slots() {
            batch.delete(slot.ref_key(self.group));
        }
    }

    fn inherited_slots(&self) -> BTreeSet<Slot> {
        let own = self.slot();
        let others = self
            .sources
            .iter()
            .filter(|source| source.slot != own && !source.spans.is_empty());
        others.map(|source| source.slot).collect()
    }
}

impl<S: StateStore> Mvcc<S> {
    /// Notes for `compact_step` what a state leaves in the engine that was replaced, and refers to no slot any more.
    pub(super) fn leave_behind(&self, writer: &mut Writer<S>, old: State) -> Result<(), StoreError> {
        let own = old.slot();
        let mut shared = false;
        let mut slots = Vec::new();
        for source in &old.sources {
            let used = source.slot != own && !source.spans.is_empty();
            let others = used && source.slot.is_referred_to(&self.store)?;
            slots.push(others.then_some(source.slot));
            shared |= others;
        }
        writer.stale_slots.extend(old.inherited_slots());
        writer.stale_slots.push(own);
        if shared {
            let index = old.index;
            writer.leftovers.push(Leftover { index, slots });
        }
        Ok(())
    }

    /// The group leaves this node: at once and for good it is as if it had never been here. `compact_step` clears what it had,
    /// until it says `Done`; drop it then. Only a new handle of the group may be written to afterwards.
    ///
    /// # Errors
    /// If the engine fails.
    pub fn retire(&self) -> Result<(), StoreError> {
        let mut writer = self.writer();
        let next = writer.last_slot + 1;
        let mut batch = Batch::default();
        self.read().delete_refs(&mut batch);
        batch.put(slot_key(self.group), SlotRecord::Gone { next }.encode());
        self.store.apply(batch)?;
        writer.last_slot = next;
        writer.sweep = None;
        let mut nothing = State::fresh(Slot {
            group: self.group,
            number: next,
        });
        // Whoever still asks is told to look elsewhere.
        nothing.record.shard.territory.span.end = Some(bytes::Bytes::new());
        let old = std::mem::replace(&mut *self.write(), nothing);
        self.leave_behind(&mut writer, old)
    }

    /// Deletes a bounded number of rows that compaction, an installed snapshot or a leave made unreachable. Called by the writing
    /// thread between batches, until it says `Done`.
    ///
    /// # Errors
    /// If the engine fails.
    pub fn compact_step(&self) -> Result<Sweep, StoreError> {
        let mut writer = self.writer();
        if writer.is_pinned() {
            return Ok(Sweep::Paused);
        }
        if let Some(slot) = writer.stale_slots.last().copied() {
            let limit = PageLimit {
                rows: SWEEP_ROWS_MAX,
                ..PageLimit::WALK
            };
            // Who lets go of it last clears it.
            let done =
                slot.is_referred_to(&self.store)? || self.store.clear_some(&KeySpan::prefix(&slot.prefix()), limit)?;
            if done {
                writer.stale_slots.pop();
            }
            return Ok(Sweep::More);
        }
        if let Some(leftover) = writer.leftovers.last_mut() {
            let mut batch = Batch::default();
            let places = leftover.index.take_some(LEFTOVER_ROWS_MAX);
            for place in &places {
                if let Some(slot) = leftover.slots[usize::from(place.source)] {
                    batch.delete(slot.key_of(*place));
                }
            }
            if places.is_empty() {
                writer.leftovers.pop();
            }
            self.store.apply(batch)?;
            return Ok(Sweep::More);
        }
        self.sweep(&mut writer)
    }

    fn sweep(&self, writer: &mut Writer<S>) -> Result<Sweep, StoreError> {
        {
            let state = self.read();
            if state.record.swept >= state.record.compacted {
                return Ok(Sweep::Done);
            }
        }
        // What is deleted and the record of it must not overtake what was applied before.
        self.write_pending(writer)?;
        let mut state = self.write();
        let (target, cursor) = writer
            .sweep
            .take()
            .unwrap_or((state.record.compacted, SweepCursor::default()));
        let (dropped, cursor) = state.index.prune(cursor, target, SWEEP_KEYS_MAX, SWEEP_ROWS_MAX);
        let mut batch = Batch::default();
        for place in dropped {
            batch.delete(state.key_of(place));
        }
        match cursor {
            Some(cursor) => writer.sweep = Some((target, cursor)),
            None => {
                state.record.swept = target;
                batch.put(state.slot().applied_key(), state.record.encode());
            }
        }
        drop(state);
        self.store.apply(batch)?;
        Ok(Sweep::More)
    }
}
