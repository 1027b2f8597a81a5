//! The sending side of a connection, which makes one write of many.
//!
//! h2 does not copy a message of more than a quarter KiB into its buffer if the socket takes several pieces at once: it sends the
//! message by itself, behind the frames before it. That is a system call, a packet, and a wake-up of the client for every answer, many
//! times what copying costs. This socket takes one piece at a time: h2 then copies messages up to a KiB, and what it still sends piece
//! by piece is put together here until it flushes, which it does whenever it has nothing more to say.
//!
//! The answer to a ping waits for a quiet moment of its thread ([`settle`]), or for something else to be said. Clients of gRPC for Go send
//! one with every request, to measure the line; sent at once, the answer goes before the request's own work and wakes the client for
//! nothing, which is a fifth of what a range costs. So the pause in which a request waits for other members is used for it.

use hyper::rt::{Read, ReadBufCursor, Write};
use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

/// Bytes held back at most: a largest frame of h2's with its header. What is longer is not copied.
const HELD_BYTES_MAX: usize = (16 << 10) + 64;

/// Flushes of a thread's connections that may pass before it has a quiet moment. Then the answers to pings go anyway: a client that
/// waits for one must not think that nobody is there.
const FLUSHES_MAX: u32 = 64;

/// What this thread's connections have put off.
#[derive(Default)]
struct PutOff {
    connections: Vec<Waker>,
    flushes: u32,
    /// Quiet moments so far.
    moments: u64,
}

thread_local! {
    static PUT_OFF: RefCell<PutOff> = RefCell::default();
}

/// Says that this thread has nothing to do: for the hook of its runtime that runs before it parks. Whoever serves connections on a
/// thread without that hook sends answers to pings after some other flushes.
pub fn settle() {
    let connections = PUT_OFF.with_borrow_mut(|put_off| {
        put_off.flushes = 0;
        put_off.moments += 1;
        std::mem::take(&mut put_off.connections)
    });
    connections.iter().for_each(Waker::wake_by_ref);
}

/// Whether bytes are answers to pings and nothing else (RFC 9113, section 6.7): their length, type and flags; stream 0.
fn only_pongs(mut held: &[u8]) -> bool {
    const HEAD: &[u8] = &[0, 0, 8, 6, 1, 0, 0, 0, 0];
    const OPAQUE: usize = 8;
    while let Some(rest) = held.strip_prefix(HEAD).and_then(|rest| rest.get(OPAQUE..)) {
        held = rest;
        if held.is_empty() {
            return true;
        }
    }
    false
}

/// A connection.
pub(crate) struct Gather<T> {
    io: T,
    held: Vec<u8>,
    /// Of those, sent.
    sent: usize,
    /// What is held was put off until after this moment of its thread; until it is sent.
    put_off: Option<u64>,
}

impl<T> Gather<T> {
    pub(crate) fn new(io: T) -> Self {
        Self {
            io,
            held: Vec::new(),
            sent: 0,
            put_off: None,
        }
    }

    /// Whether what is held may wait for a quiet moment; then this task is woken in it.
    fn puts_off(&mut self, context: &Context<'_>) -> bool {
        let may_wait = self.sent == 0 && only_pongs(&self.held);
        let (waits, busy) = PUT_OFF.with_borrow_mut(|put_off| {
            let waits = may_wait && *self.put_off.get_or_insert(put_off.moments) == put_off.moments;
            if waits {
                put_off.connections.push(context.waker().clone());
            }
            if !put_off.connections.is_empty() {
                put_off.flushes += 1;
            }
            (waits, put_off.flushes >= FLUSHES_MAX)
        });
        if busy {
            settle();
        }
        waits
    }
}

impl<T: Write + Unpin> Gather<T> {
    fn send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.held.len() {
            let written = ready!(Pin::new(&mut self.io).poll_write(context, &self.held[self.sent..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += written;
        }
        self.held.clear();
        (self.sent, self.put_off) = (0, None);
        Poll::Ready(Ok(()))
    }
}

impl<T: Read + Unpin> Read for Gather<T> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(context, buffer)
    }
}

impl<T: Write + Unpin> Write for Gather<T> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.held.len() + bytes.len() > HELD_BYTES_MAX {
            ready!(this.send(context))?;
        }
        if bytes.len() > HELD_BYTES_MAX {
            return Pin::new(&mut this.io).poll_write(context, bytes);
        }
        this.held.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.puts_off(context) {
            return Poll::Pending;
        }
        ready!(this.send(context))?;
        Pin::new(&mut this.io).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.send(context))?;
        Pin::new(&mut this.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::pin::pin;

    /// Takes so many bytes at a time, and is busy before each.
    struct Slow {
        takes: usize,
        busy: bool,
        writes: Vec<Vec<u8>>,
    }

    impl Slow {
        fn new(takes: usize) -> Gather<Self> {
            Gather::new(Self {
                takes,
                busy: false,
                writes: Vec::new(),
            })
        }
    }

    impl Write for Slow {
        fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.busy = !self.busy;
            if self.busy {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let taken = bytes.len().min(self.takes);
            self.writes.push(bytes[..taken].to_vec());
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    async fn write(socket: &mut Gather<Slow>, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let written = poll_fn(|context| Pin::new(&mut *socket).poll_write(context, bytes)).await;
            bytes = &bytes[written.unwrap()..];
        }
    }

    async fn flush(socket: &mut Gather<Slow>) {
        poll_fn(|context| Pin::new(&mut *socket).poll_flush(context))
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn what_is_written_before_a_flush_is_one_write() {
        let mut socket = Slow::new(usize::MAX);
        for piece in [&b"head"[..], b"body", b"", b"tail"] {
            write(&mut socket, piece).await;
        }
        assert!(socket.io.writes.is_empty());
        flush(&mut socket).await;
        flush(&mut socket).await;
        assert_eq!(socket.io.writes, [b"headbodytail"]);
        assert!(!Write::is_write_vectored(&socket));
    }

    const PONG: [u8; 17] = [0, 0, 8, 6, 1, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];

    /// Whether a flush is done at once.
    fn flushes(socket: &mut Gather<Slow>) -> bool {
        // The socket is busy before each write.
        (0..2).any(|_| {
            let mut context = Context::from_waker(Waker::noop());
            Pin::new(&mut *socket).poll_flush(&mut context).is_ready()
        })
    }

    #[tokio::test]
    async fn answers_to_pings_wait_for_a_quiet_moment() {
        let mut socket = Slow::new(usize::MAX);
        write(&mut socket, &PONG).await;
        assert!(!flushes(&mut socket));
        write(&mut socket, &PONG).await;
        assert!(!flushes(&mut socket) && socket.io.writes.is_empty());
        settle();
        assert!(flushes(&mut socket));
        assert_eq!(socket.io.writes, [PONG.repeat(2)]);
        // And so does the next one.
        write(&mut socket, &PONG).await;
        assert!(!flushes(&mut socket));
    }

    #[tokio::test]
    async fn an_answer_to_a_ping_goes_with_whatever_else_is_said() {
        let mut socket = Slow::new(usize::MAX);
        write(&mut socket, &PONG).await;
        assert!(!flushes(&mut socket));
        write(&mut socket, b"answer").await;
        assert!(flushes(&mut socket));
        assert_eq!(socket.io.writes, [[&PONG[..], b"answer"].concat()]);
        let mut socket = Slow::new(usize::MAX);
        write(&mut socket, &PONG[..16]).await;
        assert!(flushes(&mut socket), "half of one is something else");
    }

    #[tokio::test]
    async fn a_thread_without_a_quiet_moment_answers_pings_after_some_other_flushes() {
        let (mut pinged, mut busy) = (Slow::new(usize::MAX), Slow::new(usize::MAX));
        write(&mut pinged, &PONG).await;
        assert!(!flushes(&mut pinged));
        for _ in 0..FLUSHES_MAX {
            write(&mut busy, b"answer").await;
            assert!(flushes(&mut busy));
        }
        assert!(flushes(&mut pinged));
        assert_eq!(pinged.io.writes, [PONG]);
    }

    #[tokio::test]
    async fn a_connection_is_woken_in_the_quiet_moment() {
        let mut socket = Slow::new(usize::MAX);
        write(&mut socket, &PONG).await;
        {
            let mut flushing = pin!(flush(&mut socket));
            assert!(futures::poll!(flushing.as_mut()).is_pending());
            settle();
            flushing.await;
        }
        assert_eq!(socket.io.writes, [PONG]);
    }

    #[tokio::test]
    async fn every_byte_arrives_in_order_however_little_the_socket_takes_and_little_is_held() {
        let all: Vec<u8> = (0..200_000_u32).map(|number| number.to_le_bytes()[0]).collect();
        for takes in [7_919, 40_000] {
            let mut socket = Slow::new(takes);
            let mut rest = &all[..];
            for length in [1, 9, 16 << 10, 9, 100, HELD_BYTES_MAX, HELD_BYTES_MAX + 1, 50_000, 3]
                .iter()
                .cycle()
            {
                let (piece, behind) = rest.split_at((*length).min(rest.len()));
                write(&mut socket, piece).await;
                assert!(socket.held.len() <= HELD_BYTES_MAX);
                rest = behind;
                if rest.is_empty() {
                    break;
                }
            }
            flush(&mut socket).await;
            assert!(socket.io.writes.concat() == all, "{takes} at a time");
        }
    }
}
