//! The key index: every key's changes, in memory, rebuilt from the rows at open.

use crate::mvcc::layout::{Place, ROW_KEY_BYTES, Row, RowId, SUB_MAX};
use crate::ops::{KeyRange, Partitioning};
use bytes::Bytes;
use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::{BTreeMap, BinaryHeap, btree_map};
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

    /// How many of its changes nobody at or after a revision can see, counted from the oldest.
    fn prunable(&self, compacted: i64) -> usize {
        let upto = self.changes.partition_point(|change| change.main <= compacted);
        match upto.checked_sub(1).map(|at| self.changes[at]) {
            None => 0,
            Some(last) if last.removal() && last.main < compacted => upto,
            Some(_) => upto - 1,
        }
    }
}

/// Sums over some keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    /// Keys that are there now.
    pub(crate) live_keys: u64,
    /// Rows there are.
    pub(crate) rows: u64,
    /// Bytes of rows and their keys.
    pub(crate) bytes: u64,
    /// Rows of each source.
    by_source: Vec<u64>,
}

impl Sums {
    fn add(&mut self, change: Change) {
        self.rows += 1;
        self.bytes += change.bytes();
        *self.of(change.source()) += 1;
    }

    fn remove(&mut self, change: Change) {
        self.rows -= 1;
        self.bytes -= change.bytes();
        *self.of(change.source()) -= 1;
    }

    fn add_key(&mut self, history: &History) {
        self.live_keys += u64::from(history.head.version > 0);
        history.changes.iter().for_each(|change| self.add(*change));
    }

    fn add_all(&mut self, other: &Self) {
        self.live_keys += other.live_keys;
        self.rows += other.rows;
        self.bytes += other.bytes;
        for (source, rows) in (0_u8..=u8::MAX).zip(&other.by_source) {
            *self.of(source) += rows;
        }
    }

    fn remove_all(&mut self, other: &Self) {
        self.live_keys -= other.live_keys;
        self.rows -= other.rows;
        self.bytes -= other.bytes;
        for (source, rows) in (0_u8..=u8::MAX).zip(&other.by_source) {
            *self.of(source) -= rows;
        }
    }

    fn of(&mut self, source: u8) -> &mut u64 {
        let at = usize::from(source);
        if self.by_source.len() <= at {
            self.by_source.resize(at + 1, 0);
        }
        &mut self.by_source[at]
    }
}

/// The keys of one slot.
#[derive(Debug, Default)]
struct Bucket {
    keys: BTreeMap<Box<[u8]>, History>,
    sums: Sums,
}

/// All keys. Those of each slot are by themselves, so that a shard can be cut between slots without a look at its keys.
#[derive(Debug, Default)]
pub(crate) struct Index {
    partitioning: Partitioning,
    /// One, of number 0, if keys are not hashed.
    buckets: BTreeMap<u32, Bucket>,
    /// Over all of them.
    pub(crate) sums: Sums,
}

/// Where a sweep goes on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct SweepCursor {
    bucket: u32,
    /// The last key of it that is done; `None` at the beginning.
    after: Option<Box<[u8]>>,
}

/// What `BTreeMap::range` takes.
type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

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

/// Number of the slot at which a hashed shard is cut.
fn slot_at(at: &[u8]) -> u32 {
    let number = at.try_into().map(u32::from_be_bytes);
    number.expect("invariant: hashed shards are cut at keys of a slot number's length")
}

impl Index {
    pub(crate) fn new(partitioning: Partitioning) -> Self {
        Self {
            partitioning,
            ..Self::default()
        }
    }

    /// Puts keys in order in another way.
    pub(crate) fn set_partitioning(&mut self, partitioning: Partitioning) {
        if partitioning != self.partitioning {
            let old = std::mem::replace(self, Self::new(partitioning));
            for (key, history) in old.buckets.into_values().flat_map(|bucket| bucket.keys) {
                self.sums.add_key(&history);
                let bucket = self
                    .buckets
                    .entry(self.partitioning.slot(&key).unwrap_or(0))
                    .or_default();
                bucket.sums.add_key(&history);
                bucket.keys.insert(key, history);
            }
        }
    }

    fn bucket_of(&self, key: &[u8]) -> u32 {
        self.partitioning.slot(key).unwrap_or(0)
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&History> {
        self.buckets.get(&self.bucket_of(key))?.keys.get(key)
    }

    /// Keys of a range with their histories, in order.
    pub(crate) fn range(&self, keys: &KeyRange) -> Keys<'_> {
        let Some(bounds) = bounds(keys) else {
            return Keys::None;
        };
        let only = match self.partitioning {
            Partitioning::Range => Some(0),
            Partitioning::Hash { .. } => self.partitioning.slot_of_all(keys),
        };
        match only {
            Some(bucket) => match self.buckets.get(&bucket) {
                Some(bucket) => Keys::One(bucket.keys.range::<[u8], _>(bounds)),
                None => Keys::None,
            },
            None => Keys::Many(Merge::new(
                self.buckets.values().map(|bucket| bucket.keys.range::<[u8], _>(bounds)),
            )),
        }
    }

    /// Adds changes that are newer than all the key has.
    pub(crate) fn extend(&mut self, key: &[u8], head: Head, changes: &[Change]) {
        let bucket = self
            .buckets
            .entry(self.partitioning.slot(key).unwrap_or(0))
            .or_default();
        let history = match bucket.keys.get_mut(key) {
            Some(history) => history,
            None => bucket.keys.entry(key.into()).or_default(),
        };
        for sums in [&mut self.sums, &mut bucket.sums] {
            sums.live_keys -= u64::from(history.head.version > 0);
            sums.live_keys += u64::from(head.version > 0);
            changes.iter().for_each(|change| sums.add(*change));
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
        let number = self.bucket_of(&row.key);
        if let Some(bucket) = self.buckets.get_mut(&number)
            && let Some(history) = bucket.keys.get_mut(&row.key[..])
            && history.changes.last().is_some_and(|last| last.main > change.main)
        {
            let at = history.changes.partition_point(|before| before.main <= change.main);
            history.changes.insert(at, change);
            self.sums.add(change);
            bucket.sums.add(change);
            return;
        }
        self.extend(&row.key, head, &[change]);
    }

    /// Forgets, for up to `keys_max` keys from a cursor on, what nobody at or after `compacted` can see, up to `rows_max`
    /// rows. Gives the rows, and where to go on (`None` if this was the end).
    ///
    /// Of each key stays the last change at or before `compacted`, unless that is a removal before it: a removal at
    /// exactly `compacted` stays, because a watch may still start there (etcd#19179).
    pub(crate) fn prune(
        &mut self,
        cursor: SweepCursor,
        compacted: i64,
        keys_max: usize,
        rows_max: usize,
    ) -> (Vec<Place>, Option<SweepCursor>) {
        let mut dropped = Vec::new();
        let mut keys = 0;
        let SweepCursor {
            bucket: first,
            mut after,
        } = cursor;
        for (number, bucket) in self.buckets.range_mut(first..) {
            if *number != first {
                after = None;
            }
            let mut emptied = Vec::new();
            let mut stopped = None;
            let start = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            for (key, history) in bucket.keys.range_mut::<[u8], _>((start, Bound::Unbounded)) {
                if keys == keys_max || dropped.len() >= rows_max {
                    stopped = Some(());
                    break;
                }
                keys += 1;
                // A key with a long history may take several steps: its oldest changes go first, which is always right.
                let gone = history.prunable(compacted);
                let now = gone.min(rows_max - dropped.len());
                for change in history.changes.drain(..now) {
                    self.sums.remove(change);
                    bucket.sums.remove(change);
                    dropped.push(change.place());
                }
                if now < gone {
                    stopped = Some(());
                    break;
                }
                if history.changes.is_empty() {
                    emptied.push(key.clone());
                }
                after = Some(key.clone());
            }
            for key in emptied {
                bucket.keys.remove(&key);
            }
            if stopped.is_some() {
                return (dropped, Some(SweepCursor { bucket: *number, after }));
            }
        }
        (dropped, None)
    }

    /// Rows of a source.
    pub(crate) fn rows_of(&self, source: u8) -> u64 {
        self.sums
            .by_source
            .get(usize::from(source))
            .copied()
            .unwrap_or_default()
    }

    /// Bytes of each slot that has any, if keys are hashed.
    pub(crate) fn bytes_of_slots(&self) -> impl Iterator<Item = (u32, u64)> {
        let buckets = self.buckets.iter().filter(|(_, bucket)| bucket.sums.rows > 0);
        buckets.map(|(slot, bucket)| (*slot, bucket.sums.bytes))
    }

    /// What there is at and after a partition key.
    pub(crate) fn sums_after(&self, at: &Bytes) -> Sums {
        let mut sums = Sums::default();
        match self.partitioning {
            Partitioning::Range => {
                let after = self.range(&KeyRange::From(at.clone()));
                after.for_each(|(_, history)| sums.add_key(history));
            }
            Partitioning::Hash { .. } => {
                let after = self.buckets.range(slot_at(at)..);
                after.for_each(|(_, bucket)| sums.add_all(&bucket.sums));
            }
        }
        sums
    }

    /// Takes out what is at and after a partition key, of which these are the sums.
    pub(crate) fn split_off(&mut self, at: &Bytes, sums: Sums) -> Self {
        self.sums.remove_all(&sums);
        let mut buckets = match self.partitioning {
            Partitioning::Range => BTreeMap::new(),
            Partitioning::Hash { .. } => self.buckets.split_off(&slot_at(at)),
        };
        if self.partitioning == Partitioning::Range
            && let Some(bucket) = self.buckets.get_mut(&0)
        {
            let keys = bucket.keys.split_off(&at[..]);
            bucket.sums.remove_all(&sums);
            let sums = sums.clone();
            buckets.insert(0, Bucket { keys, sums });
        }
        Self {
            partitioning: self.partitioning,
            buckets,
            sums,
        }
    }

    /// Gives sources other numbers: the one at each place of the list becomes the one that stands there.
    pub(crate) fn renumber(&mut self, numbers: &[u8]) {
        let sums = |sums: &mut Sums| {
            let mut by_source = std::mem::take(&mut sums.by_source).into_iter().zip(numbers);
            by_source.by_ref().for_each(|(rows, number)| *sums.of(*number) += rows);
        };
        sums(&mut self.sums);
        for bucket in self.buckets.values_mut() {
            sums(&mut bucket.sums);
            for change in bucket.keys.values_mut().flat_map(|history| &mut history.changes) {
                let number = numbers[usize::from(change.source())];
                change.rest = change.rest & !(u32::from(u8::MAX) << SOURCE_SHIFT) | u32::from(number) << SOURCE_SHIFT;
            }
        }
    }

    /// Takes in other keys, put in order in the same way.
    pub(crate) fn append(&mut self, other: Self) {
        assert_eq!(
            self.partitioning, other.partitioning,
            "invariant: neighbours are of one keyspace"
        );
        self.sums.add_all(&other.sums);
        for (number, mut bucket) in other.buckets {
            let own = self.buckets.entry(number).or_default();
            own.keys.append(&mut bucket.keys);
            own.sums.add_all(&bucket.sums);
        }
    }

    /// Takes out some changes, for an index that is being given up; none if nothing is left.
    pub(crate) fn take_some(&mut self, rows_max: usize) -> Vec<Place> {
        let mut places = Vec::new();
        while places.len() < rows_max
            && let Some(mut bucket) = self.buckets.first_entry()
        {
            let Some(mut first) = bucket.get_mut().keys.first_entry() else {
                drop(bucket.remove());
                continue;
            };
            match first.get_mut().changes.pop() {
                Some(change) => places.push(change.place()),
                None => drop(first.remove()),
            }
        }
        places
    }
}

/// Keys of one bucket.
type Bucketful<'a> = btree_map::Range<'a, Box<[u8]>, History>;
/// A key, and the place of its bucket among the others. The smallest is the first to come.
type NextKey<'a> = Reverse<(&'a Box<[u8]>, usize)>;

/// Keys with their histories, in order.
pub(crate) enum Keys<'a> {
    None,
    One(Bucketful<'a>),
    Many(Merge<'a>),
}

impl<'a> Iterator for Keys<'a> {
    type Item = (&'a Box<[u8]>, &'a History);

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::None => None,
            Self::One(keys) => keys.next(),
            Self::Many(keys) => keys.next(),
        }
    }
}

/// Keys of several buckets in one order.
pub(crate) struct Merge<'a> {
    /// The next key of each bucket that has one.
    next: BinaryHeap<NextKey<'a>>,
    /// The history of that key, and what comes after it.
    rest: Vec<(&'a History, Bucketful<'a>)>,
}

impl<'a> Merge<'a> {
    fn new(buckets: impl Iterator<Item = Bucketful<'a>>) -> Self {
        let (mut next, mut rest) = (Vec::new(), Vec::new());
        for mut keys in buckets {
            if let Some((key, history)) = keys.next() {
                next.push(Reverse((key, rest.len())));
                rest.push((history, keys));
            }
        }
        Self {
            next: next.into(),
            rest,
        }
    }
}

impl<'a> Iterator for Merge<'a> {
    type Item = (&'a Box<[u8]>, &'a History);

    fn next(&mut self) -> Option<Self::Item> {
        let mut first = self.next.peek_mut()?;
        let Reverse((key, at)) = *first;
        let (history, rest) = &mut self.rest[at];
        let found = (key, *history);
        match rest.next() {
            Some((key, after)) => {
                *first = Reverse((key, at));
                *history = after;
            }
            None => drop(PeekMut::pop(first)),
        }
        Some(found)
    }
}
