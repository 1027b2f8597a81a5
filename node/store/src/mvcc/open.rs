//! Opening a group: its state from what the engine has.

use crate::error::StoreError;
use crate::mvcc::layout::{AppliedRecord, Place, Row, Slot, slot_key};
use crate::mvcc::refs::{SlotRecord, clear_unused, put_sources, referred_to};
use crate::mvcc::sources::Source;
use crate::mvcc::txns::Table;
use crate::mvcc::{Index, Mvcc, State, Writer, walk};
use crate::state::{Batch, KeySpan, StateStore};
use althing_raft::ids::GroupId;
use std::sync::{Mutex, RwLock};

impl<S: StateStore> Mvcc<S> {
    /// Opens a group's state and rebuilds its index by a walk over its rows. A group that was never written is fresh:
    /// revision 1, nothing applied, no members.
    ///
    /// # Errors
    /// If the engine fails or what it holds contradicts itself: rebuild from a snapshot and the log then.
    pub fn open(store: S, group: GroupId) -> Result<Self, StoreError> {
        let (number, inherited) = match SlotRecord::load(&store, group)?.unwrap_or(SlotRecord::FIRST) {
            SlotRecord::Here { own, inherited } => (own, inherited),
            SlotRecord::Gone { next } => {
                let record = SlotRecord::Here {
                    own: next,
                    inherited: Vec::new(),
                };
                let mut batch = Batch::default();
                batch.put(slot_key(group), record.encode());
                store.apply(batch)?;
                (next, Vec::new())
            }
        };
        let slot = Slot { group, number };
        // What an interrupted snapshot installation left.
        clear_unused(&store, group, Some(number))?;

        let mut state = State::fresh(slot);
        state.own = u8::try_from(inherited.len()).expect("invariant: a group has at most 256 sources");
        state.sources = inherited;
        state.sources.push(Source::own(slot));
        state.load_tables(&store)?;
        for source in 0..=state.own {
            state.load_rows(&store, source)?;
        }
        let last_slot = referred_to(&store, group)?.last().copied();
        let mut writer = Writer::new(last_slot.map_or(number, |last| last.max(number)));
        if let Some(unused) = state.let_unused_go() {
            let mut batch = Batch::default();
            put_sources(&mut batch, group, (&unused, slot), (&state.sources, slot));
            store.apply(batch)?;
            let gone = unused
                .iter()
                .zip(&state.sources)
                .filter(|(_, now)| now.spans.is_empty());
            writer.stale_slots.extend(gone.map(|(source, _)| source.slot));
        }
        Ok(Self {
            store,
            group,
            state: RwLock::new(state),
            writer: Mutex::new(writer),
        })
    }
}

impl State {
    /// Everything but rows.
    fn load_tables<S: StateStore>(&mut self, store: &S) -> Result<(), StoreError> {
        let (group, slot) = (self.group, self.slot());
        let unreadable = |what| move |source| StoreError::Unreadable { group, what, source };
        let odd = |what: &str| StoreError::Corrupt {
            group,
            what: format!("the key of {what} has a wrong length"),
        };
        if let Some(bytes) = store.get(&slot.applied_key())? {
            self.record = AppliedRecord::decode(bytes).map_err(unreadable("the applied record"))?;
        }
        self.index = Index::new(self.record.shard.territory.partitioning);
        walk(store, slot.members_span(), |key, context| {
            let member = slot.parse_member_key(&key).ok_or_else(|| odd("a member"))?;
            self.members.insert(member, context);
            Ok(())
        })?;
        for table in [Table::Prepared, Table::Decided] {
            walk(store, slot.txns_span(table), |key, row| {
                let txn = slot.parse_txn_key(table, &key).ok_or_else(|| odd("a transaction"))?;
                let loaded = self.txns.load(table, txn, row);
                loaded.map_err(unreadable("a transaction's row"))
            })?;
        }
        Ok(())
    }

    /// The rows of one source.
    fn load_rows<S: StateStore>(&mut self, store: &S, source: u8) -> Result<(), StoreError> {
        let slot = self.sources[usize::from(source)].slot;
        self.load_span(store, source, false, slot.all_rows_span())?;
        self.load_span(store, source, true, slot.late_span())
    }

    fn load_span<S: StateStore>(&mut self, store: &S, number: u8, late: bool, span: KeySpan) -> Result<(), StoreError> {
        let (group, current) = (self.group, self.record.current);
        let partitioning = self.record.shard.territory.partitioning;
        let Self { sources, index, .. } = self;
        let source = &sources[usize::from(number)];
        walk(store, span, |key, value| {
            let id = if late {
                source.slot.parse_late_key(&key)
            } else {
                source.slot.parse_row_key(&key)
            };
            let id = id.ok_or_else(|| StoreError::Corrupt {
                group,
                what: "a row's key has a wrong length".to_owned(),
            })?;
            let row = if late {
                Row::split_late(value).map(|(_, row)| row)
            } else {
                Ok(value)
            };
            let (bytes, row) = row
                .and_then(|row| Ok((row.len(), Row::decode(row)?)))
                .map_err(|source| StoreError::Unreadable {
                    group,
                    what: "a revision row",
                    source,
                })?;
            if !source.has(partitioning, &row.key) {
                return Ok(());
            }
            if id.main > current {
                let what = format!("a row of revision {} although the current one is {current}", id.main);
                return Err(StoreError::Corrupt { group, what });
            }
            let place = Place {
                source: number,
                late,
                id,
            };
            index.load(place, &row, bytes);
            Ok(())
        })
    }

    /// Lets go of sources that have no row of the group any more. If there are any: the sources as they were before.
    pub(super) fn let_unused_go(&mut self) -> Option<Vec<Source>> {
        let before = self.sources.clone();
        for (number, source) in (0_u8..=u8::MAX).zip(&mut self.sources) {
            if number != self.own && self.index.rows_of(number) == 0 {
                source.spans.clear();
            }
        }
        (before != self.sources).then_some(before)
    }
}
