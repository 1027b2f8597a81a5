//! The in-memory log of one group since its last compaction, and what of it is durable.

use crate::entry::{Entry, Payload};
use crate::ids::{Index, LogPosition, Term};
use std::collections::VecDeque;

/// The log. Invariant: `entries` is contiguous and begins right after `start`.
#[derive(Debug)]
pub(crate) struct Log {
    start: LogPosition,
    entries: VecDeque<Entry>,
    bytes: usize,
    /// Where configuration changes stand, ascending: they are rare, and asked about at every step.
    configs: VecDeque<Index>,
    /// The first index that no `Persist` has carried yet.
    unwritten: Index,
    /// The last position known durable. Always a position of this log, never of a replaced tail (pitfall P6).
    stable: LogPosition,
}

impl Log {
    /// A log as recovered: everything in it is durable.
    pub(crate) fn recovered(start: LogPosition, entries: Vec<Entry>) -> Self {
        let mut expected = start.index;
        let mut term = start.term;
        for entry in &entries {
            expected = expected.next();
            assert!(
                entry.index == expected,
                "recovered log has a hole: {} where {expected} belongs",
                entry.index
            );
            assert!(
                entry.term >= term,
                "recovered log's terms go backwards at {}",
                entry.index
            );
            term = entry.term;
        }
        let bytes = entries.iter().map(Entry::size_bytes).sum();
        let configs = entries.iter().filter(|entry| is_config(entry)).map(|entry| entry.index);
        let mut log = Self {
            start,
            configs: configs.collect(),
            entries: entries.into(),
            bytes,
            unwritten: expected.next(),
            stable: start,
        };
        log.stable = log.last();
        log
    }

    pub(crate) fn start(&self) -> LogPosition {
        self.start
    }

    pub(crate) fn first_index(&self) -> Index {
        self.start.index.next()
    }

    pub(crate) fn last(&self) -> LogPosition {
        self.entries.back().map_or(self.start, Entry::position)
    }

    pub(crate) fn last_index(&self) -> Index {
        self.last().index
    }

    pub(crate) fn stable(&self) -> LogPosition {
        self.stable
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Term of the entry at `index`; `None` if it is compacted away or not there yet.
    pub(crate) fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.start.index {
            Some(self.start.term)
        } else {
            self.get(index).map(|entry| entry.term)
        }
    }

    pub(crate) fn contains(&self, position: LogPosition) -> bool {
        self.term_at(position.index) == Some(position.term)
    }

    fn offset(&self, index: Index) -> Option<usize> {
        let distance = index.0.checked_sub(self.start.index.0)?.checked_sub(1)?;
        usize::try_from(distance).ok()
    }

    pub(crate) fn get(&self, index: Index) -> Option<&Entry> {
        self.entries.get(self.offset(index)?)
    }

    /// Entries from `from` on, at least one if there is one, then as many as fit `bytes_max`.
    pub(crate) fn slice(&self, from: Index, bytes_max: usize) -> Vec<Entry> {
        let mut bytes = 0;
        self.range(from, self.last_index())
            .take_while(|entry| {
                let first = bytes == 0;
                bytes += entry.size_bytes();
                first || bytes <= bytes_max
            })
            .cloned()
            .collect()
    }

    /// Entries in `from..=to`, as far as the log has them.
    pub(crate) fn range(&self, from: Index, to: Index) -> impl Iterator<Item = &Entry> {
        let begin = self
            .offset(from.max(self.first_index()))
            .unwrap_or(0)
            .min(self.entries.len());
        let end = self.offset(to.next()).unwrap_or(0).clamp(begin, self.entries.len());
        self.entries.range(begin..end)
    }

    /// The first configuration change in `from..=to`.
    pub(crate) fn first_config(&self, from: Index, to: Index) -> Option<Index> {
        let at = self.configs.partition_point(|index| *index < from);
        self.configs.get(at).copied().filter(|index| *index <= to)
    }

    /// Appends one entry of the leader's own.
    pub(crate) fn push(&mut self, term: Term, payload: Payload) -> Index {
        let index = self.last_index().next();
        self.append(Entry { term, index, payload });
        index
    }

    fn append(&mut self, entry: Entry) {
        self.bytes += entry.size_bytes();
        if is_config(&entry) {
            self.configs.push_back(entry.index);
        }
        self.entries.push_back(entry);
    }

    /// Appends entries that follow a matching `prev`, dropping a conflicting tail. Entries already present are
    /// left alone: a delayed, shorter append must not cut what a later one brought.
    pub(crate) fn append_after_match(&mut self, entries: Vec<Entry>, commit: Index) {
        for entry in entries {
            match self.term_at(entry.index) {
                Some(term) if term == entry.term => {}
                Some(_) => {
                    // Raft paper, section 5.3; pitfall P17.
                    assert!(
                        entry.index > commit,
                        "a committed entry at {} would be overwritten",
                        entry.index
                    );
                    self.truncate_from(entry.index);
                    self.append(entry);
                }
                None => {
                    assert!(
                        entry.index == self.last_index().next(),
                        "append leaves a hole before {}",
                        entry.index
                    );
                    self.append(entry);
                }
            }
        }
    }

    fn truncate_from(&mut self, index: Index) {
        let keep = self.offset(index).expect("invariant: truncation lies inside the log");
        for dropped in self.entries.drain(keep..) {
            self.bytes -= dropped.size_bytes();
        }
        self.configs
            .truncate(self.configs.partition_point(|config| *config < index));
        self.unwritten = self.unwritten.min(index);
        if self.stable.index >= index {
            self.stable = self.last();
        }
    }

    /// Whether there is something that no `Persist` has carried.
    pub(crate) fn has_unwritten(&self) -> bool {
        self.unwritten <= self.last_index()
    }

    /// Takes what is to be written next.
    pub(crate) fn take_unwritten(&mut self) -> Vec<Entry> {
        let entries = self.range(self.unwritten, self.last_index()).cloned().collect();
        self.unwritten = self.last_index().next();
        entries
    }

    /// A write that ended at `position` is durable. Ignored if the log no longer holds that entry: the tail was
    /// replaced since, and its own write will say so (pitfall P6).
    pub(crate) fn persisted(&mut self, position: LogPosition) {
        if position.index > self.stable.index && self.contains(position) {
            self.stable = position;
        }
    }

    /// The log starts anew behind an installed snapshot.
    pub(crate) fn reset(&mut self, position: LogPosition) {
        *self = Self {
            start: position,
            entries: VecDeque::new(),
            bytes: 0,
            configs: VecDeque::new(),
            unwritten: position.index.next(),
            stable: position,
        };
    }

    /// Forgets entries up to `index`, which is applied and durable elsewhere.
    pub(crate) fn compact(&mut self, index: Index) {
        while self.start.index < index {
            let Some(entry) = self.entries.pop_front() else {
                break;
            };
            self.bytes -= entry.size_bytes();
            self.start = entry.position();
        }
        let gone = self.configs.partition_point(|config| *config <= self.start.index);
        self.configs.drain(..gone);
    }

    /// The last position at or before `index` whose term is at most `term`: where two diverging logs may agree
    /// (Raft paper, section 5.3, the optimisation at its end).
    pub(crate) fn last_at_most(&self, index: Index, term: Term) -> LogPosition {
        let mut at = index.min(self.last_index());
        while at > self.start.index {
            match self.term_at(at) {
                Some(found) if found <= term => {
                    return LogPosition { term: found, index: at };
                }
                Some(_) | None => at = at.prev(),
            }
        }
        self.start
    }
}

fn is_config(entry: &Entry) -> bool {
    matches!(entry.payload, Payload::Config(_))
}
