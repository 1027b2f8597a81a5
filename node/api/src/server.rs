//! All services on one port.

use crate::door::Door;
use crate::gather::Gather;
use crate::health::{self, HealthSwitch};
use crate::keyspace::Keyspace;
use crate::observe::{ObserveLayer, Observed, Observer};
use crate::pb::etcdserverpb::kv_server::Kv;
use crate::pb::etcdserverpb::{cluster_server, kv_server, maintenance_server};
use crate::services::{ClusterService, KvService, MaintenanceService};
use crate::unary::{self, Answer};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt};
use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::Instrument;

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

/// The server of one keyspace's client port: KV, Cluster, Maintenance, gRPC health, and the plain HTTP probes. Cheap to clone.
#[derive(Clone)]
pub struct ClientServer {
    kv: Arc<KvService>,
    observer: Arc<dyn Observer>,
    decoding_bytes_max: usize,
    /// Everything that is not a plain call of KV.
    rest: Observed<Routes>,
}

/// A server over a keyspace. The shell binds the port, sets `TCP_NODELAY`, hands connections to [`serve`], and
/// keeps the switch up to date. Health starts as not serving.
pub async fn server(
    keyspace: Arc<dyn Keyspace>,
    limits: Limits,
    observer: Arc<dyn Observer>,
) -> (ClientServer, HealthSwitch) {
    let decoding = limits.max_request_bytes.saturating_add(DECODING_SLACK);
    let service = Arc::new(KvService::new(Arc::clone(&keyspace), limits));
    let kv = kv_server::KvServer::from_arc(Arc::clone(&service))
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
    let server = ClientServer {
        kv: service,
        rest: ObserveLayer::new(Arc::clone(&observer)).layer(routes),
        observer,
        decoding_bytes_max: decoding,
    };
    (server, switch)
}

/// The calls that are answered without tonic.
#[derive(Clone, Copy)]
enum Call {
    Range,
    Put,
    DeleteRange,
    Txn,
}

impl Call {
    fn of<B>(request: &Request<B>) -> Option<(Self, &'static str)> {
        let known = match request.uri().path() {
            "/etcdserverpb.KV/Range" => (Self::Range, "etcdserverpb.KV/Range"),
            "/etcdserverpb.KV/Put" => (Self::Put, "etcdserverpb.KV/Put"),
            "/etcdserverpb.KV/DeleteRange" => (Self::DeleteRange, "etcdserverpb.KV/DeleteRange"),
            "/etcdserverpb.KV/Txn" => (Self::Txn, "etcdserverpb.KV/Txn"),
            _ => return None,
        };
        unary::is_simple(request).then_some(known)
    }
}

/// Serves connections, each by the door that it came in, until there are no more, or until `until`: then it finishes the requests
/// under way. Connections and requests run as tasks of the runtime that this runs on.
pub async fn serve(connections: impl Stream<Item = (TcpStream, Door)>, until: impl Future<Output = ()>) {
    let mut http = auto::Builder::new(TokioExecutor::new());
    // HTTP/1 is for the probes; gRPC is HTTP/2.
    http.http1().timer(TokioTimer::new());
    http.http2()
        .timer(TokioTimer::new())
        // Nobody reads it in gRPC.
        .auto_date_header(false)
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1);
    // Each connection holds a receiver for as long as it lives.
    let (end, ending) = watch::channel(false);
    let (mut connections, mut until) = (pin!(connections), pin!(until));
    loop {
        let (socket, mut door) = tokio::select! {
            () = &mut until => break,
            arrived = connections.next() => match arrived {
                Some(arrived) => arrived,
                None => break,
            },
        };
        let connection = http
            .serve_connection(Gather::new(TokioIo::new(socket)), door.clone())
            .into_owned();
        let mut ending = ending.clone();
        tokio::spawn(async move {
            let mut connection = pin!(connection);
            let ended = tokio::select! {
                biased;
                ended = connection.as_mut() => ended,
                () = async {
                    tokio::select! {
                        // The other end dropped means the same.
                        _ = ending.wait_for(|end| *end) => {}
                        () = door.shut() => {}
                    }
                } => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a client's connection ended");
            }
        });
    }
    drop(ending);
    // Nobody is there any more if it fails.
    let _ = end.send(true);
    end.closed().await;
}

impl ClientServer {
    async fn call(self, call: Call, method: &'static str, request: Request<Incoming>) -> http::Response<Answer> {
        #[expect(
            clippy::disallowed_methods,
            reason = "this is the edge; the time goes to the observer and decides nothing"
        )]
        let started = Instant::now();
        let span = self.observer.span(method, request.headers());
        let work = async {
            let (kv, max) = (&self.kv, self.decoding_bytes_max);
            match call {
                Call::Range => run(request, max, |request| kv.range(request)).await,
                Call::Put => run(request, max, |request| kv.put(request)).await,
                Call::DeleteRange => run(request, max, |request| kv.delete_range(request)).await,
                Call::Txn => run(request, max, |request| kv.txn(request)).await,
            }
        };
        let (response, code) = if span.is_none() {
            work.await
        } else {
            work.instrument(span).await
        };
        self.observer.observe(method, code, started.elapsed());
        response
    }
}

/// One call: message in, work within the client's time, message out.
async fn run<In, Out, F>(
    request: Request<Incoming>,
    bytes_max: usize,
    work: impl FnOnce(tonic::Request<In>) -> F,
) -> (http::Response<Answer>, Code)
where
    In: prost::Message + Default,
    Out: prost::Message,
    F: Future<Output = Result<tonic::Response<Out>, Status>>,
{
    let timeout = unary::timeout(request.headers());
    let work = async { work(unary::read(request, bytes_max).await?).await };
    let outcome = match timeout {
        None => work.await,
        Some(timeout) => match tokio::time::timeout(timeout, work).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Status::cancelled("Timeout expired")),
        },
    };
    let code = outcome.as_ref().err().map_or(Code::Ok, Status::code);
    (unary::answer(outcome), code)
}

impl hyper::service::Service<Request<Incoming>> for ClientServer {
    type Response = http::Response<Answer>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let server = self.clone();
        match Call::of(&request) {
            Some((call, method)) => Box::pin(async move { Ok(server.call(call, method, request).await) }),
            None => Box::pin(async move {
                let timeout = unary::timeout(request.headers());
                let mut rest = server.rest;
                let work = rest.call(request.map(tonic::body::Body::new));
                let response = match timeout {
                    None => work.await?,
                    Some(timeout) => match tokio::time::timeout(timeout, work).await {
                        Ok(response) => response?,
                        Err(_) => return Ok(unary::refusal(&Status::cancelled("Timeout expired"))),
                    },
                };
                Ok(response.map(Answer::Other))
            }),
        }
    }
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
