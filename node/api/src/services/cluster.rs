//! `etcdserverpb.Cluster`: the list of members. Changes are the operator's, over HTTP admin: it alone knows which
//! pods and volumes belong to them.

use super::admit;
use crate::errors::{status_of, unsupported};
use crate::keyspace::{Consistency, Keyspace};
use crate::pb::etcdserverpb as pb;
use crate::render;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// What to do instead of changing members over gRPC.
const USE_THE_OPERATOR: &str = "scale the RaftCluster, or use /v1/members of the admin port";

/// Members of one cluster.
pub(crate) struct ClusterService {
    keyspace: Arc<dyn Keyspace>,
}

impl ClusterService {
    pub(crate) fn new(keyspace: Arc<dyn Keyspace>) -> Self {
        Self { keyspace }
    }
}

#[tonic::async_trait]
impl pb::cluster_server::Cluster for ClusterService {
    async fn member_add(
        &self,
        _request: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        Err(unsupported("MemberAdd", USE_THE_OPERATOR))
    }

    async fn member_remove(
        &self,
        _request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        Err(unsupported("MemberRemove", USE_THE_OPERATOR))
    }

    async fn member_update(
        &self,
        _request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        Err(unsupported("MemberUpdate", USE_THE_OPERATOR))
    }

    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        let request = admit(&*self.keyspace, request)?;
        let consistency = if request.linearizable {
            Consistency::Linearizable
        } else {
            Consistency::Serializable
        };
        let (header, members) = self
            .keyspace
            .members(consistency)
            .await
            .map_err(|error| status_of(&error))?;
        Ok(Response::new(pb::MemberListResponse {
            header: Some(render::header_without_revision(header)),
            members: members.into_iter().map(render::member).collect(),
        }))
    }

    async fn member_promote(
        &self,
        _request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        Err(unsupported("MemberPromote", USE_THE_OPERATOR))
    }
}
