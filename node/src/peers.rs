//! Outgoing streams: one per peer, messages only. What cannot be sent is dropped; Raft repeats what matters.

use crate::lane::{Lane, Parcels};
use crate::metrics::Peer;
use crate::shared::Shared;
use crate::threads::host::Job;
use crate::wire::{WireError, read_frame, write_frame};
use althing_raft::ids::MemberId;
use althing_raft::message::Message;
use althing_shard::Event;
use althing_shard::book::Address;
use althing_shard::frame::{Frame, Hello, HelloReply, PROTOCOL_VERSION, Purpose};
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// Time for resolving and connecting: within a site it takes milliseconds; an address that swallows packets must not hold up the next.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for the handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// First wait after a failed connection, doubled up to the largest: a restarted peer should be found within an election timeout.
pub(crate) const BACKOFF_MIN: Duration = Duration::from_millis(50);
pub(crate) const BACKOFF_MAX: Duration = Duration::from_secs(1);

struct Link {
    address: Address,
    lane: Arc<Lane>,
    task: JoinHandle<()>,
}

/// All outgoing streams of a node.
pub struct Peers {
    shared: Arc<Shared>,
    runtime: Handle,
    links: Mutex<BTreeMap<MemberId, Link>>,
}

impl Peers {
    /// None yet.
    #[must_use]
    pub fn new(shared: Arc<Shared>, runtime: Handle) -> Self {
        Self {
            shared,
            runtime,
            links: Mutex::default(),
        }
    }

    /// Connects to these and to nobody else.
    pub fn update(&self, book: BTreeMap<MemberId, Address>) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|peer, link| {
            let keep = book.get(peer) == Some(&link.address);
            if !keep {
                link.task.abort();
                self.shared.metrics.peer_connected.get_or_create(&label(*peer)).set(0);
            }
            if !book.contains_key(peer) {
                self.shared.metrics.forget_peer(&peer.to_string());
            }
            keep
        });
        for (peer, address) in book {
            links.entry(peer).or_insert_with(|| {
                let (lane, parcels) = Lane::new(peer, &self.shared.metrics);
                let stream = run(
                    Arc::clone(&self.shared),
                    peer,
                    address.clone(),
                    Arc::clone(&lane),
                    parcels,
                );
                let task = self.runtime.spawn(stream);
                Link { address, lane, task }
            });
        }
    }

    /// Sends a turn's messages to a peer, or queues what its socket does not take.
    pub fn send(&self, to: MemberId, messages: Vec<Message>) {
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        // Without an address there is nothing to do but to wait for one.
        if let Some(link) = links.get(&to)
            && link.lane.send(messages).is_err()
        {
            self.shared.host.push(Job::Event(Event::Unreachable(to)));
        }
    }

    /// Where a peer lives.
    #[must_use]
    pub fn address(&self, peer: MemberId) -> Option<Address> {
        self.links
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&peer)
            .map(|link| link.address.clone())
    }

    /// Ends all streams.
    pub fn close(&self) {
        self.update(BTreeMap::new());
    }
}

fn label(peer: MemberId) -> Peer {
    Peer { peer: peer.to_string() }
}

/// Connects and says hello.
///
/// # Errors
/// If the address does not answer in time, or the member there refuses.
pub async fn connect(shared: &Shared, peer: MemberId, address: &str, purpose: Purpose) -> Result<TcpStream, WireError> {
    let attempt = async {
        // Resolved at each connect: a pod comes back under the same name with another address.
        let mut last = WireError::Refused(format!("{address} resolves to no address"));
        for addr in tokio::net::lookup_host(address).await? {
            match TcpStream::connect(addr).await {
                Ok(socket) => return Ok(socket),
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    };
    let mut socket = tokio::time::timeout(CONNECT_TIMEOUT, attempt)
        .await
        .map_err(|_| WireError::Timeout)??;
    socket.set_nodelay(true)?;
    let hello = Frame::Hello(Hello {
        version: PROTOCOL_VERSION,
        cluster: shared.cluster().unwrap_or_default(),
        from: shared.me,
        to: peer,
        address: shared.info.peer_address.clone(),
        purpose,
    });
    let handshake = async {
        write_frame(&mut socket, &hello).await?;
        read_frame(&mut socket).await
    };
    let (reply, _) = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)
        .await
        .map_err(|_| WireError::Timeout)??;
    match reply {
        Frame::HelloReply(reply) => match refusal(&reply) {
            None => Ok(socket),
            Some(reason) => {
                note_removed(shared, &reply);
                Err(WireError::Refused(reason))
            }
        },
        Frame::Hello(_)
        | Frame::Messages(_)
        | Frame::SnapshotHead(_)
        | Frame::SnapshotFrom(_)
        | Frame::SnapshotChunk(_)
        | Frame::SnapshotEnd
        | Frame::SnapshotReply(_)
        | Frame::Call(_)
        | Frame::Answer(_)
        | Frame::NoAnswer { .. } => Err(WireError::Unexpected("no answer to the hello")),
    }
}

fn refusal(reply: &HelloReply) -> Option<String> {
    match reply {
        HelloReply::Accepted => None,
        HelloReply::OtherCluster { cluster } => Some(format!("the peer belongs to cluster {cluster:016x}")),
        HelloReply::WrongMember { member } => Some(format!("member {member} lives there now; was the volume wiped?")),
        HelloReply::Version { newest } => Some(format!(
            "the peer speaks protocol version {newest} and this build {PROTOCOL_VERSION}"
        )),
        HelloReply::Removed => Some("the leader says that this member was removed from the cluster".to_owned()),
    }
}

/// The other side said goodbye.
pub(crate) fn parted(shared: &Shared, reply: &HelloReply) -> WireError {
    note_removed(shared, reply);
    WireError::Refused(refusal(reply).unwrap_or_default())
}

fn note_removed(shared: &Shared, reply: &HelloReply) {
    if *reply == HelloReply::Removed && !shared.removed.swap(true, Ordering::AcqRel) {
        tracing::warn!("this member was removed from its cluster; it serves nothing any more");
    }
}

async fn run(shared: Arc<Shared>, peer: MemberId, address: Address, lane: Arc<Lane>, mut parcels: Parcels) {
    let mut backoff = BACKOFF_MIN;
    let mut told = false;
    loop {
        match connect(&shared, peer, &address, Purpose::Messages).await {
            Ok(socket) => {
                tracing::info!(%peer, address, "connected");
                (backoff, told) = (BACKOFF_MIN, false);
                let gauge = shared.metrics.peer_connected.get_or_create_owned(&label(peer));
                gauge.set(1);
                let ended = stream(&shared, socket, &lane, &mut parcels).await;
                lane.close();
                gauge.set(0);
                tracing::info!(%peer, address, error = %ended, "disconnected");
            }
            Err(error) if !told => {
                told = true;
                tracing::warn!(%peer, address, %error, "cannot connect; trying on");
            }
            Err(_) => {}
        }
        shared.host.push(Job::Event(Event::Unreachable(peer)));
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

/// Sends until the connection breaks; says how it did.
async fn stream(shared: &Shared, socket: TcpStream, lane: &Lane, parcels: &mut Parcels) -> WireError {
    let (mut reader, writer) = socket.into_split();
    let writer = Arc::new(writer);
    lane.open(Arc::clone(&writer), parcels);
    let mut said = pin!(read_frame(&mut reader));
    loop {
        tokio::select! {
            delivered = lane.deliver(&writer, parcels) => {
                if let Err(error) = delivered {
                    return error.into();
                }
            }
            // The receiver speaks only to say goodbye; reading also notices a closed connection.
            said = &mut said => {
                return match said {
                    Err(error) => error,
                    Ok((Frame::HelloReply(reply), _)) => parted(shared, &reply),
                    Ok((
                        Frame::Hello(_)
                        | Frame::Messages(_)
                        | Frame::SnapshotHead(_)
                        | Frame::SnapshotFrom(_)
                        | Frame::SnapshotChunk(_)
                        | Frame::SnapshotEnd
                        | Frame::SnapshotReply(_)
                        | Frame::Call(_)
                        | Frame::Answer(_)
                        | Frame::NoAnswer { .. },
                        _,
                    )) => WireError::Unexpected("the receiver of a stream sends nothing"),
                };
            }
        }
    }
}
