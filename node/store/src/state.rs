//! The seam to a key-value engine: ordered keys, atomic batches, checkpoints.

use crate::error::StoreError;
use bytes::Bytes;

/// What a removal weighs: a tenth of a page of the usual size, since engines write a page again after about ten changes.
const REMOVAL_WEIGHT: usize = 2 << 10;
/// Rows that one batch removes, so that it weighs about as much as a batch of puts may (see `BARRIER_BYTES`).
pub(crate) const REMOVALS_MAX: usize = 64;

/// One change of a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BatchOp {
    /// Sets a key.
    Put(Bytes, Bytes),
    /// Removes a key; no error if it is not there.
    Delete(Bytes),
    /// Sets keys that an engine may store as one: they are in order, new, no other key stands or will ever be put between the first
    /// and the last, and they are never set again. Reading and removing them is as with any other key.
    Run(Vec<(Bytes, Bytes)>),
}

/// Changes that happen together or not at all, also across a crash. A key stands in it at most once.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Batch(pub Vec<BatchOp>);

impl Batch {
    /// Adds a put.
    pub fn put(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.0.push(BatchOp::Put(key.into(), value.into()));
    }

    /// Adds a run of rows; see [`BatchOp::Run`] for what the caller promises.
    pub fn run(&mut self, rows: impl IntoIterator<Item = (Bytes, Bytes)>) {
        self.0.push(BatchOp::Run(rows.into_iter().collect()));
    }

    /// About how many bytes an engine writes for it: a put is written as it is, a removal anywhere makes it write a page again.
    #[must_use]
    pub fn weight(&self) -> usize {
        let weights = self.0.iter().map(|op| match op {
            BatchOp::Put(key, value) => key.len() + value.len(),
            BatchOp::Run(rows) => rows.iter().map(|(key, value)| key.len() + value.len()).sum(),
            BatchOp::Delete(key) => key.len() + REMOVAL_WEIGHT,
        });
        weights.sum()
    }

    /// Adds a removal.
    pub fn delete(&mut self, key: impl Into<Bytes>) {
        self.0.push(BatchOp::Delete(key.into()));
    }
}

/// Keys `[start, end)`; no `end` means all from `start` on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeySpan {
    /// First key.
    pub start: Bytes,
    /// First key after the span.
    pub end: Option<Bytes>,
}

impl KeySpan {
    /// All keys that begin with `prefix`.
    #[must_use]
    pub fn prefix(prefix: &[u8]) -> Self {
        let end = prefix.iter().rposition(|byte| *byte != u8::MAX).map(|at| {
            let mut end = prefix[..=at].to_vec();
            end[at] += 1;
            Bytes::from(end)
        });
        Self {
            start: Bytes::copy_from_slice(prefix),
            end,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }
}

/// Which end of a span a scan starts at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// Smallest key first.
    Forward,
    /// Largest key first.
    Backward,
}

/// How much one `scan` may return. The first row is always returned, however large.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageLimit {
    /// Rows.
    pub rows: usize,
    /// Bytes of keys and values.
    pub bytes: usize,
}

impl PageLimit {
    /// For walks over everything: large enough to make the seek per page cheap, small enough not to matter for memory.
    pub const WALK: Self = Self {
        rows: 1024,
        bytes: 4 << 20,
    };
}

/// Rows in the order of the scan. Empty exactly if the span has none.
pub type Page = Vec<(Bytes, Bytes)>;

/// An ordered key-value engine. Cloning gives another handle to the same data.
///
/// Contract: `apply` is atomic, also across a crash, and becomes visible at once; it is called from one thread at a time.
/// Batches become durable in order, so what a crash leaves is the state after some prefix of them, no shorter than at the
/// last `checkpoint`. Reads may run on any thread at any time.
pub trait StateStore: Clone + Send + Sync + 'static {
    /// Reads one key.
    ///
    /// # Errors
    /// If the engine fails.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// Reads some of a span. For more, ask again from behind the last key.
    ///
    /// # Errors
    /// If the engine fails.
    fn scan(&self, span: &KeySpan, order: Order, limit: PageLimit) -> Result<Page, StoreError>;

    /// Applies a batch.
    ///
    /// # Errors
    /// If the engine fails; whether the batch took effect is then unknown.
    fn apply(&self, batch: Batch) -> Result<(), StoreError>;

    /// Makes everything applied before this call durable.
    ///
    /// # Errors
    /// If the engine or the disk fails.
    fn checkpoint(&self) -> Result<(), StoreError>;

    /// Bytes on disk.
    ///
    /// # Errors
    /// If the engine fails.
    fn size_on_disk(&self) -> Result<u64, StoreError>;

    /// Removes up to one page of a span; `true` if nothing is left. Repeat to clear a span in bounded batches.
    ///
    /// # Errors
    /// If the engine fails.
    fn clear_some(&self, span: &KeySpan, limit: PageLimit) -> Result<bool, StoreError> {
        let rows = limit.rows.min(REMOVALS_MAX);
        let page = self.scan(span, Order::Forward, PageLimit { rows, ..limit })?;
        if page.is_empty() {
            return Ok(true);
        }
        let mut batch = Batch::default();
        for (key, _) in page {
            batch.delete(key);
        }
        self.apply(batch)?;
        Ok(false)
    }

    /// Removes all of a span, in bounded batches.
    ///
    /// # Errors
    /// If the engine fails.
    fn clear(&self, span: &KeySpan) -> Result<(), StoreError> {
        while !self.clear_some(span, PageLimit::WALK)? {}
        Ok(())
    }
}
