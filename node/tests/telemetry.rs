//! What leaves a real process over OTLP.
#![allow(clippy::unwrap_used, reason = "a failing step is the test's failure")]

mod support;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::trace::v1::Span;
use std::sync::{Arc, Mutex};
use support::{Node, eventually};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// Keeps every span that it is sent.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans;
        let spans = resources
            .into_iter()
            .flat_map(|resource| resource.scope_spans)
            .flat_map(|scope| scope.spans);
        self.0.lock().unwrap().extend(spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_put_is_followed_from_grpc_through_propose_fsync_and_commit_to_apply() {
    let collector = Collector::default();
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", socket.local_addr().unwrap());
    let service = TraceServiceServer::new(collector.clone());
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(socket)),
    );

    let node = Node::start_with("a-0", &["--otlp-endpoint", &endpoint, "--trace-sample-ratio", "1"]);
    node.bootstrap().await;
    node.put("k", "v").await.unwrap();

    let (root, inner) = eventually("the spans arrive", || async {
        let spans = collector.0.lock().unwrap().clone();
        let root = spans
            .iter()
            .find(|span| span.name == "etcdserverpb.KV/Put")
            .ok_or("no span of the put")?;
        let mut inner: Vec<_> = spans
            .iter()
            .filter(|span| span.parent_span_id == root.span_id && span.name != root.name)
            .cloned()
            .collect();
        inner.sort_by(|a, b| a.name.cmp(&b.name));
        if inner.len() < 4 {
            Err(format!("{} inner spans", inner.len()))
        } else {
            Ok((root.clone(), inner))
        }
    })
    .await;
    let names: Vec<_> = inner.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["apply", "commit", "fsync", "propose"]);
    for span in &inner {
        assert_eq!(span.trace_id, root.trace_id, "{}", span.name);
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{}", span.name);
    }
    let [apply, commit, fsync, propose] = &inner[..] else {
        panic!("{names:?}")
    };
    assert!(propose.end_time_unix_nano <= commit.start_time_unix_nano);
    assert!(
        fsync.end_time_unix_nano <= commit.end_time_unix_nano,
        "a single member commits what its own disk has"
    );
    assert!(commit.end_time_unix_nano <= apply.start_time_unix_nano);
}
