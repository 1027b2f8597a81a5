//! Wire requests to parsed operations, with etcd's checks in etcd's order.
//!
//! Everything that can be told from the request alone is told here; what depends on the state (revisions, leases,
//! missing keys) is the state machine's to say. Source: etcd 3.6, `server/etcdserver/api/v3rpc/key.go`.

use crate::errors::RequestError;
use crate::keyspace::Consistency;
use crate::overlap;
use crate::pb::etcdserverpb as pb;
use althing_store::ops::{
    Compare, CompareOp, CompareTarget, Delete, Descending, KeyRange, Op, Put, Range, Revision, SortTarget, Txn,
};
use bytes::Bytes;

/// As a range's end: every key from the start on.
const TO_THE_END: &[u8] = b"\0";

/// The keys that a key and an end mean.
fn key_range(key: Bytes, range_end: Bytes) -> Result<KeyRange, RequestError> {
    if key.is_empty() {
        return Err(RequestError::EmptyKey);
    }
    Ok(if range_end.is_empty() {
        KeyRange::Single(key)
    } else if range_end == TO_THE_END {
        KeyRange::From(key)
    } else {
        KeyRange::Between(key, range_end)
    })
}

/// A read, and whether it must see every acknowledged write.
///
/// # Errors
/// Empty key, unknown sort.
pub fn range(request: pb::RangeRequest) -> Result<(Range, Consistency), RequestError> {
    use pb::range_request::{SortOrder, SortTarget as WireTarget};
    let consistency = consistency(request.serializable);
    let keys = key_range(request.key, request.range_end)?;
    let order = SortOrder::try_from(request.sort_order).map_err(|_| RequestError::InvalidSortOption)?;
    let target = match WireTarget::try_from(request.sort_target).map_err(|_| RequestError::InvalidSortOption)? {
        WireTarget::Key => SortTarget::Key,
        WireTarget::Version => SortTarget::Version,
        WireTarget::Create => SortTarget::Create,
        WireTarget::Mod => SortTarget::Mod,
        WireTarget::Value => SortTarget::Value,
    };
    let sort = match (target, order) {
        // The order the store reads in.
        (SortTarget::Key, SortOrder::None | SortOrder::Ascend) => None,
        (_, SortOrder::None | SortOrder::Ascend) => Some((target, Descending(false))),
        (_, SortOrder::Descend) => Some((target, Descending(true))),
    };
    let range = Range {
        keys,
        revision: (request.revision > 0).then_some(Revision(request.revision)),
        limit: u64::try_from(request.limit).ok().filter(|limit| *limit > 0),
        sort,
        keys_only: request.keys_only,
        count_only: request.count_only,
        mod_revision: (request.min_mod_revision, request.max_mod_revision),
        create_revision: (request.min_create_revision, request.max_create_revision),
    };
    Ok((range, consistency))
}

/// A write of one key.
///
/// # Errors
/// Empty key, value or lease beside the wish to keep the present one.
pub fn put(request: pb::PutRequest) -> Result<Put, RequestError> {
    if request.key.is_empty() {
        return Err(RequestError::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(RequestError::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(RequestError::LeaseProvided);
    }
    Ok(Put {
        key: request.key,
        value: (!request.ignore_value).then_some(request.value),
        lease: (!request.ignore_lease).then_some(request.lease),
        prev_kv: request.prev_kv,
    })
}

/// A removal.
///
/// # Errors
/// Empty key.
pub fn delete(request: pb::DeleteRangeRequest) -> Result<Delete, RequestError> {
    Ok(Delete {
        keys: key_range(request.key, request.range_end)?,
        prev_kv: request.prev_kv,
    })
}

/// A transaction, and whether it must see every acknowledged write: not if it only reads ranges that need not.
///
/// # Errors
/// More than `max_ops` comparisons or operations on one level (each level's largest list counts against the levels
/// below it), whatever its operations are refused for, and a key that one branch would change twice.
pub fn txn(request: pb::TxnRequest, max_ops: usize) -> Result<(Txn, Consistency), RequestError> {
    let serializable = request
        .success
        .iter()
        .chain(&request.failure)
        .all(|op| match &op.request {
            Some(pb::request_op::Request::RequestRange(range)) => range.serializable,
            Some(
                pb::request_op::Request::RequestPut(_)
                | pb::request_op::Request::RequestDeleteRange(_)
                | pb::request_op::Request::RequestTxn(_),
            )
            | None => false,
        });
    let txn = txn_level(request, max_ops)?;
    overlap::check(&txn)?;
    Ok((txn, consistency(serializable)))
}

fn txn_level(request: pb::TxnRequest, max_ops: usize) -> Result<Txn, RequestError> {
    let width = request
        .compare
        .len()
        .max(request.success.len())
        .max(request.failure.len());
    let below = max_ops.checked_sub(width).ok_or(RequestError::TooManyOps)?;
    let branch = |ops: Vec<pb::RequestOp>| {
        ops.into_iter()
            .map(|wire| op(wire, below))
            .collect::<Result<Vec<_>, _>>()
    };
    Ok(Txn {
        compares: request.compare.into_iter().map(compare).collect::<Result<_, _>>()?,
        success: branch(request.success)?,
        failure: branch(request.failure)?,
    })
}

fn op(wire: pb::RequestOp, max_ops: usize) -> Result<Op, RequestError> {
    use pb::request_op::Request;
    Ok(match wire.request {
        Some(Request::RequestRange(request)) => Op::Range(range(request)?.0),
        Some(Request::RequestPut(request)) => Op::Put(put(request)?),
        Some(Request::RequestDeleteRange(request)) => Op::Delete(delete(request)?),
        Some(Request::RequestTxn(request)) => Op::Txn(txn_level(request, max_ops)?),
        None => return Err(RequestError::EmptyOp),
    })
}

/// One comparison. A target without its value compares with zero or the empty value, as in etcd: old clients leave
/// defaults off the wire.
fn compare(wire: pb::Compare) -> Result<Compare, RequestError> {
    use pb::compare::{CompareResult, CompareTarget as WireTarget, TargetUnion};
    let keys = key_range(wire.key, wire.range_end)?;
    let op = match CompareResult::try_from(wire.result).map_err(|_| RequestError::InvalidCompareOption)? {
        CompareResult::Equal => CompareOp::Equal,
        CompareResult::Greater => CompareOp::Greater,
        CompareResult::Less => CompareOp::Less,
        CompareResult::NotEqual => CompareOp::NotEqual,
    };
    let target = match WireTarget::try_from(wire.target).map_err(|_| RequestError::InvalidCompareOption)? {
        WireTarget::Version => CompareTarget::Version(match wire.target_union {
            Some(TargetUnion::Version(version)) => version,
            _ => 0,
        }),
        WireTarget::Create => CompareTarget::Create(match wire.target_union {
            Some(TargetUnion::CreateRevision(revision)) => revision,
            _ => 0,
        }),
        WireTarget::Mod => CompareTarget::Mod(match wire.target_union {
            Some(TargetUnion::ModRevision(revision)) => revision,
            _ => 0,
        }),
        WireTarget::Value => CompareTarget::Value(match wire.target_union {
            Some(TargetUnion::Value(value)) => value,
            _ => Bytes::new(),
        }),
        WireTarget::Lease => CompareTarget::Lease(match wire.target_union {
            Some(TargetUnion::Lease(lease)) => lease,
            _ => 0,
        }),
    };
    Ok(Compare { keys, op, target })
}

const fn consistency(serializable: bool) -> Consistency {
    if serializable {
        Consistency::Serializable
    } else {
        Consistency::Linearizable
    }
}
