//! One machine with many groups: disks that outlive a crash, and the process that does not.

use super::keyspace::Chart;
use super::sequencer::Seat;
use super::task::Promise;
use crate::rng::Rng;
use crate::world::conditions::Conditions;
use crate::world::machine::Clock;
use althing_raft::entry::{Entry, HardState, SnapshotMeta};
use althing_raft::ids::{GroupId, Index, LogPosition, MemberId};
use althing_raft::io::{Config, RequestId, Soft, Start};
use althing_shard::envelope::BootNonce;
use althing_shard::policy::CutPolicy;
use althing_shard::{Done, GroupStart, Host, HostConfig, Item, Refusal, WriteToken};
use althing_store::ops::TxnId;
use althing_store::snapshot::Import;
use althing_store::{CHILD_BIRTH, CommandResult, MemStore, Mvcc, StoreError, Sweep};
use althing_wal::sim_disk::SimDisk;
use althing_wal::{GroupWrite, Options, RecoveredGroup, Wal, WalError};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

/// A group's state machine.
pub(crate) type Store = Mvcc<MemStore>;

/// A machine and its volumes.
pub(crate) struct Machine {
    pub(crate) member: MemberId,
    pub(crate) disk: SimDisk,
    /// The engine as of its last checkpoint: what a crash leaves at least.
    pub(crate) checkpoint: MemStore,
    /// Which copy of the engine that is.
    pub(crate) checkpoint_number: u64,
    pub(crate) copies: u64,
    pub(crate) clock: Clock,
    pub(crate) process: Option<Process>,
    pub(crate) paused_until: u64,
    /// Counts processes, so that what was meant for an earlier one is not taken by a later one.
    pub(crate) boot: u64,
    /// Until then, every sync takes so long.
    pub(crate) slow: (u64, u64),
    pub(crate) rng: Rng,
}

/// What a request of a process came to.
pub(crate) enum Said {
    Host(Result<Done, Refusal>),
    Applied(CommandResult),
}

/// Work for the thread that owns the state machines, in order.
pub(crate) enum Job {
    Apply(GroupId, Vec<Item>),
    Install(GroupId, SnapshotMeta),
    Retire(GroupId, Promise<()>),
}

/// Writes on their way to the log.
pub(crate) enum Writes {
    Host(WriteToken, Vec<GroupWrite>),
    Shell(GroupWrite, Promise<()>),
}

/// A running process: the production host, log and state machines with a shell of a few queues.
pub(crate) struct Process {
    pub(crate) host: Host,
    pub(crate) wal: Wal,
    pub(crate) engine: MemStore,
    /// The engine as it was at some moment, and which copy that is: if it is newer than the checkpoint, a crash may leave it.
    pub(crate) torn: Option<(u64, MemStore)>,
    pub(crate) groups: BTreeMap<GroupId, Rc<Store>>,
    /// Terms and votes of groups that left.
    pub(crate) retired: BTreeMap<GroupId, HardState>,
    /// Who waits for the host to let a group go.
    pub(crate) leaving: BTreeMap<GroupId, Promise<Option<HardState>>>,
    /// A number for each start of a replica, another one each time.
    pub(crate) lives: BTreeMap<GroupId, u64>,
    pub(crate) soft: BTreeMap<GroupId, Soft>,
    /// What each group holds durably.
    pub(crate) durable: BTreeMap<GroupId, LogPosition>,
    pub(crate) writes: VecDeque<Writes>,
    pub(crate) syncing: Vec<Writes>,
    pub(crate) jobs: VecDeque<Job>,
    pub(crate) working: bool,
    pub(crate) imports: BTreeMap<GroupId, Import<MemStore>>,
    pub(crate) wake_at: Option<u64>,
    /// Requests without an answer yet.
    pub(crate) open: BTreeMap<RequestId, Option<Promise<Said>>>,
    pub(crate) next_request: u64,
    pub(crate) sync_fails: bool,
    /// Sequencers that it may lead.
    pub(crate) seats: BTreeMap<GroupId, Seat>,
    /// The newest map that it has made of its copy of the meta group.
    pub(crate) chart: Option<Chart>,
    /// Which member answered last for a group.
    pub(crate) guides: BTreeMap<GroupId, MemberId>,
    /// Its nonce and the transactions that it has begun.
    pub(crate) nonce: u64,
    pub(crate) transactions: u64,
    /// Transactions that it drives, and those whose locks it frees.
    pub(crate) alive: BTreeSet<TxnId>,
    pub(crate) recovering: BTreeSet<(TxnId, GroupId)>,
    /// One group at a time comes or goes.
    pub(crate) lifecycle_busy: bool,
    pub(crate) lifecycle_waiting: VecDeque<Promise<()>>,
}

/// What a start found of one group.
pub(crate) struct Found {
    pub(crate) group: GroupId,
    pub(crate) hard_state: HardState,
    pub(crate) log_start: LogPosition,
    pub(crate) entries: Vec<Entry>,
}

/// Why a process did not start.
pub(crate) enum NoStart {
    /// There is no space for a new segment.
    DiskFull,
    /// A violation.
    Broken(String),
}

impl From<WalError> for NoStart {
    fn from(error: WalError) -> Self {
        if error.is_no_space() {
            Self::DiskFull
        } else {
            Self::Broken(format!("the log cannot be opened: {error}"))
        }
    }
}

impl From<StoreError> for NoStart {
    fn from(error: StoreError) -> Self {
        Self::Broken(format!("the state cannot be read back: {error}"))
    }
}

/// What a boot may make of a group's log and state.
#[expect(clippy::large_enum_variant, reason = "one at a time, and gone at once")]
enum Judged {
    /// Nothing was ever there.
    Nothing,
    /// It left, or never had an entry: its term and vote stay, and its state goes.
    Left(HardState),
    Starts(Start, Option<GroupWrite>),
}

fn judge(group: GroupId, log: Option<RecoveredGroup>, applied: SnapshotMeta) -> Result<Judged, NoStart> {
    let at = applied.position;
    let Some(log) = log else {
        return match at {
            LogPosition { index: Index(0), .. } => Ok(Judged::Nothing),
            CHILD_BIRTH => {
                // Its state is written before its log begins, and the crash came in between.
                let start = Start::after(applied);
                let repair = first_write(group, &start);
                Ok(Judged::Starts(start, Some(repair)))
            }
            _ => Err(NoStart::Broken(format!(
                "group {group} has applied entry {} and has no log",
                at.index
            ))),
        };
    };
    let blank = log.entries.is_empty() && log.log_start == LogPosition::default();
    if blank && group != GroupId::META {
        return Ok(Judged::Left(log.hard_state));
    }
    if at.index < log.log_start.index {
        return Err(NoStart::Broken(format!(
            "the state of group {group} stands at entry {} and its log begins after {}",
            at.index, log.log_start.index
        )));
    }
    Ok(Judged::Starts(
        Start {
            hard_state: log.hard_state,
            applied,
            log_start: log.log_start,
            entries: log.entries,
        },
        None,
    ))
}

/// Deletes everything of a group that left.
pub(crate) fn clear(store: &Store) -> Result<(), StoreError> {
    store.retire()?;
    while store.compact_step()? == Sweep::More {}
    Ok(())
}

/// The first record of a group that begins with a state.
pub(crate) fn first_write(group: GroupId, start: &Start) -> GroupWrite {
    GroupWrite {
        group,
        hard_state: Some(start.hard_state),
        reset_to: Some(start.log_start),
        entries: Vec::new(),
    }
}

/// What the core of a group is told.
pub(crate) fn core_config(conditions: &Conditions, member: MemberId, group: GroupId, seed: u64) -> Config {
    Config {
        group,
        id: member,
        election_timeout: conditions.election_timeout,
        heartbeat_interval: conditions.heartbeat_interval,
        seed,
        append_bytes_max: conditions.append_bytes_max,
        inflight_appends_max: conditions.inflight_appends_max,
        inflight_bytes_max: conditions.inflight_bytes_max,
        uncommitted_bytes_max: conditions.uncommitted_bytes_max,
        drift_ppm: conditions.drift_bound_ppm(),
        demote_after: conditions.demote_after(),
        hibernate_after: conditions.hibernate_after,
        footprint: althing_shard::envelope::footprint,
    }
}

/// Starts a process on what its disks hold.
pub(crate) fn start(
    machine: &mut Machine,
    conditions: &Conditions,
    now: u64,
) -> Result<(Process, Vec<Found>), NoStart> {
    let nonce = machine.rng.next_u64() >> 2;
    let options = Options {
        segment_bytes: conditions.segment_bytes,
    };
    let (mut wal, recovered) = Wal::open(Arc::new(machine.disk.clone()), Path::new("/wal"), options)?;
    let mut logs = recovered.groups;
    let engine = machine.checkpoint.fork();
    let local = machine.clock.local(now);
    let mut host = Host::new(HostConfig {
        me: machine.member,
        nonce: BootNonce(nonce),
        heartbeat_interval: conditions.heartbeat_interval,
        silence: conditions.hibernate_after.map(|_| conditions.election_timeout),
        cut: CutPolicy {
            behind_removals: true,
            ..conditions.cut()
        },
        needs_stamp: althing_store::codec::needs_stamp,
    });
    althing_store::tidy(&engine)?;
    let stored: BTreeSet<GroupId> = althing_store::groups(&engine)?.into_iter().collect();
    let known: BTreeSet<GroupId> = stored.iter().chain(logs.keys()).copied().collect();
    let (mut groups, mut retired, mut lives) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let (mut found, mut repairs, mut starts) = (Vec::new(), Vec::new(), Vec::new());
    for group in known {
        let store = Mvcc::open(engine.clone(), group)?;
        match judge(group, logs.remove(&group), store.applied())? {
            Judged::Nothing => {}
            Judged::Left(hard_state) => {
                if stored.contains(&group) {
                    clear(&store)?;
                }
                retired.insert(group, hard_state);
            }
            Judged::Starts(start, repair) => {
                repairs.extend(repair);
                groups.insert(group, Rc::new(store));
                starts.push((group, start));
            }
        }
    }
    if !repairs.is_empty() {
        wal.append(&repairs).and_then(|()| wal.sync())?;
    }
    for (group, start) in starts {
        lives.insert(group, machine.rng.next_u64());
        found.push(Found {
            group,
            hard_state: start.hard_state,
            log_start: start.log_start,
            entries: start.entries.clone(),
        });
        let config = core_config(conditions, machine.member, group, machine.rng.next_u64());
        host.add_group(local, GroupStart { config, start });
    }
    let durable = groups
        .iter()
        .map(|(group, store): (_, &Rc<Store>)| (*group, store.applied().position))
        .collect();
    let process = Process {
        host,
        wal,
        engine,
        torn: None,
        groups,
        retired,
        leaving: BTreeMap::new(),
        lives,
        soft: BTreeMap::new(),
        durable,
        writes: VecDeque::new(),
        syncing: Vec::new(),
        jobs: VecDeque::new(),
        working: false,
        imports: BTreeMap::new(),
        wake_at: None,
        open: BTreeMap::new(),
        next_request: 0,
        sync_fails: false,
        seats: BTreeMap::new(),
        chart: None,
        guides: BTreeMap::new(),
        nonce,
        transactions: 0,
        alive: BTreeSet::new(),
        recovering: BTreeSet::new(),
        lifecycle_busy: false,
        lifecycle_waiting: VecDeque::new(),
    };
    Ok((process, found))
}
