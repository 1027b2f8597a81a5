//! Results to wire answers. Headers inside a transaction carry the revision alone, and that of a
//! nested transaction nothing, as etcd's do.

use crate::keyspace::{Alarm, Header, MemberEntry, Status};
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb;
use althing_store::ops::{KeyValue, OpResult, RangeResult, Revision};

/// The header of an answer.
#[must_use]
pub fn header(header: Header) -> pb::ResponseHeader {
    pb::ResponseHeader {
        cluster_id: header.cluster_id,
        member_id: header.member_id,
        revision: header.revision.0,
        raft_term: header.raft_term,
    }
}

/// The header of an answer that is not about keys: it has no revision.
#[must_use]
pub fn header_without_revision(of: Header) -> pb::ResponseHeader {
    pb::ResponseHeader {
        revision: 0,
        ..header(of)
    }
}

/// The header of one operation of a transaction.
fn nested_header(revision: Revision) -> pb::ResponseHeader {
    pb::ResponseHeader {
        revision: revision.0,
        ..pb::ResponseHeader::default()
    }
}

fn key_value(kv: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key,
        create_revision: kv.create_revision.0,
        mod_revision: kv.mod_revision.0,
        version: kv.version,
        value: kv.value,
        lease: kv.lease,
    }
}

/// Keys found.
#[must_use]
pub fn range(header: pb::ResponseHeader, result: RangeResult) -> pb::RangeResponse {
    pb::RangeResponse {
        header: Some(header),
        kvs: result.kvs.into_iter().map(key_value).collect(),
        more: result.more,
        count: result.count,
    }
}

/// A key is written.
#[must_use]
pub fn put(header: pb::ResponseHeader, prev: Option<KeyValue>) -> pb::PutResponse {
    pb::PutResponse {
        header: Some(header),
        prev_kv: prev.map(key_value),
    }
}

/// Keys are removed.
#[must_use]
pub fn delete(header: pb::ResponseHeader, deleted: i64, prev: Vec<KeyValue>) -> pb::DeleteRangeResponse {
    pb::DeleteRangeResponse {
        header: Some(header),
        deleted,
        prev_kvs: prev.into_iter().map(key_value).collect(),
    }
}

/// A transaction has run. `None` if a result in it is of an operation that no transaction holds.
#[must_use]
pub fn txn(header: pb::ResponseHeader, succeeded: bool, results: Vec<(Revision, OpResult)>) -> Option<pb::TxnResponse> {
    let responses = results
        .into_iter()
        .map(|(revision, result)| response_op(revision, result))
        .collect::<Option<_>>()?;
    Some(pb::TxnResponse {
        header: Some(header),
        succeeded,
        responses,
    })
}

fn response_op(revision: Revision, result: OpResult) -> Option<pb::ResponseOp> {
    use pb::response_op::Response;
    let header = nested_header(revision);
    let response = match result {
        OpResult::Range(result) => Response::ResponseRange(range(header, result)),
        OpResult::Put { prev } => Response::ResponsePut(put(header, prev)),
        OpResult::Delete { deleted, prev } => Response::ResponseDeleteRange(delete(header, deleted, prev)),
        // etcd leaves the header of a nested transaction empty; its operations have theirs.
        OpResult::Txn { succeeded, results } => {
            let header = pb::ResponseHeader::default();
            Response::ResponseTxn(txn(header, succeeded, results)?)
        }
        OpResult::Compact | OpResult::Shard(_) => return None,
    };
    Some(pb::ResponseOp {
        response: Some(response),
    })
}

/// A member, listed.
#[must_use]
pub fn member(member: MemberEntry) -> pb::Member {
    pb::Member {
        id: member.id,
        name: member.name,
        peer_ur_ls: member.peer_urls,
        client_ur_ls: member.client_urls,
        is_learner: member.is_learner,
    }
}

/// The version of the etcd API that we speak, where clients ask for the server's version.
///
/// Clients parse it and switch features by it: kube-apiserver uses progress requests from 3.5.13 on, etcdctl prints
/// it. It says nothing about Althing's own version, which is in `/v1/status` of the HTTP admin port.
pub const ETCD_API_VERSION: &str = "3.6.0";

/// The data format's version in etcd's counting, where clients ask for it: that of [`ETCD_API_VERSION`]'s first
/// release. etcd's own downgrade checks read it; Althing's format has a version of its own.
pub const ETCD_STORAGE_VERSION: &str = "3.6.0";

/// How the member is.
#[must_use]
pub fn status(of: Header, status: Status) -> pb::StatusResponse {
    let mut errors = status.errors;
    if status.leader == 0 {
        errors.insert(0, "etcdserver: no leader".to_owned());
    }
    pb::StatusResponse {
        header: Some(header(of)),
        version: ETCD_API_VERSION.to_owned(),
        // etcdctl's table divides by the size; a new member's must not be 0.
        db_size: status.db_size.max(1),
        leader: status.leader,
        raft_index: status.raft_index,
        raft_term: status.raft_term,
        raft_applied_index: status.raft_applied_index,
        errors,
        db_size_in_use: status.db_size_in_use,
        is_learner: status.is_learner,
        storage_version: ETCD_STORAGE_VERSION.to_owned(),
        db_size_quota: status.db_size_quota,
        downgrade_info: Some(pb::DowngradeInfo::default()),
    }
}

/// An alarm of this member.
#[must_use]
pub fn alarm(member_id: u64, alarm: Alarm) -> pb::AlarmMember {
    let alarm = match alarm {
        Alarm::NoSpace => pb::AlarmType::Nospace,
        Alarm::Corrupt => pb::AlarmType::Corrupt,
    };
    pb::AlarmMember {
        member_id,
        alarm: alarm.into(),
    }
}
