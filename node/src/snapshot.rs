//! Snapshots between members: each over a connection of its own, so that heartbeats never wait behind one. A transfer whose
//! connection breaks is carried on over the next one, from where the receiver's import stands.

use crate::clock::Clock;
use crate::identity::draw;
use crate::peers::{Peers, connect};
use crate::shared::Shared;
use crate::threads::apply::{ApplyJob, SnapshotJob};
use crate::threads::host::Job;
use crate::wire::{WireError, read_frame, write_frame};
use althing_raft::ids::{GroupId, Index, MemberId, Term};
use althing_shard::Event;
use althing_shard::frame::{Frame, Purpose, SnapshotHead};
use althing_store::SledStore;
use althing_store::snapshot::{Export, Progress};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};

/// Snapshots on their way out at one time: each reads the whole store.
const SENDS_MAX: usize = 2;
/// Longest silence within a transfer.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a broken transfer can be carried on. Its export keeps old revisions from being deleted, so this is short; a receiver
/// that restarted has lost its import and begins anew in any case.
const RESUME_WINDOW: Duration = Duration::from_secs(30);
/// Broken transfers that are kept: as many as run at a time.
const PARKED_MAX: usize = SENDS_MAX;

/// Sends snapshots.
pub struct Outgoing {
    shared: Arc<Shared>,
    peers: Arc<Peers>,
    runtime: Handle,
    places: Arc<Semaphore>,
    parked: Arc<Parked>,
}

/// One export on its way to one peer, over one connection after another.
struct Transfer {
    number: u64,
    export: Export<SledStore>,
}

/// Transfers whose connections broke.
#[derive(Default)]
struct Parked(Mutex<BTreeMap<(GroupId, MemberId), (Instant, Transfer)>>);

impl Parked {
    fn all(&self) -> std::sync::MutexGuard<'_, BTreeMap<(GroupId, MemberId), (Instant, Transfer)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps it for a while; drops it if too many are kept already.
    fn keep(self: &Arc<Self>, key: (GroupId, MemberId), transfer: Transfer, clock: Clock) {
        let since = clock.instant();
        {
            let mut all = self.all();
            if all.len() >= PARKED_MAX {
                return;
            }
            all.insert(key, (since, transfer));
        }
        let this = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(RESUME_WINDOW).await;
            let mut all = this.all();
            if all.get(&key).is_some_and(|(parked, _)| *parked == since) {
                all.remove(&key);
            }
        });
    }

    fn take(&self, key: (GroupId, MemberId)) -> Option<Transfer> {
        self.all().remove(&key).map(|(_, transfer)| transfer)
    }
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
            parked: Arc::default(),
        }
    }

    /// Streams the group's state to a peer and tells the host how it went. The core asks for one at a time per peer.
    pub fn send(&self, group: GroupId, to: MemberId, term: Term) {
        let (shared, places, parked) = (
            Arc::clone(&self.shared),
            Arc::clone(&self.places),
            Arc::clone(&self.parked),
        );
        let address = self.peers.address(to);
        self.runtime.spawn(async move {
            let _place = places
                .acquire()
                .await
                .expect("invariant: the semaphore is never closed");
            let covered = match address {
                None => Err(WireError::Refused("no address is known".to_owned())),
                Some(address) => deliver(&shared, &parked, group, to, term, &address).await,
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

/// Carries a broken transfer on, or begins one.
async fn deliver(
    shared: &Shared,
    parked: &Arc<Parked>,
    group: GroupId,
    to: MemberId,
    term: Term,
    address: &str,
) -> Result<Index, WireError> {
    let store = shared.groups.get(group).ok_or(WireError::Unexpected("no such group"))?;
    let mut socket = connect(shared, to, address, Purpose::Snapshot).await?;
    let mut transfer = match parked.take((group, to)) {
        Some(transfer) => transfer,
        None => Transfer {
            number: draw().map_err(|error| WireError::Refused(error.to_string()))?,
            export: tokio::task::block_in_place(|| store.export())
                .map_err(|error| WireError::Refused(error.to_string()))?,
        },
    };
    let sent = stream(&mut socket, &mut transfer, group, term).await;
    match &sent {
        // There is nothing to carry on, or it would end the same way.
        Ok(_) | Err(WireError::Refused(_) | WireError::Unexpected(_) | WireError::Frame(_)) => {}
        Err(WireError::Io(_) | WireError::Timeout) => parked.keep((group, to), transfer, shared.clock),
    }
    sent
}

async fn stream(
    socket: &mut TcpStream,
    transfer: &mut Transfer,
    group: GroupId,
    term: Term,
) -> Result<Index, WireError> {
    let export = &mut transfer.export;
    let meta = export.meta().clone();
    let covered = meta.position.index;
    let head = SnapshotHead {
        group,
        term,
        meta,
        transfer: transfer.number,
    };
    write_frame(socket, &Frame::SnapshotHead(head)).await?;
    let from = Progress::decode(answer(socket, Answer::From).await?)
        .map_err(|error| WireError::Refused(format!("the receiver's import: {error}")))?;
    if from.chunks() > 0 {
        tracing::info!(%group, chunk = from.chunks(), "carrying a snapshot on that broke off");
    }
    export.resume(from);
    loop {
        // Reads the disk; bounded by the size of a chunk.
        let chunk = tokio::task::block_in_place(|| export.next_chunk());
        match chunk.map_err(|error| WireError::Refused(error.to_string()))? {
            Some(chunk) => timely(write_frame(socket, &Frame::SnapshotChunk(chunk))).await?,
            None => break,
        };
    }
    write_frame(socket, &Frame::SnapshotEnd).await?;
    answer(socket, Answer::Taken).await?;
    Ok(covered)
}

/// What the sender waits for.
#[derive(PartialEq, Eq)]
enum Answer {
    From,
    Taken,
}

/// What the receiver says, which at any time may be no.
async fn answer(socket: &mut TcpStream, expected: Answer) -> Result<Bytes, WireError> {
    match timely(read_frame(socket)).await?.0 {
        Frame::SnapshotFrom(progress) if expected == Answer::From => Ok(progress),
        Frame::SnapshotReply(reason) if reason.is_empty() && expected == Answer::Taken => Ok(Bytes::new()),
        Frame::SnapshotReply(reason) => Err(WireError::Refused(reason)),
        Frame::Hello(_)
        | Frame::HelloReply(_)
        | Frame::Messages(_)
        | Frame::SnapshotHead(_)
        | Frame::SnapshotFrom(_)
        | Frame::SnapshotChunk(_)
        | Frame::SnapshotEnd
        | Frame::Call(_)
        | Frame::Answer(_)
        | Frame::NoAnswer { .. } => Err(WireError::Unexpected("no answer to a snapshot")),
    }
}

/// Takes in a snapshot, aside from the state, and offers it to the host.
///
/// # Errors
/// If the connection breaks or the snapshot is refused; the state has not changed then.
pub async fn receive(mut socket: TcpStream, shared: &Arc<Shared>, from: MemberId) -> Result<(), WireError> {
    let (Frame::SnapshotHead(head), _) = timely(read_frame(&mut socket)).await? else {
        return Err(WireError::Unexpected("a snapshot starts with its head"));
    };
    let SnapshotHead {
        group,
        term,
        meta,
        transfer,
    } = head;
    let taken = take(&mut socket, shared, group, (from, transfer)).await;
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
    transfer: (MemberId, u64),
) -> Result<althing_raft::entry::SnapshotMeta, WireError> {
    if shared.groups.get(group).is_none() {
        return Err(WireError::Refused(format!("no shard {group} here")));
    }
    let (import, progress) = ask(shared, |reply| SnapshotJob::ImportBegin { group, transfer, reply }).await?;
    write_frame(socket, &Frame::SnapshotFrom(progress.encode())).await?;
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
            | Frame::SnapshotFrom(_)
            | Frame::SnapshotReply(_)
            | Frame::Call(_)
            | Frame::Answer(_)
            | Frame::NoAnswer { .. } => {
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
