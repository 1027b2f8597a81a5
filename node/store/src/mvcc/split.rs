//! Splits and absorptions: groups that become two, and two that become one, without a row being moved.
//!
//! Both groups refer to the slots that were there, each to its span of them, and go on in a slot of their own ([`super::sources`]). One
//! atomic batch says so for both, so that after a crash either nothing of it has happened or all.

use crate::error::StoreError;
use crate::mvcc::apply::News;
use crate::mvcc::layout::{AppliedRecord, Slot};
use crate::mvcc::refs::{birthplace, put_sources};
use crate::mvcc::retire::Leftover;
use crate::mvcc::shard::Shard;
use crate::mvcc::sources::{SOURCES_MAX, Source};
use crate::mvcc::{Mvcc, State, Writer};
use crate::ops::{OpError, RevisionSource, Territory};
use crate::state::{Batch, StateStore};
use althing_raft::entry::SnapshotMeta;
use althing_raft::ids::{GroupId, Index, LogPosition, Term};
use althing_raft::roster::ReadsState;
use bytes::Bytes;
use std::sync::{Mutex, RwLock};

/// Where the log of a group begins that was cut off another one: what the cut left it counts as its first entry.
pub const CHILD_BIRTH: LogPosition = LogPosition {
    term: Term(1),
    index: Index(1),
};

/// What a command makes of the group as a whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Reshape {
    Split {
        at: Bytes,
        child: GroupId,
        left: Territory,
        right: Territory,
    },
    Absorb {
        operation: u64,
        from: GroupId,
        position: LogPosition,
        territory: Territory,
    },
}

impl State {
    /// Adds everything but rows and sources to a batch, into a slot.
    pub(super) fn put_tables(&self, record: &AppliedRecord, slot: Slot, batch: &mut Batch) {
        batch.put(slot.applied_key(), record.encode());
        for (member, context) in &self.members {
            batch.put(slot.member_key(*member), context.clone());
        }
        for ((table, txn), row) in self.txns.rows() {
            if let Some(row) = row {
                batch.put(slot.txn_key(table, txn), row);
            }
        }
    }

    /// Its sources as far as they lie in a territory.
    fn sources_in(&self, territory: &Territory) -> Vec<Source> {
        let mut sources = self.sources.clone();
        for source in &mut sources {
            let inside = source.spans.iter().filter_map(|span| span.and(&territory.span));
            source.spans = inside.collect();
        }
        sources
    }
}

/// Puts a source into a list: in the place of one that is not needed, or behind the others. Gives its number.
fn enlist(sources: &mut Vec<Source>, source: Source, used: impl Fn(u8) -> bool) -> u8 {
    let free = (0_u8..=u8::MAX)
        .zip(sources.iter())
        .find(|(number, source)| source.spans.is_empty() && !used(*number));
    if let Some((number, _)) = free {
        sources[usize::from(number)] = source;
        return number;
    }
    sources.push(source);
    u8::try_from(sources.len() - 1).expect("invariant: the list was made short enough before")
}

impl<S: StateStore> Mvcc<S> {
    /// Does what a command asked for as the last of its batch. `news` are of the batch, with the territory as it was before.
    pub(super) fn reshape(
        &self,
        writer: &mut Writer<S>,
        news: News,
        reshape: Reshape,
        neighbour: Option<&Self>,
    ) -> Result<Result<(), OpError>, StoreError> {
        match reshape {
            Reshape::Split { at, child, left, right } => {
                self.write().take_in(news);
                self.split(writer, &at, child, left, right)?;
                Ok(Ok(()))
            }
            Reshape::Absorb {
                operation,
                from,
                position,
                territory,
            } => {
                let missing = StoreError::Neighbour {
                    group: self.group,
                    from,
                    position,
                };
                let neighbour = neighbour.filter(|other| other.group == from).ok_or(missing)?;
                self.absorb(writer, news, neighbour, operation, position, territory)
            }
        }
    }

    fn split(
        &self,
        writer: &mut Writer<S>,
        at: &Bytes,
        child: GroupId,
        left: Territory,
        right: Territory,
    ) -> Result<(), StoreError> {
        if self.read().sources.len() >= SOURCES_MAX {
            self.consolidate(writer)?;
        }
        // Readers go on beside all that takes long.
        let (batch, mut parent, newborn, sums) = {
            let state = self.read();
            let old = state.slot();
            let sums = state.index.sums_after(at);
            let new = Slot {
                group: self.group,
                number: writer.last_slot + 1,
            };
            let mut batch = Batch::default();
            state.put_rows(&mut batch);

            let mut parent = State::fresh(new);
            parent.record = state.record.clone();
            parent.record.shard.territory = left.clone();
            parent.record.shard.last_child = Some(child);
            parent.sources = state.sources_in(&left);
            let used = |number| state.index.rows_of(number) > 0;
            parent.own = enlist(&mut parent.sources, Source::own(new), used);
            put_sources(&mut batch, self.group, (&state.sources, old), (&parent.sources, new));
            state.put_tables(&parent.record, new, &mut batch);

            // If it came by a snapshot before, it is further than this.
            let newborn = birthplace(&self.store, child)?.map(|slot| {
                let mut newborn = State::fresh(slot);
                newborn.members = state.members.clone();
                newborn.record = AppliedRecord {
                    meta: birth(&state.record.meta),
                    shard: Shard {
                        territory: right.clone(),
                        source: RevisionSource::Sequenced,
                        ..Shard::default()
                    },
                    ..state.record.clone()
                };
                newborn.sources = state.sources_in(&right);
                newborn.own = enlist(&mut newborn.sources, Source::own(slot), used);
                put_sources(&mut batch, child, (&[], slot), (&newborn.sources, slot));
                newborn.put_tables(&newborn.record, slot, &mut batch);
                newborn
            });
            (batch, parent, newborn, sums)
        };
        self.store.apply(batch)?;
        writer.last_slot += 1;
        let index = {
            let mut state = self.write();
            let index = state.index.split_off(at, sums);
            std::mem::swap(&mut parent.index, &mut state.index);
            parent.members = std::mem::take(&mut state.members);
            parent.txns = std::mem::take(&mut state.txns);
            std::mem::swap(&mut *state, &mut parent);
            index
        };
        match newborn {
            Some(mut newborn) => {
                newborn.index = index;
                let mut its = Writer::new(newborn.slot().number);
                its.pins = writer.hand_out_pins();
                writer.born = Some(Box::new(Self {
                    store: self.store.clone(),
                    group: child,
                    state: RwLock::new(newborn),
                    writer: Mutex::new(its),
                }));
            }
            // Its rows here are nobody's.
            None => {
                let sources = parent.sources_in(&right);
                writer.leftovers.push(Leftover::of_shared(sources, index));
            }
        }
        Ok(())
    }

    /// Takes over a neighbour's state. `Err(Stale)` if it is not the right neighbour of this territory, which is the same on every
    /// member since a sealed state does not change.
    fn absorb(
        &self,
        writer: &mut Writer<S>,
        news: News,
        neighbour: &Self,
        operation: u64,
        position: LogPosition,
        territory: Territory,
    ) -> Result<Result<(), OpError>, StoreError> {
        let mut its = neighbour.writer();
        {
            let state = neighbour.read();
            let shard = &state.record.shard;
            if shard.sealed != Some(operation) || shard.absorbed || state.record.meta.position.index < position.index {
                return Err(StoreError::Neighbour {
                    group: self.group,
                    from: neighbour.group,
                    position,
                });
            }
            let mine = news.territory();
            let adjacent = mine.span.end.as_ref() == Some(&shard.territory.span.start)
                && territory.span.end == shard.territory.span.end
                && mine.partitioning == shard.territory.partitioning
                && territory.epoch > shard.territory.epoch
                && shard.source == RevisionSource::Sequenced;
            if !adjacent {
                self.write().take_in(news);
                return Ok(Err(OpError::Stale));
            }
        }
        self.write().take_in(news);
        if neighbour.read().sources.len() + self.read().sources.len() >= SOURCES_MAX {
            self.consolidate(writer)?;
            neighbour.consolidate(&mut its)?;
        }

        let (batch, mut joined, emptied, renumber) = {
            let (state, other) = (self.read(), neighbour.read());
            let new = Slot {
                group: self.group,
                number: writer.last_slot + 1,
            };
            let mut joined = State::fresh(new);
            joined.record = state.record.clone();
            let record = &mut joined.record;
            record.current = record.current.max(other.record.current);
            record.compacted = record.compacted.max(other.record.compacted);
            record.swept = record.swept.min(other.record.swept);
            record.shard.territory = territory;
            record.shard.last_absorb = Some(operation);

            let used = |number| state.index.rows_of(number) > 0;
            joined.sources = state.sources_in(&state.record.shard.territory);
            let mut renumber = Vec::new();
            for source in other.sources_in(&other.record.shard.territory) {
                let present = (0_u8..=u8::MAX)
                    .zip(&mut joined.sources)
                    .find(|(_, present)| present.slot == source.slot && !present.spans.is_empty());
                renumber.push(match present {
                    _ if source.spans.is_empty() => 0,
                    Some((number, present)) => {
                        present.add(source.spans);
                        number
                    }
                    None => enlist(&mut joined.sources, source, used),
                });
            }
            joined.own = enlist(&mut joined.sources, Source::own(new), used);

            let mut batch = Batch::default();
            state.put_rows(&mut batch);
            other.put_rows(&mut batch);
            put_sources(
                &mut batch,
                self.group,
                (&state.sources, state.slot()),
                (&joined.sources, new),
            );
            state.put_tables(&joined.record, new, &mut batch);

            let rest = Slot {
                group: neighbour.group,
                number: its.last_slot + 1,
            };
            let mut emptied = State::fresh(rest);
            emptied.record = other.record.clone();
            emptied.record.shard.absorbed = true;
            let span = &mut emptied.record.shard.territory.span;
            span.end = Some(span.start.clone());
            emptied.members = other.members.clone();
            put_sources(
                &mut batch,
                neighbour.group,
                (&other.sources, other.slot()),
                (&emptied.sources, rest),
            );
            emptied.put_tables(&emptied.record, rest, &mut batch);
            (batch, joined, emptied, renumber)
        };
        self.store.apply(batch)?;
        writer.last_slot += 1;
        its.last_slot += 1;
        writer.sweep = None;
        its.sweep = None;
        writer.pins.extend(its.hand_out_pins());
        let mut index = std::mem::replace(&mut *neighbour.write(), emptied).index;
        index.renumber(&renumber);
        let mut state = self.write();
        std::mem::swap(&mut joined.index, &mut state.index);
        joined.index.append(index);
        joined.members = std::mem::take(&mut state.members);
        joined.txns = std::mem::take(&mut state.txns);
        *state = joined;
        Ok(Ok(()))
    }

    /// The group that the last split made, for whoever serves it from now on; once. Its log begins at [`CHILD_BIRTH`]. Before it logs
    /// anything, a [`Mvcc::checkpoint`] of either group must have made the split durable. Another handle of the group that was opened
    /// before the split, and has taken in nothing yet, is void.
    ///
    /// `None` also if the group was here already, because it came by a snapshot.
    #[must_use]
    pub fn take_born(&self) -> Option<Self> {
        self.writer().born.take().map(|born| *born)
    }
}

/// What a group is born with that is cut off one of which this is applied.
fn birth(parent: &SnapshotMeta) -> SnapshotMeta {
    let mut config = parent.config.clone();
    config.index = Index::ZERO;
    SnapshotMeta {
        position: CHILD_BIRTH,
        config,
        reads: ReadsState {
            index: Index::ZERO,
            ..parent.reads.clone()
        },
    }
}
