//! Several keyspaces behind one port and behind ports of their own.

mod support;

use althing_api::pb::etcdserverpb::kv_client::KvClient;
use althing_api::pb::etcdserverpb::{PutRequest, RangeRequest};
use althing_api::{ClientServer, Directory, Door, DoorKeeper, Limits};
use futures::StreamExt;
use futures::stream::BoxStream;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use support::Local;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Barrier, oneshot};
use tonic::transport::{Channel, Endpoint};

async fn keyspace(local: Arc<Local>) -> ClientServer {
    althing_api::server(local, Limits::default(), Arc::new(())).await.0
}

/// A port whose connections come in by a door.
async fn port(door: Door) -> (SocketAddr, BoxStream<'static, (TcpStream, Door)>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("loopback has ports");
    let address = listener.local_addr().expect("bound");
    let arrivals = futures::stream::unfold((listener, door), |(listener, door)| async {
        let (socket, _) = listener.accept().await.ok()?;
        Some(((socket, door.clone()), (listener, door)))
    });
    (address, arrivals.boxed())
}

async fn client(address: SocketAddr, authority: &str) -> KvClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    let origin = format!("http://{authority}").parse().expect("a uri");
    let channel = endpoint.origin(origin).connect().await.expect("somebody listens");
    KvClient::new(channel)
}

async fn put(kv: &mut KvClient<Channel>, value: &str) {
    let request = PutRequest {
        key: "whose".into(),
        value: value.to_owned().into(),
        ..PutRequest::default()
    };
    kv.put(request).await.expect("it is put");
}

async fn whose(kv: &mut KvClient<Channel>) -> String {
    let request = RangeRequest {
        key: "whose".into(),
        ..RangeRequest::default()
    };
    let answer = kv.range(request).await.expect("it is read").into_inner();
    let value = answer.kvs.first().map(|kv| kv.value.to_vec()).unwrap_or_default();
    String::from_utf8(value).expect("text")
}

/// Two keyspaces behind one port, by name, and the second one behind a port of its own.
struct Ports {
    shared: SocketAddr,
    own: SocketAddr,
    directory: Directory,
    orders: Arc<Local>,
    /// Of the shared port and of the second keyspace's own.
    keepers: (DoorKeeper, DoorKeeper),
    /// Ends all.
    end: oneshot::Sender<()>,
    serving: tokio::task::JoinHandle<()>,
}

async fn ports(orders: Local) -> Ports {
    let directory = Directory::new(keyspace(Arc::new(Local::new())).await);
    let orders = Arc::new(orders);
    let server = keyspace(Arc::clone(&orders)).await;
    directory.put("orders", server.clone());
    let (by_name, shared_keeper) = Door::by_name(directory.clone());
    let (to_orders, own_keeper) = Door::to(server);
    let (shared, first) = port(by_name).await;
    let (own, second) = port(to_orders).await;
    let (end, ended) = oneshot::channel::<()>();
    let serving = tokio::spawn(althing_api::serve(futures::stream::select(first, second), async {
        // Dropped means the same.
        let _ = ended.await;
    }));
    Ports {
        shared,
        own,
        directory,
        orders,
        keepers: (shared_keeper, own_keeper),
        end,
        serving,
    }
}

#[tokio::test]
async fn a_client_reaches_each_keyspace_by_name_and_by_port_and_the_default_one_by_any_other_name() {
    let ports = ports(Local::new()).await;
    put(&mut client(ports.shared, "127.0.0.1:2379").await, "default").await;
    put(&mut client(ports.shared, "orders").await, "orders").await;
    for (address, authority, expected) in [
        (ports.shared, "orders", "orders"),
        (ports.shared, "ORDERS.db.svc.cluster.local:2379", "orders"),
        (ports.shared, "default", "default"),
        (ports.shared, "client.db:2379", "default"),
        (ports.shared, "[::1]:2379", "default"),
        // Whoever comes to a keyspace's own port means it, whatever he calls it.
        (ports.own, "127.0.0.1", "orders"),
        (ports.own, "default", "orders"),
    ] {
        let mut kv = client(address, authority).await;
        assert_eq!(whose(&mut kv).await, expected, "{authority}");
    }
    // A keyspace that is dropped is not found by its name any more, also over a connection that there was before.
    let mut kv = client(ports.shared, "orders").await;
    assert_eq!(whose(&mut kv).await, "orders");
    ports.directory.remove("orders");
    assert_eq!(whose(&mut kv).await, "default");
}

#[tokio::test]
async fn probes_over_plain_http_choose_by_host_too() {
    let orders = Local::new();
    orders.led.store(false, Ordering::SeqCst);
    let ports = ports(orders).await;
    for (host, status) in [("orders.db", "503"), ("db", "200")] {
        let mut socket = TcpStream::connect(ports.shared).await.expect("somebody listens");
        let request = format!("GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.expect("answered");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{host}: {answer}");
    }
}

#[tokio::test]
async fn a_door_that_shuts_lets_requests_under_way_finish_and_leaves_other_doors_open() {
    let mut orders = Local::new();
    orders.gate = Some(Barrier::new(2));
    let ports = ports(orders).await;
    // One connection idles, one has a request that waits at the gate.
    let mut idle = TcpStream::connect(ports.own).await.expect("somebody listens");
    idle.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .expect("sent");
    let mut buffer = [0; 1024];
    assert!(idle.read(&mut buffer).await.expect("answered") > 0);
    let mut busy = client(ports.own, "x").await;
    let waiting = tokio::spawn(async move { whose(&mut busy).await });
    let mut by_name = client(ports.shared, "orders").await;
    while ports.orders.waited.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }

    drop(ports.keepers.1);
    assert_eq!(idle.read(&mut buffer).await.expect("an end"), 0);
    // The second one at the gate opens it.
    assert_eq!(whose(&mut by_name).await, "");
    assert_eq!(waiting.await.expect("answered"), "");
    drop(ports.keepers.0);
    drop(by_name);
    ports.end.send(()).expect("it serves");
    ports.serving.await.expect("it ends when all connections have");
}
