//! What probes ask: the gRPC health service, and `/health`, `/livez`, `/readyz` and `/version` over plain HTTP.

use crate::errors::status_of;
use crate::keyspace::{Alarm, Consistency, Keyspace, KeyspaceError};
use crate::render::ETCD_API_VERSION;
use althing_store::ops::{KeyRange, Range};
use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use std::sync::Arc;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// Services whose health is told; the empty name stands for the whole server.
const SERVICES: [&str; 4] = [
    "",
    "etcdserverpb.KV",
    "etcdserverpb.Cluster",
    "etcdserverpb.Maintenance",
];

/// Switches the gRPC health service. The shell calls [`HealthSwitch::refresh`] whenever serving may have changed.
#[derive(Clone)]
pub struct HealthSwitch {
    reporter: HealthReporter,
}

impl HealthSwitch {
    pub(crate) fn new(reporter: HealthReporter) -> Self {
        Self { reporter }
    }

    /// Tells clients of the health service whether this member serves now.
    pub async fn refresh(&self, keyspace: &dyn Keyspace) {
        self.set(keyspace.serving()).await;
    }

    /// Tells clients of the health service that this member goes away; part of a graceful shutdown.
    pub async fn shut_down(&self) {
        self.set(false).await;
    }

    async fn set(&self, serving: bool) {
        let status = if serving {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        for service in SERVICES {
            self.reporter.set_service_status(service, status).await;
        }
    }
}

/// The plain HTTP routes.
pub(crate) fn routes(keyspace: Arc<dyn Keyspace>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/version", get(version))
        .with_state(keyspace)
}

/// etcd's `/health`: alarms, then the leader, then a read; with `?serializable=true` of this member alone.
async fn health(State(keyspace): State<Arc<dyn Keyspace>>, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    let has = |parameter: &str| query.split('&').any(|given| given == parameter);
    let consistency = if has("serializable=true") {
        Consistency::Serializable
    } else {
        Consistency::Linearizable
    };
    let alarm = keyspace
        .alarms()
        .into_iter()
        .map(alarm_name)
        .find(|name| !has(&format!("exclude={name}")));
    let problem = match alarm {
        Some(name) => Some(format!("ALARM {name}")),
        None if consistency == Consistency::Linearizable && !keyspace.has_leader() => Some("RAFT NO LEADER".to_owned()),
        None => probe(&*keyspace, consistency)
            .await
            .err()
            .map(|error| format!("RANGE ERROR:{}", status_of(&error).message())),
    };
    let (code, body) = match problem {
        None => (StatusCode::OK, r#"{"health":"true","reason":""}"#.to_owned()),
        Some(reason) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!(r#"{{"health":"false","reason":"{reason}"}}"#),
        ),
    };
    (code, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// The process answers from its own state.
async fn livez(State(keyspace): State<Arc<dyn Keyspace>>) -> Response {
    verdict(probe(&*keyspace, Consistency::Serializable).await)
}

/// The member answers for the cluster.
async fn readyz(State(keyspace): State<Arc<dyn Keyspace>>) -> Response {
    verdict(probe(&*keyspace, Consistency::Linearizable).await)
}

/// The versions that clients ask for; see [`ETCD_API_VERSION`].
async fn version() -> Response {
    let body = format!(
        r#"{{"etcdserver":"{ETCD_API_VERSION}","etcdcluster":"{ETCD_API_VERSION}","storage":"{}"}}"#,
        crate::render::ETCD_STORAGE_VERSION
    );
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn verdict(probed: Result<(), KeyspaceError>) -> Response {
    match probed {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()).into_response(),
        Err(error) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ok: {}\n", status_of(&error).message()),
        )
            .into_response(),
    }
}

fn alarm_name(alarm: Alarm) -> &'static str {
    match alarm {
        Alarm::NoSpace => "NOSPACE",
        Alarm::Corrupt => "CORRUPT",
    }
}

/// Reads one key that nobody writes.
async fn probe(keyspace: &dyn Keyspace, consistency: Consistency) -> Result<(), KeyspaceError> {
    let range = Range {
        count_only: true,
        ..Range::of(KeyRange::Single(Bytes::from_static(b"\0")))
    };
    keyspace.range(range, consistency).await.map(|_| ())
}
