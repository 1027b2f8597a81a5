//! Where to cut a shard in two.

use crate::mvcc::{Mvcc, successor};
use crate::ops::{KeyRange, Partitioning};
use crate::state::StateStore;
use bytes::Bytes;

/// Keys that are looked at under one lock: about a millisecond.
const KEYS_MAX: usize = 4096;

impl<S: StateStore> Mvcc<S> {
    /// The partition key that has about half of the bytes before it, history and all; `None` if there is nothing to cut between: fewer than
    /// two keys, or slots. Walks over keys up to there, and lets others in between; of slots it knows the bytes.
    #[must_use]
    pub fn middle_key(&self) -> Option<Bytes> {
        match self.territory().partitioning {
            Partitioning::Range => self.middle_of_keys(),
            Partitioning::Hash { .. } => self.middle_of_slots(),
        }
    }

    fn middle_of_keys(&self) -> Option<Bytes> {
        let half = self.read().index.sums.bytes / 2;
        let (mut before, mut last) = (0, None);
        let mut from = KeyRange::From(Bytes::new());
        loop {
            let state = self.read();
            let mut next = None;
            for (key, history) in state.index.range(&from).take(KEYS_MAX) {
                let first = last.replace(key.clone()).is_none();
                // The first key cannot be where the second part begins.
                if before >= half && !first {
                    return Some(Bytes::copy_from_slice(key));
                }
                before += history.bytes();
                next = Some(key);
            }
            let Some(next) = next else { break };
            from = KeyRange::From(successor(next));
        }
        // The last key is more than half: it alone, unless it is alone.
        let last = Bytes::from(last?.into_vec());
        let before = KeyRange::Between(Bytes::new(), last.clone());
        let several = self.read().index.range(&before).next().is_some();
        several.then_some(last)
    }

    fn middle_of_slots(&self) -> Option<Bytes> {
        let state = self.read();
        let half = state.index.sums.bytes / 2;
        let mut before = 0;
        let mut middle = None;
        for (at, (slot, bytes)) in state.index.bytes_of_slots().enumerate() {
            if at > 0 {
                middle = Some(slot);
                if before >= half {
                    break;
                }
            }
            before += bytes;
        }
        middle.map(|slot| Bytes::copy_from_slice(&slot.to_be_bytes()))
    }
}
