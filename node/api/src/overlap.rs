//! No transaction may change one key twice: it would have two values at one revision.
//!
//! Both branches are checked before anything runs. The two branches of one nested transaction may change the same
//! key, for only one of them runs. Removals may overlap each other.
//!
//! etcd has two holes here, which this check does not copy: it misses a put under a removal without end
//! (`range_end` of one zero byte), and a removal nested after a nested put.
//!
//! Cost: every key is moved into a larger set at most log(n) times, and looked up in logarithmic time, so that a
//! request of many small operations cannot hold a core.

use crate::errors::RequestError;
use althing_store::ops::{KeyRange, Op, Txn};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// Refuses a transaction that could change one key twice.
pub(crate) fn check(txn: &Txn) -> Result<(), RequestError> {
    branch(&txn.success)?;
    branch(&txn.failure)?;
    Ok(())
}

/// What one branch changes, if no key of it is changed twice.
fn branch(ops: &[Op]) -> Result<Changes<'_>, RequestError> {
    let mut changes = Changes::default();
    for op in ops {
        let more = match op {
            Op::Range(_) => continue,
            Op::Put(put) => Changes::put(&put.key),
            Op::Delete(delete) => Changes::delete(&delete.keys),
            Op::Txn(nested) => branch(&nested.success)?.join(branch(&nested.failure)?),
        };
        if changes.conflicts_with(&more) {
            return Err(RequestError::DuplicateKey);
        }
        changes = changes.join(more);
    }
    Ok(changes)
}

/// Where a span of removed keys ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End<'a> {
    /// Before this key.
    Before(&'a [u8]),
    /// Nowhere.
    Never,
}

impl<'a> End<'a> {
    fn is_after(self, key: &[u8]) -> bool {
        match self {
            Self::Before(end) => key < end,
            Self::Never => true,
        }
    }

    fn bound(self) -> Bound<&'a [u8]> {
        match self {
            Self::Before(end) => Bound::Excluded(end),
            Self::Never => Bound::Unbounded,
        }
    }

    fn later(self, other: Self) -> Self {
        match (self, other) {
            (Self::Before(one), Self::Before(two)) => Self::Before(one.max(two)),
            (Self::Never, _) | (_, Self::Never) => Self::Never,
        }
    }
}

/// Keys written and removed.
#[derive(Default, Debug)]
struct Changes<'a> {
    puts: BTreeSet<&'a [u8]>,
    /// Single removed keys.
    points: BTreeSet<&'a [u8]>,
    /// Removed spans by their start; none is empty, and no two touch.
    spans: BTreeMap<&'a [u8], End<'a>>,
}

impl<'a> Changes<'a> {
    fn put(key: &'a [u8]) -> Self {
        Self {
            puts: BTreeSet::from([key]),
            ..Self::default()
        }
    }

    fn delete(keys: &'a KeyRange) -> Self {
        let mut changes = Self::default();
        match keys {
            KeyRange::Single(key) => {
                changes.points.insert(key);
            }
            KeyRange::Between(start, end)
            | KeyRange::Part {
                start, end: Some(end), ..
            } => changes.remove_span(start, End::Before(end)),
            KeyRange::From(start) | KeyRange::Part { start, end: None, .. } => changes.remove_span(start, End::Never),
        }
        changes
    }

    /// Adds a span, merged with those it touches.
    fn remove_span(&mut self, start: &'a [u8], end: End<'a>) {
        if !end.is_after(start) {
            return;
        }
        let (mut start, mut end) = (start, end);
        if let Some((before, their_end)) = self
            .spans
            .range::<[u8], _>((Bound::Unbounded, Bound::Included(start)))
            .next_back()
            && (their_end.is_after(start) || *their_end == End::Before(start))
        {
            start = before;
            end = end.later(*their_end);
        }
        loop {
            let next = self
                .spans
                .range::<[u8], _>((Bound::Included(start), Bound::Unbounded))
                .next();
            let Some((their_start, their_end)) = next.map(|(key, end)| (*key, *end)) else {
                break;
            };
            if !end.is_after(their_start) && end != End::Before(their_start) {
                break;
            }
            end = end.later(their_end);
            self.spans.remove(their_start);
        }
        self.spans.insert(start, end);
    }

    fn removes(&self, key: &[u8]) -> bool {
        self.points.contains(key)
            || self
                .spans
                .range::<[u8], _>((Bound::Unbounded, Bound::Included(key)))
                .next_back()
                .is_some_and(|(_, end)| end.is_after(key))
    }

    fn len(&self) -> usize {
        self.puts.len() + self.points.len() + self.spans.len()
    }

    /// Whether some key is changed by both, but for keys that both only remove.
    fn conflicts_with(&self, other: &Self) -> bool {
        let (small, large) = if self.len() < other.len() {
            (self, other)
        } else {
            (other, self)
        };
        small
            .puts
            .iter()
            .any(|key| large.puts.contains(key) || large.removes(key))
            || small.points.iter().any(|key| large.puts.contains(key))
            || small.spans.iter().any(|(start, end)| {
                large
                    .puts
                    .range::<[u8], _>((Bound::Included(*start), end.bound()))
                    .next()
                    .is_some()
            })
    }

    /// Everything that either changes.
    fn join(self, other: Self) -> Self {
        let (small, mut large) = if self.len() < other.len() {
            (self, other)
        } else {
            (other, self)
        };
        large.puts.extend(small.puts);
        large.points.extend(small.points);
        for (start, end) in small.spans {
            large.remove_span(start, end);
        }
        large
    }
}
