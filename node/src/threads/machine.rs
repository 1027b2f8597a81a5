//! Applying committed entries, by whoever has them: the host if it is quickly done, the state machine's thread otherwise.
//!
//! Handing a put over to a thread and its answer back costs two wake-ups, which take longer than the put. So the host applies a few
//! plain puts itself, if nothing that was handed over before is still under way. It never waits for it: not for the disk (a plain put
//! reads none), not for a lock.

use super::die;
use crate::clock::Clock;
use crate::inbox::Inbox;
use crate::members::MemberInfo;
use crate::metrics::{Metrics, Shard};
use crate::shared::{Groups, Store};
use crate::threads::apply::{ApplyJob, WRITE_OUT_BYTES};
use crate::threads::checkpoint::CHECKPOINT_BYTES;
use crate::threads::host::Job;
use crate::waiters::Waiters;
use althing_raft::entry::SnapshotMeta;
use althing_raft::ids::GroupId;
use althing_raft::io::RequestId;
use althing_shard::{Event, Item, Work};
use althing_store::ops::{Command, ShardCommand};
use althing_store::partition::RevisionSource;
use althing_store::{ApplyItem, CommandResult, StoreError, codec};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;
use tokio::sync::mpsc;

/// Items that the host applies itself at most: some dozen microseconds, during which its thread serves nobody.
const HERE_ITEMS_MAX: usize = 16;

/// What the host and the state machine's thread share.
pub struct Machine {
    /// The thread's inbox.
    pub inbox: Arc<Inbox<ApplyJob>>,
    /// Where the answers go.
    pub host: Arc<Inbox<Job>>,
    /// Clients.
    pub waiters: Arc<Waiters>,
    /// Figures.
    pub metrics: Arc<Metrics>,
    /// Time.
    pub clock: Clock,
    /// State machines.
    pub groups: Arc<Groups>,
    /// Groups that were cut off others and are to be started.
    births: mpsc::UnboundedSender<Birth>,
    /// Jobs with items that the thread has not answered yet.
    handed: AtomicUsize,
    /// The thread knows that something waits for the engine.
    told: AtomicBool,
    /// Bytes applied since the last checkpoint was due.
    bytes: AtomicUsize,
}

/// A group was cut off another one here.
#[derive(Clone, Copy, Debug)]
pub struct Birth {
    /// Which was cut.
    pub parent: GroupId,
    /// What was cut off.
    pub child: GroupId,
}

/// A group was cut off another one although it was here.
#[derive(Debug, thiserror::Error)]
#[error(
    "group {0} has a replica on this node that was not cut off here; start the node again, and the replica is filled by its leader"
)]
struct BornTwice(GroupId);

/// Items on their way into the store.
struct Batch {
    items: Vec<ApplyItem>,
    waiters: Vec<Option<RequestId>>,
    meta: SnapshotMeta,
    /// The member table, or what the group is as a shard, may be another one afterwards.
    facts_changed: bool,
    /// The group that its last command cuts off.
    child: Option<GroupId>,
    bytes: usize,
}

impl Batch {
    /// The next items after what is applied.
    fn new(applied: SnapshotMeta, items: Vec<Item>) -> Self {
        let mut batch = Self {
            items: Vec::with_capacity(items.len()),
            waiters: Vec::with_capacity(items.len()),
            meta: applied,
            facts_changed: false,
            child: None,
            bytes: items.iter().map(Item::bytes).sum(),
        };
        for item in items {
            batch.meta.position = item.position;
            let (waiter, item) = match item.work {
                Work::Noop => (None, ApplyItem::Noop),
                Work::Command { command, stamp, waiter } => match codec::decode_command(command) {
                    Ok(command) => {
                        batch.facts_changed |= matches!(command, Command::Shard(_));
                        if let Command::Shard(ShardCommand::Split { child, .. }) = &command {
                            batch.child = Some(*child);
                        }
                        (waiter, ApplyItem::Command { command, stamp })
                    }
                    Err(error) => die(
                        "a committed command cannot be read; start a version that knows it",
                        &error,
                    ),
                },
                Work::Reads { state } => {
                    tracing::info!(index = %state.index, mode = ?state.spec.mode, lease = ?state.spec.lease, "reads are answered in another way");
                    batch.meta.reads = state;
                    (None, ApplyItem::Noop)
                }
                Work::Configure { change, state } => {
                    batch.meta.config = state;
                    batch.facts_changed = true;
                    (None, ApplyItem::Config(change))
                }
            };
            batch.waiters.push(waiter);
            batch.items.push(item);
        }
        batch
    }

    /// Whether it reads nothing and walks over nothing: puts that say everything themselves.
    fn is_plain(&self) -> bool {
        self.items.iter().all(|item| match item {
            ApplyItem::Noop => true,
            ApplyItem::Command { command, .. } => match command {
                Command::Put(put) => !put.prev_kv && put.value.is_some() && put.lease.is_some(),
                Command::Delete(_) | Command::Txn(_) | Command::Compact(_) | Command::Shard(_) => false,
            },
            ApplyItem::Config(_) => false,
        })
    }
}

impl Machine {
    /// One for a node.
    #[must_use]
    pub fn new(
        inbox: Arc<Inbox<ApplyJob>>,
        host: Arc<Inbox<Job>>,
        waiters: Arc<Waiters>,
        metrics: Arc<Metrics>,
        clock: Clock,
        groups: Arc<Groups>,
        births: mpsc::UnboundedSender<Birth>,
    ) -> Self {
        Self {
            inbox,
            host,
            waiters,
            metrics,
            clock,
            groups,
            births,
            handed: AtomicUsize::new(0),
            told: AtomicBool::new(false),
            bytes: AtomicUsize::new(0),
        }
    }

    /// The store of a group that has entries.
    pub(super) fn store(&self, group: GroupId) -> Arc<Store> {
        self.groups
            .get(group)
            .expect("invariant: a group has its state machine before it has entries")
    }

    /// Takes the host's next committed items: applies and answers them here and now (`true`), or hands them to the thread.
    pub fn take(&self, group: GroupId, items: Vec<Item>) -> bool {
        let committed = self.clock.instant();
        // Only the host adds to them. What the thread has applied is not enough: its answers must be on their way too.
        let alone = self.handed.load(Ordering::Acquire) == 0;
        if alone && items.len() <= HERE_ITEMS_MAX && self.apply_here(group, &items, committed) {
            return true;
        }
        self.handed.fetch_add(1, Ordering::Relaxed);
        self.inbox.push(ApplyJob::Items {
            group,
            items,
            committed,
        });
        false
    }

    fn apply_here(&self, group: GroupId, items: &[Item], committed: Instant) -> bool {
        let store = self.store(group);
        let Some((applied, pending)) = store.try_applied() else {
            return false;
        };
        let next = items.first().map(|item| item.position.index);
        // A snapshot that is being installed lies between.
        if next != Some(applied.position.index.next()) || pending >= WRITE_OUT_BYTES {
            return false;
        }
        let batch = Batch::new(applied, items.to_vec());
        if !batch.is_plain() {
            return false;
        }
        let started = self.clock.instant();
        match store.try_apply_behind(&batch.items, batch.meta.clone()) {
            Ok(Some(results)) => {
                self.applied(group, &store, batch, results, started, committed);
                if !self.told.swap(true, Ordering::AcqRel) {
                    self.inbox.push(ApplyJob::Behind);
                }
                true
            }
            Ok(None) => false,
            Err(error) => die("committed entries cannot be applied", &error),
        }
    }

    /// Applies on the thread.
    pub(super) fn apply(&self, group: GroupId, store: &Store, items: Vec<Item>, committed: Instant) {
        for items in cut(items) {
            self.apply_batch(group, store, items, committed);
        }
    }

    fn apply_batch(&self, group: GroupId, store: &Store, items: Vec<Item>, committed: Instant) {
        let started = self.clock.instant();
        let batch = Batch::new(store.applied(), items);
        let results = match store.apply_behind(&batch.items, batch.meta.clone()) {
            Err(StoreError::Neighbour { from, .. }) => {
                let neighbour = self.groups.get(from);
                store.apply_beside(&batch.items, batch.meta.clone(), neighbour.as_deref())
            }
            results => results,
        };
        match results {
            Ok(results) => {
                if let (Some(child), Some(born)) = (batch.child, store.take_born()) {
                    if self.groups.get(child).is_some() {
                        // Whoever conducts opens no replica of a shard where it is yet to be cut off. A start sorts it out: a log that
                        // knows of the replica wins, and the state that was cut off is cleared.
                        die("a shard is cut off that is here already", &BornTwice(child));
                    }
                    // At once: a snapshot for it must find this state.
                    self.groups.insert(child, Arc::new(born));
                    // Nobody listens any more if the node goes down; the next start finds the group.
                    let _ = self.births.send(Birth { parent: group, child });
                }
                self.applied(group, store, batch, results, started, committed);
            }
            Err(error) => die("committed entries cannot be applied", &error),
        }
    }

    fn applied(
        &self,
        group: GroupId,
        store: &Store,
        batch: Batch,
        results: Vec<Option<CommandResult>>,
        started: Instant,
        committed: Instant,
    ) {
        let applied = self.clock.instant();
        let labels = Shard { shard: group.0 };
        self.metrics
            .apply_duration
            .get_or_create(&labels)
            .observe(applied.duration_since(started).as_secs_f64());
        let answers = batch
            .waiters
            .into_iter()
            .zip(results)
            .filter_map(|(waiter, result)| waiter.zip(result));
        let commit_duration = self.metrics.commit_duration.get_or_create_owned(&labels);
        self.waiters.applied(answers, committed, applied, |took| {
            commit_duration.observe(took.as_secs_f64())
        });
        self.bytes.fetch_add(batch.bytes, Ordering::Relaxed);
        let position = batch.meta.position;
        self.host.push(Job::Event(Event::Applied { group, position }));
        if batch.facts_changed {
            self.tell_facts(group, store);
        }
    }

    pub(super) fn tell_facts(&self, group: GroupId, store: &Store) {
        for event in facts(group, store) {
            self.host.push(Job::Event(event));
        }
    }

    /// The thread has answered so many jobs with items.
    pub(super) fn answered(&self, jobs: usize) {
        self.handed.fetch_sub(jobs, Ordering::Release);
    }

    /// The thread is about to write out what is behind, and must hear of what comes later.
    pub(super) fn listen_again(&self) {
        self.told.store(false, Ordering::Release);
    }

    /// Whether enough was applied since the last time.
    pub(super) fn checkpoint_due(&self) -> bool {
        let due = self.bytes.load(Ordering::Relaxed) >= CHECKPOINT_BYTES;
        if due {
            self.bytes.store(0, Ordering::Relaxed);
        }
        due
    }
}

/// Cuts items into batches behind those that must be the last one of theirs.
fn cut(items: Vec<Item>) -> Vec<Vec<Item>> {
    let mut batches = vec![Vec::new()];
    for item in items {
        let last = match &item.work {
            Work::Command { command, .. } => codec::ends_batch(command),
            Work::Noop | Work::Reads { .. } | Work::Configure { .. } => false,
        };
        batches.last_mut().expect("invariant: there is a batch").push(item);
        if last {
            batches.push(Vec::new());
        }
    }
    batches.retain(|batch| !batch.is_empty());
    batches
}

/// What the host has to know of a group's state: its address table, and whether its commands need revisions.
#[must_use]
pub fn facts(group: GroupId, store: &Store) -> [Event; 2] {
    let table = store
        .members()
        .iter()
        .map(|(member, context)| (*member, MemberInfo::decode(context).peer_address))
        .collect();
    let on = store.source() == RevisionSource::Sequenced;
    [Event::Members { group, table }, Event::Sequenced { group, on }]
}
