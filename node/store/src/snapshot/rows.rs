//! The rows of one moment of a group, in revision order, wherever they lie.

use crate::error::StoreError;
use crate::mvcc::layout::{Place, ROW_KEY_BYTES, Row, RowId};
use crate::mvcc::sources::Source;
use crate::mvcc::{State, successor};
use crate::ops::Partitioning;
use crate::state::{KeySpan, Order, PageLimit, StateStore};
use althing_raft::ids::{GroupId, Index};
use bytes::Bytes;
use std::collections::VecDeque;

/// One source's rows of one kind.
struct Cursor {
    source: Source,
    late: bool,
    /// Rows of later entries are not of this moment. Of slots that nobody writes into any more, all are.
    until: Option<Index>,
    /// The group's newest revision.
    to: i64,
    rest: KeySpan,
    page: VecDeque<(RowId, Bytes)>,
    done: bool,
}

impl Cursor {
    /// Goes to the first row of a revision.
    fn seek(&mut self, main: i64) {
        let place = Place {
            source: 0,
            late: self.late,
            id: RowId { main, sub: 0 },
        };
        let slot = self.source.slot;
        self.rest = if self.late {
            slot.late_span()
        } else {
            slot.rows_span(self.to)
        };
        let start = Bytes::from(slot.key_of(place));
        self.rest.start = start.max(self.rest.start.clone());
        self.page.clear();
        self.done = false;
    }

    /// Makes the next row the first one of the page, if there is one.
    fn fill<S: StateStore>(
        &mut self,
        store: &S,
        group: GroupId,
        partitioning: Partitioning,
        limit: PageLimit,
    ) -> Result<(), StoreError> {
        while self.page.is_empty() && !self.done {
            let page = store.scan(&self.rest, Order::Forward, limit)?;
            let Some((last, _)) = page.last() else {
                self.done = true;
                break;
            };
            self.rest.start = successor(last);
            for (key, value) in page {
                if let Some(row) = self.admit(group, partitioning, &key, value)? {
                    self.page.push_back(row);
                }
            }
        }
        Ok(())
    }

    /// A row, if it is one of the group at this moment.
    fn admit(
        &self,
        group: GroupId,
        partitioning: Partitioning,
        key: &[u8],
        value: Bytes,
    ) -> Result<Option<(RowId, Bytes)>, StoreError> {
        let slot = self.source.slot;
        let (id, row) = if self.late {
            let (at, row) = Row::split_late(value).map_err(|source| StoreError::Unreadable {
                group,
                what: "a late row",
                source,
            })?;
            if self.until.is_some_and(|until| at > until) {
                return Ok(None);
            }
            (slot.parse_late_key(key), row)
        } else {
            (slot.parse_row_key(key), value)
        };
        let id = id.ok_or_else(|| StoreError::Corrupt {
            group,
            what: "a row's key has a wrong length".to_owned(),
        })?;
        if self.source.is_whole() {
            return Ok(Some((id, row)));
        }
        let parsed = Row::decode(row.clone()).map_err(|source| StoreError::Unreadable {
            group,
            what: "a revision row",
            source,
        })?;
        Ok(self.source.has(partitioning, &parsed.key).then_some((id, row)))
    }
}

/// All of them.
pub(super) struct Rows {
    group: GroupId,
    partitioning: Partitioning,
    cursors: Vec<Cursor>,
    /// Rows of several places may have one number. Then all are numbered anew: nobody ever saw the old ones.
    renumber: bool,
    last: Option<RowId>,
}

impl Rows {
    pub(super) fn new<S: StateStore>(store: &S, state: &State) -> Result<Self, StoreError> {
        let one = PageLimit { rows: 1, bytes: 1 };
        let mut cursors = Vec::new();
        for (number, source) in state.sources.iter().enumerate() {
            let own = number == usize::from(state.own);
            if source.spans.is_empty() {
                continue;
            }
            let cursor = |late| Cursor {
                source: source.clone(),
                late,
                until: own.then_some(state.record.meta.position.index),
                to: state.record.current,
                rest: KeySpan::prefix(&[]),
                page: VecDeque::new(),
                done: false,
            };
            cursors.push(cursor(false));
            if !store.scan(&source.slot.late_span(), Order::Forward, one)?.is_empty() {
                cursors.push(cursor(true));
            }
        }
        let mut rows = Self {
            group: state.group,
            partitioning: state.record.shard.territory.partitioning,
            renumber: cursors.len() > 1,
            cursors,
            last: None,
        };
        rows.seek(None);
        Ok(rows)
    }

    /// Goes on behind a row that it gave.
    pub(super) fn seek(&mut self, last: Option<RowId>) {
        // The numbers of a revision are counted from its first row.
        let main = last.map_or(0, |last| last.main);
        for cursor in &mut self.cursors {
            cursor.seek(main);
        }
        self.last = None;
    }

    /// The next rows behind `last`, at least one if there is one.
    pub(super) fn next_page<S: StateStore>(
        &mut self,
        store: &S,
        last: Option<RowId>,
        limit: PageLimit,
    ) -> Result<Vec<(RowId, Bytes)>, StoreError> {
        while let Some((id, _)) = self.peek(store, limit)?
            && last.is_some_and(|last| id <= last)
        {
            self.pop();
        }
        let mut page = Vec::new();
        let mut bytes = 0;
        while let Some((id, row_bytes)) = self.peek(store, limit)? {
            bytes += row_bytes;
            if page.len() >= limit.rows || !page.is_empty() && bytes > limit.bytes {
                break;
            }
            let row = self.pop().expect("invariant: it was there to be seen");
            page.push((id, row));
        }
        Ok(page)
    }

    /// Number and bytes of the next row.
    fn peek<S: StateStore>(&mut self, store: &S, limit: PageLimit) -> Result<Option<(RowId, usize)>, StoreError> {
        // All pages together are as large as one.
        let each = PageLimit {
            rows: limit.rows,
            bytes: limit.bytes / self.cursors.len().max(1),
        };
        for cursor in &mut self.cursors {
            cursor.fill(store, self.group, self.partitioning, each)?;
        }
        Ok(self.first().map(|at| {
            let (id, row) = &self.cursors[at].page[0];
            (self.number(*id), ROW_KEY_BYTES as usize + row.len())
        }))
    }

    fn first(&self) -> Option<usize> {
        let firsts = self.cursors.iter().enumerate();
        let firsts = firsts.filter_map(|(at, cursor)| Some((cursor.page.front()?.0.main, at)));
        firsts.min().map(|(_, at)| at)
    }

    fn number(&self, id: RowId) -> RowId {
        match self.last {
            _ if !self.renumber => id,
            Some(last) if last.main == id.main => RowId {
                main: id.main,
                sub: last.sub + 1,
            },
            Some(_) | None => RowId { main: id.main, sub: 0 },
        }
    }

    fn pop(&mut self) -> Option<Bytes> {
        let first = self.first()?;
        let (id, row) = self.cursors[first].page.pop_front()?;
        self.last = Some(self.number(id));
        Some(row)
    }
}
