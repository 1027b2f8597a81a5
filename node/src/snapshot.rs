//! Snapshots between members: each over a connection of its own, so that heartbeats never wait behind one.

use crate::peers::{Peers, connect};
use crate::shared::Shared;
use crate::threads::apply::{ApplyJob, SnapshotJob};
use crate::threads::host::Job;
use crate::wire::{WireError, read_frame, write_frame};
use althing_raft::ids::{GroupId, Index, MemberId, Term};
use althing_shard::Event;
use althing_shard::frame::{Frame, Purpose, SnapshotHead};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};

/// Snapshots on their way out at one time: each reads the whole store.
const SENDS_MAX: usize = 2;
/// Longest silence within a transfer.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);

/// Sends snapshots.
pub struct Outgoing {
    shared: Arc<Shared>,
    peers: Arc<Peers>,
    runtime: Handle,
    places: Arc<Semaphore>,
}

impl Outgoing {
    /// None under way.
    #[must_use]
    pub fn new(shared: Arc<Shared>, peers: Arc<Peers>, runtime: Handle) -> Self {
        Self {
            shared,
            peers,
            runtime,
            places: Arc::new(Semaphore::new(SENDS_MAX)),
        }
    }

    /// Streams the group's state to a peer and tells the host how it went. The core asks for one at a time per peer.
    pub fn send(&self, group: GroupId, to: MemberId, term: Term) {
        let (shared, places) = (Arc::clone(&self.shared), Arc::clone(&self.places));
        let address = self.peers.address(to);
        self.runtime.spawn(async move {
            let _place = places
                .acquire()
                .await
                .expect("invariant: the semaphore is never closed");
            let covered = match address {
                None => Err(WireError::Refused("no address is known".to_owned())),
                Some(address) => stream(&shared, group, to, term, &address).await,
            };
            let covered = match covered {
                Ok(covered) => {
                    tracing::info!(%group, %to, index = %covered, "sent a snapshot");
                    Some(covered)
                }
                Err(error) => {
                    tracing::warn!(%group, %to, %error, "cannot send a snapshot; the leader will try again");
                    None
                }
            };
            shared.host.push(Job::Event(Event::SnapshotSent { group, to, covered }));
        });
    }
}

async fn timely<T>(work: impl Future<Output = Result<T, WireError>>) -> Result<T, WireError> {
    tokio::time::timeout(CHUNK_TIMEOUT, work)
        .await
        .map_err(|_| WireError::Timeout)?
}

async fn stream(shared: &Shared, group: GroupId, to: MemberId, term: Term, address: &str) -> Result<Index, WireError> {
    let store = shared.groups.get(group).ok_or(WireError::Unexpected("no such group"))?;
    let mut socket = connect(shared, to, address, Purpose::Snapshot).await?;
    let mut export = store.export();
    let meta = export.meta().clone();
    let covered = meta.position.index;
    write_frame(&mut socket, &Frame::SnapshotHead(SnapshotHead { group, term, meta })).await?;
    loop {
        // Reads the disk; bounded by the size of a chunk.
        let chunk = tokio::task::block_in_place(|| export.next_chunk());
        match chunk.map_err(|error| WireError::Refused(error.to_string()))? {
            Some(chunk) => timely(write_frame(&mut socket, &Frame::SnapshotChunk(chunk))).await?,
            None => break,
        };
    }
    drop(export);
    write_frame(&mut socket, &Frame::SnapshotEnd).await?;
    match timely(read_frame(&mut socket)).await?.0 {
        Frame::SnapshotReply(reason) if reason.is_empty() => Ok(covered),
        Frame::SnapshotReply(reason) => Err(WireError::Refused(reason)),
        Frame::Hello(_)
        | Frame::HelloReply(_)
        | Frame::Messages(_)
        | Frame::SnapshotHead(_)
        | Frame::SnapshotChunk(_)
        | Frame::SnapshotEnd => Err(WireError::Unexpected("no answer to a snapshot")),
    }
}

/// Takes in a snapshot, aside from the state, and offers it to the host.
///
/// # Errors
/// If the connection breaks or the snapshot is refused; nothing has changed then.
pub async fn receive(mut socket: TcpStream, shared: &Arc<Shared>, from: MemberId) -> Result<(), WireError> {
    let (Frame::SnapshotHead(head), _) = timely(read_frame(&mut socket)).await? else {
        return Err(WireError::Unexpected("a snapshot starts with its head"));
    };
    let SnapshotHead { group, term, meta } = head;
    let taken = take(&mut socket, shared, group).await;
    let reason = match taken {
        Ok(received) if received == meta => {
            shared.host.push(Job::Event(Event::SnapshotReceived {
                group,
                from,
                term,
                meta,
            }));
            String::new()
        }
        Ok(_) => "the snapshot is not what its head says".to_owned(),
        Err(WireError::Refused(reason)) => reason,
        Err(error) => return Err(error),
    };
    write_frame(&mut socket, &Frame::SnapshotReply(reason)).await?;
    Ok(())
}

async fn take(
    socket: &mut TcpStream,
    shared: &Shared,
    group: GroupId,
) -> Result<althing_raft::entry::SnapshotMeta, WireError> {
    if shared.groups.get(group).is_none() {
        return Err(WireError::Refused(format!("no shard {group} here")));
    }
    let import = ask(shared, |reply| SnapshotJob::ImportBegin { group, reply }).await?;
    loop {
        match timely(read_frame(socket)).await?.0 {
            Frame::SnapshotChunk(chunk) => {
                // One at a time: the disk sets the pace.
                let chunk: Bytes = chunk;
                ask(shared, |reply| SnapshotJob::ImportChunk {
                    group,
                    import,
                    chunk,
                    reply,
                })
                .await?;
            }
            Frame::SnapshotEnd => return ask(shared, |reply| SnapshotJob::ImportEnd { group, import, reply }).await,
            Frame::Hello(_)
            | Frame::HelloReply(_)
            | Frame::Messages(_)
            | Frame::SnapshotHead(_)
            | Frame::SnapshotReply(_) => {
                return Err(WireError::Unexpected("a snapshot has chunks and an end"));
            }
        }
    }
}

async fn ask<T>(
    shared: &Shared,
    job: impl FnOnce(oneshot::Sender<Result<T, String>>) -> SnapshotJob,
) -> Result<T, WireError> {
    let (reply, answer) = oneshot::channel();
    shared.apply.push(ApplyJob::Snapshot(job(reply)));
    match answer.await {
        Ok(result) => result.map_err(WireError::Refused),
        Err(_) => Err(WireError::Refused("the node is going down".to_owned())),
    }
}
