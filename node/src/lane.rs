//! The sending side of a stream to one peer.
//!
//! Messages go into the socket at once, on the host's own turn, for as long as it takes them; only what it does not take waits for the
//! stream's task. So followers have a leader's entries before its own log is asked to write them, and a message costs no task's turn.

use crate::inbox::Refused;
use crate::metrics::{Metrics, Peer};
use althing_raft::ids::MemberId;
use althing_raft::message::Message;
use althing_shard::frame::messages_to_frames;
use bytes::Bytes;
use prometheus_client::metrics::counter::Counter;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::mpsc;

/// Parcels that wait for one peer. The core has at most some appends under way per follower, so more than this is a peer that takes
/// nothing.
const PARCELS_MAX: usize = 512;

/// What waits.
enum Parcel {
    /// A turn's messages.
    Turn(Vec<Message>),
    /// What the socket did not take of a turn that it had begun to take: goes before anything else.
    Rest(Vec<Bytes>),
}

/// Where messages go in.
pub(crate) struct Lane {
    peer: MemberId,
    queue: mpsc::Sender<Parcel>,
    /// Parcels that are queued, or being written by the stream's task: nothing may overtake them.
    waiting: AtomicUsize,
    socket: Mutex<Option<Arc<OwnedWriteHalf>>>,
    bytes: Counter,
    messages: Counter,
}

/// Where the stream's task takes out what waits.
pub(crate) struct Parcels(mpsc::Receiver<Parcel>);

impl Lane {
    /// Not connected yet.
    pub(crate) fn new(peer: MemberId, metrics: &Metrics) -> (Arc<Self>, Parcels) {
        let label = Peer { peer: peer.to_string() };
        let (queue, parcels) = mpsc::channel(PARCELS_MAX);
        let lane = Self {
            peer,
            queue,
            waiting: AtomicUsize::new(0),
            socket: Mutex::default(),
            bytes: metrics.peer_sent.get_or_create_owned(&label),
            messages: metrics.peer_messages.get_or_create_owned(&label),
        };
        (Arc::new(lane), Parcels(parcels))
    }

    /// Sends a turn's messages, now or when the socket takes them.
    ///
    /// # Errors
    /// If too much waits already; they are dropped.
    pub(crate) fn send(&self, messages: Vec<Message>) -> Result<(), Refused> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let parcel = match &*socket {
            Some(socket) if self.waiting.load(Ordering::Acquire) == 0 => {
                let rest = write_now(socket, self.frames(&messages));
                if rest.is_empty() {
                    return Ok(());
                }
                Parcel::Rest(rest)
            }
            Some(_) | None => Parcel::Turn(messages),
        };
        // Under the lock, so that nothing overtakes it.
        self.waiting.fetch_add(1, Ordering::AcqRel);
        self.queue.try_send(parcel).map_err(|_| {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            Refused
        })
    }

    fn frames(&self, messages: &[Message]) -> Vec<Bytes> {
        let (frames, too_long) = messages_to_frames(messages);
        if too_long > 0 {
            tracing::error!(peer = %self.peer, too_long, "messages over the frame limit were dropped");
        }
        self.bytes.inc_by(frames.iter().map(|frame| frame.len() as u64).sum());
        self.messages.inc_by((messages.len() - too_long) as u64);
        frames
    }

    /// The stream begins. What waited for it is out of date.
    pub(crate) fn open(&self, socket: Arc<OwnedWriteHalf>, parcels: &mut Parcels) {
        let mut present = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        while parcels.0.try_recv().is_ok() {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
        }
        *present = Some(socket);
    }

    /// The stream has ended.
    pub(crate) fn close(&self) {
        *self.socket.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Sends what waits, in as few frames as possible, once something does. To be called again and again while the stream is open.
    pub(crate) async fn deliver(&self, socket: &OwnedWriteHalf, parcels: &mut Parcels) -> io::Result<()> {
        let parcel = parcels.0.recv().await;
        let parcel = parcel.expect("invariant: the lane itself could send");
        // Over when they are written, and also when the stream ends meanwhile.
        let mut taken = Taken(&self.waiting, 1);
        let frames = match parcel {
            Parcel::Rest(frames) => frames,
            Parcel::Turn(mut messages) => {
                while let Ok(parcel) = parcels.0.try_recv() {
                    taken.1 += 1;
                    match parcel {
                        Parcel::Turn(more) => messages.extend(more),
                        Parcel::Rest(_) => unreachable!("invariant: nothing was begun while something waited"),
                    }
                }
                self.frames(&messages)
            }
        };
        write_all(socket, frames).await
    }
}

/// Parcels in the hands of the stream's task.
struct Taken<'a>(&'a AtomicUsize, usize);

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::AcqRel);
    }
}

/// Writes as much as the socket takes. What it does not take is returned; so is what a broken one refuses: its reader notices that.
fn write_now(socket: &OwnedWriteHalf, frames: Vec<Bytes>) -> Vec<Bytes> {
    let mut frames = frames.into_iter();
    let mut rest = Vec::new();
    for mut frame in frames.by_ref() {
        let taken = socket.try_write(&frame).unwrap_or(0);
        if taken < frame.len() {
            rest.push(frame.split_off(taken));
            break;
        }
    }
    rest.extend(frames);
    rest
}

async fn write_all(socket: &OwnedWriteHalf, frames: Vec<Bytes>) -> io::Result<()> {
    for mut frame in frames {
        while !frame.is_empty() {
            socket.writable().await?;
            match socket.try_write(&frame) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(taken) => drop(frame.split_to(taken)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::read_frame;
    use althing_raft::ids::{GroupId, Term};
    use althing_raft::message::Body;
    use althing_shard::frame::Frame;
    use std::time::Duration;
    use tokio::net::tcp::OwnedReadHalf;
    use tokio::net::{TcpListener, TcpStream};

    const PEER: MemberId = MemberId(2);

    fn metrics() -> Metrics {
        Metrics::new("1".to_owned())
    }

    fn message(number: u64, bytes: usize) -> Message {
        let commands = vec![Bytes::from(vec![b'x'; bytes])];
        Message {
            group: GroupId(number),
            from: MemberId(1),
            to: PEER,
            term: Term(1),
            body: Body::Forward { commands },
        }
    }

    async fn connected() -> (Arc<OwnedWriteHalf>, OwnedReadHalf) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (there, _) = listener.accept().await.unwrap();
        (Arc::new(here.into_split().1), there.into_split().0)
    }

    /// Numbers of the messages of the next frame.
    async fn numbers(reader: &mut OwnedReadHalf) -> Vec<u64> {
        let read = tokio::time::timeout(Duration::from_secs(10), read_frame(reader));
        let (frame, _) = read.await.expect("something was sent").unwrap();
        let Frame::Messages(messages) = frame else {
            panic!("{frame:?}")
        };
        messages.iter().map(|message| message.group.0).collect()
    }

    #[tokio::test]
    async fn a_message_is_in_the_socket_when_send_returns() {
        let (lane, mut parcels) = Lane::new(PEER, &metrics());
        let (writer, mut reader) = connected().await;
        lane.open(writer, &mut parcels);
        // No task runs that could deliver it.
        lane.send(vec![message(7, 1)]).unwrap();
        assert_eq!(numbers(&mut reader).await, [7]);
        assert_eq!(lane.messages.get(), 1);
    }

    #[tokio::test]
    async fn what_a_full_socket_does_not_take_follows_in_order() {
        const MESSAGES: u64 = 300;
        let (lane, mut parcels) = Lane::new(PEER, &metrics());
        let (writer, mut reader) = connected().await;
        lane.open(Arc::clone(&writer), &mut parcels);
        // Far more than a socket holds.
        for number in 0..MESSAGES {
            lane.send(vec![message(number, 100_000)]).unwrap();
        }
        assert!(lane.waiting.load(Ordering::Acquire) > 0, "the socket is full");
        let mut seen = Vec::new();
        let delivering = async {
            loop {
                lane.deliver(&writer, &mut parcels).await.unwrap();
            }
        };
        let reading = async {
            while seen.len() < MESSAGES as usize {
                seen.extend(numbers(&mut reader).await);
            }
        };
        tokio::select! {
            () = delivering => {}
            () = reading => {}
        }
        assert_eq!(seen, (0..MESSAGES).collect::<Vec<_>>());
        assert_eq!(lane.waiting.load(Ordering::Acquire), 0, "and the next goes at once");
        lane.send(vec![message(MESSAGES, 1)]).unwrap();
        assert_eq!(numbers(&mut reader).await, [MESSAGES]);
    }

    #[tokio::test]
    async fn what_waited_for_a_connection_is_out_of_date_and_bounded() {
        let (lane, mut parcels) = Lane::new(PEER, &metrics());
        for number in 0..PARCELS_MAX as u64 {
            lane.send(vec![message(number, 1)]).unwrap();
        }
        assert_eq!(lane.send(vec![message(0, 1)]), Err(Refused));
        for number in [1, 2] {
            let (writer, mut reader) = connected().await;
            lane.open(writer, &mut parcels);
            lane.send(vec![message(number, 1)]).unwrap();
            assert_eq!(numbers(&mut reader).await, [number]);
            lane.close();
            lane.send(vec![message(9, 1)]).unwrap();
        }
    }
}
