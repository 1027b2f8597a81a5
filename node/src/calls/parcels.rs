//! Calls and answers on their way: cut into pieces where they are long, many gathered into one write, and put together again.

use crate::inbox::Inbox;
use crate::wire::WireError;
use althing_shard::frame::{Frame, Piece};
use bytes::{Bytes, BytesMut};
use prometheus_client::metrics::counter::Counter;
use std::collections::{BTreeMap, VecDeque};
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Bytes of one piece: a few hundred microseconds of a fast network, which is how long a small call waits behind a large one.
const PIECE_BYTES: usize = 256 << 10;
/// Bytes of one write. What is gathered beyond goes into the next one.
const WRITE_BYTES: usize = 1 << 20;

/// What a side of a connection says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Says {
    /// Calls.
    Calls,
    /// Answers.
    Answers,
}

/// One body on its way out.
pub(super) struct Parcel<T> {
    /// The call.
    pub(super) id: u64,
    /// What it says, or why it says nothing.
    pub(super) body: Result<Bytes, String>,
    /// Kept until the last piece is written.
    pub(super) with: T,
}

/// Parcels that are being written, in turn.
pub(super) struct Outbox<T> {
    says: Says,
    waiting: VecDeque<Parcel<T>>,
}

impl<T> Outbox<T> {
    pub(super) fn new(says: Says) -> Self {
        Self {
            says,
            waiting: VecDeque::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Adds them behind those that wait.
    pub(super) fn extend(&mut self, parcels: impl IntoIterator<Item = Parcel<T>>) {
        self.waiting.extend(parcels);
    }

    /// Moves the next pieces, one of each parcel in turn, into one write.
    pub(super) fn fill(&mut self, out: &mut BytesMut) {
        while out.len() < WRITE_BYTES
            && let Some(mut parcel) = self.waiting.pop_front()
        {
            let body = match &mut parcel.body {
                Ok(body) => body,
                Err(reason) => {
                    let (id, reason) = (parcel.id, std::mem::take(reason));
                    Frame::NoAnswer { id, reason }.encode_to(out);
                    continue;
                }
            };
            let piece = Piece {
                id: parcel.id,
                last: body.len() <= PIECE_BYTES,
                body: body.split_to(body.len().min(PIECE_BYTES)),
            };
            let last = piece.last;
            match self.says {
                Says::Calls => Frame::Call(piece).encode_to(out),
                Says::Answers => Frame::Answer(piece).encode_to(out),
            }
            if !last {
                self.waiting.push_back(parcel);
            }
        }
    }
}

/// Writes what comes into `inbox`, after `first`, until it is closed or the connection breaks. `before` sees each parcel before any
/// of it is written, and says whether it is still wanted.
pub(super) async fn write<T>(
    socket: &mut (impl AsyncWrite + Unpin),
    says: Says,
    first: Vec<Parcel<T>>,
    inbox: &Inbox<Parcel<T>>,
    mut before: impl FnMut(&mut Parcel<T>) -> bool,
    sent: &Counter,
) -> Result<(), WireError> {
    let mut outbox = Outbox::new(says);
    let mut out = BytesMut::new();
    let mut arrived = first;
    loop {
        outbox.extend(
            arrived
                .drain(..)
                .filter_map(|mut parcel| before(&mut parcel).then_some(parcel)),
        );
        outbox.fill(&mut out);
        socket.write_all(&out).await?;
        sent.inc_by(out.len() as u64);
        if out.capacity() > 2 * WRITE_BYTES {
            out = BytesMut::new();
        } else {
            out.clear();
        }
        if outbox.is_empty() || !inbox.is_empty() {
            let Some(parcels) = inbox.next().await else {
                return Ok(());
            };
            arrived = parcels;
        }
    }
}

/// Pieces that came in, until the last of their body has.
pub(super) struct Gathering {
    parts: BTreeMap<u64, BytesMut>,
    bytes: usize,
    /// Bytes of all of them at most.
    limit: usize,
}

impl Gathering {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            parts: BTreeMap::new(),
            bytes: 0,
            limit,
        }
    }

    /// Takes a piece; the whole body if it was its last.
    ///
    /// # Errors
    /// If the other side sends more than it may before it ends anything.
    pub(super) fn add(&mut self, piece: Piece) -> Result<Option<Bytes>, WireError> {
        if piece.last && !self.parts.contains_key(&piece.id) {
            return Ok(Some(piece.body));
        }
        self.bytes += piece.body.len();
        if self.bytes > self.limit || (piece.body.is_empty() && !piece.last) {
            return Err(WireError::Unexpected("more pieces of calls than may be under way"));
        }
        let part = self.parts.entry(piece.id).or_default();
        part.extend_from_slice(&piece.body);
        if !piece.last {
            return Ok(None);
        }
        let whole = self.parts.remove(&piece.id).unwrap_or_default();
        self.bytes -= whole.len();
        Ok(Some(whole.freeze()))
    }
}
