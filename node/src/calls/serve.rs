//! The connection of one peer, from the side that answers.

use super::parcels::{Gathering, Parcel, Says, write};
use super::{ANSWER_BYTES_MAX, CALL_BYTES_MAX, CALLS_MAX, Calls};
use crate::inbox::Inbox;
use crate::listener::{MEMBERSHIP_CHECK, gone};
use crate::metrics::Peer;
use crate::shared::Shared;
use crate::wire::{READ_BUFFER_BYTES, WireError, read_frame};
use althing_raft::ids::MemberId;
use althing_shard::frame::Frame;
use bytes::Bytes;
use std::sync::Arc;
use tokio::io::{AsyncRead, BufReader};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

/// An answer's share of what may be under way: a call, and bytes.
type Share = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// Answers a peer's calls until its connection ends. Each call is a task of its own on this thread.
pub(crate) async fn serve(
    mut socket: TcpStream,
    shared: &Shared,
    calls: &Calls,
    from: MemberId,
) -> Result<(), WireError> {
    let sent = shared
        .metrics
        .peer_sent
        .get_or_create_owned(&Peer { peer: from.to_string() });
    let (reader, mut writer) = socket.split();
    let answers = Arc::new(Inbox::default());
    tokio::select! {
        ended = take(shared, calls, from, reader, &answers) => ended,
        ended = write(&mut writer, Says::Answers, Vec::new(), &answers, |_| true, &sent) => ended,
    }
}

async fn take(
    shared: &Shared,
    calls: &Calls,
    from: MemberId,
    reader: impl AsyncRead + Unpin,
    answers: &Arc<Inbox<Parcel<Share>>>,
) -> Result<(), WireError> {
    let received = shared
        .metrics
        .peer_received
        .get_or_create_owned(&Peer { peer: from.to_string() });
    let mut reader = BufReader::with_capacity(READ_BUFFER_BYTES, reader);
    let mut gathering = Gathering::new(CALL_BYTES_MAX);
    let places = Arc::new(Semaphore::new(CALLS_MAX));
    let room = Arc::new(Semaphore::new(ANSWER_BYTES_MAX));
    let mut check = tokio::time::interval(MEMBERSHIP_CHECK);
    // Ends with the connection.
    let mut tasks = JoinSet::new();
    loop {
        let next = read_frame(&mut reader);
        tokio::pin!(next);
        let (frame, bytes) = loop {
            tokio::select! {
                frame = &mut next => break frame?,
                _ = check.tick() => {
                    // It hears why when it comes back.
                    if gone(shared, from) {
                        return Ok(());
                    }
                }
            }
        };
        received.inc_by(bytes as u64);
        let Frame::Call(piece) = frame else {
            return Err(WireError::Unexpected("a connection for calls carries calls"));
        };
        let id = piece.id;
        let Some(body) = gathering.add(piece)? else {
            continue;
        };
        let place = acquire(&places, 1).await;
        let (answers, room) = (Arc::clone(answers), Arc::clone(&room));
        let answerer = calls.answerer();
        let answered = shared.metrics.calls_answered.clone();
        tasks.spawn(async move {
            let answer = match answerer {
                Some(answerer) => fitting(answerer.answer(from, body).await),
                None => Err("the node is starting, or going down".to_owned()),
            };
            let bytes = answer.as_ref().map_or(0, Bytes::len);
            let share = (place, acquire(&room, bytes).await);
            answered.inc();
            answers.push(Parcel {
                id,
                body: answer,
                with: share,
            });
        });
        while let Some(ended) = tasks.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(%from, %error, "a call's task ended early");
                return Err(WireError::Unexpected("a call that cannot be answered"));
            }
        }
    }
}

async fn acquire(semaphore: &Arc<Semaphore>, permits: usize) -> OwnedSemaphorePermit {
    let permits = u32::try_from(permits).expect("invariant: answers are under their limit");
    Arc::clone(semaphore)
        .acquire_many_owned(permits)
        .await
        .expect("invariant: the semaphore is never closed")
}

fn fitting(answer: Bytes) -> Result<Bytes, String> {
    if answer.len() > ANSWER_BYTES_MAX {
        Err(format!(
            "the answer has {} bytes, more than {ANSWER_BYTES_MAX}; ask for less at a time",
            answer.len()
        ))
    } else {
        Ok(answer)
    }
}
