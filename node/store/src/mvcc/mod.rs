//! One group's keys with their history, over a `StateStore`.
//!
//! Rows are keyed by revision; which rows a key has stands in an index in memory, as in etcd. One thread writes (`apply`,
//! `compact_step`, `bootstrap`, `install`); any thread reads. A reader holds the index's lock only while it lists rows, not
//! while it fetches them; a writer holds it only to add what it has worked out.

mod apply;
mod behind;
mod exec;
mod index;
mod install;
pub(crate) mod layout;
mod middle;
mod open;
mod refs;
mod retire;
pub(crate) mod shard;
mod shard_exec;
pub(crate) mod sources;
mod split;
pub(crate) mod txns;
mod view;

use crate::error::StoreError;
use crate::ops::{
    Command, Decision, OpError, OpResult, Range, RangeResult, Revision, RevisionSource, ShardCommand, Territory, Txn,
    TxnId,
};
use crate::state::{Batch, KeySpan, Order, PageLimit, StateStore};
use althing_raft::entry::{ConfigChange, ConfigState, SnapshotMeta};
use althing_raft::ids::{GroupId, MemberId};
use althing_raft::mutant::Mutant;
use apply::{MemberChanges, free};
use behind::Pending;
use bytes::Bytes;
use exec::Exec;
pub(crate) use index::Index;
use index::SweepCursor;
use layout::{AppliedRecord, Place, Row, Slot};
pub use refs::{groups, tidy};
use retire::Leftover;
use shard::{Access, Shard};
use sources::Source;
pub use split::CHILD_BIRTH;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use txns::Transactions;
use view::{Fail, View, read_revision, rows_wanted};
pub use view::{compare_holds, finish_range};

/// Times that a read starts over because what it listed was deleted before it was fetched. Then it holds the lock instead.
const READ_RETRIES: usize = 3;

/// What a client hears of a range: the current revision and what was found, or why it is refused.
pub type RangeAnswer = Result<(Revision, RangeResult), OpError>;

/// One committed entry, unwrapped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ApplyItem {
    /// Nothing for the state machine: a leader's first entry, or a configuration change that the core refused.
    Noop,
    /// A client's command.
    Command {
        /// What to do.
        command: Command,
        /// The revision that the sequencer gave out for it; `None` in a dense shard, and for what takes none
        /// ([`crate::codec::needs_stamp`]).
        stamp: Option<Revision>,
    },
    /// A configuration change that took effect.
    Config(ConfigChange),
}

impl ApplyItem {
    /// A command without a revision of its own.
    #[must_use]
    pub fn unstamped(command: Command) -> Self {
        Self::Command { command, stamp: None }
    }

    /// Whether this must be the last item of the batch that it is applied with: its answer names the batch's position, or the group is
    /// another one afterwards.
    #[must_use]
    pub fn ends_batch(&self) -> bool {
        match self {
            Self::Command {
                command:
                    Command::Shard(ShardCommand::Split { .. } | ShardCommand::Seal { .. } | ShardCommand::Absorb { .. }),
                ..
            } => true,
            Self::Command { .. } | Self::Noop | Self::Config(_) => false,
        }
    }
}

/// Whether a read minds the locks of transactions over several shards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Locks {
    /// It does: what a decision may just be changing is refused with `Locked`. For linearizable reads.
    Heed,
    /// It takes what is there. For serializable reads.
    Ignore,
}

/// What became of a command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommandResult {
    /// The answer header's revision: that of the change, or the current one if nothing changed.
    pub revision: Revision,
    /// The answer, or why the command changed nothing.
    pub result: Result<OpResult, OpError>,
}

/// Sizes of one group.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StoreSize {
    /// Bytes of the engine on disk; all groups share them.
    pub on_disk: u64,
    /// Bytes of this group's rows and their keys: an estimate of what a fresh copy would take.
    pub in_use: u64,
    /// Keys that are there now.
    pub keys: u64,
    /// Changes kept, old ones and removals too.
    pub revisions: u64,
}

/// What a `compact_step` came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Sweep {
    /// Nothing is left to delete.
    Done,
    /// There is more: call again.
    More,
    /// A snapshot is being exported, so nothing may be deleted. Try again later.
    Paused,
}

/// What readers see. Changed only under the write lock.
pub(crate) struct State {
    pub(crate) group: GroupId,
    /// Where its rows lie.
    pub(crate) sources: Vec<Source>,
    /// Which of them it writes into.
    pub(crate) own: u8,
    pub(crate) record: AppliedRecord,
    pub(crate) members: BTreeMap<MemberId, Bytes>,
    pub(crate) index: Index,
    /// What it has taken part in with other shards.
    pub(crate) txns: Transactions,
    /// What of it the engine does not have yet.
    pub(crate) pending: Pending,
}

impl State {
    pub(crate) fn fresh(slot: Slot) -> Self {
        Self {
            group: slot.group,
            sources: vec![Source::own(slot)],
            own: 0,
            record: AppliedRecord::fresh(),
            members: BTreeMap::new(),
            index: Index::default(),
            txns: Transactions::default(),
            pending: Pending::default(),
        }
    }

    /// The slot that it writes into.
    pub(crate) fn slot(&self) -> Slot {
        self.sources[usize::from(self.own)].slot
    }

    /// The engine's key of a row.
    fn key_of(&self, place: Place) -> Vec<u8> {
        self.sources[usize::from(place.source)].slot.key_of(place)
    }

    /// A row that the engine does not have yet.
    fn waiting(&self, place: Place) -> Option<&Bytes> {
        if place.source == self.own {
            self.pending.get(place.id, place.late)
        } else {
            None
        }
    }

    /// Whether a read of what is owned or not may be answered now.
    fn admit_read(&self, owned: impl FnOnce(&Shard) -> bool) -> Result<(), OpError> {
        let shard = &self.record.shard;
        if shard.sealed.is_some() {
            return Err(OpError::Sealed);
        }
        if !owned(shard) && !Mutant::ForeignKeysRead.active() {
            return Err(OpError::WrongShard);
        }
        Ok(())
    }

    /// The revision that a read looks at.
    fn read_revision(&self, asked: Option<Revision>) -> Result<i64, OpError> {
        read_revision(asked, self.record.current, self.newest_read(), self.record.compacted)
    }

    /// The newest revision that a read may ask for. Whoever reads a sequenced shard has asked the sequencer what there is, and waited
    /// for this shard to have its part of it.
    fn newest_read(&self) -> i64 {
        match self.record.shard.source {
            RevisionSource::Dense => self.record.current,
            RevisionSource::Sequenced => i64::MAX,
        }
    }

    /// A row that the index names, parsed.
    fn key_value(&self, place: Place, row: Option<Bytes>) -> Result<crate::ops::KeyValue, StoreError> {
        parse_row(self.group, place, row)
    }
}

fn parse_row(group: GroupId, place: Place, row: Option<Bytes>) -> Result<crate::ops::KeyValue, StoreError> {
    let (corrupt, id) = (|what: String| StoreError::Corrupt { group, what }, place.id);
    let row = row.ok_or_else(|| corrupt(format!("the row of revision {}.{} is missing", id.main, id.sub)))?;
    let row = if place.late {
        Row::split_late(row).map(|(_, row)| row)
    } else {
        Ok(row)
    };
    let row = row.and_then(Row::decode).map_err(|source| StoreError::Unreadable {
        group,
        what: "a revision row",
        source,
    })?;
    row.into_key_value(id.main)
        .ok_or_else(|| corrupt(format!("the row of revision {}.{} is a removal", id.main, id.sub)))
}

/// What only the writing thread needs.
struct Writer<S> {
    /// The sweep under way: its target and where it stands.
    sweep: Option<(i64, SweepCursor)>,
    /// Slots that hold rows nobody needs, unless a group still refers to them.
    stale_slots: Vec<Slot>,
    /// What is left of an earlier state in slots that others still refer to.
    leftovers: Vec<Leftover>,
    /// The slot of the import under way.
    importing: Option<u32>,
    /// Largest slot number ever used since open.
    last_slot: u32,
    /// One clone per live export; a sweep waits until there is only this one.
    exports: Arc<()>,
    /// The same of groups whose rows are here now, from before they were.
    pins: Vec<Weak<()>>,
    /// The group that the last split made.
    born: Option<Box<Mvcc<S>>>,
}

impl<S> Writer<S> {
    fn new(last_slot: u32) -> Self {
        Self {
            sweep: None,
            stale_slots: Vec::new(),
            leftovers: Vec::new(),
            importing: None,
            last_slot,
            exports: Arc::new(()),
            pins: Vec::new(),
            born: None,
        }
    }

    /// Whether somebody is still reading what is here, so that nothing may be deleted.
    fn is_pinned(&mut self) -> bool {
        self.pins.retain(|pin| pin.strong_count() > 0);
        !self.pins.is_empty() || Arc::strong_count(&self.exports) > 1
    }

    /// What another group must wait for that has rows of this one from now on. Exports that begin later are no matter.
    fn hand_out_pins(&mut self) -> Vec<Weak<()>> {
        if Arc::strong_count(&self.exports) > 1 {
            self.pins.push(Arc::downgrade(&self.exports));
            self.exports = Arc::new(());
        }
        self.pins.clone()
    }
}

/// One group's state machine. See the module for threads.
pub struct Mvcc<S> {
    store: S,
    group: GroupId,
    state: RwLock<State>,
    writer: Mutex<Writer<S>>,
}

impl<S: StateStore> Mvcc<S> {
    /// Which group it is the state of.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// What it stands on.
    #[must_use]
    pub fn engine(&self) -> &S {
        &self.store
    }

    /// Gives a group that was never written its first configuration and members.
    ///
    /// # Errors
    /// If it was written before, or the engine fails.
    pub fn bootstrap(&self, config: ConfigState, members: BTreeMap<MemberId, Bytes>) -> Result<(), StoreError> {
        let _writer = self.writer();
        let (slot, mut record) = {
            let state = self.read();
            if state.record != AppliedRecord::fresh() || !state.members.is_empty() {
                return Err(StoreError::Bootstrapped { group: self.group });
            }
            (state.slot(), state.record.clone())
        };
        record.meta.config = config;
        let mut batch = Batch::default();
        batch.put(slot.applied_key(), record.encode());
        for (member, context) in &members {
            batch.put(slot.member_key(*member), context.clone());
        }
        self.store.apply(batch)?;
        let mut state = self.write();
        state.record = record;
        state.members = members;
        Ok(())
    }

    /// Answers a range, with the current revision for the header.
    ///
    /// # Errors
    /// The inner one is the client's: compacted or future revision. The outer one is the engine's.
    pub fn range(&self, range: &Range) -> Result<RangeAnswer, StoreError> {
        self.range_with(range, Locks::Heed)
    }

    /// As `range`, minding locks or not.
    ///
    /// # Errors
    /// As of `range`.
    pub fn range_with(&self, range: &Range, locks: Locks) -> Result<RangeAnswer, StoreError> {
        for _ in 0..READ_RETRIES {
            if let Some(answer) = self.look(self.read(), range, locks, false)? {
                return Ok(answer);
            }
        }
        let answer = self.look(self.read(), range, locks, true)?;
        Ok(answer.expect("invariant: nothing vanishes under the lock"))
    }

    /// As `range`, for a thread that must not wait for others: `None` if it would have to.
    ///
    /// # Errors
    /// As of `range`.
    pub fn try_range(&self, range: &Range) -> Result<Option<RangeAnswer>, StoreError> {
        self.try_range_with(range, Locks::Heed)
    }

    /// As `try_range`, minding locks or not.
    ///
    /// # Errors
    /// As of `range`.
    pub fn try_range_with(&self, range: &Range, locks: Locks) -> Result<Option<RangeAnswer>, StoreError> {
        match free(self.state.try_read()) {
            Some(state) => self.look(state, range, locks, false),
            None => Ok(None),
        }
    }

    /// One try; with `hold`, under the lock to its end. `None` if what it listed was deleted before it was fetched.
    fn look(
        &self,
        state: RwLockReadGuard<'_, State>,
        range: &Range,
        locks: Locks,
        hold: bool,
    ) -> Result<Option<RangeAnswer>, StoreError> {
        let record = &state.record;
        let current = record.current;
        let admitted = state.admit_read(|shard| shard.territory.owns_all(&range.keys));
        let free = |()| match locks {
            Locks::Heed => state.txns.admit(&range.keys, Access::Read, range.revision),
            Locks::Ignore => Ok(()),
        };
        let admitted = admitted.and_then(free);
        let revision = match admitted.and_then(|()| state.read_revision(range.revision)) {
            Ok(revision) => revision,
            Err(error) => return Ok(Some(Err(error))),
        };
        let listing = View {
            index: &state.index,
            delta: None,
        }
        .list(&range.keys, revision, rows_wanted(range));
        let found = listing.rows.iter().map(|place| match state.waiting(*place) {
            Some(row) => Err(row.clone()),
            None => Ok(state.key_of(*place)),
        });
        let found: Vec<_> = found.collect();
        let held = hold.then_some(state);
        let rows = found.into_iter().map(|found| match found {
            Err(row) => Ok(Some(row)),
            Ok(key) => self.store.get(&key),
        });
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        // Rows vanish between listing and fetching if a sweep or a snapshot passes; what is true now is in the index.
        if held.is_none() && rows.iter().any(Option::is_none) {
            return Ok(None);
        }
        let kvs = listing
            .rows
            .iter()
            .zip(rows)
            .map(|(place, row)| parse_row(self.group, *place, row));
        let kvs = kvs.collect::<Result<Vec<_>, _>>()?;
        let result = finish_range(range, kvs, listing.count);
        Ok(Some(Ok((Revision(current), result))))
    }

    /// Runs a transaction that cannot write.
    ///
    /// # Errors
    /// As of `range`.
    ///
    /// # Panics
    /// If the transaction could write: those go through the log.
    pub fn read_txn(&self, txn: &Txn) -> Result<Result<(Revision, OpResult), OpError>, StoreError> {
        self.read_txn_with(txn, Locks::Heed)
    }

    /// As `read_txn`, minding locks or not.
    ///
    /// # Errors
    /// As of `range`.
    ///
    /// # Panics
    /// As `read_txn`.
    pub fn read_txn_with(&self, txn: &Txn, locks: Locks) -> Result<Result<(Revision, OpResult), OpError>, StoreError> {
        assert!(txn.read_only(), "invariant: transactions that write go through the log");
        let state = self.read();
        let free = |()| match locks {
            Locks::Heed => state.txns.admit_txn(txn),
            Locks::Ignore => Ok(()),
        };
        if let Err(error) = state.admit_read(|shard| shard.owns_txn(txn)).and_then(free) {
            return Ok(Err(error));
        }
        let mut exec = Exec::reading(&self.store, &state);
        match exec.txn(txn) {
            Ok(result) => Ok(Ok((Revision(state.record.current), result))),
            Err(Fail::Op(error)) => Ok(Err(error)),
            Err(Fail::Store(error)) => Err(error),
        }
    }

    /// The current revision.
    #[must_use]
    pub fn current_revision(&self) -> Revision {
        Revision(self.read().record.current)
    }

    /// History before this revision is gone; `None` if nothing was ever compacted.
    #[must_use]
    pub fn compacted_revision(&self) -> Option<Revision> {
        Some(self.read().record.compacted)
            .filter(|revision| *revision >= 0)
            .map(Revision)
    }

    /// The last applied entry, and the configuration as of it.
    #[must_use]
    pub fn applied(&self) -> SnapshotMeta {
        self.read().record.meta.clone()
    }

    /// The member table: each member's context (name and addresses), opaque here.
    #[must_use]
    pub fn members(&self) -> BTreeMap<MemberId, Bytes> {
        self.read().members.clone()
    }

    /// What it owns.
    #[must_use]
    pub fn territory(&self) -> Territory {
        self.read().record.shard.territory.clone()
    }

    /// Where its revisions come from.
    #[must_use]
    pub fn source(&self) -> RevisionSource {
        self.read().record.shard.source
    }

    /// The operation that sealed it, if it is sealed.
    #[must_use]
    pub fn sealed(&self) -> Option<u64> {
        self.read().record.shard.sealed
    }

    /// Transactions over several shards that wait here for their decision, with the group that knows it, oldest id first.
    #[must_use]
    pub fn prepared(&self) -> Vec<(TxnId, GroupId)> {
        let state = self.read();
        let prepared = state.txns.prepared.iter();
        prepared.map(|(txn, prepared)| (*txn, prepared.coordinator)).collect()
    }

    /// Transactions over several shards that are prepared here and not finished, and decisions that have to be remembered.
    #[must_use]
    pub fn transactions(&self) -> usize {
        let state = self.read();
        state.txns.prepared.len() + state.txns.decided.len()
    }

    /// Decisions about transactions over several shards that this shard keeps, because nobody has said yet that every participant has
    /// finished.
    #[must_use]
    pub fn decided(&self) -> Vec<(TxnId, Decision)> {
        let state = self.read();
        let decided = state.txns.decided.iter();
        decided.map(|(txn, decision)| (*txn, decision.clone())).collect()
    }

    /// Sizes, for metrics and `Status`.
    ///
    /// # Errors
    /// If the engine fails.
    pub fn size(&self) -> Result<StoreSize, StoreError> {
        Ok(StoreSize {
            on_disk: self.store.size_on_disk()?,
            ..self.rows_size()
        })
    }

    /// As `size`, without `on_disk`, which is 0: asking the engine costs system calls, and whoever looks at thousands of groups asks
    /// once for all of them.
    #[must_use]
    pub fn rows_size(&self) -> StoreSize {
        let state = self.read();
        let sums = &state.index.sums;
        StoreSize {
            on_disk: 0,
            in_use: sums.bytes,
            keys: sums.live_keys,
            revisions: sums.rows,
        }
    }

    /// Makes what is applied now durable, and says up to where that is: the WAL may forget entries up to there.
    /// Runs on any thread beside the writer.
    ///
    /// # Errors
    /// If the engine or the disk fails.
    pub fn checkpoint(&self) -> Result<SnapshotMeta, StoreError> {
        // Read first: what is applied while the engine flushes may or may not be in it.
        let applied = self.applied();
        self.write_out()?;
        self.store.checkpoint()?;
        Ok(applied)
    }

    // A panic under these locks leaves the state as the engine has it (it is changed only afterwards), so poison says nothing.
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self) -> MutexGuard<'_, Writer<S>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Visits all rows of a span, page by page.
pub(crate) fn walk<S: StateStore>(
    store: &S,
    mut span: KeySpan,
    mut visit: impl FnMut(Bytes, Bytes) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    loop {
        let page = store.scan(&span, Order::Forward, PageLimit::WALK)?;
        let Some((last, _)) = page.last() else {
            return Ok(());
        };
        span.start = successor(last);
        for (key, value) in page {
            visit(key, value)?;
        }
    }
}

/// The smallest key after this one.
pub(crate) fn successor(key: &[u8]) -> Bytes {
    let mut next = key.to_vec();
    next.push(0);
    next.into()
}
