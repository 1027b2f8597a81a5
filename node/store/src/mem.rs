//! The engine in memory: for the simulator, the browser and tests. A crash loses everything, which the WAL makes good.

use crate::error::StoreError;
use crate::state::{Batch, BatchOp, KeySpan, Order, Page, PageLimit, StateStore};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

/// An ordered map behind a lock.
#[derive(Clone, Default, Debug)]
pub struct MemStore(Arc<RwLock<BTreeMap<Bytes, Bytes>>>);

impl MemStore {
    /// A copy that shares nothing: what a crash at this moment could leave, had everything been durable.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self(Arc::new(RwLock::new(
            self.0.read().unwrap_or_else(PoisonError::into_inner).clone(),
        )))
    }
}

/// Takes rows until a page is full.
pub(crate) fn fill_page(
    rows: impl Iterator<Item = Result<(Bytes, Bytes), StoreError>>,
    limit: PageLimit,
) -> Result<Page, StoreError> {
    let mut page = Page::new();
    let mut bytes = 0;
    for row in rows {
        let (key, value) = row?;
        bytes += key.len() + value.len();
        if !page.is_empty() && bytes > limit.bytes {
            break;
        }
        page.push((key, value));
        if page.len() >= limit.rows {
            break;
        }
    }
    Ok(page)
}

impl StateStore for MemStore {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.0.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned())
    }

    fn scan(&self, span: &KeySpan, order: Order, limit: PageLimit) -> Result<Page, StoreError> {
        if span.is_empty() {
            return Ok(Page::new());
        }
        let map = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let end = span.end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let rows = map.range::<[u8], _>((Bound::Included(&*span.start), end));
        let copy = |(key, value): (&Bytes, &Bytes)| Ok((key.clone(), value.clone()));
        match order {
            Order::Forward => fill_page(rows.map(copy), limit),
            Order::Backward => fill_page(rows.rev().map(copy), limit),
        }
    }

    fn apply(&self, batch: Batch) -> Result<(), StoreError> {
        let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for op in batch.0 {
            match op {
                BatchOp::Put(key, value) => drop(map.insert(key, value)),
                BatchOp::Delete(key) => drop(map.remove(&key)),
                BatchOp::Run(rows) => map.extend(rows),
            }
        }
        Ok(())
    }

    fn checkpoint(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn size_on_disk(&self) -> Result<u64, StoreError> {
        let map = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Ok(map.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum())
    }
}
