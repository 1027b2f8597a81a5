//! The state machine's thread: what takes time. It applies what the host does not apply itself, gives the engine what was applied,
//! takes in snapshots, and deletes what nobody needs.

use super::die;
use super::machine::Machine;
use crate::shared::Store;
use crate::space::{RETRY_INTERVAL, Room};
use crate::threads::host::Job;
use althing_raft::entry::SnapshotMeta;
use althing_raft::ids::{GroupId, MemberId};
use althing_shard::{Event, Item};
use althing_store::snapshot::{Import, Progress};
use althing_store::{SledStore, Sweep};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Items in one batch of the store: enough to make its cost per batch small, few enough to answer the first ones soon.
const BATCH_ITEMS_MAX: usize = 1_024;
/// Bytes of applied rows that the engine gets in one batch, about: what came last is on top. The engine syncs between batches and not
/// within one (see `BARRIER_BYTES`).
pub(super) const WRITE_OUT_BYTES: usize = althing_store::BARRIER_BYTES / 2;
/// How long they may wait for more. A batch's cost is then spread over all that was applied meanwhile; what a crash loses is in the log.
const WRITE_OUT_DELAY: Duration = Duration::from_millis(20);
/// Bytes of commands that are applied at once, for the same reason.
const BATCH_BYTES_MAX: usize = althing_store::BARRIER_BYTES / 2;
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
    /// The host has applied something that the engine does not have yet.
    Behind,
    /// Something about a snapshot.
    Snapshot(SnapshotJob),
    /// The group has left this node: nothing of it comes any more, and its state goes.
    Retire {
        /// The group.
        group: GroupId,
        /// Told when it is gone.
        reply: oneshot::Sender<()>,
    },
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
    /// Where the work comes from, and what is shared with the host.
    pub machine: Arc<Machine>,
    /// Wakes the checkpointer; its queue holds one.
    pub checkpointer: SyncSender<()>,
    /// What the volume still takes.
    pub room: Room,
}

/// Gives the engine what was applied.
fn give(store: &Store) {
    if let Err(error) = store.write_out() {
        die("applied entries cannot be written", &error);
    }
}

impl Applier {
    /// Runs until the inbox is closed and empty.
    pub fn run(self) {
        let mut incoming: BTreeMap<GroupId, Incoming> = BTreeMap::new();
        let mut imports = 0;
        let mut leaving = Vec::new();
        let mut sweep_at = Some(self.machine.clock.instant());
        let mut write_at: Option<Instant> = None;
        while let Some(jobs) = self.machine.inbox.take(sweep_at.into_iter().chain(write_at).min()) {
            let idle = jobs.is_empty();
            let mut gathered: BTreeMap<GroupId, (Vec<Item>, Instant)> = BTreeMap::new();
            let mut handed = 0;
            for job in jobs {
                match job {
                    ApplyJob::Items {
                        group,
                        items,
                        committed,
                    } => {
                        handed += 1;
                        // The latest commit time stands for all: they were applied together.
                        let (all, at) = gathered.entry(group).or_insert_with(|| (Vec::new(), committed));
                        all.extend(items);
                        *at = committed;
                    }
                    ApplyJob::Behind => {}
                    ApplyJob::Snapshot(job) => {
                        // Snapshots must not overtake entries.
                        if !self.apply_all(std::mem::take(&mut gathered)) {
                            return;
                        }
                        self.snapshot_job(job, &mut incoming, &mut imports);
                    }
                    ApplyJob::Retire { group, reply } => {
                        // What the host handed over before it let go.
                        if !self.apply_all(std::mem::take(&mut gathered)) {
                            return;
                        }
                        incoming.remove(&group);
                        leaving.extend(self.retire(group));
                        // Whoever asked may be gone with its node.
                        let _ = reply.send(());
                    }
                }
            }
            if !self.apply_all(gathered) {
                return;
            }
            self.machine.answered(handed);
            write_at = self.write_out(idle, write_at);
            if self.machine.checkpoint_due() {
                // If it is busy it will see what is new by itself.
                let _ = self.checkpointer.try_send(());
            }
            // Entries go first; garbage waits for a quiet moment, but not for ever behind a full inbox.
            sweep_at = self.sweep(idle, sweep_at, &mut leaving);
        }
    }

    /// `false` if the node ended while there was no room: the log keeps what was not applied.
    fn apply_all(&self, gathered: BTreeMap<GroupId, (Vec<Item>, Instant)>) -> bool {
        for (group, (items, committed)) in gathered {
            let store = self.machine.store(group);
            let mut items = items.into_iter().peekable();
            while items.peek().is_some() {
                let mut bytes = 0;
                let mut batch = Vec::new();
                while let Some(item) = items.next_if(|item| {
                    batch.is_empty() || (batch.len() < BATCH_ITEMS_MAX && bytes + item.bytes() <= BATCH_BYTES_MAX)
                }) {
                    bytes += item.bytes();
                    batch.push(item);
                }
                let waiting = (bytes + store.pending_bytes()) as u64;
                if !self.room.wait(waiting, || self.machine.inbox.is_closed()) {
                    return false;
                }
                self.machine.apply(group, &store, batch, committed);
                if store.pending_bytes() >= WRITE_OUT_BYTES {
                    give(&store);
                }
            }
        }
        true
    }

    /// Takes a group away. What it leaves in the engine is deleted a little at a time, by this handle of it.
    fn retire(&self, group: GroupId) -> Option<Arc<Store>> {
        let store = self.machine.groups.get(group)?;
        self.machine.groups.remove(group);
        if let Err(error) = store.retire() {
            die("the state of a group that left cannot be deleted", &error);
        }
        Some(store)
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
                            None => self.machine.store(group).import(),
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
                    Some(_) if !self.room.takes(chunk.len() as u64) => Err("the volume is full".to_owned()),
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
                let store = self.machine.store(group);
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
                        self.machine
                            .host
                            .push(Job::Event(Event::Installed { group, meta: installed }));
                        self.machine.tell_facts(group, &store);
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
        let now = self.machine.clock.instant();
        let late = due.is_some_and(|due| due <= now);
        let stores = self.machine.groups.all();
        let pending: usize = stores.iter().map(|(_, store)| store.pending_bytes()).sum();
        if (late || pending >= WRITE_OUT_BYTES) && !self.room.takes(pending as u64) {
            // The log has it all; whoever applies more waits for room (`apply_all`).
            return Some(now + RETRY_INTERVAL);
        }
        if late {
            // Before it is written: what comes meanwhile waits for the next time.
            self.machine.listen_again();
        }
        for (_, store) in stores {
            if late || store.pending_bytes() >= WRITE_OUT_BYTES {
                give(&store);
            }
        }
        if late {
            None
        } else {
            due.or((!idle).then(|| now + WRITE_OUT_DELAY))
        }
    }

    /// Deletes a little of what nobody needs. Says when to go on; `None`: when there was something to apply.
    fn sweep(&self, idle: bool, due: Option<Instant>, leaving: &mut Vec<Arc<Store>>) -> Option<Instant> {
        let now = self.machine.clock.instant();
        if !idle && due.is_some_and(|due| due > now) {
            return due;
        }
        if !self.room.takes(0) {
            return Some(now + SWEEP_PAUSE);
        }
        let mut next = None;
        let mut step = |store: &Store| {
            match store.compact_step() {
                Ok(Sweep::Done) => return false,
                Ok(Sweep::More) => next = Some(now),
                Ok(Sweep::Paused) => next = next.or(Some(now + SWEEP_PAUSE)),
                Err(error) => die("old revisions cannot be deleted", &error),
            }
            true
        };
        for (_, store) in self.machine.groups.all() {
            step(&store);
        }
        leaving.retain(|store| step(store));
        next
    }
}
