//! Where to cut a shard in two.

use crate::mvcc::{Mvcc, successor};
use crate::ops::{KeyRange, Partitioning};
use crate::state::StateStore;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;

/// Keys that are looked at under one lock: about a millisecond.
const KEYS_MAX: usize = 4096;

impl<S: StateStore> Mvcc<S> {
    /// The partition key that has about half of the bytes before it, history and all; `None` if there is nothing to cut between: fewer than
    /// two keys, or slots. Walks over all keys, and lets others in between.
    #[must_use]
    pub fn middle_key(&self) -> Option<Bytes> {
        match self.territory().partitioning {
            Partitioning::Range => self.middle_of_keys(),
            Partitioning::Hash { .. } => self.middle_of_slots(),
        }
    }

    fn middle_of_keys(&self) -> Option<Bytes> {
        let half = self.read().index.bytes / 2;
        let (mut before, mut first) = (0, None);
        self.weigh_keys(|key, bytes| {
            // The first key cannot be where the second part begins.
            if before >= half && first.is_some() {
                return Some(Bytes::copy_from_slice(key));
            }
            first = Some(());
            before += bytes;
            None
        })
        .or_else(|| self.last_key())
    }

    /// If the last key is more than half: it alone, if it is not alone anyway.
    fn last_key(&self) -> Option<Bytes> {
        let state = self.read();
        let mut all = state.index.range((Bound::Unbounded, Bound::Unbounded));
        let (last, _) = all.next_back()?;
        all.next()?;
        Some(Bytes::copy_from_slice(last))
    }

    fn middle_of_slots(&self) -> Option<Bytes> {
        let partitioning = self.territory().partitioning;
        let mut slots: BTreeMap<u32, u64> = BTreeMap::new();
        let none: Option<()> = self.weigh_keys(|key, bytes| {
            *slots.entry(partitioning.slot(key)?).or_default() += bytes;
            None
        });
        debug_assert!(none.is_none());
        let half = slots.values().sum::<u64>() / 2;
        let mut before = 0;
        let mut middle = None;
        for (at, (slot, bytes)) in slots.iter().enumerate() {
            if at > 0 {
                middle = Some(*slot);
                if before >= half {
                    break;
                }
            }
            before += bytes;
        }
        middle.map(|slot| Bytes::copy_from_slice(&slot.to_be_bytes()))
    }

    /// Shows all keys with their bytes, until it is told something.
    fn weigh_keys<T>(&self, mut visit: impl FnMut(&[u8], u64) -> Option<T>) -> Option<T> {
        let mut from = KeyRange::From(Bytes::new());
        loop {
            let state = self.read();
            let mut last = None;
            for (key, history) in state.index.range(crate::mvcc::index::bounds(&from)?).take(KEYS_MAX) {
                if let Some(found) = visit(key, history.bytes()) {
                    return Some(found);
                }
                last = Some(key);
            }
            from = KeyRange::From(successor(last?));
        }
    }
}
