//! `etcdserverpb.KV`.

use super::admit;
use crate::errors::{RequestError, mismatched, status_of};
use crate::keyspace::{Header, Keyspace};
use crate::pb::etcdserverpb as pb;
use crate::server::Limits;
use crate::{parse, render};
use althing_store::ops::{Command, OpResult, Revision};
use prost::Message;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Keys of one keyspace.
pub(crate) struct KvService {
    keyspace: Arc<dyn Keyspace>,
    limits: Limits,
}

impl KvService {
    pub(crate) fn new(keyspace: Arc<dyn Keyspace>, limits: Limits) -> Self {
        Self { keyspace, limits }
    }

    /// Refuses what would be too large for the log.
    fn check_size(&self, request: &impl Message) -> Result<(), Status> {
        if request.encoded_len() > self.limits.max_request_bytes {
            return Err(RequestError::TooLarge.into());
        }
        Ok(())
    }

    async fn execute(&self, command: Command) -> Result<(Header, OpResult), Status> {
        self.keyspace.execute(command).await.map_err(|error| status_of(&error))
    }
}

#[tonic::async_trait]
impl pb::kv_server::Kv for KvService {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        let (range, consistency) = parse::range(admit(&*self.keyspace, request)?)?;
        let (header, result) = self
            .keyspace
            .range(range, consistency)
            .await
            .map_err(|error| status_of(&error))?;
        Ok(Response::new(render::range(render::header(header), result)))
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        let request = admit(&*self.keyspace, request)?;
        let size = self.check_size(&request);
        let put = parse::put(request)?;
        size?;
        match self.execute(Command::Put(put)).await? {
            (header, OpResult::Put { prev }) => Ok(Response::new(render::put(render::header(header), prev))),
            (
                _,
                OpResult::Range(_)
                | OpResult::Delete { .. }
                | OpResult::Txn { .. }
                | OpResult::Compact
                | OpResult::Shard(_),
            ) => Err(mismatched("Put")),
        }
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        let request = admit(&*self.keyspace, request)?;
        let size = self.check_size(&request);
        let delete = parse::delete(request)?;
        size?;
        match self.execute(Command::Delete(delete)).await? {
            (header, OpResult::Delete { deleted, prev }) => {
                Ok(Response::new(render::delete(render::header(header), deleted, prev)))
            }
            (
                _,
                OpResult::Range(_)
                | OpResult::Put { .. }
                | OpResult::Txn { .. }
                | OpResult::Compact
                | OpResult::Shard(_),
            ) => Err(mismatched("DeleteRange")),
        }
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        let request = admit(&*self.keyspace, request)?;
        let size = self.check_size(&request);
        let (txn, consistency) = parse::txn(request, self.limits.max_txn_ops)?;
        let (header, result) = if txn.read_only() {
            self.keyspace
                .read_txn(txn, consistency)
                .await
                .map_err(|error| status_of(&error))?
        } else {
            size?;
            self.execute(Command::Txn(txn)).await?
        };
        let response = match result {
            OpResult::Txn { succeeded, results } => render::txn(render::header(header), succeeded, results),
            OpResult::Range(_)
            | OpResult::Put { .. }
            | OpResult::Delete { .. }
            | OpResult::Compact
            | OpResult::Shard(_) => None,
        };
        response.map(Response::new).ok_or_else(|| mismatched("Txn"))
    }

    /// `physical` changes nothing: the answer comes when this member has applied the compaction, and the state store
    /// reuses the space of forgotten history by itself.
    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        let request = admit(&*self.keyspace, request)?;
        match self.execute(Command::Compact(Revision(request.revision))).await? {
            (header, OpResult::Compact) => Ok(Response::new(pb::CompactionResponse {
                header: Some(render::header(header)),
            })),
            (
                _,
                OpResult::Range(_)
                | OpResult::Put { .. }
                | OpResult::Delete { .. }
                | OpResult::Txn { .. }
                | OpResult::Shard(_),
            ) => Err(mismatched("Compact")),
        }
    }
}
