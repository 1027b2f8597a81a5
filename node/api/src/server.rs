//! All services on one port.

use crate::health::{self, HealthSwitch};
use crate::keyspace::Keyspace;
use crate::observe::{ObserveLayer, Observer};
use crate::pb::etcdserverpb::{cluster_server, kv_server, maintenance_server};
use crate::services::{ClusterService, KvService, MaintenanceService};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use std::sync::Arc;
use std::time::Duration;
use tonic::Status;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tower::layer::util::{Identity, Stack};

/// What a client may ask for at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bytes of one write on the wire; more is refused as etcd refuses it.
    pub max_request_bytes: usize,
    /// Comparisons or operations of a transaction: per level the longest list counts, and the levels add up.
    pub max_txn_ops: usize,
}

impl Default for Limits {
    /// etcd's own defaults, which clients are written for: 1.5 MiB and 128.
    fn default() -> Self {
        Self {
            max_request_bytes: 1536 * 1024,
            max_txn_ops: 128,
        }
    }
}

/// Room for a message above [`Limits::max_request_bytes`], so that a slightly larger one is refused by our check with
/// etcd's words, and only a far larger one by the decoder. etcd has the same 512 KiB.
const DECODING_SLACK: usize = 512 * 1024;

/// Streams on one connection. A kube-apiserver has one connection and thousands of requests; hyper's 200 would queue
/// them in the client. A stream costs some KiB, so this bounds a connection to some hundred MiB.
const MAX_CONCURRENT_STREAMS: u32 = 65_536;

/// Bytes a client may send on one stream before we read: a largest message needs no round trip for credit.
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;

/// Bytes a client may send on one connection before we read; the bound on what one connection makes us buffer.
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;

/// Streams that a client may reset before we have read them; over it the connection ends (CVE-2023-44487). Clients
/// with short deadlines reset many when a member is slow, and hyper's 20 would end healthy connections then.
const MAX_PENDING_RESETS: usize = 4096;

/// Silence after which we ask whether the client's machine is still there, and how long it may take to say so.
/// Without it a connection whose other end lost power would stay for ever.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(20));

/// The server of one keyspace's client port.
pub type ClientRouter = Router<Stack<ObserveLayer, Identity>>;

/// All services over a keyspace: KV, Cluster, Maintenance, gRPC health, and the plain HTTP probes.
///
/// The shell binds the port, sets `TCP_NODELAY` (`TcpIncoming::with_nodelay`), calls
/// `serve_with_incoming_shutdown` on the router, and keeps the switch up to date. Health starts as not serving.
pub async fn router(
    keyspace: Arc<dyn Keyspace>,
    limits: Limits,
    observer: Arc<dyn Observer>,
) -> (ClientRouter, HealthSwitch) {
    let decoding = limits.max_request_bytes.saturating_add(DECODING_SLACK);
    let kv = kv_server::KvServer::new(KvService::new(Arc::clone(&keyspace), limits))
        .max_decoding_message_size(decoding)
        // A range may be as large as the keyspace, as in etcd.
        .max_encoding_message_size(usize::MAX);
    let cluster = cluster_server::ClusterServer::new(ClusterService::new(Arc::clone(&keyspace)));
    let maintenance = maintenance_server::MaintenanceServer::new(MaintenanceService::new(Arc::clone(&keyspace)));
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let switch = HealthSwitch::new(reporter);
    switch.shut_down().await;

    let routes = Routes::from(health::routes(keyspace).fallback(unknown))
        .add_service(kv)
        .add_service(cluster)
        .add_service(maintenance)
        .add_service(health_service)
        .prepare();
    let router = Server::builder()
        // For the probes; gRPC stays HTTP/2.
        .accept_http1(true)
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
        .http2_keepalive_interval(Some(KEEPALIVE.0))
        .http2_keepalive_timeout(Some(KEEPALIVE.1))
        .layer(ObserveLayer::new(observer))
        .add_routes(routes);
    (router, switch)
}

/// What is not here: `Unimplemented` for gRPC, 404 for everybody else.
async fn unknown(uri: Uri, headers: HeaderMap) -> Response {
    let grpc = headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if !grpc {
        return (StatusCode::NOT_FOUND, "404 page not found\n").into_response();
    }
    let service = uri.path().trim_start_matches('/').split('/').next().unwrap_or_default();
    let text = match service {
        "etcdserverpb.Watch"
        | "etcdserverpb.Lease"
        | "etcdserverpb.Auth"
        | "v3lockpb.Lock"
        | "v3electionpb.Election" => {
            format!("etcdserver: {service} is not supported by this Althing release")
        }
        _ => "unknown service".to_owned(),
    };
    Status::unimplemented(text).into_http::<axum::body::Body>()
}
