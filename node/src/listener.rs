//! Incoming connections of peers: handshake, then messages or a snapshot.

use crate::calls::{self, Calls};
use crate::metrics::Peer;
use crate::node::{Joiner, NodeError};
use crate::peers::HANDSHAKE_TIMEOUT;
use crate::shared::Shared;
use crate::snapshot;
use crate::threads::host::Job;
use crate::wire::{READ_BUFFER_BYTES, WireError, read_frame, read_hello, write_frame};
use althing_raft::ids::{GroupId, Index, MemberId};
use althing_raft::io::Role;
use althing_shard::Event;
use althing_shard::frame::{Frame, Hello, HelloReply, PROTOCOL_VERSION, Purpose};
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

/// Connections of peers at one time: three per member of a large cluster, and room for reconnects that overlap.
const CONNECTIONS_MAX: usize = 256;
/// Frames that wait for the host. A follower behind takes its time, and what does not fit is repeated.
const FRAMES_MAX: usize = 8_192;
/// How often a connection asks whether its peer is still a member.
pub(crate) const MEMBERSHIP_CHECK: Duration = Duration::from_secs(1);
/// Wait after a failed accept (out of file descriptors), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Lets an empty node into the cluster that calls it.
#[async_trait]
pub(crate) trait Adopt: Send + Sync + 'static {
    /// Says which cluster the node is in then.
    async fn adopt(&self, cluster: u64) -> Result<u64, NodeError>;
}

#[async_trait]
impl Adopt for Joiner {
    async fn adopt(&self, cluster: u64) -> Result<u64, NodeError> {
        Self::adopt(self, cluster).await
    }
}

/// Accepts until the task is aborted. Messages and calls are read by tasks of `net`, where the host is.
pub(crate) async fn run(
    listener: TcpListener,
    shared: Arc<Shared>,
    joiner: Arc<impl Adopt>,
    calls: Arc<Calls>,
    net: Handle,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places)
            .acquire_owned()
            .await
            .expect("invariant: the semaphore is never closed");
        match listener.accept().await {
            Ok((socket, from)) => {
                let (shared, joiner) = (Arc::clone(&shared), Arc::clone(&joiner));
                let (calls, net) = (Arc::clone(&calls), net.clone());
                tokio::spawn(async move {
                    if let Err(error) = serve(socket, &shared, &*joiner, &calls, &net).await {
                        tracing::debug!(%from, %error, "a peer's connection ended");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a peer");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(
    mut socket: TcpStream,
    shared: &Arc<Shared>,
    joiner: &impl Adopt,
    calls: &Arc<Calls>,
    net: &Handle,
) -> Result<(), WireError> {
    socket.set_nodelay(true)?;
    let first = tokio::time::timeout(HANDSHAKE_TIMEOUT, read_hello(&mut socket))
        .await
        .map_err(|_| WireError::Timeout)?;
    let Frame::Hello(hello) = first? else {
        return Err(WireError::Unexpected("a connection starts with a hello"));
    };
    let reply = judge(&hello, shared, joiner).await;
    write_frame(&mut socket, &Frame::HelloReply(reply.clone())).await?;
    if reply != HelloReply::Accepted {
        return Err(WireError::Refused(format!(
            "{} from {}: {reply:?}",
            hello.address, hello.from
        )));
    }
    let from = hello.from;
    shared.host.push(Job::Event(Event::PeerSeen {
        member: from,
        address: hello.address,
    }));
    match hello.purpose {
        Purpose::Messages => {
            let (socket, shared) = (socket.into_std()?, Arc::clone(shared));
            let stream = net.spawn(async move { messages(TcpStream::from_std(socket)?, &shared, from).await });
            // It ends early with its runtime.
            stream.await.unwrap_or(Ok(()))
        }
        Purpose::Calls => {
            let (socket, shared, calls) = (socket.into_std()?, Arc::clone(shared), Arc::clone(calls));
            let serving =
                net.spawn(async move { calls::serve(TcpStream::from_std(socket)?, &shared, &calls, from).await });
            // It ends early with its runtime.
            serving.await.unwrap_or(Ok(()))
        }
        Purpose::Snapshot => snapshot::receive(socket, shared, from).await,
    }
}

async fn judge(hello: &Hello, shared: &Shared, joiner: &impl Adopt) -> HelloReply {
    if hello.version != PROTOCOL_VERSION {
        return HelloReply::Version {
            newest: PROTOCOL_VERSION,
        };
    }
    if hello.to != shared.me {
        return HelloReply::WrongMember { member: shared.me };
    }
    let cluster = match shared.cluster() {
        Some(cluster) => cluster,
        // Who knows an id that was drawn at random has it from the operator: this is the cluster that wants this member.
        None if hello.cluster != 0 => match joiner.adopt(hello.cluster).await {
            Ok(cluster) => cluster,
            Err(error) => {
                tracing::error!(%error, "cannot join the cluster that calls");
                0
            }
        },
        None => 0,
    };
    if cluster != hello.cluster {
        HelloReply::OtherCluster { cluster }
    } else if gone(shared, hello.from) {
        HelloReply::Removed
    } else {
        HelloReply::Accepted
    }
}

/// Whether this member leads and the other is in no configuration: then it was removed, and nobody else will tell it.
pub(crate) fn gone(shared: &Shared, peer: MemberId) -> bool {
    shared
        .soft(GroupId::META)
        .is_some_and(|soft| soft.role == Role::Leader && soft.config.index > Index::ZERO && !soft.config.contains(peer))
}

async fn messages(socket: TcpStream, shared: &Shared, from: MemberId) -> Result<(), WireError> {
    let received = shared
        .metrics
        .peer_received
        .get_or_create_owned(&Peer { peer: from.to_string() });
    let (reader, mut writer) = socket.into_split();
    let mut reader = tokio::io::BufReader::with_capacity(READ_BUFFER_BYTES, reader);
    let mut check = tokio::time::interval(MEMBERSHIP_CHECK);
    loop {
        let read = read_frame(&mut reader);
        tokio::pin!(read);
        let (frame, bytes) = loop {
            tokio::select! {
                frame = &mut read => break frame?,
                _ = check.tick() => {
                    if gone(shared, from) {
                        write_frame(&mut writer, &Frame::HelloReply(HelloReply::Removed)).await?;
                        return Ok(());
                    }
                }
            }
        };
        received.inc_by(bytes as u64);
        let Frame::Messages(messages) = frame else {
            return Err(WireError::Unexpected("a stream carries messages"));
        };
        if messages.iter().any(|message| message.from != from) {
            return Err(WireError::Unexpected("a message of another member"));
        }
        // Full: drop it, as a network would.
        let _ = shared.host.try_push(Job::Event(Event::Messages(messages)), FRAMES_MAX);
    }
}
