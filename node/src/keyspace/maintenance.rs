//! What etcd's maintenance and cluster services ask of a keyspace: of the member that answers, not of keys.

use super::RoutedKeyspace;
use crate::endpoints::with_port;
use crate::local::{broken, elsewhere, failed};
use crate::members::MemberInfo;
use althing_api::keyspace::{Consistency, Header, Keyspace, KeyspaceError, MemberEntry, Status};
use althing_raft::ids::{GroupId, MemberId};
use althing_raft::roster::Footprint;
use althing_store::ops::OpError;
use althing_store::{SledOptions, StoreError};
use bytes::Bytes;
use std::sync::Arc;

impl RoutedKeyspace {
    pub(super) async fn status_here(&self) -> Result<(Header, Status), KeyspaceError> {
        let shared = self.shared();
        let first = self.first();
        let group = if self.ground.local.has(first) {
            first
        } else {
            GroupId::META
        };
        let store = self.ground.local.store(group)?;
        let size = elsewhere(move || store.size()).await?.map_err(|error| broken(&error))?;
        let views = shared.views().await;
        let (_, view) = views
            .into_iter()
            .find(|(id, _)| *id == group)
            .ok_or(KeyspaceError::Stopped)?;
        let soft = &view.raft.soft;
        let mut errors = Vec::new();
        if soft.leader.is_none() {
            errors.push("etcdserver: no leader".to_owned());
        }
        if self.short_of_space() {
            errors.push("etcdserver: mvcc: database space exceeded".to_owned());
        }
        let chart = self.ground.atlas.chart();
        let quota = chart
            .state
            .keyspaces
            .get(&self.id)
            .and_then(|record| record.quota_bytes);
        let status = Status {
            db_size: i64::try_from(size.on_disk).unwrap_or(i64::MAX),
            db_size_in_use: i64::try_from(size.in_use).unwrap_or(i64::MAX),
            db_size_quota: i64::try_from(quota.unwrap_or_default()).unwrap_or(i64::MAX),
            leader: soft.leader.map(|leader| leader.0).unwrap_or_default(),
            raft_index: view.raft.commit.0,
            raft_term: soft.term.0,
            raft_applied_index: view.applied.index.0,
            errors,
            is_learner: soft.config.learners.contains(&shared.me),
        };
        Ok((self.header(), status))
    }

    pub(super) async fn list_members(
        &self,
        consistency: Consistency,
    ) -> Result<(Header, Vec<MemberEntry>), KeyspaceError> {
        // Members are not keys: only a responder of everything, or the leader, may answer for itself.
        if consistency == Consistency::Linearizable {
            let caught_up = self.shared().catch_up(GroupId::META, Footprint::All).await;
            caught_up.map_err(failed)?;
        }
        let store = self.ground.local.store(GroupId::META)?;
        let config = store.applied().config;
        let chart = self.ground.atlas.chart();
        let port = chart.state.keyspaces.get(&self.id).and_then(|record| record.port);
        let entry = |(member, context): (&MemberId, &Bytes)| {
            let mut info = MemberInfo::decode(context);
            if let Some(port) = port {
                info.client_urls.iter_mut().for_each(|url| *url = with_port(url, port));
            }
            MemberEntry {
                id: member.0,
                name: info.name,
                peer_urls: vec![format!("http://{}", info.peer_address)],
                client_urls: info.client_urls,
                is_learner: config.learners.contains(member),
            }
        };
        Ok((self.header(), store.members().iter().map(entry).collect()))
    }

    pub(super) async fn defragment_engine(&self) -> Result<Header, KeyspaceError> {
        // The engine is every group's.
        let store = self.ground.local.store(GroupId::META)?;
        let shared = Arc::clone(self.shared());
        let (engine, room) = (store.engine().clone(), shared.room.clone());
        let options = SledOptions {
            cache_bytes: shared.config.store_cache_bytes,
        };
        let done = tokio::task::spawn_blocking(move || {
            let mut in_use = 0;
            for (_, store) in shared.groups.all() {
                in_use += store.size()?.in_use;
            }
            // The copy takes about what is in use; without that much to spare it is not begun.
            if !room.takes(in_use / 2) {
                return Ok(None);
            }
            let go_on = || room.takes(0) && !shared.stopping.load(std::sync::atomic::Ordering::Acquire);
            engine.defragment(options, go_on).map(Some)
        });
        match done.await {
            Ok(Ok(Some(done))) => {
                tracing::info!(
                    before = done.before,
                    after = done.after,
                    rows = done.rows,
                    "defragmented the state store"
                );
                Ok(self.header())
            }
            Ok(Ok(None)) => Err(OpError::NoSpace.into()),
            Ok(Err(error @ StoreError::Defragment { .. })) => {
                tracing::warn!(%error, "not defragmented");
                Err(KeyspaceError::TooManyRequests)
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "the state store cannot be defragmented; it is what it was");
                Err(KeyspaceError::Stopped)
            }
            Err(error) => {
                tracing::error!(%error, "the defragmentation ended in a panic");
                Err(KeyspaceError::Stopped)
            }
        }
    }
}
