use super::parcels::{Gathering, Outbox, Parcel, Says};
use super::*;
use crate::clock::Clock;
use crate::config::RunArgs;
use crate::listener::{self, Adopt};
use crate::members::MemberInfo;
use crate::node::NodeError;
use crate::shared::Inboxes;
use crate::waiters::Waiters;
use crate::wire::{read_hello, write_frame};
use althing_raft::entry::ConfigState;
use althing_raft::ids::{GroupId, Index, Term};
use althing_raft::io::{Role, Soft};
use althing_shard::frame::{Frame, HEADER_BYTES, Header, HelloReply, Piece};
use bytes::BytesMut;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{Barrier, Notify};

const CLUSTER: u64 = 0xc1;
const SOON: Duration = Duration::from_secs(10);
const A: MemberId = MemberId(0xa);
const B: MemberId = MemberId(0xb);

/// What calls and answers of a node need, without a database.
struct Node {
    shared: Arc<Shared>,
    calls: Arc<Calls>,
    peers: Arc<Peers>,
    addr: SocketAddr,
    /// Its sockets' thread.
    runtime: Option<Runtime>,
}

struct NoNode;

#[async_trait]
impl Adopt for NoNode {
    async fn adopt(&self, _cluster: u64) -> Result<u64, NodeError> {
        Err(NodeError::Stopped)
    }
}

impl Node {
    async fn start(me: MemberId, cluster: u64, port: u16) -> Self {
        let settings = format!(
            "name = 'n'\ndata_dir = '/nowhere'\nclient_addr = '127.0.0.1:1'\npeer_addr = '127.0.0.1:{port}'\nadmin_addr = '127.0.0.1:1'"
        );
        let config = RunArgs::default().resolve(Some(&settings)).unwrap();
        let socket = TcpListener::bind(config.peer_addr).await.unwrap();
        let addr = socket.local_addr().unwrap();
        let info = MemberInfo {
            peer_address: addr.to_string(),
            ..MemberInfo::default()
        };
        let shared = Arc::new(Shared::new(
            config,
            me,
            info,
            String::new(),
            Clock::start(),
            Inboxes::default(),
            Waiters::new(0),
        ));
        shared.set_cluster(cluster);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let net = runtime.handle().clone();
        let peers = Arc::new(Peers::new(Arc::clone(&shared), net.clone()));
        let calls = Arc::new(Calls::new(Arc::clone(&shared), Arc::clone(&peers), net.clone()));
        let socket = socket.into_std().unwrap();
        {
            let (shared, calls) = (Arc::clone(&shared), Arc::clone(&calls));
            runtime.spawn(async move {
                let socket = TcpListener::from_std(socket).unwrap();
                listener::run(socket, shared, Arc::new(NoNode), calls, net).await;
            });
        }
        Self {
            shared,
            calls,
            peers,
            addr,
            runtime: Some(runtime),
        }
    }

    /// Tells it where the others live.
    fn knows(&self, others: &[&Self]) {
        let book = others
            .iter()
            .map(|node| (node.shared.me, node.addr.to_string()))
            .collect();
        self.peers.update(book);
    }

    async fn call(&self, to: MemberId, body: impl Into<Bytes>) -> Result<Bytes, CallError> {
        self.calls.call(to, body.into(), SOON).await
    }

    /// Leads, with these members.
    fn leads(&self, voters: &[MemberId]) {
        let config = ConfigState {
            voters: voters.iter().copied().collect(),
            index: Index(1),
            ..ConfigState::default()
        };
        self.shared.set_soft(
            GroupId::META,
            Soft {
                role: Role::Leader,
                leader: Some(self.shared.me),
                term: Term(1),
                config,
            },
        );
    }

    fn die(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.die();
    }
}

async fn pair() -> (Node, Node) {
    let (a, b) = (Node::start(A, CLUSTER, 0).await, Node::start(B, CLUSTER, 0).await);
    a.knows(&[&b]);
    b.knows(&[&a]);
    (a, b)
}

/// Says what it was asked and by whom.
struct Echo;

fn echoed(from: MemberId, body: &[u8]) -> Bytes {
    [&from.0.to_le_bytes()[..], body].concat().into()
}

#[async_trait]
impl Answerer for Echo {
    async fn answer(&self, from: MemberId, body: Bytes) -> Bytes {
        echoed(from, &body)
    }
}

/// Answers once so many wait for it.
struct Together(Barrier);

#[async_trait]
impl Answerer for Together {
    async fn answer(&self, from: MemberId, body: Bytes) -> Bytes {
        self.0.wait().await;
        echoed(from, &body)
    }
}

/// Never answers; says when it was asked.
#[derive(Default)]
struct Mute(Notify);

#[async_trait]
impl Answerer for Mute {
    async fn answer(&self, _: MemberId, _: Bytes) -> Bytes {
        self.0.notify_one();
        std::future::pending().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_under_way_together_are_answered_in_any_order_and_each_caller_gets_its_own_answer() {
    const CALLS: usize = 1_000;
    let (a, b) = pair().await;
    // No call is answered before all have come: none waits for another one's answer.
    let together = Arc::new(Together(Barrier::new(CALLS)));
    b.calls.answer_by(&together);
    let a = Arc::new(a);
    let calls: Vec<_> = (0..CALLS)
        .map(|number| {
            let a = Arc::clone(&a);
            tokio::spawn(async move {
                let body = Bytes::from(number.to_string());
                assert_eq!(a.call(B, body.clone()).await, Ok(echoed(A, &body)));
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_nodes_call_each_other_and_themselves() {
    let (a, b) = pair().await;
    let echo = Arc::new(Echo);
    a.calls.answer_by(&echo);
    b.calls.answer_by(&echo);
    let (there, back, here) = tokio::join!(a.call(B, "x"), b.call(A, "y"), a.call(A, "z"));
    assert_eq!(there, Ok(echoed(A, b"x")));
    assert_eq!(back, Ok(echoed(B, b"y")));
    assert_eq!(here, Ok(echoed(A, b"z")));
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_far_longer_than_a_frame_come_back_whole_among_small_ones() {
    let (a, b) = pair().await;
    let echo = Arc::new(Echo);
    b.calls.answer_by(&echo);
    let long: Bytes = (0..40_usize << 20).map(|at| (at % 251) as u8).collect();
    let small = async {
        for number in 0..100_u8 {
            assert_eq!(a.call(B, vec![number]).await, Ok(echoed(A, &[number])));
        }
    };
    let (whole, empty, ()) = tokio::join!(a.call(B, long.clone()), a.call(B, ""), small);
    assert!(whole.unwrap() == echoed(A, &long));
    assert_eq!(empty, Ok(echoed(A, b"")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_dies_fails_its_calls_and_is_found_again_when_it_is_back() {
    let (a, mut b) = pair().await;
    let mute = Arc::new(Mute::default());
    b.calls.answer_by(&mute);
    let (broken, ()) = tokio::join!(a.call(B, "x"), async {
        mute.0.notified().await;
        b.die();
    });
    assert_eq!(broken, Err(CallError::Broken(B)));
    assert!(CallError::Broken(B).may_have_happened());
    let gone = a.call(B, "x").await.unwrap_err();
    assert!(matches!(gone, CallError::Unreachable { peer: B, .. }), "{gone}");
    assert!(!gone.may_have_happened());

    let again = Node::start(B, CLUSTER, b.addr.port()).await;
    let echo = Arc::new(Echo);
    again.calls.answer_by(&echo);
    let found = tokio::time::timeout(SOON, async {
        while a.call(B, "x").await != Ok(echoed(A, b"x")) {
            tokio::task::yield_now().await;
        }
    });
    found.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_takes_too_long_is_given_up_and_does_not_hold_up_others() {
    let (a, b) = pair().await;
    let mute = Arc::new(Mute::default());
    b.calls.answer_by(&mute);
    for _ in 0..3 {
        let given_up = a.calls.call(B, Bytes::new(), Duration::from_millis(20)).await;
        assert_eq!(given_up, Err(CallError::Timeout(B)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_into_another_cluster_or_to_another_member_are_refused() {
    let a = Node::start(A, CLUSTER, 0).await;
    let other = Node::start(B, CLUSTER + 1, 0).await;
    a.knows(&[&other]);
    let CallError::Unreachable { reason, .. } = a.call(B, "x").await.unwrap_err() else {
        panic!("another cluster's member answered");
    };
    assert_eq!(reason, format!("the peer belongs to cluster {:016x}", CLUSTER + 1));

    let somebody = MemberId(0xd);
    a.peers.update([(somebody, other.addr.to_string())].into());
    let CallError::Unreachable { reason, .. } = a.call(somebody, "x").await.unwrap_err() else {
        panic!("another member answered");
    };
    assert!(reason.contains("member 000000000000000b lives there now"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_removed_is_told_so_also_in_the_middle_of_its_calls() {
    let (a, b) = pair().await;
    let mute = Arc::new(Mute::default());
    b.calls.answer_by(&mute);
    b.leads(&[A, B]);
    let (broken, ()) = tokio::join!(a.call(B, "x"), async {
        mute.0.notified().await;
        b.leads(&[B]);
    });
    assert_eq!(broken, Err(CallError::Broken(B)));
    let refused = a.call(B, "x").await.unwrap_err();
    assert!(
        matches!(&refused, CallError::Unreachable { reason, .. } if reason.contains("removed")),
        "{refused}"
    );
    assert!(a.shared.removed.load(Ordering::Acquire));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_address_or_an_answerer_a_call_says_so() {
    let (a, b) = pair().await;
    let nobody = MemberId(0xe);
    assert_eq!(a.call(nobody, "x").await, Err(CallError::NoAddress(nobody)));
    let silent = a.call(B, "x").await.unwrap_err();
    assert!(matches!(silent, CallError::NoAnswer { peer: B, .. }), "{silent}");
    assert_eq!(a.call(A, "x").await, Err(CallError::Stopped));
    // Whoever keeps the answerer ends it.
    let echo = Arc::new(Echo);
    b.calls.answer_by(&echo);
    assert_eq!(a.call(B, "x").await, Ok(echoed(A, b"x")));
    drop(echo);
    assert!(matches!(a.call(B, "x").await, Err(CallError::NoAnswer { .. })));
    // One that left is forgotten at once.
    a.peers.update(BTreeMap::new());
    assert_eq!(a.call(B, "x").await, Err(CallError::NoAddress(B)));
    a.calls.close();
    assert_eq!(a.call(B, "x").await, Err(CallError::Stopped));
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_what_may_be_under_way_calls_are_refused_at_once_and_places_come_back() {
    let (a, b) = pair().await;
    let full = Arc::new(Together(Barrier::new(CALLS_MAX)));
    b.calls.answer_by(&full);
    let long = Bytes::from(vec![0; CALL_BYTES_MAX]);
    {
        let call = a.call(B, long.clone());
        tokio::pin!(call);
        // Polled once: it is under way.
        tokio::select! {
            biased;
            _ = &mut call => panic!("answered before all have come"),
            () = std::future::ready(()) => {}
        }
        assert_eq!(a.call(B, "x").await, Err(CallError::Busy(B)));
        let longer = Bytes::from(vec![0; CALL_BYTES_MAX + 1]);
        assert_eq!(a.call(B, longer).await, Err(CallError::TooLong(CALL_BYTES_MAX + 1)));
    }
    // Given up before it was sent, or while it was: its bytes are free again some time, and it may be one of those that come.
    let a = Arc::new(a);
    let free = tokio::time::timeout(SOON, async {
        while a.calls.call(B, Bytes::new(), Duration::ZERO).await == Err(CallError::Busy(B)) {
            tokio::task::yield_now().await;
        }
    });
    free.await.unwrap();
    let (done, mut ended) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..2 * CALLS_MAX {
        let (a, done) = (Arc::clone(&a), done.clone());
        tokio::spawn(async move {
            // The test may have seen enough.
            let _ = done.send(a.call(B, "x").await);
        });
    }
    let mut busy = 0;
    while let Some(answer) = ended.recv().await {
        match answer {
            Err(CallError::Busy(B)) => busy += 1,
            Ok(_) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(busy > 0, "none of twice as many was refused");
}

#[tokio::test]
async fn a_peer_that_says_nothing_any_more_counts_as_gone() {
    let a = Node::start(A, CLUSTER, 0).await;
    // Shakes hands and sleeps.
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    a.peers.update([(B, socket.local_addr().unwrap().to_string())].into());
    let peer = tokio::spawn(async move {
        let mut asleep = Vec::new();
        loop {
            let (mut socket, _) = socket.accept().await.unwrap();
            read_hello(&mut socket).await.unwrap();
            write_frame(&mut socket, &Frame::HelloReply(HelloReply::Accepted))
                .await
                .unwrap();
            asleep.push(socket);
        }
    });
    let link = Link::open(
        Arc::clone(&a.shared),
        Arc::clone(&a.peers),
        a.runtime.as_ref().unwrap().handle(),
        B,
        Duration::from_millis(100),
    );
    assert_eq!(link.call("x".into()).await, Err(CallError::Broken(B)));
    peer.abort();
}

fn parcel(id: u64, len: usize) -> Parcel<()> {
    Parcel {
        id,
        body: Ok(Bytes::from(vec![id as u8; len])),
        with: (),
    }
}

#[test]
fn a_small_body_does_not_wait_for_the_rest_of_a_long_one() {
    let mut outbox = Outbox::new(Says::Answers);
    outbox.extend([parcel(1, 3 << 20), parcel(2, 3)]);
    let mut out = BytesMut::new();
    outbox.fill(&mut out);
    let mut ids = Vec::new();
    while !out.is_empty() {
        let header = Header::decode(out.split_to(HEADER_BYTES)[..].try_into().unwrap()).unwrap();
        let Ok(Frame::Answer(piece)) = header.decode_body(out.split_to(header.len).freeze()) else {
            panic!("an answer was sent");
        };
        ids.push((piece.id, piece.last));
    }
    assert_eq!(ids[..3], [(1, false), (2, true), (1, false)]);
    assert!(!outbox.is_empty());
}

fn piece(id: u64, last: bool, body: &'static str) -> Piece {
    Piece {
        id,
        last,
        body: body.into(),
    }
}

#[test]
fn pieces_are_put_together_by_call_and_no_more_than_allowed_is_kept() {
    let mut gathering = Gathering::new(6);
    assert_eq!(gathering.add(piece(1, false, "abc")).unwrap(), None);
    assert_eq!(
        gathering.add(piece(2, true, "much longer, but whole")).unwrap(),
        Some("much longer, but whole".into())
    );
    assert_eq!(gathering.add(piece(3, false, "uv")).unwrap(), None);
    assert_eq!(gathering.add(piece(1, true, "d")).unwrap(), Some("abcd".into()));
    // What is whole counts no more.
    assert_eq!(gathering.add(piece(3, false, "wx")).unwrap(), None);
    assert_eq!(gathering.add(piece(4, false, "yz")).unwrap(), None);
    assert!(gathering.add(piece(5, false, "!")).is_err());
    // Nor can nothing be sent for ever.
    assert!(Gathering::new(6).add(piece(1, false, "")).is_err());
}
