//! The OpenAPI document, and a page for people that renders it without anything from elsewhere.

use super::{layout, reads, routes, scrape};
use axum::Json;
use axum::response::{Html, IntoResponse};
use utoipa::OpenApi;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Althing node",
        description = "Status, membership and leadership of one member, and the cluster's keyspaces and shards. Changes go to the leader of the shard; others answer 421 with its id. \
                       Ids are sixteen hex digits, as etcd prints them."
    ),
    paths(
        routes::healthz,
        routes::readyz,
        scrape::metrics,
        routes::status,
        routes::bootstrap,
        routes::members,
        routes::add_learner,
        routes::remove,
        routes::promote,
        layout::drain,
        layout::undrain,
        layout::labels,
        layout::layout,
        layout::keyspaces,
        layout::put_keyspace,
        layout::drop_keyspace,
        layout::cancel,
        routes::shards,
        routes::transfer_leader,
        reads::set,
    )
)]
struct Document;

/// The document.
pub(super) async fn openapi() -> impl IntoResponse {
    Json(Document::openapi())
}

/// The page.
pub(super) async fn page() -> Html<&'static str> {
    Html(include_str!("page.html"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use althing_admin::paths;

    #[test]
    fn the_document_names_every_path_of_the_contract() {
        let document = Document::openapi();
        for path in [
            paths::HEALTHZ,
            paths::READYZ,
            paths::METRICS,
            paths::STATUS,
            paths::BOOTSTRAP,
            paths::MEMBERS,
            paths::MEMBER,
            paths::PROMOTE,
            paths::DRAIN,
            paths::LABELS,
            paths::LAYOUT,
            paths::KEYSPACES,
            paths::KEYSPACE,
            paths::OPERATION,
            paths::SHARDS,
            paths::TRANSFER_LEADER,
        ] {
            assert!(document.paths.paths.contains_key(path), "{path}");
        }
    }
}
