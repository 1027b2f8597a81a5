use super::*;
use althing_api::keyspace::{Consistency, Header, KeyspaceError, MemberEntry, Status};
use althing_api::pb::etcdserverpb::RangeRequest;
use althing_api::pb::etcdserverpb::kv_client::KvClient;
use althing_store::ops::{Command, OpResult, Range, RangeResult, Revision, Txn};
use async_trait::async_trait;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint as Url};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

#[test]
fn a_members_url_keeps_all_but_its_port() {
    for (url, expected) in [
        ("http://orders-0.orders:2379", "http://orders-0.orders:4001"),
        ("https://10.0.0.1:2379/", "https://10.0.0.1:4001/"),
        ("http://[::1]:2379", "http://[::1]:4001"),
        ("http://[::1]", "http://[::1]:4001"),
        ("http://orders", "http://orders:4001"),
    ] {
        assert_eq!(with_port(url, 4001), expected);
    }
}

const DEFAULT: u32 = 1;
/// Time for what takes milliseconds.
const SOON: Duration = Duration::from_secs(10);

/// Says its number as member id, and serves nothing else. Odd ones say that they serve.
struct Numbered(u32);

#[async_trait]
impl Keyspace for Numbered {
    async fn range(&self, _: Range, _: Consistency) -> Result<(Header, RangeResult), KeyspaceError> {
        Ok((self.header(), RangeResult::default()))
    }

    async fn read_txn(&self, _: Txn, _: Consistency) -> Result<(Header, OpResult), KeyspaceError> {
        Err(KeyspaceError::Stopped)
    }

    async fn execute(&self, _: Command) -> Result<(Header, OpResult), KeyspaceError> {
        Err(KeyspaceError::Stopped)
    }

    fn header(&self) -> Header {
        Header {
            cluster_id: 0,
            member_id: u64::from(self.0),
            revision: Revision(1),
            raft_term: 0,
        }
    }

    async fn status(&self) -> Result<(Header, Status), KeyspaceError> {
        Err(KeyspaceError::Stopped)
    }

    async fn members(&self, _: Consistency) -> Result<(Header, Vec<MemberEntry>), KeyspaceError> {
        Err(KeyspaceError::Stopped)
    }

    async fn move_leader(&self, _: u64) -> Result<Header, KeyspaceError> {
        Err(KeyspaceError::Stopped)
    }

    fn serving(&self) -> bool {
        self.0 % 2 == 1
    }
}

/// Endpoints at an address that no other test has.
struct Bed {
    endpoints: Endpoints<fn(u32) -> Arc<dyn Keyspace>>,
    ip: IpAddr,
    main: u16,
    tasks: Vec<JoinHandle<()>>,
    _open: DoorKeeper,
    _drain: watch::Sender<bool>,
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Bed {
    async fn new(ip: [u8; 4]) -> Self {
        let ip = IpAddr::from(ip);
        let keyspace: fn(u32) -> Arc<dyn Keyspace> = |id| Arc::new(Numbered(id));
        let observer: Arc<dyn Observer> = Arc::new(());
        let limits = Limits::default();
        let (default, _) = althing_api::server(keyspace(DEFAULT), limits, Arc::clone(&observer)).await;
        let directory = Directory::new(default.clone());
        let (door, open) = Door::by_name(directory.clone());
        let (seat, arrivals) = mpsc::channel(8);
        let (drain, drained) = watch::channel(false);
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let main = listener.local_addr().unwrap().port();
        let tasks = vec![
            tokio::spawn(clients::serve(arrivals, drained)),
            tokio::spawn(clients::accept(listener, vec![seat.clone()], door)),
        ];
        let front = Front {
            directory,
            default,
            default_id: DEFAULT,
            ip,
            seats: vec![seat],
            limits,
            observer,
        };
        Self {
            endpoints: Endpoints::new(front, keyspace),
            ip,
            main,
            tasks,
            _open: open,
            _drain: drain,
        }
    }

    async fn wants(&mut self, wanted: &[(&str, u32, Option<u16>)]) {
        let wanted = wanted
            .iter()
            .map(|(name, id, port)| ((*name).to_owned(), Wanted { id: *id, port: *port }))
            .collect();
        self.endpoints.update(&wanted).await;
    }

    async fn channel(&self, port: u16, host: &str) -> Option<Channel> {
        let url = Url::from_shared(format!("http://{}", SocketAddr::new(self.ip, port))).unwrap();
        let origin = format!("http://{host}").parse().unwrap();
        url.origin(origin).connect().await.ok()
    }

    /// Which keyspace answers there; none if nobody listens.
    async fn who(&self, port: u16, host: &str) -> Option<u64> {
        let mut kv = KvClient::new(self.channel(port, host).await?);
        let request = RangeRequest {
            key: "k".into(),
            ..RangeRequest::default()
        };
        let header = kv.range(request).await.ok()?.into_inner().header?;
        Some(header.member_id)
    }

    /// Waits until a port answers so: a socket that closes is gone a moment later.
    async fn becomes(&mut self, wanted: &[(&str, u32, Option<u16>)], port: u16, who: Option<u64>) {
        let waiting = async {
            while self.who(port, "x").await != who {
                self.wants(wanted).await;
            }
        };
        tokio::time::timeout(SOON, waiting).await.unwrap();
    }

    async fn health(&self, host: &str) -> ServingStatus {
        let mut health = HealthClient::new(self.channel(self.main, host).await.unwrap());
        let answer = health.check(HealthCheckRequest::default()).await.unwrap();
        answer.into_inner().status()
    }
}

#[tokio::test]
async fn keyspaces_come_and_go_by_name_and_by_port() {
    let mut bed = Bed::new([127, 77, 0, 1]).await;
    bed.wants(&[("default", DEFAULT, None)]).await;
    let main = bed.main;
    assert_eq!(bed.who(main, "orders").await, Some(1));

    let wanted = [
        ("default", DEFAULT, Some(4001)),
        ("orders", 3, Some(4002)),
        ("events", 4, None),
    ];
    bed.wants(&wanted).await;
    for (port, host, expected) in [
        (main, "orders", Some(3)),
        (main, "events.db", Some(4)),
        (main, "default", Some(1)),
        (main, "other", Some(1)),
        (4001, "orders", Some(1)),
        (4002, "events", Some(3)),
        (4003, "events", None),
    ] {
        assert_eq!(bed.who(port, host).await, expected, "{port} {host}");
    }

    // Two change ports, one gets another's name, one goes.
    let wanted = [("default", DEFAULT, Some(4002)), ("orders", 5, Some(4001))];
    bed.becomes(&wanted, 4002, Some(1)).await;
    bed.becomes(&wanted, 4001, Some(5)).await;
    assert_eq!(bed.who(main, "orders").await, Some(5));
    assert_eq!(bed.who(main, "events").await, Some(1));
    let wanted = [("default", DEFAULT, None)];
    bed.becomes(&wanted, 4001, None).await;
    bed.becomes(&wanted, 4002, None).await;
    assert_eq!(bed.who(main, "orders").await, Some(1));
}

#[tokio::test]
async fn a_taken_port_stands_in_nobodys_way_and_is_had_as_soon_as_it_is_free() {
    let mut bed = Bed::new([127, 77, 0, 2]).await;
    let taken = TcpListener::bind((bed.ip, 4001)).await.unwrap();
    let wanted = [("events", 4, Some(4001)), ("orders", 3, Some(4002))];
    bed.wants(&wanted).await;
    assert_eq!(bed.who(4002, "x").await, Some(3));
    assert_eq!(bed.who(bed.main, "events").await, Some(4));
    drop(taken);
    bed.becomes(&wanted, 4001, Some(4)).await;
}

#[tokio::test]
async fn each_keyspace_tells_its_own_health() {
    let mut bed = Bed::new([127, 77, 0, 3]).await;
    bed.wants(&[("orders", 3, None), ("events", 4, None)]).await;
    assert_eq!(bed.health("orders").await, ServingStatus::Serving);
    assert_eq!(bed.health("events").await, ServingStatus::NotServing);
}
