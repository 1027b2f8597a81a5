//! The sending side of a connection, which makes one write of many.
//!
//! h2 does not copy a message of more than a quarter KiB into its buffer if the socket takes several pieces at once: it sends the
//! message by itself, behind the frames before it. That is a system call, a packet, and a wake-up of the client for every answer, many
//! times what copying costs. This socket takes one piece at a time: h2 then copies messages up to a KiB, and what it still sends piece
//! by piece is put together here until it flushes, which it does whenever it has nothing more to say.

use hyper::rt::{Read, ReadBufCursor, Write};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// Bytes held back at most: a largest frame of h2's with its header. What is longer is not copied.
const HELD_BYTES_MAX: usize = (16 << 10) + 64;

/// A connection.
pub(crate) struct Gather<T> {
    io: T,
    held: Vec<u8>,
    /// Of those, sent.
    sent: usize,
}

impl<T> Gather<T> {
    pub(crate) fn new(io: T) -> Self {
        Self {
            io,
            held: Vec::new(),
            sent: 0,
        }
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
        self.sent = 0;
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
