//! The key index: every key's changes, in memory, rebuilt from the rows at open.

use crate::mvcc::layout::{Place, ROW_KEY_BYTES, Row, RowId, SUB_MAX};
use crate::ops::{KeyRange, Partitioning, Span};
use bytes::Bytes;
use std::collections::{BTreeMap, btree_map};
use std::ops::Bound;

/// One change: where its row is. 16 bytes, because there are as many as rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Change {
    main: i64,
    /// The number inside the revision; the top bit marks a late row.
    sub: u32,
    /// Bytes of the row's value in the lower 23 bits, a bit that marks a removal, and above it the number of the source.
    rest: u32,
}

const LATE: u32 = SUB_MAX + 1;
const REMOVAL: u32 = 1 << 23;
const SOURCE_SHIFT: u32 = 24;

impl Change {
    pub(crate) fn new(place: Place, row_bytes: usize, removal: bool) -> Self {
        // Rows are bounded by the request limit, below 8 MiB; a larger figure would only spoil an estimate.
        let bytes = u32::try_from(row_bytes).unwrap_or(REMOVAL - 1).min(REMOVAL - 1);
        assert!(
            place.id.sub <= SUB_MAX,
            "invariant: a command changes at most 2^31 keys"
        );
        Self {
            main: place.id.main,
            sub: if place.late { place.id.sub | LATE } else { place.id.sub },
            rest: u32::from(place.source) << SOURCE_SHIFT | if removal { bytes | REMOVAL } else { bytes },
        }
    }

    pub(crate) fn place(self) -> Place {
        Place {
            source: self.source(),
            late: self.sub & LATE != 0,
            id: RowId {
                main: self.main,
                sub: self.sub & !LATE,
            },
        }
    }

    pub(crate) fn removal(self) -> bool {
        self.rest & REMOVAL != 0
    }

    fn source(self) -> u8 {
        u8::try_from(self.rest >> SOURCE_SHIFT).expect("invariant: eight bits are left")
    }

    fn bytes(self) -> u64 {
        ROW_KEY_BYTES + u64::from(self.rest & (REMOVAL - 1))
    }
}

/// A key's present generation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Head {
    /// Revision that created it, 0 if the key is not there.
    pub(crate) create: i64,
    /// Changes since, 0 if the key is not there.
    pub(crate) version: i64,
}

/// One key's changes, oldest first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct History {
    pub(crate) head: Head,
    pub(crate) changes: Vec<Change>,
}

impl History {
    /// The last change at or before `revision`, removals too.
    pub(crate) fn at(&self, revision: i64) -> Option<Change> {
        let after = self.changes.partition_point(|change| change.main <= revision);
        after.checked_sub(1).map(|at| self.changes[at])
    }

    /// Bytes of its rows and their keys.
    pub(crate) fn bytes(&self) -> u64 {
        self.changes.iter().map(|change| change.bytes()).sum()
    }
}

/// All keys.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Index {
    keys: BTreeMap<Box<[u8]>, History>,
    /// Keys that are there now.
    pub(crate) live_keys: u64,
    /// Rows there are.
    pub(crate) rows: u64,
    /// Bytes of rows and their keys.
    pub(crate) bytes: u64,
    /// Rows of each source.
    by_source: Vec<u64>,
}

/// Sums over some keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    live_keys: u64,
    rows: u64,
    bytes: u64,
    by_source: Vec<u64>,
}

impl Sums {
    fn add(&mut self, history: &History) {
        self.live_keys += u64::from(history.head.version > 0);
        self.rows += history.changes.len() as u64;
        for change in &history.changes {
            self.bytes += change.bytes();
            *count_of(&mut self.by_source, change.source()) += 1;
        }
    }
}

fn count_of(counts: &mut Vec<u64>, source: u8) -> &mut u64 {
    let at = usize::from(source);
    if counts.len() <= at {
        counts.resize(at + 1, 0);
    }
    &mut counts[at]
}

/// Where a sweep goes on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct SweepCursor {
    /// The last key that is done; `None` at the beginning.
    pub(crate) after: Option<Box<[u8]>>,
}

/// What `BTreeMap::range` takes.
pub(crate) type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// Bounds of a range, `None` if it is empty (a `BTreeMap` panics at some of those).
pub(crate) fn bounds(keys: &KeyRange) -> Option<Bounds<'_>> {
    match keys {
        KeyRange::Single(key) => Some((Bound::Included(key), Bound::Included(key))),
        KeyRange::Between(start, end)
        | KeyRange::Part {
            start, end: Some(end), ..
        } => (start < end).then_some((Bound::Included(start), Bound::Excluded(end))),
        KeyRange::From(start) | KeyRange::Part { start, end: None, .. } => {
            Some((Bound::Included(start), Bound::Unbounded))
        }
    }
}

fn span_after(at: &[u8]) -> Span {
    Span {
        start: Bytes::copy_from_slice(at),
        end: None,
    }
}

impl Index {
    pub(crate) fn get(&self, key: &[u8]) -> Option<&History> {
        self.keys.get(key)
    }

    pub(crate) fn range<'a>(&'a self, bounds: Bounds<'_>) -> btree_map::Range<'a, Box<[u8]>, History> {
        self.keys.range::<[u8], _>(bounds)
    }

    /// Adds changes that are newer than all the key has.
    pub(crate) fn extend(&mut self, key: &[u8], head: Head, changes: &[Change]) {
        let history = match self.keys.get_mut(key) {
            Some(history) => history,
            None => self.keys.entry(key.into()).or_default(),
        };
        self.live_keys -= u64::from(history.head.version > 0);
        self.live_keys += u64::from(head.version > 0);
        self.rows += changes.len() as u64;
        for change in changes {
            self.bytes += change.bytes();
            *count_of(&mut self.by_source, change.source()) += 1;
        }
        history.head = head;
        history.changes.extend_from_slice(changes);
    }

    /// Adds a row met in a scan. The rows of one place come in revision order, the places in any.
    pub(crate) fn load(&mut self, place: Place, row: &Row, row_bytes: usize) {
        let head = row.live.as_ref().map_or_else(Head::default, |live| Head {
            create: live.create,
            version: live.version,
        });
        let change = Change::new(place, row_bytes, row.live.is_none());
        if let Some(history) = self.keys.get_mut(&row.key[..])
            && history.changes.last().is_some_and(|last| last.main > change.main)
        {
            let at = history.changes.partition_point(|before| before.main <= change.main);
            history.changes.insert(at, change);
            self.rows += 1;
            self.bytes += change.bytes();
            *count_of(&mut self.by_source, change.source()) += 1;
            return;
        }
        self.extend(&row.key, head, &[change]);
    }

    /// Forgets, for up to `keys_max` keys after `after`, what nobody at or after `compacted` can see, up to `rows_max`
    /// rows. Gives the rows, and where to go on (`None` if this was the end).
    ///
    /// Of each key stays the last change at or before `compacted`, unless that is a removal before it: a removal at
    /// exactly `compacted` stays, because a watch may still start there (etcd#19179).
    pub(crate) fn prune(
        &mut self,
        after: Option<&[u8]>,
        compacted: i64,
        keys_max: usize,
        rows_max: usize,
    ) -> (Vec<Place>, Option<SweepCursor>) {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut dropped = Vec::new();
        let mut emptied = Vec::new();
        let mut next: Option<Box<[u8]>> = None;
        let mut more = false;
        for (at, (key, history)) in self.keys.range_mut::<[u8], _>((start, Bound::Unbounded)).enumerate() {
            if at == keys_max || dropped.len() >= rows_max {
                break;
            }
            let upto = history.changes.partition_point(|change| change.main <= compacted);
            let gone = match upto.checked_sub(1).map(|at| history.changes[at]) {
                None => 0,
                Some(last) if last.removal() && last.main < compacted => upto,
                Some(_) => upto - 1,
            };
            // A key with a long history may take several steps: its oldest changes go first, which is always right.
            let now = gone.min(rows_max - dropped.len());
            for change in history.changes.drain(..now) {
                self.rows -= 1;
                self.bytes -= change.bytes();
                *count_of(&mut self.by_source, change.source()) -= 1;
                dropped.push(change.place());
            }
            if now < gone {
                more = true;
                break;
            }
            if history.changes.is_empty() {
                emptied.push(key.clone());
            }
            next = Some(key.clone());
        }
        for key in emptied {
            self.keys.remove(&key);
        }
        let last = next.or_else(|| after.map(Into::into));
        let start = last.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let more = more || self.keys.range::<[u8], _>((start, Bound::Unbounded)).next().is_some();
        (dropped, more.then_some(SweepCursor { after: last }))
    }

    /// Rows of a source.
    pub(crate) fn rows_of(&self, source: u8) -> u64 {
        self.by_source.get(usize::from(source)).copied().unwrap_or_default()
    }

    /// What there is at and after a partition key.
    pub(crate) fn sums_after(&self, partitioning: Partitioning, at: &[u8]) -> Sums {
        let mut sums = Sums::default();
        match partitioning {
            Partitioning::Range => {
                let after = self.range((Bound::Included(at), Bound::Unbounded));
                after.for_each(|(_, history)| sums.add(history));
            }
            Partitioning::Hash { .. } => {
                let after = span_after(at);
                let inside = self.keys.iter().filter(|(key, _)| partitioning.is_in(key, &after));
                inside.for_each(|(_, history)| sums.add(history));
            }
        }
        sums
    }

    /// Takes out what is at and after a partition key, of which these are the sums.
    pub(crate) fn split_off(&mut self, partitioning: Partitioning, at: &[u8], sums: Sums) -> Self {
        let keys = match partitioning {
            Partitioning::Range => self.keys.split_off(at),
            Partitioning::Hash { .. } => {
                let after = span_after(at);
                self.keys
                    .extract_if(.., |key, _| partitioning.is_in(key, &after))
                    .collect()
            }
        };
        let Sums {
            live_keys,
            rows,
            bytes,
            by_source,
        } = sums;
        self.live_keys -= live_keys;
        self.rows -= rows;
        self.bytes -= bytes;
        for (rows, gone) in self.by_source.iter_mut().zip(&by_source) {
            *rows -= gone;
        }
        Self {
            keys,
            live_keys,
            rows,
            bytes,
            by_source,
        }
    }

    /// Gives sources other numbers: the one at each place of the list becomes the one that stands there.
    pub(crate) fn renumber(&mut self, numbers: &[u8]) {
        let mut by_source = Vec::new();
        for history in self.keys.values_mut() {
            for change in &mut history.changes {
                let number = numbers[usize::from(change.source())];
                change.rest = change.rest & !(u32::from(u8::MAX) << SOURCE_SHIFT) | u32::from(number) << SOURCE_SHIFT;
                *count_of(&mut by_source, number) += 1;
            }
        }
        self.by_source = by_source;
    }

    /// Takes in other keys.
    pub(crate) fn append(&mut self, other: Self) {
        let Self {
            mut keys,
            live_keys,
            rows,
            bytes,
            by_source,
        } = other;
        self.keys.append(&mut keys);
        self.live_keys += live_keys;
        self.rows += rows;
        self.bytes += bytes;
        for (source, rows) in (0_u8..=u8::MAX).zip(by_source) {
            *count_of(&mut self.by_source, source) += rows;
        }
    }

    /// Takes out some changes, for an index that is being given up; none if nothing is left.
    pub(crate) fn take_some(&mut self, rows_max: usize) -> Vec<Place> {
        let mut places = Vec::new();
        while places.len() < rows_max
            && let Some(mut first) = self.keys.first_entry()
        {
            match first.get_mut().changes.pop() {
                Some(change) => places.push(change.place()),
                None => drop(first.remove()),
            }
        }
        places
    }
}
