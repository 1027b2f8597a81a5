//! One node from its first file to its last: boot, joining a cluster, graceful shutdown.

use crate::admin;
use crate::atlas::Atlas;
use crate::calls::Calls;
use crate::clients::{self, ARRIVALS_MAX};
use crate::clock::Clock;
use crate::conductor::Conductor;
use crate::config::Config;
use crate::desk::Desk;
use crate::endpoints::{self, Endpoints, Front};
use crate::identity::{Identity, IdentityError, draw};
use crate::keyspace::{Ground, RoutedKeyspace};
use crate::lifecycle::Lifecycle;
use crate::listener;
use crate::local::Local;
use crate::members::MemberInfo;
use crate::peers::Peers;
use crate::reach::Reach;
use crate::ready;
use crate::recover::RecoverError;
use crate::sequencers::Sequencers;
use crate::shared::{Inboxes, Shared};
use crate::snapshot::Outgoing;
use crate::space::Ballast;
use crate::spread::Spread;
use crate::stamps::Stamps;
use crate::telemetry::{RequestObserver, Tracer};
use crate::threads::machine::{Birth, Machine};
use crate::threads::net::{Net, threads_wanted};
use crate::threads::wal::WalJob;
use crate::threads::{AbortOnPanic, die};
use crate::threads::{apply, checkpoint, host, wal};
use crate::volume::{FoundGroup, Volume};
use crate::waiters::Waiters;
use althing_api::health::HealthSwitch;
use althing_api::keyspace::Keyspace;
use althing_api::{Directory, Door, DoorKeeper, Limits, Observer};
use althing_raft::ids::GroupId;
use althing_raft::io::{Role, Start};
use althing_shard::envelope::BootNonce;
use althing_shard::map::KeyspaceId;
use althing_shard::policy::CutPolicy;
use althing_shard::{Event, Host, HostConfig};
use althing_store::StoreError;
use althing_wal::{GroupWrite, WalError};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};

/// How long a leader waits for its successor when it goes down.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(3);
/// How long requests under way may take when the node goes down.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the volume is measured.
const VOLUME_INTERVAL: Duration = Duration::from_secs(2);

/// Why a node cannot start, or go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Its volume.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Its log.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// Its state.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Both do not fit together.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// A port is taken, or not allowed.
    #[error("cannot listen on {addr} ({what}): {source}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What for.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// No thread could be had.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// The volume has a log and no cluster, so nobody may claim it.
    #[error(
        "this volume has a log and no cluster: its bootstrap was interrupted. Repeat the bootstrap with the cluster's id"
    )]
    HalfBorn,
    /// Its data is from before there was a shard map.
    #[error(
        "this volume has shards and no meta group: a build from before the shard map wrote it, which this one cannot read. \
         Start that build again, copy the keys out (etcdctl get --prefix ''), and put them into a new cluster"
    )]
    NoMap,
    /// It belongs to another one.
    #[error("this node belongs to cluster {0:016x}")]
    OtherCluster(u64),
    /// A group that is to be born here was here before.
    #[error("group {0} was here before, so it may live on elsewhere; open a replica of it instead")]
    BornBefore(GroupId),
    /// A replica is not what it was when somebody decided about it.
    #[error("the replica of group {0} is not as it was; look again")]
    Changed(GroupId),
    /// It is going down.
    #[error("the node is going down")]
    Stopped,
}

/// Brings a node into a cluster, once.
pub struct Joiner {
    shared: Arc<Shared>,
    lifecycle: Arc<Lifecycle>,
    state: Mutex<JoinState>,
}

struct JoinState {
    identity: Identity,
    /// What the volume holds although no cluster is known: an interrupted bootstrap.
    half_born: BTreeMap<GroupId, FoundGroup>,
}

impl Joiner {
    /// A leader called an empty node: its cluster is ours. Says which cluster it is.
    ///
    /// # Errors
    /// If the volume is not empty, or the disk refuses.
    pub async fn adopt(&self, cluster: u64) -> Result<u64, NodeError> {
        let mut state = self.state.lock().await;
        if let Some(present) = state.identity.cluster() {
            return Ok(present);
        }
        if !state.half_born.is_empty() {
            return Err(NodeError::HalfBorn);
        }
        self.join(&mut state, cluster)?;
        self.lifecycle.open(GroupId::META).await?;
        tracing::info!(cluster = format!("{cluster:016x}"), "joins the cluster that called");
        Ok(cluster)
    }

    /// Makes an empty node the only voter of a new cluster. Repeating it is harmless.
    ///
    /// # Errors
    /// If it belongs to another cluster, or the disk refuses.
    pub async fn bootstrap(&self, cluster: u64) -> Result<(), NodeError> {
        let mut state = self.state.lock().await;
        match state.identity.cluster() {
            Some(present) if present == cluster => return Ok(()),
            Some(present) => return Err(NodeError::OtherCluster(present)),
            None => {}
        }
        if state.half_born.is_empty() {
            // The log first: a volume with a cluster and an empty log is a learner's, and must never be born again.
            let start = Start::birth(self.shared.me, self.shared.info.encode());
            let births = [GroupId::META, GroupId::FIRST_SHARD];
            let (done, written) = oneshot::channel();
            self.shared.wal.push(WalJob::WriteFor {
                writes: births.map(|group| birth_write(group, &start)).into(),
                done,
            });
            written.await.map_err(|_| NodeError::Stopped)?;
            for group in births {
                let store = self.lifecycle.fresh(group)?;
                let start = start.clone();
                state.half_born.insert(group, FoundGroup { store, start });
            }
        }
        self.join(&mut state, cluster)?;
        for (group, found) in std::mem::take(&mut state.half_born) {
            self.lifecycle.resume(group, found.store, found.start)?;
        }
        tracing::info!(cluster = format!("{cluster:016x}"), "bootstrapped a new cluster");
        Ok(())
    }

    fn join(&self, state: &mut JoinState, cluster: u64) -> Result<(), NodeError> {
        tokio::task::block_in_place(|| state.identity.join(cluster))?;
        self.shared.set_cluster(cluster);
        Ok(())
    }
}

fn birth_write(group: GroupId, start: &Start) -> GroupWrite {
    GroupWrite {
        group,
        hard_state: Some(start.hard_state),
        reset_to: None,
        entries: start.entries.clone(),
    }
}

/// A running node.
pub struct Node {
    shared: Arc<Shared>,
    peers: Arc<Peers>,
    calls: Arc<Calls>,
    /// Kept for as long as calls are answered.
    _desk: Arc<Desk>,
    health: HealthSwitch,
    client_addr: SocketAddr,
    admin_addr: SocketAddr,
    tasks: Vec<AbortHandle>,
    accepting: AbortHandle,
    /// Keeps the connections of the client port.
    _open: DoorKeeper,
    /// Tells the client port to finish, on each thread.
    drain: watch::Sender<bool>,
    clients: Vec<tokio::task::JoinHandle<()>>,
    host: tokio::task::JoinHandle<()>,
    net: Net,
    wal_thread: JoinHandle<()>,
    apply_thread: JoinHandle<()>,
    checkpoint_thread: JoinHandle<()>,
}

impl Node {
    /// Opens the volume, binds the ports and starts everything. Needs tokio's multi-threaded runtime.
    ///
    /// # Errors
    /// If the volume, a port or the settings cannot be used.
    pub async fn start(mut config: Config, tracer: Tracer) -> Result<Self, NodeError> {
        let clock = Clock::start();
        // Ports first: a second process on the same machine fails before it touches anything.
        let (client_socket, client_addr) = listen(config.client_addr, "clients").await?;
        let (peer_socket, peer_addr) = listen(config.peer_addr, "peers").await?;
        let (admin_socket, admin_addr) = listen(config.admin_addr, "admin API").await?;
        if config.advertise_client.is_empty() {
            config.advertise_client = vec![format!("http://{client_addr}")];
        }
        let info = MemberInfo {
            name: config.name.clone(),
            peer_address: config.advertise_peer.clone().unwrap_or_else(|| peer_addr.to_string()),
            client_urls: config.advertise_client.clone(),
        };
        let admin_url = config
            .advertise_admin
            .clone()
            .unwrap_or_else(|| format!("http://{admin_addr}"));

        let identity = tokio::task::block_in_place(|| Identity::open(&config.data_dir, &config.name))?;
        let volume = tokio::task::block_in_place(|| Volume::open_with_room(&config))?;
        if identity.cluster().is_some() && volume.lacks_map() {
            return Err(NodeError::NoMap);
        }
        let boot = draw()?;
        let me = identity.member();
        let net = Net::start(threads_wanted()).map_err(NodeError::Thread)?;
        let waiters = Waiters::new(net.handles().count());
        let shared = Arc::new(Shared::new(
            config,
            me,
            info,
            admin_url,
            clock,
            Inboxes::default(),
            waiters,
        ));
        shared.measure_volume();
        shared
            .metrics
            .wal_bytes
            .set(i64::try_from(volume.wal.stats().bytes).unwrap_or(i64::MAX));
        tracing::info!(
            member = %me, name = shared.config.name, version = env!("CARGO_PKG_VERSION"),
            clients = %client_addr, peers = %peer_addr, admin = %admin_addr,
            shards = volume.groups.len(), "the volume is open"
        );
        let lifecycle = Arc::new(Lifecycle::new(Arc::clone(&shared), volume.engine, volume.retired));

        let (kick, kicks) = mpsc::sync_channel(1);
        let runtime = tokio::runtime::Handle::current();
        let peers = Arc::new(Peers::new(Arc::clone(&shared), net.first().clone()));
        let calls = Arc::new(Calls::new(Arc::clone(&shared), Arc::clone(&peers), net.first().clone()));
        let local = Local::new(Arc::clone(&shared));
        let atlas = Arc::new(Atlas::new(local.clone()));
        let reach = Arc::new(Reach::new(Arc::clone(&shared), Arc::clone(&calls)));
        let sequencers = Arc::new(Sequencers::new(Arc::clone(&shared), local.clone()));
        let stamps = Stamps::new(
            Arc::clone(&shared),
            Arc::clone(&atlas),
            Arc::clone(&reach),
            net.first().clone(),
        );
        let spread = Arc::new(Spread::new(
            Arc::clone(&shared),
            Arc::clone(&atlas),
            Arc::clone(&reach),
            boot,
        ));
        let desk = Arc::new(Desk::new(
            Arc::clone(&shared),
            local.clone(),
            Arc::clone(&lifecycle),
            sequencers,
            Arc::clone(&spread),
            runtime.clone(),
        ));
        calls.answer_by(&desk);
        let conductor = Arc::new(Conductor::new(Arc::clone(&shared), local.clone(), Arc::clone(&calls)));
        let snapshots = Outgoing::new(Arc::clone(&shared), Arc::clone(&peers), runtime);
        let host = Host::new(HostConfig {
            me,
            nonce: BootNonce(boot),
            heartbeat_interval: shared.config.heartbeat_interval,
            silence: Some(shared.config.election_timeout),
            cut: CutPolicy::PRODUCTION,
            needs_stamp: althing_store::codec::needs_stamp,
        });
        let (births, born) = tokio::sync::mpsc::unbounded_channel();
        let machine = Arc::new(Machine::new(
            Arc::clone(&shared.apply),
            Arc::clone(&shared.host),
            Arc::clone(&shared.waiters),
            Arc::clone(&shared.metrics),
            clock,
            Arc::clone(&shared.groups),
            births,
        ));
        let host = net.first().spawn(host::run(
            host,
            Arc::clone(&shared),
            Arc::clone(&peers),
            snapshots,
            Arc::clone(&machine),
            Arc::clone(&lifecycle),
            stamps,
        ));
        let wal_thread = {
            let writer = wal::Writer {
                wal: volume.wal,
                inbox: Arc::clone(&shared.wal),
                host: Arc::clone(&shared.host),
                waiters: Arc::clone(&shared.waiters),
                metrics: Arc::clone(&shared.metrics),
                clock,
                starved: Arc::clone(&shared.wal_starved),
            };
            thread("wal", move || writer.run())?
        };
        let applier = apply::Applier {
            machine,
            checkpointer: kick,
            room: shared.room.clone(),
        };
        let apply_thread = thread("apply", move || applier.run())?;
        let checkpoint_thread = {
            let shared = Arc::clone(&shared);
            thread("checkpoint", move || checkpoint::run(&kicks, &shared))?
        };

        let mut half_born = BTreeMap::new();
        match identity.cluster() {
            Some(cluster) => {
                shared.set_cluster(cluster);
                for (group, found) in volume.groups {
                    lifecycle.resume(group, found.store, found.start)?;
                }
                // Without a log: adopted, and the crash came before the first entry.
                lifecycle.open(GroupId::META).await?;
            }
            None => half_born = volume.groups,
        }
        let joiner = Arc::new(Joiner {
            shared: Arc::clone(&shared),
            lifecycle: Arc::clone(&lifecycle),
            state: Mutex::new(JoinState { identity, half_born }),
        });

        let ground = Arc::new(Ground {
            shared: Arc::clone(&shared),
            local: local.clone(),
            atlas: Arc::clone(&atlas),
            reach,
            spread: Arc::clone(&spread),
            tracer: tracer.clone(),
        });
        let keyspace = Arc::new(RoutedKeyspace::new(KeyspaceId::DEFAULT, Arc::clone(&ground)));
        let limits = Limits::default();
        let observer: Arc<dyn Observer> = Arc::new(RequestObserver::new(Arc::clone(&shared.metrics), tracer));
        let api = Arc::clone(&keyspace);
        let (server, health) = althing_api::server(api, limits, Arc::clone(&observer)).await;
        let directory = Directory::new(server.clone());
        let (door, open) = Door::by_name(directory.clone());
        let names = directory.clone();
        let (drain, drained) = watch::channel(false);
        let (seats, clients) = net
            .handles()
            .map(|(home, thread)| {
                let (seat, arrivals) = tokio::sync::mpsc::channel(ARRIVALS_MAX);
                let waiters = Arc::clone(&shared.waiters);
                thread.spawn(async move { waiters.deliver(home).await });
                let serving = thread.spawn(clients::serve(arrivals, drained.clone()));
                (seat, serving)
            })
            .unzip();
        ready::start(&shared);
        let front = Front {
            directory,
            default: server,
            default_id: KeyspaceId::DEFAULT.0,
            ip: client_addr.ip(),
            seats: Vec::clone(&seats),
            limits,
            observer,
        };
        let endpoints = Endpoints::new(front, move |id| {
            Arc::new(RoutedKeyspace::new(KeyspaceId(id), Arc::clone(&ground))) as Arc<dyn Keyspace>
        });
        let wanted = {
            let atlas = Arc::clone(&atlas);
            move || endpoints::wanted(&atlas.chart())
        };
        let accepting = tokio::spawn(clients::accept(client_socket, seats, door)).abort_handle();
        let tasks = vec![
            tokio::spawn(listener::run(
                peer_socket,
                Arc::clone(&shared),
                Arc::clone(&joiner),
                Arc::clone(&calls),
                net.first().clone(),
            ))
            .abort_handle(),
            tokio::spawn(admin::serve(
                admin_socket,
                Arc::clone(&shared),
                joiner,
                Arc::clone(&conductor),
                Arc::clone(&atlas),
                names,
            ))
            .abort_handle(),
            tokio::spawn(ready::run(
                Arc::clone(&shared),
                Arc::clone(&atlas),
                keyspace,
                health.clone(),
            ))
            .abort_handle(),
            tokio::spawn(endpoints.run(wanted)).abort_handle(),
            tokio::spawn(watch_volume(Arc::clone(&shared))).abort_handle(),
            tokio::spawn(Arc::clone(&conductor).run()).abort_handle(),
            tokio::spawn(deliver_born(lifecycle, born)).abort_handle(),
            tokio::spawn(Arc::clone(&spread).sweep(Arc::clone(&calls))).abort_handle(),
        ];
        Ok(Self {
            shared,
            peers,
            calls,
            _desk: desk,
            health,
            client_addr,
            admin_addr,
            tasks,
            accepting,
            _open: open,
            drain,
            clients,
            host,
            net,
            wal_thread,
            apply_thread,
            checkpoint_thread,
        })
    }

    /// Where it listens for clients.
    #[must_use]
    pub fn client_addr(&self) -> SocketAddr {
        self.client_addr
    }

    /// Where it serves the admin API.
    #[must_use]
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin_addr
    }

    /// Figures.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Goes down in order: not ready, leadership handed over, requests finished, everything applied made durable. Takes at most
    /// about the sum of the two timeouts above, and the last sync.
    pub async fn shutdown(self) {
        tracing::info!("shutting down");
        self.shared.draining.store(true, Ordering::Release);
        self.health.shut_down().await;
        self.hand_over().await;
        self.shared.stopping.store(true, Ordering::Release);
        // No new connections, then the end of those there are.
        self.accepting.abort();
        // Nobody listens if the port failed before.
        let _ = self.drain.send(true);
        let end = self.shared.clock.instant() + DRAIN_TIMEOUT;
        for clients in self.clients {
            if tokio::time::timeout_at(end.into(), clients).await.is_err() {
                tracing::warn!("requests were still under way after {DRAIN_TIMEOUT:?}");
            }
        }
        for task in self.tasks {
            task.abort();
        }
        self.calls.close();
        self.peers.close();
        // Each closes behind the one that writes into it.
        self.shared.host.close();
        let host = self.host.await;
        let joined = tokio::task::block_in_place(|| {
            self.shared.wal.close();
            let wal = self.wal_thread.join();
            self.shared.apply.close();
            let apply = self.apply_thread.join();
            self.shared.waiters.close();
            wal.and(apply).and(self.checkpoint_thread.join()).and(self.net.stop())
        });
        if host.is_err() {
            tracing::error!("the host ended early");
        }
        if joined.is_err() {
            tracing::error!("a thread panicked");
        }
        tracing::info!("stopped");
    }

    /// Every group that this member leads gets another leader, all at the same time.
    async fn hand_over(&self) {
        let deadline = self.shared.clock.now().after(HANDOVER_TIMEOUT);
        let mut handing = JoinSet::new();
        for (group, soft) in self.shared.softs() {
            if soft.role != Role::Leader || soft.config.voters.len() < 2 {
                continue;
            }
            let shared = Arc::clone(&self.shared);
            handing.spawn(async move {
                let asked = shared.ask_host(|request| Event::Transfer {
                    request,
                    group,
                    to: None,
                    deadline,
                });
                match asked.await {
                    Ok(done) => tracing::info!(%group, ?done, "handed leadership over"),
                    Err(error) => tracing::warn!(%group, %error, "cannot hand leadership over; the others will elect"),
                }
            });
        }
        while handing.join_next().await.is_some() {}
    }
}

async fn listen(addr: SocketAddr, what: &'static str) -> Result<(TcpListener, SocketAddr), NodeError> {
    let failed = |source| NodeError::Listen { addr, what, source };
    let socket = TcpListener::bind(addr).await.map_err(failed)?;
    let bound = socket.local_addr().map_err(failed)?;
    Ok((socket, bound))
}

fn thread(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, NodeError> {
    let run = move || {
        let _guard = AbortOnPanic;
        run();
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(NodeError::Thread)
}

/// Starts groups as they are cut off others.
async fn deliver_born(lifecycle: Arc<Lifecycle>, mut born: tokio::sync::mpsc::UnboundedReceiver<Birth>) {
    while let Some(birth) = born.recv().await {
        if let Err(error) = lifecycle.born(birth).await {
            die("a shard that was cut off cannot be started", &error);
        }
    }
}

async fn watch_volume(shared: Arc<Shared>) {
    let ballast = Ballast::new(&shared.config.data_dir, shared.config.volume_reserve_bytes);
    loop {
        let before = shared.short_of_space();
        shared.measure_volume();
        let now = shared.short_of_space();
        if now != before {
            let free = shared.volume().free;
            tracing::warn!(
                free,
                reserve = shared.config.volume_reserve_bytes,
                short = now,
                "space on the volume changed sides"
            );
        }
        if let Err(error) = ballast.keep(shared.volume()) {
            tracing::debug!(%error, "nothing is kept for a start on a full volume");
        }
        tokio::time::sleep(VOLUME_INTERVAL).await;
    }
}
