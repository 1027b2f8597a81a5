//! The paths between members: each ordered pair has its own, through a TCP proxy in this process.
//!
//! Members advertise the proxy's address instead of their own. Who calls is learned from the caller's first bytes, in which it says
//! where it lives; nothing else of the protocol is known here. Bytes towards a member and its answers on the same connection are
//! two paths, as they are on a network: a connection needs both to come about.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::fault::{Cut, MemberIndex};
use crate::error::{Error, Result};

/// Bytes read at once: a socket buffer's worth.
const READ_BYTES: usize = 64 << 10;
/// Bytes on their way on one path; a slow link that holds more makes its sender wait, as a full window does.
const IN_FLIGHT_MAX: usize = 4 << 20;
/// How much a caller may say before it has said who it is.
const HELLO_BYTES_MAX: usize = 4 << 10;
/// How long it may take to. Longer than a member waits itself, so that it is the member that gives up.
const HELLO_LIMIT: Duration = Duration::from_secs(10);
/// Connecting over loopback takes microseconds, or for ever to a stopped process with a full queue.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// What a path does with bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// Carries them.
    Open,
    /// Carries them late.
    Slow(Duration),
    /// Does not.
    Cut(Cut),
}

impl Path {
    fn delay(self) -> Option<Duration> {
        match self {
            Self::Open => Some(Duration::ZERO),
            Self::Slow(delay) => Some(delay),
            Self::Cut(_) => None,
        }
    }
}

/// Where a member can be reached, and where it says that it can.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// Where it listens for peers.
    pub real: SocketAddr,
    /// Where the proxy listens for it.
    pub advertised: SocketAddr,
}

/// All paths of a cluster.
#[derive(Debug)]
pub struct Network {
    /// `paths[from][to]`.
    paths: Vec<Vec<watch::Sender<Path>>>,
}

impl Network {
    /// Listens for all members.
    ///
    /// # Errors
    /// If an address cannot be had.
    pub fn start(runtime: &Handle, members: &[Addresses]) -> Result<Self> {
        let row = || members.iter().map(|_| watch::Sender::new(Path::Open)).collect();
        let network = Self {
            paths: members.iter().map(|_| row()).collect(),
        };
        for (to, addresses) in members.iter().enumerate() {
            let listener = runtime
                .block_on(TcpListener::bind(addresses.advertised))
                .map_err(Error::io("listen on", addresses.advertised.to_string()))?;
            let proxy = Proxy {
                callers: members.iter().map(|member| member.advertised.to_string()).collect(),
                real: addresses.real,
                towards: network.paths.iter().map(|row| row[to].subscribe()).collect(),
                back: network.paths[to].iter().map(watch::Sender::subscribe).collect(),
            };
            runtime.spawn(proxy.run(listener));
        }
        Ok(network)
    }

    /// What happens to bytes from one member to another from now on.
    pub fn set(&self, from: MemberIndex, to: MemberIndex, path: Path) {
        self.paths[from.0][to.0].send_replace(path);
    }

    /// Opens all paths.
    pub fn heal(&self) {
        self.paths.iter().flatten().for_each(|path| {
            path.send_replace(Path::Open);
        });
    }
}

/// One member's side of the network.
#[derive(Clone)]
struct Proxy {
    /// Every member's advertised address, as it stands in its first bytes.
    callers: Vec<String>,
    real: SocketAddr,
    /// The path from each caller.
    towards: Vec<watch::Receiver<Path>>,
    /// The path back.
    back: Vec<watch::Receiver<Path>>,
}

impl Proxy {
    async fn run(self, listener: TcpListener) {
        // Ends with the runtime. Connections are bounded by what the members themselves open.
        loop {
            if let Ok((socket, _)) = listener.accept().await {
                let proxy = self.clone();
                // What breaks a connection is what the members have to live with.
                tokio::spawn(async move { drop(proxy.serve(socket).await) });
            }
        }
    }

    async fn serve(self, mut caller: TcpStream) -> io::Result<()> {
        caller.set_nodelay(true)?;
        let (from, hello) = timeout(HELLO_LIMIT, self.identify(&mut caller)).await??;
        let (mut towards, mut back) = (self.towards[from].clone(), self.back[from].clone());
        loop {
            let (there, here) = (*towards.borrow_and_update(), *back.borrow_and_update());
            match (there, here) {
                (Path::Cut(Cut::Refuse), _) | (_, Path::Cut(Cut::Refuse)) => return reset(&caller),
                (Path::Cut(Cut::Hold | Cut::Swallow), _) | (_, Path::Cut(Cut::Hold | Cut::Swallow)) => {}
                (Path::Open | Path::Slow(_), Path::Open | Path::Slow(_)) => break,
            }
            tokio::select! {
                changed = towards.changed() => changed.map_err(io::Error::other)?,
                changed = back.changed() => changed.map_err(io::Error::other)?,
            }
            // What was swallowed meanwhile is not known any more.
            if there == Path::Cut(Cut::Swallow) || here == Path::Cut(Cut::Swallow) {
                return reset(&caller);
            }
        }
        let member = timeout(CONNECT_LIMIT, TcpStream::connect(self.real)).await??;
        member.set_nodelay(true)?;
        let (from_caller, to_caller) = caller.into_split();
        let (from_member, to_member) = member.into_split();
        tokio::select! {
            ended = pump(from_caller, to_member, towards, hello) => ended,
            ended = pump(from_member, to_caller, back, Bytes::new()) => ended,
        }
    }

    /// Reads until one of the addresses has come; returns whose it is, and all that was read.
    async fn identify(&self, caller: &mut TcpStream) -> io::Result<(usize, Bytes)> {
        let mut said = Vec::new();
        loop {
            if caller.read_buf(&mut said).await? == 0 || said.len() > HELLO_BYTES_MAX {
                return Err(io::Error::other("the caller did not say who it is"));
            }
            let is_in = |address: &String| said.windows(address.len()).any(|window| window == address.as_bytes());
            if let Some(from) = self.callers.iter().position(is_in) {
                return Ok((from, said.into()));
            }
        }
    }
}

/// Closes with RST instead of FIN.
fn reset(socket: &TcpStream) -> io::Result<()> {
    socket.set_zero_linger()
}

/// Carries bytes one way until the connection or the path breaks.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut path: watch::Receiver<Path>,
    first: Bytes,
) -> io::Result<()> {
    let mut bytes = first.len();
    let mut in_flight = VecDeque::from([(Instant::now(), first)]);
    let mut lost = false;
    let mut ended = false;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let now = *path.borrow_and_update();
        if now == Path::Cut(Cut::Swallow) {
            lost |= !in_flight.is_empty();
            in_flight.clear();
            bytes = 0;
        }
        in_flight.pop_front_if(|(_, chunk)| chunk.is_empty());
        let carries = now.delay().is_some();
        // A stream with a hole in it is no stream: when the path carries again, the connection breaks.
        if now == Path::Cut(Cut::Refuse) || (lost && carries) {
            return reset(from.as_ref());
        }
        if ended && in_flight.is_empty() {
            return Ok(());
        }
        let reads = !ended && bytes < IN_FLIGHT_MAX && now != Path::Cut(Cut::Hold);
        let due = in_flight.front().map_or_else(Instant::now, |(due, _)| *due);
        let waits = carries && !in_flight.is_empty();
        tokio::select! {
            // In this order: what is read after a change is the change's.
            biased;
            changed = path.changed() => changed.map_err(io::Error::other)?,
            () = sleep_until(due), if waits && due > Instant::now() => {}
            wrote = write_front(&mut to, &in_flight), if waits && due <= Instant::now() => {
                let wrote = wrote?;
                bytes -= wrote;
                if let Some((_, chunk)) = in_flight.front_mut() {
                    drop(chunk.split_to(wrote));
                }
            }
            read = from.read(&mut buffer), if reads => {
                let read = read?;
                ended = read == 0;
                match now {
                    Path::Open | Path::Slow(_) if read > 0 => {
                        let delay = now.delay().unwrap_or_default();
                        in_flight.push_back((Instant::now() + delay, Bytes::copy_from_slice(&buffer[..read])));
                        bytes += read;
                    }
                    Path::Open | Path::Slow(_) => {}
                    Path::Cut(Cut::Hold | Cut::Swallow | Cut::Refuse) => lost |= read > 0,
                }
            }
        }
    }
}

/// One write of what is due, so that it can be given up at any time without losing count.
async fn write_front(to: &mut OwnedWriteHalf, in_flight: &VecDeque<(Instant, Bytes)>) -> io::Result<usize> {
    match in_flight.front() {
        Some((_, chunk)) => to.write(chunk).await,
        None => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two members: the second one's listener is the test's, the first one is the caller.
    struct Pair {
        runtime: tokio::runtime::Runtime,
        network: Network,
        caller: TcpStream,
        member: TcpStream,
    }

    const FIRST: MemberIndex = MemberIndex(0);
    const SECOND: MemberIndex = MemberIndex(1);

    fn free() -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    }

    fn pair() -> Pair {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let member = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let addresses = [
            Addresses {
                real: free(),
                advertised: free(),
            },
            Addresses {
                real: member.local_addr().unwrap(),
                advertised: free(),
            },
        ];
        let network = Network::start(runtime.handle(), &addresses).unwrap();
        let (caller, member) = runtime.block_on(async {
            let mut caller = TcpStream::connect(addresses[1].advertised).await.unwrap();
            let hello = format!("hello from {}!", addresses[0].advertised);
            caller.write_all(hello.as_bytes()).await.unwrap();
            let (mut member, _) = member.accept().await.unwrap();
            let mut heard = vec![0; hello.len()];
            member.read_exact(&mut heard).await.unwrap();
            assert_eq!(heard, hello.as_bytes());
            (caller, member)
        });
        Pair {
            runtime,
            network,
            caller,
            member,
        }
    }

    /// Whether a byte arrives soon; `Err` if the connection broke.
    async fn arrives(socket: &mut TcpStream) -> io::Result<bool> {
        let mut byte = [0];
        match timeout(Duration::from_millis(300), socket.read_exact(&mut byte)).await {
            Ok(read) => read.map(|_| true),
            Err(_) => Ok(false),
        }
    }

    #[test]
    fn what_is_held_comes_late_and_whole_and_the_other_way_stays_open() {
        let mut pair = pair();
        pair.network.set(FIRST, SECOND, Path::Cut(Cut::Hold));
        pair.runtime.block_on(async {
            pair.caller.write_all(b"a").await.unwrap();
            assert!(!arrives(&mut pair.member).await.unwrap());
            pair.member.write_all(b"b").await.unwrap();
            assert!(arrives(&mut pair.caller).await.unwrap());
            pair.network.heal();
            assert!(arrives(&mut pair.member).await.unwrap());
        });
    }

    #[test]
    fn a_connection_with_a_hole_breaks_when_the_path_is_healed() {
        let mut pair = pair();
        pair.network.set(FIRST, SECOND, Path::Cut(Cut::Swallow));
        pair.runtime.block_on(async {
            pair.caller.write_all(b"a").await.unwrap();
            assert!(!arrives(&mut pair.member).await.unwrap());
            pair.network.heal();
            assert!(arrives(&mut pair.member).await.is_err());
            assert!(arrives(&mut pair.caller).await.is_err());
        });
    }

    #[test]
    fn a_refused_path_breaks_its_connections_at_once() {
        let mut pair = pair();
        pair.network.set(SECOND, FIRST, Path::Cut(Cut::Refuse));
        pair.runtime.block_on(async {
            assert!(arrives(&mut pair.caller).await.is_err());
            assert!(arrives(&mut pair.member).await.is_err());
        });
    }

    #[test]
    fn a_slow_path_carries_in_order_and_late() {
        let mut pair = pair();
        let delay = Duration::from_millis(100);
        pair.network.set(FIRST, SECOND, Path::Slow(delay));
        pair.runtime.block_on(async {
            let begun = Instant::now();
            pair.caller.write_all(b"ab").await.unwrap();
            let mut heard = [0; 2];
            pair.member.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, b"ab");
            assert!(begun.elapsed() >= delay);
        });
    }
}
