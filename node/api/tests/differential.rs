//! The same random requests to a real etcd and to us: every answer must be equal but for who gives it.
//!
//! Needs an etcd 3.6 or later, whose path is in `ALTHING_ETCD_BIN`; it is started on loopback, in a folder of its own:
//! `ALTHING_ETCD_BIN=/path/to/etcd cargo test -p althing-api --test differential -- --ignored`.
//! `ALTHING_DIFF_REQUESTS` sets how many requests are sent (default 4000), `ALTHING_DIFF_SEED` which.
#![allow(clippy::disallowed_methods, reason = "a test may look at its environment")]

mod support;

use althing_api::errors::RequestError;
use althing_api::parse;
use althing_api::pb::etcdserverpb::compare::TargetUnion;
use althing_api::pb::etcdserverpb::kv_client::KvClient;
use althing_api::pb::etcdserverpb::request_op::Request as OpRequest;
use althing_api::pb::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, ResponseHeader, TxnRequest,
};
use bytes::Bytes;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use tonic::transport::Channel;
use tonic::{Response, Status};

/// etcd's default.
const MAX_TXN_OPS: usize = 128;

/// One request of any kind.
#[derive(Clone, Debug)]
enum Ask {
    Range(RangeRequest),
    Put(PutRequest),
    Delete(DeleteRangeRequest),
    Txn(TxnRequest),
    Compact(CompactionRequest),
}

/// Few keys, so that requests meet.
fn key() -> impl Strategy<Value = Bytes> {
    prop::sample::select(vec!["a", "a/b", "a0", "b", "c", "c\0", "\u{7f}"]).prop_map(Bytes::from)
}

fn maybe_empty_key() -> impl Strategy<Value = Bytes> {
    prop_oneof![40 => key(), 1 => Just(Bytes::new())]
}

fn range_end() -> impl Strategy<Value = Bytes> {
    prop_oneof![5 => Just(Bytes::new()), 1 => Just(Bytes::from("\0")), 4 => key(), 1 => Just(Bytes::from("d"))]
}

/// Removals in transactions, where etcd misses a put under a range without end and we do not.
fn bounded_end() -> impl Strategy<Value = Bytes> {
    range_end().prop_map(|end| if end == "\0" { Bytes::from("z") } else { end })
}

fn revision() -> impl Strategy<Value = i64> {
    prop_oneof![6 => Just(0), 2 => -2..60_i64, 1 => 0..4000_i64]
}

fn bound() -> impl Strategy<Value = i64> {
    prop_oneof![8 => Just(0), 1 => -1..60_i64, 1 => 0..2000_i64]
}

fn range() -> impl Strategy<Value = RangeRequest> {
    let keys = (maybe_empty_key(), range_end());
    let order = (
        prop_oneof![3 => Just(0), 3 => 0..4_i32],
        prop_oneof![3 => Just(0), 3 => 0..6_i32],
    );
    let shape = (
        prop_oneof![Just(0), -1..5_i64],
        revision(),
        any::<(bool, bool)>(),
        prop::bool::weighted(0.2),
    );
    (keys, order, shape, [bound(), bound(), bound(), bound()]).prop_map(
        |(
            (key, range_end),
            (sort_order, sort_target),
            (limit, revision, (serializable, keys_only), count_only),
            bounds,
        )| RangeRequest {
            key,
            range_end,
            limit,
            revision,
            sort_order,
            sort_target,
            serializable,
            keys_only,
            count_only,
            min_mod_revision: bounds[0],
            max_mod_revision: bounds[1],
            min_create_revision: bounds[2],
            max_create_revision: bounds[3],
        },
    )
}

fn put() -> impl Strategy<Value = PutRequest> {
    let value = prop::sample::select(vec!["", "1", "2", "10"]).prop_map(Bytes::from);
    let rarely = || prop::bool::weighted(0.1);
    let lease = prop_oneof![20 => Just(0), 1 => Just(77)];
    (maybe_empty_key(), value, lease, any::<bool>(), rarely(), rarely()).prop_map(
        |(key, value, lease, prev_kv, ignore_value, ignore_lease)| PutRequest {
            key,
            value,
            lease,
            prev_kv,
            ignore_value,
            ignore_lease,
        },
    )
}

fn delete(end: impl Strategy<Value = Bytes>) -> impl Strategy<Value = DeleteRangeRequest> {
    (maybe_empty_key(), end, any::<bool>()).prop_map(|(key, range_end, prev_kv)| DeleteRangeRequest {
        key,
        range_end,
        prev_kv,
    })
}

fn compare() -> impl Strategy<Value = Compare> {
    let number = || prop_oneof![0..4_i64, 0..60_i64];
    let value = prop::sample::select(vec!["", "1", "2", "10"]).prop_map(Bytes::from);
    let union = prop_oneof![
        number().prop_map(|number| (0, Some(TargetUnion::Version(number)))),
        number().prop_map(|number| (1, Some(TargetUnion::CreateRevision(number)))),
        number().prop_map(|number| (2, Some(TargetUnion::ModRevision(number)))),
        value.prop_map(|value| (3, Some(TargetUnion::Value(value)))),
        number().prop_map(|number| (4, Some(TargetUnion::Lease(number)))),
        (0..5).prop_map(|target| (target, None)),
    ];
    (maybe_empty_key(), range_end(), 0..4, union).prop_map(|(key, range_end, result, (target, target_union))| Compare {
        result,
        target,
        key,
        range_end,
        target_union,
    })
}

fn txn() -> impl Strategy<Value = TxnRequest> {
    let op = |request| RequestOp { request: Some(request) };
    // In a transaction etcd takes a negative revision for a compacted one, alone for the latest; we always for the latest.
    let range = range().prop_map(|range| RangeRequest {
        revision: range.revision.max(0),
        ..range
    });
    let leaf = prop_oneof![
        3 => range.prop_map(move |range| op(OpRequest::RequestRange(range))),
        5 => put().prop_map(move |put| op(OpRequest::RequestPut(put))),
        2 => delete(bounded_end()).prop_map(move |delete| op(OpRequest::RequestDeleteRange(delete))),
    ];
    let ops = leaf.prop_recursive(3, 8, 3, move |inner| {
        let branch = prop::collection::vec(inner, 0..3);
        (prop::collection::vec(compare(), 0..2), branch.clone(), branch).prop_map(move |(compare, success, failure)| {
            op(OpRequest::RequestTxn(TxnRequest {
                compare,
                success,
                failure,
            }))
        })
    });
    let branch = prop::collection::vec(ops, 0..4);
    (prop::collection::vec(compare(), 0..3), branch.clone(), branch).prop_map(|(compare, success, failure)| {
        TxnRequest {
            compare,
            success,
            failure,
        }
    })
}

fn ask() -> impl Strategy<Value = Ask> {
    prop_oneof![
        20 => range().prop_map(Ask::Range),
        20 => put().prop_map(Ask::Put),
        8 => delete(range_end()).prop_map(Ask::Delete),
        40 => txn().prop_map(Ask::Txn),
        1 => (-1..2000_i64).prop_map(|revision| Ask::Compact(CompactionRequest { revision, physical: false })),
    ]
}

/// Whether we knowingly answer otherwise than etcd:
/// - It looks for keys changed twice by nested transactions in their order only; we refuse them in any order.
/// - It cuts at the limit before it sorts if a sort has a target and no order; we sort first, as if ascending was said.
fn differs_knowingly(ask: &Ask) -> bool {
    match ask {
        Ask::Txn(txn) => {
            let mut ops = txn.success.iter().chain(&txn.failure);
            let nested = ops.any(|op| matches!(op.request, Some(OpRequest::RequestTxn(_))));
            let refused = parse::txn(txn.clone(), MAX_TXN_OPS) == Err(RequestError::DuplicateKey);
            (nested && refused) || cuts_unsorted_inside(txn)
        }
        Ask::Range(range) => cuts_unsorted(range),
        Ask::Put(_) | Ask::Delete(_) | Ask::Compact(_) => false,
    }
}

fn cuts_unsorted(range: &RangeRequest) -> bool {
    range.limit > 0 && range.sort_order == 0 && range.sort_target != 0
}

fn cuts_unsorted_inside(txn: &TxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match &op.request {
        Some(OpRequest::RequestRange(range)) => cuts_unsorted(range),
        Some(OpRequest::RequestTxn(nested)) => cuts_unsorted_inside(nested),
        Some(OpRequest::RequestPut(_) | OpRequest::RequestDeleteRange(_)) | None => false,
    })
}

/// The answer as text, without who gave it.
fn told<T: std::fmt::Debug>(
    outcome: Result<Response<T>, Status>,
    header: impl FnOnce(&mut T) -> &mut Option<ResponseHeader>,
) -> String {
    match outcome {
        Ok(answer) => {
            let mut answer = answer.into_inner();
            if let Some(header) = header(&mut answer) {
                (header.cluster_id, header.member_id, header.raft_term) = (0, 0, 0);
            }
            format!("{answer:?}")
        }
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    }
}

async fn answer(kv: &mut KvClient<Channel>, ask: Ask) -> String {
    match ask {
        Ask::Range(request) => told(kv.range(request).await, |answer| &mut answer.header),
        Ask::Put(request) => told(kv.put(request).await, |answer| &mut answer.header),
        Ask::Delete(request) => told(kv.delete_range(request).await, |answer| &mut answer.header),
        Ask::Txn(request) => told(kv.txn(request).await, |answer| &mut answer.header),
        Ask::Compact(request) => told(kv.compact(request).await, |answer| &mut answer.header),
    }
}

/// An etcd that ends with the test.
struct Etcd {
    process: Child,
    url: String,
    _folder: tempfile::TempDir,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // It has nothing to save: the folder goes, too.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Etcd {
    fn start() -> Self {
        let binary = std::env::var_os("ALTHING_ETCD_BIN").expect("ALTHING_ETCD_BIN names an etcd");
        let folder = tempfile::tempdir().expect("a folder");
        let ports = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("loopback has ports"));
        let [client, peer] = ports.map(|port| format!("http://{}", port.local_addr().expect("bound")));
        let mut process = Command::new(binary)
            .arg("--data-dir")
            .arg(folder.path())
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .stderr(Stdio::piped())
            .spawn()
            .expect("etcd starts");
        let mut log = BufReader::new(process.stderr.take().expect("piped"));
        let mut line = String::new();
        while !line.contains("serving client traffic") {
            line.clear();
            let read = log.read_line(&mut line).expect("etcd's log");
            assert!(read > 0, "etcd ended before it served");
        }
        // Its log must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self {
            process,
            url: client,
            _folder: folder,
        }
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

#[tokio::test]
#[ignore = "needs an etcd binary; see the top of this file"]
async fn a_real_etcd_answers_every_request_as_we_do() {
    let etcd = Etcd::start();
    let server = support::start().await;
    let mut ours = KvClient::new(server.channel.clone());
    let mut theirs = KvClient::connect(etcd.url.clone()).await.expect("etcd listens");

    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&setting("ALTHING_DIFF_SEED", 1).to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let mut refused = 0;
    let requests = setting("ALTHING_DIFF_REQUESTS", 4000);
    for number in 0..requests {
        let ask = ask().new_tree(&mut runner).expect("nothing is rejected").current();
        if differs_knowingly(&ask) {
            continue;
        }
        let (we, they) = (
            answer(&mut ours, ask.clone()).await,
            answer(&mut theirs, ask.clone()).await,
        );
        assert_eq!(we, they, "we and etcd differ on request {number}: {ask:#?}");
        refused += u64::from(!we.contains("header"));
    }
    // Both kinds of answer must have been compared.
    assert!(
        refused > requests / 20 && refused < requests / 2,
        "{refused} of {requests} were refused"
    );
}
