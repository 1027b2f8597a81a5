//! The connection to one peer, from the caller's side.

use super::parcels::{Gathering, Parcel, Says, write};
use super::{ANSWER_BYTES_MAX, CALL_BYTES_MAX, CALLS_MAX, CallError};
use crate::inbox::Inbox;
use crate::metrics::Peer;
use crate::peers::{BACKOFF_MAX, BACKOFF_MIN, Peers, connect, parted};
use crate::shared::Shared;
use crate::wire::{READ_BUFFER_BYTES, WireError, read_frame};
use althing_raft::ids::MemberId;
use althing_shard::frame::{Frame, Purpose};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

type Reply = oneshot::Sender<Result<Bytes, CallError>>;

/// A call on its way to the connection.
struct Sending {
    /// Moves to [`Awaited`] when the first byte is written.
    reply: Option<Reply>,
    /// Held until the last byte is written.
    _place: Arc<Place>,
}

type Queue = Inbox<Parcel<Sending>>;

/// Who calls one peer, and what is under way to it.
pub(super) struct Link {
    peer: MemberId,
    queue: Arc<Queue>,
    load: Arc<Load>,
    task: AbortHandle,
}

/// What is under way to one peer.
#[derive(Default)]
struct Load {
    calls: AtomicUsize,
    bytes: AtomicUsize,
}

/// One call's share of it, held by its caller and by its bytes.
struct Place {
    load: Arc<Load>,
    bytes: usize,
}

impl Place {
    fn take(load: &Arc<Load>, bytes: usize) -> Option<Arc<Self>> {
        let calls = load.calls.fetch_add(1, Ordering::Relaxed);
        let waiting = load.bytes.fetch_add(bytes, Ordering::Relaxed);
        let place = Self {
            load: Arc::clone(load),
            bytes,
        };
        (calls < CALLS_MAX && waiting + bytes <= CALL_BYTES_MAX).then(|| Arc::new(place))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.load.calls.fetch_sub(1, Ordering::Relaxed);
        self.load.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Link {
    /// Not connected before the first call. A connection that says nothing for `silence` although an answer is awaited counts as
    /// broken.
    pub(super) fn open(
        shared: Arc<Shared>,
        peers: Arc<Peers>,
        runtime: &Handle,
        peer: MemberId,
        silence: Duration,
    ) -> Self {
        let queue = Arc::new(Queue::default());
        let task = runtime
            .spawn(run(shared, peers, peer, Arc::clone(&queue), silence))
            .abort_handle();
        Self {
            peer,
            queue,
            load: Arc::default(),
            task,
        }
    }

    /// One call, for as long as its caller waits.
    pub(super) async fn call(&self, body: Bytes) -> Result<Bytes, CallError> {
        let busy = || CallError::Busy(self.peer);
        let place = Place::take(&self.load, body.len()).ok_or_else(busy)?;
        let (reply, answer) = oneshot::channel();
        let parcel = Parcel {
            id: 0,
            body: Ok(body),
            with: Sending {
                reply: Some(reply),
                _place: Arc::clone(&place),
            },
        };
        self.queue.try_push(parcel, CALLS_MAX).map_err(|_| busy())?;
        answer.await.unwrap_or(Err(CallError::Broken(self.peer)))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.queue.close();
        // What waits fails with it.
        self.task.abort();
    }
}

/// Calls that were sent, by their ids.
#[derive(Default)]
struct Awaited {
    next: u64,
    replies: BTreeMap<u64, Reply>,
}

impl Awaited {
    fn add(&mut self, reply: Reply) -> u64 {
        // Those of callers that gave up are answered some time; until then they must not pile up.
        if self.replies.len() >= 2 * CALLS_MAX {
            self.replies.retain(|_, reply| !reply.is_closed());
        }
        self.next += 1;
        self.replies.insert(self.next, reply);
        self.next
    }
}

async fn run(shared: Arc<Shared>, peers: Arc<Peers>, peer: MemberId, queue: Arc<Queue>, silence: Duration) {
    let mut backoff = BACKOFF_MIN;
    while let Some(first) = queue.next().await {
        let connected = match peers.address(peer) {
            Some(address) => connect(&shared, peer, &address, Purpose::Calls).await,
            None => Err(WireError::Refused("its address is not known any more".to_owned())),
        };
        match connected {
            Ok(mut socket) => {
                tracing::debug!(%peer, "connected for calls");
                backoff = BACKOFF_MIN;
                let (reader, writer) = socket.split();
                match converse(&shared, peer, (reader, writer), first, &queue, silence).await {
                    Ok(()) => return,
                    Err(error) => tracing::info!(%peer, %error, "the connection for calls broke"),
                }
            }
            Err(error) => {
                let reason = error.to_string();
                tracing::debug!(%peer, reason, "cannot connect for calls");
                fail(peer, first, &reason);
                // Whoever calls meanwhile shall ask another member instead of waiting.
                let pause = tokio::time::sleep(backoff);
                tokio::pin!(pause);
                loop {
                    tokio::select! {
                        () = &mut pause => break,
                        more = queue.next() => match more {
                            Some(more) => fail(peer, more, &reason),
                            None => return,
                        },
                    }
                }
                backoff = (backoff * 2).min(BACKOFF_MAX);
            }
        }
    }
}

fn fail(peer: MemberId, parcels: Vec<Parcel<Sending>>, reason: &str) {
    for reply in parcels.into_iter().filter_map(|parcel| parcel.with.reply) {
        let reason = reason.to_owned();
        // Whoever called may have given up.
        let _ = reply.send(Err(CallError::Unreachable { peer, reason }));
    }
}

/// Sends calls and takes answers until the connection breaks, which fails all calls that were sent; `Ok` once nobody calls any more.
async fn converse(
    shared: &Shared,
    peer: MemberId,
    (reader, mut writer): (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    first: Vec<Parcel<Sending>>,
    queue: &Queue,
    silence: Duration,
) -> Result<(), WireError> {
    let awaited = Mutex::new(Awaited::default());
    let sent = shared
        .metrics
        .peer_sent
        .get_or_create_owned(&Peer { peer: peer.to_string() });
    let before = |parcel: &mut Parcel<Sending>| {
        let reply = parcel.with.reply.take().filter(|reply| !reply.is_closed());
        reply.is_some_and(|reply| {
            parcel.id = lock(&awaited).add(reply);
            true
        })
    };
    // Both at once, or two nodes that wait for each other to read would wait for ever.
    tokio::select! {
        ended = write(&mut writer, Says::Calls, first, queue, before, &sent) => ended,
        ended = answers(shared, peer, reader, &awaited, silence) => ended,
    }
}

fn lock(awaited: &Mutex<Awaited>) -> MutexGuard<'_, Awaited> {
    awaited.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answers(
    shared: &Shared,
    peer: MemberId,
    reader: impl AsyncRead + Unpin,
    awaited: &Mutex<Awaited>,
    silence: Duration,
) -> Result<(), WireError> {
    let mut reader = BufReader::with_capacity(READ_BUFFER_BYTES, reader);
    let mut gathering = Gathering::new(ANSWER_BYTES_MAX);
    let mut check = tokio::time::interval(silence / 2);
    let mut quiet = 0;
    loop {
        let next = read_frame(&mut reader);
        tokio::pin!(next);
        let (frame, _) = loop {
            tokio::select! {
                frame = &mut next => break frame?,
                _ = check.tick() => {
                    quiet = if lock(awaited).replies.is_empty() { 0 } else { quiet + 1 };
                    if quiet > 2 {
                        return Err(WireError::Timeout);
                    }
                }
            }
        };
        quiet = 0;
        let (id, answer) = match frame {
            Frame::Answer(piece) => {
                let id = piece.id;
                let Some(body) = gathering.add(piece)? else {
                    continue;
                };
                (id, Ok(body))
            }
            Frame::NoAnswer { id, reason } => (id, Err(CallError::NoAnswer { peer, reason })),
            Frame::HelloReply(reply) => return Err(parted(shared, &reply)),
            Frame::Hello(_)
            | Frame::Messages(_)
            | Frame::SnapshotHead(_)
            | Frame::SnapshotFrom(_)
            | Frame::SnapshotChunk(_)
            | Frame::SnapshotEnd
            | Frame::SnapshotReply(_)
            | Frame::Call(_) => return Err(WireError::Unexpected("calls are followed by answers")),
        };
        // The caller of an unknown one gave up long ago.
        if let Some(reply) = lock(awaited).replies.remove(&id) {
            let _ = reply.send(answer);
        }
    }
}
