//! Read leases on real processes: who answers without a message, what a dead responder costs, and what is served without a
//! quorum.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a failed unwrap is the failure of the test, and tests wait in real time"
)]

mod support;

use althing_admin::{ReadMode, ReadRange, ReadsRequest, ReadsStatus, Revisions};
use althing_api::pb::etcdserverpb::RangeRequest;
use std::time::{Duration, Instant};
use support::{Node, eventually, leader, three};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Reads of each member that are counted.
const READS: u64 = 100;
/// A responder that dies stops writes for its demotion and one lease, 1.5 s by default; this much later something is broken.
const GAP_MAX: Duration = Duration::from_secs(8);

fn request(mode: ReadMode) -> ReadsRequest {
    ReadsRequest {
        mode,
        ranges: None,
        revisions: None,
        lease_millis: None,
    }
}

async fn set(nodes: &[Node], request: &ReadsRequest) {
    let all: Vec<_> = nodes.iter().collect();
    eventually("the leader takes another read mode", || async {
        let set = leader(&all).await.admin().set_reads(1, request).await;
        set.map(|_| ()).map_err(|error| error.to_string())
    })
    .await;
}

async fn reads(node: &Node) -> ReadsStatus {
    let shards = node.admin().shards().await.unwrap();
    let shard = shards.shards.iter().find(|shard| shard.id == 1).unwrap();
    shard.reads.clone().expect("this version tells")
}

/// Waits until the member answers by itself, or until it does not.
async fn local(node: &Node, mode: ReadMode, wanted: bool) -> ReadsStatus {
    eventually(&format!("{} reads locally: {wanted}", node.name), || async {
        let reads = reads(node).await;
        if reads.mode == mode && reads.local == wanted {
            Ok(reads)
        } else {
            Err(format!("{reads:?}"))
        }
    })
    .await
}

async fn metrics(node: &Node) -> String {
    let address = node.admin_url().replace("http://", "");
    let mut stream = TcpStream::connect(&address).await.unwrap();
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn every_responder_answers_from_its_own_state_without_a_message_and_other_modes_ask() {
    let nodes = three().await;
    nodes[0].put("k", "v").await.unwrap();
    set(&nodes, &request(ReadMode::RosterLease)).await;
    for node in &nodes {
        let before = local(node, ReadMode::RosterLease, true).await;
        for _ in 0..READS {
            assert_eq!(node.get("k").await.unwrap().as_deref(), Some("v"));
        }
        let after = reads(node).await;
        let (alone, asked) = (
            after.local_reads - before.local_reads,
            after.index_reads - before.index_reads,
        );
        println!("{}: {alone} reads without a message, {asked} with", node.name);
        // The node's own look at its readiness may be among them.
        assert!(alone >= READS && asked == 0, "{before:?} {after:?}");
    }
    // A write at one is seen at all others at once.
    for number in 0..20 {
        let value = number.to_string();
        nodes[number % 3].put("k", &value).await.unwrap();
        for node in &nodes {
            assert_eq!(node.get("k").await.unwrap(), Some(value.clone()), "{}", node.name);
        }
    }

    set(&nodes, &request(ReadMode::LeaderLease)).await;
    let all: Vec<_> = nodes.iter().collect();
    let first = leader(&all).await;
    local(first, ReadMode::LeaderLease, true).await;
    let follower = *all.iter().find(|node| node.name != first.name).unwrap();
    let before = local(follower, ReadMode::LeaderLease, false).await;
    follower.get("k").await.unwrap();
    assert!(reads(follower).await.index_reads > before.index_reads);

    let metrics = metrics(&nodes[1]).await;
    for name in ["althing_reads_local", "althing_reads_by_index", "althing_read_lease"] {
        assert!(metrics.contains(name), "{name} is not among the metrics");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wish_that_makes_no_sense_is_refused_with_what_would_do() {
    let nodes = three().await;
    let all: Vec<_> = nodes.iter().collect();
    let first = leader(&all).await;
    let short = ReadsRequest {
        lease_millis: Some(100),
        ..request(ReadMode::RosterLease)
    };
    let error = first.admin().set_reads(1, &short).await.unwrap_err().to_string();
    assert!(error.contains("too short"), "{error}");
    let part = ReadsRequest {
        ranges: Some(vec![ReadRange {
            start: "a".to_owned(),
            end: Some("b".to_owned()),
            members: vec![],
        }]),
        ..request(ReadMode::RosterLease)
    };
    let error = first.admin().set_reads(1, &part).await.unwrap_err().to_string();
    assert!(error.contains("does not hold all keys"), "{error}");
    let of_keys = ReadsRequest {
        revisions: Some(Revisions::OfKeys),
        ..part
    };
    first.admin().set_reads(1, &of_keys).await.unwrap();
    assert_eq!(reads(first).await.revisions, Revisions::OfKeys);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_responder_that_dies_stops_writes_for_a_moment_and_serializable_reads_need_nobody() {
    let mut nodes = three().await;
    nodes[0].put("k", "v").await.unwrap();
    set(&nodes, &request(ReadMode::RosterLease)).await;
    for node in &nodes {
        local(node, ReadMode::RosterLease, true).await;
    }
    let all: Vec<_> = nodes.iter().collect();
    let first = leader(&all).await.name.clone();
    let dies = nodes.iter().position(|node| node.name != first).unwrap();
    nodes[dies].kill();
    let killed = Instant::now();
    let writer = nodes.iter().find(|node| node.name == first).unwrap();
    writer.put("k", "w").await.unwrap();
    let gap = killed.elapsed();
    println!("write gap after a responder was killed: {gap:?}");
    assert!(gap < GAP_MAX, "{gap:?}");

    // The last one but the dead one goes too: no quorum, and what is there is still shown to whoever asks for no more.
    let survivor = nodes.iter().position(|node| node.name == first).unwrap();
    let other = (0..3).find(|number| *number != survivor && *number != dies).unwrap();
    nodes[other].kill();
    let request = RangeRequest {
        key: b"k".to_vec().into(),
        serializable: true,
        ..RangeRequest::default()
    };
    let answer = nodes[survivor].kv().await.range(request).await.unwrap().into_inner();
    assert_eq!(&answer.kvs[0].value[..], b"w");
    eventually("leases run out and linearizable reads are refused", || async {
        match nodes[survivor].get("k").await {
            Ok(_) => Err("it still answers".to_owned()),
            Err(_) => Ok(()),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_cluster_begins_with_the_read_mode_of_its_settings() {
    let node = Node::start_with("orders-0", &["--read-mode", "roster-lease"]);
    node.bootstrap().await;
    node.put("k", "v").await.unwrap();
    let seen = local(&node, ReadMode::RosterLease, true).await;
    assert_eq!((seen.lease_millis, seen.revisions), (1000, Revisions::Current));
    node.get("k").await.unwrap();
    assert!(reads(&node).await.local_reads > 0);
}
