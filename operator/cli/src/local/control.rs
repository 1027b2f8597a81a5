//! The supervisor's control socket: a small HTTP API on a Unix socket in its folder, and the client of it.
//!
//! The shapes are the custom resources themselves. Whoever may open the folder (mode 0700) may do everything.

use std::path::Path;
use std::sync::Arc;

use althing_crds::{DeletionPolicy, RaftCluster, ShardLayout};
use axum::extract::{DefaultBodyLimit, Path as UrlPath, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::hub::{Ending, Hub};
use super::layout::{ClusterKey, Layout};
use crate::error::Error;
use crate::manifest;

/// Largest request: a few hundred objects.
const MAX_BODY: usize = 1024 * 1024;
/// `sockaddr_un` holds 108 bytes on Linux and 104 elsewhere, with the final zero.
const MAX_SOCKET_PATH: usize = 103;
/// Everything here is answered from memory or by a small write.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// Everything that is declared, with its status.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Objects {
    /// Clusters.
    pub(crate) clusters: Vec<RaftCluster>,
    /// Layouts.
    pub(crate) layouts: Vec<ShardLayout>,
}

/// YAML to apply.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ApplyRequest {
    /// Its name, for complaints.
    pub(crate) file: String,
    /// For objects that name none.
    pub(crate) namespace: String,
    /// The documents.
    pub(crate) text: String,
}

/// Sentences for a person.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Lines {
    /// They.
    pub(crate) lines: Vec<String>,
}

/// The routes.
pub(crate) fn router(hub: Arc<Hub>) -> Router {
    Router::new()
        .route("/v1/objects", get(objects))
        .route("/v1/apply", post(apply))
        .route("/v1/clusters/{namespace}/{name}/why", get(why))
        .route("/v1/clusters/{namespace}/{name}", delete(delete_cluster))
        .route("/v1/layouts/{namespace}/{name}", delete(delete_layout))
        .route("/v1/down", post(down))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(hub)
}

fn now() -> Time {
    Time(Timestamp::now())
}

fn refused(status: StatusCode, message: &str) -> Response {
    (
        status,
        Json(Lines {
            lines: vec![message.to_owned()],
        }),
    )
        .into_response()
}

fn said(outcome: Result<Vec<String>, Error>) -> Response {
    match outcome {
        Ok(lines) => Json(Lines { lines }).into_response(),
        Err(error) => refused(StatusCode::UNPROCESSABLE_ENTITY, &error.to_string()),
    }
}

async fn objects(State(hub): State<Arc<Hub>>) -> Response {
    let (clusters, layouts) = hub.objects();
    Json(Objects { clusters, layouts }).into_response()
}

async fn apply(State(hub): State<Arc<Hub>>, Json(request): Json<ApplyRequest>) -> Response {
    let objects = manifest::parse(&request.file, &request.text, &request.namespace);
    let applied = objects
        .map_err(|complaints| Error::Manifest { complaints })
        .and_then(|all| hub.apply(all, &now()));
    said(applied.map(|changes| changes.into_iter().map(|change| change.message).collect()))
}

async fn why(State(hub): State<Arc<Hub>>, UrlPath((namespace, name)): UrlPath<(String, String)>) -> Response {
    let key = ClusterKey::new(namespace, name);
    match (hub.get(&key), hub.seen(&key)) {
        (None, _) => refused(StatusCode::NOT_FOUND, "no such cluster"),
        (Some(_), None) => said(Ok(vec![
            "the supervisor has not looked at it yet; ask again in a moment".to_owned(),
        ])),
        (Some(_), Some(seen)) => said(Ok(seen.why)),
    }
}

async fn delete_cluster(
    State(hub): State<Arc<Hub>>,
    UrlPath((namespace, name)): UrlPath<(String, String)>,
) -> Response {
    let message = format!("raftcluster/{name} is being deleted");
    match hub.delete_cluster(&ClusterKey::new(namespace, name), &now()) {
        Ok(false) => refused(StatusCode::NOT_FOUND, "no such cluster"),
        Ok(true) => said(Ok(vec![message])),
        Err(error) => said(Err(error)),
    }
}

async fn delete_layout(State(hub): State<Arc<Hub>>, UrlPath((namespace, name)): UrlPath<(String, String)>) -> Response {
    match hub.delete_layout(&namespace, &name, &now()) {
        Ok(None) => refused(StatusCode::NOT_FOUND, "no such layout"),
        Ok(Some(DeletionPolicy::Retain)) => said(Ok(vec![format!(
            "shardlayout/{name} deleted; the keyspace and its data stay with the cluster"
        )])),
        Ok(Some(DeletionPolicy::Delete)) => said(Ok(vec![format!(
            "shardlayout/{name} is being deleted, with its keyspace and the data in it"
        )])),
        Err(error) => said(Err(error)),
    }
}

async fn down(State(hub): State<Arc<Hub>>) -> Response {
    hub.ending
        .send_if_modified(|ending| std::mem::replace(ending, (*ending).max(Ending::Gently)) != *ending);
    said(Ok(vec![
        "the supervisor stops its nodes and ends; their data stay".to_owned(),
    ]))
}

/// Opens the socket. The caller holds the folder's lock, so a socket that is there is a dead supervisor's.
pub(crate) fn listen(layout: &Layout) -> Result<tokio::net::UnixListener, Error> {
    let path = layout.socket();
    if path.as_os_str().len() > MAX_SOCKET_PATH {
        return Err(Error::SocketPath {
            path,
            max: MAX_SOCKET_PATH,
        });
    }
    super::files::remove(&path)?;
    tokio::net::UnixListener::bind(&path).map_err(Error::file("open", &path))
}

/// Talks to a supervisor.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
}

/// Why a supervisor did not do it.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// There is no such object.
    NotFound,
    /// Anything else.
    Error(Error),
}

impl Client {
    /// For the supervisor of this folder.
    pub(crate) fn new(socket: &Path) -> Result<Client, Error> {
        let http = reqwest::Client::builder()
            .unix_socket(socket)
            .timeout(PATIENCE)
            .no_proxy()
            .build();
        let http = http.map_err(|error| Error::Supervisor(format!("cannot make an HTTP client: {error}")))?;
        Ok(Client { http })
    }

    /// Everything that is declared.
    pub(crate) async fn objects(&self) -> Result<Objects, Refusal> {
        self.call(self.http.get(url("/v1/objects"))).await
    }

    /// Applies YAML.
    pub(crate) async fn apply(&self, request: &ApplyRequest) -> Result<Lines, Refusal> {
        self.call(self.http.post(url("/v1/apply")).json(request)).await
    }

    /// What is going on with a cluster.
    pub(crate) async fn why(&self, key: &ClusterKey) -> Result<Lines, Refusal> {
        self.call(self.http.get(url(&format!("/v1/clusters/{key}/why")))).await
    }

    /// Deletes a cluster.
    pub(crate) async fn delete_cluster(&self, key: &ClusterKey) -> Result<Lines, Refusal> {
        self.call(self.http.delete(url(&format!("/v1/clusters/{key}")))).await
    }

    /// Deletes a layout.
    pub(crate) async fn delete_layout(&self, key: &ClusterKey) -> Result<Lines, Refusal> {
        self.call(self.http.delete(url(&format!("/v1/layouts/{key}")))).await
    }

    /// Ends the supervisor.
    pub(crate) async fn down(&self) -> Result<Lines, Refusal> {
        self.call(self.http.post(url("/v1/down"))).await
    }

    async fn call<T: DeserializeOwned>(&self, request: reqwest::RequestBuilder) -> Result<T, Refusal> {
        let broken = |error: reqwest::Error| {
            Refusal::Error(Error::Supervisor(format!(
                "the supervisor does not answer as it should: {error}\n  look at the terminal where `althing up` runs"
            )))
        };
        let response = request.send().await.map_err(broken)?;
        match response.status() {
            StatusCode::NOT_FOUND => Err(Refusal::NotFound),
            status if status.is_success() => response.json().await.map_err(broken),
            _ => {
                let lines: Lines = response.json().await.map_err(broken)?;
                Err(Refusal::Error(Error::Supervisor(lines.lines.join("\n"))))
            }
        }
    }
}

/// The host's name means nothing on a Unix socket, but HTTP wants one.
fn url(path: &str) -> String {
    format!("http://althing{path}")
}
