//! Where a group's rows lie.
//!
//! A group that was never split has one slot. A split moves no rows: both groups go on to refer to the slots that were there, each to
//! its own span of them, and write into a new slot of their own. So a slot of the list is never written again but for removals,
//! and a row belongs to exactly one group, by its key. Which groups refer to a slot stands in the engine beside it ([`super::refs`]).

use crate::mvcc::layout::Slot;
use crate::ops::{Partitioning, Span};

/// Slots that a group refers to at most, because their number in the list has eight bits in the index.
pub(crate) const SOURCES_MAX: usize = 256;

/// A slot, and which part of its rows is the group's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Source {
    pub(crate) slot: Slot,
    /// Partition keys; nothing outside of them is the group's. Empty if nothing is any more.
    pub(crate) spans: Vec<Span>,
}

impl Source {
    /// The slot that a group writes into: all of it is its own.
    pub(crate) fn own(slot: Slot) -> Self {
        Self {
            slot,
            spans: vec![Span::default()],
        }
    }

    /// More of the slot's rows are the group's.
    pub(crate) fn add(&mut self, spans: Vec<Span>) {
        self.spans.extend(spans);
        self.spans.sort();
        self.spans.dedup_by(|next, before| {
            let meets = before.end.as_ref() == Some(&next.start);
            if meets {
                before.end = next.end.clone();
            }
            meets
        });
    }

    /// Whether all of the slot is the group's.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(&self.spans[..], [span] if span.is_whole())
    }

    pub(crate) fn has(&self, partitioning: Partitioning, key: &[u8]) -> bool {
        self.spans.iter().any(|span| partitioning.is_in(key, span))
    }
}
