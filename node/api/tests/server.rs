//! The whole way: client, HTTP/2, services, state machine, and back.

mod support;

use althing_api::Observer;
use althing_api::keyspace::{Alarm, Consistency};
use althing_api::pb::etcdserverpb::alarm_request::AlarmAction;
use althing_api::pb::etcdserverpb::cluster_client::ClusterClient;
use althing_api::pb::etcdserverpb::compare::{CompareTarget, TargetUnion};
use althing_api::pb::etcdserverpb::kv_client::KvClient;
use althing_api::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use althing_api::pb::etcdserverpb::request_op::Request as Op;
use althing_api::pb::etcdserverpb::{
    AlarmRequest, AlarmType, CompactionRequest, Compare, DefragmentRequest, DeleteRangeRequest, HashKvRequest,
    MemberAddRequest, MemberListRequest, MoveLeaderRequest, PutRequest, RangeRequest, RangeResponse, RequestOp,
    SnapshotRequest, StatusRequest, TxnRequest,
};
use expect_test::expect;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{Local, Running, lock, start, start_with};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

fn put(key: &str, value: &str) -> PutRequest {
    PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..PutRequest::default()
    }
}

fn get(key: &str) -> RangeRequest {
    RangeRequest {
        key: key.to_owned().into(),
        ..RangeRequest::default()
    }
}

fn refusal<T: std::fmt::Debug>(outcome: Result<T, Status>) -> (Code, String) {
    let status = outcome.expect_err("a refusal");
    (status.code(), status.message().to_owned())
}

fn refused(code: Code, text: &str) -> (Code, String) {
    (code, text.to_owned())
}

#[tokio::test]
async fn a_key_is_put_read_and_deleted_with_etcds_revisions() {
    let server = start().await;
    let mut kv = KvClient::new(server.channel.clone());
    let mut story = String::new();

    let answer = kv.range(get("a")).await.expect("fresh").into_inner();
    story += &format!("{answer:?}\n");
    let answer = kv.put(put("a", "1")).await.expect("put").into_inner();
    story += &format!("{answer:?}\n");
    let request = PutRequest {
        prev_kv: true,
        ..put("a", "2")
    };
    let answer = kv.put(request).await.expect("put again").into_inner();
    story += &format!("{answer:?}\n");
    let old = RangeRequest {
        revision: 2,
        ..get("a")
    };
    let answer = kv.range(old).await.expect("history").into_inner();
    story += &format!("{answer:?}\n");
    let nothing = DeleteRangeRequest {
        key: "nothing".into(),
        ..DeleteRangeRequest::default()
    };
    let answer = kv.delete_range(nothing).await.expect("delete nothing").into_inner();
    story += &format!("{answer:?}\n");
    let everything = DeleteRangeRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        prev_kv: true,
    };
    let answer = kv.delete_range(everything).await.expect("delete").into_inner();
    story += &format!("{answer:?}\n");

    expect![[r#"
        RangeResponse { header: Some(ResponseHeader { cluster_id: 12, member_id: 10, revision: 1, raft_term: 3 }), kvs: [], more: false, count: 0 }
        PutResponse { header: Some(ResponseHeader { cluster_id: 12, member_id: 10, revision: 2, raft_term: 3 }), prev_kv: None }
        PutResponse { header: Some(ResponseHeader { cluster_id: 12, member_id: 10, revision: 3, raft_term: 3 }), prev_kv: Some(KeyValue { key: b"a", create_revision: 2, mod_revision: 2, version: 1, value: b"1", lease: 0 }) }
        RangeResponse { header: Some(ResponseHeader { cluster_id: 12, member_id: 10, revision: 3, raft_term: 3 }), kvs: [KeyValue { key: b"a", create_revision: 2, mod_revision: 2, version: 1, value: b"1", lease: 0 }], more: false, count: 1 }
        DeleteRangeResponse { header: Some(ResponseHeader { cluster_id: 12, member_id: 10, revision: 3, raft_term: 3 }), deleted: 0, prev_kvs: [] }
        DeleteRangeResponse { header: Some(ResponseHeader { cluster_id: 12, member_id: 10, revision: 4, raft_term: 3 }), deleted: 1, prev_kvs: [KeyValue { key: b"a", create_revision: 2, mod_revision: 3, version: 2, value: b"2", lease: 0 }] }
    "#]]
    .assert_eq(&story);
}

/// kube-apiserver's way to create an object: only if it is not there.
fn create(key: &str, value: &str) -> TxnRequest {
    TxnRequest {
        compare: vec![Compare {
            key: key.to_owned().into(),
            target: CompareTarget::Mod.into(),
            target_union: Some(TargetUnion::ModRevision(0)),
            ..Compare::default()
        }],
        success: vec![RequestOp {
            request: Some(Op::RequestPut(put(key, value))),
        }],
        failure: vec![RequestOp {
            request: Some(Op::RequestRange(get(key))),
        }],
    }
}

#[tokio::test]
async fn a_transaction_creates_once_and_then_reads() {
    let server = start().await;
    let mut kv = KvClient::new(server.channel.clone());
    let mut story = String::new();
    for _ in 0..2 {
        let answer = kv.txn(create("a", "1")).await.expect("a transaction").into_inner();
        story += &format!("{answer:?}\n");
    }
    expect![[r#"
        TxnResponse { header: Some(ResponseHeader { cluster_id: 12, member_id: 10, revision: 2, raft_term: 3 }), succeeded: true, responses: [ResponseOp { response: Some(ResponsePut(PutResponse { header: Some(ResponseHeader { cluster_id: 0, member_id: 0, revision: 2, raft_term: 0 }), prev_kv: None })) }] }
        TxnResponse { header: Some(ResponseHeader { cluster_id: 12, member_id: 10, revision: 2, raft_term: 3 }), succeeded: false, responses: [ResponseOp { response: Some(ResponseRange(RangeResponse { header: Some(ResponseHeader { cluster_id: 0, member_id: 0, revision: 2, raft_term: 0 }), kvs: [KeyValue { key: b"a", create_revision: 2, mod_revision: 2, version: 1, value: b"1", lease: 0 }], more: false, count: 1 })) }] }
    "#]]
    .assert_eq(&story);
}

#[tokio::test]
async fn a_transaction_that_only_reads_is_a_read() {
    let server = start().await;
    let mut kv = KvClient::new(server.channel.clone());
    let local = RangeRequest {
        serializable: true,
        ..get("a")
    };
    let txn = TxnRequest {
        success: vec![RequestOp {
            request: Some(Op::RequestRange(local)),
        }],
        ..TxnRequest::default()
    };
    kv.txn(txn).await.expect("a transaction");
    assert_eq!(*lock(&server.keyspace.reads), [Consistency::Serializable]);
}

#[tokio::test]
async fn compacted_and_future_revisions_are_refused_with_the_texts_clients_match() {
    let server = start().await;
    let mut kv = KvClient::new(server.channel.clone());
    for value in ["1", "2", "3"] {
        kv.put(put("a", value)).await.expect("put");
    }
    let compact = |revision| CompactionRequest {
        revision,
        physical: false,
    };
    let answer = kv.compact(compact(3)).await.expect("compact").into_inner();
    assert_eq!(answer.header.expect("always there").revision, 4);

    let at = |revision| RangeRequest { revision, ..get("a") };
    let compacted = refused(
        Code::OutOfRange,
        "etcdserver: mvcc: required revision has been compacted",
    );
    let future = refused(
        Code::OutOfRange,
        "etcdserver: mvcc: required revision is a future revision",
    );
    assert_eq!(refusal(kv.range(at(2)).await), compacted);
    assert_eq!(
        kv.range(at(3)).await.expect("still readable").into_inner().kvs[0].value,
        "2"
    );
    assert_eq!(refusal(kv.range(at(i64::MAX)).await), future);
    assert_eq!(refusal(kv.compact(compact(3)).await), compacted);
    assert_eq!(refusal(kv.compact(compact(5)).await), future);
}

#[tokio::test]
async fn a_client_that_requires_a_leader_fails_at_once_without_one() {
    let server = start().await;
    server.keyspace.led.store(false, Ordering::SeqCst);
    let mut kv = KvClient::new(server.channel.clone());
    let mut request = Request::new(RangeRequest {
        serializable: true,
        ..get("a")
    });
    request
        .metadata_mut()
        .insert("hasleader", "true".parse().expect("ascii"));
    assert_eq!(
        refusal(kv.range(request).await),
        refused(Code::Unavailable, "etcdserver: no leader")
    );
    // Who does not require one is answered from this member's state.
    let local = RangeRequest {
        serializable: true,
        ..get("a")
    };
    kv.range(local).await.expect("a local read");
}

#[tokio::test]
async fn a_write_over_the_limit_is_refused_in_etcds_words_and_one_far_over_in_grpcs() {
    let server = start().await;
    let mut kv = KvClient::new(server.channel.clone());
    let sized = |bytes: usize| PutRequest {
        key: "a".into(),
        value: vec![b'x'; bytes].into(),
        ..PutRequest::default()
    };
    const LIMIT: usize = 1536 * 1024;
    kv.put(sized(LIMIT - 64)).await.expect("just under the limit");
    assert_eq!(
        refusal(kv.put(sized(LIMIT)).await),
        refused(Code::InvalidArgument, "etcdserver: request is too large")
    );
    let (code, text) = refusal(kv.put(sized(2 * LIMIT)).await);
    assert_eq!(code, Code::ResourceExhausted);
    assert!(text.contains("received message larger than max"), "{text}");
}

#[tokio::test]
async fn a_range_may_be_larger_than_any_request() {
    let server = start().await;
    let mut kv = KvClient::new(server.channel.clone()).max_decoding_message_size(usize::MAX);
    for key in 0..6 {
        let value = vec![b'x'; 1024 * 1024].into();
        let key = format!("k{key}").into();
        kv.put(PutRequest {
            key,
            value,
            ..PutRequest::default()
        })
        .await
        .expect("put");
    }
    let all = RangeRequest {
        range_end: "\0".into(),
        ..get("k")
    };
    let answer = kv.range(all).await.expect("6 MiB").into_inner();
    assert_eq!(answer.kvs.len(), 6);
}

#[tokio::test]
async fn a_thousand_requests_wait_side_by_side_on_one_connection() {
    const REQUESTS: usize = 1000;
    let mut keyspace = Local::new();
    keyspace.gate = Some(tokio::sync::Barrier::new(REQUESTS));
    let server = start_with(keyspace, Arc::new(())).await;
    let requests = (0..REQUESTS).map(|_| {
        let mut kv = KvClient::new(server.channel.clone());
        async move { kv.range(get("a")).await.map(|_| ()) }
    });
    // None is answered before all have arrived.
    tokio::time::timeout(Duration::from_secs(60), futures::future::try_join_all(requests))
        .await
        .expect("all arrive")
        .expect("all are answered");
}

#[tokio::test]
async fn the_member_list_gives_client_urls_and_no_revision() {
    let server = start().await;
    let mut cluster = ClusterClient::new(server.channel.clone());
    let answer = cluster
        .member_list(MemberListRequest { linearizable: true })
        .await
        .expect("members")
        .into_inner();
    expect![[r#"
        MemberListResponse { header: Some(ResponseHeader { cluster_id: 12, member_id: 10, revision: 0, raft_term: 3 }), members: [Member { id: 10, name: "orders-0", peer_ur_ls: ["http://orders-0.orders-peers:2380"], client_ur_ls: ["http://orders-0.orders-peers:2379"], is_learner: false }] }"#]]
    .assert_eq(&format!("{answer:?}"));
    cluster
        .member_list(MemberListRequest { linearizable: false })
        .await
        .expect("members");
    assert_eq!(
        *lock(&server.keyspace.reads),
        [Consistency::Linearizable, Consistency::Serializable]
    );
}

#[tokio::test]
async fn status_tells_what_etcdctl_prints() {
    let server = start().await;
    let mut maintenance = MaintenanceClient::new(server.channel.clone());
    let answer = maintenance.status(StatusRequest {}).await.expect("status").into_inner();
    expect![[r#"
        StatusResponse { header: Some(ResponseHeader { cluster_id: 12, member_id: 10, revision: 1, raft_term: 3 }), version: "3.6.0", db_size: 4096, leader: 10, raft_index: 7, raft_term: 3, raft_applied_index: 6, errors: [], db_size_in_use: 1024, is_learner: false, storage_version: "3.6.0", db_size_quota: 8192, downgrade_info: Some(DowngradeInfo { enabled: false, target_version: "" }) }"#]]
    .assert_eq(&format!("{answer:?}"));
}

#[tokio::test]
async fn alarms_are_listed_by_member_and_kind_and_clear_with_their_cause_only() {
    let server = start().await;
    let mut maintenance = MaintenanceClient::new(server.channel.clone());
    let ask = |action: AlarmAction, member_id, alarm: AlarmType| AlarmRequest {
        action: action.into(),
        member_id,
        alarm: alarm.into(),
    };
    let mut listed = async |request| {
        let answer = maintenance.alarm(request).await.expect("alarms").into_inner();
        answer
            .alarms
            .iter()
            .map(|alarm| (alarm.member_id, alarm.alarm()))
            .collect::<Vec<_>>()
    };
    assert_eq!(listed(ask(AlarmAction::Get, 0, AlarmType::None)).await, []);
    lock(&server.keyspace.alarms).push(Alarm::NoSpace);
    let present = [(0xa, AlarmType::Nospace)];
    assert_eq!(listed(ask(AlarmAction::Get, 0, AlarmType::None)).await, present);
    assert_eq!(listed(ask(AlarmAction::Get, 0xb, AlarmType::None)).await, []);
    assert_eq!(listed(ask(AlarmAction::Get, 0xa, AlarmType::Corrupt)).await, []);
    assert_eq!(
        listed(ask(AlarmAction::Deactivate, 0xa, AlarmType::Nospace)).await,
        present
    );
}

#[tokio::test]
async fn leadership_moves_only_to_who_can_take_it() {
    let server = start().await;
    let mut maintenance = MaintenanceClient::new(server.channel.clone());
    maintenance
        .move_leader(MoveLeaderRequest { target_id: 0xa })
        .await
        .expect("moved");
    assert_eq!(
        refusal(maintenance.move_leader(MoveLeaderRequest { target_id: 9 }).await),
        refused(Code::FailedPrecondition, "etcdserver: bad leader transferee")
    );
}

#[tokio::test]
async fn what_is_declared_and_not_answered_says_what_to_do_instead() {
    let server = start().await;
    let mut cluster = ClusterClient::new(server.channel.clone());
    let mut maintenance = MaintenanceClient::new(server.channel.clone());
    maintenance
        .defragment(DefragmentRequest {})
        .await
        .expect("nothing to do");
    let refusals = [
        refusal(cluster.member_add(MemberAddRequest::default()).await),
        refusal(maintenance.hash_kv(HashKvRequest::default()).await),
        refusal(maintenance.snapshot(SnapshotRequest {}).await),
    ];
    for (code, text) in refusals {
        assert_eq!(code, Code::Unimplemented);
        assert!(text.contains("is not supported by this Althing release; "), "{text}");
    }
}

/// Calls a method that the generated clients do not have.
async fn call(server: &Running, path: &'static str) -> Result<RangeResponse, Status> {
    let mut client = tonic::client::Grpc::new(server.channel.clone());
    client.ready().await.expect("connected");
    let codec = tonic_prost::ProstCodec::<RangeRequest, RangeResponse>::default();
    let path = http::uri::PathAndQuery::from_static(path);
    client
        .unary(Request::new(get("a")), path, codec)
        .await
        .map(tonic::Response::into_inner)
}

#[tokio::test]
async fn services_and_methods_that_are_not_here_are_unimplemented() {
    let server = start().await;
    assert_eq!(
        refusal(call(&server, "/etcdserverpb.Watch/Watch").await),
        refused(
            Code::Unimplemented,
            "etcdserver: etcdserverpb.Watch is not supported by this Althing release"
        )
    );
    // kube-apiserver falls back to Range on this code.
    assert_eq!(
        refusal(call(&server, "/etcdserverpb.KV/RangeStream").await).0,
        Code::Unimplemented
    );
    assert_eq!(
        refusal(call(&server, "/nobody.Knows/This").await).0,
        Code::Unimplemented
    );
}

#[tokio::test]
async fn the_health_service_follows_the_switch() {
    let server = start().await;
    let mut health = HealthClient::new(server.channel.clone());
    let mut check = async |service: &str| {
        let service = service.to_owned();
        health
            .check(HealthCheckRequest { service })
            .await
            .expect("known")
            .into_inner()
            .status()
    };
    assert_eq!(check("").await, ServingStatus::NotServing);
    server.health.refresh(&*server.keyspace).await;
    assert_eq!(check("").await, ServingStatus::Serving);
    assert_eq!(check("etcdserverpb.KV").await, ServingStatus::Serving);
    server.keyspace.led.store(false, Ordering::SeqCst);
    server.health.refresh(&*server.keyspace).await;
    assert_eq!(check("").await, ServingStatus::NotServing);
    server.keyspace.led.store(true, Ordering::SeqCst);
    server.health.refresh(&*server.keyspace).await;
    server.health.shut_down().await;
    assert_eq!(check("").await, ServingStatus::NotServing);
}

/// Status line and body of a plain HTTP/1.1 GET, as probes send it.
async fn http_get(server: &Running, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(server.address).await.expect("the server listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
}

#[tokio::test]
async fn probes_over_plain_http_are_answered_as_by_etcd() {
    let server = start().await;
    let mut story = String::new();
    let mut ask = async |what: &str, paths: &[&str]| {
        story += &format!("{what}:\n");
        for path in paths {
            let (status, body) = http_get(&server, path).await;
            story += &format!("{path} -> {status}: {}\n", body.trim());
        }
    };
    ask("led", &["/health", "/livez", "/readyz", "/version", "/nothing"]).await;
    server.keyspace.led.store(false, Ordering::SeqCst);
    ask(
        "without leader",
        &["/health", "/health?serializable=true", "/livez", "/readyz"],
    )
    .await;
    server.keyspace.led.store(true, Ordering::SeqCst);
    lock(&server.keyspace.alarms).push(Alarm::NoSpace);
    ask("out of space", &["/health", "/health?exclude=NOSPACE", "/readyz"]).await;
    expect![[r#"
        led:
        /health -> HTTP/1.1 200 OK: {"health":"true","reason":""}
        /livez -> HTTP/1.1 200 OK: ok
        /readyz -> HTTP/1.1 200 OK: ok
        /version -> HTTP/1.1 200 OK: {"etcdserver":"3.6.0","etcdcluster":"3.6.0","storage":"3.6.0"}
        /nothing -> HTTP/1.1 404 Not Found: 404 page not found
        without leader:
        /health -> HTTP/1.1 503 Service Unavailable: {"health":"false","reason":"RAFT NO LEADER"}
        /health?serializable=true -> HTTP/1.1 200 OK: {"health":"true","reason":""}
        /livez -> HTTP/1.1 200 OK: ok
        /readyz -> HTTP/1.1 503 Service Unavailable: not ok: etcdserver: request timed out
        out of space:
        /health -> HTTP/1.1 503 Service Unavailable: {"health":"false","reason":"ALARM NOSPACE"}
        /health?exclude=NOSPACE -> HTTP/1.1 200 OK: {"health":"true","reason":""}
        /readyz -> HTTP/1.1 200 OK: ok
    "#]]
    .assert_eq(&story);
}

/// Keeps what it sees.
#[derive(Default)]
struct Seen(Mutex<Vec<(&'static str, Code)>>);

impl Observer for Seen {
    fn observe(&self, method: &'static str, code: Code, _duration: Duration) {
        lock(&self.0).push((method, code));
    }
}

#[tokio::test]
async fn the_observer_sees_method_and_code_of_every_request() {
    let seen = Arc::new(Seen::default());
    let server = start_with(Local::new(), Arc::<Seen>::clone(&seen)).await;
    let mut kv = KvClient::new(server.channel.clone());
    kv.put(put("a", "1")).await.expect("put");
    kv.range(get("")).await.expect_err("no key");
    call(&server, "/nobody.Knows/This").await.expect_err("unknown");
    assert_eq!(
        *lock(&seen.0),
        [
            ("etcdserverpb.KV/Put", Code::Ok),
            ("etcdserverpb.KV/Range", Code::InvalidArgument),
            ("other", Code::Unimplemented),
        ]
    );
}
