//! What is measured of every request: one call of the node's [`Observer`], and a span.

use http::{HeaderMap, Request, Response};
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::{Instrument, Span};

/// The node's eyes on its requests. Called on the request's path: it must not block.
pub trait Observer: Send + Sync + 'static {
    /// A request is answered: its gRPC method (`service/method`, or `other` for what is not registered), the
    /// answer's code, and the time until the answer's head.
    fn observe(&self, method: &'static str, code: Code, duration: Duration);

    /// The span that a request runs in. A node that exports traces gives it the caller's trace as parent, which
    /// `headers` names (W3C `traceparent`).
    fn span(&self, method: &'static str, headers: &HeaderMap) -> Span {
        let _ = headers;
        tracing::info_span!(
            "grpc",
            rpc.system = "grpc",
            rpc.method = method,
            otel.name = method,
            otel.kind = "server"
        )
    }
}

/// Observes nothing; for tests.
impl Observer for () {
    fn observe(&self, _method: &'static str, _code: Code, _duration: Duration) {}
}

/// The method of a path as a metric label: of a fixed set, so that nobody can fill the node's memory with labels.
fn method_of(path: &str) -> &'static str {
    const METHODS: &[&str] = &[
        "etcdserverpb.KV/Range",
        "etcdserverpb.KV/Put",
        "etcdserverpb.KV/DeleteRange",
        "etcdserverpb.KV/Txn",
        "etcdserverpb.KV/Compact",
        "etcdserverpb.Cluster/MemberAdd",
        "etcdserverpb.Cluster/MemberRemove",
        "etcdserverpb.Cluster/MemberUpdate",
        "etcdserverpb.Cluster/MemberList",
        "etcdserverpb.Cluster/MemberPromote",
        "etcdserverpb.Maintenance/Alarm",
        "etcdserverpb.Maintenance/Status",
        "etcdserverpb.Maintenance/Defragment",
        "etcdserverpb.Maintenance/Hash",
        "etcdserverpb.Maintenance/HashKV",
        "etcdserverpb.Maintenance/Snapshot",
        "etcdserverpb.Maintenance/MoveLeader",
        "etcdserverpb.Maintenance/Downgrade",
        "grpc.health.v1.Health/Check",
        "grpc.health.v1.Health/Watch",
    ];
    let path = path.strip_prefix('/').unwrap_or(path);
    METHODS
        .iter()
        .find(|method| **method == path)
        .copied()
        .unwrap_or("other")
}

/// Wraps every request of the port.
#[derive(Clone)]
pub(crate) struct ObserveLayer {
    observer: Arc<dyn Observer>,
}

impl ObserveLayer {
    pub(crate) fn new(observer: Arc<dyn Observer>) -> Self {
        Self { observer }
    }
}

impl<S> Layer<S> for ObserveLayer {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Observed {
            inner,
            observer: Arc::clone(&self.observer),
        }
    }
}

/// A service whose requests are observed.
#[derive(Clone)]
pub(crate) struct Observed<S> {
    inner: S,
    observer: Arc<dyn Observer>,
}

impl<S, B, R> Service<Request<B>> for Observed<S>
where
    S: Service<Request<B>, Response = Response<R>, Error = Infallible>,
    S::Future: Send + 'static,
    R: Default,
{
    type Response = Response<R>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "this is the edge; the time goes to the observer and decides nothing"
    )]
    fn call(&mut self, request: Request<B>) -> Self::Future {
        let started = Instant::now();
        let method = method_of(request.uri().path());
        let observer = Arc::clone(&self.observer);
        let span = observer.span(method, request.headers());
        let answer = self.inner.call(request);
        Box::pin(
            async move {
                let response = reword_too_large(answer.await?);
                // A refusal has its status in the head; an answer that began well has none there yet.
                let code = Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code());
                observer.observe(method, code, started.elapsed());
                Ok(response)
            }
            .instrument(span),
        )
    }
}

/// Over the decoding limit tonic says `OutOfRange`, and Go's gRPC, hence etcd, `ResourceExhausted`: clients that
/// split their batches on it look for the latter.
fn reword_too_large<R: Default>(response: Response<R>) -> Response<R> {
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() == Code::OutOfRange && status.message().contains("message length too large") => {
            Status::resource_exhausted("grpc: received message larger than max").into_http()
        }
        Some(_) | None => response,
    }
}
