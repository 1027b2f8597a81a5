//! The gRPC services: parse, ask the keyspace, render.

mod cluster;
mod kv;
mod maintenance;

pub(crate) use cluster::ClusterService;
pub(crate) use kv::KvService;
pub(crate) use maintenance::MaintenanceService;

use crate::errors::status_of;
use crate::keyspace::{Keyspace, KeyspaceError};
use tonic::{Request, Status};

/// Metadata by which a client says that it would rather fail than wait for a leader.
const REQUIRE_LEADER: &str = "hasleader";

/// Takes the message out of a request, unless its client requires a leader and there is none.
fn admit<M>(keyspace: &dyn Keyspace, request: Request<M>) -> Result<M, Status> {
    let required = request
        .metadata()
        .get(REQUIRE_LEADER)
        .is_some_and(|value| value.as_bytes() == b"true");
    if required && !keyspace.has_leader() {
        return Err(status_of(&KeyspaceError::NoLeader));
    }
    Ok(request.into_inner())
}
