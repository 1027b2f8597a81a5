//! Looking: which rows a request sees, and what it makes of them. Pure but for the fetching of rows.

use crate::error::StoreError;
use crate::mvcc::index::{Change, History, Index, bounds};
use crate::mvcc::layout::Place;
use crate::ops::{
    Compare, CompareOp, CompareTarget, Descending, KeyRange, KeyValue, OpError, Range, RangeResult, Revision,
    SortTarget,
};
use bytes::Bytes;
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// A client's mistake or the engine's failure.
#[derive(Debug)]
pub(crate) enum Fail {
    Op(OpError),
    Store(StoreError),
}

impl From<OpError> for Fail {
    fn from(error: OpError) -> Self {
        Self::Op(error)
    }
}

impl From<StoreError> for Fail {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Changes not yet in the index: those of the batch being applied.
pub(crate) type Delta = BTreeMap<Bytes, History>;

/// The keys of a range that are there at a revision.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Rows, in key order, as many as were asked for.
    pub(crate) rows: Vec<Place>,
    /// Keys, also beyond those.
    pub(crate) count: i64,
}

/// The index with the batch's changes on top.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) index: &'a Index,
    pub(crate) delta: Option<&'a Delta>,
}

impl View<'_> {
    /// The last change of a key at or before `revision`, if that is not a removal.
    fn visible(base: Option<&History>, delta: Option<&History>, revision: i64) -> Option<Change> {
        let change = delta
            .and_then(|delta| delta.at(revision))
            .or_else(|| base?.at(revision))?;
        (!change.removal()).then_some(change)
    }

    pub(crate) fn list(self, keys: &KeyRange, revision: i64, limit: usize) -> Listing {
        let mut listing = Listing::default();
        self.each(keys, revision, |_, change| {
            if listing.rows.len() < limit {
                listing.rows.push(change.place());
            }
            listing.count += 1;
        });
        listing
    }

    /// Visits the keys of a range that are there at a revision, in order.
    pub(crate) fn each(self, keys: &KeyRange, revision: i64, mut visit: impl FnMut(&[u8], Change)) {
        let mut visit = |key: &[u8], base: Option<&History>, delta: Option<&History>| {
            if let Some(change) = Self::visible(base, delta, revision) {
                visit(key, change);
            }
        };
        if let KeyRange::Single(key) = keys {
            return visit(
                key,
                self.index.get(key),
                self.delta.and_then(|delta| delta.get(&key[..])),
            );
        }
        let Some(bounds) = bounds(keys) else { return };
        let mut base = self.index.range(keys).peekable();
        let mut delta = self
            .delta
            .map(|delta| delta.range::<[u8], _>(bounds))
            .into_iter()
            .flatten()
            .peekable();
        loop {
            let order = match (base.peek(), delta.peek()) {
                (None, None) => return,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((left, _)), Some((right, _))) => left[..].cmp(&right[..]),
            };
            let from_base = if order.is_le() { base.next() } else { None };
            let from_delta = if order.is_ge() { delta.next() } else { None };
            let key = from_base.map_or_else(|| from_delta.map_or(&[][..], |(key, _)| key), |(key, _)| key);
            visit(
                key,
                from_base.map(|(_, history)| history),
                from_delta.map(|(_, history)| history),
            );
        }
    }
}

/// The revision that a range reads at. `current` counts what the transaction around it has written so far; `newest` is the last one that
/// may be asked for.
pub(crate) fn read_revision(
    asked: Option<Revision>,
    current: i64,
    newest: i64,
    compacted: i64,
) -> Result<i64, OpError> {
    match asked {
        // etcd reads the latest for 0 and below.
        None => Ok(current),
        Some(Revision(asked)) if asked <= 0 => Ok(current),
        Some(Revision(asked)) if asked > newest => Err(OpError::FutureRevision),
        Some(Revision(asked)) if asked < compacted => Err(OpError::Compacted),
        Some(Revision(asked)) => Ok(asked),
    }
}

fn filters(range: &Range) -> bool {
    range.mod_revision != (0, 0) || range.create_revision != (0, 0)
}

fn sorts(range: &Range) -> bool {
    match range.sort {
        None | Some((SortTarget::Key, Descending(false))) => false,
        Some(_) => true,
    }
}

/// How many rows a range must fetch: one more than its limit shows whether there are more, but filters and sorting need all.
pub(crate) fn rows_wanted(range: &Range) -> usize {
    match range.limit {
        _ if range.count_only => 0,
        Some(limit) if !filters(range) && !sorts(range) => {
            usize::try_from(limit).unwrap_or(usize::MAX).saturating_add(1)
        }
        None | Some(_) => usize::MAX,
    }
}

/// From the rows of a range, in key order, to its answer: filter, sort, cut, strip, in etcd's order (etcd-api.md, 2.2). Giving it the
/// answers of several shards together gives the answer of all of them.
#[must_use]
pub fn finish_range(range: &Range, mut kvs: Vec<KeyValue>, count: i64) -> RangeResult {
    let within =
        |revision: Revision, (min, max): (i64, i64)| (min == 0 || revision.0 >= min) && (max == 0 || revision.0 <= max);
    if filters(range) {
        kvs.retain(|kv| {
            within(kv.mod_revision, range.mod_revision) && within(kv.create_revision, range.create_revision)
        });
    }
    if let Some((target, Descending(descending))) = range.sort {
        let order = |left: &KeyValue, right: &KeyValue| match target {
            SortTarget::Key => left.key.cmp(&right.key),
            SortTarget::Version => left.version.cmp(&right.version),
            SortTarget::Create => left.create_revision.cmp(&right.create_revision),
            SortTarget::Mod => left.mod_revision.cmp(&right.mod_revision),
            SortTarget::Value => left.value.cmp(&right.value),
        };
        // Stable, so ties stay in key order.
        kvs.sort_by(|left, right| {
            if descending {
                order(right, left)
            } else {
                order(left, right)
            }
        });
    }
    let limit = range
        .limit
        .map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let more = kvs.len() > limit;
    kvs.truncate(limit);
    if range.keys_only {
        for kv in &mut kvs {
            kv.value = Bytes::new();
        }
    }
    RangeResult { kvs, more, count }
}

/// Whether one comparison holds for one key; `None` is a missing key.
#[must_use]
pub fn compare_holds(compare: &Compare, kv: Option<&KeyValue>) -> bool {
    let number = |of: fn(&KeyValue) -> i64, with: &i64| kv.map_or(0, of).cmp(with);
    let order = match &compare.target {
        CompareTarget::Version(with) => number(|kv| kv.version, with),
        CompareTarget::Create(with) => number(|kv| kv.create_revision.0, with),
        CompareTarget::Mod(with) => number(|kv| kv.mod_revision.0, with),
        CompareTarget::Lease(with) => number(|kv| kv.lease, with),
        CompareTarget::Value(with) => match kv {
            // A value that is not there compares with nothing, not even as different.
            None => return false,
            Some(kv) => kv.value.cmp(with),
        },
    };
    match compare.op {
        CompareOp::Equal => order.is_eq(),
        CompareOp::Greater => order.is_gt(),
        CompareOp::Less => order.is_lt(),
        CompareOp::NotEqual => order.is_ne(),
    }
}
