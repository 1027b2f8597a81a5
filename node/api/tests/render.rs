//! What clients read, exactly.

use althing_api::errors::{RequestError, status_of};
use althing_api::keyspace::{Header, KeyspaceError, Status};
use althing_api::pb::etcdserverpb::response_op::Response;
use althing_api::render;
use althing_store::ops::{KeyValue, OpError, OpResult, RangeResult, Revision};
use bytes::Bytes;
use expect_test::expect;

const HEADER: Header = Header {
    cluster_id: 1,
    member_id: 2,
    revision: Revision(30),
    raft_term: 4,
};

fn kv(key: &'static str) -> KeyValue {
    KeyValue {
        key: Bytes::from_static(key.as_bytes()),
        create_revision: Revision(5),
        mod_revision: Revision(6),
        version: 7,
        value: Bytes::from_static(b"v"),
        lease: 8,
    }
}

#[test]
fn every_refusal_has_etcds_code_and_text() {
    let keyspace = [
        KeyspaceError::Op(OpError::Compacted),
        KeyspaceError::Op(OpError::FutureRevision),
        KeyspaceError::Op(OpError::KeyNotFound),
        KeyspaceError::Op(OpError::LeaseNotFound),
        KeyspaceError::Op(OpError::NoSpace),
        KeyspaceError::NoLeader,
        KeyspaceError::LeaderChanged,
        KeyspaceError::Timeout,
        KeyspaceError::TooManyRequests,
        KeyspaceError::TooLarge,
        KeyspaceError::Stopped,
        KeyspaceError::Learner,
        KeyspaceError::NotLeader,
        KeyspaceError::BadTransferee,
    ];
    let request = [
        RequestError::EmptyKey,
        RequestError::EmptyOp,
        RequestError::ValueProvided,
        RequestError::LeaseProvided,
        RequestError::TooManyOps,
        RequestError::DuplicateKey,
        RequestError::InvalidSortOption,
        RequestError::TooLarge,
    ];
    let statuses = keyspace.iter().map(status_of).chain(request.map(tonic::Status::from));
    let table: String = statuses
        .map(|status| format!("{:?}: {}\n", status.code(), status.message()))
        .collect();
    expect![[r#"
        OutOfRange: etcdserver: mvcc: required revision has been compacted
        OutOfRange: etcdserver: mvcc: required revision is a future revision
        InvalidArgument: etcdserver: key not found
        NotFound: etcdserver: requested lease not found
        ResourceExhausted: etcdserver: mvcc: database space exceeded
        Unavailable: etcdserver: no leader
        Unavailable: etcdserver: leader changed
        Unavailable: etcdserver: request timed out
        ResourceExhausted: etcdserver: too many requests
        InvalidArgument: etcdserver: request is too large
        Unavailable: etcdserver: server stopped
        FailedPrecondition: etcdserver: rpc not supported for learner
        FailedPrecondition: etcdserver: not leader
        FailedPrecondition: etcdserver: bad leader transferee
        InvalidArgument: etcdserver: key is not provided
        InvalidArgument: etcdserver: key not found
        InvalidArgument: etcdserver: value is provided
        InvalidArgument: etcdserver: lease is provided
        InvalidArgument: etcdserver: too many operations in txn request
        InvalidArgument: etcdserver: duplicate key given in txn request
        InvalidArgument: etcdserver: invalid sort option
        InvalidArgument: etcdserver: request is too large
    "#]]
    .assert_eq(&table);
}

#[test]
fn a_refused_write_that_may_have_taken_effect_never_reads_like_one_that_was_not_sent() {
    // etcd's Go client sends a write again only on these two texts.
    for error in [
        KeyspaceError::Timeout,
        KeyspaceError::LeaderChanged,
        KeyspaceError::Stopped,
    ] {
        let text = status_of(&error).message().to_owned();
        assert!(!text.contains("there is no address available") && !text.contains("no connection available"));
    }
}

#[test]
fn headers_inside_a_transaction_carry_the_revision_alone_and_of_a_nested_one_nothing() {
    let range = RangeResult {
        kvs: vec![kv("a")],
        more: true,
        count: 9,
    };
    let inner = OpResult::Txn {
        succeeded: false,
        results: vec![(Revision(21), OpResult::Put { prev: None })],
    };
    let results = vec![
        (Revision(20), OpResult::Range(range)),
        (
            Revision(21),
            OpResult::Delete {
                deleted: 1,
                prev: vec![kv("b")],
            },
        ),
        (Revision(21), inner),
    ];
    let answer = render::txn(render::header(HEADER), true, results).expect("all of a transaction's kinds");
    let outer = answer.header.expect("always there");
    assert_eq!(
        (outer.cluster_id, outer.member_id, outer.revision, outer.raft_term),
        (1, 2, 30, 4)
    );
    let headers: String = answer
        .responses
        .into_iter()
        .map(|response| match response.response.expect("always there") {
            Response::ResponseRange(range) => format!("range {:?}\n", range.header),
            Response::ResponsePut(put) => format!("put {:?}\n", put.header),
            Response::ResponseDeleteRange(delete) => format!("delete {:?}\n", delete.header),
            Response::ResponseTxn(txn) => format!("txn {:?} {:?}\n", txn.header, txn.responses),
        })
        .collect();
    expect![[r#"
        range Some(ResponseHeader { cluster_id: 0, member_id: 0, revision: 20, raft_term: 0 })
        delete Some(ResponseHeader { cluster_id: 0, member_id: 0, revision: 21, raft_term: 0 })
        txn Some(ResponseHeader { cluster_id: 0, member_id: 0, revision: 0, raft_term: 0 }) [ResponseOp { response: Some(ResponsePut(PutResponse { header: Some(ResponseHeader { cluster_id: 0, member_id: 0, revision: 21, raft_term: 0 }), prev_kv: None })) }]
    "#]]
    .assert_eq(&headers);
}

#[test]
fn a_compaction_in_a_transactions_results_is_not_rendered() {
    let results = vec![(Revision(20), OpResult::Compact)];
    assert_eq!(render::txn(render::header(HEADER), true, results), None);
}

#[test]
fn every_field_of_a_key_arrives() {
    let answer = render::range(
        render::header(HEADER),
        RangeResult {
            kvs: vec![kv("a")],
            more: true,
            count: 9,
        },
    );
    let kv = &answer.kvs[0];
    assert_eq!((&kv.key[..], &kv.value[..]), (&b"a"[..], &b"v"[..]));
    assert_eq!(
        (kv.create_revision, kv.mod_revision, kv.version, kv.lease),
        (5, 6, 7, 8)
    );
    assert_eq!((answer.more, answer.count), (true, 9));
}

fn status() -> Status {
    Status {
        db_size: 0,
        db_size_in_use: 0,
        db_size_quota: 0,
        leader: 0,
        raft_index: 1,
        raft_term: 2,
        raft_applied_index: 3,
        errors: vec!["disk is slow".to_owned()],
        is_learner: true,
    }
}

#[test]
fn the_size_of_an_empty_database_is_not_zero_because_etcdctl_divides_by_it() {
    assert_eq!(render::status(HEADER, status()).db_size, 1);
}

#[test]
fn a_member_without_leader_says_so_among_its_errors() {
    assert_eq!(
        render::status(HEADER, status()).errors,
        ["etcdserver: no leader", "disk is slow"]
    );
    let led = Status { leader: 2, ..status() };
    assert_eq!(render::status(HEADER, led).errors, ["disk is slow"]);
}

#[test]
fn the_version_parses_as_three_numbers_and_allows_progress_requests() {
    // kube-apiserver: at least 3.4.31, and not from 3.5.0 up to 3.5.13.
    let numbers: Vec<u32> = render::ETCD_API_VERSION
        .split('.')
        .map(|part| part.parse().expect("a number"))
        .collect();
    assert_eq!(numbers.len(), 3);
    assert!(numbers >= vec![3, 5, 13]);
}
