//! Applying entries: the only way in which a state grows.

use crate::error::StoreError;
use crate::mvcc::behind::Written;
use crate::mvcc::exec::Exec;
use crate::mvcc::layout::AppliedRecord;
use crate::mvcc::split::Reshape;
use crate::mvcc::txns::{Transactions, TxnChanges};
use crate::mvcc::view::{Delta, Fail};
use crate::mvcc::{ApplyItem, CommandResult, Mvcc, State};
use crate::ops::Territory;
use crate::state::StateStore;
use althing_raft::entry::{ConfigChange, ConfigState, ConfigStep, SnapshotMeta};
use althing_raft::ids::MemberId;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::TryLockError;

/// Members set (`Some`) and removed (`None`) by a batch.
pub(super) type MemberChanges = BTreeMap<MemberId, Option<Bytes>>;

/// What a change says about the member table, which is `present` before the batch; `last` is the configuration after the batch.
fn member_change(
    change: &ConfigChange,
    present: &BTreeMap<MemberId, Bytes>,
    last: &ConfigState,
    members: &mut MemberChanges,
) {
    match &change.step {
        ConfigStep::AddLearner(member) => {
            members.insert(*member, Some(change.context.clone()));
        }
        // A promotion usually says nothing new about the member.
        ConfigStep::Promote(member) => {
            if !change.context.is_empty() {
                members.insert(*member, Some(change.context.clone()));
            }
        }
        ConfigStep::Remove(member) => {
            members.insert(*member, None);
        }
        // Whoever leaves is still needed until the joint configuration ends.
        ConfigStep::EnterJoint(_) => {}
        // Whoever joins later in the batch is added by its own step, whoever leaves later may go now.
        ConfigStep::LeaveJoint => {
            let known: Vec<MemberId> = present.keys().chain(members.keys()).copied().collect();
            for member in known.into_iter().filter(|member| !last.contains(*member)) {
                members.insert(member, None);
            }
        }
    }
}

/// What a batch of entries makes of a state.
pub(super) struct News {
    record: AppliedRecord,
    delta: Delta,
    written: Written,
    members: MemberChanges,
    /// What is prepared and decided now, and which rows of it are new, if any are.
    txns: Option<(Transactions, TxnChanges)>,
    /// What else is to be done with the group.
    reshape: Option<Reshape>,
}

impl News {
    pub(super) fn territory(&self) -> &Territory {
        &self.record.shard.territory
    }
}

/// A lock that was there to be had. Poison says nothing, see [`Mvcc::read`].
pub(super) fn free<T>(tried: Result<T, TryLockError<T>>) -> Option<T> {
    match tried {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

impl State {
    /// Adds what was applied.
    pub(super) fn take_in(&mut self, news: News) {
        self.record = news.record;
        self.index.set_partitioning(self.record.shard.territory.partitioning);
        for (key, history) in news.delta {
            self.index.extend(&key, history.head, &history.changes);
        }
        for (member, context) in &news.members {
            match context {
                Some(context) => self.members.insert(*member, context.clone()),
                None => self.members.remove(member),
            };
        }
        let txn_changes = match news.txns {
            Some((txns, changes)) => {
                self.txns = txns;
                changes
            }
            None => TxnChanges::new(),
        };
        self.pending.add(news.written, news.members, txn_changes);
    }
}

impl<S: StateStore> Mvcc<S> {
    /// Applies the next entries, and gives them to the engine.
    ///
    /// # Errors
    /// As of `apply_behind`, and of `write_out`.
    pub fn apply(&self, items: &[ApplyItem], applied: SnapshotMeta) -> Result<Vec<Option<CommandResult>>, StoreError> {
        let results = self.apply_behind(items, applied)?;
        self.write_out()?;
        Ok(results)
    }

    /// Applies the next entries: readers see them at once, and the engine gets them by the next `write_out`, all together with the
    /// record of having applied them. `applied` is the position of the last one and the configuration as of it. The caller bounds
    /// the number and bytes of the items.
    ///
    /// # Errors
    /// `OutOfOrder` if the items are not the next ones: nothing is applied then. `Neighbour` if the last item is an absorption: see
    /// [`Mvcc::apply_beside`]. If the engine fails a read, the process should end.
    ///
    /// # Panics
    /// If an item that [`ApplyItem::ends_batch`] is not the last one.
    pub fn apply_behind(
        &self,
        items: &[ApplyItem],
        applied: SnapshotMeta,
    ) -> Result<Vec<Option<CommandResult>>, StoreError> {
        self.apply_beside(items, applied, None)
    }

    /// As `apply_behind`, with the neighbour that the last item says is to join. Call it with that if `apply_behind` answers `Neighbour`.
    ///
    /// A split and an absorption are in the engine when this returns; [`Mvcc::take_born`] gives the group that a split made.
    ///
    /// # Errors
    /// As of `apply_behind`. `Neighbour` if the neighbour's state is not what must join: nothing is applied then, and only a snapshot
    /// from a member that has it helps.
    ///
    /// # Panics
    /// If an item that [`ApplyItem::ends_batch`] is not the last one.
    pub fn apply_beside(
        &self,
        items: &[ApplyItem],
        applied: SnapshotMeta,
        neighbour: Option<&Self>,
    ) -> Result<Vec<Option<CommandResult>>, StoreError> {
        let mut writer = self.writer();
        let (mut news, mut results) = self.run(&self.read(), items, applied)?;
        match news.reshape.take() {
            None => self.write().take_in(news),
            Some(reshape) => {
                if let Err(error) = self.reshape(&mut writer, news, reshape, neighbour)? {
                    let last = results.last_mut().and_then(Option::as_mut);
                    last.expect("invariant: the last item was a command").result = Err(error);
                }
            }
        }
        Ok(results)
    }

    /// What is applied, and the bytes that wait for the engine, if nobody holds the state right now.
    #[must_use]
    pub fn try_applied(&self) -> Option<(SnapshotMeta, usize)> {
        let state = free(self.state.try_read())?;
        Some((state.record.meta.clone(), state.pending.bytes()))
    }

    /// As `apply_behind`, for a thread that must not wait: `None` if somebody else writes or reads a lot right now, and nothing is
    /// applied then.
    ///
    /// # Errors
    /// As of `apply_behind`.
    pub fn try_apply_behind(
        &self,
        items: &[ApplyItem],
        applied: SnapshotMeta,
    ) -> Result<Option<Vec<Option<CommandResult>>>, StoreError> {
        let Some(_writer) = free(self.writer.try_lock()) else {
            return Ok(None);
        };
        let Some(state) = free(self.state.try_read()) else {
            return Ok(None);
        };
        let (news, results) = self.run(&state, items, applied)?;
        // That takes its time.
        if news.reshape.is_some() {
            return Ok(None);
        }
        drop(state);
        // The others can only have read meanwhile.
        let Some(mut state) = free(self.state.try_write()) else {
            return Ok(None);
        };
        state.take_in(news);
        Ok(Some(results))
    }

    /// What the next entries make of a state, and their results.
    fn run(
        &self,
        state: &State,
        items: &[ApplyItem],
        applied: SnapshotMeta,
    ) -> Result<(News, Vec<Option<CommandResult>>), StoreError> {
        let expected = althing_raft::ids::Index(state.record.meta.position.index.0 + items.len() as u64);
        if applied.position.index != expected {
            return Err(StoreError::OutOfOrder {
                group: self.group,
                expected,
                found: applied.position.index,
            });
        }
        let last = items.len().saturating_sub(1);
        assert!(
            items.iter().take(last).all(|item| !item.ends_batch()),
            "invariant: whoever applies ends a batch where it must end"
        );
        let mut exec = Exec::new(&self.store, state, &applied);
        let mut members = MemberChanges::new();
        let mut results = Vec::with_capacity(items.len());
        for item in items {
            results.push(match item {
                ApplyItem::Noop => None,
                ApplyItem::Config(change) => {
                    member_change(change, &state.members, &applied.config, &mut members);
                    None
                }
                ApplyItem::Command { command, stamp } => match exec.command(command, *stamp) {
                    Ok((revision, result)) => Some(CommandResult { revision, result }),
                    Err(Fail::Store(error)) => return Err(error),
                    Err(Fail::Op(error)) => unreachable!("commands report {error} as a result"),
                },
            });
        }
        let record = AppliedRecord {
            meta: applied,
            current: exec.current,
            compacted: exec.compacted,
            swept: state.record.swept,
            shard: exec.shard.clone(),
        };
        let Exec {
            delta,
            written,
            txns,
            txn_changes,
            reshape,
            ..
        } = exec;
        let news = News {
            record,
            delta,
            written,
            members,
            txns: (!txn_changes.is_empty()).then(|| (txns.into_owned(), txn_changes)),
            reshape,
        };
        Ok((news, results))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::MemStore;
    use crate::ops::{KeyRange, Range};
    use althing_raft::ids::GroupId;

    fn next(mvcc: &Mvcc<MemStore>) -> SnapshotMeta {
        let mut meta = mvcc.applied();
        meta.position.index = meta.position.index.next();
        meta
    }

    #[test]
    fn who_must_not_wait_is_told_so_and_nothing_is_applied() {
        let mvcc = Mvcc::open(MemStore::default(), GroupId::FIRST_SHARD).unwrap();
        let (before, meta) = (mvcc.applied(), next(&mvcc));
        let items = [ApplyItem::Noop];
        let apply = || mvcc.try_apply_behind(&items, meta.clone()).unwrap();
        let range = Range::of(KeyRange::Single(Bytes::from_static(b"k")));

        let writer = mvcc.writer();
        assert!(apply().is_none());
        drop(writer);
        let reader = mvcc.read();
        assert!(apply().is_none());
        assert!(
            mvcc.try_range(&range).unwrap().is_some(),
            "readers do not mind each other"
        );
        drop(reader);
        let state = mvcc.write();
        assert!(apply().is_none());
        assert!(mvcc.try_applied().is_none());
        assert!(mvcc.try_range(&range).unwrap().is_none());
        drop(state);

        assert_eq!(mvcc.try_applied(), Some((before, 0)));
        assert_eq!(apply(), Some(vec![None]));
        assert_eq!(mvcc.applied(), meta);
    }
}
