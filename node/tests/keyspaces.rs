//! Several keyspaces on one cluster: each is an etcd of its own, found by name and by port.
#![allow(clippy::unwrap_used, reason = "a failing step is the test's failure")]

mod support;

use althing_admin::client::AdminError;
use althing_admin::{KeyspaceRequest, KeyspaceState, KeyspaceStatus, Partitioning, ProblemReason, ShardKind};
use althing_api::pb::etcdserverpb::cluster_client::ClusterClient;
use althing_api::pb::etcdserverpb::kv_client::KvClient;
use althing_api::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use althing_api::pb::etcdserverpb::{
    AlarmRequest, AlarmType, CompactionRequest, DeleteRangeRequest, MemberListRequest, PutRequest, RangeRequest,
    StatusRequest,
};
use support::{Node, eventually};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

fn asked(shards: u32) -> KeyspaceRequest {
    KeyspaceRequest {
        shards,
        ..KeyspaceRequest::default()
    }
}

/// A client of a port that calls the host so.
async fn channel(node: &Node, port: u16, host: &str) -> Channel {
    let address = node.client_address().replace(":2379", &format!(":{port}"));
    let origin = format!("http://{host}").parse().unwrap();
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .unwrap()
        .origin(origin);
    eventually("somebody listens", || async {
        endpoint.connect().await.map_err(|error| format!("{error:?}"))
    })
    .await
}

/// Puts, and says at which revision.
async fn put(channel: &Channel, key: &str, value: &str) -> i64 {
    let request = PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..PutRequest::default()
    };
    let answer = KvClient::new(channel.clone()).put(request).await.unwrap();
    answer.into_inner().header.unwrap().revision
}

async fn get(channel: &Channel, key: &str) -> Option<String> {
    let request = RangeRequest {
        key: key.to_owned().into(),
        ..RangeRequest::default()
    };
    let answer = KvClient::new(channel.clone())
        .range(request)
        .await
        .unwrap()
        .into_inner();
    let kv = answer.kvs.first()?;
    Some(String::from_utf8(kv.value.to_vec()).unwrap())
}

async fn becomes(node: &Node, name: &str, is: impl Fn(&KeyspaceStatus) -> bool) -> KeyspaceStatus {
    eventually(&format!("keyspace {name} is as asked"), || async {
        let all = node.admin().keyspaces().await.map_err(|error| error.to_string())?;
        let found = all.keyspaces.into_iter().find(|keyspace| keyspace.name == name);
        match found {
            Some(found) if is(&found) => Ok(found),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

fn reason<T: std::fmt::Debug>(outcome: Result<T, AdminError>) -> ProblemReason {
    match outcome.unwrap_err() {
        AdminError::Refused { problem, .. } => problem.reason,
        error @ AdminError::Transport { .. } => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keyspaces_are_made_used_and_dropped_while_the_default_one_goes_on() {
    let node = Node::start("k-0");
    node.bootstrap().await;
    let admin = node.admin();
    let with_port = KeyspaceRequest {
        port: Some(4001),
        ..asked(1)
    };
    let made = admin.put_keyspace("orders", &with_port).await.unwrap();
    assert_eq!(
        (made.name.as_str(), made.port, made.desired_shards),
        ("orders", Some(4001), 1)
    );
    admin.put_keyspace("events", &asked(1)).await.unwrap();
    for name in ["orders", "events", "default"] {
        becomes(&node, name, |keyspace| keyspace.state == KeyspaceState::Active).await;
    }
    // Repeating it changes nothing.
    let version = admin.layout().await.unwrap().version;
    admin.put_keyspace("orders", &with_port).await.unwrap();
    assert_eq!(admin.layout().await.unwrap().version, version);

    // Each counts its own revisions, from its own beginning.
    let main = channel(&node, 2379, "127.0.0.1").await;
    let orders = channel(&node, 2379, "orders.shop.svc:2379").await;
    let events = channel(&node, 2379, "events").await;
    let own = channel(&node, 4001, "anything").await;
    for (channel, value) in [(&main, "default"), (&orders, "orders"), (&events, "events")] {
        eventually("the endpoint serves", || async {
            let request = RangeRequest {
                key: "k".into(),
                ..RangeRequest::default()
            };
            let asked = KvClient::new(channel.clone()).range(request).await;
            asked.map(|_| ()).map_err(|status| status.to_string())
        })
        .await;
        assert_eq!(put(channel, "k", value).await, 2);
    }
    assert_eq!(put(&own, "k2", "own").await, 3);
    assert_eq!(get(&main, "k").await.as_deref(), Some("default"));
    assert_eq!(get(&orders, "k").await.as_deref(), Some("orders"));
    assert_eq!(get(&orders, "k2").await.as_deref(), Some("own"));
    assert_eq!(get(&events, "k").await.as_deref(), Some("events"));
    assert_eq!(get(&events, "k2").await, None);

    // Whoever takes his endpoints from the member list stays in his keyspace.
    let urls = |channel: &Channel| {
        let mut cluster = ClusterClient::new(channel.clone());
        async move {
            let request = MemberListRequest { linearizable: true };
            let members = cluster.member_list(request).await.unwrap().into_inner().members;
            members[0].client_ur_ls.clone()
        }
    };
    assert!(urls(&own).await[0].ends_with(":4001"), "{:?}", urls(&own).await);
    assert!(urls(&main).await[0].ends_with(":2379"), "{:?}", urls(&main).await);

    let status = node.status().await;
    let kinds: Vec<_> = status
        .shards
        .iter()
        .map(|shard| (shard.kind, shard.keyspace.as_deref().unwrap_or_default().to_owned()))
        .collect();
    assert_eq!(kinds[0], (Some(ShardKind::Meta), String::new()));
    assert_eq!(kinds[1], (Some(ShardKind::Data), "default".to_owned()));
    assert!(
        kinds.contains(&(Some(ShardKind::Data), "orders".to_owned())),
        "{kinds:?}"
    );

    // A port that changes, and a keyspace that goes.
    let moved = KeyspaceRequest {
        port: Some(4002),
        ..asked(1)
    };
    admin.put_keyspace("orders", &moved).await.unwrap();
    let moved = channel(&node, 4002, "anything").await;
    assert_eq!(get(&moved, "k").await.as_deref(), Some("orders"));
    admin.drop_keyspace("events").await.unwrap();
    eventually("it has gone", || async {
        let all = node.admin().keyspaces().await.map_err(|error| error.to_string())?;
        let left: Vec<_> = all.keyspaces.into_iter().map(|keyspace| keyspace.name).collect();
        if left == ["default", "orders"] {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    })
    .await;
    assert_eq!(get(&main, "k").await.as_deref(), Some("default"));
    assert_eq!(get(&orders, "k").await.as_deref(), Some("orders"));
}

#[tokio::test(flavor = "multi_thread")]
async fn wishes_that_cannot_be_had_are_refused_with_the_reason() {
    let node = Node::start("k-0");
    node.status().await;
    assert_eq!(
        reason(node.admin().put_keyspace("orders", &asked(1)).await),
        ProblemReason::NotLeader
    );
    node.bootstrap().await;
    let admin = node.admin();
    becomes(&node, "default", |keyspace| keyspace.state == KeyspaceState::Active).await;
    let port = |port| KeyspaceRequest {
        port: Some(port),
        ..asked(1)
    };
    admin.put_keyspace("orders", &port(4001)).await.unwrap();
    for (name, request, expected) in [
        ("Orders", asked(1), ProblemReason::Invalid),
        ("orders", asked(0), ProblemReason::Invalid),
        ("orders", asked(100_000), ProblemReason::Invalid),
        ("events", port(4001), ProblemReason::Conflict),
        (
            "events",
            KeyspaceRequest {
                partitioning: Some(Partitioning::Range {
                    split_keys: vec!["a\\n".to_owned()],
                }),
                ..asked(1)
            },
            ProblemReason::Invalid,
        ),
    ] {
        assert_eq!(
            reason(admin.put_keyspace(name, &request).await),
            expected,
            "{name} {request:?}"
        );
    }
    assert_eq!(reason(admin.drop_keyspace("default").await), ProblemReason::Invalid);
    assert_eq!(reason(admin.drop_keyspace("nothing").await), ProblemReason::NotFound);
    assert_eq!(reason(admin.drain("00000000000000ff").await), ProblemReason::NotFound);
    assert_eq!(reason(admin.drain("me").await), ProblemReason::Invalid);
    assert_eq!(reason(admin.cancel_operation(999).await), ProblemReason::NotFound);

    let me = node.status().await.member_id;
    let labels = althing_admin::LabelsRequest {
        labels: [("zone".to_owned(), "a".to_owned())].into(),
    };
    let member = admin.set_labels(&me, &labels).await.unwrap();
    assert_eq!((member.name.as_str(), member.labels), ("k-0", labels.labels));
    let draining = admin.drain(&me).await.unwrap();
    assert_eq!(draining.state, althing_admin::MemberState::Draining);
    let active = admin.undrain(&me).await.unwrap();
    assert_eq!(active.state, althing_admin::MemberState::Active);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keyspace_at_its_quota_refuses_puts_until_deletions_and_a_compaction_have_made_room() {
    /// Far more than is written before the conductor looks again.
    const PUTS_MAX: usize = 20_000;
    let node = Node::start("k-0");
    node.bootstrap().await;
    let quota = 300_000;
    let wish = KeyspaceRequest {
        quota_bytes: Some(quota),
        ..asked(1)
    };
    node.admin().put_keyspace("small", &wish).await.unwrap();
    let _ = becomes(&node, "small", |found| found.state == KeyspaceState::Active).await;
    let (small, default) = (
        channel(&node, 2379, "small").await,
        channel(&node, 2379, "elsewhere").await,
    );
    let value = "x".repeat(1000);
    let mut kv = KvClient::new(small.clone());
    let mut refused = None;
    for n in 0..PUTS_MAX {
        let request = PutRequest {
            key: format!("{n:06}").into(),
            value: value.clone().into(),
            ..PutRequest::default()
        };
        if let Err(status) = kv.put(request).await {
            refused = Some((n, status));
            break;
        }
    }
    let (taken, status) = refused.unwrap();
    assert_eq!(
        (status.code(), status.message()),
        (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded")
    );
    assert!(
        taken as u64 * 1000 >= quota,
        "{taken} puts of 1,000 bytes are within the quota"
    );

    let mut maintenance = MaintenanceClient::new(small.clone());
    let alarms = maintenance
        .alarm(AlarmRequest::default())
        .await
        .unwrap()
        .into_inner()
        .alarms;
    assert_eq!(
        alarms.iter().map(|alarm| alarm.alarm()).collect::<Vec<_>>(),
        vec![AlarmType::Nospace]
    );
    let status = maintenance.status(StatusRequest::default()).await.unwrap().into_inner();
    assert_eq!(status.db_size_quota, i64::try_from(quota).unwrap());
    let told = becomes(&node, "small", |found| found.message.contains("bytes that it may take")).await;
    assert_eq!(told.quota_bytes, Some(quota));
    assert_eq!(get(&small, "000000").await, Some(value.clone()), "reads go on");
    put(&default, "a", "1").await;

    let everything = DeleteRangeRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        ..DeleteRangeRequest::default()
    };
    let revision = kv
        .delete_range(everything)
        .await
        .unwrap()
        .into_inner()
        .header
        .unwrap()
        .revision;
    let compaction = CompactionRequest {
        revision,
        physical: true,
    };
    kv.compact(compaction).await.unwrap();
    let _ = becomes(&node, "small", |found| found.message.is_empty()).await;
    put(&small, "again", "1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wish_that_comes_before_the_first_map_waits_for_it() {
    let node = Node::start("k-0");
    node.bootstrap().await;
    let made = eventually("a keyspace is made at once", || async {
        let made = node.admin().put_keyspace("early", &asked(1)).await;
        made.map_err(|error| reason::<()>(Err(error)))
            .map_err(|reason| assert_eq!(reason, ProblemReason::Unavailable))
            .map_err(|()| "there is no map yet".to_owned())
    })
    .await;
    assert_eq!(made.name, "early");
    let early = becomes(&node, "early", |found| found.state == KeyspaceState::Active).await;
    let default = becomes(&node, "default", |found| found.state == KeyspaceState::Active).await;
    assert_ne!(early.shards[0].id, default.shards[0].id, "one group for each");
}
