//! The state machine's thread: the only writer of the store. One batch per turn, then the answers.

use super::die;
use crate::clock::Clock;
use crate::inbox::Inbox;
use crate::members::MemberInfo;
use crate::metrics::{Metrics, Shard};
use crate::shared::{Groups, Store};
use crate::threads::checkpoint::CHECKPOINT_BYTES;
use crate::threads::host::Job;
use crate::waiters::Waiters;
use althing_raft::entry::SnapshotMeta;
use althing_raft::ids::{GroupId, MemberId};
use althing_shard::{Event, Item, Work};
use althing_store::snapshot::{Import, Progress};
use althing_store::{ApplyItem, SledStore, Sweep, codec};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Items in one batch of the store: enough to make its cost per batch small, few enough to answer the first ones soon.
const BATCH_ITEMS_MAX: usize = 1_024;
/// Bytes of applied rows that the engine gets in one batch: some thousand small ones, a few milliseconds of its time.
const WRITE_OUT_BYTES: usize = 1 << 20;
/// How long they may wait for more. A batch's cost is then spread over all that was applied meanwhile; what a crash loses is in the log.
const WRITE_OUT_DELAY: Duration = Duration::from_millis(20);
/// How long to wait before sweeping again while a snapshot is exported.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

/// What the state machine is asked to do, in order.
pub enum ApplyJob {
    /// Apply committed entries.
    Items {
        /// The group.
        group: GroupId,
        /// The entries.
        items: Vec<Item>,
        /// When they were committed.
        committed: Instant,
    },
    /// Something about a snapshot.
    Snapshot(SnapshotJob),
}

/// What the state machine is asked to do with a snapshot from a peer.
pub enum SnapshotJob {
    /// Begin to take in a snapshot, or go on with one whose connection broke.
    ImportBegin {
        /// The group.
        group: GroupId,
        /// Whose export, and its number there.
        transfer: (MemberId, u64),
        /// Names the import in what follows and says how far it has come, or why it cannot be.
        reply: oneshot::Sender<Result<(u64, Progress), String>>,
    },
    /// Take in a piece.
    ImportChunk {
        /// The group.
        group: GroupId,
        /// Which import.
        import: u64,
        /// The piece.
        chunk: Bytes,
        /// Whether it fits.
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// The last piece has come: is it whole?
    ImportEnd {
        /// The group.
        group: GroupId,
        /// Which import.
        import: u64,
        /// What it covers, or what is missing.
        reply: oneshot::Sender<Result<SnapshotMeta, String>>,
    },
    /// Make the import that covers this the state.
    Install {
        /// The group.
        group: GroupId,
        /// What it covers.
        meta: SnapshotMeta,
    },
    /// Drop the import that covers this.
    Discard {
        /// The group.
        group: GroupId,
        /// What it covers.
        meta: SnapshotMeta,
    },
}

/// A snapshot on its way in.
struct Incoming {
    /// Names it to the connection that fills it; each connection has its own, so that an earlier one cannot go on.
    number: u64,
    /// Whose export it is, and its number there.
    transfer: (MemberId, u64),
    import: Import<SledStore>,
    /// It is whole, and the host decides what becomes of it.
    decided: bool,
}

/// The thread's state.
pub struct Applier {
    /// Where the work comes from.
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
    /// Wakes the checkpointer; its queue holds one.
    pub checkpointer: SyncSender<()>,
}

impl Applier {
    /// Runs until the inbox is closed and empty.
    pub fn run(self) {
        let mut incoming: BTreeMap<GroupId, Incoming> = BTreeMap::new();
        let mut imports = 0;
        let mut applied_bytes = 0;
        let mut sweep_at = Some(self.clock.instant());
        let mut write_at: Option<Instant> = None;
        while let Some(jobs) = self.inbox.take(sweep_at.into_iter().chain(write_at).min()) {
            let idle = jobs.is_empty();
            let mut gathered: BTreeMap<GroupId, (Vec<Item>, Instant)> = BTreeMap::new();
            for job in jobs {
                match job {
                    ApplyJob::Items {
                        group,
                        items,
                        committed,
                    } => {
                        applied_bytes += items.iter().map(Item::bytes).sum::<usize>();
                        // The latest commit time stands for all: they were applied together.
                        let (all, at) = gathered.entry(group).or_insert_with(|| (Vec::new(), committed));
                        all.extend(items);
                        *at = committed;
                    }
                    ApplyJob::Snapshot(job) => {
                        // Snapshots must not overtake entries.
                        self.apply_all(std::mem::take(&mut gathered));
                        self.snapshot_job(job, &mut incoming, &mut imports);
                    }
                }
            }
            self.apply_all(gathered);
            write_at = self.write_out(idle, write_at);
            if applied_bytes >= CHECKPOINT_BYTES {
                applied_bytes = 0;
                // If it is busy it will see what is new by itself.
                let _ = self.checkpointer.try_send(());
            }
            // Entries go first; garbage waits for a quiet moment, but not for ever behind a full inbox.
            sweep_at = self.sweep(idle, sweep_at);
        }
    }

    fn store(&self, group: GroupId) -> Arc<Store> {
        self.groups
            .get(group)
            .expect("invariant: a group has its state machine before it has entries")
    }

    fn apply_all(&self, gathered: BTreeMap<GroupId, (Vec<Item>, Instant)>) {
        for (group, (items, committed)) in gathered {
            let store = self.store(group);
            let mut items = items.into_iter().peekable();
            while items.peek().is_some() {
                self.apply(group, &store, items.by_ref().take(BATCH_ITEMS_MAX).collect(), committed);
            }
        }
    }

    fn apply(&self, group: GroupId, store: &Store, items: Vec<Item>, committed: Instant) {
        let started = self.clock.instant();
        let mut meta = store.applied();
        let mut waiting = Vec::with_capacity(items.len());
        let mut members_changed = false;
        let mut batch = Vec::with_capacity(items.len());
        for item in items {
            meta.position = item.position;
            let (waiter, work) = match item.work {
                Work::Noop => (None, ApplyItem::Noop),
                Work::Command { command, waiter } => match codec::decode_command(command) {
                    Ok(command) => (waiter, ApplyItem::Command(command)),
                    Err(error) => die(
                        "a committed command cannot be read; start a version that knows it",
                        &error,
                    ),
                },
                Work::Reads { state } => {
                    tracing::info!(%group, index = %state.index, mode = ?state.spec.mode, lease = ?state.spec.lease, "reads are answered in another way");
                    meta.reads = state;
                    (None, ApplyItem::Noop)
                }
                Work::Configure { change, state } => {
                    meta.config = state;
                    members_changed = true;
                    (None, ApplyItem::Config(change))
                }
            };
            waiting.push(waiter);
            batch.push(work);
        }
        let position = meta.position;
        let results = match store.apply_behind(&batch, meta) {
            Ok(results) => results,
            Err(error) => die("committed entries cannot be applied", &error),
        };
        let applied = self.clock.instant();
        let labels = Shard { shard: group.0 };
        self.metrics
            .apply_duration
            .get_or_create(&labels)
            .observe(applied.duration_since(started).as_secs_f64());
        let answers = waiting
            .into_iter()
            .zip(results)
            .filter_map(|(waiter, result)| waiter.zip(result));
        let commit_duration = self.metrics.commit_duration.get_or_create_owned(&labels);
        self.waiters.applied(answers, committed, applied, |took| {
            commit_duration.observe(took.as_secs_f64())
        });
        self.host.push(Job::Event(Event::Applied { group, position }));
        if members_changed {
            self.tell_members(group, store);
        }
    }

    fn tell_members(&self, group: GroupId, store: &Store) {
        self.host.push(Job::Event(members_event(group, store)));
    }

    fn snapshot_job(&self, job: SnapshotJob, incoming: &mut BTreeMap<GroupId, Incoming>, imports: &mut u64) {
        // A sender that has gone away needs no answer: dropping the reply is one.
        match job {
            SnapshotJob::ImportBegin { group, transfer, reply } => {
                let answer = match incoming.remove(&group) {
                    Some(present) if present.decided => {
                        incoming.insert(group, present);
                        Err("a received snapshot is being installed".to_owned())
                    }
                    present => {
                        *imports += 1;
                        let import = match present.filter(|present| present.transfer == transfer) {
                            Some(present) => present.import,
                            None => self.store(group).import(),
                        };
                        let progress = import.progress();
                        if progress.chunks() > 0 {
                            tracing::info!(%group, chunk = progress.chunks(), "going on with a snapshot that broke off");
                        }
                        incoming.insert(
                            group,
                            Incoming {
                                number: *imports,
                                transfer,
                                import,
                                decided: false,
                            },
                        );
                        Ok((*imports, progress))
                    }
                };
                let _ = reply.send(answer);
            }
            SnapshotJob::ImportChunk {
                group,
                import,
                chunk,
                reply,
            } => {
                let answer = match incoming.get_mut(&group).filter(|present| present.number == import) {
                    Some(present) => present.import.chunk(&chunk).map_err(|error| {
                        // Half of the chunk may have been taken: nobody can say where it stands now.
                        incoming.remove(&group);
                        error.to_string()
                    }),
                    None => Err("another snapshot took its place".to_owned()),
                };
                let _ = reply.send(answer);
            }
            SnapshotJob::ImportEnd { group, import, reply } => {
                let found = incoming
                    .get_mut(&group)
                    .filter(|present| present.number == import && present.import.is_complete());
                let answer = match found.and_then(|present| Some((present.import.meta()?.clone(), present))) {
                    Some((meta, present)) => {
                        present.decided = true;
                        Ok(meta)
                    }
                    None => Err("the snapshot ended before it was whole".to_owned()),
                };
                let _ = reply.send(answer);
            }
            SnapshotJob::Install { group, meta } => {
                let store = self.store(group);
                let import = incoming
                    .remove(&group)
                    .expect("invariant: only whole snapshots are installed")
                    .import;
                match store.install(import) {
                    Ok(installed) => {
                        assert_eq!(
                            installed.position, meta.position,
                            "invariant: the snapshot that was offered is installed"
                        );
                        tracing::info!(%group, index = %meta.position.index, "installed a snapshot");
                        self.host.push(Job::Event(Event::Installed { group, meta: installed }));
                        self.tell_members(group, &store);
                    }
                    Err(error) => die("a received snapshot cannot be installed", &error),
                }
            }
            SnapshotJob::Discard { group, meta } => {
                if incoming
                    .get(&group)
                    .is_some_and(|present| present.import.meta() == Some(&meta))
                {
                    incoming.remove(&group);
                }
            }
        }
    }

    /// Gives the engine what was applied, once it is much or has waited long enough. Says when to come again.
    fn write_out(&self, idle: bool, due: Option<Instant>) -> Option<Instant> {
        let now = self.clock.instant();
        let late = due.is_some_and(|due| due <= now);
        for (_, store) in self.groups.all() {
            if (late || store.pending_bytes() >= WRITE_OUT_BYTES)
                && let Err(error) = store.write_out()
            {
                die("applied entries cannot be written", &error);
            }
        }
        if late {
            None
        } else {
            due.or((!idle).then(|| now + WRITE_OUT_DELAY))
        }
    }

    /// Deletes a little of what nobody needs. Says when to go on; `None`: when there was something to apply.
    fn sweep(&self, idle: bool, due: Option<Instant>) -> Option<Instant> {
        let now = self.clock.instant();
        if !idle && due.is_some_and(|due| due > now) {
            return due;
        }
        let mut next = None;
        for (_, store) in self.groups.all() {
            match store.compact_step() {
                Ok(Sweep::Done) => {}
                Ok(Sweep::More) => next = Some(now),
                Ok(Sweep::Paused) => next = next.or(Some(now + SWEEP_PAUSE)),
                Err(error) => die("old revisions cannot be deleted", &error),
            }
        }
        next
    }
}

/// The address table of a group, as its state machine has it.
#[must_use]
pub fn members_event(group: GroupId, store: &Store) -> Event {
    let table = store
        .members()
        .iter()
        .map(|(member, context)| (*member, MemberInfo::decode(context).peer_address))
        .collect();
    Event::Members { group, table }
}
