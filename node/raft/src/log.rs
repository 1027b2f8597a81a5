//! The in-memory log of one group since its last compaction, and what of it is durable.

use crate::entry::{Entry, Payload};
use crate::ids::{Index, LogPosition, Term};
use crate::mark::Mark;
use crate::mutant::Mutant;
use std::collections::VecDeque;

/// The log. Invariant: `entries` is contiguous and begins right after `start`.
#[derive(Debug)]
pub(crate) struct Log {
    start: LogPosition,
    entries: VecDeque<Entry>,
    /// For each entry, the bytes of all entries up to it and with it, counted from some point before the log; so any stretch
    /// of the log is weighed by one subtraction, however long it is.
    ends: VecDeque<u64>,
    /// The same for `start`.
    base: u64,
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
        let ends = entries.iter().scan(0, |sum, entry| {
            *sum += weight(entry);
            Some(*sum)
        });
        let configs = entries.iter().filter(|entry| is_config(entry)).map(|entry| entry.index);
        let mut log = Self {
            start,
            configs: configs.collect(),
            ends: ends.collect(),
            base: 0,
            entries: entries.into(),
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
        self.bytes_after(self.start.index)
    }

    /// Bytes of the entries behind `index`.
    pub(crate) fn bytes_after(&self, index: Index) -> usize {
        let end = self.ends.back().copied().unwrap_or(self.base);
        let before = self
            .offset(index)
            .map_or(self.base, |offset| self.ends.get(offset).copied().unwrap_or(end));
        usize::try_from(end - before).expect("invariant: a log fits into memory")
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
        let end = self.ends.back().copied().unwrap_or(self.base);
        self.ends.push_back(end + weight(&entry));
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
                Some(term) if term == entry.term && !Mutant::CutTailOnEveryAppend.active() => {}
                Some(_) => {
                    // Raft paper, section 5.3; pitfall P17.
                    assert!(
                        entry.index > commit,
                        "a committed entry at {} would be overwritten",
                        entry.index
                    );
                    Mark::ConflictingTailDropped.hit();
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
        self.entries.truncate(keep);
        self.ends.truncate(keep);
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
        if position.index <= self.stable.index {
            return;
        }
        if self.contains(position) || Mutant::TrustReplacedWrite.active() {
            self.stable = position;
        } else {
            Mark::WriteOfReplacedTail.hit();
        }
    }

    /// The log starts anew behind an installed snapshot.
    pub(crate) fn reset(&mut self, position: LogPosition) {
        *self = Self {
            start: position,
            entries: VecDeque::new(),
            ends: VecDeque::new(),
            base: 0,
            configs: VecDeque::new(),
            unwritten: position.index.next(),
            stable: position,
        };
    }

    /// Forgets entries up to `index`, which is applied and durable elsewhere.
    pub(crate) fn compact(&mut self, index: Index) {
        while self.start.index < index {
            let (Some(entry), Some(end)) = (self.entries.pop_front(), self.ends.pop_front()) else {
                break;
            };
            self.base = end;
            self.start = entry.position();
        }
        let gone = self.configs.partition_point(|config| *config <= self.start.index);
        self.configs.drain(..gone);
    }

    /// The last position at or before `index` whose term is at most `term`: where two diverging logs may agree
    /// (Raft paper, section 5.3, the optimisation at its end).
    pub(crate) fn last_at_most(&self, index: Index, term: Term) -> LogPosition {
        // Terms never go down along a log, so one search finds the place, however long the conflict is.
        let old_enough = self.entries.partition_point(|entry| entry.term <= term);
        let at = index.0.min(self.start.index.0 + old_enough as u64);
        self.get(Index(at)).map_or(self.start, Entry::position)
    }
}

/// What an entry counts for in every size limit.
fn weight(entry: &Entry) -> u64 {
    entry.size_bytes() as u64
}

fn is_config(entry: &Entry) -> bool {
    matches!(entry.payload, Payload::Config(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn entry(term: u64, index: u64, bytes: usize) -> Entry {
        Entry {
            term: Term(term),
            index: Index(index),
            payload: Payload::Command(Bytes::from(vec![0; bytes])),
        }
    }

    /// Terms 1, 1, 2, 2, 5 at 11..=15, behind a compacted entry of term 1.
    fn log() -> Log {
        let start = LogPosition {
            term: Term(1),
            index: Index(10),
        };
        let terms = [1, 1, 2, 2, 5];
        let entries = terms.iter().zip(11..).map(|(term, index)| entry(*term, index, 100));
        Log::recovered(start, entries.collect())
    }

    #[test]
    fn a_stretch_of_the_log_weighs_the_sum_of_its_entries_whatever_was_cut_from_it() {
        let sum = |log: &Log, after: u64| -> usize {
            log.range(Index(after + 1), log.last_index())
                .map(Entry::size_bytes)
                .sum()
        };
        let check = |log: &Log| {
            for after in 9..20 {
                assert_eq!(log.bytes_after(Index(after)), sum(log, after), "after {after}");
            }
            assert_eq!(log.bytes(), sum(log, log.start().index.0));
        };
        let mut log = log();
        check(&log);
        log.push(Term(6), Payload::Noop);
        check(&log);
        log.append_after_match(vec![entry(7, 14, 3), entry(7, 15, 5)], Index(12));
        check(&log);
        log.compact(Index(12));
        check(&log);
        log.compact(Index(15));
        check(&log);
        log.push(Term(7), Payload::Noop);
        check(&log);
        log.reset(LogPosition {
            term: Term(9),
            index: Index(14),
        });
        check(&log);
    }

    #[test]
    fn the_place_where_two_logs_may_agree_is_the_last_of_an_old_enough_term() {
        let log = log();
        let table = [
            ((15, 9), (5, 15)),
            ((99, 9), (5, 15)),
            ((15, 4), (2, 14)),
            ((13, 4), (2, 13)),
            ((15, 1), (1, 12)),
            ((11, 1), (1, 11)),
            ((15, 0), (1, 10)),
            ((3, 9), (1, 10)),
        ];
        for ((index, term), (found_term, found_index)) in table {
            let found = log.last_at_most(Index(index), Term(term));
            let expected = LogPosition {
                term: Term(found_term),
                index: Index(found_index),
            };
            assert_eq!(found, expected, "at most {index} of term {term}");
        }
    }

    #[test]
    fn the_first_change_is_found_after_cuts_at_both_ends() {
        let change = || {
            Payload::Config(crate::entry::ConfigChange {
                request: 0,
                step: crate::entry::ConfigStep::LeaveJoint,
                context: Bytes::new(),
            })
        };
        let mut log = log();
        let first = log.push(Term(5), change());
        log.push(Term(5), Payload::Noop);
        let second = log.push(Term(5), change());
        assert_eq!(log.first_config(Index(11), log.last_index()), Some(first));
        assert_eq!(log.first_config(first.next(), log.last_index()), Some(second));
        assert_eq!(log.first_config(first.next(), second.prev()), None);
        log.append_after_match(vec![entry(6, second.0, 1)], Index(12));
        assert_eq!(log.first_config(first.next(), log.last_index()), None);
        log.compact(first);
        assert_eq!(log.first_config(Index(0), log.last_index()), None);
    }
}
