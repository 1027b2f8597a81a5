//! One machine: disks that outlive a crash, and the process that does not.

use super::conditions::Conditions;
use crate::rng::Rng;
use althing_raft::entry::{Entry, HardState, LeaseState, SnapshotMeta};
use althing_raft::ids::{Epoch, GroupId, Index, LogPosition, MemberId, Now, Term};
use althing_raft::io::{Config, RequestId, Start};
use althing_raft::roster::Ballot;
use althing_shard::envelope::BootNonce;
use althing_shard::{GroupStart, Host, HostConfig, Item, WriteToken};
use althing_store::snapshot::Import;
use althing_store::{MemStore, Mvcc};
use althing_wal::sim_disk::SimDisk;
use althing_wal::{GroupWrite, Options, Wal, WalError};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The one group of a run.
pub(crate) const GROUP: GroupId = GroupId::FIRST_SHARD;

/// A group that voted once and was never heard of again: its vote must outlive every segment it was ever in.
const QUIET: GroupId = GroupId(7_777);
const QUIET_STATE: HardState = HardState {
    term: Term(3),
    vote: Some(MemberId(1)),
    commit: Index::ZERO,
    lease: LeaseState {
        incarnation: 0,
        adopted: Ballot {
            term: Term(0),
            epoch: Epoch(0),
        },
        promise_max: Duration::ZERO,
        config: Index::ZERO,
    },
};

/// A machine and its volumes.
pub(crate) struct Machine {
    /// Whose volume this is; another one after a wipe.
    pub(crate) member: MemberId,
    pub(crate) disk: SimDisk,
    /// The state engine as of its last checkpoint: what a crash leaves at least.
    pub(crate) checkpoint: MemStore,
    /// What that has applied.
    pub(crate) checkpoint_at: Index,
    pub(crate) clock: Clock,
    pub(crate) process: Option<Process>,
    /// Stopped until then (a virtual machine that migrates, a process that swaps).
    pub(crate) paused_until: u64,
    /// Counts processes, so that what was meant for an earlier one is not taken by a later one.
    pub(crate) boot: u64,
    /// Whether the cluster should have this machine's member.
    pub(crate) wanted: bool,
    /// Until then, every sync takes so long.
    pub(crate) slow: (u64, u64),
    /// It dies right after the next installation of a snapshot, for so long.
    pub(crate) dies_at_install: Option<u64>,
    /// Its log has the vote of [`QUIET`] durably.
    pub(crate) quiet_voted: bool,
    /// A durable bit of its log has flipped.
    pub(crate) damaged: bool,
    /// Switched off for good, until it gets a new volume.
    pub(crate) gone: bool,
    pub(crate) rng: Rng,
}

/// A clock with its own zero and speed, which may change. Monotonic, as production's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// What it showed at `since`.
    pub(crate) offset: u64,
    /// When its present speed began, in the world's time.
    pub(crate) since: u64,
    /// Parts per million that it gains (or loses) against the world.
    pub(crate) drift_ppm: i64,
}

const MILLION: u128 = 1_000_000;

impl Clock {
    pub(crate) fn local(self, world: u64) -> Now {
        let elapsed = u128::from(world.saturating_sub(self.since)) * self.rate() / MILLION;
        Now(self.offset + u64::try_from(elapsed).expect("invariant: runs last minutes"))
    }

    /// The first moment of the world at which the local clock has reached `local`.
    pub(crate) fn world(self, local: Now) -> u64 {
        let elapsed = u128::from(local.0.saturating_sub(self.offset)) * MILLION;
        u64::try_from(elapsed.div_ceil(self.rate()))
            .unwrap_or(u64::MAX)
            .saturating_add(self.since)
    }

    /// Runs at another speed from now on.
    pub(crate) fn change(&mut self, world: u64, drift_ppm: i64) {
        self.offset = self.local(world).0;
        self.since = world;
        self.drift_ppm = drift_ppm;
    }

    fn rate(self) -> u128 {
        u128::try_from(1_000_000 + self.drift_ppm).expect("invariant: no clock stands still")
    }
}

/// Who waits for a request's answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Waiter {
    /// A client, by number.
    Client(usize),
    /// The operator or the nemesis: the answer does not matter, only that there is one.
    Nobody,
    /// The end of the run: a read at a member that followed this leader in this term.
    Probe { term: Term, leader: Option<MemberId> },
}

/// Work for the thread that owns the state machine, in order.
pub(crate) enum Job {
    Apply(Vec<Item>),
    Install(SnapshotMeta),
}

/// A running process: the production host, log and state machine with a shell of a few queues.
pub(crate) struct Process {
    pub(crate) host: Host,
    pub(crate) wal: Wal,
    pub(crate) store: MemStore,
    pub(crate) mvcc: Mvcc<MemStore>,
    /// Writes that the log's thread has not taken yet.
    pub(crate) writes: VecDeque<(WriteToken, Vec<GroupWrite>)>,
    /// Writes that it is making durable.
    pub(crate) syncing: Vec<(WriteToken, Vec<GroupWrite>)>,
    pub(crate) jobs: VecDeque<Job>,
    pub(crate) working: bool,
    /// A received snapshot that lies aside.
    pub(crate) import: Option<Import<MemStore>>,
    /// When the host is woken, in the world's time.
    pub(crate) wake_at: Option<u64>,
    /// Requests without an answer yet.
    pub(crate) open: BTreeMap<RequestId, Waiter>,
    pub(crate) next_request: u64,
    /// The next sync fails.
    pub(crate) sync_fails: bool,
    /// Whether the group hibernates here.
    pub(crate) asleep: bool,
}

impl Process {
    pub(crate) fn request(&mut self, waiter: Waiter) -> RequestId {
        self.next_request += 1;
        let request = RequestId(self.next_request);
        self.open.insert(request, waiter);
        request
    }
}

/// What a process found when it started.
pub(crate) struct Found {
    pub(crate) process: Process,
    pub(crate) hard_state: HardState,
    pub(crate) log_start: LogPosition,
    pub(crate) entries: Vec<Entry>,
}

/// Why a process did not start.
pub(crate) enum NoStart {
    /// The log says that durable bytes are damaged.
    Damaged(String),
    /// There is no space for a new segment.
    DiskFull,
    /// Anything else is a violation.
    Broken(String),
}

impl From<WalError> for NoStart {
    fn from(error: WalError) -> Self {
        match error {
            WalError::Corrupt { .. } | WalError::Version { .. } => Self::Damaged(error.to_string()),
            error if error.is_no_space() => Self::DiskFull,
            WalError::Io { .. }
            | WalError::NoSpace { .. }
            | WalError::Locked { .. }
            | WalError::Failed { .. }
            | WalError::Misuse { .. }
            | WalError::TooLarge { .. }
            | WalError::TooManyGroups { .. }
            | WalError::SegmentSize { .. } => Self::Broken(format!("the log cannot be opened: {error}")),
        }
    }
}

/// Starts a process on what its disks hold.
pub(crate) fn start(
    machine: &mut Machine,
    conditions: &Conditions,
    now: u64,
    forget_vote: bool,
) -> Result<Found, NoStart> {
    let nonce = BootNonce(machine.rng.next_u64() >> 2);
    let options = Options {
        segment_bytes: conditions.segment_bytes,
    };
    let opened = Wal::open(Arc::new(machine.disk.clone()), Path::new("/wal"), options);
    let (mut wal, mut recovered) = opened?;
    let quiet = recovered.groups.remove(&QUIET).map(|group| group.hard_state);
    if machine.quiet_voted && quiet != Some(QUIET_STATE) {
        return Err(NoStart::Broken(format!("the vote of a quiet group became {quiet:?}")));
    }
    if !machine.quiet_voted {
        let vote = GroupWrite {
            group: QUIET,
            hard_state: Some(QUIET_STATE),
            reset_to: None,
            entries: Vec::new(),
        };
        wal.append(&[vote]).and_then(|()| wal.sync())?;
        machine.quiet_voted = true;
    }
    let store = machine.checkpoint.fork();
    let mvcc = Mvcc::open(store.clone(), GROUP)
        .map_err(|error| NoStart::Broken(format!("the state cannot be read back: {error}")))?;
    let applied = mvcc.applied();
    let mut log = recovered.groups.remove(&GROUP).unwrap_or_default();
    let fits = log.entries.iter().any(|entry| entry.position() == applied.position);
    if machine.rng.chance(conditions.compact_at_boot) && fits {
        wal.compact(GROUP, applied.position).and_then(|()| wal.sync())?;
        log.entries.retain(|entry| entry.index > applied.position.index);
        log.log_start = applied.position;
    }
    if forget_vote {
        log.hard_state.term = log.log_start.term;
        log.hard_state.vote = None;
    }
    let local = machine.clock.local(now);
    let mut host = Host::new(HostConfig {
        me: machine.member,
        nonce,
        heartbeat_interval: conditions.heartbeat_interval,
        silence: conditions.hibernate_after.map(|_| conditions.election_timeout),
        cut: conditions.cut(),
        needs_stamp: |_| true,
    });
    let config = Config {
        group: GROUP,
        id: machine.member,
        election_timeout: conditions.election_timeout,
        heartbeat_interval: conditions.heartbeat_interval,
        seed: machine.rng.next_u64(),
        append_bytes_max: conditions.append_bytes_max,
        inflight_appends_max: conditions.inflight_appends_max,
        inflight_bytes_max: conditions.inflight_bytes_max,
        uncommitted_bytes_max: conditions.uncommitted_bytes_max,
        drift_ppm: conditions.drift_bound_ppm(),
        demote_after: conditions.demote_after(),
        hibernate_after: conditions.hibernate_after,
        footprint: althing_shard::envelope::footprint,
    };
    let entries = log.entries.clone();
    let start = Start {
        hard_state: log.hard_state,
        applied,
        log_start: log.log_start,
        entries: log.entries,
    };
    host.add_group(local, GroupStart { config, start });
    let process = Process {
        host,
        wal,
        store,
        mvcc,
        writes: VecDeque::new(),
        syncing: Vec::new(),
        jobs: VecDeque::new(),
        working: false,
        import: None,
        wake_at: None,
        open: BTreeMap::new(),
        next_request: 0,
        sync_fails: false,
        asleep: false,
    };
    Ok(Found {
        process,
        hard_state: log.hard_state,
        log_start: log.log_start,
        entries,
    })
}

/// Writes the log that the first members are born with: their configuration, one step an entry, as
/// [`Start::birth`] does for a single one.
pub(crate) fn birth(disk: &SimDisk, conditions: &Conditions, members: &[MemberId]) -> (HardState, Vec<Entry>) {
    birth_of(GROUP, disk, conditions, members)
}

/// The same for any group.
pub(crate) fn birth_of(
    group: GroupId,
    disk: &SimDisk,
    conditions: &Conditions,
    members: &[MemberId],
) -> (HardState, Vec<Entry>) {
    let mut log = Start::default();
    for &member in members {
        let born = Start::birth(member, Bytes::from_static(b"somewhere:2380"));
        for mut entry in born.entries {
            entry.index = Index(log.entries.len() as u64 + 1);
            log.entries.push(entry);
        }
        log.hard_state = born.hard_state;
    }
    log.hard_state.commit = Index(log.entries.len() as u64);
    let write = GroupWrite {
        group,
        hard_state: Some(log.hard_state),
        reset_to: None,
        entries: log.entries.clone(),
    };
    let options = Options {
        segment_bytes: conditions.segment_bytes,
    };
    let (mut wal, _) =
        Wal::open(Arc::new(disk.clone()), Path::new("/wal"), options).expect("invariant: nobody uses the disk");
    wal.append(&[write])
        .and_then(|()| wal.sync())
        .expect("invariant: the disk is well");
    (log.hard_state, log.entries)
}

/// A whole snapshot on its way.
#[derive(Clone, Debug)]
pub(crate) struct Parcel {
    pub(crate) chunks: Vec<Bytes>,
    pub(crate) meta: SnapshotMeta,
}
