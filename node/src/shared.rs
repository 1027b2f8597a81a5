//! What several parts of a node look at.

use crate::clock::Clock;
use crate::config::Config;
use crate::inbox::Inbox;
use crate::members::MemberInfo;
use crate::metrics::Metrics;
use crate::ready::Readiness;
use crate::space::{Room, Volume};
use crate::threads::apply::ApplyJob;
use crate::threads::host::Job;
use crate::threads::wal::WalJob;
use crate::waiters::{Answer, Reader, Waiters};
use althing_raft::ids::{GroupId, LogPosition, MemberId, Now};
use althing_raft::io::{RequestId, Role, Soft};
use althing_raft::roster::Footprint;
use althing_shard::host::{GroupView, REQUESTS_MAX};
use althing_shard::{Done, Event, Refusal};
use althing_store::{Mvcc, SledStore};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::oneshot;

/// Longest time that a request may take, beside two elections: etcd's default.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Readers of one turn that ask the host one by one: some clients that read now and then.
const READERS_APART_MAX: usize = 8;
/// Readers that share a request when they are more: enough to make the request cheap, few enough that they do not touch every key.
const READERS_TOGETHER_MAX: usize = 64;
/// How long an answer about room holds, so that thousands of requests a second do not each ask the file system: what comes in
/// meanwhile is within the room that is kept for commands under way.
const MEASURED_FOR_MICROS: u64 = 2_000;

/// The state machine of one group, as this node keeps it.
pub type Store = Mvcc<SledStore>;

/// The state machines of a node.
#[derive(Default)]
pub struct Groups(RwLock<BTreeMap<GroupId, Arc<Store>>>);

impl Groups {
    /// Adds one.
    pub fn insert(&self, group: GroupId, store: Arc<Store>) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(group, store);
    }

    /// One.
    #[must_use]
    pub fn get(&self, group: GroupId) -> Option<Arc<Store>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&group)
            .cloned()
    }

    /// Removes one.
    pub fn remove(&self, group: GroupId) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&group);
    }

    /// All.
    #[must_use]
    pub fn all(&self) -> Vec<(GroupId, Arc<Store>)> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|(group, store)| (*group, Arc::clone(store)))
            .collect()
    }
}

/// A node's common ground.
pub struct Shared {
    /// Settings, with advertised addresses filled in.
    pub config: Config,
    /// This member.
    pub me: MemberId,
    /// What the node tells others about itself.
    pub info: MemberInfo,
    /// URL of its admin API.
    pub admin_url: String,
    /// The cluster; 0 while there is none (etcd's word for it).
    cluster: AtomicU64,
    /// Time.
    pub clock: Clock,
    /// Figures.
    pub metrics: Arc<Metrics>,
    /// Clients that wait.
    pub waiters: Arc<Waiters>,
    /// Readers that the host has not taken yet: all that come before its next turn share one request.
    reads: Mutex<Vec<(GroupId, Reader, Footprint)>>,
    /// Readers that wait, taken or not.
    readers: AtomicUsize,
    /// The host's inbox.
    pub host: Arc<Inbox<Job>>,
    /// The log writer's inbox.
    pub wal: Arc<Inbox<WalJob>>,
    /// The state machine's inbox.
    pub apply: Arc<Inbox<ApplyJob>>,
    /// State machines.
    pub groups: Arc<Groups>,
    /// Role, leader, term, configuration of each group, as last said by the host.
    soft: RwLock<BTreeMap<GroupId, Soft>>,
    /// What the state of each group holds durably, as far as this process made it so.
    durable: RwLock<BTreeMap<GroupId, LogPosition>>,
    /// Where space is measured.
    pub room: Room,
    /// When it was last asked whether commands can be taken, in microseconds, times two; plus one if they could not.
    crowded: AtomicU64,
    /// Space, as last measured.
    volume: RwLock<Volume>,
    /// The log could not allocate its next segment.
    pub wal_starved: Arc<AtomicBool>,
    readiness: RwLock<Readiness>,
    /// A graceful shutdown is under way: not ready any more, but still serving.
    pub draining: AtomicBool,
    /// No request is taken any more.
    pub stopping: AtomicBool,
    /// A leader said that this member is not in the cluster any more.
    pub removed: AtomicBool,
}

/// Why a request came to nothing, beside the host's own reasons.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failed {
    /// The host refused.
    #[error(transparent)]
    Refused(Refusal),
    /// The node is going down.
    #[error("the node is going down")]
    Stopped,
}

/// How many groups a node has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GroupCounts {
    /// All.
    pub all: usize,
    /// Those that it leads.
    pub led: usize,
    /// Those whose leader it does not know.
    pub leaderless: usize,
}

/// The inboxes of the threads.
#[derive(Clone, Default)]
pub struct Inboxes {
    /// Host.
    pub host: Arc<Inbox<Job>>,
    /// Log writer.
    pub wal: Arc<Inbox<WalJob>>,
    /// State machine.
    pub apply: Arc<Inbox<ApplyJob>>,
}

impl Shared {
    /// The common ground of a node that has its volume and its sockets.
    #[must_use]
    pub fn new(
        config: Config,
        me: MemberId,
        info: MemberInfo,
        admin_url: String,
        clock: Clock,
        inboxes: Inboxes,
        waiters: Waiters,
    ) -> Self {
        let room = Room::new(config.data_dir.clone(), config.volume_reserve_bytes);
        Self {
            config,
            me,
            info,
            admin_url,
            cluster: AtomicU64::new(0),
            clock,
            metrics: Arc::new(Metrics::new(me.to_string())),
            waiters: Arc::new(waiters),
            reads: Mutex::default(),
            readers: AtomicUsize::new(0),
            host: inboxes.host,
            wal: inboxes.wal,
            apply: inboxes.apply,
            groups: Arc::default(),
            soft: RwLock::default(),
            durable: RwLock::default(),
            room,
            crowded: AtomicU64::new(0),
            volume: RwLock::default(),
            wal_starved: Arc::default(),
            readiness: RwLock::default(),
            draining: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            removed: AtomicBool::new(false),
        }
    }

    /// The cluster, if there is one.
    #[must_use]
    pub fn cluster(&self) -> Option<u64> {
        Some(self.cluster.load(Ordering::Acquire)).filter(|cluster| *cluster != 0)
    }

    pub(crate) fn set_cluster(&self, cluster: u64) {
        self.cluster.store(cluster, Ordering::Release);
    }

    /// What the host last said of a group.
    #[must_use]
    pub fn soft(&self, group: GroupId) -> Option<Soft> {
        self.soft
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&group)
            .cloned()
    }

    /// Groups that have a replica here, with what the host last said of each.
    #[must_use]
    pub fn softs(&self) -> BTreeMap<GroupId, Soft> {
        self.soft.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether this member has a vote in a group, and so everything that it takes to answer for it.
    #[must_use]
    pub fn is_voter(&self, group: GroupId) -> bool {
        let soft = self.soft.read().unwrap_or_else(PoisonError::into_inner);
        soft.get(&group)
            .is_some_and(|soft| soft.config.voters.contains(&self.me))
    }

    /// Forgets what the host said of a group that left.
    pub(crate) fn forget_soft(&self, group: GroupId) {
        self.soft.write().unwrap_or_else(PoisonError::into_inner).remove(&group);
        self.durable
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&group);
    }

    /// The group's term, as the host last said it; 0 before it said anything.
    #[must_use]
    pub fn term(&self, group: GroupId) -> u64 {
        let soft = self.soft.read().unwrap_or_else(PoisonError::into_inner);
        soft.get(&group).map_or(0, |soft| soft.term.0)
    }

    /// Sets it; says what it was.
    pub(crate) fn set_soft(&self, group: GroupId, soft: Soft) -> Option<Soft> {
        self.soft
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(group, soft)
    }

    /// Up to where a group's state is durable.
    #[must_use]
    pub fn durable(&self, group: GroupId) -> LogPosition {
        let durable = self.durable.read().unwrap_or_else(PoisonError::into_inner);
        durable.get(&group).copied().unwrap_or_default()
    }

    /// Says so.
    pub fn set_durable(&self, group: GroupId, position: LogPosition) {
        let mut durable = self.durable.write().unwrap_or_else(PoisonError::into_inner);
        let known = durable.entry(group).or_default();
        if position.index > known.index {
            *known = position;
        }
    }

    /// How many groups there are, and how they are.
    #[must_use]
    pub fn count_groups(&self) -> GroupCounts {
        let soft = self.soft.read().unwrap_or_else(PoisonError::into_inner);
        GroupCounts {
            all: soft.len(),
            led: soft.values().filter(|soft| soft.role == Role::Leader).count(),
            leaderless: soft.values().filter(|soft| soft.leader.is_none()).count(),
        }
    }

    /// Space on the volume.
    #[must_use]
    pub fn volume(&self) -> Volume {
        *self.volume.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this member serves, as last found out.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.readiness.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_readiness(&self, readiness: Readiness) -> Readiness {
        std::mem::replace(
            &mut *self.readiness.write().unwrap_or_else(PoisonError::into_inner),
            readiness,
        )
    }

    /// Measures the volume.
    pub(crate) fn measure_volume(&self) {
        match self.room.measure() {
            Ok(volume) => {
                self.metrics
                    .volume_free
                    .set(i64::try_from(volume.free).unwrap_or(i64::MAX));
                self.metrics
                    .volume_size
                    .set(i64::try_from(volume.size).unwrap_or(i64::MAX));
                *self.volume.write().unwrap_or_else(PoisonError::into_inner) = volume;
            }
            Err(error) => tracing::warn!(%error, "cannot measure the volume"),
        }
    }

    /// Whether the volume is too full for writes.
    #[must_use]
    pub fn short_of_space(&self) -> bool {
        let volume = self.volume();
        let reserved = volume.size > 0 && volume.free < self.config.volume_reserve_bytes;
        reserved || self.out_of_space() || self.wal_starved.load(Ordering::Acquire)
    }

    /// Whether not even a deletion can be taken, because the state store could not write it. Reads would then wait behind it.
    #[must_use]
    pub fn out_of_space(&self) -> bool {
        let now = u64::try_from(self.clock.uptime().as_micros()).expect("invariant: no process runs for 500,000 years");
        let last = self.crowded.load(Ordering::Relaxed);
        if last != 0 && now.saturating_sub(last >> 1) < MEASURED_FOR_MICROS {
            return last & 1 == 1;
        }
        let crowded = !self.room.takes_commands();
        self.crowded.store(now << 1 | u64::from(crowded), Ordering::Relaxed);
        crowded
    }

    /// When a request that comes now has taken too long.
    #[must_use]
    pub fn deadline(&self) -> Now {
        self.clock
            .now()
            .after(REQUEST_TIMEOUT + self.config.election_timeout * 2)
    }

    /// Waits until the group's state machine has everything of these keys that was committed when this was called.
    ///
    /// # Errors
    /// If too many wait, the node goes down, or the host refuses.
    pub async fn catch_up(&self, group: GroupId, footprint: Footprint) -> Result<(), Failed> {
        /// Counts a reader for as long as it waits, also if its client goes away.
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        if self.stopping.load(Ordering::Acquire) {
            return Err(Failed::Stopped);
        }
        let before = self.readers.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.readers);
        if before >= REQUESTS_MAX {
            return Err(Failed::Refused(Refusal::TooManyRequests));
        }
        let (reader, answer) = Reader::new();
        let first = {
            let mut reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
            reads.push((group, reader, footprint));
            reads.len() == 1
        };
        if first {
            self.host.push(Job::Reads);
        }
        match answer.await {
            Ok(result) => result.map(|_| ()).map_err(Failed::Refused),
            Err(_) => Err(Failed::Stopped),
        }
    }

    /// One request each for a group's readers so far while they are few, so that none waits for a write of another's keys; one for
    /// many when they are many.
    pub(crate) fn take_reads(&self) -> Vec<Event> {
        let all = std::mem::take(&mut *self.reads.lock().unwrap_or_else(PoisonError::into_inner));
        let mut by_group: BTreeMap<GroupId, Vec<(Reader, Footprint)>> = BTreeMap::new();
        for (group, reader, footprint) in all {
            by_group.entry(group).or_default().push((reader, footprint));
        }
        let mut events = Vec::new();
        for (group, readers) in by_group {
            let together = if readers.len() <= READERS_APART_MAX {
                1
            } else {
                READERS_TOGETHER_MAX
            };
            let mut readers = readers.into_iter();
            while readers.len() > 0 {
                let (readers, footprints): (Vec<_>, Vec<_>) = readers.by_ref().take(together).unzip();
                events.push(Event::Read {
                    request: self.waiters.add_readers(readers),
                    group,
                    footprint: Footprint::union(footprints),
                    deadline: self.deadline(),
                });
            }
        }
        events
    }

    /// Hands a request to the host and waits for its answer.
    ///
    /// # Errors
    /// If the host's queue is full or the node goes down.
    pub async fn ask(&self, make: impl FnOnce(RequestId) -> Event) -> Result<Answer, Failed> {
        if self.stopping.load(Ordering::Acquire) {
            return Err(Failed::Stopped);
        }
        let (request, answer) = self.waiters.add();
        if self.host.try_push(Job::Event(make(request)), REQUESTS_MAX).is_err() {
            self.waiters.forget(request);
            return Err(Failed::Refused(Refusal::TooManyRequests));
        }
        answer.await.map_err(|_| Failed::Stopped)
    }

    /// As `ask`, for requests that the host answers itself.
    ///
    /// # Errors
    /// As of `ask`, and whatever the host refuses for.
    pub async fn ask_host(&self, make: impl FnOnce(RequestId) -> Event) -> Result<Done, Failed> {
        match self.ask(make).await? {
            Answer::Host(result) => result.map_err(Failed::Refused),
            Answer::Applied(..) => unreachable!("invariant: only commands are answered by the state machine"),
        }
    }

    /// How the groups are, from the host itself; empty if it is going down.
    pub async fn views(&self) -> Vec<(GroupId, GroupView)> {
        let (reply, views) = oneshot::channel();
        self.host.push(Job::Views(reply));
        views.await.unwrap_or_default()
    }
}
