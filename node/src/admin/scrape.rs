//! What Prometheus scrapes: the gauges that are set when somebody asks.

use super::Context;
use crate::atlas::Chart;
use crate::metrics::{CONTENT_TYPE, Keyspace, Metrics, Shard, ShardPeer};
use crate::shard_labels::Fold;
use crate::shared::{Shared, Store};
use althing_admin::paths;
use althing_raft::ids::GroupId;
use althing_raft::io::Role;
use althing_shard::host::GroupView;
use althing_shard::map::{KeyspaceId, RouteTable};
use althing_store::StoreSize;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

/// Metrics for Prometheus
#[utoipa::path(get, path = paths::METRICS, responses((status = 200, description = "OpenMetrics text", body = String)))]
pub(super) async fn metrics(State(context): State<Context>) -> Response {
    let shared = &context.shared;
    let views = shared.views().await;
    let text = tokio::task::block_in_place(|| page(shared, &context.atlas.chart(), &views));
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response()
}

fn page(shared: &Shared, chart: &Chart, views: &[(GroupId, GroupView)]) -> String {
    let metrics = &shared.metrics;
    metrics.keep_shards(views.iter().map(|(group, _)| group.0));
    let _scraping = metrics.begin_scrape();
    for (group, view) in views {
        set_raft(metrics, *group, view);
    }
    let mut total = StoreSize::default();
    let stores = shared.groups.all();
    // The engine's files are theirs in common.
    if let Some((_, any)) = stores.first() {
        match any.size() {
            Ok(size) => total.on_disk = size.on_disk,
            Err(error) => tracing::warn!(%error, "the engine does not say its size"),
        }
    }
    for (group, store) in stores {
        set_size(metrics, group, &store, &mut total);
    }
    metrics.store_bytes.set(number(total.on_disk));
    metrics.store_bytes_in_use.set(number(total.in_use));
    metrics.store_keys.set(number(total.keys));
    for (id, table) in chart.tables() {
        set_revision(shared, chart, id, table);
    }
    let sleeping = views.iter().filter(|(_, view)| view.raft.hibernates).count();
    metrics.groups_hibernating.set(number(sleeping as u64));
    let groups = shared.count_groups();
    metrics.groups.set(number(groups.all as u64));
    metrics.groups_led.set(number(groups.led as u64));
    metrics.groups_leaderless.set(number(groups.leaderless as u64));
    metrics.text()
}

/// The newest revision of a keyspace that this member knows.
fn set_revision(shared: &Shared, chart: &Chart, id: KeyspaceId, table: &RouteTable) {
    let stores = table.shards().iter().filter_map(|route| shared.groups.get(route.group));
    let newest = stores.map(|store| store.current_revision().0).max();
    if let (Some(newest), Some(record)) = (newest, chart.state.keyspaces.get(&id)) {
        let keyspace = record.name.clone();
        shared
            .metrics
            .store_revision
            .get_or_create(&Keyspace { keyspace })
            .set(newest);
    }
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn set_raft(metrics: &Metrics, group: GroupId, view: &GroupView) {
    let (raft, soft, lease) = (&view.raft, &view.raft.soft, &view.raft.lease);
    let responders = lease.roster.as_ref().map_or(0, |roster| roster.responders().len());
    for (gauge, value, fold) in [
        (&metrics.raft_leader, u64::from(soft.role == Role::Leader), Fold::Sum),
        (&metrics.raft_has_leader, u64::from(soft.leader.is_some()), Fold::Min),
        (&metrics.raft_term, soft.term.0, Fold::Max),
        (&metrics.raft_commit_index, raft.commit.0, Fold::Sum),
        (&metrics.raft_applied_index, view.applied.index.0, Fold::Sum),
        (
            &metrics.apply_lag,
            raft.commit.0.saturating_sub(view.applied.index.0),
            Fold::Max,
        ),
        (&metrics.raft_voters, soft.config.voters.len() as u64, Fold::Max),
        (&metrics.raft_learners, soft.config.learners.len() as u64, Fold::Max),
        (&metrics.reads_local, lease.counts.local, Fold::Sum),
        (&metrics.reads_held, lease.counts.held, Fold::Sum),
        (&metrics.reads_bounced, lease.counts.bounced, Fold::Sum),
        (&metrics.reads_by_index, lease.counts.by_index, Fold::Sum),
        (&metrics.read_lease, u64::from(lease.open), Fold::Min),
        (&metrics.roster_epoch, lease.adopted.epoch.0, Fold::Max),
        (&metrics.roster_responders, responders as u64, Fold::Max),
    ] {
        gauge.fold(Shard { shard: group.0 }, number(value), fold);
    }
    for peer in &raft.progress {
        let labels = ShardPeer {
            shard: group.0,
            peer: peer.member.to_string(),
        };
        let lag = raft.last.index.0.saturating_sub(peer.matched.0);
        metrics.raft_peer_lag.fold(labels, number(lag), Fold::Max);
    }
}

fn set_size(metrics: &Metrics, group: GroupId, store: &Store, total: &mut StoreSize) {
    let size = store.rows_size();
    let labels = || Shard { shard: group.0 };
    metrics.shard_bytes.fold(labels(), number(size.in_use), Fold::Sum);
    metrics.shard_keys.fold(labels(), number(size.keys), Fold::Sum);
    total.in_use += size.in_use;
    // The shard map's rows are not anybody's keys.
    if group != GroupId::META {
        total.keys += size.keys;
        total.revisions += size.revisions;
    }
}
