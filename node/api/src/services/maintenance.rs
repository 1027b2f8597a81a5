//! `etcdserverpb.Maintenance`: care of one member.

use super::admit;
use crate::errors::{status_of, unsupported};
use crate::keyspace::Keyspace;
use crate::pb::etcdserverpb as pb;
use crate::render;
use futures::stream::Empty;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Care of the member behind one keyspace.
pub(crate) struct MaintenanceService {
    keyspace: Arc<dyn Keyspace>,
}

impl MaintenanceService {
    pub(crate) fn new(keyspace: Arc<dyn Keyspace>) -> Self {
        Self { keyspace }
    }
}

#[tonic::async_trait]
impl pb::maintenance_server::Maintenance for MaintenanceService {
    /// Lists this member's alarms. They follow their cause, so that clearing one leaves those whose cause is still
    /// there, and the answer is what is left.
    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        use pb::alarm_request::AlarmAction;
        let request = admit(&*self.keyspace, request)?;
        match AlarmAction::try_from(request.action) {
            Ok(AlarmAction::Get | AlarmAction::Deactivate) => {}
            Ok(AlarmAction::Activate) | Err(_) => {
                return Err(unsupported(
                    "Alarm ACTIVATE",
                    "members raise and clear their alarms themselves",
                ));
            }
        }
        let header = self.keyspace.header();
        let alarms = self
            .keyspace
            .alarms()
            .into_iter()
            .map(|alarm| render::alarm(header.member_id, alarm))
            .filter(|alarm| request.member_id == 0 || alarm.member_id == request.member_id)
            .filter(|alarm| request.alarm == i32::from(pb::AlarmType::None) || alarm.alarm == request.alarm)
            .collect();
        Ok(Response::new(pb::AlarmResponse {
            header: Some(render::header(header)),
            alarms,
        }))
    }

    async fn status(&self, request: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        admit(&*self.keyspace, request)?;
        let (header, status) = self.keyspace.status().await.map_err(|error| status_of(&error))?;
        Ok(Response::new(render::status(header, status)))
    }

    /// Copies this member's live state into fresh files and frees the old ones; reads and writes go on beside it.
    async fn defragment(
        &self,
        request: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        admit(&*self.keyspace, request)?;
        let header = self.keyspace.defragment().await.map_err(|error| status_of(&error))?;
        Ok(Response::new(pb::DefragmentResponse {
            header: Some(render::header(header)),
        }))
    }

    async fn hash(&self, _request: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        Err(unsupported("Hash", "compare the members' applied index in Status"))
    }

    async fn hash_kv(&self, _request: Request<pb::HashKvRequest>) -> Result<Response<pb::HashKvResponse>, Status> {
        Err(unsupported("HashKV", "compare the members' applied index in Status"))
    }

    type SnapshotStream = Empty<Result<pb::SnapshotResponse, Status>>;

    async fn snapshot(&self, _request: Request<pb::SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(unsupported(
            "Snapshot",
            "read all keys at one revision instead (`etcdctl get --from-key '' --rev N`)",
        ))
    }

    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        let request = admit(&*self.keyspace, request)?;
        self.keyspace
            .move_leader(request.target_id)
            .await
            .map_err(|error| status_of(&error))?;
        Ok(Response::new(pb::MoveLeaderResponse { header: None }))
    }

    async fn downgrade(
        &self,
        _request: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        Err(unsupported("Downgrade", "set the RaftCluster's spec.version"))
    }
}
