//! The HTTP admin API: what `althing-admin` promises, served.

mod layout;
mod layout_view;
mod page;
mod reads;
mod routes;
mod scrape;

use crate::atlas::Atlas;
use crate::conductor::Conductor;
use crate::node::Joiner;
use crate::shared::Shared;
use althing_admin::paths;
use althing_api::Directory;
use axum::Router;
use axum::routing::{delete, get, post, put};
use std::sync::Arc;
use tokio::net::TcpListener;

/// What the handlers share.
#[derive(Clone)]
struct Context {
    shared: Arc<Shared>,
    joiner: Arc<Joiner>,
    conductor: Arc<Conductor>,
    atlas: Arc<Atlas>,
    /// The names that requests find.
    directory: Directory,
}

/// Serves until the task is aborted: an operator watches a node go down through it.
pub async fn serve(
    socket: TcpListener,
    shared: Arc<Shared>,
    joiner: Arc<Joiner>,
    conductor: Arc<Conductor>,
    atlas: Arc<Atlas>,
    directory: Directory,
) {
    let router = router(Context {
        shared,
        joiner,
        conductor,
        atlas,
        directory,
    });
    if let Err(error) = axum::serve(socket, router).await {
        tracing::error!(%error, "the admin port failed");
    }
}

fn router(context: Context) -> Router {
    Router::new()
        .route("/", get(page::page))
        .route("/docs", get(page::page))
        .route(paths::OPENAPI, get(page::openapi))
        .route(paths::HEALTHZ, get(routes::healthz))
        .route(paths::READYZ, get(routes::readyz))
        .route(paths::METRICS, get(scrape::metrics))
        .route(paths::STATUS, get(routes::status))
        .route(paths::BOOTSTRAP, post(routes::bootstrap))
        .route(paths::MEMBERS, get(routes::members).post(routes::add_learner))
        .route(paths::MEMBER, delete(routes::remove))
        .route(paths::PROMOTE, post(routes::promote))
        .route(paths::DRAIN, post(layout::drain).delete(layout::undrain))
        .route(paths::LABELS, put(layout::labels))
        .route(paths::LAYOUT, get(layout::layout))
        .route(paths::KEYSPACES, get(layout::keyspaces))
        .route(paths::KEYSPACE, put(layout::put_keyspace).delete(layout::drop_keyspace))
        .route(paths::OPERATION, delete(layout::cancel))
        .route(paths::SHARDS, get(routes::shards))
        .route(paths::TRANSFER_LEADER, post(routes::transfer_leader))
        .route(paths::READS, put(reads::set))
        .with_state(context)
}
