//! A keyspace of one member in memory, a real server on loopback, and a client of it.
#![allow(dead_code, reason = "each test file uses its part")]

use althing_api::keyspace::{Alarm, Consistency, Header, Keyspace, KeyspaceError, MemberEntry, Status};
use althing_api::{Door, DoorKeeper, Limits, Observer, health::HealthSwitch};
use althing_store::ops::{Command, OpResult, Range, RangeResult, Revision, Txn};
use althing_store::{ApplyItem, MemStore, Mvcc};
use async_trait::async_trait;
use futures::StreamExt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard};
use tokio::net::TcpListener;
use tokio::sync::Barrier;
use tonic::transport::{Channel, Endpoint};

/// The state machine without consensus: every command is committed at once.
pub(crate) struct Local {
    mvcc: Mvcc<MemStore>,
    applying: Mutex<()>,
    /// Whether this member has a leader, that is: itself.
    pub(crate) led: AtomicBool,
    /// Its alarms.
    pub(crate) alarms: Mutex<Vec<Alarm>>,
    /// Consistencies of the reads so far.
    pub(crate) reads: Mutex<Vec<Consistency>>,
    /// If set, ranges wait here.
    pub(crate) gate: Option<Barrier>,
    /// Ranges that came there.
    pub(crate) waited: AtomicUsize,
}

impl Local {
    pub(crate) fn new() -> Self {
        Self {
            mvcc: Mvcc::open(MemStore::default(), Default::default()).expect("memory opens"),
            applying: Mutex::new(()),
            led: AtomicBool::new(true),
            alarms: Mutex::default(),
            reads: Mutex::default(),
            gate: None,
            waited: AtomicUsize::new(0),
        }
    }

    fn lead(&self, consistency: Consistency) -> Result<(), KeyspaceError> {
        lock(&self.reads).push(consistency);
        match consistency {
            Consistency::Linearizable if !self.has_leader() => Err(KeyspaceError::Timeout),
            Consistency::Linearizable | Consistency::Serializable => Ok(()),
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no test panics with a lock")
}

fn header(revision: Revision) -> Header {
    Header {
        cluster_id: 0xc,
        member_id: 0xa,
        revision,
        raft_term: 3,
    }
}

#[async_trait]
impl Keyspace for Local {
    async fn range(&self, range: Range, consistency: Consistency) -> Result<(Header, RangeResult), KeyspaceError> {
        if let Some(gate) = &self.gate {
            self.waited.fetch_add(1, Ordering::SeqCst);
            gate.wait().await;
        }
        self.lead(consistency)?;
        let (revision, result) = self.mvcc.range(&range).expect("memory reads")?;
        Ok((header(revision), result))
    }

    async fn read_txn(&self, txn: Txn, consistency: Consistency) -> Result<(Header, OpResult), KeyspaceError> {
        self.lead(consistency)?;
        let (revision, result) = self.mvcc.read_txn(&txn).expect("memory reads")?;
        Ok((header(revision), result))
    }

    async fn execute(&self, command: Command) -> Result<(Header, OpResult), KeyspaceError> {
        if !self.has_leader() {
            return Err(KeyspaceError::Timeout);
        }
        let _applying = lock(&self.applying);
        let mut applied = self.mvcc.applied();
        applied.position.index = applied.position.index.next();
        let results = self.mvcc.apply(&[ApplyItem::unstamped(command)], applied);
        let result = results
            .expect("memory writes")
            .remove(0)
            .expect("a command has a result");
        Ok((header(result.revision), result.result?))
    }

    fn header(&self) -> Header {
        header(self.mvcc.current_revision())
    }

    async fn status(&self) -> Result<(Header, Status), KeyspaceError> {
        let status = Status {
            db_size: 4096,
            db_size_in_use: 1024,
            db_size_quota: 8192,
            leader: if self.has_leader() { 0xa } else { 0 },
            raft_index: 7,
            raft_term: 3,
            raft_applied_index: 6,
            errors: vec![],
            is_learner: false,
        };
        Ok((self.header(), status))
    }

    async fn members(&self, consistency: Consistency) -> Result<(Header, Vec<MemberEntry>), KeyspaceError> {
        self.lead(consistency)?;
        let member = MemberEntry {
            id: 0xa,
            name: "orders-0".to_owned(),
            peer_urls: vec!["http://orders-0.orders-peers:2380".to_owned()],
            client_urls: vec!["http://orders-0.orders-peers:2379".to_owned()],
            is_learner: false,
        };
        Ok((self.header(), vec![member]))
    }

    async fn move_leader(&self, target: u64) -> Result<Header, KeyspaceError> {
        match target {
            0xa => Ok(self.header()),
            _ => Err(KeyspaceError::BadTransferee),
        }
    }

    fn serving(&self) -> bool {
        self.has_leader()
    }

    fn has_leader(&self) -> bool {
        self.led.load(Ordering::SeqCst)
    }

    fn alarms(&self) -> Vec<Alarm> {
        lock(&self.alarms).clone()
    }
}

/// A server that ends with the test.
pub(crate) struct Running {
    pub(crate) keyspace: Arc<Local>,
    pub(crate) health: HealthSwitch,
    pub(crate) address: SocketAddr,
    pub(crate) channel: Channel,
    server: tokio::task::JoinHandle<()>,
    _open: DoorKeeper,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.server.abort();
    }
}

pub(crate) async fn start() -> Running {
    start_with(Local::new(), Arc::new(())).await
}

pub(crate) async fn start_with(keyspace: Local, observer: Arc<dyn Observer>) -> Running {
    let keyspace = Arc::new(keyspace);
    let (server, health) = althing_api::server(Arc::<Local>::clone(&keyspace), Limits::default(), observer).await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("loopback has ports");
    let address = listener.local_addr().expect("bound");
    let connections = futures::stream::unfold(listener, |listener| async {
        let (socket, _) = listener.accept().await.ok()?;
        socket.set_nodelay(true).ok()?;
        Some((socket, listener))
    });
    let (door, open) = Door::to(server);
    let connections = connections.map(move |socket| (socket, door.clone()));
    let server = tokio::spawn(althing_api::serve(connections, std::future::pending()));
    let channel = Endpoint::from_shared(format!("http://{address}"))
        .expect("an address")
        .connect()
        .await
        .expect("the server listens");
    Running {
        keyspace,
        health,
        address,
        channel,
        server,
        _open: open,
    }
}
