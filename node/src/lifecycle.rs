//! Groups come to this node and leave it.
//!
//! One at a time: a group that is opened again must find everything of its last stay written. Order of a start: state, log, host. Order
//! of an end: host, log, state; what a crash leaves in between is a replica that takes part in nothing, and is closed again.

use crate::identity::draw;
use crate::node::NodeError;
use crate::shared::{Shared, Store};
use crate::threads::apply::ApplyJob;
use crate::threads::host::Job;
use crate::threads::machine::{self, Birth};
use crate::threads::wal::WalJob;
use althing_raft::entry::{HardState, Payload};
use althing_raft::ids::{GroupId, LogPosition, MemberId};
use althing_raft::io::{Config as CoreConfig, Role, Start};
use althing_shard::envelope::{BootNonce, Envelope};
use althing_shard::{Event, GroupStart};
use althing_store::codec::encode_command;
use althing_store::ops::{Command, ShardCommand};
use althing_store::partition::{RevisionSource, Territory};
use althing_store::{Mvcc, SledStore};
use althing_wal::GroupWrite;
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Mutex, oneshot};

/// Bytes of entries in one append: a follower writes it in a few milliseconds.
const APPEND_BYTES_MAX: usize = 1 << 20;
/// Appends under way per follower: covers a round trip of 100 ms at a thousand small appends a second with some to spare.
const INFLIGHT_APPENDS_MAX: usize = 128;
/// Bytes of entries under way per follower: a round trip of 100 ms at 160 MB/s, more than a WAL writes; and what a leader's
/// socket buffers and queues may hold for one slow follower.
const INFLIGHT_BYTES_MAX: usize = 16 << 20;
/// Heartbeats that a responder may miss before writes stop waiting for it: below any election timeout, above a hiccup.
const DEMOTE_HEARTBEATS: u32 = 4;
/// Heartbeats of idleness after which a group hibernates. Waking costs a write nothing and a local read one round, so groups that are used
/// every now and then should stay awake, and those that nobody uses for seconds need not.
const HIBERNATE_HEARTBEATS: u32 = 50;
/// Bytes of entries that are proposed and not committed: a second of heavy load, and what a new leader may have to resend.
const UNCOMMITTED_BYTES_MAX: usize = 64 << 20;

/// Waits between the tries to lead a shard that was just cut off: the others write the cut down within milliseconds, or tens of them on a slow
/// disk. After the last one the election timeout decides.
const STAND_WAITS: [Duration; 7] = [
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(20),
    Duration::from_millis(40),
    Duration::from_millis(80),
    Duration::from_millis(160),
    Duration::from_millis(320),
];

/// Opens and closes groups.
pub struct Lifecycle {
    shared: Arc<Shared>,
    engine: SledStore,
    /// Terms and votes of groups that left.
    retired: Mutex<BTreeMap<GroupId, HardState>>,
    /// Who waits for the host to let a group go.
    leaving: StdMutex<BTreeMap<GroupId, oneshot::Sender<Option<HardState>>>>,
    /// A number for each start of a replica, another one each time.
    lives: StdMutex<BTreeMap<GroupId, u64>>,
}

impl Lifecycle {
    /// For a node whose volume is open.
    #[must_use]
    pub fn new(shared: Arc<Shared>, engine: SledStore, retired: BTreeMap<GroupId, HardState>) -> Self {
        Self {
            shared,
            engine,
            retired: Mutex::new(retired),
            leaving: StdMutex::default(),
            lives: StdMutex::default(),
        }
    }

    /// The state of a group that was never written.
    ///
    /// # Errors
    /// If the engine fails.
    pub fn fresh(&self, group: GroupId) -> Result<Arc<Store>, NodeError> {
        let store = tokio::task::block_in_place(|| Mvcc::open(self.engine.clone(), group))?;
        Ok(Arc::new(store))
    }

    /// Starts a group whose state and log were found at boot.
    ///
    /// # Errors
    /// If no randomness can be had.
    pub fn resume(&self, group: GroupId, store: Arc<Store>, start: Start) -> Result<(), NodeError> {
        self.shared.groups.insert(group, store);
        self.start(group, start)
    }

    /// Gives this node an empty replica of a group that exists elsewhere; its leader fills it. Repeating it is harmless.
    ///
    /// # Errors
    /// If the engine fails or the node goes down.
    pub async fn open(&self, group: GroupId) -> Result<(), NodeError> {
        let mut retired = self.retired.lock().await;
        if self.shared.groups.get(group).is_some() {
            return Ok(());
        }
        let left = retired.get(&group).copied();
        let start = Start {
            hard_state: left.unwrap_or_default(),
            ..Start::default()
        };
        if left.is_none() {
            // A state without a log is a broken volume; and a snapshot may be durable before the first entry behind it is.
            self.write(first_write(group, &start)).await?;
        }
        let store = self.fresh(group)?;
        retired.remove(&group);
        self.shared.groups.insert(group, store);
        self.start(group, start)
    }

    /// Gives birth to a group whose only voter is this member, with what it owns as its first entry. Nothing if it is here.
    ///
    /// # Errors
    /// If it was here before, since it may live on elsewhere; if the engine fails or the node goes down.
    pub async fn create(&self, group: GroupId, territory: Territory, source: RevisionSource) -> Result<(), NodeError> {
        let retired = self.retired.lock().await;
        if self.shared.groups.get(group).is_some() {
            return Ok(());
        }
        if retired.contains_key(&group) {
            return Err(NodeError::BornBefore(group));
        }
        let mut start = Start::birth(self.shared.me, self.shared.info.encode());
        let mut settle = BytesMut::new();
        encode_command(&Command::Shard(ShardCommand::Settle { territory, source }), &mut settle);
        start.then(settle_entry(settle.freeze()));
        let store = self.fresh(group)?;
        self.write(GroupWrite {
            group,
            hard_state: Some(start.hard_state),
            reset_to: None,
            entries: start.entries.clone(),
        })
        .await?;
        self.shared.groups.insert(group, store);
        self.start(group, start)
    }

    /// Starts a group that was cut off another one here, whose state is there already. Its log begins when the cut is durable, so that
    /// a crash leaves a group without a log or one with both.
    ///
    /// If it was here before, by a snapshot that came before the cut did, it has left since: what it had acknowledged then must not come
    /// back without it, so the state goes. Its leader gives it another one if it is wanted here.
    ///
    /// # Errors
    /// If the engine fails or the node goes down.
    pub async fn born(&self, birth: Birth) -> Result<(), NodeError> {
        let group = birth.child;
        let retired = self.retired.lock().await;
        let Some(store) = self.shared.groups.get(group) else {
            return Ok(());
        };
        if retired.contains_key(&group) {
            return self.clear(group).await;
        }
        let meta = tokio::task::block_in_place(|| store.checkpoint())?;
        let start = Start::after(meta);
        self.write(first_write(group, &start)).await?;
        tracing::info!(%group, parent = %birth.parent, "was cut off another shard");
        self.start(group, start)?;
        self.stand_for(birth);
        Ok(())
    }

    /// Who leads a shard leads what is cut off it too, without waiting out a silence: clients wait meanwhile. The others may have come
    /// to the cut a little later, so it asks again.
    fn stand_for(&self, Birth { parent, child }: Birth) {
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            for wait in STAND_WAITS {
                let leads = shared.soft(parent).is_some_and(|soft| soft.role == Role::Leader);
                let led = shared.soft(child).is_some_and(|soft| soft.leader.is_some());
                if !leads || led {
                    return;
                }
                shared.host.push(Job::Event(Event::Campaign { group: child }));
                tokio::time::sleep(wait).await;
            }
        });
    }

    /// Removes this node's replica of a group, if it is this start of it and its log ends there. Repeating it is harmless.
    ///
    /// # Errors
    /// If it is not so any more, or the node goes down.
    pub async fn close(&self, group: GroupId, life: u64, ends_at: Option<LogPosition>) -> Result<(), NodeError> {
        let mut retired = self.retired.lock().await;
        if self.shared.groups.get(group).is_none() {
            return Ok(());
        }
        if life != self.life(group) {
            return Err(NodeError::Changed(group));
        }
        let hard_state = self.take_from_host(group, ends_at).await?;
        let hard_state = hard_state.ok_or(NodeError::Changed(group))?;
        // If another group took its state over, that must be durable before the log is emptied: a crash would clear the state, and the
        // entry that takes it over would be applied again without it.
        if let Some(store) = self.shared.groups.get(group) {
            tokio::task::block_in_place(|| store.checkpoint())?;
        }
        self.write(GroupWrite {
            group,
            hard_state: Some(hard_state),
            reset_to: Some(LogPosition::default()),
            entries: Vec::new(),
        })
        .await?;
        self.clear(group).await?;
        self.shared.forget_soft(group);
        self.lives().remove(&group);
        retired.insert(group, hard_state);
        tracing::info!(%group, "its replica left this node");
        Ok(())
    }

    /// The host has let a group go, or (`None`) has kept it.
    pub fn left(&self, group: GroupId, hard_state: Option<HardState>) {
        let waiting = self
            .leaving
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&group);
        if let Some(waiting) = waiting {
            // Whoever asked may be gone with its node.
            let _ = waiting.send(hard_state);
        }
    }

    /// Names the present start of a group's replica.
    #[must_use]
    pub fn life(&self, group: GroupId) -> u64 {
        self.lives().get(&group).copied().unwrap_or_default()
    }

    /// Has the state of a group removed, behind everything that it still has to apply.
    async fn clear(&self, group: GroupId) -> Result<(), NodeError> {
        let (reply, gone) = oneshot::channel();
        self.shared.apply.push(ApplyJob::Retire { group, reply });
        gone.await.map_err(|_| NodeError::Stopped)
    }

    fn lives(&self) -> MutexGuard<'_, BTreeMap<GroupId, u64>> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the host let a group go, if its log ends there; `None` if it does not.
    async fn take_from_host(
        &self,
        group: GroupId,
        ends_at: Option<LogPosition>,
    ) -> Result<Option<HardState>, NodeError> {
        let (left, hard_state) = oneshot::channel();
        self.leaving
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(group, left);
        self.shared.host.push(Job::Event(Event::Retire { group, ends_at }));
        hard_state.await.map_err(|_| NodeError::Stopped)
    }

    async fn write(&self, write: GroupWrite) -> Result<(), NodeError> {
        let (done, written) = oneshot::channel();
        self.shared.wal.push(WalJob::WriteFor {
            writes: vec![write],
            done,
        });
        written.await.map_err(|_| NodeError::Stopped)
    }

    fn start(&self, group: GroupId, start: Start) -> Result<(), NodeError> {
        let shared = &self.shared;
        let life = draw()?;
        self.lives().insert(group, life);
        let config = CoreConfig {
            group,
            id: shared.me,
            election_timeout: shared.config.election_timeout,
            heartbeat_interval: shared.config.heartbeat_interval,
            seed: draw()?,
            append_bytes_max: APPEND_BYTES_MAX,
            inflight_appends_max: INFLIGHT_APPENDS_MAX,
            inflight_bytes_max: INFLIGHT_BYTES_MAX,
            uncommitted_bytes_max: UNCOMMITTED_BYTES_MAX,
            drift_ppm: shared.config.clock_drift_ppm,
            demote_after: shared.config.heartbeat_interval * DEMOTE_HEARTBEATS,
            hibernate_after: Some(shared.config.heartbeat_interval * HIBERNATE_HEARTBEATS),
            footprint: althing_shard::envelope::footprint,
        };
        shared.host.push(Job::Start(Box::new(GroupStart { config, start })));
        if let Some(store) = shared.groups.get(group) {
            for event in machine::facts(group, &store) {
                shared.host.push(Job::Event(event));
            }
        }
        Ok(())
    }
}

/// What a group owns, as its first command. Nobody waits for it.
fn settle_entry(command: Bytes) -> Payload {
    let envelope = Envelope {
        proposer: MemberId(0),
        nonce: BootNonce(0),
        sequence: 0,
        stamp: None,
        command,
    };
    Payload::Command(envelope.encode())
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
