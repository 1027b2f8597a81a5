//! The client ports: a listener each, and a server on each thread that serves sockets.
//!
//! Connections are dealt out in turn and stay where they are put. (The kernel's own way, `SO_REUSEPORT`, deals them out by hash: a
//! handful of busy clients may then share one thread while another idles.)

use althing_api::Door;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

/// Connections on their way to a thread: a burst of clients that reconnect at once.
pub(crate) const ARRIVALS_MAX: usize = 1_024;
/// Wait after a failed accept (out of file descriptors), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection on its way to a thread, and the door that it came in by.
pub(crate) type Arrival = (std::net::TcpStream, Door);

/// Accepts until the task is aborted. The connections come in by `door`.
pub(crate) async fn accept(listener: TcpListener, seats: Vec<mpsc::Sender<Arrival>>, door: Door) {
    for seat in seats.iter().cycle() {
        let socket = loop {
            let accepted = listener.accept().await.and_then(|(socket, _)| {
                socket.set_nodelay(true)?;
                // Off this runtime's event queue; the thread that serves it has its own.
                socket.into_std()
            });
            match accepted {
                Ok(socket) => break socket,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a client");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        };
        // The node goes down.
        if seat.send((socket, door.clone())).await.is_err() {
            return;
        }
    }
}

/// Serves the connections of one thread, on that thread, until `drained` says to finish what is under way.
pub(crate) async fn serve(arrivals: mpsc::Receiver<Arrival>, mut drained: watch::Receiver<bool>) {
    let connections = ReceiverStream::new(arrivals).filter_map(|(socket, door)| match TcpStream::from_std(socket) {
        Ok(socket) => Some((socket, door)),
        Err(error) => {
            tracing::warn!(%error, "cannot serve a client");
            None
        }
    });
    let until = async {
        // The other end dropped means the same.
        let _ = drained.wait_for(|drained| *drained).await;
    };
    althing_api::serve(connections, until).await;
}
